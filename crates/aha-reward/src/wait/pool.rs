//! Threads that wait for others, a bounded number for all callers together.
//!
//! A job owns what it needs, so a caller that is told to stop leaves at once and the job ends by itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use super::cancel::{Cancel, LOOK_EVERY};

/// Most threads of a pool.
pub const THREADS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that start when there is work and end with the pool.
pub struct Pool {
    name: &'static str,
    jobs: mpsc::Sender<Job>,
    inbox: Arc<Mutex<mpsc::Receiver<Job>>>,
    started_count: Mutex<usize>,
    count_max: usize,
}

impl Pool {
    /// At most `count_max` threads.
    pub fn new(name: &'static str, count_max: usize) -> Pool {
        let (jobs, inbox) = mpsc::channel();
        let inbox = Arc::new(Mutex::new(inbox));
        Pool { name, jobs, inbox, started_count: Mutex::new(0), count_max }
    }

    /// Runs the jobs and returns what they gave, in order: none for one that panicked, and for those that
    /// had not ended when `cancel` was raised.
    pub fn run<T, F>(&self, cancel: &Cancel, jobs: Vec<F>) -> Vec<Option<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let mut results: Vec<Option<T>> = jobs.iter().map(|_| None).collect();
        if !self.start(jobs.len()) {
            return results;
        }
        let (done, heard) = mpsc::channel();
        for (idx, job) in jobs.into_iter().enumerate() {
            let (done, cancel) = (done.clone(), cancel.clone());
            let job: Job = Box::new(move || {
                if !cancel.is_raised() {
                    // What the job holds is dropped with it.
                    let outcome = catch_unwind(AssertUnwindSafe(job)).ok();
                    let _ = done.send((idx, outcome)); // The caller may have left.
                }
            });
            let _ = self.jobs.send(job); // The inbox lives as long as the pool.
        }
        drop(done);
        while !cancel.is_raised() {
            match heard.recv_timeout(LOOK_EVERY) {
                Ok((idx, outcome)) => results[idx] = outcome,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        results
    }

    /// Starts threads for so many more jobs; false where there is none at all.
    fn start(&self, job_count: usize) -> bool {
        let mut started = self.started_count.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.count_max.min(*started + job_count);
        while *started < wanted {
            let inbox = Arc::clone(&self.inbox);
            let thread = thread::Builder::new().name(self.name.to_owned());
            if thread.spawn(move || work(&inbox)).is_err() {
                break; // Those that there are do the work.
            }
            *started += 1;
        }
        *started > 0
    }
}

/// Runs jobs until the pool is gone.
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_are_in_order_and_a_panic_costs_its_own() {
        let pool = Pool::new("test", 3);
        let jobs = (0..20).map(|i| move || if i == 7 { panic!("seven") } else { i }).collect();
        let results = pool.run(&Cancel::default(), jobs);
        let want: Vec<_> = (0..20).map(|i| (i != 7).then_some(i)).collect();
        assert_eq!(results, want);
    }

    #[test]
    fn as_many_run_at_once_as_there_are_threads_over_all_callers() {
        let pool = Arc::new(Pool::new("test", 3));
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        // Three wait for each other, so fewer threads would never be through.
        let meeting = Arc::new(Barrier::new(3));
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (pool, under_way, most, meeting) = (
                    Arc::clone(&pool),
                    Arc::clone(&under_way),
                    Arc::clone(&most),
                    Arc::clone(&meeting),
                );
                thread::spawn(move || {
                    let job = || {
                        let (under_way, most, meeting) =
                            (Arc::clone(&under_way), Arc::clone(&most), Arc::clone(&meeting));
                        move || {
                            let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            meeting.wait();
                            under_way.fetch_sub(1, Ordering::SeqCst);
                        }
                    };
                    pool.run(&Cancel::default(), (0..4).map(|_| job()).collect::<Vec<_>>())
                })
            })
            .collect();
        for caller in callers {
            assert!(caller.join().unwrap().iter().all(Option::is_some));
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_caller_that_is_told_to_stop_leaves_its_jobs_behind() {
        let pool = Pool::new("test", 1);
        let cancel = Cancel::default();
        let (let_go, held) = mpsc::channel::<()>();
        let stopper = cancel.clone();
        let jobs: Vec<Box<dyn FnOnce() -> u32 + Send>> = vec![
            Box::new(move || {
                stopper.raise();
                let _ = held.recv();
                1
            }),
            Box::new(|| 2),
        ];
        assert_eq!(pool.run(&cancel, jobs), [None, None]);
        drop(let_go);
    }
}
