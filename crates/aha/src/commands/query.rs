//! `aha query`: SQL over the tables of runs.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aha_data::{Format, Session, SessionOptions, write_result};
use aha_flow::parts::Depth;
use aha_flow::rundir::{self, RunDir};
use aha_flow::state::RunState;
use aha_flow::{pipeline, planning};
use aha_model::Tokenizer;
use anyhow::Context;

use super::shared;
use crate::report::{misuse, misused};
use crate::screen::{self, Screen};
use crate::text;

/// The flags of `aha query`.
#[derive(clap::Args)]
#[command(after_help = "\
Tables: rollouts (every completion), metrics, evals, one for each stage, and with a single run \
the pipeline's input tables. With several runs each table has a column `run`.

Example:
  aha query \"SELECT step, avg(reward) FROM rollouts GROUP BY step ORDER BY step\"")]
pub struct Args {
    /// The query.
    sql: String,
    /// A run directory; can be repeated. By default the newest one in `runs/`.
    #[arg(long = "run", value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// How the answer is written: table, csv, json or parquet.
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
    if format == Format::Parquet && args.out.is_none() && io::stdout().is_terminal() {
        return Err(misuse("Parquet is not for terminals", "name a file with --out"));
    }
    if let Some(out) = args.out.as_deref().filter(|out| out.is_dir()) {
        let message = format!("`{}` is a directory", out.display());
        return Err(misuse(message, "name a file with --out"));
    }
    let runs = match args.runs.as_slice() {
        [] => vec![newest_run(screen)?],
        runs => runs.to_vec(),
    };
    shared::runtime()?.block_on(async {
        let session = Session::new(&SessionOptions::default())?;
        session.register_runs(&runs).map_err(misused)?;
        runs.iter().for_each(|run| warn_of_lost_rows(&RunDir::new(run), screen));
        if let [run] = runs.as_slice() {
            register_inputs(&session, &RunDir::new(run)).await;
        }
        if args.sql.contains("token_count") {
            set_tokenizer(&session, &runs);
        }
        session.schema_of(&args.sql).await.map_err(in_the_query)?;
        answer(&session, &args.sql, format, args.out.as_deref()).await
    })
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
        (None, Format::Json) => Ok(screen::print(text::harmless_json(&String::from_utf8(bytes)?))?),
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
