//! Predicts the memory of a stage, before it hurts.
//!
//! With P parameters, L layers, width H, MLP width I, N heads, query width Q = N * head_dim, key width
//! K = kv_heads * head_dim, vocabulary V, T tokens in a micro-batch, S sequences decoded at once, and
//! R = S + the prompt tokens prefilled beside them; weights, sums and gradients in f32 (4 bytes), and A bytes
//! (4, or 2 with `run.dtype = "bf16"`) of what is multiplied:
//!
//! | part | bytes | where |
//! | --- | --- | --- |
//! | program | 40 MiB | code, tokenizer, tables being read and written |
//! | queries | `run.query_memory` | while a stage's query runs: sorts, joins and groups, which then spill |
//! | weights | 4 P | every stage with a model |
//! | file | 4 P | while weights are read: the mapped file |
//! | packed weights | A P | each matrix once more, in the order the kernels read it |
//! | int8 weights | a byte of each, and 4 per output | sampling with `weights = "int8"`, which packs no others |
//! | gradients | 4 P | training; and 4 V H where the head is the embedding, whose two sums are kept apart |
//! | optimizer | 8 P | training: AdamW's two moments; with `optimizer.state = "host"` on a CUDA device two slices |
//! | optimizer of the host | 8 P for each device | the same, with `optimizer.state = "host"` on a CUDA device |
//! | exchange | up to 128 MiB | training on several devices: gradients under way |
//! | reference | (4 + A) P | `rl` with KL, `dpo` unless with `lora` beside its own model: weights, packed ones |
//! | critic | (16 + A) P of it, and rows * tokens * 24 | `rl` with a critic: all that training takes, and its values |
//! | teacher | (4 + A) P of the teacher | `rl` with a teacher |
//! | teacher's predictions | 4 (T H + V rows of a chunk) of the teacher | the same, while it trains |
//! | other model | 4 P of it, and its file | while a reference of `dpo`, a teacher or a critic's own model is read |
//! | adapters | (4 + A) R | training with `lora`, which alone have gradients, optimizer and reference; R parameters |
//! | reward models | (4 + A) P of each, and 4 * 2048 (6 H + 2 Q + 2 K + 3 I) of the largest | rewards of kind `model` |
//! | kv cache | `run.kv_cache`, or less if S sequences, or all rows of a step, can't fill it | sampling |
//! | activations | T (L B + 16 H), where B = A (2 H + 2 Q + 2 K + 3 I) + 4 (2 H + N) | training |
//! | the same with checkpointing | T (8 L H + B + 16 H) | training |
//! | the same without a backward pass | 4 R (6 H + 2 Q + 2 K + 3 I) | sampling |
//! | backward | 4 T (3 H + 2 I), and 2 T I with bf16 | training: gradients on their way |
//! | logits | 4 V * rows of a chunk, half more in bf16 | training; sampling, and a row per draw |
//! | scratch | threads * (2 MiB + 16 T head_dim) | panels of matrix products, pages of keys |
//! | sampler's copies | 8 P and A P of what is trained | `rl` with `max_staleness` above 0: two copies, one packed |
//! | sampling | all that sampling takes without a backward pass | the same, while it trains |
//! | spare buffers | half of activations, backward and logits, at most 32 MiB; `rl` 64 MiB | freed ones, other sizes |
//! | rollouts | rows * tokens * 48 | `rl`, `sample`, `eval`: ids, log-probs, text of a step or chunk, copied twice |
//!
//! With `resample_rounds` a step has the rollouts of as many further steps, at most; with `max_staleness = k` those of
//! k further steps are on their way or wait.
//!
//! What one block keeps for its backward pass, B: both sums of the residual stream and their norms (4 H),
//! queries and the attention's output (2 Q), keys and values (2 K), the softmax's sums (N), and the MLP's
//! gate, up and product (3 I); with normed queries and keys those before the norm as well (Q + K). With `lora` its rank
//! more for each target, in A bytes each.
//!
//! On a CUDA device models and what passes compute are in its memory; `device` says which parts, and which are others.
//!
//! While a stage asks an endpoint it has no model: rollouts are those of all chunks that are under way.
//!
//! A stage's phases follow one another: its query, reading a model, sampling, training. What it needs is what
//! the largest needs. Neither a checkpoint nor a table is ever in memory as a whole; the problems and
//! examples of a stage are, and are not counted.

