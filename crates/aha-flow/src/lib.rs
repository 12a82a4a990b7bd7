//! Pipelines: files that say what to train, and the actors that do it.
//!
//! # Map
//! - [`pipeline`]: the file's grammar and defaults; every problem of a bad one at once.
//! - [`planning`]: checks a pipeline against the data and models of this machine.
//! - [`run()`]: a run, stage by stage; [`rundir`] and [`state`] say what is where.
//! - [`devices`]: CUDA devices, opened once.
//! - [`identity`]: what a run's results depend on, and whether it may go on.
//! - `stages`: one module per kind of stage that isn't reinforcement learning.
//! - `rl`: the actors of an RL stage, their credits, supervision and recovery.
//! - [`generate`], [`score`], [`evaluate`]: completions, their rewards, and what those say of a model.
//! - [`endpoint`]: completions of a server in a model's place.
//! - [`benchmark`]: published sets of problems, by their publishers' columns.
//! - [`lend`]: what rewards borrow: models that judge, the answers of a run, its stop.
//! - [`reward_model`]: a trained preference model at work.
//! - [`checkpoint`]: what a stage needs to go on, written aside and renamed; [`parts`]: the rows it stands on.
//! - [`watchdog`]: what looks wrong while it still can be mended.
//! - [`progress`], [`metrics`]: what is told to whoever watches, and to tables.
//!
//! # Invariants
//! - A checkpoint is on disk only after every row that its weights were trained on.
//! - Nothing here reads a clock or draws a number that a table or a weight could depend on, but for the
//!   columns that say when.
//! - What was sampled is what is trained on: tokens are never made from text again.

pub mod benchmark;
pub mod checkpoint;
pub mod clock;
mod compute;
pub mod devices;
pub mod endpoint;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod identity;
pub mod lend;
pub mod machine;
pub mod metrics;
pub mod models;
pub mod parts;
pub mod pipeline;
pub mod planning;
pub mod progress;
pub mod prompts;
pub mod reward_model;
pub mod rl;
pub mod room;
pub mod run;
pub mod rundir;
pub mod score;
pub mod stages;
pub mod state;
pub mod stop;
mod task;
pub mod watchdog;

pub use error::{Error, Result};
pub use run::run;
