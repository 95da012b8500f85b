//! How the C library's allocator is to behave in the daemon. Chosen by measurement (ADR 0024).
//!
//! glibc's defaults are for programs with many threads that allocate all the time: an arena for each
//! of them, and tables of up to 32 MiB inside the heap, where each leaves a hole when it grows. The
//! agent has few busy threads and few large tables.

/// Call it before the first thread starts.
#[cfg(target_env = "gnu")]
pub fn set_up() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};

    /// Arenas that threads share. One was not smaller.
    const ARENAS: i32 = 2;
    /// From here on (bytes) an allocation is a mapping of its own: it grows without a copy, and goes
    /// back to the kernel when it is freed. Saying it keeps glibc from raising it by itself.
    const LARGE: i32 = 128 << 10;
    /// Free bytes at the end of the heap that are kept.
    const KEPT: i32 = 1 << 20;

    for (parameter, value) in [
        (M_ARENA_MAX, ARENAS),
        (M_MMAP_THRESHOLD, LARGE),
        (M_TRIM_THRESHOLD, KEPT),
    ] {
        // SAFETY: these parameters take any number, and no other thread runs yet that could
        // allocate meanwhile. A refusal (0) leaves the default, with which everything works.
        unsafe {
            mallopt(parameter, value);
        }
    }
}

/// Other C libraries have nothing to set.
#[cfg(not(target_env = "gnu"))]
pub fn set_up() {}