mod device;
mod guides;
#[cfg(test)]
mod tests;

use aha_compute::device::SPARE_BYTES_MAX;
use aha_compute::ops::attention::{Dims, KvCache, PAGE_LEN};
use aha_compute::step;
use aha_model::Target;
use aha_sample::Limits;
use aha_sample::engine::LOGITS_LEN_MAX;
use serde::Serialize;

use super::auto::longest;
use super::catalogue::ModelFacts;
use super::lora::Lora;
use super::models::{Architecture, RandomModel};
use super::resolve::Facts;
use super::rewards::Reward;
use super::roles::named_critic;
use super::run::Run;
use super::sampling::{Optimizer, SamplingWeights};
use super::stages::{Pipeline, RlStage, Stage, StageKind};
use crate::reward_model::SCORING_TOKENS_MAX;
use crate::stages::asked;
use crate::stages::completions::CHUNK_PROMPTS;

pub use device::Needs;

/// Code, tokenizer, tables being read and written.
const PROGRAM_BYTES: u64 = 40 << 20;
/// What a thread's matrix products pack at a time, at most.
const THREAD_SCRATCH_BYTES: u64 = 2 << 20;
/// Of a token that was sampled: id, log-prob and text, three times.
const ROLLOUT_TOKEN_BYTES: u64 = 48;
/// Of a token that a critic was asked about: advantage, value and return, twice.
const CRITIC_TOKEN_BYTES: u64 = 24;
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
        has_tied_embeddings: model.tie_word_embeddings,
        has_qk_norm: model.architecture == Architecture::Qwen3,
        has_chat_template: false,
        is_reward_model: false,
        has_score_moments: false,
        weights_problem: None,
    }
}

/// The facts of the reward model that is trained from a model: a vector in place of its LM head.
pub(crate) fn facts_of_reward_model(model: &ModelFacts) -> ModelFacts {
    let (vocab, hidden) = (u64::from(model.vocab_size), u64::from(model.hidden_size));
    let lm_head = if model.has_tied_embeddings { 0 } else { vocab * hidden };
    let body = match model.is_reward_model {
        true => model.param_count - hidden,
        false => model.param_count.saturating_sub(lm_head),
    };
    ModelFacts {
        param_count: body + hidden,
        // The embedding is nothing but that.
        has_tied_embeddings: false,
        is_reward_model: true,
        has_score_moments: true,
        ..model.clone()
    }
}

/// The memory of a stage of a pipeline, with what is known of its models.
pub(crate) fn memory_of(pipeline: &Pipeline, stage: &Stage, facts: &Facts) -> Needs {
    let models = stage.kind.models().iter().filter_map(|name| facts.models.get(name));
    let mut asked: Vec<&str> = Vec::new();
    for (name, _) in stage.kind.rewards().into_iter().filter_map(Reward::reward_model) {
        if !asked.contains(&name) {
            asked.push(name);
        }
    }
    let others = Others {
        critic: stage.kind.critic().and_then(|name| facts.models.get(name)),
        guide: stage.kind.guide().and_then(|(_, name)| facts.models.get(name)),
        reward_models: asked.into_iter().filter_map(|name| facts.models.get(name)).collect(),
    };
    predict(pipeline, stage, models.max_by_key(|model| model.param_count), &others)
}

/// The models that a stage needs besides the one it starts from.
#[derive(Clone, Debug, Default)]
pub struct Others<'a> {
    /// What its critic starts from.
    pub critic: Option<&'a ModelFacts>,
    /// The one that is asked about the tokens of the one that learns; see [`StageKind::guide`].
    pub guide: Option<&'a ModelFacts>,
    /// Those that its rewards ask.
    pub reward_models: Vec<&'a ModelFacts>,
}

/// The memory of a stage at its peak, by the formulas of [the module](self). `model` is the one it
/// starts from; of several models evaluated in turn, the largest.
pub fn predict(
    pipeline: &Pipeline,
    stage: &Stage,
    model: Option<&ModelFacts>,
    others: &Others<'_>,
) -> Needs {
    Needs::of(&pipeline.run, phases(pipeline, stage, model, others))
}

