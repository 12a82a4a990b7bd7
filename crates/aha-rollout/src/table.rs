//! A table: a directory of Parquet parts, mostly one per step.
//!
//! Besides its rows a table holds one part without any, `schema.parquet`, written before the
//! first row. So every program that reads `tables/NAME/*.parquet` can read a table whose stage
//! has only begun, and sees its columns and their docs. A part that is being written lies beside
//! the table's directory, not in it: Polars, given the directory, refuses files of other kinds.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::part::{self, PartSize, PartWriter};
use crate::{Error, Result, read};

/// The part without rows.
pub const SCHEMA_PART: &str = "schema.parquet";

/// The name of the part that holds the rows of `step`. Names sort as their steps do, up to a
/// million steps.
pub fn part_name(step: u64) -> String {
    format!("step-{step:06}.parquet")
}

/// One file of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The step its rows are of; none where it isn't named after one.
    pub step: Option<u64>,
    /// Its file name.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
}

/// Writes a table. One writer per table at a time; readers may come and go.
pub struct TableWriter {
    dir: PathBuf,
    staging: Staging,
    schema: SchemaRef,
}

impl TableWriter {
    /// Opens the table in `dir`, which is made if it isn't there, and removes what a killed
    /// writer left unfinished. A table that is there already must have the same columns.
    pub fn open(dir: &Path, schema: SchemaRef) -> Result<Self> {
        fs_err::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let staging = Staging::of(dir)?;
        remove_files(dir, part::is_aside)?;
        remove_files(&staging.dir, |name| staging.is_mine(name))?;
        let table = Self { dir: dir.to_owned(), staging, schema };
        match read::table_schema(dir)? {
            None => {
                table.write(SCHEMA_PART, &[])?;
            }
            Some(found) => table.check_same(&found)?,
        }
        part::sync_directory_of(dir)?;
        Ok(table)
    }

    fn check_same(&self, found: &SchemaRef) -> Result<()> {
        let Some(difference) = difference(&self.schema, found) else { return Ok(()) };
        Err(Error::input(
            format!(
                "the table in `{}` has other columns than this run writes: {difference}",
                self.dir.display(),
            ),
            "resume with the pipeline that the run began with, or begin a new run directory",
        ))
    }

    /// The table's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The table's columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Writes the part called `name` (see [`part_name`]); when this returns, it is durable.
    /// A part of that name that is there already is replaced.
    pub fn write(&self, name: &str, batches: &[RecordBatch]) -> Result<PartSize> {
        let is_plain = name.ends_with(".parquet") && !name.starts_with('.') && !name.contains('/');
        if !is_plain {
            return Err(Error::bug(format!("`{name}` can't be the name of a part")));
        }
        let (path, aside) = (self.dir.join(name), self.staging.aside(name));
        let mut part = PartWriter::create_aside(&path, aside, self.schema.clone())?;
        for batch in batches {
            part.write(batch)?;
        }
        part.finish()
    }

    /// The table's parts, in the order of their steps.
    pub fn parts(&self) -> Result<Vec<Part>> {
        parts(&self.dir)
    }

    /// The table's rows.
    pub fn rows_count(&self) -> Result<usize> {
        read::rows_count(&self.dir)
    }

    /// Removes the parts of every step after `step`: a run that resumes from a checkpoint at
    /// `step` writes them again. Returns how many were removed. Later steps go first, so that a
    /// kill in between leaves no gap.
    pub fn truncate_after(&self, step: u64) -> Result<usize> {
        let mut removed_count = 0;
        for part in self.parts()?.iter().rev().filter(|part| part.step > Some(step)) {
            fs_err::remove_file(&part.path).map_err(Error::io("remove", &part.path))?;
            removed_count += 1;
        }
        part::sync_directory_of(&self.dir.join(SCHEMA_PART))?;
        Ok(removed_count)
    }
}

