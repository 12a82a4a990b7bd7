//! The keeper: the one task that changes the queue, and starts, watches and stops runs.
//! - Inbox: at most `INBOX_MAX` messages; who sends more waits.
//! - State: records, on the board and in the store; processes. After a restart the store says what there was, and what
//!   ran goes on from its last checkpoint.
//! - Fails with [`Error`], in the reply. A store that can't be written changes nothing: the run stays as it was.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aha_flow::clock;
use aha_flow::machine;
use aha_flow::rundir::RunDir;
use aha_flow::state::{self, RunState};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::admit::{self, Ending, Load, Next, Waiting};
use crate::board::{Board, Budget};
use crate::child::{self, Child, Said};
use crate::error::{Error, Result, blocking};
use crate::events::Events;
use crate::home::{self, Home};
use crate::options::Options;
use crate::record::{Process, Progress, Record, RunId, StageProgress, Trouble};
use crate::status::{Change, Status};
use crate::store::Store;
use crate::submit::Draft;

/// Messages on their way.
const INBOX_MAX: usize = 256;
/// How long a run that is cancelled has to stop by itself.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How often the keeper looks whether a pause is over.
const TICK: Duration = Duration::from_millis(250);

/// What is asked of the keeper.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Msg>,
    home: Home,
}

enum Msg {
    Submit { draft: Box<Draft>, reply: oneshot::Sender<Result<Record>> },
    Act { id: RunId, change: Change, reply: oneshot::Sender<Result<Record>> },
    Delete { id: RunId, reply: oneshot::Sender<Result<()>> },
    Said { id: RunId, said: Said },
    Drain { reply: oneshot::Sender<()> },
}

/// What a keeper works with.
pub struct Args {
    /// What the daemon was started with.
    pub options: Arc<Options>,
    /// Its folder.
    pub home: Home,
    /// The queue on the disk.
    pub store: Arc<Store>,
    /// What everybody reads.
    pub board: Arc<Board>,
    /// Those who watch.
    pub events: Arc<Events>,
    /// The memory.
    pub budget: Arc<Budget>,
    /// Drops models that nobody asks, when a run wants their memory.
    pub spare: Box<dyn Fn() + Send + Sync>,
}

impl Handle {
    /// Adds a run to the queue; it is on the disk when this returns.
    pub async fn submit(&self, draft: Draft) -> Result<Record> {
        self.ask(|reply| Msg::Submit { draft: Box::new(draft), reply }).await?
    }

    /// Pauses, resumes or cancels a run. Its state is on the disk when this returns; a process that has to stop first
    /// may still be at it.
    pub async fn act(&self, id: RunId, change: Change) -> Result<Record> {
        self.ask(|reply| Msg::Act { id, change, reply }).await?
    }

    /// Removes a run that has no process, and its directory.
    pub async fn delete(&self, id: RunId) -> Result<()> {
        self.ask(|reply| Msg::Delete { id, reply }).await??;
        // From here on the run is gone. What is left if this ends early goes when the daemon starts.
        let home = self.home.clone();
        let left = move || {
            [home.removed(id), home.pipeline(id), home.output(id)]
                .iter()
                .try_for_each(|p| home::remove(p))
        };
        blocking(left).await
    }

    /// Stops all runs after a checkpoint, and returns when no process is left. They go on when the daemon is started
    /// again.
    pub async fn drain(&self) -> Result<()> {
        self.ask(|reply| Msg::Drain { reply }).await
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Msg) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(crate::error::Kind::Busy, "the daemon is stopping");
        self.inbox.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// Takes up what the store holds, and gives the keeper's handle with its work, which ends when it has drained.
pub async fn begin(args: Args) -> Result<(Handle, impl Future<Output = ()> + Send)> {
    let (sender, inbox) = mpsc::channel(INBOX_MAX);
    let home = args.home.clone();
    let mut keeper = Keeper {
        args,
        inbox,
        sender: sender.clone(),
        running: BTreeMap::new(),
        held: None,
        drained: None,
    };
    keeper.recover().await?;
    Ok((Handle { inbox: sender, home }, keeper.work()))
}

struct Keeper {
    args: Args,
    inbox: mpsc::Receiver<Msg>,
    sender: mpsc::Sender<Msg>,
    running: BTreeMap<RunId, Running>,
    /// The run that was held back last.
    held: Option<RunId>,
    /// Who waits until no process is left; the daemon is stopping.
    drained: Option<oneshot::Sender<()>>,
}

/// A process of a run.
struct Running {
    child: Child,
    memory_bytes: u64,
    kill_at: Option<Instant>,
}

impl Keeper {
    /// What ran when an earlier daemon ended is to run again; what was being stopped is stopped.
    async fn recover(&mut self) -> Result<()> {
        let store = Arc::clone(&self.args.store);
        let records = blocking(move || {
            let records = store.all()?;
            for process in records.iter().filter_map(|record| record.process) {
                if child::end_leftover(process) {
                    tracing::warn!(pid = process.pid, "Process of an earlier daemon ended.");
                }
            }
            Ok(records)
        });
        for record in records.await? {
            let was = record.status;
            self.args.board.put(record.clone());
            if was.has_process() {
                let recovered = self.change(record, Change::Lost, |record| record.process = None);
                let record = recovered.await?;
                tracing::info!(run = record.id.0, %was, now = %record.status, "Run taken up again.");
            }
        }
        Ok(())
    }

