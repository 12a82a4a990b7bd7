//! `aha top`: the runs as they go on.

use std::io::{self, IsTerminal};
use std::time::Duration;

use serde_json::Value;

use super::client::{self, Client};
use super::shown;
use crate::screen;

/// Moves the cursor to the top and clears what is below it.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// The flags of `aha top`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Print once and leave, as is done where nobody looks.
    #[arg(long)]
    once: bool,
    /// Print the runs once as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

/// Shows the runs that aren't at an end, again and again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let client = Client::new(&args.daemon)?;
    let is_live = io::stdout().is_terminal() && !args.once && !args.json;
    loop {
        let runs = client.runs(None)?;
        let open: Vec<&Value> = runs.iter().filter(|run| is_open(run)).collect();
        if args.json {
            return screen::print_json(&open);
        }
        let text = shown(&open);
        if !is_live {
            return Ok(screen::print(text)?);
        }
        screen::print(format!("{CLEAR}{text}"))?;
        std::thread::sleep(Duration::from_secs(args.every));
    }
}

fn is_open(run: &Value) -> bool {
    !["finished", "failed", "cancelled"].contains(&run["status"].as_str().unwrap_or_default())
}

fn shown(runs: &[&Value]) -> String {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let mut row = shown::row(run);
            row.push(shown::measures(run));
            row
        })
        .collect();
    let head: Vec<&str> = shown::HEAD.into_iter().chain(["measures"]).collect();
    shown::table(&head, &rows)
}
