//! Stages that train low-rank adapters: the same promises, and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::world::{World, assert_same_run, each_rollout, files};

const RL: &str = "stage.zero.lora={ rank = 4, alpha = 8 }";
const SFT: &str = "stage.tuned.lora={ rank = 2, targets = ['q_proj', 'down_proj'] }";
/// Larger steps, and a reference that is the policy of a while ago.
const SETS: [&str; 4] = [
    RL,
    "stage.zero.optimizer.lr=1e-2",
    "stage.zero.minibatches=2",
    "stage.zero.reference.refresh_every=3",
];

fn adapter_of(world: &World, run: &str, stage: &str) -> PathBuf {
    world.dir(run).adapter(stage)
}

#[track_caller]
fn assert_same_adapter(world: &World, want: &str, got: &str, stage: &str) {
    let [want, got] = [want, got].map(|run| files(&adapter_of(world, run, stage)));
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    assert_eq!(want.len(), 2);
    // The config says where the model was read from, which is another directory.
    let weights = Path::new("adapter_model.safetensors");
    assert!(want[weights] == got[weights], "the adapter of `{stage}` differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_and_batch_limits_change_no_bit() {
    let world = World::long();
    let sets = [&SETS[..], &[SFT]].concat();
    world.finish("whole", &sets).await;
    let others: [&[&str]; 3] = [
        &["run.threads=1"],
        &["run.sequences_max=1", "run.kv_cache='1MiB'", "stage.zero.micro_batch_tokens=7"],
        &["stage.zero.micro_batch_tokens=33", "stage.zero.activation_checkpointing=true"],
    ];
    for (idx, other) in others.iter().enumerate() {
        let name = format!("other-{idx}");
        world.finish(&name, &[&sets, *other].concat()).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
        for stage in ["zero", "tuned"] {
            assert_same_adapter(&world, "whole", &name, stage);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let world = World::long();
    for (variant, more) in [("f32", &[][..]), ("bf16", &["run.dtype='bf16'"])] {
        let sets = [&SETS[..], &[SFT], more].concat();
        let whole = format!("{variant}-whole");
        let count = world.finish(&whole, &sets).await.events.len();
        let mut stopped_count = 0;
        for event in (0..count).step_by(if variant == "f32" { 1 } else { 5 }) {
            let name = format!("{variant}-{event}");
            stopped_count += usize::from(world.stop_and_resume(&name, event, &sets).await);
            assert_same_run(&world.dir(&whole), &world.dir(&name));
            assert_same_adapter(&world, &whole, &name, "zero");
            assert_same_adapter(&world, &whole, &name, "tuned");
        }
        assert!(stopped_count >= 2, "{stopped_count} of {count} events");
    }
}

/// Adapters, and a critic that is a whole model, with several optimizer steps a step.
const WITH_CRITIC: [&str; 7] = [
    RL,
    "stage.zero.objective={ preset = \"ppo\" }",
    "stage.zero.critic={ warmup_steps = 1, optimizer = { lr = 1e-2 } }",
    "stage.zero.optimizer.lr=1e-2",
    "stage.zero.minibatches=2",
    "stage.zero.inner_epochs=2",
    "stage.zero.reference.refresh_every=6",
];

/// Goal: adapters and a critic that learns beside them go on together. Method: a stop at every other event; what were
/// lost of either's weights or moments, or of the reference, would show in later steps.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_with_a_critic_go_on_with_the_same_bits() {
    let world = World::new();
    let whole = world.finish("whole", &WITH_CRITIC).await;
    let steps = whole.steps("zero");
    assert_eq!(steps.len(), 6);
    assert!(steps[5].1["value_loss"] < steps[0].1["value_loss"], "{steps:?}");
    assert!(steps[5].1["kl"] > 0.0 && steps[5].1["value_mean"] != 0.0, "{steps:?}");
    let mut stopped_count = 0;
    for event in (0..whole.events.len()).step_by(2) {
        let name = format!("stopped-{event}");
        stopped_count += usize::from(world.stop_and_resume(&name, event, &WITH_CRITIC).await);
        assert_same_run(&world.dir("whole"), &world.dir(&name));
        assert_same_adapter(&world, "whole", &name, "zero");
    }
    assert!(stopped_count >= 2, "{stopped_count} of {} events", whole.events.len());
    let checkpoint = files(&world.dir("whole").checkpoints("zero").join("step-000004"));
    let has = |name: &str| checkpoint.contains_key(Path::new(name));
    assert!(has("adapter/adapter_model.safetensors") && has("critic/model.safetensors"));
    assert!(has("critic_optimizer.safetensors") && !has("model/model.safetensors"));
    assert!(has("reference/adapter_model.safetensors"));
}

/// Neither how the critic's pass is cut nor how many threads compute it changes a bit of either.
#[tokio::test(flavor = "multi_thread")]
async fn threads_and_batch_limits_change_no_bit_of_adapters_with_a_critic() {
    let world = World::new();
    world.finish("whole", &WITH_CRITIC).await;
    let others: [&[&str]; 2] = [
        &["run.threads=1", "stage.zero.micro_batch_tokens=14"],
        &["run.sequences_max=1", "stage.zero.activation_checkpointing=true"],
    ];
    for (idx, other) in others.iter().enumerate() {
        let name = format!("other-{idx}");
        world.finish(&name, &[&WITH_CRITIC, *other].concat()).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
        assert_same_adapter(&world, "whole", &name, "zero");
    }
}

/// Sampler and learner run the same op, and the policy begins as its reference is.
#[tokio::test(flavor = "multi_thread")]
async fn the_ratio_of_an_on_policy_step_is_exactly_one_and_the_first_kl_is_exactly_zero() {
    let world = World::new();
    for (run, dtype) in [("f32", "run.dtype='f32'"), ("bf16", "run.dtype='bf16'")] {
        let sets = [RL, "stage.zero.optimizer.lr=1e-2", dtype];
        let outcome = world.finish(run, &sets).await;
        let steps = outcome.steps("zero");
        assert_eq!(steps.len(), 6);
        for (step, metrics) in steps {
            assert_eq!((metrics["ratio_max"], metrics["ratio_mean"]), (1.0, 1.0), "step {step}");
            assert_eq!(metrics["kl"] == 0.0, step == 1, "step {step}: {}", metrics["kl"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_matters() {
    let world = World::new();
    let variants = [
        &[][..],
        &["stage.zero.lora={ rank = 4, alpha = 8 }"],
        &["stage.zero.lora={ rank = 5, alpha = 8 }"],
        &["stage.zero.lora={ rank = 4, alpha = 9 }"],
        &["stage.zero.lora={ rank = 4, alpha = 8, rslora = true }"],
        &["stage.zero.lora={ rank = 4, alpha = 8, targets = ['q_proj'] }"],
        &["stage.zero.lora={}"],
    ];
    let mut found: Vec<Vec<u8>> = Vec::new();
    for (idx, variant) in variants.iter().enumerate() {
        let name = format!("run-{idx}");
        world.finish(&name, &[variant, &["stage.zero.steps=3"][..]].concat()).await;
        assert_eq!(adapter_of(&world, &name, "zero").exists(), idx > 0);
        let weights = world.dir(&name).model("zero").join("model.safetensors");
        found.push(fs_err::read(weights).unwrap());
        assert!(found[..idx].iter().all(|other| *other != found[idx]), "{variant:?}");
    }
    // What isn't said is as the reference of the keys has it.
    let sets = [
        "stage.zero.lora={ rank = 16, alpha = 32, rslora = false, targets = 'all-linear' }",
        "stage.zero.steps=3",
    ];
    world.finish("said", &sets).await;
    assert_same_run(&world.dir("run-6"), &world.dir("said"));
}

/// A checkpoint has the adapter and its moments, and no other weights.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_hold_adapters_alone() {
    let world = World::new();
    world.finish("run", &SETS).await;
    let checkpoint = world.dir("run").checkpoints("zero").join("step-000004");
    let found: BTreeMap<PathBuf, Vec<u8>> = files(&checkpoint);
    let names: Vec<&str> = found.keys().map(|name| name.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "optimizer.safetensors",
            "position.json",
            "reference/adapter_config.json",
            "reference/adapter_model.safetensors",
        ]
    );
}

/// Goal: what a stage leaves is one change in three shapes. Method: a model on disk is tuned; the adapter that is
/// exported, read again beside that model and merged, gives the bytes of the stage's own merged model. The frozen
/// weights are those that the stage began with.
#[tokio::test(flavor = "multi_thread")]
async fn an_exported_adapter_and_its_model_give_the_stage_s_model() {
    let world = World::long();
    world.finish("first", &[]).await;
    let (base, out) = (world.dir("first").model("zero"), world.folder().join("adapter"));
    let model = |name: &str, source: &str| format!("[models]\n{name} = {source}\n");
    let text = |path: &Path| format!("{:?}", path.to_str().unwrap());
    let tuning = format!(
        "{}
[[stage]]
name = \"tuned\"
kind = \"sft\"
model = \"base\"
data = \"SELECT prompt, answer AS completion FROM problems\"
batch_size = 4
optimizer = {{ lr = 1e-2 }}
lora = {{ rank = 3, targets = [\"v_proj\", \"up_proj\"] }}

[[stage]]
name = \"exported\"
kind = \"export\"
model = \"tuned\"
format = \"peft\"
out = {}

[[stage]]
name = \"here\"
kind = \"export\"
model = \"tuned\"
format = \"peft\"
dtype = \"bf16\"
",
        model("base", &text(&base)),
        text(&out)
    );
    world.write_pipeline(&tuning);
    world.finish("second", &[]).await;
    let exported = files(&out);
    assert!(exported == files(&adapter_of(&world, "second", "tuned")));
    let weights = Path::new("adapter_model.safetensors");
    let half = &files(&adapter_of(&world, "second", "here"))[weights];
    assert!(half.len() < exported[weights].len());

    let source = format!("{{ base = {}, adapter = {} }}", text(&base), text(&out));
    let merging = format!(
        "{}
[[stage]]
name = \"merged\"
kind = \"export\"
model = \"again\"
",
        model("again", &source)
    );
    world.write_pipeline(&merging);
    world.finish("third", &[]).await;
    let [of_stage, of_parts] =
        [world.dir("second").model("tuned"), world.dir("third").model("merged")];
    assert!(files(&of_stage) == files(&of_parts));
    let before = tensors(&base);
    for (name, bytes) in tensors(&of_stage) {
        let is_target = name.contains("v_proj") || name.contains("up_proj");
        assert_eq!(before[&name] != bytes, is_target, "{name}");
    }

    // The adapter is an input: a run does not go on with another one.
    fs_err::write(out.join("adapter_config.json"), "{}").unwrap();
    let outcome =
        world.run("third", crate::world::How { resume: true, ..Default::default() }).await;
    let error = outcome.result.unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

/// The bytes of each tensor of a model.
fn tensors(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs_err::read(dir.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let data = &bytes[8 + header_len..];
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            (name.clone(), data[at(0)..at(1)].to_vec())
        })
        .collect()
}

/// Rows of a stage with adapters are as those of one without.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_step_s_completions_are_those_of_the_model_without_adapters() {
    let world = World::new();
    let first = |run: &str| {
        let mut texts = Vec::new();
        each_rollout(&world.dir(run), "zero", |view, row| {
            if view.step(row) == 1 {
                texts.push((
                    view.rollout_id(row).to_owned(),
                    view.completion_logprobs(row).to_vec(),
                ));
            }
        });
        texts
    };
    world.finish("plain", &["stage.zero.steps=2"]).await;
    world.finish("lora", &[RL, "stage.zero.steps=2"]).await;
    assert!(!first("plain").is_empty());
    assert_eq!(first("plain"), first("lora"));
}
