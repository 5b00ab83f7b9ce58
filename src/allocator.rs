//! What glibc's allocator is told: the only two calls of the house that are not safe Rust.

/// Blocks above this are mapped on their own and go back to the system when they are freed: the
/// windows of codecs do, rows of 255 KiB and buffers of 256 KiB do not (mapping each of those anew
/// costs a quarter of the speed of a stored NAR). Left to itself glibc raises its threshold to
/// 32 MiB, and the heap stayed at 60 MiB after a closure of 690 MiB; with this, at 28.
#[cfg(target_env = "gnu")]
const MAPPED_LEN_MIN: libc::c_int = 512 * 1024;

/// Free bytes at the end of the heap beyond which it is cut.
#[cfg(target_env = "gnu")]
const HEAP_SPARE_LEN: libc::c_int = 256 * 1024;

/// Called first thing in `main`: one arena, and thresholds of our own.
///
/// glibc gives each thread an arena of its own and keeps what was freed there: 20 to 30 MiB with
/// 25 readers, of the 48 that a Pi shall spend. One arena costs no speed that can be measured.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no safe door to its settings")]
pub fn tame() {
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

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn tame() {}

/// Gives free pages in the middle of the heap back to the system, which glibc does not do of itself.
///
/// Those of redb's caches lie scattered: of 36 MiB after work 26 stayed when all was closed, and 2 to
/// 10 with this.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc has no safe door to this")]
pub fn give_back() {
    // SAFETY: no memory that anybody owns is touched; it may be called at any time by any thread.
    let _given = unsafe { libc::malloc_trim(0) };
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
