//! Steps of models with low-rank adapters: what changes, by how much, and what stays.

use std::sync::Arc;

use aha_compute::ops::matmul::reference;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_compute::{Device, Dtype, Grads, ParamId, Tape, Tensor};
use aha_learn::learner::{Example, Learner, OldLogps, Pair, Rollout, StepSettings, score};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;
use aha_model::{Batch, Lora, Model, Target};

use crate::{ids, model_as, settings};

const TINY: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];

fn lora() -> Lora {
    Lora { rank: 4, alpha: 6.0, targets: Target::ALL.to_vec(), is_rank_stabilised: false }
}

/// New adapters, whose second matrices are noise, so that the first ones have gradients.
fn adapted(model: &Model, lora: &Lora) -> Model {
    let mut adapted = model.with_lora(lora, Philox::new(1)).unwrap();
    let ids: Vec<ParamId> = adapted.params().trained().collect();
    for (seed, id) in ids.into_iter().enumerate().filter(|(i, _)| i % 2 == 1) {
        let random = Philox::new(seed as u64);
        let values = adapted.params_mut().value_mut(id).as_mut_slice();
        (0..).zip(values).for_each(|(i, x)| *x = (0.05 * random.normal(i)) as f32);
    }
    adapted
}

struct Drawn {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    logps: Vec<f32>,
}

/// Groups of 38, 101 and 33 tokens at once.
fn drawn() -> Vec<Drawn> {
    let groups: [(usize, &[usize]); 3] = [(5, &[9, 1, 26]), (37, &[30, 16, 17, 5]), (20, &[14])];
    let rows = groups.iter().enumerate().flat_map(|(group, &(prompt, completions))| {
        completions.iter().map(move |&completion| (group as u64, prompt, completion))
    });
    let of = |(i, (group, prompt, completion)): (usize, (u64, usize, usize))| Drawn {
        prompt: ids(200 + group, prompt),
        completion: ids(50 + i as u64, completion),
        logps: ids(90 + i as u64, completion).iter().map(|&x| -5.0 - x as f32 / 200.0).collect(),
    };
    rows.enumerate().map(of).collect()
}

fn rollouts(drawn: &[Drawn]) -> Vec<Rollout<'_>> {
    let advantages = [1.2, -0.7, 0.4, -1.1, 0.3].into_iter().cycle();
    drawn
        .iter()
        .zip(advantages)
        .map(|(d, advantage)| Rollout {
            prompt_ids: &d.prompt,
            completion_ids: &d.completion,
            behaviour_logps: &d.logps,
            old: OldLogps::Behaviour,
            advantage,
            token_advantages: None,
            mask: None,
        })
        .collect()
}

fn objective() -> Objective {
    Objective { kl_coef: 0.05, entropy_coef: 0.01, ..Preset::DeepseekR1.objective(64) }
}

fn step(learner: &mut Learner, drawn: &[Drawn], settings: &StepSettings) -> Option<f64> {
    let lens: Vec<usize> = drawn.iter().map(|d| d.completion.len()).collect();
    let normaliser = Normaliser::of(&objective(), &lens);
    let outcome =
        learner.policy_step(&rollouts(drawn), &objective(), normaliser, 0.9, settings).unwrap();
    assert!(outcome.applied);
    outcome.totals.kl_mean()
}

fn bits(model: &Model, ids: impl IntoIterator<Item = ParamId>) -> Vec<u32> {
    let values = |id| model.params().value(id).as_slice().iter().map(|x| x.to_bits());
    ids.into_iter().flat_map(values).collect()
}

/// The gradient of a sequence's mean log-prob with respect to every weight that is trained.
fn gradients(model: &Model, sequence: &[u32]) -> Grads {
    let len = sequence.len() - 1;
    let mut tape = Tape::recording(model.device(), model.params());
    let hidden = model.hidden(&mut tape, Batch::packed(sequence, [len + 1]), true);
    let hidden = tape.select_rows(&hidden, &(0..len).collect());
    let (logps, _) = tape.log_probs(&hidden, model.head(), &sequence[1..].into(), 1.0);
    let seed = Tensor::from_slice(model.device(), &[len], &vec![1.0 / len as f32; len]);
    let mut grads = Grads::zeros(model.device(), model.params());
    tape.backward(vec![(logps, seed)], &mut grads);
    grads.finish();
    grads
}

