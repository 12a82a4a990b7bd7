//! What ran: the run, its stages, and what evaluations found.

use std::collections::BTreeMap;

use aha_data::Session;
use aha_flow::pipeline::{self, Pipeline, StageKind};
use aha_flow::rundir::RunDir;
use aha_flow::state::{RunState, StageState, Status};
use serde::{Deserialize, Serialize};

use super::ask::{self, Num};
use super::curves::Series;
use super::look::{self, Looked};
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
    /// Standard error of `pass_at_k`.
    #[serde(default)]
    pub pass_at_k_se: Option<Num>,
    /// Share of completions that were cut off at their limit.
    #[serde(default)]
    pub truncated_share: Option<Num>,
    /// Share of completions with an answer to compare.
    #[serde(default)]
    pub answered_share: Option<Num>,
    /// Elo rating.
    #[serde(default)]
    pub rating: Option<Num>,
    /// Its standard error.
    #[serde(default)]
    pub rating_se: Option<Num>,
    /// Scorer that ranked completions.
    #[serde(default)]
    pub rank_by: Option<String>,
    /// Share of problems whose completion of the highest rank is right.
    #[serde(default)]
    pub bon_at_k: Option<Num>,
    /// Its standard error.
    #[serde(default)]
    pub bon_at_k_se: Option<Num>,
    /// As `cons_at_k`, with votes that weigh.
    #[serde(default)]
    pub weighted_cons_at_k: Option<Num>,
    /// Its standard error.
    #[serde(default)]
    pub weighted_cons_at_k_se: Option<Num>,
    /// Numbers of samples that the next ones are for.
    #[serde(default)]
    pub ks: Vec<u64>,
    /// pass@ each of them.
    #[serde(default)]
    pub pass_at_ks: Vec<Num>,
    /// Their standard errors.
    #[serde(default)]
    pub pass_at_ks_se: Option<Vec<Num>>,
    /// cons@ each of them.
    #[serde(default)]
    pub cons_at_ks: Option<Vec<Num>>,
    /// Their standard errors.
    #[serde(default)]
    pub cons_at_ks_se: Option<Vec<Num>>,
    /// Best-of-n for each of them.
    #[serde(default)]
    pub bon_at_ks: Option<Vec<Num>>,
    /// Their standard errors.
    #[serde(default)]
    pub bon_at_ks_se: Option<Vec<Num>>,
    /// cons@ each of them, with votes that weigh.
    #[serde(default)]
    pub weighted_cons_at_ks: Option<Vec<Num>>,
    /// Their standard errors.
    #[serde(default)]
    pub weighted_cons_at_ks_se: Option<Vec<Num>>,
    /// How long the model was made to think, in words; none where that was up to it.
    #[serde(skip_deserializing)]
    pub thinking: Option<String>,
}

/// The pipeline that the run was begun with; none where this version can't read it.
pub fn pipeline_of(dir: &RunDir) -> Option<Pipeline> {
    let path = dir.pipeline().display().to_string();
    let text = fs_err::read_to_string(dir.pipeline()).ok()?;
    let parsed = pipeline::parse(pipeline::Text { path: &path, text: &text, sets: &[] });
    parsed.inspect_err(|problems| tracing::info!(%problems, "Pipeline left out.")).ok()
}

/// Gathers the facts.
pub async fn gather(
    session: &Session,
    dir: &RunDir,
    state: &RunState,
    pipeline: Option<&Pipeline>,
    looked: &[Looked],
    measured: &BTreeMap<String, Series>,
) -> anyhow::Result<Facts> {
    let mut evals: Vec<Eval> = ask::rows(session, "SELECT * FROM evals").await?;
    for eval in &mut evals {
        eval.thinking = thinking_of(&eval.stage, pipeline);
    }
    let root = fs_err::canonicalize(dir.root())?;
    let name = root.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy());
    let stages: Vec<Stage> =
        state.stages.iter().map(|known| stage(known, pipeline, looked, measured)).collect();
    let about = About {
        name: text::one_line(&name),
        version: state.version.clone(),
        seed: state.seed,
        platform: state.machine.platform.clone(),
        instruction_set: state.machine.instruction_set.clone(),
        threads: state.machine.threads,
        started_at_us: state.started_at_us,
        last_at_us: stages.iter().filter_map(|stage| stage.span_us).map(|[_, last]| last).max(),
        completions_count: looked.iter().map(|table| table.total(|step| step.rows)).sum(),
        completions_len_tokens: looked.iter().map(|table| table.total(|step| step.tokens)).sum(),
    };
    Ok(Facts {
        about,
        stages,
        evals,
        pipeline: fs_err::read_to_string(dir.pipeline()).ok().map(|text| text::lines(&text)),
    })
}

