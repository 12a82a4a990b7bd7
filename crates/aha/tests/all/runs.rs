//! `aha check` and `aha run`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aha_flow::metrics;
use serde_json::Value;

use crate::support::{aha, command, write_pipeline};

/// What a user asks to see a run learn.
const BY_STEP: &str = "SELECT step, avg(reward), avg(completion_len_tokens) FROM rollouts GROUP BY step ORDER BY step";

#[test]
fn check_prints_the_plan() {
    let temp = write_pipeline(3);
    let text = aha(temp.path(), &["check", "tiny.toml"]);
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
    for said in ["1. cold: sft of `base`", "2. zero: rl of `cold`", "problems.jsonl", "peak memory"]
    {
        assert!(text.stdout.contains(said), "{said}: {text:?}");
    }
    let json = aha(temp.path(), &["check", "tiny.toml", "--json", "--set", "run.seed=7"]).json();
    assert_eq!(json["seed"], 7);
    let formula = json["stages"][1]["formula"].as_str().unwrap();
    assert!(!formula.is_empty());
    assert!(!temp.path().join("runs").exists(), "a check writes nothing");
}

/// Where micro-batches are ours to choose, a run that finds no room is refused; where they are given, the machine
/// that checks need not be the one that runs.
#[test]
fn a_pipeline_that_the_machine_has_no_room_for_is_refused_or_warned_of() {
    let temp = write_pipeline(3);
    let mut args = vec!["check", "tiny.toml", "--set", "run.query_memory=999TiB"];
    let refused = aha(temp.path(), &args);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("that this machine has free"), "{refused:?}");
    assert!(refused.stderr.contains("hint: lower `max_tokens`, `run.kv_cache`"), "{refused:?}");
    for given in [
        "stage.cold.micro_batch_tokens=64",
        "stage.cold.activation_checkpointing=false",
        "stage.zero.micro_batch_tokens=64",
        "stage.zero.activation_checkpointing=false",
    ] {
        args.extend(["--set", given]);
    }
    let large = aha(temp.path(), &args);
    assert_eq!(large.code, Some(0), "{large:?}");
    assert!(large.stderr.starts_with("warning: stage `"), "{large:?}");
    assert!(large.stderr.contains("999.0 TiB of memory, and this machine has"), "{large:?}");
}

#[test]
fn check_and_run_report_every_problem_with_its_line() {
    let temp = write_pipeline(3);
    let path = temp.path().join("tiny.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    let broken =
        text.replace("group_size = 2", "group_sise = 2").replace("epochs = 2", "epochs = -1");
    fs_err::write(&path, broken).unwrap();
    for args in [["check", "tiny.toml"], ["run", "tiny.toml"]] {
        let outcome = aha(temp.path(), &args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
        assert_eq!(outcome.stderr.matches("error: ").count(), 2, "{outcome:?}");
        assert!(outcome.stderr.contains("did you mean `group_size`?"), "{outcome:?}");
        assert!(outcome.stderr.contains("--> tiny.toml:"), "{outcome:?}");
    }
    assert!(!temp.path().join("runs").exists());
    let json = aha(temp.path(), &["check", "tiny.toml", "--json"]);
    let problems: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, problems["problems"].as_array().unwrap().len()), (Some(2), 2));
}

#[test]
fn a_run_writes_over_nobodys_files() {
    let temp = write_pipeline(3);
    let weights = temp.path().join("mine/models/zero/w.txt");
    fs_err::create_dir_all(weights.parent().unwrap()).unwrap();
    fs_err::write(&weights, "mine").unwrap();
    let pipeline = fs_err::read_to_string(temp.path().join("tiny.toml")).unwrap();
    fs_err::create_dir(temp.path().join("beside")).unwrap();
    fs_err::write(temp.path().join("beside/pipeline.toml"), &pipeline).unwrap();
    for (dir, named) in
        [("mine", "`models`"), ("beside", "`pipeline.toml`"), (".", "is no run directory")]
    {
        let refused = aha(temp.path(), &["run", "tiny.toml", "--dir", dir]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(named) && refused.stderr.contains("--dir"), "{refused:?}");
    }
    assert_eq!(fs_err::read_to_string(&weights).unwrap(), "mine");
    assert_eq!(fs_err::read_to_string(temp.path().join("beside/pipeline.toml")).unwrap(), pipeline);
}

