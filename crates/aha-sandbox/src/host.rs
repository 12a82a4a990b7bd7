//! The side of whoever wants a program run. Safe to call from any thread of any process.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::enter::{MARK, can_enter};
use crate::error::Error;
use crate::job::{Exit, Job, Limit, Outcome, Stdin};
use crate::sys;
use crate::wire::{self, Report};

/// How much is read from a program at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A job that is under way. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    keeper: Child,
    control: UnixStream,
    channel: Option<UnixStream>,
}

/// Runs a job to its end. What the program does is in the [`Outcome`]; an error is the machine's.
pub fn run(job: &Job) -> Result<Outcome, Error> {
    let mut running = start(job)?;
    let (stdout, stderr) = (running.keeper.stdout.take(), running.keeper.stderr.take());
    let mut collected = Collected::default();
    let is_over = match (stdout, stderr) {
        (Some(stdout), Some(stderr)) => collected
            .collect(stdout, stderr, job.limits.output_bytes)
            .map_err(Error::at("reading a program's output"))?,
        _ => false,
    };
    if is_over {
        running.cancel();
    }
    let mut outcome = running.finish()?;
    if is_over {
        outcome.exit = Exit::Limit(Limit::Output);
    }
    Ok(Outcome { stdout: collected.stdout, stderr: collected.stderr, ..outcome })
}

/// Starts a job, to talk to it through its channel if it has one.
pub fn start(job: &Job) -> Result<Running, Error> {
    if !can_enter() {
        return Err(Error::NoEntry);
    }
    let failed = "starting a sandbox's keeper";
    let (mut control, theirs) = UnixStream::pair().map_err(Error::at(failed))?;
    // This very program, even if its file has been replaced since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(MARK).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    let channel = match job.stdin {
        Stdin::Bytes(_) => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
        Stdin::Channel | Stdin::Dialogue => {
            let (ours, theirs) = UnixStream::pair().map_err(Error::at(failed))?;
            command.stdout(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::null());
            Some(ours)
        }
    };
    let keeper = command.spawn().map_err(Error::at(failed))?;
    // What the command holds of the sockets must not look like the keeper still being there.
    drop(command);
    let sent = wire::write_job(&mut control, job);
    let running = Running { keeper, control, channel };
    match sent {
        Ok(()) => Ok(running),
        // Most often the keeper has died of something, and says of what.
        Err(source) => match running.finish() {
            Err(refused @ Error::Refused { .. }) => Err(refused),
            _ => Err(Error::Environment { action: "sending a job to its keeper", source }),
        },
    }
}

impl Running {
    /// The other end of the program's descriptor 1, if the job asked for a channel or a dialogue.
    pub fn channel(&mut self) -> Option<&mut UnixStream> {
        self.channel.as_mut()
    }

    /// Has everything killed, without waiting for it.
    pub fn cancel(&self) {
        // The keeper sees the end of its input. That it has ended by itself is as good.
        let _ = self.control.shutdown(Shutdown::Write);
    }

    /// Whether it is over, so that [`Running::finish`] says at once how.
    pub fn is_over(&mut self) -> bool {
        !matches!(self.keeper.try_wait(), Ok(None))
    }

    /// Waits for the end. What was written is not collected.
    pub fn finish(mut self) -> Result<Outcome, Error> {
        let mut text = String::new();
        let read = self.control.read_to_string(&mut text);
        read.map_err(Error::at("reading a keeper's report"))?;
        match serde_json::from_str(&text) {
            Ok(Report::Ended { exit, cpu_us, wall_us }) => Ok(Outcome {
                exit,
                stdout: Vec::new(),
                stderr: Vec::new(),
                cpu: Duration::from_micros(cpu_us),
                wall: Duration::from_micros(wall_us),
            }),
            Ok(Report::Refused { layer, why }) => Err(Error::Refused { layer, why }),
            Err(_) => Err(Error::NoReport),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
        // The keeper kills all there is and then ends.
        let _ = self.keeper.wait();
    }
}

/// What a program has written.
#[derive(Default)]
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Collected {
    /// Reads both streams to their ends; true if one went over the limit, which ends the reading.
    fn collect(
        &mut self,
        mut stdout: ChildStdout,
        mut stderr: ChildStderr,
        bytes_max: usize,
    ) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut out, mut err) = (stdout.as_raw_fd(), stderr.as_raw_fd());
        // A negative descriptor is one that isn't waited for.
        while out >= 0 || err >= 0 {
            let [has_out, has_err] = sys::poll([out, err], -1);
            if has_out && read_some(&mut stdout, &mut self.stdout, &mut chunk)? == 0 {
                out = -1;
            }
            if has_err && read_some(&mut stderr, &mut self.stderr, &mut chunk)? == 0 {
                err = -1;
            }
            if self.stdout.len() > bytes_max || self.stderr.len() > bytes_max {
                self.stdout.truncate(bytes_max);
                self.stderr.truncate(bytes_max);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read_some(from: &mut impl Read, to: &mut Vec<u8>, chunk: &mut [u8]) -> io::Result<usize> {
    let len = from.read(chunk)?;
    to.extend_from_slice(&chunk[..len]);
    Ok(len)
}
