//! The system calls that a program may make. Every other one fails as if the kernel didn't know it, so
//! that libraries fall back to what they did before it was there.
//!
//! Left out on purpose: everything about networks, namespaces, mounts, other processes' memory, keys,
//! `io_uring`, `userfaultfd`, `bpf`, `perf`, modules, clocks that can be set, memory that is neither in a
//! process nor in a file (`memfd_create`, System V), and changes of user.
//!
//! The keeper counts what is resident or swapped out in some process. Memory that processes share without
//! a file needn't be in any: one can let go of its pages, and they stay. Nor are huge pages counted. So
//! neither can be mapped, and there is no `/dev/zero` to map such memory from.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Allowed with any arguments.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // Files and folders.
    libc::SYS_read, libc::SYS_write, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_readv,
    libc::SYS_writev, libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2,
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_lseek,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64,
    libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_umask, libc::SYS_utimensat,
    libc::SYS_truncate, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_flock, libc::SYS_fcntl, libc::SYS_ioctl, libc::SYS_sendfile,
    libc::SYS_copy_file_range, libc::SYS_splice, libc::SYS_tee, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_signalfd4,
    // Memory; what is mapped is looked at below.
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect,
    libc::SYS_madvise, libc::SYS_msync, libc::SYS_mincore, libc::SYS_membarrier,
    // Processes and threads of its own; new namespaces are refused below.
    libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_set_tid_address, libc::SYS_futex,
    libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_gettid,
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getpgid, libc::SYS_setpgid, libc::SYS_getsid,
    libc::SYS_setsid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_capget,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_getpriority, libc::SYS_getrlimit,
    libc::SYS_getrusage, libc::SYS_times, libc::SYS_getcpu,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    // Time and the machine.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep, libc::SYS_gettimeofday, libc::SYS_getitimer, libc::SYS_setitimer,
    libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun, libc::SYS_timer_delete, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Pairs of sockets that a program talks to itself through; it can make no others.
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
];

/// Older names of the same, which the C library still uses on this processor.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access,
    libc::SYS_readlink, libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink,
    libc::SYS_rename, libc::SYS_link, libc::SYS_symlink, libc::SYS_chmod, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_poll,
    libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_eventfd,
    libc::SYS_signalfd, libc::SYS_fork, libc::SYS_vfork, libc::SYS_getpgrp, libc::SYS_pause,
    libc::SYS_alarm, libc::SYS_time, libc::SYS_arch_prctl,
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// Puts this process, and all that it starts, under the filter for good.
pub fn apply() -> io::Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(
        rules().map_err(io::Error::other)?,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        arch,
    );
    let program = filter.and_then(TryInto::<seccompiler::BpfProgram>::try_into);
    seccompiler::apply_filter(&program.map_err(io::Error::other)?).map_err(io::Error::other)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: Rules =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let condition = |arg, op, value| {
        let condition = SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?;
        SeccompRule::new(vec![condition])
    };
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let mask = namespaces.iter().fold(0, |all, flag| all | *flag as u32 as u64);
    // `clone3` hides its flags in memory, where a filter can't look: it stays unknown.
    rules.insert(libc::SYS_clone, vec![condition(0, MaskedEq(mask), 0)?]);
    // Its own limits only, not those of process 1, which has the same user.
    rules.insert(libc::SYS_prlimit64, vec![condition(0, Eq, 0)?]);
    // Private, or of a file; never in huge pages, which aren't resident memory.
    let mappings = [libc::MAP_SHARED, libc::MAP_ANONYMOUS]
        .map(|flag| condition(3, MaskedEq((flag | libc::MAP_HUGETLB) as u64), 0));
    rules.insert(libc::SYS_mmap, mappings.into_iter().collect::<Result<_, _>>()?);
    let unix = libc::AF_UNIX as u64;
    rules.insert(libc::SYS_socketpair, vec![condition(0, Eq, unix)?]);
    let harmless = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_PDEATHSIG];
    let harmless = harmless.map(|option| condition(0, Eq, option as u64));
    rules.insert(libc::SYS_prctl, harmless.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}
