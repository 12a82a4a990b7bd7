//! Pipeline files: read, checked against the world, planned; every problem is reported at once.
//!
//! # Map
//! - [`check`](fn@check): text in, [`Plan`] or every [`Problem`] out; start here. [`parse`] is its
//!   first half, which needs no table and no model.
//! - [`Pipeline`], [`Stage`], [`StageKind`]: what runs. Each field's doc is the reference of its key;
//!   the structs are in `run`, `models`, `sampling`, `lora`, `stages`, `watchdogs`, `objective`, `rewards`,
//!   `endpoint`.
//! - `outputs`: the tables that stages write.
//! - `source`: TOML and `--set` as one tree with positions. `reader`, `values`, `foreign`, `write`:
//!   from the tree to structs and back.
//! - `layout`: the file's sections. `settings`: what of them results depend on. `local`: names and arithmetic.
//!   `asking`: endpoints. `references`: who reads whom. `roles`: models as what they are named for.
//!   `device`: where a run computes. `resolve`: tables, queries and models, asked through [`Catalogue`] and [`ModelProbe`].
//! - [`memory`]: the prediction and its formulas. `auto`: what is chosen by them. [`Plan`]: what `aha check` prints.
//!
//! # Invariants
//! - A [`Pipeline`] only comes out of a file without problems; what runs never looks at the file.
//! - [`Pipeline::to_toml`] writes every default, and reads back as an equal value.
//! - A wrong value is reported once: nothing that builds on it is reported as well.

mod asking;
mod auto;
mod benchmark;
mod catalogue;
mod conversations;
pub(crate) mod device;
mod endpoint;
mod foreign;
mod layout;
mod local;
mod lora;
pub mod memory;
mod models;
mod objective;
mod outputs;
mod plan;
mod problem;
mod reader;
mod references;
mod resolve;
mod rewards;
mod roles;
mod run;
mod sampling;
mod settings;
mod source;
mod stages;
mod values;
mod watchdogs;
mod write;

pub use auto::{Auto, MICRO_BATCH_TOKENS_MAX, Room};
pub use benchmark::Benchmark;
pub use catalogue::{
    Catalogue, Column, ModelFacts, ModelProbe, ProbeProblem, SqlProblem, StageOutput, TableFacts,
};
pub use device::{Device, DeviceFacts, Found};
pub use endpoint::{Api, Endpoint};
pub use layout::{RESOLVED_HEADER, Table, reference};
pub use local::name_of;
pub use lora::{Lora, Targets};
pub use models::{
    AdaptedModel, Alphabet, Architecture, Init, ModelSource, NotFound, Places, RandomModel,
    TokenizerSource, TokenizerTraining,
};
pub use plan::Plan;
pub use problem::{Problem, Problems};
pub use reader::{Key, Word};
pub use resolve::Facts;
pub use rewards::Reward;
pub use run::Run;
pub use sampling::{
    OnStale, Optimizer, OptimizerState, Sampling, SamplingWeights, Schedule, ScheduleKind,
    Template, Thinking,
};
pub use settings::{Settings, Written};
pub use stages::{
    Critic, Curriculum, DpoStage, Dtype, EvalStage, Expect, ExportStage, Format, LossOn, OnNull,
    Overlong, OverlongPair, PairLoss, Pipeline, QueryStage, Reference, RewardModelStage, RlStage,
    SampleStage, SftForm, SftStage, Stage, StageKind,
};
pub use values::{ByteSize, Names, Sql, Weights};
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

/// Reads the table `thinking` of a stage from a command line, such as `{ waits = 2 }`; says all that is wrong.
pub fn parse_thinking(text: &str) -> Result<Thinking, String> {
    let text = format!("thinking = {text}");
    let sources = Sources { path: "--thinking", text: &text, sets: &[] };
    let (mut thinking, mut problems) = (Thinking::default(), Vec::new());
    match source::parse(&sources) {
        Ok((root, found)) => {
            let mut reader = Reader::new(&sources, found);
            if let source::Value::Table(entries) = &root.value {
                let key = ("thinking", false);
                thinking = reader::read_key(entries, key, "", &mut reader, thinking);
            }
            problems.append(&mut reader.problems);
        }
        Err(found) => problems = found,
    }
    let told = |problem: &Problem| match &problem.hint {
        Some(hint) => format!("{} ({hint})", problem.message),
        None => problem.message.clone(),
    };
    match Problems::new(problems) {
        Some(problems) => Err(problems.iter().map(told).collect::<Vec<_>>().join("; ")),
        None => Ok(thinking),
    }
}

