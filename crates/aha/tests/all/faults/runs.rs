//! Faults of a run: kills, damage to its directory, the clock.

use super::*;

pub const CASES: [Case; 11] = [
    (
        "checkpoint with a wrong checksum",
        "it is passed over with a warning, and the one before is used",
        damaged_checkpoint,
    ),
    (
        "all checkpoints damaged",
        "the stage begins again and makes the same rows and weights",
        damaged_checkpoints,
    ),
    (
        "checkpoint cut short",
        "it is passed over with a warning, and the one before is used",
        short_checkpoint,
    ),
    (
        "rows lost that a checkpoint stands on",
        "refused: the run says which part is lost, and how to begin again",
        lost_rows,
    ),
    (
        "table file deleted under a run",
        "the run ends with what it read; going on is refused, since its input is gone",
        deleted_table,
    ),
    (
        "run directory deleted under a run",
        "the run fails and says what it can't write",
        deleted_run,
    ),
    (
        "second process on one run directory",
        "it waits five seconds for the first, then is refused; the first goes on",
        second_process,
    ),
    ("process killed", "`--resume` goes on from the last checkpoint to the same bits", killed),
    (
        "process told to stop",
        "it writes a checkpoint and ends with code 1; `--resume` goes on to the same bits",
        stopped,
    ),
    (
        "wall clock jumps forward and back",
        "nothing: time is only written down, and time-outs use the monotonic clock",
        clock_jumps,
    ),
    (
        "half a line at the end of log and answers",
        "it is cut off from the answers, and the log goes on below it",
        half_lines,
    ),
];

/// A run that was stopped in the middle of its stage `zero`, with checkpoints.
fn half() -> Bench {
    let bench = Bench::new();
    let mut live = bench.start(&[], &[]);
    until("two checkpoints", || checkpoints(&bench).len() >= 2);
    live.signal("-KILL");
    live.child.wait().unwrap();
    bench
}

fn checkpoints(bench: &Bench) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(bench.run_dir().join("checkpoints/zero")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_whole =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] != b'.');
    let mut found: Vec<PathBuf> = paths.filter(is_whole).collect();
    found.sort();
    found
}

