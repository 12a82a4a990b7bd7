//! Processes of ours that answer and end, and what they may take of the machine while they do.
//!
//! What a request makes us compute, a query or the check of a pipeline, is computed by such a process and never by the
//! daemon's own: however much memory, stack or time it takes, nobody else pays for it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::child;
use crate::error::{Error, Result};

/// What it may write to the disk, in one file.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// How much is read of what it says on stderr.
const SAID_BYTES_MAX: u64 = 64 << 10;
/// How often its memory is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much it gives way to runs.
const NICE: i32 = 10;

/// What a process may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time by the clock.
    pub time: Duration,
    /// Memory that it fills, in bytes.
    pub memory_bytes: u64,
    /// Bytes of its answer.
    pub answer_bytes: u64,
}

/// What is started.
#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it is started.
    pub dir: &'a Path,
    /// Where it puts temporary files.
    pub tmp: &'a Path,
    /// What it reads on stdin.
    pub input: &'a str,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It ended by itself.
    Ended {
        /// How.
        status: ExitStatus,
        /// What it wrote to stdout.
        answer: Vec<u8>,
        /// What it wrote to stderr.
        said: String,
    },
    /// It took too long.
    TooSlow,
    /// It took too much memory.
    TooMuch,
    /// Its answer is too long.
    TooLong,
}

/// Starts a process and waits for its answer. Whatever comes of it, and also where nobody waits any more, the process
/// is gone soon after.
pub async fn answer(task: Task<'_>, bounds: Bounds) -> Result<Outcome> {
    let mut process = command(&task, bounds).spawn().map_err(Error::io("start", task.program))?;
    let pid = process.id().unwrap_or(0);
    // Where memory runs out for all, the kernel is to take this one. Without the file it chooses by itself.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
    let fills_too_much = async {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            if child::filled_bytes(pid).is_some_and(|bytes| bytes > bounds.memory_bytes) {
                return;
            }
        }
    };
    tokio::select! {
        outcome = exchange(&mut process, &task, bounds) => outcome,
        () = fills_too_much => Ok(Outcome::TooMuch),
        () = tokio::time::sleep(bounds.time) => Ok(Outcome::TooSlow),
    }
}

async fn exchange(process: &mut Child, task: &Task<'_>, bounds: Bounds) -> Result<Outcome> {
    let (stdin, stdout, stderr) =
        (process.stdin.take(), process.stdout.take(), process.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A process that ended early says why on stderr.
            let _ = stdin.write_all(task.input.as_bytes()).await;
        }
        Ok(())
    };
    let hear = async {
        let answer = read(stdout, bounds.answer_bytes + 1).await;
        match answer.len() as u64 > bounds.answer_bytes {
            true => Err(Outcome::TooLong),
            false => Ok(answer),
        }
    };
    let listen = async { Ok(read(stderr, SAID_BYTES_MAX).await) };
    let (answer, said) = match tokio::try_join!(hear, listen, write) {
        Ok((answer, said, ())) => (answer, said),
        Err(outcome) => return Ok(outcome),
    };
    let status = process.wait().await.map_err(Error::io("wait for", task.program))?;
    Ok(Outcome::Ended { status, answer, said: String::from_utf8_lossy(&said).into_owned() })
}

/// What a process writes, at most `bytes_max` of it.
async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>, bytes_max: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // A pipe that breaks has said all that it will.
        let _ = from.take(bytes_max).read_to_end(&mut bytes).await;
    }
    bytes
}

/// The last error among lines as `aha` writes them to stderr, with its remedy.
pub fn last_word(said: &str) -> Option<(String, Option<String>)> {
    let last = |prefix: &str| {
        let line = said.lines().rev().find_map(|line| line.strip_prefix(prefix));
        line.map(str::to_owned)
    };
    last("error: ").map(|error| (error, last("hint: ")))
}

fn command(task: &Task<'_>, bounds: Bounds) -> Command {
    let mut command = std::process::Command::new(task.program);
    command.arg0("aha").args(&task.args).current_dir(task.dir);
    command.env("TMPDIR", task.tmp).env_remove("AHA_TOKEN");
    child::die_with_parent(&mut command);
    limit(&mut command, bounds);
    let mut command = Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Bounds what the process may take of the machine.
fn limit(command: &mut std::process::Command, bounds: Bounds) {
    let limits = [
        // By all its threads together.
        (libc::RLIMIT_CPU, bounds.time.as_secs() * 2 + 1),
        (libc::RLIMIT_FSIZE, FILE_BYTES_MAX),
        (libc::RLIMIT_CORE, 0),
    ];
    let set = move || {
        for (what, most) in limits {
            let bound = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: a system call that may be made between fork and exec; `bound` lives through it.
            if unsafe { libc::setrlimit(what, &bound) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        // SAFETY: as above. One that may not give way works all the same.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        Ok(())
    };
    // SAFETY: `set` makes system calls only; it takes no memory and no lock.
    unsafe { command.pre_exec(set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(script: &str, bounds: Bounds) -> Outcome {
        let temp = tempfile::tempdir().unwrap();
        let task = Task {
            program: Path::new("/bin/sh"),
            args: vec!["-c".into(), script.into()],
            dir: temp.path(),
            tmp: temp.path(),
            input: "in\n",
        };
        answer(task, bounds).await.unwrap()
    }

    const BOUNDS: Bounds =
        Bounds { time: Duration::from_secs(60), memory_bytes: 64 << 20, answer_bytes: 100 };

    #[tokio::test]
    async fn what_is_asked_is_answered() {
        match ask("cat; echo why >&2; exit 2", BOUNDS).await {
            Outcome::Ended { status, answer, said } => {
                assert_eq!(
                    (status.code(), &answer[..], said.as_str()),
                    (Some(2), &b"in\n"[..], "why\n")
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_takes_too_much_is_ended() {
        let slow = Bounds { time: Duration::from_millis(50), ..BOUNDS };
        assert!(matches!(ask("exec sleep 600", slow).await, Outcome::TooSlow));
        let endless = ask("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", BOUNDS).await;
        assert!(matches!(endless, Outcome::TooLong));
        // The shell holds the whole text, and doubles it until it is ended.
        let large = ask("a=aaaaaaaaaaaaaaaa; while :; do a=$a$a; done", BOUNDS).await;
        assert!(matches!(large, Outcome::TooMuch), "{large:?}");
    }
}
