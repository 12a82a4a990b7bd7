//! Errors as people read them: what, then the remedy on a line of its own; and the exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use aha_flow::run::Failure;

use crate::screen::Screen;

/// What separates a message from its remedy where a library's error has one text for both.
const HINT: &str = "\nhint: ";

/// Something that did not work.
const FAILED: u8 = 1;
/// Arguments or pipeline are wrong.
const MISUSED: u8 = 2;

/// An error whose message, remedy and exit code are known.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    message: String,
    hint: Option<String>,
    exit_code: u8,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Told {}

/// Something failed: message and remedy.
pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Told { message: message.into(), hint: Some(hint.into()), exit_code: FAILED }.into()
}

/// Arguments are wrong: message and remedy.
pub fn misuse(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Told { message: message.into(), hint: Some(hint.into()), exit_code: MISUSED }.into()
}

/// Says that an error comes from wrong arguments.
pub fn misused(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Told { exit_code: MISUSED, ..told(&error.into()) }.into()
}

/// Shows an error and gives the exit code.
pub fn report(error: &anyhow::Error, screen: &Screen) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(Failure::Problems(problems)) = error.downcast_ref() {
        screen.line(problems.to_string().trim_end());
        return ExitCode::from(MISUSED);
    }
    let Told { message, hint, exit_code } = told(error);
    screen.line(&format!("error: {message}"));
    if let Some(hint) = hint {
        screen.line(&format!("hint: {hint}"));
    }
    ExitCode::from(exit_code)
}

/// Whoever read our output has enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is))
}

/// Message and remedy, gathered from an error and its causes.
fn told(error: &anyhow::Error) -> Told {
    if let Some(Told { message, hint, exit_code }) = error.downcast_ref() {
        return Told { message: message.clone(), hint: hint.clone(), exit_code: *exit_code };
    }
    let mut told = Told { message: String::new(), hint: None, exit_code: FAILED };
    for cause in error.chain() {
        let text = cause.to_string();
        let (message, hint) = match text.split_once(HINT) {
            Some((message, hint)) => (message, Some(hint)),
            None => (text.as_str(), hint_of(cause)),
        };
        if !told.message.contains(message) {
            let separator = if told.message.is_empty() { "" } else { ": " };
            told.message = format!("{}{separator}{message}", told.message);
        }
        told.hint = told.hint.or_else(|| hint.map(str::to_owned));
    }
    told
}

/// The remedy that an error of one of our crates keeps apart from its message.
fn hint_of<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a str> {
    let flow = cause.downcast_ref::<aha_flow::Error>().and_then(aha_flow::Error::hint);
    let failure = cause.downcast_ref::<Failure>().and_then(|failure| match failure {
        Failure::Run(error) => error.hint(),
        Failure::Problems(_) => None,
    });
    let data = cause.downcast_ref::<aha_data::Error>().and_then(aha_data::Error::hint);
    let daemon = cause.downcast_ref::<aha_daemon::Error>().and_then(|error| error.hint.as_deref());
    flow.or(failure).or(data).or(daemon)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_remedy_is_found_wherever_the_error_keeps_it() {
        let flow = aha_flow::Error::input_with("no such table", "look again");
        let model = aha_model::Error::input("no config").hint("look again");
        let errors = [flow.into(), model.into(), failed("x", "look again")];
        for error in errors.map(|error: anyhow::Error| error.context("reading")) {
            // `context` hides nothing: the remedy is that of the cause.
            let told = told(&error);
            assert!(!told.message.contains("look again"), "{told:?}");
        }
        let error = Err::<(), _>(aha_model::Error::input("no config").hint("look again"));
        let told = told(&error.context("reading `x`").unwrap_err());
        assert_eq!(told.message, "reading `x`: no config");
        assert_eq!(told.hint.as_deref(), Some("look again"));
    }

    #[test]
    fn misuse_keeps_message_and_remedy() {
        let error = misused(aha_flow::Error::input_with("no such table", "look again"));
        let expected = Told {
            message: "no such table".to_owned(),
            hint: Some("look again".to_owned()),
            exit_code: MISUSED,
        };
        assert_eq!(told(&error), expected);
    }

    #[test]
    fn a_closed_pipe_is_seen_through_its_wrappers() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = aha_reward::Error::Environment { action: "writing a verdict", source: error };
        assert!(is_broken_pipe(&error.into()));
        assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::NotFound).into()));
    }
}
