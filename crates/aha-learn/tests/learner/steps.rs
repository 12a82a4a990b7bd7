//! Steps of whole models: what may change the weights, and what may not.

use std::sync::Arc;

use aha_compute::ops::adamw::Hyper;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_compute::{Device, Dtype, Grads, Tape, Tensor};
use aha_learn::learner::{
    Example, Learner, OldLogps, Pair, PreferenceOutcome, Rollout, StepOutcome, StepSettings,
    compare, score,
};
use aha_learn::objective::{Aggregation, Normaliser, Objective, SequenceTerms, loss};
use aha_learn::preference::{self, PairScores};
use aha_learn::preset::Preset;
use aha_model::{Batch, Model};

use crate::{distributions, ids, model, model_as, settings};

pub(super) struct Drawn {
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

/// Groups of several completions, one of a single token among them: 38, 101, 16 and 33 tokens at once.
pub(super) fn drawn_groups() -> Vec<Drawn> {
    let groups: [(usize, &[usize]); 4] =
        [(5, &[9, 1, 26]), (37, &[30, 16, 17, 5]), (16, &[1, 1]), (20, &[14])];
    let rows = groups.iter().enumerate().flat_map(|(group, &(prompt, completions))| {
        completions.iter().map(move |&completion| (group as u64, prompt, completion))
    });
    let of = |(i, (group, prompt, completion)): (usize, (u64, usize, usize))| Drawn {
        prompt: ids(200 + group, prompt),
        completion: ids(50 + i as u64, completion),
        logps: ids(90 + i as u64, completion).iter().map(|&x| -5.0 - x as f32 / 200.0).collect(),
        advantage: [1.2, -0.7, 0.4, -1.1, 0.3][i % 5],
    };
    rows.enumerate().map(of).collect()
}

pub(super) fn rollouts(drawn: &[Drawn]) -> Vec<Rollout<'_>> {
    let of = |d| {
        let Drawn { prompt, completion, logps, advantage }: &Drawn = d;
        Rollout {
            prompt_ids: prompt,
            completion_ids: completion,
            behaviour_logps: logps,
            old: OldLogps::Behaviour,
            advantage: *advantage,
            token_advantages: None,
            mask: None,
        }
    };
    drawn.iter().map(of).collect()
}

/// Settings that use every term: KL to a reference and an entropy bonus.
pub(super) fn objective() -> Objective {
    Objective { kl_coef: 0.05, entropy_coef: 0.01, ..Preset::DeepseekR1.objective(64) }
}

fn two_steps(learner: &mut Learner, settings: &StepSettings) -> StepOutcome {
    two_steps_on(learner, &drawn(), &objective(), settings)
}

fn two_steps_on(
    learner: &mut Learner,
    drawn: &[Drawn],
    objective: &Objective,
    settings: &StepSettings,
) -> StepOutcome {
    let rollouts = rollouts(drawn);
    let normaliser = Normaliser::of(objective, &completion_lens(drawn));
    let mut outcome = None;
    for _ in 0..2 {
        outcome =
            Some(learner.policy_step(&rollouts, objective, normaliser, 0.9, settings).unwrap());
    }
    outcome.unwrap()
}

pub(super) fn completion_lens(drawn: &[Drawn]) -> Vec<usize> {
    drawn.iter().map(|d| d.completion.len()).collect()
}

/// Settings that use every term, with each aggregation.
fn objectives() -> [Objective; 4] {
    [
        Aggregation::SequenceMean,
        Aggregation::TokenMean,
        Aggregation::RolloutTokenMean,
        Aggregation::Constant { length_tokens: 64 },
    ]
    .map(|aggregation| Objective { aggregation, ..objective() })
}

fn weights(learner: &Learner) -> Vec<u32> {
    let params = learner.model().params();
    params.ids().flat_map(|id| params.value(id).as_slice().iter().map(|x| x.to_bits())).collect()
}

