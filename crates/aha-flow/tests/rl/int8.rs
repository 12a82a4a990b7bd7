//! Sampling from int8 weights: off unless asked for, corrected by the learner, and as reproducible as without.

use std::collections::BTreeMap;
use std::sync::Arc;

use aha_flow::progress::nobody;
use aha_flow::rl::fault::Faults;
use aha_flow::rl::train;
use aha_learn::learner::Learner as Engine;
use aha_rollout::col;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float32Type;

use crate::actors::{Actors, groups};
use crate::world::{World, assert_same_run, assert_same_tables, metrics, rows};

const INT8: &str = "stage.zero.sampling.weights='int8'";
/// A reward that some completions of a group get and others don't.
const SPREAD: &str = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[0-4]\" }]";
/// Several optimizer steps of a step of the stage, so that the learner scores before the first.
const SEVERAL: [&str; 2] = ["stage.zero.minibatches=2", "stage.zero.inner_epochs=2"];

#[tokio::test(flavor = "multi_thread")]
async fn threads_and_batch_limits_change_no_bit() {
    let world = World::new();
    let others: [&[&str]; 3] = [
        &["run.threads=1"],
        &["run.sequences_max=1", "run.kv_cache='1MiB'"],
        &["stage.zero.micro_batch_tokens=14", "stage.zero.activation_checkpointing=true"],
    ];
    for (variant, more) in [("one", &[][..]), ("several", &SEVERAL[..])] {
        let sets = [&[INT8], more].concat();
        let whole = format!("{variant}-whole");
        world.finish(&whole, &sets).await;
        for (idx, other) in others.iter().enumerate() {
            let name = format!("{variant}-{idx}");
            world.finish(&name, &[&sets, *other].concat()).await;
            assert_same_run(&world.dir(&whole), &world.dir(&name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let world = World::new();
    let sets = [&[INT8], &SEVERAL[..]].concat();
    let whole = world.finish("whole", &sets).await;
    let mut stopped_count = 0;
    for event in 0..whole.events.len() {
        let name = format!("stopped-{event}");
        stopped_count += usize::from(world.stop_and_resume(&name, event, &sets).await);
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    assert!(stopped_count >= 4, "{stopped_count} of {} events", whole.events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_off_unless_asked_for_and_then_measured() {
    let world = World::new();
    let plain = world.finish("plain", &[]).await;
    let same = ["stage.zero.sampling.weights='same'", "stage.zero.objective.importance_cap=1"];
    world.finish("same", &same).await;
    assert_same_run(&world.dir("plain"), &world.dir("same"));
    let is_of_int8 =
        |name: &&String| name.starts_with("importance_") || *name == "sampler_gap_mean";
    for (_, metrics) in plain.steps("zero") {
        assert_eq!(metrics.keys().filter(is_of_int8).count(), 0);
    }
    let rounded = world.finish("int8", &[INT8]).await;
    for (step, metrics) in rounded.steps("zero") {
        assert_eq!(metrics.keys().filter(is_of_int8).count(), 4, "step {step}");
        assert_eq!((metrics["ratio_max"], metrics["ratio_mean"]), (1.0, 1.0), "step {step}");
        let gap = metrics["sampler_gap_mean"];
        assert!(0.0 < gap && gap < 0.1, "step {step}: {gap}");
        assert!((0.9..1.1).contains(&metrics["importance_mean"]), "step {step}");
        assert!((1.0..=2.0).contains(&metrics["importance_max"]), "step {step}");
    }
    assert_ne!(logps(&world, "plain", "zero"), logps(&world, "int8", "zero"));
}

/// Trains one step on what the run called `run` drew in its first; the checksum of the weights, and the metrics.
/// Moments are small beside `eps`, so that weights move by gradients and not by their signs. The clip is tight: only a
/// ratio that starts at one is inside.
async fn train_on(world: &World, run: &str, sets: &[&str]) -> (u64, BTreeMap<String, f64>) {
    let settings = [
        "stage.zero.optimizer.eps=1",
        "stage.zero.optimizer.lr=1",
        "stage.zero.objective.clip=1e-4",
        SPREAD,
    ];
    let actors = Actors::new(world, &[&settings, sets].concat()).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(base.model));
    let groups = groups(&world.dir(run), shared.scorer.names(), |x| x);
    let trained = train::train(&mut engine, &shared, 1, &groups, 0, &Default::default()).unwrap();
    (trained.checksum, trained.metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_ignores_the_sampler_s_rounding_learns_otherwise() {
    let world = World::new();
    let run = world.finish("int8", &[INT8, SPREAD, "stage.zero.steps=1"]).await;
    let spread = run.steps("zero")[0].1["reward"];
    assert!((0.1..0.9).contains(&spread), "nothing to learn from: {spread}");
    for more in [&[][..], &SEVERAL[..]] {
        let corrected = train_on(&world, "int8", &[&[INT8], more].concat()).await;
        assert_eq!(train_on(&world, "int8", &[&[INT8], more].concat()).await, corrected);
        let ignored = train_on(&world, "int8", more).await;
        assert_ne!(ignored.0, corrected.0, "the correction changes no weight");
        assert_ne!(ignored.1["loss"], corrected.1["loss"]);
        let cap = "stage.zero.objective.importance_cap=1";
        let capped = train_on(&world, "int8", &[&[INT8, cap], more].concat()).await;
        assert_ne!(capped.0, corrected.0, "the cap changes no weight");
        assert!(corrected.1["importance_max"] > 1.0 && corrected.1["importance_cut_share"] == 0.0);
        assert!(capped.1["importance_max"] == 1.0 && capped.1["importance_cut_share"] > 0.1);
        assert!(capped.1["importance_mean"] < corrected.1["importance_mean"]);
    }
}

/// Log-probs of a table's completions, as bits.
fn logps(world: &World, run: &str, table: &str) -> Vec<u32> {
    let of = |batch: RecordBatch| {
        let column = batch.column_by_name(col::COMPLETION_LOGPROBS).unwrap();
        let values = column.as_list::<i32>().values().as_primitive::<Float32Type>().clone();
        values.values().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    rows(&world.dir(run), table).into_iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_of_other_stages_can_be_drawn_so_too() {
    let world = World::long();
    let sets = ["stage.drawn.sampling.weights='int8'", "stage.scores.weights='int8'"];
    world.finish("int8", &sets).await;
    world.finish("again", &[&sets[..], &["run.threads=1"]].concat()).await;
    assert_same_tables(&world.dir("int8"), &world.dir("again"));
    assert_eq!(metrics(&world.dir("int8")), metrics(&world.dir("again")));
    world.finish("plain", &[]).await;
    let [plain, int8] = ["plain", "int8"].map(|run| logps(&world, run, "drawn"));
    assert_ne!(plain, int8);
    let [plain, int8] = ["plain", "int8"].map(|run| logps(&world, run, "zero"));
    assert_eq!(plain, int8, "the stage before is left as it is");
}
