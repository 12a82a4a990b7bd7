//! A run: the stages of a pipeline one after the other, from where the run directory says it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_compute::Device;
use aha_data::{Session, SessionOptions};
use aha_model::Model;
use aha_reward::wait::Waiting;

use crate::devices::{self, Devices};
use crate::error::{Error, Result};
use crate::identity::{self, Began, Difference, Identity};
use crate::lend::{self, Lender};
use crate::models::{Loaded, Models};
use crate::parts::Depth;
use crate::pipeline::{
    self, DpoStage, Pipeline, Places, Plan, Problems, RewardModelStage, RlStage, SampleStage,
    Stage, StageKind, Text,
};
use crate::planning::Around;
use crate::progress::{Event, Watcher};
use crate::prompts::{self, Prompter};
use crate::rl::draw::Draw;
use crate::rl::fault::Faults;
use crate::rl::stage::Shared;
use crate::room::Room;
use crate::rundir::{RunDir, write_file};
use crate::score::Scorer;
use crate::stages::{
    self, Context, dpo::Dpo, eval::Eval, export::Export, query::Query, reward_model::RewardModel,
    sample::Sample, sft::Sft,
};
use crate::state::{self, Machine, Opening, RunState};
use crate::stop::Stop;
use crate::{compute, generate, planning, rl};

/// What to run, and how.
pub struct Options {
    /// The pipeline file.
    pub pipeline: PathBuf,
    /// Overrides `KEY=VALUE`.
    pub sets: Vec<String>,
    /// The run directory; absent: `runs/` and the pipeline's name.
    pub dir: Option<PathBuf>,
    /// Go on with an unfinished run.
    pub resume: bool,
    /// Who watches.
    pub watcher: Watcher,
    /// A request to stop.
    pub stop: Stop,
    /// Faults that a test injects.
    pub faults: Faults,
    /// CUDA devices: [`devices::of_machine`], or a test's.
    pub devices: Arc<dyn Devices>,
    /// What is left free on the file system of the run directory, in bytes: the run waits below that.
    pub disk_reserve_bytes: u64,
}

/// Why there was no run, or why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The pipeline is wrong.
    #[error("{0}")]
    Problems(Problems),
    /// The run failed.
    #[error(transparent)]
    Run(#[from] Error),
}

/// The run directory of a pipeline that is given none.
pub fn default_dir(pipeline: &Path) -> PathBuf {
    Path::new("runs").join(pipeline.file_stem().unwrap_or(pipeline.as_os_str()))
}

/// Checks the pipeline, then runs its stages. `opened` hears of the run directory before anything is run.
pub async fn run(options: Options, opened: impl FnOnce(&RunDir, &Plan)) -> Result<RunDir, Failure> {
    let places = planning::places();
    let dir = options.dir.clone().unwrap_or_else(|| default_dir(&options.pipeline));
    let room = Room::new(options.disk_reserve_bytes, options.stop.clone(), options.watcher.clone());
    let dir = RunDir::new(dir).waiting_for(room);
    let devices = Arc::clone(&options.devices);
    let around = Around { devices, earlier: pipeline_of(&dir), starts: true };
    let plan = planning::check(&options.pipeline, &options.sets, &places, around).await?;
    let (pipeline, resume) = (Arc::new(plan.pipeline.clone()), options.resume);
    let Options { watcher, stop, faults, devices, .. } = options;
    let how = How { watcher, stop, faults, devices };
    execute(pipeline, &dir, places, (resume, how), || opened(&dir, &plan)).await?;
    Ok(dir)
}

/// Who watches a run, stops it, and makes it fail.
pub(crate) struct How {
    /// Who watches.
    pub watcher: Watcher,
    /// A request to stop.
    pub stop: Stop,
    /// Faults that a test injects.
    pub faults: Faults,
    /// CUDA devices.
    pub devices: Arc<dyn Devices>,
}

