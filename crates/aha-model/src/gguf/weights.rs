//! A GGUF's tensors under their Hugging Face names.

use std::collections::HashMap;
use std::path::Path;

use super::{Gguf, TensorInfo};
use crate::config::{Architecture, Config};
use crate::error::{Error, Result};
use crate::weights::{WeightSource, check_len, check_tensors};

/// The weights of a GGUF file, dequantized as they are read.
#[derive(Debug)]
pub struct GgufWeights {
    gguf: Gguf,
    config: Config,
    /// From Hugging Face names.
    tensors: HashMap<String, TensorInfo>,
}

impl GgufWeights {
    /// Opens the file and checks every tensor against its metadata.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf.config()?;
        let mut tensors = HashMap::new();
        let mut others: Vec<String> = Vec::new();
        for (name, info) in &gguf.tensors {
            match hugging_face_name(name) {
                Some(name) => drop(tensors.insert(name, info.clone())),
                None if name == "rope_freqs.weight" => {}
                None => others.push(name.clone()),
            }
        }
        // Sorted, so that the same broken file always gives the same message.
        others.extend(tensors.keys().cloned());
        others.sort_unstable();
        let shape = |name: &str| tensors.get(name).map(|info| info.shape.clone());
        check_tensors(&config, shape, others.iter().map(String::as_str))
            .map_err(|error| error.at(path))?;
        Ok(GgufWeights { gguf, config, tensors })
    }

    /// The heads of a tensor whose rows llama.cpp reorders, none for all others.
    fn permuted_head_count(&self, name: &str) -> Option<usize> {
        if self.config.architecture != Architecture::Llama {
            return None;
        }
        if name.contains(".q_proj.") {
            return Some(self.config.head_count);
        }
        name.contains(".k_proj.").then_some(self.config.kv_head_count)
    }
}

impl WeightSource for GgufWeights {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tensor(&mut self, name: &str, out: &mut [f32]) -> Result<()> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::Bug(format!("tensor `{name}` is not in the file")))?;
        let element_count = info.shape.iter().product();
        check_len(name, out.len(), element_count)?;
        let bytes = self.gguf.data(info);
        let Some(head_count) = self.permuted_head_count(name) else {
            info.quant.dequantize(bytes, out);
            return Ok(());
        };
        let mut file_order = vec![0.0; element_count];
        info.quant.dequantize(bytes, &mut file_order);
        unpermute(&file_order, out, info.shape[0], head_count);
        Ok(())
    }
}

/// Undoes llama.cpp's order of a head's rows. It keeps the two members of each pair that RoPE turns
/// side by side; transformers keeps all first members, then all second ones.
fn unpermute(file_order: &[f32], out: &mut [f32], row_count: usize, head_count: usize) {
    let row_len = file_order.len() / row_count;
    let head_dim = row_count / head_count;
    for (row_idx, row) in file_order.chunks_exact(row_len).enumerate() {
        let (head_idx, in_head) = (row_idx / head_dim, row_idx % head_dim);
        let (pair_idx, member) = (in_head / 2, in_head % 2);
        let to = (head_idx * head_dim + member * (head_dim / 2) + pair_idx) * row_len;
        out[to..to + row_len].copy_from_slice(row);
    }
}

fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer_idx, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // `00` and `+0` would be second names of layer 0.
    let layer_idx = layer_idx.parse().ok().filter(|idx: &usize| idx.to_string() == layer_idx)?;
    let (part, kind) = rest.split_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let part = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer_idx}.{part}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's `permute`, restated: reshape (heads, 2, half, row), swap the middle two.
    fn permute(rows: &[f32], head_count: usize, row_len: usize) -> Vec<f32> {
        let head_dim = rows.len() / row_len / head_count;
        let mut out = Vec::new();
        for head in 0..head_count {
            for pair in 0..head_dim / 2 {
                for member in 0..2 {
                    let row = head * head_dim + member * (head_dim / 2) + pair;
                    out.extend_from_slice(&rows[row * row_len..(row + 1) * row_len]);
                }
            }
        }
        out
    }

    #[test]
    fn unpermuting_undoes_the_permutation() {
        let rows: Vec<f32> = (0..3 * 8 * 5).map(|i| i as f32).collect();
        let mut out = vec![0.0; rows.len()];
        unpermute(&permute(&rows, 3, 5), &mut out, 24, 3);
        assert_eq!(out, rows);
    }

    #[test]
    fn names_are_those_of_transformers() {
        let name = hugging_face_name("blk.11.attn_output.weight").unwrap();
        assert_eq!(name, "model.layers.11.self_attn.o_proj.weight");
        for other in ["blk.0.ffn_gate_inp.weight", "blk.00.attn_q.weight", "blk.+0.attn_q.weight"] {
            assert_eq!(hugging_face_name(other), None, "{other}");
        }
    }
}
