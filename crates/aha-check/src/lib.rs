//! Holds a device against the processor, where there is a device: what tests show on the emulated one, on a real one.
//!
//! # Map
//! - [`run`]: which parts, in which order; start here. [`Part`] says what each shows.
//! - [`Subject`]: the device, and the processor that it is held against.
//! - [`finding`]: what was found, case by case: a figure, and what it may be at most.
//! - `compare`: how far values are from others. `inputs`: the numbers and models that all parts begin with.
//! - A module per part: `ops`, `draws`, `models`, `gradients`, `determinism`, `paths`, `grpo`, `driver`.
//!
//! # Invariants
//! - It uses what every user of `aha-compute` can use: a check takes no way into a device that a model doesn't take.
//! - A case that fails, also by a panic, is a finding, and the next case begins anew.
//! - Nothing depends on time or on chance.

mod compare;
mod determinism;
mod draws;
mod driver;
pub mod error;
pub mod finding;
mod gradients;
mod grpo;
mod inputs;
mod models;
mod ops;
mod part;
mod paths;
mod subject;

pub use error::Error;
pub use finding::{Finding, Findings};
pub use part::{Part, Size, run};
pub use subject::Subject;
