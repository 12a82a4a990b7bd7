//! A reward model from preferences, and a policy that it teaches; a policy that learns them directly.

use std::path::Path;

use tempfile::TempDir;

use crate::support::aha;

/// Pairs of strings of `x` and `y`, of which the one with more `y` is preferred, and a pipeline in miniature.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let word =
        |n: u32| (0..4).map(|bit| if n >> bit & 1 == 1 { 'y' } else { 'x' }).collect::<String>();
    let mut pairs = String::new();
    for (i, j) in (0..16_u32).flat_map(|i| (0..16_u32).map(move |j| (i, j))) {
        if i.count_ones() > j.count_ones() {
            for prompt in [(i + j) % 8, (i + 3 * j) % 8] {
                pairs += &format!(
                    "{{\"prompt\":\"{prompt}:\",\"chosen\":\"{}\",\"rejected\":\"{}\"}}\n",
                    word(i),
                    word(j)
                );
            }
        }
    }
    let prompts: String =
        (0..8).map(|i| format!("{{\"id\":\"{i}\",\"prompt\":\"{i}:\"}}\n")).collect();
    fs_err::write(folder.path().join("pairs.jsonl"), pairs).unwrap();
    fs_err::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
    fs_err::write(folder.path().join("tiny.toml"), format!("{HEAD}{PIPELINE}")).unwrap();
    folder
}

/// What each pipeline here begins with.
const HEAD: &str = r#"
[run]
seed = 5

[tables]
pairs = "pairs.jsonl"
prompts = "prompts.jsonl"

[models]
blank = { init = "random", hidden_size = 32, intermediate_size = 64, layers = 2, heads = 2, kv_heads = 1, head_dim = 16, tokenizer = { train = "SELECT prompt || chosen || rejected AS text FROM pairs", vocab_size = 14, alphabet = "seen" } }
"#;

const PIPELINE: &str = r#"
[[stage]]
name = "prefers"
kind = "reward-model"
model = "blank"
data = "SELECT * FROM pairs"
held_out_share = 0.25
epochs = 6
batch_size = 16
max_tokens = 32
centering = 0.01
optimizer = { lr = 3e-3 }

[[stage]]
name = "zero"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt FROM prompts"
steps = 20
prompts_per_step = 4
group_size = 8
sampling = { max_tokens = 6 }
objective = { kl = 0.0 }
optimizer = { lr = 3e-3 }
rewards = [{ kind = "model", model = "prefers", normalise = true, clip = [-3.0, 3.0] }]
watchdogs = { truncated = "off", no_signal = "off" }

[[stage]]
name = "samples"
kind = "sample"
model = "zero"
prompts = "SELECT id, prompt FROM prompts"
n = 2
sampling = { max_tokens = 6 }
rewards = [{ kind = "model", model = "prefers", scale = 2.0 }]
"#;

/// One number of a run.
fn number(folder: &Path, sql: &str) -> f64 {
    let rows = aha(folder, &["query", sql, "--run", "run", "--format", "json"]).json();
    rows[0]["n"].as_f64().unwrap_or_else(|| panic!("{sql}: {rows}"))
}

