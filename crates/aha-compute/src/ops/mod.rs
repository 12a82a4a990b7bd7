//! The coarse ops, one module each: table of buffers, formula, scalar reference, kernels, gradient check.
//!
//! Gradients of weights are added to (`+=`), since micro-batches accumulate; what an op saves for its
//! backward pass is written (`=`). Shape letters: `T` rows (tokens), `C` width, `N` outputs of a matmul,
//! `V` vocabulary, `H` heads, `D` width of a head.

pub mod adamw;
pub mod attention;
pub mod cuda;
pub mod draw;
pub mod embedding;
pub mod grad_norm;
pub mod lm_head;
pub mod lora;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

#[cfg(test)]
pub(crate) mod check;

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A float that the scalar references are written over: `f32` to compare kernels with, `f64` for the
/// gradient checks.
pub trait Real:
    Copy
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// From `f64`, rounded.
    fn of(x: f64) -> Self;
    /// To `f64`, exactly.
    fn f64(self) -> f64;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `e^self`.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            fn of(x: f64) -> $t {
                x as $t
            }
            fn f64(self) -> f64 {
                self as f64
            }
            fn mul_add(self, a: $t, b: $t) -> $t {
                <$t>::mul_add(self, a, b)
            }
            fn exp(self) -> $t {
                <$t>::exp(self)
            }
            fn ln(self) -> $t {
                <$t>::ln(self)
            }
            fn sqrt(self) -> $t {
                <$t>::sqrt(self)
            }
        }
    };
}
real!(f32);
real!(f64);
