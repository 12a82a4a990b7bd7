//! GGUF, version 2 and 3: metadata, tensors, config and tokenizer.
//!
//! The file is mapped. Every length in it is compared with the bytes that are left before anything
//! is read or allocated.

mod config;
mod dequant;
mod parse;
mod spm;
mod tokenizer;
mod weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use dequant::QuantType;
pub use weights::GgufWeights;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use parse::{Array, Value};

/// A GGUF file, mapped, with its directory parsed and checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug)]
struct TensorInfo {
    /// As Hugging Face orders them: the fastest dimension last.
    shape: Vec<usize>,
    quant: QuantType,
    /// Bytes in the file.
    range: std::ops::Range<usize>,
}

impl Gguf {
    /// Maps the file and parses its directory.
    pub fn open(path: &Path) -> Result<Self> {
        let map = crate::weights::map_file(path)?;
        let directory = parse::directory(&map).map_err(|error| error.at(path))?;
        Ok(Gguf {
            path: path.to_owned(),
            map,
            metadata: directory.metadata,
            tensors: directory.tensors,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> Result<Config> {
        config::read(self).map_err(|error| error.at(&self.path))
    }

    /// The tokenizer in the metadata.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer::read(self).map_err(|error| error.at(&self.path))
    }

    fn data(&self, info: &TensorInfo) -> &[u8] {
        &self.map[info.range.clone()]
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => std::str::from_utf8(&self.map[range.clone()])
                .map(Some)
                .map_err(|_| Error::input(format!("`{key}` is not UTF-8"))),
            Some(_) => Err(Error::input(format!("`{key}` is not a string"))),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) => u64::try_from(*value)
                .map(Some)
                .map_err(|_| Error::input(format!("`{key}` is {value}: expected at least 0"))),
            // A model whose layers differ in a size states it as an array.
            Some(Value::Array(_)) => {
                Err(Error::input(format!("`{key}` differs by layer, which is not supported")))
            }
            Some(_) => Err(Error::input(format!("`{key}` is not a whole number"))),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let to_size = |value| {
            usize::try_from(value).map_err(|_| Error::input(format!("`{key}` is too large")))
        };
        self.integer(key)?.map(to_size).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => Ok(self.integer(key)?.map(|value| value as f64)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(Error::input(format!("`{key}` is not a boolean"))),
        }
    }

    fn array(&self, key: &str) -> Result<Option<&Array>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(Error::input(format!("`{key}` is not an array"))),
        }
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.array(key)?.map(|array| array.texts(&self.map, key)).transpose()
    }

    fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.array(key)?.map(|array| array.integers(&self.map, key)).transpose()
    }

    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.array(key)?.map(|array| array.floats(&self.map, key)).transpose()
    }
}
