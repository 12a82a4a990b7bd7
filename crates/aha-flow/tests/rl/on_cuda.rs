//! Runs on a CUDA device, in emulation: they are the processor's but for rounding, have the same bits each time, and a
//! device without room ends them with what to turn.

use std::sync::Arc;
use std::sync::Mutex;

use aha_compute::cuda::{Buffer, Context, Kind};
use aha_emulate::{Emulated, ORDERS};
use aha_flow::Error;
use aha_flow::devices::Given;
use aha_flow::planning::{self, Around};
use aha_flow::progress::{Event, Watcher};
use aha_flow::stop::Stop;
use serde_json::Value;

use crate::world::{How, Outcome, World, assert_same_run, each_rollout, problem};

const MIB: usize = 1 << 20;
/// Two steps of two prompts with four completions each.
const SMALL: [&str; 6] = [
    "run.device='cuda:0'",
    "run.kv_cache='1MiB'",
    "run.sequences_max=8",
    "stage.zero.steps=2",
    "stage.zero.prompts_per_step=2",
    "stage.zero.checkpoint_every=1",
];

fn emulated(memory_bytes: usize) -> Context {
    Context::new(Emulated::new(ORDERS[0], memory_bytes))
}

async fn run_on(world: &World, name: &str, context: &Context, sets: &[&str]) -> Outcome {
    let (sets, devices) = ([&SMALL, sets].concat(), vec![context.clone()]);
    let outcome = world.run(name, How { sets: &sets, devices, ..How::default() }).await;
    outcome.result.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
    outcome
}

fn completions(world: &World, name: &str) -> Vec<(String, Vec<u32>)> {
    let mut found = Vec::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        let ids = view.completion_token_ids(row).to_vec();
        found.push((view.rollout_id(row).to_owned(), ids));
    });
    found
}

/// Goal: in f32 a device draws the processor's tokens, so that rewards are the same, and its losses and gradients differ
/// by rounding alone; in either dtype a run has the same bits each time, also where it was stopped. Method: a run of the
/// processor, two on a device whose threads run in different orders, and one that is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_a_device_is_the_processors_but_for_rounding() {
    let world = World::new();
    let device = emulated(64 * MIB);
    let found = run_on(&world, "device", &device, &[]).await;
    let cpu = world.finish("cpu", &[&SMALL[1..], &["run.device='cpu'"]].concat()).await;
    assert_eq!(completions(&world, "device"), completions(&world, "cpu"));
    for ((step, on_device), (_, on_cpu)) in found.steps("zero").iter().zip(cpu.steps("zero")) {
        assert_eq!(on_device["reward"], on_cpu["reward"], "step {step}");
        // The ratio is 1 to the last bit, so the loss is what its terms round to.
        for (name, bound) in [("loss", 1e-6), ("grad_norm", 1e-5), ("entropy", 1e-5), ("kl", 1e-7)]
        {
            let (a, b) = (on_device[name], on_cpu[name]);
            assert!((a - b).abs() <= bound * (1.0 + b.abs()), "step {step}, {name}: {a} and {b}");
        }
        assert_eq!(on_device["ratio_max"], 1.0, "sampler and learner agree");
    }
    let other = Context::new(Emulated::new(ORDERS[1], 64 * MIB));
    run_on(&world, "again", &other, &[]).await;
    assert_same_run(&world.dir("device"), &world.dir("again"));
    let state: Value =
        serde_json::from_slice(&fs_err::read(world.dir("device").state()).unwrap()).unwrap();
    assert_eq!(state["machine"]["device"], "cuda:0");
    assert_eq!(state["machine"]["device_name"], "emulated");
}

/// Goal: "auto" takes the device, a run that was stopped keeps it, and ends as if nothing had been. Method: a stop after
/// the first step, in bf16.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_goes_on_on_its_device_with_its_bits() {
    let world = World::new();
    let sets = [&SMALL[1..], &["run.dtype='bf16'", "run.device='auto'"]].concat();
    let device = emulated(64 * MIB);
    let how = |stop: Stop, watcher: Option<Watcher>, resume: bool, devices: Vec<Context>| How {
        sets: &sets,
        devices,
        stop,
        watcher,
        resume,
        ..How::default()
    };
    let whole = world.run("whole", how(Stop::default(), None, false, vec![device.clone()])).await;
    whole.result.as_ref().unwrap();
    for (_, metrics) in whole.steps("zero") {
        assert_eq!(metrics["ratio_max"], 1.0, "sampler and learner agree in bf16");
    }
    let stop = Stop::default();
    let request = stop.clone();
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { .. } = event {
            request.request();
        }
    });
    let stopped = world.run("stopped", how(stop, Some(watcher), false, vec![device.clone()])).await;
    assert!(matches!(stopped.error(), Error::Interrupted));
    // Where the device is gone the run doesn't go on.
    let gone = world.run("stopped", how(Stop::default(), None, true, Vec::new())).await;
    let refused = gone.result.unwrap_err().to_string();
    assert!(refused.contains("cuda:0") && refused.contains("aha doctor"), "{refused}");
    let resumed = world.run("stopped", how(Stop::default(), None, true, vec![device])).await;
    resumed.result.unwrap();
    assert_same_run(&world.dir("whole"), &world.dir("stopped"));
}

