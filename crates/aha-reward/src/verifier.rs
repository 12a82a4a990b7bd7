//! The interface of every reward: a [`Sample`] in, a [`Verdict`] out.

use serde::{Deserialize, Serialize};

/// Scores completions. One verifier serves every thread.
pub trait Verifier: Send + Sync {
    /// Which reward this is.
    fn kind(&self) -> Kind;
    /// Scores one completion; never panics and never fails, whatever the completion holds.
    fn score(&self, sample: &Sample<'_>) -> Verdict;

    /// Scores several, in order, each as [`Verifier::score`] would. One that waits for others (programs,
    /// servers) has several under way at once.
    fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        samples.iter().map(|sample| self.score(sample)).collect()
    }

    /// Scores several, as [`Verifier::score_all`] does, where the reward is built on the score of another
    /// ([`Settings::of`]): `bases` has that for each sample.
    ///
    /// [`Settings::of`]: crate::spec::Settings::of
    fn score_built(&self, samples: &[Sample<'_>], bases: &[Option<f32>]) -> Vec<Verdict> {
        assert_eq!(samples.len(), bases.len(), "a base for each sample");
        self.score_all(samples)
    }

    /// How many calls it can usefully have at a time, where that is more than there are cores: it waits more
    /// than it computes.
    fn parallel_count(&self) -> usize {
        1
    }
}

/// What a verifier may read of a completion.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// The prompt as the data set states it, before any template.
    pub prompt: &'a str,
    /// What the model wrote.
    pub completion: &'a str,
    /// The right answer, where the data set has one.
    pub answer: Option<&'a str>,
    /// The tests of a coding problem as JSON, where the data set has them.
    pub tests: Option<&'a str>,
    /// Where the problem is from, where the data set says it. It decides which rewards are applied.
    pub source: Option<&'a str>,
    /// Tokens in the completion, the end token included.
    pub completion_len_tokens: usize,
    /// Whether the completion was cut off by its limit.
    pub is_truncated: bool,
}

/// What a verifier says about a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The score, usually in [0, 1]; null where the sample could not be scored.
    pub score: Option<f32>,
    /// Why, in a few words; holds no more than a short excerpt of the completion.
    pub reason: String,
}

impl Verdict {
    /// A score with its reason.
    pub fn scored(score: f32, reason: impl Into<String>) -> Self {
        Self { score: Some(score), reason: reason.into() }
    }

    /// No score: the sample lacks what the verifier needs.
    pub fn unscored(reason: impl Into<String>) -> Self {
        Self { score: None, reason: reason.into() }
    }
}

/// The kinds of reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "a variant is the name a pipeline file has; `spec` documents it")]
pub enum Kind {
    Math,
    Format,
    Code,
    Countdown,
    Language,
    Length,
    Overlong,
    Repetition,
    Regex,
    Exact,
    Numeric,
    Choice,
    JsonSchema,
    Judge,
    Model,
    Command,
    Http,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Kind; 17] = [
        Kind::Math,
        Kind::Format,
        Kind::Code,
        Kind::Countdown,
        Kind::Language,
        Kind::Length,
        Kind::Overlong,
        Kind::Repetition,
        Kind::Regex,
        Kind::Exact,
        Kind::Numeric,
        Kind::Choice,
        Kind::JsonSchema,
        Kind::Judge,
        Kind::Model,
        Kind::Command,
        Kind::Http,
    ];

    /// The name in pipeline files, and the end of the column `reward_NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Math => "math",
            Kind::Format => "format",
            Kind::Code => "code",
            Kind::Countdown => "countdown",
            Kind::Language => "language",
            Kind::Length => "length",
            Kind::Overlong => "overlong",
            Kind::Repetition => "repetition",
            Kind::Regex => "regex",
            Kind::Exact => "exact",
            Kind::Numeric => "numeric",
            Kind::Choice => "choice",
            Kind::JsonSchema => "json_schema",
            Kind::Judge => "judge",
            Kind::Model => "model",
            Kind::Command => "command",
            Kind::Http => "http",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it compares with the sample's answer and so can't do without one.
    pub fn needs_answer(self) -> bool {
        matches!(self, Kind::Math | Kind::Exact | Kind::Numeric | Kind::Choice)
    }

    /// Whether it reads the sample's tests and so can't do without them.
    pub fn needs_tests(self) -> bool {
        matches!(self, Kind::Code | Kind::Countdown)
    }

    /// Whether it waits for others (services, programs), whose answers have to be kept: asked again they may
    /// be different.
    pub fn waits(self) -> bool {
        matches!(self, Kind::Code | Kind::Judge | Kind::Command | Kind::Http)
    }

    /// Whether it counts the completion's tokens, which text alone doesn't have.
    pub fn needs_tokens(self) -> bool {
        matches!(self, Kind::Length | Kind::Overlong)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// At most 60 characters of `text` on one line, for a reason.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String =
        text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name_in_serde_and_here() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
    }

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        let short = excerpt(&"é\n".repeat(1000));
        assert_eq!(short.chars().count(), 61);
        assert!(!short.contains('\n'));
        assert_eq!(excerpt("5"), "5");
    }
}
