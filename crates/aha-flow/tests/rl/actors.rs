//! Actors of the stage `zero` without a run around them.

use std::sync::Arc;

use aha_compute::Device;
use aha_data::source::TableSource;
use aha_data::{Session, SessionOptions};
use aha_flow::generate;
use aha_flow::models::{Loaded, Models};
use aha_flow::pipeline::{Pipeline, Places, StageKind};
use aha_flow::planning::{self, Around};
use aha_flow::progress::Watcher;
use aha_flow::prompts::{self, Prompter};
use aha_flow::rl::advantage::{self, Groups};
use aha_flow::rl::draw::Draw;
use aha_flow::rl::fault::Faults;
use aha_flow::rl::stage::Shared;
use aha_flow::rl::{learner, reward, sampler};
use aha_flow::rundir::RunDir;
use aha_flow::score::Scorer;
use aha_reward::NoBackends;
use aha_rollout::{col, schema};
use arrow::array::{ArrayRef, AsArray, Float32Array, ListArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use crate::world::{World, rows};

/// What actors are made from, with the run directory `actors`.
pub struct Actors {
    pipeline: Pipeline,
    session: Session,
    places: Places,
    dir: RunDir,
    device: Device,
}

impl Actors {
    pub async fn new(world: &World, sets: &[&str]) -> Actors {
        let places = Places { base_dir: "/".into(), hf_cache: None };
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let plan =
            planning::check(&world.pipeline(), &sets, &places, Around::of_machine()).await.unwrap();
        let session = Session::new(&SessionOptions::default()).unwrap();
        for (name, address) in &plan.pipeline.tables {
            let source = TableSource::new(address, &places.base_dir).unwrap();
            session.register(name, &source).await.unwrap();
        }
        let (dir, device) = (world.dir("actors"), Device::cpu(1));
        drop(dir.open().unwrap());
        Actors { pipeline: plan.pipeline, session, places, dir, device }
    }

    pub fn models(&self) -> Models<'_> {
        Models {
            pipeline: &self.pipeline,
            dir: &self.dir,
            device: &self.device,
            session: &self.session,
            places: &self.places,
        }
    }

    /// What the actors share, and the stage's first model.
    pub async fn shared(&self, watcher: Watcher, faults: Faults) -> (Arc<Shared>, Loaded) {
        let base = self.models().load("blank").await.unwrap();
        let StageKind::Rl(settings) = &self.pipeline.stage("zero").unwrap().kind else {
            panic!("rl")
        };
        let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
        let random = generate::stage_random(self.pipeline.run.seed, "zero");
        let problems = prompts::load(&self.session, &settings.prompts).await.unwrap();
        let scorer = Scorer::new(&specs, settings.reward_null, None, &NoBackends).unwrap();
        let shared = Shared {
            stage: "zero".to_owned(),
            settings: (**settings).clone(),
            run: self.pipeline.run.clone(),
            device: self.device.clone(),
            others: Vec::new(),
            draw: Draw::new(settings, &problems, &scorer, random).unwrap(),
            problems,
            prompter: Prompter::new(&base.tokenizer, &settings.template).unwrap(),
            sampling: prompts::sampling(&settings.sampling, &base.model, &base.tokenizer),
            tokenizer: Arc::clone(&base.tokenizer),
            scorer,
            teacher: None,
            random,
            watcher,
            faults,
            dir: self.dir.clone(),
        };
        (Arc::new(shared), base)
    }
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

pub async fn ear<M: Send + Sync + 'static>() -> (ActorRef<M>, mpsc::UnboundedReceiver<M>) {
    let (sender, heard) = mpsc::unbounded_channel();
    let (actor, _) = Actor::spawn(None, Ear(sender), ()).await.unwrap();
    (actor, heard)
}

/// A reward actor, and the advantage actor that it needs, left of `learner`.
pub async fn scoring_side(
    shared: &Arc<Shared>,
    learner: &ActorRef<learner::Msg>,
) -> (reward::Handle, advantage::Handle) {
    let cell = learner.get_cell();
    let args = advantage::Args { shared: Arc::clone(shared), learner: learner.clone().into() };
    let advantage = advantage::spawn(args, cell.clone()).await.unwrap();
    let args = reward::Args { shared: Arc::clone(shared), advantage: advantage.clone() };
    (reward::spawn(args, cell).await.unwrap(), advantage)
}

/// A sampler, and the actors that it needs, left of `learner`.
pub async fn sampling_side(
    shared: &Arc<Shared>,
    learner: &ActorRef<learner::Msg>,
) -> sampler::Handle {
    let (reward, advantage) = scoring_side(shared, learner).await;
    let args = sampler::Args {
        shared: Arc::clone(shared),
        reward,
        advantage,
        learner: learner.clone().into(),
        attempt: 1,
        is_one_by_one: false,
    };
    sampler::spawn(args, learner.get_cell()).await.unwrap()
}

/// The groups of a run's first step as the learner got them, with other log-probs.
pub fn groups(dir: &RunDir, names: &[String], logprob: fn(f32) -> f32) -> Groups {
    let first = rows(dir, "zero")[0].slice(0, 16);
    Groups {
        rows: with_logprobs(&first, names, logprob),
        lens: vec![4; 4],
        has_signal: vec![true; 4],
        left_out: vec![None; 4],
        failed: Vec::new(),
    }
}

fn with_logprobs(trained: &RecordBatch, names: &[String], logprob: fn(f32) -> f32) -> RecordBatch {
    let schema = schema::grouped(names).unwrap();
    let columns = schema.fields().iter().map(|field| {
        let column = trained.column_by_name(field.name()).unwrap();
        if field.name() != col::COMPLETION_LOGPROBS {
            return Arc::clone(column);
        }
        let list = column.as_list::<i32>();
        let values = list.values().as_primitive::<Float32Type>();
        let values: Float32Array = values.values().iter().map(|&x| Some(logprob(x))).collect();
        let DataType::List(item) = field.data_type() else { panic!("a list") };
        let values: ArrayRef = Arc::new(values);
        Arc::new(ListArray::new(Arc::clone(item), list.offsets().clone(), values, None)) as ArrayRef
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
}
