//! `aha generate`: completions of one prompt; all of them, the majority's, or the best.

use std::sync::atomic::AtomicBool;

use aha_compute::WeightForm;
use aha_flow::evaluate::answers::{Answers, Votes};
use aha_flow::evaluate::{self, Ranking};
use aha_flow::generate::{address, sampler, stage_random};
use aha_flow::lend::Lender;
use aha_flow::models::{self, Loaded};
use aha_flow::pipeline::{Reward, Run, Sampling, Template, Thinking};
use aha_flow::planning;
use aha_flow::prompts::{self, Prompter};
use aha_reward::{Composite, Kind, OnNull, Spec, Written};
use aha_sample::{Completion, FinishReason, Request};
use serde::Serialize;

use super::shared::{
    self, Drawing, ModelArgs, Precision, ThinkingArgs, at_least_one, completion_count,
};
use crate::report::{failed, misuse};
use crate::screen::{self, Screen};
use crate::text;

/// The name of the draws.
const STAGE: &str = "generate";

/// The flags of `aha generate`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    thinking: ThinkingArgs,
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
    /// Show the answer that most completions give, and the first of them (majority vote). Answers are read and
    /// compared as by the reward of that name, or of that table of keys; math if none is given. With --rank-by, votes
    /// weigh what it says of their completions.
    #[arg(long, value_name = "KIND", value_parser = Written::parse)]
    #[arg(num_args = 0..=1, default_missing_value = "math")]
    vote: Option<Written>,
    /// Show the completion that a reward ranks first (best-of-n): the name of a kind, or a table of its keys as in a
    /// pipeline. A model that it asks is a directory, a .gguf file, or hf://owner/name in the local cache. With a
    /// negative `weight` the lowest score is the best.
    #[arg(long, value_name = "KIND", value_parser = Written::parse)]
    rank_by: Option<Written>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    vote: Option<Won>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<Best>,
}

/// What a majority vote gave.
#[derive(Serialize)]
struct Won {
    /// The answer; none where no completion has one.
    answer: Option<String>,
    /// Completions that give it.
    votes: usize,
    /// Completions that give an answer.
    voters: usize,
    /// The weight of its votes, where they are weighted.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
    /// The first completion that gives it.
    sample_idx: Option<u32>,
}

/// What ranks first.
#[derive(Serialize)]
struct Best {
    rank_by: String,
    score: f64,
    sample_idx: u32,
}

/// A completion, under the names of the table `rollouts`.
#[derive(Serialize)]
struct Row<'a> {
    sample_idx: u32,
    completion: String,
    completion_token_ids: &'a [u32],
    completion_logprobs: Vec<text::Number<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_forced_mask: Option<&'a [bool]>,
    completion_len_tokens: usize,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
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
    shared::check_sampling(&sampling, args.thinking.thinking.as_ref())?;
    let chooser = Chooser::new(args)?;
    let device = args.model.device(&args.precision, args.drawing.weights)?;
    let loaded = models::load(&args.model.path()?, &device)?;
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
            completion_forced_mask: completion.forced_mask.as_deref(),
            completion_len_tokens: completion.token_ids.len(),
            finish_reason: completion.finish_reason.as_str(),
            answer: None,
            score: None,
        })
    });
    let mut rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    chooser.score(args, &mut rows)?;
    let (vote, best) = (chooser.vote(&mut rows), chooser.best(&rows));
    if !args.json {
        return Ok(screen::print(shown(&rows, vote.as_ref(), best.as_ref()))?);
    }
    let (prompt, prompt_token_ids) = (args.prompt.as_str(), prompt_ids.as_slice());
    screen::print_json(&Generated { prompt, prompt_token_ids, completions: rows, vote, best })
}

/// What is chosen of the completions.
struct Chooser {
    answers: Option<Answers>,
    ranker: Option<Reward>,
}

impl Chooser {
    fn new(args: &Args) -> anyhow::Result<Chooser> {
        let answers = args.vote.as_ref().map(|written| {
            shared::verifier(&written.spec)?;
            Answers::of(&written.spec).ok_or_else(|| {
                let kinds =
                    Kind::ALL.iter().filter(|kind| Answers::of(&Spec::new(**kind)).is_some());
                let kinds: Vec<&str> = kinds.map(|kind| kind.name()).collect();
                misuse(
                    format!("the reward `{}` reads no answer to vote with", written.spec.kind()),
                    format!("vote with one of {}", kinds.join(", ")),
                )
            })
        });
        let ranker = args.rank_by.clone().map(shared::ranker).transpose()?;
        if let Some(column) = ranker.as_ref().and_then(Reward::needs) {
            return Err(misuse(
                format!(
                    "--rank-by compares with the column `{column}`, which a prompt alone has not"
                ),
                "rank by a reward that looks at the completion alone, such as model, judge or format",
            ));
        }
        Ok(Chooser { answers: answers.transpose()?, ranker })
    }

