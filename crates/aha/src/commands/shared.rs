//! What several commands take or do.

use std::path::PathBuf;

use aha_compute::{Dtype, WeightForm};
use aha_flow::pipeline::{ByteSize, Device, Plan, Reward, Run, Template, Thinking, parse_thinking};
use aha_flow::{devices, planning};
use aha_reward::{NoBackends, Spec, Verifier, Written};
use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::report::{misuse, misused};
use crate::text;

/// A warning where a stage will want more memory than this machine has, or than its control group allows.
pub fn memory_warning(plan: &Plan) -> Option<String> {
    let machine = aha_flow::machine::memory();
    let has_bytes = machine.total_bytes.into_iter().chain(machine.limit_bytes).min()?;
    let (stage, memory) = plan.peak()?;
    (memory.total_bytes() > has_bytes).then(|| {
        format!(
            "warning: stage `{}` will want {} of memory, and this machine has {}; lower \
             `micro_batch_tokens`, `run.kv_cache` or `run.query_memory`, or set `activation_checkpointing`",
            stage.name,
            text::size(memory.total_bytes()),
            text::size(has_bytes)
        )
    })
}

/// A warning where a stage will want more of a device's memory than is free there now.
pub fn device_warning(plan: &Plan) -> Option<String> {
    let (stage, memory) = plan.device_peak()?;
    let free_bytes = plan.device.facts.as_ref()?.free_bytes;
    (memory.total_bytes() > free_bytes).then(|| {
        format!(
            "warning: stage `{}` will want {} of the memory of {}, of which {} are free now",
            stage.name,
            text::size(memory.total_bytes()),
            plan.device_text(),
            text::size(free_bytes)
        )
    })
}

/// A model, and what computes with it.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model: a Hugging Face directory, a .gguf file, or hf://owner/name in the local cache.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Threads that compute; 0 takes every core. Results do not depend on it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=256))]
    pub threads: u32,
}

/// Where a pipeline computes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RunOn {
    /// What computes, auto, cpu or cuda:N: overrides the key `run.device` of the pipeline.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Device>,
}

impl RunOn {
    /// The overrides of a command line, with this as one of them.
    pub fn sets(&self, sets: &[String]) -> Vec<String> {
        let device = self.device.iter().map(|device| format!("run.device=\"{device}\""));
        sets.iter().cloned().chain(device).collect()
    }
}

/// What models compute with.
#[derive(clap::Args)]
pub struct Precision {
    /// What the model computes with, f32 or bf16: as the key `run.dtype` of a pipeline.
    #[arg(long, value_name = "DTYPE", default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What computes: auto for the first CUDA device that works, or the processor where there is none; cpu; or cuda:N
    /// for a device by its number in `aha doctor`.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub device: Device,
}

impl Precision {
    /// The keys of a run that say the same.
    pub fn run(&self, threads: u32) -> Run {
        let (dtype, device) = (self.dtype.into(), self.device.clone());
        Run { threads, dtype, device, ..Run::default() }
    }
}

/// How long the model thinks.
#[derive(clap::Args)]
pub struct ThinkingArgs {
    /// How long the model thinks ahead of its answer (budget forcing): a table of the keys of `thinking` in a
    /// pipeline, such as '{ max_tokens = 512, waits = 2 }'. By default as long as it wants.
    #[arg(long, value_name = "TABLE", value_parser = parse_thinking)]
    pub thinking: Option<Thinking>,
}

/// What weights are multiplied as when tokens are drawn.
#[derive(clap::Args)]
pub struct Drawing {
    /// What weights are multiplied as, same or int8: as the key `sampling.weights` of a pipeline. With int8 they are
    /// rounded, so that a decoding step reads less: what is drawn is then another model's, near this one.
    #[arg(long, value_name = "FORM", default_value_t = WeightForm::Same)]
    pub weights: WeightForm,
}

impl ModelArgs {
    /// Where the model is.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        located(&self.model)
    }

    /// What computes, with weights that are multiplied so.
    pub fn device(
        &self,
        precision: &Precision,
        weights: WeightForm,
    ) -> anyhow::Result<aha_compute::Device> {
        opened(&precision.run(self.threads), weights)
    }
}

