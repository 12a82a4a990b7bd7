//! Problems out of tables, and the tokens that a template makes of them.

use std::collections::HashSet;
use std::sync::Arc;

use aha_data::Session;
use aha_model::chat_template::{ChatTemplate, Message};
use aha_model::{Model, Tokenizer};
use arrow::array::{Array, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use crate::error::{Error, Result};
use crate::pipeline::{Sql, Template};

/// A problem of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Identity in its data set.
    pub id: String,
    /// The text.
    pub prompt: String,
    /// Reference answer.
    pub answer: Option<String>,
    /// Where it is from.
    pub source: Option<String>,
    /// Tests as JSON.
    pub tests: Option<String>,
    /// Elo rating, where the data set rates its problems.
    pub rating: Option<f64>,
    /// Share of completions that passed, where that was measured before.
    pub pass_rate: Option<f64>,
}

/// Where rows are from, which decides what can be done about wrong ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A query of a pipeline.
    Query,
    /// The files that `aha eval` was given.
    Files,
}

impl Origin {
    /// A row has nothing where something has to be. `what` is what the rows are.
    pub fn null(self, what: &str, row_idx: usize, column: &str) -> Error {
        Error::input_with(
            format!("row {row_idx} of the {what} has no `{column}`: it is null"),
            match self {
                Origin::Query => format!("leave such rows out with `WHERE {column} IS NOT NULL`"),
                Origin::Files => format!("give every row a `{column}`, or take the row out"),
            },
        )
    }

    fn missing(self, column: &str, names: &[&str]) -> Error {
        let names = names.join(", ");
        match self {
            Origin::Query => {
                Error::input(format!("the query gives no column `{column}`; it gives {names}"))
            }
            Origin::Files => Error::input_with(
                format!("the data have no column `{column}`; they have {names}"),
                "give problems with columns `id`, `prompt` and `answer`, or name the benchmark that \
                 they are with --benchmark",
            ),
        }
    }

    fn nothing(self) -> Error {
        match self {
            Origin::Query => {
                Error::input_with("the query finds no prompts", "look at it with `aha query`")
            }
            Origin::Files => {
                Error::input_with("the data hold no problems", "give a file with at least one row")
            }
        }
    }

    fn twice(self, id: &str) -> Error {
        Error::input_with(
            format!("the prompt id `{id}` occurs twice"),
            match self {
                Origin::Query => {
                    "ids must be unique within a stage: join the tables under different ids, or use \
                     `SELECT DISTINCT`"
                }
                Origin::Files => "ids must be unique: give each problem its own, or none",
            },
        )
    }
}

/// The problems that a query finds, in its order. `id` is optional: the row's number stands in.
pub async fn load(session: &Session, sql: &Sql) -> Result<Vec<Problem>> {
    of_rows(&session.collect(&sql.0).await?, Origin::Query)
}

/// The problems in rows with our own columns, in their order.
pub fn of_rows(batches: &[RecordBatch], origin: Origin) -> Result<Vec<Problem>> {
    let mut problems: Vec<Problem> = Vec::new();
    for batch in batches {
        let prompts = column(batch, "prompt", origin)?;
        let (ids, answers) = (text(batch, "id")?, text(batch, "answer")?);
        let (sources, tests) = (text(batch, "source")?, text(batch, "tests")?);
        let (ratings, pass_rates) = (numbers(batch, "rating"), numbers(batch, "pass_rate"));
        let number = |column: &Option<Float64Array>, row: usize| {
            column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row))
        };
        let get = |column: &Option<StringArray>, row: usize| {
            column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
        };
        for row in 0..batch.num_rows() {
            let row_idx = problems.len();
            if prompts.is_null(row) {
                return Err(origin.null("prompts", row_idx, "prompt"));
            }
            problems.push(Problem {
                id: get(&ids, row).unwrap_or_else(|| row_idx.to_string()),
                prompt: prompts.value(row).to_owned(),
                answer: get(&answers, row),
                source: get(&sources, row),
                tests: get(&tests, row),
                rating: number(&ratings, row),
                pass_rate: number(&pass_rates, row),
            });
        }
    }
    check(&problems, origin)?;
    Ok(problems)
}

/// Fails where there are no problems, or two of one id.
pub fn check(problems: &[Problem], origin: Origin) -> Result<()> {
    if problems.is_empty() {
        return Err(origin.nothing());
    }
    let mut seen = HashSet::new();
    match problems.iter().find(|p| !seen.insert(p.id.as_str())) {
        Some(twice) => Err(origin.twice(&twice.id)),
        None => Ok(()),
    }
}

