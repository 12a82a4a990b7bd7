//! Tests that call a program's functions.
//!
//! The tests run in one sandbox, the program in another, and calls go from the one to the other through
//! here, by value. See `python/judge.py` and `python/candidate.py`, which run there. The tests' process
//! serves many programs, one after the other, each from a fork of it: it is trusted as far as the data set
//! is. A program's process is made for it and dies with it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use aha_sandbox::{Exit, Job, Limits, Running, Stdin};
use serde::{Deserialize, Serialize};

use super::cases::Tests;
use super::programs::python_env;
use super::toolchain::{self, Language};
use super::{Score, Settings, Stopped, Tally};
use crate::verifier::excerpt;

const JUDGE: &str = include_str!("python/judge.py");
const CANDIDATE: &str = include_str!("python/candidate.py");

/// Longest message between the two. `python/judge.py` has it as well.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Programs that a tests' process serves before another takes its place, and its processor time for all.
const JUDGE_JOBS_MAX: u32 = 1000;
const JUDGE_CPU_MS: u64 = 3_600_000;

/// How much longer the tests may take than the program, and their processor time for one program, if its own
/// isn't more.
const JUDGE_EXTRA: Duration = Duration::from_secs(5);

const BEFORE: &str = "before they call the program";

/// The tests' process.
pub struct Judge {
    running: Running,
    jobs_left: u32,
    /// Whether the program of the present job has been asked for more than its names.
    is_program_asked: bool,
}

/// What the tests' process is asked.
#[derive(Serialize)]
struct Asked<'a> {
    kind: &'static str,
    setup: &'a str,
    tests: &'a [String],
    test: &'a str,
    entry_point: &'a str,
    prelude: &'a str,
    count_all: bool,
    /// Processor time of the tests.
    cpu_s: u64,
}

/// What it answers.
#[derive(Deserialize)]
struct Answer {
    passed: usize,
    count: usize,
    #[serde(default)]
    reason: String,
    bad_tests: Option<String>,
    /// Whether what ran the tests has come to an end before them.
    #[serde(default)]
    died: bool,
}

/// Runs the tests on the program.
pub fn run(
    settings: &Settings,
    judge: &mut Option<Judge>,
    prompt: &str,
    code: &str,
    tests: &Tests,
) -> Result<Tally, Stopped> {
    let (entry_point, prompt_code) = match tests {
        Tests::Humaneval { entry_point, .. } => (entry_point.as_str(), split(prompt, entry_point)),
        _ => ("", None),
    };
    let prelude = prompt_code.as_ref().map_or("", |prompt| prompt.before);
    let program = match &prompt_code {
        Some(prompt) if !defines(code, entry_point) => format!("{}{code}", prompt.head),
        _ => code.to_owned(),
    };
    let asked = match tests {
        Tests::Asserts { setup, tests } => {
            Asked { kind: "asserts", setup, tests, ..Asked::nothing(settings) }
        }
        Tests::Humaneval { test, .. } => {
            Asked { kind: "humaneval", test, entry_point, prelude, ..Asked::nothing(settings) }
        }
        Tests::Stdio { .. } => return Err(Stopped::Other("no tests of functions".to_owned())),
    };
    let mut candidate = aha_sandbox::start(&python(settings, CANDIDATE, settings.limits())?)?;
    let longest_ms = aha_sandbox::longest_ms(&settings.limits()).unwrap_or_default();
    let time = Duration::from_millis(longest_ms) + JUDGE_EXTRA;
    let deadline = Instant::now() + time;
    load(&mut candidate, prelude, &program)?;
    let answer = asking(settings, judge, &asked, &mut candidate, Times { time, deadline })?;
    candidate.cancel();
    let exit = candidate.finish()?.exit;
    if let Some(reason) = answer.bad_tests {
        return Err(Stopped::Other(reason));
    }
    let reason = match exit {
        Exit::Limit(_) => exit.to_string(),
        _ => excerpt(&answer.reason),
    };
    Ok(Tally { passed: answer.passed, count: answer.count.max(1), reason })
}

/// How long the tests may take.
#[derive(Clone, Copy)]
struct Times {
    /// Until they call the program: then it doesn't matter how long the program took to be loaded.
    time: Duration,
    /// Once they have called it.
    deadline: Instant,
}

