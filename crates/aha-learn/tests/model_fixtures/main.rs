//! Logits, log-probs, gradients and optimizer steps of whole models are those of transformers, torch and TRL 1.16.
//!
//! The fixtures are random models of four architectures. `fixture.json` has what torch computed in f32 and
//! f64; beside it are files with the gradient of every weight, of the loss of language models and of two losses
//! of GRPO. Everything is computed on every instruction set of the machine, in f32 and in bf16, and held against
//! the [`Bounds`](support::Bounds) of the type. `-- --nocapture` shows the largest distances.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

mod support;

mod forward;
mod gradients;
mod grpo;
mod optimizer;
