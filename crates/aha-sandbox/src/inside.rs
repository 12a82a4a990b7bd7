//! The first process of a job. In namespaces it is process 1, so that everything dies with it.
//!
//! It gives up the caller's user, makes the root that the program sees, starts the program, collects
//! whatever loses its parent, and reports how the program ended. It shares no memory with the program,
//! which can't signal it either: process 1 gets no signals from inside that it doesn't ask for.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::cage;
use crate::enter::{Failed, kill_descendants};
use crate::job::{Exit, File, Isolation, Job, Limit, Stdin};
use crate::root;
use crate::sys;
use crate::wire::Report;

/// The user and group that a program is, as seen from inside its namespace.
pub const INSIDE_ID: u32 = 1000;

/// Where a job lives on the machine, and as whom.
pub struct Place {
    isolation: Isolation,
    /// The user outside; none for the caller's own.
    host_id: Option<u32>,
    /// The folder of a job without a root of its own.
    folder: Option<PathBuf>,
}

impl Place {
    pub fn new(isolation: Isolation, host_id: Option<u32>) -> Result<Self, Failed> {
        let mut place = Self { isolation, host_id, folder: None };
        if isolation == Isolation::Weak {
            let folder = PathBuf::from(format!("/tmp/aha-sandbox-{}", std::process::id()));
            let made = fs::create_dir(&folder)
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
                .and_then(|()| match host_id {
                    Some(id) => chown(&folder, Some(id), Some(id)),
                    None => Ok(()),
                });
            made.map_err(Failed::at("temporary folder"))?;
            place.folder = Some(folder);
        }
        Ok(place)
    }

    /// Says who the user inside is outside; called from outside.
    pub fn map_user(&self, pid: libc::pid_t) -> io::Result<()> {
        if self.isolation == Isolation::Weak {
            return Ok(());
        }
        let (user, group) = match self.host_id {
            Some(id) => (id, id),
            None => {
                // Whoever isn't root may map a group only after giving up to change groups.
                fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                (sys::user(), sys::group())
            }
        };
        fs::write(format!("/proc/{pid}/uid_map"), format!("{INSIDE_ID} {user} 1"))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{INSIDE_ID} {group} 1"))
    }

    /// Takes the folder away.
    pub fn remove(&self) {
        if let Some(folder) = &self.folder {
            // What is left lies in a folder for temporary files, and names the job.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The whole life of the first process.
pub fn live(job: &Job, place: &Place, go: OwnedFd, status: OwnedFd) -> ! {
    let report = settle(job, place, &go)
        .and_then(|stdin| start(job, &stdin, &status))
        .unwrap_or_else(|failed| failed.report());
    let text = serde_json::to_string(&report).unwrap_or_default() + "\n";
    // Shorter than what a pipe takes at once, so it arrives whole or not at all.
    let _ = fs::File::from(status).write_all(text.as_bytes());
    sys::exit(0)
}

/// Everything up to the program's start; the file that it reads from.
fn settle(job: &Job, place: &Place, go: &OwnedFd) -> Result<OwnedFd, Failed> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as _).map_err(Failed::at("keeper"))?;
    sys::read_byte(go).map_err(Failed::at("keeper"))?;
    match place.isolation {
        Isolation::Strong => {
            // As the caller: others may not reach every folder that the job is to see.
            let places = root::find(&job.folders).map_err(Failed::at("private root"))?;
            sys::make_mounts_private().map_err(Failed::at("private root"))?;
            if place.host_id.is_some() {
                sys::become_user(INSIDE_ID).map_err(Failed::at("user namespace"))?;
            }
            let given_bytes = given_bytes(job) + job.limits.folder_bytes;
            root::build(&places, given_bytes).map_err(Failed::at("private root"))?;
            std::env::set_current_dir(root::FOLDER).map_err(Failed::at("private root"))?;
            sys::set_host_name("sandbox").map_err(Failed::at("host name namespace"))?;
        }
        Isolation::Weak => {
            sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(Failed::at("keeper"))?;
            if let Some(id) = place.host_id {
                sys::become_user(id).map_err(Failed::at("user"))?;
            }
            if let Some(folder) = &place.folder {
                std::env::set_current_dir(folder).map_err(Failed::at("temporary folder"))?;
            }
        }
    }
    // Becoming another user has undone both.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as _).map_err(Failed::at("keeper"))?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(Failed::at("keeper"))?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(Failed::at("no new privileges"))?;
    for file in &job.files {
        write_file(file).map_err(Failed::at("temporary folder"))?;
    }
    let input = match &job.stdin {
        Stdin::Bytes(bytes) => input_file(bytes),
        Stdin::Channel | Stdin::Dialogue => sink(),
    };
    input.map_err(Failed::at("temporary folder"))
}

fn given_bytes(job: &Job) -> u64 {
    // Whole pages, and one for the name.
    let room = |len: usize| (len as u64).next_multiple_of(4096) + 4096;
    let input = match &job.stdin {
        Stdin::Bytes(bytes) => room(bytes.len()),
        Stdin::Channel | Stdin::Dialogue => 0,
    };
    job.files.iter().map(|file| room(file.bytes.len())).sum::<u64>() + input
}

fn write_file(file: &File) -> io::Result<()> {
    if file.name.contains('/') || file.name.starts_with('.') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file's name has a `/`"));
    }
    let mode = if file.is_program { 0o500 } else { 0o400 };
    let options = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&file.name);
    options?.write_all(&file.bytes)
}

