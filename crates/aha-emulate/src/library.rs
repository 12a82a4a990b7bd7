//! A `.cu` source compiled by g++ and loaded.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fs};

use aha_cuda::source::HEADERS;
use aha_cuda::{Arg, Error, Plan, Source};

use crate::Order;

/// Sums and products are rounded one by one, as they are written.
const OPTIONS: [&str; 8] = [
    "-std=c++20",
    "-O2",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-w",
    "-DAHA_EMULATED",
];
/// Parameters of a kernel.
const PARAMETERS_MAX: usize = 64;

type Entry = unsafe extern "C" fn(*mut *mut c_void);
type Launch =
    unsafe extern "C" fn(Entry, *mut *mut c_void, *const u32, *const u32, c_int) -> *const c_char;

/// The kernels of a source, as functions of this process.
pub struct Library {
    library: libloading::Library,
    /// A source's threads share what is `__shared__`, so its launches happen one after the other.
    turn: Mutex<()>,
}

static LOADED: Mutex<Option<HashMap<String, Arc<Library>>>> = Mutex::new(None);

impl Library {
    /// Compiled now, or by an earlier test.
    pub fn of(source: &Source) -> Result<Arc<Library>, Error> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        let digest = source.digest(&options());
        if let Some(library) = loaded.get(&digest) {
            return Ok(Arc::clone(library));
        }
        let path = compiled(source, &digest)?;
        // SAFETY: the library is what g++ made of `emulate.h` and a kernel; it has no initializers.
        let library = unsafe { libloading::Library::new(&path) };
        let library = library.map_err(|error| failed(source, &error.to_string()))?;
        let library = Arc::new(Library { library, turn: Mutex::new(()) });
        loaded.insert(digest, Arc::clone(&library));
        Ok(library)
    }

    /// Runs a kernel on all its threads.
    ///
    /// # Safety
    /// Pointers among the arguments are of what the kernel expects.
    pub unsafe fn launch(&self, plan: &Plan, args: &[Arg], order: Order) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words: Vec<u64> = args.iter().map(|arg| arg.word()).collect();
        let mut at: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: these symbols are made by `KERNEL` and by `emulate.h`, with these types.
        unsafe {
            self.check(plan, args)?;
            let entry = *self.symbol::<Entry>(plan, &format!("aha_entry_{}", plan.kernel))?;
            let launch = *self.symbol::<Launch>(plan, "aha_launch")?;
            let is_backward = c_int::from(order == Order::Backward);
            let (grid, block) = (plan.grid.as_ptr(), plan.block.as_ptr());
            let error = launch(entry, at.as_mut_ptr(), grid, block, is_backward);
            match error.is_null() {
                true => Ok(()),
                false => Err(said(plan, &CStr::from_ptr(error).to_string_lossy())),
            }
        }
    }

    /// Whether the arguments are the kernel's parameters, as far as their sizes tell, and the block no larger than the
    /// kernel is compiled for.
    ///
    /// # Safety
    /// The library is of `emulate.h`.
    unsafe fn check(&self, plan: &Plan, args: &[Arg]) -> Result<(), Error> {
        type Sizes = unsafe extern "C" fn(*mut u32) -> u32;
        type Threads = unsafe extern "C" fn() -> u32;
        let mut sizes = [0; PARAMETERS_MAX];
        // SAFETY: as above.
        let (count, threads_max) = unsafe {
            let name = &plan.kernel;
            let count = self.symbol::<Sizes>(plan, &format!("aha_sizes_{name}"))?;
            let threads = self.symbol::<Threads>(plan, &format!("aha_threads_{name}"))?;
            (count(sizes.as_mut_ptr()) as usize, threads())
        };
        let (want, got) = (&sizes[..count], args.iter().map(Arg::bytes));
        if !want.iter().map(|size| *size as usize).eq(got.clone()) {
            let got: Vec<usize> = got.collect();
            return Err(said(plan, &format!("takes parameters of {want:?} bytes, not of {got:?}")));
        }
        let threads: u32 = plan.block.iter().product();
        if threads > threads_max {
            return Err(said(plan, &format!("{threads} threads, at most {threads_max}")));
        }
        Ok(())
    }

    /// # Safety
    /// The symbol has this type.
    unsafe fn symbol<T>(
        &self,
        plan: &Plan,
        name: &str,
    ) -> Result<libloading::Symbol<'_, T>, Error> {
        // SAFETY: the caller's promise.
        let symbol = unsafe { self.library.get(name) };
        symbol.map_err(|_| said(plan, &format!("{} has no `{name}`", plan.source.name)))
    }
}

fn said(plan: &Plan, what: &str) -> Error {
    Error::Kernel { kernel: plan.kernel.to_string(), what: what.to_owned() }
}

fn failed(source: &Source, log: &str) -> Error {
    Error::Compile { source_name: source.name, arch: "g++".into(), log: log.to_owned() }
}

fn options() -> Vec<&'static str> {
    let header = include_str!("emulate.h");
    OPTIONS.into_iter().chain(fused()).chain([header]).collect()
}

/// Fused multiply-adds take long where they aren't an instruction.
fn fused() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        return Some("-mfma");
    }
    None
}

/// The library's file beside this program's, where cargo puts what it builds.
fn compiled(source: &Source, digest: &str) -> Result<PathBuf, Error> {
    let program = env::current_exe().map_err(|error| failed(source, &error.to_string()))?;
    let dir = program.parent().unwrap_or(Path::new(".")).join("emulated");
    let path = dir.join(format!("{digest}.so"));
    if path.exists() {
        return Ok(path);
    }
    let aside = dir.join(format!("{digest}.{}", std::process::id()));
    let made = fs::create_dir_all(&aside)
        .and_then(|()| compile(source, &aside))
        .map_err(|error| failed(source, &error.to_string()))?;
    if let Some(log) = made {
        return Err(failed(source, &log));
    }
    // Whoever comes second replaces the file by the same one.
    fs::rename(aside.join("kernels.so"), &path)
        .and_then(|()| fs::remove_dir_all(&aside))
        .map_err(|error| failed(source, &error.to_string()))?;
    Ok(path)
}

/// Compiles into a folder. What the compiler said, if it failed.
fn compile(source: &Source, dir: &Path) -> std::io::Result<Option<String>> {
    for (name, text) in HEADERS.iter().chain(&[("emulate.h", include_str!("emulate.h"))]) {
        fs::write(dir.join(name), text)?;
    }
    fs::write(dir.join(source.name), source.text)?;
    let compiler = env::var_os("CXX").unwrap_or_else(|| "g++".into());
    let output = Command::new(compiler)
        .args(OPTIONS)
        .args(fused())
        .args(["-x", "c++", source.name, "-o", "kernels.so"])
        .current_dir(dir)
        .output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(log))
}
