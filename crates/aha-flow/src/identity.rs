//! What a run's results depend on: it only goes on where it would end with the bits that it began to make.
//!
//! - Settings: every key of the pipeline but those that change no result, such as `run.threads`.
//! - Inputs: what the files of `[tables]` and `[models]` hold, wherever they are. Each is read and digested
//!   as a whole when the run begins, and again when it goes on; a large one only if its length or one of its
//!   times has changed.
//!
//! The version of the program isn't among them: another one may well give the same bits, so it is said, and
//! the run goes on.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::pipeline::{ModelSource, Pipeline, Places, Settings, TokenizerSource};
use crate::rundir::{hex, sha256_of_file};

/// Files up to this size are always read: half a second at most.
const ALWAYS_READ_BYTES_MAX: u64 = 256 << 20;
/// Files of a model's directory that weights, tokenizer and chat template are read from end in these.
const MODEL_EXTENSIONS: [&str; 5] = ["json", "safetensors", "txt", "jinja", "model"];
/// Longest value that a message shows whole.
const SHOWN_CHARS_MAX: usize = 60;

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

impl Identity {
    /// The identity of a run of `pipeline`. What `known` has digested is not read again if it is large and
    /// looks untouched.
    pub fn of(pipeline: &Pipeline, places: &Places, known: Option<&Identity>) -> Result<Identity> {
        let mut hasher = Sha256::new();
        for (path, value) in pipeline.settings() {
            hasher.update(format!("{path} = {value}\n"));
        }
        let known_files = known.iter().flat_map(|known| known.inputs.values().flatten());
        let known: BTreeMap<&Path, &InputFile> =
            known_files.map(|file| (file.path.as_path(), file)).collect();
        let mut inputs = BTreeMap::new();
        for (key, files) in files_of(pipeline, places)? {
            let read = files.iter().map(|path| InputFile::read(path, known.get(path.as_path())));
            inputs.insert(key, read.collect::<Result<_>>()?);
        }
        Ok(Identity { settings_sha256: hex(&hasher.finalize()), inputs })
    }

