//! From a row of logits to a token.
//!
//! Most of the work is in the statistics that the log-prob needs anyway. A draw from all tokens finds its block
//! of tokens by sums that are taken beside them; top-k and top-p look for bounds below which nothing can be
//! kept, and sort what is above them only as far as they must.

use std::cmp::Ordering;

use aha_compute::ops::lm_head::{self, RowStats};
use aha_compute::random::Philox;
use aha_compute::simd::Isa;

use crate::Sampling;

/// A drawn token, and its log-prob under the whole distribution at the sampling temperature: before top-k
/// and top-p, so that it can be compared with the learner's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// Its log-prob in nats.
    pub logprob: f32,
}

/// The address of a draw: what it depends on beside the run's seed and stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Identity of the prompt in its step.
    pub prompt: u64,
    /// Which of the prompt's completions.
    pub sample: u64,
    /// Index of the token in its completion.
    pub position: u64,
}

/// Makes rows of logits ready for draws, in memory that serves row after row.
#[derive(Debug, Default)]
pub struct Drawer {
    block_sums: Vec<f64>,
    kept: Vec<Candidate>,
    maxima: Vec<f32>,
    ids: Vec<u32>,
    logits: Vec<f32>,
    weights: Vec<f32>,
}

/// A token and its weight: its probability but for a factor that the row has in common.
type Candidate = (u32, f32);

/// A row of logits from which tokens can be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    isa: Isa,
    logits: &'a [f32],
    stats: RowStats,
    choice: Choice<'a>,
}

