//! Checkpointer: writes what the stage needs to go on, and its model at the end, on a thread of its own.
//! - Inbox: one checkpoint at a time; the learner hands its state over and gets it back.
//! - State: the thread, and the parts of tables that the last checkpoint stands on.
//! - Fails with [`Error`] where something can't be written; the stage goes on from the checkpoint before.

use std::sync::Arc;

use aha_learn::learner::Learner;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::fault::Point;
use super::learner;
use super::stage::Shared;
use crate::checkpoint::{self, Content, Position};
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::models;
use crate::parts::Parts;

/// Others talk to the checkpointer through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
}

impl Handle {
    /// The actor's identity, for its supervisor.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    /// Writes a checkpoint; the learner gets its state back when it is durable.
    pub fn save(&self, state: Box<Learner>, position: Position, checksum: Option<u64>) {
        // A checkpointer that has ended ends the stage.
        let _ = self.actor.cast(Msg::Save { state, position: Box::new(position), checksum });
    }

    /// Writes the stage's model; the learner hears when it is durable.
    pub fn finish(&self, state: Box<Learner>) {
        let _ = self.actor.cast(Msg::Finish { state }); // As above.
    }
}

impl From<ActorRef<Msg>> for Handle {
    /// For whoever stands in for the checkpointer.
    fn from(actor: ActorRef<Msg>) -> Handle {
        Handle { actor }
    }
}

/// What the checkpointer is told.
pub enum Msg {
    /// Write a checkpoint.
    Save {
        /// The learner's state, given back when it is durable.
        state: Box<Learner>,
        /// Where the stage is.
        position: Box<Position>,
        /// What the weights' checksum has to be; none where nobody minds.
        checksum: Option<u64>,
    },
    /// Write the stage's model.
    Finish {
        /// The learner's state.
        state: Box<Learner>,
    },
}

/// What the checkpointer needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Who gets the state back.
    pub learner: learner::Handle,
    /// The parts of tables that the stage's last checkpoint stands on.
    pub parts: Parts,
}

/// What the checkpointer keeps.
pub struct State {
    args: Args,
    thread: ComputeThread,
}

/// Writes checkpoints.
pub struct Checkpointer;

/// Spawns the checkpointer under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Checkpointer, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the checkpointer doesn't start: {error}")))?;
    Ok(Handle { actor })
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
        // Waited for here, so that whoever stops the checkpointer knows that nobody writes any more.
        let shared = Arc::clone(&state.args.shared);
        match msg {
            Msg::Save { state: learner, position, checksum } => {
                let step = position.step;
                shared.faults.at(Point::Checkpoint, step)?;
                let position = Position { parts: state.args.parts.clone(), ..*position };
                let job = move || {
                    save(&shared, &learner, position, checksum).map(|parts| (parts, learner))
                };
                let (parts, learner) = state.thread.run(job).await??;
                state.args.parts = parts;
                state.args.learner.checkpointed(step, learner);
            }
            Msg::Finish { state: learner } => {
                state.thread.run(move || finish(&shared, *learner)).await??;
                state.args.learner.finished();
            }
        }
        Ok(())
    }
}

fn save(
    shared: &Shared,
    learner: &Learner,
    position: Position,
    checksum: Option<u64>,
) -> Result<Parts> {
    // They are the newest weights: a resume would go on from damaged ones, and nothing would tell.
    let found = learner.model().checksum()?;
    if let Some(wanted) = checksum.filter(|&wanted| wanted != found) {
        return Err(Error::Watchdog {
            message: format!(
                "the learner's weights of version {} have the checksum {found:016x}, not {wanted:016x} as at the end of their step",
                position.version
            ),
            hint: learner::WEIGHTS_HINT.to_owned(),
        });
    }
    // The model that the stage began with is found again through the pipeline.
    let refreshed = position.reference_version > 0;
    let content = Content {
        model: learner.model(),
        tokenizer: &shared.tokenizer,
        reference: learner.reference().filter(|_| refreshed).map(AsRef::as_ref),
        optimizer: learner.optimizer(),
        critic: learner.critic().map(|critic| (&**critic.model(), critic.optimizer())),
        position: Position {
            optimizer_steps: learner.optimizer().step_count(),
            critic_steps: learner.critic().map_or(0, |critic| critic.optimizer().step_count()),
            ..position
        },
    };
    checkpoint::save(&shared.dir, &content, shared.run.checkpoint_keep as usize)
}

fn finish(shared: &Shared, learner: Learner) -> Result<()> {
    shared.faults.at(Point::Model, shared.settings.steps)?;
    let model = models::finish(&shared.dir, &shared.stage, learner)?;
    models::save_final(&shared.dir, &shared.stage, &model, &shared.tokenizer)
}
