//! Steps of a critic, and of a policy whose tokens have advantages of their own.

use std::sync::Arc;

use aha_compute::Device;
use aha_compute::ops::adamw::Hyper;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_learn::learner::{
    Learner, OldLogps, Rollout, StepSettings, ValueOutcome, ValueTarget, score, values,
};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;
use aha_learn::value;
use aha_model::Model;

use crate::{ids, model, settings};

/// One whose head isn't zero, so that gradients reach its body at once.
pub(super) fn critic(name: &str, device: &Device) -> Arc<Model> {
    Arc::new(model(name, device).to_reward(Philox::new(5)).unwrap())
}

pub(super) struct Drawn {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    logps: Vec<f32>,
    advantages: Vec<f32>,
    old_values: Vec<f32>,
    returns: Vec<f32>,
}

/// Groups of several completions, one of a single token among them, and completions that are alone.
pub(super) fn drawn() -> Vec<Drawn> {
    let groups: [(usize, &[usize]); 4] =
        [(5, &[9, 1, 26]), (37, &[30, 16, 17, 5]), (16, &[1]), (20, &[14])];
    let rows = groups.iter().enumerate().flat_map(|(group, &(prompt, completions))| {
        completions.iter().map(move |&completion| (group as u64, prompt, completion))
    });
    let of = |(i, (group, prompt, len)): (usize, (u64, usize, usize))| {
        let wave = |k: f32| (0..len).map(|t| (i as f32 * 1.7 + t as f32 * k).sin()).collect();
        Drawn {
            prompt: ids(200 + group, prompt),
            completion: ids(50 + i as u64, len),
            logps: ids(90 + i as u64, len).iter().map(|&x| -5.0 - x as f32 / 200.0).collect(),
            advantages: wave(0.9),
            old_values: vec![0.1; len],
            returns: wave(0.2),
        }
    };
    rows.enumerate().map(of).collect()
}

pub(super) fn rollouts(drawn: &[Drawn]) -> Vec<Rollout<'_>> {
    let of = |d| {
        let Drawn { prompt, completion, logps, advantages, .. }: &Drawn = d;
        Rollout {
            prompt_ids: prompt,
            completion_ids: completion,
            behaviour_logps: logps,
            old: OldLogps::Behaviour,
            advantage: 0.0,
            token_advantages: Some(advantages),
            mask: None,
        }
    };
    drawn.iter().map(of).collect()
}

pub(super) fn targets(drawn: &[Drawn]) -> Vec<ValueTarget<'_>> {
    drawn
        .iter()
        .map(|Drawn { old_values, returns, .. }| ValueTarget { old_values, returns })
        .collect()
}

fn weights(learner: &Learner) -> Vec<u32> {
    let params = learner.model().params();
    params.ids().flat_map(|id| params.value(id).as_slice().iter().map(|x| x.to_bits())).collect()
}

/// All ways of computing a step that may not change it.
fn ways() -> Vec<(Device, StepSettings, String)> {
    let mut ways = Vec::new();
    for isa in Isa::available() {
        for (threads, tokens, checkpointing) in
            [(1, 1, false), (2, 64, true), (1, 90, true), (2, 100_000, false)]
        {
            let what = format!("{isa} {threads} {tokens} {checkpointing}");
            ways.push((Device::cpu_with(threads, isa), settings(tokens, checkpointing), what));
        }
    }
    ways
}

#[test]
fn steps_of_a_critic_do_not_depend_on_micro_batches_threads_or_lanes() {
    let drawn = drawn();
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        let mut first: Option<(Vec<u32>, ValueOutcome)> = None;
        for (device, settings, what) in ways() {
            let mut learner = Learner::new(critic(name, &device));
            let (rollouts, targets) = (rollouts(&drawn), targets(&drawn));
            let mut step =
                || learner.value_step(&rollouts, &targets, Some(0.2), &settings).unwrap();
            step();
            let outcome = step();
            assert!(outcome.applied && outcome.totals.token_count == 119);
            let (want, want_outcome) = first.get_or_insert_with(|| (weights(&learner), outcome));
            assert!(*want == weights(&learner), "{name} {what}: other weights");
            assert_eq!(*want_outcome, outcome, "{name} {what}");
        }
    }
}

