//! PPO with a critic: advantages of tokens by generalised advantage estimation (Schulman et al. 2016,
//! arXiv:1506.02438, eq. 16; Schulman et al. 2017, arXiv:1707.06347, eq. 11 and 12), and the critic's loss, whose clip
//! is that of OpenAI's baselines, TRL and verl.
//!
//! A completion of `T` tokens with reward `r`; `V_t` is what the critic expects before token `t` is drawn, `V_T = 0`
//! after the last, whether it ended by itself or was cut off (as in TRL and verl):
//!
//! ```text
//! r_t     = [t = T-1] r - beta KL_t             beta: the factor of a KL in the reward (InstructGPT, arXiv:2203.02155)
//! delta_t = r_t + gamma V_{t+1} - V_t
//! A_t     = delta_t + gamma lambda A_{t+1}      = sum_l (gamma lambda)^l delta_{t+l}
//! R_t     = A_t + V_t                           what the critic is to expect
//! whiten:  A_t = (A_t - mean(A)) / (std(A) + eps)         over the tokens of the rollout batch; not R_t
//! loss    = 1/N sum_t 1/2 max((V_t - R_t)^2, (clip(V_t, old_t - c, old_t + c) - R_t)^2)     N: tokens of the minibatch
//! ```
//!
//! `old_t` is what the critic said before the rollout batch was trained on. The critic is a model of its own with its
//! own optimizer, so its loss has no factor: AdamW's steps don't depend on one. A body shared with the policy would
//! need a factor, and the policy's bits would depend on the critic; a model of its own can begin as a reward model,
//! and both are checkpoints that other programs load. It costs a second model's memory.
//!
//! Sums run in f64, tokens in order.

use crate::advantage::{AdvantageRule, Scale, StdEstimator};

/// How a critic's values become advantages, and how the critic learns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueRule {
    /// Discount of a token: gamma.
    pub gamma: f64,
    /// Weight of what lies further ahead: lambda. At 1 advantages are returns less values, without bias; at 0 they
    /// trust the critic's next value alone.
    pub lambda: f64,
    /// How far a value may move from what it was before the critic is no longer pulled: `c`.
    pub clip: Option<f64>,
}

/// A completion, as its advantages are estimated from.
#[derive(Clone, Copy, Debug)]
pub struct Episode<'a> {
    /// Its reward, at the last token.
    pub reward: f64,
    /// What each token is taken off for, `beta KL_t`; nothing where absent.
    pub penalties: Option<&'a [f64]>,
    /// The value before each token.
    pub values: &'a [f32],
}

/// What was estimated of a completion: a number for each token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Advantages, whitened where the rule says so.
    pub advantages: Vec<f32>,
    /// What the critic is to expect.
    pub returns: Vec<f32>,
}

/// Advantages and returns of a rollout batch.
pub fn estimate(
    episodes: &[Episode<'_>],
    advantage: &AdvantageRule,
    rule: &ValueRule,
) -> Vec<Estimate> {
    let mut all: Vec<Vec<f64>> = episodes.iter().map(|episode| gae(episode, rule)).collect();
    let returns: Vec<Vec<f32>> = all
        .iter()
        .zip(episodes)
        .map(|(advantages, episode)| {
            let pairs = advantages.iter().zip(episode.values);
            pairs.map(|(a, &value)| (a + f64::from(value)) as f32).collect()
        })
        .collect();
    if advantage.scale == Scale::Whiten {
        whiten(&mut all, advantage);
    }
    let narrow = |advantages: Vec<f64>| advantages.into_iter().map(|a| a as f32).collect();
    let both = all.into_iter().zip(returns);
    both.map(|(advantages, returns)| Estimate { advantages: narrow(advantages), returns }).collect()
}

/// The advantage of each token.
fn gae(episode: &Episode<'_>, rule: &ValueRule) -> Vec<f64> {
    let len = episode.values.len();
    assert!(
        episode.penalties.is_none_or(|penalties| penalties.len() == len),
        "`penalties` has one number per value"
    );
    let mut advantages = vec![0.0; len];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..len).rev() {
        let reward = if t + 1 == len { episode.reward } else { 0.0 };
        let reward = reward - episode.penalties.map_or(0.0, |penalties| penalties[t]);
        let value = f64::from(episode.values[t]);
        let delta = reward + rule.gamma * next_value - value;
        next_advantage = delta + rule.gamma * rule.lambda * next_advantage;
        next_value = value;
        advantages[t] = next_advantage;
    }
    advantages
}

