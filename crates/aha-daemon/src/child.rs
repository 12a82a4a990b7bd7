//! A run's process: `aha run`, in a process group of its own, that can't outlive the daemon.
//!
//! The kernel kills the process when the thread ends that started it (`PR_SET_PDEATHSIG`), so that thread waits for the
//! process and nothing else. A daemon that is killed leaves no process behind that it would have to find again, and
//! nobody works on a run twice: what is lost since the last checkpoint is made again, with the same bits. What the
//! daemon before left behind all the same is known by its number and its start, and is killed first ([`end_leftover`]).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::admit::{Ending, LastWord};
use crate::error::{Error, Result};
use crate::record::{Process, Trouble};

/// Longest line that is read of a process; what is longer is passed over.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// How much is read of the end of what a process wrote to stderr.
const SAID_BYTES_MAX: u64 = 4 << 10;
/// A file of what processes wrote to stderr begins anew when it is larger.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// How long lines are waited for after the process has ended.
const LINES_AFTER_END: Duration = Duration::from_secs(2);
/// How much rather than others the kernel ends runs, from -1000 to 1000.
const OOM_SCORE: &str = "500";
/// How long a process is waited for that was killed.
const KILLED_WAIT: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it is started.
    pub dir: PathBuf,
    /// Where its stderr goes to.
    pub output: PathBuf,
}

/// What is told of a process.
#[derive(Debug)]
pub enum Said {
    /// It runs.
    Started(Process),
    /// It wrote a line of JSON.
    Event(Value),
    /// It ended. Nothing is told after that.
    Ended(Ending),
}

/// A process that may be signalled.
#[derive(Clone, Debug, Default)]
pub struct Child(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Its number, as long as no other process can have that.
    pid: Option<i32>,
    /// A signal that came before the process.
    pending: Option<i32>,
    is_asked: bool,
    is_killed: bool,
}

impl State {
    /// Whether a signal of ours ended the process: one that comes early finds nobody who would write a checkpoint.
    fn is_ours(&self, signal: Option<i32>) -> bool {
        self.is_killed || self.is_asked && signal == Some(libc::SIGTERM)
    }
}

impl Child {
    /// Asks it to stop after a checkpoint.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_asked = true;
        match state.pid {
            Some(pid) => signal(pid, libc::SIGTERM),
            None => state.pending = Some(libc::SIGTERM),
        }
    }

    /// Ends it, and what it started, at once.
    pub fn kill(&self) {
        let mut state = self.state();
        state.is_killed = true;
        match state.pid {
            Some(pid) => signal(-pid, libc::SIGKILL),
            None => state.pending = Some(libc::SIGKILL),
        }
    }

    fn set_pid(&self, pid: i32) {
        let mut state = self.state();
        state.pid = Some(pid);
        if let Some(wanted) = state.pending.take() {
            signal(pid, wanted);
        }
    }

    /// Nothing half-done can be left by a panic, so a poisoned lock is taken.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts a process on a thread of its own, which tells what happens.
pub fn start(spec: Spec, tell: impl Fn(Said) + Clone + Send + 'static) -> Result<Child> {
    let child = Child::default();
    let handle = child.clone();
    let thread = std::thread::Builder::new().name("aha-child".to_owned());
    let run = move || {
        let ending = run(&spec, &handle, &tell).unwrap_or_else(|error| Ending {
            said: format!("error: {error}\n"),
            ..Ending::default()
        });
        tell(Said::Ended(ending));
    };
    thread
        .spawn(run)
        .map_err(|error| Error::environment(format!("can't start a thread: {error}")))?;
    Ok(child)
}

