//! The driver of a real device.
//!
//! Libraries are loaded when the first of their functions is called, and a function that isn't there panics. So
//! [`Nvidia::open`] asks for the driver's library and its version first, and a product for cuBLASLt's.

mod blas;
mod kernels;
mod nccl;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use crate::cache::Cache;
use crate::driver::{Event, Graph, Memory};
use crate::link::Link;
use crate::{Driver, Error, Info, Launch, Limits, Product, Ptr, Stream};
use blas::Blas;
use kernels::Kernels;

/// The oldest version of CUDA that the driver must know, as the driver counts: all functions that are called are there.
pub const DRIVER_VERSION_MIN: i32 = 12_080;

/// A device of this machine.
pub struct Nvidia {
    info: Info,
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: RwLock<Vec<sys::CUstream>>,
    kernels: Kernels,
    blas: Mutex<Option<Blas>>,
    events: Mutex<HashMap<u64, sys::CUevent>>,
    graphs: Mutex<HashMap<u64, Captured>>,
    next_id: AtomicU64,
}

struct Captured {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

// SAFETY: the handles are the driver's, which takes them from any thread whose context is set.
unsafe impl Send for Nvidia {}
// SAFETY: as above; what the handles are found by is locked.
unsafe impl Sync for Nvidia {}

/// How many devices the driver shows, after asking whether there is a driver.
pub fn device_count() -> Result<u32, Error> {
    ask_for_driver()?;
    result::init().map_err(|error| no_device(&error))?;
    result::device::get_count().map(|count| count as u32).map_err(|error| no_device(&error))
}

/// The version of CUDA that the driver knows: 1000 times the major and 10 times the minor one.
pub fn driver_version() -> Result<i32, Error> {
    ask_for_library()?;
    let mut version = 0;
    // SAFETY: the library is there.
    done("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
    Ok(version)
}

/// What a device is.
pub fn describe(ordinal: u32) -> Result<Info, Error> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(Error::Missing {
            what: format!("there is no device `cuda:{ordinal}`: the driver shows {count}"),
            remedy: "name one that is there, and see whether `CUDA_VISIBLE_DEVICES` hides it"
                .into(),
        });
    }
    let device = done("cuDeviceGet", result::device::get(ordinal as i32))?;
    info(device)
}

/// Whether the library of matrix products is there; what to do if it isn't.
pub fn ask_for_products() -> Result<(), Error> {
    blas::ask_for_library()
}

/// Whether the library by which several devices exchange is there; what to do if it isn't.
pub fn ask_for_exchange() -> Result<(), Error> {
    nccl::ask_for_library()
}

impl Nvidia {
    /// Opens a device by its place in the driver's list.
    pub fn open(ordinal: u32) -> Result<Nvidia, Error> {
        let info = describe(ordinal)?;
        if info.capability < (8, 0) {
            let (major, minor) = info.capability;
            return Err(Error::Missing {
                what: format!("{} has compute capability {major}.{minor}", info.name),
                remedy: "bf16 on tensor cores needs 8.0 or newer: use another device, or `cpu`"
                    .into(),
            });
        }
        let device = done("cuDeviceGet", result::device::get(ordinal as i32))?;
        // SAFETY: the device is there; the context is released when this is dropped.
        let context =
            done("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let nvidia = Nvidia {
            kernels: Kernels::new(&info, Cache::of_user()),
            info,
            device,
            context,
            streams: RwLock::default(),
            blas: Mutex::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
            next_id: AtomicU64::new(0),
        };
        nvidia.stream()?;
        Ok(nvidia)
    }

    /// Makes the device's context that of this thread, as every call of the driver needs it.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context lives as long as this.
        done("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    fn handle(&self, stream: Stream) -> sys::CUstream {
        self.streams.read().unwrap_or_else(PoisonError::into_inner)[stream.0 as usize]
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn new_event(&self, flags: sys::CUevent_flags) -> Result<sys::CUevent, Error> {
        done("cuEventCreate", result::event::create(flags))
    }
}

impl Driver for Nvidia {
    fn info(&self) -> &Info {
        &self.info
    }

