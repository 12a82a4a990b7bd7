//! The lanes in plain Rust: the definition of what every instruction set must yield.

use half::bf16;

use super::{LANES, Simd};

/// Plain Rust lanes.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: needs nothing of the processor.
unsafe impl Simd for Portable {
    type V = [f32; LANES];

    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, len: usize) -> Self::V {
        let mut v = [0.0; LANES];
        unsafe { std::ptr::copy_nonoverlapping(from, v.as_mut_ptr(), len.min(LANES)) };
        v
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::V, len: usize) {
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, len.min(LANES)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn pow2(a: Self::V) -> Self::V {
        a.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] >= b[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn to_array(v: Self::V) -> [f32; LANES] {
        v
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, v: Self::V) {
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        v.map(|x| bf16::from_f32(x).to_f32())
    }
    #[inline(always)]
    unsafe fn pair(first: Self::V, second: Self::V) -> Self::V {
        let half = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        zip(first, second, |first, second| f32::from_bits(half(first) << 16 | half(second)))
    }
    #[inline(always)]
    unsafe fn pair_rounded(first: Self::V, second: Self::V) -> Self::V {
        let word = |first: f32, second: f32| first.to_bits() | second.to_bits() >> 16;
        zip(first, second, |first, second| f32::from_bits(word(first, second)))
    }
    #[inline(always)]
    unsafe fn load_first(words: *const f32) -> Self::V {
        unsafe { Self::load(words) }.map(|word| f32::from_bits(word.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn load_second(words: *const f32) -> Self::V {
        unsafe { Self::load(words) }.map(|word| f32::from_bits(word.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
}
