//! Submitted pipelines: read, held against the policy, checked as `aha check` does, their memory predicted.

use std::path::{Path, PathBuf};

use aha_flow::machine;
use aha_flow::pipeline::{ByteSize, Pipeline, Places, Plan, Problems, Text};
use aha_flow::run::Failure;
use aha_flow::{pipeline, planning};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Kind, Result, blocking};
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
    memory_bytes: u64,
) -> Result<Draft> {
    let name = name_of(submission.name.clone())?;
    if submission.sets.len() > SETS_MAX {
        let message = format!("{} overrides, and a run may have {SETS_MAX}", submission.sets.len());
        return Err(Error::input(message, "write them into the pipeline"));
    }
    let base_dir = base_dir(submission.base_dir.as_deref(), policy).await?;
    let places = Places { base_dir: base_dir.clone(), ..planning::places() };
    let parsed = parse(&submission.pipeline, &submission.sets)?;
    let (held, (policy, at)) = (parsed.clone(), (policy.clone(), places.clone()));
    blocking(move || policy.check(&held, &at)).await?;
    let share = memory_bytes / options.runs_max.max(1) as u64;
    let (plan, memory_set_bytes) =
        planned(&submission, &parsed, &places, [share, memory_bytes]).await?;
    let peak = plan.peak().map_or(0, |(_, memory)| memory.total_bytes());
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
    let stages = plan.pipeline.stages.iter().map(|stage| StageProgress {
        name: stage.name.clone(),
        kind: stage.kind.word().to_owned(),
        reads: plan.facts.reads.get(&stage.name).cloned().unwrap_or_default(),
        ..StageProgress::default()
    });
    Ok(Draft {
        name,
        base_dir,
        stages: stages.collect(),
        memory_bytes: peak,
        memory_set_bytes,
        text: submission.pipeline,
        sets: submission.sets,
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
    pipeline::parse(Text { path: SHOWN_AS, text, sets }).map_err(|problems| wrong(&problems))
}

/// A pipeline that is wrong: the first problem as the message, all of them for programs.
fn wrong(problems: &Problems) -> Error {
    let first = problems.iter().next();
    let count = problems.iter().count();
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    let message = first.map(|p| format!("line {}: {}{more}", p.line, p.message));
    Error {
        kind: Kind::Input,
        message: format!("the pipeline is wrong: {}", message.unwrap_or_default()),
        hint: first.and_then(|problem| problem.hint.clone()),
        problems: Some(Box::new(problems.to_json())),
    }
}

/// The plan, and the `run.memory` that it was made with where the pipeline has none: the share of one of as many runs
/// as there may be, or, where that is too little, all there is. What is left to us is chosen by it, so the run has to
/// be started with it.
async fn planned(
    submission: &Submission,
    parsed: &Pipeline,
    places: &Places,
    [share, all]: [u64; 2],
) -> Result<(Plan, Option<u64>)> {
    if parsed.run.memory.is_some() {
        return Ok((plan(submission, places, None).await?, None));
    }
    match plan(submission, places, Some(share)).await {
        Ok(plan) => Ok((plan, Some(share))),
        Err(_) if share < all => Ok((plan(submission, places, Some(all)).await?, Some(all))),
        Err(error) => Err(error),
    }
}

async fn plan(submission: &Submission, places: &Places, memory: Option<u64>) -> Result<Plan> {
    let mut sets = submission.sets.clone();
    sets.extend(memory.map(|bytes| format!("run.memory={bytes}")));
    let checked = planning::check_text(SHOWN_AS, &submission.pipeline, &sets, places, None);
    checked.await.map_err(|failure| match failure {
        Failure::Problems(problems) => wrong(&problems),
        Failure::Run(error) => error.into(),
    })
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
        stages: Vec::new(),
    }
}