/// How long the models of an evaluation think, in words; none where that is up to them.
fn thinking_of(stage: &str, pipeline: Option<&Pipeline>) -> Option<String> {
    let StageKind::Eval(eval) = &pipeline?.stage(stage)?.kind else { return None };
    let thinking = eval.thinking.as_ref()?;
    let tokens = match (thinking.min_tokens, thinking.max_tokens) {
        (0, None) => None,
        (0, Some(0)) => Some("no thinking".to_owned()),
        (0, Some(most)) => Some(format!("thinking at most {most} tokens")),
        (least, None) => Some(format!("thinking at least {least} tokens")),
        (least, Some(most)) => Some(format!("thinking {least} to {most} tokens")),
    };
    let waits = match thinking.waits {
        0 => None,
        1 => Some("one end taken back".to_owned()),
        count => Some(format!("{count} ends taken back")),
    };
    let said: Vec<String> = tokens.into_iter().chain(waits).collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn stage(
    state: &StageState,
    pipeline: Option<&Pipeline>,
    looked: &[Looked],
    measured: &BTreeMap<String, Series>,
) -> Stage {
    let planned = pipeline.and_then(|pipeline| pipeline.stage(&state.name));
    let own: Vec<&Looked> = looked.iter().filter(|of| of.table.stage == state.name).collect();
    let points = measured.get(&state.name).into_iter().flat_map(BTreeMap::values).flatten();
    let spans = points.clone().map(|point| [point.at_us; 2]);
    let spans = spans.chain(own.iter().map(|table| table.span_us()));
    Stage {
        name: state.name.clone(),
        kind: state.kind.clone(),
        status: match state.status {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Done => "done",
        },
        description: planned.map(|stage| text::one_line(&stage.description)).unwrap_or_default(),
        models: look::models_of(&state.name, pipeline),
        steps: points.map(|point| point.step).max(),
        steps_planned: match planned.map(|stage| &stage.kind) {
            Some(StageKind::Rl(rl)) => Some(rl.steps),
            _ => None,
        },
        completions_count: (!own.is_empty())
            .then(|| own.iter().map(|table| table.total(|step| step.rows)).sum()),
        span_us: spans.reduce(|[a, b], [c, d]| [a.min(c), b.max(d)]),
    }
}

#[cfg(test)]
mod tests {
    use aha_flow::pipeline::Text;

    use super::*;

    #[test]
    fn a_thinking_budget_is_said_in_words() {
        let stage = |name: &str, thinking: &str| {
            format!(
                "[[stage]]\nname = \"{name}\"\nkind = \"eval\"\nmodel = \"base\"\n\
                 data = \"SELECT id, prompt, answer FROM p\"\nmax_tokens = 900\n{thinking}\n"
            )
        };
        let text = [
            "[tables]\np = \"p.jsonl\"\n[models]\nbase = \"base\"\n".to_owned(),
            stage("free", ""),
            stage("none", "thinking = { max_tokens = 0 }"),
            stage("both", "thinking = { min_tokens = 8, max_tokens = 64, waits = 1 }"),
            stage("waits", "thinking = { waits = 2 }"),
        ];
        let path = "pipeline.toml";
        let pipeline = pipeline::parse(Text { path, text: &text.concat(), sets: &[] }).unwrap();
        let cases = [
            ("free", None),
            ("gone", None),
            ("none", Some("no thinking")),
            ("both", Some("thinking 8 to 64 tokens, one end taken back")),
            ("waits", Some("2 ends taken back")),
        ];
        for (stage, expected) in cases {
            assert_eq!(thinking_of(stage, Some(&pipeline)).as_deref(), expected, "{stage}");
        }
    }
}
