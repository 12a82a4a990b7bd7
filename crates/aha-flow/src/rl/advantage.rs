//! Advantage actor: collects a step's groups, and sends them on with their advantages.
//! - Inbox: scored groups; each keeps its credit until it is taken in here.
//! - State: groups of the current step. After a restart the step is issued again.
//! - Fails with [`Error`] for a reward that isn't a number.

use std::collections::BTreeMap;
use std::sync::Arc;

use aha_learn::advantage::{GroupAdvantages, advantages};
use aha_rollout::schema::Progress;
use aha_rollout::steps;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::credit::Credit;
use super::fault::Point;
use super::learner;
use super::stage::Shared;
use crate::error::{Error, Result};

/// Others talk to the advantage actor through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
}

impl Handle {
    /// The actor, for its supervisor.
    pub fn cell(&self) -> ractor::ActorCell {
        self.actor.get_cell()
    }

    /// Says which groups a step has.
    pub fn expect(&self, step: u64, attempt: u64, prompt_ids: Vec<String>) {
        let _ = self.actor.cast(Msg::Expect { step, attempt, prompt_ids }); // One that has ended is restarted.
    }

    /// Hands over a scored group.
    pub fn take(&self, step: u64, attempt: u64, rows: RecordBatch, credit: Credit) {
        let _ = self.actor.cast(Msg::Group { step, attempt, rows, credit }); // As above.
    }

    /// Says that a group will never come.
    pub fn failed(&self, step: u64, attempt: u64, prompt_id: String, error: Error) {
        let _ = self.actor.cast(Msg::Failed { step, attempt, prompt_id, error }); // As above.
    }
}

/// What the advantage actor is told.
pub enum Msg {
    /// Which groups to wait for, in their order.
    Expect {
        /// The step.
        step: u64,
        /// Which spawn of the left side asks.
        attempt: u64,
        /// Their prompts.
        prompt_ids: Vec<String>,
    },
    /// A scored group.
    Group {
        /// The step.
        step: u64,
        /// Which spawn of the left side sent it.
        attempt: u64,
        /// Rows of `aha_rollout::schema::scored`.
        rows: RecordBatch,
        /// Pays for the group's place.
        credit: Credit,
    },
    /// A prompt that can't be served.
    Failed {
        /// The step.
        step: u64,
        /// Which spawn of the left side says so.
        attempt: u64,
        /// The prompt.
        prompt_id: String,
        /// Why.
        error: Error,
    },
}

/// A step's rows with advantages, group after group in the order of the prompts.
pub struct Groups {
    /// Rows of `aha_rollout::schema::grouped`.
    pub rows: RecordBatch,
    /// Rows of each group.
    pub lens: Vec<usize>,
    /// Whether each group teaches anything but closeness to the reference.
    pub has_signal: Vec<bool>,
    /// Prompts that could not be served, with their errors.
    pub failed: Vec<(String, String)>,
}

/// What the advantage actor needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where groups go.
    pub learner: learner::Handle,
}

/// What the advantage actor keeps: one step's groups.
pub struct State {
    args: Args,
    step: u64,
    attempt: u64,
    prompt_ids: Vec<String>,
    groups: BTreeMap<String, RecordBatch>,
    failed: BTreeMap<String, String>,
}

/// Normalises groups.
pub struct Advantage;

/// Spawns the advantage actor under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Advantage, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the advantage actor doesn't start: {error}")))?;
    Ok(Handle { actor })
}

impl Actor for Advantage {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let (groups, failed) = Default::default();
        Ok(State { args, step: 0, attempt: 0, prompt_ids: Vec::new(), groups, failed })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Expect { step, attempt, prompt_ids } => {
                (state.step, state.attempt, state.prompt_ids) = (step, attempt, prompt_ids);
                state.groups.clear();
                state.failed.clear();
            }
            Msg::Group { step, attempt, rows, credit } => {
                state.args.shared.faults.at(Point::Advantage, step)?;
                if (step, attempt) == (state.step, state.attempt) {
                    let view = RolloutsView::new(&rows, Progress::Scored)?;
                    let prompt_id = view.prompt_id(0).to_owned();
                    state.groups.insert(prompt_id, rows);
                }
                drop(credit);
            }
            Msg::Failed { step, attempt, prompt_id, error } => {
                if (step, attempt) == (state.step, state.attempt) {
                    state.failed.insert(prompt_id, error.to_string());
                }
            }
        }
        state.send_if_complete()?;
        Ok(())
    }
}

impl State {
    fn send_if_complete(&mut self) -> Result<()> {
        let waiting = self.groups.len() + self.failed.len() < self.prompt_ids.len();
        if self.step == 0 || waiting {
            return Ok(());
        }
        let ordered: Vec<RecordBatch> =
            self.prompt_ids.iter().filter_map(|id| self.groups.remove(id)).collect();
        let failed = std::mem::take(&mut self.failed).into_iter().collect();
        let shared = &self.args.shared;
        let groups = normalise(
            &ordered,
            &shared.settings.objective.advantage,
            shared.scorer.names(),
            failed,
        )?;
        self.args.learner.learn(self.step, self.attempt, groups);
        self.step = 0;
        Ok(())
    }
}

/// Adds advantages to the groups of a step.
pub fn normalise(
    groups: &[RecordBatch],
    rule: &aha_learn::advantage::AdvantageRule,
    reward_names: &[String],
    failed: Vec<(String, String)>,
) -> Result<Groups> {
    let schema = aha_rollout::schema::scored(reward_names)?;
    let scored = concat_batches(&schema, groups)
        .map_err(|error| Error::bug(format!("a step's groups don't fit together: {error}")))?;
    let view = RolloutsView::new(&scored, Progress::Scored)?;
    let rewards: Vec<Option<f32>> =
        (0..view.rows_count()).map(|r| view.reward(r).map(|x| x as f32)).collect();
    let lens: Vec<usize> = groups.iter().map(RecordBatch::num_rows).collect();
    let mut rest = rewards.as_slice();
    let slices: Vec<&[Option<f32>]> = lens
        .iter()
        .map(|&len| {
            let (group, others) = rest.split_at(len);
            rest = others;
            group
        })
        .collect();
    let normalised: Vec<GroupAdvantages> = advantages(&slices, rule)?;
    let values: Vec<Option<f64>> = normalised
        .iter()
        .flat_map(|group| group.rows.iter())
        .map(|row| row.skip_reason.is_none().then(|| f64::from(row.value)))
        .collect();
    Ok(Groups {
        rows: steps::add_advantages(&scored, &values)?,
        lens,
        has_signal: normalised.iter().map(|group| group.has_signal).collect(),
        failed,
    })
}
