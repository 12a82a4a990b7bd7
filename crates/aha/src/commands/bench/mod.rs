//! `aha bench`: what this machine reaches, and how far each part of the program is from it.
//!
//! # Map
//! - [`run`]: which kinds in which order; start here.
//! - `subject`: the model that is measured: one of the user's, or random weights of a known shape.
//! - `job`: one configuration, measured in a child process, so that its peak of memory is its own.
//! - `limits`: the machine's peaks, taken around each job, and the FLOPs of a model. `needs`: what a job takes.
//! - `row`: figures of a configuration, as JSON and as a table. `profile`: its time by op.
//! - `place`: what computes, the processor or a CUDA device.
//! - A module per kind: `peak`, `matmul`, `attention`, `train` (and log-probs), `decode`, `grpo`, `growth`, `start`,
//!   `overlap`.

mod attention;
mod decode;
mod growth;
mod grpo;
mod job;
mod limits;
mod matmul;
mod needs;
mod overlap;
mod peak;
mod place;
mod profile;
mod row;
mod start;
mod subject;
mod train;

use std::cell::OnceCell;

use aha_compute::{Device, Dtype, WeightForm};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::job::{Job, Work};
use self::limits::Limits;
use self::needs::Needs;
use self::place::{Open, Place};
use self::row::Row;
use self::subject::{Shape, Subject};
use super::doctor::machine;
use super::shared::at_least_one;
use crate::report::misuse;
use crate::screen::{self, Screen};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// The machine's peaks: arithmetic on registers, memory read and copied; with one thread and with all.
    Peak,
    /// Products of named shapes, forward and both ways back.
    Matmul,
    /// Attention over packed sequences, forward and backward.
    Attention,
    /// A training step: forward, backward, AdamW.
    Train,
    /// Log-probs of every token: the forward pass alone.
    Logprob,
    /// Sampling of many sequences, and of one; prefill and draws included.
    Decode,
    /// A whole GRPO step: sampling, reference log-probs, training; without KL and with it.
    Grpo,
    /// From the start of the program to the first sampled token.
    Start,
    /// Tokens per second by length of context, number of sequences and size of model. Takes long.
    Growth,
    /// Steps per second of a stage `rl` whose sampler runs ahead of its learner, where both only wait. Takes a while.
    Overlap,
}

impl Kind {
    /// What is measured where nothing is named: all of the model that doesn't take long.
    const DEFAULT: [Kind; 7] = [
        Kind::Peak,
        Kind::Matmul,
        Kind::Train,
        Kind::Logprob,
        Kind::Decode,
        Kind::Grpo,
        Kind::Start,
    ];

    /// What is measured on a CUDA device where nothing is named.
    const ON_CUDA: [Kind; 6] =
        [Kind::Peak, Kind::Matmul, Kind::Attention, Kind::Train, Kind::Decode, Kind::Grpo];

    fn name(self) -> &'static str {
        match self {
            Kind::Peak => "peak",
            Kind::Matmul => "matmul",
            Kind::Attention => "attention",
            Kind::Train => "train",
            Kind::Logprob => "logprob",
            Kind::Decode => "decode",
            Kind::Grpo => "grpo",
            Kind::Start => "start",
            Kind::Growth => "growth",
            Kind::Overlap => "overlap",
        }
    }
}

/// What a model computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Precision {
    /// Single precision.
    F32,
    /// Weights and activations in bf16, sums in f32.
    Bf16,
}

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        }
    }
}

/// What weights are multiplied as while tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Weights {
    /// As `--dtype` says.
    Same,
    /// int8 with a scale for each output.
    Int8,
}

impl Weights {
    fn form(self) -> WeightForm {
        match self {
            Weights::Same => WeightForm::Same,
            Weights::Int8 => WeightForm::Int8,
        }
    }
}

/// Sequences of equal length, as `8x256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sequences {
    count: usize,
    len_tokens: usize,
}

impl Sequences {
    fn tokens(self) -> usize {
        self.count * self.len_tokens
    }
}

impl std::fmt::Display for Sequences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.count, self.len_tokens)
    }
}

/// Reads `8x256`.
fn sequences(text: &str) -> Result<Sequences, String> {
    let number = |text: &str| text.parse().ok().filter(|n| (1..=1 << 20).contains(n));
    let parts = text.split_once('x').and_then(|(a, b)| Some((number(a)?, number(b)?)));
    match parts {
        Some((count, len_tokens)) if len_tokens >= 2 => Ok(Sequences { count, len_tokens }),
        _ => Err("expected sequences x tokens of each, at least 2, such as 8x256".to_owned()),
    }
}

