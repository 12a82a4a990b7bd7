//! The directory of a GGUF file: header, metadata, tensor table.

use std::collections::HashMap;
use std::ops::Range;

use super::{QuantType, TensorInfo};
use crate::error::{Error, Result};

/// Longest key or tensor name that is believed.
const NAME_BYTES_MAX: usize = 1 << 16;
const DIMENSION_COUNT_MAX: u32 = 4;
const ALIGNMENT_MAX: u64 = 1 << 20;
const ALIGNMENT_DEFAULT: u64 = 32;

pub(super) struct Directory {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
}

/// A metadata value. Text and arrays stay in the file: they are only ranges here.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array(Array),
}

/// An array whose elements, all of one kind, lie in the file.
#[derive(Clone, Debug)]
pub(super) struct Array {
    kind: Kind,
    count: usize,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_code(code: u32) -> Result<Self> {
        use Kind::*;
        const KINDS: [Kind; 13] =
            [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64];
        usize::try_from(code)
            .ok()
            .and_then(|code| KINDS.get(code).copied())
            .ok_or_else(|| Error::input(format!("metadata type {code} is unknown")))
    }

    /// Bytes of one element; none for text and arrays.
    fn len_bytes(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::Array => None,
        }
    }
}

impl Array {
    pub fn texts<'a>(&self, bytes: &'a [u8], key: &str) -> Result<Vec<&'a str>> {
        if self.kind != Kind::Text {
            return Err(Error::input(format!("`{key}` is not an array of strings")));
        }
        let mut cursor = Cursor { bytes: &bytes[..self.range.end], at: self.range.start };
        // Each string takes at least 8 bytes of the file, so `count` is bounded by its size.
        (0..self.count)
            .map(|i| {
                let range = cursor.text()?;
                std::str::from_utf8(&bytes[range])
                    .map_err(|_| Error::input(format!("`{key}`[{i}] is not UTF-8")))
            })
            .collect()
    }

    pub fn integers(&self, bytes: &[u8], key: &str) -> Result<Vec<i64>> {
        self.scalars(bytes, key, |value| match value {
            Value::Unsigned(value) => i64::try_from(value).ok(),
            Value::Signed(value) => Some(value),
            _ => None,
        })
    }

    pub fn floats(&self, bytes: &[u8], key: &str) -> Result<Vec<f32>> {
        self.scalars(bytes, key, |value| match value {
            Value::Float(value) => Some(value as f32),
            _ => None,
        })
    }

    fn scalars<T>(
        &self,
        bytes: &[u8],
        key: &str,
        convert: impl Fn(Value) -> Option<T>,
    ) -> Result<Vec<T>> {
        if self.kind.len_bytes().is_none() {
            return Err(Error::input(format!("`{key}` is not an array of numbers")));
        }
        let mut cursor = Cursor { bytes: &bytes[..self.range.end], at: self.range.start };
        (0..self.count)
            .map(|i| {
                convert(cursor.scalar(self.kind)?)
                    .ok_or_else(|| Error::input(format!("`{key}`[{i}] has the wrong type")))
            })
            .collect()
    }
}

/// Parses everything before the tensors' data and checks that all of that data is in the file.
pub(super) fn directory(bytes: &[u8]) -> Result<Directory> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err(Error::input("not a GGUF file: it does not begin with `GGUF`"));
    }
    let version = cursor.u32()?;
    if version != 2 && version != 3 {
        return Err(Error::input(format!(
            "GGUF version is {version}: expected 2 or 3, little-endian"
        )));
    }
    let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
    // A tensor's entry takes at least 24 bytes, a metadata entry at least 13. The counts are not
    // used to allocate, only to say early what is wrong.
    let left = cursor.left() as u64;
    if tensor_count > left / 24 || entry_count > left / 13 {
        return Err(Error::input(format!(
            "the header promises {tensor_count} tensors and {entry_count} metadata entries, \
             more than {left} bytes can hold"
        )));
    }
    let mut metadata = HashMap::new();
    for _ in 0..entry_count {
        let key = cursor.name()?;
        let kind = Kind::from_code(cursor.u32()?)?;
        let value = cursor.value(kind).map_err(|error| in_key(&key, error))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::input(format!("metadata key `{key}` occurs twice")));
        }
    }
    let alignment = alignment(&metadata)?;
    let tensors = tensor_table(&mut cursor, tensor_count, alignment)?;
    Ok(Directory { metadata, tensors })
}

fn in_key(key: &str, error: Error) -> Error {
    Error::input(format!("metadata key `{key}`")).caused_by(error)
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= ALIGNMENT_MAX => {
            Ok(*value)
        }
        Some(other) => Err(Error::input(format!(
            "`general.alignment` is {other:?}: expected a power of two up to {ALIGNMENT_MAX}"
        ))),
    }
}

fn tensor_table(
    cursor: &mut Cursor,
    tensor_count: u64,
    alignment: u64,
) -> Result<HashMap<String, TensorInfo>> {
    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        let name = cursor.name()?;
        let entry = tensor_entry(cursor)
            .map_err(|error| Error::input(format!("tensor `{name}`")).caused_by(error))?;
        entries.push((name, entry));
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for (name, entry) in entries {
        let start = entry.offset_bytes.checked_add(data_start);
        let end = start.and_then(|start| start.checked_add(entry.len_bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::input(format!("tensor `{name}` ends after the file")));
        };
        if end > cursor.bytes.len() as u64 {
            return Err(Error::input(format!(
                "tensor `{name}` ends at byte {end}: the file has {}",
                cursor.bytes.len()
            )));
        }
        if !entry.offset_bytes.is_multiple_of(alignment) {
            return Err(Error::input(format!("tensor `{name}` is not aligned to {alignment}")));
        }
        // Both are at most the length of a slice.
        let range = start as usize..end as usize;
        let info = TensorInfo { shape: entry.shape, quant: entry.quant, range };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Error::input(format!("tensor `{name}` occurs twice")));
        }
    }
    refuse_overlaps(&tensors)?;
    Ok(tensors)
}

