//! What can go wrong below the model: only the machine, since shapes are asserted.

/// An error of the compute engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment asks for something that this machine doesn't have.
    #[error("{what}")]
    Environment {
        /// What was asked for and what the machine has.
        what: String,
    },
    /// A device that is asked for or in use.
    #[error(transparent)]
    Cuda(#[from] aha_cuda::Error),
}