#[test]
fn steps_on_advantages_of_tokens_do_not_depend_on_micro_batches_threads_or_lanes() {
    let drawn = drawn();
    let objective = Objective { kl_coef: 0.0, ..Preset::Ppo.objective(64) };
    let lens: Vec<usize> = drawn.iter().map(|d| d.completion.len()).collect();
    let normaliser = Normaliser::of(&objective, &lens);
    let step = |device: &Device, settings: &StepSettings, rollouts: &[Rollout<'_>]| {
        let mut learner = Learner::new(model("tiny_llama", device));
        learner.policy_step(rollouts, &objective, normaliser, 1.0, settings).unwrap();
        weights(&learner)
    };
    let all = rollouts(&drawn);
    let whole = step(&Device::cpu(1), &settings(512, false), &all);
    for (device, settings, what) in ways() {
        assert!(step(&device, &settings, &all) == whole, "{what}: other weights");
    }
    let ignored: Vec<Rollout<'_>> =
        all.iter().map(|rollout| Rollout { token_advantages: None, ..*rollout }).collect();
    assert!(step(&Device::cpu(1), &settings(512, false), &ignored) != whole);
}

#[test]
fn a_value_has_the_same_bits_whatever_shares_the_batch_and_is_that_of_what_precedes_its_token() {
    let drawn = drawn();
    let rollouts = rollouts(&drawn);
    let bits = |values: &[Vec<f32>]| -> Vec<Vec<u32>> {
        values.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
    };
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let critic = critic(name, &Device::cpu(2));
        let together = values(&critic, &rollouts, 100_000);
        for tokens in [1, 50, 90] {
            assert_eq!(bits(&values(&critic, &rollouts, tokens)), bits(&together), "{name}");
        }
        for (drawn, values) in drawn.iter().zip(&together) {
            for (t, value) in values.iter().enumerate() {
                let text = [&drawn.prompt[..], &drawn.completion[..t]].concat();
                assert_eq!(critic.scores(&[&text]).unwrap(), [*value], "{name} token {t}");
            }
        }
    }
}

#[test]
fn a_critic_made_of_a_language_model_expects_nothing_and_has_its_body() {
    let policy = model("tiny_qwen2", &Device::cpu(2));
    let critic = policy.to_critic().unwrap();
    assert!(critic.is_reward());
    let drawn = drawn();
    let all = values(&critic, &rollouts(&drawn), 512);
    assert!(all.iter().flatten().all(|&value| value == 0.0));
    for id in critic.params().ids().filter(|&id| critic.params().name(id) != "score.weight") {
        let of_policy = policy.params().find(critic.params().name(id)).unwrap();
        let [own, policy] = [critic.params().value(id), policy.params().value(of_policy)];
        assert_eq!(own.as_slice(), policy.as_slice());
    }
    // The policy's log-probs are not the critic's affair.
    assert_eq!(score(&policy, &rollouts(&drawn), 1.0, 64).len(), drawn.len());
}

