//! The states of a run, and every way from one to another.
//!
//! ```text
//!            start            done
//!  queued ─────────▶ running ──────▶ finished
//!    ▲ │ ▲  stopped, │ │ │ failed
//!    │ │ └──lost─────┘ │ └────────▶ failed ──resume──▶ queued
//!    │ │ pause         │ pause
//!    │ ▼               ▼
//!  paused ◀─stopped─ pausing          cancel: from any state that isn't an end, by
//!    resume: to queued                `cancelling` where a process has to stop first, to `cancelled`
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Kind, Result};

/// Where a run is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for its turn.
    Queued,
    /// Its process works.
    Running,
    /// Its process was asked to stop after a checkpoint, and the run will be paused.
    Pausing,
    /// It waits until somebody resumes it.
    Paused,
    /// Its process was asked to stop, and the run will be cancelled.
    Cancelling,
    /// Somebody cancelled it.
    Cancelled,
    /// All its stages are done.
    Finished,
    /// It failed, and would fail again as it is; or it failed too often.
    Failed,
}

/// What happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its turn has come.
    Start,
    /// Somebody wants it paused.
    Pause,
    /// Somebody wants it to go on.
    Resume,
    /// Somebody wants it to end.
    Cancel,
    /// Its process ended, with every stage done.
    Done,
    /// Its process ended after a checkpoint, because it was asked to.
    Stopped,
    /// Its process ended in a way that may pass: it is tried again.
    Lost,
    /// Its process ended in a way that won't pass, or too often.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 8] = [
        Status::Queued,
        Status::Running,
        Status::Pausing,
        Status::Paused,
        Status::Cancelling,
        Status::Cancelled,
        Status::Finished,
        Status::Failed,
    ];

    /// The state after `change`; fails where that can't happen to a run in this state.
    pub fn after(self, change: Change) -> Result<Status> {
        use Change as C;
        use Status as S;
        Ok(match (self, change) {
            (S::Queued, C::Start) => S::Running,
            (S::Queued | S::Paused, C::Pause) => S::Paused,
            (S::Running | S::Pausing, C::Pause) => S::Pausing,
            (S::Queued | S::Paused | S::Failed, C::Resume) => S::Queued,
            (S::Running, C::Resume) => S::Running,
            (S::Queued | S::Paused | S::Failed | S::Cancelled, C::Cancel) => S::Cancelled,
            (S::Running | S::Pausing | S::Cancelling, C::Cancel) => S::Cancelling,
            (S::Running | S::Pausing | S::Cancelling, C::Done) => S::Finished,
            (S::Running, C::Stopped | C::Lost) => S::Queued,
            (S::Pausing, C::Stopped | C::Lost) => S::Paused,
            (S::Cancelling, C::Stopped | C::Lost | C::Failed) => S::Cancelled,
            // What can't be started fails without a process.
            (S::Running | S::Pausing | S::Queued, C::Failed) => S::Failed,
            _ => return Err(self.refuse(change)),
        })
    }

    /// Whether the run has a process, as far as the queue knows.
    pub fn has_process(self) -> bool {
        matches!(self, Status::Running | Status::Pausing | Status::Cancelling)
    }

    /// Whether nothing will happen to the run by itself any more.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Cancelled | Status::Finished | Status::Failed)
    }

    /// Its word in the API.
    pub fn word(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Pausing => "pausing",
            Status::Paused => "paused",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
            Status::Finished => "finished",
            Status::Failed => "failed",
        }
    }

    fn refuse(self, change: Change) -> Error {
        let wanted = match change {
            Change::Pause => "be paused",
            Change::Resume => "be resumed",
            Change::Cancel => "be cancelled",
            Change::Start => "be started",
            Change::Done | Change::Stopped | Change::Lost | Change::Failed => "end",
        };
        let hint = match self {
            Status::Pausing => "wait until it is paused",
            Status::Cancelling | Status::Cancelled | Status::Finished => {
                "submit the pipeline again for another run"
            }
            Status::Failed => "resume it once what it failed of is mended",
            Status::Queued | Status::Running | Status::Paused => "look at its state first",
        };
        let message = format!("a run that is {} can't {wanted}", self.word());
        Error::new(Kind::Conflict, message).hint(hint)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGES: [Change; 8] = [
        Change::Start,
        Change::Pause,
        Change::Resume,
        Change::Cancel,
        Change::Done,
        Change::Stopped,
        Change::Lost,
        Change::Failed,
    ];

    /// One row for each state, one letter for each change in the order above; a point where it is refused.
    #[test]
    fn the_table_of_changes() {
        let letter = |status: Status| match status {
            Status::Queued => 'q',
            Status::Running => 'r',
            Status::Pausing => 'p',
            Status::Paused => 'P',
            Status::Cancelling => 'c',
            Status::Cancelled => 'C',
            Status::Finished => 'F',
            Status::Failed => 'X',
        };
        let row = |status: Status| -> String {
            CHANGES.iter().map(|change| status.after(*change).map_or('.', letter)).collect()
        };
        let table = Status::ALL.map(|status| (letter(status), row(status)));
        let expected = [
            ('q', "rPqC...X"),
            ('r', ".prcFqqX"),
            ('p', ".p.cFPPX"),
            ('P', ".PqC...."),
            ('c', "...cFCCC"),
            ('C', "...C...."),
            ('F', "........"),
            ('X', "..qC...."),
        ];
        assert_eq!(table, expected.map(|(status, row)| (status, row.to_owned())));
    }

    #[test]
    fn a_process_that_ends_leaves_a_state_without_one() {
        for status in Status::ALL.into_iter().filter(|status| status.has_process()) {
            for change in [Change::Done, Change::Stopped, Change::Lost, Change::Failed] {
                assert!(!status.after(change).unwrap().has_process(), "{status} {change:?}");
            }
        }
    }

    #[test]
    fn what_is_refused_says_why_and_what_to_do() {
        let error = Status::Finished.after(Change::Pause).unwrap_err();
        assert_eq!(error.message, "a run that is finished can't be paused");
        assert!(error.hint.unwrap().contains("submit"));
        assert_eq!(error.kind, Kind::Conflict);
    }
}
