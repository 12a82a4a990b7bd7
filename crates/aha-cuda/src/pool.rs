//! The allocator of a device's memory: what is freed is kept for the next buffer of its size.
//!
//! The driver's own allocations wait for the whole device and take longer than most kernels, so a step that is like
//! the one before makes none. Sizes are rounded up to classes, an eighth of a power of two apart, because batches
//! differ a little. A block that is freed may still be in use by work that was asked for: it is given to work on
//! the same stream, which comes after that, or to that on another stream after the two are joined.
//!
//! What is kept never makes more than the most that was in use at once and [`SPARE_BYTES_MAX`], as with the
//! processor's memory: so what a program needs can be predicted from its buffers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::{Driver, Error, Ptr, Stream};

/// Bytes that kept blocks may add to the most that was in use at once.
pub const SPARE_BYTES_MAX: usize = 256 << 20;
/// Bytes that the smallest block has; all others have a multiple of them.
const UNIT_BYTES: usize = 512;

/// Blocks of one device's memory.
#[derive(Debug)]
pub struct Pool {
    driver: Arc<dyn Driver>,
    blocks: Mutex<Blocks>,
}

/// A part of the device's memory that somebody uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it begins.
    pub at: Ptr,
    /// How long it is: at least as long as was asked for.
    pub bytes: usize,
}

/// How a pool is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of blocks in use.
    pub in_use_bytes: usize,
    /// The most that were in use at once, since the last [`Pool::trim`].
    pub in_use_bytes_max: usize,
    /// Bytes of blocks that are kept for later.
    pub kept_bytes: usize,
    /// How often the driver was asked for memory.
    pub alloc_count: u64,
}

#[derive(Debug, Default)]
struct Blocks {
    /// By bytes; of one size the last was freed last.
    kept: BTreeMap<usize, Vec<(Stream, Ptr)>>,
    held: Option<Held>,
    stats: Stats,
}

/// Blocks that a thread frees on a stream while it captures work there: they count as in use. They are that thread's
/// alone, since what is captured writes to them whenever it is replayed.
#[derive(Debug)]
struct Held {
    thread: ThreadId,
    stream: Stream,
    blocks: BTreeMap<usize, Vec<Ptr>>,
}

impl Pool {
    /// Of this device, with nothing kept.
    pub fn new(driver: Arc<dyn Driver>) -> Pool {
        Pool { driver, blocks: Mutex::default() }
    }

    /// A block of at least so many bytes, for work on this stream.
    pub fn take(&self, bytes: usize, stream: Stream) -> Result<Block, Error> {
        let bytes = class(bytes);
        let mut blocks = self.blocks();
        if let Some(block) = blocks.take_held(bytes, stream) {
            return Ok(block);
        }
        if let Some((block, of)) = blocks.find(bytes, stream) {
            if of != stream {
                self.driver.join(of, stream)?;
            }
            blocks.enter(block.bytes);
            return Ok(block);
        }
        let shed = blocks.shed(bytes);
        self.free(shed);
        let at = match self.driver.alloc(bytes) {
            Err(Error::OutOfMemory { .. }) => {
                let all = blocks.take_kept();
                self.free(all);
                self.driver.alloc(bytes).map_err(|error| full(error, bytes, &blocks.stats))?
            }
            other => other?,
        };
        blocks.stats.alloc_count += 1;
        blocks.enter(bytes);
        Ok(Block { at, bytes })
    }

    /// Takes a block back, whose last use is on this stream.
    pub fn give(&self, block: Block, stream: Stream) {
        let mut blocks = self.blocks();
        if let Some(held) = blocks.held_on(stream) {
            held.entry(block.bytes).or_default().push(block.at);
            return;
        }
        blocks.stats.in_use_bytes -= block.bytes;
        blocks.stats.kept_bytes += block.bytes;
        blocks.kept.entry(block.bytes).or_default().push((stream, block.at));
        let shed = blocks.shed(0);
        self.free(shed);
    }

    /// From now on, blocks that this thread frees on this stream are only used again by it and there, beside those that
    /// are given here. They belong to whoever calls [`Pool::release`]; until then nobody else may hold any.
    pub fn hold(&self, stream: Stream, blocks: Vec<Block>) {
        let mut held = Held { thread: thread::current().id(), stream, blocks: BTreeMap::new() };
        for block in blocks {
            held.blocks.entry(block.bytes).or_default().push(block.at);
        }
        let before = self.blocks().held.replace(held);
        assert!(before.is_none(), "blocks are held already");
    }

