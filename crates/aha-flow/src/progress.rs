//! What a run tells whoever watches it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A stage begins, or goes on at `step` after a resume.
    StageStarted {
        /// Its name.
        stage: String,
        /// Its kind.
        kind: &'static str,
        /// Steps already done.
        step: u64,
        /// Steps in all; 0 where that isn't known.
        steps: u64,
    },
    /// A step is done.
    Step {
        /// The stage.
        stage: String,
        /// Steps done.
        step: u64,
        /// What was measured.
        metrics: BTreeMap<String, f64>,
    },
    /// What waits for the actors of a stage; told about once a second.
    Actors {
        /// The stage.
        stage: String,
        /// Those that have a queue, in the order of the data.
        actors: Vec<Waiting>,
    },
    /// Something that the operator should know, with a remedy.
    Warning {
        /// The stage.
        stage: String,
        /// What was found.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The run waits for room on the disk.
    Waiting {
        /// What couldn't be written.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The run waits no more.
    GoesOn,
    /// A stage is done.
    StageDone {
        /// Its name.
        stage: String,
    },
    /// A table to print at the end of the run.
    Print {
        /// The stage.
        stage: String,
        /// Its description.
        description: String,
        /// The table, drawn in text.
        text: String,
    },
}

/// What waits for an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The actor.
    pub actor: &'static str,
    /// Batches that wait for it or that it works on.
    pub count: usize,
    /// How many it holds before its senders wait.
    pub max: usize,
}

/// Takes events. Watching never stops a run: a watcher can't answer.
pub type Watcher = Arc<dyn Fn(Event) + Send + Sync>;

/// A watcher that looks away.
pub fn nobody() -> Watcher {
    Arc::new(|_| ())
}
