//! Estimates from counts, and how far they may be off.

use aha_compute::random::Philox;

/// The unbiased estimate of pass@k from `n` samples of which `right` are right.
pub fn pass_at_k(n: u64, right: u64, k: u64) -> f64 {
    assert!(right <= n && 1 <= k && k <= n, "pass@{k} of {right} right among {n}");
    if k == 1 {
        return right as f64 / n as f64;
    }
    1.0 - subsets_within(n, n - right, k)
}

/// The share of the subsets of `k` of `n` samples that lie within `part` of these.
fn subsets_within(n: u64, part: u64, k: u64) -> f64 {
    if part < k {
        return 0.0;
    }
    // C(part, k) / C(n, k), as a product whose factors stay in [0, 1].
    (part + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// The unbiased estimate of best-of-k from samples with a score and whether they are right: the share of the
/// subsets of k samples of which the best by its score is right. See [the formulas](super).
pub fn best_of_k(samples: &[(f64, bool)], k: u64) -> f64 {
    let n = samples.len() as u64;
    assert!(1 <= k && k <= n, "best-of-{k} among {n}");
    let mut ranked = samples.to_vec();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below = 0;
    let equals = ranked.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()).map(|equals| {
        let count = equals.len() as u64;
        let right = equals.iter().filter(|(_, is_right)| *is_right).count() as f64;
        let within = |part| subsets_within(n, part, k);
        let share = within(below + count) - within(below);
        below += count;
        share * right / count as f64
    });
    equals.sum()
}

/// The numbers of samples that figures are given for where nobody asks for others: powers of two, and all.
pub fn powers_of_two(samples: u64) -> Vec<u64> {
    let powers = (0..u64::BITS).map(|bit| 1 << bit).take_while(|k| *k < samples);
    powers.chain([samples]).collect()
}

/// The mean; of nothing, 0.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The least value that at least `share` of the sorted values don't exceed; of nothing, 0.
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Standard errors by the bootstrap of Efron 1979: what the mean over problems would be if the problems were
/// drawn again, with replacement, many times.
///
/// The draws are addressed by resample and position, so that figures over as many problems under one seed
/// are drawn alike: two models of a stage meet the same resamples.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// The family of the draws.
    pub random: Philox,
    /// How often the problems are drawn again.
    pub resamples: u32,
}

impl Bootstrap {
    /// The standard error of the mean of each column, all of which have a value per problem: the standard
    /// deviation over resamples, with R - 1. None with fewer than two problems, of which nothing can be said.
    pub fn standard_errors(&self, columns: &[Vec<f64>]) -> Option<Vec<f64>> {
        let count = columns.first().map_or(0, Vec::len);
        if count < 2 || self.resamples < 2 {
            return None;
        }
        let mut means = vec![Vec::with_capacity(self.resamples as usize); columns.len()];
        let mut times_drawn = vec![0_u32; count];
        for resample in 0..u64::from(self.resamples) {
            times_drawn.fill(0);
            for position in 0..count as u64 {
                let bits = self.random.bits(&[resample, position]);
                // 64 random bits times a count below 2^32: the bias is below 2^-32.
                times_drawn[((u128::from(bits) * count as u128) >> 64) as usize] += 1;
            }
            for (column, means) in columns.iter().zip(&mut means) {
                let sum: f64 =
                    column.iter().zip(&times_drawn).map(|(x, n)| x * f64::from(*n)).sum();
                means.push(sum / count as f64);
            }
        }
        Some(means.iter().map(|means| deviation(means)).collect())
    }
}

