//! Room on the disk: a run that finds none waits, says so, and goes on by itself when there is some.
//!
//! What is written is written aside, synced and renamed, so work that failed for want of room has left nothing under
//! its name and is done again from its beginning. Nobody else notices more than that the work takes long.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::machine;
use crate::progress::{Event, Watcher};
use crate::stop::Stop;

/// How often it is looked whether there is room.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a request to stop is looked for meanwhile.
const STOP_EVERY: Duration = Duration::from_millis(50);
/// What to do about it.
const HINT: &str = "free some space on it; the run goes on by itself within seconds";

/// Waits for room on the disk.
pub struct Room {
    /// What is left free on the file system of the run directory, in bytes.
    reserve_bytes: u64,
    stop: Stop,
    watcher: Watcher,
    /// Threads that wait.
    waiting: Mutex<usize>,
}

impl Room {
    /// Waits until `reserve_bytes` are free or `stop` is requested, and tells `watcher`.
    pub fn new(reserve_bytes: u64, stop: Stop, watcher: Watcher) -> Room {
        Room { reserve_bytes, stop, watcher, waiting: Mutex::new(0) }
    }

    /// Does work that writes below `dir`, and does it again whenever it failed for want of room.
    pub fn write<T>(&self, dir: &Path, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut wait: Option<Wait<'_>> = None;
        loop {
            let message = match self.shortage(dir) {
                Some(message) => message,
                None => match work() {
                    Err(Error::Full { message }) => message,
                    other => return other,
                },
            };
            wait.get_or_insert_with(|| Wait::begin(self, &message));
            self.pause()?;
        }
    }

    /// Says that the run waits, for work that can't be given to [`Room::write`]; it goes on when what is returned is
    /// dropped.
    pub fn begin(&self, message: &str) -> Wait<'_> {
        Wait::begin(self, message)
    }

    /// Why nothing may be written now.
    fn shortage(&self, dir: &Path) -> Option<String> {
        let found = (self.reserve_bytes > 0).then(|| machine::room_bytes(dir)).flatten()?;
        (found < self.reserve_bytes).then(|| {
            format!(
                "the disk of `{}` has {} MiB free, less than the {} MiB to be left",
                dir.display(),
                found >> 20,
                self.reserve_bytes >> 20
            )
        })
    }

    /// Waits until it is time to try again; fails where a stop is requested.
    pub fn pause(&self) -> Result<()> {
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until {
            if self.stop.is_requested() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(STOP_EVERY);
        }
        Ok(())
    }
}

/// A thread that waits. The first is told of, and the end of the last.
pub struct Wait<'a>(&'a Room);

impl<'a> Wait<'a> {
    fn begin(room: &'a Room, message: &str) -> Wait<'a> {
        let mut waiting = room.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting += 1;
        if *waiting == 1 {
            tracing::warn!(reason = message, hint = HINT, "The run waits for room on the disk.");
            (room.watcher)(Event::Waiting { message: message.to_owned(), hint: HINT.to_owned() });
        }
        Wait(room)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting -= 1;
        if *waiting == 0 {
            tracing::info!("There is room on the disk, and the run goes on.");
            (self.0.watcher)(Event::GoesOn);
        }
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("reserve_bytes", &self.reserve_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A room and what it tells.
    fn room(reserve_bytes: u64, stop: &Stop) -> (Room, Arc<Mutex<Vec<Event>>>) {
        let told: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = Arc::clone(&told);
        let watcher: Watcher = Arc::new(move |event| sink.lock().unwrap().push(event));
        (Room::new(reserve_bytes, stop.clone(), watcher), told)
    }

    #[test]
    fn work_is_done_again_until_there_is_room_and_told_of_once() {
        let (room, told) = room(0, &Stop::default());
        let mut tries = 0;
        let written = room.write(Path::new("."), || {
            tries += 1;
            let full = || Error::Full { message: "can't write `x`: full".to_owned() };
            if tries < 3 { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(written.unwrap(), 3);
        let told = told.lock().unwrap();
        assert!(
            matches!(&told[..], [Event::Waiting { message, .. }, Event::GoesOn] if message.contains("`x`"))
        );
    }

    #[test]
    fn who_waits_stops_when_asked_to_and_other_failures_are_none_of_its_business() {
        let stop = Stop::default();
        let (room, told) = room(u64::MAX, &stop);
        let asks = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            stop.request();
        });
        let stopped = room.write(Path::new("."), || -> Result<()> { panic!("there is no room") });
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(told.lock().unwrap().len(), 2);
        asks.join().unwrap();
        let (room, told) = self::room(0, &Stop::default());
        let failed = room.write(Path::new("."), || -> Result<()> { Err(Error::input("wrong")) });
        assert!(matches!(failed, Err(Error::Input { .. })));
        assert!(told.lock().unwrap().is_empty());
    }
}
