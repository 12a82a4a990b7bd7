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

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::Session;
use aha_learn::learner::{self, Learner, StepOutcome};
use aha_model::SaveDtype;

use self::plan::Plan;
use super::training::{Done, Task, Training};
use crate::clock;
use crate::error::Result;
use crate::models::{self, Loaded};
use crate::pipeline::{NanWatchdog, Run, SftStage};
use crate::progress::Watcher;
use crate::prompts::Example;
use crate::rl::train::{learning_rate, step_settings};
use crate::rundir::RunDir;
use crate::stop::Stop;

/// What the stage works with.
pub struct Sft<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its settings.
    pub settings: &'a SftStage,
    /// What holds for every stage.
    pub run: &'a Run,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// Where the weights are.
    pub device: &'a Device,
    /// The tables.
    pub session: &'a Session,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// A request to stop.
    pub stop: &'a Stop,
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
        let random = Philox::new(self.run.seed).derive(self.stage);
        let steps = (settings.epochs, settings.max_steps);
        let plan = Plan::new(examples.len(), settings.batch_size, steps, settings.shuffle, random);
        let model = models::to_train(model, settings.lora.as_ref(), random)?;
        let task = Arc::new(Imitation { settings, ids, examples, plan });
        let training = self.training();
        let learner = training.run(model, None, Arc::clone(&tokenizer), task).await?;
        let model = models::finish(self.dir, self.stage, learner)?;
        models::save(&self.dir.model(self.stage), &model, &tokenizer, SaveDtype::F32)
    }

    fn training(&self) -> Training<'_> {
        let watchdogs = &self.settings.watchdogs;
        Training {
            stage: self.stage,
            kind: "sft",
            run: self.run,
            dir: self.dir,
            device: self.device,
            watcher: self.watcher,
            stop: self.stop,
            checkpoint_every: self.settings.checkpoint_every,
            nan: NanWatchdog { nan: watchdogs.nan, nan_batches_max: watchdogs.nan_batches_max },
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
        let lr = learning_rate(&self.settings.optimizer, self.plan.steps, step);
        let settings = step_settings(
            &self.settings.optimizer,
            lr,
            self.settings.grad_clip,
            self.settings.micro_batch_tokens.tokens(),
            self.settings.activation_checkpointing.is_on(),
        );
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
    if !clock::is_stopped() {
        let seconds = began.elapsed().as_secs_f64();
        metrics.insert("tokens_per_second".to_owned(), tokens as f64 / seconds.max(1e-9));
    }
    metrics
}
