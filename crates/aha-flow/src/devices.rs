//! CUDA devices: which there are, and opening one.
//!
//! A process opens a device once: whoever asks for it again shares its memory. Nothing of CUDA is looked for unless a
//! device is asked for, by its number or by "auto".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aha_compute::Device;
use aha_compute::cuda::{self, nvidia, nvrtc};

use crate::compute;
use crate::error::{Error, Result};
use crate::pipeline::{self, Run};

/// Opens CUDA devices.
pub trait Devices: fmt::Debug + Send + Sync {
    /// How many there are; 0 where there is no driver.
    fn count(&self) -> u32;

    /// Opens a device with all that computing on it takes, or gives the one that is open.
    fn open(&self, number: u32) -> Result<cuda::Context, cuda::Error>;

    /// Whether several can exchange what they compute; what is missing if not.
    fn ask_for_exchange(&self) -> Result<(), cuda::Error>;
}

/// Those of this machine.
pub fn of_machine() -> Arc<dyn Devices> {
    Arc::new(Machine)
}

/// NVIDIA's, by their driver.
#[derive(Debug)]
struct Machine;

/// What is open in this process.
static OPEN: Mutex<BTreeMap<u32, cuda::Context>> = Mutex::new(BTreeMap::new());

impl Devices for Machine {
    fn count(&self) -> u32 {
        nvidia::device_count().unwrap_or(0)
    }

    fn open(&self, number: u32) -> Result<cuda::Context, cuda::Error> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = open.get(&number) {
            return Ok(context.clone());
        }
        let driver = nvidia::Nvidia::open(number)?;
        nvrtc::version()?;
        nvidia::ask_for_products()?;
        let context = cuda::Context::new(Arc::new(driver));
        open.insert(number, context.clone());
        Ok(context)
    }

    fn ask_for_exchange(&self) -> Result<(), cuda::Error> {
        nvidia::ask_for_exchange()
    }
}

/// Devices that a test has in place of the machine's.
#[derive(Debug, Default)]
pub struct Given(pub Vec<cuda::Context>);

impl Devices for Given {
    fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    fn open(&self, number: u32) -> Result<cuda::Context, cuda::Error> {
        self.0.get(number as usize).cloned().ok_or_else(|| cuda::Error::Missing {
            what: format!("there is no device `cuda:{number}`"),
            remedy: "name one that is there".to_owned(),
        })
    }

    fn ask_for_exchange(&self) -> Result<(), cuda::Error> {
        Ok(())
    }
}

/// What "auto" means here: the first device that can be opened, or the processor; and why each before it can't.
pub fn first(devices: &dyn Devices) -> (pipeline::Device, Vec<String>) {
    let mut reasons = Vec::new();
    for number in 0..devices.count() {
        match devices.open(number) {
            Ok(_) => return (pipeline::Device::Cuda(vec![number]), reasons),
            Err(error) => reasons.push(format!("cuda:{number} is not used: {error}")),
        }
    }
    (pipeline::Device::Cpu, reasons)
}

/// What computes, by `run.threads`, `run.device`, `run.dtype`, `run.kv_dtype` and `run.fp8`; "auto" is the first that
/// works. For what computes on one device only.
pub fn open(devices: &dyn Devices, run: &Run) -> Result<Device> {
    match open_all(devices, run)? {
        (device, others) if others.is_empty() => Ok(device),
        _ => Err(Error::input_with(SEVERAL, SEVERAL_HINT)),
    }
}

/// As [`open`]: the device that does everything, and others that train with it.
pub fn open_all(devices: &dyn Devices, run: &Run) -> Result<(Device, Vec<Device>)> {
    let wanted = match &run.device {
        pipeline::Device::Auto => first(devices).0,
        wanted => wanted.clone(),
    };
    let threads = compute::threads(run.threads);
    let of_run = |device: Device| {
        let device = device.with_dtype(run.dtype.into()).with_kv_dtype(run.kv_dtype.into());
        let fp8 = |error: aha_compute::Error| Error::input_with(error.to_string(), FP8_HINT);
        if run.fp8 { device.with_fp8().map_err(fp8) } else { Ok(device) }
    };
    let open = |number: &u32, threads: usize| {
        let context = devices.open(*number).map_err(|error| missing(&wanted, &error))?;
        of_run(Device::cpu(threads).with_context(context))
    };
    let [first, others @ ..] = wanted.numbers() else {
        return Ok((of_run(Device::cpu(threads))?, Vec::new()));
    };
    let first = open(first, threads)?;
    if !others.is_empty() {
        devices.ask_for_exchange().map_err(|error| missing(&wanted, &error))?;
    }
    // What the host does for one of several devices is little.
    let others = others.iter().map(|number| open(number, 1)).collect::<Result<_>>()?;
    Ok((first, others))
}

/// A device for work that is done beside what `device` does, with so many threads.
pub fn beside(device: &Device, threads: usize) -> Result<Device> {
    device.beside(threads).map_err(|error| Error::Environment {
        message: format!("the device has no room for more work: {error}"),
    })
}

/// What is said where several devices are asked for, and one can be used.
const SEVERAL: &str =
    "this computes on one device, and several are named: only a run's training stages use more";
/// The remedy.
const SEVERAL_HINT: &str = "name one, such as \"cuda:0\"";

/// What to do where FP8 is asked for and can't be.
pub(crate) const FP8_HINT: &str =
    "leave `run.fp8` out, or compute on a device that multiplies in FP8";

/// A device that can't be opened.
fn missing(wanted: &pipeline::Device, error: &cuda::Error) -> Error {
    let (message, hint) = told(wanted, error);
    Error::input_with(message, hint)
}

/// What is missing, and what to do about it.
pub(crate) fn told(wanted: &pipeline::Device, error: &cuda::Error) -> (String, String) {
    let doctor = "`aha doctor` says what was found; device = \"cpu\" computes on the processor";
    match error {
        cuda::Error::Missing { what, remedy } => {
            (format!("can't compute on `{wanted}`: {what}"), format!("{remedy}; {doctor}"))
        }
        error => (format!("can't compute on `{wanted}`: {error}"), doctor.to_owned()),
    }
}
