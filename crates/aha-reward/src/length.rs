//! `kind = "length"`: is the completion as long as it should be?

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// How the score follows from the length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// 1 within [`min_tokens`, `max_tokens`]; outside it falls in a straight line to 0 over `ramp_tokens`.
    #[default]
    Plateau,
    /// Along half a cosine from the first to the second value of `right` or `wrong`, whichever the answer is,
    /// as the length goes from 0 to `max_tokens`; `exceeded` from there on. Yeo et al. 2025, "Demystifying
    /// Long Chain-of-Thought Reasoning in LLMs", eq. 1.
    Cosine,
}

/// By the completion's tokens: within bounds (`plateau`), or short if right and long if wrong (`cosine`).
///
/// With `t` the tokens, `T = max_tokens` and `[a, b]` one of `right` and `wrong`, the cosine form is
/// `b + (a - b)/2 · (1 + cos(π t / T))` for `t < T`. Whether the answer is right is read off another reward of
/// the list, so that no answer is verified twice; give that one weight 0 if only the length's score should
/// count.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// How the score follows from the length, `plateau` or `cosine`. Default `plateau`.
    pub form: Form,
    /// Plateau: fewest tokens with score 1. Default 0.
    pub min_tokens: usize,
    /// Plateau: most tokens with score 1, at least `min_tokens`. Cosine: tokens from which a completion has
    /// exceeded its length, at least 1. No default.
    pub max_tokens: Option<usize>,
    /// Plateau: tokens past a bound at which the score has fallen to 0. Default 0: at once.
    pub ramp_tokens: usize,
    /// Cosine: name of the reward, one before this in the list, that says whether the answer is right. No
    /// default.
    pub of: Option<String>,
    /// Cosine: least score of that reward that counts as right. Default 1.
    pub right_from: f32,
    /// Cosine: score of a right answer with no tokens, and of one with `max_tokens`. Default `[2.0, 1.0]`, as
    /// published: the shorter the better.
    pub right: [f32; 2],
    /// Cosine: the same of a wrong answer. Default `[-10.0, 0.0]`, as published: a wrong answer should have
    /// been thought about for longer.
    pub wrong: [f32; 2],
    /// Cosine: score from `max_tokens` on. Default -10, as published.
    pub exceeded: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            form: Form::default(),
            min_tokens: 0,
            max_tokens: None,
            ramp_tokens: 0,
            of: None,
            right_from: 1.0,
            right: [2.0, 1.0],
            wrong: [-10.0, 0.0],
            exceeded: -10.0,
        }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        match self.form {
            Form::Plateau => self.plateau(),
            Form::Cosine => self.cosine(),
        }
    }

    fn of(&self) -> Option<&str> {
        self.of.as_deref()
    }
}

impl Settings {
    fn plateau(&self) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        if let Some(of) = &self.of {
            problems.push(Problem::new(
                "of",
                "absent unless `form` is \"cosine\"",
                format!("`{of}`"),
            ));
        }
        let &Settings { min_tokens, max_tokens, ramp_tokens, .. } = self;
        match max_tokens {
            None => problems.push(Problem::missing("max_tokens")),
            Some(max_tokens) if max_tokens < min_tokens => {
                let must = format!("at least `min_tokens`, {min_tokens}");
                problems.push(Problem::new("max_tokens", must, max_tokens.to_string()));
            }
            Some(max_tokens) if problems.is_empty() => {
                return Ok(Box::new(Length { min_tokens, max_tokens, ramp_tokens }));
            }
            Some(_) => {}
        }
        Err(problems)
    }

    fn cosine(&self) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        for (key, tokens) in [("min_tokens", self.min_tokens), ("ramp_tokens", self.ramp_tokens)] {
            if tokens > 0 {
                let must = "absent unless `form` is \"plateau\"";
                problems.push(Problem::new(key, must, tokens.to_string()));
            }
        }
        if self.of.is_none() {
            problems.push(Problem::missing("of"));
        }
        let numbers = [
            ("right_from", vec![self.right_from]),
            ("right", self.right.to_vec()),
            ("wrong", self.wrong.to_vec()),
            ("exceeded", vec![self.exceeded]),
        ];
        for (key, values) in numbers {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                problems.push(Problem::new(key, "finite", value.to_string()));
            }
        }
        match self.max_tokens {
            None => problems.push(Problem::missing("max_tokens")),
            Some(0) => problems.push(Problem::new("max_tokens", "at least 1", "0")),
            Some(max_tokens) if problems.is_empty() => {
                let &Settings { right_from, right, wrong, exceeded, .. } = self;
                return Ok(Box::new(Cosine { max_tokens, right_from, right, wrong, exceeded }));
            }
            Some(_) => {}
        }
        Err(problems)
    }
}

/// See [`Form::Plateau`].
pub struct Length {
    /// Fewest tokens with score 1.
    pub min_tokens: usize,
    /// Most tokens with score 1.
    pub max_tokens: usize,
    /// Tokens past a bound at which the score reaches 0; 0 for at once.
    pub ramp_tokens: usize,
}

