//! Advantages: how much better a completion is than what it is compared with.
//!
//! ```text
//! d_i = r_i - b_i               b_i by `baseline`: the mean of the group, of the group's others, of the batch, or 0
//! group:  A_i = d_i / (std_g + eps)
//! batch:  A_i = d_i / (std_batch + eps)                 std over every scored reward of the batch
//! whiten: A_i = (d_i - mean(d)) / (std(d) + eps)        mean and std over the batch's trained tokens
//! none:   A_i = d_i
//! ```
//!
//! A null reward (it could not be scored) takes no part in means and stds, and its completion is not trained on.
//! A group whose std is at most `no_signal_std_max` has deviations of exactly 0 where it is compared with itself.
//! Sums run in f64, in the order of the groups.

use serde::{Deserialize, Serialize};

use crate::Error;

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdvantageRule {
    /// What a reward is compared with.
    pub baseline: Baseline,
    /// What a deviation from the baseline is divided by.
    pub scale: Scale,
    /// Which standard deviation.
    pub std: StdEstimator,
    /// Added to the standard deviation before the division.
    pub eps: f64,
    /// A group whose standard deviation is at most this has no signal: its advantages are exactly 0.
    ///
    /// Rewards that are equal but for rounding (0.1 + 0.2 and 0.3) would otherwise be blown up to
    /// advantages near ±1.
    pub no_signal_std_max: f64,
    /// What a group with one scored completion gives.
    pub single: SingleRule,
}

/// What a reward is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the group (GRPO).
    Group,
    /// The mean of the group's other completions (RLOO: arXiv:2402.14740, section 3.3).
    LeaveOneOut,
    /// The mean over the rollout batch.
    Batch,
    /// Nothing: the reward itself (REINFORCE).
    None,
    /// What a critic expects of each token: advantages of tokens by generalised advantage estimation (PPO). The other
    /// baselines need no second model; this one needs no second completion of a prompt.
    Value,
}

impl Baseline {
    /// Whether a completion is compared with its siblings, so that a group needs a spread.
    pub fn is_of_group(self) -> bool {
        matches!(self, Self::Group | Self::LeaveOneOut)
    }
}

/// What a deviation from the baseline is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The standard deviation of the group (GRPO).
    Group,
    /// The standard deviation of all scored rewards of the rollout batch (TRL's `batch`).
    Batch,
    /// The standard deviation of all deviations of the rollout batch, whose mean is taken off before, each weighted
    /// with its completion's tokens (REINFORCE++: arXiv:2501.03262, eq. 8; verl's `masked_whiten`).
    Whiten,
    /// Nothing (Dr. GRPO).
    None,
}

/// Which standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdEstimator {
    /// Divides by n: the deviation of the rewards that there are, as the papers write it.
    Population,
    /// Divides by n - 1, as `torch.std`, TRL and verl do.
    Sample,
}

/// What a group with one scored completion gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SingleRule {
    /// Advantage 0: nothing to compare with.
    Zero,
    /// The reward itself, as if mean were 0 and std 1 (verl).
    Reward,
}

/// A completion, as advantages see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Its reward; none where it could not be scored.
    pub reward: Option<f32>,
    /// Its tokens.
    pub len_tokens: usize,
}

/// Why a completion is not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// No reward could be computed.
    RewardNull,
}

impl SkipReason {
    /// The text of the column `skip_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RewardNull => "reward_null",
        }
    }
}

/// The advantage of one completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Advantage {
    /// The advantage; 0 where the completion is skipped.
    pub value: f32,
    /// Why the completion is not trained on; `None` where it is.
    pub skip_reason: Option<SkipReason>,
}

/// The advantages of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupAdvantages {
    /// One per completion, in the group's order.
    pub rows: Vec<Advantage>,
    /// Completions that have a reward.
    pub scored_count: usize,
    /// Mean of the scored rewards; 0 where there are none.
    pub reward_mean: f64,
    /// Standard deviation of the scored rewards; 0 with fewer than two.
    pub reward_std: f64,
    /// False where every advantage is 0 by rule: the group teaches nothing but closeness to the reference.
    pub has_signal: bool,
}

