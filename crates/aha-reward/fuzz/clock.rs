//! Processor time of this thread: a busy machine must not look like a slow verdict.

use std::sync::atomic::{AtomicU64, Ordering};

/// The longest so far, in microseconds.
static LONGEST_US: AtomicU64 = AtomicU64::new(0);

fn thread_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Runs `work`; panics if it took 50 ms, and says so when nothing took longer before.
pub fn within_50_ms<T>(text: &str, work: impl FnOnce() -> T) -> T {
    let start = thread_us();
    let result = work();
    let us = thread_us() - start;
    if us > LONGEST_US.fetch_max(us, Ordering::Relaxed) && us > 1000 {
        let short: String = text.chars().take(120).collect();
        eprintln!("longest: {us} us for {} bytes: {short:?}", text.len());
    }
    assert!(us < 50_000, "{us} us");
    result
}