#[test]
fn a_run_shows_its_steps_logs_its_events_and_prints_its_tables() {
    let temp = write_pipeline(3);
    let run = aha(temp.path(), &["run", "tiny.toml"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for said in
        ["run directory: runs/tiny", "[2/3] zero (rl)", "zero step 3/3: reward ", "done in "]
    {
        assert!(run.stderr.contains(said), "{said}: {run:?}");
    }
    assert!(
        run.stdout.contains("Completions by step") && run.stdout.contains("| 3    | 4 |"),
        "{run:?}"
    );
    let log = fs_err::read_to_string(temp.path().join("runs/tiny/log.jsonl")).unwrap();
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let stages: Vec<Value> =
        events.filter(|e| e["message"] == "Stage done.").map(|e| e["stage"].clone()).collect();
    assert_eq!(stages, ["cold", "zero", "curve"]);

    let again = aha(temp.path(), &["run", "tiny.toml"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(again.stdout, run.stdout, "a finished run shows its tables again");
    assert!(!again.stderr.contains("another version"), "{again:?}");
    let state = temp.path().join("runs/tiny/run.json");
    let text = fs_err::read_to_string(&state).unwrap();
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&version), "{text}");
    fs_err::write(&state, text.replace(&version, "\"version\": \"0.0.0\"")).unwrap();
    let newer = aha(temp.path(), &["run", "tiny.toml"]);
    assert!(newer.stderr.contains("began with another version"), "{newer:?}");
    let sql =
        "SELECT count(*) AS n FROM rollouts JOIN problems ON problems.id = rollouts.prompt_id";
    assert_eq!(aha(temp.path(), &["query", sql, "--json"]).json()[0]["n"], 12);
    let counted = aha(temp.path(), &["query", "SELECT token_count('1 + 1') AS n", "--json"]).json();
    assert!(counted[0]["n"].as_u64().unwrap() > 0);
}

#[test]
fn every_metric_of_a_run_is_documented() {
    let temp = write_pipeline(1);
    assert_eq!(aha(temp.path(), &["run", "tiny.toml"]).code, Some(0));
    let found = aha(temp.path(), &["query", "SELECT DISTINCT name FROM metrics", "--json"]).json();
    let found = found.as_array().unwrap();
    assert!(found.len() > 10, "{found:?}");
    for row in found {
        let name = row["name"].as_str().unwrap();
        let name = if name.starts_with("reward_") { "reward_NAME" } else { name };
        let is_documented = metrics::REFERENCE.iter().any(|(known, _)| *known == name);
        assert!(is_documented, "`{name}` is not in aha_flow::metrics::REFERENCE");
    }
}

#[test]
fn a_run_prints_its_events_as_json() {
    let temp = write_pipeline(2);
    let run = aha(temp.path(), &["run", "tiny.toml", "--dir", "out", "--json"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let events: Vec<Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps = events.iter().filter(|e| e["event"] == "step" && e["stage"] == "zero");
    let rewards: Vec<bool> = steps.map(|e| e["metrics"]["reward"].is_number()).collect();
    assert_eq!(rewards, [true, true]);
    assert!(events.iter().any(|e| e["event"] == "print" && e["stage"] == "curve"));
    assert!(temp.path().join("out/models/zero/config.json").exists());
}

/// Starts a run that would last for days, sends it `signal` after its second step, and reads what it says.
fn stopped_by(signal: &str, dir: &Path) -> String {
    // Whoever runs the tests may have had the signal ignored, as nohup does, and the program keeps to that.
    let mut command = Command::new("env");
    command.arg(format!("--default-signal={}", signal.trim_start_matches('-')));
    command.arg(env!("CARGO_BIN_EXE_aha")).args(["run", "tiny.toml"]).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("zero step 2/") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended before it was stopped");
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    let checkpoints = fs_err::read_dir(dir.join("runs/tiny/checkpoints/zero")).unwrap();
    assert!(checkpoints.count() > 0);
    rest
}

#[test]
fn a_signal_stops_a_run_that_can_go_on() {
    let temp = write_pipeline(1_000_000);
    let rest = stopped_by("-TERM", temp.path());
    assert!(rest.contains("hint: go on with: aha run tiny.toml --resume"), "{rest}");

    let without = aha(temp.path(), &["run", "tiny.toml"]);
    assert_eq!(without.code, Some(1), "{without:?}");
    assert!(without.stderr.contains("--resume"), "{without:?}");

    let resume = ["run", "tiny.toml", "--resume"];
    let other = aha(temp.path(), &[&resume[..], &["--set", "stage.zero.group_size=4"]].concat());
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr.contains("`stage.zero.group_size` was 2 and is 4"), "{other:?}");
    let path = temp.path().join("problems.jsonl");
    let problems = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, problems.replace("0 + 1", "1 + 0")).unwrap();
    let edited = aha(temp.path(), &resume);
    assert_eq!(edited.code, Some(1), "{edited:?}");
    assert!(edited.stderr.contains("`tables.problems` has changed"), "{edited:?}");
}

/// Goal: a run doesn't go on when rows that it has trained on are gone.
/// Method: a terminal is closed in the middle of a run, which leaves a checkpoint; then a part of each kind is
/// deleted or damaged, one after the other.
#[test]
fn lost_rows_are_noticed_before_a_run_goes_on() {
    let temp = write_pipeline(1_000_000);
    stopped_by("-HUP", temp.path());
    let run = temp.path().join("runs/tiny");
    let metrics = fs_err::read_dir(run.join("metrics")).unwrap();
    let mut metrics: Vec<_> = metrics.map(|entry| entry.unwrap().path()).collect();
    metrics.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("zero-"));
    metrics.sort();
    let parts = ["tables/cold/step-000000.parquet", "tables/zero/step-000001.parquet"];
    let parts = parts.map(|part| run.join(part)).into_iter().chain(metrics.first().cloned());
    for path in parts {
        let sound = fs_err::read(&path).unwrap();
        let mut damaged = sound.clone();
        damaged[sound.len() / 2] ^= 1;
        for content in [Some(damaged), None] {
            match content {
                Some(content) => fs_err::write(&path, content).unwrap(),
                None => fs_err::remove_file(&path).unwrap(),
            }
            let refused = aha(temp.path(), &["run", "tiny.toml", "--resume"]);
            assert_eq!(refused.code, Some(1), "{refused:?}");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(refused.stderr.contains("has lost rows"), "{refused:?}");
            assert!(refused.stderr.contains(name), "{refused:?}");
            assert!(refused.stderr.contains("hint: put it back from a copy"), "{refused:?}");
        }
        fs_err::write(&path, sound).unwrap();
    }
}

#[test]
fn lost_rows_of_a_finished_run_are_said() {
    let temp = write_pipeline(2);
    assert_eq!(aha(temp.path(), &["run", "tiny.toml"]).code, Some(0));
    fs_err::remove_file(temp.path().join("runs/tiny/tables/zero/step-000001.parquet")).unwrap();
    let again = aha(temp.path(), &["run", "tiny.toml"]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("step-000001.parquet` is missing"), "{again:?}");
    let asked = aha(temp.path(), &["query", BY_STEP]);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stderr.contains("warning: the run has lost rows"), "{asked:?}");
}

