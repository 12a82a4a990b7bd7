//! What can go wrong outside a verdict; split by what the receiver can do.

/// The error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data are wrong: answer with it and go on with the next line.
    #[error("{0}")]
    Input(String),
    /// Reading or writing failed: the world's fault, worth another try.
    #[error("{action} failed")]
    Environment {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
