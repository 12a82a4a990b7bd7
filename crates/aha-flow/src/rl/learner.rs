//! Learner actor: trains on one step's groups after another, and drives the ring.
//! - Inbox: a step's groups (one step is on its way at a time), and answers of those it has asked. Where the sampler
//!   runs ahead, group after group, as many as its ledger lets begin.
//! - State: weights, optimizer, position. After a failure the stage goes on from its last checkpoint.
//! - Fails with [`Error`]; a watchdog that stops is such an error, after a checkpoint where the weights are sound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aha_learn::learner::Learner as Engine;
use aha_rollout::schema::Progress;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::advantage::Groups;
use super::ahead::intake::{Arrival, Intake};
use super::ahead::lane::Lane;
use super::draw::Seen;
use super::fault::Point;
use super::feeder::{Refill, Wanted};
use super::recorder::{self, Record};
use super::sampler::{self, Weights};
use super::stage::Shared;
use super::train::{self, Trained};
use super::{checkpointer, feeder, supervisor};
use crate::checkpoint::Position;
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::pipeline::Watch;
use crate::progress::Event;
use crate::watchdog::{self, Finding};

/// What to do about weights that changed while nobody may change them.
pub const WEIGHTS_HINT: &str =
    "weights were changed while shared: report this, and resume from the last checkpoint";

/// Others talk to the learner through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
}

impl Handle {
    /// The actor's identity, for its supervisor.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    // A learner that has ended takes the stage with it: none of these has to arrive.

    /// Says who is left and right of it, and has it issue its step.
    pub fn connect(&self, links: Links) {
        let _ = self.actor.cast(Msg::Connect(links));
    }

    /// Hands over a step's groups.
    pub fn learn(&self, step: u64, attempt: u64, groups: Groups) {
        let _ = self.actor.cast(Msg::Groups { step, attempt, groups });
    }

    /// Asks for other groups in place of some of a step's.
    pub fn refill(&self, step: u64, attempt: u64, refill: Refill) {
        let _ = self.actor.cast(Msg::Refill { step, attempt, refill });
    }

    /// Says which prompts a round has, where the sampler runs ahead.
    pub fn fed(&self, attempt: u64, round: u64, prompt_ids: Vec<String>) {
        let _ = self.actor.cast(Msg::Ahead { attempt, round, news: News::Fed(prompt_ids) });
    }

    /// Hands over what became of a prompt of a round, likewise.
    pub fn arrived(&self, attempt: u64, round: u64, arrival: Arrival) {
        let _ = self.actor.cast(Msg::Ahead { attempt, round, news: News::Arrived(arrival) });
    }

    /// Says that a step's rows are durable.
    pub fn recorded(&self, step: u64) {
        let _ = self.actor.cast(Msg::Recorded { step });
    }

    /// Gives the state back of which a checkpoint is durable.
    pub fn checkpointed(&self, step: u64, state: Box<Engine>) {
        let _ = self.actor.cast(Msg::Checkpointed { step, state });
    }

    /// Says that the stage's model is durable.
    pub fn finished(&self) {
        let _ = self.actor.cast(Msg::Finished);
    }

    /// Says that the sampler's weights are not those that were published.
    pub fn weights_differ(&self, version: u64, found: u64) {
        let _ = self.actor.cast(Msg::WeightsDiffer { version, found });
    }

    /// Has it write a checkpoint and leave.
    pub fn stop(&self) {
        let _ = self.actor.cast(Msg::Stop);
    }
}

impl From<ActorRef<Msg>> for Handle {
    /// For whoever stands in for the learner.
    fn from(actor: ActorRef<Msg>) -> Handle {
        Handle { actor }
    }
}

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
    /// Other groups are wanted in place of some of a step's.
    Refill {
        /// The step.
        step: u64,
        /// Which spawn of the left side wants them.
        attempt: u64,
        /// Which.
        refill: Refill,
    },
    /// News of a round, where the sampler runs ahead.
    Ahead {
        /// Which spawn of the left side has them.
        attempt: u64,
        /// The round.
        round: u64,
        /// What is new.
        news: News,
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
        state: Box<Engine>,
    },
    /// The stage's model is durable.
    Finished,
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

/// What the learner hears of a round of prompts.
pub enum News {
    /// These are its prompts, in order.
    Fed(Vec<String>),
    /// What became of one of them.
    Arrived(Arrival),
}