impl Verifier for Length {
    fn kind(&self) -> Kind {
        Kind::Length
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let len_tokens = sample.completion_len_tokens;
        let too_few = self.min_tokens.saturating_sub(len_tokens);
        let too_many = len_tokens.saturating_sub(self.max_tokens);
        let reason = match (too_few, too_many) {
            (0, 0) => return Verdict::scored(1.0, format!("{len_tokens} tokens")),
            (0, _) => format!("{len_tokens} tokens, {too_many} too many"),
            _ => format!("{len_tokens} tokens, {too_few} too few"),
        };
        let past = too_few.max(too_many);
        let left = self.ramp_tokens.saturating_sub(past);
        // With no ramp nothing is left, and the divisor doesn't matter.
        Verdict::scored(left as f32 / self.ramp_tokens.max(1) as f32, reason)
    }
}

/// See [`Form::Cosine`].
pub struct Cosine {
    /// Tokens from which a completion has exceeded its length; at least 1.
    pub max_tokens: usize,
    /// Least score of the base that counts as right.
    pub right_from: f32,
    /// Score of a right answer with no tokens, and with all.
    pub right: [f32; 2],
    /// Score of a wrong answer, likewise.
    pub wrong: [f32; 2],
    /// Score from `max_tokens` on.
    pub exceeded: f32,
}

impl Cosine {
    fn verdict(&self, len_tokens: usize, base: Option<f32>) -> Verdict {
        let Some(base) = base else {
            return Verdict::unscored("the reward that it is built on has no score");
        };
        if len_tokens >= self.max_tokens {
            return Verdict::scored(self.exceeded, format!("{len_tokens} tokens, too many"));
        }
        let (word, [first, last]) =
            if base >= self.right_from { ("right", self.right) } else { ("wrong", self.wrong) };
        let (first, last) = (f64::from(first), f64::from(last));
        let way = len_tokens as f64 / self.max_tokens as f64;
        let score = last + 0.5 * (first - last) * (1.0 + (PI * way).cos());
        Verdict::scored(score as f32, format!("{word} in {len_tokens} tokens"))
    }
}

impl Verifier for Cosine {
    fn kind(&self) -> Kind {
        Kind::Length
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        self.verdict(sample.completion_len_tokens, None)
    }

    fn score_built(&self, samples: &[Sample<'_>], bases: &[Option<f32>]) -> Vec<Verdict> {
        let each = samples.iter().zip(bases);
        each.map(|(sample, base)| self.verdict(sample.completion_len_tokens, *base)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_falls_in_a_straight_line_outside_of_the_bounds() {
        let ramp = Length { min_tokens: 10, max_tokens: 20, ramp_tokens: 4 };
        let step = Length { min_tokens: 10, max_tokens: 20, ramp_tokens: 0 };
        let cases = [
            (5, 0.0, 0.0),
            (6, 0.0, 0.0),
            (8, 0.5, 0.0),
            (9, 0.75, 0.0),
            (10, 1.0, 1.0),
            (20, 1.0, 1.0),
            (21, 0.75, 0.0),
            (24, 0.0, 0.0),
            (100, 0.0, 0.0),
        ];
        for (completion_len_tokens, with_ramp, without) in cases {
            let sample = Sample { completion_len_tokens, ..Sample::default() };
            assert_eq!(ramp.score(&sample).score, Some(with_ramp), "{completion_len_tokens}");
            assert_eq!(step.score(&sample).score, Some(without), "{completion_len_tokens}");
        }
    }

    #[test]
    fn right_answers_are_better_short_and_wrong_ones_long() {
        let cosine = Cosine {
            max_tokens: 300,
            right_from: 0.5,
            right: [2.0, 1.0],
            wrong: [-10.0, 0.0],
            exceeded: -4.0,
        };
        // cos(π/3) = 1/2, so a third of the way is a quarter of the fall.
        let cases = [
            (0, 1.0, 2.0),
            (100, 1.0, 1.75),
            (150, 0.5, 1.5),
            (200, 1.0, 1.25),
            (300, 1.0, -4.0),
            (0, 0.0, -10.0),
            (100, 0.4, -7.5),
            (200, 0.0, -2.5),
            (9999, 0.0, -4.0),
        ];
        for (tokens, base, want) in cases {
            let got = cosine.verdict(tokens, Some(base)).score.unwrap();
            assert!((got - want).abs() < 1e-6, "{tokens} {base}: {got}, not {want}");
        }
        assert_eq!(cosine.score(&Sample::default()).score, None);
    }

    #[test]
    fn keys_of_the_other_form_are_refused() {
        let keys = |json: &str| -> Vec<String> {
            let settings: Settings = serde_json::from_str(json).unwrap();
            let problems = settings.resolve(&crate::NoBackends).err().unwrap_or_default();
            problems.into_iter().map(|problem| problem.key).collect()
        };
        assert_eq!(keys(r#"{"max_tokens":5,"of":"math"}"#), ["of"]);
        assert_eq!(keys(r#"{"form":"cosine"}"#), ["of", "max_tokens"]);
        let both = r#"{"form":"cosine","of":"math","min_tokens":1,"ramp_tokens":1,"max_tokens":0}"#;
        assert_eq!(keys(both), ["min_tokens", "ramp_tokens", "max_tokens"]);
        assert!(keys(r#"{"form":"cosine","of":"math","max_tokens":9}"#).is_empty());
    }
}
