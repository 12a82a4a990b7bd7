//! Verifiers that turn a completion into a score.
//!
//! # Map
//! - [`verifier`]: [`Verifier`], what it reads ([`Sample`]) and what it says ([`Verdict`]); start here.
//! - [`spec`]: [`Spec`], a reward as the pipeline file has it; `resolve` makes a [`Verifier`] of it.
//! - [`backend`]: what a verifier borrows from whoever has it, such as models.
//! - [`composite`]: [`Composite`], the weighted sum of several rewards, one column each.
//! - [`extract`]: where in a completion the final answer is; an ordered list of strategies.
//! - [`math`]: are two answers the same number, expression or list? Lexer, parser, exact values.
//! - [`mod@code`]: does a program pass its tests? Runs it in `aha-sandbox`.
//! - [`countdown`]: does an expression reach its target with the given numbers?
//! - `prose`: the words of a text, without its maths and code.
//! - [`mod@format`], [`language`], [`length`], [`overlong`], [`repetition`], [`pattern`], [`exact`], [`numeric`],
//!   [`choice`], [`json_schema`]: the other verifiers, a file each.
//! - [`judge`], [`http`], [`command`]: those that wait for a language model, a service, a program; [`wait`] is
//!   what they share.
//! - [`model`]: the score of a trained preference model, which a backend lends.
//! - [`text`]: words, and those of reflection, for queries and reports.
//! - [`grade`]: JSON lines in, verdicts out.
//! - [`error`]: what can go wrong outside a verdict.
//!
//! # Invariants
//! - A verifier is a pure function of its sample: no clock, no randomness, no file, no state. One that runs
//!   programs is, as far as they are and keep clear of their limits. Those that wait for others are functions
//!   of the sample and of what was answered, which is kept: asked the same again, also after a kill, they say
//!   the same.
//! - A completion never makes a score null. Null means that the sample lacks what the verifier
//!   needs (no answer, or one that can't be read); a bad completion scores 0. Only of those that wait for
//!   others null also means that they failed.
//! - The work on one sample is bounded by counts (bytes, depth, terms, bits, steps), never by time:
//!   the same text gives the same verdict on every machine. Waits are bounded by time.
//!
//! ```
//! use aha_reward::{Kind, NoBackends, Sample, Spec};
//!
//! let verifier = Spec::new(Kind::Math).resolve(&NoBackends).ok().unwrap();
//! let sample = Sample {
//!     completion: r"<think>3 of 6</think> <answer>\frac{1}{2}</answer>",
//!     answer: Some("0.5"),
//!     ..Sample::default()
//! };
//! assert_eq!(verifier.score(&sample).score, Some(1.0));
//! ```

pub mod verifier;

pub mod spec;

pub mod written;

pub mod backend;

pub mod composite;

pub mod extract;

pub mod math;

pub mod code;

pub mod countdown;

pub mod format;

mod prose;

pub mod language;

pub mod length;

pub mod overlong;

pub mod repetition;

pub mod pattern;

pub mod exact;

pub mod numeric;

pub mod choice;

pub mod json_schema;

pub mod judge;

pub mod http;

pub mod command;

pub mod wait;

pub mod model;

pub mod text;

pub mod grade;

pub mod error;

pub use backend::{Backends, NoBackends};
pub use choice::choice_letter;
pub use composite::{Composite, OnNull, Scored};
pub use error::Error;
pub use extract::{extract_boxed, extract_tag};
pub use format::has_format;
pub use language::language_share;
pub use math::math_equal;
pub use numeric::numeric_equal;
pub use repetition::repetition_share;
pub use spec::{Problem, Settings, Spec};
pub use text::{reflection_count, word_count};
pub use verifier::{Kind, Sample, Verdict, Verifier};
pub use written::Written;
