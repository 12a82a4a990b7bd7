//! `kind = "code"`: does the program pass the sample's tests?
//!
//! # Map
//! - [`Settings`] and [`Code`], here: what is asked for, and who runs it.
//! - `block`: the program in a completion. `cases`: the tests of a sample. `compare`: is that output right?
//! - `functions`: tests that call functions; the tests run in one sandbox, the program in another.
//! - `programs`: tests that feed a program and read what it prints.
//! - `toolchain`: interpreters and compilers of this machine.
//!
//! # Invariants
//! - What a test expects never enters the sandbox of the program that is tested, so that it can't be read
//!   there. Printed output is compared out here; results of calls are compared in the tests' own sandbox,
//!   which gets them as plain values and makes them anew.
//! - Nothing that a program prints, exits with or does to its interpreter is a verdict.
//! - A score is null if the sample's tests can't be used or the machine fails, never for what a program does.
//!
//! A verdict is a function of the program as far as that itself is: one that asks for chance, the clock or its
//! own addresses, or that is close to a limit, may pass once and fail once. (Hashes of Python's strings and its
//! `random` start from a fixed seed.) So verdicts are kept like the answers of services, and a run that goes on
//! has those that it had.

mod block;
mod cases;
mod compare;
mod functions;
mod programs;
pub(crate) mod toolchain;

use std::borrow::Cow;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

pub use aha_sandbox::{Isolation, Layer, State, enter_if_asked};

use aha_sandbox::Limits;
use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::http::CALLERS_MAX;
use crate::spec::{Problem, Resolve, is_word};
use crate::verifier::{Kind, Sample, Verdict, Verifier};
use crate::wait::desk::{Desk, Request, Service};
use crate::wait::retry::Failure;
use crate::wait::{Waiting, key};
use block::{Block, Place};
use cases::Tests;
use functions::Judge;
pub use toolchain::Language;

/// How many programs may run at a time, at most.
const PARALLEL_MAX: u32 = 256;

/// 1 if the program passes every test of the sample, or the share that it passes; else 0.
///
/// The program is looked for after `</think>`, in the answer tag if there is one: the last fenced block of
/// code in the right language, of those that define what the tests call if any does. Without any fence the
/// whole text is the program. A completion that only continues a prompt's function is put behind it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Name of the tag around the chain of thought. Default `think`.
    pub think_tag: String,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
    /// `all`: 1 if every test passes, else 0; as judges do it. `share`: the share of tests that pass. Default
    /// `all`: half a program is no program.
    pub score: Score,
    /// The language that the program must be in: `python`, `c`, `cpp` or `rust`. Default: what the block of
    /// code says it is in, Python if it says nothing. Tests that call functions want Python in any case.
    pub language: Option<Language>,
    /// Numbers printed may differ from expected ones with a decimal point or exponent by this, absolutely or
    /// as a share of them; at least 0, and 0 for not at all. Default 1e-6, as most judges allow.
    pub tolerance: f64,
    /// Processor time of a program, in seconds from 1 to 600, each start of it alone. By the clock it may wait
    /// for twice as long and 2 seconds more. Default 4, about twice what problems for Python ask for.
    pub time_s: u32,
    /// Time of all starts of a program together, in seconds from 1 to 86400, by the clock or of the processor,
    /// whichever is more. Once it is used up, the cases left fail. Default 60.
    pub time_all_s: u32,
    /// Memory of a program, in MiB from 64 to 65536. Default 512, twice what most problems allow.
    pub memory_mib: u32,
    /// Programs that run at a time, at most 256; 0 for as many as there are cores. Default 0.
    pub parallel: u32,
    /// `strong`: where the kernel refuses a layer of the sandbox, programs are not run. `weak`: without
    /// namespaces, so that a program can read what anybody may read on this machine. Default `strong`.
    pub sandbox: Isolation,
}

/// What a program gets for its tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// 1 if every test passes, else 0.
    #[default]
    All,
    /// The share of the tests that pass.
    Share,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            think_tag: "think".to_owned(),
            answer_tag: "answer".to_owned(),
            score: Score::All,
            language: None,
            tolerance: 1e-6,
            time_s: 4,
            time_all_s: 60,
            memory_mib: 512,
            parallel: 0,
            sandbox: Isolation::Strong,
        }
    }
}

