//! `aha runs`, `aha show`, `aha pause`, `aha resume`, `aha cancel`.

use serde_json::Value;

use super::client::{self, Client};
use super::shown;
use crate::screen;

/// The flags of `aha runs`.
#[derive(clap::Args)]
pub struct RunsArgs {
    /// Only runs in this state: queued, running, pausing, paused, cancelling, cancelled, finished or failed.
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    status: Option<String>,
    /// Print the runs as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

const STATES: [&str; 8] =
    ["queued", "running", "pausing", "paused", "cancelling", "cancelled", "finished", "failed"];

/// Lists the runs.
pub fn list(args: &RunsArgs) -> anyhow::Result<()> {
    let runs = Client::new(&args.daemon)?.runs(args.status.as_deref())?;
    if args.json {
        return screen::print_json(&runs);
    }
    let rows: Vec<Vec<String>> = runs.iter().map(shown::row).collect();
    Ok(screen::print(shown::table(&shown::HEAD, &rows))?)
}

/// The flags of `aha show`.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// The run's number.
    run: u64,
    /// Print the run as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

/// Shows a run.
pub fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let run = Client::new(&args.daemon)?.get(&format!("/api/v1/runs/{}", args.run))?;
    match args.json {
        true => screen::print_json(&run),
        false => Ok(screen::print(shown::whole(&run))?),
    }
}

/// The flags of `aha pause`, `aha resume` and `aha cancel`.
#[derive(clap::Args)]
pub struct ActArgs {
    /// The runs' numbers.
    #[arg(required = true)]
    runs: Vec<u64>,
    /// Print the runs as JSON, a line each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

/// Pauses, resumes or cancels runs, one after the other.
pub fn act(args: &ActArgs, action: &str) -> anyhow::Result<()> {
    let client = Client::new(&args.daemon)?;
    for id in &args.runs {
        let run: Value = client.post(&format!("/api/v1/runs/{id}/{action}"), None)?;
        match args.json {
            true => screen::print_json(&run)?,
            false => {
                let status = run["status"].as_str().unwrap_or_default();
                screen::print(format!("run {id} is {status}\n"))?;
            }
        }
    }
    Ok(())
}
