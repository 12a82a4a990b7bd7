//! `run.device`: where a run computes, what "auto" means, and what a CUDA device can't do yet.

use std::fmt;
use std::str::FromStr;

use aha_compute::device::FP8_CAPABILITY_MIN;

use super::auto::Room;
use super::reader::{Field, Reader, Word};
use super::sampling::SamplingWeights;
use super::source::{Node, Value};
use super::stages::{Dtype, Pipeline, StageKind};
use super::write::Out;
use crate::devices::{self, Devices};
use crate::error::Error;

/// Where tensors live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// Not chosen yet.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// CUDA devices, by their places in the driver's list; at least one, each once.
    Cuda(Vec<u32>),
}

impl Device {
    /// The numbers of the CUDA devices; none for the processor.
    pub fn numbers(&self) -> &[u32] {
        match self {
            Device::Cuda(numbers) => numbers,
            Device::Auto | Device::Cpu => &[],
        }
    }

    /// Whether tensors are on CUDA devices.
    pub fn is_cuda(&self) -> bool {
        matches!(self, Device::Cuda(_))
    }
}

const EXPECTS: &str =
    "\"auto\", \"cpu\" or \"cuda:N\", where N is a device's number, or several as in \"cuda:0,1\"";

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let wrong = || format!("expected {EXPECTS}, got \"{text}\"");
        match text {
            "auto" => return Ok(Device::Auto),
            "cpu" => return Ok(Device::Cpu),
            _ => {}
        }
        // Each device may be written with its word or without: cuda:0,1 or cuda:0,cuda:1.
        let list = text.strip_prefix("cuda:").ok_or_else(wrong)?;
        let number = |word: &str| word.trim().trim_start_matches("cuda:").parse::<u32>().ok();
        let numbers: Option<Vec<u32>> = list.split(',').map(number).collect();
        let numbers = numbers.ok_or_else(wrong)?;
        let is_twice = |(idx, number)| numbers[..idx].contains(number);
        if numbers.iter().enumerate().any(is_twice) {
            return Err(format!("\"{text}\" names a device twice"));
        }
        Ok(Device::Cuda(numbers))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

impl Field for Device {
    fn expects() -> String {
        EXPECTS.to_owned()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::String(text) = &node.value else {
            reader.wrong_type(node, path, EXPECTS);
            return base;
        };
        text.parse().unwrap_or_else(|problem| {
            let hint = "take device = \"auto\" for the first CUDA device, or the processor where there is none";
            reader.report(node.span, path, format!("`{path}`: {problem}"), Some(hint.to_owned()));
            base
        })
    }
    fn write(&self) -> Option<Out> {
        Some(Out::string(&self.to_string()))
    }
    fn words() -> Vec<Word> {
        vec![
            ("auto", " The first CUDA device that works, or the processor where there is none.\n"),
            ("cpu", " The processor.\n"),
            ("cuda:N", " The CUDA device of this number, as `aha doctor` lists them.\n"),
            (
                "cuda:N,M",
                " Several: training stages share each minibatch out to all, the first does the rest.\n",
            ),
        ]
    }
}

/// What is known of the device that a run computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// Bytes that nobody uses, or that this program can use again.
    pub free_bytes: u64,
}

impl DeviceFacts {
    /// The memory that a run has which starts now, or once nobody else uses the device.
    pub(super) fn room_bytes(&self, starts: bool) -> u64 {
        if starts { self.free_bytes } else { self.total_bytes }
    }
}

/// What was found out about where a run computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The CUDA device, if it is one.
    pub facts: Option<DeviceFacts>,
    /// Why "auto" is what it is, where that isn't plain.
    pub reasons: Vec<String>,
}

/// Replaces "auto" by what it means, in a pipeline that is in no file: `earlier` is that of the run that goes on.
pub(crate) fn settle(
    pipeline: &mut Pipeline,
    devices: &dyn Devices,
    earlier: Option<&Pipeline>,
) -> Result<(), Error> {
    if pipeline.run.device == Device::Auto {
        pipeline.run.device = meant(pipeline, devices, earlier).0;
    }
    match lacking(pipeline).into_iter().next() {
        Some(lack) if pipeline.run.device.is_cuda() => Err(Error::input_with(lack.message, HINT)),
        _ => Ok(()),
    }
}

/// What "auto" means, and why where that isn't plain.
fn meant(
    pipeline: &Pipeline,
    devices: &dyn Devices,
    earlier: Option<&Pipeline>,
) -> (Device, Vec<String>) {
    match earlier.map(|earlier| &earlier.run.device) {
        // As an earlier version wrote it, which had no other device.
        Some(Device::Auto) => (Device::Cpu, Vec::new()),
        Some(kept) => (kept.clone(), Vec::new()),
        None => chosen(pipeline, devices),
    }
}

