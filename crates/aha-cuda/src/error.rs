//! What can go wrong between a launcher and a device.

/// An error of a device or of what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A device, a driver or a library that isn't there or doesn't fit.
    #[error("{what}; {remedy}")]
    Missing {
        /// What was looked for and what was found.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The device's memory is full, also with nothing kept for later.
    #[error(
        "out of memory on the device: {asked_bytes} bytes were asked for, {in_use_bytes} of {total_bytes} are in use \
         by this program; use smaller micro-batches, activation checkpointing or a shorter `max_tokens`"
    )]
    OutOfMemory {
        /// Bytes of the request.
        asked_bytes: usize,
        /// Bytes of the program's buffers.
        in_use_bytes: usize,
        /// Bytes of the device.
        total_bytes: usize,
    },
    /// A call that failed on a device that is there. Work that was under way is lost.
    #[error("{call} failed: {code}")]
    Failed {
        /// The call.
        call: &'static str,
        /// What it returned.
        code: String,
    },
    /// A kernel that doesn't compile, which is a bug of this program or of the compiler.
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile {
        /// Name of the source.
        source_name: &'static str,
        /// What it was compiled for.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// A kernel that did what no kernel may, as its emulation found.
    #[error("{kernel}: {what}")]
    Kernel {
        /// Name of the kernel.
        kernel: String,
        /// What it did.
        what: String,
    },
}