/// Who the learner talks to. The left side is spawned anew after a failure there.
#[derive(Clone)]
pub struct Links {
    /// Takes credits.
    pub feeder: feeder::Handle,
    /// Takes weights.
    pub sampler: sampler::Handle,
    /// Takes rows.
    pub recorder: recorder::Handle,
    /// Takes state.
    pub checkpointer: checkpointer::Handle,
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
    /// Checksum of the weights, taken where they were last changed.
    checksum: u64,
    /// Whether nobody has found the weights to be others than these.
    are_weights_sound: bool,
    position: Position,
    /// What is known of each problem, where that decides which are drawn.
    seen: Arc<Vec<Seen>>,
    /// Step of the newest checkpoint, and the newest whose rows are durable.
    checkpointed: u64,
    recorded: u64,
    /// Step and attempt whose prompts were asked for last.
    issued: (u64, u64),
    /// Groups that came while the engine was away.
    parked: Option<Groups>,
    /// Groups that come one by one, where the sampler runs ahead.
    intake: Option<Intake>,
    /// What was asked for while the engine was away, and which spawn of the left side did.
    refill: Option<(u64, Refill)>,
    /// Raised when nobody waits for the compute thread any more.
    cancel: Arc<AtomicBool>,
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

/// Spawns the learner under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Learner, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the learner doesn't start: {error}")))?;
    Ok(Handle { actor })
}

impl Actor for Learner {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let step = args.position.step;
        let thread = ComputeThread::start("aha-learner")?;
        let engine = args.engine;
        let (engine, checksum) = thread
            .run(move || {
                let checksum = engine.model().params().checksum();
                (engine, checksum)
            })
            .await?;
        let begins = (args.position.version, step);
        let intake = Intake::new(&args.shared, &args.position.asked, begins);
        let problems = &args.shared.problems;
        let seen = args.shared.draw.as_ref().map(|draw| draw.begin(problems, &args.position.seen));
        Ok(State {
            thread,
            seen: Arc::new(seen.unwrap_or_default()),
            shared: args.shared,
            supervisor: args.supervisor,
            links: None,
            engine: Some(engine),
            checksum,
            are_weights_sound: true,
            position: args.position,
            checkpointed: step,
            recorded: step,
            issued: (0, 0),
            parked: None,
            intake,
            refill: None,
            cancel: Arc::default(),
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
                state.go_on_ahead();
                state.issue();
                state.settle();
            }
            Msg::Ahead { attempt, round, news } => {
                state.hear(attempt, round, news);
                state.learn(&me)?;
                state.issue();
            }
            Msg::Groups { step, attempt, groups } => {
                if state.waits_for(step, attempt) {
                    state.sampling_seconds = state.issued_at.elapsed().as_secs_f64();
                    state.parked = Some(groups);
                    state.learn(&me)?;
                }
            }
            Msg::Refill { step, attempt, refill } => {
                if step == state.position.step + 1 {
                    state.refill = Some((attempt, refill));
                    state.issue_refill();
                }
            }
            Msg::Trained(outcome) => {
                let (engine, trained) = outcome?;
                state.engine = Some(engine);
                state.finish_step(trained).await?;
                // Where the sampler runs ahead, the next groups may be here.
                state.learn(&me)?;
            }
            Msg::Recorded { step } => {
                state.recorded = state.recorded.max(step);
                state.settle();
                state.learn(&me)?;
            }
            Msg::Checkpointed { step, state: engine } => {
                state.engine = Some(engine);
                state.checkpointed = step;
                state.give();
                state.settle();
                state.learn(&me)?;
                // The left side may have been spawned anew meanwhile.
                state.issue();
                state.issue_refill();
            }
            // A stage that is through has nothing left to interrupt.
            Msg::Finished => state.end(Ok(())),
            Msg::WeightsDiffer { version, found } => {
                state.weights_differ(version, found);
                state.settle();
            }
            Msg::Stop => {
                state.ending.get_or_insert(Error::Interrupted);
                state.settle();
            }
        }
        Ok(())
    }

    /// Whoever stops the learner may begin the stage again: its thread, and what that holds, is gone by then.
    async fn post_stop(
        &self,
        _: ActorRef<Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.cancel.store(true, Ordering::Relaxed);
        state.thread.run(|| ()).await?;
        Ok(())
    }
}

