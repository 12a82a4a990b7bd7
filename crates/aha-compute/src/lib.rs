//! Tensors on a device and the coarse ops that decoder models are made of, each with forward and backward.
//!
//! # Map
//! - [`simd`]: sixteen `f32` lanes with one meaning on AVX-512, AVX2 and plain Rust; start here.
//! - [`device`]: a processor with its instruction set, its threads and its recycled buffers.
//! - [`tensor`]: memory that a device owns.
//! - [`ops`]: one module per op: maths, scalar reference, kernels, gradient check.
//! - [`tape`]: records ops in the forward pass and plays them backwards.
//! - [`params`]: named weights, their gradients and optimizer state.
//! - [`peers`]: several devices that learn together, and in which order their gradients are added.
//! - [`cuda`]: the driver of NVIDIA devices, whose kernels are `.cu` files beside their ops; `ops::cuda` is shared.
//! - [`step`]: a sampler's forward pass on a device, whose lists go there at once ([`staging`]); [`graphs`]: work there
//!   that is captured once and done again at one call.
//! - [`random`]: counter-based random numbers, addressed and never consumed.
//! - [`profile`]: where the time of a computation goes, op by op. [`measure`]: what the machine can reach.
//!
//! # Invariants
//! - An output element is summed in an order that depends on its own contraction length alone: not on
//!   how many rows share the call, on threads, on the instruction set, or on whether the caller is
//!   prefilling, decoding or learning.
//! - Threads split outputs, never sums.
//! - This crate knows no tokens, no Arrow and no actors.

pub mod device;
pub mod error;
pub mod graphs;
pub mod measure;
pub mod ops;
pub mod params;
pub mod peers;
mod pool;
pub mod profile;
pub mod random;
pub mod simd;
pub mod staging;
pub mod step;
pub mod tape;
pub mod tensor;

pub use aha_cuda as cuda;
pub use device::Device;
pub use error::Error;
pub use params::{Grads, ParamId, Params, WeightForm};
pub use tape::{Adapter, Rows, Tape, Var};
pub use tensor::{Dtype, Tensor};
