//! The examples of an `sft` stage: what its query gives, as tokens, and what is wrong with them.

use std::sync::Arc;

use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, SftExampleRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};
use arrow::array::{Array, RecordBatch, StringArray};
use serde_json::Value;

use super::Sft;
use super::conversation::{Conversation, MESSAGES, conversations};
use crate::error::{Error, Result};
use crate::pipeline::{LossOn, Overlong, SftForm};
use crate::prompts::{Example, Origin, Prompter, StopToken, required_text, required_value, text};
use crate::watchdog;

/// Rows of a part of the stage's table.
const PART_ROWS: usize = 8192;

/// An example with its identity.
pub struct Row {
    /// Identity in its data.
    pub id: String,
    source: Option<String>,
    prompt: Option<String>,
    completion: String,
    messages: Option<String>,
    /// As tokens.
    pub example: Example,
}

/// What a row has to teach.
struct Learned {
    prompt: Option<String>,
    completion: String,
    messages: Option<String>,
    example: Example,
}

/// Where a row is.
struct Place<'a> {
    /// In its batch.
    row: usize,
    /// Among all, with what they are.
    number: (&'static str, usize),
    id: &'a str,
}

/// What conversations had that has to be told.
#[derive(Default)]
struct Seen {
    /// Those without a turn that the loss is over.
    without_turns: usize,
    /// Those with a flag that says that a turn isn't to be learned.
    masked: usize,
}

/// The columns that examples are made of.
enum Columns {
    Text(StringArray),
    Pairs(StringArray, StringArray),
    Conversations(Vec<Option<Value>>),
}

impl Columns {
    fn of(batch: &RecordBatch) -> Result<Columns> {
        let schema = batch.schema();
        let names = schema.fields().iter().map(|field| field.name().as_str());
        Ok(match SftForm::of(names) {
            SftForm::Text => Columns::Text(required_text(batch, "text")?),
            SftForm::Conversations => Columns::Conversations(conversations(batch)?),
            SftForm::Pairs => {
                Columns::Pairs(required_text(batch, "prompt")?, required_text(batch, "completion")?)
            }
        })
    }
}

