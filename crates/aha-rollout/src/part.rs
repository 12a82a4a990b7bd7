//! One Parquet file, written so that it appears whole or not at all.
//!
//! The rows go to a hidden file beside the final one, or beside the table that it is a part of,
//! which is flushed to the disk and then renamed; the directory is flushed too. So a reader, or a run
//! that starts again after a kill, sees either no file or all of it. Bytes depend on nothing but rows
//! and schema: settings are fixed here, and the Parquet writer puts no time into a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use fs_err::File;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::{Error, Result};

/// Rows per row group. Small, because a rollout can hold tens of thousands of tokens.
const ROW_GROUP_ROWS_MAX: usize = 1024;

/// How large a finished part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSize {
    /// Its rows.
    pub rows_count: usize,
    /// Its bytes on the disk.
    pub size_bytes: u64,
}

/// Writes one Parquet file; dropped before [`PartWriter::finish`], it leaves nothing behind.
pub struct PartWriter {
    path: PathBuf,
    aside: PathBuf,
    schema: SchemaRef,
    rows_count: usize,
    /// The file once more, to make it durable.
    file: File,
    writer: Option<ArrowWriter<File>>,
}

impl PartWriter {
    /// Starts the file at `path`, whose directory must be there. What stands at `path` is
    /// replaced in the end.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        Self::create_aside(path, aside(path)?, schema)
    }

    /// As [`PartWriter::create`], with `aside` as the file that stands for `path` meanwhile; both
    /// must be on one file system.
    pub(crate) fn create_aside(path: &Path, aside: PathBuf, schema: SchemaRef) -> Result<Self> {
        let file = File::create(&aside).map_err(Error::io("create", &aside))?;
        let written = file.try_clone().map_err(Error::io("open", &aside))?;
        let writer = ArrowWriter::try_new(written, schema.clone(), Some(properties(&schema)))
            .map_err(|error| Error::bug(format!("no Parquet for this schema: {error}")))?;
        let path = path.to_owned();
        Ok(Self { path, aside, schema, rows_count: 0, file, writer: Some(writer) })
    }

    /// Adds rows, which must have the columns of the file's schema; metadata may differ.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        check_columns(&self.path, &self.schema, &batch.schema())?;
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())
            .map_err(|error| Error::bug(format!("rows of `{}`: {error}", self.path.display())))?;
        let writer = self.writer.as_mut().expect("the writer is there until it is finished");
        writer.write(&batch).map_err(|error| write_error(&self.aside, error))?;
        self.rows_count += batch.num_rows();
        Ok(())
    }

    /// Makes the file durable and visible.
    pub fn finish(mut self) -> Result<PartSize> {
        let writer = self.writer.as_mut().expect("the writer is there until it is finished");
        // `into_inner` would make a text of what the system said.
        writer.finish().map_err(|error| write_error(&self.aside, error))?;
        self.file.sync_all().map_err(Error::io("flush", &self.aside))?;
        let size_bytes = self.file.metadata().map_err(Error::io("read", &self.aside))?.len();
        self.writer = None;
        fs_err::rename(&self.aside, &self.path).map_err(Error::io("rename", &self.aside))?;
        sync_directory_of(&self.path)?;
        Ok(PartSize { rows_count: self.rows_count, size_bytes })
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            // Nothing to do when it can't be removed: it is hidden, and the next writer cleans up.
            let _ = fs_err::remove_file(&self.aside);
        }
    }
}

/// The settings that every Parquet file of ours is written with.
pub fn properties(schema: &Schema) -> WriterProperties {
    let level = ZstdLevel::try_new(1).expect("zstd has a level 1");
    let mut properties = WriterProperties::builder()
        .set_created_by("aha".to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX));
    for field in schema.fields() {
        // Log-probs hardly repeat, so a dictionary is wasted on them; split into streams of
        // their bytes, signs and exponents compress.
        if let DataType::List(item) = field.data_type()
            && item.data_type().is_floating()
        {
            let path = ["list", item.name()].map(str::to_owned);
            let path = ColumnPath::new([vec![field.name().clone()], path.to_vec()].concat());
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    properties.build()
}

/// The hidden file that stands for `path` while it is written.
fn aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::input(
            format!("`{}` doesn't name a file", path.display()),
            "give the path of a file to write",
        )
    })?;
    Ok(path.with_file_name(format!(".{name}.tmp")))
}

pub(crate) fn is_aside(file_name: &str) -> bool {
    file_name.starts_with('.') && file_name.ends_with(".tmp")
}

/// Makes the names in the directory of `path` durable.
pub(crate) fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let opened = File::open(directory).map_err(Error::io("open", directory))?;
    opened.sync_all().map_err(Error::io("flush", directory))
}

pub(crate) fn check_columns(path: &Path, expected: &Schema, found: &Schema) -> Result<()> {
    let shape = |schema: &Schema| -> Vec<(String, DataType)> {
        let fields = schema.fields().iter();
        fields.map(|f| (f.name().clone(), f.data_type().clone())).collect()
    };
    let (expected, found) = (shape(expected), shape(found));
    let Some(idx) = (0..expected.len().max(found.len())).find(|&i| expected.get(i) != found.get(i))
    else {
        return Ok(());
    };
    let say = |column: Option<&(String, DataType)>| {
        column.map_or("none".to_owned(), |(name, data_type)| format!("`{name}` ({data_type})"))
    };
    Err(Error::bug(format!(
        "rows for `{}`: expected as column {idx} {}, found {}",
        path.display(),
        say(expected.get(idx)),
        say(found.get(idx))
    )))
}

fn write_error(path: &Path, error: parquet::errors::ParquetError) -> Error {
    Error::Environment {
        action: "write",
        path: path.to_owned(),
        source: std::io::Error::other(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows;

    #[test]
    fn a_file_is_hidden_until_it_is_finished_and_gone_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let names = || -> Vec<String> {
            let entries = fs_err::read_dir(dir.path()).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let batch = rows::tests::examples(1, 5);
        let mut writer = PartWriter::create(&path, batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        assert_eq!(names(), [".x.parquet.tmp"]);
        drop(writer);
        assert_eq!(names(), [""; 0]);
        let mut writer = PartWriter::create(&path, batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        let size = writer.finish().unwrap();
        assert_eq!(size.rows_count, 5);
        assert_eq!(size.size_bytes, fs_err::metadata(&path).unwrap().len());
        assert_eq!(names(), ["x.parquet"]);
    }

    #[test]
    fn rows_of_another_table_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let mut writer = PartWriter::create(&path, crate::schema::metrics()).unwrap();
        let message = writer.write(&rows::tests::examples(1, 1)).unwrap_err().to_string();
        assert!(
            message.contains("expected as column 0 `stage` (Utf8), found `rollout_id` (Utf8)"),
            "{message}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = PartWriter::create(Path::new("/no/such/x.parquet"), crate::schema::metrics());
        let error = error.err().expect("it can't be created");
        assert!(error.to_string().contains("/no/such/.x.parquet.tmp"), "{error}");
        assert_eq!(error.hint(), Some("check the path"));
    }
}
