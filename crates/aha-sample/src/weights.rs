//! Weights that change while completions are drawn from them, and which of them drew what.
//!
//! Sequences that are under way go on with the keys and values that they have, which earlier weights computed
//! ("in-flight weight updates", PipelineRL, arXiv:2509.19128, section 3). So a token's log-prob is what the sampler
//! computed there and then: no single set of weights would give it again.

use std::ops::Deref;
use std::sync::Arc;

use aha_model::Model;

/// Weights, and the number that they go by.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The weights.
    pub model: Arc<Model>,
    /// Their version; it only ever rises.
    pub version: u64,
}

/// What a batch draws from.
#[derive(Clone)]
pub(crate) enum Held<'a> {
    /// The same weights all along.
    Lent(&'a Model),
    /// Weights that others may follow.
    Shared(Arc<Model>),
}

impl Deref for Held<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        match self {
            Held::Lent(model) => model,
            Held::Shared(model) => model,
        }
    }
}

/// The version of the weights that drew each token of a completion, in runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Where each run begins, and its version.
    runs: Vec<(usize, u64)>,
}

impl Versions {
    /// Of a completion whose first token was drawn by `version`.
    pub(crate) fn new(version: u64) -> Versions {
        Versions { runs: vec![(0, version)] }
    }

    /// The token at `idx`, which comes after all others, was drawn by `version`.
    pub(crate) fn push(&mut self, idx: usize, version: u64) {
        if self.runs.last().is_none_or(|&(_, last)| last != version) {
            self.runs.push((idx, version));
        }
    }

    /// Forgets all tokens but the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.runs.retain(|&(start, _)| start < len);
    }

    /// The version of the first token; 0 of no tokens.
    pub fn first(&self) -> u64 {
        self.runs.first().map_or(0, |&(_, version)| version)
    }

    /// The version of each of `len` tokens.
    pub fn expand(&self, len: usize) -> Vec<u64> {
        let ends = self.runs.iter().skip(1).map(|&(start, _)| start).chain([len]);
        let runs = self.runs.iter().zip(ends);
        runs.flat_map(|(&(start, version), end)| (start..end).map(move |_| version)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_the_version_that_drew_it() {
        let mut versions = Versions::new(4);
        for (idx, version) in [(1, 4), (2, 5), (3, 5), (4, 7)] {
            versions.push(idx, version);
        }
        assert_eq!(versions.expand(5), [4, 4, 5, 5, 7]);
        assert_eq!(versions.first(), 4);
        versions.truncate(4);
        assert_eq!(versions.expand(4), [4, 4, 5, 5]);
        versions.truncate(0);
        versions.push(0, 9);
        assert_eq!(versions.expand(2), [9, 9]);
        assert_eq!(Versions::default().expand(0), [0_u64; 0]);
        assert_eq!(Versions::default().first(), 0);
    }
}
