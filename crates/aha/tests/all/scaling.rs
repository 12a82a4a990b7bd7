//! Test-time scaling: budget forcing, majority vote and best-of-n, in `aha generate` and `aha eval`.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{aha, aha_with, command, write_model};

const THINKING: &str =
    "{ end = \"e\", min_tokens = 4, max_tokens = 9, waits = 1, wait = \"Hm\", close = \"e|\" }";

fn generate(dir: &Path, model: &str, more: &[&str]) -> Value {
    let args = ["generate", "--model", model, "--prompt", "What is 1", "--json"];
    aha(dir, &[&args, more].concat()).json()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

#[test]
fn what_generate_forces_is_marked_and_has_the_log_probs_of_the_model() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let model = model.to_str().unwrap();
    let args = ["--max-tokens", "20", "--n", "16", "--thinking", THINKING];
    let found = generate(temp.path(), model, &args);
    let prompt = list(&found["prompt_token_ids"]);
    let completions = list(&found["completions"]);
    let all: Vec<Vec<&Value>> = completions
        .iter()
        .map(|c| prompt.iter().chain(list(&c["completion_token_ids"])).collect())
        .collect();
    let args = ["logprobs", "--model", model];
    let scored = aha_with(temp.path(), &args, &json!(all).to_string()).json();
    let mut closed = 0;
    for (completion, scored) in completions.iter().zip(list(&scored["logprobs"])) {
        let mask = list(&completion["completion_forced_mask"]);
        let logprobs = list(&completion["completion_logprobs"]);
        assert_eq!(mask.len(), logprobs.len());
        assert_eq!(&list(scored)[prompt.len() - 1..], logprobs, "one numeric path: the same bits");
        // The two tokens that close come after nine, if the model doesn't end its thinking.
        closed += usize::from(mask.len() > 10 && mask[9] == true && mask[10] == true);
    }
    assert!(closed > 3, "{closed} of 16 were closed");
    let short = "{ max_tokens = 2, close = \"</think> 7\" }";
    for completion in list(
        &generate(temp.path(), model, &["--n", "3", "--max-tokens", "20", "--thinking", short])["completions"],
    ) {
        assert_eq!(list(&completion["completion_forced_mask"])[..3], [false, false, true]);
        assert!(completion["completion"].as_str().unwrap().contains("</think> 7"));
    }
    let without = generate(temp.path(), model, &["--max-tokens", "20"]);
    assert_eq!(without["completions"][0].get("completion_forced_mask"), None);
}

#[test]
fn generate_shows_the_answer_that_wins_the_vote() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let model = model.to_str().unwrap();
    // Every completion gives the same answer, whatever it goes on with.
    let thinking = "{ max_tokens = 0, close = \"<answer>7</answer>\" }";
    let args = ["--n", "5", "--max-tokens", "40", "--thinking", thinking, "--vote"];
    let found = generate(temp.path(), model, &args);
    assert_eq!(found["vote"], json!({"answer": "7", "votes": 5, "voters": 5, "sample_idx": 0}));
    assert_eq!(found["completions"][4]["answer"], "7");
    let rank_by = ["--rank-by", "{ kind = \"regex\", pattern = \"answer\" }"];
    let found = generate(temp.path(), model, &[&args[..], &rank_by].concat());
    assert_eq!(found["vote"]["weight"], 5.0, "{found}");
    let call = ["generate", "--model", model, "--prompt", "What is 1"];
    let text = aha(temp.path(), &[&call[..], &args].concat()).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["answer    7", "votes     5 of 5 with an answer, 5 in all"], "{text}");
    assert!(lines[2].starts_with("--- completion 0: ") && !text.contains("completion 1"), "{text}");
    let more = ["--n", "2", "--max-tokens", "8", "--vote", "math"];
    let none = aha(temp.path(), &[&call[..], &more].concat());
    assert_eq!(none.stdout, "answer    none in 2 completions\n");
}

