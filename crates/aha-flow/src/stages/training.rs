//! Training on a fixed set of examples, one optimizer step after the other: what the stages `sft`,
//! `reward-model` and `dpo` share.
//!
//! A batch whose loss or gradient is not a number changes no weight. It is set aside in a table of its own,
//! and the stage goes on or stops as its watchdog says. Weights that are not finite are never saved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aha_compute::ops::adamw::StatePlace;
use aha_learn::learner::{Learner, StepSettings};
use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, SetAsideRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};

use super::Context;
use crate::checkpoint::{self, Begun, Content, Position, States};
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::metrics::MetricsLog;
use crate::parts::Parts;
use crate::pipeline::{Auto, NanWatchdog, Optimizer};
use crate::progress::Event;
use crate::rl::train::{learning_rate, step_settings};
use crate::watchdog;

/// Steps between flushes of the metrics.
const FLUSH_STEPS: usize = 50;

/// What a stage trains on, and how a step of it goes.
pub trait Task: Send + Sync + 'static {
    /// Optimizer steps of the whole stage.
    fn steps(&self) -> u64;

    /// The optimizer step after `step` others, on a compute thread.
    fn step(&self, learner: &mut Learner, step: u64) -> Result<Done>;

    /// Identities of the examples of that step.
    fn example_ids(&self, step: u64) -> Vec<&str>;
}

/// What a step did.
pub struct Done {
    /// Whether the weights changed.
    pub applied: bool,
    /// What it measured.
    pub metrics: BTreeMap<String, f64>,
}

/// How the optimizer steps of a stage are made.
pub struct Steps<'a> {
    /// The optimizer, with the curve of its rate.
    pub optimizer: &'a Optimizer,
    /// Largest norm of the gradient; 0 is off.
    pub grad_clip: f64,
    /// Tokens of a micro-batch, at most.
    pub micro_batch_tokens: Auto<u32>,
    /// Whether activations are computed again.
    pub activation_checkpointing: Auto<bool>,
}

impl Steps<'_> {
    /// The learning rate of the step after `step` of all `steps`, and the whole of its settings.
    pub fn settings(&self, steps: u64, step: u64) -> (f64, StepSettings) {
        let lr = learning_rate(self.optimizer, steps, step);
        let (tokens, is_on) =
            (self.micro_batch_tokens.tokens(), self.activation_checkpointing.is_on());
        (lr, step_settings(self.optimizer, lr, self.grad_clip, tokens, is_on))
    }
}

/// Adds how many tokens were trained on per second, unless the clock is stopped.
pub fn add_speed(metrics: &mut BTreeMap<String, f64>, tokens: usize, began: Instant) {
    if !clock::is_stopped() {
        let seconds = began.elapsed().as_secs_f64();
        metrics.insert("tokens_per_second".to_owned(), tokens as f64 / seconds.max(1e-9));
    }
}

/// A stage that trains.
pub struct Training<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its kind.
    pub kind: &'static str,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// What happens to a batch that gives no number.
    pub nan: NanWatchdog,
    /// Where the optimizer's state is.
    pub state: StatePlace,
}

/// What every step of the stage needs.
struct Work {
    thread: ComputeThread,
    tokenizer: Arc<Tokenizer>,
    task: Arc<dyn Task>,
    set_aside: TableWriter,
}