/// Reads a pipeline, checks it against tables and models, predicts its memory, and chooses by that what the
/// pipeline leaves open.
pub fn check(
    text: Text<'_>,
    catalogue: &mut dyn Catalogue,
    probe: &dyn ModelProbe,
    places: &Places,
    room: Room<'_>,
) -> Result<Plan, Problems> {
    let sources = Sources { path: text.path, text: text.text, sets: text.sets };
    let (mut pipeline, mut reader) = read(&sources)?;
    let mut world = resolve::World { catalogue, probe, places };
    let facts = resolve::resolve(&pipeline, &mut world, &mut reader);
    let device = device::choose(&mut pipeline, room, &mut reader);
    device::check(&pipeline, &mut reader);
    let too_large = auto::choose(&mut pipeline, &facts, (room, device.facts.as_ref()));
    let plan = Plan::new(pipeline, facts, device);
    check_device_memory(&plan, room.starts, &mut reader);
    match plan.pipeline.run.memory {
        Some(limit) => check_memory(&plan, limit, &too_large, &mut reader),
        None => check_choices(&plan, room, &too_large, &mut reader),
    }
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

/// What a device has no room for is refused whatever the host has.
fn check_device_memory(plan: &Plan, starts: bool, reader: &mut Reader<'_>) {
    let Some(facts) = &plan.device.facts else { return };
    for (stage, memory) in plan.pipeline.stages.iter().zip(&plan.device_memory) {
        let room_bytes = facts.room_bytes(starts);
        if memory.total_bytes() <= room_bytes {
            continue;
        }
        let message = format!(
            "stage `{}` will want more than the {}{} of {}: {}",
            stage.name,
            memory::shown(room_bytes),
            if starts { " that are free" } else { "" },
            plan.device_text(),
            memory.describe()
        );
        reader.report_at(
            &format!("stage.{}", stage.name),
            message,
            Some(device_hint(stage, &plan.pipeline.run)),
        );
    }
}

/// What to do about a stage that has no room on its device.
fn device_hint(stage: &Stage, run: &Run) -> String {
    let mut keys = neutral_keys(stage);
    if optimizer_of(&stage.kind).is_some() && stage.kind.lora().is_none() {
        keys.push("train adapters with `lora`");
    }
    if run.dtype == Dtype::F32 {
        keys.push("set `run.dtype` to \"bf16\"");
    }
    keys.push("take a smaller model or another device");
    keys.join(", ")
}

/// What to do about a run whose device is full, and which goes on with other values of these keys.
pub(crate) fn resume_hint(stage: &Stage) -> String {
    match neutral_keys(stage)[..] {
        [] => "make room on the device; then --resume goes on with the run".to_owned(),
        ref keys => format!("{}; then --resume goes on from the last checkpoint", keys.join(", ")),
    }
}

/// What trains a stage's model.
fn optimizer_of(kind: &StageKind) -> Option<&Optimizer> {
    match kind {
        StageKind::Sft(stage) => Some(&stage.optimizer),
        StageKind::RewardModel(stage) => Some(&stage.optimizer),
        StageKind::Dpo(stage) => Some(&stage.optimizer),
        StageKind::Rl(stage) => Some(&stage.optimizer),
        StageKind::Sample(_) | StageKind::Query(_) | StageKind::Eval(_) | StageKind::Export(_) => {
            None
        }
    }
}

/// What a device's memory depends on, and no result.
fn neutral_keys(stage: &Stage) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if let Some(knobs) = auto::Knobs::of(&stage.kind) {
        keys.push("lower `micro_batch_tokens`");
        if !knobs.checkpointing.is_on() {
            keys.push("set `activation_checkpointing`");
        }
    }
    if optimizer_of(&stage.kind).is_some_and(|of| of.state == OptimizerState::Device) {
        keys.push("set `optimizer.state` to \"host\"");
    }
    if matches!(stage.kind, StageKind::Rl(_) | StageKind::Sample(_) | StageKind::Eval(_)) {
        keys.push("lower `run.kv_cache` or `run.sequences_max`");
    }
    keys
}

/// `too_large` names the stages whose choices are the smallest there are.
fn check_memory(plan: &Plan, limit: ByteSize, too_large: &[String], reader: &mut Reader<'_>) {
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
        let hint = match &stage.kind {
            _ if too_large.contains(&stage.name) => SMALLEST_HINT,
            StageKind::Sample(_) | StageKind::Eval(_) => {
                "lower `run.kv_cache`, `run.sequences_max` or `run.query_memory`, the number of completions or \
                 their tokens, set `run.dtype` to \"bf16\", or allow more memory"
            }
            StageKind::Query(_) => "lower `run.query_memory`, or allow more memory",
            _ => {
                "lower `micro_batch_tokens`, `run.kv_cache` or `run.query_memory`, set \
                 `activation_checkpointing`, or allow more memory"
            }
        };
        reader.report_at("run.memory", message, Some(hint.into()));
    }
}

/// Where the choice is ours, a run that the machine has no room for is refused too.
fn check_choices(plan: &Plan, room: Room<'_>, too_large: &[String], reader: &mut Reader<'_>) {
    let Some(free_bytes) = room.free_bytes else { return };
    for (stage, memory) in plan.pipeline.stages.iter().zip(&plan.memory) {
        if too_large.contains(&stage.name) && memory.total_bytes() > free_bytes {
            let message = format!(
                "stage `{}` will want more than the {} that this machine has free: {}",
                stage.name,
                memory::shown(free_bytes),
                memory.describe()
            );
            let hint = format!("{SMALLEST_HINT} by `run.memory`");
            reader.report_at(&format!("stage.{}", stage.name), message, Some(hint));
        }
    }
}

/// The remedy where micro-batches are the smallest there are.
const SMALLEST_HINT: &str = "lower `max_tokens`, `run.kv_cache` or `run.query_memory`, take a smaller \
                             model, or allow more memory";
