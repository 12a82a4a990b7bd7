//! Every kind of step on a CUDA device, in emulation, against the same step on the processor.

use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::random::Philox;
use aha_compute::{Device, Dtype};
use aha_emulate::Emulated;
use aha_learn::dpo::{self, LossKind};
use aha_learn::learner::{
    DpoPair, Example, Learner, OldLogps, Pair, Rollout, StepSettings, ValueTarget, score, values,
};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;
use aha_model::{Lora, Model, Target};

use crate::{ids, model_as, settings};

/// Two completions of one prompt, and one of another.
struct Drawn {
    prompts: [Vec<u32>; 3],
    completions: [Vec<u32>; 3],
    logps: [Vec<f32>; 3],
}

impl Drawn {
    fn new() -> Drawn {
        let lens = [6, 1, 9];
        Drawn {
            prompts: [ids(200, 5), ids(200, 5), ids(201, 11)],
            completions: [0, 1, 2].map(|i| ids(50 + i as u64, lens[i])),
            logps: lens.map(|len| vec![-5.0; len]),
        }
    }

    fn rollouts(&self) -> [Rollout<'_>; 3] {
        [0, 1, 2].map(|i| Rollout {
            prompt_ids: &self.prompts[i],
            completion_ids: &self.completions[i],
            behaviour_logps: &self.logps[i],
            old: OldLogps::Behaviour,
            advantage: [1.2, -0.7, 0.4][i],
            token_advantages: None,
            mask: None,
        })
    }

    fn policy_step(&self, learner: &mut Learner, objective: &Objective) -> [f64; 2] {
        let lens = [0, 1, 2].map(|i| self.completions[i].len());
        let normaliser = Normaliser::of(objective, &lens);
        let outcome =
            learner.policy_step(&self.rollouts(), objective, normaliser, 0.9, &by_gradient());
        let outcome = outcome.unwrap();
        [outcome.totals.loss, outcome.grad_norm]
    }
}

/// With an `eps` this large AdamW goes along the gradient, so weights are as close as gradients are. Tokens are cut in
/// two micro-batches.
fn by_gradient() -> StepSettings {
    let settings = settings(24, true);
    let hyper = Hyper { lr: 0.1e6, eps: 1e6, weight_decay: 0.0, ..settings.hyper };
    StepSettings { hyper, grad_norm_max: None, ..settings }
}

/// A step of some kind from a model of the fixtures: its loss and gradient's norm.
type Step = fn(&dyn Fn(&str) -> Model) -> (Learner, [f64; 2]);

fn kl_to_a_reference(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let mut learner = Learner::new(Arc::new(load("tiny_qwen2")));
    learner.set_reference(Some(Arc::new(load("tiny_llama"))));
    let objective =
        Objective { kl_coef: 0.05, entropy_coef: 0.01, ..Preset::DeepseekR1.objective(64) };
    let found = Drawn::new().policy_step(&mut learner, &objective);
    (learner, found)
}

fn divergence_from_a_teacher(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let mut learner = Learner::new(Arc::new(load("tiny_qwen2")));
    learner.set_teacher(Some(Arc::new(load("tiny_qwen3"))));
    learner.set_reference(Some(Arc::new(load("tiny_llama"))));
    let objective =
        Objective { kl_coef: 0.05, entropy_coef: 0.01, ..Preset::Distill.objective(64) };
    let found = Drawn::new().policy_step(&mut learner, &objective);
    (learner, found)
}

/// A model with adapters whose second matrices aren't zero, so that the first ones have gradients.
fn adapted(base: &Model) -> Model {
    let lora =
        Lora { rank: 4, alpha: 6.0, targets: Target::ALL.to_vec(), is_rank_stabilised: false };
    let mut policy = base.with_lora(&lora, Philox::new(1)).unwrap();
    let second: Vec<_> = policy.params().trained().skip(1).step_by(2).collect();
    for id in second {
        let len = policy.params().value(id).len() as u64;
        let noise: Vec<f32> = (0..len).map(|i| (0.05 * Philox::new(3).normal(i)) as f32).collect();
        policy.params_mut().value_mut(id).write(&noise);
    }
    policy
}

