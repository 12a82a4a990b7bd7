//! The keeper: this program again, started for one job. It stays outside of the job's namespaces.
//!
//! On descriptor 0 it has a socket to whoever asked; 1 and 2 become the program's. It ends the job when
//! the program ends, when time or memory run out, and when the other end of the socket is closed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::inside::{self, INSIDE_ID, Place};
use crate::job::{Exit, Isolation, Job, Limit, Limits};
use crate::sys;
use crate::tree;
use crate::wire::{self, Report};

/// The name by which this program knows that it is to be a keeper.
pub(crate) const MARK: &str = "aha-sandbox-keeper";

/// How often memory is looked at.
const TICK: Duration = Duration::from_millis(20);

/// How often in a row a program is seen to wait after its time before that is the end of it.
const IDLE_TICKS_MAX: u32 = 10;

/// How many times as long a program has that computes all the while: on a loaded machine it isn't to blame.
const STARVED: u32 = 5;

/// Namespaces of a job, each with the name of its layer.
const NAMESPACES: [(&str, libc::c_int); 6] = [
    ("user namespace", libc::CLONE_NEWUSER),
    ("mount namespace", libc::CLONE_NEWNS),
    ("process namespace", libc::CLONE_NEWPID),
    ("network namespace", libc::CLONE_NEWNET),
    ("ipc namespace", libc::CLONE_NEWIPC),
    ("host name namespace", libc::CLONE_NEWUTS),
];

static CAN_ENTER: AtomicBool = AtomicBool::new(false);

/// Becomes the keeper of a job where this process was started as one, and then doesn't return. To be
/// called first in `main`, before any thread is started; without it [`crate::start`] refuses.
pub fn enter_if_asked() {
    CAN_ENTER.store(true, Ordering::Relaxed);
    if std::env::args_os().next().is_some_and(|name| name == MARK) {
        // SAFETY: descriptor 0 is the socket that `start` put there, and nothing else owns it.
        let mut control = unsafe { UnixStream::from_raw_fd(0) };
        let report = keep(&mut control).unwrap_or_else(|failed| failed.report());
        // Where nobody listens any more, nobody needs it.
        let _ = serde_json::to_writer(&control, &report);
        sys::exit(0);
    }
}

/// How long a job can take at most, in milliseconds; none for one that waits for work.
pub fn longest_ms(limits: &Limits) -> Option<u64> {
    limits.wall_ms.map(|ms| ms * u64::from(STARVED))
}

pub(crate) fn can_enter() -> bool {
    CAN_ENTER.load(Ordering::Relaxed)
}

/// A step of making the sandbox that failed, by the layer that it belongs to.
pub(crate) struct Failed {
    pub layer: &'static str,
    pub why: io::Error,
}

impl Failed {
    /// For `map_err`.
    pub fn at(layer: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |why| Self { layer, why }
    }

    pub fn report(&self) -> Report {
        Report::Refused { layer: self.layer.to_owned(), why: self.why.to_string() }
    }
}

fn keep(control: &mut UnixStream) -> Result<Report, Failed> {
    // What the caller has open is none of the program's business.
    sys::close_from(3, false).map_err(Failed::at("keeper"))?;
    let job = wire::read_job(control).map_err(Failed::at("keeper"))?;
    let start = Instant::now();
    // What loses its parent becomes ours, so that it can be found and killed.
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(Failed::at("keeper"))?;
    let place = Place::new(job.isolation, host_id())?;
    let (go_reader, go_writer) = sys::pipe().map_err(Failed::at("keeper"))?;
    let (status_reader, status_writer) = sys::pipe().map_err(Failed::at("keeper"))?;
    let pid = match sys::clone(namespaces(job.isolation)) {
        Ok(0) => {
            drop((go_writer, status_reader));
            inside::live(&job, &place, go_reader, status_writer)
        }
        Ok(pid) => pid,
        Err(error) => return Err(refused_namespace(error)),
    };
    drop((go_reader, status_writer));
    let mapped = place.map_user(pid).map_err(Failed::at("user namespace"));
    let ended = mapped.and_then(|()| {
        // The child goes on when it reads this; it dies with the pipe.
        sys::write_byte(&go_writer).map_err(Failed::at("keeper"))?;
        // The program's output ends when the program does.
        let _ = (sys::close(1), sys::close(2));
        Ok(watch(pid, &job, control, &status_reader, start))
    });
    sys::kill(pid);
    let _ = sys::wait(pid);
    kill_descendants();
    place.remove();
    ended.map(|report| match report {
        Report::Ended { exit, cpu_us, .. } => {
            let cpu_us = cpu_us.max(sys::children_cpu_us());
            Report::Ended { exit, cpu_us, wall_us: start.elapsed().as_micros() as u64 }
        }
        refused => refused,
    })
}