impl State {
    fn is_current(&self, attempt: u64) -> bool {
        self.links.as_ref().is_some_and(|links| links.attempt == attempt)
    }

    /// A step is trained on once: what another attempt sends late is dropped.
    fn waits_for(&self, step: u64, attempt: u64) -> bool {
        let is_next = step == self.position.step + 1 && self.is_current(attempt);
        is_next && self.parked.is_none() && self.ending.is_none()
    }

    /// Takes in what a round has become, where the sampler runs ahead. What an earlier left side sends late was asked
    /// for again.
    fn hear(&mut self, attempt: u64, round: u64, news: News) {
        if !self.is_current(attempt) {
            return;
        }
        let lane = self.lane();
        let Some(intake) = &mut self.intake else { return };
        match news {
            News::Fed(prompt_ids) => intake.fed(round, prompt_ids),
            News::Arrived(arrival) => intake.arrive(round, arrival, lane.as_deref()),
        }
    }

    /// Gives a sampler that has come anew, and runs ahead, what those before had.
    fn go_on_ahead(&mut self) {
        self.give();
        self.ask_again();
    }

    /// The lane to the sampler that is there now, if it runs ahead.
    fn lane(&self) -> Option<Arc<Lane>> {
        self.links.as_ref()?.sampler.lane().cloned()
    }

    /// Gives a sampler that runs ahead, and hasn't got them with the end of their step, the newest weights. They are
    /// copied on the thread that changes them, so that nobody changes them meanwhile.
    fn give(&mut self) {
        let Some(lane) = self.lane() else { return };
        let (Some(links), Some(engine), Some(intake)) =
            (&self.links, &self.engine, &mut self.intake)
        else {
            return;
        };
        let step = self.position.step;
        if step >= self.shared.settings.steps || !intake.has_to_give(links.attempt, step) {
            return;
        }
        let (model, version, checksum) =
            (Arc::clone(engine.model()), engine.version(), self.checksum);
        let given = self.thread.run(move || lane.publish(&model, version, checksum));
        drop(given); // It answers the sampler, not us.
    }

    /// The lane that is given the weights that `step` leaves, if they are wanted.
    fn lane_after(&mut self, step: u64) -> Option<Arc<Lane>> {
        let lane = self.lane().filter(|_| step < self.shared.settings.steps)?;
        let attempt = self.links.as_ref()?.attempt;
        self.intake.as_mut()?.has_to_give(attempt, step);
        Some(lane)
    }

    /// Asks whoever is left of it now for what those before can't give any more.
    fn ask_again(&mut self) {
        let (Some(links), Some(intake)) = (&self.links, &self.intake) else { return };
        if self.ending.is_some() || self.has_ended {
            return;
        }
        for (round, wanted) in intake.again(&self.left_out()) {
            links.feeder.round(round, wanted, Arc::clone(&self.seen));
        }
    }

    /// Prompts that a round leaves out. Where it is drawn by what is known of them, those that are on their way are
    /// among them: nothing is known of them yet.
    fn left_out(&self) -> BTreeSet<String> {
        let mut left_out = self.set_aside();
        if let (Some(intake), Some(_)) = (&self.intake, &self.shared.draw) {
            left_out.extend(intake.prompt_ids().map(str::to_owned));
        }
        left_out
    }

    /// Asks for the rounds that may begin, where the sampler runs ahead.
    fn issue_rounds(&mut self) {
        if self.ending.is_some() || self.has_ended {
            return;
        }
        loop {
            let left_out = self.left_out();
            let (Some(links), Some(intake)) = (&self.links, &mut self.intake) else { return };
            let Some(round) = intake.next_round(self.position.step) else { return };
            links.feeder.round(round, Wanted::Round(left_out), Arc::clone(&self.seen));
        }
    }

    /// Publishes the weights and grants the feeder the next step, once for each spawn of the left side.
    fn issue(&mut self) {
        if self.intake.is_some() {
            return self.issue_rounds();
        }
        let step = self.position.step + 1;
        let (Some(links), Some(_)) = (&self.links, &self.engine) else { return };
        if step > self.shared.settings.steps || self.ending.is_some() || self.has_ended {
            return;
        }
        if self.parked.is_some() || self.issued == (step, links.attempt) {
            return;
        }
        self.issued = (step, links.attempt);
        self.grant(None);
        self.issued_at = Instant::now();
    }