impl Sft<'_> {
    /// The examples of the stage's query, encoded, without those that are too long.
    pub(super) async fn examples(
        &self,
        model: &Model,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Vec<Row>> {
        let prompter = Prompter::new(tokenizer, &self.settings.template)?;
        let positions = model.config().max_position_embeddings;
        let max = positions.min(self.settings.max_tokens as usize);
        let mut rows = Vec::new();
        let (mut left_out, mut first) = (0_usize, 0_usize);
        let mut seen = Seen::default();
        for batch in self.context.session.collect(&self.settings.data.0).await? {
            for row in self.encode(&prompter, &batch, first, &mut seen)? {
                match self.fit(row, max)? {
                    Some(row) => rows.push(row),
                    None => left_out += 1,
                }
            }
            first += batch.num_rows();
        }
        self.tell(&seen);
        if left_out > 0 {
            let message = format!("{left_out} examples are longer than {max} tokens and left out");
            self.context.warn(
                message,
                "raise `max_tokens`, or set `overlong` to \"truncate\" or \"error\"",
            );
        }
        // They come first: a mask that is broken may well leave nothing to train on.
        let examples = rows.iter().map(|row: &Row| &row.example);
        for found in watchdog::examples(&self.settings.watchdogs, examples) {
            self.context.tell(found)?;
        }
        if rows.iter().all(|row| row.example.loss_mask.iter().skip(1).all(|&m| !m)) {
            return Err(Error::Watchdog {
                message: format!(
                    "there is nothing to train on: the query gives {} usable examples",
                    rows.len()
                ),
                hint: "look at the query with `aha query`, and at `max_tokens` and `loss_on`"
                    .to_owned(),
            });
        }
        model.check_ids(rows.iter().flat_map(|row| row.example.ids.iter().copied()))?;
        Ok(rows)
    }

    fn tell(&self, seen: &Seen) {
        if seen.without_turns > 0 {
            let message = format!(
                "{} conversations have no turn that the loss is over, and are left out",
                seen.without_turns
            );
            self.context.warn(
                message,
                "look at `role`, and at `train` and `weight` if `loss_on` reads them",
            );
        }
        if seen.masked > 0 && self.settings.loss_on != LossOn::Flagged {
            let message = format!(
                "{} conversations have turns with `train` = false or `weight` = 0, which `loss_on` = \"{}\" \
                 doesn't read",
                seen.masked,
                self.settings.loss_on.word()
            );
            self.context.warn(message, "set `loss_on` to \"flagged\", or take these fields out");
        }
    }

    /// The rows of a batch, as far as there is something to learn in them. `first` rows came before.
    fn encode(
        &self,
        prompter: &Prompter,
        batch: &RecordBatch,
        first: usize,
        seen: &mut Seen,
    ) -> Result<Vec<Row>> {
        let (ids, sources) = (text(batch, "id")?, text(batch, "source")?);
        let columns = Columns::of(batch)?;
        let get = |column: &Option<StringArray>, row: usize| {
            column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
        };
        let mut rows = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let id = get(&ids, row).unwrap_or_else(|| (first + row).to_string());
            let place = Place { row, number: ("examples", first + row), id: &id };
            let Some(learned) = self.learned(prompter, &columns, &place, seen)? else { continue };
            let Learned { prompt, completion, messages, mut example } = learned;
            if self.settings.loss_on == LossOn::All {
                learn_all(&mut example);
            }
            rows.push(Row {
                source: get(&sources, row),
                id,
                prompt,
                completion,
                messages,
                example,
            });
        }
        Ok(rows)
    }

    /// What a row has to teach; none where that is no turn of its conversation.
    fn learned(
        &self,
        prompter: &Prompter,
        columns: &Columns,
        place: &Place<'_>,
        seen: &mut Seen,
    ) -> Result<Option<Learned>> {
        let within = |error: Error| error.within(&format!("example `{}`", place.id));
        let value = |column, name| required_value(column, place.row, name, place.number);
        Ok(Some(match columns {
            Columns::Text(texts) => {
                let text = value(texts, "text")?;
                let example = prompter.text(text).map_err(within)?;
                Learned { prompt: None, completion: text.to_owned(), messages: None, example }
            }
            Columns::Pairs(prompts, completions) => {
                let prompt = value(prompts, "prompt")?;
                let completion = value(completions, "completion")?.to_owned();
                let example = prompter.example(prompt, &completion).map_err(within)?;
                Learned { prompt: Some(prompt.to_owned()), completion, messages: None, example }
            }
            Columns::Conversations(values) => {
                let (what, number) = place.number;
                let value = values[place.row]
                    .as_ref()
                    .ok_or_else(|| Origin::Query.null(what, number, MESSAGES))?;
                let found = Conversation::of_json(value).map_err(within)?;
                seen.masked += usize::from(found.has_masked_turn());
                let turns = found.turns(self.settings.loss_on);
                if turns.is_empty() && self.settings.loss_on != LossOn::All {
                    seen.without_turns += 1;
                    return Ok(None);
                }
                let mut example = prompter.conversation(&found.messages, &turns).map_err(within)?;
                example.mask_problem = example
                    .mask_problem
                    .map(|problem| format!("example `{}`: {problem}", place.id));
                let completion = found.text_of(&turns);
                Learned { prompt: None, completion, messages: Some(found.json), example }
            }
        }))
    }

    /// The row within `max` tokens, as `overlong` says.
    fn fit(&self, mut row: Row, max: usize) -> Result<Option<Row>> {
        let len = row.example.ids.len();
        if len <= max {
            return Ok(Some(row));
        }
        match self.settings.overlong {
            Overlong::Drop => Ok(None),
            Overlong::Truncate => {
                row.example.ids.truncate(max);
                row.example.loss_mask.truncate(max);
                row.example.stop = StopToken::CutOff;
                Ok(Some(row))
            }
            Overlong::Error => Err(Error::input_with(
                format!("example `{}` has {len} tokens: expected at most {max}", row.id),
                "raise `max_tokens`, or set `overlong` to \"drop\" or \"truncate\"",
            )),
        }
    }

    /// The stage's table: what it trains on.
    pub(super) fn write_table(&self, rows: &[Row]) -> Result<()> {
        let (stage, dir) = (self.context.stage, self.context.dir);
        let table =
            dir.write(|| Ok(TableWriter::open(&dir.table(stage), schema::sft_examples())?))?;
        for (part, rows) in rows.chunks(PART_ROWS).enumerate() {
            let rows: Vec<SftExampleRow<'_>> = rows
                .iter()
                .map(|row| SftExampleRow {
                    stage,
                    example_id: &row.id,
                    source: row.source.as_deref(),
                    prompt: row.prompt.as_deref(),
                    completion: &row.completion,
                    messages: row.messages.as_deref(),
                    token_ids: &row.example.ids,
                    loss_mask: &row.example.loss_mask,
                })
                .collect();
            let rows = [rows::sft_examples(&rows)?];
            dir.write(|| Ok(table.write(&part_name(part as u64), &rows)?))?;
        }
        Ok(())
    }
}

/// The loss is over all tokens, an end token that the template left out included.
fn learn_all(example: &mut Example) {
    example.loss_mask.fill(true);
    if example.stop == StopToken::OutsideMask {
        example.stop = StopToken::Learned;
    }
}
