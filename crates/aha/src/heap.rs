//! How the system's allocator gives memory back.
//!
//! By itself, glibc serves ever larger requests from its heap once one of their size was freed, and what is
//! freed in the middle of a heap stays with the process: a run would keep the buffers of its past stages, and
//! nobody could say beforehand how much that is.

/// Requests of this size on are mapped by themselves, and go back to the system when they are freed. With a
/// MiB, a run of small models, whose tensors are smaller, keeps twice as much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: libc::c_int = 256 << 10;

/// Makes large buffers go back to the system when they are freed. Other allocators than glibc's are left as
/// they are.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets a number of the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::hint::black_box;

    use super::*;

    fn resident_mib() -> usize {
        let text = fs_err::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
    }

    /// Goal: nothing that is freed stays. Method: large buffers with small ones between them, which are kept,
    /// after a larger one was freed.
    #[test]
    fn freed_buffers_go_back_to_the_system() {
        give_back_large_buffers();
        drop(black_box(vec![1_u8; 24 << 20]));
        let before = resident_mib();
        let (large, small): (Vec<_>, Vec<_>) =
            (0..16).map(|_| (vec![1_u8; 16 << 20], vec![1_u8; 100_000])).unzip();
        assert!(resident_mib() >= before + 200, "256 MiB are in use");
        drop(black_box(large));
        assert!(resident_mib() < before + 64, "{} MiB before", before);
        drop(small);
    }
}