    async fn work(mut self) {
        self.start_runs().await;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let budget = Arc::clone(&self.args.budget);
            tokio::select! {
                message = self.inbox.recv() => {
                    // It holds a sender itself, so there is always one.
                    let Some(message) = message else { return };
                    self.handle(message).await;
                }
                _ = tick.tick() => self.kill_overdue(),
                () = budget.changed() => {}
            }
            if self.drained.is_none() {
                self.start_runs().await;
            } else if self.running.is_empty() {
                if let Some(reply) = self.drained.take() {
                    let _ = reply.send(());
                }
                return;
            }
        }
    }

    async fn handle(&mut self, message: Msg) {
        // Who asked may have gone; the change holds all the same.
        match message {
            Msg::Submit { draft, reply } => drop(reply.send(self.submit(*draft).await)),
            Msg::Act { id, change, reply } => drop(reply.send(self.act(id, change).await)),
            Msg::Delete { id, reply } => drop(reply.send(self.delete(id).await)),
            Msg::Said { id, said } => self.heard(id, said).await,
            Msg::Drain { reply } => self.drain(reply),
        }
    }

    async fn submit(&mut self, draft: Draft) -> Result<Record> {
        if self.drained.is_some() {
            return Err(Error::new(crate::error::Kind::Busy, "the daemon is stopping")
                .hint("submit again when it is back"));
        }
        if let Some(trouble) = self.no_room(self.args.home.root()) {
            let hint = trouble.hint.unwrap_or_default();
            return Err(Error::environment(trouble.message).hint(hint));
        }
        let (store, home) = (Arc::clone(&self.args.store), self.args.home.clone());
        let record = blocking(move || {
            let text = draft.text.clone();
            // Without its row the file is nobody's, and is written over by the next one of that number.
            store.add(|id| {
                aha_flow::rundir::write_file(&home.pipeline(id), text.as_bytes())?;
                Ok(draft.record(id, home.run(id), clock::now_us()))
            })
        });
        let record = record.await?;
        self.show(record.clone());
        tracing::info!(run = record.id.0, name = record.name, "Run submitted.");
        Ok(record)
    }

    async fn act(&mut self, id: RunId, change: Change) -> Result<Record> {
        let before = self.args.board.run(id)?;
        let record = self
            .change(Record::clone(&before), change, |record| {
                if change == Change::Resume {
                    (record.failures, record.not_before_us, record.problem) = (0, None, None);
                }
            })
            .await?;
        if let Some(running) = self.running.get_mut(&id) {
            match record.status {
                Status::Pausing => running.child.stop(),
                Status::Cancelling if running.kill_at.is_none() => {
                    running.child.stop();
                    running.kill_at = Some(Instant::now() + CANCEL_GRACE);
                }
                _ => {}
            }
        }
        Ok(record)
    }

    /// Takes a run's directory aside and its row away.
    async fn delete(&mut self, id: RunId) -> Result<()> {
        let record = self.args.board.run(id)?;
        if record.status.has_process() {
            let message =
                format!("run {id} is {}: its process works in its directory", record.status);
            let error = Error::new(crate::error::Kind::Conflict, message);
            return Err(error.hint("cancel it first, and wait until it is cancelled"));
        }
        let (store, home) = (Arc::clone(&self.args.store), self.args.home.clone());
        blocking(move || {
            let (dir, aside) = (home.run(id), home.removed(id));
            home::remove(&aside)?;
            let was_there = dir.exists();
            if was_there {
                std::fs::rename(&dir, &aside).map_err(Error::io("move", &dir))?;
            }
            if let Err(error) = store.remove(id) {
                if was_there {
                    std::fs::rename(&aside, &dir).map_err(Error::io("move back", &aside))?;
                }
                return Err(error);
            }
            Ok(())
        })
        .await?;
        self.args.board.remove(id);
        self.args.events.tell(id, "removed", json!({ "id": id }));
        self.args.events.forget(id);
        Ok(())
    }