/// Tensors lie one after the other. If they could share bytes, a small file could hold weights of any size.
fn refuse_overlaps(tensors: &HashMap<String, TensorInfo>) -> Result<()> {
    let mut in_order: Vec<(&Range<usize>, &str)> =
        tensors.iter().map(|(name, info)| (&info.range, name.as_str())).collect();
    in_order.sort_unstable_by_key(|(range, name)| (range.start, range.end, *name));
    match in_order.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        Some(pair) => Err(Error::input(format!(
            "tensors `{}` and `{}` share bytes of the file",
            pair[0].1, pair[1].1
        ))),
        None => Ok(()),
    }
}

struct TensorEntry {
    shape: Vec<usize>,
    quant: QuantType,
    offset_bytes: u64,
    len_bytes: u64,
}

fn tensor_entry(cursor: &mut Cursor) -> Result<TensorEntry> {
    let dimension_count = cursor.u32()?;
    if !(1..=DIMENSION_COUNT_MAX).contains(&dimension_count) {
        return Err(Error::input(format!(
            "has {dimension_count} dimensions: expected 1 to {DIMENSION_COUNT_MAX}"
        )));
    }
    let mut shape = Vec::new();
    let mut element_count = 1u64;
    for _ in 0..dimension_count {
        let size = cursor.u64()?;
        element_count = element_count
            .checked_mul(size)
            .ok_or_else(|| Error::input("has more elements than can be counted"))?;
        shape.push(usize::try_from(size).map_err(|_| Error::input("is too large"))?);
    }
    let quant = QuantType::from_code(cursor.u32()?)?;
    let block = quant.block_len() as u64;
    // The first dimension is the fastest one: a row is made of whole blocks.
    if !(shape[0] as u64).is_multiple_of(block) {
        return Err(Error::input(format!(
            "has rows of {} elements: expected a multiple of {block} for {quant:?}",
            shape[0]
        )));
    }
    let len_bytes = (element_count / block)
        .checked_mul(quant.block_bytes() as u64)
        .ok_or_else(|| Error::input("has more bytes than can be counted"))?;
    shape.reverse();
    Ok(TensorEntry { shape, quant, offset_bytes: cursor.u64()?, len_bytes })
}

/// Reads forward through bytes and never past their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len_bytes: usize) -> Result<&'a [u8]> {
        if len_bytes > self.left() {
            return Err(Error::input(format!(
                "the file ends too early: {len_bytes} bytes expected at byte {}, {} left",
                self.at,
                self.left()
            )));
        }
        let taken = &self.bytes[self.at..self.at + len_bytes];
        self.at += len_bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("`take` gave N bytes"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<Range<usize>> {
        let len_bytes = self.u64()?;
        if len_bytes > self.left() as u64 {
            return Err(Error::input(format!(
                "a string of {len_bytes} bytes at byte {} ends after the file",
                self.at
            )));
        }
        let start = self.at;
        self.at += len_bytes as usize;
        Ok(start..self.at)
    }

    fn name(&mut self) -> Result<String> {
        let range = self.text()?;
        if range.len() > NAME_BYTES_MAX {
            return Err(Error::input(format!(
                "a name at byte {} has {} bytes: expected at most {NAME_BYTES_MAX}",
                range.start,
                range.len()
            )));
        }
        std::str::from_utf8(&self.bytes[range.clone()])
            .map(str::to_owned)
            .map_err(|_| Error::input(format!("a name at byte {} is not UTF-8", range.start)))
    }

    fn value(&mut self, kind: Kind) -> Result<Value> {
        match kind {
            Kind::Text => self.text().map(Value::Text),
            Kind::Array => self.array_value().map(Value::Array),
            scalar => self.scalar(scalar),
        }
    }

    fn scalar(&mut self, kind: Kind) -> Result<Value> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            Kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            Kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            Kind::U32 => Value::Unsigned(u64::from(self.u32()?)),
            Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array()?)),
            Kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Kind::Bool => Value::Bool(self.array::<1>()?[0] != 0),
            Kind::Text | Kind::Array => {
                return Err(Error::Bug(format!("{kind:?} is not a scalar")));
            }
        })
    }

    fn array_value(&mut self) -> Result<Array> {
        let kind = Kind::from_code(self.u32()?)?;
        let count = self.u64()?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= self.left())
            .ok_or_else(|| Error::input(format!("an array of {count} ends after the file")))?;
        let start = self.at;
        match kind {
            Kind::Array => return Err(Error::input("arrays of arrays are not supported")),
            Kind::Text => {
                for _ in 0..count {
                    self.text()?;
                }
            }
            scalar => {
                let element = scalar.len_bytes().expect("text and arrays are handled above");
                // `count` is at most the file's length, so this cannot overflow 64 bits.
                self.take(count.saturating_mul(element))?;
            }
        }
        Ok(Array { kind, count, range: start..self.at })
    }
}
