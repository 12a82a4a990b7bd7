//! Where threads that work together wait for each other and show each other what they have.
//!
//! Each round every rank brings something and goes on with what all have brought, in the order of ranks. Where one
//! fails, it says so, and nobody waits any more: all others fail too.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a rank brings.
pub type Thing = Arc<dyn Any + Send + Sync>;

/// A place for so many ranks.
#[derive(Debug)]
pub struct Meeting {
    count: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By rank; none where it hasn't come yet.
    brought: Vec<Option<Thing>>,
    /// All of a round, until every rank has taken it.
    all: Option<Vec<Thing>>,
    taken_count: usize,
    failure: Option<Failure>,
}

/// Why nobody meets any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device {rank} of those that train together failed: {what}")]
pub struct Failure {
    /// Who failed first.
    pub rank: usize,
    /// What it said.
    pub what: String,
}

impl Meeting {
    /// For ranks below `count`.
    pub fn new(count: usize) -> Arc<Meeting> {
        let state = State { brought: vec![None; count], ..State::default() };
        Arc::new(Meeting { count, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Ranks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits for all ranks; returns what they brought, in order.
    pub fn meet(&self, rank: usize, thing: Thing) -> Result<Vec<Thing>, Failure> {
        let mut state = self.state();
        // Others may still have to take what the round before was about.
        while state.all.is_some() && state.failure.is_none() {
            state = self.wait(state);
        }
        state.check()?;
        assert!(state.brought[rank].is_none(), "rank {rank} comes twice to a meeting");
        state.brought[rank] = Some(thing);
        if state.brought.iter().all(Option::is_some) {
            state.all = Some(state.brought.iter_mut().filter_map(Option::take).collect());
            self.changed.notify_all();
        }
        loop {
            state.check()?;
            let Some(all) = state.all.clone() else {
                state = self.wait(state);
                continue;
            };
            state.taken_count += 1;
            if state.taken_count == self.count {
                (state.all, state.taken_count) = (None, 0);
                self.changed.notify_all();
            }
            return Ok(all);
        }
    }

    /// Says that a rank failed. The first time counts.
    pub fn fail(&self, rank: usize, what: &str) {
        let mut state = self.state();
        state.failure.get_or_insert_with(|| Failure { rank, what: what.to_owned() });
        self.changed.notify_all();
    }

    /// Who failed first.
    pub fn failure(&self) -> Option<Failure> {
        self.state().failure.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), Failure> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let came = self.brought.iter().flatten().count();
        write!(f, "{came} of {} came, {:?}", self.brought.len(), self.failure)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Goal: rounds don't mix. Method: ranks of different speed, many rounds.
    #[test]
    fn every_rank_goes_on_with_what_all_brought_in_order() {
        let meeting = Meeting::new(3);
        thread::scope(|scope| {
            for rank in 0..3 {
                let meeting = &meeting;
                scope.spawn(move || {
                    for round in 0..500 {
                        if (round + rank) % 7 == 0 {
                            thread::yield_now();
                        }
                        let all =
                            meeting.meet(rank, Arc::new((round, rank))).expect("nobody fails");
                        let found: Vec<(usize, usize)> =
                            all.iter().filter_map(|thing| thing.downcast_ref().copied()).collect();
                        assert_eq!(found, [(round, 0), (round, 1), (round, 2)]);
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_one_that_failed() {
        let meeting = Meeting::new(3);
        let found: Vec<Failure> = thread::scope(|scope| {
            let waiting = [0, 2].map(|rank| {
                let meeting = &meeting;
                scope.spawn(move || meeting.meet(rank, Arc::new(())).map(|_| ()).expect_err("no"))
            });
            meeting.fail(1, "no memory");
            meeting.fail(2, "something later");
            waiting.map(|thread| thread.join().expect("it ends")).into()
        });
        let first = Failure { rank: 1, what: "no memory".into() };
        assert_eq!(found, [first.clone(), first.clone()]);
        assert_eq!(meeting.meet(0, Arc::new(())).map(|_| ()), Err(first));
    }
}
