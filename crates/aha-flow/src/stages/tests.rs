//! Stages on a tiny model made from nothing: what they write, and that an interruption changes nothing.

use std::sync::{Arc, Mutex};

use aha_compute::Device;
use aha_data::{Session, SessionOptions};
use aha_reward::wait::Waiting;
use aha_rollout::{col, read, table, time};
use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int64Type};

use super::Context;
use super::completions::CHUNK_PROMPTS;
use super::eval::Eval;
use super::export::Export;
use super::register_outputs;
use super::sample::Sample;
use crate::error::Error;
use crate::evaluate::EvalRow;
use crate::evaluate::standalone::{self, Standalone};
use crate::models::{self, Models};
use crate::pipeline::{self, EvalStage, Pipeline, Places, StageKind, Text};
use crate::progress::{Event, Watcher, nobody};
use crate::rundir::RunDir;
use crate::stop::Stop;

const PIPELINE: &str = r#"
[models]
base = { init = "random", hidden_size = 32, intermediate_size = 32, layers = 1, heads = 2, kv_heads = 1, max_position_embeddings = 64, init_std = 0.3, tokenizer = { train = "SELECT prompt || answer AS text FROM problems", vocab_size = 48, alphabet = "seen" } }

[[stage]]
name = "drawn"
kind = "sample"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
n = 2
sampling = { max_tokens = 4 }
rewards = [{ kind = "math", extract = ["whole"] }]

[[stage]]
name = "scores"
kind = "eval"
model = ["base"]
data = "SELECT id, prompt, answer FROM problems WHERE id <> 'long'"
k = 3
max_tokens = 4
reward = { kind = "math", extract = ["whole"] }

[[stage]]
name = "out"
kind = "export"
model = "base"
dtype = "bf16"
shard_size = "1kB"
"#;

/// More than one chunk.
const PROBLEMS_COUNT: usize = CHUNK_PROMPTS + 6;

struct World {
    temp: tempfile::TempDir,
    pipeline: Pipeline,
    dir: RunDir,
    device: Device,
    session: Session,
    places: Places,
}

impl World {
    fn new() -> World {
        let temp = tempfile::tempdir().unwrap();
        let pipeline = pipeline::parse(Text { path: "p.toml", text: PIPELINE, sets: &[] }).unwrap();
        let dir = RunDir::new(temp.path().join("run"));
        drop(dir.open().unwrap());
        let session = Session::new(&SessionOptions::default()).unwrap();
        let problems = problems();
        session.register_batches("problems", problems.schema(), vec![problems]).unwrap();
        let places = Places { base_dir: temp.path().to_owned(), hf_cache: None };
        World { pipeline, dir, device: Device::cpu(1), session, places, temp }
    }

    fn models(&self) -> Models<'_> {
        Models {
            pipeline: &self.pipeline,
            dir: &self.dir,
            device: &self.device,
            session: &self.session,
            places: &self.places,
        }
    }

    fn context<'a>(&'a self, watcher: &'a Watcher, stop: &'a Stop) -> Context<'a> {
        Context {
            stage: "",
            run: &self.pipeline.run,
            dir: &self.dir,
            device: &self.device,
            others: &[],
            session: &self.session,
            watcher,
            stop,
        }
    }

    async fn sample(&self, watcher: &Watcher, stop: &Stop) -> Result<(), Error> {
        let StageKind::Sample(settings) = &self.pipeline.stage("drawn").unwrap().kind else {
            panic!("a sample stage")
        };
        let context = Context { stage: "drawn", ..self.context(watcher, stop) };
        let (models, waiting) = (&self.models(), &Waiting::default());
        let sample = Sample { context, settings, models, waiting };
        sample.run(self.models().load("base").await.unwrap()).await
    }

    async fn eval(&self) -> Result<(), Error> {
        let StageKind::Eval(settings) = &self.pipeline.stage("scores").unwrap().kind else {
            panic!("an eval stage")
        };
        let (watcher, stop) = (&nobody(), &Stop::default());
        let context = Context { stage: "scores", ..self.context(watcher, stop) };
        let (models, waiting) = (&self.models(), &Waiting::default());
        Eval { context, settings, models, waiting }.run().await
    }

    fn rows(&self, table: &str) -> Vec<RecordBatch> {
        read::read_table(&self.dir.table(table)).unwrap()
    }

    fn parts(&self, table: &str) -> Vec<String> {
        table::parts(&self.dir.table(table)).unwrap().into_iter().map(|part| part.name).collect()
    }
}

/// Sums, and one prompt that is too long for the model.
fn problems() -> RecordBatch {
    let text = |make: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..PROBLEMS_COUNT).map(make)))
    };
    RecordBatch::try_from_iter([
        ("id", text(&|i| if i == 3 { "long".to_owned() } else { format!("p{i}") })),
        ("prompt", text(&|i| if i == 3 { "12345".repeat(40) } else { format!("{i}+1=") })),
        ("answer", text(&|i| (i + 1).to_string())),
    ])
    .unwrap()
}

