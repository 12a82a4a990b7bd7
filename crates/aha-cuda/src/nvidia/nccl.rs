//! Exchanges between devices by NCCL, of which only sends and receives are used: which numbers are added in which order
//! is not left to it.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::CUstream;
use libloading::Library;

use super::Nvidia;
use crate::link::{Link, Transfer};
use crate::{Driver, Error, Stream};

/// The oldest version whose communicators can be aborted while others wait, as NCCL counts: 2.18.
const VERSION_MIN: c_int = 21_800;
/// `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `ncclInt8`: transfers count bytes.
const BYTE: c_int = 0;

type Comm = *mut c_void;

/// The functions that are called. Their results are numbers, since newer libraries have others than older ones.
struct Functions {
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    comm_init_all: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> c_int,
    comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, CUstream) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, CUstream) -> c_int,
}

/// The library, which is never unloaded.
fn functions() -> Result<&'static Functions, Error> {
    static FUNCTIONS: OnceLock<Result<Functions, Error>> = OnceLock::new();
    FUNCTIONS.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Whether the library is there; what to do if it isn't.
pub(super) fn ask_for_library() -> Result<(), Error> {
    functions().map(|_| ())
}

fn load() -> Result<Functions, Error> {
    let missing = |what: String| {
        Error::Missing {
        what,
        remedy: "several devices need NCCL 2.18 or newer: install `libnccl2`, or `nvidia-nccl-cu13` from PyPI with its \
                 `lib` folder in `LD_LIBRARY_PATH`; or train on one device"
            .into(),
    }
    };
    // SAFETY: loading the library runs its initializers, which are NVIDIA's.
    let open = |name: &&str| unsafe { Library::new(*name) }.ok();
    let library = ["libnccl.so.2", "libnccl.so"].iter().find_map(open);
    let library = library.ok_or_else(|| missing("NCCL (libnccl) was not found".into()))?;
    // Its functions are copied, so it must stay.
    let library: &'static Library = Box::leak(Box::new(library));
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the types are those of `nccl.h`, the same in all versions.
            *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                .map_err(|_| missing(concat!("NCCL has no `", $name, "`").into()))?
        };
    }
    let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = function!("ncclGetVersion");
    let mut version = 0;
    // SAFETY: it writes the version.
    let got = unsafe { get_version(&mut version) };
    if got != SUCCESS || version < VERSION_MIN {
        let shown = format!("{}.{}", version / 10_000, version % 10_000 / 100);
        return Err(missing(format!("NCCL has version {shown}")));
    }
    Ok(Functions {
        get_error_string: function!("ncclGetErrorString"),
        comm_init_all: function!("ncclCommInitAll"),
        comm_destroy: function!("ncclCommDestroy"),
        comm_abort: function!("ncclCommAbort"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        send: function!("ncclSend"),
        receive: function!("ncclRecv"),
    })
}

impl Functions {
    fn done(&self, call: &'static str, result: c_int) -> Result<(), Error> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: for any number it returns a text that stays, or null.
        let text = unsafe { (self.get_error_string)(result) };
        let code = match text.is_null() {
            true => result.to_string(),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(Error::Failed { call, code })
    }
}

/// Communicators of all ranks.
struct Group {
    functions: &'static Functions,
    comms: Vec<Comm>,
    is_aborted: AtomicBool,
}

// SAFETY: a communicator is used by its rank's thread; another thread only aborts it, which NCCL has this call for.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Drop for Group {
    fn drop(&mut self) {
        if self.is_aborted.load(Ordering::Acquire) {
            return;
        }
        for comm in &self.comms {
            // SAFETY: nobody uses it any more.
            let _ = unsafe { (self.functions.comm_destroy)(*comm) };
        }
    }
}

/// One rank's link.
struct NcclLink {
    group: Arc<Group>,
    rank: usize,
    driver: Arc<dyn Driver>,
}

/// Connects devices, of which each is there once.
pub(super) fn connect(drivers: &[Arc<dyn Driver>]) -> Result<Vec<Arc<dyn Link>>, Error> {
    let functions = functions()?;
    let ordinals = drivers.iter().map(|driver| nvidia(driver).map(|nvidia| nvidia.device));
    let ordinals: Vec<c_int> = ordinals.collect::<Result<_, _>>()?;
    let mut comms: Vec<Comm> = vec![std::ptr::null_mut(); drivers.len()];
    // SAFETY: both lists are as long as it is told.
    let made = unsafe {
        (functions.comm_init_all)(comms.as_mut_ptr(), comms.len() as c_int, ordinals.as_ptr())
    };
    functions.done("ncclCommInitAll", made)?;
    let group = Arc::new(Group { functions, comms, is_aborted: AtomicBool::new(false) });
    let link = |(rank, driver): (usize, &Arc<dyn Driver>)| -> Arc<dyn Link> {
        Arc::new(NcclLink { group: Arc::clone(&group), rank, driver: Arc::clone(driver) })
    };
    Ok(drivers.iter().enumerate().map(link).collect())
}

fn nvidia(driver: &Arc<dyn Driver>) -> Result<&Nvidia, Error> {
    let any: &dyn Any = &**driver;
    any.downcast_ref()
        .ok_or(Error::Failed { call: "ncclCommInitAll", code: "a device of another kind".into() })
}

impl Link for NcclLink {
    unsafe fn exchange(&self, transfers: &[Transfer], stream: Stream) -> Result<(), Error> {
        let Group { functions, comms, is_aborted } = &*self.group;
        if is_aborted.load(Ordering::Acquire) {
            return Err(Error::Failed { call: "ncclGroupStart", code: "aborted".into() });
        }
        let nvidia = nvidia(&self.driver)?;
        nvidia.enter()?;
        let (comm, handle) = (comms[self.rank], nvidia.handle(stream));
        // SAFETY: the communicator is this rank's; memory is the caller's promise.
        unsafe {
            functions.done("ncclGroupStart", (functions.group_start)())?;
            let asked = transfers.iter().try_for_each(|transfer| match *transfer {
                Transfer::Send { from, bytes, to_rank } => {
                    let from = from.0 as *const c_void;
                    let sent = (functions.send)(from, bytes, BYTE, to_rank as c_int, comm, handle);
                    functions.done("ncclSend", sent)
                }
                Transfer::Receive { to, bytes, from_rank } => {
                    let (to, rank) = (to.0 as *mut c_void, from_rank as c_int);
                    let received = (functions.receive)(to, bytes, BYTE, rank, comm, handle);
                    functions.done("ncclRecv", received)
                }
            });
            // Ended in any case, or this thread's next group would go on with it.
            let ended = functions.done("ncclGroupEnd", (functions.group_end)());
            asked.and(ended)
        }
    }

    fn abort(&self) {
        let Group { functions, comms, is_aborted } = &*self.group;
        if is_aborted.swap(true, Ordering::AcqRel) {
            return;
        }
        for comm in comms {
            // SAFETY: once for each, and no exchange begins any more.
            let _ = unsafe { (functions.comm_abort)(*comm) };
        }
    }
}

impl fmt::Debug for NcclLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}, by NCCL", self.rank, self.group.comms.len())
    }
}
