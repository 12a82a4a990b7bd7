//! Tables that are files of JSON lines: one object a line.
//!
//! Types are found by reading every line once, so that a column which first appears late, or an
//! answer that is a number here and a text there, is no surprise in the middle of a query. Where
//! numbers and texts mix, all become text.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use fs_err::File;

use crate::{Error, Result};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The rows of some files, one file after the other.
#[derive(Debug)]
pub struct JsonLines {
    schema: SchemaRef,
    paths: Vec<PathBuf>,
}

impl JsonLines {
    /// Reads the files at `paths` once to find their columns.
    pub fn open(paths: Vec<PathBuf>) -> Result<Self> {
        let mut stopped = None;
        let lines = paths.iter().flat_map(|path| objects(path));
        // The iterator's own error is kept aside, because ArrowError has no place for its hint.
        let lines = lines.map_while(|line| line.map_err(|error| stopped = Some(error)).ok());
        let mut lines_count = 0;
        let lines = lines.inspect(|_| lines_count += 1);
        let inferred = infer_json_schema_from_iterator(lines.map(Ok::<_, ArrowError>));
        if let Some(error) = stopped {
            return Err(error);
        }
        let schema = inferred.map_err(|error| {
            Error::input(
                format!("the lines of `{}` don't fit together: {error}", shown(&paths)),
                "give each key the same kind of value in every line",
            )
        })?;
        if schema.fields().is_empty() {
            let what = match lines_count {
                0 => "holds no rows",
                _ => "holds no object with a key",
            };
            return Err(Error::input(
                format!("`{}` {what}, so that its columns are unknown", shown(&paths)),
                "put one JSON object on each line, such as {\"id\":\"1\",\"prompt\":\"1 + 1 =\"}",
            ));
        }
        Ok(Self { schema: Arc::new(schema), paths })
    }

    /// Its columns.
    pub fn columns(&self) -> &SchemaRef {
        &self.schema
    }
}

impl PartitionStream for JsonLines {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, paths) = (self.schema.clone(), self.paths.clone());
        let rows_max = context.session_config().batch_size();
        let batches = paths.into_iter().flat_map(move |path| {
            let batches = batches(&path, schema.clone(), rows_max);
            let (batches, failed) = match batches {
                Ok(batches) => (Some(batches), None),
                Err(error) => (None, Some(Err(error))),
            };
            batches.into_iter().flatten().chain(failed)
        });
        let stream = futures::stream::iter(batches);
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream))
    }
}

type Batch = Result<arrow::array::RecordBatch, DataFusionError>;

fn batches(
    path: &Path,
    schema: SchemaRef,
    rows_max: usize,
) -> Result<impl Iterator<Item = Batch> + use<>, DataFusionError> {
    let reader = ReaderBuilder::new(schema)
        .with_batch_size(rows_max)
        .with_coerce_primitive(true)
        .build(open(path)?)?;
    let path = path.display().to_string();
    Ok(reader.map(move |batch| {
        batch.map_err(|error| {
            DataFusionError::Execution(format!("`{path}` can't be read as JSON lines: {error}"))
        })
    }))
}

/// Opens a file, past the mark that some programs put before UTF-8.
fn open(path: &Path) -> std::io::Result<BufReader<File>> {
    let mut reader = BufReader::new(File::open(path)?);
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    Ok(reader)
}

/// The objects of a file; blank lines are left out.
fn objects(path: &Path) -> Box<dyn Iterator<Item = Result<serde_json::Value>> + '_> {
    let reader = match open(path) {
        Ok(reader) => reader,
        Err(error) => return Box::new(std::iter::once(Err(Error::io("open", path, &error)))),
    };
    Box::new(reader.lines().enumerate().filter_map(move |(idx, line)| {
        let line = match line {
            Ok(line) => line,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                let message = format!("`{}`, line {}: not valid UTF-8", path.display(), idx + 1);
                return Some(Err(Error::input(message, "write the file as UTF-8")));
            }
            Err(error) => return Some(Err(Error::io("read", path, &error))),
        };
        if line.trim().is_empty() {
            return None;
        }
        Some(object(&line, path, idx + 1))
    }))
}

fn object(line: &str, path: &Path, line_number: usize) -> Result<serde_json::Value> {
    let wrong = |what: String| {
        let hint = if line_number == 1 && line.trim_start().starts_with('[') {
            "the file looks like one JSON array; write it as lines: `jq -c '.[]' FILE`"
        } else {
            "put one JSON object on each line"
        };
        Error::input(format!("`{}`, line {line_number}: {what}", path.display()), hint)
    };
    match serde_json::from_str(line) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value),
        Ok(_) => Err(wrong("expected an object, found another JSON value".to_owned())),
        Err(error) => Err(wrong(format!("not valid JSON: {error}"))),
    }
}

fn shown(paths: &[PathBuf]) -> String {
    let first = paths.first().map_or(String::new(), |path| path.display().to_string());
    if paths.len() > 1 { format!("{first} and {} more", paths.len() - 1) } else { first }
}
