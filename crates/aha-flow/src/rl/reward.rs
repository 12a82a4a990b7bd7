//! Reward actor: scores finished groups; same rows out, same order.
//! - Inbox: at most [`GROUPS_MAX`] groups, each with the credit that pays for its place.
//! - State: threads that score, as many as the run computes with, or more where verifiers wait for others.
//!   After a restart the step is issued again.
//! - Fails with [`Error`] where a row must stop the run; a verifier that panics costs its row the reward.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::advantage;
use super::credit::{Credit, Credits};
use super::fault::Point;
use super::stage::Shared;
use crate::compute::{self, ComputeThread};
use crate::error::{Error, Result};
use crate::progress::Waiting;

/// Groups that may wait to be scored.
pub const GROUPS_MAX: usize = 256;

/// Others talk to the reward actor through this.
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

    /// What waits for it.
    pub fn waiting(&self) -> Waiting {
        self.credits.waiting("reward")
    }

    /// Sends a group to be scored once there is room for it, and says whether it was sent: a reward actor
    /// that has ended takes none. Called on the sampler's thread.
    pub fn score(&self, step: u64, attempt: u64, rows: RecordBatch) -> bool {
        let Some(credit) = self.credits.take_blocking() else { return false };
        self.actor.cast(Msg::Score { step, attempt, rows, credit }).is_ok()
    }

    /// Lets a sender that waits for room go.
    pub fn close(&self) {
        self.credits.close();
    }
}

/// What the reward actor is told.
pub enum Msg {
    /// Score a group.
    Score {
        /// The step.
        step: u64,
        /// Which spawn of the left side sent it.
        attempt: u64,
        /// Rows of `aha_rollout::schema::sampled`.
        rows: RecordBatch,
        /// Pays for the group's place.
        credit: Credit,
    },
    /// A group is scored.
    Scored {
        /// The step.
        step: u64,
        /// Which spawn of the left side sent it.
        attempt: u64,
        /// Rows of `aha_rollout::schema::scored`, or why the run must stop.
        rows: Result<RecordBatch>,
        /// Pays for the group's place.
        credit: Credit,
    },
}

/// What the reward actor needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where scored groups go.
    pub advantage: advantage::Handle,
}

/// What the reward actor keeps.
pub struct State {
    args: Args,
    threads: ComputeThread,
    cancel: Arc<AtomicBool>,
}

impl Drop for State {
    /// What still waits for a thread isn't scored for nobody.
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Scores rollouts.
pub struct Reward;

/// Spawns the reward actor under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Reward, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the reward actor doesn't start: {error}")))?;
    Ok(Handle { actor, credits: Credits::new(GROUPS_MAX) })
}

impl Actor for Reward {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let cores = compute::threads(args.shared.run.threads);
        let count = cores.max(args.shared.scorer.parallel_count());
        let threads = ComputeThread::start_several("aha-reward", count)?;
        Ok(State { args, threads, cancel: Arc::default() })
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Score { step, attempt, rows, credit } => {
                state.args.shared.faults.at(Point::Reward, step)?;
                let (shared, cancel) = (Arc::clone(&state.args.shared), Arc::clone(&state.cancel));
                let scored = state.threads.run(move || {
                    if cancel.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted);
                    }
                    shared.faults.at(Point::Score, step)?;
                    shared.scorer.score(&rows)
                });
                crate::task::spawn("reward job", async move {
                    let rows = scored.await.and_then(|rows| rows);
                    let _ = me.cast(Msg::Scored { step, attempt, rows, credit }); // The actor may have ended.
                });
            }
            // The run was stopped, and the learner leaves with the step before: nobody wants these any more.
            Msg::Scored { rows: Err(Error::Interrupted), .. } => {}
            Msg::Scored { step, attempt, rows, credit } => {
                state.args.advantage.take(step, attempt, rows?, credit);
            }
        }
        Ok(())
    }
}