#[test]
fn generate_shows_the_completion_that_ranks_first() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let model = model.to_str().unwrap();
    let best = |weight: &str| {
        let rank_by = format!(
            "{{ kind = \"length\", max_tokens = 1, ramp_tokens = 100, weight = {weight} }}"
        );
        let stops = ["--stop", "a", "--stop", "e", "--stop", "t", "--stop", "i", "--stop", "s"];
        let args = ["--n", "12", "--max-tokens", "50", "--rank-by", &rank_by];
        let found = generate(temp.path(), model, &[&args[..], &stops].concat());
        let lens: Vec<u64> = list(&found["completions"])
            .iter()
            .map(|row| row["completion_len_tokens"].as_u64().unwrap())
            .collect();
        let idx = found["best"]["sample_idx"].as_u64().unwrap() as usize;
        assert_eq!(found["best"]["rank_by"], "length");
        assert_eq!(found["best"]["score"], found["completions"][idx]["score"]);
        (lens[idx], lens)
    };
    let (shortest, lens) = best("1.0");
    assert_eq!(Some(&shortest), lens.iter().min());
    let (longest, lens) = best("-1.0");
    assert_eq!(Some(&longest), lens.iter().max());
    assert!(shortest < longest, "{lens:?}");
    let args = ["generate", "--model", model, "--prompt", "x", "--n", "2"];
    let more = ["--max-tokens", "8", "--rank-by", "format"];
    let text = aha(temp.path(), &[&args[..], &more].concat());
    assert!(
        text.stdout.starts_with("best      of 2 by format: 0.0000\n--- completion 0"),
        "{text:?}"
    );
}

/// The row of `evals` without what the clock says.
fn without_speed(mut row: Value) -> Value {
    row["tokens_per_second"] = Value::Null;
    row
}

/// Best-of-j by definition: every subset of the samples, the best of each, of equals each as likely.
fn best_of(samples: &[(f64, f64)], j: usize) -> f64 {
    let mut shares = Vec::new();
    for set in (0..1_u32 << samples.len()).filter(|set| set.count_ones() as usize == j) {
        let members: Vec<_> =
            (0..samples.len()).filter(|i| set >> i & 1 == 1).map(|i| samples[i]).collect();
        let top = members.iter().map(|m| m.0).fold(f64::MIN, f64::max);
        let best: Vec<f64> = members.iter().filter(|m| m.0 == top).map(|m| m.1).collect();
        shares.push(best.iter().sum::<f64>() / best.len() as f64);
    }
    shares.iter().sum::<f64>() / shares.len() as f64
}

#[test]
fn eval_forces_thinking_and_counts_what_ranks_first() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let problem = |n: u32| format!("{{\"id\":\"{n}\",\"prompt\":\"What is {n} + 1?\"}}\n");
    fs_err::write(temp.path().join("data.jsonl"), (0..6).map(problem).collect::<String>()).unwrap();
    let args = [
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--data",
        "data.jsonl",
        "--k",
        "6",
        "--temperature",
        "1",
        "--top-p",
        "1",
        "--max-tokens",
        "30",
        "--thinking",
        THINKING,
        "--reward",
        "{ kind = \"regex\", pattern = \"[aeiou][^aeiou]*$\" }",
        "--rank-by",
        "{ kind = \"regex\", name = \"ranks\", pattern = \"[0-9stn]\", weight = 2.0 }",
    ];
    let json = |more: &[&str]| aha(temp.path(), &[&args[..], &["--json"], more].concat()).json();
    let row = json(&["--dir", "run"]);
    assert_eq!(without_speed(json(&[])), without_speed(row.clone()), "with a directory or without");
    assert_eq!(row["rank_by"], "ranks");
    let query = |sql: &str| aha(temp.path(), &["query", sql, "--run", "run", "--json"]).json();
    let rows = query(
        "SELECT prompt_id, reward, reward_regex, reward_ranks, completion_forced_mask FROM rollouts \
         ORDER BY prompt_id, sample_idx",
    );
    let rows = list(&rows);
    assert_eq!(rows.len(), 36);
    assert!(rows.iter().all(|row| row["reward"] == row["reward_regex"]), "what ranks is no reward");
    let is_forced = |row: &&Value| list(&row["completion_forced_mask"]).contains(&json!(true));
    assert!(rows.iter().filter(is_forced).count() > 6);
    let samples: Vec<(f64, f64)> = rows
        .iter()
        .map(|row| (row["reward_ranks"].as_f64().unwrap(), row["reward_regex"].as_f64().unwrap()))
        .collect();
    assert!(samples.iter().any(|s| s.0 == 0.0) && samples.iter().any(|s| s.0 == 1.0));
    for (idx, j) in list(&row["ks"]).iter().enumerate() {
        let j = j.as_u64().unwrap() as usize;
        let expected: f64 = samples.chunks(6).map(|chunk| best_of(chunk, j)).sum::<f64>() / 6.0;
        let found = row["bon_at_ks"][idx].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-12, "best of {j}: {found}, by definition {expected}");
    }
    let [best_of_one, mean] =
        [&row["bon_at_ks"][0], &row["pass_at_1"]].map(|x| x.as_f64().unwrap());
    assert!((best_of_one - mean).abs() < 1e-12, "{best_of_one} and {mean}");
    assert!(row["bon_at_ks_se"][0].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!(row["weighted_cons_at_k"], Value::Null, "a pattern reads no answer");
    let text = aha(temp.path(), &args).stdout;
    assert!(text.contains("bon@6") && text.contains("ranked by ranks"), "{text}");
    // Without forcing, other completions are drawn.
    let at = args.iter().position(|arg| *arg == "--thinking").unwrap();
    let free = [&args[..at], &args[at + 2..], &["--json"]].concat();
    assert_ne!(
        aha(temp.path(), &free).json()["completion_len_tokens_mean"],
        row["completion_len_tokens_mean"]
    );
}

