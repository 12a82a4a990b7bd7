//! What a configuration takes: FLOPs, and about how much memory.

use aha_model::Config;

use super::Sequences;
use super::job::{Batch, Work};
use super::limits::{forward_flop, train_flop};
use crate::text;

/// Bytes that a process needs beside what is counted here.
const PROGRAM_BYTES: f64 = 200e6;

/// What a configuration takes.
pub struct Needs {
    /// Tokens of its longest sequence.
    pub len_tokens: usize,
    /// Floating-point operations of a run.
    pub flop: f64,
    /// About, by the parts that grow: weights (and packed ones, and in training gradients and moments),
    /// activations, keys and values.
    pub bytes: f64,
}

impl Needs {
    /// What `work` takes of a model of this shape.
    pub fn of(config: &Config, work: &Work) -> Needs {
        let params = config.param_count() as f64;
        let (layers, hidden) = (config.layer_count as f64, config.hidden_size as f64);
        let query = (config.head_count * config.head_dim) as f64;
        let key = (config.kv_head_count * config.head_dim) as f64;
        let inner = 2.0 * query + 2.0 * key + 3.0 * config.intermediate_size as f64;
        let (sequences, flop, floats) = match work {
            Work::Decode(sampled) => {
                let len_tokens = sampled.prompt_tokens + sampled.new_tokens;
                let sequences = Sequences { count: sampled.sequences(), len_tokens };
                let cache = sequences.tokens() as f64 * layers * 2.0 * key;
                (sequences, forward_flop(config, sequences), 2.0 * params + cache)
            }
            Work::Logprob(batch) => {
                let flop = forward_flop(config, batch.sequences);
                let activations = micro_batch(batch) * (6.0 * hidden + inner);
                (batch.sequences, flop, 2.0 * params + activations)
            }
            Work::Train(batch) => {
                let layer = 4.0 * hidden + inner;
                let kept = match batch.checkpointing {
                    true => 2.0 * layers * hidden + layer,
                    false => layers * layer,
                };
                let backward = 7.0 * hidden + 2.0 * config.intermediate_size as f64;
                let lookups = (config.vocab_size * config.hidden_size) as f64;
                let floats = 5.0 * params + lookups + micro_batch(batch) * (kept + backward);
                (batch.sequences, train_flop(config, batch.sequences), floats)
            }
            Work::Grpo { sampled, kl_coef, micro_batch_tokens, checkpointing } => {
                let len_tokens = sampled.prompt_tokens + sampled.new_tokens;
                let sequences = Sequences { count: sampled.sequences(), len_tokens };
                let batch = Batch {
                    sequences,
                    micro_batch_tokens: *micro_batch_tokens,
                    checkpointing: *checkpointing,
                };
                let drawn = Needs::of(config, &Work::Decode(*sampled));
                let trained = Needs::of(config, &Work::Train(batch));
                let reference = if *kl_coef == 0.0 { 0.0 } else { 2.0 * params };
                let floats = drawn.floats().max(trained.floats()) + reference;
                (sequences, drawn.flop + trained.flop, floats)
            }
        };
        let bytes = PROGRAM_BYTES + floats * size_of::<f32>() as f64;
        Needs { len_tokens: sequences.len_tokens, flop, bytes }
    }

    fn floats(&self) -> f64 {
        (self.bytes - PROGRAM_BYTES) / size_of::<f32>() as f64
    }

    /// Why there isn't enough memory; none where there is, or where the system doesn't say.
    pub fn exceeded(&self) -> Option<String> {
        let has = aha_flow::machine::memory();
        let has_bytes = has.available_bytes.into_iter().chain(has.limit_bytes).min()?;
        (self.bytes > has_bytes as f64).then(|| {
            let [needs, has] = [self.bytes as u64, has_bytes].map(text::size);
            format!("needs {needs}, there are {has}")
        })
    }
}

/// Tokens that are in memory at once: a sequence always is.
fn micro_batch(batch: &Batch) -> f64 {
    let most = batch.micro_batch_tokens.max(batch.sequences.len_tokens);
    most.min(batch.sequences.tokens()) as f64
}

#[cfg(test)]
mod tests {
    use super::super::job::Sampled;
    use super::super::subject::Shape;
    use super::*;

    const BATCH: Sequences = Sequences { count: 8, len_tokens: 128 };

    #[test]
    fn training_a_model_of_a_billion_parameters_needs_more_than_twenty_gib() {
        let batch = Batch { sequences: BATCH, micro_batch_tokens: 4096, checkpointing: false };
        let needs = |shape: Shape, work| Needs::of(&shape.config(), &work);
        let gib = f64::from(1 << 30);
        let large = needs(Shape::LlamaB1, Work::Train(batch));
        assert!((23.0..30.0).contains(&(large.bytes / gib)), "{}", large.bytes);
        let sampled = Sampled { prompts: 8, samples: 1, prompt_tokens: 112, new_tokens: 16 };
        let decoded = needs(Shape::LlamaB1, Work::Decode(sampled));
        assert!((9.0..10.5).contains(&(decoded.bytes / gib)), "{}", decoded.bytes);
        let small = needs(Shape::M1, Work::Train(batch));
        assert!(small.bytes < gib && small.flop < large.flop / 500.0);
    }

    #[test]
    fn a_step_of_grpo_needs_what_its_larger_half_does_and_a_reference() {
        let sampled = Sampled { prompts: 1, samples: 8, prompt_tokens: 64, new_tokens: 64 };
        let grpo = |kl_coef| {
            let work =
                Work::Grpo { sampled, kl_coef, micro_batch_tokens: 4096, checkpointing: false };
            Needs::of(&Shape::Smollm2M135.config(), &work)
        };
        let batch = Batch { sequences: BATCH, micro_batch_tokens: 4096, checkpointing: false };
        let train = Needs::of(&Shape::Smollm2M135.config(), &Work::Train(batch));
        assert_eq!(grpo(0.0).bytes, train.bytes);
        let reference = grpo(0.04).bytes - grpo(0.0).bytes;
        assert!((1.0e9..1.2e9).contains(&reference), "{reference}");
        assert!(grpo(0.0).exceeded().is_none());
        assert!(Needs { bytes: 1e18, ..grpo(0.0) }.exceeded().is_some());
    }
}
