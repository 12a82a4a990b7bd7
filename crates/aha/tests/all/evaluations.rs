//! `aha eval`: its row, benchmarks, and going on.

use std::path::Path;
use std::sync::Arc;

use aha_rollout::part::PartWriter;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use serde_json::{Value, json};

use crate::support::{aha, command, write_model};

#[test]
fn eval_prints_the_row_of_evals() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let problem = |n| {
        format!("{{\"id\":\"{n}\",\"prompt\":\"What is {n} + 1?\",\"answer\":\"{}\"}}\n", n + 1)
    };
    let text: String = (0..3).map(problem).collect();
    fs_err::write(temp.path().join("data.jsonl"), text).unwrap();
    let args = [
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--data",
        "data.jsonl",
        "--k",
        "2",
        "--max-tokens",
        "8",
    ];
    let row = aha(temp.path(), &[&args[..], &["--json"]].concat()).json();
    let names: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let schema = aha_rollout::schema::evals();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, columns);
    assert_eq!((&row["problem_count"], &row["k"]), (&json!(3), &json!(2)));
    let text = aha(temp.path(), &args);
    assert!(text.stdout.contains("pass@1") && text.stdout.contains("cons@2"), "{text:?}");
}

/// GSM8K as its publisher has it, small: a Parquet file with the columns `question` and `answer`.
fn write_gsm8k(path: &Path, rows_count: usize) {
    let text = |make: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows_count).map(make)))
    };
    let rows = RecordBatch::try_from_iter([
        ("question", text(&|i| format!("What is {i} + 1?"))),
        ("answer", text(&|i| format!("It is {}.\n#### {}", i + 1, i + 1))),
    ])
    .unwrap();
    let mut part = PartWriter::create(path, rows.schema()).unwrap();
    part.write(&rows).unwrap();
    part.finish().unwrap();
}

#[test]
fn a_benchmark_is_read_in_its_publishers_layout_and_asked_with_its_prompt() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    write_gsm8k(&temp.path().join("test.parquet"), 3);
    let args = ["eval", "--model", model.to_str().unwrap(), "--data", "test.parquet"];
    let more = ["--benchmark", "gsm8k", "--limit", "2", "--k", "4", "--max-tokens", "4", "--json"];
    let args = [&args[..], &more].concat();
    let row = aha(temp.path(), &[&args[..], &["--dir", "run"]].concat()).json();
    assert_eq!((&row["benchmark"], &row["dataset"]), (&json!("gsm8k"), &json!("gsm8k")));
    assert_eq!((&row["problem_count"], &row["ks"]), (&json!(2), &json!([1, 2, 4])));
    assert_eq!(row["pass_at_ks"].as_array().unwrap().len(), 3);
    assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!((&row["dtype"], &row["weights"]), (&json!("f32"), &json!("same")));

    let query = |sql: &str| aha(temp.path(), &["query", sql, "--run", "run", "--json"]).json();
    let sql = "SELECT prompt, answer, array_length(prompt_token_ids) AS n FROM rollouts \
               WHERE sample_idx = 0 ORDER BY prompt_id";
    let found = query(sql);
    assert_eq!(found.as_array().unwrap().len(), 2);
    assert_eq!(found[0]["prompt"], "What is 0 + 1?", "the data's own words");
    assert_eq!(found[0]["answer"], "1");
    // The published directive stands around it: some sixty letters more.
    assert!(found[0]["n"].as_u64().unwrap() > 30, "{found}");
    assert_eq!(query("SELECT pass_at_1 FROM evals")[0]["pass_at_1"], row["pass_at_1"]);
    assert_eq!(
        query("SELECT count(*) AS n FROM eval_model")[0]["n"],
        json!(8),
        "completions have a table of their own"
    );
    // Again, nothing is drawn and the row is the same, its speed included.
    assert_eq!(aha(temp.path(), &[&args[..], &["--dir", "run"]].concat()).json(), row);
    let rounded =
        aha(temp.path(), &[&args[..], &["--dtype", "bf16", "--weights", "int8"]].concat());
    let rounded = rounded.json();
    assert_eq!((&rounded["dtype"], &rounded["weights"]), (&json!("bf16"), &json!("int8")));
    let in_memory = aha(temp.path(), &args).json();
    assert_eq!(without_speed(in_memory), without_speed(row));
}

