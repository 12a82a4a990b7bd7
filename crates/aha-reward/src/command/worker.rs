//! One process of a command: lines in, lines out, bounds on both.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use aha_sandbox::{Job, Running};
use serde_json::Value;

use crate::verifier::excerpt;
use crate::wait::Cancel;
use crate::wait::cancel::LOOK_EVERY;

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Lines with answers that nobody asked for, at most, before the one that was.
const STRAYS_MAX: usize = 100;
/// Lines of stderr that go into the log, of one worker.
const LOG_LINES_MAX: usize = 1000;
/// Lines that wait to be read, of one worker.
const LINES_WAITING_MAX: usize = 16;
/// How long a process whose output has ended may take to end itself, before it is said to live on.
const END_MAX: Duration = Duration::from_millis(200);

/// A process that scores one sample at a time. It and all that it has started are killed with it.
pub(super) struct Worker {
    process: Process,
    samples: mpsc::Sender<Vec<u8>>,
    lines: mpsc::Receiver<Line>,
}

enum Process {
    Free(Child),
    /// In the sandbox; none once its end was told.
    Caged(Option<Running>),
}

/// What came out of a process.
enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Why a worker has no answer.
pub(super) enum Trouble {
    /// Nobody wants it any more.
    Stopped,
    /// The worker is of no use any more.
    Broken(String),
}

impl Worker {
    pub fn start(command: &[String]) -> io::Result<Worker> {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, which is killed as a whole, and which no key press at our terminal ends.
            .process_group(0)
            .spawn()?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pipes = stdin.zip(stdout).zip(stderr);
        let ((stdin, stdout), stderr) = pipes.expect("pipes were asked for");
        let worker = Worker::talking(Process::Free(child), stdin, stdout)?;
        let program = command[0].clone();
        start_thread(move || log_lines(stderr, &program))?;
        Ok(worker)
    }

    /// One in the sandbox.
    pub fn start_caged(job: &Job) -> io::Result<Worker> {
        let mut running = aha_sandbox::start(job).map_err(io::Error::other)?;
        let channel = running.channel().ok_or(io::ErrorKind::NotConnected)?;
        let (writer, reader) = (channel.try_clone()?, channel.try_clone()?);
        Worker::talking(Process::Caged(Some(running)), writer, reader)
    }

    /// A process with threads that write to it and read from it.
    fn talking(
        process: Process,
        writer: impl Write + Send + 'static,
        reader: impl Read + Send + 'static,
    ) -> io::Result<Worker> {
        let (samples, inbox) = mpsc::channel();
        let (out, lines) = mpsc::sync_channel(LINES_WAITING_MAX);
        let worker = Worker { process, samples, lines };
        start_thread(move || write_samples(writer, &inbox))?;
        start_thread(move || read_lines(reader, &out))?;
        Ok(worker)
    }

    pub fn is_alive(&mut self) -> bool {
        self.ended().is_none()
    }

    /// The answer to a sample whose `id` is that.
    pub fn ask(
        &mut self,
        id: u64,
        sample: &Value,
        time_max: Duration,
        cancel: &Cancel,
    ) -> Result<Value, Trouble> {
        let end = Instant::now() + time_max;
        let mut line = sample.to_string().into_bytes();
        line.push(b'\n');
        let _ = self.samples.send(line); // Whether it was read shows in what comes back.
        for _ in 0..=STRAYS_MAX {
            let answer = self.next_line(end, time_max, cancel)?;
            if answer["id"] == id {
                return Ok(answer);
            }
        }
        Err(Trouble::Broken(format!("the program answered {STRAYS_MAX} times what nobody asked")))
    }

