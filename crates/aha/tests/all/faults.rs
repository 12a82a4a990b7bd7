//! Faults, injected into the real program: what it has to do, and what it was seen to do.
//!
//! Each case is a line of the table in `ops/runbook.md`, by its name. Calls to the system are made to fail by
//! `faults/shim.c`, which is built when the test is run and loaded into the program.

mod daemons;
mod disk;
mod endpoints;
mod runs;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::operations;
use crate::support::{Outcome, command, write_pipeline};

/// A fault: its name, what the program has to do, and a trial, which says what it was seen to do and panics if that is
/// something else.
type Case = (&'static str, &'static str, fn() -> String);

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Cases at once: most of the time they wait.
const PARALLEL: usize = 4;
/// Steps of the stage `zero`, and how often it writes a checkpoint.
const STEPS: u32 = 8;
const SETS: [&str; 2] = ["--set", "stage.zero.checkpoint_every=2"];

/// The library that makes calls fail.
fn shim() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("shim.so");
        let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
        let source = root.join("tests/all/faults/shim.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(&library);
        let built = compiler.arg(source).arg("-lpthread").status();
        assert!(built.expect("a C compiler is called `cc`").success());
        (folder, library)
    });
    library
}

/// A rule of the shim: while `flag` is there, or always.
fn rule(
    call: &str,
    glob: &str,
    what: &str,
    (skip, count): (u32, u32),
    flag: Option<&Path>,
) -> String {
    let flag = flag.map(|flag| flag.display().to_string()).unwrap_or_default();
    format!("{call}|{glob}|{what}|{skip}|{count}|{flag}")
}

/// With the rules in its environment, and in that of its children.
fn with_rules(command: &mut Command, rules: &[String]) {
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    if !rules.is_empty() {
        command.env("LD_PRELOAD", shim()).env("AHA_FAULTS", rules.join("\n"));
    }
}

/// A folder with the pipeline, and a run in it.
struct Bench {
    temp: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { temp: write_pipeline(STEPS) }
    }

    /// With a pipeline whose stage `zero` has these rewards too.
    fn with_reward(reward: &str) -> Bench {
        let bench = Bench::new();
        bench.edit("[{ kind = \"math\" }]", &format!("[{{ kind = \"math\" }}, {reward}]"));
        bench
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.dir().join("tiny.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs_err::write(path, text.replace(from, to)).unwrap();
    }

    fn dir(&self) -> &Path {
        self.temp.path()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// A file; rules with it hold while it is there.
    fn flag(&self) -> PathBuf {
        let flag = self.dir().join("flag");
        fs_err::write(&flag, "").unwrap();
        flag
    }

    fn command(&self, args: &[&str], rules: &[String]) -> Command {
        let all = [&["run", "tiny.toml", "--dir", "run", "--json"], &SETS[..], args].concat();
        let mut command = command(self.dir(), &all);
        with_rules(&mut command, rules);
        command
    }

    fn run(&self, args: &[&str], rules: &[String]) -> Outcome {
        outcome(&mut self.command(args, rules))
    }

    fn start(&self, args: &[&str], rules: &[String]) -> Live {
        Live::start(&mut self.command(args, rules))
    }

    /// Fails unless the run has the tables and weights of one that nobody disturbed.
    #[track_caller]
    fn has_the_same_bits(&self) {
        let (whole, run) = (whole(), files(&self.run_dir()));
        let names = |of: &BTreeMap<PathBuf, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(whole), names(&run));
        assert!(whole.len() > 15, "{:?}", names(whole));
        for (path, bytes) in whole {
            assert!(run[path] == *bytes, "{} differs", path.display());
        }
    }

    /// Goes on without a fault, and ends as a run that nobody disturbed.
    #[track_caller]
    fn goes_on_to_the_same_bits(&self) {
        let resumed = self.run(&["--resume"], &[]);
        assert_eq!(resumed.code, Some(0), "{resumed:?}");
        self.has_the_same_bits();
    }
}

