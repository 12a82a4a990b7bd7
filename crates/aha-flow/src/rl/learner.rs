//! Learner actor: trains on one step's groups after another, and drives the ring.
//! - Inbox: a step's groups (one step is on its way at a time), and answers of those it has asked.
//! - State: weights, optimizer, position. After a failure the stage goes on from its last checkpoint.
//! - Fails with [`Error`]; a watchdog that stops is such an error, after a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use aha_learn::learner::Learner as Engine;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::advantage::Groups;
use super::fault::Point;
use super::recorder::{self, Record};
use super::sampler::{self, Weights};
use super::stage::Shared;
use super::train::{self, Trained};
use super::{checkpointer, feeder, supervisor};
use crate::checkpoint::Position;
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::metrics::MetricsLog;
use crate::models;
use crate::pipeline::Watch;
use crate::progress::Event;
use crate::watchdog::{self, Finding};

/// What the learner is told.
pub enum Msg {
    /// Who is left and right of it; the current step is issued (again).
    Connect(Links),
    /// A step's groups.
    Groups {
        /// The step.
        step: u64,
        /// Which spawn of the left side sent them.
        attempt: u64,
        /// The groups.
        groups: Groups,
    },
    /// The compute thread is through with a step.
    Trained(Result<(Box<Engine>, Trained)>),
    /// A step's rows are durable.
    Recorded {
        /// The step.
        step: u64,
    },
    /// A checkpoint is durable.
    Checkpointed {
        /// Its step.
        step: u64,
        /// The state that was handed over.
        learner: Box<Engine>,
    },
    /// The sampler's weights are not those that were published.
    WeightsDiffer {
        /// Their version.
        version: u64,
        /// The checksum that the sampler found.
        found: u64,
    },
    /// Write a checkpoint and leave.
    Stop,
}

/// Who the learner talks to. The left side is spawned anew after a failure there.
#[derive(Clone)]
pub struct Links {
    /// Takes credits.
    pub feeder: ActorRef<feeder::Msg>,
    /// Takes weights.
    pub sampler: sampler::Handle,
    /// Takes rows.
    pub recorder: recorder::Handle,
    /// Takes state.
    pub checkpointer: ActorRef<checkpointer::Msg>,
    /// Which spawn of the left side this is.
    pub attempt: u64,
}

/// What the learner begins with.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Weights and optimizer.
    pub engine: Box<Engine>,
    /// Where the stage is.
    pub position: Position,
    /// Who hears how the stage ended.
    pub supervisor: ActorRef<supervisor::Msg>,
}

/// What the learner keeps.
pub struct State {
    shared: Arc<Shared>,
    supervisor: ActorRef<supervisor::Msg>,
    thread: ComputeThread,
    links: Option<Links>,
    /// Away while the compute thread or the checkpointer has it.
    engine: Option<Box<Engine>>,
    position: Position,
    /// Step of the newest checkpoint, and the newest whose rows are durable.
    checkpointed: u64,
    recorded: u64,
    /// Step and attempt whose prompts were asked for last.
    issued: (u64, u64),
    /// Groups that came while the engine was away.
    parked: Option<Groups>,
    metrics: MetricsLog,
    /// Why the stage ends, once it has to.
    ending: Option<Error>,
    /// Whether the supervisor knows how the stage ended.
    has_ended: bool,
    issued_at: Instant,
    learning_since: Instant,
    sampling_seconds: f64,
}

/// Trains.
pub struct Learner;

