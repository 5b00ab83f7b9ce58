//! argv -> cli -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    snowberry::allocator::tame();
    snowberry::cli::main(std::env::args_os())
}
