//! Threads of an owner's own for heavy compute, so that no actor's handler blocks the async runtime.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::pipeline::{RlStage, Run};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs one job after another, or a few that share them. It ends when the last handle is gone.
#[derive(Clone, Debug)]
pub struct ComputeThread {
    jobs: mpsc::Sender<Job>,
}

impl ComputeThread {
    /// Starts one thread: jobs run in the order in which they were given.
    pub fn start(name: &str) -> Result<ComputeThread> {
        ComputeThread::start_several(name, 1)
    }

    /// Starts `count` threads: as many jobs run at once.
    pub fn start_several(name: &str, count: usize) -> Result<ComputeThread> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..count {
            let inbox = Arc::clone(&inbox);
            thread::Builder::new().name(name.to_owned()).spawn(move || work(&inbox)).map_err(
                |error| Error::Environment { message: format!("can't start a thread: {error}") },
            )?;
        }
        Ok(ComputeThread { jobs })
    }

    /// Gives `job` to the thread, at once; its result can be waited for without blocking the runtime. A panic
    /// in the job is an [`Error::Bug`]; the thread lives on.
    pub fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job = move || {
            // What the job held is dropped with it, so nothing half-changed is seen again.
            let outcome = catch_unwind(AssertUnwindSafe(job)).map_err(|panic| panic_text(&*panic));
            let _ = done.send(outcome); // The asker may have stopped; nothing to do then.
        };
        let _ = self.jobs.send(Box::new(job)); // A job that nobody takes is dropped: the result says so.
        async move {
            match result.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(panic)) => Err(Error::bug(format!("a computation panicked: {panic}"))),
                Err(_) => Err(Error::bug("a compute thread ended before its job")),
            }
        }
    }
}

/// Runs jobs until there will be no more.
fn work(inbox: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // Whoever waits for a job holds the lock; jobs run without it.
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(mpsc::RecvError) => return,
        }
    }
}

/// Threads per core, at most: those of a pool wait for each other at every operation, and with many more of
/// them than cores that is all they do.
const THREADS_PER_CORE_MAX: usize = 2;

/// The threads that the key `run.threads` means: 0 is every core, and no more than some per core. No result
/// depends on it.
pub fn threads(wanted: u32) -> usize {
    let cores = thread::available_parallelism().map_or(1, |count| count.get());
    match wanted {
        0 => cores,
        count => (count as usize).min(cores * THREADS_PER_CORE_MAX),
    }
}

/// Threads of sampler and learner, where both compute at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Those of the sampler.
    pub sampler: usize,
    /// Those of the learner.
    pub learner: usize,
}

/// What `sampler_threads` and `learner_threads` mean: a number is that many, and 0 what the other leaves of
/// `run.threads`; both 0 are a half for each. Each has one at least.
pub fn shares(run: &Run, stage: &RlStage) -> Shares {
    split(threads(run.threads), stage.sampler_threads, stage.learner_threads)
}

fn split(all: usize, sampler: u32, learner: u32) -> Shares {
    let rest = |taken: usize| all.saturating_sub(taken).max(1);
    let (sampler, learner) = match (sampler, learner) {
        (0, 0) => (all.div_ceil(2), rest(all.div_ceil(2))),
        (0, learner) => (rest(threads(learner)), threads(learner)),
        (sampler, 0) => (threads(sampler), rest(threads(sampler))),
        (sampler, learner) => (threads(sampler), threads(learner)),
    };
    Shares { sampler, learner }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives_on() {
        let thread = ComputeThread::start("test").unwrap();
        let outcome = thread.run(|| assert_eq!(1, 2, "one is not two")).await;
        assert!(outcome.unwrap_err().to_string().contains("one is not two"));
        assert_eq!(thread.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_job_is_on_its_way_before_anyone_waits_for_it() {
        let thread = ComputeThread::start("test").unwrap();
        let (told, heard) = mpsc::channel();
        let first = told.clone();
        let result = thread.run(move || first.send(1));
        let other = thread.run(move || told.send(2));
        assert_eq!(heard.iter().collect::<Vec<_>>(), [1, 2]);
        other.await.unwrap().unwrap();
        result.await.unwrap().unwrap();
    }

    #[test]
    fn there_are_not_many_more_threads_than_cores() {
        let cores = threads(0);
        assert_eq!(threads(1), 1);
        assert!((cores..=2 * cores).contains(&threads(256)), "{} on {cores}", threads(256));
    }

    #[test]
    fn cores_are_shared_as_the_stage_says() {
        let shares = |all, sampler, learner| {
            let found = split(all, sampler, learner);
            (found.sampler, found.learner)
        };
        assert_eq!(shares(2, 0, 0), (1, 1));
        assert_eq!(shares(1, 0, 0), (1, 1));
        assert_eq!(shares(9, 0, 0), (5, 4));
        assert_eq!(shares(8, 1, 0), (1, 7));
        assert_eq!(shares(8, 0, 1), (7, 1));
        assert_eq!(shares(8, 1, 1), (1, 1));
        assert_eq!(shares(1, 1, 0), (1, 1));
    }

    #[test]
    fn several_threads_share_the_jobs() {
        let threads = ComputeThread::start_several("test", 2).unwrap();
        let barrier = Arc::new(std::sync::Barrier::new(2));
        // Each waits for the other: one thread alone would never be through.
        let meet = || {
            let barrier = Arc::clone(&barrier);
            threads.run(move || barrier.wait().is_leader())
        };
        let (a, b) = (meet(), meet());
        let (a, b) = futures::executor::block_on(async { (a.await.unwrap(), b.await.unwrap()) });
        assert!(a != b);
    }
}
