//! The model that is measured.

use std::path::PathBuf;
use std::sync::Arc;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_flow::models::{self, Loaded};
use aha_model::config::{Architecture, Config, Head, Rope};
use aha_model::tokenizer_train::{TrainOptions, train};
use aha_model::{Model, Tokenizer, weights};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::commands::shared::located;

/// Seed of weights, text and draws: all of them are the same at each call.
const SEED: u64 = 1;

/// Shapes of models that random weights can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// 41 thousand parameters, for trying things out.
    Tiny,
    /// A million parameters.
    #[value(name = "1m")]
    M1,
    /// Ten million parameters.
    #[value(name = "10m")]
    M10,
    /// SmolLM2-135M.
    #[value(name = "smollm2-135m")]
    Smollm2M135,
    /// SmolLM2-360M.
    #[value(name = "smollm2-360m")]
    Smollm2M360,
    /// Llama 3.2 1B.
    #[value(name = "llama-1b")]
    LlamaB1,
    /// Qwen2.5-0.5B.
    #[value(name = "qwen2.5-0.5b")]
    QwenM500,
    /// Qwen2.5-1.5B.
    #[value(name = "qwen2.5-1.5b")]
    QwenM1500,
}

impl Shape {
    /// The name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The shape, as a model that begins with random weights.
    pub fn config(self) -> Config {
        // Vocabulary, width, width of the MLP, layers, heads, key heads, width of a head, positions.
        let [vocab_size, hidden_size, intermediate_size, layer_count, rest @ ..] = match self {
            Shape::Tiny => [512, 32, 96, 2, 2, 1, 16, 1024],
            Shape::M1 => [2048, 128, 384, 4, 4, 2, 32, 8192],
            Shape::M10 => [8192, 320, 800, 7, 10, 5, 32, 8192],
            Shape::Smollm2M135 => [49152, 576, 1536, 30, 9, 3, 64, 8192],
            Shape::Smollm2M360 => [49152, 960, 2560, 32, 15, 5, 64, 8192],
            Shape::LlamaB1 => [128_256, 2048, 8192, 16, 32, 8, 64, 8192],
            Shape::QwenM500 => [151_936, 896, 4864, 24, 14, 2, 64, 32_768],
            Shape::QwenM1500 => [151_936, 1536, 8960, 28, 12, 2, 128, 32_768],
        };
        let is_qwen = matches!(self, Shape::QwenM500 | Shape::QwenM1500);
        let [head_count, kv_head_count, head_dim, max_position_embeddings] = rest;
        Config {
            architecture: if is_qwen { Architecture::Qwen2 } else { Architecture::Llama },
            vocab_size,
            hidden_size,
            intermediate_size,
            layer_count,
            head_count,
            kv_head_count,
            head_dim,
            rms_norm_eps: 1e-5,
            rope: Rope::plain(if is_qwen { 1e6 } else { 1e5 }),
            head: Head::Language,
            tie_word_embeddings: true,
            attention_bias: false,
            max_position_embeddings,
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
            initializer_range: 0.04,
            extra: serde_json::Map::new(),
        }
    }
}

/// Which model is measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A model in files.
    Files(PathBuf),
    /// Random weights.
    Random(Shape),
}

impl Subject {
    /// What the command line names.
    pub fn of(model: Option<&str>, shape: Shape) -> anyhow::Result<Subject> {
        match model {
            Some(model) => Ok(Subject::Files(located(model)?)),
            None => Ok(Subject::Random(shape)),
        }
    }

    /// Its shape, without its weights.
    pub fn config(&self) -> anyhow::Result<Config> {
        match self {
            Subject::Files(path) => Ok(weights::open(path)?.config().clone()),
            Subject::Random(shape) => Ok(shape.config()),
        }
    }

    /// What it is, in JSON.
    pub fn describe(&self) -> anyhow::Result<Value> {
        let config = self.config()?;
        let (name, is_random) = match self {
            Subject::Files(path) => (path.display().to_string(), false),
            Subject::Random(shape) => (shape.name(), true),
        };
        Ok(json!({ "name": name, "is_random": is_random, "param_count": config.param_count() }))
    }

    /// The weights, and a tokenizer: one that hardly fits where the weights are random, since no text is
    /// read or shown.
    pub fn open(&self, device: &Device) -> anyhow::Result<Loaded> {
        match self {
            Subject::Files(path) => Ok(models::load(path, device)?),
            Subject::Random(shape) => {
                let model = Model::random(shape.config(), device, random("weights"))?;
                Ok(Loaded { model: Arc::new(model), tokenizer: Arc::new(tokenizer()?) })
            }
        }
    }
}

/// Draws for a purpose.
pub fn random(purpose: &str) -> Philox {
    Philox::new(SEED).derive(purpose)
}

/// Text of random tokens: `count` sequences.
pub fn text(config: &Config, count: usize, len_tokens: usize) -> Vec<Vec<u32>> {
    let random = random("text");
    let id = |sequence: usize, at: usize| {
        (random.bits(&[sequence as u64, at as u64]) % config.vocab_size as u64) as u32
    };
    (0..count).map(|sequence| (0..len_tokens).map(|at| id(sequence, at)).collect()).collect()
}

/// A tokenizer of single bytes and a few words.
fn tokenizer() -> anyhow::Result<Tokenizer> {
    let options = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
    Ok(train(["wait, let me check that again"], &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_as_many_parameters_as_their_names_say() {
        let millions = |shape: Shape| shape.config().param_count() as f64 / 1e6;
        let cases = [
            (Shape::Tiny, 0.0411),
            (Shape::M1, 1.05),
            (Shape::M10, 10.1),
            (Shape::Smollm2M135, 134.5),
            (Shape::Smollm2M360, 361.8),
            (Shape::LlamaB1, 1235.8),
            (Shape::QwenM500, 494.0),
            (Shape::QwenM1500, 1543.7),
        ];
        for (shape, expected) in cases {
            assert!(
                (millions(shape) / expected - 1.0).abs() < 0.02,
                "{shape:?}: {}",
                millions(shape)
            );
            shape.config().validate().unwrap();
        }
    }

    #[test]
    fn text_is_the_same_at_each_call_and_below_the_vocabulary() {
        let config = Shape::Tiny.config();
        let ids = text(&config, 2, 50);
        assert_eq!(ids, text(&config, 2, 50));
        assert_ne!(ids[0], ids[1]);
        assert!(ids.iter().flatten().all(|&id| (id as usize) < config.vocab_size));
    }
}
