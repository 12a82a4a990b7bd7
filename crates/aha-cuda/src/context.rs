//! A device with a stream and memory, and buffers there.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use half::bf16;

use crate::driver::Graph;
use crate::pool::{Block, Pool, Stats};
use crate::{Arg, Driver, Error, Info, Kind, Launch, Operand, Plan, Probes, Product, Ptr, Stream};

/// A device, the stream on which its work is done in order, and its memory. Cloning it clones the handle.
#[derive(Clone, Debug)]
pub struct Context {
    device: Arc<Device>,
    stream: Stream,
}

#[derive(Debug)]
struct Device {
    driver: Arc<dyn Driver>,
    pool: Pool,
    probes: Probes,
    /// The stream on which products are probed, once one is.
    aside: OnceLock<Stream>,
    /// Whoever captures has it alone: what another thread asks of the device meanwhile would be captured too.
    captures: RwLock<()>,
}

thread_local! {
    /// Whether this thread captures.
    static CAPTURES: Cell<bool> = const { Cell::new(false) };
}

/// While a thread captures.
struct Alone<'a>(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'a, ()>);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        CAPTURES.set(false);
    }
}

impl Context {
    /// On the driver's first stream.
    pub fn new(driver: Arc<dyn Driver>) -> Context {
        let pool = Pool::new(Arc::clone(&driver));
        let (probes, aside, captures) = (Probes::default(), OnceLock::new(), RwLock::default());
        let device = Device { driver, pool, probes, aside, captures };
        Context { device: Arc::new(device), stream: Stream::MAIN }
    }

    /// The same device and memory, with a stream of its own.
    pub fn with_new_stream(&self) -> Result<Context, Error> {
        Ok(Context { device: Arc::clone(&self.device), stream: self.driver().stream()? })
    }

    /// The same device and memory, with the stream on which products are probed: what is done there, and the memory
    /// that it takes, is no part of a capture.
    pub fn aside(&self) -> Result<Context, Error> {
        if let Some(stream) = self.device.aside.get() {
            return Ok(Context { device: Arc::clone(&self.device), stream: *stream });
        }
        let made = self.with_new_stream()?;
        // Another thread may have made one meanwhile.
        let stream = *self.device.aside.get_or_init(|| made.stream);
        Ok(Context { stream, ..made })
    }

    /// What was found out about products of few rows on this device.
    pub fn probes(&self) -> &Probes {
        &self.device.probes
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.device.driver
    }

