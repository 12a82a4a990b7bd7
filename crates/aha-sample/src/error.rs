//! What can go wrong while sampling.

/// An error of the sampler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request or a setting can't be served; another one can.
    #[error("{what}\nhint: {hint}")]
    Input {
        /// What was asked for and what is possible.
        what: String,
        /// How to mend it.
        hint: String,
    },
    /// The model or its tokenizer refused.
    #[error(transparent)]
    Model(#[from] aha_model::Error),
}
