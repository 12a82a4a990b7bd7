//! Several rewards as one: the weighted sum with its gates and bounds, and every part a column.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Backends, ChatModel, PreferenceModel};
use crate::spec::{Common, Problem, Spec};
use crate::verifier::{Sample, Verdict, Verifier};
use crate::wait::Waiting;

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
struct Part {
    name: String,
    common: Common,
    verifier: Box<dyn Verifier>,
    /// The part before it that it is built on.
    base_idx: Option<usize>,
}

/// A weighted sum of rewards, some of which may be gates of the others.
///
/// With `s_i` the score of part `i` within its `clip`, `w_i` its weight, and `open` where every part with a
/// gate has at least that score: `total = Σ_i w_i · s_i` if `open`; else parts without a gate add no more than
/// 0, so that their penalties stay. A part that isn't for the sample's source is no part of its sum and gates nothing.
/// The total is then taken into its own bounds, where there are any.
pub struct Composite {
    parts: Vec<Part>,
    on_null: OnNull,
    clip: Option<[f32; 2]>,
}

/// What a [`Composite`] says about a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The reward; null where a part is null and doesn't count as 0.
    pub total: Option<f32>,
    /// Each part's score before clip, gate and weight, in the order of [`Composite::names`]; null as well for a part
    /// that isn't for the sample's source.
    pub parts: Vec<Option<f32>>,
    /// Each part's reason, likewise; empty where it wasn't applied.
    pub reasons: Vec<String>,
    /// Why parts are null, `NAME: reason` each; null where none is that was applied.
    pub error: Option<String>,
    /// Whether the run must stop for it.
    pub must_stop: bool,
}

impl Composite {
    /// Resolves every reward. The index in an error is the reward's place in `specs`; a problem with all of
    /// them has index 0. `on_null` is for parts that don't say it themselves, `clip` bounds the total.
    pub fn new(
        specs: &[Spec],
        on_null: OnNull,
        clip: Option<[f32; 2]>,
        backends: &dyn Backends,
    ) -> Result<Self, Vec<(usize, Problem)>> {
        let mut problems = Vec::new();
        let mut parts = Vec::new();
        let mut names = BTreeSet::new();
        if specs.is_empty() {
            problems.push((0, Problem::new("rewards", "at least one reward", "empty")));
        }
        for (idx, spec) in specs.iter().enumerate() {
            let name = spec.column_name().to_owned();
            if !names.insert(name.clone()) {
                let got = format!("`{name}` again");
                problems.push((idx, Problem::new("name", "distinct among the rewards", got)));
            }
            let base_idx = match spec.base_among(specs[..idx].iter().map(Spec::column_name)) {
                Ok(base_idx) => base_idx,
                Err(problem) => {
                    problems.push((idx, problem));
                    None
                }
            };
            let on_null = spec.common.on_null.unwrap_or(on_null);
            match spec.resolve(&PartBackends { backends, on_null }) {
                Ok(verifier) => {
                    parts.push(Part { name, common: spec.common.clone(), verifier, base_idx });
                }
                Err(more) => problems.extend(more.into_iter().map(|problem| (idx, problem))),
            }
        }
        if problems.is_empty() { Ok(Self { parts, on_null, clip }) } else { Err(problems) }
    }

