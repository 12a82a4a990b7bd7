//! The models of runs by name: `RUN/STAGE`, such as `3/zero`, or `RUN` for the one that changed last.
//!
//! A stage's model is its final one where that is there, or else its newest checkpoint's: of a run that trains, each
//! request gets the newest weights that are on the disk. Checkpoints of stages with `lora` hold adapters and no model;
//! those stages have one when they are done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_flow::pipeline::{self, Pipeline, Run, StageKind, Template, Text};
use aha_flow::rundir::RunDir;
use aha_model::{Config, Head};

use crate::api::files::{changed_us, names_in};
use crate::board::Board;
use crate::error::{Error, Result};
use crate::record::{Record, RunId};

/// Sequences that a loaded model draws at once, at most.
const SEQUENCES_MAX: u32 = 32;

/// A model of a run.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name: `RUN/STAGE`.
    pub id: String,
    /// The run that it is of.
    pub run_id: RunId,
    /// Where it is.
    pub path: PathBuf,
    /// When it was written, in µs since 1970. With the path this tells one state of it from another.
    pub written_at_us: u64,
    /// What holds for the stages of its run.
    pub run: Run,
    /// How its stage makes prompts, if it is one that trains.
    pub template: Option<Template>,
    /// Memory that it takes when it is loaded.
    pub memory_bytes: u64,
}

/// All models of all runs. Waits for the disk.
pub fn list(board: &Board) -> Vec<Found> {
    let runs = board.runs();
    runs.iter().flat_map(|record| of_run(record).unwrap_or_default()).collect()
}

/// The model of that name. Waits for the disk.
pub fn find(board: &Board, name: &str) -> Result<Found> {
    let none = || {
        Error::not_found(
            format!("there is no model `{name}`"),
            "GET /v1/models lists those that there are: the final models of runs, and what is trained by its newest \
             checkpoint",
        )
    };
    let (run, stage) = match name.split_once('/') {
        Some((run, stage)) => (run, Some(stage)),
        None => (name, None),
    };
    let id: RunId = run.parse().map_err(|_| none())?;
    let models = of_run(&board.run(id).map_err(|_| none())?)?;
    match stage {
        Some(_) => models.into_iter().find(|found| found.id == name).ok_or_else(none),
        None => models.into_iter().max_by_key(|found| found.written_at_us).ok_or_else(none),
    }
}

fn of_run(record: &Arc<Record>) -> Result<Vec<Found>> {
    let dir = RunDir::new(&record.run_dir);
    let finals = names_in(&dir.models())?;
    let stages = names_in(&record.run_dir.join("checkpoints"))?;
    let Some(pipeline) = pipeline_of(&dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in &finals {
        found.extend(model(record.id, name, &dir.model(name), &pipeline));
    }
    for name in stages.iter().filter(|name| !finals.contains(name)) {
        let newest = newest_checkpoint(&dir.checkpoints(name))?;
        found.extend(newest.and_then(|path| model(record.id, name, &path, &pipeline)));
    }
    Ok(found)
}

fn pipeline_of(dir: &RunDir) -> Option<Pipeline> {
    let text = std::fs::read_to_string(dir.pipeline()).ok()?;
    pipeline::parse(Text { path: "pipeline.toml", text: &text, sets: &[] }).ok()
}

/// The model in the newest checkpoint that has one.
fn newest_checkpoint(dir: &Path) -> Result<Option<PathBuf>> {
    let names = names_in(dir)?;
    let mut steps: Vec<(u64, &String)> = names
        .iter()
        .filter_map(|name| Some((name.strip_prefix("step-")?.parse().ok()?, name)))
        .collect();
    steps.sort_unstable();
    let paths = steps.into_iter().rev().map(|(_, name)| dir.join(name).join("model"));
    Ok(paths.into_iter().find(|path| path.is_dir()))
}

/// The language model at `path`; none where there is none.
fn model(run: RunId, name: &str, path: &Path, pipeline: &Pipeline) -> Option<Found> {
    let config = Config::load(path).ok().filter(|config| config.head == Head::Language)?;
    let run_settings = Run { threads: 0, sequences_max: SEQUENCES_MAX, ..pipeline.run.clone() };
    // Weights, what kernels read of them, the file while it is read; keys and values; a row of logits for each
    // sequence. The formulas are those of a stage that samples.
    let weights = (config.param_count() as u64).saturating_mul(12);
    let logits = u64::from(SEQUENCES_MAX) * config.vocab_size as u64 * 4;
    Some(Found {
        id: format!("{run}/{name}"),
        run_id: run,
        written_at_us: changed_us(&path.join("config.json"))?,
        memory_bytes: weights.saturating_add(run_settings.kv_cache.0).saturating_add(logits),
        path: path.to_owned(),
        run: run_settings,
        template: pipeline.stage(name).and_then(|stage| template(&stage.kind)),
    })
}

fn template(kind: &StageKind) -> Option<Template> {
    match kind {
        StageKind::Sft(stage) => Some(stage.template.clone()),
        StageKind::Dpo(stage) => Some(stage.template.clone()),
        StageKind::Rl(stage) => Some(stage.template.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoint_with_a_model_counts() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(newest_checkpoint(temp.path()).unwrap(), None);
        for dir in [
            "step-000002/model",
            "step-000010/model",
            "step-000011/adapter",
            ".step-000012.tmp/model",
        ] {
            std::fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        let newest = newest_checkpoint(temp.path()).unwrap().unwrap();
        assert!(newest.ends_with("step-000010/model"), "{newest:?}");
    }

    #[test]
    fn a_name_that_is_no_models_is_told() {
        for name in ["", "gpt-4", "7", "7/zero", "../../etc", "7/../../x"] {
            let error = find(&Board::default(), name).unwrap_err();
            assert_eq!(error.message, format!("there is no model `{name}`"));
        }
    }
}
