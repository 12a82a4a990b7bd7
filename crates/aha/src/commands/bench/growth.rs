//! How tokens per second change with the length of the context, the number of sequences and the size of the
//! model, each by itself. Nothing should grow faster than its arithmetic: then shares of the peak stay.

use std::cell::OnceCell;

use aha_model::Config;

use super::decode::suffix;
use super::job::{Batch, Sampled, Work};
use super::limits::Limits;
use super::needs::Needs;
use super::row::Row;
use super::subject::{Shape, Subject};
use super::{Bench, Kind, Sequences};

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
    let limits = bench.limits();
    let of = Bench { subject, open: bench.open.clone(), limits: OnceCell::new(), ..*bench };
    let name = &format!("{name}{}", suffix(bench.args.weights));
    let mut row = Row::new(Kind::Growth, name, bench.device().threads());
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
    needs.exceeded().map(|why| format!("left out: {why}"))
}
