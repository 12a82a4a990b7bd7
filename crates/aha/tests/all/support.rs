//! Calling the program, and what it is called on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_flow::models;
use aha_flow::pipeline::RandomModel;
use aha_model::tokenizer_train::{TrainOptions, train};
use aha_model::{Model, SaveDtype};
use aha_rollout::rows::{self, MetricRow, RolloutRow};
use aha_rollout::steps::{Scores, add_scores, add_untrained};
use aha_rollout::table::{TableWriter, part_name};
use serde_json::Value;
use tempfile::TempDir;

/// What a call gave.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Its stdout as JSON, after it has succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The program, to be started in `dir`.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aha"));
    command.current_dir(dir).args(args).stdin(Stdio::null());
    // What is compared here are the processor's bits.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program in `dir`.
pub fn aha(dir: &Path, args: &[&str]) -> Outcome {
    aha_with(dir, args, "")
}

/// Runs the program in `dir` with this on its stdin.
pub fn aha_with(dir: &Path, args: &[&str], stdin: &str) -> Outcome {
    let mut child = command(dir, args).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A program that refuses its arguments reads nothing.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A fixture of `aha-model`, made with torch and transformers: a model's directory, or a file of numbers.
pub fn fixture(name: &str) -> PathBuf {
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    assert!(path.exists(), "no fixture at {}", path.display());
    path
}

/// Writes a model with a tokenizer to `dir/model`.
pub fn write_model(dir: &Path) -> PathBuf {
    let options = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
    let tokenizer =
        train(["What is 1 + 2? It is 3.", "What is 4 + 5? It is 9."], &options).unwrap();
    let random = RandomModel {
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        max_position_embeddings: 128,
        ..RandomModel::default()
    };
    let config = models::config_of(&random, &tokenizer).unwrap();
    let model = Model::random(config, &Device::cpu(1), Philox::new(1)).unwrap();
    let path = dir.join("model");
    models::save(&path, &model, &tokenizer, SaveDtype::F32).unwrap();
    path
}

/// Text that would clear a terminal if it were sent to one.
pub const HOSTILE: &str = "wait\u{1b}[2J\u{9b}1;1H";

/// Writes a run directory with two steps of two completions, as a stage `zero` would.
pub fn write_run(dir: &Path) {
    fs_err::create_dir_all(dir).unwrap();
    fs_err::write(dir.join("run.json"), "{}").unwrap();
    let names = ["math".to_owned()];
    let schema = aha_rollout::schema::rollouts(&names).unwrap();
    let rollouts = TableWriter::open(&dir.join("tables/zero"), schema).unwrap();
    let metrics = TableWriter::open(&dir.join("metrics"), aha_rollout::schema::metrics()).unwrap();
    for step in 1..=2 {
        let row = |sample_idx| RolloutRow {
            stage: "zero",
            step,
            prompt_id: "p",
            source: None,
            sample_idx,
            policy_version: step - 1,
            prompt: "1 + 2",
            completion: HOSTILE,
            answer: Some("3"),
            tests: None,
            prompt_token_ids: &[1, 2],
            completion_token_ids: &[3, 4, 5],
            completion_logprobs: &[-0.5, -1.5, -2.5],
            completion_forced_mask: None,
            completion_policy_versions: None,
            finish_reason: "stop",
            finished_at_us: 0,
        };
        let sampled = rows::rollouts(&[row(0), row(1)]).unwrap();
        let score = |value| Scores { parts: vec![Some(value)], reward: Some(value), error: None };
        let scored = add_scores(&sampled, &names, &[score(0.0), score(step as f64 / 2.0)]).unwrap();
        rollouts.write(&part_name(step), &[add_untrained(&scored, "no_signal").unwrap()]).unwrap();
        let row = MetricRow { stage: "zero", step, name: "loss", value: 0.5, at_us: 0 };
        metrics.write(&part_name(step), &[rows::metrics(&[row])]).unwrap();
    }
}

/// A pipeline in miniature and its data: a model made from nothing, SFT, RL and a query.
pub fn write_pipeline(steps: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let problem =
        |n: u32| format!("{{\"id\":\"{n}\",\"prompt\":\"{n} + 1 =\",\"answer\":\"{}\"}}\n", n + 1);
    fs_err::write(dir.path().join("problems.jsonl"), (0..8).map(problem).collect::<String>())
        .unwrap();
    let text = format!(
        r#"
[run]
seed = 3

[tables]
problems = "problems.jsonl"

[models.base]
init = "random"
hidden_size = 32
intermediate_size = 48
layers = 1
heads = 2
kv_heads = 1
max_position_embeddings = 64
tokenizer = {{ train = "SELECT prompt || ' ' || answer AS text FROM problems", vocab_size = 280 }}

[[stage]]
name = "cold"
kind = "sft"
model = "base"
data = "SELECT prompt, answer AS completion FROM problems"
epochs = 2
batch_size = 4
max_tokens = 32

[[stage]]
name = "zero"
kind = "rl"
model = "cold"
prompts = "SELECT id, prompt, answer FROM problems"
steps = {steps}
prompts_per_step = 2
group_size = 2
sampling = {{ max_tokens = 6 }}
rewards = [{{ kind = "math" }}]
watchdogs = {{ truncated = "off", no_signal = "off", unparsed = "warn", trains_on_nothing = "off" }}

[[stage]]
name = "curve"
kind = "query"
description = "Completions by step"
sql = "SELECT step, count(*) AS n FROM zero GROUP BY step ORDER BY step"
print = true
"#
    );
    fs_err::write(dir.path().join("tiny.toml"), text).unwrap();
    dir
}