/// The advantages of a rollout batch, group by group.
///
/// The whole batch comes in one call because [`Baseline::Batch`], [`Scale::Batch`] and [`Scale::Whiten`] need it. A
/// reward that is not finite is an error: it is neither a score nor the absence of one. With [`Baseline::Value`]
/// nothing is known before a critic was asked, see [`crate::value::estimate`]: advantages are 0, and every group with a
/// reward has a signal.
pub fn advantages(
    groups: &[&[Sample]],
    rule: &AdvantageRule,
) -> Result<Vec<GroupAdvantages>, Error> {
    check_finite(groups)?;
    if rule.baseline == Baseline::Value {
        return Ok(groups.iter().map(|group| unknown(group, rule)).collect());
    }
    let batch = Moments::of(groups.iter().copied().flatten(), rule.std);
    let mut all: Vec<Deviations> =
        groups.iter().map(|group| Deviations::of(group, rule, &batch)).collect();
    if rule.scale == Scale::Whiten {
        whiten(&mut all, groups, rule);
    }
    Ok(all.into_iter().zip(groups).map(|(found, group)| found.into_advantages(group)).collect())
}

fn check_finite(groups: &[&[Sample]]) -> Result<(), Error> {
    for (group_idx, group) in groups.iter().enumerate() {
        let bad = |sample: &Sample| sample.reward.filter(|reward| !reward.is_finite());
        let found = group.iter().enumerate().find_map(|(i, sample)| Some((i, bad(sample)?)));
        if let Some((sample_idx, reward)) = found {
            return Err(Error::Input {
                what: format!("reward of completion {sample_idx} in group {group_idx}"),
                expected: "a finite number or null".to_owned(),
                found: reward.to_string(),
            });
        }
    }
    Ok(())
}

/// A group before its critic was asked.
fn unknown(group: &[Sample], rule: &AdvantageRule) -> GroupAdvantages {
    let moments = Moments::of(group, rule.std);
    let has_signal = moments.count > 0;
    let values = vec![0.0; moments.count];
    Deviations { values, moments, has_signal }.into_advantages(group)
}

/// What a group's scored completions are off their baseline, in the order of the group, after the division.
struct Deviations {
    values: Vec<f64>,
    moments: Moments,
    has_signal: bool,
}

impl Deviations {
    fn of(group: &[Sample], rule: &AdvantageRule, batch: &Moments) -> Deviations {
        let moments = Moments::of(group, rule.std);
        let is_alone = moments.count == 1 && rule.baseline.is_of_group();
        // As if mean were 0 and std 1.
        let is_taken_as_it_is = is_alone && rule.single == SingleRule::Reward;
        let baseline = |reward: f64| match rule.baseline {
            _ if is_taken_as_it_is => 0.0,
            Baseline::Group => moments.mean,
            Baseline::LeaveOneOut => (moments.sum - reward) / (moments.count as f64 - 1.0),
            Baseline::Batch => batch.mean,
            Baseline::None | Baseline::Value => 0.0,
        };
        let divisor = match rule.scale {
            Scale::Group if is_taken_as_it_is => 1.0 + rule.eps,
            Scale::Group => moments.std + rule.eps,
            Scale::Batch => batch.std + rule.eps,
            Scale::Whiten | Scale::None => 1.0,
        };
        let has_spread = match rule.baseline {
            Baseline::Group | Baseline::LeaveOneOut => moments.std > rule.no_signal_std_max,
            Baseline::Batch => batch.std > rule.no_signal_std_max,
            Baseline::None | Baseline::Value => scored(group).any(|reward| reward != 0.0),
        };
        // A lone reward of a batch without spread has nothing to be divided by.
        let has_signal = (is_taken_as_it_is || has_spread) && divisor > 0.0;
        let value = |reward: f64| match has_signal {
            true => (reward - baseline(reward)) / divisor,
            false => 0.0,
        };
        Deviations { values: scored(group).map(value).collect(), moments, has_signal }
    }

    fn into_advantages(self, group: &[Sample]) -> GroupAdvantages {
        let mut values = self.values.into_iter();
        let row = |sample: &Sample| match sample.reward.and_then(|_| values.next()) {
            None => Advantage { value: 0.0, skip_reason: Some(SkipReason::RewardNull) },
            Some(value) => Advantage { value: value as f32, skip_reason: None },
        };
        GroupAdvantages {
            rows: group.iter().map(row).collect(),
            scored_count: self.moments.count,
            reward_mean: self.moments.mean,
            reward_std: self.moments.std,
            has_signal: self.has_signal,
        }
    }
}

