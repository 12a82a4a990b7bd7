//! Models by name: loaded, made from nothing, or written by an earlier stage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::Session;
use aha_learn::learner::Learner;
use aha_model::config::{Architecture, Config, Head, Rope};
use aha_model::save::{self, SaveDtype, SaveOptions};
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer, adapter};

use crate::error::{Error, Result};
use crate::pipeline::{
    self, AdaptedModel, Lora, ModelSource, Pipeline, Places, RandomModel, TokenizerSource,
    TokenizerTraining,
};
use crate::prompts;
use crate::reward_model::RewardModel;
use crate::rundir::RunDir;

/// The token that ends a completion of a model made from nothing.
pub const END_TOKEN: &str = "<|end|>";

/// A model and its tokenizer.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The weights.
    pub model: Arc<Model>,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
}

/// Where a run's models come from.
pub struct Models<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The run directory, with the models of stages that are done.
    pub dir: &'a RunDir,
    /// Where the weights go.
    pub device: &'a Device,
    /// For the texts that tokenizers are trained on.
    pub session: &'a Session,
    /// Where paths start.
    pub places: &'a Places,
}

impl Models<'_> {
    /// The language model called `name`: one of `[models]`, or that of a stage that is done.
    pub async fn load(&self, name: &str) -> Result<Loaded> {
        let loaded = self.load_any(name).await?;
        let checked = loaded.model.check_head(Head::Language);
        checked.map_err(|error| Error::from(error).within(&within(name)))?;
        Ok(loaded)
    }

    /// The model called `name`, whether it writes text or scores it.
    pub async fn load_any(&self, name: &str) -> Result<Loaded> {
        match self.pipeline.model(name) {
            Some(ModelSource::Path(path)) => load_any(&self.locate(path)?, self.device),
            Some(ModelSource::Adapted(model)) => self.adapted(model),
            Some(ModelSource::Random(random)) => self.make(name, random).await,
            None => load_any(&self.dir.model(name), self.device),
        }
        .map_err(|error| error.within(&within(name)))
    }

    /// The reward model called `name`.
    pub async fn reward_model(&self, name: &str) -> Result<RewardModel> {
        let loaded = self.load_any(name).await?;
        let checked = loaded.model.check_head(Head::Score);
        checked.map_err(|error| Error::from(error).within(&within(name)))?;
        RewardModel::new(loaded)
    }

    fn locate(&self, path: &str) -> Result<PathBuf> {
        self.places.locate(path).map_err(|found| Error::input_with(found.message, found.hint))
    }

    fn adapted(&self, source: &AdaptedModel) -> Result<Loaded> {
        let Loaded { model, tokenizer } = load_any(&self.locate(&source.base)?, self.device)?;
        let adapter = self
            .places
            .adapter(&source.adapter)
            .map_err(|found| Error::input_with(found.message, found.hint))?;
        let model = Arc::unwrap_or_clone(model).with_adapter(&adapter)?;
        Ok(Loaded { model: Arc::new(model), tokenizer })
    }

    async fn make(&self, name: &str, random: &RandomModel) -> Result<Loaded> {
        let tokenizer = Arc::new(self.tokenizer(&random.tokenizer).await?);
        let config = config_of(random, &tokenizer)?;
        tokenizer.check_fits(&config)?;
        let seed = random.init_seed.unwrap_or(self.pipeline.run.seed);
        let model = Model::random(config, self.device, Philox::new(seed).derive(name))?;
        Ok(Loaded { model: Arc::new(model), tokenizer })
    }

    async fn tokenizer(&self, source: &TokenizerSource) -> Result<Tokenizer> {
        match source {
            TokenizerSource::Train(training) => self.train_tokenizer(training).await,
            TokenizerSource::Of(name) => match self.pipeline.model(name) {
                Some(ModelSource::Random(random)) => match &random.tokenizer {
                    TokenizerSource::Train(training) => self.train_tokenizer(training).await,
                    TokenizerSource::Of(path) => Ok(Tokenizer::load(&self.locate(path)?)?),
                },
                Some(
                    ModelSource::Path(path) | ModelSource::Adapted(AdaptedModel { base: path, .. }),
                ) => Ok(Tokenizer::load(&self.locate(path)?)?),
                None => Ok(Tokenizer::load(&self.locate(name)?)?),
            },
        }
    }

    async fn train_tokenizer(&self, training: &TokenizerTraining) -> Result<Tokenizer> {
        let mut texts = Vec::new();
        for batch in self.session.collect(&training.train.0).await? {
            let column = prompts::required_text(&batch, "text")?;
            texts.extend(column.iter().flatten().map(str::to_owned));
        }
        let mut special_tokens = vec![END_TOKEN.to_owned()];
        special_tokens.extend(training.special_tokens.iter().cloned());
        let options = TrainOptions {
            vocab_size: training.vocab_size as usize,
            special_tokens,
            eos_token: Some(END_TOKEN.to_owned()),
            alphabet: match training.alphabet {
                pipeline::Alphabet::Seen => Alphabet::Seen,
                pipeline::Alphabet::Bytes => Alphabet::Full,
            },
            ..TrainOptions::default()
        };
        Ok(tokenizer_train::train(texts, &options)?)
    }
}