    fn drain(&mut self, reply: oneshot::Sender<()>) {
        let until = Instant::now() + self.args.options.drain;
        for running in self.running.values_mut() {
            running.child.stop();
            running.kill_at = Some(running.kill_at.map_or(until, |at| at.min(until)));
        }
        self.drained = Some(reply);
    }

    fn kill_overdue(&mut self) {
        for running in self.running.values_mut() {
            if running.kill_at.is_some_and(|at| at <= Instant::now()) {
                running.child.kill();
                running.kill_at = None;
            }
        }
    }

    /// Writes a run's new state and what `with` makes of it, then shows it.
    async fn change(
        &self,
        mut record: Record,
        change: Change,
        with: impl FnOnce(&mut Record),
    ) -> Result<Record> {
        record.status = record.status.after(change)?;
        if record.status.is_end() && record.ended_at_us.is_none() {
            record.ended_at_us = Some(clock::now_us());
        }
        if !record.status.is_end() {
            record.ended_at_us = None;
        }
        with(&mut record);
        let (store, written) = (Arc::clone(&self.args.store), record.clone());
        blocking(move || store.put(&written)).await?;
        self.show(record.clone());
        Ok(record)
    }

    fn show(&self, record: Record) {
        let shown =
            json!({ "status": record.status, "name": record.name, "problem": record.problem });
        self.args.events.tell(record.id, "state", shown);
        self.args.board.put(record);
    }

    /// Starts every run whose turn has come.
    async fn start_runs(&mut self) {
        let limits =
            Load { runs: self.args.options.runs_max, memory_bytes: self.args.budget.total_bytes() };
        loop {
            let (in_use, waiting) = (self.args.budget.runs(), self.waiting());
            let beside = |models_bytes: u64| Load {
                memory_bytes: in_use.memory_bytes.saturating_add(models_bytes),
                ..in_use
            };
            let next = admit::next(&waiting, beside(self.args.budget.models_bytes()), limits);
            match next {
                Next::Start(id) => match self.shortage() {
                    None => self.start(id).await,
                    Some(trouble) => return self.hold(id, trouble),
                },
                Next::Refuse(id) => self.refuse(id).await,
                Next::Wait => {
                    // With the memory of models that nobody asks it might start; it goes back when they are gone.
                    if admit::next(&waiting, in_use, limits) != Next::Wait {
                        (self.args.spare)();
                    }
                    return;
                }
            }
        }
    }

    /// Why no run may be started now.
    fn shortage(&self) -> Option<Trouble> {
        let reserve = self.args.options.memory_reserve_bytes;
        let available = machine::memory().available_bytes.filter(|bytes| *bytes < reserve);
        if let Some(bytes) = available {
            return Some(Trouble {
                message: format!(
                    "not started: the machine has {} MiB of memory free, less than the {} MiB to be left",
                    bytes >> 20,
                    reserve >> 20
                ),
                hint: Some("end other programs; the run starts by itself then".to_owned()),
            });
        }
        self.no_room(&self.args.home.runs())
    }

    /// Why nothing is to be written to the disk of this folder.
    fn no_room(&self, dir: &Path) -> Option<Trouble> {
        let reserve = self.args.options.disk_reserve_bytes;
        let bytes = machine::room_bytes(dir).filter(|bytes| *bytes < reserve)?;
        Some(Trouble {
            message: format!(
                "the disk of `{}` has {} MiB free, less than the {} MiB to be left",
                dir.display(),
                bytes >> 20,
                reserve >> 20
            ),
            hint: Some(
                "free some space on it, or start the daemon with less --disk-reserve".to_owned(),
            ),
        })
    }

    /// Lets a run wait whose turn has come, and says why.
    fn hold(&mut self, id: RunId, trouble: Trouble) {
        (self.args.spare)();
        let Ok(record) = self.args.board.run(id) else { return };
        if self.held != Some(id) || record.problem.is_none() {
            tracing::warn!(run = id.0, reason = trouble.message, "Run held back.");
            self.show(Record { problem: Some(trouble), ..Record::clone(&record) });
        }
        self.held = Some(id);
    }