    fn memory(&self) -> Result<Memory, Error> {
        self.enter()?;
        let (free_bytes, total_bytes) = done("cuMemGetInfo", result::mem_get_info())?;
        Ok(Memory { free_bytes, total_bytes })
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.enter()?;
        // SAFETY: not of no bytes, which the driver refuses.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => Ok(Ptr(at)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(Error::OutOfMemory {
                asked_bytes: bytes,
                in_use_bytes: 0,
                total_bytes: self.info.memory_bytes,
            }),
            Err(error) => done("cuMemAlloc", Err(error)),
        }
    }

    unsafe fn free(&self, at: Ptr) {
        // An error here is of work before it, which the next call shows.
        let _ = self.enter().map(|()| {
            // SAFETY: the caller's promise; the driver waits for work on it.
            let _ = unsafe { result::free_sync(at.0) };
        });
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<NonNull<u8>, Error> {
        self.enter()?;
        // SAFETY: the memory is given back by `free_pinned`.
        let at = done("cuMemHostAlloc", unsafe { result::malloc_host(bytes.max(1), 0) })?;
        NonNull::new(at.cast())
            .ok_or(Error::Failed { call: "cuMemHostAlloc", code: "no memory".into() })
    }

    unsafe fn free_pinned(&self, at: NonNull<u8>, _: usize) {
        let _ = self.enter().map(|()| {
            // SAFETY: the caller's promise.
            let _ = unsafe { result::free_host(at.as_ptr().cast()) };
        });
    }

    fn stream(&self) -> Result<Stream, Error> {
        self.enter()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let handle = done("cuStreamCreate", result::stream::create(kind))?;
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.push(handle);
        Ok(Stream(streams.len() as u32 - 1))
    }

    fn synchronize(&self, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream lives as long as this.
        let result = unsafe { result::stream::synchronize(self.handle(stream)) };
        done("cuStreamSynchronize", result)
    }

    fn join(&self, before: Stream, after: Stream) -> Result<(), Error> {
        self.enter()?;
        let event = self.new_event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: streams and event are there; an event that is destroyed is kept until it isn't waited for.
        unsafe {
            done("cuEventRecord", result::event::record(event, self.handle(before)))?;
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            let waits = result::stream::wait_event(self.handle(after), event, flags);
            done("cuStreamWaitEvent", waits)?;
            done("cuEventDestroy", result::event::destroy(event))
        }
    }

    unsafe fn copy_in(
        &self,
        to: Ptr,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), bytes, self.handle(stream)) };
        done("cuMemcpyHtoDAsync", result.result())
    }

    unsafe fn copy_out(
        &self,
        to: *mut u8,
        from: Ptr,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.0, bytes, self.handle(stream)) };
        done("cuMemcpyDtoHAsync", result.result())
    }

    unsafe fn copy(&self, to: Ptr, from: Ptr, bytes: usize, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the caller's promise.
        let result = unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.handle(stream)) };
        done("cuMemcpyDtoDAsync", result)
    }

    unsafe fn fill(&self, to: Ptr, byte: u8, bytes: usize, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let result = unsafe { result::memset_d8_async(to.0, byte, bytes, self.handle(stream)) };
        done("cuMemsetD8Async", result)
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        let plan = launch.plan;
        let function = self.kernels.function(plan.source, &plan.kernel)?;
        let mut words: Vec<u64> = launch.args.iter().map(|arg| arg.word()).collect();
        let mut args: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let [x, y, z] = plan.grid;
        let [tx, ty, tz] = plan.block;
        // SAFETY: the function lives as long as this; the arguments are the caller's promise.
        let result = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (tx, ty, tz),
                plan.shared_bytes,
                self.handle(stream),
                &mut args,
            )
        };
        result
            .map_err(|error| Error::Kernel { kernel: plan.kernel.to_string(), what: said(&error) })
    }

    unsafe fn product(&self, product: &Product, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        let mut blas = lock(&self.blas);
        if blas.is_none() {
            *blas = Some(Blas::new()?);
        }
        let Some(blas) = blas.as_mut() else { return Ok(()) };
        // SAFETY: the caller's promise.
        unsafe { blas.product(product, stream, self.handle(stream)) }
    }

    fn record(&self, stream: Stream) -> Result<Event, Error> {
        self.enter()?;
        let event = self.new_event(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        // SAFETY: both are there.
        done("cuEventRecord", unsafe { result::event::record(event, self.handle(stream)) })?;
        let id = self.next_id();
        lock(&self.events).insert(id, event);
        Ok(Event(id))
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, Error> {
        self.enter()?;
        let mut events = lock(&self.events);
        let [from, to] = [from, to].map(|event| events.remove(&event.0));
        drop(events);
        let (Some(from), Some(to)) = (from, to) else {
            return Err(Error::Failed { call: "cuEventElapsedTime", code: "unknown event".into() });
        };
        // SAFETY: both are there until they are destroyed here.
        unsafe {
            done("cuEventSynchronize", result::event::synchronize(to))?;
            let elapsed = done("cuEventElapsedTime", result::event::elapsed(from, to));
            for event in [from, to] {
                done("cuEventDestroy", result::event::destroy(event))?;
            }
            elapsed
        }
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is there.
        let result = unsafe { result::stream::begin_capture(self.handle(stream), mode) };
        done("cuStreamBeginCapture", result)
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph, Error> {
        self.enter()?;
        // SAFETY: the stream is there, and what it captured is held by this from now on.
        unsafe {
            let graph =
                done("cuStreamEndCapture", result::stream::end_capture(self.handle(stream)))?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let exec = done("cuGraphInstantiate", result::graph::instantiate(graph, flags))?;
            let id = self.next_id();
            lock(&self.graphs).insert(id, Captured { graph, exec });
            Ok(Graph(id))
        }
    }

    unsafe fn replay(&self, graph: Graph, stream: Stream) -> Result<(), Error> {
        self.enter()?;
        let exec = lock(&self.graphs).get(&graph.0).map(|captured| captured.exec);
        let Some(exec) = exec else {
            return Err(Error::Failed { call: "cuGraphLaunch", code: "unknown graph".into() });
        };
        // SAFETY: the graph is there; its memory is the caller's promise.
        done("cuGraphLaunch", unsafe { result::graph::launch(exec, self.handle(stream)) })
    }

    fn connect(&self, drivers: &[Arc<dyn Driver>]) -> Result<Vec<Arc<dyn Link>>, Error> {
        nccl::connect(drivers)
    }

    fn drop_graph(&self, graph: Graph) {
        if let (Ok(()), Some(captured)) = (self.enter(), lock(&self.graphs).remove(&graph.0)) {
            // SAFETY: it is in no list any more.
            unsafe {
                let _ = result::graph::exec_destroy(captured.exec);
                let _ = result::graph::destroy(captured.graph);
            }
        }
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let _ = result::ctx::synchronize();
        if let Some(blas) = lock(&self.blas).take() {
            blas.close();
        }
        // SAFETY: nobody uses any of these any more.
        unsafe {
            for (_, captured) in lock(&self.graphs).drain() {
                let _ = result::graph::exec_destroy(captured.exec);
                let _ = result::graph::destroy(captured.graph);
            }
            for (_, event) in lock(&self.events).drain() {
                let _ = result::event::destroy(event);
            }
            for stream in self.streams.write().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let _ = result::stream::destroy(stream);
            }
            self.kernels.unload();
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.info.capability;
        write!(f, "{}, compute capability {major}.{minor}", self.info.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_for_library() -> Result<(), Error> {
    // SAFETY: loading the library runs its initializers, which are NVIDIA's.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Missing {
        what: "the NVIDIA driver (libcuda) was not found".into(),
        remedy: "install the driver, or give the container access to the device".into(),
    })
}

fn ask_for_driver() -> Result<(), Error> {
    let version = driver_version()?;
    if version >= DRIVER_VERSION_MIN {
        return Ok(());
    }
    let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let (has, needs) = (shown(version), shown(DRIVER_VERSION_MIN));
    Err(Error::Missing {
        what: format!("the NVIDIA driver knows CUDA {has} at most"),
        remedy: format!("install one for CUDA {needs} or newer"),
    })
}

fn no_device(error: &DriverError) -> Error {
    Error::Missing {
        what: format!("the NVIDIA driver shows no device: {}", said(error)),
        remedy: "see what `nvidia-smi` says, and whether `CUDA_VISIBLE_DEVICES` hides it".into(),
    }
}

/// What the driver calls an error.
fn said(error: &DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|_| format!("{:?}", error.0))
}

fn done<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, Error> {
    result.map_err(|error| Error::Failed { call, code: said(&error) })
}

fn info(device: sys::CUdevice) -> Result<Info, Error> {
    let attribute = |attribute: Attribute| -> Result<u32, Error> {
        // SAFETY: the device is there.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        done("cuDeviceGetAttribute", value).map(|value| value.max(0) as u32)
    };
    Ok(Info {
        name: done("cuDeviceGetName", result::device::get_name(device))?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessor_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: the device is there.
        memory_bytes: done("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })?,
        limits: Limits {
            threads_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared_bytes_max: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            grid_max: [
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with a device runs `ops/gpu-check`; here it is the answer that counts: no panic, and what to do.
    #[test]
    fn without_a_driver_opening_a_device_says_so() {
        match Nvidia::open(0) {
            Ok(nvidia) => assert!(nvidia.info().memory_bytes > 0),
            Err(Error::Missing { what, remedy }) => {
                assert!(what.contains("NVIDIA") || what.contains("cuda:0"), "{what}");
                assert!(!remedy.is_empty());
            }
            Err(other) => panic!("{other}"),
        }
    }
}
