//! On-policy distillation on whole models: the divergence from a teacher, its gradient, and where it leads.

use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::ops::lm_head;
use aha_compute::simd::Isa;
use aha_compute::{Device, Dtype, Tape, Tensor};
use aha_learn::learner::{Learner, OldLogps, Rollout, StepOutcome, StepSettings};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;
use aha_model::{Batch, Model};

use crate::{ids, model};

const TEMPERATURE: f32 = 0.9;

/// Without weight decay: what moves is the divergence's doing.
fn settings(micro_batch_tokens: usize, activation_checkpointing: bool) -> StepSettings {
    let settings = crate::settings(micro_batch_tokens, activation_checkpointing);
    StepSettings { hyper: Hyper { weight_decay: 0.0, ..settings.hyper }, ..settings }
}

struct Drawn {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    logps: Vec<f32>,
}

/// Two groups, whose completions differ in length.
fn drawn() -> Vec<Drawn> {
    let shapes = [(0, 5, 9), (0, 5, 1), (0, 5, 26), (1, 17, 12), (1, 17, 5)];
    let of = |(i, (group, prompt, completion)): (usize, (u64, usize, usize))| Drawn {
        prompt: ids(200 + group, prompt),
        completion: ids(50 + i as u64, completion),
        logps: vec![-5.0; completion],
    };
    shapes.into_iter().enumerate().map(of).collect()
}

fn rollouts(drawn: &[Drawn]) -> Vec<Rollout<'_>> {
    let of = |drawn| {
        let Drawn { prompt, completion, logps }: &Drawn = drawn;
        Rollout {
            prompt_ids: prompt,
            completion_ids: completion,
            behaviour_logps: logps,
            old: OldLogps::Behaviour,
            advantage: 0.0,
            token_advantages: None,
            mask: None,
        }
    };
    drawn.iter().map(of).collect()
}

fn objective() -> Objective {
    Preset::Distill.objective(64)
}

fn step(
    learner: &mut Learner,
    drawn: &[Drawn],
    objective: &Objective,
    settings: &StepSettings,
) -> StepOutcome {
    let lens: Vec<usize> = drawn.iter().map(|d| d.completion.len()).collect();
    let normaliser = Normaliser::of(objective, &lens);
    learner.policy_step(&rollouts(drawn), objective, normaliser, TEMPERATURE, settings).unwrap()
}

/// Log-probs of all tokens in the place of each of the completion's, in f64.
fn distributions(model: &Model, drawn: &Drawn) -> Vec<Vec<f64>> {
    let sequence = [drawn.prompt.as_slice(), &drawn.completion].concat();
    let mut tape = Tape::inference(model.device(), model.params());
    let hidden = model.hidden(&mut tape, Batch::packed(&sequence, [sequence.len()]), false);
    let rows = drawn.prompt.len() - 1..sequence.len() - 1;
    let hidden = tape.select_rows(&hidden, &rows.collect());
    let size = model.config().vocab_size;
    let mut logits = Tensor::zeros(model.device(), &[drawn.completion.len(), size]);
    let head = model.params().packed(model.head());
    lm_head::logits(&mut logits, hidden.value(), head, 1.0 / TEMPERATURE);
    let log_probs = |row: &[f32]| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        row.iter().map(|&l| f64::from(l) - sum.ln()).collect()
    };
    logits.as_slice().chunks_exact(size).map(log_probs).collect()
}

/// The mean over all completions' tokens of `sum_v p(v) (log p(v) - log q(v))`, sequence by sequence.
fn plain(student: &Model, teacher: &Model, drawn: &[Drawn]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for drawn in drawn {
        for (p, q) in distributions(student, drawn).iter().zip(distributions(teacher, drawn)) {
            sum += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            count += 1;
        }
    }
    sum / f64::from(count)
}

#[test]
fn the_divergence_is_that_of_whole_distributions_one_by_one() {
    let (drawn, device) = (drawn(), Device::cpu(2));
    for (student, teacher) in [("tiny_llama", "tiny_qwen3"), ("tiny_qwen3", "tiny_qwen2")] {
        let [student, teacher] = [student, teacher].map(|name| model(name, &device));
        let expected = plain(&student, &teacher, &drawn);
        for coef in [1.0, 0.25] {
            let mut learner = Learner::new(Arc::clone(&student));
            learner.set_teacher(Some(Arc::clone(&teacher)));
            let objective = Objective { distill_coef: coef, ..objective() };
            let totals = step(&mut learner, &drawn, &objective, &settings(40, true)).totals;
            let found = totals.divergence_mean().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
            assert!((totals.loss / (coef * found) - 1.0).abs() < 1e-9, "{totals:?}");
        }
        let mut learner = Learner::new(Arc::clone(&student));
        learner.set_teacher(Some(student));
        let totals = step(&mut learner, &drawn, &objective(), &settings(40, true)).totals;
        assert_eq!((totals.loss, totals.divergence_sum), (0.0, 0.0), "nothing to learn of itself");
    }
}

