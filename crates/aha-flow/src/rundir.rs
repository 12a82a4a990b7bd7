//! A run directory: what is where, and how files are written so that a kill leaves none half-done.
//!
//! ```text
//! pipeline.toml   as resolved        run.json      what ran, stage states
//! tables/NAME/    Parquet parts      metrics/      one row per step and metric
//! checkpoints/STAGE/step-000120/     models/NAME/  final model of a stage, Hugging Face layout
//! log.jsonl       tracing events     lock          held while a process works on the run
//! adapters/NAME/  final adapter of a stage with `lora`, peft's layout
//! answers.jsonl   what judges, services and commands answered
//! asked/TABLE/    what an endpoint gave, until it is in the table
//! ```

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::pipeline::RESOLVED_HEADER;
use crate::room::Room;

/// How long a lock is waited for whose holder may be ending.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often the lock is looked at meanwhile.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// The directory that a run owns. Cloning it clones the path.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
    /// Who waits where the disk is full; none: what is written fails then.
    room: Option<Arc<Room>>,
}

/// Held while a process works on a run.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
    spill: PathBuf,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // What is left does no harm, and goes when the run is opened again.
        let _ = std::fs::remove_dir_all(&self.spill);
    }
}

impl RunDir {
    /// The directory `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> RunDir {
        RunDir { root: root.into(), room: None }
    }

    /// With somebody who waits where the disk is full.
    #[must_use]
    pub fn waiting_for(self, room: Room) -> RunDir {
        RunDir { room: Some(Arc::new(room)), ..self }
    }

    /// Who waits where the disk is full.
    pub fn room(&self) -> Option<&Arc<Room>> {
        self.room.as_ref()
    }

    /// Does work that writes into the directory. Where the disk is full it is done again, from its beginning, when
    /// there is room: everything that a run writes goes through this, but what may be missing (log, metrics).
    pub fn write<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match &self.room {
            Some(room) => room.write(&self.root, work),
            None => work(),
        }
    }

    /// Fails if the directory, which has no `run.json`, holds what a run that was just begun doesn't: somebody
    /// else's files would be written over.
    pub fn refuse_foreign(&self) -> Result<()> {
        if !self.root.exists() {
            return Ok(());
        }
        for entry in fs_err::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            let entry = entry.map_err(Error::io("read", &self.root))?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_ours = match name.to_str() {
                Some("lock" | "log.jsonl") => true,
                Some("tables" | "models" | "checkpoints" | "metrics") if path.is_dir() => {
                    fs_err::read_dir(&path).map_err(Error::io("read", &path))?.next().is_none()
                }
                Some("metrics") => true,
                Some("pipeline.toml") => fs_err::read_to_string(&path)
                    .is_ok_and(|text| text.starts_with(RESOLVED_HEADER)),
                // What a killed process was writing.
                Some(name) => name.starts_with('.') && name.ends_with(".tmp"),
                None => false,
            };
            if !is_ours {
                return Err(Error::input_with(
                    format!(
                        "`{}` is no run directory, and `{}` in it would be in the way",
                        self.root.display(),
                        name.display()
                    ),
                    "give a directory with --dir that is empty or not there yet",
                ));
            }
        }
        Ok(())
    }

    /// Creates the directory and takes its lock. A process that was killed may hold that for a moment longer.
    pub fn open(&self) -> Result<RunLock> {
        self.open_within(LOCK_WAIT)
    }

    fn open_within(&self, wait: Duration) -> Result<RunLock> {
        for dir in [&self.root, &self.tables(), &self.models(), &self.root.join("checkpoints")] {
            fs_err::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        if let Err(error) = fs_err::create_dir_all(self.metrics()) {
            // A failing metric sink never stops training; the stages warn again.
            tracing::warn!(%error, "Metrics can't be written.");
        }
        let file = self.lock(wait)?;
        // What a killed process has left half-written; nobody else writes while the lock is held.
        for dir in [self.models(), self.adapters(), self.root.join("checkpoints")] {
            if dir.exists() {
                sweep(&dir)?;
            }
        }
        let spill = self.spill();
        if spill.exists() {
            fs_err::remove_dir_all(&spill).map_err(Error::io("remove", &spill))?;
        }
        Ok(RunLock { _file: file, spill })
    }

    fn lock(&self, wait: Duration) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        if !lock_within(&file, wait).map_err(Error::io("lock", &path))? {
            let dir = self.root.display();
            let message = format!("another process works on the run in `{dir}`");
            return Err(Error::Held { message });
        }
        Ok(file)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pipeline as resolved.
    pub fn pipeline(&self) -> PathBuf {
        self.root.join("pipeline.toml")
    }

    /// What ran, and the state of its stages.
    pub fn state(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// Tracing events.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// What judges, services and commands answered.
    pub fn answers(&self) -> PathBuf {
        self.root.join("answers.jsonl")
    }

    /// What an endpoint gave that isn't in the table yet.
    pub fn asked(&self, table: &str) -> PathBuf {
        self.root.join("asked").join(table)
    }

    /// What queries spill, while a process works on the run.
    pub fn spill(&self) -> PathBuf {
        self.root.join(".spill")
    }

    /// All tables.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// One table.
    pub fn table(&self, name: &str) -> PathBuf {
        self.tables().join(name)
    }

    /// The table of metrics.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics")
    }

    /// All final models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// A stage's final model.
    pub fn model(&self, name: &str) -> PathBuf {
        self.models().join(name)
    }

    /// All final adapters.
    fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    /// A stage's final adapter.
    pub fn adapter(&self, name: &str) -> PathBuf {
        self.adapters().join(name)
    }

    /// A stage's checkpoints.
    pub fn checkpoints(&self, stage: &str) -> PathBuf {
        self.root.join("checkpoints").join(stage)
    }
}

