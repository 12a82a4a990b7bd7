//! A model's shape: what `config.json` or a GGUF's metadata says, checked.

mod json;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use json::ids_value;
pub use rope::{Rope, RopeScaling, infer_llama3};

use crate::error::{Error, Result};

/// Largest vocabulary that is believed; a larger one is a broken or hostile file.
pub const VOCAB_SIZE_MAX: usize = 1 << 22;
const HIDDEN_SIZE_MAX: usize = 1 << 16;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 19;
const LAYER_COUNT_MAX: usize = 1 << 10;
const HEAD_COUNT_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 10;
const POSITION_COUNT_MAX: usize = 1 << 27;
const PARAM_COUNT_MAX: usize = 1 << 42;
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The weight of an LM head that isn't the embedding.
pub const LM_HEAD_WEIGHT: &str = "lm_head.weight";
/// The weight of [`Head::Score`].
pub const SCORE_WEIGHT: &str = "score.weight";

/// The decoder families that are one forward pass with a few switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, SmolLM2, and whatever else says `"model_type": "llama"`.
    Llama,
    /// Qwen2 and Qwen2.5: bias on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMSNorm over each query and key head.
    Qwen3,
}

impl Architecture {
    /// The `model_type` of `config.json`, also the architecture's name in a GGUF.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// The architecture of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            other => Err(Error::input(format!(
                "architecture `{other}` is not supported: expected llama, qwen2 or qwen3"
            ))),
        }
    }

    fn transformers_class(self, head: Head) -> String {
        let family = match self {
            Architecture::Llama => "Llama",
            Architecture::Qwen2 => "Qwen2",
            Architecture::Qwen3 => "Qwen3",
        };
        let task = match head {
            Head::Language => "ForCausalLM",
            Head::Score => SCORE_CLASS,
        };
        format!("{family}{task}")
    }
}

/// How the name of transformers' class ends for a model with [`Head::Score`].
const SCORE_CLASS: &str = "ForSequenceClassification";

/// What the last hidden state goes into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// The LM head: a logit per token of the vocabulary.
    #[default]
    Language,
    /// A reward model's: one number, the product with `score.weight`. transformers has it as sequence
    /// classification with a single label.
    Score,
}