/// Stages of every kind that takes time, as small as they can be; models that others borrow.
const EVERY: &str = r#"
[[stage]]
name = "prefers"
kind = "reward-model"
model = "blank"
data = "SELECT prompt, answer AS chosen, prompt AS rejected FROM problems"
max_steps = 1

[[stage]]
name = "paired"
kind = "dpo"
model = "blank"
data = "SELECT prompt, answer AS chosen, prompt AS rejected FROM problems"
max_steps = 1
batch_size = 4

[[stage]]
name = "rewarded"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 1
prompts_per_step = 2
group_size = 2
sampling = { max_tokens = 6 }
rewards = [{ kind = "model", model = "prefers" }]
"#;

/// Runs on devices whose threads run in different orders, which have the same bits.
async fn run_twice(world: &World, name: &str, sets: &[&str]) {
    let again = format!("{name}-again");
    for (order, name) in ORDERS.iter().zip([name, &again]) {
        let device = Context::new(Emulated::new(*order, 256 * MIB));
        run_on(world, name, &device, sets).await;
    }
    assert_same_run(&world.dir(name), &world.dir(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stage_runs_on_a_device_and_has_the_same_bits_again() {
    let world = World::long();
    world.append(EVERY);
    run_twice(&world, "whole", &["stage.tuned.max_steps=1", "stage.zero.steps=1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stage_may_learn_with_works_on_a_device() {
    let world = World::new();
    let variants: [(&str, &[&str]); 7] = [
        ("whole", &[]),
        ("again", &["stage.zero.activation_checkpointing=true"]),
        (
            "critic",
            &[
                "stage.zero.objective={ preset = \"ppo\" }",
                "stage.zero.minibatches=2",
                "run.dtype='bf16'",
            ],
        ),
        ("lora", &["stage.zero.lora={ rank = 4 }", "stage.zero.micro_batch_tokens=33"]),
        (
            "teacher",
            &["stage.zero.teacher='blank'", "stage.zero.objective={ preset = \"distill\" }"],
        ),
        ("fp8", &["run.dtype='bf16'", "run.fp8=true", "stage.zero.lora={ rank = 4 }"]),
        (
            "entropy",
            &["stage.zero.objective={ entropy = 0.01, kl = 0.1 }", "stage.zero.inner_epochs=2"],
        ),
    ];
    for (name, sets) in variants {
        run_twice(&world, name, &[&["stage.zero.steps=1"], sets].concat()).await;
    }
    // What is computed again is what was computed.
    assert_same_run(&world.dir("whole"), &world.dir("again"));
}

/// Goal: every kind of stage trains on two devices, with the bits of any other run on two and wherever moments are, and
/// goes on after a stop. Method: emulated devices whose threads run in different orders; the processor's run for what
/// may differ by rounding alone.
#[tokio::test(flavor = "multi_thread")]
async fn training_stages_share_their_work_out_to_two_devices() {
    let world = World::long();
    world.append(EVERY);
    let run_of = async |name: &str, order: [usize; 2], sets: &[&str]| {
        let devices = order.map(|i| Context::new(Emulated::new(ORDERS[i], 256 * MIB))).to_vec();
        let more = ["run.device='cuda:0,1'", "stage.tuned.max_steps=1", "stage.zero.steps=2"];
        let sets = [&SMALL, &more[..], sets].concat();
        let outcome = world.run(name, How { sets: &sets, devices, ..How::default() }).await;
        outcome.result.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        outcome
    };
    let found = run_of("two", [0, 1], &[]).await;
    run_of("again", [1, 0], &["stage.zero.optimizer={ lr = 1e-3, state = 'host' }"]).await;
    assert_same_run(&world.dir("two"), &world.dir("again"));
    let sets = ["run.device='cpu'", "stage.tuned.max_steps=1", "stage.zero.steps=2"];
    let cpu = world.finish("cpu", &[&SMALL[1..], &sets].concat()).await;
    for ((step, on_two), (_, on_cpu)) in found.steps("zero").iter().zip(cpu.steps("zero")) {
        assert_eq!(on_two["reward"], on_cpu["reward"], "step {step}");
        for (name, bound) in [("loss", 1e-6), ("grad_norm", 1e-5), ("entropy", 1e-5)] {
            let (a, b) = (on_two[name], on_cpu[name]);
            assert!((a - b).abs() <= bound * (1.0 + b.abs()), "step {step}, {name}: {a} and {b}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stage_may_learn_with_works_on_two_devices() {
    let world = World::new();
    let variants: [(&str, &[&str]); 4] = [
        ("critic", &["stage.zero.objective={ preset = \"ppo\" }", "stage.zero.minibatches=2"]),
        ("lora", &["stage.zero.lora={ rank = 4 }", "run.dtype='bf16'"]),
        ("kl", &["stage.zero.objective={ kl = 0.1 }", "stage.zero.activation_checkpointing=true"]),
        ("ahead", &["stage.zero.max_staleness=1"]),
    ];
    for (name, sets) in variants {
        let devices = ORDERS.map(|order| Context::new(Emulated::new(order, 256 * MIB))).to_vec();
        let sets = [&SMALL, sets, &["run.device='cuda:0,1'"]].concat();
        let outcome = world.run(name, How { sets: &sets, devices, ..How::default() }).await;
        outcome.result.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(outcome.steps("zero").len(), 2, "{name}");
    }
}

/// Goal: sampler and learner at once on one device. Method: a sampler one step ahead, whose tokens have the learner's
/// log-probs where their weights are the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_runs_ahead_on_the_same_device() {
    let world = World::new();
    let sets = ["stage.zero.max_staleness=1", "stage.zero.steps=3"];
    let outcome = run_on(&world, "ahead", &emulated(256 * MIB), &sets).await;
    let steps = outcome.steps("zero");
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[0].1["sampler_gap_mean"], 0.0, "the first step's weights drew its tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_cannot_do_is_refused_by_name_and_auto_takes_the_processor() {
    let world = World::new();
    for (set, key) in [
        ("stage.zero.sampling={ max_tokens = 6, weights = 'int8' }", "sampling.weights"),
        ("run.kv_dtype='bf16'", "run.kv_dtype"),
        ("run.device='cuda:0,1'", "cuda:1"),
        ("run.device='cuda:1'", "cuda:1"),
    ] {
        let sets = [&SMALL[..], &[set]].concat();
        let how = How { sets: &sets, devices: vec![emulated(64 * MIB)], ..How::default() };
        let refused = world.run("refused", how).await.result.unwrap_err().to_string();
        assert!(refused.contains(key), "{set}: {refused}");
        if !set.contains("device") {
            let sets = [&sets[..], &["run.device='auto'", "stage.zero.steps=1"]].concat();
            let how = How { sets: &sets, devices: vec![emulated(64 * MIB)], ..How::default() };
            world.run(key, how).await.result.unwrap();
            let text = fs_err::read_to_string(world.dir(key).pipeline()).unwrap();
            assert!(text.contains("device = \"cpu\""), "{text}");
        }
    }
}

/// Goal: sampler and learner agree in FP8, which is refused by name where it can't be had. Method: the ratio of a
/// step's first pass; a processor, another dtype, a device that is too old.
#[tokio::test(flavor = "multi_thread")]
async fn fp8_has_one_numeric_path_and_is_refused_where_it_cannot_be_had() {
    let world = World::new();
    let fp8 = ["run.dtype='bf16'", "run.fp8=true", "stage.zero.steps=1"];
    let found = run_on(&world, "fp8", &emulated(64 * MIB), &fp8).await;
    let plain = run_on(&world, "bf16", &emulated(64 * MIB), &[fp8[0], fp8[2]]).await;
    let [(_, of_fp8), (_, of_bf16)] =
        [found.steps("zero").remove(0), plain.steps("zero").remove(0)];
    assert_eq!(of_fp8["ratio_max"], 1.0, "sampler and learner agree");
    assert_ne!(of_fp8["entropy"], of_bf16["entropy"], "it is FP8 that was computed");
    let old = Context::new(Emulated::with_capability(ORDERS[0], 64 * MIB, (8, 0)));
    for (name, context, set, says) in [
        ("dtype", emulated(64 * MIB), "run.dtype='f32'", "`run.dtype = \"bf16\"`"),
        ("processor", emulated(64 * MIB), "run.device='cpu'", "computes on the processor"),
        ("old", old, "run.device='cuda:0'", "emulated has 8.0"),
    ] {
        let sets = [&SMALL[..], &fp8, &[set]].concat();
        let how = How { sets: &sets, devices: vec![context], ..How::default() };
        let refused = world.run(name, how).await.result.unwrap_err().to_string();
        assert!(refused.contains("run.fp8") && refused.contains(says), "{name}: {refused}");
    }
}

/// Goal: what the plan predicts of a device's memory is no less than what is in use and at most half as much again; keys
/// and values are not there while the learner steps. Method: the allocator's own counts, in a run whose prompts and
/// sequences fill what a step may take.
#[tokio::test(flavor = "multi_thread")]
async fn the_plan_predicts_what_the_allocator_counts() {
    let long =
        |i: usize| problem(&format!("p{i}"), &format!("{}{i:02}=", "1+2+3+4+5+".repeat(5)), "7");
    let world = World::with(&(0..12).map(long).collect::<String>());
    let device = emulated(256 * MIB);
    let in_use: Arc<Mutex<Vec<[usize; 2]>>> = Arc::default();
    let (sink, of) = (Arc::clone(&in_use), device.clone());
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { .. } = event {
            let stats = of.stats();
            sink.lock().unwrap().push([stats.in_use_bytes, stats.in_use_bytes_max]);
        }
    });
    let sets = [
        "run.device='cuda:0'",
        "run.kv_cache='1MiB'",
        "run.sequences_max=48",
        "models.blank.layers=3",
        "stage.zero.steps=1",
        "stage.zero.prompts_per_step=12",
    ];
    let devices = vec![device.clone()];
    let how = How { sets: &sets, devices, watcher: Some(watcher), ..How::default() };
    world.run("run", how).await.result.unwrap();
    let sets = sets.map(str::to_owned);
    let around = Around { devices: Arc::new(Given(vec![device])), earlier: None, starts: false };
    let plan =
        planning::check(&world.pipeline(), &sets, &planning::places(), around).await.unwrap();
    // The library of products takes its workspace from elsewhere, and the emulated device has none.
    let parts = &plan.device_memory[0].parts;
    let bytes = parts.iter().filter(|part| part.name != "workspace").map(|part| part.bytes);
    let (predicted, [after, most]) = (bytes.sum::<u64>(), in_use.lock().unwrap()[0]);
    let text = format!("{most} used, {after} after, {predicted} predicted: {parts:#?}");
    assert!(most as u64 <= predicted && predicted <= most as u64 * 3 / 2, "{text}");
    assert!(after < MIB, "the cache of 1 MiB was given back: {text}");
}

/// Goal: a device that has no room any more ends the run with the keys to turn, nothing is lost, and it goes on with
/// the same bits. Method: something else takes all memory after the first step.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_room_ends_a_run_that_can_go_on() {
    let world = World::new();
    let device = emulated(64 * MIB);
    run_on(&world, "whole", &device, &[]).await;
    let taken: Arc<Mutex<Vec<Buffer>>> = Arc::default();
    let (sink, of) = (Arc::clone(&taken), device.clone());
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { .. } = event {
            let mut len = 64 * MIB;
            while len > 0 {
                match of.buffer(Kind::U32, len) {
                    Ok(buffer) => sink.lock().unwrap().push(buffer),
                    Err(_) => len /= 2,
                }
            }
        }
    });
    let how = How {
        sets: &SMALL,
        devices: vec![device.clone()],
        watcher: Some(watcher),
        ..How::default()
    };
    let full = world.run("full", how).await;
    let error = full.error();
    assert!(error.to_string().contains("out of memory on the device"), "{error}");
    let hint = error.hint().unwrap_or_default();
    for key in [
        "micro_batch_tokens",
        "run.kv_cache",
        "activation_checkpointing",
        "optimizer.state",
        "--resume",
    ] {
        assert!(hint.contains(key), "{hint}");
    }
    taken.lock().unwrap().clear();
    let devices = vec![device];
    let how = How { sets: &SMALL, devices, resume: true, ..How::default() };
    world.run("full", how).await.result.unwrap();
    assert_same_run(&world.dir("whole"), &world.dir("full"));
}