/// Flips a byte of a checkpoint's weights, which keeps their length.
fn damage(checkpoint: &Path) {
    let path = checkpoint.join("model/model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs_err::write(path, bytes).unwrap();
}

/// Goes on; the step that the stage `zero` goes on from, and what was said.
fn resumed(bench: &Bench) -> (u64, Outcome) {
    let resumed = bench.run(&["--resume"], &[]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    bench.has_the_same_bits();
    let events = resumed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut begun = events.filter(|e| e["event"] == "stage_started" && e["stage"] == "zero");
    (begun.next().unwrap()["step"].as_u64().unwrap(), resumed)
}

fn damaged_checkpoint() -> String {
    let bench = half();
    let all = checkpoints(&bench);
    let step =
        |path: &Path| path.to_string_lossy().rsplit('-').next().unwrap().parse::<u64>().unwrap();
    damage(all.last().unwrap());
    let (from, outcome) = resumed(&bench);
    assert_eq!(from, step(&all[all.len() - 2]));
    assert!(outcome.stderr.contains("Checkpoint passed over"), "{outcome:?}");
    "passed over, went on from the one before, same bits".to_owned()
}

fn damaged_checkpoints() -> String {
    let bench = half();
    checkpoints(&bench).iter().for_each(|path| damage(path));
    let (from, _) = resumed(&bench);
    assert_eq!(from, 0);
    "began at step 0, same bits".to_owned()
}

fn short_checkpoint() -> String {
    let bench = half();
    let all = checkpoints(&bench);
    let path = all.last().unwrap().join("position.json");
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(path, &bytes[..bytes.len() / 2]).unwrap();
    let (from, outcome) = resumed(&bench);
    assert!(from > 0 && outcome.stderr.contains("Checkpoint passed over"), "{outcome:?}");
    "passed over, went on from the one before, same bits".to_owned()
}

fn lost_rows() -> String {
    let bench = half();
    fs_err::remove_file(bench.run_dir().join("tables/zero/step-000001.parquet")).unwrap();
    let refused = bench.run(&["--resume"], &[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let last = ended(&refused.stdout);
    assert!(last["message"].as_str().unwrap().contains("step-000001.parquet"), "{last}");
    assert!(last["hint"].is_string() && last["may_pass"] == false, "{last}");
    "refused with the part's name and a remedy".to_owned()
}

fn deleted_table() -> String {
    let bench = Bench::new();
    let mut live = bench.start(&[], &[]);
    live.until("step");
    fs_err::remove_file(bench.dir().join("problems.jsonl")).unwrap();
    let (code, said) = live.end();
    // Before `zero` has read it, the run can't go on; after that it can.
    let last = ended(&said);
    match code {
        Some(0) => bench.has_the_same_bits(),
        _ => assert!(last["message"].as_str().unwrap().contains("problems"), "{last}"),
    }
    let refused = bench.run(&["--resume"], &[]);
    assert!([Some(1), Some(2)].contains(&refused.code), "{refused:?}");
    assert!(refused.stderr.contains("problems.jsonl"), "{refused:?}");
    format!("ended with code {}; then refused by the file's name", code.unwrap())
}

fn deleted_run() -> String {
    let bench = Bench::new();
    bench.edit(&format!("steps = {STEPS}"), "steps = 100000");
    let mut live = bench.start(&[], &[]);
    while live.until("step")["stage"] != "zero" {}
    fs_err::rename(bench.run_dir(), bench.dir().join("gone")).unwrap();
    let (code, said) = live.end();
    let last = ended(&said);
    assert_eq!(code, Some(1), "{last}");
    assert!(last["message"].as_str().unwrap().contains("run/"), "{last}");
    "failed by the name of what it can't write".to_owned()
}

fn second_process() -> String {
    let bench = Bench::new();
    bench.edit(&format!("steps = {STEPS}"), "steps = 100000");
    let mut first = bench.start(&[], &[]);
    first.until("step");
    let second = bench.run(&["--resume"], &[]);
    let last = ended(&second.stdout);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        last["message"].as_str().unwrap().contains("another process works on the run"),
        "{last}"
    );
    assert_eq!(last["may_pass"], true);
    assert!(first.child.try_wait().unwrap().is_none(), "the first goes on");
    "refused by name, the first went on".to_owned()
}

fn killed() -> String {
    half().goes_on_to_the_same_bits();
    "went on, same bits".to_owned()
}

fn stopped() -> String {
    let bench = Bench::new();
    let mut live = bench.start(&[], &[]);
    while live.until("step")["stage"] != "zero" {}
    live.signal("-TERM");
    let (code, said) = live.end();
    let last = ended(&said);
    assert_eq!((code, last["outcome"].as_str()), (Some(1), Some("stopped")), "{last}");
    bench.goes_on_to_the_same_bits();
    "stopped, went on, same bits".to_owned()
}

fn clock_jumps() -> String {
    let bench = Bench::with_reward(
        "{ kind = \"command\", weight = 0.0, command = [\"python3\", \"score.py\"] }",
    );
    let program = "import sys, json\nfor line in sys.stdin:\n    print(json.dumps({'id': json.loads(line)['id'], 'score': 1}), flush=True)\n";
    fs_err::write(bench.dir().join("score.py"), program).unwrap();
    let clock = bench.dir().join("clock");
    fs_err::write(&clock, "0").unwrap();
    let mut command = bench.command(&[], &[]);
    command
        .env_remove("SOURCE_DATE_EPOCH")
        .env("LD_PRELOAD", shim())
        .env("AHA_FAULTS_CLOCK", &clock);
    let mut live = Live::start(&mut command);
    for seconds in ["300000000", "-300000000", "0"] {
        while live.until("step")["stage"] != "zero" {}
        fs_err::write(&clock, seconds).unwrap();
    }
    let (code, said) = live.end();
    assert_eq!(code, Some(0), "{said}");
    let run = files(&bench.run_dir());
    // Rows have another column and times; what was learned is the same.
    let weights = Path::new("models/zero/model.safetensors");
    assert!(run[weights] == whole()[weights]);
    "ended, same weights".to_owned()
}

fn half_lines() -> String {
    let bench = Bench::with_reward(
        "{ kind = \"command\", weight = 0.0, command = [\"python3\", \"score.py\"] }",
    );
    let program = "import sys, json\nfor line in sys.stdin:\n    print(json.dumps({'id': json.loads(line)['id'], 'score': 1}), flush=True)\n";
    fs_err::write(bench.dir().join("score.py"), program).unwrap();
    let mut live = bench.start(&[], &[]);
    while live.until("step")["stage"] != "zero" {}
    live.signal("-KILL");
    live.child.wait().unwrap();
    for name in ["log.jsonl", "answers.jsonl"] {
        let mut file =
            fs_err::OpenOptions::new().append(true).open(bench.run_dir().join(name)).unwrap();
        std::io::Write::write_all(&mut file, b"{\"key\":\"half").unwrap();
    }
    let resumed = bench.run(&["--resume"], &[]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let answers = fs_err::read_to_string(bench.run_dir().join("answers.jsonl")).unwrap();
    assert!(answers.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{answers}");
    let weights = Path::new("models/zero/model.safetensors");
    assert!(files(&bench.run_dir())[weights] == whole()[weights]);
    "cut off, went on, same weights".to_owned()
}
