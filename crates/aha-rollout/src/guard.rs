//! Looks at the structure of a Parquet file before the Parquet reader does.
//!
//! The reader allocates what a file tells it to: a list of two thousand million row groups, a
//! page that unfolds to two gigabytes. An allocation that fails can't be caught, so the sizes
//! that a file claims are checked here against the bytes it has. Footer and page headers are
//! Thrift structures in the compact protocol; `Walker` goes through them without building
//! anything, and notes the few numbers that matter.

use std::os::unix::fs::FileExt;
use std::path::Path;

use fs_err::File;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};

use crate::{Error, Result};

/// Footers are a few kB, or some MB with thousands of row groups.
const FOOTER_BYTES_MAX: u64 = 64 << 20;
/// How deep schemas and Thrift structures may be nested.
const DEPTH_MAX: usize = 64;
/// What any page may unfold to, and how much more per compressed byte.
const PAGE_BYTES_MIN: u64 = 16 << 20;
const UNFOLD_RATIO_MAX: u64 = 4096;
/// Values in one column of one row group: a run-length code can claim any number in a few bytes.
const CHUNK_VALUES_MAX: i64 = 1 << 26;

/// Refuses a file whose footer or page headers claim what its bytes can't hold.
pub fn check(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let file = Bytes { file: file.file(), path, len };
    let metadata = check_footer(&file)?;
    for (idx, group) in metadata.row_groups().iter().enumerate() {
        for chunk in group.columns() {
            let rows_count = group.num_rows();
            check_chunk(&file, chunk, rows_count).map_err(|error| match error {
                Wrong::Content(why) => Error::damaged(
                    path,
                    format!("row group {idx}, column `{}`: {why}", chunk.column_path()),
                ),
                Wrong::Read(error) => error,
            })?;
        }
    }
    Ok(())
}

struct Bytes<'a> {
    file: &'a std::fs::File,
    path: &'a Path,
    len: u64,
}

impl Bytes<'_> {
    fn read(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, start).map_err(Error::io("read", self.path))?;
        Ok(bytes)
    }
}

enum Wrong {
    Content(String),
    Read(Error),
}

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Content(why.into()))
}

fn check_footer(file: &Bytes<'_>) -> Result<ParquetMetaData> {
    let damaged = |why: String| Error::damaged(file.path, why);
    if file.len < 12 {
        return Err(damaged(format!("it has {} bytes", file.len)));
    }
    let tail = file.read(file.len - 8, 8)?;
    if tail[4..] != *b"PAR1" {
        return Err(damaged("it doesn't end in `PAR1`".to_owned()));
    }
    let len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if len > FOOTER_BYTES_MAX || len > file.len - 12 {
        return Err(damaged(format!("its footer claims {len} bytes")));
    }
    let footer = file.read(file.len - 8 - len, len)?;
    let mut children = Vec::new();
    // Field 2 of the footer is the flattened schema, field 5 of an element its children.
    let walked = Walker::new(&footer, |path, value| match (path, value) {
        ([2], None) => children.push(0),
        ([2, 5], Some(count)) => children.last_mut().into_iter().for_each(|c| *c = count),
        _ => {}
    })
    .structure(&mut Vec::new());
    walked.map_err(|stop| damaged(format!("its footer {stop}")))?;
    check_schema(&children).map_err(damaged)?;
    match std::panic::catch_unwind(|| ParquetMetaDataReader::decode_metadata(&footer)) {
        Ok(Ok(metadata)) => Ok(metadata),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(_) => Err(damaged("its footer contradicts itself".to_owned())),
    }
}

/// Checks a schema flattened in preorder, given how many children each element has: as many as
/// there are elements, and not nested too deep, because the reader recurses.
fn check_schema(children: &[i64]) -> Result<(), String> {
    let mut open: Vec<i64> = Vec::new();
    for &count in children {
        if count < 0 || count > children.len() as i64 {
            return Err(format!("its schema claims {count} children of one element"));
        }
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if count > 0 {
            open.push(count);
        }
        if open.len() > DEPTH_MAX {
            return Err(format!("its schema is nested deeper than {DEPTH_MAX} levels"));
        }
    }
    Ok(())
}