#[test]
fn a_run_that_never_began_is_not_gone_on_with() {
    let temp = write_pipeline(2);
    let refused = aha(temp.path(), &["run", "tiny.toml", "--resume", "--dir", "never"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("no run to go on with"), "{refused:?}");
    assert!(!temp.path().join("never").exists());
}

/// Goal: rows can be asked for while the run that writes them goes on.
/// Method: a run that would last for days is asked twice by the program itself, once its second step is
/// there; it is alive after each answer, and the second one knows more steps.
#[test]
fn a_query_answers_while_the_run_goes_on() {
    let temp = write_pipeline(1_000_000);
    let log = temp.path().join("stderr.txt");
    let mut run = command(temp.path(), &["run", "tiny.toml"]);
    run.stdout(fs_err::File::create(temp.path().join("stdout.txt")).unwrap().into_file());
    run.stderr(fs_err::File::create(&log).unwrap().into_file());
    let mut run = Running(run.spawn().unwrap());
    let table = temp.path().join("runs/tiny/tables/zero");
    run.wait_for(&table.join("step-000002.parquet"), &log);
    let steps = steps_of(temp.path());
    run.assert_alive(&log);
    assert!(steps >= 2, "{steps} steps");
    run.wait_for(&table.join(format!("step-{:06}.parquet", steps + 1)), &log);
    let more = steps_of(temp.path());
    run.assert_alive(&log);
    assert!(more > steps, "{more} steps after {steps}");
}

/// Asks for the steps so far, which are whole and follow each other from the first on; returns their count.
fn steps_of(dir: &Path) -> usize {
    let answer = aha(dir, &["query", BY_STEP, "--run", "runs/tiny", "--format", "csv"]);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{answer:?}");
    let rows: Vec<&str> = answer.stdout.lines().skip(1).collect();
    for (idx, row) in rows.iter().enumerate() {
        let [step, reward, length]: [&str; 3] =
            row.split(',').collect::<Vec<_>>().try_into().unwrap();
        let (reward, length): (f64, f64) = (reward.parse().unwrap(), length.parse().unwrap());
        assert_eq!(step.parse(), Ok(idx + 1), "{answer:?}");
        assert!((0.0..=1.0).contains(&reward) && (1.0..=6.0).contains(&length), "{answer:?}");
    }
    rows.len()
}

/// A run that goes on in the background, and ends with the test.
struct Running(Child);

impl Running {
    #[track_caller]
    fn assert_alive(&mut self, log: &Path) {
        let status = self.0.try_wait().unwrap();
        assert!(status.is_none(), "{status:?}: {}", fs_err::read_to_string(log).unwrap());
    }

    #[track_caller]
    fn wait_for(&mut self, path: &Path, log: &Path) {
        let until = Instant::now() + Duration::from_secs(120);
        while !path.exists() {
            self.assert_alive(log);
            assert!(Instant::now() < until, "no {} in two minutes", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Goal: queries of a run have as much memory as the pipeline gives them. Method: a join that can't spill, and
/// whose one side alone is larger.
#[test]
fn a_query_that_needs_more_memory_than_it_may_have_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let numbers: String = (0..2000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    fs_err::write(temp.path().join("numbers.jsonl"), numbers).unwrap();
    let text = r#"
[tables]
numbers = "numbers.jsonl"

[[stage]]
name = "large"
kind = "query"
sql = """
WITH many AS (SELECT 2000 * a.n + b.n AS n FROM numbers a CROSS JOIN numbers b)
SELECT count(*) AS n FROM many JOIN many AS again ON many.n = again.n"""
"#;
    fs_err::write(temp.path().join("join.toml"), text).unwrap();
    let run = |memory: &str| {
        let set = format!("run.query_memory='{memory}'");
        aha(temp.path(), &["run", "join.toml", "--dir", memory, "--set", &set])
    };
    let refused = run("32MiB");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("needs more memory"), "{refused:?}");
    assert!(refused.stderr.contains("run.query_memory"), "{refused:?}");
    assert_eq!(run("1GiB").code, Some(0));
}
