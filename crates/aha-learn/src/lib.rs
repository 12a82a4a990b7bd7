//! Turns rewards and log-probs into losses and the gradients of every token's log-prob.
//!
//! # Map
//! - [`advantage`]: rewards of a prompt's group → advantages. Pure; start here.
//! - [`value`]: a critic's values → advantages of tokens, and the critic's loss.
//! - [`objective`]: every constant of GRPO and its variants, the loss, its gradient, its formula as text.
//! - [`preset`]: the named settings of DeepSeek-R1, TRL, verl, Dr. GRPO, DAPO, PPO and others.
//! - [`sft`]: the supervised loss on the same terms. [`preference`]: that of a reward model on pairs.
//!   [`dpo`]: that of a policy on pairs.
//! - [`packing`]: sequences → micro-batches without padding, groups → minibatches.
//! - [`schedule`]: the learning rate of a step.
//! - [`learner`]: one optimizer step over a model: packed forward and backward passes in which a group's prompt
//!   is computed once, clipping, AdamW.
//!
//! # Invariants
//! - A token's gradient depends on its own sequence and on the [`objective::Normaliser`] of the whole
//!   minibatch, never on the micro-batch it shares: any split gives the same bits.
//! - Sums run in f64, tokens in order inside a sequence, sequences in order inside a minibatch.
//! - A group without signal has advantages of exactly 0; a null reward is not a reward of 0.
//! - Nothing here draws a random number: whoever needs a shuffle passes the draws in.

pub mod advantage;
pub mod dpo;
pub mod error;
pub mod learner;
pub mod objective;
pub mod packing;
pub mod preference;
pub mod preset;
pub mod schedule;
pub mod sft;
pub mod value;

pub use error::{Error, Problem};
