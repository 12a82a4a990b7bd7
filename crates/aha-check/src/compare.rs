//! How far values are from those that they are held against.

use aha_compute::Dtype;

/// A distance: of all values together, and of the one that is farthest off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Distance {
    /// L2 norm of the difference, as a share of that of what is expected.
    pub norm: f64,
    /// The greatest difference, as a share of the greatest value that is expected.
    pub max: f64,
}

/// What a distance may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub norm: f64,
    pub max: f64,
}

/// Two f32 sums of the same terms in different orders: of `n` terms they differ by about `sqrt(n) 2^-24` (Higham,
/// "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2), which is 7e-6 for the 13 thousand rows of the
/// longest sum. Products in TF32, whose factors have 11 bits, would be off by 3e-4.
pub(crate) const F32: Bound = Bound { norm: 1e-5, max: 5e-5 };

/// Results that are rounded to bf16 differ by one of 8 bits where they lie beside a border, and an op rounds up to
/// three times on the way: 2^-8 each at most, a third of that on the average. A single value can be off by three of
/// them.
pub(crate) const BF16: Bound = Bound { norm: 1.0 / 128.0, max: 1.0 / 64.0 };

impl Bound {
    /// That of an op which computes with this.
    pub(crate) fn of(dtype: Dtype) -> Bound {
        match dtype {
            Dtype::F32 => F32,
            Dtype::Bf16 => BF16,
        }
    }
}

impl Distance {
    /// Of `got` from `want`. What isn't finite is infinitely far off.
    pub(crate) fn of(got: &[f32], want: &[f32]) -> Distance {
        if got.len() != want.len() {
            return Distance { norm: f64::INFINITY, max: f64::INFINITY };
        }
        let pairs = || got.iter().zip(want).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let share = |off: f64, of: f64| match off / of {
            _ if off == 0.0 => 0.0,
            share if share.is_nan() => f64::INFINITY,
            share => share,
        };
        let off = pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let norm = pairs().map(|(_, b)| b * b).sum::<f64>().sqrt();
        let greatest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let most = pairs().map(|(_, b)| b.abs()).fold(0.0, f64::max);
        let norm = share(off, norm);
        // A maximum leaves out what is no number; a norm doesn't.
        let max = if norm.is_finite() { share(greatest, most) } else { f64::INFINITY };
        Distance { norm, max }
    }

    /// The share of a bound that is used up.
    pub(crate) fn share_of(&self, bound: Bound) -> f64 {
        (self.norm / bound.norm).max(self.max / bound.max)
    }
}

/// How many of two lists' numbers differ in any bit; what only one has counts too.
pub(crate) fn differing(a: &[f32], b: &[f32]) -> usize {
    let pairs = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    pairs + a.len().abs_diff(b.len())
}

/// The greatest difference of two lists of equal length; infinite where something is no number.
pub(crate) fn greatest(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let off = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    off.fold(0.0, |most, off| if off.is_nan() { f64::INFINITY } else { most.max(off) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_a_share_of_what_is_expected() {
        let distance = Distance::of(&[3.0, 4.5], &[3.0, 4.0]);
        assert_eq!(distance, Distance { norm: 0.1, max: 0.125 });
        assert_eq!(distance.share_of(Bound { norm: 0.2, max: 0.5 }), 0.5);
        assert_eq!(Distance::of(&[0.0], &[0.0]), Distance { norm: 0.0, max: 0.0 });
        for broken in [&[f32::NAN, 4.0][..], &[f32::INFINITY, 4.0], &[3.0]] {
            assert!(Distance::of(broken, &[3.0, 4.0]).share_of(F32).is_infinite(), "{broken:?}");
        }
        assert!(Distance::of(&[1.0], &[0.0]).norm.is_infinite());
    }

    #[test]
    fn bits_and_differences_are_counted() {
        assert_eq!(differing(&[0.0, 1.0, 2.0], &[-0.0, 1.0]), 2);
        assert_eq!(greatest(&[0.5, 1.0], &[0.5, 0.75]), 0.25);
        assert!(greatest(&[f32::NAN, 0.0], &[0.0, 9.0]).is_infinite());
    }
}
