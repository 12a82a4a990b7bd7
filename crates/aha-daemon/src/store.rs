//! The queue on the disk: one row for each run, in a redb file.
//!
//! redb, and neither SQLite nor fjall: the queue is some thousands of small rows that change a few times each, by one
//! writer. redb commits by copying on write and flushing before it answers, so a kill leaves the state before or the
//! state after; it is plain Rust without a thread or a log file of its own, and its file format is stable. SQLite
//! (rusqlite 0.43) would bring a C compiler into the build for queries that nobody asks here; fjall 3 is a
//! log-structured tree, made for many writes, and leaves the flush to whoever writes. A row is JSON: a field that a
//! later version adds has a default.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use aha_flow::rundir::LOCK_WAIT;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::{Error, Result};
use crate::record::{Record, RunId};
use crate::token::TokenDigest;

const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// What this version writes; a file of a later format is refused.
const FORMAT: u64 = 1;
const FORMAT_KEY: &str = "format";
const NEXT_KEY: &str = "next_run";
const TOKEN_KEY: &str = "token_sha256";

/// The queue on the disk. Its methods wait for the disk.
pub struct Store {
    /// None where it could not be opened again: after the disk has failed, redb wants it opened anew.
    database: RwLock<Option<Database>>,
    path: PathBuf,
}

impl Store {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Store> {
        let store = Store { database: RwLock::new(Some(opened(path)?)), path: path.to_owned() };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<()> {
        let found = self.write(|transaction| {
            transaction.open_table(RUNS)?;
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(FORMAT_KEY)?.map(|value| number(value.value()));
            if found.is_none() {
                meta.insert(FORMAT_KEY, FORMAT.to_le_bytes().as_slice())?;
            }
            Ok(found.unwrap_or(FORMAT))
        })?;
        match found == FORMAT {
            true => Ok(()),
            false => Err(Error::environment(format!(
                "the queue `{}` has format {found}, and this version reads {FORMAT}",
                self.path.display()
            ))
            .hint("start the version of aha that wrote it")),
        }
    }

    /// Adds a run, made by `make` of its number before it is there; durable when this returns.
    pub fn add(&self, make: impl FnOnce(RunId) -> Result<Record>) -> Result<Record> {
        let mut outcome = None;
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            let next = meta.get(NEXT_KEY)?.map_or(1, |value| number(value.value()));
            meta.insert(NEXT_KEY, (next + 1).to_le_bytes().as_slice())?;
            let made = outcome.insert(make(RunId(next)));
            if let Ok(record) = made {
                transaction.open_table(RUNS)?.insert(next, row(record).as_slice())?;
            }
            Ok(())
        })?;
        outcome.unwrap_or_else(|| Err(Error::bug("a run was added and not made")))
    }

    /// Writes a run that is there; durable when this returns.
    pub fn put(&self, record: &Record) -> Result<()> {
        let row = row(record);
        self.write(|transaction| {
            transaction.open_table(RUNS)?.insert(record.id.0, row.as_slice())?;
            Ok(())
        })
    }

    /// Removes a run; durable when this returns.
    pub fn remove(&self, id: RunId) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(RUNS)?.remove(id.0)?;
            Ok(())
        })
    }

    /// All runs, in the order of their numbers.
    pub fn all(&self) -> Result<Vec<Record>> {
        let rows = |database: &Database| -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = database.begin_read()?.open_table(RUNS)?;
            let rows = table.iter()?.map(|row| {
                let (key, value) = row?;
                Ok((key.value(), value.value().to_vec()))
            });
            rows.collect()
        };
        let rows = self.with("read", rows)?;
        let records = rows.into_iter().map(|(id, row)| {
            serde_json::from_slice(&row).map_err(|error| {
                let queue = self.path.display();
                Error::environment(format!("run {id} of the queue `{queue}`: {error}"))
                    .hint("start the version of aha that wrote it")
            })
        });
        records.collect()
    }

    /// The digest of the token that clients must send, if one was made.
    pub fn token(&self) -> Result<Option<TokenDigest>> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let table = database.begin_read()?.open_table(META)?;
            Ok(table.get(TOKEN_KEY)?.map(|value| value.value().to_vec()))
        };
        let found = self.with("read", read)?;
        Ok(found.and_then(|bytes| TokenDigest::from_bytes(&bytes)))
    }

    /// Keeps the digest of the token that clients must send.
    pub fn set_token(&self, digest: &TokenDigest) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert(TOKEN_KEY, digest.as_bytes())?;
            Ok(())
        })
    }

    /// What `change` does is on the disk when this returns, or nothing of it.
    fn write<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T> {
        self.with("write", |database| {
            let transaction = database.begin_write()?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Works on the database. Where the disk failed, as one does that is full, it is opened anew for whoever comes
    /// next.
    fn with<T>(
        &self,
        action: &str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T> {
        self.reopen()?;
        let outcome = match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => return Err(Error::environment("the queue is being opened anew")),
        };
        outcome.map_err(|error| {
            if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            let message = format!("can't {action} the queue `{}`: {error}", self.path.display());
            Error::environment(message).hint("see that the disk has room and works")
        })
    }

    fn reopen(&self) -> Result<()> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(opened(&self.path)?);
        }
        Ok(())
    }
}

