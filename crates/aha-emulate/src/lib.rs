//! Runs CUDA kernels on the processor, for tests.
//!
//! # Map
//! - [`Emulated`]: the driver; start here. `emulate.h` has blocks, threads, barriers and collectives of warps.
//! - `link`: what devices send each other.
//! - `library`: a `.cu` source compiled by g++ and loaded.
//! - `product`: matrix products in plain loops.
//!
//! # Invariants
//! - Kernels are the same sources that a device's compiler gets.
//! - What a kernel may not do is an error or a failed check: divergent barriers, misaligned vectors, arguments that
//!   are not its parameters, writes around a buffer. Fresh memory holds NaNs.
//! - Nothing of this is part of the program: other crates use it in tests only.

mod device;
mod library;
mod link;
mod product;

pub use device::{Calls, Emulated, ORDERS, Order};
pub use product::Sums;
