//! argv -> cli -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_one_arena();
    snowberry::cli::main(std::env::args_os())
}

/// glibc gives each thread an arena of its own and keeps what was freed there: 20 to 30 MiB with
/// 25 readers, of the 48 that a Pi shall spend. One arena costs no speed that can be measured.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no safe door to its settings")]
fn keep_one_arena() {
    // SAFETY: called before any other thread exists; an unknown setting only returns 0.
    let _taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn keep_one_arena() {}