#[tokio::test]
async fn a_sample_stage_that_was_interrupted_ends_with_the_rows_of_one_that_was_not() {
    let whole = World::new();
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = Arc::clone(&warnings);
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Warning { message, .. } = event {
            sink.lock().unwrap().push(message);
        }
    });
    whole.sample(&watcher, &Stop::default()).await.unwrap();
    assert_eq!(
        whole.parts("drawn"),
        ["part-000000.parquet", "part-000001.parquet", "schema.parquet"]
    );
    let rows = whole.rows("drawn");
    let rows_count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows_count, 2 * (PROBLEMS_COUNT - 1));
    assert!(warnings.lock().unwrap()[0].contains("`long`"), "{warnings:?}");
    let set_aside = whole.rows("drawn_set_aside");
    assert_eq!(
        set_aside[0].column_by_name(col::PROMPT_ID).unwrap().as_string::<i32>().value(0),
        "long"
    );

    // Asked to stop after its first chunk, and then killed in the middle of writing.
    let broken = World::new();
    let stop = Stop::default();
    let asked = stop.clone();
    let watcher: Watcher = Arc::new(move |event| {
        if matches!(event, Event::Step { .. }) {
            asked.request();
        }
    });
    assert!(matches!(broken.sample(&watcher, &stop).await, Err(Error::Interrupted)));
    assert_eq!(broken.parts("drawn"), ["part-000000.parquet", "schema.parquet"]);
    fs_err::write(broken.dir.table("drawn").join(".part-000001.parquet.tmp"), b"half").unwrap();
    broken.sample(&nobody(), &Stop::default()).await.unwrap();
    time::equal_but_for_time(&broken.rows("drawn"), &rows).unwrap();
    assert_eq!(broken.parts("drawn"), whole.parts("drawn"));
}

#[tokio::test]
async fn a_sample_stage_that_is_asked_to_stop_drops_the_chunk_that_it_is_at() {
    let mut world = World::new();
    for stage in &mut world.pipeline.stages {
        if let StageKind::Sample(settings) = &mut stage.kind {
            // Seconds of work, of which the first milliseconds are done.
            settings.n = 2000;
        }
    }
    let stop = Stop::default();
    let asked = stop.clone();
    let watcher: Watcher = Arc::new(move |event| {
        if matches!(event, Event::StageStarted { .. }) {
            let asked = asked.clone();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                asked.request();
            });
        }
    });
    assert!(matches!(world.sample(&watcher, &stop).await, Err(Error::Interrupted)));
    assert_eq!(world.parts("drawn"), ["schema.parquet"]);
}

#[tokio::test]
async fn an_eval_stage_says_what_its_rows_say() {
    let world = World::new();
    world.eval().await.unwrap();
    register_outputs(&world.session, &world.dir).unwrap();
    let sql = "SELECT e.pass_at_1, s.share, e.problem_count, s.n, e.k FROM evals e, \
               (SELECT avg(reward_math) AS share, count(DISTINCT prompt_id) AS n FROM scores_base) s \
               WHERE e.stage = 'scores' AND e.model = 'base' AND e.dataset = 'problems'";
    let found = world.session.collect(sql).await.unwrap();
    let number = |i: usize| found[0].column(i).as_primitive::<Float64Type>().value(0);
    let count = |i: usize| found[0].column(i).as_primitive::<Int64Type>().value(0);
    assert!((number(0) - number(1)).abs() < 1e-12, "{found:?}");
    assert_eq!(
        (count(2), count(3), count(4)),
        (PROBLEMS_COUNT as i64 - 1, PROBLEMS_COUNT as i64 - 1, 3)
    );
    time::equal_but_for_time(&world.rows("scores"), &world.rows("evals")).unwrap();
    // Made again, as after a kill before the stage was done, nothing is doubled.
    world.eval().await.unwrap();
    assert_eq!(read::rows_count(&world.dir.table("evals")).unwrap(), 1);
}

