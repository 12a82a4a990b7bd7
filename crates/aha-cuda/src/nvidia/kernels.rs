//! Functions of a device, compiled and loaded when they are first launched.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{PoisonError, RwLock};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};

use super::done;
use crate::cache::Cache;
use crate::{Error, Info, Source, nvrtc};

pub(super) struct Kernels {
    arch: String,
    shared_bytes_max: u32,
    cache: Cache,
    /// By the source's name.
    modules: RwLock<HashMap<&'static str, Module>>,
}

struct Module {
    handle: sys::CUmodule,
    functions: HashMap<String, sys::CUfunction>,
}

impl Kernels {
    pub(super) fn new(info: &Info, cache: Cache) -> Kernels {
        Kernels {
            arch: nvrtc::arch(info.capability),
            shared_bytes_max: info.limits.shared_bytes_max,
            cache,
            modules: RwLock::default(),
        }
    }

    /// A kernel of a source. The device's context must be that of this thread.
    pub(super) fn function(
        &self,
        source: &'static Source,
        kernel: &str,
    ) -> Result<sys::CUfunction, Error> {
        let modules = self.modules.read().unwrap_or_else(PoisonError::into_inner);
        let found = modules.get(source.name).and_then(|module| module.functions.get(kernel));
        if let Some(function) = found {
            return Ok(*function);
        }
        drop(modules);
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        if !modules.contains_key(source.name) {
            let module = Module { handle: self.load(source)?, functions: HashMap::new() };
            modules.insert(source.name, module);
        }
        let Some(module) = modules.get_mut(source.name) else { return Err(unknown(kernel)) };
        let function = self.find(module.handle, kernel)?;
        module.functions.insert(kernel.to_owned(), function);
        Ok(function)
    }

    fn load(&self, source: &'static Source) -> Result<sys::CUmodule, Error> {
        let others = nvrtc::dependencies()?;
        let others: Vec<&str> = others.iter().map(String::as_str).chain([&*self.arch]).collect();
        let make = || nvrtc::compile(source, &self.arch);
        let code = self.cache.get(&source.digest(&others), make)?;
        // SAFETY: the code is a cubin, by its digest as the compiler made it.
        done("cuModuleLoadData", unsafe { result::module::load_data(code.as_ptr().cast()) })
    }

    fn find(&self, module: sys::CUmodule, kernel: &str) -> Result<sys::CUfunction, Error> {
        let name = CString::new(kernel).map_err(|_| unknown(kernel))?;
        // SAFETY: the module is loaded.
        unsafe {
            let function =
                result::module::get_function(module, name).map_err(|_| unknown(kernel))?;
            // A block may then have all the shared memory that there is, once a launch asks for it.
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            let own = result::function::get_function_attribute(function, attribute);
            let own = done("cuFuncGetAttribute", own)?;
            let rest = self.shared_bytes_max as i32 - own;
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = result::function::set_function_attribute(function, attribute, rest);
            done("cuFuncSetAttribute", set)?;
            Ok(function)
        }
    }

    /// Unloads everything; no function may be used after this.
    pub(super) fn unload(&self) {
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        for (_, module) in modules.drain() {
            // SAFETY: it was loaded, and is in no list any more.
            let _ = unsafe { result::module::unload(module.handle) };
        }
    }
}

fn unknown(kernel: &str) -> Error {
    Error::Kernel { kernel: kernel.to_owned(), what: "its source has no such kernel".into() }
}
