//! Files that hold what memory can't while a query runs. They are in the session's folder of spilled files, and gone
//! with the query.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SpillFile;
use datafusion::execution::runtime_env::RuntimeEnv;

/// Bytes of a file's buffer.
const BUFFER_BYTES: usize = 16 << 10;
/// Files that keys are spread over, so that one at a time fits into memory.
const BUCKET_FILES_COUNT: usize = 64;
/// A key and a row.
const ENTRY_BYTES: usize = size_of::<u64>() + size_of::<u32>();

/// Memory that [`RecordsWriter`] and [`BucketsWriter`] take together.
pub(super) const BUFFERS_BYTES: usize = (BUCKET_FILES_COUNT + 2) * BUFFER_BYTES;

/// A file that is written, then read.
struct Scratch {
    writer: BufWriter<File>,
    /// Dropped, it removes the file.
    guard: Arc<dyn SpillFile>,
}

impl Scratch {
    fn create(runtime: &RuntimeEnv) -> Result<Scratch> {
        let guard = runtime.disk_manager.create_tmp_file("marking rows")?;
        let path = guard.path().ok_or_else(|| {
            DataFusionError::Internal("spilled files are not files of this machine".to_owned())
        })?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Scratch { writer: BufWriter::with_capacity(BUFFER_BYTES, file), guard })
    }

    fn finish(self) -> Result<(File, Arc<dyn SpillFile>)> {
        let file = self.writer.into_inner().map_err(|error| error.into_error())?;
        Ok((file, self.guard))
    }
}

/// Writes a record for each row: what names it, and its set.
pub(super) struct RecordsWriter {
    records: Scratch,
    /// Where each record begins, 8 bytes each.
    starts: Scratch,
    end: u64,
    rows_count: u32,
}

impl RecordsWriter {
    pub(super) fn create(runtime: &RuntimeEnv) -> Result<RecordsWriter> {
        let (records, starts) = (Scratch::create(runtime)?, Scratch::create(runtime)?);
        Ok(RecordsWriter { records, starts, end: 0, rows_count: 0 })
    }

    /// Writes the next row's record, and says which row that is.
    pub(super) fn push(&mut self, id: &[u8], set: &[u32]) -> Result<u32> {
        self.starts.writer.write_all(&self.end.to_le_bytes())?;
        let id_len = u32::try_from(id.len()).map_err(|_| too_long("what names a row"))?;
        let writer = &mut self.records.writer;
        writer.write_all(&id_len.to_le_bytes())?;
        writer.write_all(id)?;
        set.iter().try_for_each(|element| writer.write_all(&element.to_le_bytes()))?;
        self.end += (size_of::<u32>() + id.len() + size_of_val(set)) as u64;
        let row = self.rows_count;
        self.rows_count = row.checked_add(1).ok_or_else(|| too_long("the number of rows"))?;
        Ok(row)
    }

    pub(super) fn finish(mut self) -> Result<Records> {
        self.starts.writer.write_all(&self.end.to_le_bytes())?;
        let (records, records_guard) = self.records.finish()?;
        let (starts, starts_guard) = self.starts.finish()?;
        let rows_count = self.rows_count;
        let _guards = [records_guard, starts_guard];
        Ok(Records { records, starts, rows_count, buffer: Vec::new(), _guards })
    }
}

/// The records of all rows.
pub(super) struct Records {
    records: File,
    starts: File,
    /// How many there are.
    pub(super) rows_count: u32,
    buffer: Vec<u8>,
    _guards: [Arc<dyn SpillFile>; 2],
}

impl Records {
    /// Puts a row's set into `set`, and gives what names it.
    pub(super) fn read(&mut self, row: u32, set: &mut Vec<u32>) -> Result<&[u8]> {
        let mut bounds = [0; 2 * size_of::<u64>()];
        self.starts.read_exact_at(&mut bounds, u64::from(row) * size_of::<u64>() as u64)?;
        let (start, end) = bounds.split_at(size_of::<u64>());
        let (start, end) = (u64_of(start), u64_of(end));
        // The bytes of one record were in memory once.
        self.buffer.resize((end - start) as usize, 0);
        self.records.read_exact_at(&mut self.buffer, start)?;
        let (id_len, rest) = self.buffer.split_at(size_of::<u32>());
        let (id, elements) = rest.split_at(u32_of(id_len) as usize);
        set.clear();
        set.extend(elements.chunks_exact(size_of::<u32>()).map(u32_of));
        Ok(id)
    }
}

