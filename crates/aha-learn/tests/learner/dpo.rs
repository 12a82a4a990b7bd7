//! Steps of direct preference optimization on whole models.

use std::sync::Arc;

use aha_compute::Device;
use aha_compute::ops::adamw::Hyper;
use aha_compute::simd::Isa;
use aha_learn::dpo::{LossKind, Objective};
use aha_learn::learner::{DpoOutcome, DpoPair, Example, Learner, compare_dpo};
use aha_model::Model;

use crate::{ids, model, settings};

/// Weights that aren't the model's: a step away.
fn moved(model: &Arc<Model>) -> Arc<Model> {
    let mut learner = Learner::new(Arc::clone(model));
    let example = ids(77, 40);
    let mask = vec![true; 40];
    let example = Example { ids: &example, loss_mask: &mask };
    assert!(learner.sft_step(&[example], &settings(1000, false)).unwrap().applied);
    Arc::clone(learner.model())
}

pub(super) struct Drawn {
    ids: [Vec<u32>; 2],
    masks: [Vec<bool>; 2],
    margin: f32,
}

/// Pairs with and without a prompt, two of one prompt, one whose completions don't share theirs, and masks that
/// leave out what is in the middle and at the end.
pub(super) fn drawn() -> Vec<Drawn> {
    let of = |(i, (prompts, lens)): (usize, ([u64; 2], [usize; 3]))| {
        let [prompt_len, chosen, rejected] = lens;
        let sequence = |k: usize, len: usize| {
            [ids(prompts[k], prompt_len), ids((100 + 10 * i + k) as u64, len)].concat()
        };
        let mask = |len: usize| {
            let trained = |at: usize| at >= prompt_len && (at - prompt_len) % 7 != 5;
            (0..prompt_len + len).map(trained).collect()
        };
        Drawn {
            ids: [sequence(0, chosen), sequence(1, rejected)],
            masks: [mask(chosen), mask(rejected)],
            margin: [0.0, 0.0, 0.2, 0.0, -0.1][i],
        }
    };
    let all = [
        ([1, 1], [12, 9, 20]),
        ([2, 2], [7, 14, 1]),
        ([2, 2], [7, 6, 18]),
        ([3, 4], [5, 9, 9]),
        ([5, 5], [0, 6, 12]),
    ];
    all.into_iter().enumerate().map(of).collect()
}

pub(super) fn pairs(drawn: &[Drawn]) -> Vec<DpoPair<'_>> {
    drawn.iter().map(Drawn::pair).collect()
}

impl Drawn {
    fn pair(&self) -> DpoPair<'_> {
        let [chosen, rejected] =
            [0, 1].map(|i| Example { ids: &self.ids[i], loss_mask: &self.masks[i] });
        DpoPair { chosen, rejected, margin: self.margin }
    }
}

/// Every term there is.
pub(super) const OBJECTIVE: Objective = Objective {
    kind: LossKind::Sigmoid,
    beta: 0.3,
    label_smoothing: 0.1,
    is_length_normalised: true,
    nll_coef: 0.2,
};

fn weights(learner: &Learner) -> Vec<u32> {
    let params = learner.model().params();
    params.ids().flat_map(|id| params.value(id).as_slice().iter().map(|x| x.to_bits())).collect()
}