/// What computes, by the keys of a run. A CUDA device can't multiply with int8 weights.
pub fn opened(run: &Run, weights: WeightForm) -> anyhow::Result<aha_compute::Device> {
    let mut run = run.clone();
    if weights == WeightForm::Int8 {
        if run.device.is_cuda() {
            return Err(misuse(
                format!(
                    "a CUDA device can't multiply with int8 weights, and --device is {}",
                    run.device
                ),
                "leave --weights out, or compute on the processor with --device cpu",
            ));
        }
        run.device = Device::Cpu;
    }
    let device = devices::open(&*devices::of_machine(), &run).map_err(misused)?;
    if let Some(context) = device.context() {
        tracing::info!(device = context.info().name, "Models are on a CUDA device.");
    }
    Ok(device)
}

/// Where the model is that is called so: a path, or hf://owner/name.
pub fn located(model: &str) -> anyhow::Result<PathBuf> {
    planning::places()
        .locate(model)
        .map_err(|found| misuse(found.message, hint_without_pipeline(&found.hint)))
}

/// The part of a hint that holds without a pipeline file as well.
fn hint_without_pipeline(hint: &str) -> &str {
    hint.split("; a model made from").next().unwrap_or(hint)
}

/// Reads a template: a name, or a text with `{prompt}` in it.
pub fn template(text: &str) -> Result<Template, String> {
    match text {
        "raw" => Ok(Template::Raw),
        "r1-zero" => Ok(Template::R1Zero),
        "chat" => Ok(Template::Chat),
        _ if text.matches("{prompt}").count() == 1 => Ok(Template::Text(text.to_owned())),
        _ => Err("expected raw, chat, r1-zero, or a text with {prompt} in it once".to_owned()),
    }
}

/// The verifier of a reward; refuses one whose settings are wrong or missing.
pub fn verifier(spec: &Spec) -> anyhow::Result<Box<dyn Verifier>> {
    spec.resolve(&NoBackends).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        misuse(
            format!("the reward `{}` can't be used so: {}", spec.kind(), problems.join("; ")),
            "give its keys as in a pipeline, such as --reward '{ kind = \"length\", max_tokens = 99 }'",
        )
    })
}

/// What ranks completions; refuses one whose settings are wrong or missing. The models that it asks are looked for
/// where it is used.
pub fn ranker(written: Written) -> anyhow::Result<Reward> {
    let reward = Reward(written.spec.named());
    let problems: Vec<String> = reward.problems().iter().map(ToString::to_string).collect();
    if problems.is_empty() {
        return Ok(reward);
    }
    Err(misuse(
        format!("the reward `{}` can't rank so: {}", reward.0.kind(), problems.join("; ")),
        "give its keys as in a pipeline, such as --rank-by '{ kind = \"model\", model = \"DIR\" }'",
    ))
}

/// What is left free on the disk of a run directory, if nobody says otherwise: enough for logs and for other programs
/// to end in order.
pub const DISK_RESERVE: &str = "64MiB";

/// A size in bytes.
pub fn size(text: &str) -> Result<ByteSize, String> {
    ByteSize::parse(text).ok_or_else(|| "write a size such as 64MiB".to_owned())
}

/// A count of at least one.
pub fn at_least_one() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// Completions per prompt, as a pipeline bounds them.
pub fn completion_count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=65_536)
}

/// Fails for settings out of range, before a model is loaded.
pub fn check_sampling(
    sampling: &aha_flow::pipeline::Sampling,
    thinking: Option<&Thinking>,
) -> anyhow::Result<()> {
    let sampling = aha_sample::Sampling {
        temperature: sampling.temperature as f32,
        top_p: sampling.top_p as f32,
        top_k: sampling.top_k as usize,
        max_tokens: sampling.max_tokens as usize,
        stop: sampling.stop.clone(),
        stop_token_ids: Vec::new(),
        thinking: thinking.map(Thinking::resolved),
        weights: sampling.weights.into(),
    };
    sampling.check().map_err(misused)
}

/// The async runtime.
pub fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("can't start the async runtime")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_reward::Kind;

    #[test]
    fn a_template_is_a_name_or_a_text_with_one_place_for_the_prompt() {
        assert_eq!(template("r1-zero"), Ok(Template::R1Zero));
        assert_eq!(template("Q: {prompt}\nA:"), Ok(Template::Text("Q: {prompt}\nA:".to_owned())));
        assert!(template("r1zero").is_err());
        assert!(template("{prompt}{prompt}").is_err());
    }

    #[test]
    fn settings_that_are_missing_are_told() {
        let error = verifier(&Spec::new(Kind::Length)).err().unwrap().to_string();
        assert!(error.contains("`max_tokens` must be given"), "{error}");
    }
}
