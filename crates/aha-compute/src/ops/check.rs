//! What the tests of all ops share: numbers, tolerances, gradient checks, devices.

use crate::random::Philox;
use crate::simd::Isa;
use crate::{Device, Tensor};

/// Reproducible values in `[-1, 1)`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f64> {
    (0..len as u64).map(|i| Philox::new(seed).uniform(&[i]) * 2.0 - 1.0).collect()
}

/// The same values as `f32`.
pub(crate) fn noise_f32(seed: u64, len: usize) -> Vec<f32> {
    noise(seed, len).into_iter().map(|x| x as f32).collect()
}

/// A tensor of [`noise_f32`].
pub(crate) fn noise_tensor(device: &Device, seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_slice(device, shape, &noise_f32(seed, shape.iter().product()))
}

/// Every instruction set of this machine with one and with two threads.
pub(crate) fn devices() -> Vec<Device> {
    Isa::available()
        .into_iter()
        .flat_map(|isa| [1, 2].map(|threads| Device::cpu_with(threads, isa)))
        .collect()
}

/// How far apart two values may be: `|a - b| <= abs + rel * |b|`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tol {
    pub abs: f64,
    pub rel: f64,
}

/// Sums of up to a few hundred terms near one, in `f32` against `f64`.
pub(crate) const F32: Tol = Tol { abs: 2e-5, rel: 2e-5 };

/// Fails with the worst element where `got` is further from `want` than `tol`; NaN always fails.
#[track_caller]
pub(crate) fn assert_close(name: &str, got: &[f32], want: &[f64], tol: Tol) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let share = |i: usize| {
        let share = (f64::from(got[i]) - want[i]).abs() / (tol.abs + tol.rel * want[i].abs());
        if share.is_nan() { f64::INFINITY } else { share }
    };
    if let Some(worst) = (0..got.len()).max_by(|&a, &b| share(a).total_cmp(&share(b))) {
        assert!(
            share(worst) <= 1.0,
            "{name}[{worst}]: got {}, want {}, {:.3} of the tolerance {tol:?}",
            got[worst],
            want[worst],
            share(worst)
        );
    }
}

/// Fails where two slices differ in any bit.
#[track_caller]
pub(crate) fn assert_same_bits(name: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{name}: lengths");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert_eq!(x.to_bits(), y.to_bits(), "{name}[{i}]: {x} and {y}");
    }
}

/// Compares `gradient` with central differences of `loss` at `x`.
///
/// With `h = 1e-5` the truncation error is near `h^2` and the rounding error near `1e-16 / h`: both near
/// 1e-10 for values near one.
#[track_caller]
pub(crate) fn assert_grad(name: &str, gradient: &[f64], x: &[f64], loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(gradient.len(), x.len(), "{name}: lengths");
    let h = 1e-5;
    let mut at = x.to_vec();
    for i in 0..x.len() {
        at[i] = x[i] + h;
        let up = loss(&at);
        at[i] = x[i] - h;
        let down = loss(&at);
        at[i] = x[i];
        let slope = (up - down) / (2.0 * h);
        let tolerance = 1e-7 + 1e-6 * slope.abs();
        let off = (gradient[i] - slope).abs();
        assert!(
            off <= tolerance,
            "{name}[{i}]: gradient {}, slope {slope}, off by {off:e}",
            gradient[i]
        );
    }
}