fn check_chunk(file: &Bytes<'_>, chunk: &ColumnChunkMetaData, rows: i64) -> Result<(), Wrong> {
    let values = chunk.num_values();
    if !(0..=CHUNK_VALUES_MAX).contains(&values) || !(0..=values).contains(&rows) {
        return wrong(format!("it claims {values} values in {rows} rows"));
    }
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let size = chunk.compressed_size();
    let range = u64::try_from(start).ok().zip(u64::try_from(size).ok());
    let Some((start, end)) = range
        .and_then(|(start, size)| Some((start, start.checked_add(size)?)))
        .filter(|&(_, end)| end <= file.len - 8)
    else {
        return wrong(format!("it claims {size} bytes at {start}, past the end of the file"));
    };
    let (mut at, mut values_seen) = (start, 0_i64);
    while at < end {
        let page = read_page_header(file, at, end)?;
        let body = end - at - page.header_len;
        let compressed = u64::try_from(page.compressed).unwrap_or(u64::MAX);
        let unfolded = u64::try_from(page.unfolded).unwrap_or(u64::MAX);
        if compressed > body {
            return wrong(format!("a page claims {} of {body} bytes", page.compressed));
        }
        if unfolded > PAGE_BYTES_MIN.saturating_add(compressed.saturating_mul(UNFOLD_RATIO_MAX)) {
            return wrong(format!("a page claims to unfold {compressed} to {unfolded} bytes"));
        }
        if page.dictionary_values < 0 || page.dictionary_values as u64 > unfolded {
            return wrong(format!("a dictionary claims {} values", page.dictionary_values));
        }
        values_seen = values_seen.saturating_add(page.values);
        if page.values < 0 || values_seen > values {
            return wrong(format!("its pages claim more than its {values} values"));
        }
        at += page.header_len + compressed;
    }
    Ok(())
}

#[derive(Default)]
struct PageHeader {
    header_len: u64,
    unfolded: i64,
    compressed: i64,
    values: i64,
    dictionary_values: i64,
}

fn read_page_header(file: &Bytes<'_>, at: u64, end: u64) -> Result<PageHeader, Wrong> {
    // Nearly all headers are far below 1 kB, but statistics can make them longer.
    let mut window = 1024;
    loop {
        let len = (end - at).min(window);
        let bytes = file.read(at, len).map_err(Wrong::Read)?;
        let mut page = PageHeader::default();
        let mut walker = Walker::new(&bytes, |path, value| match (path, value) {
            ([2], Some(size)) => page.unfolded = size,
            ([3], Some(size)) => page.compressed = size,
            ([5 | 8, 1], Some(count)) => page.values = count,
            ([7, 1], Some(count)) => page.dictionary_values = count,
            _ => {}
        });
        match walker.structure(&mut Vec::new()) {
            Ok(()) => {
                page.header_len = walker.at as u64;
                return Ok(page);
            }
            Err(Stop::Short) if len < end - at && len < PAGE_BYTES_MIN => window *= 16,
            Err(stop) => return wrong(format!("a page's header {stop}")),
        }
    }
}

/// Why a walk through a Thrift structure ended early.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The bytes ended first, or a length leads past them.
    Short,
    /// The bytes are no Thrift structure.
    Malformed,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Short => "claims more than its bytes",
            Self::Malformed => "is malformed",
        })
    }
}

/// Goes through a Thrift structure and calls `on` with the path of field ids of every integer
/// and its value, and of every structure that begins, without a value.
struct Walker<'a, F> {
    bytes: &'a [u8],
    at: usize,
    lists_depth: usize,
    on: F,
}

impl<'a, F: FnMut(&[i16], Option<i64>)> Walker<'a, F> {
    fn new(bytes: &'a [u8], on: F) -> Self {
        Self { bytes, at: 0, lists_depth: 0, on }
    }