fn within(name: &str) -> String {
    format!("model `{name}`")
}

/// Loads a language model, a Hugging Face directory or a GGUF file, and checks that tokenizer and weights
/// agree.
pub fn load(path: &Path, device: &Device) -> Result<Loaded> {
    let loaded = load_any(path, device)?;
    loaded.model.check_head(Head::Language).map_err(|error| error.at(path))?;
    Ok(loaded)
}

/// As [`load`], of a reward model as well.
pub fn load_any(path: &Path, device: &Device) -> Result<Loaded> {
    let model = Model::load_any(path, device)?;
    let tokenizer = Tokenizer::load(path)?;
    tokenizer.check_fits(model.config())?;
    Ok(Loaded { model: Arc::new(model), tokenizer: Arc::new(tokenizer) })
}

/// Writes a model in Hugging Face layout, aside and then renamed.
pub fn save(dir: &Path, model: &Model, tokenizer: &Tokenizer, dtype: SaveDtype) -> Result<()> {
    save_as(dir, model, tokenizer, SaveOptions { dtype, ..SaveOptions::default() })
}

/// The model that a stage trains: itself, or frozen and with new adapters, drawn from `random`.
pub fn to_train(model: Arc<Model>, lora: Option<&Lora>, random: Philox) -> Result<Arc<Model>> {
    match lora {
        None => Ok(model),
        Some(lora) => Ok(Arc::new(model.with_lora(&lora.into(), random.derive("lora"))?)),
    }
}

/// Writes a stage's final model.
pub fn save_final(dir: &RunDir, stage: &str, model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    dir.write(|| save(&dir.model(stage), model, tokenizer, SaveDtype::F32))
}

/// Writes a stage's adapter, if it has trained one, and returns its model without.
pub fn finish(dir: &RunDir, stage: &str, learner: Learner) -> Result<Arc<Model>> {
    let model = learner.into_model();
    if model.lora().is_none() {
        return Ok(model);
    }
    dir.write(|| save_adapter(&dir.adapter(stage), &model))?;
    Ok(Arc::new(Arc::unwrap_or_clone(model).merged()?))
}

/// Writes what is trained of a model with adapters in peft's layout, aside and then renamed.
pub fn save_adapter(dir: &Path, model: &Model) -> Result<()> {
    if let Some(parent) = dir.parent() {
        fs_err::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    adapter::save(dir, model, SaveDtype::F32)?;
    crate::rundir::sync_parent(dir)
}

/// As [`save()`], in the way that `options` say.
pub fn save_as(
    dir: &Path,
    model: &Model,
    tokenizer: &Tokenizer,
    options: SaveOptions,
) -> Result<()> {
    let params = model.params();
    let tensors = params.ids().map(|id| {
        let value = params.value(id);
        (params.name(id).to_owned(), value.shape().to_vec(), value.host())
    });
    save::save(dir, model.config(), Some(tokenizer), tensors, options)?;
    crate::rundir::sync_parent(dir)
}

/// The config of a model made from nothing.
pub fn config_of(random: &RandomModel, tokenizer: &Tokenizer) -> Result<Config> {
    let or = |value: u32, default: usize| if value == 0 { default } else { value as usize };
    let config = Config {
        architecture: match random.architecture {
            pipeline::Architecture::Llama => Architecture::Llama,
            pipeline::Architecture::Qwen2 => Architecture::Qwen2,
            pipeline::Architecture::Qwen3 => Architecture::Qwen3,
        },
        vocab_size: or(random.vocab_size, tokenizer.vocab_len()),
        hidden_size: random.hidden_size as usize,
        intermediate_size: random.intermediate_size as usize,
        layer_count: random.layers as usize,
        head_count: random.heads as usize,
        kv_head_count: random.kv_heads as usize,
        head_dim: or(random.head_dim, random.hidden_size as usize / (random.heads as usize).max(1)),
        rms_norm_eps: random.rms_norm_eps as f32,
        rope: Rope::plain(random.rope_theta),
        head: Head::Language,
        tie_word_embeddings: random.tie_word_embeddings,
        attention_bias: false,
        max_position_embeddings: random.max_position_embeddings as usize,
        bos_id: tokenizer.bos().map(|token| token.id),
        eos_ids: tokenizer.eos_ids().to_vec(),
        pad_id: tokenizer.pad().map(|token| token.id),
        initializer_range: random.init_std as f32,
        extra: serde_json::Map::new(),
    };
    config.validate()?;
    if !config.head_dim.is_multiple_of(16) {
        return Err(Error::input_with(
            format!("`head_dim` is {}: expected a multiple of 16", config.head_dim),
            "choose `hidden_size` and `heads` so that each head is 16, 32, 48, … wide",
        ));
    }
    Ok(config)
}