#[test]
fn a_reward_model_learns_preferences_and_teaches_them() {
    let folder = folder();
    let folder = folder.path();
    let outcome = aha(folder, &["run", "tiny.toml", "--dir", "run"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let held_out = number(
        folder,
        "SELECT value AS n FROM metrics WHERE stage = 'prefers' AND name = 'held_out_accuracy'",
    );
    assert!(held_out > 0.9, "{held_out} of pairs whose prompts it never saw");
    let reward = |steps: &str| {
        number(folder, &format!("SELECT avg(reward) AS n FROM zero WHERE step {steps}"))
    };
    let (first, last) = (reward("<= 2"), reward(">= 19"));
    assert!(last > first + 0.5, "mean reward {first}, then {last}");
    let nulls = number(folder, "SELECT count(*) AS n FROM rollouts WHERE reward_model IS NULL");
    assert_eq!(nulls, 0.0);
    let doubled = "SELECT max(abs(reward - reward_model)) AS n FROM samples";
    assert_eq!(number(folder, doubled), 0.0, "the column has the scaled score");

    // It is no policy, and says so wherever one is asked for.
    let args = ["generate", "--model", "run/models/prefers", "--prompt", "1:"];
    let outcome = aha(folder, &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("a reward model, where one that writes text"), "{outcome:?}");
    ranks_completions(folder);
    // And it is loaded like any model: trained on, and asked from another pipeline.
    let text = r#"
[tables]
pairs = "pairs.jsonl"
[models]
theirs = "run/models/prefers"
[[stage]]
name = "more"
kind = "reward-model"
model = "theirs"
data = "SELECT * FROM pairs"
max_steps = 2
max_tokens = 32
[[stage]]
name = "out"
kind = "export"
model = "more"
"#;
    fs_err::write(folder.join("more.toml"), text).unwrap();
    let outcome = aha(folder, &["run", "more.toml", "--dir", "more"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let config = fs_err::read_to_string(folder.join("more/models/out/config.json")).unwrap();
    assert!(config.contains("LlamaForSequenceClassification"), "{config}");
}

/// After a cold start on what was chosen and what was rejected alike, preferences decide between the two.
const DIRECT: &str = r#"
[[stage]]
name = "cold"
kind = "sft"
model = "blank"
data = "SELECT prompt, chosen AS completion FROM pairs UNION ALL SELECT prompt, rejected AS completion FROM pairs"
epochs = 4
batch_size = 16
max_tokens = 32
optimizer = { lr = 3e-3 }

[[stage]]
name = "direct"
kind = "dpo"
model = "cold"
data = "SELECT * FROM pairs"
held_out_share = 0.25
epochs = 2
batch_size = 16
max_tokens = 32
beta = 0.3
optimizer = { lr = 1e-3 }

[[stage]]
name = "samples"
kind = "sample"
model = "cold"
prompts = "SELECT id, prompt FROM prompts"
n = 32
sampling = { max_tokens = 6 }

[[stage]]
name = "better"
kind = "sample"
model = "direct"
prompts = "SELECT id, prompt FROM prompts"
n = 32
sampling = { max_tokens = 6 }
"#;

#[test]
fn a_policy_learns_preferences_without_a_reward_model() {
    let folder = folder();
    let folder = folder.path();
    fs_err::write(folder.join("direct.toml"), format!("{HEAD}{DIRECT}")).unwrap();
    let outcome = aha(folder, &["run", "direct.toml", "--dir", "run"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let held_out = number(
        folder,
        "SELECT value AS n FROM metrics WHERE stage = 'direct' AND name = 'held_out_accuracy'",
    );
    assert!(held_out > 0.9, "{held_out} of pairs whose prompts it never saw");
    // What was preferred has more of the letter `y`.
    let letters = |table: &str| {
        let count = "avg(length(completion) - length(replace(completion, 'y', '')))";
        number(folder, &format!("SELECT CAST({count} AS DOUBLE) AS n FROM {table}"))
    };
    let (before, after) = (letters("samples"), letters("better"));
    assert!(after > before + 0.5, "{before}, then {after}");
    let pairs = number(folder, "SELECT count(*) AS n FROM direct WHERE is_held_out");
    assert!(pairs > 0.0);
    let report = aha(folder, &["report", "run"]);
    assert_eq!(report.code, Some(0), "{report:?}");
}

/// A reward model that is called by its address ranks what another model writes.
fn ranks_completions(folder: &Path) {
    let rank_by = "{ kind = \"model\", model = \"run/models/prefers\" }";
    let reward = "{ kind = \"regex\", pattern = \"y\" }";
    let args = ["eval", "--model", "run/models/zero", "--data", "prompts.jsonl"];
    let more =
        ["--reward", reward, "--rank-by", rank_by, "--k", "4", "--max-tokens", "6", "--json"];
    let args = [&args[..], &more].concat();
    let mut row = aha(folder, &args).json();
    let mut in_dir = aha(folder, &[&args[..], &["--dir", "ranked"]].concat()).json();
    for row in [&mut row, &mut in_dir] {
        row["tokens_per_second"] = serde_json::Value::Null;
    }
    assert_eq!(row, in_dir);
    assert_eq!(row["rank_by"], "model");
    assert!(row["bon_at_k"].as_f64().unwrap() >= row["pass_at_1"].as_f64().unwrap(), "{row}");
    let args = ["generate", "--model", "run/models/zero", "--prompt", "1:", "--n", "6"];
    let more = ["--max-tokens", "6", "--rank-by", rank_by, "--json"];
    let found = aha(folder, &[&args[..], &more].concat()).json();
    let scores: Vec<f64> =
        (0..6).map(|idx| found["completions"][idx]["score"].as_f64().unwrap()).collect();
    let best = scores.iter().copied().fold(f64::MIN, f64::max);
    assert_eq!(found["best"]["score"].as_f64(), Some(best), "{found}");
    // One that writes text is none.
    let args = [&args[..], &["--rank-by", "{ kind = \"model\", model = \"run/models/zero\" }"]];
    let outcome = aha(folder, &args.concat());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
}
