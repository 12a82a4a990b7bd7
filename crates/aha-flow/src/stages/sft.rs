//! The `sft` stage: supervised fine-tuning, or training on plain text.
//!
//! # Map
//! - `examples`: what the stage's query gives, as tokens. `plan`: which of them each step has.
//! - Here: the steps. The order of the examples is a function of seed and epoch; so a stage goes on from its
//!   last checkpoint with the examples that it would have seen.
//!
//! A batch whose loss or gradient is not a number changes no weight. It is set aside in a table of its own,
//! and the stage goes on or stops as its watchdog says. Weights that are not finite are never saved.

mod examples;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::Session;
use aha_learn::learner::{self, Learner, StepOutcome};
use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, SetAsideRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};

use self::plan::Plan;
use crate::checkpoint::{self, Content, Position};
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::metrics::MetricsLog;
use crate::models::{self, Loaded};
use crate::parts::Parts;
use crate::pipeline::{Run, SftStage};
use crate::progress::{Event, Watcher};
use crate::prompts::Example;
use crate::rl::train::{learning_rate, step_settings};
use crate::rundir::RunDir;
use crate::stop::Stop;
use crate::watchdog::{self, Finding};

/// Steps between flushes of the metrics.
const FLUSH_STEPS: usize = 50;

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

/// What every step of the stage needs.
struct Work {
    thread: ComputeThread,
    tokenizer: Arc<Tokenizer>,
    /// Identities of the examples.
    ids: Vec<String>,
    examples: Arc<[Example]>,
    plan: Plan,
    set_aside: TableWriter,
}

/// What a step did.
struct Done {
    outcome: StepOutcome,
    metrics: BTreeMap<String, f64>,
}

