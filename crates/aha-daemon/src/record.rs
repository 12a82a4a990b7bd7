//! What is kept of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::status::Status;

/// A run's number: the first is 1, and none is given twice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<RunId, Self::Err> {
        text.parse().map(RunId)
    }
}

/// A run of the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// Its number.
    pub id: RunId,
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub status: Status,
    /// When it was submitted, in µs since 1970, UTC.
    pub submitted_at_us: i64,
    /// When its process was last started.
    #[serde(default)]
    pub started_at_us: Option<i64>,
    /// When it came to an end.
    #[serde(default)]
    pub ended_at_us: Option<i64>,
    /// Overrides `KEY=VALUE` that it was submitted with.
    #[serde(default)]
    pub sets: Vec<String>,
    /// The folder that relative paths of its pipeline start from.
    #[schema(value_type = String)]
    pub base_dir: PathBuf,
    /// Its run directory.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// Memory that it is predicted to want at its peak, in bytes.
    pub memory_bytes: u64,
    /// The value of `run.memory` that it is started with, where the pipeline has none.
    #[serde(default)]
    pub memory_set_bytes: Option<u64>,
    /// The CUDA devices that it computes on, such as `cuda:0`; absent: the processor.
    #[serde(default)]
    pub device: Option<String>,
    /// Processes that were started for it.
    #[serde(default)]
    pub starts: u32,
    /// Processes in a row that ended early and made no step.
    #[serde(default)]
    pub failures: u32,
    /// When it may be started again after a failure, in µs since 1970.
    #[serde(default)]
    pub not_before_us: Option<i64>,
    /// Its process, while it has one.
    #[serde(default)]
    pub process: Option<Process>,
    /// Why it failed, or why its last process ended early.
    #[serde(default)]
    pub problem: Option<Trouble>,
    /// How far it is.
    #[serde(default)]
    pub progress: Progress,
}

/// A process, told from a later one of the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// What, where, expected, found.
    pub message: String,
    /// How to mend it.
    #[serde(default)]
    pub hint: Option<String>,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Its stages, in their order.
    #[serde(default)]
    pub stages: Vec<StageProgress>,
    /// The stage that it is at.
    #[serde(default)]
    pub stage: Option<String>,
    /// The newest step's measures.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Whether its process waits for room on the disk.
    #[serde(skip)]
    pub is_waiting: bool,
    /// What waits for the actors of the stage, where it has some.
    #[serde(default)]
    pub actors: Vec<ActorQueue>,
}

/// What waits for an actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActorQueue {
    /// The actor.
    pub actor: String,
    /// Batches that wait for it or that it works on.
    pub count: u64,
    /// How many it holds before its senders wait.
    pub max: u64,
}

/// How far a stage is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageProgress {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Steps done.
    pub step: u64,
    /// Steps in all; 0 where that isn't known.
    pub steps: u64,
    /// Whether it is done.
    pub is_done: bool,
    /// The stages whose models and rows it reads.
    #[serde(default)]
    pub reads: Vec<String>,
}

impl Progress {
    /// The stage of that name.
    pub fn stage_mut(&mut self, name: &str) -> Option<&mut StageProgress> {
        self.stages.iter_mut().find(|stage| stage.name == name)
    }

    /// The stage that the run is at.
    pub fn current(&self) -> Option<&StageProgress> {
        let name = self.stage.as_deref()?;
        self.stages.iter().find(|stage| stage.name == name)
    }
}
