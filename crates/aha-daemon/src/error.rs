//! What can go wrong, split by what the one who asked can do about it.

use std::io;
use std::path::Path;

use serde_json::Value;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the one who asked can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ask otherwise: something in the request is wrong.
    Input,
    /// Say who asks.
    Unauthorized,
    /// Nothing: the daemon was started so that it refuses this.
    Forbidden,
    /// Look for what there is.
    NotFound,
    /// Ask by another method.
    Method,
    /// Ask when the run is in another state.
    Conflict,
    /// Send less.
    TooLarge,
    /// Send faster, or ask for less.
    TooSlow,
    /// Ask again later.
    Busy,
    /// Mend the machine: it refused something.
    Environment,
    /// Report it: it is our own mistake.
    Bug,
}

/// An error, with its remedy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What the one who asked can do.
    pub kind: Kind,
    /// What, where, expected, found; lower case, no final stop.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// More for programs: every problem of a pipeline.
    pub problems: Option<Box<Value>>,
}

impl Error {
    /// An error without a remedy.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), hint: None, problems: None }
    }

    /// Something in the request is wrong.
    pub fn input(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::new(Kind::Input, message).hint(hint)
    }

    /// It isn't there.
    pub fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message).hint(hint)
    }

    /// The daemon doesn't allow it.
    pub fn forbidden(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::new(Kind::Forbidden, message).hint(hint)
    }

    /// The machine refused.
    pub fn environment(message: impl Into<String>) -> Error {
        Error::new(Kind::Environment, message)
    }

    /// Our own mistake.
    pub fn bug(message: impl Into<String>) -> Error {
        Error::new(Kind::Bug, format!("{}; this is a bug in aha", message.into()))
    }

    /// With a remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// From what the system answered to `action` on `path`.
    pub fn io(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let what = format!("can't {action} `{}`", path.display());
        move |error| Error::environment(format!("{what}: {error}"))
    }

    /// From a task that panicked or was dropped.
    pub fn task(error: tokio::task::JoinError) -> Error {
        Error::bug(format!("a task ended early: {error}"))
    }
}

impl From<aha_flow::Error> for Error {
    fn from(error: aha_flow::Error) -> Error {
        use aha_flow::Error as Flow;
        let (message, hint) = (error.to_string(), error.hint().map(str::to_owned));
        let kind = match error {
            Flow::Input { .. } | Flow::Watchdog { .. } => Kind::Input,
            Flow::Environment { .. } | Flow::Full { .. } | Flow::Device { .. } => Kind::Environment,
            Flow::Held { .. } => Kind::Conflict,
            Flow::Interrupted => Kind::Busy,
            Flow::Bug { .. } => Kind::Bug,
        };
        Error { kind, message, hint, problems: None }
    }
}

impl From<aha_rollout::Error> for Error {
    fn from(error: aha_rollout::Error) -> Error {
        aha_flow::Error::from(error).into()
    }
}

impl From<aha_data::Error> for Error {
    fn from(error: aha_data::Error) -> Error {
        aha_flow::Error::from(error).into()
    }
}

impl From<aha_model::Error> for Error {
    fn from(error: aha_model::Error) -> Error {
        aha_flow::Error::from(error).into()
    }
}

impl From<aha_sample::Error> for Error {
    fn from(error: aha_sample::Error) -> Error {
        aha_flow::Error::from(error).into()
    }
}

/// Runs what waits for the disk or computes on a thread that may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::task)?
}
