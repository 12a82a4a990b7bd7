//! `aha submit`: a pipeline into the daemon's queue.

use std::path::PathBuf;
use std::time::Duration;

use aha_daemon::submit::name_of_file;
use anyhow::Context;
use serde_json::{Value, json};

use super::client::{self, Client};
use crate::commands::check;
use crate::report::failed;
use crate::screen::{self, Screen};

/// How often a run is looked at that is waited for.
const PAUSE: Duration = Duration::from_millis(500);

/// The flags of `aha submit`.
#[derive(clap::Args)]
#[command(after_help = "\
The pipeline is checked as by `aha check`, on the daemon's machine. Relative paths in it start from the current \
directory; the daemon only takes data and models in folders that it allows.

Example:
  aha submit pipelines/quickstart.toml --set run.seed=2 --wait")]
pub struct Args {
    /// The pipeline file.
    pipeline: PathBuf,
    /// Override a key of the pipeline, such as `stage.zero.steps=10`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// What the run is called; by default the pipeline file's name.
    #[arg(long)]
    name: Option<String>,
    /// Wait until the run has come to an end; fail if that isn't `finished`.
    #[arg(long)]
    wait: bool,
    /// Print the run as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

/// Submits the pipeline and prints the run.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    check::require_pipeline(&args.pipeline)?;
    let text = fs_err::read_to_string(&args.pipeline)?;
    let client = Client::new(&args.daemon)?;
    let base_dir = std::env::current_dir().context("can't find the current directory")?;
    let name = args.name.clone().unwrap_or_else(|| name_of_file(&args.pipeline));
    let submission =
        json!({ "pipeline": text, "name": name, "sets": args.sets, "base_dir": base_dir });
    let mut run = client.post("/api/v1/runs", Some(&submission))?;
    if !args.json {
        screen::print(format!("run {} is {}\n", run["id"], shown(&run["status"])))?;
    }
    if args.wait {
        run = wait(&client, run)?;
    }
    if args.json {
        screen::print_json(&run)?;
    }
    if !args.wait {
        return Ok(());
    }
    let status = shown(&run["status"]);
    if status != "finished" {
        let problem = run["problem"]["message"].as_str();
        let why = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
        let hint =
            run["problem"]["hint"].as_str().unwrap_or("look at it with `aha show` and `aha logs`");
        return Err(failed(format!("run {} is {status}{why}", run["id"]), hint));
    }
    screen.line(&format!(
        "run {} is finished; results are in {}",
        run["id"],
        shown(&run["run_dir"])
    ));
    Ok(())
}

/// Waits until the run is finished, failed, cancelled or paused.
fn wait(client: &Client, run: Value) -> anyhow::Result<Value> {
    let path = format!("/api/v1/runs/{}", run["id"]);
    let mut run = run;
    while !["finished", "failed", "cancelled", "paused"].contains(&shown(&run["status"]).as_str()) {
        std::thread::sleep(PAUSE);
        run = client.get(&path)?;
    }
    Ok(run)
}

fn shown(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
