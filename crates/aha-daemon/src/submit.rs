//! Submitted pipelines: read, held against the policy, checked as `aha check` does, their memory predicted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use aha_flow::machine;
use aha_flow::pipeline::{ByteSize, Pipeline, Places, Text};
use aha_flow::{pipeline, planning};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::bounded::{self, Bounds, Outcome, Task};
use crate::error::{Error, Kind, Result, blocking};
use crate::home::Home;
use crate::options::Options;
use crate::policy::Policy;
use crate::record::{Progress, Record, RunId, StageProgress};
use crate::status::Status;

/// Longest name of a run, in characters.
const NAME_LEN_MAX: usize = 100;
/// Overrides of a run, at most.
const SETS_MAX: usize = 256;
/// What problems of a submitted text are shown in.
const SHOWN_AS: &str = "pipeline.toml";

/// A pipeline to run.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The text of the pipeline file.
    pub pipeline: String,
    /// What people call the run; absent: `run`.
    #[serde(default)]
    #[schema(max_length = 100)]
    pub name: Option<String>,
    /// Overrides `KEY=VALUE`, such as `stage.zero.steps=10`.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub sets: Vec<String>,
    /// The folder that relative paths of the pipeline start from; absent: the one that the daemon was started in.
    #[serde(default)]
    pub base_dir: Option<String>,
}

/// A run that may be added to the queue.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The text of its pipeline.
    pub text: String,
    name: String,
    sets: Vec<String>,
    base_dir: PathBuf,
    memory_bytes: u64,
    memory_set_bytes: Option<u64>,
    device: Option<String>,
    stages: Vec<StageProgress>,
}

/// What was found out about a pipeline that may be submitted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Checked {
    /// Its stages, in their order.
    pub stages: Vec<StageProgress>,
    /// Memory that it is predicted to want at its peak, in bytes.
    pub memory_bytes: u64,
}

impl From<Draft> for Checked {
    fn from(draft: Draft) -> Checked {
        Checked { stages: draft.stages, memory_bytes: draft.memory_bytes }
    }
}

impl Draft {
    /// What is kept of it.
    pub fn record(self, id: RunId, run_dir: PathBuf, now_us: i64) -> Record {
        Record {
            id,
            name: self.name,
            status: Status::Queued,
            submitted_at_us: now_us,
            started_at_us: None,
            ended_at_us: None,
            sets: self.sets,
            base_dir: self.base_dir,
            run_dir,
            memory_bytes: self.memory_bytes,
            memory_set_bytes: self.memory_set_bytes,
            device: self.device,
            starts: 0,
            failures: 0,
            not_before_us: None,
            process: None,
            problem: None,
            progress: Progress { stages: self.stages, ..Progress::default() },
        }
    }
}

/// Checks a submission: its form, its pipeline, what that names, and that it fits into `memory_bytes`.
pub async fn check(
    submission: Submission,
    options: &Options,
    policy: &Policy,
    (home, memory_bytes): (&Home, u64),
) -> Result<Draft> {
    let name = name_of(submission.name.clone())?;
    if submission.sets.len() > SETS_MAX {
        let message = format!("{} overrides, and a run may have {SETS_MAX}", submission.sets.len());
        return Err(Error::input(message, "write them into the pipeline"));
    }
    let base_dir = base_dir(submission.base_dir.as_deref(), policy).await?;
    let places = Places { base_dir: base_dir.clone(), ..planning::places() };
    let parsed = parse(&submission.pipeline, &submission.sets)?;
    let (held, policy) = (parsed.clone(), policy.clone());
    blocking(move || policy.check(&held, &places)).await?;
    let share = memory_bytes / options.runs_max.max(1) as u64;
    let planner = Planner { submission: &submission, base_dir: &base_dir, options, home };
    let (plan, memory_set_bytes) = planner.planned(&parsed, [share, memory_bytes]).await?;
    let peak = plan.memory_bytes.unwrap_or(0);
    if peak > memory_bytes {
        let message = format!(
            "the run will want {} of memory, and the daemon has {} for all",
            pipeline::memory::shown(peak),
            pipeline::memory::shown(memory_bytes)
        );
        return Err(Error::input(
            message,
            "lower `micro_batch_tokens`, `run.kv_cache` or `run.query_memory`, or start the daemon with more --memory",
        ));
    }
    let stages = plan.stages.into_iter().map(|stage| StageProgress {
        name: stage.name,
        kind: stage.kind,
        reads: stage.reads,
        ..StageProgress::default()
    });
    Ok(Draft {
        name,
        stages: stages.collect(),
        memory_bytes: peak,
        memory_set_bytes,
        device: plan.device.filter(|device| device.starts_with("cuda")),
        text: submission.pipeline,
        sets: submission.sets,
        base_dir,
    })
}

