//! What can go wrong here, split by what the receiver can do about it; and the translation of
//! DataFusion's errors into it.

use std::borrow::Cow;
use std::path::Path;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;

use crate::curation;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. [`Error::hint`] holds the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The query, the file or the address is wrong: trying again gives the same answer.
    #[error("{message}{}", at(location))]
    Input {
        /// What is wrong, what was expected, what was found.
        message: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// Where in the query.
        location: Option<Location>,
    },
    /// The machine refused; trying again may help.
    #[error("{message}")]
    Environment {
        /// What was tried, and the system's answer.
        message: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// Whether the disk is full.
        is_full: bool,
    },
    /// Our own mistake, or DataFusion's: the run should stop.
    #[error("{message}; this is a bug")]
    Bug {
        /// The invariant that doesn't hold.
        message: String,
    },
}

/// A place in a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
}

impl Error {
    /// The remedy, where there is one to give.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Input { hint, .. } | Self::Environment { hint, .. } => hint.as_deref(),
            Self::Bug { .. } => None,
        }
    }

    /// Where in the query it is, where that is known.
    pub fn location(&self) -> Option<Location> {
        match self {
            Self::Input { location, .. } => *location,
            _ => None,
        }
    }

    /// The message without its place in the query: for a caller that says where in its own words.
    pub fn message(&self) -> &str {
        match self {
            Self::Input { message, .. }
            | Self::Environment { message, .. }
            | Self::Bug { message } => message,
        }
    }

    pub(crate) fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input { message: message.into(), hint: Some(hint.into()), location: None }
    }

    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::Bug { message: message.into() }
    }

    pub(crate) fn io(action: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::Environment {
            message: format!("can't {action} `{}`: {error}", path.display()),
            hint: Some("check the path, and who may read it".to_owned()),
            is_full: aha_rollout::is_full(error),
        }
    }

    /// Translates DataFusion's error. `tables`: the names that a query may use.
    pub(crate) fn from_datafusion(error: &DataFusionError, tables: &[String]) -> Self {
        let error = match error {
            DataFusionError::Collection(errors) => errors.first().unwrap_or(error),
            error => error,
        };
        if aha_rollout::is_full(error) {
            let message = error.find_root().strip_backtrace();
            return Self::Environment { message, hint: None, is_full: true };
        }
        let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
        let location =
            span.map(|span| Location { line: span.start.line, column: span.start.column });
        match error.find_root() {
            DataFusionError::SchemaError(error, _) => schema_error(error, location),
            DataFusionError::SQL(error, _) => syntax_error(error),
            DataFusionError::Plan(message) => plan_error(message, tables, location),
            DataFusionError::ResourcesExhausted(message) => needs_more_memory(message),
            DataFusionError::Internal(message) if message.contains(NOTHING_FITS) => {
                needs_more_memory(&first_paragraph(message))
            }
            DataFusionError::IoError(error) => {
                Self::Environment { message: error.to_string(), hint: None, is_full: false }
            }
            DataFusionError::ObjectStore(error) => {
                Self::Environment { message: error.to_string(), hint: None, is_full: false }
            }
            DataFusionError::Internal(message) => Self::bug(first_paragraph(message)),
            DataFusionError::Execution(message) | DataFusionError::NotImplemented(message) => {
                let (message, hint) = split_hint(message);
                Self::Input { message, hint, location }
            }
            DataFusionError::ArrowError(error, _) => {
                // Such as "Cast error: Cannot cast …"; the kind adds nothing.
                let text = error.to_string();
                let message = text.split_once("error: ").map_or(&*text, |(_, rest)| rest);
                Self::Input { message: message.to_owned(), hint: None, location }
            }
            root => Self::Input { message: root.strip_backtrace(), hint: None, location },
        }
    }
}

impl From<aha_rollout::Error> for Error {
    fn from(error: aha_rollout::Error) -> Self {
        let hint = error.hint().map(str::to_owned);
        let message = error.to_string();
        let is_full = aha_rollout::is_full(&error);
        match error {
            aha_rollout::Error::Input { .. } => Self::Input { message, hint, location: None },
            aha_rollout::Error::Environment { .. } => Self::Environment { message, hint, is_full },
            aha_rollout::Error::Bug { message } => Self::Bug { message },
        }
    }
}

/// What a nested-loop join says, as if it were a bug, where the limit leaves no room for the first batch of its left
/// side: <https://docs.rs/datafusion-physical-plan/55.2.0/src/datafusion_physical_plan/joins/nested_loop_join.rs.html>.
const NOTHING_FITS: &str = "produced no data to spill";

/// The limit is ours: the same query runs into it again.
fn needs_more_memory(message: &str) -> Error {
    Error::input(
        format!("the query needs more memory than it may have: {message}"),
        "raise the memory limit (`run.query_memory` of a pipeline, `--memory` of `aha query`), or select fewer rows or \
         columns",
    )
}