/// Takes their mean off all advantages and divides them by their standard deviation.
fn whiten(all: &mut [Vec<f64>], rule: &AdvantageRule) {
    let tokens = || all.iter().flatten();
    let count = tokens().count() as f64;
    let mean = tokens().sum::<f64>() / count.max(1.0);
    let squares: f64 = tokens().map(|a| (a - mean) * (a - mean)).sum();
    let divisor = match rule.std {
        StdEstimator::Population => count,
        StdEstimator::Sample => count - 1.0,
    };
    let std = (squares / divisor.max(1.0)).sqrt();
    // Written so that NaN stays NaN.
    let has_no_signal = std <= rule.no_signal_std_max || std + rule.eps <= 0.0;
    for a in all.iter_mut().flatten() {
        *a = if has_no_signal { 0.0 } else { (*a - mean) / (std + rule.eps) };
    }
}

/// One completion's part in the critic's loss. All slices have one number per token.
#[derive(Clone, Copy, Debug)]
pub struct ValueTerms<'a> {
    /// What the critic that learns says.
    pub values: &'a [f32],
    /// What it said before the rollout batch was trained on.
    pub old_values: &'a [f32],
    /// What it is to say.
    pub returns: &'a [f32],
    /// Which tokens count; all where absent.
    pub mask: Option<&'a [bool]>,
}

/// Loss and gradients of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueOut {
    /// The totals of each completion; [`Totals::add`] them in order.
    pub sequences: Vec<Totals>,
    /// The gradient of each value, completion after completion; 0 where masked.
    pub dvalues: Vec<f32>,
}

/// Sums over tokens that are trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The loss.
    pub loss: f64,
    /// Tokens.
    pub token_count: usize,
    /// Tokens whose clipped value is further off its return than the value itself.
    pub clip_count: usize,
}

impl Totals {
    /// Adds the next completion.
    pub fn add(&mut self, next: &Self) {
        self.loss += next.loss;
        self.token_count += next.token_count;
        self.clip_count += next.clip_count;
    }

    /// Share of tokens whose clipped value decides.
    pub fn clip_share(&self) -> f64 {
        self.clip_count as f64 / self.token_count.max(1) as f64
    }
}

/// The critic's loss on a micro-batch, of a minibatch of `token_count` tokens that count. `clip` is `c`. Where both
/// squares are equal the gradient is the mean of theirs, as PyTorch has it; a clip passes the gradient on its bounds.
pub fn loss(terms: &[ValueTerms<'_>], clip: Option<f64>, token_count: usize) -> ValueOut {
    let weight = 1.0 / token_count.max(1) as f64;
    let len = terms.iter().map(|terms| terms.values.len()).sum();
    let mut out =
        ValueOut { sequences: Vec::with_capacity(terms.len()), dvalues: Vec::with_capacity(len) };
    for terms in terms {
        terms.assert_shapes();
        let mut totals = Totals::default();
        for idx in 0..terms.values.len() {
            if terms.mask.is_some_and(|mask| !mask[idx]) {
                out.dvalues.push(0.0);
                continue;
            }
            let token = token_loss(terms, idx, clip);
            totals.loss += weight * token.loss;
            totals.token_count += 1;
            totals.clip_count += usize::from(token.is_clipped);
            out.dvalues.push((weight * token.dvalue) as f32);
        }
        out.sequences.push(totals);
    }
    out
}

impl ValueTerms<'_> {
    fn assert_shapes(&self) {
        let len = self.values.len();
        assert_eq!(self.old_values.len(), len, "`old_values` has one number per value");
        assert_eq!(self.returns.len(), len, "`returns` has one number per value");
        assert!(self.mask.is_none_or(|m| m.len() == len), "`mask` has one flag per value");
    }
}

struct TokenLoss {
    loss: f64,
    dvalue: f64,
    is_clipped: bool,
}

fn token_loss(terms: &ValueTerms<'_>, idx: usize, clip: Option<f64>) -> TokenLoss {
    let [value, old, target] =
        [terms.values[idx], terms.old_values[idx], terms.returns[idx]].map(f64::from);
    let free = value - target;
    let Some(clip) = clip else {
        return TokenLoss { loss: 0.5 * free * free, dvalue: free, is_clipped: false };
    };
    let is_inside = (value - old).abs() <= clip;
    let clipped = if is_inside { free } else { old + clip.copysign(value - old) - target };
    let dclipped = if is_inside { clipped } else { 0.0 };
    let (a, b) = (free * free, clipped * clipped);
    if a > b {
        TokenLoss { loss: 0.5 * a, dvalue: free, is_clipped: false }
    } else if b > a {
        TokenLoss { loss: 0.5 * b, dvalue: dclipped, is_clipped: true }
    } else {
        // Equal, or NaN, which must come out as NaN.
        let dvalue = 0.5 * (free + dclipped);
        TokenLoss { loss: 0.25 * (a + b), dvalue, is_clipped: false }
    }
}

