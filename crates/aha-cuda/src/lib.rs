//! A narrow driver for NVIDIA devices, with everything above it written once.
//!
//! # Map
//! - [`driver`]: the trait [`Driver`] and what it is told: launches, products, streams; start here.
//! - [`nvidia`]: the driver of a real device, through libraries that are loaded at run time.
//! - [`nvrtc`]: from `.cu` sources to machine code; [`cache`] keeps that on disk.
//! - [`context`]: a driver with a stream and memory; [`Buffer`]s and [`View`]s of them.
//! - [`pool`]: the allocator: blocks that are freed are used again.
//! - [`link`]: what several devices send each other; [`meeting`]: where their threads wait for each other.
//! - [`probes`]: which products of few rows have the library's bits by another kernel too.
//! - [`source`]: the sources of kernels and the header that all of them include.
//! - [`doctor`]: what of all this is there on a machine, without a panic.
//!
//! The other implementation of [`Driver`] is `aha-emulate`, which runs the same sources on the processor. It is for
//! tests: launchers, and all that is built of them, run on either.
//!
//! # Invariants
//! - Building needs nothing of CUDA. Whether a library is there is asked before anything of it is called.
//! - Work on one stream happens in the order in which it was asked for.
//! - A launch is a pure function of shapes; what it is, is checked against the device's limits before it is made.

pub mod cache;
pub mod context;
pub mod doctor;
pub mod driver;
pub mod error;
pub mod link;
pub mod meeting;
pub mod nvidia;
pub mod nvrtc;
pub mod pool;
pub mod probes;
pub mod source;

pub use context::{Buffer, Captured, Context, Element, Pinned, View, ViewMut, Workspace};
pub use driver::{Arg, Driver, Info, Kind, Launch, Limits, Operand, Plan, Product, Ptr, Stream};
pub use error::Error;
pub use link::{Link, Transfer};
pub use meeting::Meeting;
pub use probes::{Agreement, FewRows, Probes};
pub use source::Source;
