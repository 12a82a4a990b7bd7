//! A request to stop, seen by whoever waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks whether it was cancelled: a stop takes no longer than this.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A request to stop. Cloning it clones the handle.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// That which is raised with `flag`.
    pub fn new(flag: Arc<AtomicBool>) -> Cancel {
        Cancel(flag)
    }

    /// Asks everyone to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// For computations that look at a flag now and then.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, and says whether it slept to the end.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        while !self.is_raised() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(LOOK_EVERY));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_with_the_request() {
        let cancel = Cancel::default();
        assert!(cancel.sleep(Duration::from_millis(1)));
        let sleeper = {
            let cancel = cancel.clone();
            thread::spawn(move || cancel.sleep(Duration::from_secs(600)))
        };
        cancel.raise();
        assert!(!sleeper.join().unwrap());
    }
}
