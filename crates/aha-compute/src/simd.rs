//! Sixteen `f32` lanes with one meaning on every instruction set.
//!
//! Every primitive is exact under IEEE 754 (or, like [`Simd::exp`], built from such primitives only), and
//! reductions across lanes use one fixed tree. A kernel written over [`Simd`] therefore yields the same
//! bits on AVX-512, AVX2 and the portable path. `simd_fn!` compiles a kernel once per instruction set
//! and chooses at run time.

mod avx2;
mod avx512;
mod portable;

pub use avx2::Avx2;
pub use avx512::{Avx512, Avx512Bf16};
pub use portable::Portable;

use std::fmt;
use std::str::FromStr;

use half::bf16;

use crate::Error;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; right everywhere, slow where the compiler has no fused multiply-add.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors with dot products of bf16 pairs.
    Avx512Bf16,
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn best() -> Isa {
        let best = *Isa::available().last().expect("the portable path is always there");
        if best == Isa::Avx512Bf16 && !pairs_are_fast() { Isa::Avx512 } else { best }
    }

    /// The instruction sets of this machine, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut isas = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                isas.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f") {
                    isas.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        isas.push(Isa::Avx512Bf16);
                    }
                }
            }
        }
        isas
    }
}

/// Whether dot products of bf16 pairs get more done than multiply-adds do. On AMD's processors twice as much: both
/// instructions start equally often. Intel's start four multiply-adds while they start one of these, which leaves
/// half as much.
#[cfg(target_arch = "x86_64")]
fn pairs_are_fast() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() != b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn pairs_are_fast() -> bool {
    true
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(text: &str) -> Result<Isa, Error> {
        let isa = match text {
            "portable" => Isa::Portable,
            "avx2" => Isa::Avx2,
            "avx512" => Isa::Avx512,
            "avx512bf16" => Isa::Avx512Bf16,
            _ => {
                return Err(Error::Environment {
                    what: format!(
                        "unknown instruction set `{text}`: portable, avx2, avx512 or avx512bf16"
                    ),
                });
            }
        };
        if Isa::available().contains(&isa) {
            Ok(isa)
        } else {
            Err(Error::Environment { what: format!("this machine has no {isa}") })
        }
    }
}

