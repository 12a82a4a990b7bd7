//! SQL over the tables of runs: each query is a process of its own, so that no query can take memory or time that it
//! may not have.
//!
//! `aha query` answers queries and nothing else: its session has the tables of the runs and no way to name a file, and
//! statements that change something are refused. The process may take so much memory, processor time and room on the
//! disk, and is killed when its time by the clock is over ([`crate::bounded`]). What it answers is sent once it is all
//! there.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::problem::{At, Body, Problem, Problems};
use crate::bounded::{self, Bounds, Outcome, Task};
use crate::error::{Error, Kind, Result};
use crate::options::QueryLimits;
use crate::record::RunId;

/// Runs of one query, at most.
const RUNS_MAX: usize = 64;
/// Memory of a query's process beside what its sorts, joins and groups may take: rows on their way, and the answer.
const REST_BYTES: u64 = 512 << 20;

/// A query.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The query.
    #[schema(example = "SELECT count(*) AS n FROM rollouts")]
    sql: String,
    /// How the answer is written; absent: `json`.
    #[serde(default)]
    format: Form,
}

/// A query over several runs, whose tables have a column `run`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryOfRuns {
    /// The numbers of the runs, at most 64.
    #[schema(value_type = Vec<u64>, example = json!([1]))]
    runs: Vec<RunId>,
    /// The query.
    #[schema(example = "SELECT count(*) AS n FROM rollouts")]
    sql: String,
    /// How the answer is written; absent: `json`.
    #[serde(default)]
    format: Form,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// One array of objects.
    #[default]
    Json,
    /// An object of `columns`, each with `name` and its Arrow `type`, and `rows`, an array of objects.
    TypedJson,
    /// A stream in Arrow's IPC format.
    Arrow,
}

/// Queries, counted by how they ended.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered.
    pub answered: AtomicU64,
    /// Refused or failed.
    pub failed: AtomicU64,
}

/// Answers a query over a run's tables: each stage's, `rollouts`, `metrics` and `evals`.
#[utoipa::path(
    post, path = "/api/v1/runs/{id}/query", operation_id = "query_run", tag = "queries", request_body = Query,
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses(
        (status = 200, description = "The answer.", content(
            (Vec<serde_json::Value> = "application/json"),
            (Vec<u8> = "application/vnd.apache.arrow.stream")
        )),
        Problems
    )
)]
pub async fn of_run(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
    Body(query): Body<Query>,
) -> Result<impl IntoResponse, Problem> {
    answer(&app, &[id], query.sql, query.format).await
}

/// Answers a query over the tables of several runs.
#[utoipa::path(
    post, path = "/api/v1/query", operation_id = "query_runs", tag = "queries", request_body = QueryOfRuns,
    responses(
        (status = 200, description = "The answer.", content(
            (Vec<serde_json::Value> = "application/json"),
            (Vec<u8> = "application/vnd.apache.arrow.stream")
        )),
        Problems
    )
)]
pub async fn of_runs(
    State(app): State<Arc<App>>,
    Body(query): Body<QueryOfRuns>,
) -> Result<impl IntoResponse, Problem> {
    answer(&app, &query.runs, query.sql, query.format).await
}

async fn answer(
    app: &App,
    runs: &[RunId],
    sql: String,
    form: Form,
) -> Result<impl IntoResponse + use<>, Problem> {
    if runs.is_empty() || runs.len() > RUNS_MAX {
        let message = format!("a query is over 1 to {RUNS_MAX} runs, not {}", runs.len());
        return Err(Error::input(message, "name the runs in `runs`").into());
    }
    let dirs = runs.iter().map(|id| Ok(app.board.run(*id)?.run_dir.clone()));
    let dirs = dirs.collect::<Result<Vec<PathBuf>>>()?;
    if let Some((id, _)) = runs.iter().zip(&dirs).find(|(_, dir)| !dir.join("run.json").exists()) {
        let message = format!("run {id} has no tables yet");
        return Err(Error::new(Kind::Conflict, message).hint("ask again once it has begun").into());
    }
    let _place = app.queries.try_acquire().map_err(|_| {
        let message = format!("{} queries are at work already", app.options.query.parallel_max);
        Error::new(Kind::Busy, message).hint("ask again in a moment")
    })?;
    let answered = ask(app, &dirs, &sql, form).await;
    let counts = &app.query_counts;
    let count = if answered.is_ok() { &counts.answered } else { &counts.failed };
    count.fetch_add(1, Ordering::Relaxed);
    let kind = match form {
        Form::Json | Form::TypedJson => "application/json",
        Form::Arrow => "application/vnd.apache.arrow.stream",
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, answered?))
}

