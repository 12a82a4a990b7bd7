//! Sampler actor: draws the completions of a step's prompts on a thread of its own. Where it runs ahead of the learner,
//! that draws what comes without end: `ahead::stream`.
//! - Inbox: one batch of prompts, paid for by a credit; weights as they are published.
//! - State: the key/value cache, rebuilt empty after a restart, and on a CUDA device after each step; the learner
//!   publishes its weights again.
//! - Fails with [`Error`]. Prompts that can't be served are reported, not fatal; one at which sampling itself
//!   fails shows when the step is sampled prompt by prompt.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use aha_model::Model;
use aha_rollout::view::PromptsView;
use aha_sample::Sampler as Engine;
use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::ahead::lane::Lane;
use super::ahead::stream::{Ask, Stream};
use super::credit::{Credit, Credits};
use super::fault::Point;
use super::stage::Shared;
use super::{advantage, learner, reward};
use crate::compute::{self, ComputeThread, panic_text};
use crate::devices;
use crate::error::{Error, Result};
use crate::generate::{self, Source};
use crate::progress::Waiting;

/// Others talk to the sampler through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
    credits: Credits,
    /// Where it runs ahead of the learner.
    lane: Option<Arc<Lane>>,
}

impl Handle {
    /// The actor, for its supervisor.
    pub fn cell(&self) -> ractor::ActorCell {
        self.actor.get_cell()
    }

    /// What waits for it.
    pub fn waiting(&self) -> Waiting {
        self.credits.waiting("sampler")
    }

    /// Sends a step's prompts once there is room for them.
    pub async fn sample(&self, step: u64, prompts: RecordBatch) {
        if let Some(credit) = self.credits.take().await {
            // A sampler that has ended is restarted, and the step issued again.
            let _ = self.actor.cast(Msg::Sample { step, prompts, credit });
        }
    }

    /// How weights get to a sampler that runs ahead of the learner; none to one that doesn't.
    pub fn lane(&self) -> Option<&Arc<Lane>> {
        self.lane.as_ref()
    }

    /// Publishes weights: prompts that come later are drawn from these.
    pub fn publish(&self, weights: Weights) {
        let _ = self.actor.cast(Msg::Weights(weights)); // As above.
    }
}

/// Weights as the learner publishes them.
#[derive(Clone)]
pub struct Weights {
    /// The weights, shared.
    pub model: Arc<Model>,
    /// Optimizer steps that they have seen.
    pub version: u64,
    /// Their checksum, as the learner computed it.
    pub checksum: u64,
}

/// What the sampler is told.
pub enum Msg {
    /// New weights.
    Weights(Weights),
    /// Prompts to complete.
    Sample {
        /// The step.
        step: u64,
        /// Rows of `aha_rollout::schema::prompts`.
        prompts: RecordBatch,
        /// Pays for the batch's place.
        credit: Credit,
    },
    /// The compute thread is through with a step.
    Done {
        /// The step.
        step: u64,
        /// What is left of it.
        outcome: Box<Result<Drawn>>,
    },
    /// The compute thread, which draws without end, has ended.
    Ended(Result<()>),
}

/// What is left of a step whose groups are on their way.
pub struct Drawn {
    engine: Option<Engine>,
    /// Prompts that have no group, with their errors.
    failed: Vec<(String, Error)>,
}

/// What the sampler needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where rollouts go.
    pub reward: reward::Handle,
    /// Who has to know of prompts that can't be served.
    pub advantage: advantage::Handle,
    /// Who has to know that the sampler's weights aren't the learner's.
    pub learner: learner::Handle,
    /// Which spawn of the left side this is.
    pub attempt: u64,
    /// Whether each prompt is sampled by itself, so that one at which sampling fails costs no other.
    pub is_one_by_one: bool,
}

/// What the sampler keeps.
pub struct State {
    args: Args,
    thread: ComputeThread,
    engine: Option<Engine>,
    weights: Option<Weights>,
    cancel: Arc<AtomicBool>,
    /// Prompts for the thread that draws without end, where it runs ahead.
    asks: Option<mpsc::Sender<Ask>>,
}

/// Draws completions.
pub struct Sampler;

