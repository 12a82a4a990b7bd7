//! The device that is looked at, and the processor that it is held against.

use std::sync::Arc;

use aha_compute::cuda::nvidia::Nvidia;
use aha_compute::cuda::{Context, Driver};
use aha_compute::{Device, Dtype};

use crate::Error;

/// A device, and threads of the processor.
#[derive(Clone, Debug)]
pub struct Subject {
    driver: Arc<dyn Driver>,
    host: Device,
}

impl Subject {
    /// NVIDIA's device of this number, and so many threads, where 0 means all cores.
    pub fn nvidia(number: u32, threads: usize) -> Result<Subject, Error> {
        Ok(Subject::new(Arc::new(Nvidia::open(number)?), threads))
    }

    /// What this driver drives.
    pub fn new(driver: Arc<dyn Driver>, threads: usize) -> Subject {
        Subject { driver, host: Device::cpu(threads) }
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The processor.
    pub(crate) fn host(&self, dtype: Dtype) -> Device {
        self.host.clone().with_dtype(dtype)
    }

    /// The device, with memory of its own, on which nothing has failed yet.
    pub(crate) fn device(&self, dtype: Dtype) -> Device {
        self.host(dtype).with_context(self.context())
    }

    /// The device's memory and its first stream.
    pub(crate) fn context(&self) -> Context {
        Context::new(Arc::clone(&self.driver))
    }
}