#[test]
fn micro_batches_checkpointing_threads_and_lanes_change_no_bit() {
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut first: Option<(Vec<u32>, StepOutcome)> = None;
            for isa in Isa::available() {
                // The portable path is slow where the compiler has no fused multiply-add.
                let runs = [(1, 1, false), (2, 64, true), (1, 90, true), (2, 100_000, false)];
                let runs = if isa == Isa::Portable { &runs[1..2] } else { &runs[..] };
                for &(threads, micro_batch_tokens, checkpointing) in runs {
                    let device = Device::cpu_with(threads, isa);
                    let model = Arc::new(model_as(name, &device, dtype));
                    let mut learner = Learner::new(Arc::clone(&model));
                    learner.set_reference(Some(model));
                    let settings = settings(micro_batch_tokens, checkpointing);
                    let outcome = two_steps(&mut learner, &settings);
                    assert!(outcome.applied);
                    let (want, want_outcome) =
                        first.get_or_insert_with(|| (weights(&learner), outcome));
                    let what = format!(
                        "{name} {dtype} {isa} {threads} {micro_batch_tokens} {checkpointing}"
                    );
                    assert!(*want == weights(&learner), "{what}: other weights");
                    assert_eq!(*want_outcome, outcome, "{what}");
                }
            }
        }
    }
}

/// Goal: bf16 computes the same step but for rounding. Method: gradients of a whole minibatch; the distance to
/// those in `f32` is some roundings of 2^-9 of their norm, and not none.
#[test]
fn gradients_in_bf16_are_close_to_those_in_f32() {
    let device = Device::cpu(2);
    let sequence = ids(3, 70);
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let [wide, half] = [Dtype::F32, Dtype::Bf16].map(|dtype| {
            let model = Arc::new(model_as(name, &device, dtype));
            let mut tape = Tape::recording(&device, model.params());
            let hidden = model.hidden(&mut tape, Batch::packed(&sequence, [70]), false);
            let hidden = tape.select_rows(&hidden, &(0..69).collect());
            let targets = sequence[1..].into();
            let (logps, _) = tape.log_probs(&hidden, model.head(), &targets, 1.0);
            let seed = Tensor::from_slice(&device, &[69], &[-1.0 / 69.0; 69]);
            let mut grads = Grads::zeros(&device, model.params());
            tape.backward(vec![(logps, seed)], &mut grads);
            grads.finish();
            let all: Vec<f32> = grads.iter().flat_map(|g| g.as_slice().to_vec()).collect();
            all
        });
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let off = norm(&mut wide.iter().zip(&half).map(|(a, b)| a - b));
        let share = (off / norm(&mut wide.iter().copied())).sqrt();
        assert!((1e-4..5e-2).contains(&share), "{name}: off by {share} of the norm");
    }
}

/// Groups of 38, 101, 16 and 33 tokens: cut into single completions, in two or three parts, and not at all.
#[test]
fn micro_batches_that_cut_groups_change_no_bit() {
    for name in ["tiny_llama", "tiny_qwen2", "tiny_qwen3"] {
        for (i, objective) in objectives().into_iter().enumerate() {
            let dtype = [Dtype::F32, Dtype::Bf16][i % 2];
            let mut first: Option<(Vec<u32>, StepOutcome)> = None;
            for (threads, micro_batch_tokens, checkpointing) in [
                (2, 100_000, false),
                (1, 1, false),
                (2, 60, true),
                (2, 85, false),
                (1, 101, false),
                (2, 117, true),
            ] {
                let model = Arc::new(model_as(name, &Device::cpu(threads), dtype));
                let mut learner = Learner::new(Arc::clone(&model));
                learner.set_reference(Some(model));
                let settings = settings(micro_batch_tokens, checkpointing);
                let outcome = two_steps_on(&mut learner, &drawn_groups(), &objective, &settings);
                assert!(outcome.applied);
                let (want, want_outcome) =
                    first.get_or_insert_with(|| (weights(&learner), outcome));
                let what = format!("{name} {objective:?} {threads} {micro_batch_tokens}");
                assert!(*want == weights(&learner), "{what}: other weights");
                assert_eq!(*want_outcome, outcome, "{what}");
            }
        }
    }
}

