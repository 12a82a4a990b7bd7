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

    /// A sequence's part in the loss, from the log-probs of its trained tokens; a minibatch's loss is their sum in
    /// order.
    pub fn loss(&self, logps: &[f32]) -> f64 {
        let sum: f64 = logps.iter().map(|&logp| f64::from(logp)).sum();
        -sum * (1.0 / self.token_count.max(1) as f64)
    }
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
        let loss = normaliser.loss(&[-1.0, -2.0]) + normaliser.loss(&[-3.0]);
        assert!((loss - 2.0).abs() < 1e-15);
        assert_eq!(normaliser.dlogp(), -1.0 / 3.0);
    }

    #[test]
    fn an_empty_minibatch_has_no_loss_and_no_nan() {
        let normaliser = Normaliser::of([0]);
        assert_eq!(normaliser.loss(&[]).abs(), 0.0);
        assert!(normaliser.dlogp().is_finite());
    }
}