/// Something to read nothing from and to write to.
fn sink() -> io::Result<OwnedFd> {
    let open = |path| fs::OpenOptions::new().read(true).write(true).open(path);
    // Where there is no such device, a file without a name that takes what a file may hold.
    open("/dev/null").map(OwnedFd::from).or_else(|_| {
        fs::write("aha-sink", "")?;
        let file = open("aha-sink")?;
        fs::remove_file("aha-sink")?;
        Ok(file.into())
    })
}

/// A file without a name that holds the input, to be read from its start.
fn input_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let name = Path::new("aha-input");
    fs::write(name, bytes)?;
    let file = fs::File::open(name)?;
    fs::remove_file(name)?;
    Ok(file.into())
}

/// Starts the program and waits for its end; others that end meanwhile are collected.
fn start(job: &Job, stdin: &OwnedFd, status: &OwnedFd) -> Result<Report, Failed> {
    let program = match sys::clone(0).map_err(Failed::at("keeper"))? {
        0 => {
            let failed = cage::become_program(job, stdin);
            let text = serde_json::to_string(&failed.report()).unwrap_or_default() + "\n";
            let copy = status.try_clone().map(fs::File::from);
            let _ = copy.and_then(|mut copy| copy.write_all(text.as_bytes()));
            sys::exit(1)
        }
        pid => pid,
    };
    // Held open here they would look as if the program still wrote.
    let _ = (sys::close(1), sys::close(2));
    let status = loop {
        let (pid, status) = sys::wait(-1).map_err(Failed::at("keeper"))?;
        if pid == program {
            break status;
        }
    };
    if job.isolation == Isolation::Weak {
        kill_descendants();
    }
    let cpu_us = sys::children_cpu_us();
    Ok(Report::Ended { exit: exit_of(status, cpu_us, job), cpu_us, wall_us: 0 })
}

fn exit_of(status: libc::c_int, cpu_us: u64, job: &Job) -> Exit {
    if libc::WIFEXITED(status) {
        return Exit::Code(libc::WEXITSTATUS(status));
    }
    let signal = libc::WTERMSIG(status);
    let is_out_of_time = cpu_us >= job.limits.cpu_ms * 1000;
    match signal {
        libc::SIGXCPU => Exit::Limit(Limit::Cpu),
        libc::SIGKILL if is_out_of_time => Exit::Limit(Limit::Cpu),
        _ => Exit::Signal(signal),
    }
}
