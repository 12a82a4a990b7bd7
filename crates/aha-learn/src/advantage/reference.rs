//! Every combination of a rule's constants against a second version of it, written from the formulas in the docs.

use super::*;

/// Sums over completions in f64; the advantages are rounded to f32.
const TOLERANCE: f64 = 1e-6;

/// Groups with and without a spread, of one scored completion, of a reward of 0, and of none, with their lengths.
fn groups() -> Vec<Vec<Sample>> {
    let rows: [&[(Option<f32>, usize)]; 8] = [
        &[(Some(1.0), 3), (Some(0.0), 11), (None, 40), (Some(0.25), 7)],
        &[(Some(2.0), 5), (Some(2.0), 9)],
        &[(None, 2), (Some(-0.75), 6)],
        &[(None, 8), (None, 1)],
        &[],
        &[(Some(0.5), 4), (Some(0.625), 13), (Some(0.5), 2)],
        &[(Some(0.0), 21)],
        &[(Some(-1.0), 1), (Some(3.0), 2)],
    ];
    let sample = |&(reward, len_tokens)| Sample { reward, len_tokens };
    rows.into_iter().map(|group| group.iter().map(sample).collect()).collect()
}

fn rewards(group: &[Sample]) -> Vec<f64> {
    group.iter().filter_map(|sample| sample.reward).map(f64::from).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// `sqrt(sum_i w_i (x_i - mean)^2 / (sum_i w_i - c))`, `c` 1 for a sample; `mean` and all sums weighted by `w`.
fn weighted(values: &[f64], weights: &[f64], std: StdEstimator) -> (f64, f64) {
    let total: f64 = weights.iter().sum();
    if total < 2.0 {
        return (mean(values), 0.0);
    }
    let of = |f: &dyn Fn(f64) -> f64| -> f64 {
        values.iter().zip(weights).map(|(x, w)| w * f(*x)).sum()
    };
    let mean = of(&|x| x) / total;
    let count = if std == StdEstimator::Sample { total - 1.0 } else { total };
    (mean, (of(&|x| (x - mean) * (x - mean)) / count).sqrt())
}

fn std(values: &[f64], std: StdEstimator) -> f64 {
    weighted(values, &vec![1.0; values.len()], std).1
}

/// The advantage of each scored completion, group after group.
fn naive(groups: &[Vec<Sample>], rule: &AdvantageRule) -> Vec<f64> {
    let batch: Vec<f64> = groups.iter().flat_map(|group| rewards(group)).collect();
    let is_signal = |values: &[f64]| std(values, rule.std) > rule.no_signal_std_max;
    let mut all = Vec::new();
    for group in groups {
        let scored = rewards(group);
        let of_group = matches!(rule.baseline, Baseline::Group | Baseline::LeaveOneOut);
        let is_lone_reward = of_group && scored.len() == 1 && rule.single == SingleRule::Reward;
        for (i, &reward) in scored.iter().enumerate() {
            let others: Vec<f64> =
                scored.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, r)| *r).collect();
            let (baseline, has_signal) = match rule.baseline {
                _ if is_lone_reward => (0.0, true),
                Baseline::Group => (mean(&scored), is_signal(&scored)),
                Baseline::LeaveOneOut => (mean(&others), is_signal(&scored)),
                Baseline::Batch => (mean(&batch), is_signal(&batch)),
                Baseline::None => (0.0, true),
                Baseline::Value => unreachable!("a critic's values are estimated elsewhere"),
            };
            let deviation = if has_signal { reward - baseline } else { 0.0 };
            let divisor = match rule.scale {
                Scale::Group if is_lone_reward => 1.0 + rule.eps,
                Scale::Group => std(&scored, rule.std) + rule.eps,
                Scale::Batch => std(&batch, rule.std) + rule.eps,
                Scale::Whiten | Scale::None => 1.0,
            };
            all.push(if has_signal { deviation / divisor } else { 0.0 });
        }
    }
    if rule.scale == Scale::Whiten {
        let scored = groups.iter().flatten().filter(|sample| sample.reward.is_some());
        let tokens: Vec<f64> = scored.map(|sample| sample.len_tokens as f64).collect();
        let (mean, std) = weighted(&all, &tokens, rule.std);
        for x in &mut all {
            let has_signal = std > rule.no_signal_std_max;
            *x = if has_signal { (*x - mean) / (std + rule.eps) } else { 0.0 };
        }
    }
    all
}

/// All rules but those of a critic, and those that divide by a group's deviation what isn't of the group.
fn rules() -> Vec<AdvantageRule> {
    let mut all = Vec::new();
    for baseline in [Baseline::Group, Baseline::LeaveOneOut, Baseline::Batch, Baseline::None] {
        for scale in [Scale::Group, Scale::Batch, Scale::Whiten, Scale::None] {
            for std in [StdEstimator::Population, StdEstimator::Sample] {
                for (eps, no_signal_std_max) in [(0.0, 0.0), (0.5, 0.0), (1e-4, 0.1), (0.0, 2.0)] {
                    for single in [SingleRule::Zero, SingleRule::Reward] {
                        let rule =
                            AdvantageRule { baseline, scale, std, eps, no_signal_std_max, single };
                        all.push(rule);
                    }
                }
            }
        }
    }
    all.retain(|rule| rule.scale != Scale::Group || rule.baseline.is_of_group());
    all
}

#[test]
fn advantages_are_those_of_the_formulas_for_every_combination_of_constants() {
    let groups = groups();
    let slices: Vec<&[Sample]> = groups.iter().map(Vec::as_slice).collect();
    for rule in rules() {
        let found = advantages(&slices, &rule).unwrap();
        let found = found.iter().flat_map(|group| &group.rows);
        let found: Vec<f32> =
            found.filter(|row| row.skip_reason.is_none()).map(|row| row.value).collect();
        let expected = naive(&groups, &rule);
        assert_eq!(found.len(), expected.len());
        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= TOLERANCE * expected.abs().max(1.0),
                "{rule:?} {i}: {found} {expected}"
            );
        }
    }
}

#[test]
fn every_constant_changes_an_advantage() {
    let groups = groups();
    let slices: Vec<&[Sample]> = groups.iter().map(Vec::as_slice).collect();
    let values = |rule: &AdvantageRule| -> Vec<f32> {
        let found = advantages(&slices, rule).unwrap();
        found.iter().flat_map(|group| &group.rows).map(|row| row.value).collect()
    };
    let rule = AdvantageRule {
        baseline: Baseline::Group,
        scale: Scale::Group,
        std: StdEstimator::Population,
        eps: 0.0,
        no_signal_std_max: 0.0,
        single: SingleRule::Zero,
    };
    for other in [
        AdvantageRule { baseline: Baseline::LeaveOneOut, ..rule },
        AdvantageRule { scale: Scale::Batch, ..rule },
        AdvantageRule { scale: Scale::Whiten, ..rule },
        AdvantageRule { scale: Scale::None, ..rule },
        AdvantageRule { std: StdEstimator::Sample, ..rule },
        AdvantageRule { eps: 0.5, ..rule },
        AdvantageRule { no_signal_std_max: 0.1, ..rule },
        AdvantageRule { single: SingleRule::Reward, ..rule },
    ] {
        assert_ne!(values(&other), values(&rule), "{other:?}");
    }
}
