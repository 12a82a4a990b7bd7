//! `[models]`: where a model comes from, or how it is made from nothing.

use std::path::{Path, PathBuf};

use aha_data::source::TableSource;

use super::reader::{
    Field, Key, Reader, Section, choice, read_section, refuse_unknown, section, section_fields,
};
use super::source::{Node, Value};
use super::values::Sql;
use super::write::Out;

/// Heads are a multiple of this wide: the kernels of attention have that many lanes.
const HEAD_DIM_STEP: u32 = 16;

/// A model that a pipeline starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// A directory in Hugging Face layout, a `.gguf` file, or `hf://owner/name` (from the local
    /// cache only), as the file has it.
    Path(String),
    /// A model made from nothing.
    Random(Box<RandomModel>),
    /// A model with an adapter.
    Adapted(AdaptedModel),
}

impl Default for ModelSource {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

section! {
    /// A model with a low-rank adapter (LoRA) that was trained elsewhere or by another run, merged into its weights.
    pub struct AdaptedModel {
        /// The model: a path as one without an adapter has.
        pub base: String;
        /// The adapter: a directory in peft's layout, with adapter_config.json and adapter_model.safetensors, or
        /// `hf://owner/name` in the local cache.
        pub adapter: String;
    }
}

section_fields!(AdaptedModel);

choice! {
    /// How a model without weights gets them.
    pub enum Init {
        /// Normal draws, addressed by the seed and the tensor's name.
        Random = "random",
    }
}

choice! {
    /// The architectures that can be made from nothing.
    pub enum Architecture {
        /// Llama.
        Llama = "llama",
        /// Qwen2: Llama with biases on query, key and value.
        Qwen2 = "qwen2",
        /// Qwen3: Llama with normalised queries and keys.
        Qwen3 = "qwen3",
    }
}

section! {
    /// A model made from nothing.
    pub struct RandomModel {
        /// How it gets its weights.
        pub init: Init = Init::Random;
        /// The architecture.
        pub architecture: Architecture = Architecture::Llama;
        /// Width of the residual stream.
        pub hidden_size: u32 = 128, "from 2 to 65536" |n| (2..=65_536).contains(n);
        /// Width inside the MLP.
        pub intermediate_size: u32 = 352, "from 1 to 524288" |n| (1..=524_288).contains(n);
        /// Number of blocks.
        pub layers: u32 = 4, "from 1 to 1024" |n| (1..=1024).contains(n);
        /// Query heads.
        pub heads: u32 = 4, "from 1 to 1024" |n| (1..=1024).contains(n);
        /// Key and value heads; each serves `heads / kv_heads` query heads.
        pub kv_heads: u32 = 2, "from 1 to 1024" |n| (1..=1024).contains(n);
        /// Width of a head, a multiple of 16; 0 takes `hidden_size / heads`.
        pub head_dim: u32 = 0, "even and at most 1024" |n| n.is_multiple_of(2) && *n <= 1024;
        /// Rows of the embedding; 0 takes as many as the tokenizer has tokens.
        pub vocab_size: u32 = 0;
        /// Positions the model is made for.
        pub max_position_embeddings: u32 = 2048, "from 1 to 134217728" |n| (1..=1 << 27).contains(n);
        /// Whether the LM head is the embedding.
        pub tie_word_embeddings: bool = true;
        /// Base of the rotary frequencies.
        pub rope_theta: f64 = 10000.0, "from 1.001 to 1e15" |x| (1.001..=1e15).contains(x);
        /// Epsilon of the norms.
        pub rms_norm_eps: f64 = 1e-6, "from 1e-30 to 0.5" |x| (1e-30..=0.5).contains(x);
        /// Standard deviation of the draws.
        pub init_std: f64 = 0.02, "above 0 and at most 1000" |x| 0.0 < *x && *x <= 1000.0;
        /// Seed of the draws; absent: the run's.
        pub init_seed: Option<u64> = None;
        /// Its tokenizer.
        pub tokenizer: TokenizerSource;
    }
}

/// Where the tokenizer of a model made from nothing comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The name of another model of the pipeline, or the path of one.
    Of(String),
    /// A byte-pair encoding trained on a query's texts.
    Train(TokenizerTraining),
}

impl Default for TokenizerSource {
    fn default() -> Self {
        Self::Of(String::new())
    }
}

choice! {
    /// The symbols that a trained tokenizer starts from.
    pub enum Alphabet {
        /// The bytes that the training texts hold.
        Seen = "seen",
        /// All 256 bytes, so that any text can be encoded.
        Bytes = "bytes",
    }
}

section! {
    /// A byte-level byte-pair encoding trained on a query's texts.
    pub struct TokenizerTraining {
        /// The texts: a query over the tables with a column `text`.
        pub train: Sql;
        /// Tokens, the end token, special ones and single bytes included, at most; short texts may yield
        /// fewer.
        pub vocab_size: u32 = 512, "at least 2" |n| *n >= 2;
        /// Tokens that the texts never split, such as tags; the end token is always there.
        pub special_tokens: Vec<String> = Vec::new(), "without empty texts" |t| !t.iter().any(String::is_empty);
        /// The symbols it starts from.
        pub alphabet: Alphabet = Alphabet::Bytes;
    }
}

