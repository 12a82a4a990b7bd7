//! A GGUF's metadata as a [`Config`].

use serde_json::Map;

use super::Gguf;
use crate::config::{Architecture, Config, Head, Rope, RopeScaling, VOCAB_SIZE_MAX, infer_llama3};
use crate::error::{Error, Result};

/// Longest `rope_freqs.weight` that is read; half of the largest head.
const ROPE_DIVISOR_COUNT_MAX: usize = 512;

pub(super) fn read(gguf: &Gguf) -> Result<Config> {
    let name = gguf
        .text("general.architecture")?
        .ok_or_else(|| Error::input("`general.architecture` is missing"))?;
    let architecture = Architecture::from_name(name)?;
    let keys = Keys { gguf, architecture };
    refuse_unsupported(&keys)?;

    let hidden_size = keys.required("embedding_length")?;
    let head_count = keys.required("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(head_count).unwrap_or(0),
    };
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(size) = keys.size(other)?.filter(|size| *size != head_dim) {
            return Err(Error::input(format!(
                "`{}` is {size}: expected the head's width, {head_dim}",
                keys.key(other)
            )));
        }
    }
    let max_position_embeddings = keys.required("context_length")?;
    let config = Config {
        architecture,
        vocab_size: vocab_size(gguf)?,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        layer_count: keys.required("block_count")?,
        head_count,
        kv_head_count: keys.size("attention.head_count_kv")?.unwrap_or(head_count),
        head_dim,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
        rope: read_rope(&keys, max_position_embeddings)?,
        head: Head::Language,
        tie_word_embeddings: !gguf.tensors.contains_key("output.weight"),
        attention_bias: architecture != Architecture::Qwen2
            && gguf.tensors.contains_key("blk.0.attn_q.bias"),
        max_position_embeddings,
        bos_id: special(gguf, "tokenizer.ggml.bos_token_id")?,
        eos_ids: eos_ids(gguf)?,
        pad_id: special(gguf, "tokenizer.ggml.padding_token_id")?,
        initializer_range: 0.02,
        extra: Map::new(),
    };
    config.validate()?;
    Ok(config)
}

fn refuse_unsupported(keys: &Keys) -> Result<()> {
    for (name, what) in [
        ("expert_count", "mixtures of experts are"),
        ("attention.sliding_window", "sliding-window attention is"),
    ] {
        if keys.gguf.integer(&keys.key(name))?.unwrap_or(0) != 0 {
            return Err(Error::input(format!("`{}` is set: {what} not supported", keys.key(name))));
        }
    }
    Ok(())
}

fn vocab_size(gguf: &Gguf) -> Result<usize> {
    let info = gguf
        .tensors
        .get("token_embd.weight")
        .ok_or_else(|| Error::input("tensor `token_embd.weight` is missing"))?;
    match info.shape[..] {
        [vocab_size, _] if vocab_size <= VOCAB_SIZE_MAX => Ok(vocab_size),
        _ => Err(Error::input(format!(
            "tensor `token_embd.weight` has the shape {:?}: expected a matrix with up to \
             {VOCAB_SIZE_MAX} rows",
            info.shape
        ))),
    }
}

fn read_rope(keys: &Keys, max_positions: usize) -> Result<Rope> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10000.0);
    let factor = || keys.number("rope.scaling.factor");
    let original = || -> Result<f64> {
        let original = keys.number("rope.scaling.original_context_length")?;
        Ok(original.unwrap_or(max_positions as f64))
    };
    let kind = keys.gguf.text(&keys.key("rope.scaling.type"))?.unwrap_or("none");
    if keys.number("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(Error::input(format!(
            "`{}` is not supported",
            keys.key("rope.scaling.attn_factor")
        )));
    }
    let scaling = match kind {
        "none" => divisors(keys.gguf, theta)?.unwrap_or(RopeScaling::Default),
        "linear" => RopeScaling::Linear { factor: factor()?.unwrap_or(1.0) },
        "yarn" => RopeScaling::Yarn {
            factor: factor()?.unwrap_or(1.0),
            original_max_position_embeddings: original()?,
            attention_factor: None,
            beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        },
        other => {
            return Err(Error::input(format!(
                "RoPE scaling `{other}` is not supported: expected none, linear or yarn"
            )));
        }
    };
    Ok(Rope { theta, scaling })
}

/// The `llama3` scaling that llama.cpp stores as one divisor per frequency.
fn divisors(gguf: &Gguf, theta: f64) -> Result<Option<RopeScaling>> {
    let Some(info) = gguf.tensors.get("rope_freqs.weight") else { return Ok(None) };
    let count: usize = info.shape.iter().product();
    if info.shape.len() != 1 || count > ROPE_DIVISOR_COUNT_MAX {
        return Err(Error::input(format!(
            "tensor `rope_freqs.weight` has the shape {:?}: expected half a head's width",
            info.shape
        )));
    }
    let mut values = vec![0.0; count];
    info.quant.dequantize(gguf.data(info), &mut values);
    infer_llama3(&values, theta).map(Some).ok_or_else(|| {
        Error::input("tensor `rope_freqs.weight` is not the RoPE scaling of a Llama 3 model")
            .hint("load the model's Hugging Face directory, which states the scaling")
    })
}

fn special(gguf: &Gguf, key: &str) -> Result<Option<u32>> {
    let to_id = |id: u64| {
        u32::try_from(id).map_err(|_| Error::input(format!("`{key}` is {id}: not a token id")))
    };
    // Converters write the largest u32 for "none".
    Ok(gguf.integer(key)?.map(to_id).transpose()?.filter(|id| *id != u32::MAX))
}

/// The tokens that end a completion: of the text, and of a turn where that is another one.
pub(super) fn eos_ids(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(special(gguf, key)?.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

/// Metadata under the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        self.gguf.size(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.gguf.number(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| Error::input(format!("`{}` is missing", self.key(name))))
    }
}