/// How the columns of the table in `dir` differ from those of `schema`; none where they don't, or where there is no
/// table: "only there …; only here …".
pub fn other_columns(dir: &Path, schema: &SchemaRef) -> Result<Option<String>> {
    Ok(read::table_schema(dir)?.and_then(|found| difference(schema, &found)))
}

fn difference(mine: &SchemaRef, theirs: &SchemaRef) -> Option<String> {
    let [mine, theirs] = [mine, theirs].map(|schema| {
        let columns = schema.fields().iter();
        columns.map(|f| format!("{} {}", f.name(), f.data_type())).collect::<Vec<_>>()
    });
    if mine == theirs {
        return None;
    }
    let only = |a: &[String], b: &[String]| {
        let only: Vec<_> = a.iter().filter(|x| !b.contains(x)).cloned().collect();
        if only.is_empty() { "nothing".to_owned() } else { only.join(", ") }
    };
    Some(format!("only there {}; only here {}", only(&theirs, &mine), only(&mine, &theirs)))
}

/// The visible parts of the table in `dir`, in the order of their steps; those without a step
/// first. None where there is no such directory.
pub fn parts(dir: &Path) -> Result<Vec<Part>> {
    let entries = match fs_err::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(Error::io("list", dir))?,
    };
    let mut parts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(".parquet") && !name.starts_with('.') {
            parts.push(Part { step: step_of(&name), path: entry.path(), name });
        }
    }
    parts.sort();
    Ok(parts)
}

/// Where a table's parts are while they are written.
struct Staging {
    dir: PathBuf,
    /// What the names of this table's unfinished parts end with.
    ending: String,
}

impl Staging {
    /// Beside the table in `dir`; in it where its parent is on another file system, from which
    /// nothing can be renamed into it.
    fn of(dir: &Path) -> Result<Self> {
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let device =
            |of: &Path| fs_err::metadata(of).map(|m| m.dev()).map_err(Error::io("read", of));
        Ok(match dir.file_name().and_then(|name| name.to_str()) {
            Some(name) if device(dir)? == device(parent)? => {
                Self { dir: parent.to_owned(), ending: format!(".{name}.tmp") }
            }
            _ => Self { dir: dir.to_owned(), ending: ".tmp".to_owned() },
        })
    }

    fn aside(&self, part_name: &str) -> PathBuf {
        self.dir.join(format!(".{part_name}{}", self.ending))
    }

    /// Other tables stage their parts in the same directory.
    fn is_mine(&self, file_name: &str) -> bool {
        let part_name = file_name.strip_prefix('.').and_then(|n| n.strip_suffix(&self.ending));
        part_name.is_some_and(|name| name.ends_with(".parquet"))
    }
}

