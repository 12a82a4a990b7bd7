//! What a CUDA device reaches: a large product, and memory copied.

use std::time::Instant;

use half::bf16;

use crate::cuda::{Context, Error, Kind};
use crate::device::Gpu;

/// Rows and columns of the factors of a product.
const SIDE: usize = 8192;
/// As [`SIDE`], where a device is the processor, or a slow one.
const SIDE_SMALL: usize = 256;
/// Memory from which on a device is not a small one.
const MEMORY_BYTES_MIN: usize = 8 << 30;
/// Calls that are timed together, of which the best turn counts.
const CALLS: usize = 10;
const TURNS: usize = 3;
/// Bytes that are copied: far beyond any cache.
const COPIED_BYTES: usize = 1 << 30;

/// FLOP/s of a product of square factors of this kind. NaN where it fails.
pub(super) fn flop_per_second(gpu: &Gpu, kind: Kind) -> f64 {
    gpu.ask(|cx| product(cx, kind)).unwrap_or(f64::NAN)
}

/// Bytes per second of a copy inside of the device, each counted as read and as written. NaN where it fails.
pub(super) fn copy_bytes_per_second(gpu: &Gpu) -> f64 {
    gpu.ask(copy).unwrap_or(f64::NAN)
}

/// Whether it has the memory for large factors.
fn is_large(cx: &Context) -> bool {
    cx.info().memory_bytes >= MEMORY_BYTES_MIN
}

fn product(cx: &Context, kind: Kind) -> Result<f64, Error> {
    let side = if is_large(cx) { SIDE } else { SIDE_SMALL };
    // No pattern: on few numbers arithmetic takes less power, and so less time.
    let mix = |i: usize| (i as u32).wrapping_mul(2_654_435_761).rotate_left(15);
    let value = |i: usize| (mix(i) >> 8) as f32 / 16_777_216.0 - 0.5;
    let upload = |seed: usize| match kind {
        Kind::Bf16 => {
            let values: Vec<bf16> =
                (0..side * side).map(|i| bf16::from_f32(value(i + seed))).collect();
            cx.upload(&values)
        }
        _ => cx.upload(&(0..side * side).map(|i| value(i + seed)).collect::<Vec<f32>>()),
    };
    let (a, b, mut c) = (upload(1)?, upload(2)?, cx.buffer(kind, side * side)?);
    let seconds = best_seconds(cx, || {
        let (a, b) = ((a.view(), false), (b.view(), true));
        cx.product(&mut c.view_mut(), [side; 3], a, b, None, (1.0, 0.0))
    })?;
    Ok(2.0 * (side as f64).powi(3) / seconds)
}

fn copy(cx: &Context) -> Result<f64, Error> {
    let bytes = if is_large(cx) { COPIED_BYTES } else { COPIED_BYTES >> 8 };
    let len = bytes / size_of::<f32>();
    let (from, mut to) = (cx.zeros(Kind::F32, len)?, cx.buffer(Kind::F32, len)?);
    let seconds = best_seconds(cx, || cx.copy(&mut to.view_mut(), from.view()))?;
    Ok(2.0 * bytes as f64 / seconds)
}

/// Seconds of a call in the best of a few turns, after one that doesn't count.
fn best_seconds(cx: &Context, mut call: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    call()?;
    cx.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..TURNS {
        let begun = Instant::now();
        (0..CALLS).try_for_each(|_| call())?;
        cx.synchronize()?;
        best = best.min(begun.elapsed().as_secs_f64() / CALLS as f64);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use aha_emulate::{Emulated, ORDERS};

    use super::*;
    use crate::{Device, measure};

    #[test]
    fn an_emulated_device_has_figures_and_one_without_memory_has_none() {
        let device = |bytes| {
            let context = Context::new(Emulated::new(ORDERS[0], bytes));
            Device::cpu(1).with_context(context)
        };
        let figures = |device: &Device| {
            [
                measure::f32_flop_per_second(device),
                measure::bf16_flop_per_second(device).unwrap_or(f64::NAN),
                measure::copy_bytes_per_second(device),
            ]
        };
        let found = figures(&device(1 << 30));
        assert!(found.iter().all(|figure| (1e5..1e13).contains(figure)), "{found:?}");
        assert!(figures(&device(1 << 16)).iter().all(|figure| figure.is_nan()));
    }
}
