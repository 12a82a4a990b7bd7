//! How tokens per second change with the length of the context, the number of sequences and the size of the
//! model, each by itself. Nothing should grow faster than its arithmetic: then shares of the peak stay.

use aha_model::Config;

use super::job::{Batch, Sampled, Work};
use super::limits::{Limits, forward_flop, train_flop};
use super::row::Row;
use super::subject::{Shape, Subject};
use super::{Bench, Kind, Sequences};
use crate::text;

/// Tokens of one sequence.
const CONTEXTS: [usize; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
/// Sequences of [`SHORT_LEN`] tokens.
const COUNTS: [usize; 5] = [1, 4, 16, 64, 256];
const SHORT_LEN: usize = 128;
/// Models, each with [`MODEL_BATCH`].
const SHAPES: [Shape; 5] =
    [Shape::M1, Shape::M10, Shape::Smollm2M135, Shape::Smollm2M360, Shape::LlamaB1];
const MODEL_BATCH: Sequences = Sequences { count: 8, len_tokens: SHORT_LEN };
/// Tokens drawn for each sequence, the last of its context.
const NEW_TOKENS: usize = 16;
/// Bytes that a process needs beside what is counted here.
const PROGRAM_BYTES: f64 = 200e6;

/// A row for each length, count and size. What would need more memory than there is, or more time than
/// `--seconds-max`, is left out, and its row says so.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let contexts = CONTEXTS.map(|len_tokens| {
        let sequences = Sequences { count: 1, len_tokens };
        (format!("context {len_tokens}"), bench.subject.clone(), sequences)
    });
    let counts = COUNTS.map(|count| {
        let sequences = Sequences { count, len_tokens: SHORT_LEN };
        (format!("sequences {count}"), bench.subject.clone(), sequences)
    });
    let shapes = SHAPES
        .map(|shape| (format!("model {}", shape.name()), Subject::Random(shape), MODEL_BATCH));
    let mut rows = Vec::new();
    for (name, subject, sequences) in contexts.into_iter().chain(counts).chain(shapes) {
        if name.contains(&bench.args.filter) {
            rows.push(row(bench, &name, subject, sequences)?);
        }
    }
    Ok(rows)
}

fn row(
    bench: &Bench<'_>,
    name: &str,
    subject: Subject,
    sequences: Sequences,
) -> anyhow::Result<Row> {
    let config = subject.config()?;
    let limits = Limits::take(&bench.device);
    let of = Bench { subject, device: bench.device.clone(), ..*bench };
    let mut row = Row::new(Kind::Growth, name, bench.device.threads());
    row.add("param_count", config.param_count() as f64);
    let mut problems = Vec::new();
    for (cell, work) in cells(bench, sequences) {
        if let Some(problem) = refused(bench, &config, &work, &limits) {
            problems.push(format!("{cell} {problem}"));
            continue;
        }
        match of.job(Kind::Growth, &format!("{name}, {cell}"), work) {
            Ok(found) => {
                for figure in ["tokens_per_second", "peak_share", "read_share", "peak_rss_bytes"] {
                    if let Some(value) = found.get(figure) {
                        row.add(&format!("{cell}_{figure}"), value);
                    }
                }
                problems.extend(found.problem.map(|problem| format!("{cell} {problem}")));
            }
            Err(error) => problems.push(format!("{cell}: {error}")),
        }
    }
    row.problem = Some(problems.join("; ")).filter(|text| !text.is_empty());
    Ok(row)
}

/// What is measured of sequences of one length.
fn cells(bench: &Bench<'_>, sequences: Sequences) -> [(&'static str, Work); 3] {
    let sampled = Sampled {
        prompts: sequences.count,
        samples: 1,
        prompt_tokens: sequences.len_tokens - NEW_TOKENS,
        new_tokens: NEW_TOKENS,
    };
    let micro_batch_tokens = bench.args.micro_batch_tokens as usize;
    let checkpointing = bench.args.activation_checkpointing;
    let batch = Batch { sequences, micro_batch_tokens, checkpointing };
    [
        ("decode", Work::Decode(sampled)),
        ("logprob", Work::Logprob(batch)),
        ("train", Work::Train(batch)),
    ]
}

