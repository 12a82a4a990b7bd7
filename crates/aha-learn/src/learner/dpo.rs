//! One optimizer step of direct preference optimization. A pair's prompt runs through the model once.

use std::ops::Range;
use std::sync::Arc;

use aha_compute::{Tape, Tensor};
use aha_model::Model;

use super::packed::Packed;
use super::{Example, Learner, OldLogps, Rollout, StepSettings, check_example};
use crate::Error;
use crate::dpo::{self, Completion, Objective, Totals};
use crate::packing::pack;

/// Two completions of a prompt, each with it, one of which was preferred.
#[derive(Clone, Copy, Debug)]
pub struct DpoPair<'a> {
    /// Prompt and chosen completion; at least one token counts.
    pub chosen: Example<'a>,
    /// Prompt and rejected completion; at least one token counts.
    pub rejected: Example<'a>,
    /// By how much the first ought to be ahead, in the unit of rewards.
    pub margin: f32,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoOutcome {
    /// Sums over the minibatch's pairs, by the weights before the step.
    pub totals: Totals,
    /// Global L2 norm of the gradient, before it was scaled down.
    pub grad_norm: f64,
    /// Whether the weights changed. They don't where the loss or the gradient isn't finite.
    pub applied: bool,
}

impl Learner {
    /// One step on `pairs`, by the loss of [`dpo`]. Pairs of one prompt that follow one another share it.
    pub fn dpo_step(
        &mut self,
        pairs: &[DpoPair<'_>],
        objective: &Objective,
        settings: &StepSettings,
    ) -> Result<DpoOutcome, Error> {
        check(pairs)?;
        let rollouts = rollouts(pairs);
        self.together(|learner| {
            let mut totals = Totals::default();
            learner.grads.clear();
            let own = learner.own(&lens(&rollouts));
            let minibatch = Minibatch {
                rollouts: &rollouts[2 * own.start..2 * own.end],
                pairs: &pairs[own],
                pair_count: pairs.len(),
                objective,
            };
            for range in pack(&lens(minibatch.rollouts), settings.micro_batch_tokens) {
                let batch = MicroBatch::new(&minibatch, range);
                learner.dpo_micro_batch(&batch, settings, &mut totals)?;
            }
            let totals = learner.total(totals, |sum, next| sum.merge(&next))?;
            let (grad_norm, applied) = learner.apply(totals.loss, settings)?;
            Ok(DpoOutcome { totals, grad_norm, applied })
        })
    }

    fn dpo_micro_batch(
        &mut self,
        batch: &MicroBatch<'_>,
        settings: &StepSettings,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        let reference = self.reference.as_ref();
        let reference =
            reference.ok_or_else(|| Error::Bug("DPO needs a reference model".into()))?;
        let ref_logps = batch.packed.score(reference, 1.0);
        let model = Arc::clone(&self.model);
        let mut tape = Tape::recording(model.device(), model.params());
        let checkpointing = settings.activation_checkpointing;
        let (log_probs, _, _) = batch.packed.run(&model, &mut tape, 1.0, checkpointing, None);
        let dlogps = batch.add(&log_probs.value().host(), &ref_logps, totals);
        let seed = Tensor::from_slice(model.device(), &[dlogps.len()], &dlogps);
        tape.backward(vec![(log_probs, seed)], &mut self.grads);
        Ok(())
    }
}

/// What a policy makes of pairs beside a reference, in micro-batches.
pub fn compare_dpo(
    model: &Model,
    reference: &Model,
    pairs: &[DpoPair<'_>],
    objective: &Objective,
    micro_batch_tokens: usize,
) -> Result<Totals, Error> {
    check(pairs)?;
    let rollouts = rollouts(pairs);
    let mut totals = Totals::default();
    let minibatch = Minibatch { rollouts: &rollouts, pairs, pair_count: pairs.len(), objective };
    for range in pack(&lens(&rollouts), micro_batch_tokens) {
        let batch = MicroBatch::new(&minibatch, range);
        let [logps, ref_logps] = [model, reference].map(|model| batch.packed.score(model, 1.0));
        batch.add(&logps, &ref_logps, &mut totals);
    }
    Ok(totals)
}

/// A device's pairs of a minibatch, and their completions.
struct Minibatch<'a> {
    rollouts: &'a [Rollout<'a>],
    pairs: &'a [DpoPair<'a>],
    /// Of all devices.
    pair_count: usize,
    objective: &'a Objective,
}