/// A column of finite numbers; none where there is no such column, or it holds something else.
fn numbers(batch: &RecordBatch, name: &str) -> Option<Float64Array> {
    let column = batch.column_by_name(name).filter(|column| column.data_type().is_numeric())?;
    let column = cast(column, &DataType::Float64).ok()?;
    column.as_any().downcast_ref::<Float64Array>().cloned()
}

/// A column as text, whatever string type the table has; none if there is no such column.
pub fn text(batch: &RecordBatch, name: &str) -> Result<Option<StringArray>> {
    let Some(column) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let column = cast(column, &DataType::Utf8)
        .map_err(|error| Error::input(format!("column `{name}` can't be read as text: {error}")))?;
    let column = column.as_any().downcast_ref::<StringArray>().cloned();
    column.map(Some).ok_or_else(|| Error::bug("a cast to text gave another type"))
}

/// As [`text`], for a column that has to be there.
pub fn required_text(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    column(batch, name, Origin::Query)
}

fn column(batch: &RecordBatch, name: &str, origin: Origin) -> Result<StringArray> {
    text(batch, name)?.ok_or_else(|| {
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        origin.missing(name, &names)
    })
}

/// The text of a row, which must not be null. `place` is what the query is for, and which of all its rows
/// this is.
pub fn required_value<'a>(
    column: &'a StringArray,
    row: usize,
    name: &str,
    place: (&str, usize),
) -> Result<&'a str> {
    if column.is_valid(row) {
        return Ok(column.value(row));
    }
    let (what, row_idx) = place;
    Err(Origin::Query.null(what, row_idx, name))
}

/// Makes a model's input of prompts, as a stage's template says.
#[derive(Clone, Debug)]
pub struct Prompter {
    tokenizer: Arc<Tokenizer>,
    form: Form,
    /// Text before and after the prompt, inside the template.
    instruction: Option<(String, String)>,
}

#[derive(Clone, Debug)]
enum Form {
    /// Text before and after the prompt.
    Text {
        before: String,
        after: String,
    },
    Chat(Box<ChatTemplate>),
}

impl Prompter {
    /// Fails where the template needs something that the tokenizer doesn't have.
    pub fn new(tokenizer: &Arc<Tokenizer>, template: &Template) -> Result<Prompter> {
        let form = match template {
            Template::Raw => Form::Text { before: String::new(), after: String::new() },
            Template::Text(text) => {
                let (before, after) = text
                    .split_once("{prompt}")
                    .ok_or_else(|| Error::bug("a template without `{prompt}` was resolved"))?;
                Form::Text { before: before.to_owned(), after: after.to_owned() }
            }
            Template::R1Zero => Form::Chat(Box::new(ChatTemplate::named("r1-zero", tokenizer)?)),
            Template::Chat => Form::Chat(Box::new(ChatTemplate::named("chat", tokenizer)?)),
        };
        Ok(Prompter { tokenizer: Arc::clone(tokenizer), form, instruction: None })
    }

    /// With a text around each prompt, which has `{prompt}` where that goes; the template goes around both.
    #[must_use]
    pub fn with_instruction(self, text: &str) -> Prompter {
        let (before, after) = text.split_once("{prompt}").unwrap_or((text, ""));
        Prompter { instruction: Some((before.to_owned(), after.to_owned())), ..self }
    }