    /// The driver, to keep.
    pub fn shared_driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.device.driver)
    }

    /// What the device is.
    pub fn info(&self) -> &Info {
        self.driver().info()
    }

    /// The stream on which work is done.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether the other has the same device and memory.
    pub fn shares_memory(&self, other: &Context) -> bool {
        Arc::ptr_eq(&self.device, &other.device)
    }

    /// Held while something is asked of the device, which waits until no other thread captures. Not to be nested.
    fn asks(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if CAPTURES.get() {
            return None;
        }
        Some(self.device.captures.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Held while this thread captures.
    fn alone(&self) -> Alone<'_> {
        let held = self.device.captures.write().unwrap_or_else(PoisonError::into_inner);
        CAPTURES.set(true);
        Alone(held)
    }

    /// How memory is used.
    pub fn stats(&self) -> Stats {
        self.device.pool.stats()
    }

    /// Returns memory that is kept for later to the driver.
    pub fn trim(&self) {
        self.device.pool.trim();
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _asks = self.asks();
        self.driver().synchronize(self.stream)
    }

    /// Work that comes from now on waits for that of another context of the device.
    pub fn after(&self, other: &Context) -> Result<(), Error> {
        let _asks = self.asks();
        self.driver().join(other.stream, self.stream)
    }

    /// A buffer with unspecified contents.
    pub fn buffer(&self, kind: Kind, len: usize) -> Result<Buffer, Error> {
        let _asks = self.asks();
        let block = self.device.pool.take(len * kind.bytes(), self.stream)?;
        let memory = Some(Memory::Own(block));
        Ok(Buffer { context: self.clone(), memory, kind, len })
    }

    /// A buffer of zeros.
    pub fn zeros(&self, kind: Kind, len: usize) -> Result<Buffer, Error> {
        let mut buffer = self.buffer(kind, len)?;
        self.clear(&mut buffer.view_mut())?;
        Ok(buffer)
    }

    /// A copy of `values` on the device.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer, Error> {
        let mut buffer = self.buffer(T::KIND, values.len())?;
        self.write(&mut buffer.view_mut(), values)?;
        Ok(buffer)
    }

    /// Copies `values` to the device.
    pub fn write<T: Element>(&self, to: &mut ViewMut<'_>, values: &[T]) -> Result<(), Error> {
        to.assert_is(T::KIND, values.len());
        let (bytes, _asks) = (size_of_val(values), self.asks());
        // SAFETY: both sides have so many bytes, and what isn't pinned may change when this returns.
        unsafe { self.driver().copy_in(to.at, values.as_ptr().cast(), bytes, self.stream) }
    }

    /// A copy of what is on the device, once all work before it is done.
    pub fn download<T: Element>(&self, from: View<'_>) -> Result<Vec<T>, Error> {
        from.assert_is(T::KIND, from.len);
        let mut values = vec![T::ZERO; from.len];
        let (bytes, _asks) = (from.len * size_of::<T>(), self.asks());
        // SAFETY: both sides have so many bytes, and this waits for the copy.
        unsafe { self.driver().copy_out(values.as_mut_ptr().cast(), from.at, bytes, self.stream)? };
        self.driver().synchronize(self.stream)?;
        Ok(values)
    }

    /// Asks for a copy of what is on the device. It is there once this context's work is waited for.
    ///
    /// # Safety
    /// `to` is there until then, and nobody reads or writes it.
    pub unsafe fn copy_out<T: Element>(&self, to: &mut [T], from: View<'_>) -> Result<(), Error> {
        from.assert_is(T::KIND, to.len());
        let (bytes, _asks) = (size_of_val(to), self.asks());
        // SAFETY: both sides have so many bytes; the rest is the caller's promise.
        unsafe { self.driver().copy_out(to.as_mut_ptr().cast(), from.at, bytes, self.stream) }
    }

    /// Sets all elements to zero.
    pub fn clear(&self, to: &mut ViewMut<'_>) -> Result<(), Error> {
        let (bytes, _asks) = (to.len * to.kind.bytes(), self.asks());
        // SAFETY: the view has so many bytes.
        unsafe { self.driver().fill(to.at, 0, bytes, self.stream) }
    }

    /// Copies elements from buffer to buffer.
    pub fn copy(&self, to: &mut ViewMut<'_>, from: View<'_>) -> Result<(), Error> {
        to.assert_is(from.kind, from.len);
        let (bytes, _asks) = (from.len * from.kind.bytes(), self.asks());
        // SAFETY: both sides have so many bytes; what is written is borrowed alone, so they don't overlap.
        unsafe { self.driver().copy(to.at, from.at, bytes, self.stream) }
    }

    /// Does `work` once, then captures it, so that it can be done again at one call.
    ///
    /// `work` runs twice: what it does the first time counts, and makes sure that kernels are loaded and memory is
    /// there; the second time nothing is done, and what other threads ask of the device waits. Both times it must ask
    /// for the same. Memory that it takes and frees is kept in the workspace.
    ///
    /// # Safety
    /// All buffers that `work` uses and doesn't make itself are there whenever the result is replayed. What it leaves
    /// in memory of the workspace is not read later, since all work that was captured in one workspace writes there.
    pub unsafe fn capture(
        &self,
        workspace: &Workspace,
        mut work: impl FnMut(&Context) -> Result<(), Error>,
    ) -> Result<Captured, Error> {
        let mut blocks = workspace.blocks();
        self.device.pool.hold(self.stream, std::mem::take(&mut *blocks));
        let graph = work(self).and_then(|()| {
            let _alone = self.alone();
            self.driver().begin_capture(self.stream)?;
            let worked = work(self);
            // Ended in any case, or the stream could not be used any more.
            let graph = self.driver().end_capture(self.stream);
            match (worked, graph) {
                (Ok(()), graph) => graph,
                (Err(error), Ok(graph)) => {
                    self.driver().drop_graph(graph);
                    Err(error)
                }
                (Err(error), Err(_)) => Err(error),
            }
        });
        *blocks = self.device.pool.release(self.stream);
        drop(blocks);
        Ok(Captured { context: self.clone(), graph: graph?, _workspace: workspace.clone() })
    }

    /// Runs a kernel, if there is anything to do.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and it stays within the buffers that they point to.
    pub unsafe fn launch(&self, plan: &Plan, args: &[Arg]) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        if let Err(what) = plan.check(&self.info().limits) {
            return Err(Error::Kernel { kernel: plan.kernel.to_string(), what });
        }
        let _asks = self.asks();
        // SAFETY: the caller's promise.
        unsafe { self.driver().launch(&Launch { plan, args }, self.stream) }
    }

    /// `c (m, n) = alpha · op(a) · op(b) + beta · c + bias`, all row-major and without gaps.
    pub fn product(
        &self,
        c: &mut ViewMut<'_>,
        [m, n, k]: [usize; 3],
        (a, a_is_transposed): (View<'_>, bool),
        (b, b_is_transposed): (View<'_>, bool),
        bias: Option<View<'_>>,
        (alpha, beta): (f32, f32),
    ) -> Result<(), Error> {
        c.assert_is(c.kind, m * n);
        a.assert_is(a.kind, m * k);
        b.assert_is(a.kind, k * n);
        if let Some(bias) = bias {
            bias.assert_is(c.kind, n);
        }
        if m * n == 0 {
            return Ok(());
        }
        let operand = |view: View<'_>, is_transposed, [rows, cols]: [usize; 2]| Operand {
            at: view.at,
            kind: view.kind,
            is_transposed,
            row_stride: if is_transposed { rows } else { cols },
        };
        let product = Product {
            m,
            n,
            k,
            a: operand(a, a_is_transposed, [m, k]),
            b: operand(b, b_is_transposed, [k, n]),
            c: c.at,
            c_kind: c.kind,
            c_stride: n,
            alpha,
            beta,
            bias: bias.map(|bias| bias.at),
        };
        let _asks = self.asks();
        // SAFETY: lengths are asserted above, and what is written is borrowed alone.
        unsafe { self.driver().product(&product, self.stream) }
    }
}