/// Runs a query in a process of its own.
async fn ask(app: &App, dirs: &[PathBuf], sql: &str, form: Form) -> Result<Vec<u8>> {
    let limits = app.options.query;
    let mut args: Vec<OsString> =
        ["query", "--file", "/dev/stdin", "--only-runs"].map(Into::into).into();
    args.extend(["--memory".into(), format!("{}B", limits.memory_bytes).into()]);
    let form = match form {
        Form::Json => "json",
        Form::TypedJson => "typed-json",
        Form::Arrow => "arrow",
    };
    args.extend(["--format".into(), form.into()]);
    for dir in dirs {
        args.extend(["--run".into(), dir.into()]);
    }
    let tmp = app.home.tmp();
    let task = Task { program: &app.options.program, args, dir: &tmp, tmp: &tmp, input: sql };
    let bounds = Bounds {
        time: limits.time,
        memory_bytes: limits.memory_bytes.saturating_add(REST_BYTES),
        answer_bytes: limits.answer_bytes,
    };
    match bounded::answer(task, bounds).await? {
        Outcome::Ended { status, answer, .. } if status.success() => Ok(answer),
        Outcome::Ended { status, said, .. } => Err(why(status, &said, &limits)),
        Outcome::TooSlow => Err(too_slow(&limits)),
        Outcome::TooMuch => Err(too_much()),
        Outcome::TooLong => Err(too_long(&limits)),
    }
}

fn too_long(limits: &QueryLimits) -> Error {
    let message = format!("the answer has more than {} bytes", limits.answer_bytes);
    Error::input(message, "ask for fewer rows or columns, such as with LIMIT")
}

fn too_slow(limits: &QueryLimits) -> Error {
    let message = format!("the query took longer than {} seconds", limits.time.as_secs());
    Error::new(Kind::TooSlow, message)
        .hint("ask for less, or start the daemon with more --query-seconds")
}

fn too_much() -> Error {
    Error::input(
        "the query needs more memory or disk than it may have",
        "ask for fewer rows or columns, or start the daemon with more --query-memory",
    )
}

/// Why a query's process failed.
fn why(status: ExitStatus, said: &str, limits: &QueryLimits) -> Error {
    match (status.signal(), bounded::last_word(said)) {
        (Some(libc::SIGXCPU | libc::SIGKILL), _) => too_slow(limits),
        (None, Some((message, hint))) => Error { hint, ..Error::new(Kind::Input, message) },
        // An allocation that failed, or a file that became too large.
        _ => too_much(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_querys_process_says_what_was_wrong() {
        let limits = QueryLimits::default();
        let said = "warning: x\nerror: no table `rolouts`\nhint: did you mean `rollouts`?\n";
        let error = why(ExitStatus::from_raw(2 << 8), said, &limits);
        assert_eq!((error.kind, error.message.as_str()), (Kind::Input, "no table `rolouts`"));
        assert_eq!(error.hint.as_deref(), Some("did you mean `rollouts`?"));
        let cpu = why(ExitStatus::from_raw(libc::SIGXCPU), "", &limits);
        assert_eq!(cpu.kind, Kind::TooSlow);
        let memory = why(ExitStatus::from_raw(libc::SIGABRT), "memory allocation failed", &limits);
        assert!(memory.message.contains("more memory"), "{memory}");
    }
}