    /// The parts' names, in order; the columns are `reward_NAME`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.name.as_str())
    }

    /// How many calls of [`Composite::score_all`] it can usefully have at a time, if more than there are cores.
    pub fn parallel_count(&self) -> usize {
        self.parts.iter().map(|part| part.verifier.parallel_count()).max().unwrap_or(1)
    }

    /// Scores one completion.
    pub fn score(&self, sample: &Sample<'_>) -> Scored {
        let mut scored = self.score_all(std::slice::from_ref(sample));
        scored.pop().expect("a sample has its scores")
    }

    /// Whether a part is applied to completions of prompts from `source`.
    pub fn is_applied(&self, part_idx: usize, source: Option<&str>) -> bool {
        let part = &self.parts[part_idx];
        let base = part.base_idx;
        part.common.is_for(source) && base.is_none_or(|base| self.is_applied(base, source))
    }

    /// Whether any part is applied to completions of prompts from `source`.
    pub fn covers(&self, source: Option<&str>) -> bool {
        (0..self.parts.len()).any(|part| self.is_applied(part, source))
    }

    /// Scores several, in order, each as [`Composite::score`] would.
    pub fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Scored> {
        let unapplied = || samples.iter().map(|_| None).collect::<Vec<Option<Verdict>>>();
        let mut by_part: Vec<Vec<Option<Verdict>>> = Vec::with_capacity(self.parts.len());
        for (part_idx, part) in self.parts.iter().enumerate() {
            let applied: Vec<usize> = (0..samples.len())
                .filter(|&at| self.is_applied(part_idx, samples[at].source))
                .collect();
            let asked: Vec<Sample<'_>> = applied.iter().map(|&at| samples[at]).collect();
            let verdicts = match part.base_idx {
                _ if asked.is_empty() => Vec::new(),
                Some(base) => {
                    let score = |&at: &usize| by_part[base][at].as_ref()?.score;
                    part.verifier
                        .score_built(&asked, &applied.iter().map(score).collect::<Vec<_>>())
                }
                None => part.verifier.score_all(&asked),
            };
            assert_eq!(verdicts.len(), asked.len(), "a verdict for each sample");
            let mut of_part = unapplied();
            for (at, verdict) in applied.into_iter().zip(verdicts) {
                of_part[at] = Some(verdict);
            }
            by_part.push(of_part);
        }
        let verdicts = |at: usize| by_part.iter_mut().map(|part| part[at].take()).collect();
        (0..samples.len()).map(verdicts).map(|verdicts| self.whole(verdicts)).collect()
    }

    /// What the parts' verdicts make together; none for a part that isn't applied.
    fn whole(&self, verdicts: Vec<Option<Verdict>>) -> Scored {
        let parts = || {
            let applied = |(part, verdict)| Some((part, Option::as_ref(verdict)?));
            self.parts.iter().zip(&verdicts).filter_map(applied)
        };
        let (mut errors, mut is_unknown, mut must_stop) = (Vec::new(), false, false);
        for (part, verdict) in parts().filter(|(_, verdict)| verdict.score.is_none()) {
            errors.push(format!("{}: {}", part.name, verdict.reason));
            let on_null = part.common.on_null.unwrap_or(self.on_null);
            is_unknown |= on_null != OnNull::Zero;
            must_stop |= on_null == OnNull::Stop;
        }
        if parts().next().is_none() {
            errors.push("no reward is for the source of the prompt".to_owned());
            is_unknown = true;
        }
        let is_open = parts().all(|(part, verdict)| match part.common.gate {
            Some(gate) => clipped(verdict.score.unwrap_or(0.0), part.common.clip) >= gate,
            None => true,
        });
        let counted = |(part, verdict): (&Part, &Verdict)| {
            let share = part.common.weight * clipped(verdict.score?, part.common.clip);
            // A closed gate takes away what would be earned, and no penalty.
            Some(if is_open || part.common.gate.is_some() { share } else { share.min(0.0) })
        };
        let total: f32 = parts().filter_map(counted).sum();
        Scored {
            total: (!is_unknown).then(|| clipped(total, self.clip)),
            parts: verdicts.iter().map(|verdict| verdict.as_ref()?.score).collect(),
            reasons: verdicts
                .into_iter()
                .map(|verdict| verdict.map(|verdict| verdict.reason).unwrap_or_default())
                .collect(),
            error: (!errors.is_empty()).then(|| errors.join("; ")),
            must_stop,
        }
    }
}

/// What is lent, to a part of which a null has these consequences.
struct PartBackends<'a> {
    backends: &'a dyn Backends,
    on_null: OnNull,
}

impl Backends for PartBackends<'_> {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        self.backends.preference_model(name)
    }

    fn chat_model(
        &self,
        name: &str,
        max_tokens: usize,
        temperature: f64,
    ) -> Result<Arc<dyn ChatModel>, String> {
        self.backends.chat_model(name, max_tokens, temperature)
    }

    fn waiting(&self) -> Waiting {
        Waiting { keeps_failures: self.on_null != OnNull::Stop, ..self.backends.waiting() }
    }

    fn variable(&self, name: &str) -> Result<String, String> {
        self.backends.variable(name)
    }
}

