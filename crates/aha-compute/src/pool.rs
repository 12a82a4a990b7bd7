//! Threads that split outputs: `run(n, f)` calls `f(0..n)`, each index once, on all threads of the pool.
//!
//! A decode step issues dozens of short jobs, so workers spin for a moment before they sleep. A worker that wakes up
//! late costs nothing but its help: a job is over when its indices are, and who comes then is not let in. Which
//! thread takes which index is left to chance; kernels are written so that it cannot matter.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps: longer than the gap between two ops of a step, and not much longer
/// than it takes to wake up.
const SPIN: Duration = Duration::from_micros(100);
/// The part of a gate that counts workers inside, and the bit of one that lets nobody in any more.
const INSIDE: u64 = CLOSED - 1;
const CLOSED: u64 = 1 << 16;
/// What the number of a job is multiplied with in its gate.
const JOB: u64 = CLOSED << 1;

pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time; callers on other threads wait their turn.
    turn: Mutex<()>,
}

struct Shared {
    /// Number of the newest job, whether it is over, and the workers inside of it; those outside watch it.
    gate: AtomicU64,
    state: Mutex<State>,
    wake: Condvar,
    /// The next index to take.
    next: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Workers that wait to be woken.
    sleeping: usize,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Clone, Copy)]
struct Job {
    /// Lives until `run` returns, which is after every worker that was let in has left the job.
    f: *const (dyn Fn(usize) + Sync),
    count: usize,
}
// SAFETY: the pointee is `Sync` and outlives the job.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads` threads, of which the caller of [`Pool::run`] is one.
    pub(crate) fn new(threads: usize) -> Pool {
        assert!(threads >= 1, "a pool needs at least the caller's thread");
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            next: AtomicUsize::new(0),
        });
        let workers = (1..threads)
            .map(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("aha-compute-{i}"))
                    .spawn(move || work(&shared))
                    .expect("the system can start a thread")
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` with every index below `count`, and returns when all calls have returned. A panic in `f`
    /// is passed on to the caller.
    pub(crate) fn run(&self, count: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || count <= 1 {
            (0..count).for_each(f);
            return;
        }
        let _turn = lock(&self.turn);
        // SAFETY: only the lifetime is erased; `finish` below waits until no worker uses it, and lets none in.
        let f: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        let job = Job { f, count };
        self.shared.next.store(0, Ordering::Relaxed);
        let someone_sleeps = {
            let mut state = lock(&self.shared.state);
            state.job = Some(job);
            self.shared.open();
            state.sleeping > 0
        };
        if someone_sleeps {
            self.shared.wake.notify_all();
        }
        take_indices(&self.shared, job);
        self.finish();
    }

    fn finish(&self) {
        self.shared.gate.fetch_or(CLOSED, Ordering::AcqRel);
        while self.shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            std::hint::spin_loop();
        }
        let panic = {
            let mut state = lock(&self.shared.state);
            state.job = None;
            state.panic.take()
        };
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            lock(&self.shared.state).stop = true;
            self.shared.open();
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Opens the gate of the next job. The last one's is closed, and nobody is inside.
    fn open(&self) {
        let last = self.gate.load(Ordering::Relaxed) / JOB;
        self.gate.store((last + 1) * JOB, Ordering::Release);
    }

    /// Whether a worker is let in to the job of this number; it then has to leave.
    fn enter(&self, number: u64) -> bool {
        let enter = |gate: u64| (gate / JOB == number && gate & CLOSED == 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_ok()
    }

    fn leave(&self) {
        self.gate.fetch_sub(1, Ordering::Release);
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    let newest = || shared.gate.load(Ordering::Acquire) / JOB;
    loop {
        let idle_since = Instant::now();
        while newest() == seen && idle_since.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while newest() == seen {
            state.sleeping += 1;
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleeping -= 1;
        }
        seen = newest();
        if state.stop {
            return;
        }
        // None where the job was over before we came.
        let job = state.job;
        drop(state);
        if let Some(job) = job.filter(|_| shared.enter(seen)) {
            take_indices(shared, job);
            shared.leave();
        }
    }
}

fn take_indices(shared: &Shared, job: Job) {
    // SAFETY: `run` keeps the closure alive until everybody who was let in has left.
    let f = unsafe { &*job.f };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let index = shared.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.count {
                break;
            }
            f(index);
        }
    }));
    if let Err(panic) = outcome {
        shared.next.store(job.count, Ordering::Relaxed);
        lock(&shared.state).panic.get_or_insert(panic);
    }
}

/// The state holds no invariant that a panicking job could break, so a poisoned lock is taken as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_called_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            for count in [0, 1, 2, 3, 100, 1000] {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    calls.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {count} indices"
                );
            }
        }
    }

    /// Workers that sleep, and those that wake up while a job is already over, miss no index and run none twice.
    #[test]
    fn jobs_are_whole_whether_or_not_workers_sleep() {
        let pool = Pool::new(3);
        for round in 0..300 {
            if round % 3 == 0 {
                std::thread::sleep(2 * SPIN);
            }
            // A job of its own memory each time, soon over for most.
            let calls: Vec<AtomicUsize> = (0..2 + round % 7).map(|_| AtomicUsize::new(0)).collect();
            pool.run(calls.len(), &|i| {
                calls[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1), "round {round}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|i| assert_ne!(i, 17))));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(50, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 49 * 50 / 2);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(20, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 190);
                    }
                });
            }
        });
    }
}
