//! P2 and P3: a run that is killed as hard as can be, at twenty moments, ends with the bits of one that was
//! left alone; so does one with another number of threads and other batch limits. What not every run has is killed in
//! runs of its own: preferences without a reward model, PPO's critic, adapters. A sampler that runs ahead of its
//! learner gives other bits each time; such a run loses nothing.
//!
//! `SOURCE_DATE_EPOCH` stops the clock of the runs, so that tables are compared byte by byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aha_compute::random::Philox;

const KILL_COUNT: u64 = 20;

/// Runs in which moments to kill at are looked for, at most: a run may be over before it is seen to be at one.
const TRIES_MAX: usize = 20;

/// What all runs begin with.
const BASE: &str = r#"
[run]
seed = 3
threads = 2

[models]
blank = { init = "random", hidden_size = 32, intermediate_size = 64, layers = 2, heads = 2, kv_heads = 1, head_dim = 16, tokenizer = { train = "SELECT prompt || answer AS text FROM problems", vocab_size = 24, alphabet = "seen" } }

[tables]
problems = "problems.jsonl"

[[stage]]
name = "base"
kind = "sft"
model = "blank"
data = "SELECT prompt, answer AS completion FROM problems"
epochs = 3
batch_size = 8
checkpoint_every = 4
optimizer = { lr = 3e-3 }
"#;

const STAGES: &str = r#"
[[stage]]
name = "prefers"
kind = "reward-model"
model = "base"
data = "SELECT prompt, answer AS chosen, '9' || answer AS rejected FROM problems"
held_out_share = 0.2
held_out_every = 3
batch_size = 12
checkpoint_every = 2
optimizer = { lr = 3e-3 }

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 8
prompts_per_step = 4
group_size = 4
minibatches = 2
checkpoint_every = 2
sampling = { max_tokens = 8 }
objective = { kl = 0.01 }
reference = { refresh_every = 6 }
optimizer = { lr = 1e-3 }
rewards = [{ kind = "math", extract = ["whole"] }, { kind = "length", weight = 0.1, max_tokens = 3 }, { kind = "model", model = "prefers", normalise = true, clip = [-2.0, 2.0], weight = 0.1 }]

[[stage]]
name = "samples"
kind = "sample"
model = "zero"
prompts = "SELECT id, prompt, answer FROM problems"
n = 2
sampling = { max_tokens = 8 }
rewards = [{ kind = "math", extract = ["whole"] }]

[[stage]]
name = "kept"
kind = "query"
sql = "SELECT prompt, completion, reward FROM samples ORDER BY rollout_id"

[[stage]]
name = "scores"
kind = "eval"
model = ["base", "zero"]
data = "SELECT id, prompt, answer FROM problems"
k = 2
max_tokens = 8
"#;

/// Direct preference optimization, of all weights and of adapters, and PPO with the like.
const PREFERENCES_AND_CRITICS: &str = r#"
[[stage]]
name = "prefers"
kind = "dpo"
model = "base"
data = "SELECT prompt, answer AS chosen, '9' || answer AS rejected FROM problems"
held_out_share = 0.2
held_out_every = 3
batch_size = 8
checkpoint_every = 2
optimizer = { lr = 3e-3 }

[[stage]]
name = "adapted"
kind = "dpo"
model = "prefers"
reference = "base"
data = "SELECT prompt, answer AS chosen, '8' || answer AS rejected FROM problems"
batch_size = 8
checkpoint_every = 2
optimizer = { lr = 1e-2 }
lora = { rank = 4 }

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 8
prompts_per_step = 4
group_size = 2
minibatches = 2
checkpoint_every = 2
sampling = { max_tokens = 8 }
objective = { preset = "ppo" }
critic = { warmup_steps = 1, optimizer = { lr = 3e-3 } }
reference = { refresh_every = 6 }
optimizer = { lr = 1e-3 }
rewards = [{ kind = "math", extract = ["whole"] }, { kind = "length", weight = 0.1, max_tokens = 3 }]

[[stage]]
name = "low"
kind = "rl"
model = "zero"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 4
prompts_per_step = 4
group_size = 2
checkpoint_every = 2
sampling = { max_tokens = 8 }
objective = { preset = "ppo" }
critic = { model = "base", optimizer = { lr = 3e-3 } }
optimizer = { lr = 1e-2 }
lora = { rank = 4 }
rewards = [{ kind = "math", extract = ["whole"] }, { kind = "length", weight = 0.1, max_tokens = 3 }]
"#;