/// Goal: what a step follows is the derivative of the divergence. Method: with an `eps` this large AdamW goes along
/// the gradient, and the mean divergence must fall by the step's length times the square of its norm.
#[test]
fn the_gradient_is_the_slope_of_the_divergence() {
    let (drawn, device) = (drawn(), Device::cpu(2));
    let teacher = model("tiny_qwen3", &device);
    for name in ["tiny_llama", "tiny_qwen2"] {
        let student = model(name, &device);
        let moved = |rate: f64| {
            let mut learner = Learner::new(Arc::clone(&student));
            learner.set_teacher(Some(Arc::clone(&teacher)));
            let mut settings = settings(1000, false);
            settings.hyper = Hyper { lr: rate * 1e8, eps: 1e8, ..settings.hyper };
            settings.grad_norm_max = None;
            let outcome = step(&mut learner, &drawn, &objective(), &settings);
            (plain(learner.model(), &teacher, &drawn), outcome.grad_norm)
        };
        let (before, norm) = moved(0.0);
        let rate = 1e-3 * before / (norm * norm);
        let slope = (before - moved(rate).0) / rate;
        let off = slope / (norm * norm) - 1.0;
        assert!(off.abs() < 0.03, "{name}: {slope}, expected {}", norm * norm);
    }
}

#[test]
fn a_student_comes_close_to_its_teacher() {
    let (drawn, device) = (drawn(), Device::cpu(2));
    let teacher = model("tiny_qwen3", &device);
    let mut learner = Learner::new(model("tiny_llama", &device));
    learner.set_teacher(Some(Arc::clone(&teacher)));
    let before = plain(learner.model(), &teacher, &drawn);
    let mut settings = settings(1000, false);
    settings.hyper.lr = 5e-3;
    for _ in 0..60 {
        assert!(step(&mut learner, &drawn, &objective(), &settings).applied);
    }
    let after = plain(learner.model(), &teacher, &drawn);
    assert!(after < 0.2 * before, "{before}, then {after}");
}

#[test]
fn micro_batches_checkpointing_threads_and_lanes_change_no_bit() {
    let drawn = drawn();
    let objective = Objective { entropy_coef: 0.01, kl_coef: 0.05, ..objective() };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut first: Option<(Vec<u32>, StepOutcome)> = None;
        for isa in Isa::available() {
            for (threads, micro_batch_tokens, checkpointing) in
                [(1, 1, false), (2, 30, true), (1, 45, false), (2, 100_000, false)]
            {
                let device = Device::cpu_with(threads, isa).with_dtype(dtype);
                let mut learner = Learner::new(model("tiny_llama", &device));
                learner.set_teacher(Some(model("tiny_qwen3", &device)));
                learner.set_reference(Some(model("tiny_llama", &device)));
                let settings = settings(micro_batch_tokens, checkpointing);
                step(&mut learner, &drawn, &objective, &settings);
                let outcome = step(&mut learner, &drawn, &objective, &settings);
                let params = learner.model().params();
                let bits = |id| params.value(id).as_slice().iter().map(|x| x.to_bits());
                let weights: Vec<u32> = params.ids().flat_map(bits).collect();
                let (want, want_outcome) = first.get_or_insert_with(|| (weights.clone(), outcome));
                let what = format!("{dtype} {isa} {threads} {micro_batch_tokens} {checkpointing}");
                assert!(*want == weights, "{what}: other weights");
                assert_eq!(*want_outcome, outcome, "{what}");
            }
        }
    }
}

#[test]
fn without_a_teacher_there_is_nothing_to_learn_from() {
    let drawn = drawn();
    let mut learner = Learner::new(model("tiny_llama", &Device::cpu(1)));
    let normaliser = Normaliser::of(&objective(), &[9, 1, 26, 12, 5]);
    let outcome = learner.policy_step(
        &rollouts(&drawn),
        &objective(),
        normaliser,
        TEMPERATURE,
        &settings(1000, false),
    );
    assert!(outcome.unwrap_err().to_string().contains("needs a teacher"));
    // One that the objective doesn't ask for costs nothing and changes nothing.
    let plain = Objective { distill_coef: 0.0, ..objective() };
    let totals = step(&mut learner, &drawn, &plain, &settings(1000, false)).totals;
    assert_eq!(totals.divergence_mean(), None);
}
