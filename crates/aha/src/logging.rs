//! Tracing events: on stderr as lines, and in the run directory's `log.jsonl`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::screen::Screen;

/// What is kept of the events before the run directory is known; the rest is dropped.
const PENDING_BYTES_MAX: usize = 1 << 20;

/// The file that events go to once it is known. Cloning it clones the handle.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Sink>>);

enum Sink {
    Pending(Vec<u8>),
    File(File),
}

impl Log {
    fn new() -> Log {
        Log(Arc::new(Mutex::new(Sink::Pending(Vec::new()))))
    }

    /// Appends what was kept and everything that follows to the file at `path`.
    pub fn open(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let mut sink = self.sink();
        if let Sink::Pending(bytes) = &*sink {
            file.write_all(bytes)?;
        }
        *sink = Sink::File(file);
        Ok(())
    }

    /// A half-written event is all that a panic could leave, so a poisoned lock is taken.
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each write is one event.
impl Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.sink() {
            Sink::Pending(kept) if kept.len() + bytes.len() <= PENDING_BYTES_MAX => {
                kept.extend(bytes);
            }
            Sink::Pending(_) => {}
            Sink::File(file) => file.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> &'a Log {
        self
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = &'a Screen;

    fn make_writer(&'a self) -> &'a Screen {
        self
    }
}

/// Starts taking events. A run shows itself what comes with a remedy, so with `is_run` such events are
/// left out on stderr; and only a run has a log.
pub fn start(verbose: u8, screen: &Screen, is_run: bool) -> Log {
    let log = Log::new();
    let (shown, logged) = match verbose {
        0 => (Level::WARN, Level::INFO),
        1 => (Level::INFO, Level::DEBUG),
        2 => (Level::DEBUG, Level::DEBUG),
        _ => (Level::TRACE, Level::TRACE),
    };
    let is_shown = filter_fn(move |event| !is_run || event.fields().field("hint").is_none());
    let stderr = fmt::layer()
        .with_writer(screen.clone())
        .with_ansi(false)
        .with_target(verbose >= 2)
        .without_time()
        .with_filter(targets(shown).and(is_shown));
    let file = is_run.then(|| {
        let json = fmt::layer().json().flatten_event(true).with_writer(log.clone());
        json.with_filter(targets(logged))
    });
    tracing_subscriber::registry().with(stderr).with(file).init();
    log
}

/// Our own crates' events from `level` on, those of others where something is wrong.
fn targets(level: Level) -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("aha", level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_before_the_file_is_known_are_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let log = Log::new();
        (&log).write_all(b"early\n").unwrap();
        log.open(&path).unwrap();
        (&log).write_all(b"late\n").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"early\nlate\n");
    }
}
