//! Plain structs for rows, and what turns them into batches.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBufferBuilder, Float32Array, Float64Array, Int64Array,
    ListArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, schema};

/// The identity of a rollout, `stage/step/prompt_id/sample_idx`: the same in every run of a
/// pipeline, whatever was killed in between, and readable. A stage's name has no slash; a
/// prompt's may.
pub fn rollout_id(stage: &str, step: u64, prompt_id: &str, sample_idx: u32) -> String {
    format!("{stage}/{step}/{prompt_id}/{sample_idx}")
}

/// One prompt of a step, as it goes to the sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRow<'a> {
    /// Stage that asks.
    pub stage: &'a str,
    /// Step that asks.
    pub step: u64,
    /// Identity in its data set.
    pub prompt_id: &'a str,
    /// Where the problem is from.
    pub source: Option<&'a str>,
    /// The problem's text.
    pub prompt: &'a str,
    /// Reference answer.
    pub answer: Option<&'a str>,
    /// Tests as JSON.
    pub tests: Option<&'a str>,
    /// Tokens that go in.
    pub prompt_token_ids: &'a [u32],
}

/// One completion, as it leaves the sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRow<'a> {
    /// Stage that sampled it.
    pub stage: &'a str,
    /// Step it was sampled for.
    pub step: u64,
    /// Identity of the prompt.
    pub prompt_id: &'a str,
    /// Where the problem is from.
    pub source: Option<&'a str>,
    /// Which of its group it is.
    pub sample_idx: u32,
    /// Optimizer steps its weights had seen.
    pub policy_version: u64,
    /// The problem's text.
    pub prompt: &'a str,
    /// What the model wrote.
    pub completion: &'a str,
    /// Reference answer.
    pub answer: Option<&'a str>,
    /// Tests as JSON.
    pub tests: Option<&'a str>,
    /// Tokens that went in.
    pub prompt_token_ids: &'a [u32],
    /// Tokens that came out.
    pub completion_token_ids: &'a [u32],
    /// Their log-probs under the weights that sampled them; as many.
    pub completion_logprobs: &'a [f32],
    /// Whether each of them was forced and not drawn; as many, or none where nothing could be.
    pub completion_forced_mask: Option<&'a [bool]>,
    /// Optimizer steps that the weights which drew each of them had seen; as many, or none where that is
    /// `policy_version` for all.
    pub completion_policy_versions: Option<&'a [u64]>,
    /// Why it ended.
    pub finish_reason: &'a str,
    /// When, in µs since 1970, UTC.
    pub finished_at_us: i64,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricRow<'a> {
    /// Stage that measured.
    pub stage: &'a str,
    /// Step it was measured in.
    pub step: u64,
    /// What was measured.
    pub name: &'a str,
    /// Its value.
    pub value: f64,
    /// When, in µs since 1970, UTC.
    pub at_us: i64,
}

