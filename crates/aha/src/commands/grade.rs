//! `aha grade`: JSON lines in, JSON lines out.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aha_reward::Written;
use aha_reward::grade::{Progress, grade};

use super::shared;
use crate::report::{failed, misuse};
use crate::screen::Screen;
use crate::text;

/// How often progress is a line where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The flags of `aha grade`.
#[derive(clap::Args)]
#[command(after_help = "\
In, one a line: {\"id\", \"gold\", \"pred\"}, and optionally \"prompt\", \"completion_len_tokens\" and \
\"is_truncated\", which some kinds read; for code and countdown, gold is the object of tests. Where the reward \
doesn't say \"extract\", pred may be nothing but the answer: it is looked for in the answer tag, the last box, after \
#### and \"the answer is\", and else is the whole text. Out, one a line in the same order: {\"id\", \"score\", \"reason\"}, \
with a null score where a line could not be scored. A line that can't be read gives a null score and a reason \
with its number, and exit code 1 at the end.")]
pub struct Args {
    /// The reward: the name of a kind, such as math, or a table of its keys as in a pipeline:
    /// '{ kind = "math", extract = ["boxed"] }'.
    #[arg(long, value_name = "KIND", value_parser = Written::parse)]
    reward: Written,
    /// The lines; by default stdin.
    file: Option<PathBuf>,
    /// Print JSON lines, as this command always does.
    #[arg(long)]
    json: bool,
}

/// Grades every line.
pub fn run(args: &Args, screen: &Screen) -> anyhow::Result<()> {
    let verifier = shared::verifier(&args.reward.clone().for_grading())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let bar = screen.bar(0);
    bar.set_prefix("grading");
    let (begun, mut shown_at) = (Instant::now(), Instant::now());
    let show = |progress: &Progress| {
        let text = so_far(progress, begun.elapsed());
        if !screen.is_live() && shown_at.elapsed() >= LINE_EVERY {
            shown_at = Instant::now();
            screen.line(&text);
        }
        bar.set_message(text);
    };
    let graded = match &args.file {
        Some(path) => {
            let file = File::open(path).map_err(|error| {
                let message = format!("can't read `{}`: {error}", path.display());
                misuse(message, "give a file of JSON lines, or write them to stdin")
            })?;
            grade(verifier.as_ref(), &mut BufReader::new(file), &mut out, show)
        }
        None => grade(verifier.as_ref(), &mut io::stdin().lock(), &mut out, show),
    };
    bar.finish_and_clear();
    let progress = graded?;
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

fn so_far(progress: &Progress, elapsed: Duration) -> String {
    let per_second = progress.line_count as f64 / elapsed.as_secs_f64().max(1e-3);
    format!("{} lines, {per_second:.0}/s", text::grouped(progress.line_count))
}

fn summary(progress: &Progress) -> String {
    let mean = progress.score_sum / progress.scored_count.max(1) as f64;
    format!(
        "{} scored, mean {mean:.4}; {} could not be scored",
        text::grouped(progress.scored_count),
        text::grouped(progress.unscored_count),
    )
}
