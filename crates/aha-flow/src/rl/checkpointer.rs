//! Checkpointer: writes what the stage needs to go on, on a thread of its own.
//! - Inbox: one checkpoint at a time; the learner hands its state over and gets it back.
//! - State: the thread.
//! - Fails with [`Error`] where a checkpoint can't be written; the stage goes on from the one before.

use std::sync::Arc;

use aha_learn::learner::Learner;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::fault::Point;
use super::learner;
use super::stage::Shared;
use crate::checkpoint::{self, Content, Position};
use crate::compute::ComputeThread;
use crate::error::{Error, Result};

/// What the checkpointer is told.
pub enum Msg {
    /// Write a checkpoint.
    Save {
        /// The learner's state, given back when it is durable.
        learner: Box<Learner>,
        /// Where the stage is.
        position: Position,
    },
}

/// What the checkpointer needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Who gets the state back.
    pub learner: ActorRef<learner::Msg>,
}

/// What the checkpointer keeps.
pub struct State {
    args: Args,
    thread: ComputeThread,
}

/// Writes checkpoints.
pub struct Checkpointer;

/// Spawns the checkpointer under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<ActorRef<Msg>> {
    let (actor, _) = Actor::spawn_linked(None, Checkpointer, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the checkpointer doesn't start: {error}")))?;
    Ok(actor)
}

impl Actor for Checkpointer {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let thread = ComputeThread::start("aha-checkpoint")?;
        Ok(State { args, thread })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Msg::Save { learner, position } = msg;
        let shared = Arc::clone(&state.args.shared);
        shared.faults.at(Point::Checkpoint, position.step)?;
        let step = position.step;
        let saved = state.thread.run(move || save(&shared, &learner, position).map(|()| learner));
        let learner = saved.await??;
        let _ = state.args.learner.cast(learner::Msg::Checkpointed { step, learner }); // It may have ended.
        Ok(())
    }
}

fn save(shared: &Shared, learner: &Learner, position: Position) -> Result<()> {
    // The model that the stage began with is found again through the pipeline.
    let refreshed = position.reference_version > 0;
    let content = Content {
        model: learner.model(),
        tokenizer: &shared.tokenizer,
        reference: learner.reference().filter(|_| refreshed).map(AsRef::as_ref),
        optimizer: learner.optimizer(),
        position: Position { optimizer_steps: learner.optimizer().step_count(), ..position },
    };
    checkpoint::save(&shared.dir, content, shared.run.checkpoint_keep as usize)?;
    Ok(())
}