#[test]
fn steps_do_not_depend_on_micro_batches_threads_or_lanes() {
    let drawn = drawn();
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        let mut first: Option<(Vec<u32>, DpoOutcome)> = None;
        for isa in Isa::available() {
            for (threads, micro_batch_tokens, checkpointing) in
                [(1, 1, false), (2, 64, true), (1, 90, true), (2, 100_000, false)]
            {
                let device = Device::cpu_with(threads, isa);
                let mut learner = Learner::new(model(name, &device));
                learner.set_reference(Some(model(name, &device)));
                let settings = settings(micro_batch_tokens, checkpointing);
                let mut step = || learner.dpo_step(&pairs(&drawn), &OBJECTIVE, &settings).unwrap();
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

/// The loss of a minibatch from whole sequences, in f64, as Rafailov et al. write it.
fn plain(model: &Model, reference: &Model, drawn: &[Drawn], o: &Objective) -> f64 {
    let mean_of = |model: &Model, drawn: &Drawn, i: usize| {
        let logps = &model.log_probs(&[&drawn.ids[i]]).unwrap()[0];
        let kept: Vec<f64> = (1..drawn.ids[i].len())
            .filter(|&at| drawn.masks[i][at])
            .map(|at| f64::from(logps[at - 1]))
            .collect();
        kept.iter().sum::<f64>() / kept.len() as f64
    };
    let loss_of = |drawn: &Drawn| {
        let log_ratio = |i: usize| mean_of(model, drawn, i) - mean_of(reference, drawn, i);
        let d = o.beta * (log_ratio(0) - log_ratio(1)) - f64::from(drawn.margin);
        let log_sigmoid = |x: f64| (1.0 / (1.0 + (-x).exp())).ln();
        let ranking =
            -(1.0 - o.label_smoothing) * log_sigmoid(d) - o.label_smoothing * log_sigmoid(-d);
        ranking - o.nll_coef * mean_of(model, drawn, 0)
    };
    drawn.iter().map(loss_of).sum::<f64>() / drawn.len() as f64
}

#[test]
fn the_loss_is_that_of_whole_sequences_one_by_one() {
    let drawn = drawn();
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let reference = model(name, &Device::cpu(2));
        let policy = moved(&reference);
        let expected = plain(&policy, &reference, &drawn, &OBJECTIVE);
        let found = compare_dpo(&policy, &reference, &pairs(&drawn), &OBJECTIVE, 50).unwrap();
        assert!((found.loss - expected).abs() < 1e-9, "{name}: {found:?} {expected}");
        assert!(found.reward_chosen != 0.0 && found.reward_rejected != 0.0);
        let mut learner = Learner::new(policy);
        learner.set_reference(Some(reference));
        let outcome = learner.dpo_step(&pairs(&drawn), &OBJECTIVE, &settings(90, true)).unwrap();
        assert_eq!(outcome.totals, found, "{name}");
    }
}

/// Goal: what a step follows is the derivative of the loss through the whole model. Method: with an `eps` this
/// large AdamW subtracts a hundredth of a step along the gradient; the loss must fall by that step's length times
/// the square of its norm, but for the curvature.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let drawn = drawn();
    for kind in [LossKind::Sigmoid, LossKind::Ipo, LossKind::Hinge] {
        for name in ["tiny_llama", "tiny_qwen3"] {
            let objective = Objective { kind, label_smoothing: 0.0, ..OBJECTIVE };
            let reference = model(name, &Device::cpu(2));
            let policy = moved(&reference);
            let loss = |model: &Model| {
                compare_dpo(model, &reference, &pairs(&drawn), &objective, 1000).unwrap().loss
            };
            let step = |rate: f64| {
                let mut learner = Learner::new(Arc::clone(&policy));
                learner.set_reference(Some(Arc::clone(&reference)));
                let mut settings = settings(1000, false);
                settings.hyper =
                    Hyper { lr: rate * 1e8, eps: 1e8, weight_decay: 0.0, ..settings.hyper };
                settings.grad_norm_max = None;
                let outcome = learner.dpo_step(&pairs(&drawn), &objective, &settings).unwrap();
                (loss(learner.model()), outcome.grad_norm)
            };
            let (_, norm) = step(0.0);
            let rate = 1e-3 / (norm * norm);
            let slope = (loss(&policy) - step(rate).0) / rate;
            let off = slope / (norm * norm) - 1.0;
            assert!(off.abs() < 0.03, "{name} {kind:?}: {slope}, expected {}", norm * norm);
        }
    }
}

#[test]
fn a_policy_comes_to_prefer_what_was_chosen() {
    let drawn = drawn();
    let reference = model("tiny_qwen3", &Device::cpu(2));
    let mut learner = Learner::new(Arc::clone(&reference));
    learner.set_reference(Some(Arc::clone(&reference)));
    let objective =
        Objective { label_smoothing: 0.0, is_length_normalised: false, nll_coef: 0.0, ..OBJECTIVE };
    let plain: Vec<DpoPair<'_>> =
        pairs(&drawn).into_iter().map(|pair| DpoPair { margin: 0.0, ..pair }).collect();
    let first = learner.dpo_step(&plain, &objective, &settings(1000, false)).unwrap();
    assert!((first.totals.loss - 2.0_f64.ln()).abs() < 1e-12, "the policy is the reference");
    assert_eq!((first.totals.reward_chosen, first.totals.accuracy()), (0.0, 0.0));
    for _ in 0..30 {
        learner.dpo_step(&plain, &objective, &settings(1000, false)).unwrap();
    }
    let last = compare_dpo(learner.model(), &reference, &plain, &objective, 1000).unwrap();
    assert_eq!(last.accuracy(), 1.0);
    assert!(last.loss < 0.2 && last.reward_chosen > last.reward_rejected, "{last:?}");
}

#[test]
fn what_can_not_be_compared_is_refused() {
    let mut learner = Learner::new(model("tiny_llama", &Device::cpu(1)));
    let drawn = drawn();
    let error = learner.dpo_step(&pairs(&drawn), &OBJECTIVE, &settings(1, false)).unwrap_err();
    assert!(error.to_string().contains("reference model"), "{error}");
    learner.set_reference(Some(model("tiny_llama", &Device::cpu(1))));
    let ids = [5, 6];
    // The first token has nothing before it.
    for mask in [[false, false], [true, false]] {
        let example = Example { ids: &ids, loss_mask: &mask };
        let pair = DpoPair { chosen: example, rejected: example, margin: 0.0 };
        let error = learner.dpo_step(&[pair], &OBJECTIVE, &settings(1, false)).unwrap_err();
        assert!(error.to_string().contains("trained tokens"), "{error}");
    }
}
