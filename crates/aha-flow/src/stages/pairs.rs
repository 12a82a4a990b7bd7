//! The pairs of a stage `reward-model` or `dpo`: what its queries give, as tokens, and which of them are held out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aha_compute::random::Philox;
use aha_model::{Model, Tokenizer};
use aha_rollout::rows::{self, PreferenceRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};
use arrow::array::{Array, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use super::Context;
use crate::error::{Error, Result};
use crate::pipeline::{OverlongPair, Sql, Template};
use crate::prompts::{Example, Prompter, required_text, required_value, text};

/// Rows of a part of the stage's table.
const PART_ROWS: usize = 8192;

/// Two completions of a prompt, one of which was preferred.
pub struct Pair {
    /// Identity in its data.
    pub id: String,
    source: Option<String>,
    prompt: String,
    chosen: String,
    rejected: String,
    /// By how much the chosen completion ought to be ahead.
    pub margin: f64,
    /// Whether it is measured on only.
    pub is_held_out: bool,
    /// Prompt and chosen completion as tokens.
    pub chosen_example: Example,
    /// Prompt and rejected completion as tokens.
    pub rejected_example: Example,
}

impl Pair {
    /// Its two sequences.
    pub fn examples(&self) -> [&Example; 2] {
        [&self.chosen_example, &self.rejected_example]
    }
}

/// Where a stage's pairs come from, and what becomes of them.
pub struct Source<'a> {
    /// What the stage works with.
    pub context: Context<'a>,
    /// The query of the pairs.
    pub data: &'a Sql,
    /// That of pairs to measure on.
    pub held_out: Option<&'a Sql>,
    /// Share of the prompts of `data` that is held out.
    pub held_out_share: f64,
    /// How a prompt becomes the model's input.
    pub template: &'a Template,
    /// Tokens of a sequence, at most.
    pub max_tokens: u32,
    /// What happens to a pair with a longer one.
    pub overlong: OverlongPair,
}

impl Source<'_> {
    /// The pairs of the stage's queries, encoded, without those that are too long.
    pub async fn pairs(&self, model: &Model, tokenizer: &Arc<Tokenizer>) -> Result<Vec<Pair>> {
        let prompter = Prompter::new(tokenizer, self.template)?;
        let positions = model.config().max_position_embeddings;
        let max = positions.min(self.max_tokens as usize);
        let mut pairs = self.pairs_of(self.data, &prompter, max).await?;
        match self.held_out {
            Some(sql) => {
                let held_out = self.pairs_of(sql, &prompter, max).await?;
                pairs.extend(held_out.into_iter().map(|pair| Pair { is_held_out: true, ..pair }));
            }
            None => hold_out(&mut pairs, self.held_out_share, self.context.random()),
        }
        let held_out_count = pairs.iter().filter(|pair| pair.is_held_out).count();
        let is_asked_for = self.held_out.is_some() || self.held_out_share > 0.0;
        if held_out_count == pairs.len() || (is_asked_for && held_out_count == 0) {
            return Err(nothing_left(pairs.len() - held_out_count, held_out_count));
        }
        let examples = pairs.iter().flat_map(Pair::examples);
        model.check_ids(examples.flat_map(|example| example.ids.iter().copied()))?;
        Ok(pairs)
    }

    async fn pairs_of(&self, sql: &Sql, prompter: &Prompter, max: usize) -> Result<Vec<Pair>> {
        let (mut pairs, mut left_out) = (Vec::new(), 0_usize);
        for batch in self.context.session.collect(&sql.0).await? {
            for pair in encode(prompter, &batch, pairs.len() + left_out)? {
                let len = pair.chosen_example.ids.len().max(pair.rejected_example.ids.len());
                if len <= max {
                    pairs.push(pair);
                } else if self.overlong == OverlongPair::Drop {
                    left_out += 1;
                } else {
                    return Err(Error::input_with(
                        format!("pair `{}` has {len} tokens: expected at most {max}", pair.id),
                        "raise `max_tokens`, or set `overlong` to \"drop\"",
                    ));
                }
            }
        }
        if left_out > 0 {
            let message = format!("{left_out} pairs are longer than {max} tokens and left out");
            self.context.warn(message, "raise `max_tokens`, or set `overlong` to \"error\"");
        }
        Ok(pairs)
    }

    /// The stage's table: what it trains and is measured on.
    pub fn write_table(&self, pairs: &[Pair]) -> Result<()> {
        let Context { stage, dir, .. } = self.context;
        let table =
            dir.write(|| Ok(TableWriter::open(&dir.table(stage), schema::preferences())?))?;
        for (part, pairs) in pairs.chunks(PART_ROWS).enumerate() {
            let rows: Vec<PreferenceRow<'_>> = pairs
                .iter()
                .map(|pair| PreferenceRow {
                    stage,
                    example_id: &pair.id,
                    source: pair.source.as_deref(),
                    prompt: &pair.prompt,
                    chosen: &pair.chosen,
                    rejected: &pair.rejected,
                    margin: pair.margin,
                    is_held_out: pair.is_held_out,
                    chosen_token_ids: &pair.chosen_example.ids,
                    rejected_token_ids: &pair.rejected_example.ids,
                })
                .collect();
            let rows = [rows::preferences(&rows)];
            dir.write(|| Ok(table.write(&part_name(part as u64), &rows)?))?;
        }
        Ok(())
    }
}

