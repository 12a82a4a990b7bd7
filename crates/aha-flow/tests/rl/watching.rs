//! Watchdogs, and metrics that can't be written.

use std::sync::Arc;

use aha_compute::Device;
use aha_data::source::TableSource;
use aha_data::{Session, SessionOptions};
use aha_flow::checkpoint::Position;
use aha_flow::models::{Loaded, Models};
use aha_flow::pipeline::{Places, StageKind, Watch};
use aha_flow::progress::{Event, Watcher, nobody};
use aha_flow::prompts::{self, Prompter};
use aha_flow::rl::advantage::{self, Groups};
use aha_flow::rl::fault::Faults;
use aha_flow::rl::sampler::{self, Weights};
use aha_flow::rl::stage::Shared;
use aha_flow::rl::{learner, reward, supervisor, train};
use aha_flow::score::Scorer;
use aha_flow::{Error, generate, planning};
use aha_learn::learner::Learner as Engine;
use aha_rollout::{col, schema};
use arrow::array::{ArrayRef, AsArray, Float32Array, ListArray, RecordBatch};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use crate::world::{How, Outcome, World, assert_same_tables, assert_same_weights, metrics, rows};

/// No completion gets this reward, nor has an answer that can be read.
const HOPELESS: &str = "stage.zero.rewards=[{ kind = \"math\", extract = [\"boxed\"] }]";

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

/// What the actors of the stage `zero` share, and its model, in a folder's run directory `actors`.
async fn shared(world: &World, set: &str, watcher: Watcher) -> (Arc<Shared>, Loaded) {
    let places = Places { base_dir: "/".into(), hf_cache: None };
    let plan = planning::check(&world.pipeline(), &[set.to_owned()], &places).await.unwrap();
    let pipeline = plan.pipeline;
    let session = Session::new(&SessionOptions::default()).unwrap();
    for (name, address) in &pipeline.tables {
        let source = TableSource::new(address, &places.base_dir).unwrap();
        session.register(name, &source).await.unwrap();
    }
    let (dir, device) = (world.dir("actors"), Device::cpu(1));
    drop(dir.open().unwrap());
    let models = Models {
        pipeline: &pipeline,
        dir: &dir,
        device: &device,
        session: &session,
        places: &places,
    };
    let base = models.load("blank").await.unwrap();
    let StageKind::Rl(settings) = &pipeline.stage("zero").unwrap().kind else { panic!("rl") };
    let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
    let shared = Shared {
        stage: "zero".to_owned(),
        settings: (**settings).clone(),
        run: pipeline.run.clone(),
        problems: prompts::load(&session, &settings.prompts).await.unwrap(),
        prompter: Prompter::new(&base.tokenizer, &settings.template).unwrap(),
        sampling: prompts::sampling(&settings.sampling, &base.model, &base.tokenizer),
        tokenizer: Arc::clone(&base.tokenizer),
        scorer: Scorer::new(&specs, settings.reward_null).unwrap(),
        random: generate::stage_random(pipeline.run.seed, "zero"),
        watcher,
        faults: Faults::default(),
        dir,
    };
    (Arc::new(shared), base)
}

/// An actor that hands on what it is told.
struct Ear<M>(mpsc::UnboundedSender<M>);

impl<M: Send + Sync + 'static> Actor for Ear<M> {
    type Msg = M;
    type State = ();
    type Arguments = ();
    async fn pre_start(&self, _: ActorRef<M>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
    async fn handle(&self, _: ActorRef<M>, msg: M, (): &mut ()) -> Result<(), ActorProcessingErr> {
        let _ = self.0.send(msg); // The test may be over.
        Ok(())
    }
}

async fn ear<M: Send + Sync + 'static>() -> (ActorRef<M>, mpsc::UnboundedReceiver<M>) {
    let (sender, heard) = mpsc::unbounded_channel();
    let (actor, _) = Actor::spawn(None, Ear(sender), ()).await.unwrap();
    (actor, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_whose_weights_are_not_those_published_says_so() {
    let world = World::new();
    let (shared, base) = shared(&world, "run.threads=1", nobody()).await;
    let (learner, mut heard) = ear::<learner::Msg>().await;
    let cell = learner.get_cell();
    let advantage_args = advantage::Args { shared: Arc::clone(&shared), learner: learner.clone() };
    let advantage = advantage::spawn(advantage_args, cell.clone()).await.unwrap();
    let reward_args = reward::Args { shared: Arc::clone(&shared), advantage: advantage.clone() };
    let reward = reward::spawn(reward_args, cell.clone()).await.unwrap();
    let args = sampler::Args { shared, reward, advantage, learner, attempt: 1 };
    let sampler = sampler::spawn(args, cell).await.unwrap();
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
        let (shared, base) = shared(&world, &set, watcher).await;
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

/// The rows of a step as the learner got them, with other log-probs.
fn with_logprobs(
    trained: &RecordBatch,
    names: &[String],
    logprob: impl Fn(f32) -> f32,
) -> RecordBatch {
    let schema = schema::grouped(names).unwrap();
    let columns = schema.fields().iter().map(|field| {
        let column = trained.column_by_name(field.name()).unwrap();
        if field.name() != col::COMPLETION_LOGPROBS {
            return Arc::clone(column);
        }
        let list = column.as_list::<i32>();
        let values = list.values().as_primitive::<arrow::datatypes::Float32Type>();
        let values: Float32Array = values.values().iter().map(|&x| Some(logprob(x))).collect();
        let arrow::datatypes::DataType::List(item) = field.data_type() else { panic!("a list") };
        let values: ArrayRef = Arc::new(values);
        Arc::new(ListArray::new(Arc::clone(item), list.offsets().clone(), values, None)) as ArrayRef
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_gives_no_number_is_set_aside_and_the_weights_are_kept() {
    let world = World::new();
    world.finish("run", &[]).await;
    let (shared, base) = shared(&world, "run.threads=1", nobody()).await;
    let first = &rows(&world.dir("run"), "zero")[0];
    let groups = |logprob: fn(f32) -> f32| Groups {
        rows: with_logprobs(&first.slice(0, 16), shared.scorer.names(), logprob),
        lens: vec![4; 4],
        has_signal: vec![true; 4],
        failed: Vec::new(),
    };
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(Arc::clone(&base.model)));
    let mut sane = Engine::new(Arc::clone(&base.model));
    sane.set_reference(Some(Arc::clone(&base.model)));
    let before = base.model.params().checksum();
    let poisoned = train::train(&mut engine, &shared, 1, &groups(|_| f32::NAN), 0).unwrap();
    assert_eq!((poisoned.facts.nan_batches, poisoned.facts.trained), (1, 0));
    assert_eq!(engine.model().params().checksum(), before);
    let view = aha_rollout::view::RolloutsView::new(&poisoned.rows, schema::Progress::Trained);
    assert!((0..16).all(|row| view.as_ref().unwrap().skip_reason(row) == Some("not_finite")));
    // Nothing of it stays behind: the next batch does what it would have done without.
    for engine in [&mut engine, &mut sane] {
        let trained = train::train(engine, &shared, 1, &groups(|x| x), 0).unwrap();
        assert_eq!((trained.facts.nan_batches, trained.facts.trained), (0, 16));
    }
    assert_ne!(engine.model().params().checksum(), before);
    assert_eq!(engine.model().params().checksum(), sane.model().params().checksum());
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
