//! Devices of one process that read each other's memory.

use std::fmt;
use std::sync::Arc;

use crate::{Driver, Error, Ptr, Stream};

/// A part of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Bytes that another rank receives.
    Send {
        /// Where they are on this device.
        from: Ptr,
        /// How many.
        bytes: usize,
        /// Who receives them.
        to_rank: usize,
    },
    /// Bytes that another rank sends.
    Receive {
        /// Where they go on this device.
        to: Ptr,
        /// How many.
        bytes: usize,
        /// Who sends them.
        from_rank: usize,
    },
}

/// What one of several devices reaches the others by. A rank is a device's place among them.
pub trait Link: fmt::Debug + Send + Sync {
    /// Asks for transfers, which are done together and in their place on this device's stream. All ranks call this,
    /// each from a thread of its own; what one sends to another that one receives in its call, in the same order, as
    /// many bytes.
    ///
    /// # Safety
    /// There are so many bytes at each address, and no transfer's memory is written by another one.
    unsafe fn exchange(&self, transfers: &[Transfer], stream: Stream) -> Result<(), Error>;

    /// Ends what is under way on all ranks, which is lost. From then on every exchange fails.
    fn abort(&self);
}

/// Connects devices of one kind; links in their order.
pub fn connect(drivers: &[Arc<dyn Driver>]) -> Result<Vec<Arc<dyn Link>>, Error> {
    match drivers.first() {
        Some(first) => first.connect(drivers),
        None => Ok(Vec::new()),
    }
}
