//! `kind = "model"`: what does a trained preference model think of the completion?
//!
//! `score = scale * s`, or with `normalise` `scale * (s - mean) / std`: `s` is the model's own score of prompt
//! and completion, joined by the template that it was trained with; mean and std are those of its scores over
//! the pairs that it was trained on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Backends, PreferenceModel};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// The score of a preference model. It has no bounds of its own: `clip` gives it some.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The reward model: one of `[models]`, or an earlier stage of kind `reward-model`. No default.
    pub model: Option<String>,
    /// Factor of the score, ahead of `clip`; finite. Default 1.
    pub scale: f32,
    /// Whether the mean is taken off the score, and the rest divided by the standard deviation, both of the
    /// pairs that the model was trained on, so that models with other ranges of scores want the same weight.
    /// Default false: the model's own score.
    pub normalise: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { model: None, scale: 1.0, normalise: false }
    }
}

impl Resolve for Settings {
    fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        if !self.scale.is_finite() {
            problems.push(Problem::new("scale", "a finite number", self.scale.to_string()));
        }
        let Some(name) = &self.model else {
            problems.push(Problem::missing("model"));
            return Err(problems);
        };
        let model = match backends.preference_model(name) {
            Ok(model) => model,
            Err(why) => {
                problems.push(Problem::new("model", "the name of a reward model", why));
                return Err(problems);
            }
        };
        let moments = if self.normalise { model.moments() } else { Some([0.0, 1.0]) };
        let Some([mean, std]) = moments else {
            let got = format!("true, but `{name}` was saved without the mean of its scores");
            problems.push(Problem::new("normalise", "false", got));
            return Err(problems);
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        // Scores that are all the same say nothing about how far apart others are.
        let factor = if std > 0.0 { self.scale / std } else { self.scale };
        Ok(Box::new(Preference { model, mean, factor }))
    }
}

/// See [`Settings`].
pub struct Preference {
    /// Scores text.
    pub model: Arc<dyn PreferenceModel>,
    /// Taken off the model's score.
    pub mean: f32,
    /// Factor of what is left.
    pub factor: f32,
}

impl Verifier for Preference {
    fn kind(&self) -> Kind {
        Kind::Model
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let mut verdicts = self.score_all(std::slice::from_ref(sample));
        verdicts.pop().unwrap_or_else(|| Verdict::unscored("the model gave no score"))
    }

    fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let verdict = |score: Result<f32, String>| match score {
            // Looked at when it is scaled: a score that is too large for that is as little use as none.
            Ok(score) => match self.factor * (score - self.mean) {
                scaled if scaled.is_finite() => {
                    Verdict::scored(scaled, format!("the model says {score}"))
                }
                scaled => {
                    Verdict::unscored(format!("the model's score is {score}, scaled {scaled}"))
                }
            },
            Err(why) => Verdict::unscored(why),
        };
        self.model.scores(samples).into_iter().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ChatModel, NoBackends};

    /// Scores a completion by its bytes; empty ones not at all.
    struct Bytes(Option<[f32; 2]>);

    impl PreferenceModel for Bytes {
        fn scores(&self, samples: &[Sample<'_>]) -> Vec<Result<f32, String>> {
            let score = |sample: &Sample<'_>| match sample.completion {
                "" => Err("nothing to score".to_owned()),
                "nan" => Ok(f32::NAN),
                text => Ok(text.len() as f32),
            };
            samples.iter().map(score).collect()
        }

        fn moments(&self) -> Option<[f32; 2]> {
            self.0
        }
    }

    struct Lender(Option<[f32; 2]>);

    impl Backends for Lender {
        fn preference_model(&self, _: &str) -> Result<Arc<dyn PreferenceModel>, String> {
            Ok(Arc::new(Bytes(self.0)))
        }

        fn chat_model(&self, name: &str, _: usize, _: f64) -> Result<Arc<dyn ChatModel>, String> {
            Err(format!("`{name}`, a reward model"))
        }
    }

    fn resolve(json: &str, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<String>> {
        let settings: Settings = serde_json::from_str(json).unwrap();
        let told = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect();
        settings.resolve(backends).map_err(told)
    }

    fn scores(verifier: &dyn Verifier, completions: &[&str]) -> Vec<Option<f32>> {
        let samples: Vec<Sample<'_>> = completions
            .iter()
            .map(|&completion| Sample { completion, ..Sample::default() })
            .collect();
        let together: Vec<_> = verifier.score_all(&samples).iter().map(|v| v.score).collect();
        let alone: Vec<_> = samples.iter().map(|sample| verifier.score(sample).score).collect();
        assert_eq!(together, alone);
        together
    }

    #[test]
    fn the_score_is_the_models_scaled_and_normalised_as_set() {
        let texts = ["abcde", "", "a", "nan"];
        let plain = resolve(r#"{"model":"rm"}"#, &Lender(None)).ok().unwrap();
        assert_eq!(scores(&*plain, &texts), [Some(5.0), None, Some(1.0), None]);
        let json = r#"{"model":"rm","normalise":true,"scale":4.0}"#;
        let normal = resolve(json, &Lender(Some([3.0, 2.0]))).ok().unwrap();
        assert_eq!(scores(&*normal, &texts), [Some(4.0), None, Some(-4.0), None]);
        let flat = resolve(json, &Lender(Some([3.0, 0.0]))).ok().unwrap();
        assert_eq!(scores(&*flat, &["abcde"]), [Some(8.0)]);
    }

    #[test]
    fn a_score_that_scaling_makes_no_number_is_none() {
        // The least number there is: one divided by it is infinite.
        let json = r#"{"model":"rm","normalise":true}"#;
        let tiny = resolve(json, &Lender(Some([1.0, f32::from_bits(1)]))).ok().unwrap();
        assert_eq!(scores(&*tiny, &["a", "abc"]), [None, None]);
        let large = resolve(r#"{"model":"rm","scale":3e38}"#, &Lender(None)).ok().unwrap();
        assert_eq!(scores(&*large, &["a", "abc"]), [Some(3e38), None]);
    }

    #[test]
    fn a_model_that_cannot_serve_is_a_problem_of_its_key() {
        let refused = |json, backends: &dyn Backends| resolve(json, backends).err().unwrap();
        assert_eq!(refused("{}", &Lender(None)), ["`model` must be given, not absent"]);
        let lent = refused(r#"{"model":"rm"}"#, &NoBackends);
        assert_eq!(
            lent,
            [
                "`model` must be the name of a reward model, not `rm`, which only a pipeline can lend"
            ]
        );
        let normal = refused(r#"{"model":"rm","normalise":true}"#, &Lender(None));
        assert!(
            normal[0].starts_with("`normalise` must be false, not true, but `rm`"),
            "{normal:?}"
        );
    }
}
