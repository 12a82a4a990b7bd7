//! Log-probs, gradients and optimizer steps of whole models are those of transformers, torch and TRL 1.16.
//!
//! The fixtures are random models of four architectures. `fixture.json` has what torch computed in f32 and
//! f64; the two are a few 1e-6 apart, which is what two orders of summation may differ by.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::simd::Isa;
use aha_compute::{Device, Grads, Tape, Tensor};
use aha_learn::learner::{Example, Learner, StepSettings};
use aha_learn::objective::{Aggregation, Normaliser, Objective, SequenceTerms, loss};
use aha_learn::preset::Preset;
use aha_model::Model;
use aha_model::model::Batch;
use serde_json::Value;

const NAMES: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];

/// Bound of a log-prob's distance from torch's f64.
const LOGP_ABS: f64 = 2e-5;
/// Bound of a gradient tensor's L2 distance from torch's, as a share of its own norm.
const GRAD_REL: f64 = 2e-5;

fn dir(name: &str) -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name)
}

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir(name).join("fixture.json")).unwrap()).unwrap()
}

fn devices() -> Vec<Device> {
    Isa::available().into_iter().map(|isa| Device::cpu_with(2, isa)).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Gradients of a file, by the name of their weight.
fn gradients(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: safetensors::tensor::TensorView<'_>| {
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    file.tensors().into_iter().map(|(name, view)| (name, values(view))).collect()
}

fn l2(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn norm(tensor: &Tensor) -> f64 {
    l2(tensor.as_slice().iter().map(|&x| f64::from(x)))
}

/// Compares each weight's gradient with a file's.
fn assert_gradients(what: &str, model: &Model, grads: &Grads, want: &BTreeMap<String, Vec<f32>>) {
    let params = model.params();
    assert_eq!(params.ids().len(), want.len(), "{what}: weights");
    for id in params.ids() {
        let name = params.name(id);
        let want = &want[name];
        let got = grads.get(id).as_slice();
        let off = l2(got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let size = l2(want.iter().map(|&x| f64::from(x)));
        assert!(off <= GRAD_REL * size, "{what} {name}: off by {:e} of its norm", off / size);
    }
}

/// Compares the norm of each weight's gradient.
fn assert_norms(what: &str, model: &Model, grads: &Grads, want: &Value) {
    let params = model.params();
    for id in params.ids() {
        let (got, want) = (norm(grads.get(id)), want[params.name(id)].as_f64().unwrap());
        // A key bias shifts all scores of a query alike: its gradient is zero but for rounding.
        let tolerance = GRAD_REL * want + 2e-6;
        assert!((got - want).abs() <= tolerance, "{what} {}: {got} {want}", params.name(id));
    }
}

#[test]
fn log_probs_are_those_of_transformers() {
    for name in NAMES {
        let fixture = fixture(name);
        let sequences = fixture["sequences"].as_object().unwrap();
        let sequence_ids: Vec<Vec<u32>> = sequences.values().map(|s| ids(&s["ids"])).collect();
        let views: Vec<&[u32]> = sequence_ids.iter().map(Vec::as_slice).collect();
        let mut first: Option<Vec<Vec<f32>>> = None;
        for device in devices() {
            let model = Model::load(&dir(name), &device).unwrap();
            let got = model.log_probs(&views).unwrap();
            for (got, (key, sequence)) in got.iter().zip(sequences) {
                let want = floats(&sequence["next_logprobs_f64"]);
                assert_eq!(got.len(), want.len(), "{name} {key}");
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off <= LOGP_ABS, "{name} {key}[{i}]: {got} {want}");
                }
            }
            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{name} {device:?}");
        }
    }
}

/// A recorded pass over packed sequences, of which all tokens from the given ones on are wanted.
fn record<'m>(
    model: &'m Model,
    sequences: &[(Vec<u32>, usize)],
    inv_temperature: f32,
) -> (Tape<'m>, aha_compute::Var, aha_compute::Var) {
    let packed: Vec<u32> = sequences.iter().flat_map(|(ids, _)| ids.clone()).collect();
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for (ids, from) in sequences {
        rows.extend((*from..ids.len()).map(|i| start + i - 1));
        targets.extend(&ids[*from..]);
        start += ids.len();
    }
    let mut tape = Tape::recording(model.device(), model.params());
    let batch = Batch::packed(&packed, sequences.iter().map(|(ids, _)| ids.len()));
    let hidden = model.hidden(&mut tape, batch, true);
    let hidden = tape.select_rows(&hidden, &rows.into());
    let (logps, entropies) =
        tape.log_probs(&hidden, model.head(), &targets.into(), inv_temperature);
    (tape, logps, entropies)
}