/// Goal: gradients of a whole model's adapters. Method: the chain rule. Of the merged weight `w + s b·a` with the
/// gradient `g`, that of `a` is `s bᵀ·g` and that of `b` is `s g·aᵀ`; `g` comes from a model without adapters.
#[test]
fn gradients_of_adapters_are_the_chain_rule_over_those_of_merged_weights() {
    let sequence = ids(3, 70);
    for name in TINY {
        let model = adapted(&model_as(name, &Device::cpu(2), Dtype::F32), &lora());
        let merged = model.clone().merged().unwrap();
        let (of_adapters, of_weights) =
            (gradients(&model, &sequence), gradients(&merged, &sequence));
        let params = model.params();
        let wide =
            |t: &Tensor| -> Vec<f64> { t.as_slice().iter().map(|&x| f64::from(x)).collect() };
        let scale = f64::from(lora().scale());
        let mut count = 0;
        for a_id in params.trained().filter(|id| params.name(*id).ends_with("lora_A.weight")) {
            let path = params.name(a_id).trim_end_matches(".lora_A.weight");
            let b_id = params.find(&format!("{path}.lora_B.weight")).unwrap();
            let w_id = merged.params().find(&format!("{path}.weight")).unwrap();
            let g = wide(of_weights.get(w_id));
            let [a, b] = [a_id, b_id].map(|id| wide(params.value(id)));
            let (inp, rank) = (params.value(a_id).cols(), lora().rank);
            let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
            reference::backward_weight(&mut da, &b, &g, inp);
            reference::forward(&mut db, &g, &a, None, inp);
            for (id, want) in [(a_id, da), (b_id, db)] {
                let got = wide(of_adapters.get(id));
                assert_eq!(got.len(), want.len());
                let off: f64 = got.iter().zip(&want).map(|(a, b)| (a - scale * b).powi(2)).sum();
                let norm: f64 = want.iter().map(|x| (scale * x).powi(2)).sum();
                let off = (off / norm).sqrt();
                assert!(norm > 0.0 && off < 2e-5, "{name} {}: off by {off:e}", params.name(id));
            }
            count += usize::from(rank > 0);
        }
        assert_eq!(count, 7 * model.config().layer_count);
    }
}

#[test]
fn micro_batches_checkpointing_threads_and_lanes_change_no_bit_and_frozen_weights_stay() {
    for name in TINY {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let runs = [(1, 1, false), (2, 60, true), (1, 101, true), (2, 100_000, false)];
                let runs = if isa == Isa::Portable { &runs[1..2] } else { &runs[..] };
                for &(threads, micro_batch_tokens, checkpointing) in runs {
                    let base = model_as(name, &Device::cpu_with(threads, isa), dtype);
                    let policy = base.with_lora(&lora(), Philox::new(1)).unwrap();
                    let mut learner = Learner::new(Arc::new(policy));
                    learner.set_reference(Some(Arc::new(base.clone())));
                    let settings = settings(micro_batch_tokens, checkpointing);
                    // The policy begins as the reference is, bit for bit.
                    assert_eq!(step(&mut learner, &drawn(), &settings), Some(0.0));
                    assert!(step(&mut learner, &drawn(), &settings) > Some(0.0));
                    let model = learner.model();
                    let [was, is] = [&base, &**model].map(|model| bits(model, base.params().ids()));
                    assert!(was == is, "{name}");
                    let found = bits(model, model.params().trained());
                    let what = format!("{name} {dtype} {isa} {threads} {micro_batch_tokens}");
                    assert!(*first.get_or_insert_with(|| found.clone()) == found, "{what}");
                }
            }
        }
    }
}