    fn structure(&mut self, path: &mut Vec<i16>) -> Result<(), Stop> {
        if path.len() > DEPTH_MAX {
            return Err(Stop::Malformed);
        }
        let mut field = 0_i16;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Ok(());
            }
            let delta = i16::from(byte >> 4);
            field = match delta {
                0 => self.zigzag()? as i16,
                _ => field.wrapping_add(delta),
            };
            path.push(field);
            // The compact protocol keeps a boolean field's value in its type.
            if !matches!(byte & 15, 1 | 2) {
                self.value(byte & 15, path)?;
            }
            path.pop();
        }
    }

    fn value(&mut self, kind: u8, path: &mut Vec<i16>) -> Result<(), Stop> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => {
                let value = self.zigzag()?;
                (self.on)(path, Some(value));
                Ok(())
            }
            7 => self.skip(8),
            8 => {
                let len = self.varint()?;
                self.skip(len)
            }
            9 | 10 => self.list(path),
            11 => self.map(path),
            12 => {
                (self.on)(path, None);
                self.structure(path)
            }
            13 => self.skip(16),
            _ => Err(Stop::Malformed),
        }
    }

    fn list(&mut self, path: &mut Vec<i16>) -> Result<(), Stop> {
        let byte = self.byte()?;
        let count = match byte >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        self.elements(count, &[byte & 15], path)
    }

    fn map(&mut self, path: &mut Vec<i16>) -> Result<(), Stop> {
        let count = self.varint()?;
        if count == 0 {
            return Ok(());
        }
        let byte = self.byte()?;
        self.elements(count, &[byte >> 4, byte & 15], path)
    }

    /// Elements have at least one byte each, so a count past the bytes that are left is a lie.
    fn elements(&mut self, count: u64, kinds: &[u8], path: &mut Vec<i16>) -> Result<(), Stop> {
        if count > (self.bytes.len() - self.at) as u64 {
            return Err(Stop::Short);
        }
        // Lists of lists recurse without a field of their own, so they are counted apart.
        self.lists_depth += 1;
        if self.lists_depth > DEPTH_MAX {
            return Err(Stop::Malformed);
        }
        for _ in 0..count {
            for &kind in kinds {
                self.value(kind, path)?;
            }
        }
        self.lists_depth -= 1;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.bytes.get(self.at).ok_or(Stop::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, len: u64) -> Result<(), Stop> {
        if len > (self.bytes.len() - self.at) as u64 {
            return Err(Stop::Short);
        }
        self.at += len as usize;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(Stop::Malformed)
    }

    fn zigzag(&mut self) -> Result<i64, Stop> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = Vec<(Vec<i16>, Option<i64>)>;

    fn walk(bytes: &[u8]) -> (Result<(), Stop>, Seen) {
        let mut seen = Vec::new();
        let walked = Walker::new(bytes, |path, value| seen.push((path.to_vec(), value)))
            .structure(&mut Vec::new());
        (walked, seen)
    }

    #[test]
    fn numbers_are_found_by_the_path_of_their_fields() {
        // {1: -3, 3: "ab", 4: true, 6: [{2: 5}, {2: 6}]}
        let bytes =
            [0x15, 0x05, 0x28, 2, b'a', b'b', 0x11, 0x29, 0x2c, 0x25, 10, 0, 0x25, 12, 0, 0];
        let (walked, seen) = walk(&bytes);
        assert_eq!(walked, Ok(()));
        let expected = [
            (vec![1], Some(-3)),
            (vec![6], None),
            (vec![6, 2], Some(5)),
            (vec![6], None),
            (vec![6, 2], Some(6)),
        ];
        assert_eq!(seen, expected);
        for len in 0..bytes.len() {
            assert_eq!(walk(&bytes[..len]).0, Err(Stop::Short), "{len}");
        }
    }

    #[test]
    fn lies_about_lengths_and_depth_are_refused() {
        assert_eq!(walk(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0x07]).0, Err(Stop::Short));
        assert_eq!(walk(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x0f]).0, Err(Stop::Short));
        assert_eq!(walk(&[0x1c; 10_000]).0, Err(Stop::Malformed));
        assert_eq!(walk(&[[0x19].as_slice(), &[0x19; 10_000]].concat()).0, Err(Stop::Malformed));
        assert_eq!(walk(&[0x1e, 0]).0, Err(Stop::Malformed));
    }

    #[test]
    fn schemas_must_hold_what_they_claim() {
        assert_eq!(check_schema(&[2, 0, 1, 0]), Ok(()));
        assert!(check_schema(&[1 << 31, 0]).is_err());
        assert!(check_schema(&[-1]).is_err());
        assert_eq!(check_schema(&[vec![1; 60], vec![0]].concat()), Ok(()));
        assert!(check_schema(&[vec![1; 70], vec![0]].concat()).is_err());
    }
}
