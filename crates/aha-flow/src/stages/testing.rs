//! What tests of stages that train share: rows, a tiny model made from nothing, and runs of a stage on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::{Session, SessionOptions};
use aha_model::Model;
use aha_model::tokenizer_train::{TrainOptions, train};
use arrow::array::{ArrayRef, RecordBatch, StringArray};

use super::Context;
use crate::error::Result;
use crate::models::{Loaded, config_of};
use crate::pipeline::{RandomModel, Run};
use crate::progress::{Event, Watcher};
use crate::rundir::RunDir;
use crate::stop::Stop;

/// A model of one layer, and what its tokenizer is trained on.
pub struct Tiny {
    pub texts: [&'static str; 2],
    pub chat_template: Option<String>,
    pub seed: u64,
    pub positions: u32,
}

impl Tiny {
    /// Of these texts, with nothing else said.
    pub fn of(texts: [&'static str; 2]) -> Tiny {
        Tiny { texts, chat_template: None, seed: 1, positions: 64 }
    }
}

/// A folder for run directories, and a session with a table `data`.
pub struct Bench {
    temp: tempfile::TempDir,
    pub session: Session,
    pub device: Device,
    stage: &'static str,
}

/// What a run of the stage gave.
pub struct Outcome {
    pub result: Result<()>,
    pub events: Vec<Event>,
}

impl Outcome {
    /// The metrics of each step.
    pub fn metrics(&self) -> Vec<BTreeMap<String, f64>> {
        let metrics = |event: &Event| match event {
            Event::Step { metrics, .. } => Some(metrics.clone()),
            _ => None,
        };
        self.events.iter().filter_map(metrics).collect()
    }

    /// The messages of the warnings.
    pub fn warnings<'a>(&'a self) -> Vec<&'a str> {
        let message = |event: &'a Event| match event {
            Event::Warning { message, .. } => Some(message.as_str()),
            _ => None,
        };
        self.events.iter().filter_map(message).collect()
    }
}

impl Bench {
    /// A stage of that name and the rows `data`.
    pub fn new(stage: &'static str, rows: RecordBatch) -> Bench {
        let session = Session::new(&SessionOptions::default()).unwrap();
        session.register_batches("data", rows.schema(), vec![rows]).unwrap();
        Bench { temp: tempfile::tempdir().unwrap(), session, device: Device::cpu(1), stage }
    }

    pub fn load(&self, tiny: &Tiny) -> Loaded {
        let options = TrainOptions {
            vocab_size: 270,
            chat_template: tiny.chat_template.clone(),
            ..TrainOptions::default()
        };
        let tokenizer = train(tiny.texts, &options).unwrap();
        let random = RandomModel {
            hidden_size: 32,
            intermediate_size: 32,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            max_position_embeddings: tiny.positions,
            ..RandomModel::default()
        };
        let config = config_of(&random, &tokenizer).unwrap();
        let model = Model::random(config, &self.device, Philox::new(tiny.seed)).unwrap();
        Loaded { model: Arc::new(model), tokenizer: Arc::new(tokenizer) }
    }

    /// The run directory of that name.
    pub fn dir(&self, name: &str) -> RunDir {
        RunDir::new(self.temp.path().join(name))
    }

    /// Runs the stage in the run directory of that name. `watch` hears of every event first.
    pub async fn run(
        &self,
        dir: &str,
        stop: &Stop,
        watch: impl Fn(&Event) + Send + Sync + 'static,
        stage: impl AsyncFnOnce(Context<'_>) -> Result<()>,
    ) -> Outcome {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = Arc::clone(&events);
        let watcher: Watcher = Arc::new(move |event| {
            watch(&event);
            sink.lock().unwrap().push(event);
        });
        let dir = self.dir(dir);
        drop(dir.open().unwrap());
        let context = Context {
            stage: self.stage,
            run: &Run::default(),
            dir: &dir,
            device: &self.device,
            others: &[],
            session: &self.session,
            watcher: &watcher,
            stop,
        };
        let result = stage(context).await;
        let events = events.lock().unwrap().clone();
        Outcome { result, events }
    }

    /// The files of the model that the stage left.
    pub fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs_err::read_dir(self.dir(dir).model(self.stage)).unwrap();
        let file = |path: std::path::PathBuf| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs_err::read(path).unwrap())
        };
        entries.map(|entry| file(entry.unwrap().path())).collect()
    }
}

/// Four prompts with three pairs each: right sums are preferred to wrong ones.
pub fn pairs(rejected: impl Fn(usize) -> String) -> Vec<(&'static str, ArrayRef)> {
    let prompts = ["1+1=", "1+2=", "2+2=", "2+3="];
    let text = |of: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..12).map(of)))
    };
    vec![
        ("prompt", text(&|i| prompts[i % 4].to_owned())),
        ("chosen", text(&|i| (i % 4 + 2).to_string())),
        ("rejected", text(&|i| rejected(i))),
    ]
}
