//! The examples of an `sft` stage: what its query gives, as tokens, and what is wrong with them.

use std::sync::Arc;

use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, SftExampleRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};
use arrow::array::{Array, RecordBatch, StringArray};

use super::Sft;
use crate::error::{Error, Result};
use crate::pipeline::{LossOn, Overlong};
use crate::prompts::{Example, Prompter, StopToken, required_text, required_value, text};
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
    /// As tokens.
    pub example: Example,
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
        let mut left_out = 0_usize;
        for batch in self.session.collect(&self.settings.data.0).await? {
            for row in self.encode(&prompter, &batch, rows.len() + left_out)? {
                match self.fit(row, max)? {
                    Some(row) => rows.push(row),
                    None => left_out += 1,
                }
            }
        }
        if left_out > 0 {
            let message = format!("{left_out} examples are longer than {max} tokens and left out");
            self.training().warn(
                message,
                "raise `max_tokens`, or set `overlong` to \"truncate\" or \"error\"",
            );
        }
        // They come first: a mask that is broken may well leave nothing to train on.
        let examples = rows.iter().map(|row: &Row| &row.example);
        for found in watchdog::examples(&self.settings.watchdogs, examples) {
            self.training().tell(found)?;
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

    fn encode(&self, prompter: &Prompter, batch: &RecordBatch, first: usize) -> Result<Vec<Row>> {
        let (ids, sources) = (text(batch, "id")?, text(batch, "source")?);
        let plain = text(batch, "text")?;
        let pair = match plain {
            Some(_) => None,
            None => Some((required_text(batch, "prompt")?, required_text(batch, "completion")?)),
        };
        let get = |column: &Option<StringArray>, row: usize| {
            column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
        };
        let mut rows = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let place = ("examples", first + row);
            let id = get(&ids, row).unwrap_or_else(|| place.1.to_string());
            let within = |error: Error| error.within(&format!("example `{id}`"));
            let (prompt, completion, mut example) = match (&plain, &pair) {
                (Some(column), _) => {
                    let text = required_value(column, row, "text", place)?;
                    (None, text.to_owned(), prompter.text(text).map_err(within)?)
                }
                (None, Some((prompts, completions))) => {
                    let prompt = required_value(prompts, row, "prompt", place)?;
                    let completion = required_value(completions, row, "completion", place)?;
                    let example = prompter.example(prompt, completion).map_err(within)?;
                    (Some(prompt.to_owned()), completion.to_owned(), example)
                }
                (None, None) => return Err(Error::bug("examples are plain text or pairs")),
            };
            if self.settings.loss_on == LossOn::All {
                learn_all(&mut example);
            }
            rows.push(Row { id, source: get(&sources, row), prompt, completion, example });
        }
        Ok(rows)
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
        let table = TableWriter::open(&self.dir.table(self.stage), schema::sft_examples())?;
        for (part, rows) in rows.chunks(PART_ROWS).enumerate() {
            let rows: Vec<SftExampleRow<'_>> = rows
                .iter()
                .map(|row| SftExampleRow {
                    stage: self.stage,
                    example_id: &row.id,
                    source: row.source.as_deref(),
                    prompt: row.prompt.as_deref(),
                    completion: &row.completion,
                    token_ids: &row.example.ids,
                    loss_mask: &row.example.loss_mask,
                })
                .collect();
            table.write(&part_name(part as u64), &[rows::sft_examples(&rows)?])?;
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