/// Takes their mean off all deviations and divides them by their standard deviation, both over tokens.
fn whiten(all: &mut [Deviations], groups: &[&[Sample]], rule: &AdvantageRule) {
    let lens = groups.iter().copied().flatten().filter(|sample| sample.reward.is_some());
    let lens: Vec<f64> = lens.map(|sample| sample.len_tokens as f64).collect();
    let values = || all.iter().flat_map(|found| &found.values).zip(&lens);
    let tokens: f64 = lens.iter().sum();
    let mean = values().map(|(x, len)| x * len).sum::<f64>() / tokens.max(1.0);
    let squares: f64 = values().map(|(x, len)| (x - mean) * (x - mean) * len).sum();
    let divisor = match rule.std {
        StdEstimator::Population => tokens,
        StdEstimator::Sample => tokens - 1.0,
    };
    let std = (squares / divisor.max(1.0)).sqrt();
    let has_signal = std > rule.no_signal_std_max && std + rule.eps > 0.0;
    for found in all {
        found.has_signal = has_signal && !found.values.is_empty();
        for x in &mut found.values {
            *x = if has_signal { (*x - mean) / (std + rule.eps) } else { 0.0 };
        }
    }
}

fn scored<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> impl Iterator<Item = f64> {
    samples.into_iter().filter_map(|sample| sample.reward).map(f64::from)
}

struct Moments {
    count: usize,
    sum: f64,
    mean: f64,
    std: f64,
}