    /// The tokens that go in before the model writes.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let instructed;
        let prompt = match &self.instruction {
            Some((before, after)) => {
                instructed = format!("{before}{prompt}{after}");
                &instructed
            }
            None => prompt,
        };
        match &self.form {
            Form::Text { before, after } => {
                Ok(self.tokenizer.encode(&format!("{before}{prompt}{after}"), true)?)
            }
            Form::Chat(template) => {
                let rendered = template.render_prompt(prompt)?;
                Ok(self.tokenizer.encode_rendered(&rendered)?.0)
            }
        }
    }

    /// Prompt and completion as tokens with an end token, and which of them the model has to write.
    pub fn example(&self, prompt: &str, completion: &str) -> Result<Example> {
        let prompt_ids = self.prompt_ids(prompt)?;
        match &self.form {
            Form::Text { .. } => {
                let mut ids = prompt_ids;
                let mut loss_mask = vec![false; ids.len()];
                ids.extend(self.tokenizer.encode(completion, false)?);
                loss_mask.resize(ids.len(), true);
                Ok(self.with_end(ids, loss_mask))
            }
            Form::Chat(template) => {
                let turns = [Message::new("user", prompt), Message::new("assistant", completion)];
                let rendered = template.render(&turns, false)?;
                let (ids, loss_mask) = self.tokenizer.encode_rendered(&rendered)?;
                let problem = if rendered.assistant_spans.is_empty() {
                    Some("the template marks no part of the conversation as the assistant's")
                } else if !ids.starts_with(&prompt_ids) {
                    Some(
                        "the template gives other tokens for a prompt alone than before its completion",
                    )
                } else {
                    None
                };
                let mask_problem = rendered.mask_problem.or(problem.map(str::to_owned));
                let start = loss_mask.iter().position(|&m| m).unwrap_or(prompt_ids.len());
                let stop = match self.stop_token(&ids, &loss_mask, start) {
                    // Without a part of the assistant's there is no place for its end.
                    None if rendered.assistant_spans.is_empty() => StopToken::OutsideMask,
                    None => {
                        return Ok(Example { mask_problem, ..self.with_end(ids, loss_mask) });
                    }
                    Some(stop) => stop,
                };
                Ok(Example { ids, loss_mask, stop, mask_problem })
            }
        }
    }

    /// A conversation as tokens, of which the model has to write `turns`, places in `messages`. End tokens are
    /// where the template puts them.
    pub fn conversation(&self, messages: &[Message], turns: &[usize]) -> Result<Example> {
        let Form::Chat(template) = &self.form else {
            return Err(Error::input_with(
                "a conversation can't be written without a chat template",
                "set `template` to \"chat\" or \"r1-zero\"",
            ));
        };
        let rendered = template.render_turns(messages, turns)?;
        let (ids, loss_mask) = self.tokenizer.encode_rendered(&rendered)?;
        let is_end = |id: &u32| self.tokenizer.eos_ids().contains(id);
        let learned_end_count = ids
            .iter()
            .zip(&loss_mask)
            .filter(|(id, is_learned)| **is_learned && is_end(id))
            .count();
        let stop = match learned_end_count {
            _ if self.tokenizer.eos_ids().is_empty() => StopToken::Missing,
            count if count < rendered.assistant_spans.len() => StopToken::OutsideMask,
            _ => StopToken::Learned,
        };
        Ok(Example { ids, loss_mask, stop, mask_problem: rendered.mask_problem })
    }

    /// Where the token is that ends the assistant's part, which begins at `start`; none where the template
    /// puts none there.
    fn stop_token(&self, ids: &[u32], loss_mask: &[bool], start: usize) -> Option<StopToken> {
        let is_end = |id: &u32| self.tokenizer.eos_ids().contains(id);
        if ids.iter().zip(loss_mask).any(|(id, &is_learned)| is_learned && is_end(id)) {
            return Some(StopToken::Learned);
        }
        // A second end token after one that isn't learned would never be reached by a sampler.
        ids.iter().skip(start).any(is_end).then_some(StopToken::OutsideMask)
    }

    /// What the model has to write, with an end token after it that it learns as well.
    fn with_end(&self, mut ids: Vec<u32>, mut loss_mask: Vec<bool>) -> Example {
        let end = self.tokenizer.eos_ids().first();
        let stop = if end.is_some() { StopToken::Learned } else { StopToken::Missing };
        ids.extend(end);
        loss_mask.resize(ids.len(), true);
        Example { ids, loss_mask, stop, mask_problem: None }
    }

    /// Plain text as tokens with the end token, all of which count.
    pub fn text(&self, text: &str) -> Result<Example> {
        let ids = self.tokenizer.encode(text, true)?;
        let loss_mask = vec![true; ids.len()];
        Ok(self.with_end(ids, loss_mask))
    }
}

/// A text to imitate, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Which of them the loss is over.
    pub loss_mask: Vec<bool>,
    /// Where the token is that ends it.
    pub stop: StopToken,
    /// Why the mask may be wrong, if so.
    pub mask_problem: Option<String>,
}

/// Where the token is that ends an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopToken {
    /// Inside the loss mask: the model learns to stop.
    Learned,
    /// After what the model has to write, where the template puts it, but outside the loss mask.
    OutsideMask,
    /// Cut off, with the end of an example that was too long.
    CutOff,
    /// Nowhere: the tokenizer has none.
    Missing,
}

/// Settings of a stage's sampling, with the model's own end tokens.
pub fn sampling(
    file: &crate::pipeline::Sampling,
    model: &Model,
    tokenizer: &Tokenizer,
) -> aha_sample::Sampling {
    let mut stop_token_ids = file.stop_token_ids.clone();
    stop_token_ids.extend(tokenizer.eos_ids());
    stop_token_ids.extend(&model.config().eos_ids);
    stop_token_ids.sort_unstable();
    stop_token_ids.dedup();
    aha_sample::Sampling {
        temperature: file.temperature as f32,
        top_p: file.top_p as f32,
        top_k: file.top_k as usize,
        max_tokens: file.max_tokens as usize,
        stop: file.stop.clone(),
        stop_token_ids,
        thinking: None,
        weights: file.weights.into(),
    }
}