/// What a stage needs one after the other.
fn phases(
    pipeline: &Pipeline,
    stage: &Stage,
    model: Option<&ModelFacts>,
    others: &Others<'_>,
) -> Vec<Breakdown> {
    let critic = others.critic.map(facts_of_reward_model);
    let mut program = Breakdown::default();
    program.add("program", PROGRAM_BYTES);
    let mut query = program.clone();
    query.add("queries", pipeline.run.query_memory.0);
    let (run, reward_models) = (&pipeline.run, &others.reward_models[..]);
    let asking = asking(run, &stage.kind, &program, reward_models);
    let Some(model) = model else {
        let is_asked = asking.is_some() || matches!(stage.kind, StageKind::Query(_));
        let query = is_asked.then(|| beside_reward_models(run, query, reward_models));
        return query.into_iter().chain(asking).chain([program]).collect();
    };
    let trained;
    let model = match &stage.kind {
        StageKind::RewardModel(_) => {
            trained = facts_of_reward_model(model);
            &trained
        }
        _ => model,
    };
    let mut at = Phase { found: program, ..Phase::new(run, model) };
    at.found.add("weights", at.weights());
    at.add_transfers();
    at.add_reward_models(&others.reward_models);
    let mut query = at.clone().beside(others.guide);
    query.found.add("queries", pipeline.run.query_memory.0);
    let mut reading = at.clone();
    reading.found.add("file", at.weights());
    let reading_other = at.clone().reading(others.guide);
    let read_critic = others.critic.filter(|_| named_critic(&stage.kind).is_some());
    let reading_critic = read_critic.map(|critic| at.clone().reading_critic(others.guide, critic));
    let working = working(stage, at, others.guide, critic.as_ref());
    let before = [Some(query), Some(reading), Some(reading_other), reading_critic];
    let with_model = before.into_iter().flatten().chain(working).map(|phase| phase.found);
    with_model.chain(asking).collect()
}

/// What a stage does by turns, once its models are read.
fn working<'a>(
    stage: &'a Stage,
    mut at: Phase<'a>,
    guide: Option<&ModelFacts>,
    critic: Option<&'a ModelFacts>,
) -> Vec<Phase<'a>> {
    let model = at.model;
    match &stage.kind {
        StageKind::Query(_) | StageKind::Export(_) => Vec::new(),
        StageKind::Sft(sft) => {
            let sequence = u64::from(sft.max_tokens.min(model.max_position_embeddings));
            let tokens = u64::from(sft.micro_batch_tokens.tokens()).max(sequence);
            let batch = u64::from(sft.batch_size).saturating_mul(sequence);
            at.add_training_state(sft.lora.as_ref(), &sft.optimizer);
            at.add_training(tokens.min(batch), sft.activation_checkpointing.is_on());
            vec![at]
        }
        StageKind::RewardModel(stage) => {
            let tokens = stage.micro_batch_tokens.tokens();
            let tokens = guides::pair_tokens(tokens, stage.max_tokens, stage.batch_size, model);
            at.add_training_state(stage.lora.as_ref(), &stage.optimizer);
            at.add_training(tokens, stage.activation_checkpointing.is_on());
            vec![at]
        }
        StageKind::Dpo(stage) => at.comparing(stage, guide),
        StageKind::Rl(rl) => {
            let tokens = rl_tokens(rl, longest(&stage.kind, model), model);
            at.rl(rl, tokens, critic, guide)
        }
        StageKind::Sample(sample) => {
            let drawn = &sample.sampling;
            vec![at.completions(sample.n, drawn.max_tokens, drawn.weights)]
        }
        StageKind::Eval(eval) => vec![at.completions(eval.k, eval.max_tokens, eval.weights)],
    }
}

/// While an endpoint is asked, where one is, and reward models are.
fn asking(
    run: &Run,
    kind: &StageKind,
    program: &Breakdown,
    reward_models: &[&ModelFacts],
) -> Option<Breakdown> {
    let endpoint = kind.endpoint()?;
    let (samples, max_tokens) = match kind {
        StageKind::Sample(sample) => (sample.n, sample.sampling.max_tokens),
        StageKind::Eval(eval) => (eval.k, eval.max_tokens),
        _ => return None,
    };
    let chunks = asked::lanes(endpoint.parallel_max as usize, samples as usize) as u64;
    let rows = (chunks * CHUNK_PROMPTS as u64).saturating_mul(u64::from(samples));
    let tokens = rows.saturating_mul(u64::from(max_tokens));
    let mut asking = program.clone();
    asking.add("rollouts", tokens.saturating_mul(ROLLOUT_TOKEN_BYTES));
    Some(beside_reward_models(run, asking, reward_models))
}

