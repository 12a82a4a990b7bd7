//! Verifiers that turn a completion into a score.
//!
//! # Map
//! - [`verifier`]: [`Verifier`], what it reads ([`Sample`]) and what it says ([`Verdict`]); start here.
//! - [`spec`]: [`Spec`], a reward as the pipeline file has it; `resolve` makes a [`Verifier`] of it.
//! - [`backend`]: the models that a verifier borrows from whoever has them.
//! - [`composite`]: [`Composite`], the weighted sum of several rewards, one column each.
//! - [`extract`]: where in a completion the final answer is; an ordered list of strategies.
//! - [`math`]: are two answers the same number, expression or list? Lexer, parser, exact values.
//! - [`mod@format`], [`length`], [`pattern`], [`exact`]: the other verifiers, a file each.
//! - [`model`]: the score of a trained preference model, which a backend lends.
//! - [`text`]: reflection words and the share of a language, for queries and reports.
//! - [`grade`]: JSON lines in, verdicts out.
//! - [`error`]: what can go wrong outside a verdict.
//!
//! # Invariants
//! - A verifier is a pure function of its sample: no clock, no randomness, no file, no state.
//! - A completion never makes a score null. Null means that the sample lacks what the verifier
//!   needs (no answer, or one that can't be read); a bad completion scores 0.
//! - The work on one sample is bounded by counts (bytes, depth, terms, bits, steps), never by time:
//!   the same text gives the same verdict on every machine.
//!
//! ```
//! use aha_reward::{Kind, NoBackends, Sample, Spec};
//!
//! let verifier = Spec::new(Kind::Math).unwrap().resolve(&NoBackends).ok().unwrap();
//! let sample = Sample {
//!     completion: r"<think>3 of 6</think> <answer>\frac{1}{2}</answer>",
//!     answer: Some("0.5"),
//!     ..Sample::default()
//! };
//! assert_eq!(verifier.score(&sample).score, Some(1.0));
//! ```

pub mod verifier;

pub mod spec;

pub mod backend;

pub mod composite;

pub mod extract;

pub mod math;

pub mod format;

pub mod length;

pub mod pattern;

pub mod exact;

pub mod model;

pub mod text;

pub mod grade;

pub mod error;

pub use backend::{Backends, NoBackends};
pub use composite::{Composite, OnNull, Scored};
pub use error::Error;
pub use extract::{extract_boxed, extract_tag};
pub use math::math_equal;
pub use spec::{Problem, Settings, Spec};
pub use text::{language_share, reflection_count};
pub use verifier::{Kind, Sample, Verdict, Verifier};
