//! `aha query`: SQL over the tables of runs.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aha_data::{Format, Session, SessionOptions, write_result};
use aha_flow::parts::Depth;
use aha_flow::pipeline::ByteSize;
use aha_flow::rundir::{self, RunDir};
use aha_flow::state::RunState;
use aha_flow::{pipeline, planning};
use aha_model::Tokenizer;
use anyhow::Context;

use super::shared;
use crate::report::{misuse, misused};
use crate::screen::{self, Screen};
use crate::text;

/// Least `--memory`: with less, what spills hasn't the room to work.
const MEMORY_MIN: ByteSize = ByteSize(64 << 20);

/// The flags of `aha query`.
#[derive(clap::Args)]
#[command(after_help = "\
Tables: rollouts (every completion), metrics, evals, one for each stage, and with a single run \
the pipeline's input tables. With several runs each table has a column `run`.

Examples:
  aha query \"SELECT step, avg(reward) FROM rollouts GROUP BY step ORDER BY step\"
  aha query --table pool=pool.parquet --memory 1GiB --file datasets/near-duplicates.sql \\
      --format parquet --out unlike.parquet")]
pub struct Args {
    /// The query.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    sql: Option<String>,
    /// Read the query from this file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A run directory; can be repeated. By default the newest one in `runs/`, unless a table is given.
    #[arg(long = "run", value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// A table of the query: a Parquet, JSONL or CSV file, a folder or a glob; can be repeated.
    #[arg(long = "table", value_name = "NAME=PATH", value_parser = table)]
    tables: Vec<(String, String)>,
    /// Memory for the query, such as 1GiB: three quarters are for sorts, joins and groups, the rest is for rows on
    /// their way. What needs more goes to temporary files; joins that can't fail. By default there is no limit. Only
    /// Parquet is written as rows come: other answers are in memory as well.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<ByteSize>,
    /// Leave out the pipeline's input tables: only what runs wrote can be queried.
    #[arg(long)]
    only_runs: bool,
    /// How the answer is written: table, csv, json, typed-json (with the columns' types),
    /// parquet or arrow (a stream in Arrow's IPC format).
    #[arg(long, default_value = "table", conflicts_with = "json")]
    format: Format,
    /// The same as `--format json`.
    #[arg(long)]
    json: bool,
    /// Write the answer to this file instead of stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Answers the query.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let format = if args.json { Format::Json } else { args.format };
    let is_binary = matches!(format, Format::Parquet | Format::Arrow);
    if is_binary && args.out.is_none() && io::stdout().is_terminal() {
        return Err(misuse("such an answer is not for terminals", "name a file with --out"));
    }
    if let Some(out) = args.out.as_deref().filter(|out| out.is_dir()) {
        let message = format!("`{}` is a directory", out.display());
        return Err(misuse(message, "name a file with --out"));
    }
    let runs = match args.runs.as_slice() {
        [] if args.tables.is_empty() => vec![newest_run(screen)?],
        runs => runs.to_vec(),
    };
    let sql = sql(args)?;
    let counted = |size: ByteSize| size.0 / 4 * 3;
    let memory_limit_bytes =
        args.memory.map(|size| usize::try_from(counted(size)).unwrap_or(usize::MAX));
    shared::runtime()?.block_on(async {
        let session =
            Session::new(&SessionOptions { memory_limit_bytes, ..SessionOptions::default() })?;
        if !runs.is_empty() {
            session.register_runs(&runs).map_err(misused)?;
        }
        runs.iter().for_each(|run| warn_of_lost_rows(&RunDir::new(run), screen));
        if let ([run], false) = (runs.as_slice(), args.only_runs) {
            register_inputs(&session, &RunDir::new(run)).await;
        }
        for (name, address) in &args.tables {
            let source = planning::places().table(address).map_err(misused)?;
            session.register(name, &source).await.map_err(misused)?;
        }
        if sql.contains("token_count") {
            set_tokenizer(&session, &runs);
        }
        session.schema_of(&sql).await.map_err(in_the_query)?;
        answer(&session, &sql, format, args.out.as_deref()).await
    })
}

/// The query, from wherever it is.
fn sql(args: &Args) -> anyhow::Result<String> {
    match (&args.sql, &args.file) {
        (Some(sql), _) => Ok(sql.clone()),
        (None, Some(file)) => fs_err::read_to_string(file).map_err(misused),
        (None, None) => Err(misuse("there is no query", "write one, or name a file with --file")),
    }
}

/// Reads `--table`.
fn table(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.into(), path.into()))
        }
        _ => Err("write NAME=PATH, such as pool=data/pool.parquet".to_owned()),
    }
}

/// Reads `--memory`.
fn memory(text: &str) -> Result<ByteSize, String> {
    let size = ByteSize::parse(text).filter(|size| size.0 >= MEMORY_MIN.0);
    size.ok_or_else(|| format!("write a size of at least {MEMORY_MIN}, such as 1GiB"))
}