/// The gradient of a step of the learner, and what else came of it: with an `eps` this large AdamW subtracts
/// a hundred times the gradient.
fn gradient(
    model: &Arc<Model>,
    drawn: &[Drawn],
    objective: &Objective,
    micro_batch_tokens: usize,
) -> (Vec<f64>, StepOutcome) {
    let mut learner = Learner::new(Arc::clone(model));
    learner.set_reference(Some(Arc::clone(model)));
    let mut settings = settings(micro_batch_tokens, true);
    settings.hyper = Hyper { lr: 1e10, eps: 1e8, weight_decay: 0.0, ..settings.hyper };
    settings.grad_norm_max = None;
    let normaliser = Normaliser::of(objective, &completion_lens(drawn));
    let outcome =
        learner.policy_step(&rollouts(drawn), objective, normaliser, 0.9, &settings).unwrap();
    let values = |model: &Model| -> Vec<f64> {
        let params = model.params();
        params.ids().flat_map(|id| params.value(id).as_slice().to_vec()).map(f64::from).collect()
    };
    let moved = values(learner.model());
    (values(model).iter().zip(moved).map(|(w, moved)| (w - moved) / 100.0).collect(), outcome)
}

/// The same gradient from whole sequences, each with its prompt, and the loss.
fn gradient_of_whole_sequences(
    model: &Model,
    drawn: &[Drawn],
    objective: &Objective,
) -> (Vec<f64>, f64) {
    let sequences: Vec<Vec<u32>> =
        drawn.iter().map(|d| [d.prompt.as_slice(), &d.completion].concat()).collect();
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for (d, sequence) in drawn.iter().zip(&sequences) {
        rows.extend(start + d.prompt.len() - 1..start + sequence.len() - 1);
        targets.extend(&d.completion);
        start += sequence.len();
    }
    let mut tape = Tape::recording(model.device(), model.params());
    let ids = sequences.concat();
    let batch = Batch::packed(&ids, sequences.iter().map(Vec::len));
    let hidden = model.hidden(&mut tape, batch, false);
    let hidden = tape.select_rows(&hidden, &rows.into());
    let (logps, entropies) = tape.log_probs(&hidden, model.head(), &targets.into(), 1.0 / 0.9);
    let mut start = 0;
    let terms: Vec<SequenceTerms<'_>> = drawn
        .iter()
        .map(|d| {
            let range = start..start + d.completion.len();
            start = range.end;
            SequenceTerms {
                logps: &logps.value().as_slice()[range.clone()],
                old_logps: Some(&d.logps),
                // The reference is the model itself.
                ref_logps: Some(&logps.value().as_slice()[range.clone()]),
                entropies: Some(&entropies.value().as_slice()[range]),
                advantage: d.advantage,
                ..SequenceTerms::default()
            }
        })
        .collect();
    let normaliser = Normaliser::of(objective, &completion_lens(drawn));
    let out = loss(objective, &terms, &normaliser);
    let seed = |values: &[f32]| Tensor::from_slice(model.device(), &[values.len()], values);
    let seeds = vec![
        (logps.clone(), seed(&out.dlogps)),
        (entropies.clone(), seed(out.dentropies.as_ref().unwrap())),
    ];
    let mut grads = Grads::zeros(model.device(), model.params());
    tape.backward(seeds, &mut grads);
    grads.finish();
    let gradient = grads.iter().flat_map(|t| t.as_slice().to_vec()).map(f64::from).collect();
    (gradient, out.loss())
}

#[test]
fn a_shared_prompt_has_the_gradient_of_whole_sequences() {
    let drawn = drawn_groups();
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let model = model(name, &Device::cpu(2));
        for objective in objectives() {
            let (want, want_loss) = gradient_of_whole_sequences(&model, &drawn, &objective);
            // With 60 tokens the second group is cut in three, with one every group in single completions.
            for micro_batch_tokens in [1, 60, 101, 100_000] {
                let (got, outcome) = gradient(&model, &drawn, &objective, micro_batch_tokens);
                let what = format!("{name} {micro_batch_tokens} {:?}", objective.aggregation);
                // Log-probs have the same bits, so the loss has.
                assert_eq!(outcome.totals.loss, want_loss, "{what}");
                let square = |x: f64| x * x;
                let off: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
                let norm: f64 = want.iter().copied().map(square).sum();
                let off = (off / norm).sqrt();
                assert!(off < 2e-6, "{what}: off by {off:e} of its norm");
            }
        }
    }
}

