//! The program itself, driven as a shell would: arguments in; exit code, stdout and stderr out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod benches;
mod daemons;
mod evaluations;
mod faults;
mod gpu_check;
mod grading;
mod models;
mod operations;
mod preferences;
mod queries;
mod recipes;
mod reports;
mod runs;
mod scaling;
mod support;
mod usage;
