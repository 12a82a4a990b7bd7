//! The supervised loss: the mean negative log-prob over every trained token of the minibatch.
//!
//! ```text
//! loss = -1/N * sum_i sum_t logp_t        N: trained tokens of the whole minibatch
//! dloss/dlogp_t = -1/N
//! ```
//!
//! `N` is counted once over the minibatch, so a token's gradient is the same in every micro-batch.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Which tokens the loss falls on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// The completion, its end token included; the prompt is only context.
    Completion,
    /// Every token that has something before it: plain text.
    All,
}

impl LossOn {
    /// The trained part of a sequence's log-probs, of which there is one per token from the second on:
    /// log-prob `j` is that of token `j + 1`.
    pub fn range(self, prompt_len_tokens: usize, len_tokens: usize) -> Range<usize> {
        assert!(prompt_len_tokens <= len_tokens, "a prompt is a part of its sequence");
        let end = len_tokens.saturating_sub(1);
        match self {
            Self::Completion => prompt_len_tokens.saturating_sub(1).min(end)..end,
            Self::All => 0..end,
        }
    }
}

/// The divisor of a minibatch's loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normaliser {
    token_count: usize,
}

impl Normaliser {
    /// From the number of trained tokens of each sequence of the whole minibatch.
    pub fn of(trained_lens_tokens: impl IntoIterator<Item = usize>) -> Self {
        Self { token_count: trained_lens_tokens.into_iter().sum() }
    }

    /// The gradient of every trained token's log-prob.
    pub fn dlogp(&self) -> f32 {
        (-1.0 / self.token_count.max(1) as f64) as f32
    }
}

/// One sequence's part in the loss.
#[derive(Clone, Copy, Debug)]
pub struct SequenceTerms<'a> {
    /// Log-probs of the sequence's tokens.
    pub logps: &'a [f32],
    /// Which of them are trained on; all where absent.
    pub mask: Option<&'a [bool]>,
}

/// Loss and gradients of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOut {
    /// The loss of each sequence; a minibatch's loss is their sum in order.
    pub sequence_losses: Vec<f64>,
    /// The gradient of each log-prob, sequence after sequence; 0 where masked.
    pub dlogps: Vec<f32>,
    /// Trained tokens in this micro-batch.
    pub token_count: usize,
}

/// The loss of a micro-batch, divided by the whole minibatch's `normaliser`.
pub fn loss(sequences: &[SequenceTerms<'_>], normaliser: Normaliser) -> LossOut {
    let dlogp = normaliser.dlogp();
    let weight = 1.0 / normaliser.token_count.max(1) as f64;
    let mut out = LossOut { sequence_losses: Vec::new(), dlogps: Vec::new(), token_count: 0 };
    for terms in sequences {
        if let Some(mask) = terms.mask {
            assert_eq!(mask.len(), terms.logps.len(), "`mask` has one value per log-prob");
        }
        let mut logp_sum = 0.0;
        for (idx, logp) in terms.logps.iter().enumerate() {
            let is_trained = terms.mask.is_none_or(|mask| mask[idx]);
            if is_trained {
                logp_sum += f64::from(*logp);
                out.token_count += 1;
            }
            out.dlogps.push(if is_trained { dlogp } else { 0.0 });
        }
        out.sequence_losses.push(-logp_sum * weight);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_completion_is_trained_on_and_the_prompt_is_not() {
        // Tokens p p p c c: log-probs of tokens 1..5 at 0..4; the completion is tokens 3 and 4.
        assert_eq!(LossOn::Completion.range(3, 5), 2..4);
        assert_eq!(LossOn::All.range(3, 5), 0..4);
        // Without a prompt the first token has nothing that predicts it.
        assert_eq!(LossOn::Completion.range(0, 5), 0..4);
        assert_eq!(LossOn::Completion.range(1, 5), 0..4);
        // An empty completion, and an empty sequence.
        assert!(LossOn::Completion.range(5, 5).is_empty());
        assert!(LossOn::All.range(0, 0).is_empty());
    }

    #[test]
    fn the_loss_is_the_mean_over_trained_tokens_of_the_minibatch() {
        let normaliser = Normaliser::of([2, 1]);
        let mask = [false, true, true];
        let sequences = [
            SequenceTerms { logps: &[-9.0, -1.0, -2.0], mask: Some(&mask) },
            SequenceTerms { logps: &[-3.0], mask: None },
        ];
        let out = loss(&sequences, normaliser);
        assert!((out.sequence_losses.iter().sum::<f64>() - 2.0).abs() < 1e-15);
        assert_eq!(out.dlogps, [0.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0]);
        assert_eq!(out.token_count, 3);
    }

    #[test]
    fn any_split_gives_the_same_bits() {
        let logps: Vec<f32> = (0..40).map(|i| -0.1 - (i as f32 * 0.7).sin().abs()).collect();
        let terms: Vec<SequenceTerms<'_>> =
            logps.chunks(7).map(|logps| SequenceTerms { logps, mask: None }).collect();
        let normaliser = Normaliser::of(terms.iter().map(|t| t.logps.len()));
        let whole = loss(&terms, normaliser);
        for cut in 0..=terms.len() {
            let (a, b) = terms.split_at(cut);
            let (a, b) = (loss(a, normaliser), loss(b, normaliser));
            assert_eq!([a.sequence_losses, b.sequence_losses].concat(), whole.sequence_losses);
            assert_eq!([a.dlogps, b.dlogps].concat(), whole.dlogps);
        }
    }

    #[test]
    fn an_empty_minibatch_has_no_loss_and_no_nan() {
        let mask = [false];
        let out = loss(&[SequenceTerms { logps: &[-1.0], mask: Some(&mask) }], Normaliser::of([0]));
        assert_eq!((out.sequence_losses[0].abs(), out.dlogps[0]), (0.0, 0.0));
    }

    #[test]
    #[should_panic(expected = "`mask` has one value per log-prob")]
    fn a_mask_of_the_wrong_length_panics_with_its_name() {
        loss(&[SequenceTerms { logps: &[-1.0], mask: Some(&[]) }], Normaliser::of([1]));
    }
}
