//! A folder with a pipeline and problems, runs in it, and comparing them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aha_compute::cuda::Context;
use aha_flow::Error;
use aha_flow::devices::Given;
use aha_flow::progress::{Event, Watcher};
use aha_flow::rl::fault::Faults;
use aha_flow::run::{self, Failure, Options};
use aha_flow::rundir::RunDir;
use aha_flow::stop::Stop;
use aha_rollout::schema::Progress;
use aha_rollout::view::RolloutsView;
use aha_rollout::{read, table, time};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};

/// Longer than any run here takes: what hangs fails.
const RUN_MAX: Duration = Duration::from_secs(60);

/// The stage that most tests look at: six steps of four prompts with four completions each.
const ZERO: &str = r#"
[run]
seed = 5
threads = 2

[models]
blank = { init = "random", hidden_size = 32, intermediate_size = 48, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, max_position_embeddings = 64, init_std = 0.3, tokenizer = { train = "SELECT prompt || answer AS text FROM problems WHERE id NOT LIKE 'bad%'", vocab_size = 24, alphabet = "seen" } }

[[stage]]
name = "zero"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 6
prompts_per_step = 4
group_size = 4
checkpoint_every = 2
sampling = { max_tokens = 6 }
objective = { kl = 0.01 }
optimizer = { lr = 1e-3 }
rewards = [{ kind = "regex", pattern = "[0-3]$" }, { kind = "math", extract = ["whole"] }]
"#;

/// Stages after it, one of each kind that samples or asks.
const AFTER: &str = r#"
[[stage]]
name = "drawn"
kind = "sample"
model = "zero"
prompts = "SELECT id, prompt, answer FROM problems"
n = 2
sampling = { max_tokens = 6 }
rewards = [{ kind = "math", extract = ["whole"] }]

[[stage]]
name = "kept"
kind = "query"
sql = "SELECT prompt, completion, reward FROM drawn ORDER BY rollout_id"

[[stage]]
name = "tuned"
kind = "sft"
model = "zero"
data = "SELECT prompt, completion FROM kept"
epochs = 1
batch_size = 8
checkpoint_every = 2
optimizer = { lr = 1e-3 }

[[stage]]
name = "scores"
kind = "eval"
model = ["tuned"]
data = "SELECT id, prompt, answer FROM problems"
k = 2
max_tokens = 6
reward = { kind = "math", extract = ["whole"] }
"#;

/// No completion gets this reward, nor has an answer that can be read.
pub const HOPELESS: &str = "stage.zero.rewards=[{ kind = \"math\", extract = [\"boxed\"] }]";

/// A folder with a pipeline, problems and runs.
pub struct World {
    folder: tempfile::TempDir,
}

/// How a run is run; by default to its end, undisturbed.
#[derive(Default)]
pub struct How<'a> {
    pub sets: &'a [&'a str],
    pub resume: bool,
    pub stop: Stop,
    pub faults: Faults,
    /// CUDA devices that the run can ask for.
    pub devices: Vec<Context>,
    /// Called with each event, on whatever thread it happens.
    pub watcher: Option<Watcher>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<(), Failure>,
    pub events: Vec<Event>,
}

impl Outcome {
    /// The error of a run that failed.
    #[track_caller]
    pub fn error(&self) -> &Error {
        match &self.result {
            Err(Failure::Run(error)) => error,
            other => panic!("a run that fails, got {other:?}"),
        }
    }

    /// Messages and hints of the warnings.
    pub fn warnings<'a>(&'a self) -> Vec<(&'a str, &'a str)> {
        let warning = |event: &'a Event| match event {
            Event::Warning { message, hint, .. } => Some((message.as_str(), hint.as_str())),
            _ => None,
        };
        self.events.iter().filter_map(warning).collect()
    }

    /// The measures of each step of a stage.
    pub fn steps<'a>(&'a self, name: &str) -> Vec<(u64, &'a BTreeMap<String, f64>)> {
        let step = |event: &'a Event| match event {
            Event::Step { stage, step, metrics } if stage == name => Some((*step, metrics)),
            _ => None,
        };
        self.events.iter().filter_map(step).collect()
    }
}