fn namespaces(isolation: Isolation) -> libc::c_int {
    match isolation {
        Isolation::Strong => NAMESPACES.iter().fold(0, |all, (_, flag)| all | flag),
        Isolation::Weak => 0,
    }
}

/// Which of the namespaces it was that the kernel refused.
fn refused_namespace(error: io::Error) -> Failed {
    for (layer, flag) in NAMESPACES {
        match sys::clone(libc::CLONE_NEWUSER | flag) {
            Ok(0) => sys::exit(0),
            Ok(pid) => drop(sys::wait(pid)),
            Err(why) => return Failed { layer, why },
        }
    }
    Failed { layer: "user namespace", why: error }
}

/// Waits for the end, whoever brings it about.
fn watch(
    pid: libc::pid_t,
    job: &Job,
    control: &UnixStream,
    status: &OwnedFd,
    start: Instant,
) -> Report {
    let wall = job.limits.wall_ms.map(Duration::from_millis);
    let mut idle_ticks = 0;
    let killed = |exit| Report::Ended { exit, cpu_us: 0, wall_us: 0 };
    loop {
        if wall.is_some_and(|wall| start.elapsed() > wall) {
            let activity = tree::activity(pid);
            idle_ticks = if activity.is_running { 0 } else { idle_ticks + 1 };
            // Together they have twice what one may have, so that forks don't renew it for ever.
            if activity.cpu_ms > 2 * job.limits.cpu_ms {
                return killed(Exit::Limit(Limit::Cpu));
            }
            if idle_ticks > IDLE_TICKS_MAX || wall.is_some_and(|w| start.elapsed() > w * STARVED) {
                return killed(Exit::Limit(Limit::Wall));
            }
        }
        let left = wall.and_then(|wall| wall.checked_sub(start.elapsed()));
        let timeout = left.map_or(TICK, |left| left.min(TICK));
        let timeout_ms = timeout.as_micros().div_ceil(1000) as i32;
        let [is_ended, is_left] = sys::poll([status.as_raw_fd(), control.as_raw_fd()], timeout_ms);
        if is_ended {
            let text = read_all(status);
            let report = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
            // Without a report process 1 was killed, which only the kernel does, for lack of memory.
            return report.unwrap_or(killed(Exit::Signal(libc::SIGKILL)));
        }
        if is_left {
            return killed(Exit::Cancelled);
        }
        if tree::occupied_bytes(pid) > job.limits.memory_bytes {
            return killed(Exit::Limit(Limit::Memory));
        }
    }
}

fn read_all(from: &OwnedFd) -> String {
    let copy = from.try_clone().map(fs::File::from);
    copy.and_then(io::read_to_string).unwrap_or_default()
}

/// The user outside of the namespaces that a job runs as: where we are root, one that nobody else is.
fn host_id() -> Option<u32> {
    if sys::user() != 0 {
        return None;
    }
    // Lines of three numbers: first id here, first id outside, count.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some((count, first + count))
    });
    let (count, end) = ranges.max()?;
    // Ids of users are low; this is far from them where there is room.
    let end = end.min(0x7000_0000);
    let spread = (count / 2).clamp(1, 1 << 22);
    let id = end.checked_sub(1 + u64::from(std::process::id()) % spread)?;
    u32::try_from(id).ok().filter(|id| *id != 0 && *id != INSIDE_ID)
}

/// Kills whatever was left behind without a process namespace.
pub(crate) fn kill_descendants() {
    loop {
        for pid in tree::descendants(std::process::id() as RawFd) {
            sys::kill(pid);
        }
        // An error says that there are none any more.
        if sys::wait(-1).is_err() {
            return;
        }
    }
}