/// Why there is no use in trying.
fn refused(bench: &Bench<'_>, config: &Config, work: &Work, limits: &Limits) -> Option<String> {
    let needs = Needs::of(config, work);
    let positions_max = config.max_position_embeddings;
    if needs.len_tokens > positions_max {
        return Some(format!("left out: the model has {positions_max} positions"));
    }
    let seconds = needs.flop / limits.flop_per_second;
    if seconds > f64::from(bench.args.seconds_max) {
        return Some(format!("left out: takes {seconds:.0} s even at the peak"));
    }
    let has = aha_flow::machine::memory();
    let has_bytes = has.available_bytes.into_iter().chain(has.limit_bytes).min()?;
    (needs.bytes > has_bytes as f64).then(|| {
        let [needs, has] = [needs.bytes as u64, has_bytes].map(text::size);
        format!("left out: needs {needs}, there are {has}")
    })
}

/// What a cell takes.
struct Needs {
    /// Tokens of its longest sequence.
    len_tokens: usize,
    flop: f64,
    /// About, by the parts that grow: weights (and packed ones, and in training gradients and moments),
    /// activations, keys and values.
    bytes: f64,
}

impl Needs {
    fn of(config: &Config, work: &Work) -> Needs {
        let params = config.param_count() as f64;
        let (layers, hidden) = (config.layer_count as f64, config.hidden_size as f64);
        let query = (config.head_count * config.head_dim) as f64;
        let key = (config.kv_head_count * config.head_dim) as f64;
        let inner = 2.0 * query + 2.0 * key + 3.0 * config.intermediate_size as f64;
        let (sequences, flop, floats) = match work {
            Work::Decode(sampled) => {
                let len_tokens = sampled.prompt_tokens + sampled.new_tokens;
                let sequences = Sequences { count: sampled.sequences(), len_tokens };
                let cache = sequences.tokens() as f64 * layers * 2.0 * key;
                (sequences, forward_flop(config, sequences), 2.0 * params + cache)
            }
            Work::Logprob(batch) => {
                let flop = forward_flop(config, batch.sequences);
                let activations = micro_batch(batch) * (6.0 * hidden + inner);
                (batch.sequences, flop, 2.0 * params + activations)
            }
            Work::Train(batch) => {
                let layer = 4.0 * hidden + inner;
                let kept = match batch.checkpointing {
                    true => 2.0 * layers * hidden + layer,
                    false => layers * layer,
                };
                let backward = 7.0 * hidden + 2.0 * config.intermediate_size as f64;
                let lookups = (config.vocab_size * config.hidden_size) as f64;
                let floats = 5.0 * params + lookups + micro_batch(batch) * (kept + backward);
                (batch.sequences, train_flop(config, batch.sequences), floats)
            }
            Work::Grpo { .. } => unreachable!("growth has no cell of this kind"),
        };
        let bytes = PROGRAM_BYTES + floats * size_of::<f32>() as f64;
        Needs { len_tokens: sequences.len_tokens, flop, bytes }
    }
}

/// Tokens that are in memory at once: a sequence always is.
fn micro_batch(batch: &Batch) -> f64 {
    let most = batch.micro_batch_tokens.max(batch.sequences.len_tokens);
    most.min(batch.sequences.tokens()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_a_model_of_a_billion_parameters_needs_more_than_twenty_gib() {
        let batch =
            Batch { sequences: MODEL_BATCH, micro_batch_tokens: 4096, checkpointing: false };
        let needs = |shape: Shape, work| Needs::of(&shape.config(), &work);
        let gib = f64::from(1 << 30);
        let large = needs(Shape::LlamaB1, Work::Train(batch));
        assert!((23.0..30.0).contains(&(large.bytes / gib)), "{}", large.bytes);
        let sampled =
            Sampled { prompts: 8, samples: 1, prompt_tokens: 112, new_tokens: NEW_TOKENS };
        let decoded = needs(Shape::LlamaB1, Work::Decode(sampled));
        assert!((9.0..10.5).contains(&(decoded.bytes / gib)), "{}", decoded.bytes);
        let small = needs(Shape::M1, Work::Train(batch));
        assert!(small.bytes < gib && small.flop < large.flop / 500.0);
    }
}