/// The score, or the bound that it is past.
fn clipped(score: f32, clip: Option<[f32; 2]>) -> f32 {
    clip.map_or(score, |[least, most]| score.clamp(least, most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NoBackends;
    use crate::verifier::Kind;

    fn specs() -> Vec<Spec> {
        let texts = [
            r#"{"kind":"math"}"#,
            r#"{"kind":"format","weight":0.25}"#,
            r#"{"kind":"length","name":"short","weight":-0.5,"max_tokens":4}"#,
        ];
        texts.map(|json| serde_json::from_str(json).unwrap()).to_vec()
    }

    fn composite(specs: &[Spec], on_null: OnNull) -> Composite {
        Composite::new(specs, on_null, None, &NoBackends).ok().unwrap()
    }

    const SAMPLE: Sample<'_> = Sample {
        prompt: "2 + 3?",
        completion: "<think>a</think><answer>5</answer>",
        answer: Some("5"),
        tests: None,
        source: None,
        completion_len_tokens: 3,
        is_truncated: false,
    };

    #[test]
    fn the_total_is_the_weighted_sum() {
        let composite = composite(&specs(), OnNull::Drop);
        assert_eq!(composite.names().collect::<Vec<_>>(), ["math", "format", "short"]);
        let scored = composite.score(&SAMPLE);
        assert_eq!(scored.total, Some(0.75));
        assert_eq!(scored.parts, [Some(1.0), Some(1.0), Some(1.0)]);
        assert_eq!(scored.error, None);
        let wrong = composite.score(&Sample { answer: Some("6"), ..SAMPLE });
        assert_eq!(wrong.total, Some(-0.25));
        assert_eq!(wrong.reasons[0], "5 is not 6");
        let both = composite.score_all(&[SAMPLE, Sample { answer: Some("6"), ..SAMPLE }]);
        assert_eq!(both, [scored, wrong]);
    }

    #[test]
    fn below_a_gate_only_gates_and_penalties_count() {
        let mut specs = specs();
        specs[1].common.gate = Some(1.0);
        let composite = composite(&specs, OnNull::Drop);
        assert_eq!(composite.score(&SAMPLE).total, Some(0.75));
        let shapeless = composite.score(&Sample { completion: "<answer>5</answer>", ..SAMPLE });
        assert_eq!(shapeless.parts, [Some(1.0), Some(0.0), Some(1.0)]);
        assert_eq!(shapeless.total, Some(-0.5), "the penalty stays");
        // A gate that is open below its full score lets the others through.
        specs[1].common.gate = Some(0.0);
        let open = self::composite(&specs, OnNull::Drop);
        let total = open.score(&Sample { completion: "<answer>5</answer>", ..SAMPLE }).total;
        assert_eq!(total, Some(0.5));
    }

    #[test]
    fn scores_and_the_total_are_taken_into_their_bounds() {
        let mut specs = specs();
        specs[0].common.clip = Some([-0.5, 0.5]);
        assert_eq!(composite(&specs, OnNull::Drop).score(&SAMPLE).total, Some(0.25));
        let bounded = Composite::new(&specs, OnNull::Drop, Some([0.0, 0.125]), &NoBackends);
        assert_eq!(bounded.ok().unwrap().score(&SAMPLE).total, Some(0.125));
        // A gate looks at the score within its bounds: of the others the penalty is left.
        specs[0].common.gate = Some(0.75);
        assert_eq!(composite(&specs, OnNull::Drop).score(&SAMPLE).total, Some(0.0));
    }

    #[test]
    fn a_part_without_a_score_follows_the_policy() {
        let sample = Sample { answer: None, ..SAMPLE };
        for (on_null, total, must_stop) in [
            (OnNull::Drop, None, false),
            (OnNull::Zero, Some(-0.25), false),
            (OnNull::Stop, None, true),
        ] {
            let scored = composite(&specs(), on_null).score(&sample);
            assert_eq!((scored.total, scored.must_stop), (total, must_stop));
            assert_eq!(scored.parts, [None, Some(1.0), Some(1.0)]);
            assert_eq!(scored.error.as_deref(), Some("math: the sample has no answer"));
            // Its own policy is the one that counts.
            let mut specs = specs();
            specs[0].common.on_null = Some(OnNull::Zero);
            assert_eq!(composite(&specs, on_null).score(&sample).total, Some(-0.25));
        }
    }

    #[test]
    fn a_part_is_built_on_the_score_of_one_before_it() {
        let cosine = r#"{"kind":"length","form":"cosine","max_tokens":6,"of":"math"}"#;
        let cosine: Spec = serde_json::from_str(cosine).unwrap();
        let mut maths = Spec::new(Kind::Math);
        maths.common.weight = 0.0;
        let composite = composite(&[maths.clone(), cosine.clone()], OnNull::Drop);
        // Half of the way: between what the ends have.
        let right = composite.score(&SAMPLE);
        assert_eq!(right.parts, [Some(1.0), Some(1.5)]);
        assert_eq!(right.total, Some(1.5));
        let wrong = Sample { answer: Some("6"), ..SAMPLE };
        let unknown = Sample { answer: None, ..SAMPLE };
        assert_eq!(composite.score(&wrong).parts, [Some(0.0), Some(-5.0)]);
        assert_eq!(composite.score(&unknown).parts, [None, None]);
        let all = composite.score_all(&[unknown, SAMPLE, wrong]);
        assert_eq!(all[1], right);
        assert_eq!(all[2], composite.score(&wrong));
        for list in [vec![cosine.clone(), maths], vec![cosine]] {
            let problems = Composite::new(&list, OnNull::Drop, None, &NoBackends).err().unwrap();
            assert_eq!((problems.len(), problems[0].0), (1, 0));
            let must = "the name of a reward before this one";
            assert_eq!(problems[0].1, Problem::new("of", must, "`math`"));
        }
    }

    #[test]
    fn a_part_is_applied_to_its_sources_only() {
        let mut specs = specs();
        specs[0].common.sources = Some(vec!["sums".to_owned(), "algebra".to_owned()]);
        specs[1].common.sources = Some(vec!["sums".to_owned()]);
        specs[1].common.gate = Some(1.0);
        let composite = composite(&specs, OnNull::Stop);
        let from = |source| Sample { source, ..SAMPLE };
        let all = [from(Some("sums")), from(Some("algebra")), from(Some("chat")), from(None)];
        let scored = composite.score_all(&all);
        assert_eq!(scored[0], self::composite(&self::specs(), OnNull::Stop).score(&SAMPLE));
        assert_eq!(scored[1].parts, [Some(1.0), None, Some(1.0)]);
        assert_eq!((scored[1].total, &scored[1].error), (Some(0.5), &None));
        for (scored, sample) in scored.iter().zip(&all).skip(2) {
            assert_eq!(scored.parts, [None, None, Some(1.0)]);
            // What isn't applied is no error, closes no gate, and stops nothing.
            assert_eq!((scored.total, scored.must_stop), (Some(-0.5), false));
            assert_eq!((&scored.error, &composite.score(sample)), (&None, scored));
        }
        let shapeless =
            Sample { completion: "<answer>5</answer>", source: Some("algebra"), ..SAMPLE };
        assert_eq!(composite.score(&shapeless).total, Some(0.5), "the gate is for sums");
        // Without a reward for it, a completion has none.
        let only = self::composite(&specs[..2], OnNull::Zero);
        let uncovered = only.score(&from(Some("chat")));
        assert_eq!((uncovered.total, uncovered.must_stop), (None, false));
        assert!(uncovered.error.unwrap().contains("no reward is for the source"));
        assert!(only.covers(Some("algebra")) && !only.covers(Some("chat")) && !only.covers(None));
    }

    #[test]
    fn a_part_is_applied_where_the_one_is_that_it_is_built_on() {
        let mut maths = Spec::new(Kind::Math);
        maths.common.sources = Some(vec!["sums".to_owned()]);
        let cosine = r#"{"kind":"length","form":"cosine","max_tokens":6,"of":"math"}"#;
        let composite = composite(&[maths, serde_json::from_str(cosine).unwrap()], OnNull::Drop);
        let sums = Sample { source: Some("sums"), ..SAMPLE };
        assert_eq!(composite.score(&sums).parts, [Some(1.0), Some(1.5)]);
        assert!(composite.is_applied(1, Some("sums")) && !composite.covers(Some("chat")));
    }

    #[test]
    fn two_parts_with_one_name_are_refused() {
        let length = serde_json::from_str(r#"{"kind":"length"}"#).unwrap();
        let twice = [Spec::new(Kind::Math), Spec::new(Kind::Math), length];
        let problems = Composite::new(&twice, OnNull::Drop, None, &NoBackends).err().unwrap();
        let keys: Vec<_> = problems.iter().map(|(idx, p)| (*idx, p.key.as_str())).collect();
        assert_eq!(keys, [(1, "name"), (2, "max_tokens")]);
        assert_eq!(Composite::new(&[], OnNull::Drop, None, &NoBackends).err().unwrap().len(), 1);
    }
}