impl Resolve for Settings {
    fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = self.problems();
        if let Some(why) = why_not(self.sandbox) {
            let must = format!("\"weak\" {why}");
            problems.push(Problem::new("sandbox", must, "\"strong\""));
        }
        let language = self.language.unwrap_or(Language::Python);
        if let Err(missing) = toolchain::find(language) {
            problems.push(Problem::new("language", "one that this machine can run", missing));
        }
        if problems.is_empty() {
            Ok(Box::new(Code::new(self.clone(), backends.waiting())))
        } else {
            Err(problems)
        }
    }
}

impl Settings {
    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, tag) in [("think_tag", &self.think_tag), ("answer_tag", &self.answer_tag)] {
            if !is_word(tag) {
                problems.push(Problem::new(key, "letters, digits and `_`", format!("`{tag}`")));
            }
        }
        // Written so that NaN fails.
        if !(0.0 <= self.tolerance && self.tolerance < 1.0) {
            let must = "at least 0 and less than 1";
            problems.push(Problem::new("tolerance", must, self.tolerance.to_string()));
        }
        for (key, value, least, most) in [
            ("time_s", self.time_s, 1, 600),
            ("time_all_s", self.time_all_s, 1, 86_400),
            ("memory_mib", self.memory_mib, 64, 65_536),
            ("parallel", self.parallel, 0, PARALLEL_MAX),
        ] {
            if !(least..=most).contains(&value) {
                let must = format!("from {least} to {most}");
                problems.push(Problem::new(key, must, value.to_string()));
            }
        }
        problems
    }

    /// The limits of a program.
    fn limits(&self) -> Limits {
        let cpu_ms = u64::from(self.time_s) * 1000;
        Limits {
            cpu_ms,
            wall_ms: Some(2 * cpu_ms + 2000),
            memory_bytes: u64::from(self.memory_mib) << 20,
            ..Limits::default()
        }
    }
}

/// The layers of the sandbox, tried out once per process. Programs that don't call [`enter_if_asked`] first
/// in `main` have none.
pub fn sandbox_layers() -> &'static [Layer] {
    aha_sandbox::probe()
}

/// The languages that programs can be in on this machine, each with its interpreter or compiler.
pub fn languages() -> Vec<(Language, &'static str)> {
    toolchain::installed()
}

/// Why such programs can't be run on this machine; none where they can.
pub(crate) fn why_not(isolation: Isolation) -> Option<String> {
    let Layer { name, state, remedy } = missing_layer(isolation)?;
    let why = match state {
        State::Refused(why) => why.as_str(),
        _ => "unknown",
    };
    Some(format!(
        "on this machine, for the sandbox's layer `{name}` does not work ({why}); or: {remedy}"
    ))
}

/// The first layer that is needed and doesn't work.
fn missing_layer(isolation: Isolation) -> Option<&'static Layer> {
    // Without a keeper nothing can be started at all.
    let is_needed = |layer: &&Layer| isolation == Isolation::Strong || layer.name == "keeper";
    let layers = sandbox_layers().iter();
    layers.filter(is_needed).find(|layer| layer.state != State::Works)
}

/// See [`Settings`].
pub struct Code {
    settings: Settings,
    desk: Desk<Runner>,
    parallel_count: usize,
}

/// Runs programs.
struct Runner {
    settings: Settings,
    /// The tests' processes that wait for work: one for each program that runs, at most.
    idle: Mutex<Vec<Judge>>,
}

/// A program that is to be run: all that its verdict depends on, besides the settings.
#[derive(Deserialize, Serialize)]
struct Work<'a> {
    language: Language,
    code: Cow<'a, str>,
    prompt: Cow<'a, str>,
    tests: Cow<'a, str>,
}

/// A score as it is kept.
#[derive(Deserialize, Serialize)]
struct Kept {
    score: f32,
    reason: String,
}