/// The flags of `aha bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Each configuration of train, logprob, decode, grpo and growth is measured in a process of its own. Figures are \
medians. Text is made of random token ids, the same at each call. Shares are of the machine's own peaks, taken \
right before and after, since others may use it as well; of arithmetic by 6 FLOPs per token and parameter (embedding \
lookups left out; 2 where nothing is trained) and those of causal attention.")]
pub struct Args {
    /// What to measure; by default everything but growth and overlap.
    #[arg(value_enum, value_name = "WHAT")]
    what: Vec<Kind>,
    /// The model: a Hugging Face directory, a .gguf file, or hf://owner/name in the local cache.
    #[arg(long, value_name = "DIR", conflicts_with = "shape_of")]
    model: Option<String>,
    /// Without --model: random weights of this shape.
    #[arg(long, value_enum, value_name = "SHAPE", default_value = "smollm2-135m")]
    shape_of: Shape,
    /// What computes: cpu, or cuda:N for a CUDA device by its number in `aha doctor`. There decode measures 1, 16, 64
    /// and 256 sequences, and start, growth and overlap are not measured.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = place::place)]
    device: Place,
    /// Threads that compute; 0 takes every core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=256))]
    threads: u32,
    /// What the model computes with: as the key `run.dtype` of a pipeline.
    #[arg(long, value_enum, value_name = "DTYPE", default_value = "f32")]
    dtype: Precision,
    /// For decode, grpo and growth: what weights are multiplied as while tokens are drawn, as the key
    /// `sampling.weights` of a pipeline.
    #[arg(long, value_enum, value_name = "FORM", default_value = "same")]
    weights: Weights,
    /// Runs of each configuration, after one that doesn't count.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one())]
    runs: u32,
    /// A configuration makes no further run after so many seconds; one it always makes.
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = at_least_one())]
    seconds_max: u32,
    /// For train and logprob: sequences x tokens of each. Can be repeated; by default 8x256 and 4x512.
    #[arg(long, value_name = "NxT", value_parser = sequences)]
    shape: Vec<Sequences>,
    /// For train, logprob and grpo: most tokens that run through the model at once.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one())]
    micro_batch_tokens: u32,
    /// For train and grpo: keep only each layer's inputs and compute the rest again.
    #[arg(long)]
    activation_checkpointing: bool,
    /// For decode and grpo: prompts.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one())]
    prompts: u32,
    /// For decode and grpo: completions of each prompt.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one())]
    samples: u32,
    /// For decode and grpo: tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one())]
    prompt_tokens: u32,
    /// For decode and grpo: tokens of a completion.
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// For overlap: milliseconds that sampling a step's groups waits, and that training on them does.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = at_least_one())]
    unit_ms: u32,
    /// For overlap: steps of each run.
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=10_000))]
    steps: u32,
    /// For matmul, attention and growth: only rows whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Show time by op, and how far each op is from what the machine allows. Costs a run more.
    #[arg(long)]
    profile: bool,
    /// Print figures as JSON.
    #[arg(long)]
    json: bool,
    /// Measure one configuration, given as JSON, in this process: what `aha bench` calls itself with.
    #[arg(long, hide = true, value_name = "JSON")]
    job: Option<String>,
}

/// What every kind needs.
struct Bench<'a> {
    args: &'a Args,
    subject: Subject,
    open: Open,
    /// Of a CUDA device, which nobody shares: taken once.
    limits: OnceCell<Limits>,
    screen: &'a Screen,
}

/// Measures what is asked for, and prints it.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    if let Some(job) = &args.job {
        return job::serve(job);
    }
    let kinds = match args.device {
        _ if !args.what.is_empty() => &args.what[..],
        Place::Cpu => &Kind::DEFAULT[..],
        Place::Cuda(_) => &Kind::ON_CUDA[..],
    };
    check_place(args, kinds)?;
    let draws = |kind: &Kind| matches!(kind, Kind::Decode | Kind::Grpo | Kind::Growth);
    if args.weights != Weights::Same && !kinds.iter().any(draws) {
        return Err(misuse(
            "--weights says how tokens are drawn, and nothing that is measured draws any",
            "leave it out, or measure decode, grpo or growth",
        ));
    }
    let subject = Subject::of(args.model.as_deref(), args.shape_of)?;
    let open = args.device.open(args.threads as usize, args.dtype.dtype())?;
    let bench = Bench { args, subject, open, limits: OnceCell::new(), screen };
    let no_text =
        |kind: &Kind| matches!(kind, Kind::Peak | Kind::Matmul | Kind::Attention | Kind::Overlap);
    if !kinds.iter().all(no_text) {
        bench.check_lens(kinds)?;
    }
    let mut rows = Vec::new();
    for &kind in kinds {
        let found = bench.measure(kind)?;
        if !args.json {
            screen::print(row::tables(&found))?;
        }
        rows.extend(found);
    }
    if args.json {
        screen::print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"), "machine": bench.machine(),
            "model": bench.subject.describe()?, "results": rows,
        }))?;
    }
    Ok(())
}

