//! `aha eval`: pass@1, pass@k and cons@k of a model on problems, and what else its completions say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_flow::evaluate::EvalRow;
use aha_flow::evaluate::standalone::{self, Standalone};
use aha_flow::pipeline::{
    Benchmark, Dtype, EvalStage, Reward, Run, Sampling, SamplingWeights, Template,
};
use aha_flow::progress::{Event, Watcher};
use aha_flow::rundir::RunDir;
use aha_flow::stop::Stop;
use aha_flow::{devices, planning};
use aha_reward::Written;

use super::run::stop_on_signals;
use super::shared::{
    self, Drawing, ModelArgs, Precision, ThinkingArgs, at_least_one, completion_count,
};
use crate::report::{failed, misuse};
use crate::screen::{self, Screen};
use crate::text;

/// The flags of `aha eval`.
#[derive(clap::Args)]
#[command(after_help = "\
A benchmark brings its publishers' columns, its published prompt and its verifier. The data are
files of yours, or hf://datasets/owner/name/path in the local cache: nothing is downloaded.

With --dir the completions are the table `rollouts` of a run directory and the figures its table
`evals`. The same command goes on where one was interrupted.

Example:
  aha eval --model DIR --benchmark gsm8k --data test.parquet --k 4 --dir evals/gsm8k")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    thinking: ThinkingArgs,
    /// The problems: a Parquet, JSON lines or CSV file, a folder or a glob, with columns `id`, `prompt`,
    /// `answer`, or those of the benchmark's publisher.
    #[arg(long, value_name = "FILE")]
    data: String,
    /// The benchmark that the problems are of.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(Benchmark::WORDS))]
    benchmark: Option<String>,
    /// Problems, at most: the first ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Completions per problem.
    #[arg(long, value_name = "N", default_value_t = EvalStage::default().k)]
    #[arg(allow_negative_numbers = true, value_parser = completion_count())]
    k: u32,
    /// Logits are divided by it before the softmax; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = EvalStage::default().temperature)]
    #[arg(allow_negative_numbers = true)]
    temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this share; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = EvalStage::default().top_p)]
    #[arg(allow_negative_numbers = true)]
    top_p: f64,
    /// Tokens of a completion, at most.
    #[arg(long, value_name = "N", default_value_t = EvalStage::default().max_tokens)]
    #[arg(allow_negative_numbers = true, value_parser = at_least_one())]
    max_tokens: u32,
    /// How a prompt becomes the model's input: raw, chat, r1-zero, or a text with {prompt} in it. By default
    /// the model's chat template if it has one, else raw.
    #[arg(long, value_parser = shared::template)]
    template: Option<Template>,
    /// The reward that verifies: the name of a kind, or a table of its keys as in a pipeline. A score of 1
    /// counts as right. By default that of the benchmark, else math.
    #[arg(long, value_name = "KIND", value_parser = Written::parse)]
    reward: Option<Written>,
    /// The reward that ranks completions, for best-of-n: the name of a kind, or a table of its keys as in a pipeline.
    /// A model that it asks is a directory, a .gguf file, or hf://owner/name in the local cache.
    #[arg(long, value_name = "KIND", value_parser = Written::parse)]
    rank_by: Option<Written>,
    /// Times that the problems are drawn again for the standard errors.
    #[arg(long, value_name = "N", default_value_t = EvalStage::default().resamples)]
    #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    resamples: u32,
    /// Seed of every draw.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// A run directory for the completions and the figures, in which an interrupted evaluation goes on.
    #[arg(long, value_name = "RUN_DIR")]
    dir: Option<PathBuf>,
    /// Print the row of the table `evals` as JSON.
    #[arg(long)]
    json: bool,
}

