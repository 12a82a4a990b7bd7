//! Machine code on disk, by the digest of what it was made of.
//!
//! A file begins with the digest of the rest, so that a damaged one is made again. Files are written aside and
//! renamed, so several processes may share a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const DIGEST_BYTES: usize = 32;

/// A folder of machine code.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
}

impl Cache {
    /// The user's: `kernels` in `$AHA_CACHE`, or in `~/.cache/aha`. Without a home nothing is kept.
    pub fn of_user() -> Cache {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/aha"));
        let dir = std::env::var_os("AHA_CACHE").map(PathBuf::from).or_else(home);
        Cache { dir: dir.map(|dir| dir.join("kernels")) }
    }

    /// One in this folder.
    pub fn in_dir(dir: &Path) -> Cache {
        Cache { dir: Some(dir.to_path_buf()) }
    }

    /// What is kept for this digest, or what `make` makes, which is kept from now on. A folder that can't be
    /// written to costs time at the next start, and nothing else.
    pub fn get<E>(
        &self,
        digest: &str,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let Some(dir) = &self.dir else { return make() };
        let path = dir.join(digest);
        if let Some(code) = fs::read(&path).ok().and_then(whole) {
            return Ok(code);
        }
        let code = make()?;
        let _ = keep(dir, &path, &code);
        Ok(code)
    }
}

/// The code of a file that is as it was written.
fn whole(mut file: Vec<u8>) -> Option<Vec<u8>> {
    if file.len() < DIGEST_BYTES {
        return None;
    }
    let code = file.split_off(DIGEST_BYTES);
    (Sha256::digest(&code).as_slice() == file.as_slice()).then_some(code)
}

fn keep(dir: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let aside = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&aside, [Sha256::digest(code).as_slice(), code].concat())?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_made_once_and_again_if_its_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::in_dir(&dir.path().join("kernels"));
        let made = std::cell::Cell::new(0);
        let get = || {
            cache.get("digest", || {
                made.set(made.get() + 1);
                Ok::<_, ()>(vec![1, 2, 3])
            })
        };
        assert_eq!((get(), get()), (Ok(vec![1, 2, 3]), Ok(vec![1, 2, 3])));
        assert_eq!(made.get(), 1);
        let path = dir.path().join("kernels/digest");
        for damage in [&[][..], &[9; 40][..]] {
            fs::write(&path, damage).unwrap();
            assert_eq!(get(), Ok(vec![1, 2, 3]));
        }
        assert_eq!(made.get(), 3);
        assert_eq!(get(), Ok(vec![1, 2, 3]));
        assert_eq!(made.get(), 3);
    }

    #[test]
    fn nothing_is_kept_of_what_failed_or_where_nothing_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = Cache::in_dir(&file);
        assert_eq!(cache.get("a", || Ok::<_, ()>(vec![1])), Ok(vec![1]));
        let cache = Cache::in_dir(dir.path());
        assert_eq!(cache.get("a", || Err("no")), Err("no"));
        assert!(!dir.path().join("a").exists());
    }
}
