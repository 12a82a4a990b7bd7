//! What a run's results depend on: it only goes on where it would end with the bits that it began to make.
//!
//! - Settings: every key of the pipeline but those that change no result, such as `run.threads`.
//! - Inputs: what the files of `[tables]` and `[models]` hold, wherever they are. Each is read and digested
//!   as a whole when the run begins, and again when it goes on; a large one only if its length or one of its
//!   times has changed.
//!
//! The version of the program isn't among them: another one may well give the same bits, so it is said, and
//! the run goes on. Keys that only the newer one has make no difference where they are left out, which
//! `pipeline::settings` says more of; other columns do, see [`other_columns`].

mod columns;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::pipeline::{ModelSource, Pipeline, Places, Settings, Text, TokenizerSource, Written};
use crate::rundir::{RunDir, hex, sha256_of_file};
use crate::state::RunState;

pub use columns::other_columns;

/// Files up to this size are always read: half a second at most.
const ALWAYS_READ_BYTES_MAX: u64 = 256 << 20;
/// Files of a model's directory that weights, tokenizer and chat template are read from end in these.
const MODEL_EXTENSIONS: [&str; 5] = ["json", "safetensors", "txt", "jinja", "model"];
/// Longest value that a message shows whole.
const SHOWN_CHARS_MAX: usize = 60;
/// Keys that a message names besides the one whose values it shows.
const NAMED_KEYS_MAX: usize = 4;

/// What a run's results depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// SHA-256 of the settings.
    pub settings_sha256: String,
    /// Input files in order, by the key that leads to them: `tables.problems`.
    pub inputs: BTreeMap<String, Vec<InputFile>>,
}

/// A file that a run reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub len_bytes: u64,
    /// When its content and when its entry in the file system changed last, in ns since 1970.
    pub changed_at_ns: [i64; 2],
    /// Digest of its content.
    pub sha256: String,
}

/// Why a run can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

/// What a run was begun with, as far as its directory says it.
#[derive(Clone, Debug)]
pub struct Began {
    /// The version of the program.
    pub version: String,
    /// Its pipeline, or why this version can't read that.
    pub pipeline: std::result::Result<Written, String>,
}

impl Began {
    /// What the directory of a run says that has this state.
    pub fn read(dir: &RunDir, state: &RunState) -> Began {
        let pipeline = fs_err::read_to_string(dir.pipeline())
            .map_err(|error| error.to_string())
            .and_then(|text| {
                let text = Text { path: "pipeline.toml", text: &text, sets: &[] };
                Written::read(text).map_err(|problems| match problems.iter().next() {
                    Some(first) => first.message.clone(),
                    None => "nothing is known of it".to_owned(),
                })
            });
        Began { version: state.version.clone(), pipeline }
    }
}

/// ", which began with version 0.0.9 of the program, and this is 0.1.0", and what that adds to a remedy.
fn versions(began: &str) -> (String, String) {
    let now = env!("CARGO_PKG_VERSION");
    if began == now {
        return (String::new(), String::new());
    }
    (
        format!(", which began with version {began} of the program, and this is {now}"),
        format!(", or go on with version {began}"),
    )
}

impl Identity {
    /// The identity of a run of `pipeline`. What `known` has digested is not read again if it is large and
    /// looks untouched.
    pub fn of(pipeline: &Pipeline, places: &Places, known: Option<&Identity>) -> Result<Identity> {
        let known_files = known.iter().flat_map(|known| known.inputs.values().flatten());
        let known: BTreeMap<&Path, &InputFile> =
            known_files.map(|file| (file.path.as_path(), file)).collect();
        let mut inputs = BTreeMap::new();
        for (key, files) in files_of(pipeline, places)? {
            let read = files.iter().map(|path| InputFile::read(path, known.get(path.as_path())));
            inputs.insert(key, read.collect::<Result<_>>()?);
        }
        Ok(Identity { settings_sha256: sha256_of_settings(&pipeline.settings()), inputs })
    }

    /// How the run that began with this identity differs from one with the identity `now` and these settings.
    pub fn difference(
        &self,
        began: &Began,
        now: &Identity,
        settings: &Settings,
    ) -> Option<Difference> {
        self.other_settings(began, now, settings).or_else(|| self.other_inputs(now))
    }

    fn other_settings(
        &self,
        began: &Began,
        now: &Identity,
        settings: &Settings,
    ) -> Option<Difference> {
        if self.settings_sha256 == now.settings_sha256 {
            return None;
        }
        let what = match &began.pipeline {
            Err(problem) => format!("its `pipeline.toml` can't be read: {problem}"),
            Ok(written) if written.settings != *settings => changed(written, settings),
            // All that differs is keys that the run doesn't know, and they are as if they were left out.
            Ok(written) if sha256_of_settings(&written.known) == self.settings_sha256 => {
                return None;
            }
            Ok(_) => "its `pipeline.toml` is not the one that it began with".to_owned(),
        };
        let (of_version, or_version) = versions(&began.version);
        Some(Difference {
            message: format!(
                "the run directory holds a run of another pipeline{of_version}: {what}"
            ),
            hint: format!(
                "give the pipeline and overrides that it began with{or_version}, or another directory with --dir"
            ),
        })
    }