/// One evaluation of a model on a data set; the fields are the columns of [`schema::evals`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Stage that evaluated; `eval` for the command of that name.
    pub stage: String,
    /// Model that was evaluated.
    pub model: String,
    /// Data set it was evaluated on.
    pub dataset: String,
    /// Problems that have all completions, each of which could be scored.
    pub problem_count: u64,
    /// Samples per problem.
    pub k: u64,
    /// Mean share of right samples.
    pub pass_at_1: f64,
    /// Its standard error.
    pub pass_at_1_se: Option<f64>,
    /// Share of problems with a right one among k.
    pub pass_at_k: f64,
    /// Share of problems whose majority is right.
    pub cons_at_k: Option<f64>,
    /// Its standard error.
    pub cons_at_k_se: Option<f64>,
    /// Mean number of tokens.
    pub completion_len_tokens_mean: f64,
    /// Benchmark whose layout, prompt and verifier were used.
    pub benchmark: Option<String>,
    /// Standard error of `pass_at_k`.
    pub pass_at_k_se: Option<f64>,
    /// Numbers of samples that figures are given for.
    pub ks: Vec<u64>,
    /// Unbiased pass@k, for each of `ks`.
    pub pass_at_ks: Vec<f64>,
    /// Their standard errors.
    pub pass_at_ks_se: Option<Vec<f64>>,
    /// cons@k, for each of `ks`.
    pub cons_at_ks: Option<Vec<f64>>,
    /// Their standard errors.
    pub cons_at_ks_se: Option<Vec<f64>>,
    /// Tokens that half of the completions don't exceed.
    pub completion_len_tokens_median: u64,
    /// Tokens that 95 % of them don't exceed.
    pub completion_len_tokens_p95: u64,
    /// Share of completions that were cut off.
    pub truncated_share: f64,
    /// Share of completions with an answer.
    pub answered_share: Option<f64>,
    /// Elo rating against the problems' ratings.
    pub rating: Option<f64>,
    /// Its standard error.
    pub rating_se: Option<f64>,
    /// Tokens drawn per second.
    pub tokens_per_second: Option<f64>,
    /// What the model computed with; none of an endpoint's.
    pub dtype: Option<String>,
    /// What weights were multiplied as; likewise.
    pub weights: Option<String>,
    /// Scorer that ranked completions.
    pub rank_by: Option<String>,
    /// Share of problems whose completion of the highest rank among k is right.
    pub bon_at_k: Option<f64>,
    /// Its standard error.
    pub bon_at_k_se: Option<f64>,
    /// Best-of-n, for each of `ks`.
    pub bon_at_ks: Option<Vec<f64>>,
    /// Their standard errors.
    pub bon_at_ks_se: Option<Vec<f64>>,
    /// Share of problems whose majority is right where votes are weighted by the scorer.
    pub weighted_cons_at_k: Option<f64>,
    /// Its standard error.
    pub weighted_cons_at_k_se: Option<f64>,
    /// cons@k with weighted votes, for each of `ks`.
    pub weighted_cons_at_ks: Option<Vec<f64>>,
    /// Their standard errors.
    pub weighted_cons_at_ks_se: Option<Vec<f64>>,
}

/// One example of supervised training.
#[derive(Clone, Debug, PartialEq)]
pub struct SftExampleRow<'a> {
    /// Stage that trains on it.
    pub stage: &'a str,
    /// Identity in its table.
    pub example_id: &'a str,
    /// Where it is from.
    pub source: Option<&'a str>,
    /// The problem's text.
    pub prompt: Option<&'a str>,
    /// Text to learn.
    pub completion: &'a str,
    /// The conversation as JSON.
    pub messages: Option<&'a str>,
    /// Tokens of prompt and completion.
    pub token_ids: &'a [u32],
    /// Per token, whether predicting it counts; as many.
    pub loss_mask: &'a [bool],
}

/// One pair of completions that a reward model is trained or measured on.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceRow<'a> {
    /// Stage that trains on it.
    pub stage: &'a str,
    /// Identity in its table.
    pub example_id: &'a str,
    /// Where it is from.
    pub source: Option<&'a str>,
    /// The problem's text.
    pub prompt: &'a str,
    /// The completion that was preferred.
    pub chosen: &'a str,
    /// The other.
    pub rejected: &'a str,
    /// By how much the first ought to be ahead.
    pub margin: f64,
    /// Whether it is measured on only.
    pub is_held_out: bool,
    /// Tokens of prompt and chosen completion.
    pub chosen_token_ids: &'a [u32],
    /// Tokens of prompt and rejected completion.
    pub rejected_token_ids: &'a [u32],
}

/// One prompt that kept failing.
#[derive(Clone, Debug, PartialEq)]
pub struct SetAsideRow<'a> {
    /// Stage that asked.
    pub stage: &'a str,
    /// Step that asked.
    pub step: u64,
    /// The prompt.
    pub prompt_id: &'a str,
    /// How often it failed.
    pub failures_count: u64,
    /// The last failure.
    pub error: &'a str,
    /// When, in µs since 1970, UTC.
    pub at_us: i64,
}