/// P3: forced completions and ranks too are those of an evaluation that was left alone.
#[test]
fn a_forced_evaluation_that_was_killed_goes_on_to_the_same_row() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let problem =
        |n: u32| format!("{{\"id\":\"{n}\",\"prompt\":\"What is {n}?\",\"answer\":\"{n}\"}}\n");
    fs_err::write(temp.path().join("data.jsonl"), (0..150).map(problem).collect::<String>())
        .unwrap();
    let args = |dir: &'static str| {
        let args = ["eval", "--model", model.to_str().unwrap(), "--data", "data.jsonl", "--k", "3"];
        let more = ["--max-tokens", "24", "--thinking", THINKING, "--rank-by", "format", "--json"];
        [&args[..], &more, &["--dir", dir]].concat()
    };
    let begun = std::time::Instant::now();
    let whole = aha(temp.path(), &args("whole")).json();
    let took = begun.elapsed();
    for share in [0.4, 0.8] {
        let mut child = command(temp.path(), &args("killed")).spawn().unwrap();
        std::thread::sleep(took.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let killed = aha(temp.path(), &args("killed")).json();
    assert_eq!(without_speed(killed), without_speed(whole));
    let rows = |dir: &str| {
        let sql = "SELECT rollout_id, completion_token_ids, completion_forced_mask, reward_format FROM rollouts \
                   ORDER BY rollout_id";
        aha(temp.path(), &["query", sql, "--run", dir, "--json"]).json()
    };
    assert_eq!(rows("killed"), rows("whole"));
}

#[test]
fn settings_of_scaling_that_cannot_be_are_misuse() {
    let temp = tempfile::tempdir().unwrap();
    let generate = ["generate", "--model", "nowhere", "--prompt", "x", "--max-tokens", "8"];
    let eval = ["eval", "--model", "nowhere", "--data", "x.jsonl", "--max-tokens", "8"];
    let cases: [(&[&str], &[&str], &str); 9] = [
        (&generate, &["--thinking", "{ max_tokns = 3 }"], "did you mean `max_tokens`?"),
        (&generate, &["--thinking", "{ waits = -1 }"], "`thinking.waits` must not be negative"),
        (&generate, &["--thinking", "{ waits = "], "not valid TOML"),
        (
            &generate,
            &["--thinking", "{ max_tokens = 8 }"],
            "`thinking.max_tokens` must be below the 8",
        ),
        (&eval, &["--thinking", "{ min_tokens = 8 }"], "`thinking.min_tokens` must be at most 7"),
        (&generate, &["--vote", "format"], "reads no answer to vote with"),
        (&generate, &["--rank-by", "math"], "compares with the column `answer`"),
        (&generate, &["--rank-by", "length"], "`max_tokens` must be given"),
        (
            &eval,
            &["--rank-by", "{ kind = \"format\", weight = 0.0 }"],
            "all completions rank alike",
        ),
    ];
    for (command, flags, said) in cases {
        let outcome = aha(temp.path(), &[command, flags].concat());
        assert_eq!(outcome.code, Some(2), "{flags:?}: {outcome:?}");
        assert!(outcome.stderr.contains(said), "{flags:?}: {outcome:?}");
    }
}