    fn next_line(
        &mut self,
        end: Instant,
        time_max: Duration,
        cancel: &Cancel,
    ) -> Result<Value, Trouble> {
        let broken = |reason: String| Err(Trouble::Broken(reason));
        loop {
            if cancel.is_raised() {
                return Err(Trouble::Stopped);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = time_max.as_secs_f64();
                return broken(format!("the program had no answer within {seconds} s"));
            }
            return match self.lines.recv_timeout(left.min(LOOK_EVERY)) {
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(Line::Text(bytes)) => match serde_json::from_slice::<Value>(&bytes) {
                    Ok(answer) if answer.is_object() => Ok(answer),
                    _ => {
                        let shown = excerpt(&String::from_utf8_lossy(&bytes));
                        broken(format!("the program printed what is no answer: {shown}"))
                    }
                },
                Ok(Line::TooLong) => broken(format!(
                    "the program printed a line of more than {LINE_BYTES_MAX} bytes"
                )),
                Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => broken(self.death(cancel)),
            };
        }
    }

    /// How the process ended whose output has ended.
    fn death(&mut self, cancel: &Cancel) -> String {
        let end = Instant::now() + END_MAX;
        loop {
            match self.ended() {
                Some(how) => return format!("the program died: {how}"),
                None if Instant::now() < end && !cancel.is_raised() => {
                    thread::sleep(Duration::from_millis(2));
                }
                None => return "the program closed its output".to_owned(),
            }
        }
    }

    /// How the process ended, if it did.
    fn ended(&mut self) -> Option<String> {
        match &mut self.process {
            Process::Free(child) => ended(child),
            Process::Caged(running) => {
                if running.as_mut().is_some_and(|running| !running.is_over()) {
                    return None;
                }
                Some(match running.take().map(Running::finish) {
                    Some(Ok(outcome)) => outcome.exit.to_string(),
                    Some(Err(error)) => error.to_string(),
                    None => "its end was told before".to_owned(),
                })
            }
        }
    }
}

/// How a child ended, if it did. It is left to be waited for, so that its number stays its own.
fn ended(child: &Child) -> Option<String> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: zero is a value of the struct, which is valid for writes during the call.
    let (outcome, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(libc::P_PID, child.id(), &raw mut info, options), info)
    };
    // SAFETY: `waitid` has written the fields of a child, or left the zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    match (outcome, pid) {
        (0, 0) => None,
        (0, _) if info.si_code == libc::CLD_EXITED => Some(format!("exit code {status}")),
        (0, _) => Some(format!("signal {status}")),
        _ => Some(io::Error::last_os_error().to_string()),
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One in the sandbox is killed as it is dropped.
        let Process::Free(child) = &mut self.process else { return };
        if let Ok(group) = i32::try_from(child.id()) {
            // SAFETY: sends a signal and touches no memory. The group is the child's own: its number can't
            // have been given to another, as nobody has waited for the child.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = child.wait(); // It has been killed.
    }
}

/// Starts a thread, which ends with its pipe, which ends with the process.
fn start_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("aha-command".to_owned()).spawn(work).map(|_| ())
}

fn write_samples(mut stdin: impl Write, samples: &mpsc::Receiver<Vec<u8>>) {
    for sample in samples {
        // Who doesn't read any more has ended, and is seen to have.
        if stdin.write_all(&sample).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_lines(stdout: impl Read, lines: &mpsc::SyncSender<Line>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut bytes = Vec::new();
        let read = (&mut stdout).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
        let line = match read {
            Ok(0) | Err(_) => Line::End,
            Ok(_) if bytes.len() as u64 > LINE_BYTES_MAX => Line::TooLong,
            Ok(_) => Line::Text(bytes),
        };
        let is_last = !matches!(line, Line::Text(_));
        if lines.send(line).is_err() || is_last {
            return;
        }
    }
}

fn log_lines(stderr: ChildStderr, program: &str) {
    let mut stderr = BufReader::new(stderr);
    for logged_count in 0.. {
        let mut bytes = Vec::new();
        let read = (&mut stderr).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        if !matches!(read, Ok(len) if len > 0) {
            return;
        }
        // The rest is read and dropped: a full pipe would hold the program up.
        if logged_count < LOG_LINES_MAX {
            let text: String =
                String::from_utf8_lossy(&bytes).trim_end().chars().take(500).collect();
            tracing::info!(program, text, "A reward's command wrote to stderr.");
        }
    }
}