fn adapters(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let base = load("tiny_qwen2");
    let mut learner = Learner::new(Arc::new(adapted(&base)));
    learner.set_reference(Some(Arc::new(base)));
    let objective = Objective { kl_coef: 0.05, ..Preset::DeepseekR1.objective(64) };
    let found = Drawn::new().policy_step(&mut learner, &objective);
    (learner, found)
}

fn imitation(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let mut learner = Learner::new(Arc::new(load("tiny_qwen2")));
    let (texts, mask) = ([ids(1, 30), ids(2, 17)], [true; 30]);
    let examples = [0, 1].map(|i| Example { ids: &texts[i], loss_mask: &mask[..texts[i].len()] });
    let outcome = learner.sft_step(&examples, &by_gradient()).unwrap();
    (learner, [outcome.totals.loss, outcome.grad_norm])
}

fn preferences(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let mut learner = Learner::new(Arc::new(load("tiny_qwen2").to_reward(Philox::new(4)).unwrap()));
    let (chosen, rejected) = (ids(1, 20), ids(2, 23));
    let pairs = [Pair { chosen: &chosen, rejected: &rejected, margin: 0.1 }];
    let outcome = learner.preference_step(&pairs, 0.01, &by_gradient()).unwrap();
    (learner, [outcome.totals.loss, outcome.grad_norm])
}

fn critic(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let critic = load("tiny_qwen2").to_reward(Philox::new(5)).unwrap();
    let drawn = Drawn::new();
    let old = values(&critic, &drawn.rollouts(), 24);
    let mut learner = Learner::new(Arc::new(critic));
    let returns = drawn.logps.each_ref().map(|logps| vec![0.7; logps.len()]);
    let targets = [0, 1, 2].map(|i| ValueTarget { old_values: &old[i], returns: &returns[i] });
    let rollouts = drawn.rollouts();
    let outcome = learner.value_step(&rollouts, &targets, Some(0.2), &by_gradient()).unwrap();
    (learner, [outcome.totals.loss, outcome.grad_norm])
}

fn direct_preferences(load: &dyn Fn(&str) -> Model) -> (Learner, [f64; 2]) {
    let mut learner = Learner::new(Arc::new(load("tiny_qwen2")));
    learner.set_reference(Some(Arc::new(load("tiny_llama"))));
    let (texts, mask) = ([ids(1, 20), ids(2, 23)], [true; 23]);
    let [chosen, rejected] =
        [0, 1].map(|i| Example { ids: &texts[i], loss_mask: &mask[..texts[i].len()] });
    let pairs = [DpoPair { chosen, rejected, margin: 0.2 }];
    let objective = dpo::Objective {
        kind: LossKind::Sigmoid,
        beta: 0.3,
        label_smoothing: 0.1,
        is_length_normalised: true,
        nll_coef: 0.2,
    };
    let outcome = learner.dpo_step(&pairs, &objective, &by_gradient()).unwrap();
    (learner, [outcome.totals.loss, outcome.grad_norm])
}

const STEPS: [(&str, Step); 7] = [
    ("kl", kl_to_a_reference),
    ("divergence", divergence_from_a_teacher),
    ("adapters", adapters),
    ("imitation", imitation),
    ("preferences", preferences),
    ("critic", critic),
    ("direct preferences", direct_preferences),
];

