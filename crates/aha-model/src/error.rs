//! What can go wrong, split by what the receiver can do about it.

use std::path::Path;

/// The cause of an error, when another library or the system reported it.
pub type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a text is not what it has to be: another input is needed.
    #[error("{message}{}", hint_line(.hint))]
    Input {
        /// What, where, expected, found.
        message: String,
        /// How to mend it.
        hint: Option<String>,
        /// What a library said about it.
        #[source]
        source: Option<Source>,
    },
    /// The machine refused: trying again later may work.
    #[error("could not {action} `{path}`")]
    Environment {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A device that models compute on failed, or isn't there.
    #[error(transparent)]
    Device(#[from] aha_compute::Error),
    /// This program broke one of its own rules.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// An [`Error::Input`] without hint and source.
    pub fn input(message: impl Into<String>) -> Self {
        Error::Input { message: message.into(), hint: None, source: None }
    }

    /// An [`Error::Environment`] about `path`. A missing file is an [`Error::Input`]: waiting
    /// doesn't make it appear.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        let path = path.display().to_string();
        if source.kind() == std::io::ErrorKind::NotFound {
            return Error::input(format!("could not {action} `{path}`: not found"));
        }
        Error::Environment { action, path, source }
    }

    /// Adds how to mend it to an [`Error::Input`].
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Error::Input { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Adds the cause to an [`Error::Input`].
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Source>) -> Self {
        if let Error::Input { source, .. } = &mut self {
            *source = Some(cause.into());
        }
        self
    }

    /// Puts the file in front of an [`Error::Input`]'s message.
    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        if let Error::Input { message, .. } = &mut self {
            *message = format!("`{}`: {message}", path.display());
        }
        self
    }
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref().map(|text| format!("\nhint: {text}")).unwrap_or_default()
}
