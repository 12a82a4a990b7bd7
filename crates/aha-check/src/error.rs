//! Why a case came to no figure.

/// A failure of what a case asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device, or the driver under it.
    #[error(transparent)]
    Cuda(#[from] aha_compute::cuda::Error),
    /// As a tensor's device keeps it.
    #[error(transparent)]
    Compute(#[from] aha_compute::Error),
    /// A model.
    #[error(transparent)]
    Model(#[from] aha_model::Error),
    /// The learner.
    #[error(transparent)]
    Learn(#[from] aha_learn::Error),
    /// The sampler.
    #[error(transparent)]
    Sample(#[from] aha_sample::Error),
    /// Something that is no error of a call, but keeps a case from its figure.
    #[error("{0}")]
    Case(String),
}
