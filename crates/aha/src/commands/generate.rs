//! `aha generate`: completions of one prompt.

use std::sync::atomic::AtomicBool;

use aha_flow::generate::{address, sampler, stage_random};
use aha_flow::models::{self, Loaded};
use aha_flow::pipeline::{Run, Sampling, Template};
use aha_flow::prompts::{self, Prompter};
use aha_sample::{Completion, Request};
use serde::Serialize;

use super::shared::{self, Drawing, ModelArgs, Precision, at_least_one, completion_count};
use crate::screen::{self, Screen};
use crate::text;

/// The flags of `aha generate`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    drawing: Drawing,
    /// The prompt.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// How the prompt becomes the model's input: raw, chat, r1-zero, or a text with {prompt} in it.
    #[arg(long, default_value = "raw", value_parser = shared::template)]
    template: Template,
    /// Completions to draw.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = completion_count())]
    n: u32,
    /// Logits are divided by it before the softmax; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this share; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Number of likeliest tokens to draw from; 0 keeps all.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    top_k: u32,
    /// Tokens of a completion, at most.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one())]
    #[arg(allow_negative_numbers = true)]
    max_tokens: u32,
    /// A text that ends a completion. Can be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seed of every draw: the same seed gives the same completions.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Print tokens and log-probs too, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Generated<'a> {
    prompt: &'a str,
    prompt_token_ids: &'a [u32],
    completions: Vec<Row<'a>>,
}

/// A completion, under the names of the table `rollouts`.
#[derive(Serialize)]
struct Row<'a> {
    sample_idx: u32,
    completion: String,
    completion_token_ids: &'a [u32],
    completion_logprobs: Vec<text::Number<f32>>,
    completion_len_tokens: usize,
    finish_reason: &'static str,
}

/// Draws the completions and prints them.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        weights: args.drawing.weights.into(),
        ..Sampling::default()
    };
    shared::check_sampling(&sampling)?;
    let loaded =
        models::load(&args.model.path()?, &args.model.device().with_dtype(args.precision.dtype))?;
    if args.template == Template::Raw && loaded.tokenizer.chat_template().is_some() {
        tracing::info!("The model has a chat template, which `--template chat` uses.");
    }
    let prompt_ids = Prompter::new(&loaded.tokenizer, &args.template)?.prompt_ids(&args.prompt)?;
    let completions = draw(args, &sampling, &loaded, &prompt_ids, screen)?;
    let rows = completions.iter().map(|completion| {
        Ok(Row {
            sample_idx: completion.sample_idx,
            completion: loaded.tokenizer.decode(&completion.token_ids, true)?,
            completion_token_ids: &completion.token_ids,
            completion_logprobs: text::numbers(&completion.logprobs),
            completion_len_tokens: completion.token_ids.len(),
            finish_reason: completion.finish_reason.as_str(),
        })
    });
    let completions = rows.collect::<anyhow::Result<Vec<_>>>()?;
    if !args.json {
        return Ok(screen::print(shown(&completions))?);
    }
    let (prompt, prompt_token_ids) = (args.prompt.as_str(), prompt_ids.as_slice());
    screen::print_json(&Generated { prompt, prompt_token_ids, completions })
}

/// The completions in the order of their samples.
fn draw(
    args: &Args,
    sampling: &Sampling,
    loaded: &Loaded,
    prompt_ids: &[u32],
    screen: &Screen,
) -> anyhow::Result<Vec<Completion>> {
    let address = address(&args.prompt);
    let request = Request { prompt_ids: prompt_ids.into(), address, samples: 0..args.n };
    let sampling = prompts::sampling(sampling, &loaded.model, &loaded.tokenizer);
    let random = stage_random(args.seed, "generate");
    let bar = screen.bar(u64::from(args.n));
    bar.set_prefix("completions");
    let mut completions = Vec::new();
    let mut sampler = sampler(&loaded.model, &loaded.tokenizer, &Run::default());
    // A signal ends this command as it is: nothing is lost.
    let never = AtomicBool::new(false);
    sampler.run(&loaded.model, &[request], &sampling, random, &never, &mut |completion| {
        completions.push(completion);
        bar.inc(1);
        true
    })?;
    bar.finish_and_clear();
    completions.sort_by_key(|completion| completion.sample_idx);
    Ok(completions)
}

fn shown(rows: &[Row<'_>]) -> String {
    let text = |row: &Row<'_>| text::lines(&row.completion) + "\n";
    if let [row] = rows {
        return text(row);
    }
    let title = |row: &Row<'_>| {
        let (idx, len) = (row.sample_idx, row.completion_len_tokens);
        format!("--- completion {idx}: {len} tokens, {}\n", row.finish_reason)
    };
    rows.iter().map(|row| title(row) + &text(row)).collect()
}
