//! Scores sampled rows: every part a column, a reason where a part could not be scored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aha_reward::wait::Cancel;
use aha_reward::{Backends, Composite, Sample, Scored, Spec};
use aha_rollout::schema::Progress;
use aha_rollout::steps::{self, Scores};
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

use crate::compute::panic_text;
use crate::error::{Error, Result};
use crate::pipeline::OnNull;
use crate::prompts::Problem;

/// A stage's rewards. Without any, no completion has a reward.
#[derive(Clone)]
pub struct Scorer {
    composite: Option<Arc<Composite>>,
    names: Arc<[String]>,
    /// Raised when the verdicts may be no more than that the run was stopped.
    cancel: Option<Cancel>,
}

impl Scorer {
    /// From the rewards of a pipeline. `clip` bounds the whole reward.
    pub fn new(
        specs: &[Spec],
        on_null: OnNull,
        clip: Option<[f64; 2]>,
        backends: &dyn Backends,
    ) -> Result<Scorer> {
        let on_null = match on_null {
            OnNull::Drop => aha_reward::OnNull::Drop,
            OnNull::Zero => aha_reward::OnNull::Zero,
            OnNull::Stop => aha_reward::OnNull::Stop,
        };
        if specs.is_empty() {
            return Ok(Scorer { composite: None, names: Arc::default(), cancel: None });
        }
        let clip = clip.map(|bounds| bounds.map(|bound| bound as f32));
        let composite = Composite::new(specs, on_null, clip, backends).map_err(|problems| {
            let texts: Vec<String> =
                problems.iter().map(|(idx, problem)| format!("reward {idx}: {problem}")).collect();
            Error::input(texts.join("; "))
        })?;
        let names: Vec<String> = composite.names().map(str::to_owned).collect();
        let waits = specs.iter().any(|spec| spec.kind().waits());
        let cancel = waits.then(|| backends.waiting().cancel);
        Ok(Scorer { composite: Some(Arc::new(composite)), names: names.into(), cancel })
    }

    /// Names of the parts, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the part of that place is applied to completions of prompts from `source`.
    pub fn is_applied(&self, part: usize, source: Option<&str>) -> bool {
        self.composite.as_ref().is_some_and(|composite| composite.is_applied(part, source))
    }

    /// Fails where no reward is for the completions of a problem.
    pub fn check_sources(&self, problems: &[Problem]) -> Result<()> {
        let Some(composite) = &self.composite else { return Ok(()) };
        let uncovered =
            problems.iter().find(|problem| !composite.covers(problem.source.as_deref()));
        let Some(problem) = uncovered else { return Ok(()) };
        let from = match &problem.source {
            Some(source) => format!("is from `{source}`"),
            None => "has no `source`".to_owned(),
        };
        Err(Error::input_with(
            format!("no reward is for the prompt `{}`, which {from}", problem.id),
            "add its source to the `sources` of a reward, or leave such rows out of the query",
        ))
    }

    /// How many calls of [`Scorer::score`] it can usefully have at a time, if more than there are cores.
    pub fn parallel_count(&self) -> usize {
        self.composite.as_ref().map_or(1, |composite| composite.parallel_count())
    }

    /// Adds reward columns to sampled rows. A verifier that panics leaves its row without a reward, and the
    /// panic's text as the reason. Fails with [`Error::Interrupted`] where the run was stopped meanwhile: what was
    /// not waited for is not what a row without a score is.
    pub fn score(&self, sampled: &RecordBatch) -> Result<RecordBatch> {
        let Some(composite) = &self.composite else {
            let nothing = vec![Scores::default(); sampled.num_rows()];
            return Ok(steps::add_scores(sampled, &self.names, &nothing)?);
        };
        let view = RolloutsView::new(sampled, Progress::Sampled)?;
        let samples: Vec<Sample<'_>> =
            (0..view.rows_count()).map(|row| sample(&view, row)).collect();
        // Nothing is shared with the verifiers but what they read.
        let together = catch_unwind(AssertUnwindSafe(|| composite.score_all(&samples)));
        let alone = |sample| self.score_alone(composite, sample);
        let scored = together.unwrap_or_else(|_| samples.iter().map(alone).collect());
        if self.cancel.as_ref().is_some_and(Cancel::is_raised) {
            return Err(Error::Interrupted);
        }
        let scores: Result<Vec<Scores>> = scored
            .into_iter()
            .enumerate()
            .map(|(row, scored)| scores_of(scored, view.rollout_id(row)))
            .collect();
        Ok(steps::add_scores(sampled, &self.names, &scores?)?)
    }

    fn score_alone(&self, composite: &Composite, sample: &Sample<'_>) -> Scored {
        let scored = catch_unwind(AssertUnwindSafe(|| composite.score(sample)));
        scored.unwrap_or_else(|panic| Scored {
            total: None,
            parts: vec![None; self.names.len()],
            reasons: vec![String::new(); self.names.len()],
            error: Some(format!("a verifier panicked: {}", panic_text(&*panic))),
            must_stop: false,
        })
    }
}

fn sample<'v>(view: &'v RolloutsView<'_>, row: usize) -> Sample<'v> {
    Sample {
        prompt: view.prompt(row),
        completion: view.completion(row),
        answer: view.answer(row),
        tests: view.tests(row),
        source: view.source(row),
        completion_len_tokens: view.completion_len_tokens(row) as usize,
        is_truncated: view.finish_reason(row) == aha_sample::FinishReason::Length.as_str(),
    }
}

/// The columns of a row, or why the run must stop.
fn scores_of(scored: Scored, rollout_id: &str) -> Result<Scores> {
    if scored.must_stop {
        let reason = scored.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(Error::input_with(
            format!("rollout `{rollout_id}` can't be scored: {reason}"),
            "mend the data, or set `reward_null` to \"drop\" or \"zero\"",
        ));
    }
    Ok(Scores {
        parts: scored.parts.iter().map(|part| part.map(f64::from)).collect(),
        reward: scored.total.map(f64::from),
        error: scored.error,
    })
}
