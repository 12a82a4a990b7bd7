//! Safetensors: one file, or shards listed in an index; f32, f16 and bf16.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{WeightSource, check_len, check_tensors, map_file};
use crate::config::{Config, read_json};
use crate::error::{Error, Result};

const INDEX_BYTES_MAX: u64 = 64 << 20;
const SHARD_COUNT_MAX: usize = 4096;

/// The weights of a Hugging Face directory.
#[derive(Debug)]
pub struct SafetensorsWeights {
    config: Config,
    files: TensorFiles,
}

/// Tensors of safetensors files, mapped into memory.
#[derive(Debug, Default)]
pub(crate) struct TensorFiles {
    shards: Vec<Mmap>,
    tensors: HashMap<String, Location>,
}

#[derive(Debug)]
struct Location {
    shard_idx: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes in the shard.
    range: std::ops::Range<usize>,
}

impl SafetensorsWeights {
    /// Opens `dir` and checks every tensor against its `config.json`.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = Config::load(dir)?;
        let index_path = dir.join("model.safetensors.index.json");
        let files = match index_path.exists() {
            true => TensorFiles::open_shards(dir, &index_path)?,
            false => TensorFiles::open(&dir.join("model.safetensors"))?,
        };
        let weights = SafetensorsWeights { config, files };
        weights.check().map_err(|error| error.at(dir))?;
        Ok(weights)
    }

    fn check(&self) -> Result<()> {
        let shape = |name: &str| self.files.shape(name).map(<[usize]>::to_vec);
        // Sorted, so that the same broken checkpoint always gives the same message.
        check_tensors(&self.config, shape, self.files.names().into_iter())?;
        self.config.param_shapes().iter().try_for_each(|(name, _)| self.files.check_dtype(name))
    }
}

impl TensorFiles {
    /// Opens a file.
    pub(crate) fn open(path: &Path) -> Result<TensorFiles> {
        let mut files = TensorFiles::default();
        files.add_file(path)?;
        Ok(files)
    }

    fn open_shards(dir: &Path, index_path: &Path) -> Result<TensorFiles> {
        let mut opened = TensorFiles::default();
        let index = read_json(index_path, INDEX_BYTES_MAX)?;
        let file_of = weight_map(&index).map_err(|error| error.at(index_path))?;
        let mut files: Vec<&str> = file_of.values().copied().collect();
        files.sort_unstable();
        files.dedup();
        if files.len() > SHARD_COUNT_MAX {
            return Err(Error::input(format!(
                "`{}` names {} files: expected at most {SHARD_COUNT_MAX}",
                index_path.display(),
                files.len()
            )));
        }
        for file in &files {
            opened.add_file(&dir.join(file))?;
        }
        for (name, file) in file_of {
            let Some(location) = opened.tensors.get(name) else {
                return Err(
                    Error::input(format!("tensor `{name}` is not in `{file}`")).at(index_path)
                );
            };
            if files[location.shard_idx] != file {
                return Err(Error::input(format!(
                    "tensor `{name}` is in `{}`: expected in `{file}`",
                    files[location.shard_idx]
                ))
                .at(index_path));
            }
        }
        Ok(opened)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let map = map_file(path)?;
        let broken = |error: safetensors::SafeTensorError| {
            Error::input("not a valid safetensors file").caused_by(error).at(path)
        };
        let (header_len_bytes, metadata) = SafeTensors::read_metadata(&map).map_err(broken)?;
        let data_start = 8 + header_len_bytes;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let range = start.saturating_add(data_start)..end.saturating_add(data_start);
            if map.get(range.clone()).is_none() {
                return Err(Error::input(format!("tensor `{name}` ends after the file")).at(path));
            }
            let location = Location {
                shard_idx: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            };
            if self.tensors.insert(name.clone(), location).is_some() {
                return Err(Error::input(format!("tensor `{name}` is in two files")).at(path));
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// Names of all tensors, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|location| location.shape.as_slice())
    }

    /// Fails for a tensor that isn't there, has another shape or numbers of a kind that isn't read.
    pub(crate) fn check_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        match self.shape(name) {
            None => Err(Error::input(format!("tensor `{name}` of shape {expected:?} is missing"))),
            Some(found) if found != expected => Err(Error::input(format!(
                "tensor `{name}` has the shape {found:?}: expected {expected:?}"
            ))),
            Some(_) => self.check_dtype(name),
        }
    }

    fn check_dtype(&self, name: &str) -> Result<()> {
        match self.tensors.get(name).map(|location| location.dtype) {
            None | Some(Dtype::F32 | Dtype::F16 | Dtype::BF16) => Ok(()),
            Some(dtype) => Err(Error::input(format!(
                "tensor `{name}` has the type {dtype:?}: expected F32, F16 or BF16"
            ))),
        }
    }

    /// Writes a tensor into `out`, whose length is the number of its elements.
    pub(crate) fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let location = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::Bug(format!("tensor `{name}` is not in the checkpoint")))?;
        check_len(name, out.len(), location.shape.iter().product())?;
        let bytes = &self.shards[location.shard_idx][location.range.clone()];
        match location.dtype {
            Dtype::F32 => read_f32(bytes, out),
            Dtype::F16 => read_f16(bytes, out),
            Dtype::BF16 => read_bf16(bytes, out),
            other => return Err(Error::Bug(format!("type {other:?} was refused at opening"))),
        }
        Ok(())
    }
}

impl WeightSource for SafetensorsWeights {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tensor(&mut self, name: &str, out: &mut [f32]) -> Result<()> {
        self.files.read(name, out)
    }
}

fn weight_map(index: &Value) -> Result<BTreeMap<&str, &str>> {
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::input("`weight_map` is missing or not a map"))?;
    map.iter()
        .map(|(name, file)| match file.as_str() {
            // A path could lead out of the directory.
            Some(file) if is_plain_file_name(file) => Ok((name.as_str(), file)),
            _ => Err(Error::input(format!("tensor `{name}` is in {file}: expected a file name"))),
        })
        .collect()
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != ".."
}

/// Little-endian f32 to f32. Lengths match.
pub(crate) fn read_f32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

/// Little-endian f16 to f32. Lengths match.
pub(crate) fn read_f16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f16::from_le_bytes(*bytes).to_f32();
    }
}

/// Little-endian bf16 to f32. Lengths match.
pub(crate) fn read_bf16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = bf16::from_le_bytes(*bytes).to_f32();
    }
}