/// Spawns the sampler under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let lane = match args.shared.settings.max_staleness {
        0 => None,
        _ => {
            let shares = compute::shares(&args.shared.run, &args.shared.settings);
            let device = devices::beside(&args.shared.device, shares.sampler)?;
            Some(Arc::new(Lane::new(device)))
        }
    };
    let (actor, _) = Actor::spawn_linked(None, Sampler, (args, lane.clone()), supervisor)
        .await
        .map_err(|error| Error::bug(format!("the sampler doesn't start: {error}")))?;
    Ok(Handle { actor, credits: Credits::new(1), lane })
}

impl Actor for Sampler {
    type Msg = Msg;
    type State = State;
    type Arguments = (Args, Option<Arc<Lane>>);

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        (args, lane): (Args, Option<Arc<Lane>>),
    ) -> Result<State, ActorProcessingErr> {
        let thread = ComputeThread::start("aha-sampler")?;
        let (engine, weights, cancel) = Default::default();
        let mut state = State { args, thread, engine, weights, cancel, asks: None };
        if let Some(lane) = lane {
            state.asks = Some(state.stream(me, lane));
        }
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Weights(weights) => state.take(weights),
            Msg::Sample { step, prompts, credit } => {
                state.args.shared.faults.at(Point::Sample, step)?;
                match &state.asks {
                    Some(asks) => ask(asks, step, &prompts, credit),
                    None => state.start(me, step, prompts, credit)?,
                }
            }
            // Nobody wants the step any more. If it was the reward actor that ended, the supervisor hears of
            // its failure, which must not be taken for ours.
            Msg::Ended(_) | Msg::Done { .. } if state.cancel.load(Ordering::Relaxed) => {}
            Msg::Done { step, outcome } => {
                let Drawn { engine, failed } = (*outcome)?;
                state.engine = engine;
                for (prompt_id, error) in failed {
                    state.args.advantage.failed(step, state.args.attempt, prompt_id, error);
                }
            }
            Msg::Ended(outcome) => outcome?,
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.cancel.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for State {
    /// Also when the actor fails: its thread must not go on sampling for nobody.
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Gives the prompts of a round to the thread that draws without end.
fn ask(asks: &mpsc::Sender<Ask>, round: u64, prompts: &RecordBatch, credit: Credit) {
    let credit = Arc::new(credit);
    for row in 0..prompts.num_rows() {
        let prompt = prompts.slice(row, 1);
        // A thread that has ended says why.
        let _ = asks.send(Ask { round, prompt, credit: Arc::clone(&credit) });
    }
}

impl State {
    /// Has the thread draw without end.
    fn stream(&self, me: ActorRef<Msg>, lane: Arc<Lane>) -> mpsc::Sender<Ask> {
        let (sender, asks) = mpsc::channel();
        let args = &self.args;
        let stream = Stream {
            shared: Arc::clone(&args.shared),
            lane,
            asks,
            reward: args.reward.clone(),
            learner: args.learner.clone(),
            attempt: args.attempt,
            cancel: Arc::clone(&self.cancel),
        };
        let is_one_by_one = args.is_one_by_one;
        let ended = self.thread.run(move || match is_one_by_one {
            true => stream.one_by_one(),
            false => stream.together(),
        });
        crate::task::spawn("sampler job", async move {
            let outcome = ended.await.and_then(|outcome| outcome);
            let _ = me.cast(Msg::Ended(outcome)); // A sampler that has ended needs no answer.
        });
        sender
    }

    /// Keeps weights for the prompts that come next, and looks whether they are those that were published.
    fn take(&mut self, weights: Weights) {
        let (given, learner) = (weights.clone(), self.args.learner.clone());
        // The thread takes jobs in order: the learner hears of it before it gets a group from these weights.
        let checked = self.thread.run(move || {
            // Where the device has failed, the job that needs it says so.
            match given.model.checksum() {
                Ok(found) if found != given.checksum => {
                    learner.weights_differ(given.version, found)
                }
                _ => {}
            }
        });
        drop(checked); // It answers the learner, not us.
        self.weights = Some(weights);
    }

    fn start(
        &mut self,
        me: ActorRef<Msg>,
        step: u64,
        prompts: RecordBatch,
        credit: Credit,
    ) -> Result<()> {
        // The weights go with the job and are let go of at its end, so that the learner may change them in
        // place.
        let weights =
            self.weights.take().ok_or_else(|| Error::bug("prompts came before weights"))?;
        let args = &self.args;
        let job = Job {
            shared: Arc::clone(&args.shared),
            weights,
            reward: args.reward.clone(),
            step,
            attempt: args.attempt,
            cancel: Arc::clone(&self.cancel),
        };
        let (engine, is_one_by_one) = (self.engine.take(), args.is_one_by_one);
        let drawn = self.thread.run(move || {
            let _credit = credit;
            if is_one_by_one { job.one_by_one(&prompts) } else { job.together(engine, &prompts) }
        });
        crate::task::spawn("sampler job", async move {
            let outcome = Box::new(drawn.await.and_then(|outcome| outcome));
            let _ = me.cast(Msg::Done { step, outcome }); // A sampler that has ended needs no answer.
        });
        Ok(())
    }
}

/// Drawing the completions of a step.
struct Job {
    shared: Arc<Shared>,
    weights: Weights,
    reward: reward::Handle,
    step: u64,
    attempt: u64,
    cancel: Arc<AtomicBool>,
}

impl Job {
    fn together(&self, engine: Option<Engine>, prompts: &RecordBatch) -> Result<Drawn> {
        self.draw(engine, prompts, &mut |rows| self.send(rows))
    }

    /// Sends a group to be scored, or gives the step up.
    fn send(&self, rows: RecordBatch) -> Result<()> {
        if self.reward.score(self.step, self.attempt, rows) {
            return Ok(());
        }
        self.cancel.store(true, Ordering::Relaxed);
        Err(Error::Interrupted)
    }

    fn draw(
        &self,
        engine: Option<Engine>,
        prompts: &RecordBatch,
        send: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<Drawn> {
        let shared = &self.shared;
        let view = PromptsView::new(prompts)?;
        let id = |row: usize| view.prompt_id(row).to_owned();
        (0..view.rows_count()).try_for_each(|row| shared.faults.at_prompt(view.prompt_id(row)))?;
        let mut engine = engine.unwrap_or_else(|| {
            generate::sampler(&self.weights.model, &shared.tokenizer, &shared.run)
        });
        let source = Source {
            model: &self.weights.model,
            tokenizer: &shared.tokenizer,
            sampling: &shared.sampling,
            random: shared.random.derive(&format!("step {}", self.step)),
            policy_version: self.weights.version,
            samples: shared.settings.group_size,
        };
        let failed =
            generate::generate(&mut engine, &source, prompts, &self.cancel, &mut |_, rows| {
                send(rows)
            })?;
        let failed = failed.into_iter().map(|(row, error)| (id(row), error)).collect();
        if shared.device.is_cuda() {
            // That memory is the learner's while it steps. What was captured stays.
            engine.release_cache();
        }
        Ok(Drawn { engine: Some(engine), failed })
    }

    /// A prompt at which sampling fails is one that has failed; what fails at every prompt isn't a prompt's
    /// own fault. Draws have addresses, so the others get the completions that they would have got together.
    fn one_by_one(&self, prompts: &RecordBatch) -> Result<Drawn> {
        let mut engine = None;
        let (mut failed, mut struck) = (Vec::new(), Vec::new());
        let mut drawn_count = 0_usize;
        for row in 0..prompts.num_rows() {
            let prompt = prompts.slice(row, 1);
            let mut is_sent = false;
            let drawn = catch_unwind(AssertUnwindSafe(|| {
                self.draw(engine.take(), &prompt, &mut |rows| {
                    self.send(rows).inspect(|()| is_sent = true)
                })
            }));
            let drawn = drawn.unwrap_or_else(|panic| {
                Err(Error::bug(format!("sampling panicked: {}", panic_text(&*panic))))
            });
            match drawn {
                Ok(drawn) => {
                    drawn_count += usize::from(drawn.failed.is_empty());
                    engine = drawn.engine;
                    failed.extend(drawn.failed);
                }
                // Nobody wants the rest, which is no prompt's fault.
                Err(error) if self.cancel.load(Ordering::Relaxed) => return Err(error),
                Err(error @ Error::Device { .. }) => return Err(error),
                Err(_) if is_sent => drawn_count += 1,
                Err(error) => {
                    let prompt_id = PromptsView::new(&prompt)?.prompt_id(0).to_owned();
                    struck.push((prompt_id, error));
                }
            }
        }
        if drawn_count == 0 && struck.len() > 1 {
            let (_, error) = struck.swap_remove(0);
            return Err(error);
        }
        failed.extend(struck);
        Ok(Drawn { engine, failed })
    }
}
