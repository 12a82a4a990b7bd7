//! What can go wrong in a run, split by what the receiver can do about it.

use std::io;
use std::path::Path;

use crate::pipeline::memory::shown;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a setting or data is wrong: the same again gives the same answer.
    #[error("{message}")]
    Input {
        /// What, where, expected, found.
        message: String,
        /// How to mend it.
        hint: Option<String>,
    },
    /// The machine refused: trying again may help.
    #[error("{message}")]
    Environment {
        /// What was tried and what the machine answered.
        message: String,
    },
    /// The disk is full: there may be room later.
    #[error("{message}")]
    Full {
        /// What was tried and what the machine answered.
        message: String,
    },
    /// Another process works on the run: it may end.
    #[error("{message}")]
    Held {
        /// Which run.
        message: String,
    },
    /// A CUDA device failed: this process can do nothing more on it.
    #[error("{message}")]
    Device {
        /// What was done and what the device answered.
        message: String,
        /// The remedy.
        hint: String,
        /// Whether its memory was full, so that the same again gives the same answer.
        is_full: bool,
    },
    /// Our own mistake: the run stops.
    #[error("{message}; this is a bug in aha")]
    Bug {
        /// The invariant that doesn't hold.
        message: String,
    },
    /// A watchdog that is set to `stop` found something.
    #[error("{message}")]
    Watchdog {
        /// What was found.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// The run was asked to stop, and did so after a checkpoint.
    #[error("stopped on request; `--resume` goes on from the last checkpoint")]
    Interrupted,
}

impl Error {
    /// An [`Error::Input`] without a remedy.
    pub fn input(message: impl Into<String>) -> Error {
        Error::Input { message: message.into(), hint: None }
    }

    /// An [`Error::Input`] with its remedy.
    pub fn input_with(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Input { message: message.into(), hint: Some(hint.into()) }
    }

    /// An [`Error::Bug`].
    pub fn bug(message: impl Into<String>) -> Error {
        Error::Bug { message: message.into() }
    }

    /// From what the system answered to `action` on `path`.
    pub fn io(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let what = format!("can't {action} `{}`", path.display());
        move |error| Error::refused(aha_rollout::is_full(&error), format!("{what}: {error}"))
    }

    /// The machine refused, because the disk is full or for another reason.
    fn refused(is_full: bool, message: String) -> Error {
        if is_full { Error::Full { message } } else { Error::Environment { message } }
    }

    /// The remedy, where one is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Input { hint, .. } => hint.as_deref(),
            Error::Watchdog { hint, .. } | Error::Device { hint, .. } => Some(hint),
            Error::Full { .. } => Some("free some space and resume the run"),
            Error::Held { .. } => {
                Some("wait for it, or give this run another directory with --dir")
            }
            _ => None,
        }
    }

    /// Puts where it happened in front of the message.
    #[must_use]
    pub fn within(self, place: &str) -> Error {
        let at = |message: String| format!("{place}: {message}");
        match self {
            Error::Input { message, hint } => Error::Input { message: at(message), hint },
            Error::Environment { message } => Error::Environment { message: at(message) },
            Error::Full { message } => Error::Full { message: at(message) },
            Error::Held { message } => Error::Held { message: at(message) },
            Error::Device { message, hint, is_full } => {
                Error::Device { message: at(message), hint, is_full }
            }
            Error::Bug { message } => Error::Bug { message: at(message) },
            Error::Watchdog { message, hint } => Error::Watchdog { message: at(message), hint },
            Error::Interrupted => Error::Interrupted,
        }
    }
}

/// The message of an error and of everything that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

impl From<aha_compute::Error> for Error {
    fn from(error: aha_compute::Error) -> Error {
        use aha_compute::cuda::Error as Cuda;
        match error {
            aha_compute::Error::Cuda(Cuda::OutOfMemory {
                asked_bytes,
                in_use_bytes,
                total_bytes,
            }) => {
                let [asked, in_use, total] =
                    [asked_bytes, in_use_bytes, total_bytes].map(|bytes| shown(bytes as u64));
                Error::Device {
                    message: format!(
                        "out of memory on the device: {asked} more were asked for, and {in_use} of {total} are in use \
                         by this process"
                    ),
                    hint: "take shorter sequences, fewer of them at a time, or a smaller model"
                        .to_owned(),
                    is_full: true,
                }
            }
            aha_compute::Error::Cuda(error) => Error::Device {
                message: format!("the device failed: {error}"),
                hint:
                    "see whether `aha doctor` and `nvidia-smi` find the device well, and try again"
                        .to_owned(),
                is_full: false,
            },
            aha_compute::Error::Environment { what } => Error::Environment { message: what },
        }
    }
}

impl From<aha_model::Error> for Error {
    fn from(error: aha_model::Error) -> Error {
        let (message, is_full) = (chain(&error), aha_rollout::is_full(&error));
        match error {
            aha_model::Error::Input { .. } => Error::input(message),
            aha_model::Error::Device(error) => error.into(),
            aha_model::Error::Environment { .. } => Error::refused(is_full, message),
            aha_model::Error::Bug(_) => Error::Bug { message },
        }
    }
}

impl From<aha_rollout::Error> for Error {
    fn from(error: aha_rollout::Error) -> Error {
        let (message, hint) = (chain(&error), error.hint().map(str::to_owned));
        let is_full = aha_rollout::is_full(&error);
        match error {
            aha_rollout::Error::Input { .. } => Error::Input { message, hint },
            aha_rollout::Error::Environment { .. } => Error::refused(is_full, message),
            aha_rollout::Error::Bug { .. } => Error::Bug { message },
        }
    }
}

impl From<aha_data::Error> for Error {
    fn from(error: aha_data::Error) -> Error {
        let (message, hint) = (error.message().to_owned(), error.hint().map(str::to_owned));
        match error {
            aha_data::Error::Input { .. } => Error::Input { message, hint },
            aha_data::Error::Environment { is_full, .. } => Error::refused(is_full, message),
            aha_data::Error::Bug { .. } => Error::Bug { message },
        }
    }
}

impl From<aha_learn::Error> for Error {
    fn from(error: aha_learn::Error) -> Error {
        let message = chain(&error);
        match error {
            aha_learn::Error::Input { .. } => Error::input(message),
            aha_learn::Error::Device(error) => error.into(),
            aha_learn::Error::Environment { .. } => Error::Environment { message },
            aha_learn::Error::Bug(_) => Error::Bug { message },
        }
    }
}

impl From<aha_sample::Error> for Error {
    fn from(error: aha_sample::Error) -> Error {
        match error {
            aha_sample::Error::Input { what, hint } => Error::input_with(what, hint),
            aha_sample::Error::Model(error) => error.into(),
        }
    }
}
