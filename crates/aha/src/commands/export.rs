//! `aha export`: a model as a Hugging Face directory.

use std::path::{Path, PathBuf};

use aha_compute::Device;
use aha_flow::pipeline::ByteSize;
use aha_model::save::{SaveDtype, SaveOptions, save};
use aha_model::{Model, Tokenizer};
use anyhow::Context;

use super::shared::ModelArgs;
use crate::report::misuse;
use crate::screen::Screen;
use crate::text;

/// The flags of `aha export`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The directory to write; it must be new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The numbers of the weights.
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Weights beyond this go into further files, with an index of all; a single tensor is never split.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = shard_size)]
    shard_size: ByteSize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, rounded to nearest even.
    Bf16,
}

/// Loads the model and writes it.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let path = args.model.path()?;
    require_free(&args.out)?;
    let model = Model::load_any(&path, &Device::cpu(args.model.threads as usize))?;
    let tokenizer = tokenizer(&path, screen)?;
    let dtype = match args.dtype {
        Dtype::F32 => SaveDtype::F32,
        Dtype::Bf16 => SaveDtype::Bf16,
    };
    let params = model.params();
    let tensors = params.ids().map(|id| {
        let value = params.value(id);
        (params.name(id).to_owned(), value.shape().to_vec(), value.host())
    });
    let options = SaveOptions { dtype, shard_bytes_max: args.shard_size.0 };
    save(&args.out, model.config(), tokenizer.as_ref(), tensors, options)?;
    let count = text::grouped(model.config().param_count() as u64);
    screen.line(&format!("{count} parameters are in {}", args.out.display()));
    Ok(())
}

fn shard_size(text: &str) -> Result<ByteSize, String> {
    let size = ByteSize::parse(text).filter(|size| size.0 > 0);
    size.ok_or_else(|| "expected a size such as `500MB` or `4GiB`".to_owned())
}

/// Saving replaces the whole directory, so one with something in it is refused.
fn require_free(out: &Path) -> anyhow::Result<()> {
    let is_empty = || fs_err::read_dir(out).map(|mut entries| entries.next().is_none());
    if !out.exists() || out.is_dir() && is_empty().context("can't look into --out")? {
        return Ok(());
    }
    let message = format!("`{}` is there already", out.display());
    Err(misuse(message, "name a new directory with --out, or remove that one"))
}

/// The model's tokenizer; a directory of weights alone is exported as such.
fn tokenizer(path: &Path, screen: &Screen) -> anyhow::Result<Option<Tokenizer>> {
    if path.is_dir() && !path.join("tokenizer.json").exists() {
        screen
            .line("warning: the model has no tokenizer.json, and what is written has none either");
        return Ok(None);
    }
    Ok(Some(Tokenizer::load(path)?))
}
