//! Where the time of a computation goes, op by op.
//!
//! The tape, the optimizer and the sampler open a [`span`] around each op. Unless some thread records, that
//! costs one relaxed load. A thread records what it runs itself: ops are called by one thread, whatever
//! number of threads shares their work.
//!
//! FLOPs are the multiplications and additions of sums of products; element-wise arithmetic is not counted,
//! since what such an op moves takes longer. Bytes are those of its tensors, each once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Tensor;

/// Threads that record.
static RECORDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What an op has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Multiplications and additions.
    pub flop: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// What all calls of one op took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    /// Its name, such as `matmul.forward`.
    pub name: &'static str,
    /// Calls.
    pub count: u64,
    /// Time, without that of ops inside of it.
    pub seconds: f64,
    /// What the calls had to do.
    pub work: Work,
}

/// Where the time of a computation went.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The ops, the one that took longest first.
    pub ops: Vec<Op>,
    /// Time of the whole computation.
    pub seconds: f64,
}

impl Profile {
    /// Time that no op accounts for.
    pub fn rest_seconds(&self) -> f64 {
        self.seconds - self.ops.iter().map(|op| op.seconds).sum::<f64>()
    }
}

/// Runs `f` and says where its time on this thread went. A thread records one profile at a time.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Profile) {
    let recording = Recording::begin();
    let begun = Instant::now();
    let result = f();
    let seconds = begun.elapsed().as_secs_f64();
    (result, Profile { ops: recording.end(), seconds })
}

/// Opens a span: until it is dropped, this thread works on `op`. `work` is asked only where it is recorded.
pub fn span(op: &'static str, work: impl FnOnce() -> Work) -> Span {
    if RECORDING.load(Ordering::Relaxed) == 0 {
        return Span(None);
    }
    let outer = RECORDER.with_borrow_mut(|recorder| {
        recorder.as_mut().map(|recorder| std::mem::take(&mut recorder.inside))
    });
    Span(outer.map(|outer| Open { op, work: work(), outer, begun: Instant::now() }))
}

/// [`span`] of an op whose work is to read or write these tensors.
pub fn moving(op: &'static str, tensors: &[&Tensor]) -> Span {
    multiplying(op, || 0.0, tensors)
}

/// [`span`] of an op that sums products over these tensors.
pub fn multiplying(op: &'static str, flop: impl FnOnce() -> f64, tensors: &[&Tensor]) -> Span {
    span(op, || Work { flop: flop(), bytes: tensors.iter().map(|t| bytes(t)).sum() })
}

/// Bytes of a tensor's elements.
pub fn bytes(tensor: &Tensor) -> f64 {
    (tensor.len() * tensor.dtype().bytes()) as f64
}

/// An op that is being worked on.
#[must_use = "the span ends when this is dropped"]
pub struct Span(Option<Open>);

struct Open {
    op: &'static str,
    work: Work,
    /// What had been spent on ops inside the span around this one.
    outer: Duration,
    begun: Instant,
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(Open { op, work, outer, begun }) = self.0.take() else { return };
        let elapsed = begun.elapsed();
        RECORDER.with_borrow_mut(|recorder| {
            // None where the recording ended inside of the span.
            let Some(recorder) = recorder else { return };
            let own = elapsed.saturating_sub(recorder.inside);
            recorder.inside = outer + elapsed;
            let sum = recorder.sums.entry(op).or_default();
            sum.count += 1;
            sum.time += own;
            sum.work.flop += work.flop;
            sum.work.bytes += work.bytes;
        });
    }
}

#[derive(Default)]
struct Recorder {
    sums: BTreeMap<&'static str, Sum>,
    /// Time of finished spans inside the open one.
    inside: Duration,
}

#[derive(Default)]
struct Sum {
    count: u64,
    time: Duration,
    work: Work,
}

/// While it lives, this thread records.
struct Recording;

impl Recording {
    fn begin() -> Recording {
        RECORDER.with_borrow_mut(|recorder| {
            assert!(recorder.is_none(), "this thread records a profile already");
            *recorder = Some(Recorder::default());
        });
        RECORDING.fetch_add(1, Ordering::Relaxed);
        Recording
    }

    fn end(self) -> Vec<Op> {
        let sums = RECORDER.with_borrow_mut(Option::take).unwrap_or_default().sums;
        let op = |(name, sum): (&'static str, Sum)| Op {
            name,
            count: sum.count,
            seconds: sum.time.as_secs_f64(),
            work: sum.work,
        };
        let mut ops: Vec<Op> = sums.into_iter().map(op).collect();
        ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        ops
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.fetch_sub(1, Ordering::Relaxed);
        RECORDER.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    fn spin(time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            black_box(0);
        }
    }

    #[test]
    fn an_op_inside_another_counts_for_itself_alone() {
        let turn = Duration::from_millis(20);
        let work = || Work { flop: 3.0, bytes: 5.0 };
        let ((), profile) = record(|| {
            let _outer = span("outer", Work::default);
            for _ in 0..4 {
                let _inner = span("inner", work);
                spin(turn);
            }
        });
        let [inner, outer] = [profile.ops[0], profile.ops[1]];
        assert_eq!((inner.name, inner.count, inner.work.flop), ("inner", 4, 12.0));
        assert_eq!((outer.name, outer.count, outer.work.bytes), ("outer", 1, 0.0));
        assert!(inner.seconds >= 0.08, "{profile:?}");
        // What the outer span has for itself is next to nothing, but machines are interrupted.
        assert!(outer.seconds < inner.seconds, "{profile:?}");
        assert!(profile.rest_seconds() >= 0.0, "{profile:?}");
    }

    #[test]
    fn only_what_the_recording_thread_runs_is_recorded() {
        drop(span("before", || unreachable!("nobody records on this thread")));
        let ((), profile) = record(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(span("elsewhere", || unreachable!("nor on this one"))));
            });
        });
        assert_eq!(profile.ops, []);
        drop(span("after", || unreachable!("nor any more")));
    }

    #[test]
    fn a_recording_that_panics_is_over() {
        let panicked = std::panic::catch_unwind(|| {
            record(|| {
                let _span = span("broken", Work::default);
                panic!("as a test");
            })
        });
        assert!(panicked.is_err());
        let ((), profile) = record(|| drop(span("whole", Work::default)));
        assert_eq!(profile.ops.iter().map(|op| op.name).collect::<Vec<_>>(), ["whole"]);
    }
}
