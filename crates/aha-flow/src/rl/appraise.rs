//! What a step's completions are worth once the learner's models were asked: KL taken off their rewards, and a critic's
//! values. The advantage actor has no models, so what it said before is replaced here.

use aha_compute::WeightForm;
use aha_learn::advantage::Sample;
use aha_learn::learner::{self, Learner, OldLogps, Rollout};
use aha_learn::objective;
use aha_learn::value::{self, Episode, Estimate, ValueRule};
use aha_rollout::schema::Progress;
use aha_rollout::steps::{self, Appraisal};
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

use super::advantage::{self, Groups};
use super::stage::Shared;
use super::train::{by_row, rollout_of, temperature};
use crate::error::{Error, Result};

/// A step's groups with other advantages than they came with. The rewards in the rows stay as they were given.
pub(super) struct Appraised {
    /// The groups.
    pub groups: Groups,
    /// What was measured.
    pub metrics: Vec<(&'static str, f64)>,
    /// By row, what the critic is to expect before each token; none where there is no critic.
    pub returns: Option<Vec<Vec<f32>>>,
}

/// Asks reference and critic about a step's groups; none where the objective needs neither. To be called before any
/// weights change.
pub(super) fn appraise(
    learner: &Learner,
    shared: &Shared,
    groups: &Groups,
) -> Result<Option<Appraised>> {
    let objective = &shared.settings.objective;
    if objective.kl_reward_coef() == 0.0 && objective.critic().is_none() {
        return Ok(None);
    }
    let view = RolloutsView::new(&groups.rows, Progress::Grouped)?;
    let samples = advantage::samples(&view);
    let left_out = by_row(groups, &groups.left_out);
    let rows = left_out
        .enumerate()
        .filter(|&(row, left_out)| left_out.is_none() && samples[row].reward.is_some())
        .map(|(row, _)| row);
    let mut asked = Asked { learner, shared, view, rows: rows.collect(), kl: None };
    asked.kl = asked.kl_estimates()?;
    let (rows, has_signal, returns, mut metrics) = match objective.critic() {
        None => {
            let (rows, has_signal) = asked.by_completion(samples, groups)?;
            (rows, has_signal, None, Vec::new())
        }
        Some(rule) => {
            let (rows, returns, metrics) = asked.by_token(rule, groups)?;
            (rows, groups.has_signal.clone(), Some(returns), metrics)
        }
    };
    metrics.extend(asked.kl_mean().map(|kl| ("kl", kl)));
    let groups = Groups {
        rows,
        lens: groups.lens.clone(),
        has_signal,
        left_out: groups.left_out.clone(),
        failed: groups.failed.clone(),
    };
    Ok(Some(Appraised { groups, metrics, returns }))
}

/// The rows that models are asked about: those that can be trained on.
struct Asked<'a> {
    learner: &'a Learner,
    shared: &'a Shared,
    view: RolloutsView<'a>,
    rows: Vec<usize>,
    /// For each of the rows the estimate of each token; none where KL isn't in the reward.
    kl: Option<Vec<Vec<f64>>>,
}

