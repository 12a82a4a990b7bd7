//! How long somebody waited.

use std::time::{Duration, Instant};

/// Adds up the times that somebody waited.
#[derive(Debug, Default)]
pub struct Idle {
    total: Duration,
    since: Option<Instant>,
}

impl Idle {
    /// The wait begins, unless it has.
    pub fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The wait ends, if there is one.
    pub fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.total += now.saturating_duration_since(since);
        }
    }

    /// The time waited since the last call, that of a wait that goes on included.
    pub fn take(&mut self, now: Instant) -> Duration {
        if let Some(since) = &mut self.since {
            self.total += now.saturating_duration_since(*since);
            *since = now;
        }
        std::mem::take(&mut self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_added_up_and_one_that_goes_on_is_split() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut idle = Idle::default();
        idle.end(at(1));
        idle.begin(at(2));
        idle.begin(at(3));
        idle.end(at(5));
        idle.begin(at(6));
        assert_eq!(idle.take(at(8)), Duration::from_secs(5));
        idle.end(at(9));
        assert_eq!(idle.take(at(20)), Duration::from_secs(1));
        assert_eq!(idle.take(at(30)), Duration::ZERO);
    }
}
