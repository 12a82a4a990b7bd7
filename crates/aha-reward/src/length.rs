//! `kind = "length"`: is the completion neither too short nor too long?

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// 1 within [`min_tokens`, `max_tokens`]; outside it falls in a straight line to 0 over `ramp_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Fewest tokens with score 1. Default 0.
    pub min_tokens: usize,
    /// Most tokens with score 1, at least `min_tokens`. No default.
    pub max_tokens: Option<usize>,
    /// Tokens past a bound at which the score has fallen to 0. Default 0: at once.
    pub ramp_tokens: usize,
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let Some(max_tokens) = self.max_tokens else {
            return Err(vec![Problem::missing("max_tokens")]);
        };
        let &Settings { min_tokens, ramp_tokens, .. } = self;
        if max_tokens < min_tokens {
            let must = format!("at least `min_tokens`, {min_tokens}");
            return Err(vec![Problem::new("max_tokens", must, max_tokens.to_string())]);
        }
        Ok(Box::new(Length { min_tokens, max_tokens, ramp_tokens }))
    }
}

/// See [`Settings`].
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
}
