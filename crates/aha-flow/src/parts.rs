//! The parts of tables that a stage has settled: a checkpoint, or the end of the stage, stands on them.
//!
//! Each is recorded with its size and digest, and looked for again before a run goes on: rows that a model
//! was trained on can't be lost without notice. What was written after the record is made again anyway.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::ErrorKind;
use std::path::PathBuf;

use aha_rollout::table;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics;
use crate::rundir::{RunDir, sha256_of_file};

/// Parts by their paths in the run directory: `tables/zero/step-000001.parquet`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parts(BTreeMap<String, Part>);

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    size_bytes: u64,
    sha256: String,
}

/// How closely parts are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// That they are there, as long as they were: quick, whatever they hold.
    Sizes,
    /// Every byte.
    Content,
}

impl Parts {
    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These parts, and what `stage` has written to `tables`, to `evals` and to `metrics` besides. What is
    /// known already isn't read again.
    pub fn with(mut self, dir: &RunDir, stage: &str, tables: &[String]) -> Result<Parts> {
        for (name, path) in written(dir, stage, tables)? {
            if let Entry::Vacant(place) = self.0.entry(name) {
                let found = fs_err::metadata(&path).map_err(Error::io("look at", &path))?;
                let part = Part { size_bytes: found.len(), sha256: sha256_of_file(&path)? };
                place.insert(part);
            }
        }
        Ok(self)
    }

    /// Says which part is missing or damaged, if one is.
    pub fn damage(&self, dir: &RunDir, depth: Depth) -> Result<Option<String>> {
        for (name, part) in &self.0 {
            let path = dir.root().join(name);
            let what = match fs_err::metadata(&path) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
                {
                    "is missing".into()
                }
                Err(error) => return Err(Error::io("look at", &path)(error)),
                Ok(found) if found.len() != part.size_bytes => {
                    format!("has {} bytes, and had {}", found.len(), part.size_bytes)
                }
                Ok(_) if depth == Depth::Sizes => continue,
                Ok(_) if sha256_of_file(&path)? == part.sha256 => continue,
                Ok(_) => "holds something else than the run wrote".into(),
            };
            return Ok(Some(format!("`{}` {what}", path.display())));
        }
        Ok(None)
    }

    /// Fails if a part is missing or damaged: nothing may go on from a checkpoint that stands on it.
    pub fn check(&self, dir: &RunDir, hint: &str) -> Result<()> {
        match self.damage(dir, Depth::Content)? {
            None => Ok(()),
            Some(damage) => {
                Err(Error::input_with(format!("the run has lost rows: {damage}"), hint))
            }
        }
    }
}

/// What a stage has written, each with its path in the run directory.
fn written(dir: &RunDir, stage: &str, tables: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for name in tables {
        for part in table::parts(&dir.table(name))? {
            found.push((format!("tables/{name}/{}", part.name), part.path));
        }
    }
    let is_of_stage = |name: &str| name.strip_prefix(stage).is_some_and(|n| n.starts_with('-'));
    for part in table::parts(&dir.table("evals"))? {
        if is_of_stage(&part.name) {
            found.push((format!("tables/evals/{}", part.name), part.path));
        }
    }
    for part in table::parts(&dir.metrics())? {
        if metrics::steps_of(&part.name, stage).is_some() {
            found.push((format!("metrics/{}", part.name), part.path));
        }
    }
    Ok(found)
}

/// The tables of a stage that trains: its own, and that of what it has set aside.
pub fn tables_of_training(stage: &str) -> [String; 2] {
    [stage.to_owned(), format!("{stage}_set_aside")]
}

#[cfg(test)]
mod tests {
    use aha_rollout::rows::{self, MetricRow};
    use aha_rollout::schema;
    use aha_rollout::table::{TableWriter, part_name};

    use super::*;

    /// A run directory with two parts of `zero`, and one of another stage.
    fn run() -> (tempfile::TempDir, RunDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let write = |path: PathBuf, name: &str| {
            let row = MetricRow { stage: "zero", step: 1, name: "loss", value: 0.5, at_us: 7 };
            let table = TableWriter::open(&path, schema::metrics()).unwrap();
            table.write(name, &[rows::metrics(&[row])]).unwrap();
        };
        write(dir.table("zero"), &part_name(1));
        write(dir.metrics(), "zero-000001-000001.parquet");
        write(dir.metrics(), "zero_2-000001-000001.parquet");
        (temp, dir)
    }

    fn record(dir: &RunDir) -> Parts {
        Parts::default().with(dir, "zero", &tables_of_training("zero")).unwrap()
    }

    #[test]
    fn a_stage_records_its_own_parts() {
        let (_temp, dir) = run();
        let parts = record(&dir);
        let names: Vec<&str> = parts.0.keys().map(String::as_str).collect();
        let expected = [
            "metrics/zero-000001-000001.parquet",
            "tables/zero/schema.parquet",
            "tables/zero/step-000001.parquet",
        ];
        assert_eq!(names, expected);
        assert_eq!(parts.damage(&dir, Depth::Content).unwrap(), None);
        let text = serde_json::to_string(&parts).unwrap();
        assert_eq!(serde_json::from_str::<Parts>(&text).unwrap(), parts);
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        for name in ["tables/zero/step-000001.parquet", "metrics/zero-000001-000001.parquet"] {
            let (_temp, dir) = run();
            let parts = record(&dir);
            let path = dir.root().join(name);
            let sound = fs_err::read(&path).unwrap();
            let said = |depth| parts.damage(&dir, depth).unwrap().unwrap_or_default();
            let mut damaged = sound.clone();
            damaged[sound.len() / 2] ^= 1;
            fs_err::write(&path, &damaged).unwrap();
            assert!(said(Depth::Content).contains("something else"), "{}", said(Depth::Content));
            assert_eq!(said(Depth::Sizes), "");
            fs_err::write(&path, &sound[1..]).unwrap();
            assert!(said(Depth::Sizes).contains("bytes, and had"), "{}", said(Depth::Sizes));
            fs_err::remove_file(&path).unwrap();
            assert!(said(Depth::Sizes).ends_with("is missing"), "{}", said(Depth::Sizes));
            assert!(said(Depth::Content).contains(name), "{}", said(Depth::Content));
            let error = parts.check(&dir, "mend it").unwrap_err();
            assert_eq!(error.hint(), Some("mend it"));
        }
    }
}