fn opened(path: &Path) -> Result<Database> {
    let until = Instant::now() + LOCK_WAIT;
    let mut opened = Database::create(path);
    // A daemon that was killed may have it open for a moment longer, by a process that it was just starting.
    while matches!(opened, Err(DatabaseError::DatabaseAlreadyOpen)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        opened = Database::create(path);
    }
    opened.map_err(|error| {
        Error::environment(format!("can't open the queue `{}`: {error}", path.display())).hint(
            "put it back from a copy; runs in `runs/` go on without it with `aha run --resume`",
        )
    })
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn row(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("numbers and strings always serialize")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::Progress;
    use crate::status::Status;

    pub(crate) fn record(id: RunId) -> Record {
        Record {
            id,
            name: "tiny".into(),
            status: Status::Queued,
            submitted_at_us: 1,
            started_at_us: None,
            ended_at_us: None,
            sets: vec!["run.seed=2".into()],
            base_dir: "/data".into(),
            run_dir: format!("/home/runs/{id}").into(),
            memory_bytes: 100,
            memory_set_bytes: None,
            device: None,
            starts: 0,
            failures: 0,
            not_before_us: None,
            process: None,
            problem: None,
            progress: Progress::default(),
        }
    }

    #[test]
    fn runs_come_back_in_order_and_numbers_are_never_given_twice() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("queue.redb");
        let store = Store::open(&path).unwrap();
        let first = store.add(|id| Ok(record(id))).unwrap();
        let second = store.add(|id| Ok(record(id))).unwrap();
        assert_eq!((first.id, second.id), (RunId(1), RunId(2)));
        let changed = Record { status: Status::Paused, ..first };
        store.put(&changed).unwrap();
        store.remove(second.id).unwrap();
        store.set_token(&TokenDigest::of("secret")).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.all().unwrap(), [changed]);
        assert_eq!(store.add(|id| Ok(record(id))).unwrap().id, RunId(3));
        assert_eq!(store.token().unwrap(), Some(TokenDigest::of("secret")));
    }

    /// Goal: what a later version wrote is not misread. Method: the number of the format is changed in the file.
    #[test]
    fn another_format_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("queue.redb");
        let store = Store::open(&path).unwrap();
        let later = store.write(|transaction| {
            let later = (FORMAT + 1).to_le_bytes();
            transaction.open_table(META)?.insert(FORMAT_KEY, later.as_slice())?;
            Ok(())
        });
        later.unwrap();
        drop(store);
        let error = Store::open(&path).err().unwrap();
        assert!(error.message.contains("has format 2"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_queue_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("queue.redb");
        std::fs::write(&path, "no queue at all").unwrap();
        let error = Store::open(&path).err().unwrap();
        assert!(error.message.contains("can't open the queue"), "{error}");
        assert!(error.hint.is_some());
    }
}