/// Fails for what a CUDA device doesn't have.
fn check_place(args: &Args, kinds: &[Kind]) -> anyhow::Result<()> {
    if args.device == Place::Cpu {
        return Ok(());
    }
    let of_processor = |kind: &&Kind| matches!(kind, Kind::Start | Kind::Growth | Kind::Overlap);
    if let Some(kind) = kinds.iter().find(of_processor) {
        return Err(misuse(
            format!("{} is measured on the processor only", kind.name()),
            "leave --device out, or measure something else",
        ));
    }
    if args.weights != Weights::Same {
        return Err(misuse(
            "a CUDA device can't multiply with int8 weights",
            "leave --weights out, or --device",
        ));
    }
    Ok(())
}

impl Bench<'_> {
    fn measure(&self, kind: Kind) -> anyhow::Result<Vec<Row>> {
        match kind {
            Kind::Peak => Ok(peak::rows(self)),
            Kind::Matmul => matmul::rows(self),
            Kind::Attention => attention::rows(self),
            Kind::Train | Kind::Logprob => train::rows(self, kind),
            Kind::Decode => decode::rows(self),
            Kind::Grpo => grpo::rows(self),
            Kind::Start => start::rows(self),
            Kind::Growth => growth::rows(self),
            Kind::Overlap => overlap::rows(self),
        }
    }

    /// Runs the job in a child process, between two looks at what the machine reaches.
    fn job(&self, kind: Kind, name: &str, work: Work) -> anyhow::Result<Row> {
        // A CUDA device has memory of its own, and says when that is full.
        let needs = Needs::of(&self.subject.config()?, &work);
        if let Some(why) = needs.exceeded().filter(|_| self.args.device == Place::Cpu) {
            return Err(misuse(
                format!("{} of {name} {why}", kind.name()),
                "measure fewer or shorter sequences, or smaller micro-batches with --micro-batch-tokens",
            ));
        }
        let job = Job {
            kind,
            name: name.to_owned(),
            subject: self.subject.clone(),
            device: self.args.device,
            threads: self.args.threads,
            dtype: self.args.dtype,
            weights: self.args.weights,
            runs: self.args.runs,
            seconds_max: self.args.seconds_max,
            profile: self.args.profile,
            work,
        };
        self.say(kind, name);
        let before = self.limits();
        let mut row = job::run(&job, self.device().threads())?;
        row.judge(&before.max(&self.limits()));
        Ok(row)
    }

    /// What the machine reaches now.
    fn limits(&self) -> Limits {
        match self.args.device {
            Place::Cpu => Limits::take(self.device()),
            Place::Cuda(_) => *self.limits.get_or_init(|| Limits::take(self.device())),
        }
    }

    fn device(&self) -> &Device {
        &self.open.device
    }

    /// Says on stderr what is being measured.
    fn say(&self, kind: Kind, name: &str) {
        self.screen.line(&format!("measuring {}: {name}", kind.name()));
    }

    fn machine(&self) -> Value {
        json!({
            "processor": machine::processor_model(), "features": machine::features(),
            "device": self.open.name(), "instruction_set": self.device().isa().to_string(),
            "threads": self.device().threads(), "dtype": self.device().dtype().to_string(),
            "weights": self.args.weights.form().to_string(),
            "memory_bytes": aha_flow::machine::memory().total_bytes,
        })
    }

    /// Fails for sequences that are longer than the model has positions.
    fn check_lens(&self, kinds: &[Kind]) -> anyhow::Result<()> {
        let positions_max = self.subject.config()?.max_position_embeddings;
        let shapes = kinds.iter().any(|kind| matches!(kind, Kind::Train | Kind::Logprob));
        let samples = kinds.iter().any(|kind| matches!(kind, Kind::Decode | Kind::Grpo));
        let of_shapes = self.shapes().iter().map(|s| s.len_tokens).max().filter(|_| shapes);
        let completion = self.args.prompt_tokens as usize + self.args.new_tokens as usize;
        let longest = of_shapes.into_iter().chain(samples.then_some(completion)).max();
        match longest.filter(|&len| len > positions_max) {
            Some(len) => Err(misuse(
                format!("sequences of {len} tokens: the model has {positions_max} positions"),
                "shorten --shape, --prompt-tokens or --new-tokens",
            )),
            None => Ok(()),
        }
    }

    fn shapes(&self) -> Vec<Sequences> {
        const DEFAULT: [Sequences; 2] =
            [Sequences { count: 8, len_tokens: 256 }, Sequences { count: 4, len_tokens: 512 }];
        match self.args.shape.is_empty() {
            true => DEFAULT.to_vec(),
            false => self.args.shape.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_sequences_times_tokens() {
        assert_eq!(sequences("8x256"), Ok(Sequences { count: 8, len_tokens: 256 }));
        for wrong in ["8", "8x", "x8", "0x8", "8x1", "8x-2", "8x2x2", "1x9999999"] {
            assert!(sequences(wrong).is_err(), "{wrong}");
        }
    }
}
