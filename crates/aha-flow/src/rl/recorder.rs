//! Recorder: every row to Parquet, a part per step.
//! - Inbox: at most `STEPS_MAX` steps, each with the credit that pays for its place.
//! - State: the table's writer. After a restart of the stage the learner records again from its checkpoint.
//! - Fails with [`Error`] where a part can't be written; the stage then goes on from its last checkpoint.

use std::sync::Arc;

use aha_rollout::rows::{self, SetAsideRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};
use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::credit::{Credit, Credits};
use super::fault::Point;
use super::learner;
use super::stage::Shared;
use crate::clock;
use crate::error::{Error, Result};

/// Steps that may wait to be written.
const STEPS_MAX: usize = 2;

/// Others talk to the recorder through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
    credits: Credits,
}

impl Handle {
    /// The actor's identity, for its supervisor.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    /// Sends a step's rows once there is room; the learner hears when they are durable.
    pub async fn record(&self, record: Record) {
        if let Some(credit) = self.credits.take().await {
            let _ = self.actor.cast(Msg::Record { record, credit }); // A recorder that has ended ends the stage.
        }
    }
}

/// A step's rows.
pub struct Record {
    /// The step.
    pub step: u64,
    /// Rows of `aha_rollout::schema::rollouts`.
    pub rows: RecordBatch,
    /// Prompts set aside in this step, with their errors.
    pub set_aside: Vec<(String, String)>,
}

/// What the recorder is told.
pub enum Msg {
    /// Write a step.
    Record {
        /// The step.
        record: Record,
        /// Pays for its place.
        credit: Credit,
    },
}

/// What the recorder needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Steps that the stage begins after; what the table has of later ones is removed.
    pub after: u64,
    /// Who has to know that rows are durable.
    pub learner: ActorRef<learner::Msg>,
}

/// What the recorder keeps.
pub struct State {
    args: Args,
    rollouts: Arc<TableWriter>,
    set_aside: Arc<TableWriter>,
}

/// Writes rows.
pub struct Recorder;

/// Spawns the recorder under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) =
        Actor::spawn_linked(None, Recorder, args, supervisor).await.map_err(|error| {
            Error::Environment { message: format!("the recorder doesn't start: {error}") }
        })?;
    Ok(Handle { actor, credits: Credits::new(STEPS_MAX) })
}

impl Actor for Recorder {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let shared = &args.shared;
        let rollouts = TableWriter::open(
            &shared.dir.table(&shared.stage),
            schema::rollouts(shared.scorer.names())?,
        )?;
        rollouts.truncate_after(args.after)?;
        let name = format!("{}_set_aside", shared.stage);
        let set_aside = TableWriter::open(&shared.dir.table(&name), schema::set_aside())?;
        set_aside.truncate_after(args.after)?;
        Ok(State { args, rollouts: Arc::new(rollouts), set_aside: Arc::new(set_aside) })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Msg::Record { record, credit } = msg;
        let shared = Arc::clone(&state.args.shared);
        shared.faults.at(Point::Record, record.step)?;
        let (rollouts, set_aside) = (Arc::clone(&state.rollouts), Arc::clone(&state.set_aside));
        let step = record.step;
        let written =
            tokio::task::spawn_blocking(move || write(&shared, &rollouts, &set_aside, &record));
        written
            .await
            .map_err(|error| Error::bug(format!("the recorder's thread ended: {error}")))??;
        drop(credit);
        let _ = state.args.learner.cast(learner::Msg::Recorded { step }); // A learner that has ended ends the stage.
        Ok(())
    }
}

fn write(
    shared: &Shared,
    rollouts: &TableWriter,
    set_aside: &TableWriter,
    record: &Record,
) -> Result<()> {
    let name = part_name(record.step);
    if !record.set_aside.is_empty() {
        let rows: Vec<SetAsideRow<'_>> = record
            .set_aside
            .iter()
            .map(|(prompt_id, error)| SetAsideRow {
                stage: &shared.stage,
                step: record.step,
                prompt_id,
                failures_count: u64::from(shared.settings.prompt_failures_max),
                error,
                at_us: clock::now_us(),
            })
            .collect();
        set_aside.write(&name, &[rows::set_aside(&rows)])?;
    }
    rollouts.write(&name, std::slice::from_ref(&record.rows))?;
    Ok(())
}
