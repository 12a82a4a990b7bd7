//! Decoder models: shape, weights, tokenizer and chat template, in and out, and the forward pass.
//!
//! # Map
//! - [`config`]: the shape of a model, as `config.json` or a GGUF states it; start here.
//! - [`model`]: the forward pass, written once over the ops of `aha-compute`; reward models, low-rank adapters.
//! - [`weights`]: tensors of a Hugging Face directory or of a GGUF file ([`gguf`]), as f32.
//! - [`tokenizer`]: text to tokens and back.
//! - [`chat_template`]: conversations to text, and which part of it the assistant wrote.
//! - [`tokenizer_train`]: a byte-level BPE tokenizer for a model made from nothing.
//! - [`save`]: a directory that `transformers` loads. [`adapter`]: one of adapters alone, that `peft` loads.
//! - [`mod@error`]: what can go wrong.
//!
//! # Invariants
//! - Files are hostile: every length in them is checked before memory is asked for.
//! - What [`weights::open`] returned is complete: no tensor is missing, has another shape or
//!   another size than its file.
//! - A saved directory appears whole or not at all.

pub mod config;

pub mod weights;

pub mod model;

pub mod gguf;

pub mod tokenizer;

pub mod chat_template;

pub mod tokenizer_train;

pub mod save;

pub mod adapter;

pub mod error;

pub use chat_template::{ChatTemplate, Message, Rendered};
pub use config::{Architecture, Config, Head};
pub use error::{Error, Result};
pub use gguf::Gguf;
pub use model::lora::{Lora, Target};
pub use model::{Batch, Model};
pub use save::{SaveDtype, SaveOptions};
pub use tokenizer::Tokenizer;
pub use tokenizer_train::TrainOptions;
pub use weights::WeightSource;
