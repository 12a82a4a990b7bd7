//! The numbers and models that all parts begin with: the same on every device.

use std::sync::Arc;

use aha_compute::random::Philox;
use aha_compute::{Device, Dtype, Tensor};
use aha_model::config::{Architecture, Config, Head, Rope};
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer};

use crate::{Error, Size};

/// Both kinds of activations.
pub(crate) const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Values in `[-1, 1)`. Heads of models have hundreds of millions, so a number is a few multiplications.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    // SplitMix64 (Steele, Lea and Flood 2014).
    let mix = |i: u64| {
        let x = (i + (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (0..len as u64).map(|i| (mix(i) >> 40) as f32 / 8_388_608.0 - 1.0).collect()
}

/// A tensor of [`noise`], rounded to the dtype.
pub(crate) fn tensor(device: &Device, seed: u64, shape: &[usize], dtype: Dtype) -> Tensor {
    let values = noise(seed, shape.iter().product());
    Tensor::from_slice(device, shape, &values).into_dtype(dtype)
}

/// The elements in the host's memory.
pub(crate) fn host(tensor: &Tensor) -> Vec<f32> {
    tensor.host().into_owned()
}

/// A model of each family: grouped heads, rotations and gates are in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Nothing beside them; a head of its own.
    Llama,
    /// As the first, with the embedding as head.
    Tied,
    /// Biases on queries, keys and values; the embedding as head.
    Qwen2,
    /// Norms over each head.
    Qwen3,
}

impl Family {
    pub(crate) const ALL: [Family; 4] = [Family::Llama, Family::Tied, Family::Qwen2, Family::Qwen3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Tied => "llama, tied",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// Heads of a width that tensor cores take; a vocabulary and a feed-forward layer that are no multiple of a tile.
    pub(crate) fn config(self, size: Size) -> Config {
        let architecture = match self {
            Family::Llama | Family::Tied => Architecture::Llama,
            Family::Qwen2 => Architecture::Qwen2,
            Family::Qwen3 => Architecture::Qwen3,
        };
        // Width, width of the MLP, layers, heads, key heads, width of a head.
        let [hidden_size, intermediate_size, layer_count, head_count, kv_head_count, head_dim] =
            match size {
                Size::Small => [64, 104, 2, 2, 1, 64],
                Size::Full => [256, 712, 3, 6, 2, 64],
            };
        Config {
            architecture,
            vocab_size: 307,
            hidden_size,
            intermediate_size,
            layer_count,
            head_count,
            kv_head_count,
            head_dim,
            rms_norm_eps: 1e-6,
            rope: Rope::plain(10_000.0),
            head: Head::Language,
            tie_word_embeddings: matches!(self, Family::Tied | Family::Qwen2),
            attention_bias: false,
            max_position_embeddings: 1024,
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
            initializer_range: 0.08,
            extra: Default::default(),
        }
    }

    /// Random weights, of which norms and biases are random too.
    pub(crate) fn model(self, size: Size, device: &Device) -> Result<Model, Error> {
        let mut model = Model::random(self.config(size), device, Philox::new(11))?;
        let params = model.params_mut();
        for (seed, id) in (100..).zip(params.ids()) {
            let (name, value) = (params.name(id).to_owned(), params.value(id));
            let (shape, shift) = match value.shape() {
                shape @ [_] => (shape.to_vec(), f32::from(u8::from(name.ends_with("norm.weight")))),
                _ => continue,
            };
            let values: Vec<f32> =
                noise(seed, shape[0]).into_iter().map(|x| shift + 0.2 * x).collect();
            params.value_mut(id).write(&values);
        }
        Ok(model)
    }
}

/// Tokens of a family's vocabulary.
pub(crate) fn ids(seed: u64, len: usize) -> Vec<u32> {
    let random = Philox::new(seed).derive("ids");
    (0..len as u64).map(|i| (random.bits(&[i]) % 307) as u32).collect()
}

/// Any tokenizer does: no text is looked at.
pub(crate) fn tokenizer() -> Result<Arc<Tokenizer>, Error> {
    let options =
        TrainOptions { vocab_size: 257, alphabet: Alphabet::Full, ..TrainOptions::default() };
    Ok(Arc::new(tokenizer_train::train(["a"], &options)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_a_model_whose_norms_and_biases_are_random() {
        for family in Family::ALL {
            let model = family.model(Size::Small, &Device::cpu(1)).unwrap();
            family.config(Size::Full).validate().unwrap();
            let params = model.params();
            for id in params.ids().filter(|id| params.value(*id).shape().len() == 1) {
                let values = params.value(id).as_slice();
                assert!(values.iter().any(|x| *x != values[0]), "{}", params.name(id));
            }
            let has = |end: &str| params.ids().any(|id| params.name(id).ends_with(end));
            assert_eq!(has("q_proj.bias"), family == Family::Qwen2);
            assert_eq!(has("q_norm.weight"), family == Family::Qwen3);
            assert_eq!(has("lm_head.weight"), matches!(family, Family::Llama | Family::Qwen3));
        }
    }
}
