//! What a device is asked to do: memory, copies, launches and products in the order of streams.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::link::Link;
use crate::{Error, Source};

/// An address in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ptr(pub u64);

impl Ptr {
    /// The address so many bytes further on.
    pub fn plus(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// What elements of device memory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an `f32`.
    Bf16,
    /// Unsigned 32-bit integers: tokens, positions, rows.
    U32,
    /// Unsigned 64-bit integers: addresses of draws.
    U64,
    /// IEEE 754 double precision: sums of sampling and of norms.
    F64,
    /// Bytes: e4m3 numbers.
    U8,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 | Kind::U32 => 4,
            Kind::Bf16 => 2,
            Kind::F64 | Kind::U64 => 8,
            Kind::U8 => 1,
        }
    }
}

/// As the names of kernels have it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::F32 => "f32",
            Kind::Bf16 => "bf16",
            Kind::U32 => "u32",
            Kind::U64 => "u64",
            Kind::F64 => "f64",
            Kind::U8 => "u8",
        })
    }
}

/// A queue of work: what is on one happens in order, what is on several at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(pub u32);

impl Stream {
    /// The one that every driver has from the start.
    pub const MAIN: Stream = Stream(0);
}

/// A moment on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// Work that was captured from a stream, to be done again at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// What a launch may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads of a block.
    pub threads_max: u32,
    /// Bytes of shared memory of a block, those included that must be asked for.
    pub shared_bytes_max: u32,
    /// Blocks in x, y and z.
    pub grid_max: [u32; 3],
}

impl Limits {
    /// Those of compute capability 8.0 (A100).
    pub const SM_80: Limits = Limits { shared_bytes_max: 163 << 10, ..Limits::SM_90 };
    /// Those of compute capabilities 9.0 (H100, H200) and 10.0 (B200).
    pub const SM_90: Limits = Limits {
        threads_max: 1024,
        shared_bytes_max: 227 << 10,
        grid_max: [i32::MAX as u32, 65_535, 65_535],
    };
    /// Those that hold on every device which kernels are compiled for: of compute capability 8.6.
    pub const LEAST: Limits = Limits { shared_bytes_max: 99 << 10, ..Limits::SM_90 };
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessor_count: u32,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// What a launch may ask for.
    pub limits: Limits,
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// That nobody uses.
    pub free_bytes: usize,
    /// All of it.
    pub total_bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer, also a null pointer for what is absent.
    Ptr(Ptr),
    /// An unsigned number.
    U32(u32),
    /// A long unsigned number.
    U64(u64),
    /// A float.
    F32(f32),
    /// A double.
    F64(f64),
}

impl Arg {
    /// What a kernel takes for a buffer that is absent.
    pub const NULL: Arg = Arg::Ptr(Ptr(0));

    /// Bytes of the parameter.
    pub fn bytes(&self) -> usize {
        match self {
            Arg::Ptr(_) | Arg::U64(_) | Arg::F64(_) => 8,
            Arg::U32(_) | Arg::F32(_) => 4,
        }
    }

