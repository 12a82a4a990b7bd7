//! The sampler: continuous batching over a paged key/value cache.
//!
//! # Map
//! - [`settings`]: what to draw and within which limits; start here.
//! - [`draw`]: from a row of logits to a token: temperature, top-k, top-p, addressed randomness. Pure.
//! - [`thinking`]: budget forcing: what may be forced into a completion, and where. Pure but for the tokenizer.
//! - [`pages`]: which pages of the cache are free, and who shares them.
//! - [`audience`]: who asks for more meanwhile, and hears of each token.
//! - [`weights`]: weights that change while completions are drawn, and which of them drew what.
//! - [`score()`]: log-probs of tokens that are given, with the likeliest ones beside them.
//! - [`engine`]: admits groups, prefills prompts once, decodes all sequences together.
//!
//! # Invariants
//! - Unless weights change under it, a completion is a function of weights, prompt, settings and its address alone: not
//!   of the batch, the limits, or the threads.
//! - Behaviour log-probs have the bits of the learner's forward pass over the same tokens.
//! - Admitted sequences can always finish: their pages are reserved when they start.

pub mod audience;
pub mod draw;
pub mod engine;
pub mod error;
pub mod pages;
pub mod score;
pub mod settings;
pub mod thinking;
pub mod weights;

pub use audience::{Audience, News};
pub use engine::{Completion, Request, Room, Sampler};
pub use error::Error;
pub use score::{Scored, score};
pub use settings::{FinishReason, Limits, Sampling};
pub use thinking::Thinking;
pub use weights::{Versions, Weights};