impl World {
    /// One RL stage on twelve problems.
    pub fn new() -> World {
        let problem = |i: u32| problem(&format!("p{i}"), &format!("{i}+1="), &(i + 1).to_string());
        World::with(&(0..12).map(problem).collect::<String>())
    }

    /// One RL stage on problems of the test's own.
    pub fn with(problems: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("problems.jsonl"), problems).unwrap();
        let world = World { folder };
        world.write_pipeline(ZERO);
        world
    }

    /// So many sums, with a pipeline of the test's own.
    pub fn of(text: &str, problems_count: usize) -> World {
        let line = |i: usize| problem(&format!("p{i}"), &format!("{i}+1="), &(i + 1).to_string());
        let world = World::with(&(0..problems_count).map(line).collect::<String>());
        world.write_pipeline(text);
        world
    }

    /// Stages of every kind that takes time, on the problems of [`World::new`].
    pub fn long() -> World {
        let world = World::new();
        world.write_pipeline(&format!("{ZERO}{AFTER}"));
        world
    }

    /// Adds stages to the pipeline.
    pub fn append(&self, stages: &str) {
        let text = fs_err::read_to_string(self.pipeline()).unwrap();
        fs_err::write(self.pipeline(), format!("{text}{stages}")).unwrap();
    }

    /// One RL stage without rewards, that learns from another model with the same tokenizer.
    pub fn taught() -> World {
        let world = World::new();
        let sage = "sage = { init = \"random\", hidden_size = 48, intermediate_size = 64, layers = 2, heads = 2, \
                    head_dim = 16, kv_heads = 2, max_position_embeddings = 64, init_std = 0.4, tokenizer = \
                    \"blank\" }\n\n[[stage]]";
        let text = ZERO.replacen("[[stage]]", sage, 1).replace(
            "objective = { kl = 0.01 }",
            "objective = { preset = \"distill\" }\nteacher = \"sage\"",
        );
        let lines = text.lines().filter(|line| !line.starts_with("rewards"));
        world.write_pipeline(&lines.collect::<Vec<_>>().join("\n"));
        world
    }

    /// Where pipeline, problems and runs are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the pipeline; its problems stay.
    pub fn write_pipeline(&self, text: &str) {
        // Paths of a pipeline start from the directory of the process, which all tests share.
        let problems = self.folder.path().join("problems.jsonl");
        let text = format!("{text}\n[tables]\nproblems = {:?}\n", problems.to_str().unwrap());
        fs_err::write(self.pipeline(), text).unwrap();
    }

    /// The pipeline file.
    pub fn pipeline(&self) -> PathBuf {
        self.folder.path().join("pipeline.toml")
    }

    /// The run directory called `name`.
    pub fn dir(&self, name: &str) -> RunDir {
        RunDir::new(self.folder.path().join(name))
    }

    /// Runs the pipeline in the run directory called `name`.
    pub async fn run(&self, name: &str, how: How<'_>) -> Outcome {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (sink, other) = (Arc::clone(&events), how.watcher);
        let watcher: Watcher = Arc::new(move |event: Event| {
            sink.lock().unwrap().push(event.clone());
            if let Some(other) = &other {
                other(event);
            }
        });
        let options = Options {
            pipeline: self.pipeline(),
            sets: how.sets.iter().map(|&set| set.to_owned()).collect(),
            dir: Some(self.dir(name).root().to_owned()),
            resume: how.resume,
            watcher,
            stop: how.stop,
            faults: how.faults,
            devices: Arc::new(Given(how.devices)),
            disk_reserve_bytes: 0,
        };
        let run = tokio::time::timeout(RUN_MAX, run::run(options, |_, _| ()));
        let result = run.await.expect("the run hangs").map(|_| ());
        let events = events.lock().unwrap().clone();
        Outcome { result, events }
    }

    /// Runs the pipeline to its end, undisturbed.
    pub async fn finish(&self, name: &str, sets: &[&str]) -> Outcome {
        let outcome = self.run(name, How { sets, ..How::default() }).await;
        outcome.result.as_ref().unwrap_or_else(|error| panic!("{error}"));
        outcome
    }

    /// Runs the pipeline with a stop at its event number `event`, then resumes it to its end. False where
    /// the run was over before it could stop.
    pub async fn stop_and_resume(&self, name: &str, event: usize, sets: &[&str]) -> bool {
        let stop = Stop::default();
        let (request, left) = (stop.clone(), Mutex::new(event));
        let watcher: Watcher = Arc::new(move |_| {
            let mut left = left.lock().unwrap();
            if *left == 0 {
                request.request();
            }
            *left = left.saturating_sub(1);
        });
        let stopped =
            self.run(name, How { sets, stop, watcher: Some(watcher), ..How::default() }).await;
        let Err(failure) = stopped.result else { return false };
        assert!(matches!(failure, Failure::Run(Error::Interrupted)), "{failure}");
        let resumed = self.run(name, How { sets, resume: true, ..How::default() }).await;
        resumed.result.unwrap();
        true
    }
}