/// The reference's weights and the policy's are in memory once.
#[test]
fn a_step_copies_no_frozen_weight() {
    let base = Arc::new(model_as("tiny_llama", &Device::cpu(1), Dtype::F32));
    let policy = Arc::new(base.with_lora(&lora(), Philox::new(1)).unwrap());
    let mut learner = Learner::new(Arc::clone(&policy));
    learner.set_reference(Some(Arc::clone(&base)));
    step(&mut learner, &drawn(), &settings(512, false));
    let at = |model: &Model, id| model.params().value(id).as_slice().as_ptr();
    for id in base.params().ids() {
        assert_eq!(at(&base, id), at(learner.model(), id));
    }
    let changed = policy.params().trained().next().unwrap();
    assert_ne!(at(&policy, changed), at(learner.model(), changed), "its holder keeps it");
    let adapters = learner.model().params().trained_element_count();
    let held: usize =
        learner.model().params().trained().map(|id| learner.optimizer().moments(id).0.len()).sum();
    assert_eq!(held, adapters);
}

#[test]
fn a_learner_goes_on_from_saved_state_as_if_never_saved() {
    let base = model_as("tiny_qwen3", &Device::cpu(2), Dtype::F32);
    let policy = base.with_lora(&lora(), Philox::new(1)).unwrap();
    let mut learner = Learner::new(Arc::new(policy));
    learner.set_reference(Some(Arc::new(base.clone())));
    step(&mut learner, &drawn(), &settings(512, false));
    let (model, adamw) = (Arc::clone(learner.model()), learner.optimizer().clone());
    let mut again = Learner::resume(Arc::new((*model).clone()), adamw, learner.version());
    again.set_reference(Some(Arc::new(base)));
    for learner in [&mut learner, &mut again] {
        step(learner, &drawn(), &settings(77, true));
    }
    assert_eq!(again.version(), 2);
    let all = |learner: &Learner| bits(learner.model(), learner.model().params().ids());
    assert!(all(&learner) == all(&again));
    assert!(all(&again) != bits(&model, model.params().ids()));
}

#[test]
fn steps_lower_the_loss_of_what_they_imitate() {
    let text = ids(1, 60);
    let mask = vec![true; 60];
    let examples = [Example { ids: &text, loss_mask: &mask }];
    let base = model_as("tiny_qwen3", &Device::cpu(2), Dtype::F32);
    let mut learner = Learner::new(Arc::new(base.with_lora(&lora(), Philox::new(1)).unwrap()));
    let mut settings = settings(512, false);
    settings.hyper.lr = 1e-2;
    let mut step = || learner.sft_step(&examples, &settings).unwrap().totals.loss;
    let first = step();
    let last = (0..20).map(|_| step()).last().unwrap();
    assert!(last < 0.7 * first, "{first} {last}");
}

#[test]
fn a_reward_model_s_adapters_and_head_learn_and_nothing_else() {
    let base =
        model_as("tiny_qwen2", &Device::cpu(2), Dtype::F32).to_reward(Philox::new(4)).unwrap();
    let policy = base.with_lora(&lora(), Philox::new(1)).unwrap();
    let (chosen, rejected) = (ids(1, 20), ids(2, 23));
    let pairs = [Pair { chosen: &chosen, rejected: &rejected, margin: 0.0 }];
    let mut learner = Learner::new(Arc::new(policy));
    let mut settings = settings(512, false);
    settings.hyper.lr = 1e-2;
    let mut step = || learner.preference_step(&pairs, 0.0, &settings).unwrap().totals.loss;
    let first = step();
    let last = (0..20).map(|_| step()).last().unwrap();
    assert!(last < 0.5 * first, "{first} {last}");
    for id in base.params().ids() {
        let is_head = base.params().name(id) == "score.weight";
        assert_eq!(bits(&base, [id]) != bits(learner.model(), [id]), is_head);
    }
}

/// What a learner that has adapters gives away at the end computes the same.
#[test]
fn the_merged_model_of_a_learner_scores_as_its_policy() {
    let base = model_as("tiny_llama", &Device::cpu(2), Dtype::F32);
    let mut learner = Learner::new(Arc::new(adapted(&base, &lora())));
    learner.set_reference(Some(Arc::new(base)));
    step(&mut learner, &drawn(), &settings(512, false));
    let of = |model: &Model| score(model, &rollouts(&drawn()), 1.0, 512).concat();
    let want = of(learner.model());
    let merged = Arc::unwrap_or_clone(learner.into_model()).merged().unwrap();
    let off = want.iter().zip(of(&merged)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-5, "off by {off}");
}
