use std::ptr::NonNull;

use super::*;
use crate::driver::{Event, Graph, Memory};
use crate::{Info, Launch, Limits, Product};

/// A device that has memory, and nothing else: it notes what it is asked for.
#[derive(Debug)]
struct Fake {
    info: Info,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<Ptr, usize>,
    joins: Vec<(Stream, Stream)>,
}

impl Fake {
    fn new(memory_bytes: usize) -> Arc<Fake> {
        let info = Info {
            name: "fake".into(),
            capability: (9, 0),
            multiprocessor_count: 1,
            memory_bytes,
            limits: Limits::SM_90,
        };
        Arc::new(Fake { info, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn held_bytes(&self) -> usize {
        self.state().held.values().sum()
    }
}

const NONE: Error = Error::Failed { call: "none", code: String::new() };

impl Driver for Fake {
    fn info(&self) -> &Info {
        &self.info
    }

    fn memory(&self) -> Result<Memory, Error> {
        let total_bytes = self.info.memory_bytes;
        Ok(Memory { free_bytes: total_bytes - self.held_bytes(), total_bytes })
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        let total_bytes = self.info.memory_bytes;
        if self.held_bytes() + bytes > total_bytes {
            return Err(Error::OutOfMemory { asked_bytes: bytes, in_use_bytes: 0, total_bytes });
        }
        let mut state = self.state();
        state.next += 1 << 40;
        let at = Ptr(state.next);
        state.held.insert(at, bytes);
        Ok(at)
    }

    unsafe fn free(&self, at: Ptr) {
        assert!(self.state().held.remove(&at).is_some(), "{at:?} is not held");
    }

    fn join(&self, before: Stream, after: Stream) -> Result<(), Error> {
        self.state().joins.push((before, after));
        Ok(())
    }

    fn alloc_pinned(&self, _: usize) -> Result<NonNull<u8>, Error> {
        Err(NONE)
    }
    unsafe fn free_pinned(&self, _: NonNull<u8>, _: usize) {}
    fn stream(&self) -> Result<Stream, Error> {
        Err(NONE)
    }
    fn synchronize(&self, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn copy_in(&self, _: Ptr, _: *const u8, _: usize, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn copy_out(&self, _: *mut u8, _: Ptr, _: usize, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn copy(&self, _: Ptr, _: Ptr, _: usize, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn fill(&self, _: Ptr, _: u8, _: usize, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn launch(&self, _: &Launch<'_>, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    unsafe fn product(&self, _: &Product, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    fn record(&self, _: Stream) -> Result<Event, Error> {
        Err(NONE)
    }
    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f32, Error> {
        Err(NONE)
    }
    fn begin_capture(&self, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    fn end_capture(&self, _: Stream) -> Result<Graph, Error> {
        Err(NONE)
    }
    unsafe fn replay(&self, _: Graph, _: Stream) -> Result<(), Error> {
        Err(NONE)
    }
    fn drop_graph(&self, _: Graph) {}
}

const MIB: usize = 1 << 20;
const OTHER: Stream = Stream(1);

#[test]
fn classes_are_an_eighth_of_a_power_of_two_apart() {
    assert_eq!([0, 1, 512, 513].map(class), [512, 512, 512, 1024]);
    for bytes in [8193, 10_000, 100_000, 3 * MIB + 1, 1_000_000_007] {
        let rounded = class(bytes);
        assert!(
            rounded >= bytes && rounded - bytes <= bytes / 8 + UNIT_BYTES,
            "{bytes}: {rounded}"
        );
        assert_eq!(class(rounded), rounded);
    }
}

#[test]
fn a_freed_block_is_used_again_on_its_stream_and_after_a_join_on_another() {
    let fake = Fake::new(MIB);
    let pool = Pool::new(fake.clone());
    let a = pool.take(10_000, Stream::MAIN).unwrap();
    let at = a.at;
    pool.give(a, Stream::MAIN);
    let again = pool.take(9000, Stream::MAIN).unwrap();
    assert_eq!((again.at, pool.stats().alloc_count), (at, 1));
    pool.give(again, Stream::MAIN);
    assert!(fake.state().joins.is_empty());
    let elsewhere = pool.take(9000, OTHER).unwrap();
    assert_eq!(elsewhere.at, at);
    assert_eq!(fake.state().joins, [(Stream::MAIN, OTHER)]);
    pool.give(elsewhere, OTHER);
}

#[test]
fn a_block_of_the_same_stream_goes_before_a_smaller_one_of_another() {
    let fake = Fake::new(MIB);
    let pool = Pool::new(fake.clone());
    let (small, large) =
        (pool.take(9000, OTHER).unwrap(), pool.take(10_000, Stream::MAIN).unwrap());
    let at = large.at;
    pool.give(small, OTHER);
    pool.give(large, Stream::MAIN);
    let taken = pool.take(9000, Stream::MAIN).unwrap();
    assert_eq!(taken.at, at);
    assert!(fake.state().joins.is_empty());
    pool.give(taken, Stream::MAIN);
}

#[test]
fn what_is_kept_makes_room_before_memory_is_called_full() {
    let fake = Fake::new(10 * MIB);
    let pool = Pool::new(fake.clone());
    for size in [4, 6] {
        let block = pool.take(size * MIB, Stream::MAIN).unwrap();
        pool.give(block, Stream::MAIN);
    }
    assert_eq!(fake.held_bytes(), 10 * MIB);
    let large = pool.take(9 * MIB, Stream::MAIN).unwrap();
    assert_eq!(fake.held_bytes(), 9 * MIB);
    let error = pool.take(2 * MIB, Stream::MAIN).unwrap_err();
    let want =
        Error::OutOfMemory { asked_bytes: 2 * MIB, in_use_bytes: 9 * MIB, total_bytes: 10 * MIB };
    assert_eq!(error, want);
    assert!(error.to_string().contains("smaller micro-batches"), "{error}");
    pool.give(large, Stream::MAIN);
}

/// Goal: what a device holds is at most what was in use at once, and the spare. Method: batches of growing and
/// shrinking size.
#[test]
fn kept_blocks_add_no_more_than_the_spare_to_what_was_in_use_at_once() {
    let fake = Fake::new(1 << 40);
    let pool = Pool::new(fake.clone());
    let mut most = 0;
    for size in [100, 200, 400, 800, 300, 150, 500, 1000] {
        let blocks: Vec<Block> =
            (0..3).map(|_| pool.take(size * MIB, Stream::MAIN).unwrap()).collect();
        most = most.max(blocks.iter().map(|block| block.bytes).sum());
        blocks.into_iter().for_each(|block| pool.give(block, Stream::MAIN));
        let stats = pool.stats();
        assert_eq!((stats.in_use_bytes, stats.in_use_bytes_max), (0, most));
        assert_eq!(stats.kept_bytes, fake.held_bytes());
        assert!(fake.held_bytes() <= most + SPARE_BYTES_MAX, "{size}: {}", fake.held_bytes());
    }
    pool.trim();
    assert_eq!((fake.held_bytes(), pool.stats().in_use_bytes_max), (0, 0));
}

#[test]
fn steps_that_are_alike_ask_the_driver_once() {
    let fake = Fake::new(1 << 40);
    let pool = Pool::new(fake.clone());
    for step in 0..20 {
        let blocks: Vec<Block> = (1..9)
            .map(|i| pool.take(i * 3 * MIB - 100_000 + step * 1000, Stream::MAIN).unwrap())
            .collect();
        blocks.into_iter().for_each(|block| pool.give(block, Stream::MAIN));
    }
    assert_eq!(pool.stats().alloc_count, 8);
    drop(pool);
    assert_eq!(fake.held_bytes(), 0);
}