/// What a run of these has when it is killed, one after the other: a checkpoint, or rows after the last one.
const MOMENTS: [&str; 9] = [
    "checkpoints/prefers/step-000002",
    "checkpoints/prefers/step-000004",
    "checkpoints/adapted/step-000004",
    "tables/zero/step-000001.parquet",
    "checkpoints/zero/step-000002",
    "tables/zero/step-000005.parquet",
    "checkpoints/zero/step-000006",
    "tables/low/step-000001.parquet",
    "checkpoints/low/step-000002",
];

/// A folder with the pipeline of these stages and 80 problems: more than the 64 that sample stages write at a time.
fn folder(stages: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let problems: String = (0..80)
        .map(|i| {
            let (a, b) = (i % 10, i / 10);
            format!("{{\"id\":\"p{i}\",\"prompt\":\"{a}+{b}=\",\"answer\":\"{}\"}}\n", a + b)
        })
        .collect();
    std::fs::write(folder.path().join("problems.jsonl"), problems).unwrap();
    std::fs::write(folder.path().join("pipeline.toml"), format!("{BASE}{stages}")).unwrap();
    folder
}

fn command(folder: &Path, dir: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aha"));
    // Bits and memory are those of the processor.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.current_dir(folder).args(["run", "pipeline.toml", "--dir", dir]).args(args);
    command.env("SOURCE_DATE_EPOCH", "1700000000").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn finish(folder: &Path, dir: &str, args: &[&str]) {
    let output = command(folder, dir, args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {text}");
}

/// The bytes of all files below these folders of a run.
fn files(run: &Path, folders: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|name| run.join(name)).collect();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(
                    path.strip_prefix(run).unwrap().to_owned(),
                    std::fs::read(&path).unwrap(),
                );
            }
        }
    }
    found
}

#[track_caller]
fn assert_same_run(want: &Path, got: &Path) {
    assert_same_files(want, got, &["models", "tables", "metrics"]);
}

#[track_caller]
fn assert_same_files(want: &Path, got: &Path, folders: &[&str]) {
    let (want, got) = (files(want, folders), files(got, folders));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&want), names(&got));
    for (name, bytes) in &want {
        assert!(got[name] == *bytes, "{} differs", name.display());
    }
    assert!(want.len() > 20, "{:?}", names(&want));
}

#[test]
fn a_run_that_is_killed_twenty_times_ends_with_the_bits_of_one_that_was_not() {
    let folder = folder(STAGES);
    let folder = folder.path();
    let begun = Instant::now();
    finish(folder, "whole", &[]);
    let whole = begun.elapsed();
    let random = Philox::new(11);
    let mut kill_count = 0;
    let mut run_count = 0;
    while kill_count < KILL_COUNT {
        let dir = format!("killed-{run_count}");
        run_count += 1;
        let mut args: &[&str] = &[];
        // Kills come early enough that most runs see several of them, and late enough to reach every stage.
        loop {
            let mut child = command(folder, &dir, args).spawn().unwrap();
            let share = 0.05 + 0.6 * random.uniform(&[kill_count]);
            let until = Instant::now() + Duration::from_secs_f64(share * whole.as_secs_f64());
            let mut has_ended = false;
            while Instant::now() < until && !has_ended {
                std::thread::sleep(Duration::from_millis(2));
                has_ended = child.try_wait().unwrap().is_some();
            }
            if !has_ended {
                child.kill().unwrap();
                kill_count += 1;
            }
            let status = child.wait().unwrap();
            // A run that was killed before it had a directory begins again.
            args = if folder.join(&dir).join("run.json").exists() { &["--resume"] } else { &[] };
            if status.success() || kill_count >= KILL_COUNT {
                break;
            }
            assert_eq!(status.code(), None, "only the kill ends it early");
        }
        finish(folder, &dir, args);
        assert_same_run(&folder.join("whole"), &folder.join(&dir));
    }
}

#[test]
fn preferences_and_critics_that_are_killed_end_with_the_bits_of_those_that_were_not() {
    let folder = folder(PREFERENCES_AND_CRITICS);
    let folder = folder.path();
    finish(folder, "whole", &[]);
    kill_at(folder, &MOMENTS, |dir| {
        assert_same_run(&folder.join("whole"), dir);
        assert_same_adapters(&folder.join("whole"), dir);
    });
}

/// Kills runs when they have come to these moments, one after the other, and looks at each that has ended.
#[track_caller]
fn kill_at(folder: &Path, moments: &[&str], look: impl Fn(&Path)) {
    let mut moments = moments.iter().peekable();
    for run in 0.. {
        assert!(run < TRIES_MAX, "no run was seen with {:?}", moments.peek());
        let dir = format!("killed-{run}");
        let mut args: &[&str] = &[];
        while let Some(moment) = moments.peek() {
            let mut child = command(folder, &dir, args).spawn().unwrap();
            let sign = folder.join(&dir).join(moment);
            while !sign.exists() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            let status = child.wait().unwrap();
            args = &["--resume"];
            if status.success() {
                break;
            }
            assert_eq!(status.code(), None, "only the kill ends it early");
            moments.next();
        }
        finish(folder, &dir, args);
        look(&folder.join(&dir));
        if moments.peek().is_none() {
            break;
        }
    }
}

