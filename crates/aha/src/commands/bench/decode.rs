//! Sampling at temperature 1, every completion as long as the others: none ends by itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use aha_compute::WeightForm;
use aha_compute::ops::attention::{KvCache, PAGE_LEN};
use aha_flow::models::Loaded;
use aha_model::{Model, Tokenizer};
use aha_sample::{Completion, Limits, Request, Sampler, Sampling};
use anyhow::ensure;

use super::job::{Job, Sampled, Work};
use super::limits::weight_bytes;
use super::place::Place;
use super::row::{Row, median_of};
use super::{Bench, Kind, Weights, subject};

/// Sequences of the rows of a CUDA device, each with a prompt of its own.
const ON_CUDA: [usize; 4] = [1, 16, 64, 256];

/// A row for all sequences together, and one for a single sequence; on a CUDA device for several numbers of them.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let all = sampled(bench);
    let one = Sampled { prompts: 1, samples: 1, ..all };
    let mut counts = match bench.args.device {
        Place::Cpu => vec![all],
        Place::Cuda(_) => ON_CUDA.map(|prompts| Sampled { prompts, ..one }).to_vec(),
    };
    if bench.args.device == Place::Cpu && all.sequences() > 1 {
        counts.push(one);
    }
    let of = |sampled: Sampled| {
        let name = name(sampled) + suffix(bench.args.weights);
        bench.job(Kind::Decode, &name, Work::Decode(sampled))
    };
    counts.into_iter().map(of).collect()
}

/// What a row's name says of the weights.
pub fn suffix(weights: Weights) -> &'static str {
    match weights {
        Weights::Same => "",
        Weights::Int8 => ", int8",
    }
}

/// What the flags ask for.
pub fn sampled(bench: &Bench<'_>) -> Sampled {
    Sampled {
        prompts: bench.args.prompts as usize,
        samples: bench.args.samples as usize,
        prompt_tokens: bench.args.prompt_tokens as usize,
        new_tokens: bench.args.new_tokens as usize,
    }
}

/// Its name in tables.
pub fn name(sampled: Sampled) -> String {
    let Sampled { prompts, samples, prompt_tokens, new_tokens } = sampled;
    format!("{prompts}x{samples}, {prompt_tokens}+{new_tokens}")
}

/// Draws completions of random prompts, again and again.
pub struct Drawing {
    sampler: Sampler,
    requests: Vec<Request>,
}

impl Drawing {
    /// With a cache that is just large enough for all sequences at once.
    pub fn new(model: &Model, tokenizer: &Arc<Tokenizer>, sampled: Sampled) -> Drawing {
        let pages = (sampled.prompt_tokens + sampled.new_tokens).div_ceil(PAGE_LEN) + 1;
        let page_count = sampled.sequences() * pages
            + sampled.prompts * sampled.prompt_tokens.div_ceil(PAGE_LEN)
            + 1;
        let layer_count = model.config().layer_count;
        let page_bytes =
            KvCache::bytes_per_page(model.device().kv_dtype(), layer_count, model.attention_dims());
        let limits = Limits {
            sequences_max: sampled.sequences(),
            cache_bytes: page_count * page_bytes,
            ..Limits::default()
        };
        let prompts = subject::text(model.config(), sampled.prompts, sampled.prompt_tokens);
        let request = |(idx, ids): (usize, Vec<u32>)| Request {
            prompt_ids: ids.into(),
            address: idx as u64,
            samples: 0..sampled.samples as u32,
        };
        Drawing {
            sampler: Sampler::new(model, Arc::clone(tokenizer), limits),
            requests: prompts.into_iter().enumerate().map(request).collect(),
        }
    }

    /// The prompts.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// All completions of `new_tokens` each, in the order of prompts and samples.
    pub fn run(
        &mut self,
        model: &Model,
        new_tokens: usize,
        weights: WeightForm,
    ) -> anyhow::Result<Vec<Completion>> {
        let sampling = Sampling { max_tokens: new_tokens, weights, ..Sampling::default() };
        let mut completions = Vec::new();
        let never = AtomicBool::new(false);
        let (requests, random) = (&self.requests, subject::random("draws"));
        self.sampler.run(model, requests, &sampling, random, &never, &mut |completion| {
            completions.push(completion);
            true
        })?;
        completions.sort_by_key(|completion| (completion.request_idx, completion.sample_idx));
        let is_whole = completions.iter().all(|c| c.token_ids.len() == new_tokens);
        ensure!(is_whole, "a completion ended before its time");
        Ok(completions)
    }
}

/// How long a run is repeated, if it takes less.
const TURN: Duration = Duration::from_millis(100);

/// Time until every sequence has its first token, and until all have their last: two runs, each from scratch.
struct Times {
    first: f64,
    whole: f64,
}

/// Measures sampling.
pub fn decode(job: &Job, sampled: Sampled) -> anyhow::Result<Row> {
    let weights = job.weights.form();
    let open = job.open()?;
    let Loaded { model, tokenizer } = job.subject.open(&open.device)?;
    let mut drawing = Drawing::new(&model, &tokenizer, sampled);
    let mut once = |new_tokens: usize| {
        let begun = Instant::now();
        drawing.run(&model, new_tokens, weights)?;
        anyhow::Ok(begun.elapsed().as_secs_f64())
    };
    // Weights are packed when they are first used.
    once(2)?;
    let times = job.repeat(|| best_of_turn(&mut once, sampled.new_tokens))?;
    let whole: Vec<f64> = times.iter().map(|times| times.whole).collect();
    let median = median_of(whole.clone());
    let first = median_of(times.iter().map(|times| times.first).collect());
    let rest = median_of(times.iter().map(|times| times.whole - times.first).collect());
    let mut row = Row::new(job.kind, &job.name, open.device.threads());
    row.add("tokens_per_second", sampled.tokens() as f64 / median);
    let rest_tokens = sampled.tokens() - sampled.sequences();
    row.add("decode_tokens_per_second", rest_tokens as f64 / rest);
    row.add("first_token_seconds", first);
    let step_bytes = weight_bytes(model.config(), model.device().dtype(), weights);
    let bytes = step_bytes * (sampled.new_tokens - 1) as f64;
    row.add("weights_gb_per_second", bytes / rest / 1e9);
    let read = (step_bytes + cache_bytes(&model, sampled)) * (sampled.new_tokens - 1) as f64;
    row.add("read_gb_per_second", read / rest / 1e9);
    row.add_seconds(&whole);
    open.add_memory(&mut row);
    row.profile = job.profile(|| once(sampled.new_tokens))?;
    Ok(row)
}

/// Bytes of keys and values that a step reads on the average: those of all sequences, half of the new ones among them.
fn cache_bytes(model: &Model, sampled: Sampled) -> f64 {
    let config = model.config();
    let page = KvCache::bytes_per_page(
        model.device().kv_dtype(),
        config.layer_count,
        model.attention_dims(),
    );
    let tokens = sampled.prompt_tokens as f64 + sampled.new_tokens as f64 / 2.0;
    page as f64 / PAGE_LEN as f64 * tokens * sampled.sequences() as f64
}

/// Of runs that are shorter than a turn the best of several, in turn, or their scatter would exceed the difference.
fn best_of_turn(
    mut once: impl FnMut(usize) -> anyhow::Result<f64>,
    new_tokens: usize,
) -> anyhow::Result<Times> {
    let turn = Instant::now();
    let mut best = Times { first: once(1)?, whole: once(new_tokens)? };
    while turn.elapsed() < TURN {
        best.first = best.first.min(once(1)?);
        best.whole = best.whole.min(once(new_tokens)?);
    }
    Ok(best)
}
