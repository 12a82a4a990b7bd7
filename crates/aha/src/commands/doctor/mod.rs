//! `aha doctor`: what works on this machine, and what to do about what doesn't.

mod cuda;
pub(super) mod device;
pub(super) mod machine;

use std::path::Path;

use aha_check::Part;
use aha_compute::simd::Isa;
use aha_reward::code::{self, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::report::failed;
use crate::screen;
use crate::text;

/// Free space that a run with a small model and its checkpoints takes.
const DISK_BYTES_MIN: u64 = 2 << 30;
/// Memory that the quickstart needs.
const MEMORY_BYTES_MIN: u64 = 2 << 30;

/// The flags of `aha doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Hold a CUDA device against the processor, such as cuda:0: ops, gradients, models, whole steps. Takes minutes.
    #[arg(long, value_name = "DEVICE", value_parser = device::number)]
    check: Option<u32>,
    /// With --check: parts of it, separated by commas: driver, ops, draws, models, gradients, determinism, paths, grpo.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', requires = "check")]
    parts: Vec<Part>,
    /// With --check: small shapes only.
    #[arg(long, requires = "check")]
    quick: bool,
    /// With --check: threads of the processor; 0 takes every core.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "check")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=256))]
    threads: u32,
    /// Print the findings as JSON: with --check a line for each case, and one for all.
    #[arg(long)]
    json: bool,
}

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// As well as it can.
    Ok,
    /// It works, but not as well as it could, or something optional is missing.
    Limited,
    /// Runs will fail.
    Broken,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do, where there is something.
    advice: Option<String>,
    facts: Value,
}

/// Looks at the machine and prints what was found. Fails where runs would.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(number) = args.check {
        return device::run(&device::Checks {
            number,
            parts: args.parts.clone(),
            quick: args.quick,
            threads: args.threads as usize,
            json: args.json,
        });
    }
    let checks = [processor(), memory(), gpu(), disk(Path::new("runs")), sandbox()];
    if args.json {
        screen::print_json(&json!({ "version": env!("CARGO_PKG_VERSION"), "checks": checks }))?;
    } else {
        screen::print(checks.iter().map(shown).collect::<String>())?;
    }
    match checks.iter().find(|check| check.status == Status::Broken) {
        Some(check) => {
            let hint = check.advice.clone().unwrap_or_default();
            Err(failed(format!("{} does not work here: {}", check.name, check.found), hint))
        }
        None => Ok(()),
    }
}

fn shown(check: &Check) -> String {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Limited => "limited",
        Status::Broken => "broken",
    };
    let advice = check.advice.as_ref().map(|advice| format!("{:20}-> {advice}\n", ""));
    let line = text::lines(&format!("{status:<8}{:<12}{}\n", check.name, check.found));
    line + &advice.unwrap_or_default()
}

fn processor() -> Check {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (used, available) = (Isa::best(), Isa::available());
    let names: Vec<String> = available.iter().map(ToString::to_string).collect();
    let model = machine::processor_model().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let features = machine::features();
    Check {
        name: "processor",
        status: if used == Isa::Portable { Status::Limited } else { Status::Ok },
        found: format!(
            "{model}, {threads} threads; kernels use {used} of {}; features: {}",
            names.join(", "),
            if features.is_empty() { "none known".to_owned() } else { features.join(" ") }
        ),
        advice: (used == Isa::Portable).then(|| {
            "training works but is slow: use a processor with AVX2 and FMA, or AVX-512".to_owned()
        }),
        facts: json!({
            "model": model, "threads": threads, "instruction_set": used.to_string(),
            "instruction_sets": names, "features": features,
        }),
    }
}

fn memory() -> Check {
    let aha_flow::machine::Memory { total_bytes, available_bytes, limit_bytes } =
        aha_flow::machine::memory();
    let shown = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), text::size);
    let limit =
        limit_bytes.map(|bytes| format!(", limited to {} by the control group", text::size(bytes)));
    let usable = available_bytes.into_iter().chain(limit_bytes).min();
    let is_short = usable.is_some_and(|bytes| bytes < MEMORY_BYTES_MIN);
    Check {
        name: "memory",
        status: if is_short { Status::Limited } else { Status::Ok },
        found: format!(
            "{} available of {}{}",
            shown(available_bytes),
            shown(total_bytes),
            limit.unwrap_or_default()
        ),
        advice: is_short.then(|| {
            "look at the prediction of `aha check`; lower `micro_batch_tokens` or `run.kv_cache`".to_owned()
        }),
        facts: json!({
            "total_bytes": total_bytes, "available_bytes": available_bytes, "limit_bytes": limit_bytes,
        }),
    }
}

fn gpu() -> Check {
    cuda::check(&aha_compute::cuda::doctor::look(), machine::nvidia_driver())
}

fn disk(runs: &Path) -> Check {
    // The nearest directory that is there: `runs/` comes with the first run.
    let place = if runs.is_dir() { runs } else { Path::new(".") };
    let free = machine::disk_free(place);
    let is_writable = machine::is_writable(place);
    let is_short = free.is_some_and(|bytes| bytes < DISK_BYTES_MIN);
    let free_text = free.map_or("unknown".to_owned(), text::size);
    let (status, advice) = match (is_writable, is_short) {
        (false, _) => {
            (Status::Broken, Some("start aha where you may write, or give --dir to `aha run`"))
        }
        (true, true) => (
            Status::Limited,
            Some("checkpoints take space: make room, or give --dir on a larger disk"),
        ),
        (true, false) => (Status::Ok, None),
    };
    let written = if is_writable { "can be written" } else { "can't be written" };
    Check {
        name: "disk",
        status,
        found: format!("runs/ {written}, {free_text} free"),
        advice: advice.map(str::to_owned),
        facts: json!({ "free_bytes": free, "is_writable": is_writable }),
    }
}

/// What runs programs that a model wrote, layer by layer, and the languages that they can be in.
fn sandbox() -> Check {
    let layers = code::sandbox_layers();
    let languages = code::languages();
    let names: Vec<String> =
        languages.iter().map(|(language, program)| format!("{language} ({program})")).collect();
    let missing = layers.iter().find(|layer| layer.state != State::Works);
    let found = match missing.map(|layer| (layer.name, &layer.state)) {
        None => format!("all {} layers work", layers.len()),
        Some((name, State::Refused(why))) => format!("layer `{name}` does not work: {why}"),
        Some((name, _)) => format!("layer `{name}` could not be tried"),
    };
    let languages_text = match names.is_empty() {
        true => "no language".to_owned(),
        false => names.join(", "),
    };
    let advice = match missing {
        Some(layer) => Some(format!(
            "rewards of kind code are refused, unless they say `sandbox = \"weak\"`; {}",
            layer.remedy
        )),
        None if languages.is_empty() => {
            Some("rewards of kind code need python3, a C or C++ compiler, or rustc".to_owned())
        }
        None => None,
    };
    Check {
        name: "sandbox",
        status: if advice.is_some() { Status::Limited } else { Status::Ok },
        found: format!("{found}; programs in {languages_text}"),
        advice,
        facts: json!({
            "layers": layers,
            "languages": languages.iter().map(|(language, program)| json!({
                "language": language, "program": program,
            })).collect::<Vec<Value>>(),
        }),
    }
}
