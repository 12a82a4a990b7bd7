//! The lanes as two 256-bit registers.
#![cfg_attr(not(target_arch = "x86_64"), expect(unused, reason = "only x86-64 has AVX2"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

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
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn pow2(a: __m256) -> __m256 {
    unsafe {
        let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
    }
}
