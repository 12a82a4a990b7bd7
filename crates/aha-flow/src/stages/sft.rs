//! The `sft` stage: supervised fine-tuning, or training on plain text.
//!
//! # Map
//! - `examples`: what the stage's query gives, as tokens. `conversation`: its column `messages`. `plan`: which of
//!   them each step has.
//! - Here: a step. The order of the examples is a function of seed and epoch; so a stage goes on from its
//!   last checkpoint with the examples that it would have seen. `training` goes from step to step.

mod conversation;
mod examples;
pub(super) mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aha_learn::learner::{self, Learner, StepOutcome};

use self::plan::Plan;
use super::Context;
use super::training::{Done, Steps, Task, Training, add_speed};
use crate::error::Result;
use crate::models::{self, Loaded};
use crate::pipeline::{NanWatchdog, SftStage};
use crate::prompts::Example;

/// What the stage works with.
pub struct Sft<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its settings.
    pub settings: &'a SftStage,
}

impl Sft<'_> {
    /// Runs the stage from its last checkpoint, or from the start, to its end.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let Loaded { model, tokenizer } = base;
        let rows = self.examples(&model, &tokenizer).await?;
        self.write_table(&rows)?;
        let (ids, examples): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|row| (row.id, row.example)).unzip();
        let settings = self.settings.clone();
        let random = self.context.random();
        let steps = (settings.epochs, settings.max_steps);
        let plan = Plan::new(examples.len(), settings.batch_size, steps, settings.shuffle, random);
        let model = models::to_train(model, settings.lora.as_ref(), random)?;
        let task = Arc::new(Imitation { settings, ids, examples, plan });
        let training = self.training();
        let learner = training.run(model, None, Arc::clone(&tokenizer), task).await?;
        let model = models::finish(self.context.dir, self.context.stage, learner)?;
        models::save_final(self.context.dir, self.context.stage, &model, &tokenizer)
    }

    fn training(&self) -> Training<'_> {
        let watchdogs = &self.settings.watchdogs;
        Training {
            context: self.context,
            kind: "sft",
            checkpoint_every: self.settings.checkpoint_every,
            nan: NanWatchdog { nan: watchdogs.nan, nan_batches_max: watchdogs.nan_batches_max },
            state: self.settings.optimizer.state.into(),
        }
    }
}

/// What the stage trains on.
struct Imitation {
    settings: SftStage,
    /// Identities of the examples.
    ids: Vec<String>,
    examples: Vec<Example>,
    plan: Plan,
}

impl Task for Imitation {
    fn steps(&self) -> u64 {
        self.plan.steps
    }

    fn step(&self, learner: &mut Learner, step: u64) -> Result<Done> {
        let began = Instant::now();
        let (lr, settings) = steps(&self.settings).settings(self.plan.steps, step);
        let batch = self.plan.batch(step);
        let batch: Vec<learner::Example<'_>> = batch
            .iter()
            .map(|&i| &self.examples[i])
            .map(|e| learner::Example { ids: &e.ids, loss_mask: &e.loss_mask })
            .collect();
        let tokens: usize = batch.iter().map(|e| e.ids.len()).sum();
        let outcome = learner.sft_step(&batch, &settings)?;
        let metrics = measure(&outcome, lr, tokens, began);
        Ok(Done { applied: outcome.applied, metrics })
    }

    fn example_ids(&self, step: u64) -> Vec<&str> {
        self.plan.batch(step).into_iter().map(|i| self.ids[i].as_str()).collect()
    }
}

fn measure(outcome: &StepOutcome, lr: f64, tokens: usize, began: Instant) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::from([
        ("loss".to_owned(), outcome.totals.loss),
        ("grad_norm".to_owned(), outcome.grad_norm),
        ("lr".to_owned(), lr),
        ("trained_tokens".to_owned(), outcome.totals.token_count as f64),
    ]);
    add_speed(&mut metrics, tokens, began);
    metrics
}

fn steps(settings: &SftStage) -> Steps<'_> {
    Steps {
        optimizer: &settings.optimizer,
        grad_clip: settings.grad_clip,
        micro_batch_tokens: settings.micro_batch_tokens,
        activation_checkpointing: settings.activation_checkpointing,
    }
}