/// Operations on sixteen lanes.
///
/// # Safety
/// The methods may only be called where the processor has the instruction set; `simd_fn!` sees to that.
/// Pointers must be valid for sixteen (or, in the `_part` methods, `len`) floats; no alignment is needed.
#[expect(
    clippy::missing_safety_doc,
    reason = "the trait's section on safety holds for every method"
)]
pub unsafe trait Simd: Copy + 'static {
    /// Sixteen lanes.
    type V: Copy;

    /// Rows and vectors of the matmul microkernel that fill this instruction set's registers.
    const TILE_ROWS: usize;
    /// See [`Simd::TILE_ROWS`].
    const TILE_VECTORS: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Sixteen floats from `from`.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Sixteen floats to `to`.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `len` floats from `from`, zero in the other lanes.
    unsafe fn load_part(from: *const f32, len: usize) -> Self::V;
    /// The first `len` lanes to `to`.
    unsafe fn store_part(to: *mut f32, v: Self::V, len: usize);
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`, so a NaN in `a` yields `b`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`, so a NaN in `a` yields `b`.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in `-126..=127`.
    unsafe fn pow2(a: Self::V) -> Self::V;
    /// `v` where `a >= b`, else zero (also where either is NaN).
    unsafe fn keep_ge(a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// The lanes as an array.
    unsafe fn to_array(v: Self::V) -> [f32; LANES];
    /// Sixteen bf16 numbers, which `f32` holds exactly.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// Sixteen lanes, rounded to bf16 as [`bf16::from_f32`] does: to nearest, ties to even.
    unsafe fn store_bf16(to: *mut bf16, v: Self::V);
    /// Each lane as the nearest bf16 number, ties to even.
    unsafe fn round_bf16(v: Self::V) -> Self::V;
    /// Words of two bf16 numbers: `first` rounded in the upper half, `second` in the lower one.
    unsafe fn pair(first: Self::V, second: Self::V) -> Self::V;
    /// As [`Simd::pair`], of numbers that are bf16 already.
    unsafe fn pair_rounded(first: Self::V, second: Self::V) -> Self::V;
    /// The first numbers of sixteen words of [`Simd::pair`].
    unsafe fn load_first(words: *const f32) -> Self::V;
    /// The second numbers of sixteen words of [`Simd::pair`].
    unsafe fn load_second(words: *const f32) -> Self::V;
    /// Sixteen bytes, which `f32` holds exactly.
    unsafe fn load_i8(from: *const i8) -> Self::V;

    /// Sixteen columns of sixteen rows.
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let rows = rows.map(|row| unsafe { Self::to_array(row) });
        std::array::from_fn(|column| {
            let column: [f32; LANES] = std::array::from_fn(|row| rows[row][column]);
            unsafe { Self::load(column.as_ptr()) }
        })
    }

    /// `c + a b` for the first numbers of the words, then for the second: two roundings, in this order.
    /// `a` is one word for all lanes. Where the processor has an instruction for it, denormal operands,
    /// products and sums count as zero.
    #[inline(always)]
    unsafe fn dot_pairs(a: f32, b: *const f32, c: Self::V) -> Self::V {
        let first = f32::from_bits(a.to_bits() & 0xffff_0000);
        let second = f32::from_bits(a.to_bits() << 16);
        unsafe {
            let c = Self::fma(Self::splat(first), Self::load_first(b), c);
            Self::fma(Self::splat(second), Self::load_second(b), c)
        }
    }

    /// Asks for the cache line of `at`, which may be any address, to be brought into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// As [`Simd::prefetch`], into the first-level cache.
    #[inline(always)]
    unsafe fn prefetch_near(at: *const f32) {
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// The first `len` bf16 numbers from `from`, zero in the other lanes.
    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, len: usize) -> Self::V {
        if len >= LANES {
            return unsafe { Self::load_bf16(from) };
        }
        let mut part = [bf16::ZERO; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), len);
            Self::load_bf16(part.as_ptr())
        }
    }

    /// The first `len` lanes to `to`, rounded as [`Simd::store_bf16`] does.
    #[inline(always)]
    unsafe fn store_bf16_part(to: *mut bf16, v: Self::V, len: usize) {
        if len >= LANES {
            return unsafe { Self::store_bf16(to, v) };
        }
        let mut part = [bf16::ZERO; LANES];
        unsafe {
            Self::store_bf16(part.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, len);
        }
    }

    /// The sum of the lanes, by halving: lane `i` takes lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    unsafe fn reduce_add(v: Self::V) -> f32 {
        let mut a = unsafe { Self::to_array(v) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }

    /// The greatest lane; NaN lanes are passed over as [`Simd::max`] does.
    #[inline(always)]
    unsafe fn reduce_max(v: Self::V) -> f32 {
        let mut a = unsafe { Self::to_array(v) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] = if a[i] > a[i + half] { a[i] } else { a[i + half] };
            }
        }
        a[0]
    }

    /// `e^v` within 2 units in the last place; exactly 0 below -87.33, saturating above 88.37.
    ///
    /// Cody-Waite reduction to `[-ln 2 / 2, ln 2 / 2]`, then the Taylor polynomial of degree 7.
    #[inline(always)]
    unsafe fn exp(v: Self::V) -> Self::V {
        unsafe {
            let x = Self::max(Self::min(v, Self::splat(EXP_MAX)), Self::splat(EXP_MIN));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-LN_2_HIGH), x);
            let r = Self::fma(n, Self::splat(-LN_2_LOW), r);
            let mut p = Self::splat(EXP_COEFFICIENTS[0]);
            for c in &EXP_COEFFICIENTS[1..] {
                p = Self::fma(p, r, Self::splat(*c));
            }
            let y = Self::mul(p, Self::pow2(n));
            Self::keep_ge(v, Self::splat(EXP_MIN), y)
        }
    }

    /// The logistic function `1 / (1 + e^-v)`.
    #[inline(always)]
    unsafe fn sigmoid(v: Self::V) -> Self::V {
        unsafe {
            let one = Self::splat(1.0);
            let e = Self::exp(Self::sub(Self::splat(0.0), v));
            Self::div(one, Self::add(one, e))
        }
    }
}