impl Actor for Learner {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let step = args.position.step;
        Ok(State {
            metrics: MetricsLog::open(
                &args.shared.dir,
                &args.shared.stage,
                step,
                &args.shared.watcher,
            ),
            thread: ComputeThread::start("aha-learner")?,
            shared: args.shared,
            supervisor: args.supervisor,
            links: None,
            engine: Some(args.engine),
            position: args.position,
            checkpointed: step,
            recorded: step,
            issued: (0, 0),
            parked: None,
            ending: None,
            has_ended: false,
            issued_at: Instant::now(),
            learning_since: Instant::now(),
            sampling_seconds: 0.0,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Connect(links) => {
                state.links = Some(links);
                state.issue()?;
                state.settle()?;
            }
            Msg::Groups { step, attempt, groups } => {
                // A step is trained on once: what another attempt sends late is dropped.
                let current = state.links.as_ref().map(|links| links.attempt);
                if step == state.position.step + 1
                    && Some(attempt) == current
                    && state.parked.is_none()
                    && state.ending.is_none()
                {
                    state.sampling_seconds = state.issued_at.elapsed().as_secs_f64();
                    state.parked = Some(groups);
                    state.learn(&me)?;
                }
            }
            Msg::Trained(outcome) => {
                let (engine, trained) = outcome?;
                state.engine = Some(engine);
                state.finish_step(trained).await?;
            }
            Msg::Recorded { step } => {
                state.recorded = state.recorded.max(step);
                state.settle()?;
                state.learn(&me)?;
            }
            Msg::Checkpointed { step, learner } => {
                state.engine = Some(learner);
                state.checkpointed = step;
                state.settle()?;
                state.learn(&me)?;
                // The left side may have been spawned anew meanwhile.
                state.issue()?;
            }
            Msg::WeightsDiffer { version, found } => {
                let message = format!(
                    "the sampler's weights of version {version} have the checksum {found:016x}, not the learner's"
                );
                let hint = "weights were changed while shared: report this, and resume from the last checkpoint";
                let watch = state.shared.settings.watchdogs.weights_differ;
                if watch != Watch::Off {
                    state.tell(Finding { stops: watch == Watch::Stop, message, hint });
                }
                state.settle()?;
            }
            Msg::Stop => {
                state.ending.get_or_insert(Error::Interrupted);
                state.settle()?;
            }
        }
        Ok(())
    }
}

impl State {
    /// Publishes the weights and grants the feeder the next step, once for each spawn of the left side.
    fn issue(&mut self) -> Result<()> {
        let step = self.position.step + 1;
        let (Some(links), Some(engine)) = (&self.links, &self.engine) else { return Ok(()) };
        if step > self.shared.settings.steps || self.ending.is_some() || self.has_ended {
            return Ok(());
        }
        if self.parked.is_some() || self.issued == (step, links.attempt) {
            return Ok(());
        }
        self.issued = (step, links.attempt);
        let model = Arc::clone(engine.model());
        let checksum = model.params().checksum();
        links.sampler.publish(Weights { model, version: engine.version(), checksum });
        let credit = feeder::Msg::Credit { step, set_aside: self.set_aside() };
        let _ = links.feeder.cast(credit); // A feeder that has ended is restarted, and the step issued again.
        self.issued_at = Instant::now();
        Ok(())
    }

    /// Starts training on the parked groups, if the engine is here. A checkpoint that is due comes first:
    /// a recorder that is slower than training would put it off for ever.
    fn learn(&mut self, me: &ActorRef<Msg>) -> Result<()> {
        let step = self.position.step + 1;
        if self.is_checkpoint_due() || self.has_ended {
            return Ok(());
        }
        let Some(groups) = self.parked.take() else { return Ok(()) };
        let Some(mut engine) = self.engine.take() else {
            self.parked = Some(groups);
            return Ok(());
        };
        self.shared.faults.at(Point::Learn, step)?;
        let (shared, thread, me) = (Arc::clone(&self.shared), self.thread.clone(), me.clone());
        let reference_version = self.position.reference_version;
        self.learning_since = Instant::now();
        crate::task::spawn("learner job", async move {
            let job = move || {
                let trained = train::train(&mut engine, &shared, step, &groups, reference_version)?;
                Ok((engine, trained))
            };
            let outcome = thread.run(job).await.and_then(|outcome| outcome);
            let _ = me.cast(Msg::Trained(outcome)); // A learner that has ended needs no answer.
        });
        Ok(())
    }

    /// Hands on what a step gave, and issues the next.
    async fn finish_step(&mut self, trained: Trained) -> Result<()> {
        let Trained { rows, mut metrics, mut facts, reference_version, failures } = trained;
        let version = self.engine.as_ref().map_or(0, |engine| engine.version());
        self.position.step += 1;
        self.position.version = version;
        self.position.reference_version = reference_version;
        self.position.nan_batches += facts.nan_batches;
        let idle = &mut self.position.steps_without_training;
        *idle = if facts.trained == 0 { *idle + 1 } else { 0 };
        facts.steps_without_training = *idle;
        facts.nan_batches_total = self.position.nan_batches;
        let set_aside = self.count_failures(failures);
        self.time(&mut metrics, &rows)?;
        let step = self.position.step;
        for finding in watchdog::watch(&self.shared.settings.watchdogs, &facts) {
            self.tell(finding);
        }
        self.metrics.record(step, &metrics);
        self.metrics.flush();
        let stage = self.shared.stage.clone();
        (self.shared.watcher)(Event::Step { stage, step, metrics });
        if let Some(links) = self.links.clone() {
            links.recorder.record(Record { step, rows, set_aside }).await;
        }
        let _ = self.supervisor.cast(supervisor::Msg::StepDone); // It may be stopping already.
        self.issue()?;
        self.settle()
    }

