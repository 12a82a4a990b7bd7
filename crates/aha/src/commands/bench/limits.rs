//! What the machine allows, and what a model's work comes to.

use aha_compute::{Device, Dtype, WeightForm, measure};
use aha_model::Config;
use aha_model::config::Head;

use super::Sequences;

/// What the machine reached a moment ago.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// FLOP/s of sums of products, of the fastest instruction for what the model computes with.
    pub flop_per_second: f64,
    /// Bytes per second read from memory.
    pub read_bytes_per_second: f64,
}

impl Limits {
    /// Measures them.
    pub fn take(device: &Device) -> Limits {
        Limits {
            flop_per_second: flop_per_second(device),
            read_bytes_per_second: measure::read_bytes_per_second(device),
        }
    }

    /// The better of both.
    pub fn max(&self, other: &Limits) -> Limits {
        Limits {
            flop_per_second: self.flop_per_second.max(other.flop_per_second),
            read_bytes_per_second: self.read_bytes_per_second.max(other.read_bytes_per_second),
        }
    }
}

/// Parameters that take part in a product for each token: all but an embedding that is only looked up.
pub fn multiplied_params(config: &Config) -> usize {
    let is_looked_up = !(config.head == Head::Language && config.tie_word_embeddings);
    let embedding = config.vocab_size * config.hidden_size;
    config.param_count() - if is_looked_up { embedding } else { 0 }
}

/// FLOPs of a forward pass: two per token and parameter, and those of causal attention.
pub fn forward_flop(config: &Config, sequences: Sequences) -> f64 {
    let len = sequences.len_tokens as f64;
    let width = (config.layer_count * config.head_count * config.head_dim) as f64;
    // Scores and mixing: two products of each position with its own key and those before it.
    let attention = sequences.count as f64 * 4.0 * width * len * (len + 1.0) / 2.0;
    2.0 * multiplied_params(config) as f64 * sequences.tokens() as f64 + attention
}

/// FLOPs of a training step: forward, and twice as many backward. What is computed again isn't counted.
pub fn train_flop(config: &Config, sequences: Sequences) -> f64 {
    3.0 * forward_flop(config, sequences)
}

/// Bytes of weights that a decode step reads, however many sequences share it; the scales of int8 are left out.
pub fn weight_bytes(config: &Config, dtype: Dtype, weights: WeightForm) -> f64 {
    let bytes = match weights {
        WeightForm::Same => dtype.bytes(),
        WeightForm::Int8 => 1,
    };
    (multiplied_params(config) * bytes) as f64
}

/// FLOP/s that a device reaches with what its models compute with. bf16 numbers are multiplied as `f32` where that is
/// faster.
pub fn flop_per_second(device: &Device) -> f64 {
    if device.is_cuda() && device.dtype() == Dtype::Bf16 {
        return measure::bf16_flop_per_second(device).unwrap_or(f64::NAN);
    }
    let floats = measure::f32_flop_per_second(device);
    match device.dtype() {
        Dtype::F32 => floats,
        Dtype::Bf16 => {
            measure::bf16_flop_per_second(device).map_or(floats, |pairs| pairs.max(floats))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Shape;
    use super::*;

    #[test]
    fn a_token_of_smollm2_takes_as_much_arithmetic_as_is_known() {
        let config = Shape::Smollm2M135.config();
        let sequences = Sequences { count: 8, len_tokens: 256 };
        let per_token = train_flop(&config, sequences) / sequences.tokens() as f64;
        // 0.81 GFLOP in products with weights; attention at this length adds two per cent.
        assert!((0.81e9..0.84e9).contains(&per_token), "{per_token}");
        let untied = Config { tie_word_embeddings: false, ..config.clone() };
        assert_eq!(multiplied_params(&untied), multiplied_params(&config));
    }
}
