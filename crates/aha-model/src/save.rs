//! Writes a model as a Hugging Face directory: aside first, then renamed into place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;
use serde_json::{Map, Value, json};

use crate::config::{Config, ids_value};
use crate::error::{Error, Result};
use crate::tokenizer::{Tokenizer, write_json};

/// The type of the numbers in a written file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveDtype {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, rounded to nearest even.
    Bf16,
}

impl SaveDtype {
    fn len_bytes(self) -> usize {
        match self {
            SaveDtype::F32 => 4,
            SaveDtype::Bf16 => 2,
        }
    }

    fn safetensors_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "F32",
            SaveDtype::Bf16 => "BF16",
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "float32",
            SaveDtype::Bf16 => "bfloat16",
        }
    }
}

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// The type of the numbers.
    pub dtype: SaveDtype,
    /// Weights beyond this go into further files. A single tensor is never split.
    pub shard_bytes_max: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        SaveOptions { dtype: SaveDtype::F32, shard_bytes_max: 5_000_000_000 }
    }
}

/// A tensor to write.
pub(crate) struct Tensor<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Cow<'a, [f32]>,
}

/// Writes `config.json`, `generation_config.json`, the weights and the tokenizer's files into
/// `dir`, replacing what was there. Readers see the old directory or the whole new one.
///
/// The tensors are those of [`Config::param_shapes`], in any order.
pub fn save<'a, V: Into<Cow<'a, [f32]>>>(
    dir: &Path,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, V)>,
    options: SaveOptions,
) -> Result<()> {
    config.validate()?;
    let tensors = in_order(config, tensors)?;
    save_aside(dir, |aside| write_files(aside, config, tokenizer, &tensors, options))
}

/// Has a directory written beside `dir`, and puts it in its place.
pub(crate) fn save_aside(dir: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = create_aside(dir)?;
    let written =
        write(&aside).and_then(|()| sync_dir(&aside)).and_then(|()| replace_dir(&aside, dir));
    if written.is_err() {
        // The first error is the one to report; a directory left behind does no harm.
        let _ = std::fs::remove_dir_all(&aside);
    }
    written
}

/// Whether [`save`] gives files this name. A directory that holds any other is more than a model, and not to
/// be replaced by one.
pub fn is_written(name: &str) -> bool {
    const WHOLE: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ];
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let shard = shard.and_then(|numbers| numbers.split_once("-of-"));
    WHOLE.contains(&name) || shard.is_some_and(|(i, count)| is_number(i) && is_number(count))
}

fn in_order<'a, V: Into<Cow<'a, [f32]>>>(
    config: &Config,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, V)>,
) -> Result<Vec<Tensor<'a>>> {
    let mut given: HashMap<String, (Vec<usize>, Cow<'a, [f32]>)> = HashMap::new();
    for (name, shape, values) in tensors {
        if given.insert(name.clone(), (shape, values.into())).is_some() {
            return Err(Error::Bug(format!("tensor `{name}` is given twice")));
        }
    }
    let mut ordered = Vec::new();
    for (name, shape) in config.param_shapes() {
        let (found, values) = given
            .remove(&name)
            .ok_or_else(|| Error::Bug(format!("tensor `{name}` is not given")))?;
        if found != shape || values.len() != shape.iter().product::<usize>() {
            return Err(Error::Bug(format!(
                "tensor `{name}` has the shape {found:?} and {} values: expected {shape:?}",
                values.len()
            )));
        }
        ordered.push(Tensor { name, shape, values });
    }
    match given.keys().min() {
        Some(name) => Err(Error::Bug(format!("tensor `{name}` is not part of the model"))),
        None => Ok(ordered),
    }
}