fn beside_reward_models(
    run: &Run,
    mut phase: Breakdown,
    reward_models: &[&ModelFacts],
) -> Breakdown {
    if let Some(first) = reward_models.first() {
        let mut scoring = Phase::new(run, first);
        scoring.add_reward_models(reward_models);
        phase.parts.extend(scoring.found.parts);
    }
    phase
}

/// Most tokens of a micro-batch of a stage `rl`: a group's prompt counts once, and no sequence is cut, the longest
/// of which is `longest`.
fn rl_tokens(rl: &RlStage, longest: u32, model: &ModelFacts) -> u64 {
    let positions = u64::from(model.max_position_embeddings);
    let completion = u64::from(rl.sampling.max_tokens).min(positions);
    let completions = u64::from(rl.group_size).saturating_mul(completion);
    let group = (positions - completion).saturating_add(completions);
    let groups = rl.prompts_per_step.div_ceil(rl.minibatches.max(1));
    let batch = u64::from(groups).saturating_mul(group);
    u64::from(rl.micro_batch_tokens.tokens().max(longest)).min(batch)
}

/// Bytes of a cache of keys and values: `run.kv_cache`, or what `run.sequences_max` whole sequences can fill
/// if that is less.
pub fn kv_cache_bytes(run: &Run, layers: usize, dims: Dims, positions: usize) -> u64 {
    filled_bytes(run, u64::from(run.sequences_max), layers, dims, positions)
}

/// Bytes of the cache that so many whole sequences can fill.
fn filled_bytes(run: &Run, sequences: u64, layers: usize, dims: Dims, positions: usize) -> u64 {
    let page_bytes = KvCache::bytes_per_page(kv_dtype(run), layers, dims) as u64;
    // A sequence may write into its own copy of the prompt's last page, and one more may be on its way in.
    let pages = (sequences + 1).saturating_mul(positions.div_ceil(PAGE_LEN) as u64 + 1);
    run.kv_cache.0.min(pages.saturating_mul(page_bytes))
}

/// Bytes of the smallest cache in which a sequence of so many positions finds room.
pub fn sequence_bytes(run: &Run, model: &ModelFacts, positions: u32) -> u64 {
    let (layers, dims) = (model.layers as usize, dims_of(model));
    let page_bytes = KvCache::bytes_per_page(kv_dtype(run), layers, dims) as u64;
    let pages = (positions as usize).div_ceil(PAGE_LEN) as u64 + 1;
    pages.saturating_mul(page_bytes)
}

/// What a cache keeps keys and values as, which the device decides by the same two keys.
fn kv_dtype(run: &Run) -> aha_compute::Dtype {
    match run.dtype.into() {
        aha_compute::Dtype::F32 => run.kv_dtype.into(),
        half => half,
    }
}

/// Parameters of a model's adapters.
fn adapter_len(model: &ModelFacts, lora: &Lora) -> u64 {
    let [hidden, inner, layers, heads, kv_heads, head_dim] = [
        model.hidden_size,
        model.intermediate_size,
        model.layers,
        model.heads,
        model.kv_heads,
        model.head_dim,
    ]
    .map(u64::from);
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    // Inputs and outputs.
    let of_target = |target: &Target| match target {
        Target::Q | Target::O => hidden + queries,
        Target::K | Target::V => hidden + keys,
        Target::Gate | Target::Up | Target::Down => hidden + inner,
    };
    layers * u64::from(lora.rank) * lora.targets.0.iter().map(of_target).sum::<u64>()
}

fn dims_of(model: &ModelFacts) -> Dims {
    Dims {
        heads: model.heads as usize,
        kv_heads: model.kv_heads as usize,
        head_dim: model.head_dim as usize,
    }
}

/// One phase of a stage that has a model.
#[derive(Clone)]
struct Phase<'a> {
    run: &'a Run,
    model: &'a ModelFacts,
    found: Breakdown,
    /// What is trained in place of the weights.
    lora: Option<&'a Lora>,
    /// Most that freed buffers of other sizes come to. The device would keep twice as much, but batches of one
    /// kind differ little.
    spare_bytes_max: u64,
}