#[test]
fn language_model_gradients_are_those_of_torch() {
    for name in NAMES {
        let fixture = fixture(name);
        let sequence = ids(&fixture["sequences"]["len64"]["ids"]);
        for device in devices() {
            let model = Model::load(&dir(name), &device).unwrap();
            for (key, from) in [("len64", 1), ("len64_masked_first20", 20)] {
                let case = &fixture["lm_grads"][key];
                let (tape, logps, _) = record(&model, &[(sequence.clone(), from)], 1.0);
                let count = logps.value().len();
                let mean = -logps.value().as_slice().iter().map(|&x| f64::from(x)).sum::<f64>()
                    / count as f64;
                let want = case["loss_f32"].as_f64().unwrap();
                assert!((mean - want).abs() <= 1e-5, "{name} {key}: loss {mean} {want}");
                let seed = Tensor::from_slice(&device, &[count], &vec![-1.0 / count as f32; count]);
                let mut grads = Grads::zeros(&device, model.params());
                tape.backward(vec![(logps, seed)], &mut grads);
                grads.finish();
                assert_norms(&format!("{name} {key}"), &model, &grads, &case["l2_f32"]);
                if let Some(file) = case.get("full") {
                    let want = gradients(&dir(name).join(file.as_str().unwrap()));
                    assert_gradients(&format!("{name} {key}"), &model, &grads, &want);
                }
            }
        }
    }
}

#[test]
fn six_optimizer_steps_are_those_of_torch() {
    for name in NAMES {
        let fixture = fixture(name);
        let trajectory = &fixture["adamw_trajectory"];
        let long = ids(&fixture["sequences"]["len200"]["ids"]);
        let batch = [ids(&fixture["sequences"]["len64"]["ids"]), long[..64].to_vec()];
        let mask = [true; 64];
        let examples: Vec<Example<'_>> =
            batch.iter().map(|ids| Example { ids, loss_mask: &mask }).collect();
        let number = |key: &str| trajectory[key].as_f64().unwrap();
        let betas = floats(&trajectory["betas"]);
        let settings = StepSettings {
            hyper: Hyper {
                lr: number("lr"),
                beta1: betas[0],
                beta2: betas[1],
                eps: number("eps"),
                weight_decay: number("weight_decay"),
            },
            grad_norm_max: Some(number("clip")),
            micro_batch_tokens: 64,
            activation_checkpointing: false,
        };
        let model = Model::load(&dir(name), &Device::cpu(2)).unwrap();
        let mut learner = Learner::new(Arc::new(model));
        for step in trajectory["steps"].as_array().unwrap() {
            let outcome = learner.sft_step(&examples, &settings).unwrap();
            for (got, key) in [(outcome.totals.loss, "loss"), (outcome.grad_norm, "grad_norm")] {
                let want = step[key].as_f64().unwrap();
                assert!((got - want).abs() <= 1e-4 * want, "{name} {key}: {got} {want}");
            }
        }
        let params = learner.model().params();
        for id in params.ids() {
            let want = trajectory["final_param_l2"][params.name(id)].as_f64().unwrap();
            let got = norm(params.value(id));
            // Torch's example decays vectors too, which we spare: six steps of lr * decay is 6e-5.
            let tolerance = if params.value(id).shape().len() == 1 { 1e-4 } else { 1e-5 };
            assert!(
                (got - want).abs() <= tolerance * want,
                "{name} {}: {got} {want}",
                params.name(id)
            );
        }
    }
}

/// The rows of the fixture's GRPO case, without their padding.
struct Rows {
    sequences: Vec<(Vec<u32>, usize)>,
    lens: Vec<usize>,
    advantages: Vec<f64>,
}

