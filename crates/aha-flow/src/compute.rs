//! A thread of its own for heavy compute, so that no actor's handler blocks the async runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs one job after another. It ends when the last handle is gone.
#[derive(Clone, Debug)]
pub struct ComputeThread {
    jobs: mpsc::Sender<Job>,
}

impl ComputeThread {
    /// Starts the thread.
    pub fn start(name: &str) -> Result<ComputeThread> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || inbox.into_iter().for_each(|job| job()))
            .map_err(|error| Error::Environment {
                message: format!("can't start a thread: {error}"),
            })?;
        Ok(ComputeThread { jobs })
    }

    /// Runs `job` on the thread and waits for its result without blocking the runtime. A panic in the job
    /// is an [`Error::Bug`]; the thread lives on.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            // What the job held is dropped with it, so nothing half-changed is seen again.
            let outcome = catch_unwind(AssertUnwindSafe(job)).map_err(|panic| panic_text(&*panic));
            let _ = done.send(outcome); // The asker may have stopped; nothing to do then.
        };
        let gone = || Error::bug("a compute thread ended before its job");
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(Error::bug(format!("a computation panicked: {panic}"))),
            Err(_) => Err(gone()),
        }
    }
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
}
