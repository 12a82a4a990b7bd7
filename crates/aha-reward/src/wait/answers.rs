//! What services answered, by the key of the request: a file of JSON lines that is only ever appended to.
//!
//! `{"key": HEX, "answer": TEXT}` or `{"key": HEX, "failure": REASON}` a line. The first line of a key counts, so
//! whoever asks the same again, at once or after a kill, gets the same. In memory there is only where each
//! line is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Key, hex};

/// An answer, or why there is none.
pub type Outcome = Result<String, String>;

/// Answers that are kept. One process at a time may have the file open.
pub struct Answers {
    path: PathBuf,
    file: Mutex<Lines>,
    writes: Option<Writes>,
}

/// Does work that writes, and may do it again: where the disk is full, once there is room.
pub type Writes =
    Box<dyn Fn(&mut dyn FnMut() -> io::Result<()>) -> Result<(), String> + Send + Sync>;

#[derive(Debug)]
struct Lines {
    file: File,
    len_bytes: u64,
    /// Offset and length of the line of each key.
    places: HashMap<Key, (u64, usize)>,
}

#[derive(Deserialize, Serialize)]
struct Line {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl Answers {
    /// Opens the file, or creates it. What a kill left of a last line is cut off.
    pub fn open(path: &Path) -> io::Result<Answers> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut lines = Lines { file, len_bytes: 0, places: HashMap::new() };
        lines.load()?;
        Ok(Answers { path: path.to_owned(), file: Mutex::new(lines), writes: None })
    }

    /// With somebody who has it written.
    #[must_use]
    pub fn written_by(self, writes: Writes) -> Answers {
        Answers { writes: Some(writes), ..self }
    }

    /// What was answered, if anything was.
    pub fn get(&self, key: &Key) -> Result<Option<Outcome>, String> {
        self.lines().get(key).map_err(|error| self.told("read", &error))
    }

    /// Keeps an outcome, and returns the one that counts: that of whoever was first.
    pub fn keep(&self, key: &Key, outcome: Outcome) -> Result<Outcome, String> {
        let mut kept = None;
        let mut keep = || -> io::Result<()> {
            kept = Some(self.lines().keep(key, outcome.clone())?);
            Ok(())
        };
        match &self.writes {
            Some(writes) => writes(&mut keep)?,
            None => keep().map_err(|error| self.told("write", &error))?,
        }
        kept.ok_or_else(|| "nothing was written".to_owned())
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, action: &str, error: &io::Error) -> String {
        format!("can't {action} `{}`: {error}", self.path.display())
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Lines {
    fn load(&mut self) -> io::Result<()> {
        let mut reader = BufReader::new(&self.file);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let len = reader.read_until(b'\n', &mut bytes)?;
            if !bytes.ends_with(b"\n") {
                break;
            }
            if let Some(key) = key_of(&bytes) {
                self.places.entry(key).or_insert((self.len_bytes, len));
            }
            self.len_bytes += len as u64;
        }
        self.file.set_len(self.len_bytes)
    }

    fn get(&self, key: &Key) -> io::Result<Option<Outcome>> {
        let Some(&(start, len)) = self.places.get(key) else { return Ok(None) };
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, start)?;
        let line: Line = serde_json::from_slice(&bytes)?;
        Ok(Some(line.answer.ok_or_else(|| line.failure.unwrap_or_default())))
    }

    fn keep(&mut self, key: &Key, outcome: Outcome) -> io::Result<Outcome> {
        if let Some(first) = self.get(key)? {
            return Ok(first);
        }
        let (answer, failure) = match outcome.clone() {
            Ok(answer) => (Some(answer), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut bytes = serde_json::to_vec(&Line { key: hex(key), answer, failure })?;
        bytes.push(b'\n');
        self.file.seek(SeekFrom::Start(self.len_bytes))?;
        if let Err(error) = self.file.write_all(&bytes) {
            // Half a line would run together with the next one.
            self.file.set_len(self.len_bytes)?;
            return Err(error);
        }
        if let Entry::Vacant(place) = self.places.entry(*key) {
            place.insert((self.len_bytes, bytes.len()));
        }
        self.len_bytes += bytes.len() as u64;
        Ok(outcome)
    }
}

/// The key of a line; none where the line is none of ours.
fn key_of(bytes: &[u8]) -> Option<Key> {
    let line: Line = serde_json::from_slice(bytes).ok()?;
    let digits = line.key.as_bytes();
    if digits.len() != 64 || line.answer.is_some() == line.failure.is_some() {
        return None;
    }
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::super::key;
    use super::*;

    #[test]
    fn the_first_outcome_counts_and_outlives_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let (a, b, c) = (key(&["a"]), key(&["b"]), key(&["c"]));
        let answers = Answers::open(&path).unwrap();
        assert_eq!(answers.get(&a).unwrap(), None);
        let (one, two) = (Ok("one\n\"1\"".to_owned()), Ok("two".to_owned()));
        assert_eq!(answers.keep(&a, one.clone()).unwrap(), one);
        assert_eq!(answers.keep(&a, two.clone()).unwrap(), one);
        assert_eq!(answers.keep(&b, Err("busy".to_owned())).unwrap(), Err("busy".to_owned()));
        assert_eq!(answers.get(&a).unwrap(), Some(one.clone()));
        drop(answers);
        // A kill in the middle of a line.
        let whole = fs_err::read(&path).unwrap();
        let mut torn = whole.clone();
        torn.extend(b"not ours\n");
        torn.extend(&whole[..20]);
        fs_err::write(&path, torn).unwrap();
        let answers = Answers::open(&path).unwrap();
        assert_eq!(answers.get(&a).unwrap(), Some(one));
        assert_eq!(answers.get(&b).unwrap(), Some(Err("busy".to_owned())));
        assert_eq!(answers.keep(&c, two.clone()).unwrap(), two);
        drop(answers);
        assert_eq!(Answers::open(&path).unwrap().get(&c).unwrap(), Some(two));
    }
}