/// What a step left: the trained weights, and log-probs by them where the model has a head for these.
fn left(learner: &Learner) -> (Vec<Vec<f32>>, Vec<f32>) {
    let model = learner.model();
    let value = |id| model.params().value(id).host().into_owned();
    let scores = match model.is_reward() {
        true => values(model, &Drawn::new().rollouts(), 24),
        false => score(model, &Drawn::new().rollouts(), 1.0, 24),
    };
    (model.params().trained().map(value).collect(), scores.concat())
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Goal: whatever a step asks for runs on a device, and is what the processor does. Method: losses and the norms of
/// gradients of both, and how far the weights that a step along the gradient leaves are apart, as a share of what it
/// moved all of them by. In f32 both differ by the order of sums alone.
#[test]
fn every_kind_of_step_on_a_device_is_that_on_the_processor() {
    for (what, step) in STEPS {
        let on = |device: &Device| {
            let (learner, found) = step(&|name| model_as(name, device, Dtype::F32));
            device.check().unwrap();
            let (weights, scores) = left(&learner);
            (found, weights, scores)
        };
        let (want, want_weights, want_scores) = on(&Device::cpu(2));
        let mut first: Option<Vec<Vec<f32>>> = None;
        for emulated in Emulated::both() {
            let context = aha_compute::cuda::Context::new(emulated);
            let (found, weights, scores) = on(&Device::cpu(1).with_context(context));
            for (found, want) in found.iter().zip(want) {
                assert!((found / want - 1.0).abs() < 1e-4, "{what}: {found}, expected {want}");
            }
            let moved = 0.1 * want[1];
            let apart = weights.iter().flatten().zip(want_weights.iter().flatten());
            let apart = norm(apart.map(|(a, b)| f64::from(a - b))) / moved;
            assert!(apart < 1e-3, "{what}: weights are {apart:.1e} of the step apart");
            let off = scores.iter().zip(&want_scores).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 1e-4, "{what}: scores differ");
            assert!(*first.get_or_insert_with(|| weights.clone()) == weights, "{what}: orders");
        }
    }
}

/// Steps of imitation on texts of different lengths.
struct Imitation {
    texts: [Vec<u32>; 2],
    mask: [bool; 150],
}

impl Imitation {
    fn new() -> Imitation {
        Imitation { texts: [ids(1, 150), ids(2, 37)], mask: [true; 150] }
    }

    fn step(&self, learner: &mut Learner, settings: &StepSettings) -> f64 {
        let examples =
            self.texts.each_ref().map(|ids| Example { ids, loss_mask: &self.mask[..ids.len()] });
        let outcome = learner.sft_step(&examples, settings).unwrap();
        assert!(outcome.applied);
        outcome.totals.loss
    }
}

fn emulated() -> Device {
    let [emulated, _] = Emulated::both();
    let context = aha_compute::cuda::Context::new(emulated);
    Device::cpu(1).with_context(context).with_dtype(Dtype::Bf16)
}

/// How far what each weight is moved by in `got` is from that in `want`, as a share of it: of each weight and of all.
fn distances(got: &[Vec<f64>], want: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let apart = |(a, b): (&Vec<f64>, &Vec<f64>)| norm(a.iter().zip(b).map(|(a, b)| a - b));
    let aparts: Vec<f64> = got.iter().zip(want).map(apart).collect();
    let sizes: Vec<f64> = want.iter().map(|of| norm(of.iter().copied())).collect();
    let all = norm(aparts.iter().copied()) / norm(sizes.iter().copied());
    (aparts.iter().zip(sizes).map(|(a, b)| a / b).collect(), all)
}

/// The loss, and what a step along the gradient moves each weight by, of a model whose layers' matrices are `factor`
/// times those of the fixture.
fn moved(name: &str, device: &Device, factor: f32) -> (f64, Vec<Vec<f64>>) {
    let mut model = model_as(name, device, device.dtype());
    let matrices: Vec<_> = model
        .params()
        .ids()
        .filter(|id| model.params().name(*id).contains("proj.weight"))
        .collect();
    for id in matrices {
        let scaled: Vec<f32> = model.params().value(id).host().iter().map(|x| factor * x).collect();
        model.params_mut().value_mut(id).write(&scaled);
    }
    let model = Arc::new(model);
    let mut learner = Learner::new(Arc::clone(&model));
    let settings = StepSettings { micro_batch_tokens: 1000, ..by_gradient() };
    let loss = Imitation::new().step(&mut learner, &settings);
    device.check().unwrap();
    let step = |id| -> Vec<f64> {
        let [was, is] = [&model, learner.model()].map(|model| model.params().value(id).host());
        was.iter().zip(is.iter()).map(|(a, b)| f64::from(b - a)).collect()
    };
    (loss, model.params().ids().map(step).collect())
}

