//! `aha report`: what a run has done as one page, and as TensorBoard event files.
//!
//! # Map
//! - [`ask`]: a query's answer as typed rows.
//! - [`look`]: what the tables of completions hold, by step. [`rules`]: which rewards say what is right.
//! - [`facts`]: the run, its stages, what evaluations found. [`curves`]: what was measured by step.
//! - [`moments`]: the first right answers that look back. [`browser`]: a sample of completions, by token.
//! - [`page`]: all of it as one HTML file; styles and scripts in `page/` draw it.
//! - [`tensorboard`]: the curves as event files.
//!
//! # Invariants
//! - The page reads nothing but itself: its policy forbids every other source.
//! - What a model or a data set wrote reaches the page as JSON and is only ever set as text.

mod ask;
mod browser;
mod curves;
mod facts;
mod look;
mod moments;
mod page;
mod rules;
mod tensorboard;

use std::path::{Path, PathBuf};

use aha_data::{Session, SessionOptions};
use aha_flow::rundir::{self, RunDir};
use aha_flow::state::RunState;

use super::{query, shared};
use crate::report::{misuse, misused};
use crate::screen::{self, Screen};
use crate::text;
use curves::Curves;
use facts::Facts;

/// The flags of `aha report`.
#[derive(clap::Args)]
#[command(after_help = "\
The page is one file that needs no network: results of evaluations, what was measured by step, first \
right answers with reflection words, and a sample of the completions, token by token. It can be made \
while the run goes on, and shows what there is.

The sample has at most twelve steps of a stage, at even distances with the first and the last, of each \
at most four prompts at even distances, of each at most sixteen completions; fewer where the page would \
grow past about 10 MB. `aha query` has all of them. Reflection words and votes are counted in every \
completion of a stage `rl` with up to 1 GiB of files, languages in up to 16 MiB of its text; of a larger \
one at even distances.

Example:
  aha report --out report.html --tensorboard board")]
pub struct Args {
    /// The run directory. By default the newest one in `runs/`.
    #[arg(value_name = "RUN_DIR")]
    dir: Option<PathBuf>,
    /// The same as RUN_DIR.
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "dir")]
    run: Option<PathBuf>,
    /// The file to write; by default `report.html` in the run directory.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write what was measured by step as TensorBoard event files too, a folder for each stage.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

/// Writes the page, and event files where they are asked for; prints their paths.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let root = match args.dir.as_ref().or(args.run.as_ref()) {
        Some(dir) => dir.clone(),
        None => query::newest_run(screen)?,
    };
    let out = args.out.clone().unwrap_or_else(|| root.join("report.html"));
    if out.is_dir() {
        let message = format!("`{}` is a directory", out.display());
        return Err(misuse(message, "name a file with --out"));
    }
    if let Some(file) = args.tensorboard.as_deref().filter(|path| path.is_file()) {
        let message = format!("`{}` is a file", file.display());
        return Err(misuse(message, "name a directory with --tensorboard"));
    }
    let dir = RunDir::new(&root);
    let report = shared::runtime()?.block_on(gather(&dir, screen))?;
    let html = page::html(&report)?;
    rundir::write_file(&std::path::absolute(&out)?, html.as_bytes())?;
    screen.line(&format!("the page has {}", text::size(html.len() as u64)));
    let mut written = format!("{}\n", out.display());
    if let Some(board) = &args.tensorboard {
        let count = write_events(board, &report)?;
        screen.line(&format!("{count} event files; look at them with `tensorboard --logdir`"));
        written += &format!("{}\n", board.display());
    }
    Ok(screen::print(text::lines(&written))?)
}

/// All that the page shows.
pub struct Report {
    /// The run and its stages.
    pub facts: Facts,
    /// What was measured by step, by stage.
    pub curves: Vec<Curves>,
    /// First right answers that look back, by stage.
    pub moments: Vec<moments::Stage>,
    /// A sample of the completions.
    pub browser: browser::Browser,
}

async fn gather(dir: &RunDir, screen: &Screen) -> anyhow::Result<Report> {
    let session = Session::new(&SessionOptions::default())?;
    session.register_run(dir.root()).map_err(misused)?;
    let state = state_of(dir)?;
    let pipeline = facts::pipeline_of(dir);
    if pipeline.is_none() {
        screen.line(&format!(
            "warning: `{}` can't be read by this version: the page is without descriptions, \
             lineage and cons@k by step",
            dir.pipeline().display()
        ));
    }
    let pipeline = pipeline.as_ref();
    let looked = look::through(dir, &state.stages, pipeline)?;
    let measured = curves::measured(dir)?;
    let facts = facts::gather(&session, dir, &state, pipeline, &looked, &measured).await?;
    let curves = curves::gather(measured, &facts.stages, &looked);
    let moments = moments::gather(&session, &looked, pipeline).await?;
    let browser = browser::gather(&session, dir, &looked, pipeline).await?;
    Ok(Report { facts, curves, moments, browser })
}

fn state_of(dir: &RunDir) -> anyhow::Result<RunState> {
    let hint = "name a directory that `aha run` wrote";
    match RunState::read(dir) {
        Ok(Some(state)) => Ok(state),
        Ok(None) => Err(misuse(format!("there is no `{}`", dir.state().display()), hint)),
        Err(error) => Err(misuse(error.to_string(), hint)),
    }
}

/// Writes a folder for each stage that measured by step, and for each model that was evaluated.
fn write_events(board: &Path, report: &Report) -> anyhow::Result<usize> {
    let files = tensorboard::files(report);
    for (folder, bytes) in &files {
        let folder = board.join(folder);
        fs_err::create_dir_all(&folder)?;
        // The same name each time, so that a report made again replaces the file.
        let began_s = report.facts.about.started_at_us / 1_000_000;
        let path = folder.join(format!("events.out.tfevents.{began_s:010}.aha"));
        rundir::write_file(&std::path::absolute(&path)?, bytes)?;
    }
    Ok(files.len())
}
