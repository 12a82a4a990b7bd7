//! The global L2 norm of all gradients, and the factor that keeps it within bounds.
//!
//! Squares are summed in `f64`, in blocks of a fixed length whose sums are added in order: the bits do not
//! depend on threads.

pub mod cuda;

use crate::simd::LANES;
use crate::{Tensor, profile};

/// Elements whose squares one call sums.
const BLOCK_LEN: usize = 1 << 14;
/// What torch's `clip_grad_norm_` adds to the norm that it divides by.
const NORM_EPS: f64 = 1e-6;

/// `sqrt(Σ g²)` over all elements of all tensors.
pub fn global_norm<'a>(grads: impl Iterator<Item = &'a Tensor>) -> f64 {
    let sum_of_squares = |tensor: &Tensor| {
        let _span = profile::moving("grad_norm", &[tensor]);
        sum_of_squares(tensor)
    };
    grads.map(sum_of_squares).sum::<f64>().sqrt()
}

/// The factor on gradients of that norm which brings it down to `norm_max`; 1 where it is below.
pub fn clip_scale(norm: f64, norm_max: f64) -> f32 {
    (norm_max / (norm + NORM_EPS)).min(1.0) as f32
}

fn sum_of_squares(tensor: &Tensor) -> f64 {
    let values = tensor.as_slice();
    let mut blocks = vec![0.0; values.len().div_ceil(BLOCK_LEN)];
    let sums = SumCells(blocks.as_mut_ptr());
    tensor.device().run_blocks(values.len(), BLOCK_LEN, |start, end| {
        // SAFETY: every block has an element of its own, and `blocks` outlives the call.
        unsafe { sums.set(start / BLOCK_LEN, block_sum(&values[start..end])) };
    });
    blocks.iter().sum()
}

/// Sixteen running sums, so that the compiler can use vectors without another order of sums.
fn block_sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for chunk in values.chunks(LANES) {
        for (sum, &x) in lanes.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum()
}

struct SumCells(*mut f64);
// SAFETY: callers of `set` write each element from one thread.
unsafe impl Sync for SumCells {}

impl SumCells {
    /// # Safety
    /// `idx` is in bounds, and no other thread uses it.
    unsafe fn set(&self, idx: usize, value: f64) {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(idx) = value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{devices, noise_tensor};

    #[test]
    fn the_norm_is_that_of_all_elements_on_every_device() {
        let mut first = None;
        for device in devices() {
            let tensors =
                [noise_tensor(&device, 1, &[3, 37]), noise_tensor(&device, 2, &[700, 48])];
            let want = tensors
                .iter()
                .flat_map(|t| t.as_slice())
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt();
            let got = global_norm(tensors.iter());
            assert!((got - want).abs() <= 1e-12 * want, "{got} {want}");
            assert_eq!(got.to_bits(), *first.get_or_insert(got.to_bits()));
        }
    }

    #[test]
    fn large_gradients_do_not_overflow_and_broken_ones_show() {
        let device = crate::Device::cpu(1);
        let norm = |values: &[f32]| {
            global_norm([Tensor::from_slice(&device, &[values.len()], values)].iter())
        };
        assert!((norm(&[3e30, 4e30]) / 5e30 - 1.0).abs() < 1e-6);
        assert!(norm(&[1.0, f32::NAN]).is_nan());
        assert!(norm(&[f32::INFINITY]).is_infinite());
    }

    #[test]
    fn only_norms_above_the_bound_are_scaled() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(0.0, 1.0), 1.0);
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_scale(4.0, f64::INFINITY), 1.0);
        // Torch adds 1e-6 to the norm; near that size the sum shows.
        assert_eq!(clip_scale(3e-6, 1e-6), 0.25);
    }
}