/// A line of the table of problems.
pub fn problem(id: &str, prompt: &str, answer: &str) -> String {
    format!("{{\"id\":\"{id}\",\"prompt\":\"{prompt}\",\"answer\":\"{answer}\"}}\n")
}

/// The rows of a table of a run.
pub fn rows(dir: &RunDir, name: &str) -> Vec<RecordBatch> {
    read::read_table(&dir.table(name)).unwrap()
}

/// Calls `look` with each row of a table of rollouts.
pub fn each_rollout(dir: &RunDir, name: &str, mut look: impl FnMut(&RolloutsView<'_>, usize)) {
    for batch in rows(dir, name) {
        let view = RolloutsView::new(&batch, Progress::Trained).unwrap();
        (0..view.rows_count()).for_each(|row| look(&view, row));
    }
}

/// Every measure but what the clock had a part in: stage, step, name, bits of the value.
pub fn metrics(dir: &RunDir) -> Vec<(String, i64, String, u64)> {
    let mut found = Vec::new();
    for batch in read::read_table(&dir.metrics()).unwrap() {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let steps = batch.column_by_name("step").unwrap().as_primitive::<Int64Type>().clone();
        let values = batch.column_by_name("value").unwrap().as_primitive::<Float64Type>().clone();
        let (stages, names) = (text("stage"), text("name"));
        for row in 0..batch.num_rows() {
            let name = names.value(row).to_owned();
            if !name.ends_with("_seconds") && name != "tokens_per_second" {
                let bits = values.value(row).to_bits();
                found.push((stages.value(row).to_owned(), steps.value(row), name, bits));
            }
        }
    }
    found.sort();
    found
}

/// The bytes of all files below `dir`.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs_err::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, fs_err::read(&path).unwrap());
            }
        }
    }
    found
}

/// The names of a run's tables, with those of their parts.
fn parts(dir: &RunDir) -> BTreeMap<String, Vec<String>> {
    let names = fs_err::read_dir(dir.tables()).unwrap().map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let parts = table::parts(&dir.table(&name)).unwrap();
        (name, parts.into_iter().map(|part| part.name).collect())
    });
    names.collect()
}

/// The same weights, byte by byte, and the same tables and measures, but for the time of day.
#[track_caller]
pub fn assert_same_run(want: &RunDir, got: &RunDir) {
    assert_same_weights(want, got);
    assert_same_tables(want, got);
    assert_eq!(metrics(want), metrics(got));
}

/// The same weights, byte by byte.
#[track_caller]
pub fn assert_same_weights(want: &RunDir, got: &RunDir) {
    let (want, got) = (files(&want.models()), files(&got.models()));
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    assert!(want.keys().any(|name| name.ends_with("model.safetensors")), "no weights");
    for (name, bytes) in &want {
        assert!(got[name] == *bytes, "{} differs", name.display());
    }
}

/// The same tables in the same parts, but for the time of day; each rollout once.
#[track_caller]
pub fn assert_same_tables(want: &RunDir, got: &RunDir) {
    assert_eq!(parts(want), parts(got));
    for name in parts(want).keys() {
        let same = time::equal_but_for_time(&rows(want, name), &rows(got, name));
        assert_eq!(same, Ok(()), "table `{name}`");
    }
    let mut ids = Vec::new();
    each_rollout(got, "zero", |view, row| ids.push(view.rollout_id(row).to_owned()));
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "a rollout is there twice");
    assert!(count > 0, "no rollouts");
}
