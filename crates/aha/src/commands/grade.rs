//! `aha grade`: JSON lines in, JSON lines out.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::PathBuf;

use aha_reward::grade::{Progress, grade};
use aha_reward::{Kind, Spec};

use super::shared;
use crate::report::{failed, misuse};
use crate::screen::Screen;
use crate::text;

/// The flags of `aha grade`.
#[derive(clap::Args)]
#[command(after_help = "\
In, one a line: {\"id\", \"gold\", \"pred\"}. Out, one a line in the same order: {\"id\", \"score\", \"reason\"}, \
with a null score where a line could not be scored. A line that can't be read gives a null score and a reason \
with its number, and exit code 1 at the end.")]
pub struct Args {
    /// The kind of the reward: math, format, exact.
    #[arg(long, value_name = "KIND", value_parser = shared::reward_kind)]
    reward: Kind,
    /// The lines; by default stdin.
    file: Option<PathBuf>,
    /// Print JSON lines, as this command always does.
    #[arg(long)]
    json: bool,
}

/// Grades every line.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let verifier = shared::verifier(&Spec::for_grading(args.reward))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let progress = match &args.file {
        Some(path) => {
            let file = File::open(path).map_err(|error| {
                let message = format!("can't read `{}`: {error}", path.display());
                misuse(message, "give a file of JSON lines, or write them to stdin")
            })?;
            grade(verifier.as_ref(), &mut BufReader::new(file), &mut out, |_| ())?
        }
        None => grade(verifier.as_ref(), &mut io::stdin().lock(), &mut out, |_| ())?,
    };
    if screen.is_live() {
        screen.line(&summary(&progress));
    }
    let Progress { bad_count, line_count, .. } = progress;
    if bad_count == 0 {
        return Ok(());
    }
    let message = format!("{bad_count} of {line_count} lines could not be read");
    Err(failed(message, "their verdicts say which they are and why"))
}

fn summary(progress: &Progress) -> String {
    let mean = progress.score_sum / progress.scored_count.max(1) as f64;
    format!(
        "{} scored, mean {mean:.4}; {} could not be scored",
        text::grouped(progress.scored_count),
        text::grouped(progress.unscored_count),
    )
}
