//! The long-running service: a queue of runs, an HTTP API over them, models that answer.
//!
//! # Map
//! - [`options`]: what the daemon is started with. [`serve()`]: it starts, works, and drains; start here.
//! - [`home`]: the folder that it owns. [`store`]: the queue on the disk. [`record`]: what is kept of a run.
//! - [`status`]: the states of a run, and every way from one to another. Pure.
//! - [`admit`]: which run starts next, and what the end of a process means. Pure.
//! - [`keeper`]: the one task that changes anything: it starts, watches and stops runs. [`child`]: a run's process.
//!   [`board`]: what everybody may read of it. [`events`]: what is told to those who watch.
//! - [`policy`]: what a pipeline that was submitted may name. [`submit`]: its checks and its memory.
//! - [`bounded`]: processes that compute what a request asks for, within bounds.
//! - [`http`]: connections and their limits; who may ask. [`api`]: `/api/v1`, and its OpenAPI document.
//! - [`openai`]: models of runs behind OpenAI's form.
//! - [`metrics`]: what Prometheus reads. [`usage`]: memory and processor time of runs, over time.
//! - [`dashboard`]: the pages that browsers show; their sources are in `web`.
//!
//! # Invariants
//! - A run is a process of its own: what it does to itself, it doesn't do to the daemon.
//! - Whatever was answered with success is in the store: a kill loses nothing of the queue.
//! - Only the keeper writes to the store, and a state changes only as [`status`] has it.
//! - Nothing blocks the async runtime: disk, queries and models have threads or processes of their own.
//! - No path that comes from a request leaves the folder of its run.

pub mod admit;
pub mod api;
pub mod board;
pub mod bounded;
pub mod child;
pub mod dashboard;
pub mod error;
pub mod events;
pub mod home;
pub mod http;
pub mod keeper;
pub mod metrics;
pub mod openai;
pub mod options;
pub mod policy;
pub mod record;
mod serve;
pub mod status;
pub mod store;
pub mod submit;
pub mod token;
pub mod usage;

pub use error::{Error, Result};
pub use options::Options;
pub use serve::{Listening, serve};