/// How much of the returns' variance the values explain: `1 - var(R - V) / var(R)`. 1 is all of it; a constant
/// explains nothing, and below 0 values are worse than that. None where returns don't vary.
pub fn explained_variance(pairs: impl Iterator<Item = (f32, f32)> + Clone) -> Option<f64> {
    let [off, all] = [1.0, 0.0].map(|factor| {
        let terms = pairs.clone();
        variance(terms.map(move |(value, target)| f64::from(target) - factor * f64::from(value)))
    });
    (all > 0.0).then(|| 1.0 - off / all)
}

fn variance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::{Baseline, SingleRule};

    const PLAIN: AdvantageRule = AdvantageRule {
        baseline: Baseline::Value,
        scale: Scale::None,
        std: StdEstimator::Sample,
        eps: 1e-8,
        no_signal_std_max: 0.0,
        single: SingleRule::Zero,
    };
    const WHITENED: AdvantageRule = AdvantageRule { scale: Scale::Whiten, ..PLAIN };
    const RULE: ValueRule = ValueRule { gamma: 0.97, lambda: 0.9, clip: Some(0.2) };

    fn noise(i: usize, t: usize) -> f64 {
        (i as f64 * 1.7 + t as f64 * 2.3).sin()
    }

    /// Values and penalties of completions of 6, 1, 0 and 9 tokens.
    fn completions() -> Vec<(f64, Vec<f64>, Vec<f32>)> {
        let of = |(i, len): (usize, usize)| {
            let penalties = (0..len).map(|t| 0.1 * noise(i + 7, t)).collect();
            (noise(i, 50), penalties, (0..len).map(|t| noise(i, t) as f32).collect())
        };
        [6, 1, 0, 9].into_iter().enumerate().map(of).collect()
    }

    fn run(advantage: &AdvantageRule, rule: &ValueRule, has_penalties: bool) -> Vec<Estimate> {
        let all = completions();
        let episodes = all.iter().map(|(reward, penalties, values)| Episode {
            reward: *reward,
            penalties: has_penalties.then_some(penalties.as_slice()),
            values,
        });
        estimate(&episodes.collect::<Vec<_>>(), advantage, rule)
    }

    /// The sum over sums that the recursion stands for.
    fn naive(reward: f64, penalties: &[f64], values: &[f32], rule: &ValueRule) -> Vec<f64> {
        let len = values.len();
        let value = |t: usize| if t < len { f64::from(values[t]) } else { 0.0 };
        let delta = |t: usize| {
            let last = if t == len - 1 { reward } else { 0.0 };
            last - penalties[t] + rule.gamma * value(t + 1) - value(t)
        };
        let advantage = |t: usize| -> f64 {
            (t..len).map(|s| (rule.gamma * rule.lambda).powi((s - t) as i32) * delta(s)).sum()
        };
        (0..len).map(advantage).collect()
    }

    fn close(found: f32, expected: f64) {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= 1e-7 + 1e-6 * expected.abs(), "{found} {expected}");
    }

    #[test]
    fn advantages_are_the_discounted_sums_of_all_deltas() {
        for (gamma, lambda) in [(0.97, 0.9), (1.0, 1.0), (1.0, 0.0), (0.5, 0.95), (0.0, 1.0)] {
            let rule = ValueRule { gamma, lambda, clip: None };
            let found = run(&PLAIN, &rule, true);
            for (estimate, (reward, penalties, values)) in found.iter().zip(completions()) {
                let expected = naive(reward, &penalties, &values, &rule);
                assert_eq!(estimate.advantages.len(), expected.len());
                for (t, &advantage) in expected.iter().enumerate() {
                    close(estimate.advantages[t], advantage);
                    close(estimate.returns[t], advantage + f64::from(values[t]));
                }
            }
        }
    }

    #[test]
    fn with_lambda_and_gamma_of_one_returns_are_the_rewards_that_are_left() {
        let rule = ValueRule { gamma: 1.0, lambda: 1.0, clip: None };
        for (estimate, (reward, penalties, _)) in run(&PLAIN, &rule, true).iter().zip(completions())
        {
            for (t, &found) in estimate.returns.iter().enumerate() {
                close(found, reward - penalties[t..].iter().sum::<f64>());
            }
        }
        let without = run(&PLAIN, &rule, false);
        for (estimate, (reward, _, _)) in without.iter().zip(completions()) {
            estimate.returns.iter().for_each(|&found| close(found, reward));
        }
    }

    #[test]
    fn whitened_advantages_have_mean_zero_and_std_one_over_tokens_and_leave_returns() {
        let (plain, whitened) = (run(&PLAIN, &RULE, true), run(&WHITENED, &RULE, true));
        let all: Vec<f64> =
            plain.iter().flat_map(|e| &e.advantages).map(|&a| f64::from(a)).collect();
        let mean = all.iter().sum::<f64>() / 16.0;
        let std = (all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / 15.0).sqrt();
        for (plain, whitened) in plain.iter().zip(&whitened) {
            assert_eq!(plain.returns, whitened.returns);
            for (&a, &found) in plain.advantages.iter().zip(&whitened.advantages) {
                close(found, (f64::from(a) - mean) / std);
            }
        }
        for rule in [
            AdvantageRule { std: StdEstimator::Population, ..WHITENED },
            AdvantageRule { eps: 0.5, ..WHITENED },
            AdvantageRule { no_signal_std_max: 10.0, ..WHITENED },
        ] {
            assert_ne!(run(&rule, &RULE, true), whitened);
        }
        let flat = run(&AdvantageRule { no_signal_std_max: 10.0, ..WHITENED }, &RULE, true);
        assert!(flat.iter().flat_map(|e| &e.advantages).all(|&a| a == 0.0));
        assert_eq!(flat[0].returns, whitened[0].returns);
    }

    #[test]
    fn every_constant_of_the_rule_and_the_penalties_change_advantages() {
        let all = run(&PLAIN, &RULE, true);
        for rule in [ValueRule { gamma: 1.0, ..RULE }, ValueRule { lambda: 1.0, ..RULE }] {
            assert_ne!(run(&PLAIN, &rule, true), all);
        }
        assert_ne!(run(&PLAIN, &RULE, false), all);
    }

    #[test]
    fn a_nan_stays_one_and_nothing_is_no_problem() {
        let episode = Episode { reward: f64::NAN, penalties: None, values: &[0.5, 1.0] };
        for rule in [PLAIN, WHITENED] {
            let found = estimate(&[episode], &rule, &RULE);
            assert!(found[0].advantages.iter().all(|a| a.is_nan()));
            assert_eq!(estimate(&[], &rule, &RULE), []);
        }
        assert_eq!(loss(&[], Some(0.2), 0), ValueOut { sequences: vec![], dvalues: vec![] });
    }

    struct Row {
        values: Vec<f32>,
        old_values: Vec<f32>,
        returns: Vec<f32>,
        mask: Vec<bool>,
    }

    /// Values on both sides of their returns, inside and outside of a clip of 0.2, further off and nearer than it.
    fn rows() -> Vec<Row> {
        let row = |i: usize, len: usize| Row {
            values: (0..len).map(|t| noise(i, t) as f32).collect(),
            old_values: (0..len).map(|t| (noise(i, t) + 0.5 * noise(i + 3, t)) as f32).collect(),
            returns: (0..len).map(|t| noise(i + 5, t) as f32).collect(),
            mask: (0..len).map(|t| t != 2).collect(),
        };
        [(0, 12), (1, 5), (2, 0), (3, 20)].map(|(i, len)| row(i, len)).into()
    }

    impl Row {
        fn terms(&self) -> ValueTerms<'_> {
            ValueTerms {
                values: &self.values,
                old_values: &self.old_values,
                returns: &self.returns,
                mask: Some(&self.mask),
            }
        }
    }

    fn terms(rows: &[Row]) -> Vec<ValueTerms<'_>> {
        rows.iter().map(Row::terms).collect()
    }

    const COUNT: usize = 34;

    /// The formula, in f64 and without a derivative in it.
    fn naive_loss(rows: &[Row], values: &[Vec<f64>], clip: Option<f64>) -> f64 {
        let mut sum = 0.0;
        for (row, values) in rows.iter().zip(values) {
            for (t, &value) in values.iter().enumerate().filter(|(t, _)| row.mask[*t]) {
                let (old, target) = (f64::from(row.old_values[t]), f64::from(row.returns[t]));
                let c = clip.unwrap_or(f64::INFINITY);
                let clipped = value.clamp(old - c, old + c);
                sum += 0.5 * (value - target).powi(2).max((clipped - target).powi(2));
            }
        }
        sum / COUNT as f64
    }

    /// Goal: the gradient is the derivative of the loss. Method: f64 central differences of the naive formula; with
    /// h = 1e-6 their error is near 1e-10, and what remains is the rounding of ours to f32.
    #[test]
    fn gradients_are_the_derivatives_of_the_loss() {
        const STEP: f64 = 1e-6;
        let rows = rows();
        let values: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| row.values.iter().map(|&value| f64::from(value)).collect())
            .collect();
        assert_eq!(rows.iter().flat_map(|row| &row.mask).filter(|&&m| m).count(), COUNT);
        for clip in [None, Some(0.2), Some(0.05)] {
            let out = loss(&terms(&rows), clip, COUNT);
            let mut totals = Totals::default();
            out.sequences.iter().for_each(|sequence| totals.add(sequence));
            assert!((totals.loss - naive_loss(&rows, &values, clip)).abs() < 1e-12, "{clip:?}");
            assert_eq!(totals.token_count, COUNT);
            let mut at = 0;
            for i in 0..values.len() {
                for t in 0..values[i].len() {
                    let mut moved = values.clone();
                    moved[i][t] = values[i][t] + STEP;
                    let above = naive_loss(&rows, &moved, clip);
                    moved[i][t] = values[i][t] - STEP;
                    let slope = (above - naive_loss(&rows, &moved, clip)) / (2.0 * STEP);
                    let error = (f64::from(out.dvalues[at]) - slope).abs();
                    assert!(error <= 2e-9 + 1e-6 * slope.abs(), "{clip:?} {i} {t}");
                    at += 1;
                }
            }
        }
    }

    #[test]
    fn a_clip_stops_values_that_have_moved_far_enough() {
        let one = |value: f32, target: f32| {
            let (values, returns) = ([value], [target]);
            let terms =
                ValueTerms { values: &values, old_values: &[0.0], returns: &returns, mask: None };
            let out = loss(&[terms], Some(0.25), 1);
            (out.sequences[0].loss, out.dvalues[0], out.sequences[0].clip_count)
        };
        // Inside; outside and still on its way; outside and past its return.
        assert_eq!(one(0.125, 1.0), (0.5 * 0.875 * 0.875, -0.875, 0));
        assert_eq!(one(0.5, 1.0), (0.5 * 0.75 * 0.75, 0.0, 1));
        assert_eq!(one(0.5, 0.0), (0.125, 0.5, 0));
        // Equally far off on either side: the mean of 0.125 and 0.
        assert_eq!(one(0.5, 0.375), (0.5 * 0.125 * 0.125, 0.0625, 0));
        let nan = one(f32::NAN, 0.0);
        assert!(nan.0.is_nan() && nan.1.is_nan());
    }

    #[test]
    fn any_micro_batch_split_gives_the_same_bits() {
        let rows = rows();
        let terms = terms(&rows);
        let whole = loss(&terms, Some(0.2), COUNT);
        let parts: Vec<ValueOut> =
            terms.chunks(1).map(|terms| loss(terms, Some(0.2), COUNT)).collect();
        let dvalues: Vec<f32> = parts.iter().flat_map(|out| out.dvalues.clone()).collect();
        assert_eq!(dvalues, whole.dvalues);
        let sequences: Vec<Totals> = parts.iter().flat_map(|out| out.sequences.clone()).collect();
        assert_eq!(sequences, whole.sequences);
    }

    #[test]
    fn explained_variance_is_one_for_returns_and_zero_for_a_constant() {
        let returns = [0.0, 1.0, 3.0, -2.0_f32];
        let of = |values: [f32; 4]| explained_variance(values.into_iter().zip(returns));
        assert_eq!(of(returns), Some(1.0));
        assert_eq!(of([7.0; 4]), Some(0.0));
        assert_eq!(of(returns.map(|x| -x)), Some(-3.0));
        assert_eq!(explained_variance([(0.5, 1.0), (2.0, 1.0)].into_iter()), None);
    }

    #[test]
    #[should_panic(expected = "`old_values` has one number per value")]
    fn a_buffer_of_the_wrong_length_panics_with_its_name() {
        loss(
            &[ValueTerms { values: &[1.0], old_values: &[], returns: &[1.0], mask: None }],
            None,
            1,
        );
    }
}
