//! From a row of logits to a token.

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

/// Draws a token from `logits`, which are scaled by the inverse temperature already. `scratch` takes as
/// many floats as there are logits.
pub fn draw(
    isa: Isa,
    logits: &[f32],
    stats: &RowStats,
    sampling: &Sampling,
    random: Philox,
    address: Address,
    scratch: &mut [f32],
) -> Drawn {
    let id = if sampling.temperature == 0.0 {
        likeliest(logits)
    } else {
        let unit = random.uniform(&[address.prompt, address.sample, address.position]);
        lm_head::weights(isa, scratch, logits, stats);
        if sampling.top_k == 0 && sampling.top_p >= 1.0 {
            pick((0..).zip(scratch.iter().copied()), unit)
        } else {
            pick(kept(scratch, sampling).into_iter(), unit)
        }
    };
    Drawn { id, logprob: lm_head::log_prob(logits, stats, id) }
}

/// The greatest logit's index; the lowest one of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// The first candidate at which the running sum of weights exceeds `unit` of their total. Sums are in
/// `f64`, in order.
fn pick(candidates: impl Iterator<Item = (u32, f32)> + Clone, unit: f64) -> u32 {
    let total: f64 = candidates.clone().map(|(_, w)| f64::from(w)).sum();
    let mut left = unit * total;
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

/// Candidates that top-k and then top-p leave, likeliest first, equals by id.
fn kept(weights: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut candidates: Vec<(u32, f32)> = (0..).zip(weights.iter().copied()).collect();
    if sampling.top_k > 0 && sampling.top_k < candidates.len() {
        candidates.select_nth_unstable_by(sampling.top_k - 1, order);
        candidates.truncate(sampling.top_k);
    }
    candidates.sort_unstable_by(order);
    if sampling.top_p < 1.0 {
        let total: f64 = candidates.iter().map(|c| f64::from(c.1)).sum();
        let mut sum = 0.0;
        let reached = |c: &(u32, f32)| {
            sum += f64::from(c.1);
            sum >= f64::from(sampling.top_p) * total
        };
        let count = candidates.iter().position(reached).map_or(candidates.len(), |i| i + 1);
        candidates.truncate(count);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(logits: &[f32], sampling: &Sampling, count: u64) -> Vec<usize> {
        let isa = Isa::best();
        let scaled: Vec<f32> = logits.iter().map(|x| x * sampling.inv_temperature()).collect();
        let stats = lm_head::row_stats(isa, &scaled);
        let mut seen = vec![0; logits.len()];
        let mut scratch = vec![0.0; logits.len()];
        for position in 0..count {
            let address = Address { prompt: 3, sample: 1, position };
            let drawn = draw(isa, &scaled, &stats, sampling, Philox::new(1), address, &mut scratch);
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
        let stats = lm_head::row_stats(Isa::best(), &logits);
        let sampling = Sampling { top_k: 1, ..Sampling::default() };
        let address = Address { prompt: 0, sample: 0, position: 0 };
        let drawn =
            draw(Isa::best(), &logits, &stats, &sampling, Philox::new(0), address, &mut [0.0; 2]);
        assert_eq!(drawn.id, 1);
        assert!((drawn.logprob - 0.9f32.ln()).abs() < 1e-6);
    }
}