impl Code {
    /// Settings without a problem.
    fn new(settings: Settings, waiting: Waiting) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let count = if settings.parallel == 0 { cores } else { settings.parallel as usize };
        let runner = Runner { settings: settings.clone(), idle: Mutex::default() };
        // How many run at a time decides nothing, and is no part of what verdicts are known by.
        let settings = Settings { parallel: 0, ..settings };
        Self { settings, desk: Desk::new(runner, waiting, count, 1), parallel_count: count }
    }

    /// The program that a sample asks to be run, or its verdict where there is none.
    fn request(&self, sample: &Sample<'_>) -> Result<Request, Verdict> {
        let Some(text) = sample.tests else {
            return Err(Verdict::unscored("the sample has no tests"));
        };
        let tests = Tests::parse(text).map_err(Verdict::unscored)?;
        let place = Place {
            think_tag: &self.settings.think_tag,
            answer_tag: &self.settings.answer_tag,
            language: tests.language().or(self.settings.language),
        };
        let found = place.find(sample.completion, &tests.names());
        let Block { language, code } = found.map_err(|reason| Verdict::scored(0.0, reason))?;
        let work = Work { language, code, prompt: sample.prompt.into(), tests: text.into() };
        let failed = |error: serde_json::Error| Verdict::unscored(error.to_string());
        let body = serde_json::to_string(&work).map_err(failed)?;
        let settings = serde_json::to_string(&self.settings).map_err(failed)?;
        Ok(Request { key: key(&["code", &settings, &body]), body })
    }
}

impl Service for Runner {
    fn call(&self, requests: &[Request]) -> Vec<Result<String, Failure>> {
        requests.iter().map(|request| self.kept(&request.body).map_err(Failure::Failed)).collect()
    }
}

impl Runner {
    /// The verdict on a program as JSON, or why there is none.
    fn kept(&self, work: &str) -> Result<String, String> {
        let failed = |error: serde_json::Error| error.to_string();
        let work: Work<'_> = serde_json::from_str(work).map_err(failed)?;
        let kept = match self.run(work) {
            Ok(tally) => self.scored(tally),
            Err(Stopped::Program(reason)) => Kept { score: 0.0, reason },
            Err(Stopped::Other(reason)) => return Err(reason),
        };
        serde_json::to_string(&kept).map_err(failed)
    }

    fn run(&self, work: Work<'_>) -> Result<Tally, Stopped> {
        match Tests::parse(&work.tests).map_err(Stopped::Other)? {
            Tests::Stdio { cases } => {
                let block = Block { language: work.language, code: work.code };
                programs::run(&self.settings, &block, &cases)
            }
            calls => {
                let mut judge = self.idle().pop();
                let (settings, prompt) = (&self.settings, &work.prompt);
                let tally = functions::run(settings, &mut judge, prompt, &work.code, &calls);
                self.idle().extend(judge);
                tally
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Judge>> {
        // What is in there is whole at any time.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The score of a program, by how many of its tests it passes.
    fn scored(&self, tally: Tally) -> Kept {
        let score = match self.settings.score {
            Score::All => f32::from(tally.passed == tally.count),
            Score::Share => tally.passed as f32 / tally.count as f32,
        };
        let reason = match (tally.passed == tally.count, tally.count) {
            (true, 1) => "passes the test".to_owned(),
            (true, count) => format!("passes all {count} tests"),
            (false, _) => tally.reason,
        };
        Kept { score, reason }
    }
}

/// How many tests a program passes.
struct Tally {
    passed: usize,
    /// At least 1.
    count: usize,
    /// Why it fails one.
    reason: String,
}

/// Why there is no [`Tally`].
enum Stopped {
    /// The program is to blame: it scores 0.
    Program(String),
    /// The sample or the machine is to blame: there is no score.
    Other(String),
}

impl From<aha_sandbox::Error> for Stopped {
    fn from(error: aha_sandbox::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self::Other(format!("{error}{}", cause.unwrap_or_default()))
    }
}

impl Verifier for Code {
    fn kind(&self) -> Kind {
        Kind::Code
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        self.score_all(std::slice::from_ref(sample)).remove(0)
    }

    fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let asked: Vec<Result<Request, Verdict>> =
            samples.iter().map(|sample| self.request(sample)).collect();
        let mut outcomes = self.desk.ask(asked.iter().flatten().cloned().collect()).into_iter();
        let mut verdict = |_: Request| match outcomes.next() {
            Some(Ok(kept)) => match serde_json::from_str(&kept) {
                Ok(Kept { score, reason }) => Verdict::scored(score, reason),
                Err(error) => Verdict::unscored(format!("a verdict that was kept: {error}")),
            },
            Some(Err(reason)) => Verdict::unscored(reason),
            None => Verdict::unscored("there is no outcome, which is a bug in aha"),
        };
        asked.into_iter().map(|asked| asked.map_or_else(|verdict| verdict, &mut verdict)).collect()
    }

    fn parallel_count(&self) -> usize {
        self.parallel_count.min(CALLERS_MAX)
    }
}
