//! The device: memory of this process, with guards; work is done as soon as it is asked for.

use std::collections::HashMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aha_cuda::driver::{Event, Graph, Memory};
use aha_cuda::link::Link;
use aha_cuda::{Arg, Driver, Error, Info, Launch, Limits, Plan, Product, Ptr, Stream};

use crate::library::Library;
use crate::link;
use crate::product::{self, Sums};

/// In which order threads and blocks run. What lacks a barrier differs between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By their indices.
    Forward,
    /// The opposite.
    Backward,
}

/// Both orders.
pub const ORDERS: [Order; 2] = [Order::Forward, Order::Backward];

/// Bytes around each allocation that nobody may write.
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;
/// What fresh memory holds: as f32 and as bf16, NaNs.
const FRESH: u8 = 0xff;

/// A device that is the processor.
pub struct Emulated {
    info: Info,
    order: Order,
    sums: Sums,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address.
    held: HashMap<u64, Held>,
    held_bytes: usize,
    stream_count: u32,
    event_count: u64,
    /// Streams that capture, with what they have so far.
    capturing: HashMap<Stream, Vec<Work>>,
    graphs: HashMap<u64, Arc<Vec<Work>>>,
    graph_count: u64,
    calls: Calls,
}

/// How often the host asked the device for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Memory, also pinned.
    pub allocs: u64,
    /// Copies from the host.
    pub copies_in: u64,
    /// Copies to the host.
    pub copies_out: u64,
    /// Copies inside of the device, and bytes set.
    pub copies: u64,
    /// Kernels.
    pub launches: u64,
    /// Products.
    pub products: u64,
    /// Replays of what was captured.
    pub replays: u64,
    /// Captures.
    pub captures: u64,
    /// Waits for the stream.
    pub waits: u64,
}

impl Calls {
    /// Those since `before`.
    pub fn since(&self, before: &Calls) -> Calls {
        Calls {
            allocs: self.allocs - before.allocs,
            copies_in: self.copies_in - before.copies_in,
            copies_out: self.copies_out - before.copies_out,
            copies: self.copies - before.copies,
            launches: self.launches - before.launches,
            products: self.products - before.products,
            replays: self.replays - before.replays,
            captures: self.captures - before.captures,
            waits: self.waits - before.waits,
        }
    }

    /// All that take the host's time in each step.
    pub fn total(&self) -> u64 {
        let Calls { allocs, copies_in, copies_out, copies, launches, products, replays, .. } = self;
        allocs + copies_in + copies_out + copies + launches + products + replays + self.waits
    }
}

/// An allocation, with guards around it.
#[derive(Clone, Copy)]
struct Held {
    /// Where the memory begins that it is a part of.
    start: usize,
    bytes: usize,
}

/// What a stream does.
#[derive(Clone, Debug)]
enum Work {
    CopyIn(Ptr, usize, usize),
    CopyOut(usize, Ptr, usize),
    Copy(Ptr, Ptr, usize),
    Fill(Ptr, u8, usize),
    Launch(Plan, Vec<Arg>),
    Product(Box<Product>),
}

impl Emulated {
    /// A device with so much memory, whose threads run in this order.
    pub fn new(order: Order, memory_bytes: usize) -> Arc<Emulated> {
        Emulated::with(order, memory_bytes, Sums::InOrder, (9, 0))
    }

    /// The same, whose library sums products so.
    pub fn with_sums(order: Order, memory_bytes: usize, sums: Sums) -> Arc<Emulated> {
        Emulated::with(order, memory_bytes, sums, (9, 0))
    }

    /// As [`Emulated::new`], of this compute capability as far as programs ask for it: kernels can do all there is.
    pub fn with_capability(
        order: Order,
        memory_bytes: usize,
        capability: (u32, u32),
    ) -> Arc<Emulated> {
        Emulated::with(order, memory_bytes, Sums::InOrder, capability)
    }

