//! Losses of GRPO and its variants, with their gradients.

use std::collections::BTreeMap;

use aha_compute::Dtype;
use aha_learn::objective::{Aggregation, Normaliser, Objective, SequenceTerms, loss};
use aha_learn::preset::Preset;
use aha_model::Model;
use serde_json::Value;

use super::support::{
    Comparison, NAMES, Setup, backward, dir, distances, fixture, flat, floats, gradients, ids,
    keys, norm_distances, record,
};

/// Tokens of the longest completion.
const LENGTH_TOKENS: u32 = 12;

#[test]
fn grpo_losses_and_gradients_are_those_of_trl() {
    let mut comparison = Comparison::default();
    let mut files_read = 0;
    for name in NAMES {
        let fixture = fixture(name);
        let cases = &fixture["grpo"]["cases"];
        assert_eq!(keys(cases), ["temperature_0.7", "temperature_1.0"], "{name}");
        for (key, temperature) in [("temperature_1.0", 1.0f32), ("temperature_0.7", 0.7)] {
            let case = Case::new(&fixture["grpo"], &cases[key], temperature);
            assert_eq!(case.losses.as_object().unwrap().len(), 24, "{name} {key}");
            for setup in Setup::all(name) {
                let model = setup.load(name);
                for (loss_key, want) in case.losses.as_object().unwrap() {
                    let what = format!("{name} {key} {loss_key}");
                    let file = want["full"].as_str().map(|file| dir(name).join(file));
                    files_read += usize::from(file.is_some());
                    let full = file.map(|file| gradients(&file));
                    let compared = Compared { setup: &setup, model: &model, what };
                    compared.check(&case, loss_key, full, &mut comparison);
                }
            }
        }
    }
    assert_eq!(
        files_read,
        2 * NAMES.map(|name| Setup::all(name).len()).iter().sum::<usize>(),
        "two files for each model"
    );
    comparison.show();
}

/// The fixture's four rollouts at a temperature, without their padding.
struct Case<'f> {
    /// Tokens, and where the completion starts.
    sequences: Vec<(Vec<u32>, usize)>,
    lens: Vec<usize>,
    advantages: Vec<f64>,
    inv_temperature: f32,
    old_logps: Vec<Vec<f32>>,
    ref_logps: Vec<Vec<f32>>,
    logps: Vec<Vec<f32>>,
    entropies: Vec<Vec<f32>>,
    losses: &'f Value,
}

impl<'f> Case<'f> {
    fn new(grpo: &'f Value, case: &'f Value, temperature: f32) -> Case<'f> {
        let real = |ids_key: &str, mask_key: &str, i: usize| -> Vec<u32> {
            let kept = ids(&grpo[mask_key][i]);
            let all = ids(&grpo[ids_key][i]).into_iter().zip(kept);
            all.filter(|(_, m)| *m == 1).map(|(id, _)| id).collect()
        };
        let (mut sequences, mut lens) = (Vec::new(), Vec::new());
        for i in 0..grpo["prompt_ids"].as_array().unwrap().len() {
            let prompt = real("prompt_ids", "prompt_mask", i);
            let completion = real("completion_ids", "completion_mask", i);
            lens.push(completion.len());
            sequences.push(([prompt.as_slice(), &completion].concat(), prompt.len()));
        }
        let cut = |key: &str| -> Vec<Vec<f32>> {
            let row = |(i, &len): (usize, &usize)| {
                floats(&case[key][i])[..len].iter().map(|&x| x as f32).collect()
            };
            lens.iter().enumerate().map(row).collect()
        };
        Case {
            advantages: floats(&grpo["advantages"]),
            inv_temperature: 1.0 / temperature,
            old_logps: cut("old_logps"),
            ref_logps: cut("ref_logps"),
            logps: cut("logps_f32"),
            entropies: cut("entropy_f32"),
            losses: &case["losses"],
            sequences,
            lens,
        }
    }

    /// Log-probs as far from `found` as they are from the fixture's.
    fn moved(&self, logps: &[Vec<f32>], found: &[f32]) -> Vec<Vec<f32>> {
        let mut found = found.iter();
        let row = |(row, wants): (&Vec<f32>, &Vec<f32>)| {
            let own = row.iter().zip(wants).zip(&mut found);
            own.map(|((logp, want), found)| logp - want + found).collect()
        };
        logps.iter().zip(&self.logps).map(row).collect()
    }
}

