//! Predicts the memory of a stage, before it hurts.
//!
//! With P parameters, L layers, width H, MLP width I, query width Q = heads * head_dim, key width
//! K = kv_heads * head_dim, vocabulary V, and T tokens in a micro-batch, all in f32 (4 bytes):
//!
//! | part | bytes | where |
//! | --- | --- | --- |
//! | weights | 4 P | every stage with a model |
//! | packed weights | 4 P | the same: each matrix once more, in the order the kernels read it |
//! | gradients | 4 P | training |
//! | optimizer | 8 P | training: AdamW's two moments |
//! | reference | 8 P | `rl` with KL: weights and packed weights of the reference model |
//! | kv cache | min(`run.kv_cache`, `sequences_max` * positions * 8 L K) | sampling |
//! | activations | 4 T (L (5 H + 2 Q + 2 K + 3 I) + 2 H) | training |
//! | the same with checkpointing | 4 T ((L + 2) H + 5 H + 2 Q + 2 K + 3 I) | training |
//! | head | 8 V * min(T, 256) | logits of one chunk and their gradient |
//! | rollouts | rows * tokens * 24 | `rl`, `sample`, `eval`: ids, log-probs, advantages of one step, copied once |
//! | program | 96 MiB | code, queries, tables being written |
//!
//! What one block keeps for its backward pass: its input, both normed inputs, the attention's output
//! projection and the MLP's output (5 H), queries and the attention's output (2 Q), keys and values
//! (2 K), and the MLP's gate, up and product (3 I).

use serde::Serialize;

use super::catalogue::ModelFacts;
use super::models::{Architecture, RandomModel};
use super::stages::{Pipeline, Stage, StageKind};
use super::values::ByteSize;

/// Tokens whose logits exist at once.
const HEAD_CHUNK_TOKENS: u64 = 256;
/// Code, queries, tables being written.
const PROGRAM_BYTES: u64 = 96 << 20;
const F32: u64 = 4;

/// One part of a stage's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its name in the table of [the module](self).
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
}

/// The memory of a stage at its peak.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Breakdown {
    /// The parts that are there at the same time; empty ones are left out.
    pub parts: Vec<Part>,
}

impl Breakdown {
    fn add(&mut self, name: &'static str, bytes: u64) {
        if bytes > 0 {
            self.parts.push(Part { name, bytes });
        }
    }

    /// The sum of the parts.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// "120 MiB: weights 40 MiB, …", the largest part first.
    pub fn describe(&self) -> String {
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let parts: Vec<String> =
            parts.iter().map(|part| format!("{} {}", part.name, shown(part.bytes))).collect();
        format!("{}: {}", shown(self.total_bytes()), parts.join(", "))
    }
}

/// Bytes for people: three digits and a unit.
pub fn shown(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, factor) in units {
        if bytes >= factor {
            let value = bytes as f64 / factor as f64;
            return if value < 10.0 {
                format!("{value:.1} {name}")
            } else {
                format!("{value:.0} {name}")
            };
        }
    }
    format!("{bytes} B")
}

/// The facts of a model made from nothing; its tokenizer's are the caller's to fill in.
pub(crate) fn facts_of_random(model: &RandomModel, vocab_size: u32) -> ModelFacts {
    let [hidden, inner, layers, heads, kv_heads, head_dim, vocab] = [
        model.hidden_size,
        model.intermediate_size,
        model.layers,
        model.heads,
        model.kv_heads,
        model.head_dim(),
        vocab_size,
    ]
    .map(u64::from);
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let extra = match model.architecture {
        Architecture::Llama => 0,
        Architecture::Qwen2 => queries + 2 * keys,
        Architecture::Qwen3 => 2 * head_dim,
    };
    let block = 2 * hidden + 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner + extra;
    let head = if model.tie_word_embeddings { 0 } else { vocab * hidden };
    ModelFacts {
        architecture: model.architecture.word().to_owned(),
        param_count: vocab * hidden + head + layers * block + hidden,
        vocab_size,
        tokenizer_vocab_size: vocab_size,
        layers: model.layers,
        hidden_size: model.hidden_size,
        intermediate_size: model.intermediate_size,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim(),
        max_position_embeddings: model.max_position_embeddings,
        has_chat_template: false,
        weights_problem: None,
    }
}

