//! Steps of whole models: what may change the weights, and what may not.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::path::Path;
use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_compute::{Device, Grads, Tape, Tensor};
use aha_learn::learner::{
    Example, Learner, Pair, PreferenceOutcome, Rollout, StepOutcome, StepSettings, compare, score,
};
use aha_learn::objective::{Aggregation, EntropyMean, Normaliser, Objective, RatioLevel};
use aha_learn::preference::{self, PairScores};
use aha_learn::preset::Preset;
use aha_model::Model;

fn model(name: &str, device: &Device) -> Arc<Model> {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    Arc::new(Model::load(&dir, device).unwrap())
}

fn settings(micro_batch_tokens: usize, activation_checkpointing: bool) -> StepSettings {
    StepSettings {
        hyper: Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        grad_norm_max: Some(1.0),
        micro_batch_tokens,
        activation_checkpointing,
    }
}

fn ids(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| 3 + (Philox::new(seed).bits(&[i]) % 250) as u32).collect()
}

struct Drawn {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    logps: Vec<f32>,
    advantage: f32,
}

fn drawn() -> Vec<Drawn> {
    let lens = [(5, 9), (17, 30), (1, 1), (33, 16), (8, 47), (20, 2)];
    let of = |(i, (prompt, completion)): (usize, (usize, usize))| Drawn {
        prompt: ids(i as u64, prompt),
        completion: ids(50 + i as u64, completion),
        logps: ids(90 + i as u64, completion).iter().map(|&x| -5.0 - x as f32 / 200.0).collect(),
        advantage: [1.2, -0.7, 0.4, -1.1, 0.3, -0.1][i],
    };
    lens.into_iter().enumerate().map(of).collect()
}

fn rollouts(drawn: &[Drawn]) -> Vec<Rollout<'_>> {
    let of = |d| {
        let Drawn { prompt, completion, logps, advantage }: &Drawn = d;
        Rollout {
            prompt_ids: prompt,
            completion_ids: completion,
            behaviour_logps: logps,
            advantage: *advantage,
            mask: None,
        }
    };
    drawn.iter().map(of).collect()
}

/// Settings that use every term: KL to a reference and an entropy bonus.
fn objective() -> Objective {
    Objective { kl_coef: 0.05, entropy_coef: 0.01, ..Preset::DeepseekR1.objective(64) }
}

fn two_steps(learner: &mut Learner, settings: &StepSettings) -> StepOutcome {
    two_steps_of(learner, &objective(), settings)
}

fn two_steps_of(
    learner: &mut Learner,
    objective: &Objective,
    settings: &StepSettings,
) -> StepOutcome {
    let drawn = drawn();
    let rollouts = rollouts(&drawn);
    let lens: Vec<usize> = drawn.iter().map(|d| d.completion.len()).collect();
    let minibatch_tokens: usize = lens.iter().sum();
    let normaliser = Normaliser::of(objective, &lens).with_rollout(3 * minibatch_tokens, 2);
    let mut outcome = None;
    for _ in 0..2 {
        outcome =
            Some(learner.policy_step(&rollouts, objective, normaliser, 0.9, settings).unwrap());
    }
    outcome.unwrap()
}

fn weights(learner: &Learner) -> Vec<u32> {
    let params = learner.model().params();
    params.ids().flat_map(|id| params.value(id).as_slice().iter().map(|x| x.to_bits())).collect()
}

#[test]
fn micro_batches_checkpointing_threads_and_lanes_change_no_bit() {
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let mut first: Option<(Vec<u32>, StepOutcome)> = None;
        for isa in Isa::available() {
            for (threads, micro_batch_tokens, checkpointing) in
                [(1, 1, false), (2, 64, true), (1, 90, true), (2, 100_000, false)]
            {
                let device = Device::cpu_with(threads, isa);
                let model = model(name, &device);
                let mut learner = Learner::new(Arc::clone(&model));
                learner.set_reference(Some(model));
                let outcome = two_steps(&mut learner, &settings(micro_batch_tokens, checkpointing));
                assert!(outcome.applied);
                let (want, want_outcome) =
                    first.get_or_insert_with(|| (weights(&learner), outcome));
                let what = format!("{name} {isa} {threads} {micro_batch_tokens} {checkpointing}");
                assert!(*want == weights(&learner), "{what}: other weights");
                assert_eq!(*want_outcome, outcome, "{what}");
            }
        }
    }
}

