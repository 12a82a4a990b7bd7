//! The critic: what it expects of completions, and a step in which it learns to expect better.
//!
//! It reads what the policy reads, packed in the same way, and its head makes one number where the policy's makes a
//! distribution over the next token. So the value of a token is that of everything before it.

use std::sync::Arc;

use aha_compute::{Tape, Tensor};
use aha_model::Model;

use super::packed::{self, Packed};
use super::{Learner, Rollout, StepSettings, check_rollout};
use crate::Error;
use crate::value::{self, Totals, ValueOut, ValueTerms};

/// What a critic is to learn of a completion: a number for each of its tokens.
#[derive(Clone, Copy, Debug)]
pub struct ValueTarget<'a> {
    /// What it said before the rollout batch was trained on.
    pub old_values: &'a [f32],
    /// What it is to say.
    pub returns: &'a [f32],
}

/// What a step of a critic did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueOutcome {
    /// Sums over the minibatch's tokens, by the weights before the step.
    pub totals: Totals,
    /// Global L2 norm of the gradient, before it was scaled down.
    pub grad_norm: f64,
    /// Whether the weights changed. They don't where the loss or the gradient isn't finite.
    pub applied: bool,
}

impl Learner {
    /// One step of a critic on `rollouts`, of which those of a group follow one another, by the loss of [`value`];
    /// `clip` is how far a value may move.
    pub fn value_step(
        &mut self,
        rollouts: &[Rollout<'_>],
        targets: &[ValueTarget<'_>],
        clip: Option<f64>,
        settings: &StepSettings,
    ) -> Result<ValueOutcome, Error> {
        check_targets(rollouts, targets)?;
        let counted = |rollout: &Rollout<'_>| {
            let len = rollout.completion_ids.len();
            rollout.mask.map_or(len, |mask| mask.iter().filter(|&&m| m).count())
        };
        let token_count = rollouts.iter().map(counted).sum();
        self.together(|learner| {
            let lens = packed::lens(rollouts);
            let targets = learner.share(targets, &lens);
            let rollouts = learner.share(rollouts, &lens);
            let mut totals = Totals::default();
            learner.grads.clear();
            for range in packed::micro_batches(rollouts, settings.micro_batch_tokens) {
                let packed = Packed::completions(rollouts, range.clone());
                let rows = rollouts[range.clone()].iter().zip(&targets[range]);
                let terms = |values: &[f32]| {
                    let terms = rows.zip(&packed.outputs).map(|((rollout, target), range)| {
                        let (old_values, returns) = (target.old_values, target.returns);
                        let values = &values[range.clone()];
                        ValueTerms { values, old_values, returns, mask: rollout.mask }
                    });
                    value::loss(&terms.collect::<Vec<_>>(), clip, token_count)
                };
                learner.value_micro_batch(&packed, terms, settings, &mut totals);
            }
            let totals = learner.total(totals, |sum, next| sum.add(&next))?;
            let (grad_norm, applied) = learner.apply(totals.loss, settings)?;
            Ok(ValueOutcome { totals, grad_norm, applied })
        })
    }

    fn value_micro_batch(
        &mut self,
        packed: &Packed,
        loss: impl FnOnce(&[f32]) -> ValueOut,
        settings: &StepSettings,
        totals: &mut Totals,
    ) {
        let model = Arc::clone(&self.model);
        let mut tape = Tape::recording(model.device(), model.params());
        let values = packed.values(&model, &mut tape, settings.activation_checkpointing);
        let out = loss(&values.value().host());
        out.sequences.iter().for_each(|sequence| totals.add(sequence));
        let shape = [out.dvalues.len(), 1];
        let seed = Tensor::from_slice(model.device(), &shape, &out.dvalues);
        tape.backward(vec![(values, seed)], &mut self.grads);
    }
}

/// What `critic` expects before each token of completions, in micro-batches. A completion's values have the same bits
/// whatever is beside it.
pub fn values(
    critic: &Model,
    rollouts: &[Rollout<'_>],
    micro_batch_tokens: usize,
) -> Vec<Vec<f32>> {
    let mut all = Vec::with_capacity(rollouts.len());
    for range in packed::micro_batches(rollouts, micro_batch_tokens) {
        let packed = Packed::completions(rollouts, range);
        let mut tape = Tape::inference(critic.device(), critic.params());
        let values = packed.values(critic, &mut tape, false);
        let values = values.value().host();
        all.extend(packed.outputs.iter().map(|range| values[range.clone()].to_vec()));
    }
    all
}

fn check_targets(rollouts: &[Rollout<'_>], targets: &[ValueTarget<'_>]) -> Result<(), Error> {
    let input = |what: &str, expected: usize, found: usize| {
        let expected = format!("one per token, {expected}");
        Err(Error::Input { what: what.to_owned(), expected, found: found.to_string() })
    };
    assert_eq!(rollouts.len(), targets.len(), "each rollout has its target");
    for (rollout, target) in rollouts.iter().zip(targets) {
        check_rollout(rollout)?;
        let len = rollout.completion_ids.len();
        if target.old_values.len() != len {
            return input("old values of a rollout", len, target.old_values.len());
        }
        if target.returns.len() != len {
            return input("returns of a rollout", len, target.returns.len());
        }
    }
    Ok(())
}