/// What separates an error's message from its hint inside a DataFusion error, which has no field
/// for one.
pub(crate) const HINT: &str = "\nhint: ";

fn at(location: &Option<Location>) -> String {
    location.map_or(String::new(), |at| {
        format!(" (line {}, column {} of the query)", at.line, at.column)
    })
}

fn schema_error(error: &SchemaError, location: Option<Location>) -> Error {
    let (message, hint) = match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<String> = valid_fields.iter().map(|f| f.name().to_owned()).collect();
            let table = field.relation.as_ref().map_or(String::new(), |t| format!(" in `{t}`"));
            (format!("no column `{}`{table}", field.name()), one_of(field.name(), &names))
        }
        SchemaError::AmbiguousReference { field } => (
            format!("column `{}` is in more than one table", field.name()),
            Some(format!("write the table's name before it: `table.{}`", field.name())),
        ),
        error => (error.to_string(), Some("name one of them with `AS`".to_owned())),
    };
    Error::Input { message, hint, location }
}

fn syntax_error(error: &ParserError) -> Error {
    let text = match error {
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
        error => error.to_string(),
    };
    let (message, location) = match text.rsplit_once(" at Line: ") {
        Some((message, place)) => {
            let place = place.split_once(", Column: ").and_then(|(line, column)| {
                Some(Location { line: line.parse().ok()?, column: column.parse().ok()? })
            });
            (message.to_owned(), place)
        }
        None => (text, None),
    };
    Error::Input { message: format!("not valid SQL: {message}"), hint: None, location }
}

fn plan_error(message: &str, tables: &[String], location: Option<Location>) -> Error {
    let message = first_paragraph(message);
    let missing = message.strip_prefix("table '").and_then(|m| m.strip_suffix("' not found"));
    if let Some(name) = missing {
        let name = name.rsplit('.').next().unwrap_or(name);
        let message = format!("no table `{name}`");
        return Error::Input { message, hint: one_of(name, tables), location };
    }
    let call = message.strip_prefix("table function '").and_then(|m| m.strip_suffix("' not found"));
    if let Some(name) = call {
        let known = curation::reference().map(|about| about.name.to_owned());
        let known: Vec<String> =
            known.into_iter().chain(["generate_series", "range"].map(String::from)).collect();
        let message = format!("nothing called `{name}` can be called after FROM");
        return Error::Input { message, hint: one_of(name, &known), location };
    }
    let refused = ["DDL not supported", "DML not supported", "Statement not supported"];
    if refused.iter().any(|prefix| message.starts_with(prefix)) {
        return Error::Input {
            message: format!("only queries are allowed here ({message})"),
            hint: Some("begin with SELECT or WITH; a query can't change anything".to_owned()),
            location,
        };
    }
    let (message, hint) = split_hint(&message);
    Error::Input { message, hint, location }
}

/// A message may carry its remedy on a line of its own: ours after [`HINT`], DataFusion's as a
/// question.
fn split_hint(message: &str) -> (String, Option<String>) {
    if let Some((message, hint)) = message.split_once(HINT) {
        return (message.to_owned(), Some(hint.to_owned()));
    }
    match message.split_once(".\nDid you mean ") {
        Some((message, hint)) => (message.to_owned(), Some(format!("did you mean {hint}"))),
        None => (message.to_owned(), None),
    }
}

/// DataFusion appends advice about reporting bugs, or a backtrace, after an empty line.
fn first_paragraph(message: &str) -> String {
    message.split("\n\n").next().unwrap_or(message).trim_end().to_owned()
}

/// Names the nearest of `names`, where one is near, and all of them.
pub(crate) fn one_of(wrong: &str, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let distance = |name: &str| strsim::damerau_levenshtein(&wrong.to_lowercase(), name);
    let near_max = 1 + wrong.chars().count() / 3;
    let nearest = names.iter().map(|name| (distance(name), name)).min();
    let list = names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    Some(match nearest.filter(|&(distance, _)| distance <= near_max) {
        Some((_, name)) => format!("did you mean `{}`? there are: {list}", quoted(name)),
        None => format!("there are: {list}"),
    })
}

/// A name as a query must write it: without quotes, SQL takes capitals for small letters.
fn quoted(name: &str) -> Cow<'_, str> {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.into() } else { format!("\"{}\"", name.replace('"', "\"\"")).into() }
}

#[cfg(test)]
mod tests {
    use datafusion::common::internal_datafusion_err;

    use super::*;

    #[test]
    fn a_join_whose_left_side_finds_no_room_is_no_bug() {
        let said = internal_datafusion_err!("Left side produced no data to spill");
        let error = Error::from_datafusion(&said, &[]);
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
        assert!(error.hint().unwrap_or_default().contains("query_memory"), "{error:?}");
        let said = internal_datafusion_err!("a plan without columns");
        assert!(matches!(Error::from_datafusion(&said, &[]), Error::Bug { .. }));
    }
}