    fn waiting(&self) -> Vec<Waiting> {
        let now = clock_us();
        let runs = self.args.board.runs();
        let queued = runs.iter().filter(|record| record.status == Status::Queued);
        let is_running = |record: &Record| self.running.contains_key(&record.id);
        let busy =
            || runs.iter().filter(|&record| is_running(record)).filter_map(|r| r.device.as_deref());
        let waiting = queued.map(|record| Waiting {
            id: record.id,
            memory_bytes: record.memory_bytes,
            // One that waits for its device holds back nobody.
            is_ready: admit::is_ready(record.not_before_us, now)
                && admit::is_free(record.device.as_deref(), busy()),
        });
        waiting.collect()
    }

    async fn refuse(&mut self, id: RunId) {
        let Ok(record) = self.args.board.run(id) else { return };
        let total = self.args.budget.total_bytes();
        let trouble = Trouble {
            message: format!(
                "the run will want {} bytes of memory, and the daemon has {total} for all",
                record.memory_bytes
            ),
            hint: Some("start the daemon with more --memory, then resume the run".to_owned()),
        };
        let failed = self.change(Record::clone(&record), Change::Failed, |record| {
            record.problem = Some(trouble);
        });
        if let Err(error) = failed.await {
            tracing::error!(%error, run = id.0, "A run's state could not be written.");
            self.postpone(id);
        }
    }

    async fn start(&mut self, id: RunId) {
        let Ok(record) = self.args.board.run(id) else { return };
        let record = self.with_stages(Record::clone(&record)).await;
        let was_held = self.held.take_if(|held| *held == id).is_some();
        let started = self.change(record, Change::Start, |record| {
            if was_held {
                record.problem = None;
            }
            record.starts += 1;
            record.started_at_us = Some(clock::now_us());
            record.not_before_us = None;
        });
        let record = match started.await {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, run = id.0, "A run's state could not be written.");
                return self.postpone(id);
            }
        };
        let sender = self.sender.clone();
        let tell = move |said| {
            // A keeper that is gone has ended the process already.
            let _ = sender.blocking_send(Msg::Said { id, said });
        };
        let memory_bytes = record.memory_bytes;
        match child::start(self.spec(&record), tell) {
            Ok(child) => {
                self.args.budget.take_for_run(memory_bytes);
                self.running.insert(id, Running { child, memory_bytes, kill_at: None });
                tracing::info!(run = id.0, starts = record.starts, "Run started.");
            }
            Err(error) => {
                let ending = Ending { said: format!("error: {error}\n"), ..Ending::default() };
                self.ended(record, &ending).await;
            }
        }
    }

    /// With what the run directory says of stages: processes that nobody heard may have done some.
    async fn with_stages(&self, mut record: Record) -> Record {
        let dir = RunDir::new(&record.run_dir);
        // What can't be read is the run's own to complain about.
        let found = blocking(move || Ok(RunState::read(&dir)?)).await.ok().flatten();
        for state in found.into_iter().flat_map(|state| state.stages) {
            if let Some(stage) = record.progress.stage_mut(&state.name) {
                stage.is_done = state.status == state::Status::Done;
            }
        }
        record
    }

    /// Lets a run wait whose state could not be written: the disk may be full.
    fn postpone(&self, id: RunId) {
        let Ok(record) = self.args.board.run(id) else { return };
        let later = clock_us() + 5_000_000;
        self.args.board.put(Record { not_before_us: Some(later), ..Record::clone(&record) });
    }

    fn spec(&self, record: &Record) -> child::Spec {
        let home = &self.args.home;
        let mut args: Vec<OsString> = vec![
            "run".into(),
            home.pipeline(record.id).into(),
            "--dir".into(),
            record.run_dir.clone().into(),
            "--json".into(),
            "--disk-reserve".into(),
            self.args.options.disk_reserve_bytes.to_string().into(),
        ];
        let memory = record.memory_set_bytes.map(|bytes| format!("run.memory={bytes}"));
        // What was checked is what is run.
        let device = record.device.as_ref().map(|device| format!("run.device=\"{device}\""));
        for set in record.sets.iter().chain(&memory).chain(&device) {
            args.extend(["--set".into(), set.into()]);
        }
        // One that was killed before it had a state begins again.
        if record.run_dir.join("run.json").exists() {
            args.push("--resume".into());
        }
        child::Spec {
            program: self.args.options.program.clone(),
            args,
            dir: record.base_dir.clone(),
            output: home.output(record.id),
        }
    }

    async fn heard(&mut self, id: RunId, said: Said) {
        let Ok(record) = self.args.board.run(id) else { return };
        let record = Record::clone(&record);
        match said {
            Said::Started(process) => self.keep_process(record, process).await,
            Said::Event(event) => self.keep_event(record, event),
            Said::Ended(ending) => {
                if let Some(running) = self.running.remove(&id) {
                    self.args.budget.give_back_of_run(running.memory_bytes);
                }
                self.ended(record, &ending).await;
            }
        }
    }

    async fn keep_process(&self, mut record: Record, process: Process) {
        record.process = Some(process);
        let (store, written) = (Arc::clone(&self.args.store), record.clone());
        if let Err(error) = blocking(move || store.put(&written)).await {
            // The kernel ends the process with the daemon; its number is only for looking.
            tracing::warn!(%error, run = record.id.0, "A process could not be noted.");
        }
        self.args.board.put(record);
    }

    fn keep_event(&self, mut record: Record, event: Value) {
        let kind = event["event"].as_str().unwrap_or("other").to_owned();
        follow(&mut record.progress, &event);
        match kind.as_str() {
            "waiting" | "goes_on" => {
                let text = |key: &str| event[key].as_str().map(str::to_owned);
                record.progress.is_waiting = kind == "waiting";
                record.problem = text("message").map(|message| Trouble {
                    message: format!("the run waits for room on the disk: {message}"),
                    hint: text("hint"),
                });
                self.args.events.tell(record.id, &kind, event);
                return self.show(record);
            }
            "actors" => self.args.events.mention(record.id, &kind, event),
            _ => self.args.events.tell(record.id, &kind, event),
        }
        self.args.board.put(record);
    }

    async fn ended(&mut self, record: Record, ending: &Ending) {
        let id = record.id;
        let record = self.with_stages(record).await;
        let verdict = admit::verdict(ending, record.failures, self.args.options.retries_max);
        let total_bytes = self.args.budget.total_bytes();
        let wait_us = i64::try_from(verdict.retry_after.as_micros()).unwrap_or(0);
        let changed = self.change(record.clone(), verdict.change, |record| {
            record.process = None;
            record.progress.is_waiting = false;
            if ending.is_out_of_memory {
                record.memory_bytes = admit::more_memory(record.memory_bytes, total_bytes);
            }
            record.failures = verdict.failures;
            record.problem = verdict.trouble.clone();
            record.not_before_us = (wait_us > 0).then(|| clock_us() + wait_us);
        });
        match changed.await {
            Ok(record) => {
                let trouble = record.problem.as_ref().map(|trouble| trouble.message.as_str());
                tracing::info!(run = id.0, status = %record.status, trouble, "Run's process ended.");
            }
            // What can't be written is found as running when the daemon is started again, and goes on.
            Err(error) => {
                tracing::error!(%error, run = id.0, "A run's state could not be written.");
                let status = record.status.after(verdict.change).unwrap_or(record.status);
                let problem = Some(Trouble { message: error.message, hint: error.hint });
                self.args.board.put(Record { status, problem, process: None, ..record });
            }
        }
    }
}