section_fields!(TokenizerTraining);

impl Field for RandomModel {
    fn expects() -> String {
        "a table".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::Table(entries) = &node.value else {
            return read_section(node, path, reader, base);
        };
        refuse_unknown(entries, &base.section_keys(), &[], path, reader);
        if !entries.iter().any(|entry| entry.key == "init") {
            let hint = "add `init = \"random\"`, or give a path instead of a table".to_owned();
            reader.report_at(path, format!("`{path}.init` is missing"), Some(hint));
        }
        Self::read_over(base, entries, path, reader)
    }
    fn write(&self) -> Option<Out> {
        Some(Out::Table(self.write_section()))
    }
    fn about() -> &'static str {
        Self::ABOUT
    }
    fn keys(&self) -> Vec<Key> {
        self.section_keys()
    }
}

impl Field for ModelSource {
    fn expects() -> String {
        "the path of a model, or a table for one made from nothing or with an adapter".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(text) => Self::Path(text.clone()),
            Value::Table(entries) if entries.iter().any(|entry| entry.key == "adapter") => {
                Self::Adapted(AdaptedModel::read(node, path, reader, Default::default()))
            }
            Value::Table(_) => {
                Self::Random(Box::new(RandomModel::read(node, path, reader, Default::default())))
            }
            _ => {
                reader.wrong_type(node, path, &Self::expects());
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        match self {
            Self::Path(text) => Some(Out::string(text)),
            Self::Random(model) => model.write(),
            Self::Adapted(model) => model.write(),
        }
    }
    fn about() -> &'static str {
        RandomModel::ABOUT
    }
    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Path(_) => RandomModel::default().keys(),
            Self::Random(model) => model.keys(),
            Self::Adapted(model) => model.keys(),
        }
    }
}

impl ModelSource {
    /// The path of the files that it is made of, without an adapter, if it has any.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Path(path) | Self::Adapted(AdaptedModel { base: path, .. }) => Some(path),
            Self::Random(_) => None,
        }
    }
}

impl Field for TokenizerSource {
    fn expects() -> String {
        "the name or path of a model, or a table `{ train = \"SELECT … AS text FROM …\" }`".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(text) => Self::Of(text.clone()),
            Value::Table(_) => {
                Self::Train(TokenizerTraining::read(node, path, reader, Default::default()))
            }
            _ => {
                reader.wrong_type(node, path, &Self::expects());
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        match self {
            Self::Of(text) => Some(Out::string(text)),
            Self::Train(training) => training.write(),
        }
    }
    fn about() -> &'static str {
        TokenizerTraining::ABOUT
    }
    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Of(_) => TokenizerTraining::default().keys(),
            Self::Train(training) => training.keys(),
        }
    }
}

impl RandomModel {
    /// Width of a head.
    pub fn head_dim(&self) -> u32 {
        if self.head_dim == 0 { self.hidden_size / self.heads.max(1) } else { self.head_dim }
    }

    /// What does not fit together, as (key, message, hint).
    pub(crate) fn mismatches(&self) -> Vec<(&'static str, String, String)> {
        let mut found = Vec::new();
        if self.head_dim == 0 && !self.hidden_size.is_multiple_of(2 * self.heads) {
            found.push((
                "heads",
                format!(
                    "{} heads do not divide a width of {} into even parts",
                    self.heads, self.hidden_size
                ),
                "set `head_dim`, or a `hidden_size` that is a multiple of twice `heads`".into(),
            ));
        }
        if !self.head_dim().is_multiple_of(HEAD_DIM_STEP) && found.is_empty() {
            found.push((
                "head_dim",
                format!(
                    "heads of {} are not a multiple of {HEAD_DIM_STEP} wide",
                    self.head_dim()
                ),
                format!("choose `head_dim`, or `hidden_size` and `heads`, so that each head is {HEAD_DIM_STEP}, {}, … wide", 2 * HEAD_DIM_STEP),
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            found.push((
                "kv_heads",
                format!("{} query heads can't share {} key heads", self.heads, self.kv_heads),
                "`heads` must be a multiple of `kv_heads`".into(),
            ));
        }
        found
    }
}

/// Whether it is `owner/name` as the hub has them: no path that leads elsewhere.
fn is_hub_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split('/').count() == 2 && name.split('/').all(is_word)
}

/// Why a model's path leads to no model.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFound {
    /// What was expected and found.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

/// Directories that paths of a pipeline are looked up in.
#[derive(Clone, Debug)]
pub struct Places {
    /// What relative paths start from; the directory `aha` was started in.
    pub base_dir: PathBuf,
    /// The local cache of `hf://` models, such as `~/.cache/huggingface/hub`.
    pub hf_cache: Option<PathBuf>,
}

impl Places {
    /// The directory or `.gguf` file of a model's path.
    pub fn locate(&self, source: &str) -> Result<PathBuf, NotFound> {
        if let Some(name) = source.strip_prefix("hf://") {
            return self.locate_cached(name);
        }
        let path = self.base_dir.join(source);
        if path.is_dir() {
            return if path.join("config.json").is_file() {
                Ok(path)
            } else {
                Err(NotFound {
                    message: format!(
                        "the directory `{source}` holds no model: no config.json in it"
                    ),
                    hint: "a model is a directory in Hugging Face layout, or a .gguf file".into(),
                })
            };
        }
        if path.is_file() {
            let is_gguf = path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
            return if is_gguf {
                Ok(path)
            } else {
                Err(NotFound {
                    message: format!("the file `{source}` is not a .gguf file"),
                    hint: "name the directory that holds config.json and the weights".into(),
                })
            };
        }
        let hint = if Path::new(source).is_absolute() {
            "check the path; a model made from nothing is a table with `init = \"random\"`".into()
        } else {
            "relative paths start from the directory `aha` is started in; a model made from \
             nothing is a table with `init = \"random\"`"
                .to_owned()
        };
        Err(NotFound { message: format!("there is no model at `{source}`"), hint })
    }