/// Evaluates and prints the figures.
pub fn run(args: Args, screen: &Screen) -> anyhow::Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        max_tokens: args.max_tokens,
        ..Sampling::default()
    };
    shared::check_sampling(&sampling, args.thinking.thinking.as_ref())?;
    let benchmark = args.benchmark.as_deref().and_then(Benchmark::from_word);
    let reward = match (args.reward, benchmark) {
        (Some(reward), _) => Reward(reward.spec.named()),
        (None, Some(benchmark)) => benchmark.reward(),
        (None, None) => Reward::default(),
    };
    shared::verifier(&reward.0)?;
    let rank_by = args.rank_by.map(|written| ranker(written, &reward)).transpose()?;
    args.model.path()?;
    require_data(&args.data)?;
    let options = Standalone {
        model: args.model.model.clone(),
        data: args.data,
        template: args.template,
        settings: EvalStage {
            k: args.k,
            temperature: args.temperature,
            top_p: args.top_p,
            max_tokens: args.max_tokens,
            benchmark,
            limit: args.limit,
            reward,
            rank_by,
            thinking: args.thinking.thinking,
            resamples: args.resamples,
            weights: args.drawing.weights.into(),
            ..EvalStage::default()
        },
        run: Run { seed: args.seed, ..args.precision.run(args.model.threads) },
        places: planning::places(),
        devices: devices::of_machine(),
    };
    let bar = screen.bar(1);
    let watcher = watcher(screen, bar.clone(), args.dir.is_some());
    let runtime = shared::runtime()?;
    let found = match args.dir {
        None => runtime.block_on(standalone::in_memory(&options, watcher)),
        Some(dir) => {
            let stop = Stop::default();
            stop_on_signals(stop.clone(), screen.clone())?;
            runtime.block_on(standalone::in_dir(&options, &RunDir::new(dir), stop, watcher))
        }
    };
    bar.finish_and_clear();
    let found = found.map_err(|error| match error {
        aha_flow::Error::Interrupted => {
            failed("the evaluation was stopped on request", "the same command goes on")
        }
        error => error.into(),
    })?;
    if args.json { screen::print_json(&found) } else { Ok(screen::print(shown(&found))?) }
}

/// What ranks, with a name of its own. It may be built on the verifier.
fn ranker(written: Written, verifier: &Reward) -> anyhow::Result<Reward> {
    let mut reward = shared::ranker(written)?;
    if reward.name() == verifier.name() {
        reward.0.common.name = Some(format!("{}_ranks", verifier.name()));
    }
    let base = reward.0.base_among(std::iter::once(verifier.name()));
    base.map_err(|problem| {
        misuse(format!("--rank-by: {problem}"), "it may be built on the reward that verifies")
    })?;
    if reward.weight() == 0.0 {
        let what = "--rank-by has the weight 0, by which all completions rank alike";
        return Err(misuse(what, "set it above 0, or below where the lowest score is the best"));
    }
    Ok(reward)
}

/// Moves the bar, and says what should be known.
fn watcher(screen: &Screen, bar: indicatif::ProgressBar, is_in_chunks: bool) -> Watcher {
    bar.set_prefix(if is_in_chunks { "chunks of problems" } else { "problems" });
    let screen = screen.clone();
    Arc::new(move |event| match event {
        Event::StageStarted { steps, .. } => bar.set_length(steps),
        Event::Step { step, .. } => bar.set_position(step),
        Event::Warning { message, hint, .. } => {
            screen.line(&format!("warning: {message}\nhint: {hint}"));
        }
        Event::Actors { .. } | Event::StageDone { .. } | Event::Print { .. } => {}
        // Nobody gives an evaluation somebody who waits.
        Event::Waiting { .. } | Event::GoesOn => {}
    })
}

/// A path that isn't there is seen before a model is loaded. Globs are left to the session.
fn require_data(data: &str) -> anyhow::Result<()> {
    if data.contains(['*', '?', '[']) || data.contains("://") || Path::new(data).exists() {
        return Ok(());
    }
    Err(misuse(format!("there is no data at `{data}`"), "give a file of problems with --data"))
}