/// The memory of a stage at its peak, by the formulas of [the module](self). `model` is the one it
/// starts from; of several models evaluated in turn, the largest.
pub fn predict(pipeline: &Pipeline, stage: &Stage, model: Option<&ModelFacts>) -> Breakdown {
    let mut found = Breakdown::default();
    found.add("program", PROGRAM_BYTES);
    let Some(model) = model else { return found };
    add_weights(&mut found, model, &stage.kind);
    match &stage.kind {
        StageKind::Sft(sft) => {
            add_training(&mut found, model, sft.micro_batch_tokens, sft.activation_checkpointing);
        }
        StageKind::Rl(rl) => {
            add_training(&mut found, model, rl.micro_batch_tokens, rl.activation_checkpointing);
            let rows = u64::from(rl.prompts_per_step) * u64::from(rl.group_size);
            add_sampling(&mut found, pipeline, model, rows, rl.sampling.max_tokens);
        }
        StageKind::Sample(sample) => {
            let rows = u64::from(pipeline.run.sequences_max) * u64::from(sample.n);
            add_sampling(&mut found, pipeline, model, rows, sample.sampling.max_tokens);
        }
        StageKind::Eval(eval) => {
            let rows = u64::from(pipeline.run.sequences_max) * u64::from(eval.k);
            add_sampling(&mut found, pipeline, model, rows, eval.max_tokens);
        }
        StageKind::Query(_) | StageKind::Export(_) => {}
    }
    found
}

fn add_weights(found: &mut Breakdown, model: &ModelFacts, kind: &StageKind) {
    let weights = F32.saturating_mul(model.param_count);
    found.add("weights", weights);
    if matches!(kind, StageKind::Export(_)) {
        return;
    }
    found.add("packed weights", weights);
    if kind.is_training() {
        found.add("gradients", weights);
        found.add("optimizer", weights.saturating_mul(2));
    }
    if let StageKind::Rl(rl) = kind
        && rl.objective.kl_coef > 0.0
    {
        found.add("reference", weights.saturating_mul(2));
    }
}

fn add_training(found: &mut Breakdown, model: &ModelFacts, tokens: u32, is_checkpointed: bool) {
    let tokens = u64::from(tokens);
    let [hidden, inner, layers, heads, kv_heads, head_dim] = [
        model.hidden_size,
        model.intermediate_size,
        model.layers,
        model.heads,
        model.kv_heads,
        model.head_dim,
    ]
    .map(u64::from);
    let block = 5 * hidden + 2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * inner;
    let floats =
        if is_checkpointed { (layers + 2) * hidden + block } else { layers * block + 2 * hidden };
    found.add("activations", F32.saturating_mul(tokens).saturating_mul(floats));
    let chunk = tokens.min(HEAD_CHUNK_TOKENS);
    found.add("head", 2 * F32 * u64::from(model.vocab_size) * chunk);
}

fn add_sampling(
    found: &mut Breakdown,
    pipeline: &Pipeline,
    model: &ModelFacts,
    rows: u64,
    max_tokens: u32,
) {
    let per_token =
        2 * F32 * u64::from(model.layers) * u64::from(model.kv_heads) * u64::from(model.head_dim);
    let all = u64::from(pipeline.run.sequences_max)
        .saturating_mul(u64::from(model.max_position_embeddings))
        .saturating_mul(per_token);
    let ByteSize(budget) = pipeline.run.kv_cache;
    found.add("kv cache", budget.min(all));
    found.add("rollouts", rows.saturating_mul(u64::from(max_tokens)).saturating_mul(24));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_smollm2_are_counted_as_published() {
        let model = RandomModel {
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            ..RandomModel::default()
        };
        assert_eq!(facts_of_random(&model, 49_152).param_count, 134_515_008);
    }

    #[test]
    fn sizes_are_shown_with_few_digits() {
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(96 << 20), "96 MiB");
        assert_eq!(shown(3 << 29), "1.5 GiB");
    }
}
