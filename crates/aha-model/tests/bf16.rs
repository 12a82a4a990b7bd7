//! How far bf16 takes log-probs from f32, beside how far it takes those of PyTorch.
//!
//! `torch_bf16.json` has what transformers computes with weights and activations in bf16
//! (`ops/gen-bf16-fixture.py` writes it); the fixtures of the models have what it computes in f32. Both
//! distances are from the latter. PyTorch rounds the residual stream and the logits to bf16, which we keep in
//! f32, so we must be nearer: in the mean and at worst, without an allowance. `-- --nocapture` shows both.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

mod common;

use std::path::{Path, PathBuf};

use aha_compute::simd::Isa;
use aha_compute::{Device, Dtype};
use aha_model::Model;
use common::fixture;
use serde_json::Value;

const TINY: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];
const SMOLLM2: &str = "smollm2_135m";
/// The sequences of each fixture that have log-probs.
const KEYS: [&str; 3] = ["len200", "len64", "len7"];
/// Log-probs of those sequences.
const LOGP_COUNT: usize = 199 + 63 + 6;

#[test]
fn bf16_moves_log_probs_of_tiny_models_less_than_it_moves_those_of_torch() {
    for name in TINY {
        compare(name, &fixture(name), &fixture(name).join("fixture.json"));
    }
}

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn bf16_moves_log_probs_of_smollm2_less_than_it_moves_those_of_torch() {
    let gguf: PathBuf =
        std::env::var_os("AHA_SMOLLM2").expect("AHA_SMOLLM2 names the GGUF file").into();
    compare(SMOLLM2, &gguf, &fixture("smollm2_135m.json"));
}

/// Distances of log-probs, in nats.
struct Distances {
    mean: f64,
    p99: f64,
    max: f64,
}

impl Distances {
    fn between(a: &[f64], b: &[f64]) -> Distances {
        assert_eq!((a.len(), b.len()), (LOGP_COUNT, LOGP_COUNT));
        let mut all: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        assert!(all.iter().all(|distance| distance.is_finite()));
        all.sort_by(f64::total_cmp);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        Distances { mean, p99: all[all.len() * 99 / 100], max: all[all.len() - 1] }
    }
}

impl std::fmt::Display for Distances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mean {:.2e}, p99 {:.2e}, max {:.2e}", self.mean, self.p99, self.max)
    }
}

/// Holds a model's distance against PyTorch's on every instruction set, whose bits agree.
fn compare(name: &str, model: &Path, reference: &Path) {
    let (reference, torch) = (json(reference), json(&fixture("torch_bf16.json")));
    let (sequences, torch) = (&reference["sequences"], &torch["models"][name]["sequences"]);
    let of = |sequences: &Value, kind: &str| -> Vec<f64> {
        KEYS.iter().flat_map(|key| floats(&sequences[key][kind])).collect()
    };
    let exact = of(sequences, "next_logprobs_f32");
    let theirs = Distances::between(&of(torch, "bf16"), &exact);
    println!("{name} torch: {theirs}");
    let ids: Vec<Vec<u32>> = KEYS.iter().map(|key| ids(&sequences[key]["ids"])).collect();
    let views: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut first: Option<Vec<f64>> = None;
    for isa in Isa::available() {
        let device = Device::cpu_with(2, isa).with_dtype(Dtype::Bf16);
        let found = Model::load(model, &device).unwrap().log_probs(&views).unwrap().concat();
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let ours = Distances::between(&found, &exact);
        println!("{name} {isa}: {ours}");
        assert!(ours.mean <= theirs.mean, "{name} {isa}: {ours}, torch {theirs}");
        assert!(ours.p99 <= theirs.p99, "{name} {isa}: {ours}, torch {theirs}");
        assert!(ours.max <= theirs.max, "{name} {isa}: {ours}, torch {theirs}");
        assert!(ours.max > 0.0, "{name} {isa}: this is not bf16");
        assert!(*first.get_or_insert_with(|| found.clone()) == found, "{name} {isa}: other bits");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}
