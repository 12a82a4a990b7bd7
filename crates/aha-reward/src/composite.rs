//! Several rewards as one: the weighted sum, and every part a column.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::spec::{Problem, Spec};
use crate::verifier::{Kind, Sample, Verifier};

/// What happens to a completion of which a part could not be scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNull {
    /// It has no reward and is not trained on. The default: unscored is not wrong.
    #[default]
    Drop,
    /// The part counts as 0.
    Zero,
    /// It has no reward, and whoever reads [`Scored::must_stop`] stops the run.
    Stop,
}

/// One reward of a [`Composite`].
pub struct Part {
    /// The column is `reward_NAME`.
    pub name: String,
    /// Factor of the score in the sum.
    pub weight: f32,
    /// Gives the score.
    pub verifier: Box<dyn Verifier>,
}

/// A weighted sum of rewards.
pub struct Composite {
    parts: Vec<Part>,
    on_null: OnNull,
}

/// What a [`Composite`] says about a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The weighted sum; null where a part is null and doesn't count as 0.
    pub total: Option<f32>,
    /// Each part's score before its weight, in the order of [`Composite::names`].
    pub parts: Vec<Option<f32>>,
    /// Each part's reason, likewise.
    pub reasons: Vec<String>,
    /// Why parts are null, `NAME: reason` each; null where none is.
    pub error: Option<String>,
    /// Whether the run must stop for it.
    pub must_stop: bool,
}

impl Composite {
    /// Resolves every reward. The index in an error is the reward's place in `specs`; a problem with
    /// all of them has index 0.
    pub fn new(specs: &[Spec], on_null: OnNull) -> Result<Self, Vec<(usize, Problem)>> {
        let mut problems = Vec::new();
        let mut parts = Vec::new();
        let mut names = BTreeSet::new();
        if specs.is_empty() {
            let (must, got) = ("at least one reward".to_owned(), "empty".to_owned());
            problems.push((0, Problem { key: "rewards".to_owned(), must, got }));
        }
        for (idx, spec) in specs.iter().enumerate() {
            let name = spec.column_name().to_owned();
            if !names.insert(name.clone()) {
                let must = "distinct among the rewards".to_owned();
                let got = format!("`{name}` again");
                problems.push((idx, Problem { key: "name".to_owned(), must, got }));
            }
            match spec.resolve() {
                Ok(verifier) => {
                    parts.push(Part { name, weight: spec.weight.unwrap_or(1.0), verifier });
                }
                Err(more) => problems.extend(more.into_iter().map(|problem| (idx, problem))),
            }
        }
        if problems.is_empty() { Ok(Self { parts, on_null }) } else { Err(problems) }
    }

    /// The parts' names, in order; the columns are `reward_NAME`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.name.as_str())
    }

    /// The parts' kinds, in order.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.parts.iter().map(|part| part.verifier.kind())
    }

    /// Scores one completion.
    pub fn score(&self, sample: &Sample<'_>) -> Scored {
        let verdicts: Vec<_> = self.parts.iter().map(|part| part.verifier.score(sample)).collect();
        let mut total = 0.0;
        let mut errors = Vec::new();
        for (part, verdict) in self.parts.iter().zip(&verdicts) {
            match verdict.score {
                Some(score) => total += part.weight * score,
                None => errors.push(format!("{}: {}", part.name, verdict.reason)),
            }
        }
        let has_null = !errors.is_empty();
        let is_total_known = !has_null || self.on_null == OnNull::Zero;
        Scored {
            total: is_total_known.then_some(total),
            parts: verdicts.iter().map(|verdict| verdict.score).collect(),
            reasons: verdicts.into_iter().map(|verdict| verdict.reason).collect(),
            error: has_null.then(|| errors.join("; ")),
            must_stop: has_null && self.on_null == OnNull::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<Spec> {
        vec![
            Spec::new(Kind::Math),
            Spec { weight: Some(0.25), ..Spec::new(Kind::Format) },
            Spec {
                name: Some("short".to_owned()),
                weight: Some(-0.5),
                max_tokens: Some(4),
                ..Spec::new(Kind::Length)
            },
        ]
    }

    const SAMPLE: Sample<'_> = Sample {
        prompt: "2 + 3?",
        completion: "<think>a</think><answer>5</answer>",
        answer: Some("5"),
        tests: None,
        completion_len_tokens: 3,
        is_truncated: false,
    };

    #[test]
    fn the_total_is_the_weighted_sum() {
        let composite = Composite::new(&specs(), OnNull::Drop).unwrap();
        assert_eq!(composite.names().collect::<Vec<_>>(), ["math", "format", "short"]);
        let scored = composite.score(&SAMPLE);
        assert_eq!(scored.total, Some(0.75));
        assert_eq!(scored.parts, [Some(1.0), Some(1.0), Some(1.0)]);
        assert_eq!(scored.error, None);
        let wrong = composite.score(&Sample { answer: Some("6"), ..SAMPLE });
        assert_eq!(wrong.total, Some(-0.25));
        assert_eq!(wrong.reasons[0], "5 is not 6");
    }

    #[test]
    fn a_part_without_a_score_follows_the_policy() {
        let sample = Sample { answer: None, ..SAMPLE };
        for (on_null, total, must_stop) in [
            (OnNull::Drop, None, false),
            (OnNull::Zero, Some(-0.25), false),
            (OnNull::Stop, None, true),
        ] {
            let scored = Composite::new(&specs(), on_null).unwrap().score(&sample);
            assert_eq!((scored.total, scored.must_stop), (total, must_stop));
            assert_eq!(scored.parts, [None, Some(1.0), Some(1.0)]);
            assert_eq!(scored.error.as_deref(), Some("math: the sample has no answer"));
        }
    }

    #[test]
    fn two_parts_with_one_name_are_refused() {
        let twice = [Spec::new(Kind::Math), Spec::new(Kind::Math), Spec::new(Kind::Code)];
        let problems = Composite::new(&twice, OnNull::Drop).err().unwrap();
        let keys: Vec<_> = problems.iter().map(|(idx, p)| (*idx, p.key.as_str())).collect();
        assert_eq!(keys, [(1, "name"), (2, "kind")]);
        assert_eq!(Composite::new(&[], OnNull::Drop).err().unwrap().len(), 1);
    }
}
