//! Reading tables back. No file, however damaged, makes these functions panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use fs_err::File;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::{Error, Result, guard, table};

/// Rows per batch that is read.
const BATCH_ROWS_MAX: usize = 1024;

/// All rows of the table in `dir`, in the order of its parts; parts without rows give no batch.
pub fn read_table(dir: &Path) -> Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    for part in table::parts(dir)? {
        batches.extend(read_part(&part.path)?);
    }
    Ok(batches)
}

/// The rows of one file.
pub fn read_part(path: &Path) -> Result<Vec<RecordBatch>> {
    let reader = open(path)?.with_batch_size(BATCH_ROWS_MAX);
    contained(path, || {
        let reader: ParquetRecordBatchReader = reader.build().map_err(|e| e.to_string())?;
        reader.map(|batch| batch.map_err(|e| e.to_string())).collect()
    })
}

/// The rows of one file with those of these columns that it has, in its own order.
pub fn read_columns(path: &Path, names: &[&str]) -> Result<Vec<RecordBatch>> {
    let reader = open(path)?.with_batch_size(BATCH_ROWS_MAX);
    let fields = reader.schema().fields().iter().enumerate();
    let wanted = fields.filter(|(_, field)| names.contains(&field.name().as_str()));
    let wanted: Vec<usize> = wanted.map(|(idx, _)| idx).collect();
    let mask = ProjectionMask::roots(reader.parquet_schema(), wanted);
    contained(path, || {
        let reader: ParquetRecordBatchReader =
            reader.with_projection(mask).build().map_err(|e| e.to_string())?;
        reader.map(|batch| batch.map_err(|e| e.to_string())).collect()
    })
}

/// The first `rows_max` rows of one file, without looking at the others, and how many it has.
pub fn read_first(path: &Path, rows_max: usize) -> Result<(Vec<RecordBatch>, usize)> {
    let reader = open(path)?.with_batch_size(BATCH_ROWS_MAX).with_limit(rows_max);
    let rows = reader.metadata().file_metadata().num_rows();
    let rows_count = usize::try_from(rows)
        .map_err(|_| Error::damaged(path, format!("it claims {rows} rows")))?;
    let batches = contained(path, || {
        let reader: ParquetRecordBatchReader = reader.build().map_err(|e| e.to_string())?;
        reader.map(|batch| batch.map_err(|e| e.to_string())).collect()
    })?;
    Ok((batches, rows_count))
}

/// The columns of one file.
pub fn read_schema(path: &Path) -> Result<SchemaRef> {
    Ok(open(path)?.schema().clone())
}

/// The columns of the table in `dir`: those of its first part. None where it has none.
pub fn table_schema(dir: &Path) -> Result<Option<SchemaRef>> {
    table::parts(dir)?.first().map(|part| read_schema(&part.path)).transpose()
}

/// The rows of the table in `dir`, counted from the footers of its parts.
pub fn rows_count(dir: &Path) -> Result<usize> {
    let mut rows_count = 0;
    for part in table::parts(dir)? {
        let rows = open(&part.path)?.metadata().file_metadata().num_rows();
        rows_count += usize::try_from(rows)
            .map_err(|_| Error::damaged(&part.path, format!("it claims {rows} rows")))?;
    }
    Ok(rows_count)
}

/// Refuses a file whose footer or page headers claim what its bytes can't hold, before a reader other than
/// ours believes them.
pub fn check(path: &Path) -> Result<()> {
    guard::check(path)
}

/// Opens a file whose structure the guard has looked through.
fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>> {
    guard::check(path)?;
    let file = File::open(path).map_err(Error::io("open", path))?.into_file();
    contained(path, || {
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())
    })
}

/// Runs `read`, turning its errors and its panics into errors about `path`.
///
/// The Parquet reader trusts much of what a file says (levels, offsets, lengths of runs) and
/// panics where it lies. The guard refuses lies about sizes; what is left ends here. Nothing that
/// `read` touches is used after a panic, so it doesn't matter in which state it is.
fn contained<T>(path: &Path, read: impl FnOnce() -> Result<T, String>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|why| Error::damaged(path, why)),
        Err(panic) => Err(Error::damaged(path, panic_message(&*panic))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("its content contradicts itself")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::PartWriter;
    use crate::rows;

    #[test]
    fn rows_and_docs_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let batch = rows::tests::examples(4, 50);
        let mut writer = PartWriter::create(&path, batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_schema(&path).unwrap(), batch.schema());
        assert_eq!(read_part(&path).unwrap(), [batch]);
    }

    /// Goal: the first rows of a large file cost what they are. Method: the last row group is damaged, which
    /// only who reads it can see.
    #[test]
    fn the_first_rows_are_read_without_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let batch = rows::tests::examples(4, 2000);
        let mut writer = PartWriter::create(&path, batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_first(&path, 9999).unwrap(), (read_part(&path).unwrap(), 2000));
        let last = open(&path).unwrap().metadata().row_groups().last().unwrap().clone();
        let mut bytes = fs_err::read(&path).unwrap();
        let (start, len) = last.column(0).byte_range();
        let end = (start + len) as usize;
        bytes[end - 64..end].fill(0xff);
        fs_err::write(&path, bytes).unwrap();
        assert!(read_part(&path).is_err());
        let (first, rows_count) = read_first(&path, 7).unwrap();
        assert_eq!(rows_count, 2000);
        assert_eq!(first, [batch.slice(0, 7)]);
    }

    #[test]
    fn files_that_are_no_parquet_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        for content in [&b""[..], b"PAR1", b"PAR1PAR1", b"a,b\n1,2\n3,4\n", &[0; 4096]] {
            fs_err::write(&path, content).unwrap();
            let error = read_part(&path).unwrap_err();
            assert!(error.to_string().contains("x.parquet` is not a readable Parquet file"));
            assert!(error.hint().is_some_and(|hint| hint.contains("delete it")));
        }
        let error = read_part(&dir.path().join("y.parquet")).unwrap_err();
        assert!(error.to_string().contains("can't open"), "{error}");
    }
}
