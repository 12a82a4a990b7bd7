//! One configuration, measured in a child process of this program.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aha_compute::profile;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::place::{Open, Place};
use super::profile::Times;
use super::row::Row;
use super::subject::Subject;
use super::{Kind, Precision, Sequences, Weights, decode, grpo, train};
use crate::report::failed;
use crate::screen;

/// How often a child is asked whether it is done.
const POLL: Duration = Duration::from_millis(20);
/// Seconds that a child may need beside its runs: for weights to be read or made, and for the last run.
const GRACE_SECONDS: u64 = 300;

/// One configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What is measured.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub name: String,
    /// The model.
    pub subject: Subject,
    /// What computes.
    #[serde(default)]
    pub device: Place,
    /// Threads that compute; 0 takes every core.
    pub threads: u32,
    /// What the model computes with.
    pub dtype: Precision,
    /// What completions are drawn with.
    pub weights: Weights,
    /// Runs that count.
    pub runs: u32,
    /// No further run begins after so many seconds.
    pub seconds_max: u32,
    /// Whether one more run is recorded op by op.
    pub profile: bool,
    /// What a run does.
    pub work: Work,
}

/// What a run does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A step of SFT.
    Train(Batch),
    /// A forward pass.
    Logprob(Batch),
    /// Completions.
    Decode(Sampled),
    /// A step of GRPO.
    Grpo {
        /// Its completions.
        sampled: Sampled,
        /// Factor of the KL term; 0 does without a reference.
        kl_coef: f64,
        /// Tokens of a micro-batch.
        micro_batch_tokens: usize,
        /// Whether layers are computed again.
        checkpointing: bool,
    },
}

/// Whole sequences through the model.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The sequences.
    pub sequences: Sequences,
    /// Tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether layers are computed again.
    pub checkpointing: bool,
}

/// Completions of prompts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sampled {
    /// Prompts.
    pub prompts: usize,
    /// Completions of each.
    pub samples: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens of a completion.
    pub new_tokens: usize,
}

impl Sampled {
    /// Completions in all.
    pub fn sequences(self) -> usize {
        self.prompts * self.samples
    }

    /// Tokens drawn in all.
    pub fn tokens(self) -> usize {
        self.sequences() * self.new_tokens
    }
}

impl Job {
    /// Opens what computes.
    pub fn open(&self) -> anyhow::Result<Open> {
        self.device.open(self.threads as usize, self.dtype.dtype())
    }

    /// Calls `run` once to warm up, then as often as asked for and as time allows, and gives what each call
    /// found. Where already the first leaves no time, it is the only one that counts.
    pub fn repeat<R>(&self, mut run: impl FnMut() -> anyhow::Result<R>) -> anyhow::Result<Vec<R>> {
        let budget = f64::from(self.seconds_max);
        let begun = Instant::now();
        let first = run()?;
        let first_seconds = begun.elapsed().as_secs_f64();
        if begun.elapsed().as_secs_f64() + first_seconds > budget {
            return Ok(vec![first]);
        }
        drop(first);
        let mut found = Vec::new();
        while found.len() < self.runs as usize
            && (found.is_empty() || begun.elapsed().as_secs_f64() + first_seconds <= budget)
        {
            found.push(run()?);
        }
        Ok(found)
    }

    /// Records one more run, where that is asked for.
    pub fn profile<R>(
        &self,
        run: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<Option<Times>> {
        if !self.profile {
            return Ok(None);
        }
        let (done, profile) = profile::record(run);
        done?;
        Ok(Some(Times::new(&profile)))
    }
}

/// Measures the job in this process and prints its row.
pub fn serve(job: &str) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(job).context("--job is for `aha bench` itself")?;
    let mut row = match &job.work {
        Work::Train(batch) => train::train(&job, *batch)?,
        Work::Logprob(batch) => train::logprob(&job, *batch)?,
        Work::Decode(sampled) => decode::decode(&job, *sampled)?,
        Work::Grpo { sampled, kl_coef, micro_batch_tokens, checkpointing } => {
            grpo::grpo(&job, *sampled, *kl_coef, *micro_batch_tokens, *checkpointing)?
        }
    };
    if let Some(bytes) = peak_rss_bytes() {
        row.add("peak_rss_bytes", bytes as f64);
    }
    screen::print_json(&row)
}

/// Most memory that this process ever had.
fn peak_rss_bytes() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Measures the job in a child process. One that takes much too long is stopped, and its row says so.
pub fn run(job: &Job, threads: usize) -> anyhow::Result<Row> {
    let mut child = Command::new(std::env::current_exe().context("can't find this program")?)
        .args(["bench", "--job", &serde_json::to_string(job)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start this program again")?;
    let seconds = 2 * u64::from(job.seconds_max) + GRACE_SECONDS;
    let status = wait(&mut child, Duration::from_secs(seconds))?;
    let Some(status) = status else {
        let mut row = Row::new(job.kind, &job.name, threads);
        row.problem = Some(format!("took longer than {seconds} s"));
        return Ok(row);
    };
    let mut out = String::new();
    let pipe = child.stdout.as_mut().context("the child's output is not piped")?;
    pipe.read_to_string(&mut out).context("can't read what the child found")?;
    if !status.success() {
        let message = format!("measuring {} {} ended with {status}", job.kind.name(), job.name);
        let hint = "see above; a process that was killed may have been out of memory: take a smaller shape";
        return Err(failed(message, hint));
    }
    serde_json::from_str(&out).context("the child's figures can't be read")
}

/// Waits for the child; none where it had to be stopped. What it writes is far less than a pipe holds.
fn wait(child: &mut Child, time_max: Duration) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > time_max {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Shape;
    use super::*;

    fn job(runs: u32, seconds_max: u32) -> Job {
        let sampled = Sampled { prompts: 2, samples: 3, prompt_tokens: 4, new_tokens: 5 };
        Job {
            kind: Kind::Decode,
            name: "x".to_owned(),
            subject: Subject::Random(Shape::Tiny),
            device: Place::Cpu,
            threads: 1,
            dtype: Precision::Bf16,
            weights: Weights::Same,
            runs,
            seconds_max,
            profile: false,
            work: Work::Decode(sampled),
        }
    }

    #[test]
    fn the_first_run_counts_only_where_there_is_no_time_for_another() {
        let count = |job: Job| {
            let mut calls = 0;
            let found = job.repeat(|| {
                calls += 1;
                Ok(calls)
            });
            found.unwrap()
        };
        assert_eq!(count(job(3, 60)), [2, 3, 4]);
        assert_eq!(count(job(3, 0)), [1]);
    }

    #[test]
    fn a_child_that_takes_too_long_is_stopped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(wait(&mut child, Duration::from_millis(1)).unwrap(), None);
        let mut child = Command::new("true").spawn().unwrap();
        assert!(wait(&mut child, Duration::from_secs(60)).unwrap().unwrap().success());
    }
}
