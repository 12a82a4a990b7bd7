//! Watchdogs, and metrics that can't be written.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aha_flow::Error;
use aha_flow::checkpoint::Position;
use aha_flow::parts::Parts;
use aha_flow::pipeline::Watch;
use aha_flow::progress::{Event, Watcher, nobody};
use aha_flow::rl::fault::Faults;
use aha_flow::rl::sampler::Weights;
use aha_flow::rl::{checkpointer, feeder, learner, recorder, supervisor, train};
use aha_learn::learner::Learner as Engine;
use aha_rollout::schema;
use ractor::Actor;
use tokio::sync::mpsc;

use crate::actors::{Actors, ear, groups, sampling_side};
use crate::world::{
    HOPELESS, How, Outcome, World, assert_same_tables, assert_same_weights, metrics,
};

#[track_caller]
fn assert_warned(outcome: &Outcome, message: &str, hint: &str) {
    let warnings = outcome.warnings();
    assert!(
        warnings.iter().any(|(m, h)| m.contains(message) && h.contains(hint)),
        "no warning of {message}: {warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_watchdog_warns_with_a_remedy_or_stops_as_set() {
    let world = World::new();
    let cases: [(&str, &[&str], &str, &str); 4] = [
        ("truncated", &["stage.zero.sampling.max_tokens=1"], "cut at the", "max_tokens"),
        ("no_signal", &[HOPELESS], "teach nothing", "group_size"),
        ("unparsed", &[HOPELESS], "no answer", "template"),
        ("trains_on_nothing", &[HOPELESS, "stage.zero.objective.kl=0"], "nothing to", "reward"),
    ];
    for (key, sets, message, hint) in cases {
        let outcome = world.finish(&format!("{key}-warn"), sets).await;
        assert_warned(&outcome, message, hint);
        let stop = format!("stage.zero.watchdogs.{key}=\"stop\"");
        let sets: Vec<&str> = sets.iter().copied().chain([stop.as_str()]).collect();
        let name = format!("{key}-stop");
        let outcome = world.run(&name, How { sets: &sets, ..How::default() }).await;
        let error = outcome.error();
        assert!(matches!(error, Error::Watchdog { .. }), "{key}: {error}");
        assert!(error.to_string().contains(message), "{key}: {error}");
        assert!(error.hint().unwrap().contains(hint), "{key}: {:?}", error.hint());
        // It stops after a checkpoint of the step that it was found in.
        let checkpoints = world.dir(&name).checkpoints("zero");
        assert!(checkpoints.join("step-000001/position.json").is_file(), "{key}");
        assert_eq!(outcome.steps("zero").len(), 1, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_trains_on_nothing_for_too_long_stops() {
    let world = World::new();
    let sets = [
        HOPELESS,
        "stage.zero.objective.kl=0",
        "stage.zero.watchdogs.trains_on_nothing_steps_max=2",
    ];
    let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
    assert!(outcome.error().to_string().contains("nothing to train on in 3 steps in a row"));
    assert_eq!(outcome.steps("zero").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_explode_stop_the_stage_with_a_remedy() {
    let world = World::new();
    let sets = ["stage.zero.optimizer.lr=1e30", "stage.zero.watchdogs.nan_batches_max=1"];
    let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
    assert_warned(&outcome, "gave no number", "optimizer.lr");
    let error = outcome.error();
    assert!(error.to_string().contains("gave no number"), "{error}");
    assert!(error.hint().unwrap().contains("optimizer.lr"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_whose_weights_are_not_those_published_says_so() {
    let world = World::new();
    let actors = Actors::new(&world, &["run.threads=1"]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let (learner, mut heard) = ear::<learner::Msg>().await;
    let sampler = sampling_side(&shared, &learner).await;
    let checksum = base.model.params().checksum();
    let publish = |version, checksum| {
        sampler.publish(Weights { model: Arc::clone(&base.model), version, checksum });
    };
    publish(7, checksum);
    publish(8, checksum ^ 1);
    let Some(learner::Msg::WeightsDiffer { version, found }) = heard.recv().await else {
        panic!("the learner is told")
    };
    assert_eq!((version, found), (8, checksum));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_differ_stop_the_stage_or_warn_as_set() {
    let world = World::new();
    for watch in [Watch::Stop, Watch::Warn, Watch::Off] {
        let word = format!("{watch:?}").to_lowercase();
        let (told, mut warnings) = mpsc::unbounded_channel();
        let watcher: Watcher = Arc::new(move |event| {
            let _ = told.send(event); // The test may be over.
        });
        let set = format!("stage.zero.watchdogs.weights_differ=\"{word}\"");
        let actors = Actors::new(&world, &[&set]).await;
        let (shared, base) = actors.shared(watcher, Faults::default()).await;
        let (supervisor, mut heard) = ear::<supervisor::Msg>().await;
        let args = learner::Args {
            shared,
            engine: Box::new(Engine::new(base.model)),
            position: Position { stage: "zero".to_owned(), ..Position::default() },
            supervisor: supervisor.clone(),
        };
        let (learner, _) = Actor::spawn(None, learner::Learner, args).await.unwrap();
        learner.cast(learner::Msg::WeightsDiffer { version: 0, found: 1 }).unwrap();
        learner.drain_and_wait(None).await.unwrap();
        supervisor.drain_and_wait(None).await.unwrap();
        let ended = heard.try_recv();
        assert_eq!(ended.is_ok(), watch == Watch::Stop, "{word}");
        if let Ok(supervisor::Msg::Ended(outcome)) = ended {
            assert!(matches!(outcome, Err(Error::Watchdog { .. })), "{outcome:?}");
        }
        let warned = matches!(warnings.try_recv(), Ok(Event::Warning { .. }));
        assert_eq!(warned, watch != Watch::Off, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_differ_are_not_made_a_checkpoint_of() {
    let world = World::new();
    world.finish("run", &[]).await;
    let actors = Actors::new(&world, &["stage.zero.watchdogs.weights_differ=\"stop\""]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let (supervisor, mut ended) = ear::<supervisor::Msg>().await;
    let (feeder, mut credits) = ear::<feeder::Msg>().await;
    let (checkpointer, mut saved) = ear::<checkpointer::Msg>().await;
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(base.model));
    let args = learner::Args {
        shared: Arc::clone(&shared),
        engine: Box::new(engine),
        position: Position { stage: "zero".to_owned(), ..Position::default() },
        supervisor: supervisor.clone(),
    };
    let (actor, _) = Actor::spawn(None, learner::Learner, args).await.unwrap();
    let learner = learner::Handle::from(actor.clone());
    let recorder_args =
        recorder::Args { shared: Arc::clone(&shared), after: 0, learner: learner.clone() };
    learner.connect(learner::Links {
        feeder: feeder.into(),
        sampler: sampling_side(&shared, &actor).await,
        recorder: recorder::spawn(recorder_args, supervisor.get_cell()).await.unwrap(),
        checkpointer: checkpointer.into(),
        attempt: 1,
    });
    // A step that no checkpoint is due after, and one that was trained on.
    learner.learn(1, 1, groups(&world.dir("run"), shared.scorer.names(), |x| x));
    assert!(matches!(ended.recv().await, Some(supervisor::Msg::StepDone)));
    learner.weights_differ(1, 0);
    let outcome = tokio::time::timeout(Duration::from_secs(10), ended.recv()).await;
    let Ok(Some(supervisor::Msg::Ended(Err(Error::Watchdog { message, .. })))) = outcome else {
        panic!("the stage ends for the weights")
    };
    assert!(message.contains("version 1"), "{message}");
    assert!(saved.try_recv().is_err(), "a checkpoint of damaged weights");
    let steps: Vec<u64> = std::iter::from_fn(|| credits.try_recv().ok())
        .filter_map(|msg| match msg {
            feeder::Msg::Credit { step, .. } => Some(step),
            feeder::Msg::Round { .. } => None,
        })
        .collect();
    assert_eq!(steps, [1, 2], "the step was done, and the next one asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_changed_before_they_were_written_are_no_checkpoint() {
    let world = World::new();
    let actors = Actors::new(&world, &[]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let (learner, mut heard) = ear::<learner::Msg>().await;
    let (supervisor, _) = ear::<supervisor::Msg>().await;
    let checksum = base.model.params().checksum();
    let args = checkpointer::Args { shared, learner: learner.into(), parts: Parts::default() };
    let checkpointer = checkpointer::spawn(args, supervisor.get_cell()).await.unwrap();
    let position = |step| Position { stage: "zero".to_owned(), step, ..Position::default() };
    checkpointer.save(Box::new(Engine::new(base.model)), position(1), Some(checksum));
    let Some(learner::Msg::Checkpointed { step: 1, state }) = heard.recv().await else {
        panic!("the state comes back")
    };
    checkpointer.save(state, position(2), Some(checksum ^ 1));
    // Who stands in for the supervisor ends with the actor that failed.
    supervisor.wait(Some(Duration::from_secs(10))).await.unwrap();
    let checkpoints = world.dir("actors").checkpoints("zero");
    let names: Vec<_> =
        fs_err::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-000001"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_gives_no_number_is_set_aside_and_the_weights_are_kept() {
    let world = World::new();
    world.finish("run", &[]).await;
    let actors = Actors::new(&world, &["run.threads=1"]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let groups = |logprob| groups(&world.dir("run"), shared.scorer.names(), logprob);
    let goes_on = AtomicBool::new(false);
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(Arc::clone(&base.model)));
    let mut sane = Engine::new(Arc::clone(&base.model));
    sane.set_reference(Some(Arc::clone(&base.model)));
    let before = base.model.params().checksum();
    let poisoned =
        train::train(&mut engine, &shared, 1, &groups(|_| f32::NAN), 0, &goes_on).unwrap();
    assert_eq!((poisoned.facts.nan_batches, poisoned.facts.trained), (1, 0));
    assert_eq!(engine.model().params().checksum(), before);
    let view = aha_rollout::view::RolloutsView::new(&poisoned.rows, schema::Progress::Trained);
    assert!((0..16).all(|row| view.as_ref().unwrap().skip_reason(row) == Some("not_finite")));
    // Nothing of it stays behind: the next batch does what it would have done without.
    for engine in [&mut engine, &mut sane] {
        let trained = train::train(engine, &shared, 1, &groups(|x| x), 0, &goes_on).unwrap();
        assert_eq!((trained.facts.nan_batches, trained.facts.trained), (0, 16));
    }
    assert_ne!(engine.model().params().checksum(), before);
    assert_eq!(engine.model().params().checksum(), sane.model().params().checksum());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_waits_for_any_more_is_left_alone() {
    let world = World::new();
    world.finish("run", &[]).await;
    let actors = Actors::new(&world, &["run.threads=1"]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let groups = groups(&world.dir("run"), shared.scorer.names(), |x| x);
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(base.model));
    let before = engine.model().params().checksum();
    let trained = train::train(&mut engine, &shared, 1, &groups, 0, &AtomicBool::new(true));
    assert!(matches!(trained, Err(Error::Interrupted)));
    assert_eq!((engine.version(), engine.model().params().checksum()), (0, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_cannot_be_written_never_stop_a_run() {
    let world = World::long();
    world.finish("whole", &[]).await;
    let whole = world.dir("whole");

    // Gone for good in the middle of the run.
    let break_at = |name: &str, step_broken: u64, step_mended: u64| -> Watcher {
        let metrics = world.dir(name).metrics();
        Arc::new(move |event| match event {
            Event::Step { stage, step, .. } if stage == "zero" && step == step_broken => {
                fs_err::rename(&metrics, metrics.with_extension("kept")).unwrap();
                fs_err::write(&metrics, "in the way").unwrap();
            }
            Event::Step { stage, step, .. } if stage == "zero" && step == step_mended => {
                fs_err::remove_file(&metrics).unwrap();
                fs_err::rename(metrics.with_extension("kept"), &metrics).unwrap();
            }
            _ => (),
        })
    };
    let watcher = Some(break_at("broken", 2, u64::MAX));
    let outcome = world.run("broken", How { watcher, ..How::default() }).await;
    outcome.result.as_ref().unwrap();
    assert_warned(&outcome, "metrics can't be written", "metrics");
    assert_same_weights(&whole, &world.dir("broken"));
    assert_same_tables(&whole, &world.dir("broken"));

    // Back again: what waited is written.
    let watcher = Some(break_at("mended", 2, 4));
    let outcome = world.run("mended", How { watcher, ..How::default() }).await;
    outcome.result.as_ref().unwrap();
    assert_warned(&outcome, "metrics can't be written", "metrics");
    assert_same_weights(&whole, &world.dir("mended"));
    assert_eq!(metrics(&whole), metrics(&world.dir("mended")));

    // Never there.
    let never = world.dir("never");
    fs_err::create_dir_all(never.root()).unwrap();
    fs_err::write(never.metrics(), "in the way").unwrap();
    let outcome = world.finish("never", &[]).await;
    assert_warned(&outcome, "metrics can't be written", "metrics");
    assert_same_weights(&whole, &never);
}