    fn other_inputs(&self, now: &Identity) -> Option<Difference> {
        let keys: Vec<&String> = self.inputs.keys().chain(now.inputs.keys()).collect();
        let digests = |files: Option<&Vec<InputFile>>| -> Vec<String> {
            files.into_iter().flatten().map(|file| file.sha256.clone()).collect()
        };
        let key = keys
            .into_iter()
            .find(|key| digests(self.inputs.get(*key)) != digests(now.inputs.get(*key)))?;
        let began: Vec<String> = digests(self.inputs.get(key));
        let fresh = now.inputs.get(key).into_iter().flatten().find(|f| !began.contains(&f.sha256));
        let what = match fresh {
            Some(file) => format!("`{}` holds something else", file.path.display()),
            None => "its files are others".to_owned(),
        };
        Some(Difference {
            message: format!(
                "the run directory holds a run on other data: `{key}` has changed, {what}"
            ),
            hint: "put back what it began with, or give another directory with --dir".to_owned(),
        })
    }
}

fn sha256_of_settings(settings: &Settings) -> String {
    let mut hasher = Sha256::new();
    for (path, value) in settings {
        hasher.update(format!("{path} = {value}\n"));
    }
    hex(&hasher.finalize())
}

impl InputFile {
    fn read(path: &Path, known: Option<&&InputFile>) -> Result<InputFile> {
        let found = fs_err::metadata(path).map_err(Error::io("look at", path))?;
        let at_ns =
            |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        let mut file = InputFile {
            path: path.to_owned(),
            len_bytes: found.len(),
            changed_at_ns: [
                at_ns(found.mtime(), found.mtime_nsec()),
                at_ns(found.ctime(), found.ctime_nsec()),
            ],
            sha256: String::new(),
        };
        file.sha256 = match known {
            Some(known) if file.len_bytes > ALWAYS_READ_BYTES_MAX && known.looks_like(&file) => {
                known.sha256.clone()
            }
            _ => sha256_of_file(path)?,
        };
        Ok(file)
    }

    /// Nobody sets the second of the times: the system does, at each change.
    fn looks_like(&self, other: &InputFile) -> bool {
        self.len_bytes == other.len_bytes && self.changed_at_ns == other.changed_at_ns
    }
}

/// The files that a pipeline reads, by the key that leads to them.
fn files_of(pipeline: &Pipeline, places: &Places) -> Result<Vec<(String, Vec<PathBuf>)>> {
    let mut found = Vec::new();
    for (name, address) in &pipeline.tables {
        let (_, files) = places.table(address)?.files()?;
        found.push((format!("tables.{name}"), files));
    }
    let located = |path: &str| -> Result<Vec<PathBuf>> {
        let path =
            places.locate(path).map_err(|found| Error::input_with(found.message, found.hint))?;
        model_files(path)
    };
    for (name, source) in &pipeline.models {
        match source {
            ModelSource::Path(path) => found.push((format!("models.{name}"), located(path)?)),
            ModelSource::Adapted(model) => {
                found.push((format!("models.{name}.base"), located(&model.base)?));
                let adapter = places
                    .adapter(&model.adapter)
                    .map_err(|found| Error::input_with(found.message, found.hint))?;
                found.push((format!("models.{name}.adapter"), model_files(adapter)?));
            }
            ModelSource::Random(model) => match &model.tokenizer {
                TokenizerSource::Of(path) if pipeline.model(path).is_none() => {
                    found.push((format!("models.{name}.tokenizer"), located(path)?));
                }
                TokenizerSource::Of(_) | TokenizerSource::Train(_) => {}
            },
        }
    }
    Ok(found)
}

fn model_files(path: PathBuf) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(&path).map_err(Error::io("list", &path))? {
        let file = entry.map_err(Error::io("list", &path))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if file.is_file() && extension.is_some_and(|found| MODEL_EXTENSIONS.contains(&found)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// "`stage.zero.steps` was 3 and is 4, and `run.seed` differs too". A key that the run began without had its default.
fn changed(began: &Written, now: &Settings) -> String {
    fn by_path(settings: &Settings) -> BTreeMap<&str, &str> {
        settings.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect()
    }
    let [was, known, is] = [&began.settings, &began.known, now].map(by_path);
    let paths: BTreeSet<&str> = was.keys().chain(is.keys()).copied().collect();
    let mut differing = paths.into_iter().filter(|path| was.get(path) != is.get(path));
    let Some(first) = differing.next() else { return "it differs".to_owned() };
    let shown = |settings: &BTreeMap<&str, &str>| match settings.get(first) {
        Some(value) if value.chars().count() > SHOWN_CHARS_MAX => {
            format!("{}…", value.chars().take(SHOWN_CHARS_MAX).collect::<String>())
        }
        Some(value) => (*value).to_owned(),
        None => "absent".to_owned(),
    };
    let is_new = was.contains_key(first) && !known.contains_key(first);
    let by_default = if is_new { " by default, as the run began without that key," } else { "" };
    let rest: Vec<String> = differing.map(|path| format!("`{path}`")).collect();
    let more = match rest.len() {
        0 => String::new(),
        1 => format!(", and {} differs too", rest[0]),
        n if n <= NAMED_KEYS_MAX => format!(", and {} differ too", rest.join(", ")),
        n => format!(
            ", and {} and {} more differ too",
            rest[..NAMED_KEYS_MAX].join(", "),
            n - NAMED_KEYS_MAX
        ),
    };
    format!("`{first}` was {}{by_default} and is {}{more}", shown(&was), shown(&is))
}
