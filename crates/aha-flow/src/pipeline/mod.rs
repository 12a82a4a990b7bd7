//! Pipeline files: read, checked against the world, planned; every problem is reported at once.
//!
//! # Map
//! - [`check`](fn@check): text in, [`Plan`] or every [`Problem`] out; start here. [`parse`] is its
//!   first half, which needs no table and no model.
//! - [`Pipeline`], [`Stage`], [`StageKind`]: what runs. Each field's doc is the reference of its key;
//!   the structs are in `run`, `models`, `sampling`, `stages`, `watchdogs`, `objective`, `rewards`.
//! - `source`: TOML and `--set` as one tree with positions. `reader`, `values`, `foreign`, `write`:
//!   from the tree to structs and back.
//! - `layout`: the file's sections. `local`: names and arithmetic. `references`: who reads whom.
//!   `resolve`: tables, queries and models, asked through [`Catalogue`] and [`ModelProbe`].
//! - [`memory`]: the prediction and its formulas. [`Plan`]: what `aha check` prints.
//!
//! # Invariants
//! - A [`Pipeline`] only comes out of a file without problems; what runs never looks at the file.
//! - [`Pipeline::to_toml`] writes every default, and reads back as an equal value.
//! - A wrong value is reported once: nothing that builds on it is reported as well.

mod benchmark;
mod catalogue;

mod foreign;
mod layout;
mod local;
pub mod memory;
mod models;
mod objective;
mod plan;
mod problem;
mod reader;
mod references;
mod resolve;
mod rewards;
mod run;
mod sampling;
mod source;
mod stages;
mod values;
mod watchdogs;
mod write;

pub use benchmark::Benchmark;
pub use catalogue::{
    Catalogue, Column, ModelFacts, ModelProbe, ProbeProblem, SqlProblem, StageOutput, TableFacts,
};
pub use layout::{RESOLVED_HEADER, Settings, Table, reference};
pub use local::name_of;
pub use models::{
    Alphabet, Architecture, Init, ModelSource, NotFound, Places, RandomModel, TokenizerSource,
    TokenizerTraining,
};
pub use plan::Plan;
pub use problem::{Problem, Problems};
pub use reader::{Key, Word};
pub use resolve::Facts;
pub use rewards::Reward;
pub use run::{Device, Run};
pub use sampling::{Optimizer, Sampling, Schedule, ScheduleKind, Template};
pub use stages::{
    Dtype, EvalStage, Expect, ExportStage, Format, LossOn, OnNull, Overlong, OverlongPair,
    Pipeline, QueryStage, Reference, RewardModelStage, RlStage, SampleStage, SftStage, Stage,
    StageKind,
};
pub use values::{ByteSize, Names, Sql};
pub use watchdogs::{NanWatchdog, SftWatchdogs, Watch, Watchdogs};

pub(crate) use problem::nearest;
use reader::Reader;
use source::Sources;

/// A pipeline's text with the overrides of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// The file's path, as problems show it.
    pub path: &'a str,
    /// What the file holds.
    pub text: &'a str,
    /// Overrides `KEY=VALUE`: a dotted key, a stage by its name (`stage.zero.steps=10`).
    pub sets: &'a [String],
}

/// Reads a pipeline and checks all that its text alone decides.
pub fn parse(text: Text<'_>) -> Result<Pipeline, Problems> {
    let sources = Sources { path: text.path, text: text.text, sets: text.sets };
    let (pipeline, reader) = read(&sources)?;
    match Problems::new(reader.problems) {
        Some(problems) => Err(problems),
        None => Ok(pipeline),
    }
}

/// Reads a pipeline, checks it against tables and models, and predicts its memory.
pub fn check(
    text: Text<'_>,
    catalogue: &mut dyn Catalogue,
    probe: &dyn ModelProbe,
    places: &Places,
) -> Result<Plan, Problems> {
    let sources = Sources { path: text.path, text: text.text, sets: text.sets };
    let (pipeline, mut reader) = read(&sources)?;
    let mut world = resolve::World { catalogue, probe, places };
    let facts = resolve::resolve(&pipeline, &mut world, &mut reader);
    let plan = Plan::new(pipeline, facts);
    check_memory(&plan, &mut reader);
    match Problems::new(reader.problems) {
        Some(problems) => Err(problems),
        None => Ok(plan),
    }
}

fn read<'a>(sources: &'a Sources<'a>) -> Result<(Pipeline, Reader<'a>), Problems> {
    let (root, problems) = source::parse(sources).map_err(Problems::of_syntax)?;
    let mut reader = Reader::new(sources, problems);
    let pipeline = layout::read(&root, &mut reader);
    local::check(&pipeline, &mut reader);
    Ok((pipeline, reader))
}

fn check_memory(plan: &Plan, reader: &mut Reader<'_>) {
    let Some(limit) = plan.pipeline.run.memory else { return };
    if let Some((stage, memory)) = plan.peak()
        && memory.total_bytes() > limit.0
        && reader.is_good("run.memory")
    {
        let message = format!(
            "stage `{}` will want more than `run.memory` = {}: {}",
            stage.name,
            memory::shown(limit.0),
            memory.describe()
        );
        let hint = "lower `micro_batch_tokens`, `run.kv_cache` or `run.query_memory`, set \
                    `activation_checkpointing`, or allow more memory";
        reader.report_at("run.memory", message, Some(hint.into()));
    }
}
