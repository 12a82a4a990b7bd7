//! What a program is held by with and without namespaces: limits, no capabilities, the filter.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::enter::Failed;
use crate::filter;
use crate::job::{Isolation, Job, Limits, Stdin};
use crate::probe;
use crate::sys;

/// Stack of a program, which grows to it: room for deep recursion.
const STACK_BYTES: u64 = 64 << 20;

/// Becomes the program. Returns only if that fails.
pub fn become_program(job: &Job, stdin: &OwnedFd) -> Failed {
    match prepare(job, stdin) {
        Ok(never) => match never {},
        Err(failed) => failed,
    }
}

fn prepare(job: &Job, stdin: &OwnedFd) -> Result<Infallible, Failed> {
    sys::new_session();
    if !matches!(job.stdin, Stdin::Bytes(_)) {
        // Of the channel's program only the channel is heard.
        sys::move_fd(stdin.as_raw_fd(), 2).map_err(Failed::at("keeper"))?;
    }
    let input = if matches!(job.stdin, Stdin::Dialogue) { 1 } else { stdin.as_raw_fd() };
    sys::move_fd(input, 0).map_err(Failed::at("keeper"))?;
    sys::close_from(3, true).map_err(Failed::at("keeper"))?;
    let is_probe = probe::is_probe(&job.argv);
    let seen = if is_probe { probe::before_filter(job.isolation) } else { 0 };
    limit(&job.limits).map_err(Failed::at("resource limits"))?;
    sys::set_capabilities(false).map_err(Failed::at("no new privileges"))?;
    let argv = strings(job.argv.iter().cloned())?;
    let mut env = vec!["PATH=/usr/bin:/bin".to_owned(), "LANG=C.UTF-8".to_owned()];
    env.push("HOME=/tmp".to_owned());
    env.extend(job.env.iter().map(|(name, value)| format!("{name}={value}")));
    let env = strings(env.into_iter())?;
    sys::reset_signals();
    let filtered = filter::apply();
    if job.isolation == Isolation::Strong {
        filtered.map_err(Failed::at("system call filter"))?;
    }
    if is_probe {
        probe::after_filter(seen, &job.limits);
    }
    Err(Failed { layer: "program", why: sys::exec(&argv, &env) })
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, Failed> {
    let texts: Result<Vec<CString>, _> = texts.map(CString::new).collect();
    texts.map_err(|error| Failed { layer: "program", why: io::Error::other(error) })
}

fn limit(limits: &Limits) -> io::Result<()> {
    let cpu_s = limits.cpu_ms.div_ceil(1000).max(1);
    // A second later the kernel kills what ignores the signal.
    sys::limit(libc::RLIMIT_CPU, cpu_s, cpu_s + 1)?;
    for (resource, value) in [
        (libc::RLIMIT_AS, limits.memory_bytes),
        (libc::RLIMIT_STACK, STACK_BYTES.min(limits.memory_bytes)),
        (libc::RLIMIT_FSIZE, limits.file_bytes),
        (libc::RLIMIT_NOFILE, limits.open_files_max),
        // Process 1 is one of them.
        (libc::RLIMIT_NPROC, limits.process_count_max + 1),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_SIGPENDING, 64),
    ] {
        sys::limit(resource, value, value)?;
    }
    Ok(())
}
