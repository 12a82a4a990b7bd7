//! Inner loops: one row of logits at a time.

use crate::simd::{LANES, Simd, simd_fn};

/// Terms that a lane adds up before it adds their sum to that of the row.
const BLOCK_VECTORS: usize = 32;
/// Logits of a block, whose weights [`row_sums`] adds up.
pub const BLOCK_LEN: usize = BLOCK_VECTORS * LANES;
/// Most logits of a part of [`maxima`].
pub const MAXIMA_PART_LEN: usize = 16;
/// A finite bound below which [`Simd::exp`] is exactly zero. A difference to the maximum that is bounded
/// by it can be multiplied by its weight even where a logit is minus infinity.
const LOG_MIN: f32 = -100.0;

/// What a row of logits must be reduced to before any of its log-probs is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// The greatest logit.
    pub max: f32,
    /// `ln Σ exp(l - max)`; NaN where any logit is NaN or none is finite, so that a broken model shows.
    pub log_sum: f32,
    /// Entropy of the distribution in nats; NaN as `log_sum`.
    pub entropy: f32,
}

simd_fn! {
    /// Statistics of a row of logits. The instruction set must be one that the machine has.
    pub fn row_stats<S>(row: &[f32]) -> RowStats {
        statistics::<S, false>(row, &mut [])
    }
}

simd_fn! {
    /// As [`row_stats`], with the same bits, and the sum of the weights `exp(l - max)` of each [`BLOCK_LEN`]
    /// logits, in `f64`. The instruction set must be one that the machine has.
    pub fn row_sums<S>(sums: &mut [f64], row: &[f32]) -> RowStats {
        let (len, blocks) = (sums.len(), row.len().div_ceil(BLOCK_LEN));
        assert_eq!(len, blocks, "`sums` has {len} elements: expected {blocks}");
        statistics::<S, true>(row, sums)
    }
}

simd_fn! {
    /// The greatest logits of disjoint parts of the row, each of at most [`MAXIMA_PART_LEN`] logits and at
    /// least one. The instruction set must be one that the machine has.
    pub fn maxima<S>(out: &mut Vec<f32>, row: &[f32]) {
        for block in row.chunks(MAXIMA_PART_LEN * LANES) {
            let mut max = S::splat(f32::NEG_INFINITY);
            for at in (0..block.len()).step_by(LANES) {
                max = S::max(load::<S>(block, at), max);
            }
            out.extend_from_slice(&S::to_array(max)[..block.len().min(LANES)]);
        }
    }
}

simd_fn! {
    /// `out = exp(l - max)` for each logit: probabilities but for a common factor. The instruction set must
    /// be one that the machine has.
    pub fn weights<S>(out: &mut [f32], logits: &[f32], stats: &RowStats) {
        let (len, to, shift) = (logits.len(), out.len(), S::splat(stats.max));
        assert_eq!(to, len, "`out` has {to} elements: expected {len}");
        for at in (0..len).step_by(LANES) {
            store::<S>(out, at, S::exp(S::sub(load::<S>(logits, at), shift)));
        }
    }
}

simd_fn! {
    /// `row = row * factor`.
    pub(super) fn scale<S>(row: &mut [f32], factor: f32) {
        let factor = S::splat(factor);
        for at in (0..row.len()).step_by(LANES) {
            store::<S>(row, at, S::mul(load::<S>(row, at), factor));
        }
    }
}

simd_fn! {
    /// Replaces each logit by `-p (dlogp + dentropy (log p + H))`: its gradient, but for the term of the
    /// target.
    pub(super) fn gradient<S>(row: &mut [f32], stats: &RowStats, dlogp: f32, dentropy: f32) {
        let (shift, log_sum) = (S::splat(stats.max), S::splat(stats.log_sum));
        let (entropy, least) = (S::splat(stats.entropy), S::splat(LOG_MIN));
        let (dlogp, dentropy) = (S::splat(-dlogp), S::splat(-dentropy));
        for at in (0..row.len()).step_by(LANES) {
            let log_p = S::sub(S::sub(load::<S>(row, at), shift), log_sum);
            let p = S::exp(log_p);
            let surprise = S::add(S::max(least, log_p), entropy);
            store::<S>(row, at, S::mul(p, S::fma(dentropy, surprise, dlogp)));
        }
    }
}

simd_fn! {
    /// `sum p (log p - log q)` over two rows of logits, with the statistics of both.
    pub(super) fn divergence<S>(own: &[f32], other: &[f32], stats: &[RowStats; 2]) -> f32 {
        assert_eq!(other.len(), own.len(), "both rows have the same tokens");
        let mut sum = S::splat(0.0);
        for block in (0..own.len()).step_by(BLOCK_LEN) {
            let mut part = S::splat(0.0);
            for at in (block..own.len().min(block + BLOCK_LEN)).step_by(LANES) {
                let (p, gap) = weight_and_gap::<S>(own, other, at, stats);
                part = S::fma(p, gap, part);
            }
            sum = S::add(sum, part);
        }
        S::reduce_add(sum)
    }
}