fn run(
    spec: &Spec,
    child: &Child,
    tell: &(impl Fn(Said) + Clone + Send + 'static),
) -> Result<Ending> {
    let (output, begins_at) = open_output(&spec.output)?;
    let mut command = Command::new(&spec.program);
    command.arg0("aha").args(&spec.args).current_dir(&spec.dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output);
    command.process_group(0).env_remove("AHA_TOKEN");
    die_with_parent(&mut command);
    let killed_before = oom_kills();
    let mut process = command.spawn().map_err(Error::io("start", &spec.program))?;
    // Where the kernel has to end something for want of memory, it is rather a run than the daemon.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", process.id()), OOM_SCORE);
    let pid = i32::try_from(process.id()).unwrap_or(i32::MAX);
    child.set_pid(pid);
    tell(Said::Started(Process { pid: process.id(), start_ticks: start_ticks(pid).unwrap_or(0) }));
    let lines = process.stdout.take().map(|stdout| read_lines(stdout, tell.clone()));
    wait_without_reaping(pid);
    {
        let mut state = child.state();
        // What it started and left behind ends with it.
        signal(-pid, libc::SIGKILL);
        state.pid = None;
    }
    let status = process.wait().map_err(Error::io("wait for", &spec.program))?;
    let heard =
        lines.and_then(|lines| lines.recv_timeout(LINES_AFTER_END).ok()).unwrap_or_default();
    Ok(Ending {
        code: status.code(),
        signal: status.signal(),
        last_word: heard.last_word,
        said: tail(&spec.output, begins_at),
        has_stepped: heard.has_stepped,
        is_out_of_memory: status.signal() == Some(libc::SIGKILL) && oom_kills() > killed_before,
        is_ours: child.state().is_ours(status.signal()),
    })
}

/// Makes the kernel kill the process when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let set = move || {
        // SAFETY: both are system calls that may be made between fork and exec.
        let is_set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0;
        // SAFETY: as above.
        let is_orphan = unsafe { libc::getppid() } as u32 != parent;
        match is_set && !is_orphan {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: `set` makes system calls only; it takes no memory and no lock.
    unsafe { command.pre_exec(set) };
}

/// What was heard of a process.
#[derive(Debug, Default)]
struct Heard {
    last_word: Option<LastWord>,
    has_stepped: bool,
}

/// Reads lines until there are no more, on a thread of its own.
fn read_lines(
    stdout: impl Read + Send + 'static,
    tell: impl Fn(Said) + Send + 'static,
) -> Receiver<Heard> {
    let (done, result) = channel();
    let read = move || {
        let mut reader = BufReader::new(stdout);
        let mut heard = Heard::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if !matches!(read, Ok(len) if len > 0) {
                break;
            }
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            match event["event"].as_str() {
                Some("ended") => heard.last_word = last_word(&event),
                Some("step") => heard.has_stepped = true,
                _ => {}
            }
            tell(Said::Event(event));
        }
        // The one who waits may have given up.
        let _ = done.send(heard);
    };
    // Without the thread nothing is heard, and the process ends when its pipe is full.
    let _ = std::thread::Builder::new().name("aha-child-lines".to_owned()).spawn(read);
    result
}

/// What a process says when it ends, as `aha run --json` has it.
fn last_word(event: &Value) -> Option<LastWord> {
    let text = |key: &str| event[key].as_str().map(str::to_owned);
    Some(match event["outcome"].as_str()? {
        "done" => LastWord::Done,
        "stopped" => LastWord::Stopped,
        _ => LastWord::Failed {
            trouble: Trouble { message: text("message").unwrap_or_default(), hint: text("hint") },
            may_pass: event["may_pass"].as_bool().unwrap_or(false),
        },
    })
}

/// Processes that the kernel has ended for want of memory, of the whole machine. Where another one ended at the same
/// time as ours was killed by somebody, that is taken for the reason.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Waits until the process has ended, and leaves its number taken.
fn wait_without_reaping(pid: i32) {
    loop {
        // SAFETY: `info` is written to only, and zeros are a value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: `info` lives through the call.
        let waited = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) };
        let is_interrupted =
            std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        if waited == 0 || !is_interrupted {
            return;
        }
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a system call on numbers. That the process has just ended is no error.
    unsafe { libc::kill(pid, signal) };
}

/// The file for stderr, and where this process's part of it begins.
fn open_output(path: &Path) -> Result<(File, u64)> {
    let len = std::fs::metadata(path).map_or(0, |found| found.len());
    if len > OUTPUT_BYTES_MAX {
        std::fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    let file =
        File::options().create(true).append(true).open(path).map_err(Error::io("open", path))?;
    Ok((file, if len > OUTPUT_BYTES_MAX { 0 } else { len }))
}

/// The end of what was written to a file from `begins_at` on.
fn tail(path: &Path, begins_at: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(SAID_BYTES_MAX).max(begins_at)))?;
        let mut bytes = Vec::new();
        file.take(SAID_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// When a process was started, in clock ticks since the machine was; none where there is no such process.
fn start_ticks(pid: i32) -> Option<u64> {
    // The start is the 20th field behind the name.
    fields(pid)?.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process has ended with all its threads. Its first thread may be seen to have ended while others still hold
/// its files open, the lock of a run directory among them.
fn has_ended(pid: i32) -> bool {
    let Some(fields) = fields(pid) else { return true };
    let mut fields = fields.split_whitespace();
    // The state is the first field, the number of threads the 18th.
    matches!(fields.next(), Some("Z" | "X")) && fields.nth(16).is_none_or(|count| count == "1")
}

/// What `/proc` says of a process, from its state on: its name, in parentheses, may hold anything.
fn fields(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.to_owned())
}

/// A process's resident memory in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    memory_bytes(pid, &["VmRSS:"])
}

/// What a process has written to memory, in bytes: what it only reads of files isn't in it.
pub fn filled_bytes(pid: u32) -> Option<u64> {
    memory_bytes(pid, &["RssAnon:", "RssShmem:"])
}

/// The sum of some lines of `/proc`.
fn memory_bytes(pid: u32, names: &[&str]) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let of = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(*name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    names.iter().map(of).sum()
}

/// Processor time that a process has had, in seconds.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    // User and system time are the 14th and 15th field; the state, first behind the name, is the 3rd.
    let ticks: Vec<f64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    // SAFETY: a question about a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (ticks.len() == 2 && per_second > 0).then(|| ticks.iter().sum::<f64>() / per_second as f64)
}

