//! The memory and the room on disks that the operating system says there is.

use std::path::Path;

/// Of the memory that can be had, the part that is left to others: an eighth.
const RESERVE_DIVISOR: u64 = 8;

/// Memory in bytes; none where the system doesn't say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What can be had without swapping.
    pub available_bytes: Option<u64>,
    /// What the control group and those above it allow, if one sets a limit.
    pub limit_bytes: Option<u64>,
}

impl Memory {
    /// What a run may plan with, if it is told nothing: what is available and allowed, less a reserve.
    pub fn free_bytes(&self) -> Option<u64> {
        let least = self.available_bytes.into_iter().chain(self.limit_bytes).min();
        least.map(|bytes| bytes - bytes / RESERVE_DIVISOR)
    }
}

/// Memory of the machine and of this process's control group.
pub fn memory() -> Memory {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Memory {
        total_bytes: meminfo(&text, "MemTotal"),
        available_bytes: meminfo(&text, "MemAvailable"),
        limit_bytes: limit(Path::new("/sys/fs/cgroup"), &groups),
    }
}

/// What may still be written to the file system of `path`, in bytes; none where the system doesn't say.
pub fn room_bytes(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// The smallest limit of a control group (version 2) and those above it. `groups` is what the system says of a
/// process, such as `0::/system.slice/aha.service`.
fn limit(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limits = Path::new(own).ancestors().filter_map(|group| {
        // A group without a limit says "max", and the machine's own group has no such file.
        fs_err::read_to_string(root.join(group).join("memory.max")).ok()?.trim().parse().ok()
    });
    limits.min()
}

/// A line of `/proc/meminfo`, such as `MemTotal:  4046848 kB`.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
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
    fn the_smallest_limit_on_the_way_to_a_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let groups = "1:name=systemd:/other\n0::/a.slice/b.service\n";
        let write = |group: &str, text: &str| {
            let dir = root.path().join(group);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("memory.max"), text).unwrap();
        };
        assert_eq!(limit(root.path(), groups), None);
        write("a.slice/b.service", "max\n");
        assert_eq!(limit(root.path(), groups), None);
        write("a.slice", "4096\n");
        assert_eq!(limit(root.path(), groups), Some(4096));
        write("a.slice/b.service", "1024\n");
        write("other", "16\n");
        assert_eq!(limit(root.path(), groups), Some(1024));
        // Inside a container, its own group is the root.
        write("", "512\n");
        assert_eq!(limit(root.path(), "0::/\n"), Some(512));
        assert_eq!(limit(root.path(), ""), Some(512));
    }

    #[test]
    fn a_run_plans_with_what_is_available_and_allowed() {
        let memory = |available_bytes, limit_bytes| Memory {
            total_bytes: Some(9000),
            available_bytes,
            limit_bytes,
        };
        assert_eq!(memory(Some(8000), None).free_bytes(), Some(7000));
        assert_eq!(memory(Some(8000), Some(800)).free_bytes(), Some(700));
        assert_eq!(memory(None, None).free_bytes(), None);
    }
}
