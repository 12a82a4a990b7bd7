//! Runs of tiny pipelines inside this process: what they promise while all goes well, and when it doesn't.
//!
//! # Map
//! - [`world`]: a folder with a pipeline and problems, runs in it, and comparing them.
//! - [`bits`]: what a run's bits depend on, and what they don't. [`stopping`]: stopped and resumed.
//! - [`faults`]: actors that fail, and prompts. [`watching`]: watchdogs and metrics. [`reading`]: tables
//!   while they grow.
//!
//! Kills from outside are the business of the program's tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bits;
mod faults;
mod reading;
mod stopping;
mod watching;
mod world;
