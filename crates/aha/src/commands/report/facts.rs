//! What ran: the run, its stages, and what evaluations found.

use std::collections::HashMap;

use aha_data::Session;
use aha_flow::pipeline::{self, EvalStage, Pipeline, StageKind};
use aha_flow::rundir::RunDir;
use aha_flow::state::{RunState, StageState, Status};
use serde::{Deserialize, Serialize};

use super::ask::{self, Num};
use crate::text;

/// The run, as the page has it.
#[derive(Serialize)]
pub struct Facts {
    /// The run as a whole.
    pub about: About,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// What evaluations found, in the order of the table.
    pub evals: Vec<Eval>,
    /// The pipeline's file as resolved; none where it is gone.
    pub pipeline: Option<String>,
}

/// The run as a whole.
#[derive(Serialize)]
pub struct About {
    /// The name of its directory.
    pub name: String,
    /// Version of the program that began it.
    pub version: String,
    /// Seed of every draw.
    pub seed: u64,
    /// Operating system and architecture.
    pub platform: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// Compute threads.
    pub threads: usize,
    /// When it began, in µs since 1970, UTC.
    pub started_at_us: i64,
    /// When its newest row was written, likewise; none where it has none.
    pub last_at_us: Option<i64>,
    /// Completions that its models have written.
    pub completions_count: u64,
    /// Their tokens.
    pub completions_len_tokens: u64,
}

/// One stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Its kind, as in a pipeline.
    pub kind: String,
    /// `pending`, `running` or `done`. A stage that runs may have been interrupted.
    pub status: &'static str,
    /// What the pipeline says of it.
    pub description: String,
    /// The models that it starts from.
    pub models: Vec<String>,
    /// Steps that it has measured; none where it doesn't measure.
    pub steps: Option<u64>,
    /// Steps that it is to make, where the pipeline says that.
    pub steps_planned: Option<u64>,
    /// Completions that it has sampled; none where it doesn't sample.
    pub completions_count: Option<u64>,
    /// When its first and its newest row were written, in µs since 1970, UTC.
    pub span_us: Option<[i64; 2]>,
}

/// An evaluation: a row of `evals`, without what the page doesn't show. Columns that came later may be absent.
#[derive(Serialize, Deserialize)]
pub struct Eval {
    /// Stage that evaluated.
    pub stage: String,
    /// Model that was evaluated.
    pub model: String,
    /// Data set it was evaluated on.
    pub dataset: String,
    /// Benchmark whose layout was used.
    #[serde(default)]
    pub benchmark: Option<String>,
    /// Problems.
    pub problem_count: u64,
    /// Samples per problem.
    pub k: u64,
    /// Share of right samples.
    pub pass_at_1: Num,
    /// Its standard error.
    pub pass_at_1_se: Option<Num>,
    /// Share of problems with a right sample.
    pub pass_at_k: Num,
    /// Share of problems whose most frequent answer is right.
    pub cons_at_k: Option<Num>,
    /// Its standard error.
    pub cons_at_k_se: Option<Num>,
    /// Mean number of tokens per completion.
    pub completion_len_tokens_mean: Num,
    /// What weights were multiplied as.
    #[serde(default)]
    pub weights: Option<String>,
}

/// The pipeline that the run was begun with; none where this version can't read it.
pub fn pipeline_of(dir: &RunDir) -> Option<Pipeline> {
    let path = dir.pipeline().display().to_string();
    let text = fs_err::read_to_string(dir.pipeline()).ok()?;
    let parsed = pipeline::parse(pipeline::Text { path: &path, text: &text, sets: &[] });
    parsed.inspect_err(|problems| tracing::info!(%problems, "Pipeline left out.")).ok()
}

/// What a query says of a stage's rows.
#[derive(Deserialize)]
struct Rows {
    stage: String,
    first_us: Option<i64>,
    last_us: Option<i64>,
    steps: u64,
    count: u64,
    tokens: u64,
}

