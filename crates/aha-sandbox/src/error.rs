//! What can go wrong outside a program.

/// The error of this crate. None of it is the program's doing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This program never called [`crate::enter_if_asked`], so it can't be its own keeper.
    #[error(
        "this program can't start a sandbox: it doesn't call `aha_sandbox::enter_if_asked` first in `main`"
    )]
    NoEntry,
    /// The kernel refuses a layer.
    #[error("the sandbox's layer `{layer}` is refused: {why}")]
    Refused {
        /// The name of the layer.
        layer: String,
        /// What the system said.
        why: String,
    },
    /// The system failed at something else: worth another try.
    #[error("{action} failed")]
    Environment {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keeper ended without a word.
    #[error("the sandbox's keeper ended without a report")]
    NoReport,
}

impl Error {
    pub(crate) fn at(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Environment { action, source }
    }
}