/// A batch of [`schema::prompts`].
pub fn prompts(rows: &[PromptRow<'_>]) -> RecordBatch {
    batch(
        schema::prompts(),
        vec![
            text(rows.iter().map(|r| r.stage)),
            whole(rows.iter().map(|r| r.step)),
            text(rows.iter().map(|r| r.prompt_id)),
            maybe_text(rows.iter().map(|r| r.source)),
            text(rows.iter().map(|r| r.prompt)),
            maybe_text(rows.iter().map(|r| r.answer)),
            maybe_text(rows.iter().map(|r| r.tests)),
            lists_u32(rows.iter().map(|r| r.prompt_token_ids)),
        ],
    )
}

/// A batch of [`schema::sampled`]. Refuses rows whose log-probs or flags aren't one per token.
pub fn rollouts(rows: &[RolloutRow<'_>]) -> Result<RecordBatch> {
    let lens = rows.iter().map(|row| row.completion_token_ids.len() as u64);
    rollouts_of_lens(rows, &lens.collect::<Vec<_>>())
}

/// As [`rollouts`], of completions whose tokens may not be known, with their numbers.
pub fn rollouts_of_lens(rows: &[RolloutRow<'_>], lens_tokens: &[u64]) -> Result<RecordBatch> {
    assert_eq!(rows.len(), lens_tokens.len(), "a length for each row");
    for row in rows {
        let (tokens, logprobs) = (row.completion_token_ids.len(), row.completion_logprobs.len());
        if tokens != logprobs {
            let id = rollout_id(row.stage, row.step, row.prompt_id, row.sample_idx);
            return Err(Error::bug(format!(
                "rollout `{id}` has {tokens} completion tokens and {logprobs} log-probs"
            )));
        }
        if let Some(mask) = row.completion_forced_mask.filter(|mask| mask.len() != tokens) {
            let id = rollout_id(row.stage, row.step, row.prompt_id, row.sample_idx);
            return Err(Error::bug(format!(
                "rollout `{id}` has {tokens} completion tokens and {} flags of what was forced",
                mask.len()
            )));
        }
        if let Some(versions) = row.completion_policy_versions.filter(|of| of.len() != tokens) {
            let id = rollout_id(row.stage, row.step, row.prompt_id, row.sample_idx);
            return Err(Error::bug(format!(
                "rollout `{id}` has {tokens} completion tokens and {} policy versions of them",
                versions.len()
            )));
        }
    }
    Ok(batch(
        schema::sampled(),
        vec![
            text(rows.iter().map(|r| rollout_id(r.stage, r.step, r.prompt_id, r.sample_idx))),
            text(rows.iter().map(|r| r.stage)),
            whole(rows.iter().map(|r| r.step)),
            text(rows.iter().map(|r| r.prompt_id)),
            maybe_text(rows.iter().map(|r| r.source)),
            whole(rows.iter().map(|r| u64::from(r.sample_idx))),
            whole(rows.iter().map(|r| r.policy_version)),
            text(rows.iter().map(|r| r.prompt)),
            text(rows.iter().map(|r| r.completion)),
            maybe_text(rows.iter().map(|r| r.answer)),
            maybe_text(rows.iter().map(|r| r.tests)),
            lists_u32(rows.iter().map(|r| r.prompt_token_ids)),
            lists_u32(rows.iter().map(|r| r.completion_token_ids)),
            lists_f32(rows.iter().map(|r| r.completion_logprobs)),
            lists_maybe_bool(rows.iter().map(|r| r.completion_forced_mask)),
            maybe_lists_whole(rows.iter().map(|r| r.completion_policy_versions)),
            whole(lens_tokens.iter().copied()),
            text(rows.iter().map(|r| r.finish_reason)),
            times(rows.iter().map(|r| r.finished_at_us)),
        ],
    ))
}

/// A batch of [`schema::metrics`].
pub fn metrics(rows: &[MetricRow<'_>]) -> RecordBatch {
    batch(
        schema::metrics(),
        vec![
            text(rows.iter().map(|r| r.stage)),
            whole(rows.iter().map(|r| r.step)),
            text(rows.iter().map(|r| r.name)),
            numbers(rows.iter().map(|r| Some(r.value))),
            times(rows.iter().map(|r| r.at_us)),
        ],
    )
}

/// A batch of [`schema::evals`].
pub fn evals(rows: &[EvalRow]) -> RecordBatch {
    let given =
        |list: fn(&EvalRow) -> &Vec<f64>| lists_f64(rows.iter().map(|r| Some(list(r).as_slice())));
    let maybe = |list: fn(&EvalRow) -> &Option<Vec<f64>>| {
        lists_f64(rows.iter().map(|r| list(r).as_deref()))
    };
    batch(
        schema::evals(),
        vec![
            text(rows.iter().map(|r| &r.stage)),
            text(rows.iter().map(|r| &r.model)),
            text(rows.iter().map(|r| &r.dataset)),
            whole(rows.iter().map(|r| r.problem_count)),
            whole(rows.iter().map(|r| r.k)),
            numbers(rows.iter().map(|r| Some(r.pass_at_1))),
            numbers(rows.iter().map(|r| r.pass_at_1_se)),
            numbers(rows.iter().map(|r| Some(r.pass_at_k))),
            numbers(rows.iter().map(|r| r.cons_at_k)),
            numbers(rows.iter().map(|r| r.cons_at_k_se)),
            numbers(rows.iter().map(|r| Some(r.completion_len_tokens_mean))),
            maybe_text(rows.iter().map(|r| r.benchmark.as_ref())),
            numbers(rows.iter().map(|r| r.pass_at_k_se)),
            lists_whole(rows.iter().map(|r| r.ks.as_slice())),
            given(|r| &r.pass_at_ks),
            maybe(|r| &r.pass_at_ks_se),
            maybe(|r| &r.cons_at_ks),
            maybe(|r| &r.cons_at_ks_se),
            whole(rows.iter().map(|r| r.completion_len_tokens_median)),
            whole(rows.iter().map(|r| r.completion_len_tokens_p95)),
            numbers(rows.iter().map(|r| Some(r.truncated_share))),
            numbers(rows.iter().map(|r| r.answered_share)),
            numbers(rows.iter().map(|r| r.rating)),
            numbers(rows.iter().map(|r| r.rating_se)),
            numbers(rows.iter().map(|r| r.tokens_per_second)),
            maybe_text(rows.iter().map(|r| r.dtype.as_ref())),
            maybe_text(rows.iter().map(|r| r.weights.as_ref())),
            maybe_text(rows.iter().map(|r| r.rank_by.as_ref())),
            numbers(rows.iter().map(|r| r.bon_at_k)),
            numbers(rows.iter().map(|r| r.bon_at_k_se)),
            maybe(|r| &r.bon_at_ks),
            maybe(|r| &r.bon_at_ks_se),
            numbers(rows.iter().map(|r| r.weighted_cons_at_k)),
            numbers(rows.iter().map(|r| r.weighted_cons_at_k_se)),
            maybe(|r| &r.weighted_cons_at_ks),
            maybe(|r| &r.weighted_cons_at_ks_se),
        ],
    )
}

/// A batch of [`schema::sft_examples`]. Refuses rows whose mask isn't one flag per token.
pub fn sft_examples(rows: &[SftExampleRow<'_>]) -> Result<RecordBatch> {
    for row in rows {
        let (tokens, flags) = (row.token_ids.len(), row.loss_mask.len());
        if tokens != flags {
            return Err(Error::bug(format!(
                "example `{}` has {tokens} tokens and {flags} flags in its loss mask",
                row.example_id
            )));
        }
    }
    Ok(batch(
        schema::sft_examples(),
        vec![
            text(rows.iter().map(|r| r.stage)),
            text(rows.iter().map(|r| r.example_id)),
            maybe_text(rows.iter().map(|r| r.source)),
            maybe_text(rows.iter().map(|r| r.prompt)),
            text(rows.iter().map(|r| r.completion)),
            maybe_text(rows.iter().map(|r| r.messages)),
            lists_u32(rows.iter().map(|r| r.token_ids)),
            lists_bool(rows.iter().map(|r| r.loss_mask)),
            whole(rows.iter().map(|r| r.token_ids.len() as u64)),
        ],
    ))
}

/// A batch of [`schema::preferences`].
pub fn preferences(rows: &[PreferenceRow<'_>]) -> RecordBatch {
    batch(
        schema::preferences(),
        vec![
            text(rows.iter().map(|r| r.stage)),
            text(rows.iter().map(|r| r.example_id)),
            maybe_text(rows.iter().map(|r| r.source)),
            text(rows.iter().map(|r| r.prompt)),
            text(rows.iter().map(|r| r.chosen)),
            text(rows.iter().map(|r| r.rejected)),
            numbers(rows.iter().map(|r| Some(r.margin))),
            booleans(rows.iter().map(|r| r.is_held_out)),
            lists_u32(rows.iter().map(|r| r.chosen_token_ids)),
            lists_u32(rows.iter().map(|r| r.rejected_token_ids)),
        ],
    )
}

/// A batch of [`schema::set_aside`].
pub fn set_aside(rows: &[SetAsideRow<'_>]) -> RecordBatch {
    batch(
        schema::set_aside(),
        vec![
            text(rows.iter().map(|r| r.stage)),
            whole(rows.iter().map(|r| r.step)),
            text(rows.iter().map(|r| r.prompt_id)),
            whole(rows.iter().map(|r| r.failures_count)),
            text(rows.iter().map(|r| r.error)),
            times(rows.iter().map(|r| r.at_us)),
        ],
    )
}

/// Collects completions one by one, copying each once, and makes a batch of [`schema::sampled`].
///
/// For a caller that can't hold all its rows at once as [`rollouts`] wants them.
#[derive(Default)]
pub struct RolloutsBuilder {
    batches: Vec<RecordBatch>,
}

impl RolloutsBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a completion. Refuses one whose log-probs aren't one per token.
    pub fn push(&mut self, row: &RolloutRow<'_>) -> Result<()> {
        self.batches.push(rollouts(std::slice::from_ref(row))?);
        Ok(())
    }

    /// How many completions it holds.
    pub fn rows_count(&self) -> usize {
        self.batches.len()
    }

    /// The batch of all completions so far, in the order they came; the builder is empty again.
    pub fn finish(&mut self) -> Result<RecordBatch> {
        let batches = std::mem::take(&mut self.batches);
        arrow::compute::concat_batches(&schema::sampled(), &batches)
            .map_err(|error| Error::bug(format!("rollouts can't be joined: {error}")))
    }
}

fn batch(schema: SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("columns are written out in the schema's order")
}

pub(crate) fn text<S: AsRef<str>>(values: impl Iterator<Item = S>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

pub(crate) fn maybe_text<S: AsRef<str>>(values: impl Iterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

pub(crate) fn numbers(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(values))
}

pub(crate) fn booleans(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(BooleanArray::from_iter(values.map(Some)))
}

/// Counts and indices. None is ever near 2^63, where the conversion would stop being exact.
pub(crate) fn whole(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.map(|v| v as i64)))
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn lists_u32<'a>(lists: impl Iterator<Item = &'a [u32]>) -> ArrayRef {
    let (mut values, mut lens) = (Vec::new(), Vec::new());
    for list in lists {
        values.extend_from_slice(list);
        lens.push(list.len());
    }
    list_array(lens, DataType::UInt32, Arc::new(UInt32Array::new(ScalarBuffer::from(values), None)))
}

fn lists_f32<'a>(lists: impl Iterator<Item = &'a [f32]>) -> ArrayRef {
    let (mut values, mut lens) = (Vec::new(), Vec::new());
    for list in lists {
        values.extend_from_slice(list);
        lens.push(list.len());
    }
    list_array(
        lens,
        DataType::Float32,
        Arc::new(Float32Array::new(ScalarBuffer::from(values), None)),
    )
}

pub(crate) fn maybe_lists_f32<'a>(lists: impl Iterator<Item = Option<&'a [f32]>>) -> ArrayRef {
    let (mut values, mut lens, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        values.extend_from_slice(list.unwrap_or_default());
        lens.push(list.map_or(0, <[f32]>::len));
        valid.push(list.is_some());
    }
    let field = Arc::new(Field::new("item", DataType::Float32, false));
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let (values, offsets) =
        (Arc::new(Float32Array::from(values)), OffsetBuffer::from_lengths(lens));
    Arc::new(ListArray::new(field, offsets, values, nulls))
}

fn lists_bool<'a>(lists: impl Iterator<Item = &'a [bool]>) -> ArrayRef {
    let (mut values, mut lens) = (BooleanBufferBuilder::new(0), Vec::new());
    for list in lists {
        values.append_slice(list);
        lens.push(list.len());
    }
    list_array(lens, DataType::Boolean, Arc::new(BooleanArray::new(values.finish(), None)))
}

fn lists_maybe_bool<'a>(lists: impl Iterator<Item = Option<&'a [bool]>>) -> ArrayRef {
    let (mut values, mut lens, mut valid) = (BooleanBufferBuilder::new(0), Vec::new(), Vec::new());
    for list in lists {
        values.append_slice(list.unwrap_or_default());
        lens.push(list.map_or(0, <[bool]>::len));
        valid.push(list.is_some());
    }
    let field = Arc::new(Field::new("item", DataType::Boolean, false));
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let (values, offsets) =
        (Arc::new(BooleanArray::new(values.finish(), None)), OffsetBuffer::from_lengths(lens));
    Arc::new(ListArray::new(field, offsets, values, nulls))
}

fn maybe_lists_whole<'a>(lists: impl Iterator<Item = Option<&'a [u64]>>) -> ArrayRef {
    let (mut values, mut lens, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        values.extend(list.unwrap_or_default().iter().map(|value| *value as i64));
        lens.push(list.map_or(0, <[u64]>::len));
        valid.push(list.is_some());
    }
    let field = Arc::new(Field::new("item", DataType::Int64, false));
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let (values, offsets) = (Arc::new(Int64Array::from(values)), OffsetBuffer::from_lengths(lens));
    Arc::new(ListArray::new(field, offsets, values, nulls))
}