struct Compared<'a> {
    setup: &'a Setup,
    model: &'a Model,
    what: String,
}

impl Compared<'_> {
    /// Holds one loss, its log-probs and its gradients against the fixture's.
    fn check(
        &self,
        case: &Case<'_>,
        key: &str,
        full: Option<BTreeMap<String, Vec<f32>>>,
        comparison: &mut Comparison,
    ) {
        let (what, device, bounds) = (&self.what, &self.setup.device, self.setup.bounds);
        let (tape, logps, entropies) = record(self.model, &case.sequences, case.inv_temperature);
        for (kind, found, want) in
            [("log-prob", &logps, &case.logps), ("entropy", &entropies, &case.entropies)]
        {
            assert_eq!(found.value().len(), want.iter().flatten().count(), "{what}");
            for (found, want) in found.value().host().iter().zip(want.iter().flatten()) {
                let off = f64::from((found - want).abs());
                comparison.near(device, kind, what, off, bounds.nats);
            }
        }
        let objective = objective(key);
        let found = &*logps.value().host();
        let (old_logps, ref_logps) = match device.dtype() {
            Dtype::F32 => (case.old_logps.clone(), case.ref_logps.clone()),
            // Moved with ours, so that ratios are the fixture's: of a token that rounding takes across the
            // clip's edge, the whole gradient would come or go.
            Dtype::Bf16 => (case.moved(&case.old_logps, found), case.moved(&case.ref_logps, found)),
        };
        let old_logps = key.ends_with("_old").then_some(&old_logps[..]);
        let terms = terms(case, found, old_logps, &ref_logps);
        let total: usize = case.lens.iter().sum();
        let normaliser = Normaliser::of(&objective, &case.lens).with_rollout(total, 1);
        let out = loss(&objective, &terms, &normaliser);
        let want = &case.losses[key];
        let want_loss = want["loss"].as_f64().unwrap();
        let off = (out.loss() - want_loss).abs() / want_loss.abs().max(1.0);
        comparison.near(device, "loss", what, off, bounds.loss);
        let grads = backward(self.model, tape, logps, &out.dlogps);
        comparison.same_bits(device, what, &flat(&grads));
        for (weight, off) in norm_distances(self.model, &grads, &want["l2"]) {
            let what = format!("{what} {weight}");
            comparison.near(device, "norm of the gradient", &what, off, bounds.norm);
        }
        for (weight, off) in full.iter().flat_map(|full| distances(self.model, &grads, full)) {
            let what = format!("{what} {weight}");
            comparison.near(device, "gradient", &what, off, bounds.gradient);
        }
    }
}

fn terms<'a>(
    case: &Case<'_>,
    logps: &'a [f32],
    old_logps: Option<&'a [Vec<f32>]>,
    ref_logps: &'a [Vec<f32>],
) -> Vec<SequenceTerms<'a>> {
    let mut rest = logps;
    let mut terms = Vec::new();
    for (i, &len) in case.lens.iter().enumerate() {
        let (logps, others) = rest.split_at(len);
        rest = others;
        terms.push(SequenceTerms {
            logps,
            old_logps: old_logps.map(|old_logps| &old_logps[i][..]),
            ref_logps: Some(&ref_logps[i]),
            advantage: case.advantages[i] as f32,
            ..SequenceTerms::default()
        });
    }
    terms
}

/// Our settings for TRL's loss of that name, such as `dapo_beta0.04_biascorr_old`.
fn objective(key: &str) -> Objective {
    Objective {
        kl_coef: if key.contains("beta0.04") { 0.04 } else { 0.0 },
        kl_times_ratio: !key.contains("nobiascorr"),
        aggregation: if key.starts_with("grpo") {
            Aggregation::SequenceMean
        } else if key.starts_with("dapo") {
            Aggregation::RolloutTokenMean
        } else if key.starts_with("dr_grpo") {
            Aggregation::Constant { length_tokens: LENGTH_TOKENS }
        } else {
            Aggregation::TokenMean
        },
        ..Preset::Trl1_16.objective(LENGTH_TOKENS)
    }
}