/// Kills what an earlier daemon left behind, and waits until it is gone. Says whether there was something.
pub fn end_leftover(process: Process) -> bool {
    let Ok(pid) = i32::try_from(process.pid) else { return false };
    let is_there = || start_ticks(pid) == Some(process.start_ticks) && !has_ended(pid);
    if !is_there() {
        return false;
    }
    signal(-pid, libc::SIGKILL);
    signal(pid, libc::SIGKILL);
    let until = Instant::now() + KILLED_WAIT;
    while is_there() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell's script and gathers what is told.
    fn told(script: &str, meanwhile: impl FnOnce(&Child, &Receiver<Said>)) -> Vec<Said> {
        let temp = tempfile::tempdir().unwrap();
        let spec = Spec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            dir: temp.path().to_owned(),
            output: temp.path().join("output.log"),
        };
        let (tell, heard) = channel();
        let child = start(spec, move |said| drop(tell.send(said))).unwrap();
        meanwhile(&child, &heard);
        heard.iter().collect()
    }

    fn ending(said: &[Said]) -> &Ending {
        match said.last() {
            Some(Said::Ended(ending)) => ending,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_process_says_is_told_in_order() {
        let script = r#"echo '{"event":"step","step":1}'; echo no json; echo 'error: bad' >&2
            echo '{"event":"ended","outcome":"failed","message":"m","hint":"h","may_pass":true}'; exit 1"#;
        let said = told(script, |_, _| ());
        assert!(matches!(said[0], Said::Started(process) if process.start_ticks > 0), "{said:?}");
        assert!(matches!(&said[1], Said::Event(event) if event["step"] == 1), "{said:?}");
        let ending = ending(&said);
        assert_eq!((ending.code, ending.has_stepped), (Some(1), true));
        assert_eq!(ending.said, "error: bad\n");
        let trouble = Trouble { message: "m".into(), hint: Some("h".into()) };
        assert_eq!(ending.last_word, Some(LastWord::Failed { trouble, may_pass: true }));
    }

    #[test]
    fn a_process_is_asked_to_stop_and_its_group_is_killed() {
        let script = r#"trap 'echo "{\"event\":\"ended\",\"outcome\":\"stopped\"}"; exit 1' TERM
            echo '{"event":"ready"}'; while :; do sleep 0.01; done"#;
        let said = told(script, |child, heard| {
            while !matches!(heard.recv().unwrap(), Said::Event(_)) {}
            child.stop();
        });
        assert_eq!(ending(&said).last_word, Some(LastWord::Stopped));
        let said = told("sleep 600 & echo '{}'; sleep 600", |child, heard| {
            while !matches!(heard.recv().unwrap(), Said::Event(_)) {}
            child.kill();
        });
        // The one in the background holds the pipe, so this ends only if that is killed as well.
        assert_eq!((ending(&said).signal, ending(&said).is_ours), (Some(9), true));
    }

    #[test]
    fn a_process_that_is_asked_before_it_listens_was_ended_by_us() {
        let said = told("echo '{}'; exec sleep 600", |child, heard| {
            while !matches!(heard.recv().unwrap(), Said::Event(_)) {}
            child.stop();
        });
        assert_eq!((ending(&said).signal, ending(&said).is_ours), (Some(15), true));
    }

    #[test]
    fn a_program_that_is_not_there_has_an_end_too() {
        let temp = tempfile::tempdir().unwrap();
        let spec = Spec {
            program: temp.path().join("none"),
            args: Vec::new(),
            dir: temp.path().to_owned(),
            output: temp.path().join("output.log"),
        };
        let (tell, heard) = channel();
        start(spec, move |said| drop(tell.send(said))).unwrap();
        let said: Vec<Said> = heard.iter().collect();
        assert!(ending(&said).said.contains("can't start"), "{said:?}");
    }

    /// Goal: no process outlives its daemon. Method: the thread that starts a process ends without waiting for it.
    #[test]
    fn a_process_dies_with_the_thread_that_started_it() {
        let spawn = || {
            let mut command = Command::new("sleep");
            command.arg("600");
            die_with_parent(&mut command);
            command.spawn().unwrap()
        };
        let mut process = std::thread::spawn(spawn).join().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn what_was_left_behind_is_known_by_its_start() {
        let mut process = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let pid = process.id();
        let ticks = start_ticks(pid as i32).unwrap();
        assert!(resident_bytes(pid) >= filled_bytes(pid) && filled_bytes(pid).is_some());
        assert!(cpu_seconds(pid).is_some());
        assert!(!end_leftover(Process { pid, start_ticks: ticks + 1 }), "another's number");
        assert!(process.try_wait().unwrap().is_none());
        let leftover =
            std::thread::spawn(move || end_leftover(Process { pid, start_ticks: ticks }));
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(leftover.join().unwrap());
        assert!(!end_leftover(Process { pid, start_ticks: ticks }));
    }
}
