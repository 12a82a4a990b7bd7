//! Problems out of tables, and the tokens that a template makes of them.

use std::collections::HashSet;
use std::sync::Arc;

use aha_data::Session;
use aha_model::chat_template::{ChatTemplate, Message};
use aha_model::{Model, Tokenizer};
use arrow::array::{Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use crate::error::{Error, Result};
use crate::pipeline::{Sql, Template};

/// A problem of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// The problems that a query finds, in its order. `id` is optional: the row's number stands in.
pub async fn load(session: &Session, sql: &Sql) -> Result<Vec<Problem>> {
    let mut problems: Vec<Problem> = Vec::new();
    for batch in session.collect(&sql.0).await? {
        let prompts = required_text(&batch, "prompt")?;
        let (ids, answers) = (text(&batch, "id")?, text(&batch, "answer")?);
        let (sources, tests) = (text(&batch, "source")?, text(&batch, "tests")?);
        let get = |column: &Option<StringArray>, row: usize| {
            column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
        };
        for row in 0..batch.num_rows() {
            if prompts.is_null(row) {
                return Err(Error::input_with(
                    format!("row {} of the prompts has no prompt", problems.len()),
                    "leave such rows out with `WHERE prompt IS NOT NULL`",
                ));
            }
            problems.push(Problem {
                id: get(&ids, row).unwrap_or_else(|| problems.len().to_string()),
                prompt: prompts.value(row).to_owned(),
                answer: get(&answers, row),
                source: get(&sources, row),
                tests: get(&tests, row),
            });
        }
    }
    check(&problems)?;
    Ok(problems)
}

fn check(problems: &[Problem]) -> Result<()> {
    if problems.is_empty() {
        return Err(Error::input_with("the query finds no prompts", "look at it with `aha query`"));
    }
    let mut seen = HashSet::new();
    match problems.iter().find(|p| !seen.insert(p.id.as_str())) {
        Some(twice) => Err(Error::input_with(
            format!("the prompt id `{}` occurs twice", twice.id),
            "ids must be unique within a stage: join the tables under different ids, or use `SELECT DISTINCT`",
        )),
        None => Ok(()),
    }
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
    text(batch, name)?.ok_or_else(|| {
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        Error::input(format!("the query gives no column `{name}`; it gives {}", names.join(", ")))
    })
}

/// Makes a model's input of prompts, as a stage's template says.
#[derive(Clone, Debug)]
pub struct Prompter {
    tokenizer: Arc<Tokenizer>,
    form: Form,
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
        Ok(Prompter { tokenizer: Arc::clone(tokenizer), form })
    }

    /// The tokens that go in before the model writes.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
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

    /// Prompt and completion as tokens with the end token, and which of them the model has to write.
    pub fn example(&self, prompt: &str, completion: &str) -> Result<Example> {
        match &self.form {
            Form::Text { .. } => {
                let mut ids = self.prompt_ids(prompt)?;
                let mut loss_mask = vec![false; ids.len()];
                ids.extend(self.tokenizer.encode(completion, false)?);
                ids.extend(self.tokenizer.eos_ids().first());
                loss_mask.resize(ids.len(), true);
                Ok(Example { ids, loss_mask, mask_problem: None })
            }
            Form::Chat(template) => {
                let turns = [Message::new("user", prompt), Message::new("assistant", completion)];
                let rendered = template.render(&turns, false)?;
                let (mut ids, mut loss_mask) = self.tokenizer.encode_rendered(&rendered)?;
                let ends = ids
                    .iter()
                    .zip(&loss_mask)
                    .any(|(id, &m)| m && self.tokenizer.eos_ids().contains(id));
                if !ends {
                    ids.extend(self.tokenizer.eos_ids().first());
                    loss_mask.resize(ids.len(), true);
                }
                let stops = self.prompt_ids(prompt)?;
                let mask_problem = rendered.mask_problem.or_else(|| {
                    (!ids.starts_with(&stops)).then(|| {
                        "the template gives other tokens for a prompt alone than before its completion".to_owned()
                    })
                });
                Ok(Example { ids, loss_mask, mask_problem })
            }
        }
    }

    /// Plain text as tokens with the end token, all of which count.
    pub fn text(&self, text: &str) -> Result<Example> {
        let mut ids = self.tokenizer.encode(text, true)?;
        ids.extend(self.tokenizer.eos_ids().first());
        let loss_mask = vec![true; ids.len()];
        Ok(Example { ids, loss_mask, mask_problem: None })
    }
}

/// A text to imitate, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Which of them the loss is over.
    pub loss_mask: Vec<bool>,
    /// Why the mask may be wrong, if so.
    pub mask_problem: Option<String>,
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
    }
}