/// Gathers the facts.
pub async fn gather(
    session: &Session,
    dir: &RunDir,
    state: &RunState,
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Facts> {
    let measured: Vec<Rows> = ask::rows(
        session,
        "SELECT stage, min(CAST(\"at\" AS BIGINT)) AS first_us, max(CAST(\"at\" AS BIGINT)) AS last_us, \
                max(step) AS steps, count(*) AS count, 0 AS tokens \
         FROM metrics GROUP BY stage",
    )
    .await?;
    // The completions of an evaluation have the name of their table where others have their stage's.
    let sampled: Vec<Rows> = ask::rows(
        session,
        "SELECT stage, min(CAST(finished_at AS BIGINT)) AS first_us, \
                max(CAST(finished_at AS BIGINT)) AS last_us, max(step) AS steps, count(*) AS count, \
                sum(completion_len_tokens) AS tokens \
         FROM rollouts GROUP BY stage",
    )
    .await?;
    let evals = ask::rows(session, "SELECT * FROM evals").await?;
    let root = fs_err::canonicalize(dir.root())?;
    let name = root.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy());
    let about = About {
        name: text::one_line(&name),
        version: state.version.clone(),
        seed: state.seed,
        platform: state.machine.platform.clone(),
        instruction_set: state.machine.instruction_set.clone(),
        threads: state.machine.threads,
        started_at_us: state.started_at_us,
        last_at_us: measured.iter().chain(&sampled).filter_map(|rows| rows.last_us).max(),
        completions_count: sampled.iter().map(|rows| rows.count).sum(),
        completions_len_tokens: sampled.iter().map(|rows| rows.tokens).sum(),
    };
    let by_stage = |rows: Vec<Rows>| -> HashMap<String, Rows> {
        rows.into_iter().map(|rows| (rows.stage.clone(), rows)).collect()
    };
    let (measured, sampled) = (by_stage(measured), by_stage(sampled));
    let stages = state.stages.iter().map(|known| stage(known, pipeline, &measured, &sampled));
    Ok(Facts {
        about,
        stages: stages.collect(),
        evals,
        pipeline: fs_err::read_to_string(dir.pipeline()).ok().map(|text| text::lines(&text)),
    })
}

fn stage(
    state: &StageState,
    pipeline: Option<&Pipeline>,
    measured: &HashMap<String, Rows>,
    sampled: &HashMap<String, Rows>,
) -> Stage {
    let planned = pipeline.and_then(|pipeline| pipeline.stage(&state.name));
    let models = planned.map(|stage| match &stage.kind {
        StageKind::Eval(eval) => eval.subjects(),
        kind => kind.models().to_vec(),
    });
    let models = models.unwrap_or_default();
    let tables: Vec<String> = match state.kind.as_str() {
        "eval" => models.iter().map(|model| EvalStage::completions(&state.name, model)).collect(),
        _ => vec![state.name.clone()],
    };
    let own: Vec<&Rows> = tables.iter().filter_map(|table| sampled.get(table)).collect();
    let by_step = measured.get(&state.name);
    let rows = || own.iter().copied().chain(by_step);
    let first_us = rows().filter_map(|rows| rows.first_us).min();
    Stage {
        name: state.name.clone(),
        kind: state.kind.clone(),
        status: match state.status {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Done => "done",
        },
        description: planned.map(|stage| text::one_line(&stage.description)).unwrap_or_default(),
        models,
        steps: by_step.map(|rows| rows.steps),
        steps_planned: match planned.map(|stage| &stage.kind) {
            Some(StageKind::Rl(rl)) => Some(rl.steps),
            _ => None,
        },
        completions_count: (!own.is_empty()).then(|| own.iter().map(|rows| rows.count).sum()),
        span_us: first_us.zip(rows().filter_map(|rows| rows.last_us).max()).map(<[i64; 2]>::from),
    }
}