fn lists_whole<'a>(lists: impl Iterator<Item = &'a [u64]>) -> ArrayRef {
    let (mut values, mut lens) = (Vec::new(), Vec::new());
    for list in lists {
        values.extend(list.iter().map(|v| *v as i64));
        lens.push(list.len());
    }
    list_array(lens, DataType::Int64, Arc::new(Int64Array::from(values)))
}

fn lists_f64<'a>(lists: impl Iterator<Item = Option<&'a [f64]>>) -> ArrayRef {
    let (mut values, mut lens, mut valid) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        values.extend_from_slice(list.unwrap_or_default());
        lens.push(list.map_or(0, <[f64]>::len));
        valid.push(list.is_some());
    }
    let field = Arc::new(Field::new("item", DataType::Float64, false));
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let (values, offsets) =
        (Arc::new(Float64Array::from(values)), OffsetBuffer::from_lengths(lens));
    Arc::new(ListArray::new(field, offsets, values, nulls))
}

fn list_array(lens: Vec<usize>, item: DataType, values: ArrayRef) -> ArrayRef {
    debug_assert_eq!(lens.iter().sum::<usize>(), values.len());
    let field = Arc::new(Field::new("item", item, false));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lens), values, None))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A completion with `len` tokens, for the tests of this crate.
    pub(crate) fn example(sample_idx: u32, len: usize) -> (Vec<u32>, Vec<f32>) {
        let ids = (0..len as u32).map(|i| i + sample_idx).collect();
        let logprobs = (0..len).map(|i| -0.5 - i as f32).collect();
        (ids, logprobs)
    }

    /// `rows_count` completions of step `step`.
    pub(crate) fn examples(step: u64, rows_count: u32) -> RecordBatch {
        let tokens: Vec<_> = (0..rows_count).map(|i| example(i, i as usize % 4)).collect();
        let rows: Vec<_> = tokens
            .iter()
            .zip(0..)
            .map(|((ids, logprobs), sample_idx)| RolloutRow {
                stage: "zero",
                step,
                prompt_id: "p17",
                source: None,
                sample_idx,
                policy_version: step - 1,
                prompt: "1+1?",
                completion: "<think>x</think>",
                answer: Some("2"),
                tests: None,
                prompt_token_ids: &[1, 2],
                completion_token_ids: ids,
                completion_logprobs: logprobs,
                completion_forced_mask: None,
                completion_policy_versions: None,
                finish_reason: "stop",
                finished_at_us: 1_000,
            })
            .collect();
        rollouts(&rows).unwrap()
    }

    #[test]
    fn a_rollout_id_reads_as_where_it_is_from() {
        assert_eq!(rollout_id("zero", 12, "p17", 3), "zero/12/p17/3");
    }

    #[test]
    fn a_missing_logprob_is_refused() {
        let row = RolloutRow {
            stage: "zero",
            step: 1,
            prompt_id: "p",
            source: None,
            sample_idx: 0,
            policy_version: 0,
            prompt: "",
            completion: "",
            answer: None,
            tests: None,
            prompt_token_ids: &[],
            completion_token_ids: &[1, 2],
            completion_logprobs: &[-1.0],
            completion_forced_mask: None,
            completion_policy_versions: None,
            finish_reason: "stop",
            finished_at_us: 0,
        };
        let message = RolloutsBuilder::new().push(&row).unwrap_err().to_string();
        assert!(message.contains("`zero/1/p/0` has 2 completion tokens and 1 log-probs"));
        let whole = RolloutRow { completion_logprobs: &[-1.0, -2.0], ..row };
        let flagged = RolloutRow { completion_forced_mask: Some(&[true]), ..whole.clone() };
        let message = RolloutsBuilder::new().push(&flagged).unwrap_err().to_string();
        assert!(message.contains("has 2 completion tokens and 1 flags"), "{message}");
        let dated = RolloutRow { completion_policy_versions: Some(&[1; 3]), ..whole.clone() };
        let message = RolloutsBuilder::new().push(&dated).unwrap_err().to_string();
        assert!(message.contains("has 2 completion tokens and 3 policy versions"), "{message}");
        let mut builder = RolloutsBuilder::new();
        builder.push(&whole).unwrap();
        builder.push(&whole).unwrap();
        assert_eq!(builder.rows_count(), 2);
        assert_eq!(builder.finish().unwrap().num_rows(), 2);
        assert_eq!(builder.finish().unwrap().num_rows(), 0);
    }

    #[test]
    fn every_table_can_be_empty() {
        assert_eq!(prompts(&[]).schema(), schema::prompts());
        assert_eq!(rollouts(&[]).unwrap().schema(), schema::sampled());
        assert_eq!(metrics(&[]).schema(), schema::metrics());
        assert_eq!(evals(&[]).schema(), schema::evals());
        assert_eq!(sft_examples(&[]).unwrap().schema(), schema::sft_examples());
        assert_eq!(preferences(&[]).schema(), schema::preferences());
        assert_eq!(set_aside(&[]).schema(), schema::set_aside());
    }
}
