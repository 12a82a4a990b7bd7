//! `aha logprobs`: log-probs of token sequences, to check them against other programs.

use std::io::{self, Read};
use std::path::PathBuf;

use aha_compute::WeightForm;
use aha_learn::packing::pack;
use aha_model::{Config, Model};
use anyhow::Context;
use serde::Serialize;
use serde_json::Number;

use super::shared::{ModelArgs, Precision};
use crate::report::{failed, misuse};
use crate::{screen, text};

/// Most tokens that run through the model at once. Results do not depend on it.
const MICRO_BATCH_TOKENS: usize = 4096;

/// The flags of `aha logprobs`.
#[derive(clap::Args)]
#[command(after_help = "\
In: [[ids…], …]. Out: {\"logprobs\": [[one value per id from the second on], …]}, the natural logarithm of each \
token's probability after those before it, at temperature 1.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    precision: Precision,
    /// A JSON file with the sequences; by default stdin.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Print JSON, as this command always does.
    #[arg(long)]
    json: bool,
}

/// Numbers are written as the shortest decimals that read back as the same `f32`.
#[derive(Serialize)]
struct Answer {
    logprobs: Vec<Vec<text::Number<f32>>>,
}

/// Reads the sequences and prints their log-probs.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = args.model.path()?;
    let text = read(args.ids.as_ref())?;
    let model = Model::load(&path, &args.model.device(&args.precision, WeightForm::Same)?)?;
    let sequences = sequences(&text, model.config())?;
    let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let mut logprobs = Vec::with_capacity(sequences.len());
    for range in pack(&lens, MICRO_BATCH_TOKENS) {
        let batch: Vec<&[u32]> = sequences[range].iter().map(Vec::as_slice).collect();
        logprobs.extend(model.log_probs(&batch)?.iter().map(|of| text::numbers(of)));
    }
    screen::print_json(&Answer { logprobs })
}

fn read(path: Option<&PathBuf>) -> anyhow::Result<String> {
    let Some(path) = path else {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("can't read stdin")?;
        return Ok(text);
    };
    fs_err::read_to_string(path).map_err(|error| {
        misuse(format!("can't read the sequences: {error}"), "give a JSON file with --ids")
    })
}

/// The sequences of a text, each of which the model can take.
fn sequences(text: &str, config: &Config) -> anyhow::Result<Vec<Vec<u32>>> {
    let sequences: Vec<Vec<Number>> = serde_json::from_str(text).map_err(|error| {
        let hint = "write lists of token ids, such as [[1, 5, 9], [2, 7]]";
        failed(format!("the sequences are not [[ids…], …]: {error}"), hint)
    })?;
    sequences.iter().enumerate().map(|(idx, ids)| sequence(idx, ids, config)).collect()
}

fn sequence(idx: usize, ids: &[Number], config: &Config) -> anyhow::Result<Vec<u32>> {
    if ids.is_empty() {
        return Err(failed(format!("sequence {idx} is empty"), "leave it out"));
    }
    let (len, positions_max) = (ids.len(), config.max_position_embeddings);
    if len > positions_max {
        let message =
            format!("sequence {idx} has {len} ids: the model has {positions_max} positions");
        return Err(failed(message, "cut it"));
    }
    let id = |(at, number): (usize, &Number)| {
        let id = number.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < config.vocab_size).ok_or_else(|| {
            let expected =
                format!("expected a whole number below the vocabulary size, {}", config.vocab_size);
            let message = format!("sequence {idx} has {number} as id {at}: {expected}");
            failed(message, "use the tokenizer that belongs to this model")
        })
    };
    ids.iter().enumerate().map(id).collect()
}
