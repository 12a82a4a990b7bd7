//! A processor that owns tensors and runs ops on them.
//!
//! [`Device`] is a cheap handle. Freed buffers are kept for the next tensor of their size, because fresh
//! pages from the system cost more than most element-wise ops.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pool::Pool;
use crate::simd::Isa;

/// Most bytes of freed buffers that a device keeps.
const KEPT_BYTES_MAX: usize = 1 << 30;
/// Buffers shorter than this are left to the allocator.
const KEPT_LEN_MIN: usize = 1024;

/// A processor with its threads and memory. Cloning it clones the handle.
#[derive(Clone)]
pub struct Device(Arc<Cpu>);

struct Cpu {
    isa: Isa,
    pool: Pool,
    freed: Mutex<Freed>,
}

#[derive(Default)]
struct Freed {
    by_capacity: BTreeMap<usize, Vec<Vec<f32>>>,
    bytes: usize,
}

impl Device {
    /// This machine's processor with its best instruction set. `threads` 0 means all cores.
    pub fn cpu(threads: usize) -> Device {
        Device::cpu_with(threads, Isa::best())
    }

    /// This machine's processor, with an instruction set of [`Isa::available`].
    pub fn cpu_with(threads: usize, isa: Isa) -> Device {
        assert!(Isa::available().contains(&isa), "this machine has no {isa}");
        let threads = if threads == 0 {
            std::thread::available_parallelism().map_or(1, |n| n.get())
        } else {
            threads
        };
        Device(Arc::new(Cpu { isa, pool: Pool::new(threads), freed: Mutex::default() }))
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    /// Threads that share a kernel's work.
    pub fn threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// Calls `f` with every index below `count`, spread over the threads. Indices must write disjoint
    /// outputs.
    pub fn run(&self, count: usize, f: impl Fn(usize) + Sync) {
        self.0.pool.run(count, &f);
    }

    /// Splits `0..len` in blocks of `block` and calls `f(start, end)` for each, spread over the threads.
    pub fn run_blocks(&self, len: usize, block: usize, f: impl Fn(usize, usize) + Sync) {
        assert!(block > 0, "a block holds at least one element");
        self.run(len.div_ceil(block), |i| f(i * block, ((i + 1) * block).min(len)));
    }

    /// A buffer of `len` floats with unspecified (but initialised) contents.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        if len >= KEPT_LEN_MIN {
            let mut freed = self.freed();
            let found = freed
                .by_capacity
                .range_mut(len..=len + len / 4)
                .find_map(|(_, buffers)| buffers.pop());
            if let Some(mut buffer) = found {
                freed.bytes -= buffer.capacity() * size_of::<f32>();
                // Kept buffers are as long as their capacity.
                buffer.truncate(len);
                return buffer;
            }
        }
        vec![0.0; len]
    }

    /// Takes back a buffer.
    pub(crate) fn give(&self, mut buffer: Vec<f32>) {
        let capacity = buffer.capacity();
        let bytes = capacity * size_of::<f32>();
        if capacity < KEPT_LEN_MIN {
            return;
        }
        let mut freed = self.freed();
        if freed.bytes + bytes > KEPT_BYTES_MAX {
            return;
        }
        buffer.resize(capacity, 0.0);
        freed.bytes += bytes;
        freed.by_capacity.entry(capacity).or_default().push(buffer);
    }

    /// Returns every kept buffer to the system.
    pub fn trim(&self) {
        *self.freed() = Freed::default();
    }

    fn freed(&self) -> MutexGuard<'_, Freed> {
        self.0.freed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu({}, {} threads)", self.isa(), self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_buffer_is_used_again() {
        let device = Device::cpu(1);
        let mut buffer = device.take(5000);
        buffer[0] = 7.0;
        let at = buffer.as_ptr();
        device.give(buffer);
        let again = device.take(4500);
        assert_eq!((again.as_ptr(), again.len()), (at, 4500));
    }

    #[test]
    fn a_much_smaller_tensor_does_not_take_a_large_buffer() {
        let device = Device::cpu(1);
        device.give(vec![0.0; 100_000]);
        assert!(device.take(2000).capacity() < 10_000);
    }
}
