//! From `.cu` sources to machine code, by the compiler that is loaded at run time.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use cudarc::nvrtc::sys;

use crate::source::HEADERS;
use crate::{Error, Source};

/// How kernels are compiled, beside the architecture. Sums that must have an order spell it out, so contraction to
/// fused multiply-adds may stay on.
const OPTIONS: [&str; 4] =
    ["--std=c++17", "--extra-device-vectorization", "-default-device", "--fmad=true"];

/// What the machine code of a device of this compute capability is called.
pub fn arch(capability: (u32, u32)) -> String {
    let (major, minor) = capability;
    // From 9.0 on, instructions such as `wgmma` are those of one architecture alone.
    let suffix = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

/// The version of the compiler.
pub fn version() -> Result<(i32, i32), Error> {
    ask_for_library()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and both pointers are of numbers.
    done("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

/// What the result of [`compile`] depends on beside source, headers and architecture.
pub fn dependencies() -> Result<Vec<String>, Error> {
    let (major, minor) = version()?;
    let options = OPTIONS.iter().map(|option| (*option).to_owned());
    Ok(options.chain([format!("nvrtc {major}.{minor}")]).collect())
}

/// Machine code (a cubin) of a source, for an architecture such as `sm_90a`.
pub fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, Error> {
    ask_for_library()?;
    let program = Program::new(source)?;
    let options: Vec<CString> = [format!("--gpu-architecture={arch}")]
        .into_iter()
        .chain(OPTIONS.iter().map(|option| (*option).to_owned()))
        .map(|option| text("option", &option))
        .collect::<Result<_, _>>()?;
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: the program and all strings live on.
    let result =
        unsafe { sys::nvrtcCompileProgram(program.0, options.len() as c_int, options.as_ptr()) };
    if result != sys::nvrtcResult::NVRTC_SUCCESS {
        let log = program.log();
        return Err(Error::Compile { source_name: source.name, arch: arch.to_owned(), log });
    }
    program.code()
}

fn ask_for_library() -> Result<(), Error> {
    // SAFETY: loading the library runs its initializers, which are NVIDIA's.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Missing {
        what: "the CUDA run-time compiler (libnvrtc) was not found".into(),
        remedy: "install it with the CUDA toolkit or by `pip install nvidia-cuda-nvrtc`, and put its folder into \
                 `LD_LIBRARY_PATH`"
            .into(),
    })
}

fn done(call: &'static str, result: sys::nvrtcResult) -> Result<(), Error> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        code => Err(Error::Failed { call, code: format!("{code:?}") }),
    }
}

fn text(call: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|error| Error::Failed { call, code: error.to_string() })
}

/// A program that is destroyed when it goes.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Program, Error> {
        let call = "nvrtcCreateProgram";
        let (name, code) = (text(call, source.name)?, text(call, source.text)?);
        let headers: Vec<(CString, CString)> = HEADERS
            .iter()
            .map(|(name, code)| Ok((text(call, name)?, text(call, code)?)))
            .collect::<Result<_, Error>>()?;
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let codes: Vec<*const c_char> = headers.iter().map(|(_, code)| code.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: all strings outlive the call, which copies them.
        done(call, unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                code.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                codes.as_ptr(),
                names.as_ptr(),
            )
        })?;
        Ok(Program(program))
    }

    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the program lives, and the log is as long as it says.
        let bytes = unsafe {
            sys::nvrtcGetProgramLogSize(self.0, &mut size);
            let mut bytes = vec![0u8; size + 1];
            sys::nvrtcGetProgramLog(self.0, bytes.as_mut_ptr().cast());
            bytes
        };
        let log = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        log.to_string_lossy().trim_end().to_owned()
    }

    fn code(&self) -> Result<Vec<u8>, Error> {
        let mut size = 0;
        // SAFETY: the program was compiled, and its code is as long as it says.
        unsafe {
            done("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(self.0, &mut size))?;
            let mut code = vec![0u8; size];
            done("nvrtcGetCUBIN", sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()))?;
            Ok(code)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created and not destroyed before.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_the_compilers_names() {
        let names = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)].map(arch);
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]);
    }
}
