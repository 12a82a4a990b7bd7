//! Benchmarks: from the columns of their publishers' files to problems with a prompt, an answer or tests.
//!
//! # Map
//! - [`Card`]: all that there is to know of a benchmark. `cards` has one for each; start there.
//! - [`Layout`]: the columns of one publisher's files, and what a row of them says.
//! - [`problems`]: rows in, problems out.
//!
//! # A new benchmark
//! A word in `pipeline::Benchmark`, and a [`Card`] with the prompt that was published for it, the verifier
//! with the order in which it looks for answers, and a [`Layout`] per publisher; most of these are a line.

mod cards;

use aha_compute::random::Philox;
use arrow::array::RecordBatch;
use serde_json::{Map, Value as Json};

pub use cards::card;

use crate::error::{Error, Result};
use crate::generate::address;
use crate::prompts::{Origin, Problem};

/// A benchmark.
#[derive(Debug)]
pub struct Card {
    /// What is asked of the model, with `{prompt}` where the problem goes. A stage's template goes around it.
    pub instruction: &'static str,
    /// The split that results are published for. Rows of others are left out where the data have a column
    /// `split`.
    pub split: &'static str,
    /// The verifier, as a pipeline's `reward` in JSON.
    pub reward: &'static str,
    /// How files are laid out: the first whose columns are there.
    pub layouts: &'static [Layout],
}

/// How the files of a publisher are laid out.
#[derive(Debug)]
pub struct Layout {
    /// Whose files these are.
    pub publisher: &'static str,
    /// Columns that must be there.
    pub columns: &'static [&'static str],
    /// Columns that are read where they are there.
    pub optional: &'static [&'static str],
    /// What a row says.
    pub read: fn(&Row) -> Result<Read>,
}

/// What a row says of a problem.
#[derive(Debug, Default)]
pub struct Read {
    /// Identity in the data set; none: the row's number.
    pub id: Option<String>,
    /// The problem, as it goes into the instruction.
    pub prompt: String,
    /// The final answer.
    pub answer: Option<String>,
    /// Tests as JSON.
    pub tests: Option<Json>,
    /// Elo rating of the problem.
    pub rating: Option<f64>,
}

/// A row of a publisher's file.
pub struct Row {
    values: Map<String, Json>,
    /// The row's number, from 0.
    row_idx: usize,
    origin: Origin,
    random: Philox,
}

impl Row {
    /// The text of a column that has to be there.
    fn text(&self, column: &str) -> Result<String> {
        self.maybe_text(column).ok_or_else(|| self.origin.null("problems", self.row_idx, column))
    }

    /// The text of a column; numbers as they are written.
    fn maybe_text(&self, column: &str) -> Option<String> {
        match self.values.get(column)? {
            Json::Null => None,
            Json::String(text) => Some(text.clone()),
            // A whole number that a reader of JSON or CSV took for a float.
            Json::Number(number) => match number.as_f64() {
                Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15 => {
                    Some(format!("{x:.0}"))
                }
                _ => Some(number.to_string()),
            },
            other => Some(other.to_string()),
        }
    }

    /// The number in a column.
    fn maybe_number(&self, column: &str) -> Option<f64> {
        match self.values.get(column)? {
            Json::Number(number) => number.as_f64(),
            Json::String(text) => text.trim().parse().ok(),
            _ => None,
        }
        .filter(|number| number.is_finite())
    }

    /// The texts of a column of lists; a text that holds a list as JSON will do.
    fn texts(&self, column: &str) -> Vec<String> {
        let items = self.list(column).into_iter();
        items
            .map(|item| match item {
                Json::String(text) => text,
                other => other.to_string(),
            })
            .collect()
    }

    /// The items of a column of lists; a text that holds a list as JSON will do.
    fn list(&self, column: &str) -> Vec<Json> {
        match self.values.get(column) {
            Some(Json::Array(items)) => items.clone(),
            Some(Json::String(text)) => serde_json::from_str(text).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// A permutation of `0..len` that is a function of the seed and the problem's id.
    fn shuffled(&self, id: &str, len: usize) -> Vec<usize> {
        self.random.permutation(address(id), len)
    }

    /// An error of this row.
    fn wrong(&self, message: &str) -> Error {
        Error::input(format!("row {} of the problems: {message}", self.row_idx))
    }
}

/// The problems of a benchmark in rows of any of its layouts. `random` is the family of draws that depend on
/// the problem alone.
pub fn problems(
    name: &str,
    card: &Card,
    batches: &[RecordBatch],
    random: Philox,
    origin: Origin,
) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let mut row_idx = 0;
    let mut other_splits_count = 0;
    for batch in batches {
        let layout = layout_of(name, card, batch)?;
        for values in rows_of(layout, batch)? {
            let row = Row { values, row_idx, origin, random };
            row_idx += 1;
            if row.maybe_text("split").is_some_and(|split| split != card.split) {
                other_splits_count += 1;
                continue;
            }
            let read = (layout.read)(&row)?;
            problems.push(Problem {
                id: read.id.unwrap_or_else(|| row.row_idx.to_string()),
                prompt: read.prompt,
                answer: read.answer,
                source: row.maybe_text("source").or_else(|| Some(name.to_owned())),
                tests: read.tests.map(|tests| tests.to_string()),
                rating: read.rating,
                pass_rate: None,
            });
        }
    }
    if problems.is_empty() && other_splits_count > 0 {
        return Err(Error::input_with(
            format!("no row has the split `{}`, which `{name}` is evaluated on", card.split),
            "give the file of that split, or problems without a column `split`",
        ));
    }
    crate::prompts::check(&problems, origin)?;
    Ok(problems)
}

fn layout_of<'a>(name: &str, card: &'a Card, batch: &RecordBatch) -> Result<&'a Layout> {
    let schema = batch.schema();
    let has = |column: &&str| schema.column_with_name(column).is_some();
    let found = card.layouts.iter().find(|layout| layout.columns.iter().all(has));
    found.ok_or_else(|| {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        Error::input_with(
            format!("no layout of `{name}` has the columns {}", names.join(", ")),
            format!("expected {}", layouts(card)),
        )
    })
}

/// The layouts that a card knows, for people.
pub fn layouts(card: &Card) -> String {
    let known = card.layouts.iter().map(|layout| {
        let columns: Vec<String> = layout.columns.iter().map(|c| format!("`{c}`")).collect();
        format!("{} ({})", columns.join(", "), layout.publisher)
    });
    known.collect::<Vec<_>>().join("; or ")
}

/// The rows as JSON objects, without what the layout doesn't read: lists and structs of any depth look the
/// same whatever kind of file they come from.
fn rows_of(layout: &Layout, batch: &RecordBatch) -> Result<Vec<Map<String, Json>>> {
    let schema = batch.schema();
    let is_read = |name: &str| {
        ["split", "source"].iter().chain(layout.columns).chain(layout.optional).any(|c| *c == name)
    };
    let fields = schema.fields().iter().enumerate();
    let columns: Vec<usize> =
        fields.filter(|(_, field)| is_read(field.name())).map(|(idx, _)| idx).collect();
    let failed = |error: &dyn std::error::Error| {
        Error::input(format!("rows of the layout of {} can't be read: {error}", layout.publisher))
    };
    let batch = batch.project(&columns).map_err(|error| failed(&error))?;
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write(&batch).and_then(|()| writer.finish()).map_err(|error| failed(&error))?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests;
