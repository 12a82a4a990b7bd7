//! An evaluation without a pipeline file: `aha eval`.
//!
//! With a run directory it is a run of a pipeline with one stage, which is made here, so that it goes on
//! where it was interrupted and leaves the tables of a run. Without one, nothing is written. The draws, and
//! so the figures, are the same.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aha_compute::Device;
use aha_data::{Session, SessionOptions};
use aha_model::Tokenizer;
use aha_reward::Settings;
use aha_rollout::read;

use super::{EvalRow, Subject, Tally};
use crate::compute::ComputeThread;
use crate::devices::{self, Devices};
use crate::error::{Error, Result};
use crate::lend::Lender;
use crate::pipeline::{
    self, EvalStage, ModelSource, Names, Pipeline, Places, Reward, Run, Sql, Stage, StageKind,
    Template, name_of,
};
use crate::progress::{Event, Watcher};
use crate::prompts::{Origin, Problem};
use crate::rl::fault::Faults;
use crate::run::{How, execute, pipeline_of};
use crate::rundir::RunDir;
use crate::score::Scorer;
use crate::stages::completions::Speed;
use crate::stages::eval::{self, draws, subject};
use crate::state::RunState;
use crate::stop::Stop;
use crate::{generate, models};

/// The stage's name, in rows and draws.
const STAGE: &str = "eval";

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Standalone {
    /// The model: a Hugging Face directory, a GGUF file, or `hf://owner/name` in the local cache.
    pub model: String,
    /// The problems: a file, a folder, a glob, or `hf://datasets/owner/name/path` in the local cache.
    pub data: String,
    /// How prompts are made; absent: the model's chat template, or else the prompt as it is.
    pub template: Option<Template>,
    /// All else that an `eval` stage says; its models, data and template are those above. What ranks calls the
    /// model that it asks by its address, as above.
    pub settings: EvalStage,
    /// Seed, threads and bounds of the sampler.
    pub run: Run,
    /// Where addresses are looked up.
    pub places: Places,
    /// CUDA devices.
    pub devices: Arc<dyn Devices>,
}

/// Draws completions, scores them and returns the figures. Nothing is written. A step is a problem.
pub async fn in_memory(options: &Standalone, watcher: Watcher) -> Result<EvalRow> {
    let resolved = options.resolve().await?;
    let path = options.model_path()?;
    let (run, places) = (options.pipeline(&resolved, None)?.run, options.places.clone());
    let device = devices::open(&*options.devices, &run)?;
    let job = move || {
        let specs = eval::specs(&resolved.settings);
        let lender = Lender::by_address(STAGE, &specs, (&run, &device), &places)?;
        let scorer = eval::scorer(&resolved.settings, &lender)?;
        evaluate(resolved, scorer, &path, (&run, &device), &watcher)
    };
    ComputeThread::start("aha-sampler")?.run(job).await?
}

/// As [`in_memory`], with the completions and the figures as tables of a run directory. Goes on with what is
/// there; asked to stop, it leaves at once. A step is a chunk of problems.
pub async fn in_dir(
    options: &Standalone,
    dir: &RunDir,
    stop: Stop,
    watcher: Watcher,
) -> Result<EvalRow> {
    let resolved = options.resolve().await?;
    let pipeline = Arc::new(options.pipeline(&resolved, pipeline_of(dir).as_ref())?);
    let devices = Arc::clone(&options.devices);
    let how = How { watcher, stop, faults: Faults::default(), devices };
    // It goes on by itself where there is something to go on with.
    let resume = RunState::read(dir)?.is_some();
    execute(pipeline, dir, options.places.clone(), (resume, how), || ()).await?;
    row_of(dir)
}

/// What is known before a model is loaded.
struct Resolved {
    model: String,
    dataset: String,
    settings: EvalStage,
    problems: Vec<Problem>,
}

impl Standalone {
    async fn resolve(&self) -> Result<Resolved> {
        let dataset = match self.settings.benchmark {
            Some(benchmark) => benchmark.word().to_owned(),
            None => name_of(stem(&self.data)),
        };
        let model = name_of(stem(&self.model));
        let dataset = if dataset == model { format!("{dataset}_data") } else { dataset };
        let template = match &self.template {
            Some(template) => template.clone(),
            None if Tokenizer::load(&self.model_path()?)?.chat_template().is_some() => {
                Template::Chat
            }
            None => Template::Raw,
        };
        let settings = EvalStage {
            model: Some(Names(vec![model.clone()])),
            endpoint: None,
            data: Sql(format!("SELECT * FROM \"{dataset}\"")),
            template,
            ..self.settings.clone()
        };
        let session = Session::new(&SessionOptions::default())?;
        session.register(&dataset, &self.places.table(&self.data)?).await?;
        let problems = eval::problems(&session, &settings, self.run.seed, Origin::Files).await?;
        let lacks = |column: &str| match column {
            "tests" => problems.iter().all(|problem| problem.tests.is_none()),
            _ => problems.iter().all(|problem| problem.answer.is_none()),
        };
        if let Some(column) = settings.reward.needs().filter(|column| lacks(column)) {
            return Err(Error::input_with(
                format!("no problem has `{column}`, which `{}` verifies", settings.reward.name()),
                format!("give problems with a column `{column}`, or another --reward"),
            ));
        }
        Ok(Resolved { model, dataset, settings, problems })
    }

