//! The folder that a daemon owns: what is where, and the lock that keeps others out.
//!
//! ```text
//! queue.redb      the queue            runs/ID/          run directories
//! daemon.json     where it listens     pipelines/ID.toml as they were submitted
//! token           for its clients      output/ID.log     what processes said on stderr
//! lock            held by the daemon   tmp/              what queries spill, runs that are being removed
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aha_flow::rundir::{LOCK_WAIT, lock_within};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::RunId;

/// The home folder of a daemon that is told none: `aha` in XDG's folder of data.
pub fn default_root() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = variable("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let data = data.or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("aha"))
}

/// The folder's places. Nobody need own it to know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

/// Held as long as a daemon works in the folder.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Where the daemon listens, as its clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Such as `http://127.0.0.1:7717`.
    pub url: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

impl Home {
    /// The folder `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Home {
        Home { root: root.into() }
    }

    /// Creates the folder, for its owner alone, and takes its lock. A daemon that was killed may hold that for a moment
    /// longer, by a process that it was just starting.
    pub fn open(root: &Path) -> Result<(Home, Lock)> {
        Home::open_within(root, LOCK_WAIT)
    }

    fn open_within(root: &Path, wait: Duration) -> Result<(Home, Lock)> {
        let root = std::path::absolute(root).map_err(Error::io("find", root))?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let home = Home::new(root);
        for dir in ["", "runs", "pipelines", "output", "tmp"] {
            let dir = home.root.join(dir);
            builder.create(&dir).map_err(Error::io("create", &dir))?;
        }
        let path = home.root.join("lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        if !lock_within(&file, wait).map_err(Error::io("lock", &path))? {
            let message = format!("another daemon works in `{}`", home.root.display());
            return Err(Error::new(crate::error::Kind::Conflict, message)
                .hint("use that one, stop it, or give this one another folder with --home"));
        }
        Ok((home, Lock { _file: file }))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The queue.
    pub fn store(&self) -> PathBuf {
        self.root.join("queue.redb")
    }

    /// All run directories.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// A run's directory.
    pub fn run(&self, id: RunId) -> PathBuf {
        self.runs().join(id.to_string())
    }

    /// A pipeline as it was submitted.
    pub fn pipeline(&self, id: RunId) -> PathBuf {
        self.root.join("pipelines").join(format!("{id}.toml"))
    }

    /// What a run's processes said on stderr.
    pub fn output(&self, id: RunId) -> PathBuf {
        self.root.join("output").join(format!("{id}.log"))
    }

    /// What queries spill, and what is left of removed runs.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What is left of a run that was removed, until it is gone.
    pub fn removed(&self, id: RunId) -> PathBuf {
        self.tmp().join(format!("removed-{id}"))
    }

    /// The token that clients on this machine send.
    pub fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    fn address(&self) -> PathBuf {
        self.root.join("daemon.json")
    }

    /// Says where the daemon listens.
    pub fn write_address(&self, address: &Address) -> Result<()> {
        let mut text = serde_json::to_vec(address)
            .map_err(|error| Error::bug(format!("an address has no JSON: {error}")))?;
        text.push(b'\n');
        Ok(aha_flow::rundir::write_file(&self.address(), &text)?)
    }

    /// Takes back where the daemon listened.
    pub fn remove_address(&self) {
        // A client that finds it left is told that nobody answers there.
        let _ = fs::remove_file(self.address());
    }

    /// Where the daemon of this folder listens, if one said so.
    pub fn read_address(&self) -> Option<Address> {
        serde_json::from_slice(&fs::read(self.address()).ok()?).ok()
    }
}

/// Removes a file or a directory with all that is in it, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a file that its owner alone may read.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    let _ = fs::remove_file(path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_has_one_daemon() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("home");
        let (home, lock) = Home::open(&root).unwrap();
        let error = Home::open_within(&root, Duration::ZERO).unwrap_err();
        assert!(error.message.contains("another daemon works in"), "{error}");
        assert_eq!(fs::metadata(home.root()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(lock);
        Home::open(&root).unwrap();
    }

    #[test]
    fn clients_read_where_it_listens() {
        let temp = tempfile::tempdir().unwrap();
        let (home, _lock) = Home::open(temp.path()).unwrap();
        assert_eq!(home.read_address(), None);
        let address = Address { url: "http://127.0.0.1:1".into(), pid: 2, version: "3".into() };
        home.write_address(&address).unwrap();
        assert_eq!(home.read_address(), Some(address));
        home.remove_address();
        assert_eq!(home.read_address(), None);
    }

    #[test]
    fn a_secret_is_its_owners_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("token");
        write_secret(&path, "old").unwrap();
        write_secret(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