/// Locks a file, which a process may still hold that was killed: until the kernel has taken back all its memory, or
/// while a child of it that was just made has its files. Says whether it could.
pub fn lock_within(file: &File, wait: Duration) -> io::Result<bool> {
    let until = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if until <= Instant::now() => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_LOOK),
        }
    }
}

/// Removes what is written aside, in `dir` and the directories in it.
fn sweep(dir: &Path) -> Result<()> {
    for entry in fs_err::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !path.is_dir() {
            continue;
        }
        if name.starts_with('.') && name.ends_with(".tmp") {
            fs_err::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        } else {
            sweep(&path)?;
        }
    }
    Ok(())
}

/// Writes a file aside, makes it durable, and renames it over `path`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_with(path, |out| out.write_all(bytes))
}

/// As [`write_file`], for what is never in memory as a whole.
pub fn write_file_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let aside = aside(path);
    let file = File::create(&aside).map_err(Error::io("create", &aside))?;
    let mut out = BufWriter::new(file);
    write(&mut out)
        .and_then(|()| out.flush())
        .and_then(|()| out.get_ref().sync_all())
        .map_err(Error::io("write", &aside))?;
    fs_err::rename(&aside, path).map_err(Error::io("rename", &aside))?;
    sync_parent(path)
}

/// Renames a finished directory to its place, replacing what is there. A kill in between can leave nothing
/// there: callers go on from a checkpoint and make it again.
pub fn replace_dir(aside: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        fs_err::remove_dir_all(path).map_err(Error::io("remove", path))?;
    }
    fs_err::rename(aside, path).map_err(Error::io("rename", aside))?;
    sync_parent(path)
}

/// The hidden sibling that something is written to before it gets its name.
pub fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Makes the renames in a directory durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let dir = File::open(parent).map_err(Error::io("open", parent))?;
    dir.sync_all().map_err(Error::io("write", parent))
}

/// Digest of a file's content, in hexadecimal digits.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = fs_err::File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_worked_on_by_one_process() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path().join("run"));
        let lock = dir.open().unwrap();
        assert!(
            dir.open_within(Duration::ZERO).unwrap_err().to_string().contains("another process")
        );
        drop(lock);
        dir.open().unwrap();
    }

    #[test]
    fn a_lock_that_is_given_back_soon_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path().join("run"));
        let lock = dir.open().unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(lock);
        });
        dir.open().unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn a_written_file_replaces_the_old_one_whole() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run.json");
        write_file(&path, b"old and long").unwrap();
        write_file(&path, b"new").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"new");
        assert_eq!(fs_err::read_dir(temp.path()).unwrap().count(), 1);
    }
}