#[tokio::test]
async fn an_exported_model_can_be_evaluated_without_a_run() {
    let world = World::new();
    let base = world.models().load("base").await.unwrap();
    let StageKind::Export(settings) = &world.pipeline.stage("out").unwrap().kind else {
        panic!("an export stage")
    };
    let export = Export { stage: "out", settings, dir: &world.dir };
    export.run(&world.models()).await.unwrap();
    // Made again, as after a kill before the stage was done, it replaces its own files.
    export.run(&world.models()).await.unwrap();
    let exported = models::load(&world.dir.model("out"), &world.device).unwrap();
    let is_there = |file: &str| world.dir.model("out").join(file).exists();
    assert!(is_there("model.safetensors.index.json") && !is_there("model.safetensors"));
    let (a, b) = (base.model.params(), exported.model.params());
    let first = |params: &aha_compute::Params| {
        params.value(params.ids().next().unwrap()).as_slice().to_vec()
    };
    let is_near = first(a).iter().zip(first(b)).all(|(x, y)| (x - y).abs() <= x.abs() / 256.0);
    assert!(is_near, "bf16 keeps eight bits");

    let data = world.temp.path().join("few.jsonl");
    fs_err::write(&data, "{\"id\":\"a\",\"prompt\":\"1+1=\",\"answer\":\"2\"}\n{\"id\":\"b\",\"prompt\":\"2+1=\",\"answer\":\"3\"}\n").unwrap();
    let StageKind::Eval(stage) = &world.pipeline.stage("scores").unwrap().kind else {
        panic!("an eval stage")
    };
    let options = Standalone {
        devices: Arc::new(crate::devices::Given::default()),
        model: world.dir.model("out").display().to_string(),
        data: data.display().to_string(),
        template: None,
        settings: EvalStage { k: 2, ..EvalStage::clone(stage) },
        run: world.pipeline.run.clone(),
        places: world.places.clone(),
    };
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { step, .. } = event {
            sink.lock().unwrap().push(step);
        }
    });
    let found = standalone::in_memory(&options, watcher).await.unwrap();
    assert_eq!((found.problem_count, found.k, found.stage.as_str()), (2, 2, "eval"));
    assert_eq!((found.model.as_str(), found.dataset.as_str()), ("out", "few"));
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
    let json = serde_json::to_value(&found).unwrap();
    assert!(
        json["pass_at_1"].is_number() && json["completion_len_tokens_mean"].is_number(),
        "{json}"
    );
}

#[tokio::test]
async fn an_evaluation_in_a_directory_goes_on_and_says_what_one_in_memory_says() {
    let world = World::new();
    let base = world.models().load("base").await.unwrap();
    models::save(&world.dir.model("base"), &base.model, &base.tokenizer, aha_model::SaveDtype::F32)
        .unwrap();
    let data = world.temp.path().join("problems.jsonl");
    let lines = (0..PROBLEMS_COUNT).map(|i| {
        format!(
            "{{\"id\":\"p{i}\",\"prompt\":\"{i}+1=\",\"answer\":\"{}\",\"rating\":{}}}\n",
            i + 1,
            800 + i
        )
    });
    fs_err::write(&data, lines.collect::<String>()).unwrap();
    let StageKind::Eval(stage) = &world.pipeline.stage("scores").unwrap().kind else {
        panic!("an eval stage")
    };
    let options = Standalone {
        devices: Arc::new(crate::devices::Given::default()),
        model: world.dir.model("base").display().to_string(),
        data: data.display().to_string(),
        template: None,
        settings: EvalStage { resamples: 50, ..EvalStage::clone(stage) },
        run: world.pipeline.run.clone(),
        places: world.places.clone(),
    };
    let in_memory = standalone::in_memory(&options, nobody()).await.unwrap();
    assert!(in_memory.rating.is_some() && in_memory.tokens_per_second.is_some(), "{in_memory:?}");

    // Asked to stop after its first chunk, it goes on with the second.
    let dir = RunDir::new(world.temp.path().join("evaluation"));
    let stop = Stop::default();
    let asked = stop.clone();
    let watcher: Watcher = Arc::new(move |event| {
        if matches!(event, Event::Step { .. }) {
            asked.request();
        }
    });
    let broken = standalone::in_dir(&options, &dir, stop, watcher).await;
    assert!(matches!(broken, Err(Error::Interrupted)), "{broken:?}");
    let parts = table::parts(&dir.table("eval_base")).unwrap();
    assert_eq!(parts.iter().filter(|part| part.name.starts_with("part-")).count(), 1);
    let steps: Arc<Mutex<Vec<u64>>> = Arc::default();
    let sink = Arc::clone(&steps);
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { step, .. } = event {
            sink.lock().unwrap().push(step);
        }
    });
    let gone_on = standalone::in_dir(&options, &dir, Stop::default(), watcher).await.unwrap();
    assert_eq!(*steps.lock().unwrap(), [2], "the first chunk is not drawn again");
    let timeless = |row: EvalRow| EvalRow { tokens_per_second: None, ..row };
    assert_eq!(timeless(gone_on.clone()), timeless(in_memory));
    // Looked at again, it is the same row, and nothing is drawn.
    let again = standalone::in_dir(&options, &dir, Stop::default(), nobody()).await.unwrap();
    assert_eq!(again, gone_on);
    // Another question in the same directory is refused.
    let other = Standalone { settings: EvalStage { k: 2, ..options.settings.clone() }, ..options };
    let error = standalone::in_dir(&other, &dir, Stop::default(), nobody()).await.unwrap_err();
    assert!(error.to_string().contains("`stage.eval.k` was 3 and is 2"), "{error}");
}