/// Goal: no aggregation divides by what a micro-batch happens to hold. Method: each, with each mean of the entropy
/// and each kind of ratio, cut in three ways; loss, gradient norm and weights have the same bits.
#[test]
fn no_aggregation_depends_on_micro_batches() {
    let aggregations = [
        Aggregation::SequenceMean,
        Aggregation::TokenMean,
        Aggregation::RolloutTokenMean,
        Aggregation::Constant { length_tokens: 64 },
    ];
    let mut losses = Vec::new();
    for aggregation in aggregations {
        for (entropy_mean, ratio) in [
            (EntropyMean::Tokens, RatioLevel::Token),
            (EntropyMean::AsLoss, RatioLevel::Token),
            (EntropyMean::Tokens, RatioLevel::Sequence),
        ] {
            let objective = Objective { aggregation, entropy_mean, ratio, ..objective() };
            let run = |micro_batch_tokens| {
                let model = model("tiny_llama", &Device::cpu(2));
                let mut learner = Learner::new(Arc::clone(&model));
                learner.set_reference(Some(model));
                let settings = settings(micro_batch_tokens, false);
                let outcome = two_steps_of(&mut learner, &objective, &settings);
                (weights(&learner), outcome)
            };
            let (want, outcome) = run(100_000);
            losses.push(outcome.totals.loss);
            for tokens in [1, 60] {
                let (found, of_parts) = run(tokens);
                let what = format!("{aggregation:?} {entropy_mean:?} {ratio:?} {tokens}");
                assert_eq!(of_parts, outcome, "{what}");
                assert!(found == want, "{what}: other weights");
            }
        }
    }
    // Otherwise the settings would not have reached the loss.
    losses.sort_by(f64::total_cmp);
    losses.dedup();
    assert_eq!(losses.len(), 12, "{losses:?}");
}

#[test]
fn sft_steps_do_not_depend_on_micro_batches() {
    let texts: Vec<Vec<u32>> =
        [40, 3, 90, 17].iter().enumerate().map(|(i, &len)| ids(i as u64, len)).collect();
    let masks: Vec<Vec<bool>> =
        texts.iter().map(|t| (0..t.len()).map(|i| i % 3 != 1).collect()).collect();
    let examples: Vec<Example<'_>> =
        texts.iter().zip(&masks).map(|(ids, loss_mask)| Example { ids, loss_mask }).collect();
    let run = |micro_batch_tokens| {
        let mut learner = Learner::new(model("tiny_llama3rope", &Device::cpu(2)));
        for _ in 0..2 {
            learner.sft_step(&examples, &settings(micro_batch_tokens, false)).unwrap();
        }
        weights(&learner)
    };
    let whole = run(100_000);
    assert!([1, 50, 100].into_iter().all(|tokens| run(tokens) == whole));
}

#[test]
fn a_step_lowers_the_loss_of_what_it_imitates() {
    let text = ids(1, 60);
    let mask = vec![true; 60];
    let examples = [Example { ids: &text, loss_mask: &mask }];
    let mut learner = Learner::new(model("tiny_qwen3", &Device::cpu(2)));
    let mut step = || learner.sft_step(&examples, &settings(512, false)).unwrap().totals.loss;
    let first = step();
    let last = (0..20).map(|_| step()).last().unwrap();
    assert!(last < 0.7 * first, "{first} {last}");
}

#[test]
fn the_first_ratio_of_an_on_policy_step_is_exactly_one() {
    let model = model("tiny_qwen2", &Device::cpu(2));
    let mut drawn = drawn();
    for (row, logps) in score(&model, &rollouts(&drawn), 0.9, 50).into_iter().enumerate() {
        drawn[row].logps = logps;
    }
    let objective = Preset::DeepseekR1.objective(64);
    let objective = Objective { kl_coef: 0.0, ..objective };
    let lens: Vec<usize> = drawn.iter().map(|d| d.completion.len()).collect();
    let normaliser = Normaliser::of(&objective, &lens);
    let mut learner = Learner::new(model);
    let outcome = learner
        .policy_step(&rollouts(&drawn), &objective, normaliser, 0.9, &settings(77, true))
        .unwrap();
    assert_eq!((outcome.totals.ratio_mean(), outcome.totals.ratio_max), (1.0, 1.0));
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let mut drawn = drawn();
    drawn[2].logps[0] = f32::NAN;
    let objective = objective();
    let normaliser =
        Normaliser::of(&objective, &drawn.iter().map(|d| d.completion.len()).collect::<Vec<_>>());
    let model = model("tiny_llama", &Device::cpu(1));
    let mut learner = Learner::new(Arc::clone(&model));
    learner.set_reference(Some(model));
    let before = weights(&learner);
    let outcome = learner
        .policy_step(&rollouts(&drawn), &objective, normaliser, 1.0, &settings(512, false))
        .unwrap();
    assert!(!outcome.applied);
    assert_eq!(learner.version(), 0);
    assert!(before == weights(&learner));
}

