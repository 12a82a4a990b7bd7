//! P5: what a run takes is what `aha check` predicts, within a factor that a budget can live with.
//!
//! The models here are large enough that they, and not the program, are most of what is measured, and small
//! enough for seconds. The system's own figure of the peak is read while the program runs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// 21 million parameters: 80 MiB of weights, and seven times that in training with a reference.
const PIPELINE: &str = r#"
[run]
seed = 3
threads = 2
kv_cache = "8MiB"
query_memory = "32MiB"

[models]
blank = { init = "random", hidden_size = 512, intermediate_size = 1536, layers = 6, heads = 8, kv_heads = 4, max_position_embeddings = 256, tokenizer = { train = "SELECT prompt || answer AS text FROM problems", vocab_size = 24, alphabet = "seen" }, vocab_size = 4096 }

[tables]
problems = "problems.jsonl"

[[stage]]
name = "zero"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 2
prompts_per_step = 4
group_size = 4
checkpoint_every = 1
micro_batch_tokens = 256
activation_checkpointing = false
sampling = { max_tokens = 8 }
objective = { kl = 0.01, entropy = 0.001 }
reference = { refresh_every = 0 }
rewards = [{ kind = "math", extract = ["whole"] }]
watchdogs = { truncated = "stop", truncated_share_max = 0.0, no_signal = "off", unparsed = "off" }
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let problem =
        |i| format!("{{\"id\":\"p{i}\",\"prompt\":\"{i}+1=\",\"answer\":\"{}\"}}\n", i + 1);
    let problems: String = (0..8).map(problem).collect();
    std::fs::write(folder.path().join("problems.jsonl"), problems).unwrap();
    std::fs::write(folder.path().join("pipeline.toml"), PIPELINE).unwrap();
    folder
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aha"));
    // Bits and memory are those of the processor.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.current_dir(folder).args(args).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn predicted_bytes(folder: &Path, sets: &[&str]) -> u64 {
    let output =
        command(folder, &["check", "pipeline.toml", "--json"]).args(sets).output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    plan["memory_bytes"].as_u64().unwrap()
}

/// Most memory that the program had at once, and its exit code.
fn measure(mut command: Command) -> (u64, Option<i32>) {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        // A process that has ended says nothing any more.
        if let Some(found) = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()) {
            peak_kib = found;
        }
        if let Some(ended) = child.try_wait().unwrap() {
            return (peak_kib << 10, ended.code());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn assert_predicted(what: &str, measured: u64, predicted: u64) {
    let [measured, predicted] =
        [measured, predicted].map(|bytes| bytes as f64 / f64::from(1 << 20));
    assert!(measured > 200.0, "{what}: {measured:.0} MiB measured is no model");
    assert!(measured <= predicted, "{what}: {measured:.0} MiB measured, {predicted:.0} predicted");
    let bound = 1.5 * measured;
    assert!(predicted <= bound, "{what}: {measured:.0} MiB measured, {predicted:.0} predicted");
}

/// Goal: training with a reference, writing checkpoints and going on from one all stay within the prediction.
/// Method: a watchdog stops the run at its first checkpoint, and the run goes on without it.
#[test]
fn training_takes_what_was_predicted_and_so_does_going_on() {
    let folder = folder();
    let folder = folder.path();
    let predicted = predicted_bytes(folder, &[]);
    let (measured, code) = measure(command(folder, &["run", "pipeline.toml", "--dir", "run"]));
    assert_eq!(code, Some(1), "the watchdog stops it");
    assert_predicted("training", measured, predicted);
    let sets = ["--set", "stage.zero.watchdogs.truncated=off"];
    let mut again = command(folder, &["run", "pipeline.toml", "--dir", "run", "--resume"]);
    again.args(sets);
    let (measured, code) = measure(again);
    assert_eq!(code, Some(0), "a run goes on with another watchdog");
    assert_predicted("going on", measured, predicted);
}

/// Goal: what a plan needs at least is enough for it, and less is refused.
#[test]
fn a_run_is_refused_that_wants_more_than_it_may_have() {
    let folder = folder();
    let folder = folder.path();
    let enough = predicted_bytes(folder, &[]);
    for (limit, code) in [(enough, 0), (enough - 1, 2)] {
        let set = format!("run.memory={limit}");
        let checked = command(folder, &["check", "pipeline.toml", "--set", &set]).output().unwrap();
        assert_eq!(checked.status.code(), Some(code), "{limit} of {enough}");
    }
}

/// Goal: models that are only asked, a teacher and a reference, are in the prediction. Method: each as large as the
/// model that learns.
#[test]
fn a_teacher_and_a_reference_take_what_was_predicted() {
    let folder = folder();
    let folder = folder.path();
    let taught = PIPELINE
        .replacen("[tables]", &format!("{}[tables]", SAGE), 1)
        .replacen(
            "objective = { kl = 0.01, entropy = 0.001 }",
            "objective = { preset = \"distill\" }",
            1,
        )
        .replacen("rewards =", "teacher = \"sage\"\nrewards =", 1)
        .replacen("truncated = \"stop\"", "truncated = \"off\"", 1);
    let pairs = format!("{}{PAIRS}", taught.split("[[stage]]").next().unwrap());
    for (name, text) in [("taught", taught), ("pairs", pairs)] {
        std::fs::write(folder.join("pipeline.toml"), text).unwrap();
        let predicted = predicted_bytes(folder, &[]);
        let (measured, code) = measure(command(folder, &["run", "pipeline.toml", "--dir", name]));
        assert_eq!(code, Some(0), "{name}");
        assert_predicted(name, measured, predicted);
    }
}

const SAGE: &str = r#"sage = { init = "random", hidden_size = 512, intermediate_size = 1536, layers = 6, heads = 8, kv_heads = 4, max_position_embeddings = 256, tokenizer = "blank", vocab_size = 4096 }

"#;

const PAIRS: &str = r#"[[stage]]
name = "direct"
kind = "dpo"
model = "blank"
reference = "sage"
data = "SELECT prompt, answer AS chosen, answer || '0' AS rejected FROM problems"
max_tokens = 16
batch_size = 8
max_steps = 2
micro_batch_tokens = 256
activation_checkpointing = false
"#;