fn shown(found: &EvalRow) -> String {
    let percent = |value: f64, se: Option<f64>| {
        let se = se.map(|se| format!(" ± {:.2}", se * 100.0)).unwrap_or_default();
        format!("{:.2} %{se}", value * 100.0)
    };
    let mut rows = vec![
        ("model".to_owned(), found.model.clone()),
        ("dataset".to_owned(), found.dataset.clone()),
        ("problems".to_owned(), text::grouped(found.problem_count)),
    ];
    let item = |values: &Option<Vec<f64>>, idx: usize| values.as_ref().map(|values| values[idx]);
    for (idx, k) in found.ks.iter().enumerate() {
        let value = percent(found.pass_at_ks[idx], item(&found.pass_at_ks_se, idx));
        rows.push((format!("pass@{k}"), value));
    }
    for (idx, k) in found.ks.iter().enumerate().filter(|(_, k)| **k > 1 || found.k == 1) {
        let value = match item(&found.cons_at_ks, idx) {
            Some(cons) => percent(cons, item(&found.cons_at_ks_se, idx)),
            None if *k < found.k => continue,
            None => "no answers to compare".to_owned(),
        };
        rows.push((format!("cons@{k}"), value));
    }
    let scorer = found.rank_by.as_deref().unwrap_or_default();
    for (idx, k) in found.ks.iter().enumerate().filter(|(_, k)| **k > 1) {
        if let Some(best) = item(&found.bon_at_ks, idx) {
            let value = percent(best, item(&found.bon_at_ks_se, idx));
            rows.push((format!("bon@{k}"), format!("{value}, ranked by {scorer}")));
        }
    }
    for (idx, k) in found.ks.iter().enumerate().filter(|(_, k)| **k > 1) {
        if let Some(cons) = item(&found.weighted_cons_at_ks, idx) {
            let value = percent(cons, item(&found.weighted_cons_at_ks_se, idx));
            rows.push((format!("wcons@{k}"), format!("{value}, votes weighted by {scorer}")));
        }
    }
    if let (Some(rating), Some(se)) = (found.rating, found.rating_se) {
        rows.push(("rating".to_owned(), format!("{rating:.0} ± {se:.0}")));
    }
    if let Some(share) = found.answered_share {
        rows.push(("answered".to_owned(), percent(share, None)));
    }
    let (mean, median) = (found.completion_len_tokens_mean, found.completion_len_tokens_median);
    let (p95, cut) = (found.completion_len_tokens_p95, percent(found.truncated_share, None));
    let length = format!("{mean:.1} tokens, half up to {median}, 95 % up to {p95}, {cut} cut off");
    rows.push(("length".to_owned(), length));
    if let Some(rate) = found.tokens_per_second {
        rows.push(("speed".to_owned(), format!("{} tokens/s", text::measure(rate))));
    }
    // What is usual is not said.
    let same = SamplingWeights::Same.word();
    if let (Some(dtype), Some(weights)) = (found.dtype.as_deref(), found.weights.as_deref())
        && (dtype, weights) != (Dtype::F32.word(), same)
    {
        let weights = match weights {
            weights if weights == same => String::new(),
            weights => format!(", weights as {weights}"),
        };
        rows.push(("computed".to_owned(), format!("in {dtype}{weights}")));
    }
    rows.iter().map(|(name, value)| format!("{name:<9} {}\n", text::one_line(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_their_errors() {
        let found = EvalRow {
            stage: "eval".into(),
            model: "m".into(),
            dataset: "d".into(),
            problem_count: 1200,
            k: 16,
            ks: vec![1, 16],
            pass_at_ks: vec![0.5, 0.75],
            pass_at_ks_se: Some(vec![0.0123, 0.02]),
            rating: Some(1873.4),
            rating_se: Some(41.6),
            completion_len_tokens_mean: 63.25,
            completion_len_tokens_median: 60,
            completion_len_tokens_p95: 120,
            tokens_per_second: Some(1234.5),
            rank_by: Some("model".to_owned()),
            bon_at_ks: Some(vec![0.5, 0.7]),
            bon_at_ks_se: Some(vec![0.01, 0.015]),
            weighted_cons_at_ks: Some(vec![0.5, 0.65]),
            ..EvalRow::default()
        };
        let text = shown(&found);
        for line in [
            "pass@1    50.00 % ± 1.23\n",
            "pass@16   75.00 % ± 2.00\n",
            "problems  1,200\n",
            "cons@16   no answers to compare\n",
            "bon@16    70.00 % ± 1.50, ranked by model\n",
            "wcons@16  65.00 %, votes weighted by model\n",
            "rating    1873 ± 42\n",
            "length    63.2 tokens, half up to 60, 95 % up to 120, 0.00 % cut off\n",
            "speed     1,235 tokens/s\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
    }
}
