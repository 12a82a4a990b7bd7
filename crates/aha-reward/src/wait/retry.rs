//! When a call is tried again, and after how long.

use std::time::{Duration, Instant};

use super::cancel::Cancel;
use super::{Key, hex, key};

/// The pause before the first retry; each later one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause that we choose ourselves.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Bounds of a call and its retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Time of one try.
    pub call_max: Duration,
    /// Time of all tries and the pauses between them.
    pub total_max: Duration,
    /// Tries after the first.
    pub retries_max: u32,
}

/// Why a try failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// It may pass: worth another try.
    Passing {
        /// What happened.
        reason: String,
        /// How long the other side wants us to wait.
        after: Option<Duration>,
    },
    /// The same request would fail again, and others may as well.
    Lasting(String),
    /// The same request would fail again: the other side finds fault with it (statuses 400, 413, 422).
    Refused(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Nobody wants it any more.
    Stopped,
    /// Every try failed; why the last one did.
    Failed(String),
}

/// Calls until there is an answer. `call` is given the time that it may take; `request` addresses the jitter.
pub fn retry<T>(
    limits: &Limits,
    cancel: &Cancel,
    request: &Key,
    mut call: impl FnMut(Duration) -> Result<T, Trouble>,
) -> Result<T, Failure> {
    let end = Instant::now() + limits.total_max;
    for tries_count in 0.. {
        if cancel.is_raised() {
            return Err(Failure::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        let (reason, after) = match call(limits.call_max.min(left)) {
            Ok(answer) => return Ok(answer),
            Err(Trouble::Lasting(reason) | Trouble::Refused(reason)) => {
                return Err(Failure::Failed(reason));
            }
            Err(Trouble::Passing { reason, after }) => (reason, after),
        };
        let pause = after.unwrap_or_else(|| pause(request, tries_count));
        if tries_count == limits.retries_max {
            let tries = tries_count + 1;
            let plural = if tries == 1 { "try" } else { "tries" };
            return Err(Failure::Failed(format!("{reason} ({tries} {plural})")));
        }
        if pause >= end.saturating_duration_since(Instant::now()) {
            let total = limits.total_max.as_secs_f64();
            return Err(Failure::Failed(format!("{reason} (given up, {total} s in all)")));
        }
        if !cancel.sleep(pause) {
            return Err(Failure::Stopped);
        }
    }
    unreachable!("the last retry returns")
}

/// The pause after so many retries: doubled each time, and of that at least half. The rest is a function of
/// the request, so that those that failed together don't come again together.
pub fn pause(request: &Key, retries_count: u32) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << retries_count.min(16)).min(PAUSE_MAX);
    let digest = key(&["pause", &hex(request), &retries_count.to_string()]);
    let draw = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    whole.mul_f64(0.5 + 0.5 * f64::from(draw) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(retries_max: u32, total_max: Duration) -> Limits {
        Limits { call_max: Duration::from_secs(1), total_max, retries_max }
    }

    fn passing<T>(after_ms: u64) -> Result<T, Trouble> {
        let after = Some(Duration::from_millis(after_ms));
        Err(Trouble::Passing { reason: "busy".to_owned(), after })
    }

    #[test]
    fn pauses_double_and_are_a_function_of_the_request() {
        let (a, b) = (key(&["a"]), key(&["b"]));
        for retries in 0..40 {
            let whole = Duration::from_millis(500 << retries.min(16)).min(PAUSE_MAX);
            assert_eq!(pause(&a, retries), pause(&a, retries));
            assert!(pause(&a, retries) >= whole / 2 && pause(&a, retries) <= whole, "{retries}");
        }
        assert_ne!(pause(&a, 1), pause(&b, 1));
    }

    #[test]
    fn what_passes_is_tried_again_and_what_lasts_is_not() {
        let limits = limits(2, Duration::from_secs(600));
        let run = |mut outcomes: Vec<Result<u32, Trouble>>| {
            outcomes.reverse();
            retry(&limits, &Cancel::default(), &key(&[]), |_| outcomes.pop().expect("too many"))
        };
        assert_eq!(run(vec![passing(1), passing(1), Ok(5)]), Ok(5));
        let failed = |reason: &str| Err(Failure::Failed(reason.to_owned()));
        assert_eq!(run(vec![passing(1), passing(1), passing(1)]), failed("busy (3 tries)"));
        assert_eq!(run(vec![Err(Trouble::Lasting("no".to_owned()))]), failed("no"));
    }

    #[test]
    fn a_wait_that_is_longer_than_what_is_left_is_not_begun() {
        let limits = limits(9, Duration::from_secs(5));
        let mut calls = 0;
        let outcome: Result<(), _> = retry(&limits, &Cancel::default(), &key(&[]), |time| {
            calls += 1;
            assert!(time <= Duration::from_secs(1));
            passing(60_000)
        });
        assert_eq!(outcome, Err(Failure::Failed("busy (given up, 5 s in all)".to_owned())));
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_stop_ends_the_pause() {
        let cancel = Cancel::default();
        let limits = limits(9, Duration::from_secs(6000));
        let outcome: Result<(), _> = retry(&limits, &cancel, &key(&[]), |_| {
            cancel.raise();
            passing(600_000)
        });
        assert_eq!(outcome, Err(Failure::Stopped));
    }
}
