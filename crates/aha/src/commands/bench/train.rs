//! A training step, and log-probs: whole sequences through the model.

use std::time::Instant;

use aha_compute::ops::adamw::Hyper;
use aha_learn::learner::{Example, Learner, StepSettings};
use aha_learn::packing::pack;
use anyhow::ensure;

use super::job::{Batch, Job, Work};
use super::limits::{forward_flop, train_flop};
use super::place::Open;
use super::row::{Row, median_of};
use super::{Bench, Kind, Sequences, subject};

/// A row for each shape.
pub fn rows(bench: &Bench<'_>, kind: Kind) -> anyhow::Result<Vec<Row>> {
    let of = |sequences: Sequences| {
        let batch = batch(bench, sequences);
        let work = match kind {
            Kind::Train => Work::Train(batch),
            _ => Work::Logprob(batch),
        };
        bench.job(kind, &sequences.to_string(), work)
    };
    bench.shapes().into_iter().map(of).collect()
}

/// What runs through the model, as the flags say.
pub fn batch(bench: &Bench<'_>, sequences: Sequences) -> Batch {
    Batch {
        sequences,
        micro_batch_tokens: bench.args.micro_batch_tokens as usize,
        checkpointing: bench.args.activation_checkpointing,
    }
}

/// Constants of AdamW that move random weights, but not far.
pub fn settings(micro_batch_tokens: usize, checkpointing: bool) -> StepSettings {
    let hyper = Hyper { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    StepSettings {
        hyper,
        grad_norm_max: None,
        micro_batch_tokens,
        activation_checkpointing: checkpointing,
    }
}

/// Measures steps of SFT, each token but the first of a sequence counted in the loss.
pub fn train(job: &Job, batch: Batch) -> anyhow::Result<Row> {
    let open = job.open()?;
    let model = job.subject.open(&open.device)?.model;
    let config = model.config().clone();
    // Held by the learner alone, the model is changed in place.
    let mut learner = Learner::new(model);
    let texts = subject::text(&config, batch.sequences.count, batch.sequences.len_tokens);
    let mask = vec![true; batch.sequences.len_tokens];
    let examples: Vec<Example<'_>> =
        texts.iter().map(|ids| Example { ids, loss_mask: &mask }).collect();
    let settings = settings(batch.micro_batch_tokens, batch.checkpointing);
    let mut step = || {
        let begun = Instant::now();
        let outcome = learner.sft_step(&examples, &settings)?;
        ensure!(outcome.applied, "a step's loss or gradient is not finite");
        open.wait()?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let seconds = job.repeat(&mut step)?;
    let mut row = row(job, &open, &seconds, batch.sequences, train_flop(&config, batch.sequences));
    row.profile = job.profile(&mut step)?;
    Ok(row)
}

/// Measures forward passes.
pub fn logprob(job: &Job, batch: Batch) -> anyhow::Result<Row> {
    let open = job.open()?;
    let model = job.subject.open(&open.device)?.model;
    let sequences = batch.sequences;
    let texts = subject::text(model.config(), sequences.count, sequences.len_tokens);
    let lens: Vec<usize> = texts.iter().map(Vec::len).collect();
    let run = || {
        let begun = Instant::now();
        for range in pack(&lens, batch.micro_batch_tokens) {
            let texts: Vec<&[u32]> = texts[range].iter().map(Vec::as_slice).collect();
            model.log_probs(&texts)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    let seconds = job.repeat(run)?;
    let mut row = row(job, &open, &seconds, sequences, forward_flop(model.config(), sequences));
    row.profile = job.profile(run)?;
    Ok(row)
}

fn row(job: &Job, open: &Open, seconds: &[f64], sequences: Sequences, flop: f64) -> Row {
    let mut row = Row::new(job.kind, &job.name, open.device.threads());
    let median = median_of(seconds.to_vec());
    row.add("tokens_per_second", sequences.tokens() as f64 / median);
    row.add("gflop_per_second", flop / median / 1e9);
    row.add_seconds(seconds);
    open.add_memory(&mut row);
    row
}
