//! Steps of whole models, by kind of what is learned.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

mod adapters;
mod critic;
mod distill;
mod dpo;
mod memory_on_cuda;
mod on_cuda;
mod steps;
mod team;

use std::path::Path;
use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::ops::lm_head;
use aha_compute::random::Philox;
use aha_compute::{Device, Dtype, Tape, Tensor};
use aha_learn::learner::StepSettings;
use aha_model::{Batch, Model};

/// A model of the fixtures, in f32.
fn model(name: &str, device: &Device) -> Arc<Model> {
    Arc::new(model_as(name, device, Dtype::F32))
}

fn model_as(name: &str, device: &Device, dtype: Dtype) -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    Model::load(&dir, &device.clone().with_dtype(dtype)).unwrap()
}

fn settings(micro_batch_tokens: usize, activation_checkpointing: bool) -> StepSettings {
    StepSettings {
        hyper: Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        grad_norm_max: Some(1.0),
        micro_batch_tokens,
        activation_checkpointing,
    }
}

/// Tokens of the fixtures' vocabulary.
fn ids(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| 3 + (Philox::new(seed).bits(&[i]) % 250) as u32).collect()
}

/// Log-probs of all tokens in the place of each of a completion's, in f64.
fn distributions(
    model: &Model,
    prompt: &[u32],
    completion: &[u32],
    temperature: f32,
) -> Vec<Vec<f64>> {
    let sequence = [prompt, completion].concat();
    let mut tape = Tape::inference(model.device(), model.params());
    let hidden = model.hidden(&mut tape, Batch::packed(&sequence, [sequence.len()]), false);
    let rows = prompt.len() - 1..sequence.len() - 1;
    let hidden = tape.select_rows(&hidden, &rows.collect());
    let size = model.config().vocab_size;
    let mut logits = Tensor::zeros(model.device(), &[completion.len(), size]);
    let head = model.params().packed(model.head());
    lm_head::logits(&mut logits, hidden.value(), head, 1.0 / temperature);
    let log_probs = |row: &[f32]| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        row.iter().map(|&l| f64::from(l) - sum.ln()).collect()
    };
    logits.as_slice().chunks_exact(size).map(log_probs).collect()
}
