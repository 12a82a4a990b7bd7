//! What owns tensors and runs ops on them: a processor, or a CUDA device beside it.
//!
//! [`Device`] is a cheap handle. A CUDA device has a processor too, for what the host does. There, freed buffers
//! are kept for the next tensor of their size, because fresh pages from the system cost more than most
//! element-wise ops. They are never so many that a device holds more than the most that was in use at once and
//! [`SPARE_BYTES_MAX`]: so what a program needs can be predicted from its tensors.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cuda::{Agreement, Context, FewRows, nvidia::Nvidia};
use crate::pool::Pool;
use crate::simd::Isa;
use crate::{Dtype, Error};

mod gpu;

pub(crate) use gpu::Gpu;

/// Bytes that kept buffers may add to the most that was in use at once: batches differ in size, and those of
/// small models are kept side by side.
pub const SPARE_BYTES_MAX: usize = 64 << 20;
/// Buffers shorter than this are left to the allocator.
const KEPT_LEN_MIN: usize = 1024;

/// A processor with its threads and memory, and what models on it compute with. Cloning it clones the handle.
#[derive(Clone)]
pub struct Device {
    cpu: Arc<Cpu>,
    gpu: Option<Gpu>,
    dtype: Dtype,
    kv_dtype: Dtype,
    is_fp8: bool,
}

/// Least compute capability of a device that multiplies in FP8.
pub const FP8_CAPABILITY_MIN: (u32, u32) = (8, 9);

struct Cpu {
    isa: Isa,
    pool: Pool,
    buffers: Mutex<Buffers>,
}

