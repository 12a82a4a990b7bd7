//! A device with one fault.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aha_compute::cuda::driver::{Event, Graph, Memory};
use aha_compute::cuda::{Arg, Driver, Error, Info, Launch, Product, Ptr, Stream};
use aha_emulate::Emulated;

/// What is wrong with a device.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Kernels whose names begin so do nothing.
    Lost(&'static str),
    /// Products are off by as much as TF32 is.
    Rounded,
    /// Draws are those of another seed.
    OtherKey,
    /// Every other product differs in its last bits.
    Unsteady,
    /// Products of few rows differ in their last bits.
    ByRows,
    /// Products of few rows differ by much more than rounding.
    ByRowsMuch,
    /// Captured work isn't done.
    NoReplay,
    /// Memory is given that isn't there.
    NoLimit,
    /// Copies inside of the device do nothing.
    LostCopies,
}

/// An emulated device with a fault.
#[derive(Debug)]
pub struct Spoilt {
    inner: Arc<Emulated>,
    fault: Fault,
    product_count: AtomicU64,
}

impl Spoilt {
    pub fn new(inner: Arc<Emulated>, fault: Fault) -> Spoilt {
        Spoilt { inner, fault, product_count: AtomicU64::new(0) }
    }

    /// The factor on a product.
    fn factor(&self, product: &Product) -> f32 {
        let count = self.product_count.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Rounded => 1.0 + 3e-4,
            // The count of products of a case is even as often as odd.
            Fault::Unsteady if count % 7 == 3 => 1.0 + 1e-6,
            Fault::ByRows if product.m < 4 => 1.0 + 1e-6,
            Fault::ByRowsMuch if product.m < 12 => 1.0 + 1e-3,
            _ => 1.0,
        }
    }
}

impl Driver for Spoilt {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn memory(&self) -> Result<Memory, Error> {
        self.inner.memory()
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        let total_bytes = self.inner.info().memory_bytes;
        let is_beyond = matches!(self.fault, Fault::NoLimit) && bytes > total_bytes;
        self.inner.alloc(if is_beyond { 256 } else { bytes })
    }

    unsafe fn free(&self, at: Ptr) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free(at) }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<NonNull<u8>, Error> {
        self.inner.alloc_pinned(bytes)
    }

    unsafe fn free_pinned(&self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free_pinned(at, bytes) }
    }

    fn stream(&self) -> Result<Stream, Error> {
        self.inner.stream()
    }

    fn synchronize(&self, stream: Stream) -> Result<(), Error> {
        self.inner.synchronize(stream)
    }

    fn join(&self, before: Stream, after: Stream) -> Result<(), Error> {
        self.inner.join(before, after)
    }

    unsafe fn copy_in(
        &self,
        to: Ptr,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_in(to, from, bytes, stream) }
    }

    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: Ptr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_out(to, from, bytes, stream) }
    }

    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: usize, stream: Stream) -> Result<(), Error> {
        if matches!(self.fault, Fault::LostCopies) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy(to, from, bytes, stream) }
    }

    unsafe fn fill(&self, to: Ptr, byte: u8, bytes: usize, stream: Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.fill(to, byte, bytes, stream) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), Error> {
        let mut args = launch.args.to_vec();
        match self.fault {
            Fault::Lost(name) if launch.plan.kernel.starts_with(name) => return Ok(()),
            Fault::OtherKey if launch.plan.kernel == "draw" => {
                let key = args.iter_mut().find(|arg| matches!(arg, Arg::U64(_)));
                *key.expect("the key of the draws") = Arg::U64(99);
            }
            _ => {}
        }
        // SAFETY: the caller's promise; a key is any number.
        unsafe { self.inner.launch(&Launch { plan: launch.plan, args: &args }, stream) }
    }

    unsafe fn product(&self, product: &Product, stream: Stream) -> Result<(), Error> {
        let product = Product { alpha: product.alpha * self.factor(product), ..*product };
        // SAFETY: the caller's promise.
        unsafe { self.inner.product(&product, stream) }
    }

    fn record(&self, stream: Stream) -> Result<Event, Error> {
        self.inner.record(stream)
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, Error> {
        self.inner.elapsed_ms(from, to)
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), Error> {
        self.inner.begin_capture(stream)
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph, Error> {
        self.inner.end_capture(stream)
    }

    unsafe fn replay(&self, graph: Graph, stream: Stream) -> Result<(), Error> {
        if matches!(self.fault, Fault::NoReplay) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph, stream) }
    }

    fn drop_graph(&self, graph: Graph) {
        self.inner.drop_graph(graph);
    }
}