    /// Ends what [`Pool::hold`] began; the blocks that were given there or freed since, to be given back.
    pub fn release(&self) -> Vec<Block> {
        let held = self.blocks().held.take().map(|held| held.blocks).unwrap_or_default();
        let blocks =
            |(bytes, list): (usize, Vec<Ptr>)| list.into_iter().map(move |at| Block { at, bytes });
        held.into_iter().flat_map(blocks).collect()
    }

    /// Returns all that is kept to the driver, and forgets how much was in use at once.
    pub fn trim(&self) {
        let mut blocks = self.blocks();
        let all = blocks.take_kept();
        blocks.stats.in_use_bytes_max = blocks.stats.in_use_bytes;
        self.free(all);
    }

    /// How it is used.
    pub fn stats(&self) -> Stats {
        self.blocks().stats
    }

    fn free(&self, blocks: Vec<Ptr>) {
        for at in blocks {
            // SAFETY: it came from the driver and is in no list any more. The driver waits for work on it.
            unsafe { self.driver.free(at) };
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.trim();
    }
}

impl Blocks {
    /// A kept block of at most a quarter more, rather one of the same stream; with its stream. One of just this size
    /// where blocks are held, since it is asked for by its size again.
    fn find(&mut self, bytes: usize, stream: Stream) -> Option<(Block, Stream)> {
        let more = if self.held_on(stream).is_some() { 0 } else { bytes / 4 };
        let fitting = || self.kept.range(bytes..=bytes + more);
        let last_of = |list: &[(Stream, Ptr)]| list.iter().rposition(|(of, _)| *of == stream);
        let own = fitting().find_map(|(&bytes, list)| Some((bytes, last_of(list)?)));
        let (bytes, idx) = own.or_else(|| fitting().next().map(|(&bytes, _)| (bytes, 0)))?;
        let list = self.kept.get_mut(&bytes)?;
        let (of, at) = list.remove(idx);
        if list.is_empty() {
            self.kept.remove(&bytes);
        }
        self.stats.kept_bytes -= bytes;
        Some((Block { at, bytes }, of))
    }

    /// What this thread holds for its work on this stream, if it holds any.
    fn held_on(&mut self, stream: Stream) -> Option<&mut BTreeMap<usize, Vec<Ptr>>> {
        let of = thread::current().id();
        let held = self.held.as_mut().filter(|held| held.thread == of && held.stream == stream)?;
        Some(&mut held.blocks)
    }

    /// A block of just this size that was freed while this thread's are held.
    fn take_held(&mut self, bytes: usize, stream: Stream) -> Option<Block> {
        let at = self.held_on(stream)?.get_mut(&bytes)?.pop()?;
        Some(Block { at, bytes })
    }

    fn enter(&mut self, bytes: usize) {
        self.stats.in_use_bytes += bytes;
        self.stats.in_use_bytes_max = self.stats.in_use_bytes_max.max(self.stats.in_use_bytes);
    }

    /// What is kept beyond the bound, once so many bytes more are in use; large blocks first.
    fn shed(&mut self, more_bytes: usize) -> Vec<Ptr> {
        let mut shed = Vec::new();
        loop {
            let in_use = self.stats.in_use_bytes + more_bytes;
            let bound = self.stats.in_use_bytes_max.max(in_use) + SPARE_BYTES_MAX;
            if in_use + self.stats.kept_bytes <= bound {
                return shed;
            }
            let Some(mut entry) = self.kept.last_entry() else { return shed };
            let bytes = *entry.key();
            shed.extend(entry.get_mut().pop().map(|(_, at)| at));
            if entry.get().is_empty() {
                entry.remove();
            }
            self.stats.kept_bytes -= bytes;
        }
    }

    fn take_kept(&mut self) -> Vec<Ptr> {
        self.stats.kept_bytes = 0;
        let kept = std::mem::take(&mut self.kept);
        kept.into_values().flatten().map(|(_, at)| at).collect()
    }
}

/// What a block of so many bytes has.
fn class(bytes: usize) -> usize {
    let bytes = bytes.max(1);
    let step = (bytes.next_power_of_two() / 16).max(UNIT_BYTES);
    bytes.next_multiple_of(step)
}

/// The driver's error with what is in use here.
fn full(error: Error, asked_bytes: usize, stats: &Stats) -> Error {
    match error {
        Error::OutOfMemory { total_bytes, .. } => {
            Error::OutOfMemory { asked_bytes, in_use_bytes: stats.in_use_bytes, total_bytes }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
