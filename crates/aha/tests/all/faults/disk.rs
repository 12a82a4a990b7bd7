//! Faults of the disk, at each kind of thing that a run writes.

use super::*;

pub const CASES: [Case; 20] = [
    ("disk full: rows", WAITS, || full("*/tables/*zero*", 6)),
    ("disk full: a query's table", WAITS, || full("*/tables/*curve*", 0)),
    ("disk full: checkpoint", WAITS, || full("*/checkpoints/*zero*", 3)),
    ("disk full: final model", WAITS, || full("*/models/*zero*", 2)),
    ("disk full: state of the run", WAITS, || full("*/.run.json.tmp", 2)),
    ("disk full: pipeline as resolved", WAITS, || full("*/.pipeline.toml.tmp", 0)),
    ("disk full: answers of rewards", WAITS, answers_full),
    ("disk full: new folders", WAITS, || full_at("mkdir", "*/checkpoints/*zero*", 0)),
    ("quota used up: rows", WAITS, || waits("write", "*/tables/*zero*", "EDQUOT", 6)),
    (
        "disk full: metrics",
        "training goes on; metrics wait in memory, and a warning says so",
        metrics_full,
    ),
    ("disk full: log", "training goes on; events are missing in the log", log_full),
    (
        "disk full, and the run is told to stop",
        "it ends with code 1; `--resume` goes on to the same bits",
        full_and_stopped,
    ),
    (
        "less room than `--disk-reserve`",
        "the run waits before it writes, and says so; told to stop, it ends",
        under_the_reserve,
    ),
    ("I/O error: a checkpoint, once", GOES_ON, || {
        passes("write", "*/checkpoints/*zero*", "EIO", 4)
    }),
    ("I/O error: rows, once", GOES_ON, || passes("write", "*/tables/*zero*", "EIO", 6)),
    ("fsync fails, once", GOES_ON, || passes("fsync", "*/tables/*zero*", "EIO", 6)),
    ("rename fails, once", GOES_ON, || passes("rename", "*/checkpoints/zero/step-*", "EIO", 1)),
    (
        "I/O error: every checkpoint",
        "the run fails and says so; `--resume` goes on to the same bits",
        never_a_checkpoint,
    ),
    ("short writes everywhere", "nothing: what is left is written next", short_writes),
    (
        "run directory not to be written",
        "the run fails before it works, and names the file",
        read_only,
    ),
];

const WAITS: &str =
    "the run waits, says so, and goes on by itself when there is room, to the same bits";
const GOES_ON: &str = "the stage goes on from its last checkpoint by itself, to the same bits";

fn full(glob: &str, skip: u32) -> String {
    full_at("write", glob, skip)
}

fn full_at(call: &str, glob: &str, skip: u32) -> String {
    waits(call, glob, "ENOSPC", skip)
}

/// The run waits while calls fail so, and goes on when they don't any more.
fn waits(call: &str, glob: &str, what: &str, skip: u32) -> String {
    let bench = Bench::new();
    let message = wait_out(&bench, &rule(call, glob, what, (skip, 0), Some(&bench.flag())));
    bench.has_the_same_bits();
    assert_no_leftovers(&bench.run_dir());
    format!("waited ({message}), went on, same bits")
}

/// Runs to the end, with room only after the run has said that it waits; what it said.
fn wait_out(bench: &Bench, rule: &str) -> String {
    let mut live = bench.start(&[], &[rule.to_owned()]);
    let waiting = live.until("waiting");
    let message = waiting["message"].as_str().unwrap().to_owned();
    assert!(waiting["hint"].as_str().unwrap().contains("free some space"), "{waiting}");
    assert_names_are_whole(&bench.run_dir());
    fs_err::remove_file(bench.dir().join("flag")).unwrap();
    live.until("goes_on");
    let (code, said) = live.end();
    assert_eq!(code, Some(0), "{said}");
    let place = message.split('`').nth(1).unwrap_or_default().rsplit("/run/").next().unwrap();
    format!("`{place}`")
}

/// What has a name in the run directory can be read.
fn assert_names_are_whole(run: &Path) {
    for (path, bytes) in files(run) {
        let is_hidden = path.iter().any(|part| part.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|ending| ending == "parquet") {
            assert!(bytes.ends_with(b"PAR1"), "{} is half-written", path.display());
        }
    }
    for checkpoint in std::fs::read_dir(run.join("checkpoints/zero")).into_iter().flatten() {
        let path = checkpoint.unwrap().path();
        let is_hidden = path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
        assert!(is_hidden || path.join("position.json").exists(), "{} is half", path.display());
    }
}

/// Nothing written aside is left.
fn assert_no_leftovers(run: &Path) {
    let mut open = vec![run.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.extension().is_none_or(|ending| ending != "tmp"), "{}", path.display());
            open.extend(path.is_dir().then_some(path));
        }
    }
}

const SCORE: &str = "import sys, json\nfor line in sys.stdin:\n    print(json.dumps({'id': json.loads(line)['id'], 'score': 1}), flush=True)\n";

