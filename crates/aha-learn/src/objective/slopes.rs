//! Gradients of tokens one by one, while the forward pass goes on.
//!
//! Most objectives are sums over tokens whose terms need no other token's log-prob: the head can then learn from a
//! token's logits as soon as it has them, and never computes them again.

use std::ops::Range;

use super::loss::token_slope;
use super::{Normaliser, Objective, RatioLevel, SequenceTerms};

/// The gradients of a micro-batch's tokens.
pub struct Slopes<'a> {
    objective: &'a Objective,
    sequences: Vec<Sequence<'a>>,
}

struct Sequence<'a> {
    terms: SequenceTerms<'a>,
    /// The places of its tokens.
    tokens: Range<usize>,
    weight: f64,
    dentropy: f32,
}

impl<'a> Slopes<'a> {
    /// Those of sequences that follow one another, whose log-probs don't matter yet, but for their number. None for an
    /// objective with a ratio or an importance weight of a whole completion, or with a teacher.
    pub fn of(
        objective: &'a Objective,
        sequences: &[SequenceTerms<'a>],
        normaliser: &Normaliser,
    ) -> Option<Slopes<'a>> {
        let levels = [objective.ratio, objective.importance_level];
        if levels != [RatioLevel::Token; 2] || objective.distill_coef != 0.0 {
            return None;
        }
        let mut start = 0;
        let sequence = |terms: &SequenceTerms<'a>| {
            let tokens = start..start + terms.logps.len();
            start = tokens.end;
            let len_tokens = terms.trained_len_tokens();
            Sequence {
                terms: *terms,
                tokens,
                weight: normaliser.token_weight(len_tokens),
                dentropy: (-objective.entropy_coef * normaliser.entropy_weight(len_tokens)) as f32,
            }
        };
        Some(Slopes { objective, sequences: sequences.iter().map(sequence).collect() })
    }

    /// The gradients of a token's log-prob and entropy, with the bits that [`super::loss`] gives.
    pub fn at(&self, token: usize, logp: f32) -> [f32; 2] {
        let sequence = self.sequences.partition_point(|sequence| sequence.tokens.end <= token);
        let Sequence { terms, tokens, weight, dentropy } = &self.sequences[sequence];
        let idx = token - tokens.start;
        match terms.is_trained(idx) {
            true => [token_slope(self.objective, terms, idx, logp, *weight), *dentropy],
            false => [0.0, 0.0],
        }
    }
}
