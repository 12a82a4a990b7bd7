//! What computes: the processor, or a CUDA device beside it.

use aha_compute::{Device, Dtype};
use aha_flow::devices;
use serde::{Deserialize, Serialize};

use super::row::Row;
use crate::commands::doctor::device::number;
use crate::report::misuse;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(u32),
}

/// Reads `cpu` or `cuda:0`.
pub fn place(text: &str) -> Result<Place, String> {
    match text {
        "cpu" => Ok(Place::Cpu),
        _ => number(text).map(Place::Cuda).map_err(|_| "expected cpu or cuda:N".to_owned()),
    }
}

/// A device that is open.
#[derive(Clone)]
pub struct Open {
    /// What tensors are made for.
    pub device: Device,
}

impl Place {
    /// Opens it.
    pub fn open(self, threads: usize, dtype: Dtype) -> anyhow::Result<Open> {
        let device = Device::cpu(threads).with_dtype(dtype);
        let Place::Cuda(number) = self else { return Ok(Open { device }) };
        let context = devices::of_machine().open(number).map_err(|error| {
            misuse(format!("no CUDA device: {error}"), "`aha doctor` says what was found")
        })?;
        Ok(Open { device: device.with_context(context) })
    }
}

impl Open {
    /// Waits for all that was asked of the device. Fails if any of it did.
    pub fn wait(&self) -> anyhow::Result<()> {
        if let Some(context) = self.device.context() {
            context.synchronize()?;
        }
        Ok(self.device.check()?)
    }

    /// The name of a CUDA device.
    pub fn name(&self) -> Option<&str> {
        self.device.context().map(|context| context.info().name.as_str())
    }

    /// Adds the most memory that was in use there at once.
    pub fn add_memory(&self, row: &mut Row) {
        if let Some(context) = self.device.context() {
            row.add("peak_device_bytes", context.stats().in_use_bytes_max as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_by_its_name() {
        assert_eq!((place("cpu"), place("cuda:1")), (Ok(Place::Cpu), Ok(Place::Cuda(1))));
        assert!(place("gpu").is_err());
    }
}