/// The standard deviation, with n - 1.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_sample() {
        // Of C(5, 2) = 10 pairs, C(3, 2) = 3 miss both right ones.
        assert!((pass_at_k(5, 2, 2) - 0.7).abs() < 1e-15);
        // Of C(10, 5) = 252, C(7, 5) = 21 miss.
        assert!((pass_at_k(10, 3, 5) - 231.0 / 252.0).abs() < 1e-15);
        assert_eq!(pass_at_k(4, 0, 4), 0.0);
        assert_eq!(pass_at_k(4, 1, 4), 1.0);
        assert!((pass_at_k(8, 3, 1) - 3.0 / 8.0).abs() < 1e-15);
    }

    #[test]
    fn pass_at_k_of_all_subsets_is_what_counting_them_gives() {
        for n in 1..=8_u64 {
            for right in 0..=n {
                for k in 1..=n {
                    let subsets: Vec<u64> =
                        (0..1 << n).filter(|set: &u64| u64::from(set.count_ones()) == k).collect();
                    // The first `right` samples are the right ones.
                    let hit = subsets.iter().filter(|set| *set & ((1 << right) - 1) != 0).count();
                    let share = hit as f64 / subsets.len() as f64;
                    assert!((pass_at_k(n, right, k) - share).abs() < 1e-14, "{n} {right} {k}");
                }
            }
        }
    }

    /// Goal: the formula is the mean over subsets. Method: every subset of k of up to 7 samples, the best of each
    /// by definition, ties by lot; scores from few values, so that there are many ties.
    #[test]
    fn best_of_k_is_what_looking_at_every_subset_gives() {
        let random = Philox::new(11);
        for case in 0..60_u64 {
            let n = 1 + case % 7;
            let sample = |i| {
                let score = random.bits(&[case, i, 0]) % 3;
                (score as f64 - 1.0, random.bits(&[case, i, 1]).is_multiple_of(2))
            };
            let samples: Vec<(f64, bool)> = (0..n).map(sample).collect();
            for k in 1..=n {
                let subsets: Vec<u64> =
                    (0..1 << n).filter(|set: &u64| u64::from(set.count_ones()) == k).collect();
                let right_share = |set: &u64| {
                    let members: Vec<_> =
                        (0..n).filter(|i| set >> i & 1 == 1).map(|i| samples[i as usize]).collect();
                    let best = members.iter().map(|m| m.0).fold(f64::NEG_INFINITY, f64::max);
                    let best: Vec<f64> = members
                        .iter()
                        .filter(|m| m.0 == best)
                        .map(|m| f64::from(u8::from(m.1)))
                        .collect();
                    mean(&best)
                };
                let expected = mean(&subsets.iter().map(right_share).collect::<Vec<_>>());
                let found = best_of_k(&samples, k);
                assert!((found - expected).abs() < 1e-13, "{samples:?} {k}: {found} {expected}");
            }
        }
    }

    #[test]
    fn best_of_k_of_one_is_pass_at_1_and_a_scorer_that_knows_gives_pass_at_k() {
        let samples = [(0.5, true), (0.25, false), (0.75, false), (0.5, true), (-1.0, false)];
        assert!((best_of_k(&samples, 1) - 0.4).abs() < 1e-15);
        assert_eq!(best_of_k(&samples, 5), 0.0);
        let knows = samples.map(|(_, is_right)| (f64::from(u8::from(is_right)), is_right));
        for k in 1..=5 {
            assert!((best_of_k(&knows, k) - pass_at_k(5, 2, k)).abs() < 1e-15, "{k}");
        }
        // One that ranks all alike is no scorer.
        let alike = samples.map(|(_, is_right)| (0.0, is_right));
        assert!((1..=5).all(|k| (best_of_k(&alike, k) - 0.4).abs() < 1e-15));
    }

    #[test]
    fn figures_are_given_for_powers_of_two_and_all_samples() {
        assert_eq!(powers_of_two(1), [1]);
        assert_eq!(powers_of_two(16), [1, 2, 4, 8, 16]);
        assert_eq!(powers_of_two(20), [1, 2, 4, 8, 16, 20]);
    }

    #[test]
    fn a_quantile_is_the_least_length_that_so_many_do_not_exceed() {
        assert_eq!(quantile(&[1, 2, 3, 4], 0.5), 2);
        assert_eq!(quantile(&[1, 2, 3], 0.5), 2);
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&hundred, 0.95), quantile(&hundred, 1.0)), (95, 100));
        assert_eq!((quantile(&[7], 0.95), quantile(&[], 0.5)), (7, 0));
    }

    /// Goal: the bootstrap tends to the formula. Over resamples the mean of n values has the variance
    /// sum (x - mean)^2 / n^2; with 4,000 resamples the estimate of its root is off by
    /// 1 / sqrt(2 * 4000) = 1.1 % in one of three cases: 4 % is more than three of these.
    #[test]
    fn the_bootstrap_agrees_with_the_formula() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i % 7 * i % 3)).collect();
        let mean = mean(&values);
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        let expected = squares.sqrt() / 50.0;
        let bootstrap = Bootstrap { random: Philox::new(3), resamples: 4000 };
        let constant = vec![0.25; 50];
        let found = bootstrap.standard_errors(&[values.clone(), constant]).unwrap();
        assert!((found[0] / expected - 1.0).abs() < 0.04, "{} {expected}", found[0]);
        assert!(found[1] < 1e-15, "what doesn't vary has no error: {}", found[1]);
        assert_eq!(bootstrap.standard_errors(std::slice::from_ref(&values)).unwrap()[0], found[0]);
        let other = Bootstrap { random: Philox::new(4), ..bootstrap };
        assert_ne!(other.standard_errors(&[values]).unwrap()[0], found[0]);
        assert_eq!(bootstrap.standard_errors(&[vec![1.0]]), None);
        assert_eq!(bootstrap.standard_errors(&[]), None);
    }
}