/// Some pairs of a minibatch, as they run through the model.
struct MicroBatch<'a> {
    packed: Packed,
    of: &'a Minibatch<'a>,
    range: Range<usize>,
}

impl<'a> MicroBatch<'a> {
    fn new(of: &'a Minibatch<'a>, range: Range<usize>) -> MicroBatch<'a> {
        let packed = Packed::completions(of.rollouts, 2 * range.start..2 * range.end);
        MicroBatch { packed, of, range }
    }

    /// Adds the pairs to `totals`; returns the gradients of all log-probs.
    fn add(&self, logps: &[f32], ref_logps: &[f32], totals: &mut Totals) -> Vec<f32> {
        let Minibatch { rollouts, pairs, pair_count, objective } = *self.of;
        let mut dlogps = vec![0.0; logps.len()];
        let outputs = self.packed.outputs.chunks_exact(2);
        for (idx, outputs) in self.range.clone().zip(outputs) {
            let masks = [2 * idx, 2 * idx + 1].map(|at| rollouts[at].mask.unwrap_or(&[]));
            let of = |i: usize| {
                let tokens = outputs[i].clone();
                Completion::of(&logps[tokens.clone()], &ref_logps[tokens], masks[i])
            };
            let pair = dpo::Pair { chosen: of(0), rejected: of(1), margin: pairs[idx].margin };
            let out = dpo::loss(&pair, objective, pair_count);
            totals.add(&pair, &out);
            for (i, gradient) in [out.dchosen, out.drejected].into_iter().enumerate() {
                let trained =
                    outputs[i].clone().zip(masks[i]).filter(|(_, is_trained)| **is_trained);
                trained.for_each(|(at, _)| dlogps[at] = gradient);
            }
        }
        dlogps
    }
}

/// Tokens of pairs, which stay whole, since a pair's loss takes both of its completions.
fn lens(rollouts: &[Rollout<'_>]) -> Vec<usize> {
    let tokens = |two: &[Rollout<'_>]| {
        let prompts = match two[0].prompt_ids == two[1].prompt_ids {
            true => two[0].prompt_ids.len(),
            false => two[0].prompt_ids.len() + two[1].prompt_ids.len(),
        };
        prompts + two[0].completion_ids.len() + two[1].completion_ids.len()
    };
    rollouts.chunks_exact(2).map(tokens).collect()
}

/// The completions of the pairs, chosen and rejected by turns. What comes before the first token that counts is
/// their prompt.
fn rollouts<'a>(pairs: &[DpoPair<'a>]) -> Vec<Rollout<'a>> {
    let of = |Example { ids, loss_mask }: Example<'a>| {
        let first = first_trained(loss_mask).unwrap_or(ids.len());
        let (prompt_ids, completion_ids) = ids.split_at(first);
        Rollout {
            prompt_ids,
            completion_ids,
            behaviour_logps: &[],
            old: OldLogps::Current,
            advantage: 0.0,
            token_advantages: None,
            mask: Some(&loss_mask[first..]),
        }
    };
    pairs.iter().flat_map(|pair| [of(pair.chosen), of(pair.rejected)]).collect()
}

/// The first token never counts, since nothing precedes it.
fn first_trained(loss_mask: &[bool]) -> Option<usize> {
    (1..loss_mask.len()).find(|&idx| loss_mask[idx])
}

fn check(pairs: &[DpoPair<'_>]) -> Result<(), Error> {
    for example in pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]) {
        check_example(example)?;
        if first_trained(example.loss_mask).is_none() {
            return Err(Error::Input {
                what: "trained tokens of a completion of a pair".to_owned(),
                expected: "at least one".to_owned(),
                found: "0".to_owned(),
            });
        }
    }
    Ok(())
}