impl Moments {
    /// Of the scored rewards.
    fn of<'a>(
        samples: impl IntoIterator<Item = &'a Sample> + Clone,
        estimator: StdEstimator,
    ) -> Self {
        let count = scored(samples.clone()).count();
        let sum: f64 = scored(samples.clone()).sum();
        let mean = sum / count.max(1) as f64;
        if count < 2 {
            return Self { count, sum, mean, std: 0.0 };
        }
        let squares: f64 = scored(samples).map(|r| (r - mean) * (r - mean)).sum();
        let divisor = match estimator {
            StdEstimator::Population => count,
            StdEstimator::Sample => count - 1,
        };
        Self { count, sum, mean, std: (squares / divisor as f64).sqrt() }
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: AdvantageRule = AdvantageRule {
        baseline: Baseline::Group,
        scale: Scale::Group,
        std: StdEstimator::Population,
        eps: 1e-8,
        no_signal_std_max: 1e-6,
        single: SingleRule::Zero,
    };

    /// The advantages of groups of completions of ten tokens each.
    fn of(groups: &[&[Option<f32>]], rule: &AdvantageRule) -> Result<Vec<GroupAdvantages>, Error> {
        let sample = |&reward: &Option<f32>| Sample { reward, len_tokens: 10 };
        let groups: Vec<Vec<Sample>> =
            groups.iter().map(|group| group.iter().map(sample).collect()).collect();
        advantages(&groups.iter().map(Vec::as_slice).collect::<Vec<_>>(), rule)
    }

    fn values(rewards: &[Option<f32>], rule: &AdvantageRule) -> Vec<f32> {
        let groups = of(&[rewards], rule).unwrap();
        groups[0].rows.iter().map(|row| row.value).collect()
    }

    fn all_values(groups: &[GroupAdvantages]) -> Vec<f32> {
        groups.iter().flat_map(|group| &group.rows).map(|row| row.value).collect()
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f64::from(*f) - e).abs() <= 1e-6 * e.abs() + 1e-9, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn one_right_of_four_by_hand() {
        let rewards = [Some(0.0), Some(1.0), Some(0.0), Some(0.0)];
        // Population variance 3/16, sample variance 1/4.
        let std = (3.0_f64 / 16.0).sqrt() + 1e-8;
        close(&values(&rewards, &PAPER), &[-0.25 / std, 0.75 / std, -0.25 / std, -0.25 / std]);
        let sample = AdvantageRule { std: StdEstimator::Sample, eps: 0.5, ..PAPER };
        close(&values(&rewards, &sample), &[-0.25, 0.75, -0.25, -0.25]);
        let centred = AdvantageRule { scale: Scale::None, eps: 7.0, ..PAPER };
        close(&values(&rewards, &centred), &[-0.25, 0.75, -0.25, -0.25]);
    }

    #[test]
    fn advantages_are_zero_when_all_rewards_are_equal() {
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            for eps in [0.0, 1e-8] {
                let rule = AdvantageRule { scale, eps, no_signal_std_max: 0.0, ..PAPER };
                let groups = of(&[&[Some(0.1); 3], &[Some(0.1); 7]], &rule).unwrap();
                for group in groups {
                    assert!(!group.has_signal);
                    assert!(group.rows.iter().all(|row| row.value == 0.0));
                    assert!(group.rows.iter().all(|row| row.skip_reason.is_none()));
                }
            }
        }
    }

    #[test]
    fn rewards_that_differ_by_rounding_have_no_signal() {
        let rewards = [Some(0.1_f32 + 0.2), Some(0.3_f32.next_down()), Some(0.3)];
        assert_ne!(rewards[0], rewards[1]);
        assert_eq!(values(&rewards, &PAPER), [0.0; 3]);
        let blown_up = values(&rewards, &AdvantageRule { no_signal_std_max: 0.0, ..PAPER });
        assert!(blown_up.iter().any(|a| a.abs() > 0.5), "{blown_up:?}");
    }

    #[test]
    fn before_a_critic_was_asked_advantages_are_zero_and_rewards_a_signal() {
        let rule = AdvantageRule { baseline: Baseline::Value, scale: Scale::Whiten, ..PAPER };
        let groups = of(&[&[Some(3.0)], &[Some(1.0), None, Some(1.0)], &[None]], &rule).unwrap();
        assert!(all_values(&groups).iter().all(|&value| value == 0.0));
        let signals: Vec<bool> = groups.iter().map(|group| group.has_signal).collect();
        assert_eq!(signals, [true, true, false]);
        let skipped =
            |group: &GroupAdvantages| group.rows.iter().filter(|r| r.skip_reason.is_some()).count();
        assert_eq!(groups.iter().map(skipped).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!((groups[1].scored_count, groups[1].reward_mean), (2, 1.0));
        assert!(of(&[&[Some(f32::NAN)]], &rule).is_err());
    }

    #[test]
    fn a_null_reward_is_not_a_reward_of_zero() {
        let rule = AdvantageRule { eps: 0.0, ..PAPER };
        let rewards = [Some(1.0), None, Some(3.0), None];
        let group = &of(&[&rewards], &rule).unwrap()[0];
        assert_eq!(values(&rewards, &rule), [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!((group.scored_count, group.reward_mean, group.reward_std), (2, 2.0, 1.0));
        let skipped: Vec<bool> = group.rows.iter().map(|row| row.skip_reason.is_some()).collect();
        assert_eq!(skipped, [false, true, false, true]);
        assert_eq!(SkipReason::RewardNull.as_str(), "reward_null");
    }

    #[test]
    fn a_group_without_any_reward_has_no_signal() {
        for rewards in [&[None, None][..], &[]] {
            let group = &of(&[rewards], &PAPER).unwrap()[0];
            assert_eq!((group.has_signal, group.scored_count), (false, 0));
            assert_eq!(group.rows.len(), rewards.len());
        }
    }

    #[test]
    fn a_lone_completion_follows_the_rule_for_it() {
        let rewards = [Some(2.0), None];
        assert_eq!(values(&rewards, &PAPER), [0.0, 0.0]);
        let verl = AdvantageRule { single: SingleRule::Reward, eps: 1.0, ..PAPER };
        assert_eq!(values(&rewards, &verl), [1.0, 0.0]);
        let verl_centred = AdvantageRule { scale: Scale::None, ..verl };
        assert_eq!(values(&rewards, &verl_centred), [2.0, 0.0]);
    }

    #[test]
    fn the_batch_scale_takes_its_std_from_all_groups() {
        let rule = AdvantageRule { scale: Scale::Batch, eps: 0.0, ..PAPER };
        let groups = of(&[&[Some(0.0), Some(2.0)], &[Some(4.0), None, Some(10.0)]], &rule).unwrap();
        // Rewards 0, 2, 4, 10: mean 4, population variance (16 + 4 + 0 + 36) / 4 = 14.
        let std = 14.0_f64.sqrt();
        close(&all_values(&groups), &[-1.0 / std, 1.0 / std, -3.0 / std, 0.0, 3.0 / std]);
    }

    #[test]
    fn a_reward_that_is_not_finite_is_an_error_with_its_place() {
        for reward in [f32::NAN, f32::INFINITY] {
            let error = of(&[&[Some(1.0)], &[Some(0.0), Some(reward)]], &PAPER).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("reward of completion 1 in group 1: expected"), "{text}");
        }
    }

    #[test]
    fn leaving_one_out_compares_with_the_others() {
        let rule = AdvantageRule { baseline: Baseline::LeaveOneOut, scale: Scale::None, ..PAPER };
        let rewards = [Some(1.0), None, Some(0.0), Some(4.0)];
        close(&values(&rewards, &rule), &[1.0 - 2.0, 0.0, -2.5, 4.0 - 0.5]);
        assert_eq!(values(&[Some(3.0), None], &rule), [0.0, 0.0], "nobody to compare with");
        let lone = AdvantageRule { single: SingleRule::Reward, ..rule };
        assert_eq!(values(&[Some(3.0), None], &lone), [3.0, 0.0]);
    }

    #[test]
    fn the_batch_as_baseline_gives_groups_without_spread_a_signal() {
        let rule = AdvantageRule { baseline: Baseline::Batch, scale: Scale::None, ..PAPER };
        let groups = of(&[&[Some(1.0), Some(1.0)], &[Some(4.0), None]], &rule).unwrap();
        assert_eq!(all_values(&groups), [-1.0, -1.0, 2.0, 0.0]);
        assert!(groups.iter().all(|group| group.has_signal));
        let equal = of(&[&[Some(1.0)], &[Some(1.0)]], &rule).unwrap();
        assert!(equal.iter().all(|group| !group.has_signal));
    }

    #[test]
    fn without_a_baseline_rewards_are_advantages() {
        let rule = AdvantageRule { baseline: Baseline::None, scale: Scale::None, ..PAPER };
        let groups = of(&[&[Some(0.5), Some(0.5)], &[Some(0.0), None]], &rule).unwrap();
        assert_eq!(all_values(&groups), [0.5, 0.5, 0.0, 0.0]);
        assert_eq!([groups[0].has_signal, groups[1].has_signal], [true, false]);
    }

    #[test]
    fn whitened_advantages_have_mean_0_and_std_1_over_tokens() {
        let sample = |reward: f32, len_tokens| Sample { reward: Some(reward), len_tokens };
        let first = [sample(0.0, 1), sample(1.0, 3)];
        let second = [sample(1.0, 2), Sample { reward: None, len_tokens: 50 }];
        for baseline in [Baseline::None, Baseline::Group] {
            let rule = AdvantageRule {
                baseline,
                scale: Scale::Whiten,
                eps: 0.0,
                single: SingleRule::Reward,
                ..PAPER
            };
            let groups = advantages(&[&first, &second], &rule).unwrap();
            let rows = all_values(&groups).into_iter().map(f64::from);
            let weighted: Vec<(f64, f64)> = rows.zip([1.0, 3.0, 2.0, 0.0]).collect();
            let mean: f64 = weighted.iter().map(|(x, n)| x * n).sum::<f64>() / 6.0;
            let square: f64 = weighted.iter().map(|(x, n)| x * x * n).sum::<f64>() / 6.0;
            assert!(mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-6, "{baseline:?} {weighted:?}");
            assert_eq!(groups[1].rows[1].skip_reason, Some(SkipReason::RewardNull));
        }
        // Rewards 0, 1, 1 with 1, 3 and 2 tokens: mean 5/6, variance 5/36; by n - 1, 1/6.
        let rule = AdvantageRule {
            baseline: Baseline::None,
            scale: Scale::Whiten,
            std: StdEstimator::Sample,
            eps: 0.0,
            ..PAPER
        };
        let groups = advantages(&[&first, &second], &rule).unwrap();
        let std = (1.0_f64 / 6.0).sqrt();
        let [low, high] = [-5.0 / 6.0 / std, 1.0 / 6.0 / std];
        close(&all_values(&groups), &[low, high, high, 0.0]);
        let equal = of(&[&[Some(1.0), Some(1.0)]], &rule).unwrap();
        assert!(!equal[0].has_signal && all_values(&equal) == [0.0, 0.0]);
    }
}
