//! What the machine can reach: arithmetic on registers alone, and memory read and copied.
//!
//! Whoever shares the machine takes a part of it, so a share of these is meant for what was measured beside
//! them, between the same neighbours.

mod cuda;

use std::hint::black_box;
use std::time::Instant;

use crate::Device;
use crate::cuda::Kind;
use crate::simd::{Isa, LANES};
use crate::tensor::Shards;

/// Independent chains of sixteen lanes, more than the latency of the instruction needs.
const CHAINS: usize = 6;
/// Steps of a short run: some ten microseconds' worth of each chain would be too short for the clock.
const STEPS: usize = 100_000;
/// Short runs, of which the best counts: many of arithmetic, which neighbours disturb, and few of memory.
const ARITHMETIC_TURNS: usize = 8;
const MEMORY_TURNS: usize = 4;
/// Bytes that are read or copied: far beyond any cache.
const MEMORY_BYTES: usize = 256 << 20;
/// Accumulators of a read, enough to hide the latency of additions.
const SUMS: usize = 4 * LANES;

/// FLOP/s of fused multiply-adds with the kernels' instruction set on all threads of the device.
///
/// On a CUDA device those of a large product of this kind; NaN if that fails.
pub fn f32_flop_per_second(device: &Device) -> f64 {
    if let Some(gpu) = device.gpu() {
        return cuda::flop_per_second(gpu, Kind::F32);
    }
    let flop = (STEPS * CHAINS * 2 * LANES) as f64;
    flop_per_second(device, flop, |isa| spin(isa, STEPS))
}

/// FLOP/s of dot products of bf16 pairs; none where the processor has no instruction for them.
///
/// On a CUDA device those of a large product of this kind; NaN if that fails.
pub fn bf16_flop_per_second(device: &Device) -> Option<f64> {
    if let Some(gpu) = device.gpu() {
        return Some(cuda::flop_per_second(gpu, Kind::Bf16));
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        let flop = (STEPS / 2 * 2 * CHAINS * 4 * LANES) as f64;
        // SAFETY: the processor has the instructions.
        return Some(flop_per_second(device, flop, |_| unsafe { spin_bf16(STEPS) }));
    }
    let _ = device;
    None
}

/// Bytes per second that all threads of the device read from memory.
///
/// On a CUDA device as many as a copy reads and writes; NaN if that fails.
pub fn read_bytes_per_second(device: &Device) -> f64 {
    if let Some(gpu) = device.gpu() {
        return cuda::copy_bytes_per_second(gpu);
    }
    let memory = vec![1.0f32; MEMORY_BYTES / size_of::<f32>()];
    let part_len = memory.len().div_ceil(device.threads());
    let seconds = best_seconds(MEMORY_TURNS, || {
        device.run_blocks(memory.len(), part_len, |start, end| {
            black_box(sum(&memory[start..end]));
        });
    });
    MEMORY_BYTES as f64 / seconds
}

/// Bytes per second that all threads of the device copy, each counted once as read and once as written.
pub fn copy_bytes_per_second(device: &Device) -> f64 {
    if let Some(gpu) = device.gpu() {
        return cuda::copy_bytes_per_second(gpu);
    }
    let from = vec![1.0f32; MEMORY_BYTES / size_of::<f32>()];
    let mut to = vec![2.0f32; from.len()];
    let part_len = from.len().div_ceil(device.threads());
    let shards = Shards::new(&mut to);
    let seconds = best_seconds(MEMORY_TURNS, || {
        device.run_blocks(from.len(), part_len, |start, end| {
            // SAFETY: parts are disjoint.
            unsafe { shards.slice(start, end) }.copy_from_slice(&from[start..end]);
        });
    });
    black_box(&to);
    2.0 * MEMORY_BYTES as f64 / seconds
}

/// The best of a few runs of `spin` on every thread, each of which does `flop`.
fn flop_per_second(device: &Device, flop: f64, spin: impl Fn(Isa) + Sync) -> f64 {
    let seconds = best_seconds(ARITHMETIC_TURNS, || {
        device.run(device.threads(), |_| spin(device.isa()));
    });
    device.threads() as f64 * flop / seconds
}

fn best_seconds(turns: usize, mut turn: impl FnMut()) -> f64 {
    let times = (0..turns).map(|_| {
        let begun = Instant::now();
        turn();
        begun.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; SUMS];
    for chunk in values.as_chunks::<SUMS>().0 {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().sum()
}

fn spin(isa: Isa, steps: usize) {
    match isa {
        // SAFETY: the device was made with an instruction set of this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { spin_avx2(steps) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { spin_avx512(steps) },
        _ => spin_lanes(steps),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn spin_avx2(steps: usize) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [b; 2 * CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn spin_avx512(steps: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    // Half of the steps with twice the chains: one register has all lanes here.
    let mut sums = [b; 2 * CHAINS];
    for _ in 0..steps / 2 {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn spin_bf16(steps: usize) {
    use std::arch::x86_64::{_mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_set1_ps};
    // Two registers of sixteen floats make one of thirty-two halves; both halves of it are alike.
    let half = |x: f32| {
        let low = _mm512_cvtneps_pbh(_mm512_set1_ps(black_box(x)));
        // SAFETY: both are vectors of bits without any invalid ones.
        unsafe { std::mem::transmute([low, low]) }
    };
    let (a, b) = (half(0.5), half(0.25));
    let mut sums = [_mm512_set1_ps(black_box(0.125)); 2 * CHAINS];
    for _ in 0..steps / 2 {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

fn spin_lanes(steps: usize) {
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [[b; LANES]; CHAINS];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul_add(a, b);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no loop was thought away, and no figure is off by the factors that could be forgotten. Method: no
    /// machine is within these bounds by chance: a loop that does nothing, or bytes for gigabytes.
    #[test]
    fn figures_are_those_of_a_machine() {
        for isa in Isa::available() {
            let peak = f32_flop_per_second(&Device::cpu_with(1, isa));
            assert!((1e7..1e12).contains(&peak), "{isa}: {peak}");
        }
        let device = Device::cpu(1);
        let memory = [read_bytes_per_second(&device), copy_bytes_per_second(&device)];
        assert!(memory.iter().all(|rate| (1e8..2e12).contains(rate)), "{memory:?}");
        if let Some(peak) = bf16_flop_per_second(&device) {
            assert!((1e9..4e12).contains(&peak), "{peak}");
        }
    }
}