    /// Prompts that have failed too often to be asked again.
    fn set_aside(&self) -> BTreeSet<String> {
        let max = self.shared.settings.prompt_failures_max;
        self.position
            .failures
            .iter()
            .filter(|(_, count)| **count >= max)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Counts failures; returns the prompts that are set aside from now on, with their errors.
    fn count_failures(&mut self, failures: Vec<(String, String)>) -> Vec<(String, String)> {
        let max = self.shared.settings.prompt_failures_max;
        let mut set_aside = Vec::new();
        for (prompt_id, error) in failures {
            let count = self.position.failures.entry(prompt_id.clone()).or_default();
            *count += 1;
            tracing::warn!(
                stage = self.shared.stage,
                prompt_id,
                error,
                count = *count,
                "Prompt failed."
            );
            if *count == max {
                set_aside.push((prompt_id, error));
            }
        }
        set_aside
    }

    /// Adds what the step took; a stopped clock measures nothing.
    fn time(
        &self,
        metrics: &mut BTreeMap<String, f64>,
        rows: &arrow::array::RecordBatch,
    ) -> Result<()> {
        if clock::is_stopped() {
            return Ok(());
        }
        let view =
            aha_rollout::view::RolloutsView::new(rows, aha_rollout::schema::Progress::Trained)?;
        let tokens: usize =
            (0..view.rows_count()).map(|r| view.completion_token_ids(r).len()).sum();
        let learning = self.learning_since.elapsed().as_secs_f64();
        metrics.insert("sampling_seconds".to_owned(), self.sampling_seconds);
        metrics.insert("learning_seconds".to_owned(), learning);
        metrics.insert(
            "tokens_per_second".to_owned(),
            tokens as f64 / (self.sampling_seconds + learning).max(1e-9),
        );
        Ok(())
    }

    /// Warns, and remembers why the stage has to end if the finding says so.
    fn tell(&mut self, finding: Finding) {
        let Finding { stops, message, hint } = finding;
        tracing::warn!(stage = self.shared.stage, step = self.position.step, hint, "{message}.");
        (self.shared.watcher)(Event::Warning {
            stage: self.shared.stage.clone(),
            message: message.clone(),
            hint: hint.to_owned(),
        });
        if stops {
            self.ending = Some(Error::Watchdog { message, hint: hint.to_owned() });
        }
    }

    /// Writes a checkpoint if one is due and everything before it is durable; ends the stage if it is over.
    fn settle(&mut self) -> Result<()> {
        let step = self.position.step;
        let is_over = step >= self.shared.settings.steps;
        let all_recorded = self.recorded >= step;
        if self.engine.is_none() || !all_recorded || self.has_ended {
            return Ok(());
        }
        if self.is_checkpoint_due() {
            return self.checkpoint();
        }
        // A stage that is through has nothing left to interrupt.
        if is_over && matches!(self.ending, None | Some(Error::Interrupted)) {
            let engine = self.engine.as_ref().ok_or_else(|| Error::bug("the engine is away"))?;
            let path = self.shared.dir.model(&self.shared.stage);
            models::save(
                &path,
                engine.model(),
                &self.shared.tokenizer,
                aha_model::save::SaveDtype::F32,
            )?;
            self.end(Ok(()));
        } else if let Some(error) = self.ending.take() {
            self.end(Err(error));
        }
        Ok(())
    }

    /// Whether the stage has to write a checkpoint before it goes on, or ends.
    fn is_checkpoint_due(&self) -> bool {
        let (step, settings) = (self.position.step, &self.shared.settings);
        let is_wanted = step.is_multiple_of(settings.checkpoint_every) || self.ending.is_some();
        is_wanted && step > self.checkpointed && step < settings.steps
    }

    fn checkpoint(&mut self) -> Result<()> {
        let (Some(links), Some(learner)) = (&self.links, self.engine.take()) else { return Ok(()) };
        let save = checkpointer::Msg::Save { learner, position: self.position.clone() };
        let _ = links.checkpointer.cast(save); // A checkpointer that has ended ends the stage.
        Ok(())
    }

    fn end(&mut self, outcome: Result<()>) {
        self.has_ended = true;
        self.metrics.flush();
        let _ = self.supervisor.cast(supervisor::Msg::Ended(outcome)); // It may be stopping already.
    }
}