/// Freed buffers, and how much is in use.
#[derive(Default)]
struct Buffers {
    /// As long as their capacity, shortest first; of those of one length the last was freed last.
    kept: Vec<Vec<f32>>,
    kept_bytes: usize,
    in_use_bytes: usize,
    in_use_bytes_max: usize,
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
        let cpu = Cpu { isa, pool: Pool::new(threads), buffers: Mutex::default() };
        let (dtype, kv_dtype) = (Dtype::F32, Dtype::F32);
        Device { cpu: Arc::new(cpu), gpu: None, dtype, kv_dtype, is_fp8: false }
    }

    /// The CUDA device of this number, and `threads` of the processor, where 0 means all cores.
    pub fn cuda(number: u32, threads: usize) -> Result<Device, Error> {
        Ok(Device::cpu(threads).with_context(Context::new(Arc::new(Nvidia::open(number)?))))
    }

    /// The same processor with this CUDA device, on which tensors are then.
    pub fn with_context(self, context: Context) -> Device {
        Device { gpu: Some(Gpu::new(context)), ..self }
    }

    /// Another device beside this one, for work that is done at the same time: with so many threads and buffers of its
    /// own, and on a CUDA device with a stream of its own in the same memory. What one computes the other may read once
    /// it is waited for ([`Params::copy_on`](crate::Params::copy_on) does).
    pub fn beside(&self, threads: usize) -> Result<Device, Error> {
        let Device { dtype, kv_dtype, is_fp8, .. } = *self;
        let gpu = match &self.gpu {
            Some(gpu) => Some(Gpu::new(gpu.context().with_new_stream()?)),
            None => None,
        };
        Ok(Device { gpu, dtype, kv_dtype, is_fp8, ..Device::cpu_with(threads, self.isa()) })
    }

    /// The processor alone.
    pub(crate) fn host(&self) -> Device {
        Device { gpu: None, is_fp8: false, ..self.clone() }
    }

    /// Whether tensors are in the memory of a CUDA device.
    pub fn is_cuda(&self) -> bool {
        self.gpu.is_some()
    }

    /// The context of the CUDA device: what it is, and how its memory is used.
    pub fn context(&self) -> Option<&Context> {
        self.gpu.as_ref().map(Gpu::context)
    }

    /// The CUDA device.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    /// Fails if anything failed on the CUDA device since it was opened: then no result of it may be used, and nothing
    /// more is done there. Doesn't wait for work that is under way: what was read from the device is done.
    pub fn check(&self) -> Result<(), Error> {
        self.gpu.as_ref().map_or(Ok(()), Gpu::check)
    }

    /// Waits for work that is under way on a CUDA device. A failure of it is kept for [`Device::check`].
    pub fn wait(&self) {
        if let Some(gpu) = &self.gpu {
            gpu.run(Context::synchronize);
        }
    }

    /// What was found out about products of few rows on the CUDA device so far: where bits are equal, decoding
    /// multiplies by the kernel that is made for few rows.
    pub fn probed_products(&self) -> Vec<(FewRows, Agreement)> {
        self.gpu.as_ref().map_or_else(Vec::new, |gpu| gpu.context().probes().all())
    }

    /// The same device, where models multiply with and store activations as `dtype`; `f32` unless this is called.
    /// Weights, gradients and the optimizer's state are `f32` in any case.
    pub fn with_dtype(self, dtype: Dtype) -> Device {
        Device { dtype, ..self }
    }

    /// The same device, where keys and values are rounded to `dtype` as soon as they are computed: when sampling,
    /// where caches then hold them so, and when learning, so that both compute the same. bf16 activations are bf16
    /// in caches in any case. On a CUDA device keys and values are of the activations' dtype.
    pub fn with_kv_dtype(self, dtype: Dtype) -> Device {
        Device { kv_dtype: dtype, ..self }
    }

    /// The same device, where linear layers multiply in FP8: see [`fp8`](crate::ops::matmul::fp8). All else is as
    /// without: embedding, norms, attention, heads and adapters. Fails for a processor, and for a CUDA device that
    /// can't.
    pub fn with_fp8(self) -> Result<Device, Error> {
        let (major, minor) = FP8_CAPABILITY_MIN;
        let has = match &self.gpu {
            None => "there is none".into(),
            Some(gpu) => match gpu.context().info() {
                info if info.capability >= FP8_CAPABILITY_MIN => {
                    return Ok(Device { is_fp8: true, ..self });
                }
                info => format!("{} has {}.{}", info.name, info.capability.0, info.capability.1),
            },
        };
        let what = format!(
            "products in FP8 need a CUDA device of compute capability {major}.{minor} or more, such as an L40S, an \
             H100 or a B200: {has}"
        );
        Err(Error::Environment { what })
    }

    /// Whether linear layers multiply in FP8.
    pub fn is_fp8(&self) -> bool {
        self.is_fp8
    }

    /// What keys and values are stored as.
    pub fn kv_dtype(&self) -> Dtype {
        match self.dtype {
            Dtype::F32 if !self.is_cuda() => self.kv_dtype,
            dtype => dtype,
        }
    }

    /// What models multiply with and store activations as.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> Isa {
        self.cpu.isa
    }

    /// Threads that share a kernel's work.
    pub fn threads(&self) -> usize {
        self.cpu.pool.threads()
    }

    /// Calls `f` with every index below `count`, spread over the threads. Indices must write disjoint
    /// outputs.
    pub fn run(&self, count: usize, f: impl Fn(usize) + Sync) {
        self.cpu.pool.run(count, &f);
    }

    /// Splits `0..len` in blocks of `block` and calls `f(start, end)` for each, spread over the threads.
    pub fn run_blocks(&self, len: usize, block: usize, f: impl Fn(usize, usize) + Sync) {
        assert!(block > 0, "a block holds at least one element");
        self.run(len.div_ceil(block), |i| f(i * block, ((i + 1) * block).min(len)));
    }

    /// A buffer of `len` floats with unspecified (but initialised) contents.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        if len < KEPT_LEN_MIN {
            return vec![0.0; len];
        }
        let (found, shed) = self.buffers().take(len);
        // Outside the lock, because returning memory to the system takes long; before more is asked for.
        drop(shed);
        found.unwrap_or_else(|| vec![0.0; len])
    }

    /// Takes back a buffer of [`Device::take`].
    pub(crate) fn give(&self, mut buffer: Vec<f32>) {
        let capacity = buffer.capacity();
        if capacity < KEPT_LEN_MIN {
            return;
        }
        buffer.resize(capacity, 0.0);
        let shed = self.buffers().give(buffer);
        drop(shed);
    }

    /// Lends `len` floats with unspecified contents.
    pub(crate) fn with_scratch<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut scratch = self.take(len);
        let result = f(&mut scratch);
        self.give(scratch);
        result
    }

    /// Returns every kept buffer to the system, and forgets how much was in use at once.
    pub fn trim(&self) {
        if let Some(gpu) = &self.gpu {
            gpu.context().trim();
        }
        let mut buffers = self.buffers();
        let in_use_bytes = buffers.in_use_bytes;
        *buffers = Buffers { in_use_bytes, in_use_bytes_max: in_use_bytes, ..Buffers::default() };
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.cpu.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    /// A kept buffer of about `len` floats, if there is one, and what has to go before a fresh one is made.
    fn take(&mut self, len: usize) -> (Option<Vec<f32>>, Vec<Vec<f32>>) {
        let shortest = self.kept.partition_point(|kept| kept.len() < len);
        let fitting = self.kept.get(shortest).map(Vec::len).filter(|&kept| kept <= len + len / 4);
        let found = fitting.map(|capacity| self.remove(capacity));
        self.in_use_bytes += fitting.unwrap_or(len) * size_of::<f32>();
        self.in_use_bytes_max = self.in_use_bytes_max.max(self.in_use_bytes);
        let found = found.map(|mut buffer| {
            buffer.truncate(len);
            buffer
        });
        (found, self.shed())
    }

    /// Keeps a buffer that was in use. Returns what has to go.
    fn give(&mut self, buffer: Vec<f32>) -> Vec<Vec<f32>> {
        let bytes = size_of_val(buffer.as_slice());
        self.in_use_bytes = self.in_use_bytes.saturating_sub(bytes);
        self.kept_bytes += bytes;
        let behind = self.kept.partition_point(|kept| kept.len() <= buffer.len());
        self.kept.insert(behind, buffer);
        self.shed()
    }

    /// What is kept beyond the bound; large buffers first, because then few have to be made again.
    fn shed(&mut self) -> Vec<Vec<f32>> {
        let mut shed = Vec::new();
        while self.in_use_bytes + self.kept_bytes > self.in_use_bytes_max + SPARE_BYTES_MAX {
            let Some(largest) = self.kept.last().map(Vec::len) else { break };
            shed.push(self.remove(largest));
        }
        shed
    }

    /// The buffer of a length that was freed last; there must be one.
    fn remove(&mut self, len: usize) -> Vec<f32> {
        let behind = self.kept.partition_point(|kept| kept.len() <= len);
        let buffer = self.kept.remove(behind - 1);
        self.kept_bytes -= size_of_val(buffer.as_slice());
        buffer
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.gpu {
            Some(gpu) => {
                let fp8 = if self.is_fp8 { ", fp8" } else { "" };
                write!(f, "cuda({}, {}{fp8})", gpu.context().info().name, self.dtype)
            }
            None => write!(f, "cpu({}, {} threads, {})", self.isa(), self.threads(), self.dtype),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is done beside is computed as on the device itself, or sampler and learner wouldn't agree.
    #[test]
    fn a_device_beside_another_computes_as_it_does() {
        let context = crate::ops::check::contexts()[0].clone();
        let gpu = Device::cpu(1).with_context(context).with_dtype(Dtype::Bf16);
        let cpu = Device::cpu(1).with_kv_dtype(Dtype::Bf16);
        for device in [gpu.clone(), gpu.with_fp8().unwrap(), cpu] {
            let beside = device.beside(2).unwrap();
            let how = |d: &Device| (d.is_cuda(), d.dtype(), d.kv_dtype(), d.is_fp8(), d.isa());
            assert_eq!((how(&beside), beside.threads()), (how(&device), 2));
        }
    }

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

    /// Floats of a MiB.
    const MIB_LEN: usize = (1 << 20) / size_of::<f32>();

    /// Goal: what a device holds is at most what was in use at once, and the spare. Method: batches of growing
    /// size, no two of which fit each other's buffers.
    #[test]
    fn kept_buffers_add_no_more_than_the_spare_to_what_was_in_use_at_once() {
        let device = Device::cpu(1);
        let mut in_use_max = 0;
        for size in [10, 20, 40, 80, 30, 15, 50, 100] {
            let buffers: Vec<Vec<f32>> = (0..3).map(|_| device.take(size * MIB_LEN)).collect();
            in_use_max = in_use_max.max((3 * size) << 20);
            buffers.into_iter().for_each(|buffer| device.give(buffer));
            let held = device.buffers();
            assert_eq!((held.in_use_bytes, held.in_use_bytes_max), (0, in_use_max));
            assert!(held.kept_bytes <= in_use_max + SPARE_BYTES_MAX, "{size}: {}", held.kept_bytes);
            let counted: usize = held.kept.iter().map(|kept| 4 * kept.len()).sum();
            assert_eq!(held.kept_bytes, counted);
        }
    }

    #[test]
    fn what_is_in_use_leaves_no_room_for_what_is_kept() {
        let device = Device::cpu(1);
        device.give(device.take(200 * MIB_LEN));
        assert_eq!(device.buffers().kept_bytes, 200 << 20);
        let held: Vec<Vec<f32>> = (0..5).map(|_| device.take(40 * MIB_LEN)).collect();
        assert_eq!(device.buffers().kept_bytes, 0, "200 MiB are in use, and 64 MiB may be spare");
        held.into_iter().for_each(|buffer| device.give(buffer));
        device.trim();
        assert_eq!(device.buffers().kept_bytes, 0);
        assert_eq!(device.buffers().in_use_bytes_max, 0);
    }

    #[test]
    fn fp8_is_for_devices_that_multiply_in_it() {
        use aha_emulate::{Emulated, ORDERS};
        let refused = |device: Device| device.with_fp8().unwrap_err().to_string();
        assert!(refused(Device::cpu(1)).contains("there is none"));
        let with = |capability| {
            let emulated = Emulated::with_capability(ORDERS[0], 1 << 20, capability);
            Device::cpu(1).with_context(Context::new(emulated))
        };
        assert!(refused(with((8, 6))).ends_with("emulated has 8.6"), "{}", refused(with((8, 6))));
        assert!(with((8, 9)).with_fp8().unwrap().is_fp8());
    }

    #[test]
    fn a_much_smaller_tensor_does_not_take_a_large_buffer() {
        let device = Device::cpu(1);
        device.give(vec![0.0; 100_000]);
        assert!(device.take(2000).capacity() < 10_000);
    }
}