/// Goal: where the sampler runs ahead, a run that is killed ends with each step trained on once and each rollout there
/// once, and what was on its way is asked for again. Its bits depend on timing.
#[test]
fn a_run_whose_sampler_is_ahead_loses_nothing_when_it_is_killed() {
    let stages = STAGES.replace("minibatches = 2\n", "max_staleness = 2\n");
    assert_ne!(stages, STAGES);
    let folder = folder(&stages);
    let moments = [
        "tables/zero/step-000001.parquet",
        "checkpoints/zero/step-000002",
        "tables/zero/step-000003.parquet",
        "tables/zero/step-000005.parquet",
        "checkpoints/zero/step-000006",
    ];
    kill_at(folder.path(), &moments, assert_each_once);
}

/// Eight steps of sixteen rows that they took to train on, of 32 prompts; each rollout once.
#[track_caller]
fn assert_each_once(run: &Path) {
    let taken = "skip_reason IS NULL OR skip_reason NOT IN ('stale', 'unused')";
    let sql = format!(
        "SELECT count(*) = count(DISTINCT rollout_id) AS once, min(n) AS least, max(n) AS most, count(DISTINCT step) AS \
         steps, count(DISTINCT prompt_id) AS prompts, min(completion_policy_versions[1] = policy_version) AS dated FROM \
         (SELECT *, count(*) FILTER (WHERE {taken}) OVER (PARTITION BY step) AS n FROM zero)"
    );
    let query = ["query", &sql, "--run", run.to_str().unwrap(), "--format", "csv"];
    let output = Command::new(env!("CARGO_BIN_EXE_aha")).args(query).output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let wanted = "once,least,most,steps,prompts,dated\ntrue,16,16,8,32,true\n";
    assert_eq!(out, wanted, "{err}");
}

/// Their configs say where a model was read from, which is another directory.
#[track_caller]
fn assert_same_adapters(want: &Path, got: &Path) {
    for stage in ["adapted", "low"] {
        let weights = Path::new("adapters").join(stage).join("adapter_model.safetensors");
        let [want, got] = [want, got].map(|run| std::fs::read(run.join(&weights)).unwrap());
        assert!(want == got, "the adapter of `{stage}` differs");
    }
}

#[test]
fn threads_and_batch_limits_change_no_bit() {
    let folder = folder(STAGES);
    let folder = folder.path();
    finish(folder, "a", &[]);
    let sets = [
        "run.threads=1",
        "run.sequences_max=3",
        "run.kv_cache='1MiB'",
        "stage.prefers.micro_batch_tokens=2048",
        "stage.zero.micro_batch_tokens=64",
    ];
    let args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    finish(folder, "b", &args);
    assert_same_run(&folder.join("a"), &folder.join("b"));
}

/// Goal: what changes no result may change in the middle of a run. Method: a run is killed, and goes on with
/// another value of every such key. How often metrics are written depends on checkpoints, so they are not
/// compared file by file.
#[test]
fn a_run_that_goes_on_with_other_bounds_ends_with_the_same_bits() {
    let folder = folder(STAGES);
    let folder = folder.path();
    let begun = Instant::now();
    finish(folder, "whole", &[]);
    let half = begun.elapsed().mul_f64(0.4);
    let mut child = command(folder, "half", &[]).spawn().unwrap();
    std::thread::sleep(half);
    child.kill().unwrap();
    child.wait().unwrap();
    let sets = [
        "run.threads=1",
        "run.memory='8GiB'",
        "run.sequences_max=3",
        "run.kv_cache='1MiB'",
        "run.checkpoint_keep=1",
        "stage.base.micro_batch_tokens=1024",
        "stage.base.checkpoint_every=3",
        "stage.base.activation_checkpointing=true",
        "stage.base.watchdogs.stop_token_masked='warn'",
        "stage.prefers.micro_batch_tokens=2048",
        "stage.prefers.checkpoint_every=1",
        "stage.prefers.activation_checkpointing=true",
        "stage.zero.micro_batch_tokens=64",
        "stage.zero.checkpoint_every=3",
        "stage.zero.activation_checkpointing=true",
        "stage.zero.watchdogs.truncated='off'",
        "stage.zero.description='on its way'",
        "stage.kept.expect='rows'",
        "stage.kept.print=true",
    ];
    let mut args = vec!["--resume"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    finish(folder, "half", &args);
    assert_same_files(&folder.join("whole"), &folder.join("half"), &["models", "tables"]);
}
