//! `aha check`: the plan of a pipeline, or everything that is wrong with it.

use std::io;
use std::path::{Path, PathBuf};

use aha_flow::pipeline::Plan;
use aha_flow::planning::{self, Around};
use aha_flow::run::Failure;
use anyhow::Context;
use serde_json::json;

use super::shared::{self, RunOn};
use crate::report::{misuse, misused};
use crate::screen::{self, Screen};
use crate::text;

/// The flags of `aha check`.
#[derive(clap::Args)]
pub struct Args {
    /// The pipeline file; `-` reads it from stdin.
    pipeline: PathBuf,
    /// Override a key of the pipeline, such as `stage.zero.steps=10`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    on: RunOn,
    /// Print the plan, or the problems, as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the plan to stdout, or every problem to stderr.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match shared::runtime()?.block_on(check(args))? {
        Ok(plan) => {
            match args.json {
                true => screen::print_json(&plan.to_json())?,
                false => screen::print(text::lines(&plan.to_text()))?,
            }
            let warnings = [shared::memory_warning(&plan), shared::device_warning(&plan)];
            for warning in warnings.into_iter().flatten() {
                Screen::new().line(&warning);
            }
            Ok(())
        }
        Err(Failure::Problems(problems)) => {
            if args.json {
                screen::print_json(&json!({ "problems": problems.to_json() }))?;
            }
            Err(Failure::Problems(problems).into())
        }
        Err(Failure::Run(error @ aha_flow::Error::Input { .. })) => Err(misused(error)),
        Err(error) => Err(error.into()),
    }
}

async fn check(args: &Args) -> anyhow::Result<Result<Plan, Failure>> {
    let (places, around) = (planning::places(), Around::of_machine());
    let sets = args.on.sets(&args.sets);
    if args.pipeline == Path::new("-") {
        let text = io::read_to_string(io::stdin()).context("can't read stdin")?;
        return Ok(planning::check_text("stdin", &text, &sets, &places, around).await);
    }
    require_pipeline(&args.pipeline)?;
    Ok(planning::check(&args.pipeline, &sets, &places, around).await)
}

/// Fails for a path without a file: the first thing that can be wrong.
pub fn require_pipeline(path: &Path) -> anyhow::Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(misuse(
        format!("there is no pipeline file at `{}`", path.display()),
        "give the path of a pipeline, such as pipelines/quickstart.toml",
    ))
}