/// Rows with a critic's advantages, what it is to expect of each, and what was measured.
type ByToken = (RecordBatch, Vec<Vec<f32>>, Vec<(&'static str, f64)>);

impl Asked<'_> {
    fn rollouts(&self) -> Vec<Rollout<'_>> {
        let of = |&row: &usize| rollout_of(&self.view, row, OldLogps::Behaviour);
        self.rows.iter().map(of).collect()
    }

    fn micro_batch_tokens(&self) -> usize {
        self.shared.settings.micro_batch_tokens.tokens() as usize
    }

    fn kl_estimates(&self) -> Result<Option<Vec<Vec<f64>>>> {
        let objective = &self.shared.settings.objective;
        if objective.kl_reward_coef() == 0.0 {
            return Ok(None);
        }
        let reference =
            self.learner.reference().ok_or_else(|| Error::bug("KL needs a reference model"))?;
        let (rollouts, tokens) = (self.rollouts(), self.micro_batch_tokens());
        let score = |model| learner::score(model, &rollouts, temperature(self.shared), tokens);
        let (under_reference, own) = match self.shared.sampling.weights {
            WeightForm::Same => (score(reference), None),
            WeightForm::Int8 => (score(reference), Some(score(self.learner.model()))),
        };
        let of = |(i, rollout): (usize, &Rollout<'_>)| {
            let logps = own.as_ref().map_or(rollout.behaviour_logps, |own| &own[i]);
            let both = logps.iter().zip(&under_reference[i]);
            both.map(|(&logp, &of)| objective::kl_estimate(objective, logp, of)).collect()
        };
        Ok(Some(rollouts.iter().enumerate().map(of).collect()))
    }

    /// The mean estimate over tokens.
    fn kl_mean(&self) -> Option<f64> {
        let kl = self.kl.as_ref()?;
        let (mut sum, mut count) = (0.0, 0_usize);
        for estimates in kl {
            (sum, count) = (sum + estimates.iter().sum::<f64>(), count + estimates.len());
        }
        Some(sum / count.max(1) as f64)
    }

    /// Rows with advantages of completions, and which groups have a signal: each completion's estimates are taken off
    /// its reward.
    fn by_completion(
        &self,
        mut samples: Vec<Sample>,
        groups: &Groups,
    ) -> Result<(RecordBatch, Vec<bool>)> {
        let objective = &self.shared.settings.objective;
        for (&row, estimates) in self.rows.iter().zip(self.kl.iter().flatten()) {
            let kl: f64 = estimates.iter().sum();
            let reward = f64::from(samples[row].reward.unwrap_or_default());
            samples[row].reward = Some((reward - objective.kl_reward_coef() * kl) as f32);
        }
        let slices = advantage::split(&samples, &groups.lens);
        let (values, has_signal) =
            advantage::compare(&slices, &groups.left_out, &objective.advantage)?;
        Ok((steps::replace_advantages(&groups.rows, &values)?, has_signal))
    }

    /// Advantages of tokens by the critic: each token's estimate is taken off its own reward.
    fn by_token(&self, rule: &ValueRule, groups: &Groups) -> Result<ByToken> {
        let objective = &self.shared.settings.objective;
        let critic = self.learner.critic().ok_or_else(|| Error::bug("advantages need a critic"))?;
        let values = learner::values(critic.model(), &self.rollouts(), self.micro_batch_tokens());
        let coef = objective.kl_reward_coef();
        let penalties: Option<Vec<Vec<f64>>> = self.kl.as_ref().map(|kl| {
            kl.iter().map(|estimates| estimates.iter().map(|kl| coef * kl).collect()).collect()
        });
        let episode = |(i, &row): (usize, &usize)| Episode {
            reward: self.view.reward(row).unwrap_or_default(),
            penalties: penalties.as_ref().map(|penalties| penalties[i].as_slice()),
            values: &values[i],
        };
        let episodes: Vec<Episode<'_>> = self.rows.iter().enumerate().map(episode).collect();
        let estimates = value::estimate(&episodes, &objective.advantage, rule);
        let metrics = measure(&values, &estimates);
        let mut appraisals = vec![None; self.view.rows_count()];
        let mut returns = vec![Vec::new(); self.view.rows_count()];
        for ((&row, values), estimate) in self.rows.iter().zip(values).zip(estimates) {
            appraisals[row] = Some(Appraisal { advantages: estimate.advantages, values });
            returns[row] = estimate.returns;
        }
        Ok((steps::appraise(&groups.rows, &appraisals)?, returns, metrics))
    }
}

fn measure(values: &[Vec<f32>], estimates: &[Estimate]) -> Vec<(&'static str, f64)> {
    let pairs = values.iter().zip(estimates).flat_map(|(values, estimate)| {
        values.iter().copied().zip(estimate.returns.iter().copied())
    });
    let count = pairs.clone().count().max(1) as f64;
    let mean =
        |of: fn((f32, f32)) -> f32| pairs.clone().map(of).map(f64::from).sum::<f64>() / count;
    let mut metrics =
        vec![("value_mean", mean(|(value, _)| value)), ("returns_mean", mean(|(_, found)| found))];
    metrics.extend(value::explained_variance(pairs.clone()).map(|x| ("explained_variance", x)));
    metrics
}