impl Asked<'_> {
    fn nothing(settings: &Settings) -> Self {
        let count_all = settings.score == Score::Share;
        let cpu_s = JUDGE_EXTRA.as_secs().max(u64::from(settings.time_s));
        let (kind, setup, test, entry_point, prelude) = ("", "", "", "", "");
        Self { kind, setup, tests: &[], test, entry_point, prelude, count_all, cpu_s }
    }
}

/// Has the program run once, so that its functions are there.
fn load(candidate: &mut Running, prelude: &str, program: &str) -> Result<(), Stopped> {
    let is_seeded = if program.contains("random") { "True" } else { "False" };
    let request =
        format!("['load', {}, {}, {is_seeded}]", python_text(prelude), python_text(program));
    let reply = exchange(candidate, request.as_bytes());
    if reply.starts_with(b"[\"value\"") {
        return Ok(());
    }
    // `["error", names, name, text]`, or whatever a program has made of it.
    let reply: Vec<serde_json::Value> = serde_json::from_slice(&reply).unwrap_or_default();
    let text = |idx: usize| reply.get(idx).and_then(serde_json::Value::as_str).unwrap_or("");
    candidate.cancel();
    Err(Stopped::Program(match text(2) {
        "" => "the program ends while it is loaded".to_owned(),
        name => format!("the program raises {}", excerpt(&format!("{name}: {}", text(3)))),
    }))
}

/// Sends to the program, and reads its reply; an empty one for whatever goes wrong, which can only be its
/// own doing: its keeper ends it at its deadline, and with it the channel.
fn exchange(candidate: &mut Running, request: &[u8]) -> Vec<u8> {
    let reply = candidate.channel().ok_or(io::ErrorKind::NotConnected.into());
    let reply = reply.and_then(|channel| {
        send(channel, request)?;
        receive(channel)
    });
    reply.unwrap_or_default()
}