#[test]
fn a_held_model_keeps_its_weights() {
    let model = model("tiny_llama", &Device::cpu(1));
    let mut learner = Learner::new(Arc::clone(&model));
    learner.set_reference(Some(Arc::clone(&model)));
    let before = model.params().checksum();
    two_steps(&mut learner, &settings(512, false));
    assert_eq!(model.params().checksum(), before);
    assert_ne!(learner.model().params().checksum(), before);
}

#[test]
fn rollouts_that_cannot_be_learned_from_are_refused() {
    let mut learner = Learner::new(model("tiny_llama", &Device::cpu(1)));
    let objective = Objective { kl_coef: 0.0, ..objective() };
    let normaliser = Normaliser::of(&objective, &[2]);
    let mut refuse = |rollout: Rollout<'_>| {
        let outcome =
            learner.policy_step(&[rollout], &objective, normaliser, 1.0, &settings(64, false));
        outcome.unwrap_err().to_string()
    };
    let rollout = Rollout {
        prompt_ids: &[5],
        completion_ids: &[6, 7],
        behaviour_logps: &[-1.0, -1.0],
        advantage: 1.0,
        mask: None,
    };
    assert!(refuse(Rollout { prompt_ids: &[], ..rollout }).contains("prompt"));
    assert!(refuse(Rollout { behaviour_logps: &[-1.0], ..rollout }).contains("log-probs"));
    assert!(refuse(Rollout { mask: Some(&[true]), ..rollout }).contains("mask"));
}

/// Pairs of odd lengths; the last two share their prompt and a margin.
fn preferences() -> Vec<(Vec<u32>, Vec<u32>, f32)> {
    let lens = [(9, 14), (30, 3), (1, 1), (47, 46), (22, 8)];
    let of = |(i, (chosen, rejected)): (usize, (usize, usize))| {
        (ids(i as u64, chosen), ids(70 + i as u64, rejected), [0.0, 0.0, 0.0, 0.5, 0.5][i])
    };
    lens.into_iter().enumerate().map(of).collect()
}

fn pairs(preferences: &[(Vec<u32>, Vec<u32>, f32)]) -> Vec<Pair<'_>> {
    preferences
        .iter()
        .map(|(chosen, rejected, margin)| Pair { chosen, rejected, margin: *margin })
        .collect()
}

fn reward_model(name: &str, device: &Device) -> Arc<Model> {
    Arc::new(model(name, device).to_reward(Philox::new(5)).unwrap())
}

#[test]
fn steps_of_a_reward_model_do_not_depend_on_micro_batches_threads_or_lanes() {
    let preferences = preferences();
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        let mut first: Option<(Vec<u32>, PreferenceOutcome)> = None;
        for isa in Isa::available() {
            for (threads, micro_batch_tokens, checkpointing) in
                [(1, 1, false), (2, 64, true), (1, 90, true), (2, 100_000, false)]
            {
                let device = Device::cpu_with(threads, isa);
                let mut learner = Learner::new(reward_model(name, &device));
                let settings = settings(micro_batch_tokens, checkpointing);
                let mut step =
                    || learner.preference_step(&pairs(&preferences), 0.01, &settings).unwrap();
                step();
                let outcome = step();
                assert!(outcome.applied);
                let (want, want_outcome) =
                    first.get_or_insert_with(|| (weights(&learner), outcome));
                let what = format!("{name} {isa} {threads} {micro_batch_tokens} {checkpointing}");
                assert!(*want == weights(&learner), "{what}: other weights");
                assert_eq!(*want_outcome, outcome, "{what}");
            }
        }
    }
}

