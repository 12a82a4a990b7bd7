//! Group-relative advantages: how much better than its siblings a completion did.
//!
//! ```text
//! mean_g = mean of the group's scored rewards
//! group:  A_i = (r_i - mean_g) / (std_g + eps)
//! batch:  A_i = (r_i - mean_g) / (std_batch + eps)      std over every scored reward of the batch
//! none:   A_i =  r_i - mean_g
//! ```
//!
//! A null reward (it could not be scored) takes no part in mean or std, and its completion is not
//! trained on. A group whose std is at most `no_signal_std_max` has advantages of exactly 0. Sums run
//! in f64, in the order of the group.

use serde::{Deserialize, Serialize};

use crate::Error;

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdvantageRule {
    /// What a deviation from the group's mean is divided by.
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

/// What a deviation from the group's mean is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The standard deviation of the group (GRPO).
    Group,
    /// The standard deviation of all scored rewards of the rollout batch (TRL's `batch`).
    Batch,
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
/// The whole batch comes in one call because [`Scale::Batch`] needs it. A reward that is not finite
/// is an error: it is neither a score nor the absence of one.
pub fn advantages(
    groups: &[&[Option<f32>]],
    rule: &AdvantageRule,
) -> Result<Vec<GroupAdvantages>, Error> {
    for (group_idx, group) in groups.iter().enumerate() {
        if let Some((sample_idx, reward)) =
            group.iter().enumerate().find_map(|(i, r)| r.filter(|r| !r.is_finite()).map(|r| (i, r)))
        {
            return Err(Error::Input {
                what: format!("reward of completion {sample_idx} in group {group_idx}"),
                expected: "a finite number or null".to_owned(),
                found: reward.to_string(),
            });
        }
    }
    let batch_std = match rule.scale {
        Scale::Batch => Moments::of(groups.iter().copied().flatten(), rule.std).std,
        Scale::Group | Scale::None => 0.0,
    };
    Ok(groups.iter().map(|group| group_advantages(group, rule, batch_std)).collect())
}

fn group_advantages(
    rewards: &[Option<f32>],
    rule: &AdvantageRule,
    batch_std: f64,
) -> GroupAdvantages {
    let moments = Moments::of(rewards, rule.std);
    let alone = moments.count == 1 && rule.single == SingleRule::Reward;
    let (centre, std, has_signal) = if alone {
        (0.0, 1.0, true)
    } else {
        (moments.mean, moments.std, moments.std > rule.no_signal_std_max)
    };
    let divisor = match rule.scale {
        Scale::Group => std + rule.eps,
        Scale::Batch => batch_std + rule.eps,
        Scale::None => 1.0,
    };
    // A lone reward of a batch without spread has nothing to be divided by.
    let has_signal = has_signal && divisor > 0.0;
    let row = |reward: &Option<f32>| match *reward {
        None => Advantage { value: 0.0, skip_reason: Some(SkipReason::RewardNull) },
        Some(_) if !has_signal => Advantage { value: 0.0, skip_reason: None },
        Some(reward) => {
            Advantage { value: ((f64::from(reward) - centre) / divisor) as f32, skip_reason: None }
        }
    };
    GroupAdvantages {
        rows: rewards.iter().map(row).collect(),
        scored_count: moments.count,
        reward_mean: moments.mean,
        reward_std: moments.std,
        has_signal,
    }
}

struct Moments {
    count: usize,
    mean: f64,
    std: f64,
}

impl Moments {
    fn of<'a>(
        rewards: impl IntoIterator<Item = &'a Option<f32>> + Clone,
        estimator: StdEstimator,
    ) -> Self {
        let scored = || rewards.clone().into_iter().flatten().map(|&r| f64::from(r));
        let count = scored().count();
        if count == 0 {
            return Self { count, mean: 0.0, std: 0.0 };
        }
        let mean = scored().sum::<f64>() / count as f64;
        if count == 1 {
            return Self { count, mean, std: 0.0 };
        }
        let squares: f64 = scored().map(|r| (r - mean) * (r - mean)).sum();
        let divisor = match estimator {
            StdEstimator::Population => count,
            StdEstimator::Sample => count - 1,
        };
        Self { count, mean, std: (squares / divisor as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: AdvantageRule = AdvantageRule {
        scale: Scale::Group,
        std: StdEstimator::Population,
        eps: 1e-8,
        no_signal_std_max: 1e-6,
        single: SingleRule::Zero,
    };

    fn values(rewards: &[Option<f32>], rule: &AdvantageRule) -> Vec<f32> {
        let groups = advantages(&[rewards], rule).unwrap();
        groups[0].rows.iter().map(|row| row.value).collect()
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
                let groups = advantages(&[&[Some(0.1); 3], &[Some(0.1); 7]], &rule).unwrap();
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
    fn a_null_reward_is_not_a_reward_of_zero() {
        let rule = AdvantageRule { eps: 0.0, ..PAPER };
        let rewards = [Some(1.0), None, Some(3.0), None];
        let group = &advantages(&[&rewards], &rule).unwrap()[0];
        assert_eq!(values(&rewards, &rule), [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!((group.scored_count, group.reward_mean, group.reward_std), (2, 2.0, 1.0));
        let skipped: Vec<bool> = group.rows.iter().map(|row| row.skip_reason.is_some()).collect();
        assert_eq!(skipped, [false, true, false, true]);
        assert_eq!(SkipReason::RewardNull.as_str(), "reward_null");
    }

    #[test]
    fn a_group_without_any_reward_has_no_signal() {
        for rewards in [&[None, None][..], &[]] {
            let group = &advantages(&[rewards], &PAPER).unwrap()[0];
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
        let groups =
            advantages(&[&[Some(0.0), Some(2.0)], &[Some(4.0), None, Some(10.0)]], &rule).unwrap();
        // Rewards 0, 2, 4, 10: mean 4, population variance (16 + 4 + 0 + 36) / 4 = 14.
        let std = 14.0_f64.sqrt();
        let found: Vec<f32> = groups.iter().flat_map(|g| &g.rows).map(|row| row.value).collect();
        close(&found, &[-1.0 / std, 1.0 / std, -3.0 / std, 0.0, 3.0 / std]);
    }

    #[test]
    fn a_reward_that_is_not_finite_is_an_error_with_its_place() {
        for reward in [f32::NAN, f32::INFINITY] {
            let error =
                advantages(&[&[Some(1.0)], &[Some(0.0), Some(reward)]], &PAPER).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("reward of completion 1 in group 1: expected"), "{text}");
        }
    }
}
