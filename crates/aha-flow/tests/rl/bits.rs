//! P2 and the on-policy promise: what a run's bits depend on, and what they don't.

use crate::world::{World, assert_same_run, each_rollout};

#[tokio::test(flavor = "multi_thread")]
async fn threads_and_batch_limits_change_no_bit() {
    let world = World::long();
    world.finish("whole", &[]).await;
    // A group has at most 25 tokens that another is predicted from: the smallest micro-batch has one completion.
    let others: [&[&str]; 4] = [
        &["run.threads=1"],
        &["run.sequences_max=1", "run.kv_cache='1MiB'"],
        &["run.threads=1", "run.sequences_max=5", "stage.zero.micro_batch_tokens=7"],
        &["stage.zero.micro_batch_tokens=33", "stage.zero.activation_checkpointing=true"],
    ];
    for (idx, sets) in others.iter().enumerate() {
        let name = format!("other-{idx}");
        world.finish(&name, sets).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
}

/// In bf16, and with a cache of bf16 keys and values: threads, batch limits, and a stop on the way.
#[tokio::test(flavor = "multi_thread")]
async fn bf16_runs_keep_their_bits_too() {
    let world = World::new();
    for (idx, dtype) in ["run.dtype='bf16'", "run.kv_dtype='bf16'"].iter().enumerate() {
        let whole = format!("whole-{idx}");
        let outcome = world.finish(&whole, &[dtype]).await;
        for (_, metrics) in outcome.steps("zero") {
            assert_eq!(metrics["ratio_max"], 1.0, "{dtype}: sampler and learner agree");
        }
        let other = format!("other-{idx}");
        let sets =
            [dtype, "run.threads=1", "run.sequences_max=5", "stage.zero.micro_batch_tokens=7"];
        world.finish(&other, &sets).await;
        assert_same_run(&world.dir(&whole), &world.dir(&other));
        for event in (1..outcome.events.len()).step_by(7) {
            let stopped = format!("stopped-{idx}-{event}");
            world.stop_and_resume(&stopped, event, &[dtype]).await;
            assert_same_run(&world.dir(&whole), &world.dir(&stopped));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_seed_gives_another_run() {
    let world = World::new();
    let completions = async |name: &str, sets: &[&str]| {
        world.finish(name, sets).await;
        let mut texts = Vec::new();
        each_rollout(&world.dir(name), "zero", |view, row| {
            texts.push(view.completion(row).to_owned());
        });
        texts
    };
    assert_ne!(completions("a", &[]).await, completions("b", &["run.seed=6"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_samples_from_the_weights_that_the_step_before_left() {
    let world = World::new();
    // A step of this stage is four optimizer steps.
    let sets = ["stage.zero.minibatches=2", "stage.zero.inner_epochs=2", "stage.zero.steps=3"];
    let outcome = world.finish("run", &sets).await;
    let mut seen = Vec::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        seen.push((view.step(row), view.policy_version(row)));
    });
    seen.dedup();
    assert_eq!(seen, [(1, 0), (2, 4), (3, 8)]);
    let versions: Vec<f64> =
        outcome.steps("zero").iter().map(|(_, metrics)| metrics["policy_version"]).collect();
    assert_eq!(versions, [4.0, 8.0, 12.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ratio_of_an_on_policy_step_is_exactly_one() {
    let world = World::new();
    let outcome = world.finish("run", &[]).await;
    let steps = outcome.steps("zero");
    assert_eq!(steps.len(), 6);
    for (step, metrics) in steps {
        assert_eq!((metrics["ratio_max"], metrics["ratio_mean"]), (1.0, 1.0), "step {step}");
    }
    // With more than one optimizer step on the same completions the ratio moves: the measure is alive.
    let outcome = world.finish("two", &["stage.zero.inner_epochs=2"]).await;
    assert!(outcome.steps("zero").iter().any(|(_, metrics)| metrics["ratio_max"] > 1.0));
}
