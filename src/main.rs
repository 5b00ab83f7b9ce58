//! argv -> cli -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tame_the_allocator();
    snowberry::cli::main(std::env::args_os())
}

/// Blocks above this are mapped on their own and go back to the system when they are freed: the
/// windows of codecs do, rows of 255 KiB and buffers of 256 KiB do not (mapping each of those anew
/// costs a quarter of the speed of a stored NAR). Left to itself glibc raises its threshold to
/// 32 MiB, and the heap stayed at 60 MiB after a closure of 690 MiB; with this, at 28.
#[cfg(target_env = "gnu")]
const MAPPED_LEN_MIN: libc::c_int = 512 * 1024;

/// Free bytes at the end of the heap beyond which it is cut.
#[cfg(target_env = "gnu")]
const HEAP_SPARE_LEN: libc::c_int = 256 * 1024;

/// glibc gives each thread an arena of its own and keeps what was freed there: 20 to 30 MiB with
/// 25 readers, of the 48 that a Pi shall spend. One arena costs no speed that can be measured.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no safe door to its settings")]
fn tame_the_allocator() {
    let settings = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, MAPPED_LEN_MIN),
        (libc::M_TRIM_THRESHOLD, HEAP_SPARE_LEN),
    ];
    for (setting, value) in settings {
        // SAFETY: called before any other thread exists; an unknown setting only returns 0.
        let _taken = unsafe { libc::mallopt(setting, value) };
    }
}

#[cfg(not(target_env = "gnu"))]
fn tame_the_allocator() {}