/// The tables and weights of a run that nobody disturbed.
fn whole() -> &'static BTreeMap<PathBuf, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let bench = Bench::new();
        let done = bench.run(&[], &[]);
        assert_eq!(done.code, Some(0), "{done:?}");
        files(&bench.run_dir())
    })
}

/// The bytes of all files below a run's models and tables, but those of metrics: how they are cut into parts depends on
/// where a run was broken off.
fn files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = ["models", "tables"].map(|dir| run.join(dir)).into();
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let bytes = fs_err::read(&path).unwrap();
                    drop(found.insert(path.strip_prefix(run).unwrap().to_owned(), bytes));
                }
            }
        }
    }
    found
}

fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The newest line of JSON that says how a run ended.
#[track_caller]
fn ended(stdout: &str) -> Value {
    let events = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ended = events.rev().find(|event| event["event"] == "ended");
    ended.unwrap_or_else(|| panic!("no last word: {stdout}"))
}

/// A run under way.
struct Live {
    child: Child,
    lines: BufReader<ChildStdout>,
    said: String,
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended, which the test has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Live {
    fn start(command: &mut Command) -> Live {
        // What it says on stderr would fill the pipe that nobody reads.
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Live { child, lines, said: String::new() }
    }

    /// Reads on to the next event of this kind.
    #[track_caller]
    fn until(&mut self, kind: &str) -> Value {
        loop {
            let mut line = String::new();
            let len = self.lines.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended without `{kind}`: {}", self.said);
            self.said += &line;
            match serde_json::from_str::<Value>(&line) {
                Ok(event) if event["event"] == kind => return event,
                _ => {}
            }
        }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Reads on to the end; the code and all that was said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            self.said += &std::mem::take(&mut line);
        }
        (self.child.wait().unwrap().code(), std::mem::take(&mut self.said))
    }
}

/// Waits until it is so.
#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tries cases, a few at a time, and prints a table of what was seen.
fn try_all(cases: &[Case]) {
    let mut seen: Vec<(Case, Result<String, String>, Duration)> = Vec::new();
    for few in cases.chunks(PARALLEL) {
        std::thread::scope(|scope| {
            let trials: Vec<_> = few
                .iter()
                .map(|case| {
                    let began = Instant::now();
                    (*case, scope.spawn(move || ((case.2)(), began.elapsed())))
                })
                .collect();
            for (case, trial) in trials {
                let outcome = match trial.join() {
                    Ok((seen, took)) => (case, Ok(seen), took),
                    Err(_) => (case, Err("FAILED, as said above".to_owned()), Duration::ZERO),
                };
                seen.push(outcome);
            }
        });
    }
    println!("| fault | expected | seen | s |\n| --- | --- | --- | --- |");
    for ((name, expected, _), outcome, took) in &seen {
        let outcome = outcome.as_ref().unwrap_or_else(|failed| failed);
        println!("| {name} | {expected} | {outcome} | {:.1} |", took.as_secs_f64());
    }
    let failed: Vec<&str> = seen
        .iter()
        .filter(|(_, outcome, _)| outcome.is_err())
        .map(|((name, ..), ..)| *name)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn faults_of_the_disk() {
    try_all(&disk::CASES);
}

#[test]
fn faults_of_runs() {
    try_all(&runs::CASES);
}

#[test]
fn faults_of_endpoints_and_rewards() {
    try_all(&endpoints::CASES);
}

#[test]
fn faults_of_daemons() {
    try_all(&daemons::CASES);
}

#[test]
fn the_runbook_has_a_line_for_each_fault_and_what_the_program_does() {
    let runbook = operations::read("runbook.md");
    let rows = runbook.lines().skip_while(|line| !line.starts_with("| fault |")).skip(2);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let told: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], row[1])).collect();
    let cases = [&disk::CASES[..], &runs::CASES, &endpoints::CASES, &daemons::CASES].concat();
    let tried: Vec<(&str, &str)> =
        cases.iter().map(|(name, expected, _)| (*name, *expected)).collect();
    assert_eq!(told, tried);
    assert!(tried.len() >= 20, "{}", tried.len());
}