    fn model_path(&self) -> Result<PathBuf> {
        self.places
            .locate(&self.model)
            .map_err(|found| Error::input_with(found.message, found.hint))
    }

    /// The pipeline that does the same, where the run that goes on has `earlier`.
    fn pipeline(&self, resolved: &Resolved, earlier: Option<&Pipeline>) -> Result<Pipeline> {
        let mut models = vec![(resolved.model.clone(), ModelSource::Path(self.model.clone()))];
        let mut settings = resolved.settings.clone();
        if let Some(asked) = settings.rank_by.as_mut().and_then(model_of) {
            let name = match name_of(stem(asked)) {
                _ if *asked == self.model => resolved.model.clone(),
                name if name == resolved.model || name == resolved.dataset => {
                    format!("{name}_ranks")
                }
                name => name,
            };
            if name != resolved.model {
                models.push((name.clone(), ModelSource::Path(asked.clone())));
            }
            *asked = name;
        }
        let mut pipeline = Pipeline {
            run: self.run.clone(),
            models,
            tables: vec![(resolved.dataset.clone(), self.data.clone())],
            stages: vec![Stage {
                name: STAGE.to_owned(),
                description: String::new(),
                kind: StageKind::Eval(Box::new(settings)),
            }],
        };
        pipeline::device::settle(&mut pipeline, &*self.devices, earlier)?;
        Ok(pipeline)
    }
}

/// The model that a scorer asks, where that is one of ours.
fn model_of(scorer: &mut Reward) -> Option<&mut String> {
    match &mut scorer.0.settings {
        Settings::Model(settings) => settings.model.as_mut(),
        Settings::Judge(settings) if settings.endpoint.url.is_none() => settings.model.as_mut(),
        _ => None,
    }
}

/// What a model or data set is called by whoever named its file or folder.
fn stem(address: &str) -> &str {
    let path = Path::new(address.trim_end_matches('/'));
    let name = match path.extension() {
        Some(extension) if path.is_file() || is_data(extension) => path.file_stem(),
        _ => path.file_name(),
    };
    name.and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_data(extension: &std::ffi::OsStr) -> bool {
    ["gguf", "parquet", "jsonl", "ndjson", "json", "csv"].iter().any(|known| extension == *known)
}

fn evaluate(
    resolved: Resolved,
    scorer: Scorer,
    path: &Path,
    (run, device): (&Run, &Device),
    watcher: &Watcher,
) -> Result<EvalRow> {
    let Resolved { model, dataset, settings, problems } = resolved;
    let loaded = models::load(path, device)?;
    let subject = subject(STAGE, &settings, run, &problems);
    let draws = draws(STAGE, &model, &settings, run, (loaded, (problems, scorer)))?;
    let mut sampler = generate::sampler(&draws.model.model, &draws.model.tokenizer, run);
    let mut tally = Tally::new(&settings.reward, settings.rank_by.as_ref());
    let mut speed = Speed::default();
    let (stage, total) = (STAGE.to_owned(), draws.problems.len());
    watcher(Event::StageStarted { stage, kind: "eval", step: 0, steps: total as u64 });
    let done = Cell::new(0);
    // Nothing is written, so a signal that ends the process loses nothing that was kept.
    let never = AtomicBool::new(false);
    let mut set_aside = None;
    for idx in 0..draws.chunks_count() {
        let chunk = draws.chunk(&mut sampler, idx, &never, &|| {
            done.set(done.get() + 1);
            let (stage, metrics) = (STAGE.to_owned(), BTreeMap::new());
            watcher(Event::Step { stage, step: done.get(), metrics });
        })?;
        set_aside = set_aside.or(chunk.set_aside.into_iter().next());
        speed.add(chunk.speed);
        tally.add(&chunk.rows)?;
    }
    if let Some((id, error)) = &set_aside
        && done.get() == 0
    {
        return Err(Error::input(format!("problem `{id}`: {error}")));
    }
    let found = tally.evaluation(&Subject {
        model: &model,
        dataset: &dataset,
        tokens_per_second: speed.tokens_per_second(),
        ..subject
    })?;
    let hint = match (&set_aside, tally.error()) {
        (Some((id, error)), _) => format!("such as `{id}`: {error}"),
        (None, error) => error.unwrap_or("no reason is known").to_owned(),
    };
    eval::warn_of_left_out(STAGE, &found, total, hint, watcher);
    Ok(found)
}

/// The one row of the table `evals`.
fn row_of(dir: &RunDir) -> Result<EvalRow> {
    let failed = |error: &dyn std::error::Error| {
        Error::input_with(
            format!("the table `evals` in `{}` can't be read: {error}", dir.root().display()),
            "give another directory with --dir",
        )
    };
    let mut writer = arrow::json::writer::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    for batch in read::read_table(&dir.table("evals"))? {
        writer.write(&batch).map_err(|error| failed(&error))?;
    }
    writer.finish().map_err(|error| failed(&error))?;
    let rows: Vec<EvalRow> =
        serde_json::from_slice(&writer.into_inner()).map_err(|error| failed(&error))?;
    rows.into_iter().next().ok_or_else(|| {
        Error::input_with(
            format!("the table `evals` in `{}` is empty", dir.root().display()),
            "give another directory with --dir",
        )
    })
}