/// A model's shape and constants. Made by [`Config::from_json`], [`Config::load`] or a GGUF, or by
/// hand followed by [`Config::validate`].
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The decoder family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layer_count: usize,
    /// Query heads.
    pub head_count: usize,
    /// Key and value heads; divides `head_count`.
    pub kv_head_count: usize,
    /// Width of one head; even, because RoPE turns pairs.
    pub head_dim: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// What the last hidden state goes into.
    pub head: Head,
    /// The LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// `attention_bias` of the file: bias on q, k, v and o. Always false for Qwen2, whose bias on
    /// q, k and v is part of the architecture.
    pub attention_bias: bool,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Token that begins a text.
    pub bos_id: Option<u32>,
    /// Tokens that end a completion.
    pub eos_ids: Vec<u32>,
    /// Token that fills (never used here: nothing is padded).
    pub pad_id: Option<u32>,
    /// Standard deviation of the initial weights.
    pub initializer_range: f32,
    /// Keys of a loaded `config.json` that mean nothing here and are written back.
    pub extra: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a Hugging Face directory.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let value = read_json(&path, CONFIG_BYTES_MAX)?;
        Config::from_json(&value).map_err(|error| error.at(&path))
    }

    /// Reads the content of a `config.json`, as transformers 4 or 5 writes it.
    pub fn from_json(value: &Value) -> Result<Self> {
        json::read(value)
    }

    /// The content of a `config.json` that transformers 4 and 5 load.
    pub fn to_json(&self) -> Value {
        json::write(self)
    }

    /// Bias on the query, key and value projections.
    pub fn qkv_bias(&self) -> bool {
        self.architecture == Architecture::Qwen2 || self.attention_bias
    }

    /// Bias on the attention's output projection.
    pub fn o_bias(&self) -> bool {
        self.attention_bias
    }

    /// RMSNorm over each query and key head.
    pub fn qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }

    /// RoPE's inverse frequencies (`head_dim / 2` of them) and the factor on cos and sin, as
    /// transformers computes them.
    pub fn inv_freq(&self) -> (Vec<f32>, f32) {
        self.rope.inv_freq(self.head_dim)
    }

    /// Every parameter's Hugging Face name and shape, in the order of transformers' `state_dict`.
    pub fn param_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes =
            vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, self.hidden_size])];
        for layer_idx in 0..self.layer_count {
            self.layer_shapes(layer_idx, &mut shapes);
        }
        shapes.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        match self.head {
            Head::Score => shapes.push((SCORE_WEIGHT.to_owned(), vec![1, self.hidden_size])),
            Head::Language if self.tie_word_embeddings => {}
            Head::Language => {
                shapes.push((LM_HEAD_WEIGHT.to_owned(), vec![self.vocab_size, self.hidden_size]));
            }
        }
        shapes
    }

    fn layer_shapes(&self, layer_idx: usize, shapes: &mut Vec<(String, Vec<usize>)>) {
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.head_count * self.head_dim, self.kv_head_count * self.head_dim);
        let mut push = |name: &str, shape: Vec<usize>| {
            shapes.push((format!("model.layers.{layer_idx}.{name}"), shape));
        };
        for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            push(&format!("self_attn.{name}.weight"), vec![rows, h]);
            if self.qkv_bias() {
                push(&format!("self_attn.{name}.bias"), vec![rows]);
            }
        }
        push("self_attn.o_proj.weight", vec![h, q]);
        if self.o_bias() {
            push("self_attn.o_proj.bias", vec![h]);
        }
        if self.qk_norm() {
            push("self_attn.q_norm.weight", vec![self.head_dim]);
            push("self_attn.k_norm.weight", vec![self.head_dim]);
        }
        push("mlp.gate_proj.weight", vec![f, h]);
        push("mlp.up_proj.weight", vec![f, h]);
        push("mlp.down_proj.weight", vec![h, f]);
        push("input_layernorm.weight", vec![h]);
        push("post_attention_layernorm.weight", vec![h]);
    }

    /// Number of parameters, a tied LM head counted once.
    pub fn param_count(&self) -> usize {
        let mut one_layer = Vec::new();
        self.layer_shapes(0, &mut one_layer);
        let layer: usize = one_layer.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let embedding = self.vocab_size * self.hidden_size;
        let head = match self.head {
            Head::Score => self.hidden_size,
            Head::Language if self.tie_word_embeddings => 0,
            Head::Language => embedding,
        };
        embedding + self.layer_count * layer + self.hidden_size + head
    }

    /// Checks every number against its limits, so that no product of sizes can overflow and no
    /// file can ask for more memory than a model could need.
    pub fn validate(&self) -> Result<()> {
        within("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?;
        within("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX)?;
        within("intermediate_size", self.intermediate_size, INTERMEDIATE_SIZE_MAX)?;
        within("num_hidden_layers", self.layer_count, LAYER_COUNT_MAX)?;
        within("num_attention_heads", self.head_count, HEAD_COUNT_MAX)?;
        within("num_key_value_heads", self.kv_head_count, HEAD_COUNT_MAX)?;
        within("head_dim", self.head_dim, HEAD_DIM_MAX)?;
        within("max_position_embeddings", self.max_position_embeddings, POSITION_COUNT_MAX)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::input(format!("`head_dim` is {}: expected even", self.head_dim)));
        }
        if !self.head_count.is_multiple_of(self.kv_head_count) {
            return Err(Error::input(format!(
                "`num_attention_heads` is {}: expected a multiple of `num_key_value_heads`, {}",
                self.head_count, self.kv_head_count
            )));
        }
        // Written so that NaN fails.
        if !(0.0 < self.rms_norm_eps && self.rms_norm_eps < 1.0) {
            return Err(Error::input(format!(
                "`rms_norm_eps` is {}: expected in (0, 1)",
                self.rms_norm_eps
            )));
        }
        if !(0.0 <= self.initializer_range && self.initializer_range <= 1000.0) {
            return Err(Error::input(format!(
                "`initializer_range` is {}: expected in [0, 1000]",
                self.initializer_range
            )));
        }
        if self.param_count() > PARAM_COUNT_MAX {
            return Err(Error::input(format!(
                "the sizes make {} parameters: expected at most {PARAM_COUNT_MAX}",
                self.param_count()
            )));
        }
        self.rope.validate()?;
        self.validate_ids()
    }

    fn validate_ids(&self) -> Result<()> {
        let named = [("bos_token_id", self.bos_id), ("pad_token_id", self.pad_id)];
        let eos = self.eos_ids.iter().map(|&id| ("eos_token_id", Some(id)));
        for (name, id) in named.into_iter().chain(eos) {
            if let Some(id) = id.filter(|&id| id as usize >= self.vocab_size) {
                return Err(Error::input(format!(
                    "`{name}` is {id}: expected below `vocab_size`, {}",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }
}

fn within(name: &str, value: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::input(format!("`{name}` is {value}: expected from 1 to {max}")))
}

/// Reads a JSON file of at most `bytes_max` bytes.
pub(crate) fn read_json(path: &Path, bytes_max: u64) -> Result<Value> {
    let bytes = read_limited(path, bytes_max)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::input("not valid JSON").caused_by(error).at(path))
}

/// Reads a whole file of at most `bytes_max` bytes.
pub(crate) fn read_limited(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let io = |error| Error::io("read", path, error);
    let len_bytes = std::fs::metadata(path).map_err(io)?.len();
    if len_bytes > bytes_max {
        let message = format!("has {len_bytes} bytes: expected at most {bytes_max}");
        return Err(Error::input(message).at(path));
    }
    std::fs::read(path).map_err(io)
}