/// The wall clock, which tests of runs may stop, but not pauses.
fn clock_us() -> i64 {
    aha_rollout::time::now_us()
}

/// Follows what a run's process tells.
fn follow(progress: &mut Progress, event: &Value) {
    let name = event["stage"].as_str().unwrap_or_default();
    let count = |key: &str| event[key].as_u64().unwrap_or(0);
    match event["event"].as_str() {
        Some("stage_started") => {
            let (step, steps) = (count("step"), count("steps"));
            let kind = event["kind"].as_str().unwrap_or_default().to_owned();
            if progress.stage_mut(name).is_none() {
                let name = name.to_owned();
                progress.stages.push(StageProgress { name, ..StageProgress::default() });
            }
            if let Some(stage) = progress.stage_mut(name) {
                (stage.kind, stage.step, stage.steps) = (kind, step, steps);
            }
            progress.stage = Some(name.to_owned());
            progress.metrics.clear();
            progress.actors.clear();
        }
        Some("step") => {
            if let Some(stage) = progress.stage_mut(name) {
                stage.step = count("step");
            }
            let metrics = event["metrics"].as_object().into_iter().flatten();
            let numbers = metrics.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
            progress.metrics = numbers.collect();
        }
        Some("actors") => {
            let actors = serde_json::from_value(event["actors"].clone());
            progress.actors = actors.unwrap_or_default();
        }
        Some("stage_done") => {
            progress.actors.clear();
            if let Some(stage) = progress.stage_mut(name) {
                stage.is_done = true;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