    /// The directory of an adapter.
    pub fn adapter(&self, source: &str) -> Result<PathBuf, NotFound> {
        let path = match source.strip_prefix("hf://") {
            Some(name) if is_hub_name(name) => self.snapshot("models", name),
            Some(_) => None,
            None => Some(self.base_dir.join(source)),
        };
        let path = path.filter(|path| path.join(aha_model::adapter::CONFIG).is_file());
        path.ok_or_else(|| NotFound {
            message: format!(
                "there is no adapter at `{source}`: no {}",
                aha_model::adapter::CONFIG
            ),
            hint:
                "an adapter is a directory in peft's layout, such as `adapters/NAME` of a run, or \
                   hf://owner/name in the local cache"
                    .into(),
        })
    }

    /// The files of a table: a path, or `hf://datasets/owner/name/path` in the local cache, whose path may be
    /// a file, a folder, a glob, or absent.
    pub fn table(&self, address: &str) -> Result<TableSource, aha_data::Error> {
        let Some(rest) = address.strip_prefix("hf://datasets/") else {
            return TableSource::new(address, &self.base_dir);
        };
        let mut parts = rest.splitn(3, '/');
        let name = [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join("/");
        let Some(snapshot) = self.snapshot("datasets", &name) else {
            let message = format!(
                "`{address}` is not in the local cache, and this version does not download"
            );
            let hint = format!(
                "fetch it with `huggingface-cli download {name} --repo-type dataset`, or give the \
                 path of a file that has it"
            );
            return Err(aha_data::Error::Input { message, hint: Some(hint), location: None });
        };
        TableSource::new(
            &snapshot.join(parts.next().unwrap_or_default()).to_string_lossy(),
            &snapshot,
        )
    }

    /// What the cache has of a repository at its newest revision, in the cache's layout.
    fn snapshot(&self, kind: &str, name: &str) -> Option<PathBuf> {
        let folder = self.hf_cache.as_ref()?.join(format!("{kind}--{}", name.replace('/', "--")));
        let revision = std::fs::read_to_string(folder.join("refs/main")).ok()?;
        let snapshot = folder.join("snapshots").join(revision.trim());
        snapshot.is_dir().then_some(snapshot)
    }

    /// The newest snapshot of `owner/name` in the cache's layout.
    fn locate_cached(&self, name: &str) -> Result<PathBuf, NotFound> {
        if !is_hub_name(name) {
            return Err(NotFound {
                message: format!("`hf://{name}` names no model"),
                hint: "write hf://owner/name, such as hf://Qwen/Qwen2.5-0.5B".into(),
            });
        }
        let found = self.snapshot("models", name);
        let found = found.filter(|snapshot| snapshot.join("config.json").is_file());
        found.ok_or_else(|| NotFound {
            message: format!(
                "`hf://{name}` is not in the local cache, and this version does not download"
            ),
            hint: format!(
                "fetch it with `huggingface-cli download {name}`, or name a directory that has it"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_names_no_model_is_not_looked_for() {
        let places = Places { base_dir: PathBuf::new(), hf_cache: None };
        for name in ["../../etc", "a", "a/b/c", "/b", "a/..", "a b/c"] {
            let error = places.locate(&format!("hf://{name}")).unwrap_err();
            assert!(error.message.ends_with("names no model"), "{error:?}");
            assert!(!error.hint.contains(name) || name == "a", "{error:?}");
        }
        let missing = places.locate("hf://Qwen/Qwen2.5-0.5B").unwrap_err();
        assert!(missing.hint.contains("download Qwen/Qwen2.5-0.5B"), "{missing:?}");
    }
}
