//! The subcommands, and what holds for all of them.

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, check, daemon, doctor, eval, export, generate, grade, logprobs, query, report, run,
};
use crate::logging;
use crate::screen::Screen;

/// Post-trains reasoning models with DeepSeek-R1's recipe: pipelines are files, and every
/// completion is a row that you can query.
#[derive(Parser)]
#[command(
    name = "aha",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 misused (arguments or pipeline are wrong)."
)]
struct Cli {
    /// Say more on stderr: -v what is done, -vv details, -vvv everything.
    #[arg(short, long, global = true, display_order = 900, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a pipeline.
    Run(run::Args),
    /// Check a pipeline and print its plan: models, tables, stages, formulas, memory.
    Check(check::Args),
    /// Query the tables of runs with SQL.
    Query(query::Args),
    /// Write a run as one page: results, curves, completions; and as TensorBoard files.
    Report(report::Args),
    /// Measure a model on problems: pass@1, pass@k, cons@k.
    Eval(eval::Args),
    /// Let a model complete a prompt.
    Generate(generate::Args),
    /// Print the log-probs of token sequences, to check them against other programs.
    Logprobs(logprobs::Args),
    /// Grade answers: JSON lines in, JSON lines out.
    Grade(grade::Args),
    /// Write a model as a Hugging Face directory.
    Export(export::Args),
    /// Serve a queue of runs over HTTP: submitted, watched, paused, queried; and their models.
    Daemon(daemon::serve::Args),
    /// Put a pipeline into the daemon's queue.
    Submit(daemon::submit::Args),
    /// List the daemon's runs.
    Runs(daemon::runs::RunsArgs),
    /// Show a run of the daemon.
    Show(daemon::runs::ShowArgs),
    /// Pause runs of the daemon, after a checkpoint.
    Pause(daemon::runs::ActArgs),
    /// Resume runs of the daemon that are paused or failed.
    Resume(daemon::runs::ActArgs),
    /// Cancel runs of the daemon.
    Cancel(daemon::runs::ActArgs),
    /// Show what a run of the daemon says.
    Logs(daemon::logs::Args),
    /// Watch the daemon's runs.
    Top(daemon::top::Args),
    /// Measure what this machine reaches: products, training, sampling, a whole GRPO step.
    Bench(bench::Args),
    /// Say what works on this machine, and what to do about what doesn't.
    Doctor(doctor::Args),
}

/// Reads the arguments and does what they say. Wrong arguments end the program with code 2.
pub fn run(screen: &Screen) -> anyhow::Result<()> {
    let Cli { verbose, command } = Cli::parse();
    // What a daemon does is looked at later.
    let verbose = if matches!(command, Command::Daemon(_)) { verbose.max(1) } else { verbose };
    let log = logging::start(verbose, screen, matches!(command, Command::Run(_)));
    match command {
        Command::Run(args) => run::run(args, screen, &log),
        Command::Check(args) => check::run(&args),
        Command::Query(args) => query::run(&args, screen),
        Command::Report(args) => report::run(&args, screen),
        Command::Eval(args) => eval::run(args, screen),
        Command::Generate(args) => generate::run(&args, screen),
        Command::Logprobs(args) => logprobs::run(&args),
        Command::Grade(args) => grade::run(&args, screen),
        Command::Export(args) => export::run(&args, screen),
        Command::Daemon(args) => daemon::serve::run(args, screen),
        Command::Submit(args) => daemon::submit::run(&args, screen),
        Command::Runs(args) => daemon::runs::list(&args),
        Command::Show(args) => daemon::runs::show(&args),
        Command::Pause(args) => daemon::runs::act(&args, "pause"),
        Command::Resume(args) => daemon::runs::act(&args, "resume"),
        Command::Cancel(args) => daemon::runs::act(&args, "cancel"),
        Command::Logs(args) => daemon::logs::run(&args),
        Command::Top(args) => daemon::top::run(&args),
        Command::Bench(args) => bench::run(&args, screen),
        Command::Doctor(args) => doctor::run(&args),
    }
}

/// The arguments as they are declared.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_well_defined() {
        super::command().debug_assert();
    }
}