fn answers_full() -> String {
    let bench = Bench::with_reward(
        "{ kind = \"command\", weight = 0.0, command = [\"python3\", \"score.py\"] }",
    );
    fs_err::write(bench.dir().join("score.py"), SCORE).unwrap();
    let flag = bench.flag();
    let message =
        wait_out(&bench, &rule("write", "*/answers.jsonl", "ENOSPC", (3, 0), Some(&flag)));
    let answers = fs_err::read_to_string(bench.run_dir().join("answers.jsonl")).unwrap();
    assert!(answers.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{answers}");
    let weights = Path::new("models/zero/model.safetensors");
    assert!(files(&bench.run_dir())[weights] == whole()[weights]);
    format!("waited ({message}), went on, same bits")
}

fn metrics_full() -> String {
    let bench = Bench::new();
    let flag = bench.flag();
    let rules = [rule("write", "*/metrics/*", "ENOSPC", (0, 0), Some(&flag))];
    let mut live = bench.start(&[], &rules);
    live.until("warning");
    fs_err::remove_file(flag).unwrap();
    let (code, said) = live.end();
    assert_eq!(code, Some(0), "{said}");
    bench.has_the_same_bits();
    assert!(fs_err::read_dir(bench.run_dir().join("metrics")).unwrap().count() > 1);
    "warned, ended, metrics written later, same bits".to_owned()
}

fn log_full() -> String {
    let bench = Bench::new();
    let done = bench.run(&[], &[rule("write", "*/log.jsonl", "ENOSPC", (0, 0), None)]);
    assert_eq!(done.code, Some(0), "{done:?}");
    bench.has_the_same_bits();
    let log = fs_err::read_to_string(bench.run_dir().join("log.jsonl")).unwrap();
    assert_eq!(log, "");
    "ended without a log, same bits".to_owned()
}

fn full_and_stopped() -> String {
    let bench = Bench::new();
    let mut live = bench.start(&[], &[rule("write", "*/tables/*zero*", "ENOSPC", (6, 0), None)]);
    live.until("waiting");
    live.signal("-TERM");
    let (code, said) = live.end();
    let last = ended(&said);
    assert_eq!((code, last["outcome"].as_str()), (Some(1), Some("stopped")), "{last}");
    assert_names_are_whole(&bench.run_dir());
    bench.goes_on_to_the_same_bits();
    "stopped at once, went on, same bits".to_owned()
}

fn under_the_reserve() -> String {
    let bench = Bench::new();
    let mut live = bench.start(&["--disk-reserve", "900000TiB"], &[]);
    let waiting = live.until("waiting");
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("less than"), "{message}");
    live.signal("-TERM");
    let (code, said) = live.end();
    let last = ended(&said);
    assert_eq!((code, last["outcome"].as_str()), (Some(1), Some("stopped")), "{last}");
    let done = bench.run(&[], &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    bench.has_the_same_bits();
    "waited, stopped, then ran to the same bits".to_owned()
}

/// One call fails so; the run gets over it.
fn passes(call: &str, glob: &str, what: &str, skip: u32) -> String {
    let bench = Bench::new();
    let done = bench.run(&[], &[rule(call, glob, what, (skip, 1), None)]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("os error 5") || log(&bench).contains("os error 5"), "{done:?}");
    bench.has_the_same_bits();
    assert_no_leftovers(&bench.run_dir());
    "went on, same bits".to_owned()
}

fn log(bench: &Bench) -> String {
    fs_err::read_to_string(bench.run_dir().join("log.jsonl")).unwrap()
}

fn never_a_checkpoint() -> String {
    let bench = Bench::new();
    let failed = bench.run(&[], &[rule("write", "*/checkpoints/*zero*", "EIO", (0, 0), None)]);
    let last = ended(&failed.stdout);
    assert_eq!((failed.code, &last["may_pass"]), (Some(1), &Value::Bool(true)), "{failed:?}");
    assert!(last["message"].as_str().unwrap().contains("checkpoints/zero"), "{last}");
    bench.goes_on_to_the_same_bits();
    "failed by the file's name, went on later, same bits".to_owned()
}

fn short_writes() -> String {
    let bench = Bench::new();
    // A byte at a time would take minutes for weights: state, rows and log show it.
    let rules = ["*/.run.json.tmp", "*/tables/*zero*", "*/log.jsonl"]
        .map(|glob| rule("write", glob, "short", (0, 0), None));
    let done = bench.run(&[], &rules);
    assert_eq!(done.code, Some(0), "{done:?}");
    bench.has_the_same_bits();
    let log = log(&bench);
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    "same bits".to_owned()
}

fn read_only() -> String {
    let bench = Bench::new();
    let failed = bench.run(&[], &[rule("open", "*/run/*", "EROFS", (0, 0), None)]);
    let last = ended(&failed.stdout);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(last["message"].as_str().unwrap().contains("run/"), "{last}");
    "failed by the file's name".to_owned()
}
