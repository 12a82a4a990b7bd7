//! The lanes as two 256-bit registers.
#![cfg_attr(not(target_arch = "x86_64"), expect(unused, reason = "only x86-64 has AVX2"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::{LANES, Simd};

/// AVX2 with fused multiply-add.
#[derive(Clone, Copy, Debug)]
pub struct Avx2;

#[cfg(target_arch = "x86_64")]
macro_rules! both {
    ($f:ident, $($v:ident),+) => { ($f($($v.0),+), $f($($v.1),+)) };
}

// SAFETY: every method needs AVX2 and FMA, which callers guarantee.
#[cfg(target_arch = "x86_64")]
unsafe impl Simd for Avx2 {
    type V = (__m256, __m256);

    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(to, v.0);
            _mm256_storeu_ps(to.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, len: usize) -> Self::V {
        if len >= LANES {
            return unsafe { Self::load(from) };
        }
        let mut a = [0.0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(from, a.as_mut_ptr(), len);
            Self::load(a.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::V, len: usize) {
        if len >= LANES {
            return unsafe { Self::store(to, v) };
        }
        unsafe {
            let a = Self::to_array(v);
            std::ptr::copy_nonoverlapping(a.as_ptr(), to, len);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { both!(_mm256_fmadd_ps, a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { both!(_mm256_min_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { both!(_mm256_sqrt_ps, a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe {
            (
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn pow2(a: Self::V) -> Self::V {
        unsafe { (pow2(a.0), pow2(a.1)) }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        unsafe {
            (
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0), v.0),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1), v.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn to_array(v: Self::V) -> [f32; LANES] {
        let mut a = [0.0; LANES];
        unsafe { Self::store(a.as_mut_ptr(), v) };
        a
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        unsafe { (widen(from), widen(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, v: Self::V) {
        unsafe {
            let low = _mm256_srli_epi32::<16>(round_bf16(_mm256_castps_si256(v.0)));
            let high = _mm256_srli_epi32::<16>(round_bf16(_mm256_castps_si256(v.1)));
            // Packing works within 128 bits: the middle quarters change places.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        unsafe {
            let upper = _mm256_set1_epi32(UPPER);
            let low = round_bf16(_mm256_castps_si256(v.0));
            let high = round_bf16(_mm256_castps_si256(v.1));
            (
                _mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                _mm256_castsi256_ps(_mm256_and_si256(high, upper)),
            )
        }
    }
    #[inline(always)]
    unsafe fn pair(first: Self::V, second: Self::V) -> Self::V {
        unsafe { both!(pair, first, second) }
    }
    #[inline(always)]
    unsafe fn pair_rounded(first: Self::V, second: Self::V) -> Self::V {
        unsafe { both!(pair_rounded, first, second) }
    }
    #[inline(always)]
    unsafe fn load_first(words: *const f32) -> Self::V {
        unsafe {
            let upper = _mm256_castsi256_ps(_mm256_set1_epi32(UPPER));
            let (low, high) = Self::load(words);
            (_mm256_and_ps(low, upper), _mm256_and_ps(high, upper))
        }
    }
    #[inline(always)]
    unsafe fn load_second(words: *const f32) -> Self::V {
        unsafe {
            let (low, high) = Self::load(words);
            (shifted_up(low), shifted_up(high))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        unsafe { (widen_i8(from), widen_i8(from.add(8))) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pow2(a: __m256) -> __m256 {
    unsafe {
        let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
    }
}

/// The upper half of a word.
#[cfg(target_arch = "x86_64")]
const UPPER: i32 = -0x1_0000;

/// Eight bf16 numbers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn widen(from: *const bf16) -> __m256 {
    unsafe {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
}

/// Eight bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn widen_i8(from: *const i8) -> __m256 {
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn shifted_up(words: __m256) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(words))) }
}

/// Words whose upper halves are the bf16 numbers nearest to the floats, ties to even; NaN stays NaN.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn round_bf16(bits: __m256i) -> __m256i {
    unsafe {
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_add_epi32(bits, half);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let floats = _mm256_castsi256_ps(bits);
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(floats, floats));
        _mm256_blendv_epi8(rounded, quiet, is_nan)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pair_rounded(first: __m256, second: __m256) -> __m256 {
    unsafe {
        let lower = _mm256_srli_epi32::<16>(_mm256_castps_si256(second));
        _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(first), lower))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pair(first: __m256, second: __m256) -> __m256 {
    unsafe {
        let first = round_bf16(_mm256_castps_si256(first));
        let second = round_bf16(_mm256_castps_si256(second));
        let upper = _mm256_and_si256(first, _mm256_set1_epi32(UPPER));
        _mm256_castsi256_ps(_mm256_or_si256(upper, _mm256_srli_epi32::<16>(second)))
    }
}