/// Memory that captured work takes and frees. Work that is never under way at once shares one: that of a stream.
/// Cloning it clones the handle; the memory goes back when nobody has one any more.
#[derive(Clone, Debug)]
pub struct Workspace(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    context: Context,
    blocks: Mutex<Vec<Block>>,
}

impl Workspace {
    /// With nothing in it, for work of this stream.
    pub fn new(context: &Context) -> Workspace {
        Workspace(Arc::new(Kept { context: context.clone(), blocks: Mutex::default() }))
    }

    /// Whether it is for work of this stream.
    pub fn is_of(&self, context: &Context) -> bool {
        let own = &self.0.context;
        Arc::ptr_eq(&own.device, &context.device) && own.stream == context.stream
    }

    /// Bytes that it has.
    pub fn bytes(&self) -> usize {
        self.blocks().iter().map(|block| block.bytes).sum()
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<Block>> {
        self.0.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Kept { context, blocks } = self;
        for block in blocks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            context.device.pool.give(block, context.stream);
        }
    }
}

/// Work that was captured.
#[derive(Debug)]
pub struct Captured {
    context: Context,
    graph: Graph,
    /// The memory that it takes and frees.
    _workspace: Workspace,
}

impl Captured {
    /// Does it again.
    ///
    /// # Safety
    /// What [`Context::capture`] asks for: the buffers are there.
    pub unsafe fn replay(&self) -> Result<(), Error> {
        let _asks = self.context.asks();
        // SAFETY: memory of its own is held, and the other is the caller's promise.
        unsafe { self.context.driver().replay(self.graph, self.context.stream) }
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // It may be under way; an error of it shows at the next call.
        let _ = self.context.synchronize();
        self.context.driver().drop_graph(self.graph);
    }
}

