//! Recorder: every row and every measure to Parquet, a part per step, on a thread of its own.
//! - Inbox: at most [`STEPS_MAX`] steps, each with the credit that pays for its place.
//! - State: the tables' writers. After a restart of the stage the learner records again from its checkpoint.
//! - Fails with [`Error`] where rows can't be written; the stage then goes on from its last checkpoint.
//!   Measures that can't be written wait.

use std::collections::BTreeMap;
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
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::metrics::MetricsLog;
use crate::progress::Waiting;

/// Steps that may wait to be written.
pub const STEPS_MAX: usize = 2;

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

    /// What waits for it.
    pub fn waiting(&self) -> Waiting {
        self.credits.waiting("recorder")
    }

    /// Sends a step's rows once there is room; the learner hears when they are durable.
    pub async fn record(&self, record: Record) {
        if let Some(credit) = self.credits.take().await {
            let _ = self.actor.cast(Msg::Record { record, credit }); // A recorder that has ended ends the stage.
        }
    }
}

/// A step's rows and measures.
pub struct Record {
    /// The step.
    pub step: u64,
    /// Rows of `aha_rollout::schema::rollouts`.
    pub rows: RecordBatch,
    /// Prompts set aside in this step, with their errors.
    pub set_aside: Vec<(String, String)>,
    /// What was measured.
    pub metrics: BTreeMap<String, f64>,
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
    pub learner: learner::Handle,
}

/// What the recorder keeps.
pub struct State {
    args: Args,
    thread: ComputeThread,
    /// Away while the thread has them.
    tables: Option<Box<Tables>>,
}

/// What the recorder writes.
struct Tables {
    rollouts: TableWriter,
    set_aside: TableWriter,
    metrics: MetricsLog,
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
        let thread = ComputeThread::start("aha-recorder")?;
        let (shared, after) = (Arc::clone(&args.shared), args.after);
        let tables = thread.run(move || Tables::open(&shared, after)).await??;
        Ok(State { args, thread, tables: Some(Box::new(tables)) })
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
        let step = record.step;
        let away = || Error::bug("the recorder's tables are away");
        let mut tables = state.tables.take().ok_or_else(away)?;
        // Waited for here, so that whoever stops the recorder knows that nobody writes any more.
        let written = state.thread.run(move || tables.write(&shared, &record).map(|()| tables));
        state.tables = Some(written.await??);
        drop(credit);
        state.args.learner.recorded(step);
        Ok(())
    }
}

impl Tables {
    /// The tables of a stage, without what they have of steps after `after`.
    fn open(shared: &Shared, after: u64) -> Result<Tables> {
        let dir = &shared.dir;
        let columns = schema::rollouts(shared.scorer.names())?;
        let rollouts =
            dir.write(|| Ok(TableWriter::open(&dir.table(&shared.stage), columns.clone())?))?;
        rollouts.truncate_after(after)?;
        let name = format!("{}_set_aside", shared.stage);
        let set_aside =
            dir.write(|| Ok(TableWriter::open(&dir.table(&name), schema::set_aside())?))?;
        set_aside.truncate_after(after)?;
        let metrics = MetricsLog::open(&shared.dir, &shared.stage, after, &shared.watcher);
        Ok(Tables { rollouts, set_aside, metrics })
    }

    fn write(&mut self, shared: &Shared, record: &Record) -> Result<()> {
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
            let rows = [rows::set_aside(&rows)];
            shared.dir.write(|| Ok(self.set_aside.write(&name, &rows)?))?;
        }
        let rows = std::slice::from_ref(&record.rows);
        shared.dir.write(|| Ok(self.rollouts.write(&name, rows)?))?;
        self.metrics.record(record.step, &record.metrics);
        self.metrics.flush();
        Ok(())
    }
}