const EXP_MAX: f32 = 88.37;
const EXP_MIN: f32 = -87.33;
/// The upper bits of ln 2: `n * LN_2_HIGH` is exact for every `n` that occurs.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// `1 / k!` for k = 7, 6, … 0.
const EXP_COEFFICIENTS: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// Defines a kernel: a function whose body is generic over [`Simd`], compiled for each instruction set,
/// which takes the [`Isa`] to use as its first argument.
///
/// The body runs inside `unsafe`, as all vector code is: it must keep to the bounds of its slices.
macro_rules! simd_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$S:ident>($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            unsafe fn generic<$S: $crate::simd::Simd>($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? { unsafe { generic::<$crate::simd::Avx512>($($arg),*) } }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? { unsafe { generic::<$crate::simd::Avx2>($($arg),*) } }
            match isa {
                // SAFETY: a `Device` is only made with an instruction set that the processor has.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Bf16 => unsafe {
                    avx512($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: the portable lanes need nothing of the processor.
                _ => unsafe { generic::<$crate::simd::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    simd_fn! {
        fn map_exp<S>(y: &mut [f32], x: &[f32]) {
            assert_eq!(y.len(), x.len());
            let mut i = 0;
            while i < x.len() {
                let len = (x.len() - i).min(LANES);
                S::store_part(y.as_mut_ptr().add(i), S::exp(S::load_part(x.as_ptr().add(i), len)), len);
                i += len;
            }
        }
    }

    simd_fn! {
        fn all_ops<S>(y: &mut Vec<f32>, a: &[f32; LANES], b: &[f32; LANES]) {
            let (a, b) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
            let results = [
                S::add(a, b), S::sub(a, b), S::mul(a, b), S::div(a, b), S::fma(a, b, a), S::max(a, b),
                S::min(a, b), S::sqrt(S::mul(a, a)), S::round(a), S::keep_ge(a, b, a), S::sigmoid(a), S::exp(b),
                S::pow2(S::round(a)),
            ];
            for v in results {
                y.extend(S::to_array(v));
                y.push(S::reduce_add(v));
                y.push(S::reduce_max(v));
            }
        }
    }

    simd_fn! {
        fn through_bf16<S>(rounded: &mut Vec<bf16>, words: &mut Vec<f32>, a: &[f32; LANES], b: &[f32; LANES]) {
            let mut to = [bf16::ZERO; LANES];
            S::store_bf16(to.as_mut_ptr(), S::load(a.as_ptr()));
            rounded.extend(to);
            S::store_bf16_part(to.as_mut_ptr(), S::load_bf16_part(to.as_ptr(), 5), 7);
            rounded.extend(to);
            let pairs = S::to_array(S::pair(S::load(a.as_ptr()), S::load(b.as_ptr())));
            let [first, second] = [S::load_first(pairs.as_ptr()), S::load_second(pairs.as_ptr())];
            let dots = S::dot_pairs(pairs[3], pairs.as_ptr(), S::load(b.as_ptr()));
            words.extend(S::to_array(S::round_bf16(S::load(a.as_ptr()))));
            let again = S::to_array(S::pair_rounded(first, second));
            assert_eq!(again.map(f32::to_bits), pairs.map(f32::to_bits));
            for v in [first, second, S::load_bf16(to.as_ptr()), dots] {
                words.extend(S::to_array(v));
            }
        }
    }

    simd_fn! {
        fn transposed<S>(y: &mut Vec<f32>, x: &[f32; LANES * LANES]) {
            let rows = std::array::from_fn(|row| S::load(x.as_ptr().add(row * LANES)));
            for column in S::transpose(rows) {
                y.extend(S::to_array(column));
            }
        }
    }

    #[test]
    fn columns_become_rows() {
        let x: [f32; LANES * LANES] = std::array::from_fn(|i| i as f32);
        for isa in Isa::available() {
            let mut y = Vec::new();
            transposed(isa, &mut y, &x);
            let want: Vec<f32> =
                (0..LANES * LANES).map(|i| (i % LANES * LANES + i / LANES) as f32).collect();
            assert_eq!(y, want, "{isa}");
        }
    }

    /// Bit patterns of every exponent, both signs, halves of the last place, NaN and infinities.
    fn floats() -> impl Iterator<Item = f32> {
        let upper = (0..=u16::MAX).step_by(3);
        upper.flat_map(|upper| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff]
                .map(|lower| f32::from_bits(u32::from(upper) << 16 | lower))
        })
    }

    #[test]
    fn bf16_is_rounded_as_the_crate_does_on_every_instruction_set() {
        let all: Vec<f32> = floats().collect();
        for isa in Isa::available() {
            for (a, b) in all.as_chunks().0.iter().zip(all.as_chunks().0.iter().skip(7)) {
                let (mut rounded, mut words) = (Vec::new(), Vec::new());
                through_bf16(isa, &mut rounded, &mut words, a, b);
                let bits = |v: &[bf16]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let [want_a, want_b] = [a, b].map(|v| v.map(bf16::from_f32));
                assert_eq!(bits(&rounded[..LANES]), bits(&want_a), "{isa}: {a:?}");
                let mut part = want_a;
                part[5..7].fill(bf16::ZERO);
                assert_eq!(bits(&rounded[LANES..]), bits(&part), "{isa}");
                let words: Vec<u32> = words.iter().map(|x| x.to_bits()).collect();
                let wide = |v: &[bf16]| v.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
                let want = [&want_a, &want_a, &want_b, &part].map(|v| wide(v)).concat();
                assert_eq!(words[..4 * LANES], want, "{isa}");
            }
        }
    }

    /// Operands and sums near one: an instruction for it may flush denormals, and NaN has many forms.
    #[test]
    fn a_dot_of_pairs_adds_the_first_product_first() {
        for isa in Isa::available() {
            let a: [f32; LANES] = std::array::from_fn(|i| 1.0 + i as f32 / 7.0);
            let b: [f32; LANES] = std::array::from_fn(|i| 3.0 - i as f32 / 5.0);
            let mut words = Vec::new();
            through_bf16(isa, &mut Vec::new(), &mut words, &a, &b);
            let [wide_a, wide_b] = [a, b].map(|v| v.map(|x| bf16::from_f32(x).to_f32()));
            for i in 0..LANES {
                let first = wide_a[3].mul_add(wide_a[i], b[i]);
                let want = wide_b[3].mul_add(wide_b[i], first);
                assert_eq!(words[4 * LANES + i].to_bits(), want.to_bits(), "{isa}, lane {i}");
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulps_of_f64() {
        let x: Vec<f32> =
            (0..200_001).map(|i| -87.3 + i as f32 * (88.0 + 87.3) / 200_000.0).collect();
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            map_exp(isa, &mut y, &x);
            for (&x, &y) in x.iter().zip(&y) {
                let exact = f64::from(x).exp();
                let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1) - exact as f32);
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * ulp,
                    "{isa}: exp({x}) = {y}, exactly {exact}"
                );
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero_and_of_zero_is_one() {
        for isa in Isa::available() {
            let mut y = [9.0; 4];
            map_exp(isa, &mut y, &[f32::NEG_INFINITY, -1000.0, 0.0, -0.0]);
            assert_eq!(y, [0.0, 0.0, 1.0, 1.0], "{isa}");
        }
    }

    #[test]
    fn every_instruction_set_yields_the_bits_of_the_portable_one() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 * 20.0 - 40.0
        };
        for _ in 0..200 {
            let (a, b): ([f32; LANES], [f32; LANES]) =
                (std::array::from_fn(|_| next()), std::array::from_fn(|_| next()));
            let mut want = Vec::new();
            all_ops(Isa::Portable, &mut want, &a, &b);
            for isa in Isa::available() {
                let mut got = Vec::new();
                all_ops(isa, &mut got, &a, &b);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&want), "{isa}");
            }
        }
    }
}
