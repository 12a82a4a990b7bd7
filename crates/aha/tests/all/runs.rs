//! `aha check` and `aha run`.

use std::io::{BufRead, BufReader, Read};
use std::process::Command;

use serde_json::Value;

use crate::support::{aha, command, write_pipeline};

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

#[test]
fn a_signal_stops_a_run_that_can_go_on() {
    let temp = write_pipeline(1_000_000);
    let mut child = command(temp.path(), &["run", "tiny.toml"]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("zero step 2/") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended before it was stopped");
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("hint: go on with: aha run tiny.toml --resume"), "{rest}");
    let checkpoints = fs_err::read_dir(temp.path().join("runs/tiny/checkpoints/zero")).unwrap();
    assert!(checkpoints.count() > 0);

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
