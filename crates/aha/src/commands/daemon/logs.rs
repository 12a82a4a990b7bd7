//! `aha logs`: what a run says.

use std::io::BufRead;

use anyhow::Context;
use serde_json::Value;

use super::client::{self, Client};
use crate::{screen, text};

/// The flags of `aha logs`.
#[derive(clap::Args)]
pub struct Args {
    /// The run's number.
    run: u64,
    /// Go on with lines as they come, until the run has come to an end.
    #[arg(short, long)]
    follow: bool,
    /// So many lines from the end.
    #[arg(long, value_name = "N", default_value_t = 200)]
    tail: u32,
    /// Show what the run's processes wrote to stderr, in place of its events.
    #[arg(long)]
    output: bool,
    /// Print events as they are: a JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: client::Args,
}

/// Prints lines as they come.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let source = if args.output { "output" } else { "log" };
    let (id, tail, follow) = (args.run, args.tail, args.follow);
    let path = format!("/api/v1/runs/{id}/logs?source={source}&tail={tail}&follow={follow}");
    let mut lines = Client::new(&args.daemon)?.lines(&path)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).context("the daemon's answer broke off")? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        let shown = match args.json {
            true => text::harmless_json(line),
            false => shown(line),
        };
        screen::print(shown + "\n")?;
    }
}

/// A line for people: of an event its time, its level, its message and its fields.
fn shown(line: &str) -> String {
    let Ok(Value::Object(event)) = serde_json::from_str(line) else { return text::one_line(line) };
    let word = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut shown = format!("{} {:5} {}", word("timestamp"), word("level"), word("message"));
    for (key, value) in &event {
        if !["timestamp", "level", "message", "target"].contains(&key.as_str()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            shown += &format!(" {key}={value}");
        }
    }
    text::one_line(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_harmless_line() {
        let line = r#"{"timestamp":"T","level":"INFO","message":"Stage done.","target":"x","stage":"a\u001b","n":2}"#;
        assert_eq!(shown(line), r"T INFO  Stage done. stage=a\u{1b} n=2");
        assert_eq!(shown("no\u{1b}json"), r"no\u{1b}json");
    }
}