#[test]
fn a_score_has_the_same_bits_whatever_shares_the_batch() {
    let preferences = preferences();
    let sequences: Vec<&[u32]> =
        preferences.iter().flat_map(|(a, b, _)| [a.as_slice(), b.as_slice()]).collect();
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let model = reward_model(name, &Device::cpu(2));
        let together = model.scores(&sequences).unwrap();
        let alone: Vec<f32> = sequences.iter().flat_map(|s| model.scores(&[s]).unwrap()).collect();
        let bits = |scores: &[f32]| scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&together), bits(&alone), "{name}");
        let mut backwards =
            model.scores(&sequences.iter().rev().copied().collect::<Vec<_>>()).unwrap();
        backwards.reverse();
        assert_eq!(bits(&together), bits(&backwards), "{name}");
        // The learner's own pass is the same numbers: its totals are sums of them.
        let totals = compare(&model, &pairs(&preferences), 0.0, 50).unwrap();
        let mut sum = 0.0;
        for two in together.chunks(2) {
            sum += f64::from(two[0]) + f64::from(two[1]);
        }
        assert_eq!(totals.scores, sum, "{name}");
    }
}

/// Goal: what the tape gives is the derivative of the loss through the whole model. Method: central differences
/// of the loss along the gradient, where the slope is the square of its norm; the loss changes by about one
/// part in a hundred, of which rounding in f32 and the curvature take a few parts in a thousand.
#[test]
fn the_gradient_of_a_reward_model_is_its_slope() {
    let (preferences, centering) = (preferences(), 0.01);
    let pairs = pairs(&preferences);
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        let model = reward_model(name, &Device::cpu(2));
        let sequences: Vec<&[u32]> = pairs.iter().flat_map(|p| [p.chosen, p.rejected]).collect();
        let lens: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut tape = Tape::recording(model.device(), model.params());
        let scores = model.score(&mut tape, &sequences.concat(), &lens, true);
        let mut dscores = Vec::new();
        for (pair, two) in pairs.iter().zip(scores.value().as_slice().chunks_exact(2)) {
            let two = PairScores { chosen: two[0], rejected: two[1], margin: pair.margin };
            let out = preference::loss(two, centering, pairs.len());
            dscores.extend([out.dchosen, out.drejected]);
        }
        let seed = Tensor::from_slice(model.device(), &[dscores.len(), 1], &dscores);
        let mut grads = Grads::zeros(model.device(), model.params());
        tape.backward(vec![(scores, seed)], &mut grads);
        grads.finish();
        let norm: f64 =
            grads.iter().flat_map(|t| t.as_slice()).map(|&g| f64::from(g).powi(2)).sum();
        let h = 0.005 / norm;
        let loss_at = |h: f64| {
            let mut moved = (*model).clone();
            for id in model.params().ids() {
                let to = moved.params_mut().value_mut(id).as_mut_slice();
                for (w, g) in to.iter_mut().zip(grads.get(id).as_slice()) {
                    *w = (f64::from(*w) + h * f64::from(*g)) as f32;
                }
            }
            compare(&moved, &pairs, centering, 512).unwrap().loss
        };
        let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
        assert!((slope / norm - 1.0).abs() < 5e-3, "{name}: {slope} {norm}");
        let mut learner = Learner::new(model);
        let step = learner.preference_step(&pairs, centering, &settings(64, false)).unwrap();
        assert!((step.grad_norm - norm.sqrt()).abs() < 1e-6 * norm.sqrt(), "{name}");
    }
}

#[test]
fn a_reward_model_learns_which_completion_was_preferred() {
    let preferences = preferences();
    let pairs = pairs(&preferences);
    let mut learner = Learner::new(reward_model("tiny_llama", &Device::cpu(2)));
    let settings = settings(512, false);
    let mut step = || learner.preference_step(&pairs, 0.01, &settings).unwrap().totals;
    let first = step();
    let last = (0..40).map(|_| step()).last().unwrap();
    assert!(last.loss < 0.5 * first.loss, "{first:?} {last:?}");
    assert_eq!(last.accuracy(), 1.0);
    let none: &[u32] = &[];
    let empty = [Pair { chosen: none, rejected: &[4], margin: 0.0 }];
    assert!(
        learner.preference_step(&empty, 0.0, &settings).unwrap_err().to_string().contains("pair")
    );
}