/// Memory of the host that copies don't have to wait for.
pub struct Pinned<T: Element> {
    context: Context,
    at: NonNull<u8>,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: it owns its memory, and the driver is called from any thread.
unsafe impl<T: Element + Send> Send for Pinned<T> {}
// SAFETY: as above; what is shared is only read.
unsafe impl<T: Element + Sync> Sync for Pinned<T> {}

impl<T: Element> Pinned<T> {
    /// Zeros.
    pub fn new(context: &Context, len: usize) -> Result<Pinned<T>, Error> {
        let asks = context.asks();
        let at = context.driver().alloc_pinned(len * size_of::<T>())?;
        drop(asks);
        let mut pinned = Pinned { context: context.clone(), at, len, of: PhantomData };
        // SAFETY: the memory is as long, and aligned as the driver aligns memory: for every element.
        unsafe { std::ptr::write_bytes(at.as_ptr(), 0, len * size_of::<T>()) };
        pinned.fill(T::ZERO);
        Ok(pinned)
    }

    /// Copies a view to the first elements here, and waits for it and for all that is on the stream before.
    pub fn read(&mut self, from: View<'_>) -> Result<(), Error> {
        from.assert_is(T::KIND, from.len);
        assert!(from.len <= self.len, "{} elements, and room for {}", from.len, self.len);
        let (context, bytes) = (&self.context, from.len * size_of::<T>());
        let _asks = context.asks();
        // SAFETY: both sides have so many bytes, and this waits for the copy.
        unsafe { context.driver().copy_out(self.at.as_ptr(), from.at, bytes, context.stream)? };
        context.driver().synchronize(context.stream)
    }

    /// Asks for a copy of the first elements here, as many as the view has, which may be captured.
    ///
    /// # Safety
    /// What is here stays as it is, and is not dropped, until the copy is done.
    pub unsafe fn write(&self, to: &mut ViewMut<'_>) -> Result<(), Error> {
        to.assert_is(T::KIND, to.len);
        assert!(to.len <= self.len, "room for {} elements, of {}", to.len, self.len);
        let (context, bytes) = (&self.context, to.len * size_of::<T>());
        let _asks = context.asks();
        // SAFETY: both sides have so many bytes; the rest is the caller's promise.
        unsafe { context.driver().copy_in(to.at, self.at.as_ptr(), bytes, context.stream) }
    }
}

impl<T: Element> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many elements were written when it was made.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }
}

impl<T: Element> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.len) }
    }
}

impl<T: Element> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this length; copies are waited for, or the caller's promise.
        unsafe { self.context.driver().free_pinned(self.at, self.len * size_of::<T>()) };
    }
}

impl<T: Element> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}, pinned", self.len, T::KIND)
    }
}

/// Elements in a device's memory. What is freed is used again by work that comes later on its context's stream.
pub struct Buffer {
    context: Context,
    /// None once it is freed.
    memory: Option<Memory>,
    kind: Kind,
    len: usize,
}

/// Whose memory a buffer is in.
enum Memory {
    Own(Block),
    /// Another's, from there on.
    Part {
        _whole: Arc<Buffer>,
        at: Ptr,
    },
}

impl Buffer {
    /// Some elements of another as a buffer, for what are many but used as one as well. It keeps the other's memory.
    ///
    /// # Safety
    /// What is asked of the device at once writes no element by one buffer that it uses by another.
    pub unsafe fn part(whole: &Arc<Buffer>, range: Range<usize>) -> Buffer {
        let at = whole.view().slice(range.clone()).at;
        let (context, memory) =
            (whole.context.clone(), Memory::Part { _whole: Arc::clone(whole), at });
        Buffer { context, memory: Some(memory), kind: whole.kind, len: range.len() }
    }