#[test]
fn a_shared_prompt_changes_no_bit_of_a_log_prob() {
    let drawn = drawn_groups();
    let sequences: Vec<Vec<u32>> =
        drawn.iter().map(|d| [d.prompt.as_slice(), &d.completion].concat()).collect();
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        for isa in Isa::available() {
            let model = model(name, &Device::cpu_with(2, isa));
            let whole = model.log_probs(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let whole = whole.unwrap();
            for micro_batch_tokens in [1, 60, 100_000] {
                let shared = score(&model, &rollouts(&drawn), 1.0, micro_batch_tokens);
                for (i, d) in drawn.iter().enumerate() {
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let want = bits(&whole[i][d.prompt.len() - 1..]);
                    assert_eq!(bits(&shared[i]), want, "{name} {isa} {micro_batch_tokens} {i}");
                }
            }
        }
    }
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
    let mut drawn = drawn_groups();
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

/// Goal: everything that a step measures of a distribution is of that at the temperature. Method: logits of whole
/// sequences and the softmax written out, at temperatures on both sides of one.
#[test]
fn log_probs_and_entropies_are_those_at_the_temperature() {
    let model = model("tiny_qwen3", &Device::cpu(2));
    let mut drawn = drawn();
    for temperature in [0.5, 2.0] {
        let (mut entropy, mut count) = (0.0, 0);
        let scores = score(&model, &rollouts(&drawn), temperature, 64);
        for (drawn, scores) in drawn.iter_mut().zip(scores) {
            let all = distributions(&model, &drawn.prompt, &drawn.completion, temperature);
            for ((log_probs, &id), score) in all.iter().zip(&drawn.completion).zip(&scores) {
                let want = log_probs[id as usize];
                assert!((f64::from(*score) - want).abs() < 1e-5, "{temperature}: {score} {want}");
                entropy -= log_probs.iter().map(|p| p.exp() * p).sum::<f64>();
                count += 1;
            }
            drawn.logps = scores;
        }
        let mut learner = Learner::new(Arc::clone(&model));
        learner.set_reference(Some(Arc::clone(&model)));
        let normaliser = Normaliser::of(&objective(), &completion_lens(&drawn));
        let settings = settings(64, false);
        let step = learner.policy_step(
            &rollouts(&drawn),
            &objective(),
            normaliser,
            temperature,
            &settings,
        );
        let totals = step.unwrap().totals;
        assert_eq!((totals.ratio_mean(), totals.kl_mean()), (1.0, Some(0.0)), "{temperature}");
        let found = totals.entropy_mean().unwrap() * f64::from(count) / entropy;
        assert!((found - 1.0).abs() < 1e-5, "{temperature}: {found}");
    }
}

/// Goal: a gradient above the bound is scaled down to it, and any other is left alone. Method: steps that go along the
/// gradient, with no bound, with half of its norm and with twice that.
#[test]
fn a_gradient_is_scaled_down_to_its_bound() {
    let (text, model) = (ids(1, 60), model("tiny_llama", &Device::cpu(2)));
    let step = |grad_norm_max| {
        let mut learner = Learner::new(Arc::clone(&model));
        let mut settings = StepSettings { grad_norm_max, ..settings(512, false) };
        settings.hyper = Hyper { lr: 1e10, eps: 1e8, weight_decay: 0.0, ..settings.hyper };
        let examples = [Example { ids: &text, loss_mask: &[true; 60] }];
        let norm = learner.sft_step(&examples, &settings).unwrap().grad_norm;
        let weights = |model: &Model| -> Vec<f64> {
            let params = model.params();
            let of = |id| params.value(id).as_slice().iter().map(|&w| f64::from(w));
            params.ids().flat_map(of).collect()
        };
        let before = weights(&model).into_iter();
        let way: Vec<f64> = before.zip(weights(learner.model())).map(|(a, b)| a - b).collect();
        (norm, way)
    };
    let (norm, whole) = step(None);
    assert_eq!(step(Some(2.0 * norm)), (norm, whole.clone()));
    let (same_norm, half) = step(Some(norm / 2.0));
    assert_eq!(same_norm, norm, "it is measured before");
    let square = |x: f64| x * x;
    let off: f64 = whole.iter().zip(&half).map(|(a, b)| square(a / 2.0 - b)).sum();
    let all: f64 = whole.into_iter().map(square).sum();
    assert!(all > 0.0 && off < square(1e-4) * all, "{off} of {all}");
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
        old: OldLogps::Behaviour,
        advantage: 1.0,
        token_advantages: None,
        mask: None,
    };
    assert!(refuse(Rollout { prompt_ids: &[], ..rollout }).contains("prompt"));
    assert!(refuse(Rollout { behaviour_logps: &[-1.0], ..rollout }).contains("log-probs"));
    assert!(refuse(Rollout { mask: Some(&[true]), ..rollout }).contains("mask"));
    let few = Rollout { token_advantages: Some(&[1.0]), ..rollout };
    assert!(refuse(few).contains("advantages of a rollout's tokens"));
    let scored = Rollout { old: OldLogps::Scored(&[-1.0]), ..rollout };
    assert!(refuse(scored).contains("old log-probs"));
}