impl<'a> Phase<'a> {
    fn new(run: &'a Run, model: &'a ModelFacts) -> Phase<'a> {
        let spare_bytes_max = SPARE_BYTES_MAX as u64 / 2;
        Phase { run, model, found: Breakdown::default(), lora: None, spare_bytes_max }
    }

    fn weights(&self) -> u64 {
        F32.saturating_mul(self.model.param_count)
    }

    fn hidden(&self) -> u64 {
        u64::from(self.model.hidden_size)
    }

    /// Bytes of a number that is multiplied: A.
    fn multiplied_bytes(&self) -> u64 {
        aha_compute::Dtype::from(self.run.dtype).bytes() as u64
    }

    /// Bytes of what a block keeps of a token for its backward pass: B.
    fn block_bytes(&self) -> u64 {
        let (hidden, sums) = (2 * self.hidden(), u64::from(self.model.heads));
        let ranks = self.lora.map_or(0, |lora| u64::from(lora.rank) * lora.targets.0.len() as u64);
        let multiplied = hidden + self.inner_len() - sums + ranks;
        self.multiplied_bytes() * multiplied + F32 * (hidden + sums)
    }

    fn vocab(&self) -> u64 {
        u64::from(self.model.vocab_size)
    }

    fn threads(&self) -> u64 {
        crate::compute::threads(self.run.threads) as u64
    }

    /// Floats of queries, keys, values, the attention's output and the MLP's insides, of a token in a block.
    fn inner_len(&self) -> u64 {
        let [inner, heads, kv_heads, head_dim] = [
            self.model.intermediate_size,
            self.model.heads,
            self.model.kv_heads,
            self.model.head_dim,
        ]
        .map(u64::from);
        let projected = (heads + kv_heads) * head_dim;
        let normed = if self.model.has_qk_norm { projected } else { 0 };
        2 * projected + normed + 3 * inner + heads
    }

    /// An embedding that isn't the head is never multiplied with.
    fn add_packed(&mut self) {
        let embedding =
            if self.model.has_tied_embeddings { 0 } else { self.vocab() * self.hidden() };
        let multiplied = self.model.param_count.saturating_sub(embedding);
        self.found.add("packed weights", self.multiplied_bytes().saturating_mul(multiplied));
    }

    /// What a sampler of int8 weights multiplies with, beside the learner's packed weights or in their place.
    fn add_int8(&mut self, weights: SamplingWeights) {
        if weights == SamplingWeights::Same {
            return;
        }
        let [hidden, inner, layers, heads, kv_heads, head_dim] = [
            self.model.hidden_size,
            self.model.intermediate_size,
            self.model.layers,
            self.model.heads,
            self.model.kv_heads,
            self.model.head_dim,
        ]
        .map(u64::from);
        let outputs = layers * ((heads + 2 * kv_heads) * head_dim + 2 * hidden + 2 * inner);
        let embedding = if self.model.has_tied_embeddings { 0 } else { self.vocab() * hidden };
        let multiplied = self.model.param_count.saturating_sub(embedding);
        self.found.add("int8 weights", multiplied + F32 * (outputs + self.vocab()));
    }

    /// Policy and reference are one model at first, and that may be sampled from. With adapters they share the rest.
    fn add_reference(&mut self, is_needed: bool, sampled: SamplingWeights) {
        if let Some(lora) = self.lora {
            let bytes = self.adapter_bytes(lora);
            return self.found.add("reference", if is_needed { bytes } else { 0 });
        }
        let mut reference = Phase::new(self.run, self.model);
        reference.add_packed();
        reference.add_int8(sampled);
        let bytes = self.weights().saturating_add(reference.found.total_bytes());
        self.found.add("reference", if is_needed { bytes } else { 0 });
    }

    /// The critic's weights and the state of its training, and what it says of so many tokens.
    fn add_critic(&mut self, critic: Option<&ModelFacts>, tokens: u64) {
        let Some(critic) = critic else { return };
        let mut state = Phase::new(self.run, critic);
        state.add_training_state(None, &Optimizer::default());
        let bytes = state.weights().saturating_add(state.found.total_bytes());
        self.found.add("critic", bytes.saturating_add(tokens.saturating_mul(CRITIC_TOKEN_BYTES)));
    }

    /// Values and packed values of adapters.
    fn adapter_bytes(&self, lora: &Lora) -> u64 {
        (F32 + self.multiplied_bytes()).saturating_mul(adapter_len(self.model, lora))
    }

    fn add_training_state(&mut self, lora: Option<&'a Lora>, optimizer: &Optimizer) {
        self.lora = lora;
        self.add_packed();
        if let Some(lora) = lora {
            // A reward model's head is trained beside them.
            let head = if self.model.is_reward_model { self.hidden() } else { 0 };
            let trained = adapter_len(self.model, lora).saturating_add(head);
            self.found.add("adapters", self.adapter_bytes(lora));
            self.found.add("gradients", F32.saturating_mul(trained));
            return self.add_optimizer((2 * F32).saturating_mul(trained), optimizer.state);
        }
        let lookups = if self.model.has_tied_embeddings { self.vocab() * self.hidden() } else { 0 };
        self.found.add("gradients", self.weights().saturating_add(F32 * lookups));
        self.add_optimizer(self.weights().saturating_mul(2), optimizer.state);
    }

    fn add_training(&mut self, tokens: u64, is_checkpointed: bool) {
        let (layers, hidden) = (u64::from(self.model.layers), self.hidden());
        let block = self.block_bytes();
        let kept = match is_checkpointed {
            true => (2 * F32 * layers * hidden).saturating_add(block),
            false => layers.saturating_mul(block),
        };
        let inner = u64::from(self.model.intermediate_size);
        // Gradients are rounded to what they are multiplied as.
        let is_rounded = self.multiplied_bytes() != F32;
        let rounded = |numbers: u64| if is_rounded { 2 * numbers } else { 0 };
        let backward = F32 * (3 * hidden + 2 * inner) + rounded(inner);
        let of_tokens = |bytes: u64| tokens.saturating_mul(bytes);
        let rows = tokens.min(self.logits_rows());
        self.found.add("activations", of_tokens(kept + 4 * F32 * hidden));
        self.found.add("backward", of_tokens(backward));
        let of_row = F32 * self.vocab() + rounded(self.vocab());
        self.found.add("logits", if self.model.is_reward_model { 0 } else { of_row * rows });
        self.add_scratch(tokens);
    }

    /// Weights of reward models, packed ones, and what a batch of texts takes on its way through the largest.
    fn add_reward_models(&mut self, models: &[&ModelFacts]) {
        let run = self.run;
        let phase = |model| Phase::new(run, model);
        let weights = models.iter().map(|model| {
            let mut phase = phase(model);
            phase.add_packed();
            phase.weights() + phase.found.total_bytes()
        });
        let scoring = models.iter().map(|model| {
            let phase = phase(model);
            F32 * SCORING_TOKENS_MAX as u64 * (6 * phase.hidden() + phase.inner_len())
        });
        let bytes = weights.sum::<u64>() + scoring.max().unwrap_or(0);
        self.found.add("reward models", bytes);
    }

    /// Completions of a chunk of prompts.
    fn completions(mut self, samples: u32, max_tokens: u32, weights: SamplingWeights) -> Self {
        if weights == SamplingWeights::Same {
            self.add_packed();
        }
        self.add_int8(weights);
        let rows = CHUNK_PROMPTS as u64 * u64::from(samples);
        self.add_cache(rows);
        self.add_rollouts(rows, 1, max_tokens);
        self.add_sampling();
        self
    }

    /// The phases of a stage `rl`: sampling, and training with micro-batches of so many tokens, of the policy and then
    /// of its critic.
    fn rl(
        mut self,
        rl: &'a RlStage,
        tokens: u64,
        critic: Option<&'a ModelFacts>,
        teacher: Option<&ModelFacts>,
    ) -> Vec<Phase<'a>> {
        let rows = u64::from(rl.prompts_per_step) * u64::from(rl.group_size);
        // Sampling and training leave buffers of each other's sizes.
        self.spare_bytes_max = SPARE_BYTES_MAX as u64;
        self.add_training_state(rl.lora.as_ref(), &rl.optimizer);
        self.add_reference(rl.objective.kl_coef > 0.0, rl.sampling.weights);
        self.add_int8(rl.sampling.weights);
        let batches = 1 + u64::from(rl.resample_rounds) + u64::from(rl.max_staleness);
        let is_ahead = rl.max_staleness > 0;
        // A device gives the cache back while the learner steps.
        let keeps_cache = is_ahead || !self.is_cuda();
        if keeps_cache {
            self.add_cache(rows);
        }
        self.add_rollouts(rows, batches, rl.sampling.max_tokens);
        self.add_critic(critic, rows.saturating_mul(u64::from(rl.sampling.max_tokens)));
        let asking = teacher.map(|teacher| self.add_teacher(teacher, tokens));
        if is_ahead {
            self.add_copies(rl.sampling.weights);
        }
        let mut sampling = self.clone();
        if !keeps_cache {
            sampling.add_cache(rows);
        }
        sampling.add_sampling();
        if is_ahead {
            let beside = sampling.found.total_bytes() - self.found.total_bytes();
            self.found.add("sampling", beside);
        } else {
            self.add_captured_steps();
        }
        if let Some(teacher) = teacher {
            self.add_predictions(teacher, tokens);
        }
        let mut phases: Vec<Phase<'a>> = asking.into_iter().chain([sampling]).collect();
        // All of a critic's weights are trained.
        let of_critic = critic.map(|critic| (critic, None));
        for (model, lora) in std::iter::once((self.model, self.lora)).chain(of_critic) {
            let mut training = Phase { model, lora, ..self.clone() };
            training.add_training(tokens, rl.activation_checkpointing.is_on());
            phases.push(training);
        }
        phases
    }

    /// Two copies of what is trained: the one that is sampled from, which is packed, and the next.
    fn add_copies(&mut self, sampled: SamplingWeights) {
        let bytes = match self.lora {
            Some(lora) => {
                let values = F32.saturating_mul(adapter_len(self.model, lora));
                self.adapter_bytes(lora).saturating_add(values)
            }
            None => {
                let mut copy = Phase::new(self.run, self.model);
                if sampled == SamplingWeights::Same {
                    copy.add_packed();
                }
                copy.add_int8(sampled);
                self.weights().saturating_mul(2).saturating_add(copy.found.total_bytes())
            }
        };
        self.found.add("sampler's copies", bytes);
    }

    /// What a sampler of so many rows holds.
    fn add_cache(&mut self, rows: u64) {
        let model = self.model;
        let dims = dims_of(model);
        let (layers, positions) = (model.layers as usize, model.max_position_embeddings as usize);
        let sequences_max = u64::from(self.run.sequences_max);
        // The system gives the host's memory as it is written to, a device all that is asked for.
        let sequences = if self.is_cuda() { sequences_max } else { sequences_max.min(rows) };
        self.found.add("kv cache", filled_bytes(self.run, sequences, layers, dims, positions));
    }

    /// What a sampler hands on: `rows` are sampled together, and so many batches of them are kept until they are
    /// written.
    fn add_rollouts(&mut self, rows: u64, batches: u64, max_tokens: u32) {
        let tokens = rows.saturating_mul(batches).saturating_mul(u64::from(max_tokens));
        self.found.add("rollouts", tokens.saturating_mul(ROLLOUT_TOKEN_BYTES));
    }

    fn add_sampling(&mut self) {
        let sequences = u64::from(self.run.sequences_max);
        let rows = sequences + Limits::default().prefill_tokens_max as u64;
        let floats = 6 * self.hidden() + self.inner_len();
        self.found.add("activations", F32.saturating_mul(rows).saturating_mul(floats));
        let len_max = if self.is_cuda() { step::LOGITS_LEN_MAX } else { LOGITS_LEN_MAX };
        let logits = (len_max as u64 / self.vocab().max(1)).clamp(1, sequences);
        self.found.add("logits", F32 * self.vocab() * (logits + self.threads()));
        self.add_captured_steps();
        self.add_scratch(rows);
    }

    fn add_scratch(&mut self, tokens: u64) {
        if self.is_cuda() {
            return self.add_device_scratch(tokens);
        }
        let keys = 4 * F32 * u64::from(self.model.head_dim);
        let of_thread = THREAD_SCRATCH_BYTES.saturating_add(tokens.saturating_mul(keys));
        self.found.add("scratch", self.threads().saturating_mul(of_thread));
        let comes_and_goes =
            |part: &&Part| ["activations", "backward", "logits"].contains(&part.name);
        let lent: u64 = self.found.parts.iter().filter(comes_and_goes).map(|part| part.bytes).sum();
        self.found.add("spare buffers", (lent / 2).min(self.spare_bytes_max));
    }
}
