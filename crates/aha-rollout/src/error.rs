//! What can go wrong here, split by what the receiver can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. [`Error::hint`] holds the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data or the file is wrong: trying again gives the same answer.
    #[error("{message}")]
    Input {
        /// What is wrong and where, what was expected, what was found.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The machine refused; trying again may help.
    #[error("can't {action} `{}`: {source}", path.display())]
    Environment {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Our own mistake: the run should stop.
    #[error("{message}; this is a bug in aha")]
    Bug {
        /// The invariant that doesn't hold.
        message: String,
    },
}

impl Error {
    /// The remedy, where there is one to give.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Input { hint, .. } => Some(hint),
            Self::Environment { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path"),
                io::ErrorKind::PermissionDenied => Some("check who may read and write it"),
                io::ErrorKind::StorageFull => Some("free some space and resume the run"),
                _ => None,
            },
            Self::Bug { .. } => None,
        }
    }

    pub(crate) fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::Bug { message: message.into() }
    }

    /// Makes a closure for `map_err` on a file operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Environment { action, path, source }
    }

    /// A file that isn't what its name promises.
    pub(crate) fn damaged(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::input(
            format!("`{}` is not a readable Parquet file: {why}", path.display()),
            "restore the file, or delete it and run again from a checkpoint before it",
        )
    }
}

/// Whether the system said, somewhere on the way to this error, that the disk or a quota is full.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_seen_through_what_is_wrapped_around_it() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let wrapped =
            io::Error::other(std::sync::Arc::new(parquet::errors::ParquetError::from(full())));
        for source in [full(), io::Error::from_raw_os_error(122), wrapped] {
            assert!(is_full(&Error::io("write", Path::new("x"))(source)));
        }
        let broken = io::Error::from_raw_os_error(5);
        assert!(!is_full(&Error::io("write", Path::new("x"))(broken)));
    }
}
