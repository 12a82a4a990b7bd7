//! The lanes as one 512-bit register.
#![cfg_attr(not(target_arch = "x86_64"), expect(unused, reason = "only x86-64 has AVX-512"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::{LANES, Simd};

/// AVX-512 (foundation).
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

// SAFETY: every method needs AVX-512F, which callers guarantee.
#[cfg(target_arch = "x86_64")]
unsafe impl Simd for Avx512 {
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
}

/// A mask of the first `len` lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    if len >= LANES { 0xffff } else { (1u16 << len) - 1 }
}
