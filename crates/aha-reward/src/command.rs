//! `kind = "command"`: a program of the user's own says the score.
//!
//! It is started once per worker and reads a JSON object a line: `{"id": 7, "prompt", "completion", "answer",
//! "tests", "completion_len_tokens", "is_truncated"}`. For each it answers a line `{"id": 7, "score": 0.5, "reason":
//! "…"}`: a finite number or null, and optionally why. It gets the next sample when it has answered, and
//! should end when its input does. What it writes to stderr goes into the log. A worker that dies, takes too
//! long or answers nonsense is killed with whatever it has started and costs its sample the score; the next
//! sample gets a new one.
//!
//! In the sandbox a worker is a job that reads from and writes to one socket; `caged` says what it finds there.

mod caged;
mod worker;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aha_sandbox::Job;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::backend::Backends;
use crate::code::{self, Isolation};
use crate::http::{CALLERS_MAX, sample_json, score_of, verdict};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};
use crate::wait::desk::{Desk, Request, Service};
use crate::wait::retry::Failure;
use crate::wait::{Cancel, key};
use worker::{Trouble, Worker};

/// Most workers.
const WORKERS_MAX: usize = 256;
/// Longest time of a sample that can be set, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;
/// The pause before a worker that follows a dead one; doubled with each further death.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest such pause: a completion that kills must not hold up the others for long.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a program of your own says, which reads samples as JSON lines and answers `{"id", "score", "reason"}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The program and its arguments, such as `["python3", "score.py"]`. Without `sandbox` it runs with the rights
    /// and the environment of this process. No default.
    pub command: Vec<String>,
    /// Processes that are kept, from 1 to 256. Default 1.
    pub workers: usize,
    /// Time of one sample in seconds, above 0, at most a day; the start of a worker is part of it. Default 10.
    pub sample_seconds_max: f64,
    /// Whether it runs in the sandbox: without network, with the system's programs and libraries, and with copies
    /// of the files that `command` names. It has 4 GiB of memory, and what it writes to stderr is lost. Default
    /// false: a program of your own may want what it finds here.
    pub sandbox: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { command: Vec::new(), workers: 1, sample_seconds_max: 10.0, sandbox: false }
    }
}

impl Resolve for Settings {
    fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut require = |is_good: bool, key, must: &str, got: String| {
            if !is_good {
                problems.push(Problem::new(key, must, got));
            }
        };
        match self.command.first() {
            None => require(false, "command", "given", "absent".to_owned()),
            Some(program) => {
                let must = "a program that can be run";
                require(program_at(program).is_some(), "command", must, format!("`{program}`"));
            }
        }
        let workers = self.workers;
        require(
            (1..=WORKERS_MAX).contains(&workers),
            "workers",
            "from 1 to 256",
            workers.to_string(),
        );
        let seconds = self.sample_seconds_max;
        let is_time = seconds > 0.0 && seconds <= SECONDS_MAX;
        let must = "above 0 and at most 86400 seconds";
        require(is_time, "sample_seconds_max", must, seconds.to_string());
        let why_not = if self.sandbox { code::why_not(Isolation::Strong) } else { None };
        if let Some(why) = why_not {
            require(false, "sandbox", &format!("false {why}"), "true".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let job = self.sandbox.then(|| caged::job(&self.command)).transpose();
        let job = job.map_err(|problem| vec![problem])?;
        let waiting = backends.waiting();
        let program = Program {
            command: self.command.clone(),
            job,
            sample_max: Duration::from_secs_f64(self.sample_seconds_max),
            cancel: waiting.cancel.clone(),
            idle: Mutex::default(),
            next_id: AtomicU64::new(1),
            deaths_in_a_row: AtomicU32::new(0),
        };
        Ok(Box::new(Command {
            identity: json!(self.command).to_string(),
            desk: Desk::new(program, waiting, workers, 1),
            workers,
        }))
    }
}

/// Where the program of a name is: the name is a path, or found as the system finds programs.
fn program_at(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_executable(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(name));
    places.find(|path| !name.is_empty() && is_executable(path))
}

/// Whether a file is there that can be started.
fn is_executable(path: &Path) -> bool {
    let found = std::fs::metadata(path);
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// See [`Settings`].
pub struct Command {
    identity: String,
    desk: Desk<Program>,
    workers: usize,
}

impl Verifier for Command {
    fn kind(&self) -> Kind {
        Kind::Command
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        self.score_all(std::slice::from_ref(sample)).remove(0)
    }

    fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let request = |sample: &Sample<'_>| {
            let body = sample_json(sample).to_string();
            Request { key: key(&["command", &self.identity, &body]), body }
        };
        self.desk.ask(samples.iter().map(request).collect()).into_iter().map(verdict).collect()
    }

    fn parallel_count(&self) -> usize {
        self.workers.min(CALLERS_MAX)
    }
}

/// The program and its workers that wait for a sample.
struct Program {
    command: Vec<String>,
    /// What runs in its place in the sandbox.
    job: Option<Job>,
    sample_max: Duration,
    cancel: Cancel,
    idle: Mutex<Vec<Worker>>,
    next_id: AtomicU64,
    deaths_in_a_row: AtomicU32,
}

impl Service for Program {
    fn call(&self, requests: &[Request]) -> Vec<Result<String, Failure>> {
        requests.iter().map(|request| self.score(&request.body)).collect()
    }
}

impl Program {
    fn score(&self, body: &str) -> Result<String, Failure> {
        let failed = |reason: String| Failure::Failed(reason);
        let mut worker = self.worker()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut sample: Value = serde_json::from_str(body).map_err(|e| failed(e.to_string()))?;
        sample["id"] = json!(id);
        match worker.ask(id, &sample, self.sample_max, &self.cancel) {
            Ok(answer) => {
                self.deaths_in_a_row.store(0, Ordering::Relaxed);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
                score_of(answer).map_err(failed)
            }
            // The worker is dropped, and so killed.
            Err(Trouble::Stopped) => Err(Failure::Stopped),
            Err(Trouble::Broken(reason)) => {
                self.deaths_in_a_row.fetch_add(1, Ordering::Relaxed);
                Err(failed(reason))
            }
        }
    }

    /// One that is idle and alive, or a new one: after a pause where others have died.
    fn worker(&self) -> Result<Worker, Failure> {
        while let Some(mut worker) = self.take_idle() {
            if worker.is_alive() {
                return Ok(worker);
            }
        }
        let deaths = self.deaths_in_a_row.load(Ordering::Relaxed);
        if deaths > 0 {
            let pause = PAUSE_FIRST.saturating_mul(1 << (deaths - 1).min(16)).min(PAUSE_MAX);
            if !self.cancel.sleep(pause) {
                return Err(Failure::Stopped);
            }
        }
        let started = match &self.job {
            Some(job) => Worker::start_caged(job),
            None => Worker::start(&self.command),
        };
        started.map_err(|error| {
            self.deaths_in_a_row.fetch_add(1, Ordering::Relaxed);
            Failure::Failed(format!("can't start `{}`: {error}", self.command[0]))
        })
    }

    fn take_idle(&self) -> Option<Worker> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
