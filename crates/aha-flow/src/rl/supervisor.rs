//! Supervisor: spawns a stage's actors and decides what a failure means.
//! - Inbox: how the stage ended, requests to stop; failures come as supervision events.
//! - State: the actors, and failures since the last step that went through.
//! - Ends with the stage: whoever spawned it hears the outcome, and stops it.
//!
//! Everything left of the learner holds nothing that a step needs again: it is spawned anew and the step is
//! issued again. A sampler that has failed too often may do so because of one prompt: it then samples the
//! step prompt by prompt. The learner, recorder and checkpointer hold the stage's state: if one fails, the
//! stage goes on from its last checkpoint.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use super::learner::Links;
use super::stage::Shared;
use super::{advantage, checkpointer, feeder, learner, recorder, reward, sampler};
use crate::checkpoint::Position;
use crate::error::{Error, Result};
use crate::progress::Event;

/// How often those who watch hear what waits for the actors.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
        /// Whether the step is then sampled prompt by prompt.
        one_by_one: bool,
    },
    /// Go on from the last checkpoint.
    RestartStage,
    /// Stop the run.
    StopRun,
}

/// Which side of the ring failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of the left side, the sampler: it may have met a prompt that no sampler survives.
    Sampler,
    /// Feeder, reward or advantage actor.
    Left,
    /// Learner, recorder or checkpointer.
    Right,
}

/// Decides from the kind of error, not from its text. `failures` counts those of the same step before, and
/// `one_by_one` says whether the step is already sampled prompt by prompt.
pub fn decide(side: Side, error: Option<&Error>, failures: u32, one_by_one: bool) -> Decision {
    let restart = |one_by_one| Decision::RestartLeft {
        after: Duration::from_millis(50 << failures),
        one_by_one,
    };
    let is_last = failures + 1 == LEFT_RESTARTS_MAX;
    match (error, side) {
        // Together it would give the same error again.
        (Some(Error::Input { .. }), Side::Sampler)
            if !one_by_one && failures < LEFT_RESTARTS_MAX =>
        {
            restart(true)
        }
        (
            Some(
                Error::Input { .. }
                | Error::Device { .. }
                | Error::Watchdog { .. }
                | Error::Interrupted,
            ),
            _,
        ) => Decision::StopRun,
        (_, Side::Sampler) if failures < LEFT_RESTARTS_MAX => restart(one_by_one || is_last),
        (_, Side::Left) if failures < LEFT_RESTARTS_MAX => restart(one_by_one),
        (_, Side::Sampler | Side::Left) => Decision::StopRun,
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
    /// Tell those who watch what waits for the actors.
    Look,
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
    learner: learner::Handle,
    recorder: recorder::Handle,
    checkpointer: checkpointer::Handle,
    left: Vec<ActorCell>,
    sampler: Option<sampler::Handle>,
    reward: Option<reward::Handle>,
    attempt: u64,
    /// Of the step that is under way: its failures, and whether it is sampled prompt by prompt.
    failures: u32,
    one_by_one: bool,
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
        let (after, parts) = (args.position.step, args.position.parts.clone());
        let learner_args = learner::Args {
            shared: Arc::clone(&shared),
            engine: args.engine,
            position: args.position,
            supervisor: me.clone(),
        };
        let learner = learner::spawn(learner_args, me.get_cell()).await?;
        let recorder_args =
            recorder::Args { shared: Arc::clone(&shared), after, learner: learner.clone() };
        let recorder = recorder::spawn(recorder_args, me.get_cell()).await?;
        let checkpointer_args =
            checkpointer::Args { shared: Arc::clone(&shared), learner: learner.clone(), parts };
        let checkpointer = checkpointer::spawn(checkpointer_args, me.get_cell()).await?;
        let mut state = State {
            shared,
            learner,
            recorder,
            checkpointer,
            left: Vec::new(),
            sampler: None,
            reward: None,
            attempt: 0,
            failures: 0,
            one_by_one: false,
            ended: Some(args.ended),
        };
        state.spawn_left(&me).await?;
        // It ends with the supervisor.
        me.send_interval(LOOK_EVERY, || Msg::Look);
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
            Msg::StepDone => (state.failures, state.one_by_one) = (0, false),
            // What was under way when the stage ended.
            Msg::SpawnLeft if state.ended.is_none() => {}
            Msg::Stop => state.learner.stop(),
            Msg::Look => state.tell_waiting(),
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
            // What an earlier left side does after its end concerns nobody.
            if let Some(side) = state.side(cell.get_id()).filter(|_| state.ended.is_some()) {
                state.failed(&me, side, error);
            }
        }
        Ok(())
    }
}

