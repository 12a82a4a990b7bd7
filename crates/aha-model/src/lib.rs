//! Model architectures over the ops of aha-compute; weights, tokenizer and chat template in and out.

pub mod chat_template;
pub mod config;
pub mod error;
pub mod gguf;
pub mod save;
pub mod tokenizer;
pub mod tokenizer_train;
pub mod weights;