/// Spreads keys over files: rows with one key come into one file.
pub(super) struct BucketsWriter {
    files: Vec<Scratch>,
}

impl BucketsWriter {
    pub(super) fn create(runtime: &RuntimeEnv) -> Result<BucketsWriter> {
        let files = (0..BUCKET_FILES_COUNT).map(|_| Scratch::create(runtime));
        Ok(BucketsWriter { files: files.collect::<Result<_>>()? })
    }

    pub(super) fn push(&mut self, key: u64, row: u32) -> Result<()> {
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&key.to_le_bytes());
        entry[8..].copy_from_slice(&row.to_le_bytes());
        let writer = &mut self.files[key as usize % BUCKET_FILES_COUNT].writer;
        Ok(writer.write_all(&entry)?)
    }

    pub(super) fn finish(self) -> Result<Vec<BucketFile>> {
        let files = self.files.into_iter().map(|scratch| {
            let (file, _guard) = scratch.finish()?;
            let entries_count = file.metadata()?.len() as usize / ENTRY_BYTES;
            Ok(BucketFile { file, entries_count, _guard })
        });
        files.collect()
    }
}

/// Keys with their rows.
pub(super) struct BucketFile {
    file: File,
    entries_count: usize,
    _guard: Arc<dyn SpillFile>,
}

impl BucketFile {
    /// Memory that [`BucketFile::read`] takes.
    pub(super) fn bytes(&self) -> usize {
        self.entries_count * size_of::<(u64, u32)>() + BUFFER_BYTES
    }

    /// The keys with their rows, in order.
    pub(super) fn read(self) -> Result<Vec<(u64, u32)>> {
        let mut entries = Vec::with_capacity(self.entries_count);
        let mut buffer = vec![0; BUFFER_BYTES / ENTRY_BYTES * ENTRY_BYTES];
        let mut at = 0;
        while entries.len() < self.entries_count {
            let left = (self.entries_count - entries.len()) * ENTRY_BYTES;
            let part = &mut buffer[..left.min(BUFFER_BYTES / ENTRY_BYTES * ENTRY_BYTES)];
            self.file.read_exact_at(part, at)?;
            at += part.len() as u64;
            let read = part.chunks_exact(ENTRY_BYTES).map(|entry| entry.split_at(8));
            entries.extend(read.map(|(key, row)| (u64_of(key), u32_of(row))));
        }
        entries.sort_unstable();
        Ok(entries)
    }
}

fn too_long(what: &str) -> DataFusionError {
    DataFusionError::Execution(format!("{what} is larger than 2^32"))
}

/// Of exactly so many bytes.
fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes are given"))
}

/// Of exactly so many bytes.
fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes are given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_in_any_order() {
        let runtime = RuntimeEnv::default();
        let mut writer = RecordsWriter::create(&runtime).unwrap();
        let rows: [(&[u8], &[u32]); 3] =
            [(b"one", &[1, 2, 3]), (b"", &[]), (b"three", &[u32::MAX])];
        for (idx, (id, set)) in rows.iter().enumerate() {
            assert_eq!(writer.push(id, set).unwrap(), idx as u32);
        }
        let mut records = writer.finish().unwrap();
        assert_eq!(records.rows_count, 3);
        let mut found = vec![9];
        for row in [2, 0, 1, 2] {
            let id = records.read(row, &mut found).unwrap().to_vec();
            assert_eq!((&*id, &*found), rows[row as usize]);
        }
    }

    #[test]
    fn rows_with_one_key_are_together() {
        let runtime = RuntimeEnv::default();
        let mut writer = BucketsWriter::create(&runtime).unwrap();
        let key = |row: u64| (row % 700).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 7919;
        let keys: Vec<u64> = (0..10_000).map(key).collect();
        for (row, key) in keys.iter().enumerate() {
            writer.push(*key, row as u32).unwrap();
        }
        let mut found = Vec::new();
        for file in writer.finish().unwrap() {
            let entries = file.read().unwrap();
            assert!(entries.is_sorted());
            assert!(entries.iter().all(|(key, _)| key % 64 == entries[0].0 % 64));
            found.extend(entries);
        }
        found.sort_unstable_by_key(|(_, row)| *row);
        let expected: Vec<(u64, u32)> = (0..).zip(keys).map(|(row, key)| (key, row)).collect();
        assert_eq!(found, expected);
    }
}