impl State {
    /// Which side the actor is on; none if it is of an earlier left side.
    fn side(&self, id: ActorId) -> Option<Side> {
        let right = [self.learner.id(), self.checkpointer.id(), self.recorder.id()];
        if right.contains(&id) {
            return Some(Side::Right);
        }
        let is_left = self.left.iter().any(|left| left.get_id() == id);
        let is_sampler = self.sampler.as_ref().is_some_and(|of| of.cell().get_id() == id);
        let side = if is_sampler { Side::Sampler } else { Side::Left };
        is_left.then_some(side)
    }

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
            is_one_by_one: self.one_by_one,
        };
        let sampler = sampler::spawn(sampler_args, me.get_cell()).await?;
        let feeder_args = feeder::Args {
            shared: shared(),
            sampler: sampler.clone(),
            advantage: advantage.clone(),
            learner: learner.clone(),
            attempt,
        };
        let feeder = feeder::spawn(feeder_args, me.get_cell()).await?;
        self.left = vec![advantage.cell(), reward.cell(), sampler.cell(), feeder.cell()];
        self.sampler = Some(sampler.clone());
        self.reward = Some(reward);
        let links = Links {
            feeder,
            sampler,
            recorder: self.recorder.clone(),
            checkpointer: self.checkpointer.clone(),
            attempt,
        };
        self.learner.connect(links);
        Ok(())
    }

    fn failed(&mut self, me: &ActorRef<Msg>, side: Side, error: ActorProcessingErr) {
        let known = error.downcast_ref::<Error>();
        let decision = decide(side, known, self.failures, self.one_by_one);
        tracing::warn!(%error, ?side, ?decision, stage = self.shared.stage, "Actor failed.");
        match decision {
            Decision::RestartLeft { after, one_by_one } => {
                self.failures += 1;
                self.one_by_one = one_by_one;
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

    /// Between two left sides there is nobody to wait for.
    fn tell_waiting(&self) {
        let (Some(sampler), Some(reward)) = (&self.sampler, &self.reward) else { return };
        let actors = vec![sampler.waiting(), reward.waiting(), self.recorder.waiting()];
        let stage = self.shared.stage.clone();
        (self.shared.watcher)(Event::Actors { stage, actors });
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
        let after =
            |ms, one_by_one| Decision::RestartLeft { after: Duration::from_millis(ms), one_by_one };
        let cases = [
            (Side::Left, None, (0, false), after(50, false)),
            (Side::Left, None, (2, false), after(200, false)),
            (Side::Left, None, (2, true), after(200, true)),
            (Side::Left, None, (3, false), Decision::StopRun),
            (Side::Left, Some(&environment), (1, false), after(100, false)),
            (Side::Left, Some(&input), (0, false), Decision::StopRun),
            (Side::Sampler, None, (0, false), after(50, false)),
            (Side::Sampler, Some(&environment), (1, false), after(100, false)),
            (Side::Sampler, None, (2, false), after(200, true)),
            (Side::Sampler, None, (1, true), after(100, true)),
            (Side::Sampler, None, (3, true), Decision::StopRun),
            (Side::Sampler, Some(&input), (0, false), after(50, true)),
            (Side::Sampler, Some(&input), (1, true), Decision::StopRun),
            (Side::Sampler, Some(&input), (3, false), Decision::StopRun),
            (Side::Sampler, Some(&Error::Interrupted), (0, false), Decision::StopRun),
            (Side::Right, None, (0, false), Decision::RestartStage),
            (Side::Right, Some(&environment), (9, false), Decision::RestartStage),
            (Side::Right, Some(&input), (0, false), Decision::StopRun),
            (Side::Right, Some(&Error::Interrupted), (0, false), Decision::StopRun),
        ];
        for (side, error, (failures, one_by_one), want) in cases {
            let found = decide(side, error, failures, one_by_one);
            assert_eq!(found, want, "{side:?} {error:?} {failures} {one_by_one}");
        }
    }
}
