//! `aha query` on run directories made by hand.

use serde_json::json;

use crate::support::{aha, command, write_run};

const BY_STEP: &str = "SELECT step, avg(reward) AS reward, avg(completion_len_tokens) AS length FROM rollouts GROUP BY step ORDER BY step";

#[test]
fn the_newest_run_is_asked_and_named() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    let outcome = aha(temp.path(), &["query", BY_STEP, "--json"]);
    let expected = json!([
        {"step": 1, "reward": 0.25, "length": 3.0},
        {"step": 2, "reward": 0.5, "length": 3.0},
    ]);
    assert_eq!(outcome.json(), expected);
    assert_eq!(outcome.stderr, "run: runs/mine\n");
    let table = aha(temp.path(), &["query", BY_STEP]);
    assert!(table.stdout.contains("| 1    | 0.25   | 3.0    |"), "{table:?}");
    let csv = aha(temp.path(), &["query", BY_STEP, "--format", "csv"]);
    assert_eq!(csv.stdout, "step,reward,length\n1,0.25,3.0\n2,0.5,3.0\n");
}

#[test]
fn programs_are_graded_in_a_query() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    let tests = r#"{"kind":"asserts","tests":["assert twice(2) == 4"]}"#;
    let sql = format!(
        "SELECT grade('code', NULL, 'def twice(x): return ' || body, '{tests}') AS score \
         FROM (VALUES (1, '2 * x'), (2, 'x'), (3, NULL)) AS t (n, body) ORDER BY n"
    );
    let outcome = aha(temp.path(), &["query", &sql, "--format", "csv"]);
    assert_eq!(outcome.stdout, "score\n1.0\n0.0\n\"\"\n", "{outcome:?}");
}

#[test]
fn several_runs_are_told_apart() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("a"));
    write_run(&temp.path().join("b"));
    let sql = "SELECT run, count(*) AS n FROM metrics GROUP BY run ORDER BY run";
    let outcome = aha(temp.path(), &["query", sql, "--run", "a", "--run", "b", "--json"]);
    assert_eq!(outcome.json(), json!([{"run": "a", "n": 2}, {"run": "b", "n": 2}]));
}

#[test]
fn what_a_model_wrote_is_shown_and_not_sent() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    let sql = "SELECT completion FROM rollouts LIMIT 1";
    for format in ["table", "json"] {
        let outcome = aha(temp.path(), &["query", sql, "--format", format]);
        assert!(!outcome.stdout.contains(['\u{1b}', '\u{9b}']), "{outcome:?}");
    }
    let exact = aha(temp.path(), &["query", sql, "--json"]).json();
    assert_eq!(exact[0]["completion"], crate::support::HOSTILE);
}

#[test]
fn a_wrong_query_is_misuse_with_a_suggestion() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    let cases = [
        ("SELECT rewrad FROM rollouts", "did you mean `reward`?"),
        ("SELECT 1 FROM rolouts", "did you mean `rollouts`?"),
        ("SELEC 1", "not valid SQL"),
        ("DROP TABLE rollouts", "only queries are allowed"),
    ];
    for (sql, said) in cases {
        let outcome = aha(temp.path(), &["query", sql]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{sql}: {outcome:?}");
        assert!(outcome.stderr.contains(said), "{sql}: {outcome:?}");
    }
}

#[test]
fn an_answer_goes_to_a_file() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    let out = temp.path().join("x.parquet");
    let args = ["query", BY_STEP, "--format", "parquet", "--out", "x.parquet"];
    let outcome = aha(temp.path(), &args);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""), "{outcome:?}");
    let batches = aha_rollout::read::read_part(&out).unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    let csv = aha(temp.path(), &["query", BY_STEP, "--format", "csv", "--out", "x.csv"]);
    assert_eq!(csv.code, Some(0), "{csv:?}");
    assert!(fs_err::read_to_string(temp.path().join("x.csv")).unwrap().starts_with("step,"));
}

#[test]
fn tables_are_queried_without_a_run() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs_err::write(temp.path().join(name), text).unwrap();
    write(
        "pool.jsonl",
        "{\"id\":1,\"prompt\":\"One and two\"}\n{\"id\":2,\"prompt\":\"one and two?\"}\n",
    );
    write("like.csv", "id,prompt\n7,one AND two\n");
    write(
        "query.sql",
        "-- A comment.\nSELECT id, duplicate_of FROM mark_duplicates((SELECT * FROM pool), id, prompt, 1)",
    );
    let pool = ["--table", "pool=pool.jsonl", "--json"];
    let ask = |args: &[&str]| aha(temp.path(), &[&["query"], args, &pool].concat());
    let marked = ask(&["--file", "query.sql", "--memory", "64MiB"]);
    let expected = json!([{"id": 1, "duplicate_of": null}, {"id": 2, "duplicate_of": 1}]);
    assert_eq!((marked.json(), &*marked.stderr), (expected, ""));
    let sql = "SELECT count(contaminated_by) AS n FROM \
               mark_contaminated((SELECT * FROM pool), prompt, (SELECT * FROM exam))";
    assert_eq!(ask(&[sql, "--table", "exam=like.csv"]).json(), json!([{"n": 2}]));
    // A run's tables are there beside those that are given.
    write_run(&temp.path().join("runs/mine"));
    let sql = "SELECT count(*) AS n FROM metrics CROSS JOIN pool";
    assert_eq!(ask(&[sql, "--run", "runs/mine"]).json(), json!([{"n": 4}]));
}

#[test]
fn tables_and_sizes_that_are_wrong_are_misuse() {
    let temp = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["SELECT 1", "--table", "pool"], "write NAME=PATH"),
        (&["SELECT 1", "--table", "pool=nowhere.parquet"], "nowhere.parquet"),
        (&["SELECT 1", "--table", "pool=https://example.org/x.parquet"], "download it"),
        (&["SELECT 1", "--table", "a=a.csv", "--memory", "1MiB"], "at least 64MiB"),
        (&["--file", "nowhere.sql", "--table", "a=a.csv"], "nowhere.sql"),
        (&["SELECT 1", "--file", "nowhere.sql"], "cannot be used with"),
        (&["--table", "a=a.csv"], "required arguments were not provided"),
    ];
    for (args, said) in cases {
        let outcome = aha(temp.path(), &[&["query"], args].concat());
        assert_eq!((outcome.code, &*outcome.stdout), (Some(2), ""), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(said), "{args:?}: {outcome:?}");
    }
}

#[test]
fn a_directory_is_no_file_for_an_answer() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("here");
    write_run(&dir.join("runs/mine"));
    let outcome = aha(&dir, &["query", BY_STEP, "--format", "csv", "--out", "."]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert_eq!(fs_err::read_dir(temp.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/mine"));
    // 4^8 rows: more than a pipe holds.
    let tables: Vec<String> = (0..8).map(|idx| format!("rollouts AS r{idx}")).collect();
    let sql = format!("SELECT r0.completion FROM {}", tables.join(", "));
    let mut child = command(temp.path(), &["query", &sql, "--format", "csv"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "run: runs/mine\n");
}
