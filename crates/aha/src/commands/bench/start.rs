//! From the start of the program to the first sampled token: `aha generate` with one token, from its start
//! to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use aha_flow::models::{self, Loaded};
use aha_model::SaveDtype;
use anyhow::Context;

use super::row::Row;
use super::subject::Subject;
use super::{Bench, Kind};
use crate::report::failed;

/// One row. Random weights are written to a directory first, so that there is something to read.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let scratch = tempfile::tempdir().context("can't make a directory for a model")?;
    let (name, path) = match &bench.subject {
        Subject::Files(path) => (path.display().to_string(), path.clone()),
        Subject::Random(shape) => (shape.name(), written(bench, scratch.path())?),
    };
    bench.say(Kind::Start, &name);
    first_token(bench, &path)?;
    let runs = (0..bench.args.runs).map(|_| first_token(bench, &path));
    let seconds = runs.collect::<anyhow::Result<Vec<f64>>>()?;
    let mut row = Row::new(Kind::Start, name, bench.device().threads());
    row.add_seconds(&seconds);
    Ok(vec![row])
}

/// Where the subject's random weights have been written.
fn written(bench: &Bench<'_>, scratch: &Path) -> anyhow::Result<PathBuf> {
    let Loaded { model, tokenizer } = bench.subject.open(bench.device())?;
    let path = scratch.join("model");
    models::save(&path, &model, &tokenizer, SaveDtype::F32)?;
    drop(model);
    bench.device().trim();
    Ok(path)
}

fn first_token(bench: &Bench<'_>, model: &Path) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let output = Command::new(std::env::current_exe().context("can't find this program")?)
        .args(["generate", "--max-tokens", "1", "--prompt", "wait", "--threads"])
        .arg(bench.args.threads.to_string())
        .arg("--dtype")
        .arg(bench.args.dtype.dtype().to_string())
        .arg("--model")
        .arg(model)
        .stdin(Stdio::null())
        .output()
        .context("can't start this program again")?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("`aha generate` failed: {said}"), "see what it says"));
    }
    Ok(seconds)
}