/// What a draw chooses from.
#[derive(Clone, Copy, Debug)]
enum Choice<'a> {
    /// The one token that a temperature of 0 leaves.
    Likeliest,
    /// All tokens, of which each block of [`lm_head::BLOCK_LEN`] has this sum of weights.
    All(&'a [f64]),
    /// What top-k and top-p leave, likeliest first, equals by id.
    Kept(&'a [Candidate]),
}

impl Drawer {
    /// Reads `logits`, which are scaled by the inverse temperature already.
    pub fn row<'a>(&'a mut self, isa: Isa, logits: &'a [f32], sampling: &Sampling) -> Row<'a> {
        if sampling.temperature == 0.0 {
            let stats = lm_head::row_stats(isa, logits);
            return Row { isa, logits, stats, choice: Choice::Likeliest };
        }
        self.block_sums.resize(logits.len().div_ceil(lm_head::BLOCK_LEN), 0.0);
        let stats = lm_head::row_sums(isa, &mut self.block_sums, logits);
        let top_k = Some(sampling.top_k).filter(|&k| k > 0 && k < logits.len());
        let choice = match (top_k, sampling.top_p < 1.0) {
            (None, false) => Choice::All(&self.block_sums),
            (None, true) => {
                self.keep_top_p(isa, logits, &stats, f64::from(sampling.top_p));
                Choice::Kept(&self.kept)
            }
            (Some(k), _) => {
                self.keep_top_k(isa, logits, &stats, k);
                if sampling.top_p < 1.0 {
                    let total: f64 = self.kept.iter().map(|c| f64::from(c.1)).sum();
                    let least = f64::from(sampling.top_p) * total;
                    sort_until(&mut self.kept, least);
                }
                Choice::Kept(&self.kept)
            }
        };
        Row { isa, logits, stats, choice }
    }

    /// Keeps the `k` candidates of the greatest weights, but for those that weigh nothing.
    fn keep_top_k(&mut self, isa: Isa, logits: &[f32], stats: &RowStats, k: usize) {
        self.maxima.clear();
        lm_head::maxima(isa, &mut self.maxima, logits);
        // Each is a logit of its own, so at least `k` logits are no less than the k-th of them.
        let least = if k <= self.maxima.len() {
            *self.maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        self.gather(isa, logits, stats, least - EXP_SLACK);
        let k = k.min(self.kept.len());
        if k < self.kept.len() {
            self.kept.select_nth_unstable_by(k, likelier);
            self.kept.truncate(k);
        }
        self.kept.sort_unstable_by(likelier);
    }

    /// Keeps the fewest candidates whose weights reach `p` of the sum of all weights.
    fn keep_top_p(&mut self, isa: Isa, logits: &[f32], stats: &RowStats, p: f64) {
        let total: f64 = self.block_sums.iter().sum();
        // Where few tokens have most of the weight, those above the first bound are enough. The second leaves
        // out less than half of what may be left out, so with those above it the sum is reached however it is
        // rounded.
        let spare = (1.0 - p) * total;
        for weight in [spare / 256.0, spare / (2.0 * logits.len() as f64)] {
            let bound = stats.max + weight.ln() as f32 - EXP_SLACK;
            self.gather(isa, logits, stats, bound);
            if sort_until(&mut self.kept, p * total) {
                return;
            }
        }
    }

    /// Sets the candidates to the tokens whose logits are at least `bound`, but for those that weigh nothing.
    fn gather(&mut self, isa: Isa, logits: &[f32], stats: &RowStats, bound: f32) {
        self.ids.clear();
        for (i, part) in logits.chunks(SCAN_LEN).enumerate() {
            // Without a branch in it this is a few instructions; most parts have none.
            if part.iter().fold(false, |is_any, &x| is_any | (x >= bound)) {
                let ids = (i * SCAN_LEN) as u32..;
                let found = ids.zip(part).filter(|(_, x)| **x >= bound);
                self.ids.extend(found.map(|(id, _)| id));
            }
        }
        self.logits.clear();
        self.logits.extend(self.ids.iter().map(|&id| logits[id as usize]));
        self.weights.resize(self.ids.len(), 0.0);
        lm_head::weights(isa, &mut self.weights, &self.logits, stats);
        self.kept.clear();
        let candidates = self.ids.iter().copied().zip(self.weights.iter().copied());
        self.kept.extend(candidates.filter(|&(_, weight)| weight > 0.0));
    }
}

/// More than the computed exponential's error, in its argument: a logit that is less than another by it has no
/// greater weight.
const EXP_SLACK: f32 = 0.01;
/// Logits that are compared with a bound at once.
const SCAN_LEN: usize = 64;
/// Candidates that are sorted first. Mostly they are enough.
const SORTED_FIRST: usize = 64;

/// The likelier of two candidates first, the lower id of equals.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Leaves the fewest likeliest candidates whose weights, summed likeliest first, reach `least`; all of them,
/// and false, if none do.
fn sort_until(candidates: &mut Vec<Candidate>, least: f64) -> bool {
    let (mut sorted, mut sum, mut step) = (0, 0.0, SORTED_FIRST);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = step.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, likelier);
        }
        rest[..count].sort_unstable_by(likelier);
        for (i, &(_, weight)) in rest[..count].iter().enumerate() {
            sum += f64::from(weight);
            if sum >= least {
                candidates.truncate(sorted + i + 1);
                return true;
            }
        }
        sorted += count;
        step *= 4;
    }
    false
}

impl Row<'_> {
    /// Draws a token.
    pub fn draw(&self, random: Philox, address: Address) -> Drawn {
        let unit = || random.uniform(&[address.prompt, address.sample, address.position]);
        let id = match self.choice {
            Choice::Likeliest => self.likeliest(),
            Choice::All(block_sums) => self.pick_of_all(block_sums, unit()),
            Choice::Kept(kept) => {
                let total: f64 = kept.iter().map(|c| f64::from(c.1)).sum();
                pick(kept.iter().copied(), unit() * total)
            }
        };
        self.take(id)
    }

    /// Takes a token that is not drawn, with its log-prob.
    pub fn take(&self, id: u32) -> Drawn {
        Drawn { id, logprob: lm_head::log_prob(self.logits, &self.stats, id) }
    }

    /// The greatest logit's index; the lowest one of equals.
    fn likeliest(&self) -> u32 {
        let max = self.stats.max;
        let has_max = |part: &[f32]| part.iter().fold(false, |is_any, &x| is_any | (x == max));
        let found = self.logits.chunks(SCAN_LEN).position(has_max).and_then(|part| {
            let start = part * SCAN_LEN;
            self.logits[start..].iter().position(|&x| x == max).map(|at| start + at)
        });
        found.unwrap_or(0) as u32
    }

    /// The first token at which the running sum of weights exceeds `unit` of their total. Sums are in `f64`,
    /// those of whole blocks first.
    fn pick_of_all(&self, block_sums: &[f64], unit: f64) -> u32 {
        let mut left = unit * block_sums.iter().sum::<f64>();
        let (mut block_idx, mut left_in_block) = (0, 0.0);
        for (i, &sum) in block_sums.iter().enumerate() {
            if sum > 0.0 {
                (block_idx, left_in_block) = (i, left);
                left -= sum;
                if left < 0.0 {
                    break;
                }
            }
        }
        let start = block_idx * lm_head::BLOCK_LEN;
        let block = &self.logits[start..self.logits.len().min(start + lm_head::BLOCK_LEN)];
        let mut weights = [0.0; lm_head::BLOCK_LEN];
        lm_head::weights(self.isa, &mut weights[..block.len()], block, &self.stats);
        pick((start as u32..).zip(weights), left_in_block)
    }
}

