//! `aha eval`: pass@1, pass@k and cons@k of a model on problems.

use std::path::Path;
use std::sync::Arc;

use aha_flow::evaluate::{self, Evaluation, Standalone};
use aha_flow::pipeline::{EvalStage, Run, Sampling, Template};
use aha_reward::Spec;

use super::shared::{self, ModelArgs, at_least_one, completion_count};
use crate::report::misuse;
use crate::screen::{self, Screen};
use crate::text;

/// The flags of `aha eval`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The problems: a Parquet, JSON lines or CSV file, a folder or a glob, with columns `id`, `prompt`,
    /// `answer`.
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Completions per problem.
    #[arg(long, value_name = "N", default_value_t = EvalStage::default().k)]
    #[arg(value_parser = completion_count())]
    k: u32,
    /// Logits are divided by it before the softmax; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = EvalStage::default().temperature)]
    temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this share; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = EvalStage::default().top_p)]
    top_p: f64,
    /// Tokens of a completion, at most.
    #[arg(long, value_name = "N", default_value_t = EvalStage::default().max_tokens, value_parser = at_least_one())]
    max_tokens: u32,
    /// How a prompt becomes the model's input: raw, chat, r1-zero, or a text with {prompt} in it. By default
    /// the model's chat template if it has one, else raw.
    #[arg(long, value_parser = shared::template)]
    template: Option<Template>,
    /// The reward that verifies: the name of a kind, or a table of its keys as in a pipeline. A score of 1
    /// counts as right.
    #[arg(long, value_name = "KIND", default_value = "math", value_parser = shared::reward)]
    reward: Spec,
    /// Seed of every draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
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
    shared::check_sampling(&sampling)?;
    shared::verifier(&args.reward)?;
    require_data(&args.data)?;
    let standalone = Standalone {
        model: args.model.path()?,
        data: args.data,
        template: args.template,
        k: args.k,
        sampling,
        reward: args.reward,
        run: Run { seed: args.seed, threads: args.model.threads, ..Run::default() },
    };
    let bar = screen.bar(1);
    bar.set_prefix("problems");
    let progress = {
        let bar = bar.clone();
        Arc::new(move |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })
    };
    let found = shared::runtime()?.block_on(evaluate::standalone(standalone, progress));
    bar.finish_and_clear();
    let found = found?;
    if args.json { screen::print_json(&found) } else { Ok(screen::print(shown(&found))?) }
}

/// A path that isn't there is seen before a model is loaded. Globs are left to the session.
fn require_data(data: &str) -> anyhow::Result<()> {
    if data.contains(['*', '?', '[']) || data.contains("://") || Path::new(data).exists() {
        return Ok(());
    }
    Err(misuse(format!("there is no data at `{data}`"), "give a file of problems with --data"))
}

fn shown(found: &Evaluation) -> String {
    let share = |value: f64, se: Option<f64>| {
        let se = se.map(|se| format!(" ± {:.2}", se * 100.0)).unwrap_or_default();
        format!("{:.2} %{se}", value * 100.0)
    };
    let cons = match found.cons_at_k {
        Some(cons) => share(cons, found.cons_at_k_se),
        None => "no answers to compare".to_owned(),
    };
    let k = found.k;
    let rows = [
        ("model".to_owned(), found.model.clone()),
        ("dataset".to_owned(), found.dataset.clone()),
        ("problems".to_owned(), text::grouped(found.problem_count)),
        ("pass@1".to_owned(), share(found.pass_at_1, found.pass_at_1_se)),
        (format!("pass@{k}"), share(found.pass_at_k, None)),
        (format!("cons@{k}"), cons),
        ("length".to_owned(), format!("{:.1} tokens", found.completion_len_tokens_mean)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<9} {}\n", text::one_line(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_their_errors() {
        let found = Evaluation {
            stage: "eval".into(),
            model: "m".into(),
            dataset: "d".into(),
            problem_count: 1200,
            k: 16,
            pass_at_1: 0.5,
            pass_at_1_se: Some(0.0123),
            pass_at_k: 0.75,
            cons_at_k: None,
            cons_at_k_se: None,
            completion_len_tokens_mean: 63.25,
        };
        let text = shown(&found);
        assert!(text.contains("pass@1    50.00 % ± 1.23\n"), "{text}");
        assert!(text.contains("problems  1,200\n"), "{text}");
        assert!(text.contains("cons@16   no answers to compare\n"), "{text}");
    }
}
