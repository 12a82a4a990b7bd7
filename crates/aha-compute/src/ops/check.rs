//! What the tests of all ops share: numbers, tolerances, gradient checks, devices.

use half::bf16;

use crate::cuda::{Buffer, Context, Kind, Limits, Plan};
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

impl Tol {
    /// Results rounded to bf16, of which the last of 8 bits may fall either way.
    pub(crate) const BF16: Tol = Tol { abs: 2e-5, rel: 1.0 / 128.0 };
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

/// A model whose launches are checked: `C`, `H`, `KV`, `D`, width of the feed-forward layer, `V`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
}

const fn shape([hidden, heads, kv_heads, head_dim, ffn, vocab]: [usize; 6]) -> Shape {
    Shape { hidden, heads, kv_heads, head_dim, ffn, vocab }
}

/// Qwen2.5 of 0.5B, 1.5B, 3B and 7B, and Llama 3.1 of 8B.
pub(crate) const MODELS: [Shape; 5] = [
    shape([896, 14, 2, 64, 4864, 151_936]),
    shape([1536, 12, 2, 128, 8960, 151_936]),
    shape([2048, 16, 2, 128, 11_008, 151_936]),
    shape([3584, 28, 4, 128, 18_944, 152_064]),
    shape([4096, 32, 8, 128, 14_336, 128_256]),
];

/// Rows of calls: decoding, prefill, learning.
pub(crate) const ROWS: [usize; 5] = [1, 7, 256, 4096, 131_072];

/// Fails where a launch asks for more than the least device has.
#[track_caller]
pub(crate) fn assert_fits(plan: &Plan) {
    if let Err(what) = plan.check(&Limits::LEAST) {
        panic!("{}: {what}", plan.kernel);
    }
}

/// The emulated device, with its threads in either order.
pub(crate) fn contexts() -> [Context; 2] {
    aha_emulate::Emulated::both().map(|driver| Context::new(driver))
}

/// The values of [`noise_f32`], rounded as a buffer of that kind has them.
pub(crate) fn rounding(seed: u64, len: usize, kind: Kind) -> Vec<f32> {
    let values = noise_f32(seed, len);
    match kind {
        Kind::Bf16 => values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect(),
        _ => values,
    }
}

/// A buffer of [`rounding`], and its values.
pub(crate) fn upload_noise(cx: &Context, seed: u64, len: usize, kind: Kind) -> (Buffer, Vec<f64>) {
    let values = rounding(seed, len, kind);
    (upload(cx, &values, kind), wide(&values))
}

/// A buffer of these values, rounded to the kind.
pub(crate) fn upload(cx: &Context, values: &[f32], kind: Kind) -> Buffer {
    match kind {
        Kind::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            cx.upload(&values).unwrap()
        }
        _ => cx.upload(values).unwrap(),
    }
}

/// The values of a buffer of f32 or bf16.
pub(crate) fn download(cx: &Context, buffer: &Buffer) -> Vec<f32> {
    match buffer.kind() {
        Kind::Bf16 => {
            let values: Vec<bf16> = cx.download(buffer.view()).unwrap();
            values.into_iter().map(bf16::to_f32).collect()
        }
        _ => cx.download(buffer.view()).unwrap(),
    }
}

/// The same values in double precision.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}