impl Sft<'_> {
    /// Runs the stage from its last checkpoint, or from the start, to its end.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let Loaded { model, tokenizer } = base;
        let rows = self.examples(&model, &tokenizer).await?;
        self.write_table(&rows)?;
        // The weights go to the learner alone: whoever else held them would make it train a copy.
        let (mut learner, mut position) = self.begin(model)?;
        let work = self.work(rows, tokenizer, position.step)?;
        let steps = work.plan.steps;
        let mut metrics = MetricsLog::open(self.dir, self.stage, position.step, self.watcher);
        (self.watcher)(Event::StageStarted {
            stage: self.stage.to_owned(),
            kind: "sft",
            step: position.step,
            steps,
        });
        let ending = loop {
            if position.step >= steps {
                break None;
            }
            if self.stop.is_requested() {
                break Some(Error::Interrupted);
            }
            let (back, done) = self.step(&work, learner, position.step).await?;
            learner = back;
            position.step += 1;
            let ending = if done.outcome.applied {
                None
            } else {
                position.nan_batches += 1;
                self.quarantine(&work, learner.model(), &position)?
            };
            let (step, stage) = (position.step, self.stage.to_owned());
            metrics.record(step, &done.metrics);
            (self.watcher)(Event::Step { stage, step, metrics: done.metrics });
            if ending.is_some() {
                break ending;
            }
            if step.is_multiple_of(self.settings.checkpoint_every) && step < steps {
                metrics.flush();
                (learner, position.parts) = self.checkpoint(&work, learner, &position).await?;
            } else if metrics.pending_steps() >= FLUSH_STEPS {
                metrics.flush();
            }
        };
        metrics.flush();
        if let Some(error) = ending {
            if position.step < steps {
                self.checkpoint(&work, learner, &position).await?;
            }
            return Err(error);
        }
        check_weights(learner.model(), position.step)?;
        let path = self.dir.model(self.stage);
        models::save(&path, learner.model(), &work.tokenizer, aha_model::save::SaveDtype::F32)
    }

    /// Weights, optimizer and position to go on from.
    fn begin(&self, model: Arc<Model>) -> Result<(Learner, Position)> {
        match checkpoint::newest(self.dir, self.stage, self.device)? {
            Some(saved) => {
                let version = saved.position.version;
                let learner = Learner::resume(saved.model, saved.optimizer, version);
                Ok((learner, saved.position))
            }
            None => {
                let position = Position { stage: self.stage.to_owned(), ..Position::default() };
                Ok((Learner::new(model), position))
            }
        }
    }

    /// Everything but the weights; what was set aside after step `after` will be again.
    fn work(
        &self,
        rows: Vec<examples::Row>,
        tokenizer: Arc<Tokenizer>,
        after: u64,
    ) -> Result<Work> {
        let (ids, examples): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|row| (row.id, row.example)).unzip();
        let random = Philox::new(self.run.seed).derive(self.stage);
        let name = format!("{}_set_aside", self.stage);
        let set_aside = TableWriter::open(&self.dir.table(&name), schema::set_aside())?;
        set_aside.truncate_after(after)?;
        Ok(Work {
            thread: ComputeThread::start("aha-learner")?,
            tokenizer,
            plan: Plan::new(self.settings, examples.len(), random),
            ids,
            examples: examples.into(),
            set_aside,
        })
    }

    /// The optimizer step after `step` others.
    async fn step(&self, work: &Work, mut learner: Learner, step: u64) -> Result<(Learner, Done)> {
        let lr = learning_rate(&self.settings.optimizer, work.plan.steps, step);
        let settings = step_settings(
            &self.settings.optimizer,
            lr,
            self.settings.grad_clip,
            self.settings.micro_batch_tokens,
            self.settings.activation_checkpointing,
        );
        let (batch, examples) = (work.plan.batch(step), Arc::clone(&work.examples));
        let began = Instant::now();
        let job = move || -> Result<_> {
            let batch: Vec<learner::Example<'_>> = batch
                .iter()
                .map(|&i| learner::Example {
                    ids: &examples[i].ids,
                    loss_mask: &examples[i].loss_mask,
                })
                .collect();
            let tokens: usize = batch.iter().map(|e| e.ids.len()).sum();
            let outcome = learner.sft_step(&batch, &settings)?;
            Ok((learner, outcome, tokens))
        };
        let (learner, outcome, tokens) = work.thread.run(job).await??;
        let metrics = measure(&outcome, lr, tokens, began);
        Ok((learner, Done { outcome, metrics }))
    }

    /// Sets the batch of the newest step aside, because it gave no number. Returns why the stage ends, if it
    /// does.
    fn quarantine(&self, work: &Work, model: &Model, position: &Position) -> Result<Option<Error>> {
        let step = position.step;
        let error = format!("step {step} gave a loss or gradient that is not a number");
        let batch = work.plan.batch(step - 1);
        let rows: Vec<SetAsideRow<'_>> = batch
            .iter()
            .map(|&i| SetAsideRow {
                stage: self.stage,
                step,
                prompt_id: &work.ids[i],
                failures_count: 1,
                error: &error,
                at_us: clock::now_us(),
            })
            .collect();
        work.set_aside.write(&part_name(step), &[rows::set_aside(&rows)])?;
        if let Err(error) = check_weights(model, step) {
            return Ok(Some(error));
        }
        let watchdogs = &self.settings.watchdogs;
        let batches = (1, position.nan_batches);
        match watchdog::nan(watchdogs.nan, watchdogs.nan_batches_max, batches) {
            Some(found) => Ok(self.tell(found).err()),
            None => Ok(None),
        }
    }

    async fn checkpoint(
        &self,
        work: &Work,
        learner: Learner,
        position: &Position,
    ) -> Result<(Learner, Parts)> {
        let position = Position {
            version: learner.version(),
            optimizer_steps: learner.optimizer().step_count(),
            ..position.clone()
        };
        let (dir, tokenizer, keep) =
            (self.dir.clone(), Arc::clone(&work.tokenizer), self.run.checkpoint_keep);
        let job = move || {
            check_weights(learner.model(), position.step)?;
            let content = Content {
                model: learner.model(),
                tokenizer: &tokenizer,
                reference: None,
                optimizer: learner.optimizer(),
                position,
            };
            let parts = checkpoint::save(&dir, content, keep as usize)?;
            Ok((learner, parts))
        };
        work.thread.run(job).await?
    }

    /// Warns; a finding that stops is the error that the stage ends with.
    fn tell(&self, finding: Finding) -> Result<()> {
        let Finding { stops, message, hint } = finding;
        self.warn(message.clone(), hint);
        if stops { Err(Error::Watchdog { message, hint: hint.to_owned() }) } else { Ok(()) }
    }

    fn warn(&self, message: String, hint: &str) {
        tracing::warn!(stage = self.stage, hint, "{message}.");
        (self.watcher)(Event::Warning {
            stage: self.stage.to_owned(),
            message,
            hint: hint.to_owned(),
        });
    }
}

/// Fails for weights that no step could mend; whatever is saved is looked at before.
fn check_weights(model: &Model, step: u64) -> Result<()> {
    if model.params().is_finite() {
        return Ok(());
    }
    Err(Error::Watchdog {
        message: format!("the weights are not finite after step {step}"),
        hint: "lower `optimizer.lr`, or set `grad_clip`".to_owned(),
    })
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