    /// Scores the completions, where something ranks.
    fn score(&self, args: &Args, rows: &mut [Row<'_>]) -> anyhow::Result<()> {
        let Some(reward) = &self.ranker else { return Ok(()) };
        let specs = std::slice::from_ref(&reward.0);
        let run = Run { seed: args.seed, ..args.precision.run(args.model.threads) };
        let device = shared::opened(&run, WeightForm::Same)?;
        let lender = Lender::by_address(STAGE, specs, (&run, &device), &planning::places())?;
        let composite = Composite::new(specs, OnNull::Drop, None, &lender).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(|(_, p)| p.to_string()).collect();
            misuse(format!("--rank-by: {}", problems.join("; ")), "see `aha generate --help`")
        })?;
        let samples: Vec<_> = rows
            .iter()
            .map(|row| aha_reward::Sample {
                prompt: &args.prompt,
                completion: &row.completion,
                completion_len_tokens: row.completion_len_tokens,
                is_truncated: row.finish_reason == FinishReason::Length.as_str(),
                ..aha_reward::Sample::default()
            })
            .collect();
        let scored = composite.score_all(&samples);
        for (row, scored) in rows.iter_mut().zip(&scored) {
            let score = scored.parts.first().copied().flatten();
            row.score = Ranking::of(reward).rank(score.map(f64::from));
            if let (None, Some(error)) = (row.score, &scored.error) {
                let idx = row.sample_idx;
                return Err(failed(
                    format!("completion {idx} can't be scored: {error}"),
                    "rank by another reward, or set its `on_null` to \"zero\"",
                ));
            }
        }
        Ok(())
    }

    /// The answer that wins the vote. Each row gets its own.
    fn vote(&self, rows: &mut [Row<'_>]) -> Option<Won> {
        let answers = self.answers.as_ref()?;
        for row in rows.iter_mut() {
            row.answer = answers.find(&row.completion).map(str::to_owned);
        }
        let samples: Vec<_> = rows
            .iter()
            .map(|row| evaluate::Sample {
                is_right: None,
                rank: row.score,
                answer: row.answer.clone(),
                completion_len_tokens: row.completion_len_tokens as u64,
                is_truncated: row.finish_reason == FinishReason::Length.as_str(),
            })
            .collect();
        let scores: Option<Vec<f64>> = rows.iter().map(|row| row.score).collect();
        let votes = Votes::of(&samples, answers.equivalence());
        let voters = rows.iter().filter(|row| row.answer.is_some()).count();
        let Some((idx, is_for)) = votes.winner(scores.as_deref()) else {
            return Some(Won { answer: None, votes: 0, voters, weight: None, sample_idx: None });
        };
        let of_winner = rows.iter().zip(&is_for).filter(|(_, is_for)| **is_for);
        let weights = of_winner.clone().filter_map(|(row, _)| row.score);
        Some(Won {
            answer: rows[idx].answer.clone(),
            votes: of_winner.count(),
            voters,
            weight: scores.is_some().then(|| weights.sum()),
            sample_idx: Some(rows[idx].sample_idx),
        })
    }

    /// The completion that ranks first; of equals the one that came first.
    fn best(&self, rows: &[Row<'_>]) -> Option<Best> {
        let rank_by = self.ranker.as_ref()?.name().to_owned();
        let score = rows.iter().filter_map(|row| row.score).max_by(f64::total_cmp)?;
        let best = rows.iter().find(|row| row.score == Some(score))?;
        Some(Best { rank_by, score, sample_idx: best.sample_idx })
    }
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
    let sampling = aha_sample::Sampling {
        thinking: args.thinking.thinking.as_ref().map(Thinking::resolved),
        ..prompts::sampling(sampling, &loaded.model, &loaded.tokenizer)
    };
    let random = stage_random(args.seed, STAGE);
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

/// The completion that was chosen, where one was; else all.
fn shown(rows: &[Row<'_>], vote: Option<&Won>, best: Option<&Best>) -> String {
    let text = |row: &Row<'_>| text::lines(&row.completion) + "\n";
    let (title, chosen) = match (vote, best) {
        (Some(won), _) => (won.shown(rows.len()), won.sample_idx),
        (None, Some(best)) => (best.shown(rows.len()), Some(best.sample_idx)),
        (None, None) => (String::new(), None),
    };
    let chosen = chosen.and_then(|idx| rows.iter().find(|row| row.sample_idx == idx));
    if !title.is_empty() {
        let completion = chosen.map(|row| row.title() + &text(row));
        return title + &completion.unwrap_or_default();
    }
    if let [row] = rows {
        return text(row);
    }
    rows.iter().map(|row| row.title() + &text(row)).collect()
}

impl Row<'_> {
    fn title(&self) -> String {
        let (idx, len) = (self.sample_idx, self.completion_len_tokens);
        format!("--- completion {idx}: {len} tokens, {}\n", self.finish_reason)
    }
}

impl Won {
    fn shown(&self, samples: usize) -> String {
        let Some(answer) = &self.answer else {
            return format!("answer    none in {samples} completions\n");
        };
        let weight = self.weight.map(|weight| format!(", of the weight {weight:.4}"));
        format!(
            "answer    {}\nvotes     {} of {} with an answer, {samples} in all{}\n",
            text::one_line(answer),
            self.votes,
            self.voters,
            weight.unwrap_or_default()
        )
    }
}

impl Best {
    fn shown(&self, samples: usize) -> String {
        format!("best      of {samples} by {}: {:.4}\n", self.rank_by, self.score)
    }
}
