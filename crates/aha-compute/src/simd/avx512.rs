//! The lanes as one 512-bit register.
#![cfg_attr(not(target_arch = "x86_64"), expect(unused, reason = "only x86-64 has AVX-512"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::{LANES, Simd};

/// AVX-512 (foundation).
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

/// AVX-512 with dot products of bf16 pairs (AVX512_BF16).
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16;

/// The lanes of AVX-512F, and what an extension of it does better.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes { ($name:ident { $($better:item)* }) => {
// SAFETY: every method needs AVX-512F, `Avx512Bf16` also AVX512_BF16, which callers guarantee.
unsafe impl Simd for $name {
    type V = __m512;

    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, len: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps(first(len), from) }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::V, len: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(len), v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b), v) }
    }
    #[inline(always)]
    unsafe fn to_array(v: Self::V) -> [f32; LANES] {
        let mut a = [0.0; LANES];
        unsafe { Self::store(a.as_mut_ptr(), v) };
        a
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, v: Self::V) {
        unsafe {
            let upper = _mm512_srli_epi32::<16>(round_bf16(v));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(upper));
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        unsafe {
            let upper = _mm512_and_si512(round_bf16(v), _mm512_set1_epi32(UPPER));
            _mm512_castsi512_ps(upper)
        }
    }
    #[inline(always)]
    unsafe fn pair(first: Self::V, second: Self::V) -> Self::V {
        unsafe {
            let upper = _mm512_and_si512(round_bf16(first), _mm512_set1_epi32(UPPER));
            let lower = _mm512_srli_epi32::<16>(round_bf16(second));
            _mm512_castsi512_ps(_mm512_or_si512(upper, lower))
        }
    }
    #[inline(always)]
    unsafe fn pair_rounded(first: Self::V, second: Self::V) -> Self::V {
        unsafe {
            let lower = _mm512_srli_epi32::<16>(_mm512_castps_si512(second));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(first), lower))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        unsafe { transpose(rows) }
    }
    #[inline(always)]
    unsafe fn load_first(words: *const f32) -> Self::V {
        unsafe {
            let words = _mm512_castps_si512(Self::load(words));
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(UPPER)))
        }
    }
    #[inline(always)]
    unsafe fn load_second(words: *const f32) -> Self::V {
        unsafe {
            let words = _mm512_castps_si512(Self::load(words));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    $($better)*
}
} }

#[cfg(target_arch = "x86_64")]
lanes!(Avx512 {});
#[cfg(target_arch = "x86_64")]
lanes!(Avx512Bf16 {
    /// The instruction multiplies and adds the upper halves of the words first.
    #[inline(always)]
    unsafe fn dot_pairs(a: f32, b: *const f32, c: Self::V) -> Self::V {
        unsafe {
            let a: __m512bh = std::mem::transmute(_mm512_set1_ps(a));
            let b: __m512bh = std::mem::transmute(_mm512_loadu_ps(b));
            _mm512_dpbf16_ps(c, a, b)
        }
    }
});

/// Halves of rows are exchanged between pairs of them: neighbouring lanes first, then lanes of two, four and eight.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
    unsafe {
        let mut ones = rows;
        for i in (0..LANES).step_by(2) {
            ones[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
            ones[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // Row `4i + j` now has column `j` of each quarter, for four rows.
        let mut twos = ones;
        for i in (0..LANES).step_by(4) {
            for (j, half) in [0, 0, 1, 1].into_iter().enumerate() {
                let [a, b] = [ones[i + half], ones[i + half + 2]].map(|v| _mm512_castps_pd(v));
                let v =
                    if j % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) };
                twos[i + j] = _mm512_castpd_ps(v);
            }
        }
        let mut columns = twos;
        for j in 0..4 {
            let even = |a, b| _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let odd = |a, b| _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            let (upper, lower) = ((twos[j], twos[4 + j]), (twos[8 + j], twos[12 + j]));
            let (low, high) = (even(upper.0, upper.1), even(lower.0, lower.1));
            columns[j] = even(low, high);
            columns[8 + j] = odd(low, high);
            let (low, high) = (odd(upper.0, upper.1), odd(lower.0, lower.1));
            columns[4 + j] = even(low, high);
            columns[12 + j] = odd(low, high);
        }
        columns
    }
}

/// The upper half of a word.
#[cfg(target_arch = "x86_64")]
const UPPER: i32 = -0x1_0000;

/// Words whose upper halves are the bf16 numbers nearest to the floats, ties to even; NaN stays NaN.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn round_bf16(v: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, half);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_mov_epi32(rounded, is_nan, quiet)
    }
}

/// A mask of the first `len` lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    if len >= LANES { 0xffff } else { (1u16 << len) - 1 }
}
