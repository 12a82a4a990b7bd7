//! Stages other than reinforcement learning, one module each.
//!
//! Each stage goes on from what it has made durable, and makes the same tables and weights however often it
//! was interrupted.

pub(crate) mod asked;
pub(crate) mod completions;
mod context;
pub mod dpo;
pub mod eval;
pub mod export;
mod pairs;
pub mod query;
pub mod reward_model;
pub mod sample;
pub mod sft;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod training;

pub use context::Context;

use aha_data::Session;

use crate::error::Result;
use crate::rundir::RunDir;

/// Makes what the run has written so far the tables of later queries: a table per stage, `rollouts` of all
/// stages that sampled, `metrics` and `evals`.
pub fn register_outputs(session: &Session, dir: &RunDir) -> Result<()> {
    Ok(session.register_run(dir.root())?)
}