    /// Grants the feeder other prompts for the current step, if they are wanted and the engine is here.
    fn issue_refill(&mut self) {
        let (Some(links), Some(_)) = (&self.links, &self.engine) else { return };
        let Some((attempt, refill)) = self.refill.take() else { return };
        if attempt != links.attempt || self.ending.is_some() || self.has_ended {
            return;
        }
        self.grant(Some(refill));
    }

    /// Publishes the weights, which the sampler lets go of after each batch of prompts, and grants the feeder a batch.
    fn grant(&self, refill: Option<Refill>) {
        let (Some(links), Some(engine)) = (&self.links, &self.engine) else { return };
        let model = Arc::clone(engine.model());
        let weights = Weights { model, version: engine.version(), checksum: self.checksum };
        links.sampler.publish(weights);
        let (step, seen) = (self.position.step + 1, Arc::clone(&self.seen));
        links.feeder.credit(step, self.set_aside(), seen, refill);
    }

    /// Starts training on the parked groups, if the engine is here. A checkpoint that is due comes first:
    /// a recorder that is slower than training would put it off for ever.
    fn learn(&mut self, me: &ActorRef<Msg>) -> Result<()> {
        let step = self.position.step + 1;
        if self.is_checkpoint_due() || self.has_ended {
            return Ok(());
        }
        if self.engine.is_none() {
            return Ok(());
        }
        let Some(groups) = self.next_groups(step)? else { return Ok(()) };
        let Some(mut engine) = self.engine.take() else { return Ok(()) };
        self.shared.faults.at(Point::Learn, step)?;
        let (shared, cancel, me) = (Arc::clone(&self.shared), Arc::clone(&self.cancel), me.clone());
        let reference_version = self.position.reference_version;
        self.learning_since = Instant::now();
        let lane = self.lane_after(step);
        let trained = self.thread.run(move || {
            let trained =
                train::train(&mut engine, &shared, step, &groups, reference_version, &cancel)?;
            // Before a round is asked for that may begin with the step's end: it is drawn from these.
            if let Some(lane) = lane {
                lane.publish(engine.model(), engine.version(), trained.checksum);
            }
            Ok((engine, trained))
        });
        crate::task::spawn("learner job", async move {
            let outcome = trained.await.and_then(|outcome| outcome);
            let _ = me.cast(Msg::Trained(outcome)); // A learner that has ended needs no answer.
        });
        Ok(())
    }

    /// The groups of the next step, if they are there.
    fn next_groups(&mut self, step: u64) -> Result<Option<Groups>> {
        let lane = self.lane();
        match &mut self.intake {
            None => Ok(self.parked.take()),
            Some(_) if self.ending.is_some() || step > self.shared.settings.steps => Ok(None),
            Some(intake) => intake.take(&self.shared, step, lane.as_deref()),
        }
    }

    /// Hands on what a step gave, and issues the next.
    async fn finish_step(&mut self, trained: Trained) -> Result<()> {
        let Trained { rows, lens, mut metrics, mut facts, checksum, reference_version, failures } =
            trained;
        let version = self.engine.as_ref().map_or(0, |engine| engine.version());
        self.checksum = checksum;
        self.position.step += 1;
        self.position.version = version;
        self.position.reference_version = reference_version;
        self.position.nan_batches += facts.nan_batches;
        if let Some(intake) = &mut self.intake {
            intake.step_done(version, self.position.step);
            metrics.extend(intake.measured());
        }
        self.give();
        let idle = &mut self.position.steps_without_training;
        *idle = if facts.trained == 0 { *idle + 1 } else { 0 };
        facts.steps_without_training = *idle;
        facts.nan_batches_total = self.position.nan_batches;
        self.follow(&rows, &lens, &failures, &mut metrics)?;
        let set_aside = self.count_failures(failures);
        self.time(&mut metrics, &rows)?;
        let step = self.position.step;
        for finding in watchdog::watch(&self.shared.settings.watchdogs, &facts) {
            self.tell(finding);
        }
        let stage = self.shared.stage.clone();
        (self.shared.watcher)(Event::Step { stage, step, metrics: metrics.clone() });
        if let Some(links) = self.links.clone() {
            links.recorder.record(Record { step, rows, set_aside, metrics }).await;
        }
        let _ = self.supervisor.cast(supervisor::Msg::StepDone); // It may be stopping already.
        self.issue();
        self.settle();
        Ok(())
    }

