//! Tests that feed a program and read what it prints. The expected output stays out here.

use std::time::Duration;

use aha_sandbox::{Exit, File, Job, Limit, Limits, Outcome, Stdin};

use super::block::Block;
use super::cases::Case;
use super::compare::is_same;
use super::toolchain::{self, Language};
use super::{Score, Settings, Stopped, Tally};
use crate::verifier::excerpt;

/// Runs `main.py` as Python would, with the two functions that the module `site` brings: loading that takes
/// as long as the rest of a start.
const PYTHON_START: &str = r#"import builtins, sys
builtins.exit = builtins.quit = sys.exit
sys.argv[0] = "main.py"
del builtins, sys
exec(compile(open("main.py", encoding="utf-8").read(), "main.py", "exec"))
"#;

/// What a compiler may use: templates and optimizers take a lot.
const COMPILER: Limits = Limits {
    cpu_ms: 30_000,
    wall_ms: Some(60_000),
    memory_bytes: 2 << 30,
    process_count_max: 64,
    file_bytes: 256 << 20,
    folder_bytes: 512 << 20,
    output_bytes: 64 << 20,
    open_files_max: 256,
};

/// Runs the program on every case, or up to the first that fails if only all of them count.
pub fn run(settings: &Settings, block: &Block<'_>, cases: &[Case]) -> Result<Tally, Stopped> {
    let mut job = start(settings, block)?;
    let mut tally = Tally { passed: 0, count: cases.len(), reason: String::new() };
    let mut left = Duration::from_secs(u64::from(settings.time_all_s));
    for (idx, case) in cases.iter().enumerate() {
        let failure = if left.is_zero() {
            Some("not started, for those before it took too long".to_owned())
        } else {
            job.stdin = Stdin::Bytes(case.input.clone().into_bytes());
            job.limits = within(settings.limits(), left);
            let outcome = aha_sandbox::run(&job)?;
            left = left.saturating_sub(outcome.wall.max(outcome.cpu));
            match is_cut(outcome.exit, &job.limits, &settings.limits()) {
                true => Some(format!("{}: what was left of `time_all_s`", outcome.exit)),
                false => failure(&outcome, &case.output, settings.tolerance),
            }
        };
        match failure {
            None => tally.passed += 1,
            Some(why) if tally.reason.is_empty() => {
                tally.reason = format!("case {} of {}: {why}", idx + 1, cases.len());
            }
            Some(_) => {}
        }
        if settings.score == Score::All && tally.passed <= idx {
            break;
        }
    }
    Ok(tally)
}

/// Limits of one start that has no more time than that, which isn't nothing.
fn within(limits: Limits, left: Duration) -> Limits {
    let left_ms = (left.as_micros().div_ceil(1000) as u64).max(1);
    Limits {
        cpu_ms: limits.cpu_ms.min(left_ms),
        wall_ms: limits.wall_ms.map(|ms| ms.min(left_ms)),
        ..limits
    }
}

/// Whether it ended at a limit that is lower than each start's.
fn is_cut(exit: Exit, had: &Limits, each: &Limits) -> bool {
    match exit {
        Exit::Limit(Limit::Cpu) => had.cpu_ms < each.cpu_ms,
        Exit::Limit(Limit::Wall) => had.wall_ms < each.wall_ms,
        _ => false,
    }
}

/// Why a case fails; none if it passes.
fn failure(outcome: &Outcome, expected: &str, tolerance: f64) -> Option<String> {
    if outcome.exit != Exit::Code(0) {
        let last = String::from_utf8_lossy(&outcome.stderr);
        let last = last.trim_end().lines().last().unwrap_or("");
        return Some(match last.is_empty() {
            true => outcome.exit.to_string(),
            false => format!("{}: {}", outcome.exit, excerpt(last)),
        });
    }
    let Ok(printed) = std::str::from_utf8(&outcome.stdout) else {
        return Some("prints what is no UTF-8".to_owned());
    };
    // What was expected is in no reason: it would be in tables that models may be trained on.
    (!is_same(expected, printed, tolerance)).then(|| format!("prints {}", excerpt(printed)))
}

/// The job that runs a program, compiled if it must be.
fn start(settings: &Settings, block: &Block<'_>) -> Result<Job, Stopped> {
    let tool = toolchain::find(block.language)
        .map_err(|missing| Stopped::Other(format!("the program is in {missing}")))?;
    let source = File {
        name: block.language.file_name().to_owned(),
        bytes: block.code.as_bytes().to_vec(),
        is_program: false,
    };
    let mut job = match block.language {
        Language::Python => {
            let mut job = Job::new([tool.program.as_str(), "-S", "-s", "-B", "-c", PYTHON_START]);
            job.env = python_env();
            job.folders.clone_from(&tool.folders);
            job.files = vec![source];
            job
        }
        Language::C | Language::Cpp | Language::Rust => {
            let bytes = compile(settings, block.language, source)?;
            let mut job = Job::new(["./main"]);
            job.files = vec![File { name: "main".to_owned(), bytes, is_program: true }];
            job
        }
    };
    job.limits = settings.limits();
    job.isolation = settings.sandbox;
    Ok(job)
}

/// Variables of an interpreter.
pub fn python_env() -> Vec<(String, String)> {
    let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // The order of a set of strings is the same in every run.
    vec![one("PYTHONHASHSEED", "0"), one("PYTHONIOENCODING", "utf-8")]
}

/// The program that a compiler makes. It runs in the sandbox as well: it reads what a model wrote.
fn compile(settings: &Settings, language: Language, source: File) -> Result<Vec<u8>, Stopped> {
    let tool = toolchain::find(language).map_err(Stopped::Other)?;
    let flags = match language {
        Language::C => "-O2 -std=c17 -w -o main main.c -lm",
        Language::Rust => "-O --edition 2021 --crate-name main -A warnings -o main main.rs",
        Language::Cpp | Language::Python => "-O2 -std=c++20 -w -o main main.cpp",
    };
    // The program comes out as what is printed; nothing else of the folder is kept.
    let script = format!("\"$0\" {flags} \"$@\" 1>&2 && exec cat main");
    let mut job = Job::new(["/bin/sh", "-c", script.as_str(), tool.program.as_str()]);
    job.folders.clone_from(&tool.folders);
    if let (Language::Rust, Some(root)) = (language, tool.folders.first()) {
        // Without `/proc` it finds neither its libraries nor its own place.
        job.env = vec![("LD_LIBRARY_PATH".to_owned(), format!("{}/lib", root.display()))];
        job.argv.push(format!("--sysroot={}", root.display()));
        // Nor does the linker that comes with it.
        job.argv.extend(["-C", "link-arg=-fuse-ld=bfd"].map(str::to_owned));
    }
    job.files = vec![source];
    job.limits = COMPILER;
    job.isolation = settings.sandbox;
    let outcome = aha_sandbox::run(&job)?;
    if outcome.exit == Exit::Code(0) {
        return Ok(outcome.stdout);
    }
    let said = String::from_utf8_lossy(&outcome.stderr);
    let is_error = |line: &&str| line.contains("error") || line.contains("Error");
    let said = said.lines().find(is_error).unwrap_or("");
    Err(Stopped::Program(format!("does not compile ({}): {}", outcome.exit, excerpt(said))))
}