/// Runs the stages of a pipeline that has been checked, from where the run directory says it is.
pub(crate) async fn execute(
    pipeline: Arc<Pipeline>,
    dir: &RunDir,
    places: Places,
    (resume, how): (bool, How),
    opened: impl FnOnce(),
) -> Result<()> {
    let found = RunState::read(dir)?;
    let identity = Identity::of(&pipeline, &places, found.as_ref().map(|state| &state.identity))?;
    let difference = found.as_ref().and_then(|state| {
        let began = Began::read(dir, state);
        state.identity.difference(&began, &identity, &pipeline.settings())
    });
    let (device, others) = devices::open_all(&*how.devices, &pipeline.run)?;
    let difference = difference.or_else(|| other_device(found.as_ref()?, &device));
    // A finished run is only shown: whether its parts are there takes no reading.
    let mut depth = Depth::Content;
    let state = match state::decide(found, difference, resume) {
        Opening::Refuse { message, hint } => {
            let message = format!("`{}`: {message}", dir.root().display());
            return Err(Error::input_with(message, hint));
        }
        Opening::Begin => {
            dir.refuse_foreign()?;
            RunState::begin(&pipeline, identity, machine(&pipeline.run, &device))
        }
        Opening::Finished(state) => {
            depth = Depth::Sizes;
            RunState { identity, machine: machine(&pipeline.run, &device), ..state }
        }
        Opening::Resume(state) => {
            RunState { identity, machine: machine(&pipeline.run, &device), ..state }
        }
    };
    check_variables(&pipeline, &state)?;
    let lock = dir.write(|| dir.open())?;
    check_tables(&pipeline, &state, dir, depth)?;
    // In this order: the state has a digest of the settings. Where a version with more keys takes a run over and is
    // killed in between, it finds its own digest and goes on; a newer pipeline beside an older digest would look like
    // another run's.
    state.write(dir)?;
    dir.write(|| write_file(&dir.pipeline(), pipeline.to_toml().as_bytes()))?;
    opened();
    let waiting = lend::waiting(&pipeline, dir, &how.stop)?;
    let session = session(&pipeline, &places, dir).await?;
    let dir = dir.clone();
    let mut runner = Runner { pipeline, dir, device, others, session, places, state, how, waiting };
    runner.warn_of_version();
    runner.stages().await?;
    drop(runner);
    drop(lock);
    Ok(())
}

/// A run goes on on the kind of device that it began on: others have other bits.
fn other_device(began: &RunState, device: &Device) -> Option<Difference> {
    let was = began.machine.device_name.as_deref()?;
    let is = device.context().map(|context| context.info().name.as_str())?;
    (was != is && !began.is_finished()).then(|| Difference {
        message: format!("the run began on the device `{was}`, and this one is `{is}`"),
        hint: format!(
            "go on where there is a `{was}`, or begin again in another directory with --dir"
        ),
    })
}

/// Fails where rows are lost, or where a run that goes on would write other columns than it has.
fn check_tables(pipeline: &Pipeline, state: &RunState, dir: &RunDir, depth: Depth) -> Result<()> {
    if let Some(damage) = state.damage(dir, depth)? {
        let message = format!("the run has lost rows: {damage}");
        let hint = "put it back from a copy, or begin again in another directory with --dir";
        return Err(Error::input_with(message, hint));
    }
    if state.is_finished() {
        return Ok(());
    }
    match identity::other_columns(pipeline, dir, &state.version) {
        None => Ok(()),
        Some(Difference { message, hint }) => {
            Err(Error::input_with(format!("`{}`: {message}", dir.root().display()), hint))
        }
    }
}

/// Fails where a stage that is still to be run needs a secret that isn't there.
fn check_variables(pipeline: &Pipeline, state: &RunState) -> Result<()> {
    for stage in pipeline.stages.iter().filter(|stage| !state.is_done(&stage.name)) {
        if let Some((who, name)) = stage.kind.unset_variables().first() {
            return Err(Error::input_with(
                format!(
                    "stage `{}`: {who} needs the environment variable `{name}`, which is not set",
                    stage.name
                ),
                "set it, or give `api_key_env` the name of one that is",
            ));
        }
    }
    Ok(())
}

/// The pipeline of the run that is in the directory, as far as it can still be read.
pub(crate) fn pipeline_of(dir: &RunDir) -> Option<Pipeline> {
    let text = fs_err::read_to_string(dir.pipeline()).ok()?;
    pipeline::parse(Text { path: "pipeline.toml", text: &text, sets: &[] }).ok()
}

/// A session with the pipeline's input tables.
async fn session(pipeline: &Pipeline, places: &Places, dir: &RunDir) -> Result<Session> {
    let limit = usize::try_from(pipeline.run.query_memory.0).unwrap_or(usize::MAX);
    let options = SessionOptions {
        memory_limit_bytes: Some(limit),
        spill_dir: Some(dir.spill()),
        ..SessionOptions::default()
    };
    let session = Session::new(&options)?;
    for (name, address) in &pipeline.tables {
        let source = places.table(address)?;
        session
            .register(name, &source)
            .await
            .map_err(|error| Error::from(error).within(&format!("table `{name}`")))?;
    }
    Ok(session)
}