simd_fn! {
    /// Replaces each logit of the other row by `factor p (log p - log q - divergence)`.
    pub(super) fn divergence_gradient<S>(
        other: &mut [f32],
        own: &[f32],
        stats: &[RowStats; 2],
        divergence: f32,
        factor: f32,
    ) {
        let (divergence, factor) = (S::splat(divergence), S::splat(factor));
        for at in (0..own.len()).step_by(LANES) {
            let (p, gap) = weight_and_gap::<S>(own, other, at, stats);
            store::<S>(other, at, S::mul(factor, S::mul(p, S::sub(gap, divergence))));
        }
    }
}

simd_fn! {
    /// `row = row + addend`.
    pub(super) fn add<S>(row: &mut [f32], addend: &[f32]) {
        for at in (0..row.len()).step_by(LANES) {
            store::<S>(row, at, S::add(load::<S>(row, at), load::<S>(addend, at)));
        }
    }
}

/// Sixteen `p` and `log p - log q`. A token that is impossible here weighs nothing, whatever it is there.
#[inline(always)]
unsafe fn weight_and_gap<S: Simd>(
    own: &[f32],
    other: &[f32],
    at: usize,
    stats: &[RowStats; 2],
) -> (S::V, S::V) {
    unsafe {
        let log_p = log_probs::<S>(own, at, &stats[0]);
        let log_q = log_probs::<S>(other, at, &stats[1]);
        // In this order a NaN passes through `max`.
        let gap = S::sub(S::max(S::splat(LOG_MIN), log_p), S::max(S::splat(f32::MIN), log_q));
        (S::exp(log_p), gap)
    }
}

/// Sixteen log-probs of a row; minus infinity behind its end.
#[inline(always)]
unsafe fn log_probs<S: Simd>(row: &[f32], at: usize, stats: &RowStats) -> S::V {
    unsafe {
        let shifted = S::sub(load::<S>(row, at), S::splat(stats.max));
        S::sub(shifted, S::splat(stats.log_sum))
    }
}

/// Statistics of a row and, if `SUMS`, the sums of its blocks' weights.
#[inline(always)]
unsafe fn statistics<S: Simd, const SUMS: bool>(row: &[f32], sums: &mut [f64]) -> RowStats {
    assert!(!row.is_empty(), "`row` has no logits");
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for at in (0..row.len()).step_by(LANES) {
            max = S::max(load::<S>(row, at), max);
        }
        let max = S::reduce_max(max);
        let (shift, least) = (S::splat(max), S::splat(LOG_MIN));
        let (mut sum, mut sum_of_d) = (S::splat(0.0), S::splat(0.0));
        for block in (0..row.len()).step_by(BLOCK_LEN) {
            let (mut part, mut part_of_d) = (S::splat(0.0), S::splat(0.0));
            let mut lanes = [0.0; LANES];
            for at in (block..row.len().min(block + BLOCK_LEN)).step_by(LANES) {
                let d = S::sub(load::<S>(row, at), shift);
                let e = S::exp(d);
                part = S::add(part, e);
                // In this order a NaN passes through `max`.
                part_of_d = S::fma(e, S::max(least, d), part_of_d);
                if SUMS {
                    for (lane, e) in lanes.iter_mut().zip(S::to_array(e)) {
                        *lane += f64::from(e);
                    }
                }
            }
            sum = S::add(sum, part);
            sum_of_d = S::add(sum_of_d, part_of_d);
            if SUMS {
                sums[block / BLOCK_LEN] = lanes.iter().sum();
            }
        }
        let (sum, sum_of_d) = (S::reduce_add(sum), S::reduce_add(sum_of_d));
        // `exp` of NaN is zero; only the products tell.
        let log_sum = if sum_of_d.is_nan() { f32::NAN } else { sum.ln() };
        RowStats { max, log_sum, entropy: log_sum - sum_of_d / sum }
    }
}

/// Sixteen logits; minus infinity, which weighs nothing, behind the end of the row.
#[inline(always)]
unsafe fn load<S: Simd>(row: &[f32], at: usize) -> S::V {
    if at + LANES <= row.len() {
        return unsafe { S::load(row.as_ptr().add(at)) };
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..row.len() - at].copy_from_slice(&row[at..]);
    unsafe { S::load(lanes.as_ptr()) }
}

/// Sixteen floats, or as many as the row has left.
#[inline(always)]
unsafe fn store<S: Simd>(row: &mut [f32], at: usize, v: S::V) {
    if at + LANES <= row.len() {
        unsafe { S::store(row.as_mut_ptr().add(at), v) };
    } else {
        unsafe { S::store_part(row.as_mut_ptr().add(at), v, row.len() - at) };
    }
}
