//! SQL over the tables of runs: each query is a process of its own, so that no query can take memory or time that it
//! may not have.
//!
//! `aha query` answers queries and nothing else: its session has the tables of the runs and no way to name a file, and
//! statements that change something are refused. The process may take so much memory, processor time and room on the
//! disk, and is killed when its time by the clock is over. What it answers is sent once it is all there.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use utoipa::ToSchema;

use super::App;
use super::problem::{At, Body, Problem, Problems};
use crate::child;
use crate::error::{Error, Kind, Result};
use crate::options::QueryLimits;
use crate::record::RunId;

/// Runs of one query, at most.
const RUNS_MAX: usize = 64;
/// Address space beside a query's memory: stacks for deep queries, which are reserved and not used; the program.
const SPACE_BYTES: u64 = 6 << 30;
/// What a query may write to the disk when it sorts more than its memory holds, in one file.
const SPILL_BYTES: u64 = 2 << 30;
/// How much is read of what a query's process says on stderr.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// A query.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The query.
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
    #[schema(value_type = Vec<u64>)]
    runs: Vec<RunId>,
    /// The query.
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
    params(("id" = u64, Path, description = "The run's number.")),
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
    let mut command = command(app, dirs, form);
    let failed = |error: std::io::Error| {
        Error::environment(format!("can't start a process for the query: {error}"))
    };
    let mut process = command.spawn().map_err(failed)?;
    let (stdin, stdout, stderr) =
        (process.stdin.take(), process.stdout.take(), process.stderr.take());
    let exchange = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A process that ended early says why on stderr.
                let _ = stdin.write_all(sql.as_bytes()).await;
            }
        };
        let (_, answer, said) = tokio::join!(
            write,
            read(stdout, limits.answer_bytes + 1),
            read(stderr, SAID_BYTES_MAX)
        );
        if answer.len() as u64 > limits.answer_bytes {
            return Err(too_long(&limits));
        }
        let status = process.wait().await.map_err(failed)?;
        if status.success() { Ok(answer) } else { Err(why(status, &said, &limits)) }
    };
    // Whatever comes of it, the process is killed when it is dropped.
    match tokio::time::timeout(limits.time, exchange).await {
        Ok(answered) => answered,
        Err(_) => Err(too_slow(&limits)),
    }
}

fn command(app: &App, dirs: &[PathBuf], form: Form) -> Command {
    let limits = app.options.query;
    let mut command = Command::new(&app.options.program);
    command.args(["query", "--file", "/dev/stdin", "--only-runs"]);
    command.args(["--memory", &format!("{}B", limits.memory_bytes)]);
    let format = match form {
        Form::Json => "json",
        Form::TypedJson => "typed-json",
        Form::Arrow => "arrow",
    };
    command.args(["--format", format]);
    for dir in dirs {
        command.arg("--run").arg(dir);
    }
    command.current_dir(app.home.tmp()).env("TMPDIR", app.home.tmp()).env_remove("AHA_TOKEN");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let command_of_std = command.as_std_mut();
    command_of_std.arg0("aha");
    child::die_with_parent(command_of_std);
    limit(command_of_std, &limits);
    command
}

/// Bounds what the process may take of the machine.
fn limit(command: &mut std::process::Command, limits: &QueryLimits) {
    let bounds = [
        (libc::RLIMIT_AS, limits.memory_bytes.saturating_add(SPACE_BYTES)),
        (libc::RLIMIT_CPU, limits.time.as_secs() * 2 + 1),
        (libc::RLIMIT_FSIZE, SPILL_BYTES),
        (libc::RLIMIT_CORE, 0),
    ];
    let set = move || {
        for (what, most) in bounds {
            let bound = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: a system call that may be made between fork and exec; `bound` lives through it.
            if unsafe { libc::setrlimit(what, &bound) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `set` makes system calls only; it takes no memory and no lock.
    unsafe { command.pre_exec(set) };
}

/// What a process writes, at most `bytes_max` of it. What is behind that is never read, and the process waits.
async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>, bytes_max: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // A pipe that breaks has said all that it will.
        let _ = from.take(bytes_max).read_to_end(&mut bytes).await;
    }
    bytes
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

/// Why a query's process failed.
fn why(status: std::process::ExitStatus, said: &[u8], limits: &QueryLimits) -> Error {
    use std::os::unix::process::ExitStatusExt;
    let said = String::from_utf8_lossy(said);
    let last = |prefix: &str| said.lines().rev().find_map(|line| line.strip_prefix(prefix));
    match (status.signal(), last("error: ")) {
        (Some(libc::SIGXCPU | libc::SIGKILL), _) => too_slow(limits),
        (None, Some(message)) => {
            let mut error = Error::new(Kind::Input, message);
            error.hint = last("hint: ").map(str::to_owned);
            error
        }
        // An allocation that failed, or a file that became too large.
        _ => Error::input(
            "the query needs more memory or disk than it may have",
            "ask for fewer rows or columns, or start the daemon with more --query-memory",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn the_end_of_a_querys_process_says_what_was_wrong() {
        let limits = QueryLimits::default();
        let said = b"warning: x\nerror: no table `rolouts`\nhint: did you mean `rollouts`?\n";
        let error = why(ExitStatus::from_raw(2 << 8), said, &limits);
        assert_eq!((error.kind, error.message.as_str()), (Kind::Input, "no table `rolouts`"));
        assert_eq!(error.hint.as_deref(), Some("did you mean `rollouts`?"));
        let cpu = why(ExitStatus::from_raw(libc::SIGXCPU), b"", &limits);
        assert_eq!(cpu.kind, Kind::TooSlow);
        let memory = why(ExitStatus::from_raw(libc::SIGABRT), b"memory allocation failed", &limits);
        assert!(memory.message.contains("more memory"), "{memory}");
    }
}