fn machine(run: &pipeline::Run, device: &Device) -> Machine {
    Machine {
        device: run.device.to_string(),
        device_name: device.context().map(|context| context.info().name.clone()),
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        instruction_set: device.isa().to_string(),
        threads: device.threads(),
    }
}

struct Runner {
    pipeline: Arc<Pipeline>,
    dir: RunDir,
    device: Device,
    /// More devices that train.
    others: Vec<Device>,
    session: Session,
    places: Places,
    state: RunState,
    how: How,
    waiting: Waiting,
}

impl Runner {
    /// Kernels and formulas may differ between versions.
    fn warn_of_version(&self) {
        let (began, now) = (self.state.version.as_str(), env!("CARGO_PKG_VERSION"));
        if began != now {
            tracing::warn!(
                began,
                now,
                "The run began with another version: what is left of it may end with other bits."
            );
        }
    }

    async fn stages(&mut self) -> Result<()> {
        let pipeline = Arc::clone(&self.pipeline);
        // Even a first stage may ask for `metrics`, `evals` or `rollouts`.
        stages::register_outputs(&self.session, &self.dir)?;
        for stage in &pipeline.stages {
            if self.state.is_done(&stage.name) {
                stages::register_outputs(&self.session, &self.dir)?;
                self.print_again(stage).await?;
                continue;
            }
            if self.how.stop.is_requested() {
                return Err(Error::Interrupted);
            }
            self.state.running(&self.dir, &stage.name)?;
            tracing::info!(stage = stage.name, kind = stage.kind.word(), "Stage started.");
            let outcome = self.stage(stage).await;
            outcome.map_err(|error| self.told(error, stage))?;
            self.state.done(&self.dir, stage)?;
            stages::register_outputs(&self.session, &self.dir)?;
            tracing::info!(stage = stage.name, "Stage done.");
            (self.how.watcher)(Event::StageDone { stage: stage.name.clone() });
            self.device.trim();
        }
        Ok(())
    }

    /// Where a stage failed, and which of its keys to turn if a device had no room.
    fn told(&self, error: Error, stage: &Stage) -> Error {
        let error = match error {
            Error::Device { message, is_full: true, .. } => {
                Error::Device { message, hint: pipeline::resume_hint(stage), is_full: true }
            }
            error => error,
        };
        error.within(&format!("stage `{}`", stage.name))
    }

    /// A run that is looked at again shows its results again.
    async fn print_again(&self, stage: &Stage) -> Result<()> {
        match &stage.kind {
            StageKind::Query(settings) if settings.print => {
                self.query(stage, settings).print().await
            }
            _ => Ok(()),
        }
    }

    async fn stage(&self, stage: &Stage) -> Result<()> {
        match &stage.kind {
            StageKind::Sft(settings) => {
                let base = self.load(&settings.model).await?;
                self.set_tokenizer(&base);
                Sft { context: self.context(stage), settings }.run(base).await
            }
            StageKind::RewardModel(settings) => self.reward_model(stage, settings).await,
            StageKind::Dpo(settings) => self.dpo(stage, settings).await,
            StageKind::Rl(settings) => self.rl(stage, settings).await,
            StageKind::Sample(settings) => self.sample(stage, settings).await,
            StageKind::Query(settings) => self.query(stage, settings).run().await,
            StageKind::Eval(settings) => {
                let (context, models) = (self.context(stage), &self.models());
                Eval { context, settings, models, waiting: &self.waiting }.run().await
            }
            StageKind::Export(settings) => {
                let export = Export { stage: &stage.name, settings, dir: &self.dir };
                export.run(&self.models()).await
            }
        }
    }