fn name_of(name: Option<String>) -> Result<String> {
    let name = name.unwrap_or_else(|| "run".to_owned());
    let is_good = !name.trim().is_empty()
        && name.chars().count() <= NAME_LEN_MAX
        && !name.chars().any(char::is_control);
    match is_good {
        true => Ok(name),
        false => Err(Error::input(
            format!("`name` must be 1 to {NAME_LEN_MAX} characters without control characters"),
            "take the pipeline's file name",
        )),
    }
}

/// The folder that relative paths start from. It is only looked from: what is found is held against the policy.
async fn base_dir(given: Option<&str>, policy: &Policy) -> Result<PathBuf> {
    let Some(given) = given else { return Ok(policy.base_dir().to_owned()) };
    let path = PathBuf::from(given);
    let refuse = |what: &str| {
        let message = format!("`base_dir` is `{given}`, {what}");
        Error::input(message, "give the absolute path of a folder on the daemon's machine")
    };
    if !path.is_absolute() {
        return Err(refuse("which is not absolute"));
    }
    let shown = refuse("which is no folder");
    blocking(move || match path.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        _ => Err(shown),
    })
    .await
}

fn parse(text: &str, sets: &[String]) -> Result<Pipeline> {
    let parsed = pipeline::parse(Text { path: SHOWN_AS, text, sets });
    parsed.map_err(|problems| wrong(problems.to_json()))
}

/// A pipeline that is wrong: the first problem as the message, all of them for programs.
fn wrong(mut problems: Value) -> Error {
    for problem in problems.as_array_mut().into_iter().flatten() {
        if problem["file"] == "stdin" {
            problem["file"] = SHOWN_AS.into();
        }
    }
    let more = match problems.as_array().map_or(0, Vec::len) {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let first = &problems[0];
    let text = |key: &str| first[key].as_str().unwrap_or_default();
    let message =
        format!("the pipeline is wrong: line {}: {}{more}", first["line"], text("message"));
    let hint = first["hint"].as_str().map(str::to_owned);
    Error { kind: Kind::Input, message, hint, problems: Some(Box::new(problems)) }
}

/// What `aha check --json` says of a pipeline, as far as it is wanted here.
#[derive(Debug, Deserialize)]
struct Plan {
    memory_bytes: Option<u64>,
    /// What "auto" is here.
    #[serde(default)]
    device: Option<String>,
    stages: Vec<PlannedStage>,
}

#[derive(Debug, Deserialize)]
struct PlannedStage {
    name: String,
    kind: String,
    reads: Vec<String>,
}

/// Plans a submission by `aha check`, in a process of its own: its queries are planned as well, and a query can make
/// the planner itself compute.
struct Planner<'a> {
    submission: &'a Submission,
    base_dir: &'a Path,
    options: &'a Options,
    home: &'a Home,
}