    /// How the run that began with this identity differs from one with the identity `now`. The settings of
    /// both are for the message.
    pub fn difference(
        &self,
        began: Option<&Settings>,
        now: &Identity,
        settings: &Settings,
    ) -> Option<Difference> {
        if self.settings_sha256 != now.settings_sha256 {
            let changed = began.map(|began| changed(began, settings)).unwrap_or_default();
            let hint = "give the pipeline and overrides that it began with, or another directory with --dir";
            return Some(Difference {
                message: format!("the run directory holds a run of another pipeline{changed}"),
                hint: hint.to_owned(),
            });
        }
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

/// ": `stage.zero.steps` was 3 and is 4", and how many more differ.
fn changed(began: &Settings, now: &Settings) -> String {
    let [began, now] = [began, now].map(|settings| {
        settings
            .iter()
            .map(|(path, value)| (path.as_str(), value.as_str()))
            .collect::<BTreeMap<_, _>>()
    });
    let paths: Vec<&str> = began.keys().chain(now.keys()).copied().collect();
    let mut differing: Vec<&str> =
        paths.into_iter().filter(|path| began.get(path) != now.get(path)).collect();
    differing.sort_unstable();
    differing.dedup();
    let Some(first) = differing.first() else { return String::new() };
    let shown = |settings: &BTreeMap<&str, &str>| match settings.get(first) {
        Some(value) if value.chars().count() > SHOWN_CHARS_MAX => {
            format!("{}…", value.chars().take(SHOWN_CHARS_MAX).collect::<String>())
        }
        Some(value) => (*value).to_owned(),
        None => "absent".to_owned(),
    };
    let more = match differing.len() {
        1 => String::new(),
        2 => ", and another key differs".to_owned(),
        n => format!(", and {} other keys differ", n - 1),
    };
    format!(": `{first}` was {} and is {}{more}", shown(&began), shown(&now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Text, parse};

    const PIPELINE: &str = r#"
[models]
base = "model"

[tables]
problems = "tables/*.jsonl"

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT * FROM problems"
rewards = [{ kind = "math" }]
"#;

    /// A folder with a model and a table of two files.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for dir in ["model", "tables"] {
            fs_err::create_dir(folder.path().join(dir)).unwrap();
        }
        for file in ["model/config.json", "model/README.md", "tables/a.jsonl", "tables/b.jsonl"] {
            fs_err::write(folder.path().join(file), file).unwrap();
        }
        folder
    }

    fn pipeline(sets: &[&str]) -> Pipeline {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        parse(Text { path: "p.toml", text: PIPELINE, sets: &sets }).unwrap()
    }

    fn identity(folder: &Path, sets: &[&str], known: Option<&Identity>) -> Identity {
        let places = Places { base_dir: folder.to_owned(), hf_cache: None };
        Identity::of(&pipeline(sets), &places, known).unwrap()
    }

    fn message(began: &Identity, now: &Identity, sets: &[&str]) -> Option<String> {
        let settings = [pipeline(&[]), pipeline(sets)].map(|pipeline| pipeline.settings());
        began.difference(Some(&settings[0]), now, &settings[1]).map(|found| found.message)
    }

    #[test]
    fn keys_that_change_no_result_may_change_and_all_others_may_not() {
        let folder = folder();
        let began = identity(folder.path(), &[], None);
        let neutral = [
            "run.threads=1",
            "run.memory='64GiB'",
            "run.kv_cache='2MiB'",
            "run.sequences_max=3",
            "run.checkpoint_keep=1",
            "stage.zero.description=again",
            "stage.zero.micro_batch_tokens=300",
            "stage.zero.checkpoint_every=1",
            "stage.zero.activation_checkpointing=true",
            "stage.zero.watchdogs.truncated='off'",
        ];
        assert_eq!(message(&began, &identity(folder.path(), &neutral, None), &neutral), None);
        for set in ["run.seed=2", "run.query_memory='1GiB'", "stage.zero.sampling.max_tokens=9"] {
            let now = identity(folder.path(), &[set], None);
            let found = message(&began, &now, &[set]).expect(set);
            let key = set.split('=').next().unwrap();
            assert!(
                found.contains("another pipeline") && found.contains(&format!("`{key}` was")),
                "{found}"
            );
        }
        let sets = ["stage.zero.steps=3", "run.seed=2"];
        let found = message(&began, &identity(folder.path(), &sets, None), &sets).unwrap();
        let expected = "`run.seed` was 1 and is 2, and another key differs";
        assert!(found.ends_with(expected), "{found}");
    }

    #[test]
    fn files_may_move_but_what_they_hold_may_not_change() {
        let began_in = folder();
        let began = identity(began_in.path(), &[], None);
        assert_eq!(began.inputs["tables.problems"].len(), 2);
        assert_eq!(began.inputs["models.base"].len(), 1, "only what is read");
        let now_in = folder();
        assert_eq!(message(&began, &identity(now_in.path(), &[], None), &[]), None);
        for (file, key) in
            [("tables/b.jsonl", "tables.problems"), ("model/config.json", "models.base")]
        {
            let path = now_in.path().join(file);
            let content = fs_err::read_to_string(&path).unwrap();
            fs_err::write(&path, content.to_uppercase()).unwrap();
            let found = message(&began, &identity(now_in.path(), &[], Some(&began)), &[]).unwrap();
            assert!(found.contains(key) && found.contains(file), "{found}");
            fs_err::write(&path, content).unwrap();
        }
        fs_err::remove_file(now_in.path().join("tables/a.jsonl")).unwrap();
        let found = message(&began, &identity(now_in.path(), &[], None), &[]).unwrap();
        assert!(found.contains("its files are others"), "{found}");
    }

    #[test]
    fn a_large_file_is_read_again_when_it_was_touched() {
        let folder = folder();
        let path = folder.path().join("tables/c.jsonl");
        let file = fs_err::File::create(&path).unwrap();
        file.set_len(ALWAYS_READ_BYTES_MAX + 1).unwrap();
        let seen = InputFile {
            path: path.clone(),
            len_bytes: ALWAYS_READ_BYTES_MAX + 1,
            changed_at_ns: [0, 0],
            sha256: "known".to_owned(),
        };
        let read = InputFile::read(&path, Some(&&seen)).unwrap();
        assert_ne!(read.sha256, "known");
        let known = InputFile { sha256: "known".to_owned(), ..read };
        assert_eq!(InputFile::read(&path, Some(&&known)).unwrap().sha256, "known");
        drop(file);
    }
}
