//! What can go wrong in this crate, split by what the receiver can do about it.

use std::fmt;

/// An error of the learner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data is wrong: answer with it, set the batch aside.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// What was read, with its place.
        what: String,
        /// What would have been right.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The machine failed us: retry, or free what is short.
    #[error("{what}")]
    Environment {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The device failed us: free what is short, or use another.
    #[error(transparent)]
    Device(#[from] aha_compute::Error),
    /// Our own mistake: stop the run.
    #[error("{0}")]
    Bug(String),
}

/// One wrong key of a file: which, what it must be, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key as the file spells it.
    pub key: &'static str,
    /// What its value must be.
    pub must: String,
    /// What the value is.
    pub got: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` must be {}, found {}", self.key, self.must, self.got)
    }
}