impl Planner<'_> {
    /// The plan, and the `run.memory` that it was made with where the pipeline has none: the share of one of as many
    /// runs as there may be, or, where that is too little, all there is. What is left to us is chosen by it, so the run
    /// has to be started with it.
    async fn planned(
        &self,
        parsed: &Pipeline,
        [share, all]: [u64; 2],
    ) -> Result<(Plan, Option<u64>)> {
        if parsed.run.memory.is_some() {
            return Ok((self.plan(None).await?, None));
        }
        match self.plan(Some(share)).await {
            Ok(plan) => Ok((plan, Some(share))),
            Err(error) if share < all && error.kind == Kind::Input => {
                Ok((self.plan(Some(all)).await?, Some(all)))
            }
            Err(error) => Err(error),
        }
    }

    async fn plan(&self, memory: Option<u64>) -> Result<Plan> {
        let mut args: Vec<OsString> = ["check", "-", "--json"].map(Into::into).into();
        let memory = memory.map(|bytes| format!("run.memory={bytes}"));
        for set in self.submission.sets.iter().chain(&memory) {
            // One word, as one that begins with a dash would be taken for a flag.
            args.push(format!("--set={set}").into());
        }
        let tmp = self.home.tmp();
        let task = Task {
            program: &self.options.program,
            args,
            dir: self.base_dir,
            tmp: &tmp,
            input: &self.submission.pipeline,
        };
        match bounded::answer(task, CHECK).await? {
            Outcome::Ended { status, answer, said } => read_plan(status, &answer, &said),
            Outcome::TooSlow | Outcome::TooMuch | Outcome::TooLong => Err(too_much()),
        }
    }
}

/// What the check of a pipeline may take.
const CHECK: Bounds =
    Bounds { time: Duration::from_secs(120), memory_bytes: 2 << 30, answer_bytes: 64 << 20 };

fn read_plan(status: ExitStatus, answer: &[u8], said: &str) -> Result<Plan> {
    let found: Value = serde_json::from_slice(answer).unwrap_or_default();
    if found["problems"].is_array() {
        return Err(wrong(found["problems"].clone()));
    }
    if status.success() {
        return serde_json::from_value(found)
            .map_err(|error| Error::bug(format!("the plan of a pipeline can't be read: {error}")));
    }
    match (status.code(), bounded::last_word(said)) {
        (Some(code), Some((message, hint))) => {
            let kind = if code == 2 { Kind::Input } else { Kind::Environment };
            Err(Error { hint, ..Error::new(kind, message) })
        }
        // Without a word: it ran out of stack, memory or time.
        _ => Err(too_much()),
    }
}

fn too_much() -> Error {
    Error::input(
        format!(
            "checking the pipeline takes more than {} seconds or {} of memory",
            CHECK.time.as_secs(),
            pipeline::memory::shown(CHECK.memory_bytes)
        ),
        "look for a query that computes much from constants, or a table of very many files",
    )
}

/// The memory of all runs and models of a daemon that is given none.
pub fn free_memory_bytes() -> u64 {
    // Where the system doesn't say, nothing is known to be too much.
    machine::memory().free_bytes().unwrap_or(u64::MAX / 2)
}

/// Reads a size as pipelines write it.
pub fn size(text: &str) -> Option<u64> {
    ByteSize::parse(text).map(|size| size.0)
}

/// The name of a run that is submitted from a file.
pub fn name_of_file(path: &Path) -> String {
    path.file_stem().map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
pub(crate) fn draft(text: &str, memory_bytes: u64) -> Draft {
    Draft {
        text: text.to_owned(),
        name: text.to_owned(),
        sets: vec!["run.seed=2".to_owned()],
        base_dir: std::env::temp_dir(),
        memory_bytes,
        memory_set_bytes: Some(5),
        device: None,
        stages: Vec::new(),
    }
}

#[cfg(test)]
impl Draft {
    /// The same run on a device.
    pub(crate) fn on(self, device: Option<&str>) -> Draft {
        Draft { device: device.map(str::to_owned), ..self }
    }
}