    /// The value in the first bytes of a word.
    pub fn word(&self) -> u64 {
        match *self {
            Arg::Ptr(ptr) => ptr.0,
            Arg::U64(x) => x,
            Arg::F64(x) => x.to_bits(),
            Arg::U32(x) => u64::from(x),
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }
}

/// Which kernel runs on how many threads: a pure function of shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the kernel is.
    pub source: &'static Source,
    /// Its name.
    pub kernel: Cow<'static, str>,
    /// Blocks in x, y and z. No kernel runs where one is 0.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Plan {
    /// So many blocks in x of so many threads in x.
    pub fn new(
        source: &'static Source,
        kernel: impl Into<Cow<'static, str>>,
        blocks: usize,
        threads: u32,
    ) -> Plan {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        Plan {
            source,
            kernel: kernel.into(),
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Whether a device with these limits can run it; what is too much, if not.
    pub fn check(&self, limits: &Limits) -> Result<(), String> {
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        if threads == 0 || threads > u64::from(limits.threads_max) {
            return Err(format!("{threads} threads of a block, at most {}", limits.threads_max));
        }
        if self.shared_bytes > limits.shared_bytes_max {
            let max = limits.shared_bytes_max;
            return Err(format!("{} bytes of shared memory, at most {max}", self.shared_bytes));
        }
        match self.grid.iter().zip(&limits.grid_max).position(|(n, max)| n > max) {
            Some(axis) => Err(format!(
                "{} blocks on axis {axis}, at most {}",
                self.grid[axis], limits.grid_max[axis]
            )),
            None => Ok(()),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// A kernel with its arguments.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Which, and on how many threads.
    pub plan: &'a Plan,
    /// In the order of the kernel's parameters.
    pub args: &'a [Arg],
}

/// A factor of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Its first element.
    pub at: Ptr,
    /// `F32` or `Bf16`; both factors have the same.
    pub kind: Kind,
    /// Whether what is stored are the rows of the factor's transpose.
    pub is_transposed: bool,
    /// Elements from one stored row to the next.
    pub row_stride: usize,
}

/// A matrix product, all row-major: `c (m, n) = alpha · a (m, k) · b (k, n) + beta · c + bias (n)`.
///
/// With bf16 factors, products are exact and sums are `f32`. The order of an element's sum depends on the shape and
/// kinds but for `m` where `a` is not transposed: rows of activations have the same bits in any company.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of an element's sum.
    pub k: usize,
    /// The left factor.
    pub a: Operand,
    /// The right factor.
    pub b: Operand,
    /// The result's first element.
    pub c: Ptr,
    /// What the result's elements are.
    pub c_kind: Kind,
    /// Elements from one row of the result to the next.
    pub c_stride: usize,
    /// Factor of the sums.
    pub alpha: f32,
    /// Factor of what is there; what is there isn't read if it is 0.
    pub beta: f32,
    /// Added to each row; of the kind of the result.
    pub bias: Option<Ptr>,
}

/// A device with its memory and streams. All calls may come from any thread.
///
/// Calls that are on a stream return before the work is done. Memory that they use must stay what it is until
/// then, which [`Driver::synchronize`] waits for; memory of the device that is used again on the same stream needs no
/// wait. That is why they are `unsafe`.
///
/// Between [`Driver::begin_capture`] and [`Driver::end_capture`] what comes on that stream is not done but captured;
/// no memory may be allocated, freed or waited for meanwhile.
pub trait Driver: Any + fmt::Debug + Send + Sync {
    /// What the device is.
    fn info(&self) -> &Info;

    /// How much of its memory is free.
    fn memory(&self) -> Result<Memory, Error>;

    /// Memory of the device, at a multiple of 256 bytes, with unspecified contents.
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error>;

    /// Gives memory back, after all work that was asked for.
    ///
    /// # Safety
    /// `at` is of [`Driver::alloc`], and nobody uses it after this.
    unsafe fn free(&self, at: Ptr);

    /// Memory of the host that copies don't have to wait for.
    fn alloc_pinned(&self, bytes: usize) -> Result<NonNull<u8>, Error>;

    /// Gives memory of the host back.
    ///
    /// # Safety
    /// `at` is of [`Driver::alloc_pinned`] with this length, and no copy uses it any more.
    unsafe fn free_pinned(&self, at: NonNull<u8>, bytes: usize);

    /// One more stream.
    fn stream(&self) -> Result<Stream, Error>;

    /// Waits until all that is on the stream is done. Shows errors of it.
    fn synchronize(&self, stream: Stream) -> Result<(), Error>;

    /// What comes on `after` from now on waits for what is on `before` now.
    fn join(&self, before: Stream, after: Stream) -> Result<(), Error>;

    /// Copies from the host. Memory that isn't pinned may be changed as soon as this returns.
    ///
    /// # Safety
    /// Both sides have so many bytes; pinned memory stays unchanged until the copy is done.
    unsafe fn copy_in(
        &self,
        to: Ptr,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error>;

    /// Copies to the host. What is there is to be read after [`Driver::synchronize`].
    ///
    /// # Safety
    /// Both sides have so many bytes, until the copy is done.
    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: Ptr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error>;

    /// Copies inside of the device, between parts that don't overlap.
    ///
    /// # Safety
    /// Both sides have so many bytes.
    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: usize, stream: Stream) -> Result<(), Error>;

    /// Sets bytes.
    ///
    /// # Safety
    /// There are so many.
    unsafe fn fill(&self, to: Ptr, byte: u8, bytes: usize, stream: Stream) -> Result<(), Error>;

    /// Runs a kernel. The first launch from a source compiles it or reads what was compiled before.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and it stays within their memory.
    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), Error>;

    /// Multiplies matrices.
    ///
    /// # Safety
    /// The operands have as many elements as they must, and the result overlaps neither.
    unsafe fn product(&self, product: &Product, stream: Stream) -> Result<(), Error>;

    /// The moment after what is on the stream now.
    fn record(&self, stream: Stream) -> Result<Event, Error>;

    /// Milliseconds between two moments on one stream; waits for the later one. Forgets both.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, Error>;

    /// Captures what comes on this stream.
    fn begin_capture(&self, stream: Stream) -> Result<(), Error>;

    /// What was captured.
    fn end_capture(&self, stream: Stream) -> Result<Graph, Error>;

    /// Does what was captured.
    ///
    /// # Safety
    /// All memory that was used when it was captured is still there.
    unsafe fn replay(&self, graph: Graph, stream: Stream) -> Result<(), Error>;

    /// Connects devices, of which this is the first and all are of its kind; links in their order.
    fn connect(&self, drivers: &[Arc<dyn Driver>]) -> Result<Vec<Arc<dyn Link>>, Error> {
        Err(Error::Missing {
            what: format!("nothing connects {} devices of this kind", drivers.len()),
            remedy: "use one".into(),
        })
    }

    /// Forgets what was captured; it isn't under way any more.
    fn drop_graph(&self, graph: Graph);
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOURCE: Source = Source { name: "none.cu", text: "" };

    #[test]
    fn a_plan_past_a_limit_is_named() {
        let plan = Plan::new(&SOURCE, "none", 10, 256);
        assert_eq!(plan.check(&Limits::SM_90), Ok(()));
        let too_many = |plan: Plan| plan.check(&Limits::SM_90).unwrap_err();
        assert_eq!(
            too_many(Plan { block: [64, 32, 1], ..plan.clone() }),
            "2048 threads of a block, at most 1024"
        );
        assert_eq!(
            too_many(Plan { shared_bytes: 233_000, ..plan.clone() }),
            "233000 bytes of shared memory, at most 232448"
        );
        assert_eq!(
            too_many(Plan { grid: [1, 70_000, 1], ..plan.clone() }),
            "70000 blocks on axis 1, at most 65535"
        );
        assert_eq!(
            too_many(Plan::new(&SOURCE, "none", usize::MAX, 1)),
            "4294967295 blocks on axis 0, at most 2147483647"
        );
        assert!(Plan { grid: [1, 0, 1], ..plan }.is_empty());
    }

    #[test]
    fn words_hold_values_in_their_first_bytes() {
        assert_eq!(Arg::F32(1.0).word().to_le_bytes()[..4], 1.0f32.to_le_bytes());
        assert_eq!(Arg::U32(7).word(), 7);
        assert_eq!([Arg::U32(7).bytes(), Arg::NULL.bytes(), Arg::F64(0.0).bytes()], [4, 8, 8]);
    }
}