fn without_speed(mut row: Value) -> Value {
    row["tokens_per_second"] = Value::Null;
    row
}

/// P3: killed as hard as can be, at any moment, an evaluation goes on to the row of one that was left alone.
#[test]
fn an_evaluation_that_was_killed_goes_on_to_the_same_row() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    // Three chunks of 64 problems.
    write_gsm8k(&temp.path().join("test.parquet"), 150);
    let args = |dir| {
        let args = ["eval", "--model", model.to_str().unwrap(), "--data", "test.parquet"];
        let more =
            ["--benchmark", "gsm8k", "--k", "3", "--max-tokens", "24", "--json", "--dir", dir];
        [&args[..], &more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let call = |dir| {
        let args = args(dir);
        aha(temp.path(), &args.iter().map(String::as_str).collect::<Vec<_>>()).json()
    };
    let begun = std::time::Instant::now();
    let whole = call("whole");
    let took = begun.elapsed();
    for share in [0.3, 0.6, 0.9] {
        let args = args("killed");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = command(temp.path(), &args).spawn().unwrap();
        std::thread::sleep(took.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(without_speed(call("killed")), without_speed(whole));
    let rows = |dir: &str| {
        let sql =
            "SELECT rollout_id, completion_token_ids, reward FROM rollouts ORDER BY rollout_id";
        aha(temp.path(), &["query", sql, "--run", dir, "--json"]).json()
    };
    assert_eq!(rows("killed"), rows("whole"));
}

#[test]
fn what_is_wrong_with_problems_is_said_without_a_query() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let cases = [
        ("{\"id\":1,\"prompt\":null,\"answer\":\"2\"}", "has no `prompt`: it is null"),
        ("{\"id\":1,\"question\":\"x\",\"answer\":\"2\"}", "the data have no column `prompt`"),
        ("{\"id\":1,\"prompt\":\"x\"}", "no problem has `answer`, which `math` verifies"),
    ];
    for (line, said) in cases {
        fs_err::write(temp.path().join("data.jsonl"), format!("{line}\n")).unwrap();
        let args = ["eval", "--model", model.to_str().unwrap(), "--data", "data.jsonl"];
        let outcome = aha(temp.path(), &args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
        assert!(outcome.stderr.contains(said), "{outcome:?}");
        let has_query = ["WHERE", "SELECT", "aha query"].iter().any(|w| outcome.stderr.contains(w));
        assert!(!has_query, "{outcome:?}");
    }
}

#[test]
fn a_data_set_in_the_local_cache_has_an_address() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let repository = temp.path().join("hub/datasets--openai--gsm8k");
    fs_err::create_dir_all(repository.join("snapshots/abc/main")).unwrap();
    fs_err::create_dir_all(repository.join("refs")).unwrap();
    fs_err::write(repository.join("refs/main"), "abc").unwrap();
    write_gsm8k(&repository.join("snapshots/abc/main/test-00000-of-00001.parquet"), 2);
    let call = |address: &str| {
        let args = ["eval", "--model", model.to_str().unwrap(), "--benchmark", "gsm8k"];
        let more = ["--k", "1", "--max-tokens", "2", "--json", "--data", address];
        let mut command = command(temp.path(), &[&args[..], &more].concat());
        command.env("HF_HUB_CACHE", temp.path().join("hub")).output().unwrap()
    };
    for address in [
        "hf://datasets/openai/gsm8k/main/test-00000-of-00001.parquet",
        "hf://datasets/openai/gsm8k/main/test-*.parquet",
        "hf://datasets/openai/gsm8k",
    ] {
        let output = call(address);
        assert!(output.status.success(), "{address}: {output:?}");
        let row: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(row["problem_count"], 2, "{address}");
    }
    let absent = String::from_utf8(call("hf://datasets/openai/absent").stderr).unwrap();
    assert!(absent.contains("not in the local cache") && absent.contains("hint: "), "{absent}");
}
