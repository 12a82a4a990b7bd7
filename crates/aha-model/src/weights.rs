//! Weights of a checkpoint, read tensor by tensor as f32.

mod safetensors;

use std::path::Path;

pub use self::safetensors::SafetensorsWeights;
pub(crate) use self::safetensors::{TensorFiles, read_bf16, read_f16, read_f32};

use crate::config::{Config, Head, LM_HEAD_WEIGHT, SCORE_WEIGHT};
use crate::error::{Error, Result};
use crate::gguf::GgufWeights;

/// A checkpoint whose tensors have the Hugging Face names and shapes of its
/// [`Config::param_shapes`]; all of that was checked when it was opened.
pub trait WeightSource: Send {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// Writes the tensor `name` into `out`, whose length is the number of its elements.
    fn tensor(&mut self, name: &str, out: &mut [f32]) -> Result<()>;
}

/// Opens a Hugging Face directory or a `.gguf` file.
pub fn open(path: &Path) -> Result<Box<dyn WeightSource>> {
    if path.is_dir() {
        return Ok(Box::new(SafetensorsWeights::open(path)?));
    }
    if is_gguf(path) {
        return Ok(Box::new(GgufWeights::open(path)?));
    }
    if !path.exists() {
        return Err(Error::input(format!("model `{}` not found", path.display())));
    }
    Err(Error::input(format!(
        "model `{}` is neither a directory in Hugging Face layout nor a .gguf file",
        path.display()
    )))
}

/// Whether the path names a file in GGUF.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Compares what a checkpoint holds with what its config asks for.
///
/// An `lm_head.weight` that the model has no use for and RoPE's buffers are passed over, as transformers
/// does.
pub(crate) fn check_tensors<'a>(
    config: &Config,
    mut found: impl FnMut(&str) -> Option<Vec<usize>>,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let expected = config.param_shapes();
    for (name, shape) in &expected {
        let Some(found) = found(name) else {
            let error = Error::input(format!("tensor `{name}` of shape {shape:?} is missing"));
            return Err(match name.as_str() {
                LM_HEAD_WEIGHT => {
                    error.hint("if the head is the embedding, config.json says tie_word_embeddings")
                }
                SCORE_WEIGHT => {
                    error.hint("a reward model has the head that scores; is this one whole?")
                }
                _ => error,
            });
        };
        if found != *shape {
            return Err(Error::input(format!(
                "tensor `{name}` has the shape {found:?}: expected {shape:?}"
            )));
        }
    }
    let expected: std::collections::HashSet<&str> =
        expected.iter().map(|(name, _)| name.as_str()).collect();
    for name in names {
        let has_no_lm_head = config.tie_word_embeddings || config.head == Head::Score;
        let is_passed_over =
            (name == LM_HEAD_WEIGHT && has_no_lm_head) || name.ends_with(".rotary_emb.inv_freq");
        if !expected.contains(name) && !is_passed_over {
            return Err(Error::input(format!(
                "tensor `{name}` is not part of a {} model with this config",
                config.architecture.name()
            )));
        }
    }
    Ok(())
}

/// The error of a caller whose buffer doesn't fit; our own mistake.
pub(crate) fn check_len(name: &str, out_len: usize, element_count: usize) -> Result<()> {
    if out_len == element_count {
        return Ok(());
    }
    Err(Error::Bug(format!(
        "buffer for tensor `{name}` has {out_len} elements: expected {element_count}"
    )))
}

/// Maps a file into memory for reading.
pub(crate) fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
    // SAFETY: the map is only read. A file that another process shortens meanwhile ends this
    // process with SIGBUS; checkpoints are therefore replaced by renaming, never in place.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))
}
