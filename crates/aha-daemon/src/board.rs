//! What everybody may read of the queue: its runs as they are, and the memory that is spoken for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::Notify;

use crate::admit::Load;
use crate::error::{Error, Result};
use crate::record::{Record, RunId};

/// The runs as they are. The keeper alone writes here, after it has written to the store.
#[derive(Default)]
pub struct Board {
    runs: RwLock<BTreeMap<RunId, Arc<Record>>>,
}

impl Board {
    /// The run of that number.
    pub fn run(&self, id: RunId) -> Result<Arc<Record>> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        let found = runs.get(&id).map(Arc::clone);
        found.ok_or_else(|| {
            Error::not_found(
                format!("there is no run {id}"),
                "`aha runs` lists those that there are",
            )
        })
    }

    /// All runs, in the order of their numbers.
    pub fn runs(&self) -> Vec<Arc<Record>> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        runs.values().map(Arc::clone).collect()
    }

    pub(crate) fn put(&self, record: Record) {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.insert(record.id, Arc::new(record));
    }

    pub(crate) fn remove(&self, id: RunId) {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.remove(&id);
    }
}

/// The memory that runs and loaded models share.
pub struct Budget {
    total_bytes: u64,
    used: Mutex<Used>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    runs: usize,
    runs_bytes: u64,
    models_bytes: u64,
}

impl Budget {
    /// So much for all.
    pub fn new(total_bytes: u64) -> Budget {
        Budget { total_bytes, used: Mutex::default(), changed: Notify::new() }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// What runs have.
    pub fn runs(&self) -> Load {
        let used = self.used();
        Load { runs: used.runs, memory_bytes: used.runs_bytes }
    }

    /// What models have.
    pub fn models_bytes(&self) -> u64 {
        self.used().models_bytes
    }

    /// Gives a run its memory. The keeper has decided that there is enough.
    pub(crate) fn take_for_run(&self, bytes: u64) {
        let mut used = self.used();
        used.runs += 1;
        used.runs_bytes += bytes;
    }

    /// Takes a run's memory back.
    pub(crate) fn give_back_of_run(&self, bytes: u64) {
        let mut used = self.used();
        used.runs -= 1;
        used.runs_bytes -= bytes;
    }

    /// Gives a model its memory, if there is enough; it goes back when what is returned is dropped.
    pub fn take_for_model(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut used = self.used();
        let all = used.runs_bytes.saturating_add(used.models_bytes).saturating_add(bytes);
        if all > self.total_bytes {
            return None;
        }
        used.models_bytes += bytes;
        Some(Share { budget: Arc::clone(self), bytes })
    }

    /// Waits until a model has given its memory back.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Sums are changed in one go, so a poisoned lock is taken.
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model's memory.
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used().models_bytes -= self.bytes;
        self.budget.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    #[test]
    fn a_run_that_is_not_there_is_named() {
        let board = Board::default();
        board.put(record(RunId(2)));
        assert_eq!(board.run(RunId(2)).unwrap().id, RunId(2));
        assert_eq!(board.run(RunId(7)).unwrap_err().message, "there is no run 7");
        board.remove(RunId(2));
        assert!(board.runs().is_empty());
    }

    #[test]
    fn models_have_what_runs_leave() {
        let budget = Arc::new(Budget::new(100));
        budget.take_for_run(60);
        let share = budget.take_for_model(40).unwrap();
        assert!(budget.take_for_model(1).is_none());
        drop(share);
        assert_eq!(budget.models_bytes(), 0);
        budget.give_back_of_run(60);
        assert!(budget.take_for_model(100).is_some());
        assert_eq!(budget.runs(), Load { runs: 0, memory_bytes: 0 });
    }
}
