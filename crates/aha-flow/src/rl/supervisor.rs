//! Supervisor: spawns a stage's actors and decides what a failure means.
//! - Inbox: how the stage ended, requests to stop; failures come as supervision events.
//! - State: the actors, and failures since the last step that went through.
//! - Ends with the stage: whoever spawned it hears the outcome, and stops it.
//!
//! Everything left of the learner holds nothing that a step needs again: it is spawned anew and the step is
//! issued again. The learner, recorder and checkpointer hold the stage's state: if one fails, the stage goes
//! on from its last checkpoint.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use super::learner::{self, Links};
use super::stage::Shared;
use super::{advantage, checkpointer, feeder, recorder, reward, sampler};
use crate::checkpoint::Position;
use crate::error::{Error, Result};

/// Times that the left side is spawned anew for one step, at most.
const LEFT_RESTARTS_MAX: u32 = 3;

/// How a stage's actors ended.
#[derive(Debug)]
pub enum Ending {
    /// The stage is done, or has to stop for a reason that a restart can't cure.
    Final(Result<()>),
    /// The stage may go on from its last checkpoint.
    Restart(Error),
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Spawn the left side anew after a pause, and issue the step again.
    RestartLeft {
        /// The pause.
        after: Duration,
    },
    /// Go on from the last checkpoint.
    RestartStage,
    /// Stop the run.
    StopRun,
}

/// Which side of the ring failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Feeder, sampler, reward or advantage actor.
    Left,
    /// Learner, recorder or checkpointer.
    Right,
}

/// Decides from the kind of error, not from its text. `failures` counts those of the same step before.
pub fn decide(side: Side, error: Option<&Error>, failures: u32) -> Decision {
    match (error, side) {
        (Some(Error::Input { .. } | Error::Watchdog { .. } | Error::Interrupted), _) => {
            Decision::StopRun
        }
        (_, Side::Left) if failures < LEFT_RESTARTS_MAX => {
            Decision::RestartLeft { after: Duration::from_millis(50 << failures) }
        }
        (_, Side::Left) => Decision::StopRun,
        (_, Side::Right) => Decision::RestartStage,
    }
}

/// What the supervisor is told.
pub enum Msg {
    /// The learner says how the stage ended.
    Ended(Result<()>),
    /// The learner is through with a step: failures are counted anew.
    StepDone,
    /// Write a checkpoint and leave.
    Stop,
    /// The pause before a restart is over.
    SpawnLeft,
}

/// What the supervisor begins with.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Weights and optimizer.
    pub engine: Box<aha_learn::learner::Learner>,
    /// Where the stage is.
    pub position: Position,
    /// Hears how the stage ended.
    pub ended: oneshot::Sender<Ending>,
}

/// What the supervisor keeps.
pub struct State {
    shared: Arc<Shared>,
    learner: ActorRef<learner::Msg>,
    recorder: recorder::Handle,
    checkpointer: ActorRef<checkpointer::Msg>,
    left: Vec<ActorCell>,
    reward: Option<reward::Handle>,
    attempt: u64,
    failures: u32,
    ended: Option<oneshot::Sender<Ending>>,
}

/// Watches over a stage.
pub struct Supervisor;

impl Actor for Supervisor {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, me: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let shared = args.shared;
        let after = args.position.step;
        let learner_args = learner::Args {
            shared: Arc::clone(&shared),
            engine: args.engine,
            position: args.position,
            supervisor: me.clone(),
        };
        let (learner, _) =
            Actor::spawn_linked(None, learner::Learner, learner_args, me.get_cell()).await?;
        let recorder_args =
            recorder::Args { shared: Arc::clone(&shared), after, learner: learner.clone() };
        let recorder = recorder::spawn(recorder_args, me.get_cell()).await?;
        let checkpointer_args =
            checkpointer::Args { shared: Arc::clone(&shared), learner: learner.clone() };
        let checkpointer = checkpointer::spawn(checkpointer_args, me.get_cell()).await?;
        let mut state = State {
            shared,
            learner,
            recorder,
            checkpointer,
            left: Vec::new(),
            reward: None,
            attempt: 0,
            failures: 0,
            ended: Some(args.ended),
        };
        state.spawn_left(&me).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Ended(outcome) => state.end(Ending::Final(outcome)),
            Msg::StepDone => state.failures = 0,
            // What was under way when the stage ended.
            Msg::SpawnLeft if state.ended.is_none() => {}
            Msg::Stop => {
                let _ = state.learner.cast(learner::Msg::Stop); // It may have ended; so does the stage then.
            }
            Msg::SpawnLeft => state.spawn_left(&me).await?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            let is_left = state.left.iter().any(|left| left.get_id() == cell.get_id());
            let is_right = [state.learner.get_id(), state.checkpointer.get_id()]
                .contains(&cell.get_id())
                || state.recorder.id() == cell.get_id();
            // What an earlier left side does after its end concerns nobody.
            if state.ended.is_some() && (is_left || is_right) {
                state.failed(&me, if is_left { Side::Left } else { Side::Right }, error);
            }
        }
        Ok(())
    }
}

