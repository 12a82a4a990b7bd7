//! Completions of a batch of prompts, as rows: what every stage that samples calls on its compute thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_compute::random::Philox;
use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, RolloutRow};
use aha_rollout::view::PromptsView;
use aha_sample::{Completion, Request, Sampler, Sampling};
use arrow::array::RecordBatch;

use crate::clock;
use crate::error::{Error, Result};
use crate::pipeline::memory::kv_cache_bytes;

/// What completions are drawn from, and how.
pub struct Source<'a> {
    /// The weights.
    pub model: &'a Model,
    /// Their tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Settings of the draws.
    pub sampling: &'a Sampling,
    /// The family of the draws: a function of the run's seed and the stage (and, in training, the step).
    pub random: Philox,
    /// Optimizer steps that the weights have seen.
    pub policy_version: u64,
    /// Completions per prompt.
    pub samples: u32,
}

/// Draws all completions of `prompts`, rows of `aha_rollout::schema::prompts`. Each finished group goes to
/// `done` as rows of `aha_rollout::schema::sampled` in the order of their samples; groups come in no promised
/// order. Returns the prompts that could not be served, with their errors. Raising `cancel` ends it before the
/// next token is drawn.
pub fn generate(
    sampler: &mut Sampler,
    source: &Source<'_>,
    prompts: &RecordBatch,
    cancel: &AtomicBool,
    done: &mut dyn FnMut(usize, RecordBatch) -> Result<()>,
) -> Result<Vec<(usize, Error)>> {
    let view = PromptsView::new(prompts)?;
    let mut failed = Vec::new();
    let mut requests = Vec::new();
    let mut served = Vec::new();
    for row in 0..view.rows_count() {
        let request = Request {
            prompt_ids: view.prompt_token_ids(row).into(),
            address: address(view.prompt_id(row)),
            samples: 0..source.samples,
        };
        match sampler.check(source.model, &request, source.sampling) {
            Ok(()) => {
                served.push(row);
                requests.push(request);
            }
            Err(error) => failed.push((row, Error::from(error))),
        }
    }
    let mut groups = Groups {
        view: &view,
        source,
        served: &served,
        open: served.iter().map(|_| Vec::with_capacity(source.samples as usize)).collect(),
    };
    let mut outcome = Ok(());
    let (sampling, random) = (source.sampling, source.random);
    sampler.run(source.model, &requests, sampling, random, cancel, &mut |completion| {
        outcome = groups.take(completion, done);
        outcome.is_ok() && !cancel.load(Ordering::Relaxed)
    })?;
    outcome?;
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    Ok(failed)
}

/// The identity of a prompt in draws.
pub fn address(prompt_id: &str) -> u64 {
    // FNV-1a: stable across versions of the standard library.
    prompt_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Completions whose groups are not complete yet.
struct Groups<'a> {
    view: &'a PromptsView<'a>,
    source: &'a Source<'a>,
    served: &'a [usize],
    open: Vec<Vec<(Completion, i64)>>,
}

impl Groups<'_> {
    fn take(
        &mut self,
        completion: Completion,
        done: &mut dyn FnMut(usize, RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let idx = completion.request_idx;
        let group = &mut self.open[idx];
        group.push((completion, clock::now_us()));
        if group.len() < self.source.samples as usize {
            return Ok(());
        }
        let group = std::mem::take(group);
        let row = self.served[idx];
        let by = Drawn::By(self.source.policy_version);
        done(row, group_rows((self.view, row), group, self.source.tokenizer, by)?)
    }
}

/// Which weights drew the completions of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// Those of this version.
    By(u64),
    /// Those that each completion says.
    ByEach,
}

/// A group's completions, and when each had ended, as rows of `aha_rollout::schema::sampled` in the order of their
/// samples. Its prompt is a row of a view.
pub fn group_rows(
    (view, row): (&PromptsView<'_>, usize),
    mut group: Vec<(Completion, i64)>,
    tokenizer: &Tokenizer,
    by: Drawn,
) -> Result<RecordBatch> {
    group.sort_by_key(|(completion, _)| completion.sample_idx);
    let decode = |c: &Completion| tokenizer.decode(&c.token_ids, true);
    let texts = group.iter().map(|(c, _)| decode(c)).collect::<Result<Vec<_>, _>>()?;
    let versions: Vec<Option<Vec<u64>>> = group
        .iter()
        .map(|(c, _)| (by == Drawn::ByEach).then(|| c.versions.expand(c.token_ids.len())))
        .collect();
    let rows: Vec<RolloutRow<'_>> = group
        .iter()
        .zip(&texts)
        .zip(&versions)
        .map(|(((completion, finished_at_us), text), versions)| RolloutRow {
            stage: view.stage(row),
            step: view.step(row),
            prompt_id: view.prompt_id(row),
            source: view.source(row),
            sample_idx: completion.sample_idx,
            policy_version: match by {
                Drawn::By(version) => version,
                Drawn::ByEach => completion.versions.first(),
            },
            prompt: view.prompt(row),
            completion: text,
            answer: view.answer(row),
            tests: view.tests(row),
            prompt_token_ids: view.prompt_token_ids(row),
            completion_token_ids: &completion.token_ids,
            completion_logprobs: &completion.logprobs,
            completion_forced_mask: completion.forced_mask.as_deref(),
            completion_policy_versions: versions.as_deref(),
            finish_reason: completion.finish_reason.as_str(),
            finished_at_us: *finished_at_us,
        })
        .collect();
    Ok(rows::rollouts(&rows)?)
}

/// The family of a stage's draws.
pub fn stage_random(seed: u64, stage: &str) -> Philox {
    Philox::new(seed).derive(stage)
}

/// A sampler for models of this shape.
pub fn sampler(model: &Model, tokenizer: &Arc<Tokenizer>, run: &crate::pipeline::Run) -> Sampler {
    let config = model.config();
    let cache_bytes = kv_cache_bytes(
        run,
        config.layer_count,
        model.attention_dims(),
        config.max_position_embeddings,
    );
    let limits = aha_sample::Limits {
        sequences_max: run.sequences_max as usize,
        cache_bytes: cache_bytes as usize,
        ..aha_sample::Limits::default()
    };
    Sampler::new(model, Arc::clone(tokenizer), limits)
}