/// Goal: FP8 moves gradients by what three bits of mantissa must, and no more. Method: how far steps along the gradient
/// in bf16 and in FP8 are from that in f32. A factor of a product is rounded to 4 bits less than in bf16, so errors are
/// at most 16 times those of bf16, whatever a model makes of them (measured: 10.8 and 12.9; attention, norms and heads
/// are as they were). A quantum is off by some 2.5 %, and a product of two by some 3.7 %: with matrices so small that
/// layers don't magnify what they are given, all gradients are off by little more (measured: 7.0 %).
#[test]
fn gradients_in_fp8_are_off_by_what_its_mantissa_says() {
    let fp8 = emulated().with_fp8().unwrap();
    for (name, factor, bound) in [("tiny_llama", 1.0, 0.35), ("tiny_qwen3", 0.25, 0.09)] {
        let (loss, exact) = moved(name, &Device::cpu(2), factor);
        let [in_bf16, in_fp8] = [&emulated(), &fp8].map(|device| {
            let (found, steps) = moved(name, device, factor);
            assert!((found / loss - 1.0).abs() < 2e-3, "{name}: {found}, expected {loss}");
            distances(&steps, &exact)
        });
        let times = in_fp8.1 / in_bf16.1;
        assert!((4.0..16.0).contains(&times), "{name}: {times} times the distance of bf16");
        assert!(in_fp8.1 < bound, "{name}: {} of the gradient", in_fp8.1);
        // No weight stands out.
        for (i, off) in in_fp8.0.iter().enumerate() {
            assert!(*off < 1.5 * bound, "{name}, weight {i}: {off} of the gradient");
        }
    }
}

/// Goal: adapters are trained beside frozen layers in FP8, and heads of reward models behind layers that are trained.
/// Method: as above (measured: 12.5 and 14.5).
#[test]
fn adapters_and_heads_learn_beside_layers_in_fp8() {
    let imitating: Step = |load| {
        let mut learner = Learner::new(Arc::new(adapted(&load("tiny_qwen2"))));
        let settings = StepSettings { micro_batch_tokens: 1000, ..by_gradient() };
        let loss = Imitation::new().step(&mut learner, &settings);
        (learner, [loss, 0.0])
    };
    for (what, step) in [("adapters", imitating), ("preferences", preferences)] {
        let on = |device: &Device| -> Vec<f32> {
            let (learner, _) = step(&|name| model_as(name, device, device.dtype()));
            device.check().unwrap();
            left(&learner).0.concat()
        };
        let exact = on(&Device::cpu(2));
        let [in_bf16, in_fp8] = [emulated(), emulated().with_fp8().unwrap()]
            .map(|device| norm(on(&device).into_iter().zip(&exact).map(|(a, b)| f64::from(a - b))));
        let times = in_fp8 / in_bf16;
        assert!((4.0..16.0).contains(&times), "{what}: {times} times the distance of bf16");
    }
}

#[test]
fn steps_in_fp8_lower_the_loss_as_those_in_bf16_do() {
    let after = |device: &Device| {
        let mut learner = Learner::new(Arc::new(model_as("tiny_qwen2", device, Dtype::Bf16)));
        let (imitation, settings) = (Imitation::new(), settings(1000, false));
        let losses: Vec<f64> = (0..8).map(|_| imitation.step(&mut learner, &settings)).collect();
        // What was multiplied with is of the newest weights: a copy, which has to make it anew, says the same.
        let copy = learner.model().copy_on(device);
        let scores = |model: &Model| score(model, &Drawn::new().rollouts(), 1.0, 24);
        assert_eq!(scores(learner.model()), scores(&copy), "{device:?}");
        [losses[0], losses[7]]
    };
    let [bf16, fp8] = [emulated(), emulated().with_fp8().unwrap()].map(|device| after(&device));
    assert!(fp8[1] < 0.6 * fp8[0], "{fp8:?}");
    for (fp8, bf16) in fp8.iter().zip(bf16) {
        assert!((fp8 / bf16 - 1.0).abs() < 0.05, "{fp8}, in bf16 {bf16}");
    }
}