fn write_files(
    dir: &Path,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    tensors: &[Tensor],
    options: SaveOptions,
) -> Result<()> {
    let mut json = config.to_json();
    // transformers 4 reads the former, 5 the latter.
    json["torch_dtype"] = json!(options.dtype.torch_name());
    json["dtype"] = json!(options.dtype.torch_name());
    // As transformers does; and a model that was loaded and saved again has the same bytes.
    if let Value::Object(map) = &mut json {
        map.sort_keys();
    }
    write_json(&dir.join("config.json"), &json)?;
    let eos_ids = match tokenizer.map(Tokenizer::eos_ids) {
        Some(ids) if !ids.is_empty() => ids,
        _ => &config.eos_ids,
    };
    let generation = json!({
        "bos_token_id": config.bos_id, "eos_token_id": ids_value(eos_ids),
        "pad_token_id": config.pad_id,
    });
    write_json(&dir.join("generation_config.json"), &generation)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.check_fits(config)?;
        tokenizer.save(dir)?;
    }
    write_weights(dir, tensors, options)
}

fn write_weights(dir: &Path, tensors: &[Tensor], options: SaveOptions) -> Result<()> {
    let len_bytes = |tensor: &Tensor| (tensor.values.len() * options.dtype.len_bytes()) as u64;
    let mut shards: Vec<&[Tensor]> = Vec::new();
    let (mut start, mut shard_bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > start && shard_bytes + len_bytes(tensor) > options.shard_bytes_max {
            shards.push(&tensors[start..i]);
            (start, shard_bytes) = (i, 0);
        }
        shard_bytes += len_bytes(tensor);
    }
    shards.push(&tensors[start..]);
    if let [single] = shards[..] {
        return write_safetensors(&dir.join("model.safetensors"), single, options.dtype);
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_safetensors(&dir.join(&file), shard, options.dtype)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    let total_bytes: u64 = tensors.iter().map(len_bytes).sum();
    let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

pub(crate) fn write_safetensors(path: &Path, tensors: &[Tensor], dtype: SaveDtype) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset_bytes = 0;
    for tensor in tensors {
        let end_bytes = offset_bytes + tensor.values.len() * dtype.len_bytes();
        let info = json!({"dtype": dtype.safetensors_name(), "shape": tensor.shape,
                          "data_offsets": [offset_bytes, end_bytes]});
        header.insert(tensor.name.clone(), info);
        offset_bytes = end_bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |error| Error::io("write", path, error);
    let file = File::create(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut write = || -> std::io::Result<()> {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in tensors {
            write_values(&mut out, &tensor.values, dtype)?;
        }
        out.flush()?;
        out.get_ref().sync_all()
    };
    write().map_err(io)
}

fn write_values(out: &mut impl Write, values: &[f32], dtype: SaveDtype) -> std::io::Result<()> {
    const CHUNK_LEN: usize = 16 << 10;
    let mut bytes = Vec::with_capacity(CHUNK_LEN * dtype.len_bytes());
    for chunk in values.chunks(CHUNK_LEN) {
        bytes.clear();
        match dtype {
            SaveDtype::F32 => bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
            SaveDtype::Bf16 => {
                bytes.extend(chunk.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()));
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Makes an empty directory beside `dir`, on the same file system.
fn create_aside(dir: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = dir.file_name().ok_or_else(|| {
        Error::input(format!("`{}` is not the name of a directory to write", dir.display()))
    })?;
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let aside_name = format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id());
    let aside = dir.with_file_name(aside_name);
    if aside.exists() {
        // Left by a process of the same number that was killed.
        std::fs::remove_dir_all(&aside).map_err(|error| Error::io("remove", &aside, error))?;
    }
    std::fs::create_dir_all(&aside).map_err(|error| Error::io("create", &aside, error))?;
    Ok(aside)
}

/// Renames `aside` to `dir`. A directory that is there is exchanged with it in one step where the
/// file system can do that, else moved away first.
fn replace_dir(aside: &Path, dir: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let io = |error| Error::io("replace", dir, error);
    if dir.exists() {
        let old = match renameat_with(CWD, aside, CWD, dir, RenameFlags::EXCHANGE) {
            Ok(()) => aside.to_owned(),
            Err(_) => {
                let old = aside.with_extension("old");
                std::fs::rename(dir, &old).map_err(io)?;
                std::fs::rename(aside, dir).map_err(io)?;
                old
            }
        };
        std::fs::remove_dir_all(&old).map_err(|error| Error::io("remove", &old, error))?;
    } else {
        std::fs::rename(aside, dir).map_err(io)?;
    }
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => sync_dir(Path::new(".")),
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io("write", dir, error))
}