/// Removes the files in `dir` whose names `is_doomed` picks.
fn remove_files(dir: &Path, is_doomed: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs_err::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        if entry.file_name().to_str().is_some_and(&is_doomed) {
            let path = entry.path();
            fs_err::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn step_of(name: &str) -> Option<u64> {
    let rest = name.strip_prefix("step-")?;
    let digits_len = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..digits_len].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{self, MetricRow};
    use crate::{schema, time};

    fn metric(step: u64) -> RecordBatch {
        rows::metrics(&[MetricRow { stage: "zero", step, name: "loss", value: 0.5, at_us: 7 }])
    }

    fn names(table: &TableWriter) -> Vec<String> {
        table.parts().unwrap().into_iter().map(|part| part.name).collect()
    }

    #[test]
    fn rows_come_back_in_the_order_of_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableWriter::open(dir.path(), schema::metrics()).unwrap();
        for step in [2, 1_000_000, 1, 999_999] {
            table.write(&part_name(step), &[metric(step)]).unwrap();
        }
        let steps: Vec<_> = table.parts().unwrap().iter().map(|part| part.step).collect();
        assert_eq!(steps, [None, Some(1), Some(2), Some(999_999), Some(1_000_000)]);
        assert_eq!(table.rows_count().unwrap(), 4);
        let expected = [1, 2, 999_999, 1_000_000].map(metric);
        let found = read::read_table(dir.path()).unwrap();
        time::equal_but_for_time(&found, &expected).unwrap();
        assert_eq!(found[0].schema(), schema::metrics());
    }

    #[test]
    fn resuming_removes_later_steps_and_unfinished_files() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableWriter::open(dir.path(), schema::metrics()).unwrap();
        for step in 1..=5 {
            table.write(&part_name(step), &[metric(step)]).unwrap();
        }
        fs_err::write(dir.path().join(".step-000006.parquet.tmp"), b"half").unwrap();
        let table = TableWriter::open(dir.path(), schema::metrics()).unwrap();
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 6);
        assert_eq!(table.truncate_after(3).unwrap(), 2);
        let left = [SCHEMA_PART, "step-000001.parquet", "step-000002.parquet"];
        assert_eq!(names(&table)[..3], left);
        assert_eq!(table.truncate_after(0).unwrap(), 3);
        assert_eq!(names(&table), [SCHEMA_PART]);
        assert_eq!(read::read_table(dir.path()).unwrap().len(), 0);
    }

    #[test]
    fn a_part_is_written_beside_its_table_and_only_its_own_remains_are_removed() {
        let run = tempfile::tempdir().unwrap();
        let tables = run.path().join("tables");
        let open = |name: &str| TableWriter::open(&tables.join(name), schema::metrics()).unwrap();
        let zero = open("zero");
        let aside = zero.staging.aside("step-000001.parquet");
        assert_eq!(aside, tables.join(".step-000001.parquet.zero.tmp"));
        let other = tables.join(".step-000001.parquet.a.zero.tmp");
        for path in [&aside, &other] {
            fs_err::write(path, b"half").unwrap();
        }
        open("zero");
        assert!(!aside.exists() && other.exists());
        open("a.zero");
        assert!(!other.exists());
        zero.write(&part_name(1), &[metric(1)]).unwrap();
        assert_eq!(names(&zero), [SCHEMA_PART, "step-000001.parquet"]);
        assert_eq!(fs_err::read_dir(&tables).unwrap().count(), 2, "the tables and nothing else");
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        let bytes = || {
            let dir = tempfile::tempdir().unwrap();
            let names = vec!["math".to_owned()];
            let schema = schema::rollouts(&names).unwrap();
            let table = TableWriter::open(dir.path(), schema).unwrap();
            let scores =
                vec![crate::steps::Scores { parts: vec![None], reward: None, error: None }; 9];
            let batch = rows::tests::examples(1, 9);
            let batch = crate::steps::add_scores(&batch, &names, &scores).unwrap();
            let batch = crate::steps::add_untrained(&batch, "sample_only").unwrap();
            table.write(&part_name(1), &[batch]).unwrap();
            let parts = table.parts().unwrap();
            parts.iter().map(|p| fs_err::read(&p.path).unwrap()).collect::<Vec<_>>()
        };
        // Each map of metadata hashes in its own order, so a few tries would show one that leaks.
        let first = bytes();
        assert!((0..8).all(|_| bytes() == first));
    }

    #[test]
    fn a_table_with_other_columns_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        TableWriter::open(dir.path(), schema::metrics()).unwrap();
        let error = TableWriter::open(dir.path(), schema::set_aside()).err().expect("it differs");
        let message = error.to_string();
        assert!(message.contains("only there name Utf8, value Float64"), "{message}");
        assert!(message.contains("only here prompt_id Utf8"), "{message}");
    }

    #[test]
    fn a_part_cannot_leave_its_table() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableWriter::open(dir.path(), schema::metrics()).unwrap();
        for name in ["../x.parquet", ".x.parquet", "x.csv"] {
            assert!(table.write(name, &[metric(1)]).is_err(), "{name}");
        }
    }

    #[test]
    fn a_table_that_is_not_there_has_no_parts() {
        assert_eq!(parts(Path::new("/no/such/table")).unwrap(), []);
        assert_eq!(read::read_table(Path::new("/no/such/table")).unwrap().len(), 0);
    }
}