/// The first candidate at which the running sum of weights exceeds `left`; the last that weighs anything, if
/// rounding lets none.
fn pick(candidates: impl Iterator<Item = Candidate>, mut left: f64) -> u32 {
    let mut last = 0;
    for (id, weight) in candidates {
        if weight > 0.0 {
            last = id;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(logits: &[f32], sampling: &Sampling, count: u64) -> Vec<usize> {
        let isa = Isa::best();
        let scaled: Vec<f32> = logits.iter().map(|x| x * sampling.inv_temperature()).collect();
        let mut drawer = Drawer::default();
        let row = drawer.row(isa, &scaled, sampling);
        let mut seen = vec![0; logits.len()];
        for position in 0..count {
            let address = Address { prompt: 3, sample: 1, position };
            let drawn = row.draw(Philox::new(1), address);
            seen[drawn.id as usize] += 1;
        }
        seen
    }

    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let p = [0.5, 0.25, 0.125, 0.125];
        let seen = draws(&logits_of(&p), &Sampling::default(), 40_000);
        for (count, p) in seen.iter().zip(p) {
            assert!((*count as f32 / 40_000.0 - p).abs() < 0.01, "{seen:?}");
        }
    }

    #[test]
    fn temperature_sharpens_and_zero_takes_the_first_of_the_likeliest() {
        let logits = logits_of(&[0.4, 0.4, 0.2]);
        let half = draws(&logits, &Sampling { temperature: 0.5, ..Sampling::default() }, 40_000);
        assert!((half[2] as f32 / 40_000.0 - 0.04 / 0.36).abs() < 0.01, "{half:?}");
        assert_eq!(
            draws(&logits, &Sampling { temperature: 0.0, ..Sampling::default() }, 10),
            [10, 0, 0]
        );
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_top_p_the_fewest_that_reach_it() {
        let logits = logits_of(&[0.1, 0.4, 0.2, 0.3]);
        let k = draws(&logits, &Sampling { top_k: 2, ..Sampling::default() }, 2000);
        assert_eq!((k[0], k[2]), (0, 0), "{k:?}");
        assert!(k[1] > k[3] && k[3] > 500);
        let p = draws(&logits, &Sampling { top_p: 0.71, ..Sampling::default() }, 2000);
        assert_eq!(p[0], 0, "{p:?}");
        assert!(p[2] > 0);
        let p = draws(&logits, &Sampling { top_p: 0.69, ..Sampling::default() }, 2000);
        assert_eq!((p[0], p[2]), (0, 0), "{p:?}");
    }

    #[test]
    fn an_impossible_token_is_never_drawn() {
        let seen = draws(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &Sampling::default(), 500);
        assert_eq!(seen, [0, 500, 0]);
    }

    #[test]
    fn the_log_prob_is_that_of_the_whole_distribution() {
        let logits = logits_of(&[0.1, 0.9]);
        let sampling = Sampling { top_k: 1, ..Sampling::default() };
        let address = Address { prompt: 0, sample: 0, position: 0 };
        let mut drawer = Drawer::default();
        let drawn = drawer.row(Isa::best(), &logits, &sampling).draw(Philox::new(0), address);
        assert_eq!(drawn.id, 1);
        assert!((drawn.logprob - 0.9f32.ln()).abs() < 1e-6);
    }

    /// What top-k and then top-p leave, by sorting everything: the definition.
    fn kept_by_sorting(weights: &[f32], sampling: &Sampling) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = (0..).zip(weights.iter().copied()).collect();
        candidates.sort_by(likelier);
        if sampling.top_k > 0 {
            candidates.truncate(sampling.top_k);
        }
        let total: f64 = candidates.iter().map(|c| f64::from(c.1)).sum();
        let mut sum = 0.0;
        let reached = |c: &Candidate| {
            sum += f64::from(c.1);
            sum >= f64::from(sampling.top_p) * total
        };
        if sampling.top_p < 1.0
            && let Some(last) = candidates.iter().position(reached)
        {
            candidates.truncate(last + 1);
        }
        candidates
    }

    /// Logits of several kinds: peaked, flat, with many equals, with some that are impossible.
    fn noise_logits(kind: u64, len: u64) -> Vec<f32> {
        let random = Philox::new(9);
        (0..len)
            .map(|i| {
                let x = random.normal(kind << 40 | len << 20 | i);
                match kind {
                    0 => 8.0 * x,
                    1 => 0.01 * x,
                    2 => (2.0 * x).round(),
                    3 if random.bits(&[len, i]).is_multiple_of(3) => f64::NEG_INFINITY,
                    _ => 40.0 * x,
                }
            })
            .map(|x| x as f32)
            .collect()
    }

    #[test]
    fn what_is_kept_and_drawn_is_what_a_full_sort_would_give() {
        let isa = Isa::best();
        let mut drawer = Drawer::default();
        for (kind, len) in
            (0..4).flat_map(|kind| [1, 2, 63, 64, 65, 511, 513, 3000].map(|len| (kind, len)))
        {
            let logits = noise_logits(kind, len);
            let stats = lm_head::row_stats(isa, &logits);
            let mut weights = vec![0.0; logits.len()];
            lm_head::weights(isa, &mut weights, &logits, &stats);
            for top_k in [0, 1, 2, 7, 64, 188, 189, len as usize - 1, len as usize] {
                for top_p in [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0 - f32::EPSILON, 1.0] {
                    let sampling = Sampling { top_k, top_p, ..Sampling::default() };
                    let want = kept_by_sorting(&weights, &sampling);
                    let row = drawer.row(isa, &logits, &sampling);
                    let what = format!("kind {kind}, {len} logits, top_k {top_k}, top_p {top_p}");
                    if let Choice::Kept(kept) = row.choice {
                        let weighing = want.iter().filter(|c| c.1 > 0.0);
                        assert!(kept.iter().eq(weighing), "{what}");
                    }
                    let total: f64 = match row.choice {
                        Choice::All(sums) => sums.iter().sum(),
                        _ => want.iter().map(|c| f64::from(c.1)).sum(),
                    };
                    for position in 0..5 {
                        let address = Address { prompt: kind, sample: len, position };
                        let unit = Philox::new(1).uniform(&[kind, len, position]);
                        let in_order = matches!(row.choice, Choice::All(_));
                        let by_definition = if in_order {
                            pick((0..).zip(weights.iter().copied()), unit * total)
                        } else {
                            pick(want.iter().copied(), unit * total)
                        };
                        assert_eq!(row.draw(Philox::new(1), address).id, by_definition, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_has_no_log_prob_and_draws_all_the_same() {
        let logits = [f32::NAN; 600];
        for sampling in [(1.0, 0, 1.0), (0.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.5)] {
            let (temperature, top_k, top_p) = sampling;
            let sampling = Sampling { temperature, top_k, top_p, ..Sampling::default() };
            let address = Address { prompt: 0, sample: 0, position: 0 };
            let mut drawer = Drawer::default();
            let drawn = drawer.row(Isa::best(), &logits, &sampling).draw(Philox::new(0), address);
            assert!(drawn.id < 600 && drawn.logprob.is_nan(), "{sampling:?}: {drawn:?}");
        }
    }
}
