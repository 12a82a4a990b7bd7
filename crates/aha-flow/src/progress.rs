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
    /// Something that the operator should know, with a remedy.
    Warning {
        /// The stage.
        stage: String,
        /// What was found.
        message: String,
        /// What to do about it.
        hint: String,
    },
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

/// Takes events. Watching never stops a run: a watcher can't answer.
pub type Watcher = Arc<dyn Fn(Event) + Send + Sync>;

/// A watcher that looks away.
pub fn nobody() -> Watcher {
    Arc::new(|_| ())
}
