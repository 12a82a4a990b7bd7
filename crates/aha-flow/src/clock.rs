//! The wall clock of tables and records.
//!
//! `SOURCE_DATE_EPOCH` (seconds since 1970, as the reproducible-builds convention has it) stops the clock at
//! that instant: then tables of equal runs are equal byte for byte.

use std::sync::OnceLock;

/// Now, in microseconds since 1970, UTC; or the instant that `SOURCE_DATE_EPOCH` names.
pub fn now_us() -> i64 {
    fixed_us().unwrap_or_else(aha_rollout::time::now_us)
}

/// Whether the clock is stopped, so that durations mean nothing.
pub fn is_stopped() -> bool {
    fixed_us().is_some()
}

fn fixed_us() -> Option<i64> {
    static FIXED: OnceLock<Option<i64>> = OnceLock::new();
    *FIXED.get_or_init(|| {
        let seconds: i64 = std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()?;
        seconds.checked_mul(1_000_000)
    })
}