/// Whether held-out pairs, if there are any, are measured after `step` of `steps` steps: after every `every`, and after
/// the last.
pub fn is_measured(held_out: &[Pair], step: u64, steps: u64, every: u64) -> bool {
    !held_out.is_empty() && (step == steps || (every > 0 && step.is_multiple_of(every)))
}

fn encode(prompter: &Prompter, batch: &RecordBatch, first: usize) -> Result<Vec<Pair>> {
    let (ids, sources) = (text(batch, "id")?, text(batch, "source")?);
    let [prompts, chosen, rejected] = [
        required_text(batch, "prompt")?,
        required_text(batch, "chosen")?,
        required_text(batch, "rejected")?,
    ];
    let margins = margins(batch)?;
    let get = |column: &Option<StringArray>, row: usize| {
        column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
    };
    let mut pairs = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let place = ("pairs", first + row);
        let id = get(&ids, row).unwrap_or_else(|| place.1.to_string());
        let within = |error: Error| error.within(&format!("pair `{id}`"));
        let prompt = required_value(&prompts, row, "prompt", place)?;
        let example = |completion: &str| -> Result<Example> {
            let example = prompter.example(prompt, completion).map_err(within)?;
            match example.ids.is_empty() {
                false => Ok(example),
                true => Err(within(Error::input("prompt and completion are empty"))),
            }
        };
        let chosen = required_value(&chosen, row, "chosen", place)?;
        let rejected = required_value(&rejected, row, "rejected", place)?;
        let margin = margins.as_ref().filter(|m| m.is_valid(row)).map_or(0.0, |m| m.value(row));
        if !margin.is_finite() {
            return Err(within(Error::input(format!("`margin` is {margin}: expected a number"))));
        }
        pairs.push(Pair {
            source: get(&sources, row),
            prompt: prompt.to_owned(),
            margin,
            is_held_out: false,
            chosen_example: example(chosen)?,
            rejected_example: example(rejected)?,
            chosen: chosen.to_owned(),
            rejected: rejected.to_owned(),
            id,
        });
    }
    Ok(pairs)
}

/// The column `margin`, if there is one.
fn margins(batch: &RecordBatch) -> Result<Option<Float64Array>> {
    let Some(column) = batch.column_by_name("margin") else { return Ok(None) };
    let column = cast(column, &DataType::Float64)
        .map_err(|error| Error::input(format!("column `margin` can't be read: {error}")))?;
    let column = column.as_any().downcast_ref::<Float64Array>().cloned();
    column.map(Some).ok_or_else(|| Error::bug("a cast to numbers gave another type"))
}

/// Holds out the pairs of a share of the prompts, at least of one where there is a share at all. Which they are
/// is a function of the seed and of each prompt's text: no prompt is both trained and measured on.
fn hold_out(pairs: &mut [Pair], share: f64, random: Philox) {
    if share == 0.0 {
        return;
    }
    let family = random.derive("held out");
    let draws: BTreeMap<&str, u64> = pairs
        .iter()
        .map(|pair| (pair.prompt.as_str(), family.derive(&pair.prompt).bits(&[0])))
        .collect();
    let mut drawn: Vec<(u64, &str)> = draws.iter().map(|(prompt, draw)| (*draw, *prompt)).collect();
    drawn.sort_unstable();
    let count = ((drawn.len() as f64 * share).round() as usize).max(1);
    let held_out: BTreeSet<String> =
        drawn.into_iter().take(count).map(|(_, prompt)| prompt.to_owned()).collect();
    for pair in pairs {
        pair.is_held_out = held_out.contains(&pair.prompt);
    }
}

/// Nothing is left to train on.
fn nothing_left(trained: usize, held_out: usize) -> Error {
    Error::Watchdog {
        message: format!("{trained} pairs are left to train on, {held_out} are held out"),
        hint: "look at the query with `aha query`, and at `max_tokens` and `held_out_share`"
            .to_owned(),
    }
}