    fn query<'a>(&'a self, stage: &'a Stage, settings: &'a pipeline::QueryStage) -> Query<'a> {
        Query {
            stage: &stage.name,
            description: &stage.description,
            settings,
            dir: &self.dir,
            session: &self.session,
            watcher: &self.how.watcher,
            stop: &self.how.stop,
        }
    }

    async fn sample(&self, stage: &Stage, settings: &SampleStage) -> Result<()> {
        let (context, models) = (self.context(stage), &self.models());
        let sample = Sample { context, settings, models, waiting: &self.waiting };
        match (&settings.endpoint, &settings.model) {
            (Some(endpoint), _) => sample.ask(endpoint).await,
            (None, Some(model)) => {
                let base = self.load(model).await?;
                self.set_tokenizer(&base);
                sample.run(base).await
            }
            (None, None) => Err(Error::bug("a stage without model and endpoint was resolved")),
        }
    }

    async fn reward_model(&self, stage: &Stage, settings: &RewardModelStage) -> Result<()> {
        let base = self.models().load_any(&settings.model).await?;
        self.set_tokenizer(&base);
        RewardModel { context: self.context(stage), settings }.run(base).await
    }

    async fn dpo(&self, stage: &Stage, settings: &DpoStage) -> Result<()> {
        let base = self.load(&settings.model).await?;
        self.set_tokenizer(&base);
        let reference = guide(&self.models(), stage, &base).await?;
        Dpo { context: self.context(stage), settings }.run(base, reference).await
    }

    async fn rl(&self, of: &Stage, settings: &RlStage) -> Result<()> {
        let stage = of.name.as_str();
        // Where sampler and learner compute at once, each has its share of the cores.
        let own = match settings.max_staleness {
            0 => None,
            _ => {
                let shares = compute::shares(&self.pipeline.run, settings);
                Some(devices::beside(&self.device, shares.learner)?)
            }
        };
        let training = self.models_on(own.as_ref().unwrap_or(&self.device));
        let base = training.load(&settings.model).await?;
        self.set_tokenizer(&base);
        let teacher = guide(&training, of, &base).await?;
        let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
        let (on_null, models) = (settings.reward_null, self.models());
        let lender = Lender::new(stage, &specs, &models, &self.waiting).await?;
        let random = generate::stage_random(self.pipeline.run.seed, stage);
        let problems = prompts::load(&self.session, &settings.prompts).await?;
        let scorer = Scorer::new(&specs, on_null, settings.reward_clip, &lender)?;
        scorer.check_sources(&problems)?;
        let shared = Shared {
            stage: stage.to_owned(),
            settings: settings.clone(),
            run: self.pipeline.run.clone(),
            device: self.device.clone(),
            others: self.others.clone(),
            dir: self.dir.clone(),
            draw: Draw::new(settings, &problems, &scorer, random)?,
            problems,
            prompter: Prompter::new(&base.tokenizer, &settings.template)?,
            sampling: prompts::sampling(&settings.sampling, &base.model, &base.tokenizer),
            tokenizer: Arc::clone(&base.tokenizer),
            scorer,
            teacher,
            random,
            watcher: Arc::clone(&self.how.watcher),
            faults: self.how.faults.clone(),
        };
        rl::run(Arc::new(shared), base, &training, &self.how.stop).await
    }

    fn context<'a>(&'a self, stage: &'a Stage) -> Context<'a> {
        Context {
            stage: &stage.name,
            run: &self.pipeline.run,
            dir: &self.dir,
            device: &self.device,
            others: &self.others,
            session: &self.session,
            watcher: &self.how.watcher,
            stop: &self.how.stop,
        }
    }

    fn models(&self) -> Models<'_> {
        self.models_on(&self.device)
    }

    fn models_on<'a>(&'a self, device: &'a Device) -> Models<'a> {
        Models {
            pipeline: &self.pipeline,
            dir: &self.dir,
            device,
            session: &self.session,
            places: &self.places,
        }
    }

    async fn load(&self, name: &str) -> Result<Loaded> {
        self.models().load(name).await
    }

    /// `token_count` in later queries counts with the tokenizer of the newest stage's model.
    fn set_tokenizer(&self, loaded: &Loaded) {
        let tokenizer = Arc::clone(&loaded.tokenizer);
        self.session.set_tokenizer(Arc::new(move |text: &str| {
            tokenizer.encode(text, false).map(|ids| ids.len()).map_err(|error| error.to_string())
        }));
    }
}

/// The model that is asked about the tokens of `base`, where the stage names one: it has to know them.
async fn guide(models: &Models<'_>, stage: &Stage, base: &Loaded) -> Result<Option<Arc<Model>>> {
    let Some((key, name)) = stage.kind.guide() else { return Ok(None) };
    let Loaded { model, tokenizer } = models.load(name).await?;
    if let Some(difference) = base.tokenizer.difference(&tokenizer) {
        return Err(Error::input_with(
            format!("`{key}` is `{name}`, whose tokenizer is another one: {difference}"),
            "give it a model of the same family, or one trained from it",
        ));
    }
    Ok(Some(model))
}
