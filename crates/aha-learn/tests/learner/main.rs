//! Steps of whole models, by kind of what is learned.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

mod adapters;
mod critic;
mod distill;
mod dpo;
mod steps;

use std::path::Path;
use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::random::Philox;
use aha_compute::{Device, Dtype};
use aha_learn::learner::StepSettings;
use aha_model::Model;

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