impl Training<'_> {
    /// Trains from the last checkpoint, or from `model`, to the end. The weights that come back are finite.
    pub async fn run(
        &self,
        model: Arc<Model>,
        reference: Option<Arc<Model>>,
        tokenizer: Arc<Tokenizer>,
        task: Arc<dyn Task>,
    ) -> Result<Learner> {
        // The weights go to the learner alone: whoever else held them would make it train a copy.
        let (mut learner, mut position) = self.begin(model)?;
        learner.set_reference(reference);
        learner.spread_to(self.context.others)?;
        let work = self.work(task, tokenizer, position.step)?;
        let steps = work.task.steps();
        let mut metrics = MetricsLog::open(
            self.context.dir,
            self.context.stage,
            position.step,
            self.context.watcher,
        );
        (self.context.watcher)(Event::StageStarted {
            stage: self.context.stage.to_owned(),
            kind: self.kind,
            step: position.step,
            steps,
        });
        let ending = loop {
            if position.step >= steps {
                break None;
            }
            if self.context.stop.is_requested() {
                break Some(Error::Interrupted);
            }
            let (task, step) = (Arc::clone(&work.task), position.step);
            let job = move || task.step(&mut learner, step).map(|done| (learner, done));
            let (back, done) = work.thread.run(job).await??;
            learner = back;
            position.step += 1;
            let ending = if done.applied {
                None
            } else {
                position.nan_batches += 1;
                self.quarantine(&work, learner.model(), &position)?
            };
            let (step, stage) = (position.step, self.context.stage.to_owned());
            metrics.record(step, &done.metrics);
            (self.context.watcher)(Event::Step { stage, step, metrics: done.metrics });
            if ending.is_some() {
                break ending;
            }
            if step.is_multiple_of(self.checkpoint_every) && step < steps {
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
        Ok(learner)
    }

    /// Weights, optimizer and position to go on from.
    fn begin(&self, model: Arc<Model>) -> Result<(Learner, Position)> {
        match checkpoint::newest(
            self.context.dir,
            self.context.stage,
            self.context.device,
            Begun::of(&model),
            States { policy: self.state, ..States::default() },
        )? {
            Some(saved) => {
                let version = saved.position.version;
                let learner = Learner::resume(saved.model, saved.optimizer, version);
                Ok((learner, saved.position))
            }
            None => {
                let position =
                    Position { stage: self.context.stage.to_owned(), ..Position::default() };
                Ok((Learner::placed(model, self.state), position))
            }
        }
    }

    /// Everything but the weights; what was set aside after step `after` will be again.
    fn work(&self, task: Arc<dyn Task>, tokenizer: Arc<Tokenizer>, after: u64) -> Result<Work> {
        let name = format!("{}_set_aside", self.context.stage);
        let dir = self.context.dir;
        let set_aside =
            dir.write(|| Ok(TableWriter::open(&dir.table(&name), schema::set_aside())?))?;
        set_aside.truncate_after(after)?;
        Ok(Work { thread: ComputeThread::start("aha-learner")?, tokenizer, task, set_aside })
    }

    /// Sets the batch of the newest step aside, because it gave no number. Returns why the stage ends, if it
    /// does.
    fn quarantine(&self, work: &Work, model: &Model, position: &Position) -> Result<Option<Error>> {
        let step = position.step;
        let error = format!("step {step} gave a loss or gradient that is not a number");
        let rows: Vec<SetAsideRow<'_>> = work
            .task
            .example_ids(step - 1)
            .into_iter()
            .map(|prompt_id| SetAsideRow {
                stage: self.context.stage,
                step,
                prompt_id,
                failures_count: 1,
                error: &error,
                at_us: clock::now_us(),
            })
            .collect();
        let rows = [rows::set_aside(&rows)];
        self.context.dir.write(|| Ok(work.set_aside.write(&part_name(step), &rows)?))?;
        if let Err(error) = check_weights(model, step) {
            return Ok(Some(error));
        }
        match watchdog::nan(self.nan.nan, self.nan.nan_batches_max, (1, position.nan_batches)) {
            Some(found) => Ok(self.context.tell(found).err()),
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
        let (dir, tokenizer, keep) = (
            self.context.dir.clone(),
            Arc::clone(&work.tokenizer),
            self.context.run.checkpoint_keep,
        );
        let job = move || {
            check_weights(learner.model(), position.step)?;
            let content = Content {
                model: learner.model(),
                tokenizer: &tokenizer,
                reference: None,
                optimizer: learner.optimizer(),
                critic: None,
                position,
            };
            let parts = checkpoint::save(&dir, &content, keep as usize)?;
            Ok((learner, parts))
        };
        work.thread.run(job).await?
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
