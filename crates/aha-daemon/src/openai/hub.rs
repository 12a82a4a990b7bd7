//! The models that are loaded: on demand, within the memory that runs leave, and dropped when nobody asks them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aha_flow::pipeline::Device;

use super::catalogue::Found;
use super::worker::{self, Job};
use crate::board::{Budget, Share};
use crate::error::{Error, Kind, Result};
use crate::record::RunId;

/// How often it is tried to get memory for a model, and the pause between tries: other models may be going.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// Jobs of a model that are not done, at most.
const JOBS_MAX: usize = 256;

/// The models that are loaded.
pub struct Hub {
    budget: Arc<Budget>,
    idle: Duration,
    device: Device,
    models: Mutex<HashMap<String, Entry>>,
    counts: Arc<Counts>,
}

/// What models have done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Tokens that they wrote.
    pub tokens: AtomicU64,
    /// Those that are loaded.
    pub loaded: AtomicUsize,
}

/// A model that is loaded, or being so.
struct Entry {
    found: Found,
    jobs: Sender<Job>,
    /// Jobs that are not done.
    open: Arc<AtomicUsize>,
    /// Ends when the model has been idle too long, or is dropped and has done its jobs.
    thread: JoinHandle<()>,
}

/// Counts a job as long as it is not done.
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hub {
    /// No model is loaded yet. One that nobody asks for `idle` is dropped; they compute on `device`.
    pub fn new(budget: Arc<Budget>, idle: Duration, device: Device) -> Hub {
        Hub { budget, idle, device, models: Mutex::default(), counts: Arc::default() }
    }

    /// Models that are loaded.
    pub fn loaded(&self) -> usize {
        self.counts.loaded.load(Ordering::Relaxed)
    }

    /// Tokens that models have written.
    pub fn tokens_total(&self) -> u64 {
        self.counts.tokens.load(Ordering::Relaxed)
    }

    /// Drops the models that have no job.
    pub fn drop_idle(&self) {
        self.models().retain(|_, entry| entry.open.load(Ordering::Relaxed) > 0);
    }

    /// Drops the models of a run that is removed. Those that are at a job end it first.
    pub fn forget(&self, run: RunId) {
        self.models().retain(|_, entry| entry.found.run_id != run);
    }

    /// Gives a job to a model, which is loaded first if it isn't.
    pub async fn give(&self, found: &Found, job: impl Fn(Open) -> Job) -> Result<()> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match self.try_give(found, &job)? {
                true => return Ok(()),
                false => self.drop_idle(),
            }
        }
        let bytes = aha_flow::pipeline::memory::shown(found.memory_bytes);
        let message =
            format!("the model `{}` takes {bytes} of memory, which runs leave not", found.id);
        Err(Error::new(Kind::Busy, message)
            .hint("ask again when a run has ended, or start the daemon with more --memory"))
    }

    /// Says whether there was memory.
    fn try_give(&self, found: &Found, job: &impl Fn(Open) -> Job) -> Result<bool> {
        let mut models = self.models();
        let known = models.get(&found.id).filter(|entry| entry.is_of(found));
        if let Some(entry) = known {
            if entry.open.load(Ordering::Relaxed) >= JOBS_MAX {
                let message = format!("the model `{}` has {JOBS_MAX} requests already", found.id);
                return Err(Error::new(Kind::Busy, message).hint("ask again in a moment"));
            }
            if entry.give(job) {
                return Ok(true);
            }
        }
        // What was there is of older weights, or has just ended; so have others that nobody asked for.
        models.remove(&found.id);
        models.retain(|_, entry| !entry.thread.is_finished());
        let Some(share) = self.budget.take_for_model(found.memory_bytes) else { return Ok(false) };
        let entry = self.start(found, share)?;
        let is_given = entry.give(job);
        models.insert(found.id.clone(), entry);
        Ok(is_given)
    }

    fn start(&self, found: &Found, share: Share) -> Result<Entry> {
        let (jobs, inbox) = channel();
        let (mut model, idle, counts) = (found.clone(), self.idle, Arc::clone(&self.counts));
        model.run.device = self.device.clone();
        let work = move || {
            counts.loaded.fetch_add(1, Ordering::Relaxed);
            worker::work(&model, &inbox, idle, &counts.tokens);
            counts.loaded.fetch_sub(1, Ordering::Relaxed);
            drop(share);
        };
        let thread = std::thread::Builder::new().name("aha-model".to_owned());
        let thread = thread
            .spawn(work)
            .map_err(|error| Error::environment(format!("can't start a thread: {error}")))?;
        Ok(Entry { found: found.clone(), jobs, open: Arc::default(), thread })
    }

    /// Each change is one call, so a poisoned lock is taken.
    fn models(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether it is of the same weights.
    fn is_of(&self, found: &Found) -> bool {
        self.found.path == found.path && self.found.written_at_us == found.written_at_us
    }

    /// Says whether the model took it: one that was idle too long is gone.
    fn give(&self, job: &impl Fn(Open) -> Job) -> bool {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.jobs.send(job(Open(Arc::clone(&self.open)))).is_ok()
    }
}
