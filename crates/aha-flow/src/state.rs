//! `run.json`: what ran, and how far each stage is.

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Error, Result};
use crate::identity::{Difference, Identity};
use crate::parts::{Depth, Parts};
use crate::pipeline::{Pipeline, Stage};
use crate::rundir::{RunDir, write_file};

/// What ran. Written aside and renamed at each change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of the program that began it.
    pub version: String,
    /// Seed of every draw.
    pub seed: u64,
    /// The machine.
    pub machine: Machine,
    /// What its results depend on: a run is resumed with what it began with.
    pub identity: Identity,
    /// When the run began, in µs since 1970, UTC.
    pub started_at_us: i64,
    /// Stages in the order they run.
    pub stages: Vec<StageState>,
}

/// What the run ran on. Results do not depend on it within one instruction set family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system and architecture.
    pub platform: String,
    /// What computes, as `run.device` says it.
    #[serde(default = "processor")]
    pub device: String,
    /// The name of that, where it is a CUDA device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// Compute threads.
    pub threads: usize,
}

/// What computed before there was another device.
fn processor() -> String {
    "cpu".to_owned()
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageState {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How far it is.
    pub status: Status,
    /// The parts of tables that it wrote, once it is done.
    #[serde(default, skip_serializing_if = "Parts::is_empty")]
    pub parts: Parts,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not begun.
    Pending,
    /// Begun; after a kill it goes on from its last checkpoint.
    Running,
    /// Its outputs are complete.
    Done,
}

/// What to do with a run directory, decided from what is in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Opening {
    /// Begin: nothing is there.
    Begin,
    /// Go on from this state.
    Resume(RunState),
    /// Everything is done already.
    Finished(RunState),
    /// Don't touch it: what is wrong and the remedy.
    Refuse {
        /// What is wrong.
        message: String,
        /// The remedy.
        hint: String,
    },
}

/// Decides from what was found, and how it differs from what is to be run. `resume` is whether the operator
/// asked to go on.
pub fn decide(found: Option<RunState>, difference: Option<Difference>, resume: bool) -> Opening {
    let Some(state) = found else {
        return match resume {
            false => Opening::Begin,
            true => Opening::Refuse {
                message: "there is no run to go on with".to_owned(),
                hint: "begin one without --resume, or name the run's directory with --dir"
                    .to_owned(),
            },
        };
    };
    if let Some(Difference { message, hint }) = difference {
        return Opening::Refuse { message, hint };
    }
    if state.is_finished() {
        return Opening::Finished(state);
    }
    if !resume {
        return Opening::Refuse {
            message: "the run directory holds an unfinished run".to_owned(),
            hint: "go on with --resume, or give another directory with --dir".to_owned(),
        };
    }
    Opening::Resume(state)
}

impl RunState {
    /// The state of a run that begins.
    pub fn begin(pipeline: &Pipeline, identity: Identity, machine: Machine) -> RunState {
        let stage = |stage: &Stage| StageState {
            name: stage.name.clone(),
            kind: stage.kind.word().to_owned(),
            status: Status::Pending,
            parts: Parts::default(),
        };
        RunState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: pipeline.run.seed,
            machine,
            identity,
            started_at_us: clock::now_us(),
            stages: pipeline.stages.iter().map(stage).collect(),
        }
    }

    /// Whether every stage is done.
    pub fn is_finished(&self) -> bool {
        self.stages.iter().all(|stage| stage.status == Status::Done)
    }

    /// Whether the stage of that name is done.
    pub fn is_done(&self, stage: &str) -> bool {
        self.stages.iter().any(|state| state.name == stage && state.status == Status::Done)
    }

    /// Reads the state of a run directory; none if there is none.
    pub fn read(dir: &RunDir) -> Result<Option<RunState>> {
        let path = dir.state();
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs_err::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::input_with(
                format!("`{}` is not the state of a run: {error}", path.display()),
                "give another directory with --dir",
            )
        })
    }

    /// Writes the state; durable when this returns.
    pub fn write(&self, dir: &RunDir) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::bug(format!("the run's state has no JSON: {error}")))?;
        text.push(b'\n');
        dir.write(|| write_file(&dir.state(), &text))
    }

    /// Notes that a stage runs, and writes the state.
    pub fn running(&mut self, dir: &RunDir, stage: &str) -> Result<()> {
        self.set(dir, stage, Status::Running, Parts::default())
    }

    /// Notes that a stage is done with what it has written, and writes the state.
    pub fn done(&mut self, dir: &RunDir, stage: &Stage) -> Result<()> {
        let side = stage.side_tables().into_iter().map(|(name, _)| name);
        let tables: Vec<String> = std::iter::once(stage.name.clone()).chain(side).collect();
        let parts = Parts::default().with(dir, &stage.name, &tables)?;
        self.set(dir, &stage.name, Status::Done, parts)
    }

    fn set(&mut self, dir: &RunDir, stage: &str, status: Status, parts: Parts) -> Result<()> {
        for state in self.stages.iter_mut().filter(|s| s.name == stage) {
            (state.status, state.parts) = (status, parts.clone());
        }
        self.write(dir)
    }

    /// Says which part of the stages that are done is missing or damaged, if one is.
    pub fn damage(&self, dir: &RunDir, depth: Depth) -> Result<Option<String>> {
        for stage in &self.stages {
            if let Some(damage) = stage.parts.damage(dir, depth)? {
                return Ok(Some(format!(
                    "{damage} (of the stage `{}`, which is done)",
                    stage.name
                )));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(statuses: &[Status]) -> RunState {
        let stage = |&status| StageState {
            name: "a".into(),
            kind: "sft".into(),
            status,
            parts: Parts::default(),
        };
        RunState {
            version: "1".into(),
            seed: 1,
            machine: Machine {
                platform: "x".into(),
                device: "cpu".into(),
                device_name: None,
                instruction_set: "avx2".into(),
                threads: 2,
            },
            identity: Identity::default(),
            started_at_us: 0,
            stages: statuses.iter().map(stage).collect(),
        }
    }

    #[test]
    fn an_empty_directory_begins_and_is_not_gone_on_with() {
        assert_eq!(decide(None, None, false), Opening::Begin);
        assert!(matches!(decide(None, None, true), Opening::Refuse { .. }));
    }

    #[test]
    fn an_unfinished_run_goes_on_only_when_asked() {
        let half = state(&[Status::Done, Status::Running]);
        assert_eq!(decide(Some(half.clone()), None, true), Opening::Resume(half.clone()));
        assert!(matches!(decide(Some(half), None, false), Opening::Refuse { .. }));
    }

    #[test]
    fn a_finished_run_is_left_as_it_is() {
        let done = state(&[Status::Done]);
        assert_eq!(decide(Some(done.clone()), None, false), Opening::Finished(done));
    }

    #[test]
    fn a_run_of_something_else_is_refused() {
        for status in [Status::Running, Status::Done] {
            let other = Difference { message: "other".into(), hint: "mend".into() };
            let refused = Opening::Refuse { message: "other".into(), hint: "mend".into() };
            assert_eq!(decide(Some(state(&[status])), Some(other), true), refused);
        }
    }
}
