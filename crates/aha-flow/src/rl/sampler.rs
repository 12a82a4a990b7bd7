//! Sampler actor: draws the completions of a step's prompts on a thread of its own.
//! - Inbox: one batch of prompts, paid for by a credit; weights as they are published.
//! - State: the key/value cache, rebuilt empty after a restart; the learner publishes its weights again.
//! - Fails with [`Error`]. Prompts that can't be served are reported, not fatal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_model::Model;
use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::credit::{Credit, Credits};
use super::fault::Point;
use super::stage::Shared;
use super::{advantage, learner, reward};
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::generate::{self, Source};

/// Others talk to the sampler through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
    credits: Credits,
}

impl Handle {
    /// The actor, for its supervisor.
    pub fn cell(&self) -> ractor::ActorCell {
        self.actor.get_cell()
    }

    /// Sends a step's prompts once there is room for them.
    pub async fn sample(&self, step: u64, prompts: RecordBatch) {
        if let Some(credit) = self.credits.take().await {
            // A sampler that has ended is restarted, and the step issued again.
            let _ = self.actor.cast(Msg::Sample { step, prompts, credit });
        }
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
    Done(Result<(aha_sample::Sampler, Vec<(String, Error)>)>, u64),
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
    pub learner: ActorRef<learner::Msg>,
    /// Which spawn of the left side this is.
    pub attempt: u64,
}

/// What the sampler keeps.
pub struct State {
    args: Args,
    thread: ComputeThread,
    engine: Option<aha_sample::Sampler>,
    weights: Option<Weights>,
    cancel: Arc<AtomicBool>,
}

/// Draws completions.
pub struct Sampler;

/// Spawns the sampler under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Sampler, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the sampler doesn't start: {error}")))?;
    Ok(Handle { actor, credits: Credits::new(1) })
}

impl Actor for Sampler {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let thread = ComputeThread::start("aha-sampler")?;
        Ok(State { args, thread, engine: None, weights: None, cancel: Arc::default() })
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Weights(weights) => {
                let found = weights.model.params().checksum();
                if found != weights.checksum {
                    let found = learner::Msg::WeightsDiffer { version: weights.version, found };
                    let _ = state.args.learner.cast(found); // A learner that has ended needs no news.
                }
                state.weights = Some(weights);
            }
            Msg::Sample { step, prompts, credit } => {
                state.args.shared.faults.at(Point::Sample, step)?;
                state.start(me, step, prompts, credit)?;
            }
            Msg::Done(outcome, step) => {
                let (engine, failed) = outcome?;
                state.engine = Some(engine);
                for (prompt_id, error) in failed {
                    state.args.advantage.failed(step, state.args.attempt, prompt_id, error);
                }
            }
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

impl State {
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
        let shared = Arc::clone(&self.args.shared);
        let engine = self.engine.take();
        let (reward, attempt, cancel) =
            (self.args.reward.clone(), self.args.attempt, Arc::clone(&self.cancel));
        let thread = self.thread.clone();
        let job = move || {
            let _credit = credit;
            let engine = engine.unwrap_or_else(|| {
                generate::sampler(&weights.model, &shared.tokenizer, &shared.run)
            });
            sample(engine, &shared, &weights, step, &prompts, &cancel, &mut |rows| {
                reward.score(step, attempt, rows)
            })
        };
        crate::task::spawn("sampler job", async move {
            let outcome = thread.run(job).await.and_then(|outcome| outcome);
            let _ = me.cast(Msg::Done(outcome, step)); // A sampler that has ended needs no answer.
        });
        Ok(())
    }
}

fn sample(
    mut engine: aha_sample::Sampler,
    shared: &Shared,
    weights: &Weights,
    step: u64,
    prompts: &RecordBatch,
    cancel: &AtomicBool,
    send: &mut dyn FnMut(RecordBatch) -> Result<()>,
) -> Result<(aha_sample::Sampler, Vec<(String, Error)>)> {
    let source = Source {
        model: &weights.model,
        tokenizer: &shared.tokenizer,
        sampling: &shared.sampling,
        random: shared.random.derive(&format!("step {step}")),
        policy_version: weights.version,
        samples: shared.settings.group_size,
    };
    let failed =
        generate::generate(&mut engine, &source, prompts, cancel, &mut |_, rows| send(rows))?;
    let view = aha_rollout::view::PromptsView::new(prompts)?;
    let failed =
        failed.into_iter().map(|(row, error)| (view.prompt_id(row).to_owned(), error)).collect();
    Ok((engine, failed))
}