impl State {
    /// Spawns feeder, sampler, reward and advantage actors, and has the learner issue its step.
    async fn spawn_left(&mut self, me: &ActorRef<Msg>) -> Result<()> {
        self.attempt += 1;
        let (attempt, learner) = (self.attempt, self.learner.clone());
        let shared = || Arc::clone(&self.shared);
        let advantage_args = advantage::Args { shared: shared(), learner: learner.clone() };
        let advantage = advantage::spawn(advantage_args, me.get_cell()).await?;
        let reward_args = reward::Args { shared: shared(), advantage: advantage.clone() };
        let reward = reward::spawn(reward_args, me.get_cell()).await?;
        let sampler_args = sampler::Args {
            shared: shared(),
            reward: reward.clone(),
            advantage: advantage.clone(),
            learner: learner.clone(),
            attempt,
        };
        let sampler = sampler::spawn(sampler_args, me.get_cell()).await?;
        let feeder_args = feeder::Args {
            shared: shared(),
            sampler: sampler.clone(),
            advantage: advantage.clone(),
            attempt,
        };
        let (feeder, _) = Actor::spawn_linked(None, feeder::Feeder, feeder_args, me.get_cell())
            .await
            .map_err(|error| Error::bug(format!("the feeder doesn't start: {error}")))?;
        self.left = vec![advantage.cell(), reward.cell(), sampler.cell(), feeder.get_cell()];
        self.reward = Some(reward);
        let links = Links {
            feeder,
            sampler,
            recorder: self.recorder.clone(),
            checkpointer: self.checkpointer.clone(),
            attempt,
        };
        let _ = self.learner.cast(learner::Msg::Connect(links)); // If it has ended, so does the stage.
        Ok(())
    }

    fn failed(&mut self, me: &ActorRef<Msg>, side: Side, error: ActorProcessingErr) {
        let known = error.downcast_ref::<Error>();
        let decision = decide(side, known, self.failures);
        tracing::warn!(%error, ?side, ?decision, stage = self.shared.stage, "Actor failed.");
        match decision {
            Decision::RestartLeft { after } => {
                self.failures += 1;
                self.stop_left();
                let me = me.clone();
                crate::task::spawn("restart pause", async move {
                    tokio::time::sleep(after).await;
                    let _ = me.cast(Msg::SpawnLeft); // The stage may have ended meanwhile.
                });
            }
            Decision::RestartStage => self.end(Ending::Restart(known_error(error))),
            Decision::StopRun => self.end(Ending::Final(Err(known_error(error)))),
        }
    }

    fn stop_left(&mut self) {
        if let Some(reward) = self.reward.take() {
            reward.close();
        }
        for cell in self.left.drain(..) {
            cell.stop(None);
        }
    }

    /// Says how the stage ended. Whoever hears it stops the actors that are left, each between two messages:
    /// they would be killed in the middle of a write if the supervisor ended first.
    fn end(&mut self, ending: Ending) {
        self.stop_left();
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(ending); // Whoever waited may have stopped waiting.
        }
    }
}

/// The error that an actor failed with; a panic has only its text.
fn known_error(error: ActorProcessingErr) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(other) => Error::bug(format!("an actor failed: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_decision() {
        let input = Error::input("bad row");
        let environment = Error::Environment { message: "disk full".to_owned() };
        let after = |ms| Decision::RestartLeft { after: Duration::from_millis(ms) };
        let cases = [
            (Side::Left, None, 0, after(50)),
            (Side::Left, None, 2, after(200)),
            (Side::Left, None, 3, Decision::StopRun),
            (Side::Left, Some(&environment), 1, after(100)),
            (Side::Left, Some(&input), 0, Decision::StopRun),
            (Side::Right, None, 0, Decision::RestartStage),
            (Side::Right, Some(&environment), 9, Decision::RestartStage),
            (Side::Right, Some(&input), 0, Decision::StopRun),
            (Side::Right, Some(&Error::Interrupted), 0, Decision::StopRun),
        ];
        for (side, error, failures, want) in cases {
            assert_eq!(decide(side, error, failures), want, "{side:?} {error:?} {failures}");
        }
    }
}