/// Replaces "auto" by what it means, which a run that goes on keeps, and looks at the device.
pub(super) fn choose(pipeline: &mut Pipeline, room: Room<'_>, reader: &mut Reader<'_>) -> Found {
    let mut found = Found::default();
    let Some(devices) = room.devices else {
        if pipeline.run.device == Device::Auto {
            pipeline.run.device = Device::Cpu;
        }
        return found;
    };
    if pipeline.run.device == Device::Auto {
        (pipeline.run.device, found.reasons) = meant(pipeline, devices, room.earlier);
    }
    let device = pipeline.run.device.clone();
    let fp8 = |found: String| format!("`run.fp8` needs {}: {found}", fp8_devices());
    if pipeline.run.fp8 && device.numbers().is_empty() {
        let message = fp8("the run computes on the processor".to_owned());
        reader.report_at("run.fp8", message, Some(devices::FP8_HINT.to_owned()));
    }
    for number in device.numbers() {
        match facts(devices, *number) {
            Ok(facts) => {
                if pipeline.run.fp8 && facts.capability < FP8_CAPABILITY_MIN {
                    let (major, minor) = facts.capability;
                    let message = fp8(format!("{} has {major}.{minor}", facts.name));
                    reader.report_at("run.fp8", message, Some(devices::FP8_HINT.to_owned()));
                }
                // Each of several has all weights: the one with the least room counts.
                if found.facts.as_ref().is_none_or(|f| facts.free_bytes < f.free_bytes) {
                    found.facts = Some(facts);
                }
            }
            Err(error) => {
                let (message, hint) = devices::told(&device, &error);
                reader.report_at("run.device", message, Some(hint));
            }
        }
    }
    if device.numbers().len() > 1
        && let Err(error) = devices.ask_for_exchange()
    {
        let (message, hint) = devices::told(&device, &error);
        reader.report_at("run.device", message, Some(hint));
    }
    found
}

fn fp8_devices() -> String {
    let (major, minor) = FP8_CAPABILITY_MIN;
    format!("a CUDA device of compute capability {major}.{minor} or more (L40S, H100, B200)")
}

/// A pipeline that a device can't run is run on the processor, as on a machine without one.
fn chosen(pipeline: &Pipeline, devices: &dyn Devices) -> (Device, Vec<String>) {
    let (device, mut reasons) = devices::first(devices);
    match lacking(pipeline).first() {
        Some(lack) if device.is_cuda() => {
            reasons.push(format!("{device} is not used: {}", lack.message));
            (Device::Cpu, reasons)
        }
        _ => (device, reasons),
    }
}

fn facts(devices: &dyn Devices, number: u32) -> Result<DeviceFacts, aha_compute::cuda::Error> {
    let context = devices.open(number)?;
    let memory = context.driver().memory()?;
    let kept = context.stats().kept_bytes as u64;
    Ok(DeviceFacts {
        name: context.info().name.clone(),
        capability: context.info().capability,
        total_bytes: memory.total_bytes as u64,
        free_bytes: memory.free_bytes as u64 + kept,
    })
}

/// A setting that a CUDA device can't do yet.
struct Lack {
    /// The stage's index, where it is a stage's.
    stage: Option<usize>,
    /// The key.
    key: &'static str,
    message: String,
}

/// Reports what a CUDA device can't do yet, and FP8 beside another dtype than bf16.
pub(super) fn check(pipeline: &Pipeline, reader: &mut Reader<'_>) {
    if pipeline.run.fp8 && pipeline.run.dtype != Dtype::Bf16 {
        let message =
            "`run.fp8` needs `run.dtype = \"bf16\"`: what isn't multiplied in FP8 is bf16";
        let hint = "add dtype = \"bf16\" to [run], or leave fp8 out";
        reader.report_at("run.fp8", message.to_owned(), Some(hint.to_owned()));
    }
    if !pipeline.run.device.is_cuda() {
        return;
    }
    for lack in lacking(pipeline) {
        let path = match lack.stage {
            Some(idx) => {
                format!("{}.{}", super::local::stage_path(pipeline, idx, reader), lack.key)
            }
            None => lack.key.to_owned(),
        };
        reader.report_at(&path, lack.message, Some(HINT.to_owned()));
    }
}

/// The remedy.
const HINT: &str = "leave the key out, or compute on the processor with device = \"cpu\"";

fn lacking(pipeline: &Pipeline) -> Vec<Lack> {
    let mut found = Vec::new();
    let run = &pipeline.run;
    if run.kv_dtype != Dtype::F32 && run.dtype == Dtype::F32 {
        let message = "on a CUDA device keys and values are kept as `run.dtype`, and `run.kv_dtype` is another one";
        found.push(Lack { stage: None, key: "run.kv_dtype", message: message.to_owned() });
    }
    for (idx, stage) in pipeline.stages.iter().enumerate() {
        for (key, what) in lacking_of(&stage.kind) {
            let message = format!(
                "stage `{}`: `{key}`: {what} can't be computed on a CUDA device yet",
                stage.name
            );
            found.push(Lack { stage: Some(idx), key, message });
        }
    }
    found
}

/// Keys of a stage, and what they ask for.
fn lacking_of(kind: &StageKind) -> Vec<(&'static str, &'static str)> {
    let int8 = "sampling from int8 weights";
    match kind {
        StageKind::Rl(stage) => {
            let is_int8 = stage.sampling.weights == SamplingWeights::Int8;
            let is_ahead = stage.max_staleness > 0 && stage.lora.is_some();
            [
                is_int8.then_some(("sampling.weights", int8)),
                is_ahead.then_some(("lora", "adapters with `max_staleness` above 0")),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
        StageKind::Sample(stage) if stage.sampling.weights == SamplingWeights::Int8 => {
            vec![("sampling.weights", int8)]
        }
        StageKind::Eval(stage) if stage.weights == SamplingWeights::Int8 => {
            vec![("weights", int8)]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:2,0"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:0,cuda:1".parse::<Device>().unwrap(), Device::Cuda(vec![0, 1]));
        for text in ["", "gpu", "cuda", "cuda:", "cuda:x", "cuda:1,1", "cuda:-1", "cuda:0,"] {
            let problem = text.parse::<Device>().unwrap_err();
            assert!(problem.contains(text), "{problem}");
        }
    }
}