    /// All elements.
    pub fn view(&self) -> View<'_> {
        View { at: self.at(), kind: self.kind, len: self.len, of: PhantomData }
    }

    /// All elements, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { at: self.at(), kind: self.kind, len: self.len, of: PhantomData }
    }

    /// What it is a buffer of.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What its elements are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self) -> Ptr {
        match &self.memory {
            Some(Memory::Own(block)) => block.at,
            Some(Memory::Part { at, .. }) => *at,
            None => Ptr(0),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(Memory::Own(block)) = self.memory.take() {
            self.context.device.pool.give(block, self.context.stream);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} at {:#x}", self.len, self.kind, self.at().0)
    }
}

/// Elements of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    at: Ptr,
    kind: Kind,
    len: usize,
    of: PhantomData<&'a Buffer>,
}

/// Elements of a buffer that are written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    at: Ptr,
    kind: Kind,
    len: usize,
    of: PhantomData<&'a mut Buffer>,
}

macro_rules! view {
    ($name:ident) => {
        impl<'a> $name<'a> {
            /// Where they begin.
            pub fn at(&self) -> Ptr {
                self.at
            }

            /// What they are.
            pub fn kind(&self) -> Kind {
                self.kind
            }

            /// How many there are.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// Some of them.
            #[track_caller]
            pub fn slice(self, range: Range<usize>) -> $name<'a> {
                assert!(
                    range.start <= range.end && range.end <= self.len,
                    "{range:?} of {}",
                    self.len
                );
                let at = self.at.plus(range.start * self.kind.bytes());
                $name { at, len: range.len(), ..self }
            }

            /// The same bytes as elements of another kind.
            #[track_caller]
            pub fn as_kind(self, kind: Kind) -> $name<'a> {
                let bytes = self.len * self.kind.bytes();
                let is_whole = bytes.is_multiple_of(kind.bytes());
                let is_aligned = self.at.0.is_multiple_of(kind.bytes() as u64);
                assert!(is_whole && is_aligned, "{bytes} bytes at {:#x} as {kind}", self.at.0);
                $name { kind, len: bytes / kind.bytes(), ..self }
            }

            /// Asserts kind and length.
            #[track_caller]
            pub fn assert_is(&self, kind: Kind, len: usize) {
                assert_eq!((self.kind, self.len), (kind, len), "kind and length of a buffer");
            }
        }

        impl From<&$name<'_>> for Arg {
            fn from(view: &$name<'_>) -> Arg {
                Arg::Ptr(view.at)
            }
        }
    };
}
view!(View);
view!(ViewMut);

impl ViewMut<'_> {
    /// The same elements, to be read.
    pub fn as_view(&self) -> View<'_> {
        View { at: self.at, kind: self.kind, len: self.len, of: PhantomData }
    }

    /// The first `at` elements, and those from there on.
    #[track_caller]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let rest = ViewMut { at: self.at, kind: self.kind, len: self.len, of: PhantomData };
        let len = self.len;
        (self.slice(0..at), rest.slice(at..len))
    }

    /// The same elements, lent on.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { at: self.at, kind: self.kind, len: self.len, of: PhantomData }
    }
}

impl Arg {
    /// A pointer to what may be absent.
    pub fn of(view: Option<View<'_>>) -> Arg {
        view.map_or(Arg::NULL, |view| Arg::Ptr(view.at))
    }

    /// A size, which kernels take as 32 bits.
    #[track_caller]
    pub fn size(len: usize) -> Arg {
        Arg::U32(u32::try_from(len).expect("kernels count up to 2^32"))
    }
}

/// A type that the host has for a kind of elements.
pub trait Element: Copy {
    /// Which kind.
    const KIND: Kind;
    /// Zero.
    const ZERO: Self;
}

macro_rules! element {
    ($t:ty, $kind:ident, $zero:expr) => {
        impl Element for $t {
            const KIND: Kind = Kind::$kind;
            const ZERO: $t = $zero;
        }
    };
}
element!(f32, F32, 0.0);
element!(bf16, Bf16, bf16::ZERO);
element!(u32, U32, 0);
element!(u64, U64, 0);
element!(f64, F64, 0.0);
element!(u8, U8, 0);