/// An answer from what is left of a run says so. A state that can't be read is not the query's affair.
fn warn_of_lost_rows(run: &RunDir, screen: &Screen) {
    let Ok(Some(state)) = RunState::read(run) else { return };
    if let Ok(Some(damage)) = state.damage(run, Depth::Sizes) {
        screen.line(&format!("warning: the run has lost rows: {damage}"));
    }
}

/// A query that can't be planned is a mistake in the arguments.
fn in_the_query(error: aha_data::Error) -> anyhow::Error {
    match error {
        aha_data::Error::Input { .. } => misused(error),
        error => error.into(),
    }
}

async fn answer(
    session: &Session,
    sql: &str,
    format: Format,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    if let (Format::Parquet, Some(path)) = (format, out) {
        session.write_parquet(sql, path).await?;
        return Ok(());
    }
    let (schema, batches) = session.query(sql).await?;
    let mut bytes = Vec::new();
    write_result(&schema, &batches, format, &mut bytes)?;
    match (out, format) {
        (Some(path), _) => Ok(rundir::write_file(&std::path::absolute(path)?, &bytes)?),
        (None, Format::Json | Format::TypedJson) => {
            Ok(screen::print(text::harmless_json(&String::from_utf8(bytes)?))?)
        }
        (None, Format::Csv) if io::stdout().is_terminal() => {
            Ok(screen::print(text::lines(&String::from_utf8(bytes)?))?)
        }
        (None, _) => Ok(screen::print(bytes)?),
    }
}

/// The newest run in `runs/`, named on stderr.
pub(super) fn newest_run(screen: &Screen) -> anyhow::Result<PathBuf> {
    let runs = Path::new("runs");
    let found = newest_in(runs).with_context(|| format!("can't list `{}`", runs.display()))?;
    let run = found.ok_or_else(|| {
        misuse(
            "there is no run in `runs/` of this directory",
            "name a run directory with --run, or begin one with `aha run`",
        )
    })?;
    screen.line(&format!("run: {}", run.display()));
    Ok(run)
}

/// The directory in `runs` whose state changed last.
fn newest_in(runs: &Path) -> io::Result<Option<PathBuf>> {
    if !runs.is_dir() {
        return Ok(None);
    }
    let mut newest: Option<(SystemTime, PathBuf)> = None;
    for entry in fs_err::read_dir(runs)? {
        let path = entry?.path();
        let Ok(changed) = fs_err::metadata(RunDir::new(&path).state()).and_then(|m| m.modified())
        else {
            continue;
        };
        if newest.as_ref().is_none_or(|known| *known < (changed, path.clone())) {
            newest = Some((changed, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Makes the pipeline's input tables queryable too, where they are still in their places. A run's own
/// tables are complete without them, so nothing here is an error.
async fn register_inputs(session: &Session, run: &RunDir) {
    let path = run.pipeline().display().to_string();
    let Ok(text) = fs_err::read_to_string(run.pipeline()) else { return };
    let Ok(pipeline) = pipeline::parse(pipeline::Text { path: &path, text: &text, sets: &[] })
    else {
        return;
    };
    let known = session.table_names();
    for (name, address) in pipeline.tables.iter().filter(|(name, _)| !known.contains(name)) {
        let registered = match planning::places().table(address) {
            Ok(source) => session.register(name, &source).await,
            Err(error) => Err(error),
        };
        if let Err(error) = registered {
            tracing::info!(%error, name, "Input table left out.");
        }
    }
}

/// Lets `token_count` count with the tokenizer of a model that one of the runs has made.
fn set_tokenizer(session: &Session, runs: &[PathBuf]) {
    let models = runs.iter().filter_map(|run| fs_err::read_dir(RunDir::new(run).models()).ok());
    let mut models: Vec<PathBuf> = models.flatten().flatten().map(|entry| entry.path()).collect();
    models.sort();
    let Some(tokenizer) = models.iter().find_map(|model| Tokenizer::load(model).ok()) else {
        return;
    };
    session.set_tokenizer(Arc::new(move |text: &str| {
        let ids = tokenizer.encode(text, false);
        ids.map(|ids| ids.len()).map_err(|error| error.to_string())
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_run_is_the_one_whose_state_changed_last() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(newest_in(&temp.path().join("none")).unwrap(), None);
        for (name, seconds) in [("a", 10), ("b", 30), ("c", 20)] {
            let dir = temp.path().join(name);
            fs_err::create_dir(&dir).unwrap();
            let file = std::fs::File::create(dir.join("run.json")).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(at).unwrap();
        }
        fs_err::create_dir(temp.path().join("not-a-run")).unwrap();
        assert_eq!(newest_in(temp.path()).unwrap(), Some(temp.path().join("b")));
    }
}