/// Goal: what the tape gives is the derivative of the loss through the whole model. Method: central differences
/// of the loss along the step of a gradient descent, where the slope is the square of the gradient's norm; the loss
/// changes by about one part in a hundred, of which rounding in f32 and the curvature take a few parts in a thousand.
#[test]
fn the_gradient_of_a_critic_is_its_slope() {
    let drawn = drawn();
    let (rollouts, targets) = (rollouts(&drawn), targets(&drawn));
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        let critic = critic(name, &Device::cpu(2));
        // With moments of one gradient, AdamW with an epsilon far above it is gradient descent of rate lr / eps.
        let plain = Hyper { lr: 1e3, beta1: 0.0, beta2: 0.0, eps: 1e3, weight_decay: 0.0 };
        let settings = StepSettings { hyper: plain, grad_norm_max: None, ..settings(64, false) };
        let mut learner = Learner::new(Arc::clone(&critic));
        let outcome = learner.value_step(&rollouts, &targets, Some(0.2), &settings).unwrap();
        let gradient: Vec<Vec<f64>> = critic
            .params()
            .ids()
            .map(|id| {
                let [old, new] =
                    [&*critic, &**learner.model()].map(|m| m.params().value(id).as_slice());
                old.iter().zip(new).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
            })
            .collect();
        let loss_at = |h: f64| {
            let mut moved = (*critic).clone();
            for (id, gradient) in critic.params().ids().zip(&gradient) {
                let to = moved.params_mut().value_mut(id).as_mut_slice();
                for (w, g) in to.iter_mut().zip(gradient) {
                    *w = (f64::from(*w) + h * g) as f32;
                }
            }
            let all = values(&moved, &rollouts, 512);
            let terms: Vec<value::ValueTerms<'_>> = all
                .iter()
                .zip(&targets)
                .map(|(values, target)| value::ValueTerms {
                    values,
                    old_values: target.old_values,
                    returns: target.returns,
                    mask: None,
                })
                .collect();
            let out = value::loss(&terms, Some(0.2), outcome.totals.token_count);
            out.sequences.iter().map(|totals| totals.loss).sum::<f64>()
        };
        assert!((loss_at(0.0) - outcome.totals.loss).abs() < 1e-12, "{name}");
        let norm = outcome.grad_norm.powi(2);
        let h = 0.005 * outcome.totals.loss / norm;
        let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
        assert!((slope / norm - 1.0).abs() < 2e-2, "{name}: {slope} {norm}");
    }
}

#[test]
fn a_critic_learns_what_completions_are_worth() {
    let mut drawn = drawn();
    let mut learner =
        Learner::new(Arc::new(model("tiny_llama", &Device::cpu(2)).to_critic().unwrap()));
    let settings = settings(512, false);
    let mut losses = Vec::new();
    for _ in 0..6 {
        let old = values(learner.model(), &rollouts(&drawn), 512);
        drawn.iter_mut().zip(old).for_each(|(drawn, old)| drawn.old_values = old);
        for _ in 0..8 {
            let (rollouts, targets) = (rollouts(&drawn), targets(&drawn));
            let outcome = learner.value_step(&rollouts, &targets, Some(0.2), &settings).unwrap();
            losses.push(outcome.totals.loss);
        }
    }
    assert!(losses[47] < 0.3 * losses[0], "{losses:?}");
    assert_eq!(learner.version(), 48);
}

#[test]
fn targets_that_cannot_be_learned_from_are_refused_and_a_nan_changes_nothing() {
    let mut drawn = drawn();
    drawn.truncate(1);
    let mut learner = Learner::new(critic("tiny_llama", &Device::cpu(1)));
    let settings = settings(64, false);
    let before = weights(&learner);
    let mut step = |target: ValueTarget<'_>| {
        learner.value_step(&rollouts(&drawn), &[target], Some(0.2), &settings)
    };
    let good = targets(&drawn)[0];
    let refused =
        |outcome: Result<ValueOutcome, aha_learn::Error>| outcome.unwrap_err().to_string();
    assert!(refused(step(ValueTarget { old_values: &[0.0], ..good })).contains("old values"));
    assert!(refused(step(ValueTarget { returns: &[0.0], ..good })).contains("returns"));
    let nan = [f32::NAN; 9];
    assert!(!step(ValueTarget { returns: &nan, ..good }).unwrap().applied);
    assert_eq!(weights(&learner), before);
}

#[test]
fn masked_tokens_teach_nothing() {
    let mut drawn = drawn();
    drawn.truncate(1);
    let mask: Vec<bool> = (0..9).map(|t| t != 4).collect();
    let step = |drawn: &[Drawn], mask: Option<&[bool]>| {
        let mut learner = Learner::new(critic("tiny_llama", &Device::cpu(1)));
        let rollout = Rollout { mask, ..rollouts(drawn)[0] };
        let outcome =
            learner.value_step(&[rollout], &targets(drawn), None, &settings(64, false)).unwrap();
        (weights(&learner), outcome.totals.token_count)
    };
    let (masked, count) = step(&drawn, Some(&mask));
    assert_eq!(count, 8);
    let (whole, count) = step(&drawn, None);
    assert_eq!(count, 9);
    assert!(masked != whole);
    drawn[0].returns[4] = 7.0;
    assert!(step(&drawn, Some(&mask)).0 == masked && step(&drawn, None).0 != whole);
}
