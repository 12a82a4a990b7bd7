//! What is told to those who watch: states and steps of runs, as they happen.
//!
//! Each event has a number. The newest of a run are kept, so that one whose connection broke goes on behind the last
//! event that it has seen. One that is too slow misses events, which it is told; tables and records hold all of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::broadcast;

use crate::record::RunId;

/// Events of a run that are kept, and runs of which some are: those to which something happened last.
const KEPT_MAX: usize = 256;
const RUNS_MAX: usize = 64;
/// Events that a watcher may be behind.
const BEHIND_MAX: usize = 1024;

/// Something that happened to a run.
#[derive(Debug, PartialEq)]
pub struct Event {
    /// Its number, which grows.
    pub id: u64,
    /// The run.
    pub run: RunId,
    /// Its kind: `state`, `removed`, or what a run's process tells (`stage_started`, `step`, `warning`, …).
    pub kind: String,
    /// What happened.
    pub data: Value,
}

/// Takes events and hands them on.
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    kept: BTreeMap<RunId, VecDeque<Arc<Event>>>,
}

/// Events from a moment on.
pub struct Watch {
    /// Those that were kept.
    pub past: Vec<Arc<Event>>,
    /// Those to come, of every run.
    pub coming: broadcast::Receiver<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Events {
        Events { sender: broadcast::Sender::new(BEHIND_MAX), state: Mutex::default() }
    }
}

impl Events {
    /// Events whose numbers are greater than those of an earlier daemon: they are counted from the time, in µs.
    pub fn new(now_us: i64) -> Events {
        let events = Events::default();
        events.state().last_id = u64::try_from(now_us).unwrap_or(0);
        events
    }

    /// Tells everybody.
    pub fn tell(&self, run: RunId, kind: &str, data: Value) {
        let mut state = self.state();
        state.last_id += 1;
        let event = Arc::new(Event { id: state.last_id, run, kind: kind.to_owned(), data });
        let kept = state.kept.entry(run).or_default();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        if state.kept.len() > RUNS_MAX {
            let newest = |kept: &VecDeque<Arc<Event>>| kept.back().map(|event| event.id);
            let oldest = state.kept.iter().min_by_key(|(_, kept)| newest(kept));
            if let Some(run) = oldest.map(|(run, _)| *run) {
                state.kept.remove(&run);
            }
        }
        // Nobody may be there.
        let _ = self.sender.send(event);
    }

    /// Tells those who watch now what is soon out of date; it is not kept for others.
    pub fn mention(&self, run: RunId, kind: &str, data: Value) {
        let mut state = self.state();
        state.last_id += 1;
        let event = Event { id: state.last_id, run, kind: kind.to_owned(), data };
        // Nobody may be there.
        let _ = self.sender.send(Arc::new(event));
    }

    /// Events behind the one numbered `after`, of one run or of all.
    pub fn watch(&self, run: Option<RunId>, after: Option<u64>) -> Watch {
        // Under the lock no event falls between those kept and those to come.
        let state = self.state();
        let is_wanted = |event: &&Arc<Event>| after.is_some_and(|after| event.id > after);
        let of_run = |id: &RunId| run.is_none_or(|run| run == *id);
        let kept = state.kept.iter().filter(|(id, _)| of_run(id)).flat_map(|(_, kept)| kept);
        let mut past: Vec<Arc<Event>> = kept.filter(is_wanted).map(Arc::clone).collect();
        past.sort_by_key(|event| event.id);
        Watch { past, coming: self.sender.subscribe() }
    }

    /// Those who watch.
    pub fn watchers(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Forgets the events of a run that is removed.
    pub fn forget(&self, run: RunId) {
        self.state().kept.remove(&run);
    }

    /// Each change is one assignment, so a poisoned lock is taken.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_watcher_goes_on_where_it_was() {
        let events = Events::default();
        for step in 1..=3 {
            events.tell(RunId(step % 2), "step", json!({ "step": step }));
        }
        let ids = |watch: &Watch| watch.past.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(&events.watch(None, Some(0))), [1, 2, 3]);
        assert_eq!(ids(&events.watch(None, Some(2))), [3]);
        assert_eq!(ids(&events.watch(Some(RunId(0)), Some(0))), [2]);
        assert!(ids(&events.watch(None, None)).is_empty(), "without a number only what comes");
        let mut watch = events.watch(None, None);
        events.tell(RunId(1), "state", json!({}));
        assert_eq!(watch.coming.try_recv().unwrap().id, 4);
        events.mention(RunId(0), "actors", json!({}));
        assert_eq!(watch.coming.try_recv().unwrap().kind, "actors");
        assert_eq!(
            ids(&events.watch(Some(RunId(0)), Some(0))),
            [2],
            "what is mentioned is not kept"
        );
        events.forget(RunId(1));
        assert_eq!(ids(&events.watch(None, Some(0))), [2]);
    }

    #[test]
    fn the_newest_events_are_kept() {
        let events = Events::default();
        for step in 0..2 * KEPT_MAX {
            events.tell(RunId(1), "step", json!(step));
        }
        let watch = events.watch(None, Some(0));
        assert_eq!(watch.past.len(), KEPT_MAX);
        assert_eq!(watch.past.last().unwrap().id, 2 * KEPT_MAX as u64);
        (2..=RUNS_MAX as u64).for_each(|run| events.tell(RunId(run), "state", json!({})));
        events.tell(RunId(1), "step", json!({}));
        events.tell(RunId(0), "state", json!({}));
        let count = |run| events.watch(Some(RunId(run)), Some(0)).past.len();
        assert_eq!((count(0), count(1), count(2), count(3)), (1, KEPT_MAX, 0, 1));
    }
}