    fn with(
        order: Order,
        memory_bytes: usize,
        sums: Sums,
        capability: (u32, u32),
    ) -> Arc<Emulated> {
        let info = Info {
            name: "emulated".into(),
            capability,
            multiprocessor_count: 132,
            memory_bytes,
            limits: Limits::LEAST,
        };
        let state = State { stream_count: 1, ..State::default() };
        Arc::new(Emulated { info, order, sums, state: Mutex::new(state) })
    }

    /// One for each order, with memory for tests.
    pub fn both() -> [Arc<Emulated>; 2] {
        ORDERS.map(|order| Emulated::new(order, 4 << 30))
    }

    /// What it was asked for until now, but for what was captured.
    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it now, or notes it where the stream captures.
    fn ask(&self, work: Work, stream: Stream) -> Result<(), Error> {
        let mut state = self.state();
        assert!(stream.0 < state.stream_count, "{stream:?} was never made");
        if let Some(captured) = state.capturing.get_mut(&stream) {
            captured.push(work);
            return Ok(());
        }
        let calls = &mut state.calls;
        *match work {
            Work::CopyIn(..) => &mut calls.copies_in,
            Work::CopyOut(..) => &mut calls.copies_out,
            Work::Copy(..) | Work::Fill(..) => &mut calls.copies,
            Work::Launch(..) => &mut calls.launches,
            Work::Product(..) => &mut calls.products,
        } += 1;
        drop(state);
        self.work(&work)
    }

    fn work(&self, work: &Work) -> Result<(), Error> {
        // SAFETY: device memory is memory of this process, and lengths are what callers of the driver promise.
        unsafe {
            match work {
                Work::CopyIn(to, from, bytes) => {
                    std::ptr::copy(*from as *const u8, to.0 as *mut u8, *bytes);
                }
                Work::CopyOut(to, from, bytes) => {
                    std::ptr::copy(from.0 as *const u8, *to as *mut u8, *bytes);
                }
                Work::Copy(to, from, bytes) => {
                    std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, *bytes);
                }
                Work::Fill(to, byte, bytes) => {
                    std::ptr::write_bytes(to.0 as *mut u8, *byte, *bytes);
                }
                Work::Launch(plan, args) => {
                    Library::of(plan.source)?.launch(plan, args, self.order)?;
                    self.check_guards(&plan.kernel);
                }
                Work::Product(product) => product::product(product, self.sums),
            }
        }
        Ok(())
    }

    /// Panics where somebody wrote around an allocation.
    fn check_guards(&self, kernel: &str) {
        for (&at, held) in &self.state().held {
            for guard in [at as usize - GUARD_BYTES, at as usize + held.bytes] {
                // SAFETY: guards are part of the allocation.
                let bytes = unsafe { std::slice::from_raw_parts(guard as *const u8, GUARD_BYTES) };
                assert!(bytes.iter().all(|b| *b == GUARD), "{kernel} wrote outside of a buffer");
            }
        }
    }
}

/// Panics are for what a test must not get past; [`Error`]s for what a device would answer.
impl Driver for Emulated {
    fn info(&self) -> &Info {
        &self.info
    }

    fn memory(&self) -> Result<Memory, Error> {
        let total_bytes = self.info.memory_bytes;
        Ok(Memory { free_bytes: total_bytes - self.state().held_bytes, total_bytes })
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        let total_bytes = self.info.memory_bytes;
        let mut state = self.state();
        assert!(state.capturing.is_empty(), "memory is allocated while a stream captures");
        if state.held_bytes + bytes > total_bytes {
            let in_use_bytes = state.held_bytes;
            return Err(Error::OutOfMemory { asked_bytes: bytes, in_use_bytes, total_bytes });
        }
        state.calls.allocs += 1;
        let memory = vec![FRESH; bytes + 3 * GUARD_BYTES].leak();
        let start = memory.as_mut_ptr() as usize;
        let at = start.next_multiple_of(GUARD_BYTES) + GUARD_BYTES;
        for guard in [at - GUARD_BYTES, at + bytes] {
            let guard = guard - start;
            memory[guard..guard + GUARD_BYTES].fill(GUARD);
        }
        state.held.insert(at as u64, Held { start, bytes });
        state.held_bytes += bytes;
        Ok(Ptr(at as u64))
    }