/// Has the tests run, passing calls and results on. A tests' process that fails is not used again.
fn asking(
    settings: &Settings,
    judge: &mut Option<Judge>,
    asked: &Asked<'_>,
    candidate: &mut Running,
    times: Times,
) -> Result<Answer, Stopped> {
    let mut working = match judge.take() {
        Some(idle) => idle,
        None => Judge::start(settings)?,
    };
    let answer = working.ask(asked, candidate, times);
    let is_program_asked = working.is_program_asked;
    match answer {
        Ok(answer) => {
            // One that died may have left a part of a message behind.
            *judge = Some(working).filter(|judge| judge.jobs_left > 0 && !answer.died);
            match answer.died && !is_program_asked {
                true => Err(Stopped::Other(format!("{} {BEFORE}", answer.reason))),
                false => Ok(answer),
            }
        }
        Err(error) if is_timeout(&error) => Err(match is_program_asked {
            true => Stopped::Program("the tests take too long".to_owned()),
            false => Stopped::Other(format!("the tests take too long {BEFORE}")),
        }),
        // From its first answer on, the program may be what ends the tests.
        Err(_) if is_program_asked => Err(Stopped::Program(
            "the tests' process ends when it has called the program".to_owned(),
        )),
        Err(error) => Err(Stopped::Other(format!("the tests' process failed: {error}"))),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Judge {
    fn start(settings: &Settings) -> Result<Self, Stopped> {
        // It waits for work for as long as there may be some.
        let limits = Limits {
            cpu_ms: JUDGE_CPU_MS,
            wall_ms: None,
            memory_bytes: 1 << 30,
            ..settings.limits()
        };
        let running = aha_sandbox::start(&python(settings, JUDGE, limits)?)?;
        Ok(Self { running, jobs_left: JUDGE_JOBS_MAX, is_program_asked: false })
    }

    fn ask(
        &mut self,
        asked: &Asked<'_>,
        candidate: &mut Running,
        times: Times,
    ) -> io::Result<Answer> {
        self.jobs_left -= 1;
        self.is_program_asked = false;
        let mut deadline = Instant::now() + times.time;
        let channel = self.running.channel().ok_or(io::ErrorKind::NotConnected)?;
        send(channel, &serde_json::to_vec(asked)?)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would be none.
            let left = Some(left.max(Duration::from_millis(1)));
            channel.set_read_timeout(left)?;
            channel.set_write_timeout(left)?;
            let message = receive(channel)?;
            match message.split_first() {
                Some((b'C', request)) => {
                    let asked_at = Instant::now();
                    let reply = exchange(candidate, request);
                    if request.starts_with(b"['has'") {
                        deadline += asked_at.elapsed();
                    } else {
                        self.is_program_asked = true;
                        deadline = times.deadline;
                    }
                    send(channel, &reply)?;
                }
                Some((b'R', answer)) => return Ok(serde_json::from_slice(answer)?),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an unknown message")),
            }
        }
    }
}

/// An interpreter with a channel.
fn python(settings: &Settings, script: &str, limits: Limits) -> Result<Job, Stopped> {
    let tool = toolchain::find(Language::Python).map_err(Stopped::Other)?;
    let mut job = Job::new([tool.program.as_str(), "-S", "-s", "-B", "-c", script]);
    job.env = python_env();
    job.folders.clone_from(&tool.folders);
    job.stdin = Stdin::Channel;
    job.limits = limits;
    job.isolation = settings.sandbox;
    Ok(job)
}

fn send(channel: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut framed = (message.len() as u32).to_le_bytes().to_vec();
    framed.extend_from_slice(message);
    channel.write_all(&framed)
}

fn receive(channel: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    channel.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    // Grows as it comes, so that a length alone takes no memory.
    let mut message = Vec::new();
    channel.take(len as u64).read_to_end(&mut message)?;
    if message.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// A text as Python writes it.
fn python_text(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\'' => quoted.push_str("\\'"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push_str(&format!("\\U{:08x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// The code in a prompt that ends with the head of a function, to be continued.
#[derive(Debug, PartialEq)]
struct PromptCode<'a> {
    /// What comes before the function: imports and helpers.
    before: &'a str,
    /// The function's head with what the prompt has of its body.
    head: &'a str,
}

/// Finds the head of the function in the prompt, and the code before it, whatever text a template has put
/// around both.
fn split<'a>(prompt: &'a str, entry_point: &str) -> Option<PromptCode<'a>> {
    let is_head = |line: &str| {
        let rest = line.strip_prefix("def ").and_then(|rest| rest.strip_prefix(entry_point));
        rest.is_some_and(|rest| rest.trim_start().starts_with('('))
    };
    let is_code = |line: &str| {
        ["from ", "import ", "def ", "class ", "@"].iter().any(|start| line.starts_with(start))
    };
    let (mut first_code, mut head_at, mut at) = (None, None, 0);
    for line in prompt.split_inclusive('\n') {
        if is_head(line) {
            head_at = Some(at);
        } else if first_code.is_none() && is_code(line) {
            first_code = Some(at);
        }
        at += line.len();
    }
    let head_at = head_at?;
    let head = &prompt[head_at..];
    let end = ["```", "<|", "</", "\nAssistant:"].iter().filter_map(|mark| head.find(mark)).min();
    let before = first_code.filter(|at| *at < head_at).map_or("", |at| &prompt[at..head_at]);
    Some(PromptCode { before, head: &head[..end.unwrap_or(head.len())] })
}

/// Whether the code defines that name itself.
fn defines(code: &str, name: &str) -> bool {
    code.lines().any(|line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        let rest =
            line.strip_prefix("def ").or_else(|| line.strip_prefix("class ")).unwrap_or(line);
        let rest = rest.strip_prefix(name).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with(['(', '=', ':']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_split_at_the_function_that_it_asks_for() {
        let prompt = "Complete this.\nfrom a import b\n\ndef help():\n    pass\n\ndef f(x):\n    \"\"\"D\"\"\"\n";
        let code = split(prompt, "f").unwrap();
        assert_eq!(code.before, "from a import b\n\ndef help():\n    pass\n\n");
        assert_eq!(code.head, "def f(x):\n    \"\"\"D\"\"\"\n");
        assert_eq!(split("def ff(x):\n", "f"), None);
        let chat =
            split("<|user|>\n```python\ndef f(x):\n  '''D'''\n```\nGo.<|end|>", "f").unwrap();
        assert_eq!((chat.before, chat.head), ("", "def f(x):\n  '''D'''\n"));
    }

    #[test]
    fn a_text_of_python_keeps_every_character() {
        assert_eq!(python_text("a'\\\n\u{1}é"), "'a\\'\\\\\\n\\U00000001é'");
    }
}