    /// Takes in what a step that is done says of its prompts.
    fn follow(
        &mut self,
        rows: &RecordBatch,
        lens: &[usize],
        failures: &[(String, String)],
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        let Some(draw) = &self.shared.draw else { return Ok(()) };
        let view = RolloutsView::new(rows, Progress::Trained)?;
        let failed = failures.iter().map(|(id, _)| id.as_str());
        let measured = draw.measure(&view, lens, failed);
        let mut after = self.seen.to_vec();
        draw.update(&mut after, self.position.step, &measured);
        metrics.extend(draw.metrics(&self.seen, &after, &measured));
        self.seen = Arc::new(after);
        Ok(())
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
    fn time(&mut self, metrics: &mut BTreeMap<String, f64>, rows: &RecordBatch) -> Result<()> {
        if clock::is_stopped() {
            return Ok(());
        }
        let view = RolloutsView::new(rows, Progress::Trained)?;
        let tokens: usize =
            (0..view.rows_count()).map(|r| view.completion_token_ids(r).len()).sum();
        if let Some(lane) = self.lane()
            && let Some(intake) = &mut self.intake
        {
            let (all, learner_idle) = intake.take_times();
            let sampler_idle = lane.take_idle().min(all);
            let times = [
                ("sampling_seconds", all - sampler_idle),
                ("learning_seconds", self.learning_since.elapsed()),
                ("sampler_idle_seconds", sampler_idle),
                ("learner_idle_seconds", learner_idle),
            ];
            let seconds = |(name, time): (&str, Duration)| (name.to_owned(), time.as_secs_f64());
            metrics.extend(times.map(seconds));
            let rate = tokens as f64 / all.as_secs_f64().max(1e-9);
            metrics.insert("tokens_per_second".to_owned(), rate);
            return Ok(());
        }
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

    /// Damaged weights end the stage if that is so set, and no checkpoint is made of them.
    fn weights_differ(&mut self, version: u64, found: u64) {
        let watch = self.shared.settings.watchdogs.weights_differ;
        if watch == Watch::Off {
            return;
        }
        let stops = watch == Watch::Stop;
        self.are_weights_sound &= !stops;
        let message = format!(
            "the sampler's weights of version {version} have the checksum {found:016x}, not the learner's"
        );
        self.tell(Finding { stops, message, hint: WEIGHTS_HINT });
    }

    /// Writes a checkpoint if one is due and everything before it is durable; ends the stage if it is over.
    fn settle(&mut self) {
        let step = self.position.step;
        let is_over = step >= self.shared.settings.steps;
        let all_recorded = self.recorded >= step;
        if self.engine.is_none() || !all_recorded || self.has_ended {
            return;
        }
        if self.is_checkpoint_due() {
            self.checkpoint();
        } else if is_over && matches!(self.ending, None | Some(Error::Interrupted)) {
            self.finish();
        } else if let Some(error) = self.ending.take() {
            self.end(Err(error));
        }
    }

    /// Whether the stage has to write a checkpoint before it goes on, or ends.
    fn is_checkpoint_due(&self) -> bool {
        let (step, settings) = (self.position.step, &self.shared.settings);
        let is_wanted = step.is_multiple_of(settings.checkpoint_every) || self.ending.is_some();
        self.are_weights_sound && is_wanted && step > self.checkpointed && step < settings.steps
    }

    fn checkpoint(&mut self) {
        let Some(links) = &self.links else { return };
        let Some(engine) = self.engine.take() else { return };
        let minds = self.shared.settings.watchdogs.weights_differ == Watch::Stop;
        let draw = self.shared.draw.as_ref();
        let seen = draw.map(|draw| draw.saved(&self.shared.problems, &self.seen));
        let asked = self.intake.as_ref().map(Intake::asked).unwrap_or_default();
        let seen = seen.unwrap_or_default();
        let position = Position { seen, asked, ..self.position.clone() };
        links.checkpointer.save(engine, position, minds.then_some(self.checksum));
    }

    /// Has the stage's model written; the stage ends when it is durable.
    fn finish(&mut self) {
        let Some(links) = &self.links else { return };
        let Some(engine) = self.engine.take() else { return };
        links.checkpointer.finish(engine);
    }

    fn end(&mut self, outcome: Result<()>) {
        self.has_ended = true;
        let _ = self.supervisor.cast(supervisor::Msg::Ended(outcome)); // It may be stopping already.
    }
}
