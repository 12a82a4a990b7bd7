//! The optimizer steps of a critic, minibatch by minibatch beside those of the policy.

use std::collections::BTreeMap;

use aha_learn::learner::{Learner, Rollout, ValueTarget};
use aha_learn::value::Totals;
use aha_rollout::view::RolloutsView;

use super::stage::Shared;
use super::train::step_settings;
use crate::error::{Error, Result};
use crate::pipeline::Critic;

/// Optimizer steps of the critic in one step of the stage.
pub(super) struct CriticSteps<'a> {
    shared: &'a Shared,
    settings: &'a Critic,
    /// By row, what it is to expect before each token.
    returns: &'a [Vec<f32>],
    /// The learning rate of the minibatch.
    pub lr: f64,
    /// Steps whose loss or gradient was not a number.
    pub nan: u32,
    totals: Totals,
    grad_norms: Vec<f64>,
}

impl<'a> CriticSteps<'a> {
    /// Of a step whose rows have these returns; none in a stage without a critic.
    pub fn new(shared: &'a Shared, returns: &'a [Vec<f32>]) -> Option<CriticSteps<'a>> {
        let settings = shared.settings.critic.as_ref()?;
        let (totals, grad_norms) = Default::default();
        Some(CriticSteps { shared, settings, returns, lr: 0.0, nan: 0, totals, grad_norms })
    }

    /// One optimizer step on `rows`, which are `rollouts`.
    pub fn step(
        &mut self,
        critic: &mut Learner,
        view: &RolloutsView<'_>,
        rows: &[usize],
        rollouts: &[Rollout<'_>],
    ) -> Result<()> {
        let stage = &self.shared.settings;
        let target = |&row: &usize| ValueTarget {
            old_values: view.completion_values(row).unwrap_or_default(),
            returns: &self.returns[row],
        };
        let targets: Vec<ValueTarget<'_>> = rows.iter().map(target).collect();
        let step = step_settings(
            &self.settings.optimizer,
            self.lr,
            self.settings.grad_clip,
            stage.micro_batch_tokens.tokens(),
            stage.activation_checkpointing.is_on(),
        );
        let outcome = critic.value_step(rollouts, &targets, stage.objective.value.clip, &step)?;
        self.totals.add(&outcome.totals);
        self.grad_norms.push(outcome.grad_norm);
        if !outcome.applied {
            self.nan += 1;
            if !critic.model().params().is_finite() {
                let message = "the critic's weights are not finite".to_owned();
                return Err(Error::Environment { message });
            }
        }
        Ok(())
    }

    /// Adds what was measured.
    pub fn measure(&self, metrics: &mut BTreeMap<String, f64>) {
        let mut set = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
        set("critic_lr", self.lr);
        if self.grad_norms.is_empty() {
            return;
        }
        let count = self.grad_norms.len() as f64;
        set("value_loss", self.totals.loss / count);
        set("critic_grad_norm", self.grad_norms.iter().sum::<f64>() / count);
        if self.shared.settings.objective.value.clip.is_some() {
            set("value_clip_share", self.totals.clip_share());
        }
    }
}