fn rows(grpo: &Value) -> Rows {
    let real = |ids_key: &str, mask_key: &str, i: usize| -> Vec<u32> {
        let kept = ids(&grpo[mask_key][i]);
        ids(&grpo[ids_key][i])
            .into_iter()
            .zip(kept)
            .filter(|(_, m)| *m == 1)
            .map(|(id, _)| id)
            .collect()
    };
    let (mut sequences, mut lens) = (Vec::new(), Vec::new());
    for i in 0..grpo["prompt_ids"].as_array().unwrap().len() {
        let prompt = real("prompt_ids", "prompt_mask", i);
        let completion = real("completion_ids", "completion_mask", i);
        lens.push(completion.len());
        sequences.push(([prompt.as_slice(), &completion].concat(), prompt.len()));
    }
    Rows { sequences, lens, advantages: floats(&grpo["advantages"]) }
}

/// Our settings for TRL's loss of that name, such as `dapo_beta0.04_biascorr_old`.
fn objective(key: &str, length_tokens: u32) -> Objective {
    Objective {
        kl_coef: if key.contains("beta0.04") { 0.04 } else { 0.0 },
        kl_times_ratio: !key.contains("nobiascorr"),
        aggregation: if key.starts_with("grpo") {
            Aggregation::SequenceMean
        } else if key.starts_with("dapo") {
            Aggregation::RolloutTokenMean
        } else if key.starts_with("dr_grpo") {
            Aggregation::Constant { length_tokens }
        } else {
            Aggregation::TokenMean
        },
        ..Preset::Trl1_16.objective(length_tokens)
    }
}

#[test]
fn grpo_losses_and_gradients_are_those_of_trl() {
    for name in NAMES {
        let fixture = fixture(name);
        let grpo = &fixture["grpo"];
        let rows = rows(grpo);
        let model = Model::load(&dir(name), &Device::cpu(2)).unwrap();
        for (temperature_key, temperature) in
            [("temperature_1.0", 1.0f32), ("temperature_0.7", 0.7)]
        {
            let case = &grpo["cases"][temperature_key];
            let cut = |key: &str| -> Vec<Vec<f32>> {
                let rows = rows.lens.iter().enumerate();
                rows.map(|(i, &len)| {
                    floats(&case[key][i])[..len].iter().map(|&x| x as f32).collect()
                })
                .collect()
            };
            let (old, reference, want_logps) =
                (cut("old_logps"), cut("ref_logps"), cut("logps_f32"));
            let losses = case["losses"].as_object().unwrap();
            assert_eq!(losses.len(), 24, "{name}");
            for (key, want) in losses {
                let what = format!("{name} {temperature_key} {key}");
                let (tape, logps, _) = record(&model, &rows.sequences, 1.0 / temperature);
                let values = logps.value().as_slice();
                for (got, want) in values.iter().zip(want_logps.iter().flatten()) {
                    assert!((got - want).abs() <= 2e-5, "{what}: {got} {want}");
                }
                let objective = objective(key, 12);
                let mut start = 0;
                let terms: Vec<SequenceTerms<'_>> = (0..rows.lens.len())
                    .map(|i| {
                        let logps = &values[start..start + rows.lens[i]];
                        start += rows.lens[i];
                        SequenceTerms {
                            logps,
                            old_logps: key.ends_with("_old").then_some(&old[i][..]),
                            ref_logps: Some(&reference[i]),
                            advantage: rows.advantages[i] as f32,
                            ..SequenceTerms::default()
                        }
                    })
                    .collect();
                let total: usize = rows.lens.iter().sum();
                let normaliser = Normaliser::of(&objective, &rows.lens).with_rollout(total, 1);
                let out = loss(&objective, &terms, &normaliser);
                let want_loss = want["loss"].as_f64().unwrap();
                assert!(
                    (out.loss() - want_loss).abs() <= 2e-5,
                    "{what}: {} {want_loss}",
                    out.loss()
                );
                let seed = Tensor::from_slice(model.device(), &[out.dlogps.len()], &out.dlogps);
                let mut grads = Grads::zeros(model.device(), model.params());
                tape.backward(vec![(logps, seed)], &mut grads);
                grads.finish();
                assert_norms(&what, &model, &grads, &want["l2"]);
                if let Some(file) = want.get("full") {
                    let want = gradients(&dir(name).join(file.as_str().unwrap()));
                    assert_gradients(&what, &model, &grads, &want);
                }
            }
        }
    }
}
