//! Where the tokenizer of a model is: in the run directory, or with the model that it was made from.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use aha_flow::pipeline::{AdaptedModel, ModelSource, Pipeline, TokenizerSource};
use aha_flow::planning;
use aha_flow::rundir::RunDir;
use aha_model::Tokenizer;

/// Models that one is made from, one after the other, that are looked at.
const ANCESTORS_MAX: usize = 32;

/// Tokenizers by where they are; each is read once.
pub struct Tokenizers<'a> {
    dir: &'a RunDir,
    pipeline: Option<&'a Pipeline>,
    /// None where there is none that can be read.
    read: HashMap<PathBuf, Option<Rc<Tokenizer>>>,
}

impl<'a> Tokenizers<'a> {
    /// Those of a run.
    pub fn new(dir: &'a RunDir, pipeline: Option<&'a Pipeline>) -> Self {
        Tokenizers { dir, pipeline, read: HashMap::new() }
    }

    /// The tokenizer of the model of that name, or of the stage that trains it; none where it isn't found.
    pub fn of(&mut self, model: &str) -> Option<Rc<Tokenizer>> {
        self.places(model).into_iter().find_map(|place| {
            let load = |place: &PathBuf| {
                let loaded = Tokenizer::load(place);
                loaded.inspect_err(|error| tracing::info!(%error, "Tokenizer passed over.")).ok()
            };
            let known = self.read.entry(place).or_insert_with_key(|place| load(place).map(Rc::new));
            known.clone()
        })
    }

    /// Where it may be, the surest place first. A model has the tokenizer of the model that it was trained
    /// from.
    fn places(&self, model: &str) -> Vec<PathBuf> {
        let mut places = Vec::new();
        let mut name = model;
        for _ in 0..ANCESTORS_MAX {
            places.extend(Some(self.dir.model(name)).filter(|path| path.is_dir()));
            places.extend(self.checkpoints(name));
            let Some(pipeline) = self.pipeline else { break };
            if let Some(stage) = pipeline.stage(name).filter(|stage| stage.kind.is_training()) {
                let Some(parent) = stage.kind.models().first() else { break };
                name = parent;
                continue;
            }
            let address = match pipeline.model(name) {
                Some(
                    ModelSource::Path(address)
                    | ModelSource::Adapted(AdaptedModel { base: address, .. }),
                ) => address,
                Some(ModelSource::Random(random)) => match &random.tokenizer {
                    TokenizerSource::Of(other) => other,
                    TokenizerSource::Train(_) => break,
                },
                None => break,
            };
            if pipeline.model(address).is_some() {
                name = address;
                continue;
            }
            places.extend(planning::places().locate(address).ok());
            break;
        }
        places
    }

    /// The models of a stage's checkpoints, the newest first.
    fn checkpoints(&self, stage: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs_err::read_dir(self.dir.checkpoints(stage)) else { return Vec::new() };
        let mut found: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path().join("model")).collect();
        found.retain(|path| path.is_dir());
        found.sort();
        found.reverse();
        found
    }
}