    unsafe fn free(&self, at: Ptr) {
        if !std::thread::panicking() {
            self.check_guards("something");
        }
        let mut state = self.state();
        assert!(state.capturing.is_empty(), "memory is freed while a stream captures");
        let held = state.held.remove(&at.0).expect("memory that is freed was allocated");
        let Held { start, bytes } = held;
        state.held_bytes -= bytes;
        let len = bytes + 3 * GUARD_BYTES;
        // SAFETY: it was leaked with this length and capacity.
        drop(unsafe { Vec::from_raw_parts(start as *mut u8, len, len) });
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<NonNull<u8>, Error> {
        self.state().calls.allocs += 1;
        // Words, so that it is aligned for every element.
        Ok(NonNull::from(vec![u64::MAX; bytes.div_ceil(8)].leak()).cast())
    }

    unsafe fn free_pinned(&self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: it was leaked with this length and capacity.
        let len = bytes.div_ceil(8);
        drop(unsafe { Vec::from_raw_parts(at.as_ptr().cast::<u64>(), len, len) });
    }

    fn stream(&self) -> Result<Stream, Error> {
        let mut state = self.state();
        state.stream_count += 1;
        Ok(Stream(state.stream_count - 1))
    }

    fn synchronize(&self, stream: Stream) -> Result<(), Error> {
        let mut state = self.state();
        state.calls.waits += 1;
        let is_capturing = state.capturing.contains_key(&stream);
        drop(state);
        assert!(!is_capturing || std::thread::panicking(), "a stream that captures is waited for");
        Ok(())
    }

    fn join(&self, _: Stream, _: Stream) -> Result<(), Error> {
        Ok(())
    }

    unsafe fn copy_in(
        &self,
        to: Ptr,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        self.ask(Work::CopyIn(to, from as usize, bytes), stream)
    }

    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: Ptr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        self.ask(Work::CopyOut(to as usize, from, bytes), stream)
    }

    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: usize, stream: Stream) -> Result<(), Error> {
        self.ask(Work::Copy(to, from, bytes), stream)
    }

    unsafe fn fill(&self, to: Ptr, byte: u8, bytes: usize, stream: Stream) -> Result<(), Error> {
        self.ask(Work::Fill(to, byte, bytes), stream)
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), Error> {
        self.ask(Work::Launch(launch.plan.clone(), launch.args.to_vec()), stream)
    }

    unsafe fn product(&self, product: &Product, stream: Stream) -> Result<(), Error> {
        self.ask(Work::Product(Box::new(*product)), stream)
    }

    fn record(&self, _: Stream) -> Result<Event, Error> {
        let mut state = self.state();
        state.event_count += 1;
        Ok(Event(state.event_count))
    }

    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f32, Error> {
        Ok(0.0)
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), Error> {
        let before = self.state().capturing.insert(stream, Vec::new());
        assert!(before.is_none(), "{stream:?} captures already");
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph, Error> {
        let mut state = self.state();
        let work = state.capturing.remove(&stream).expect("the stream captures");
        state.graph_count += 1;
        state.calls.captures += 1;
        let id = state.graph_count;
        state.graphs.insert(id, Arc::new(work));
        Ok(Graph(id))
    }

    unsafe fn replay(&self, graph: Graph, _: Stream) -> Result<(), Error> {
        let mut state = self.state();
        state.calls.replays += 1;
        let work = Arc::clone(state.graphs.get(&graph.0).expect("the graph is there"));
        drop(state);
        work.iter().try_for_each(|work| self.work(work))
    }

    fn connect(&self, drivers: &[Arc<dyn Driver>]) -> Result<Vec<Arc<dyn Link>>, Error> {
        Ok(link::connect(drivers))
    }

    fn drop_graph(&self, graph: Graph) {
        self.state().graphs.remove(&graph.0);
    }
}

impl fmt::Debug for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "emulated, {:?}", self.order)
    }
}
