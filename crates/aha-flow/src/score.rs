//! Scores sampled rows: every part a column, a reason where a part could not be scored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aha_reward::{Composite, Sample, Spec};
use aha_rollout::schema::Progress;
use aha_rollout::steps::{self, Scores};
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

use crate::compute::panic_text;
use crate::error::{Error, Result};
use crate::pipeline::OnNull;

/// A stage's rewards.
#[derive(Clone)]
pub struct Scorer {
    composite: Arc<Composite>,
    names: Arc<[String]>,
}

impl Scorer {
    /// From the rewards of a pipeline.
    pub fn new(specs: &[Spec], on_null: OnNull) -> Result<Scorer> {
        let on_null = match on_null {
            OnNull::Drop => aha_reward::OnNull::Drop,
            OnNull::Zero => aha_reward::OnNull::Zero,
            OnNull::Stop => aha_reward::OnNull::Stop,
        };
        let composite = Composite::new(specs, on_null).map_err(|problems| {
            let texts: Vec<String> =
                problems.iter().map(|(idx, problem)| format!("reward {idx}: {problem}")).collect();
            Error::input(texts.join("; "))
        })?;
        let names: Vec<String> = composite.names().map(str::to_owned).collect();
        Ok(Scorer { composite: Arc::new(composite), names: names.into() })
    }

    /// Names of the parts, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Adds reward columns to sampled rows. A verifier
    /// that panics leaves its row without a reward, and the panic's text as the reason.
    pub fn score(&self, sampled: &RecordBatch) -> Result<RecordBatch> {
        let view = RolloutsView::new(sampled, Progress::Sampled)?;
        let mut scores = Vec::with_capacity(view.rows_count());
        for row in 0..view.rows_count() {
            scores.push(self.score_row(&view, row)?);
        }
        Ok(steps::add_scores(sampled, &self.names, &scores)?)
    }

    fn score_row(&self, view: &RolloutsView<'_>, row: usize) -> Result<Scores> {
        let sample = Sample {
            prompt: view.prompt(row),
            completion: view.completion(row),
            answer: view.answer(row),
            tests: view.tests(row),
            completion_len_tokens: view.completion_token_ids(row).len(),
            is_truncated: view.finish_reason(row) == aha_sample::FinishReason::Length.as_str(),
        };
        // Nothing is shared with the verifier but what it reads.
        let scored = catch_unwind(AssertUnwindSafe(|| self.composite.score(&sample)));
        let scored = match scored {
            Ok(scored) => scored,
            Err(panic) => {
                return Ok(Scores {
                    parts: vec![None; self.names.len()],
                    reward: None,
                    error: Some(format!("a verifier panicked: {}", panic_text(&*panic))),
                });
            }
        };
        if scored.must_stop {
            let reason = scored.error.unwrap_or_else(|| "no reason given".to_owned());
            return Err(Error::input_with(
                format!("rollout `{}` can't be scored: {reason}", view.rollout_id(row)),
                "mend the data, or set `reward_null` to \"drop\" or \"zero\"",
            ));
        }
        Ok(Scores {
            parts: scored.parts.iter().map(|p| p.map(f64::from)).collect(),
            reward: scored.total.map(f64::from),
            error: scored.error,
        })
    }
}
