//! What the operating system says about the machine.

use std::ffi::CStr;
use std::path::Path;

/// Memory in bytes; none where the system doesn't say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What can be had without swapping.
    pub available_bytes: Option<u64>,
    /// What the control group allows, if it sets a limit.
    pub limit_bytes: Option<u64>,
}

/// Memory of the machine and of this process's control group.
pub fn memory() -> Memory {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let limit = fs_err::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Memory {
        total_bytes: meminfo(&text, "MemTotal"),
        available_bytes: meminfo(&text, "MemAvailable"),
        limit_bytes: limit.and_then(|limit| limit.trim().parse().ok()),
    }
}

/// A line of `/proc/meminfo`, such as `MemTotal:  4046848 kB`.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The processor's name.
pub fn processor_model() -> Option<String> {
    let text = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// Features of the processor that kernels use or could.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Whether the dynamic linker finds a library and can load it.
pub fn is_loadable(library: &CStr) -> bool {
    // SAFETY: the name ends with a zero byte; loading runs the library's own initialisers, as every
    // program that uses it does; the handle is given back at once.
    unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        !handle.is_null() && libc::dlclose(handle) == 0
    }
}

/// The version of NVIDIA's kernel driver.
pub fn nvidia_driver() -> Option<String> {
    let text = fs_err::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(text.trim().to_owned())
}

/// Bytes that this user may still write at `path`.
pub fn disk_free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Whether this user may make files in `dir`.
pub fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:        4046848 kB\nMemAvailable:    1000 kB\nHugePages_Total:  0\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(4_046_848 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(1_024_000));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo(text, "HugePages_Total"), None);
    }

    #[test]
    fn a_library_that_is_not_there_is_not_loadable() {
        assert!(!is_loadable(c"libaha-does-not-exist.so.1"));
    }
}
