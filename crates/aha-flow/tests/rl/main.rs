//! Runs of tiny pipelines inside this process: what they promise while all goes well, and when it doesn't.
//!
//! # Map
//! - [`world`]: a folder with a pipeline and problems, runs in it, and comparing them. [`actors`]: actors of a
//!   stage without a run.
//! - [`bits`]: what a run's bits depend on, and what they don't. [`stopping`]: stopped and resumed.
//! - [`faults`]: actors that fail, and prompts. [`watching`]: watchdogs and metrics. [`reading`]: tables
//!   while they grow. [`waiting`]: rewards that wait for others. [`edges`]: what actors hold while they stand
//!   still. [`memory`]: how many models a stage holds. [`schedule`]: the learning rate. [`selecting`]: what a step is
//!   trained on. [`mixing`]: which prompts are drawn, and rewards by source. [`asking`]: completions of an endpoint.
//!   [`distilling`]: learning from a teacher. [`int8`]: sampling from rounded weights. [`critic`]: PPO. [`adapters`]:
//!   stages that train low-rank adapters. [`options`]: every key of every stage. [`versions`]: runs of another version
//!   of the program. [`ahead`]: samplers that run ahead of their learners. [`on_cuda`]: runs on a CUDA device.
//!
//! Kills from outside are the business of the program's tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod actors;
mod adapters;
mod ahead;
mod asking;
mod bits;
mod critic;
mod distilling;
mod edges;
mod faults;
mod int8;
mod memory;
mod mixing;
mod on_cuda;
mod options;
mod reading;
mod schedule;
mod selecting;
#[path = "../../../aha-reward/tests/waiting/server.rs"]
mod server;
mod stopping;
mod versions;
mod waiting;
mod watching;
mod world;