/// Goal: completions of a sampler that computes otherwise are weighted by how far it is off. Method: one step each
/// with the correction, without it, with another cap, and from a sampler that isn't off.
#[test]
fn a_sampler_that_computes_otherwise_is_corrected_up_to_the_cap() {
    let model = model("tiny_llama", &Device::cpu(2));
    let mut drawn = drawn();
    let step = |drawn: &[Drawn], olds: &dyn Fn(usize) -> OldLogps<'static>, importance_cap| {
        let objective = Objective { importance_cap, kl_coef: 0.0, ..objective() };
        let mut rollouts = rollouts(drawn);
        rollouts.iter_mut().enumerate().for_each(|(i, rollout)| rollout.old = olds(i));
        let mut learner = Learner::new(Arc::clone(&model));
        let normaliser = Normaliser::of(&objective, &completion_lens(drawn));
        let settings = settings(64, false);
        let outcome = learner.policy_step(&rollouts, &objective, normaliser, 0.9, &settings);
        (weights(&learner), outcome.unwrap().totals)
    };
    let scores: &'static [Vec<f32>] = score(&model, &rollouts(&drawn), 0.9, 64).leak();
    for (drawn, scores) in drawn.iter_mut().zip(scores) {
        // The sampler's are off by up to 1.2 either way.
        let off = |(i, score): (usize, &f32)| score + 1.2 * (i as f32 * 1.7).sin();
        drawn.logps = scores.iter().enumerate().map(off).collect();
    }
    let current = |_| OldLogps::Current;
    let (corrected, totals) = step(&drawn, &current, 2.0);
    let importance = totals.importance().unwrap();
    assert!(importance.max == 2.0 && importance.cut_share > 0.1 && importance.mean > 1.0);
    assert!((0.5..1.0).contains(&importance.sampler_gap_mean), "{importance:?}");
    assert_eq!((totals.ratio_max, totals.ratio_mean()), (1.0, 1.0));
    assert_eq!(step(&drawn, &|i| OldLogps::Scored(&scores[i]), 2.0), (corrected.clone(), totals));
    let (uncorrected, without) = step(&drawn, &|_| OldLogps::Behaviour, 2.0);
    assert_eq!(without.importance(), None);
    assert!(corrected != uncorrected && totals.loss != without.loss);
    let (higher, more) = step(&drawn, &current, 1e9);
    assert!(higher != corrected && more.loss != totals.loss);
    assert!(more.importance().unwrap().max > 3.0);
    for (drawn, scores) in drawn.iter_mut().zip(scores) {
        drawn.logps.clone_from(scores);
    }
    let [on, off] = [OldLogps::Current, OldLogps::Behaviour].map(|old| step(&drawn, &|_| old, 2.0));
    assert_eq!((&on.0, on.1.loss), (&off.0, off.1.loss));
    assert!(on.0 != corrected && on.1.loss != totals.loss, "weights of one are others");
    assert_eq!(on.1.importance().unwrap().mean, 1.0);
}

/// Pairs of odd lengths; the last two share their prompt and a margin.
pub(super) fn preferences() -> Vec<(Vec<u32>, Vec<u32>, f32)> {
    let lens = [(9, 14), (30, 3), (1, 1), (47, 46), (22, 8)];
    let of = |(i, (chosen, rejected)): (usize, (usize, usize))| {
        (ids(i as u64, chosen), ids(70 + i as u64, rejected), [0.0, 0.0, 0.0, 0.5, 0.5][i])
    };
    lens.into_iter().enumerate().map(of).collect()
}

pub(super) fn pairs(preferences: &[(Vec<u32>, Vec<u32>, f32)]) -> Vec<Pair<'_>> {
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
