//! The command line of aha: post-trains reasoning models with DeepSeek-R1's recipe.
//!
//! # Map
//! - `cli`: the subcommands and what holds for all of them; start here.
//! - `commands`: one module per subcommand: its flags, then what it does.
//! - `view`: how a run is shown while it goes on. `screen`: stderr, shared by bars and lines.
//! - `report`: errors as people read them, and exit codes.
//! - `logging`: tracing events on stderr and in the run directory's `log.jsonl`.
//! - `heap`: how freed memory goes back to the system.
//! - `text`: text of models made harmless; numbers, sizes and durations for people.
//!
//! # Invariants
//! - Results go to stdout, everything else to stderr.
//! - Exit codes: 0 done, 1 failed, 2 misused (arguments or pipeline are wrong).
//! - What a model wrote is shown with its control characters escaped.
//! - A reader that closes its end of a pipe is not an error.

mod cli;
mod commands;
mod heap;
mod logging;
mod report;
mod screen;
mod text;
mod view;

use std::process::ExitCode;

/// Does what the arguments of the process say.
pub fn main() -> ExitCode {
    heap::give_back_large_buffers();
    let screen = screen::Screen::new();
    match cli::run(&screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::report(&error, &screen),
    }
}

/// The arguments as they are declared, for their reference.
pub fn command() -> clap::Command {
    cli::command()
}
