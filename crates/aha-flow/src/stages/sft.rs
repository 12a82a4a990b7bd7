//! The `sft` stage: supervised fine-tuning, or training on plain text.
//!
//! The order of the examples is a function of seed and epoch; so a stage goes on from its last checkpoint
//! with the examples that it would have seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::Session;
use aha_learn::learner::{self, Learner};
use aha_rollout::rows::{self, SftExampleRow};
use aha_rollout::schema;
use aha_rollout::table::{TableWriter, part_name};
use arrow::array::{Array, RecordBatch, StringArray};

use crate::checkpoint::{self, Content, Position};
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::metrics::MetricsLog;
use crate::models::{self, Loaded};
use crate::pipeline::{LossOn, Overlong, Run, SftStage, SftWatchdogs, Watch};
use crate::progress::{Event, Watcher};
use crate::prompts::{Example, Prompter, required_text, text};
use crate::rl::train::{learning_rate, step_settings};
use crate::rundir::RunDir;
use crate::stop::Stop;
use crate::watchdog::Finding;

/// Rows of a part of the stage's table.
const PART_ROWS: usize = 8192;
/// Steps between flushes of the metrics.
const FLUSH_STEPS: usize = 50;

/// What the stage works with.
pub struct Sft<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its settings.
    pub settings: &'a SftStage,
    /// What holds for every stage.
    pub run: &'a Run,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// Where the weights are.
    pub device: &'a Device,
    /// The tables.
    pub session: &'a Session,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// A request to stop.
    pub stop: &'a Stop,
}

/// An example with its identity.
struct Row {
    id: String,
    source: Option<String>,
    prompt: Option<String>,
    completion: String,
    example: Example,
}

impl Sft<'_> {
    /// Runs the stage from its last checkpoint, or from the start, to its end.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let rows = self.examples(&base).await?;
        self.write_table(&rows)?;
        let examples: Arc<[Example]> = rows.into_iter().map(|row| row.example).collect();
        let plan =
            Plan::new(self.settings, examples.len(), Philox::new(self.run.seed).derive(self.stage));
        let (mut learner, mut step) = self.begin(&base)?;
        let mut metrics = MetricsLog::open(self.dir, self.stage, step, self.watcher);
        let started = Event::StageStarted {
            stage: self.stage.to_owned(),
            kind: "sft",
            step,
            steps: plan.steps,
        };
        (self.watcher)(started);
        let thread = ComputeThread::start("aha-learner")?;
        while step < plan.steps && !self.stop.is_requested() {
            let settings = step_settings(
                &self.settings.optimizer,
                learning_rate(&self.settings.optimizer, plan.steps, step),
                self.settings.grad_clip,
                self.settings.micro_batch_tokens,
                self.settings.activation_checkpointing,
            );
            let batch = plan.batch(step);
            let (lr, examples) = (settings.hyper.lr, Arc::clone(&examples));
            let began = Instant::now();
            let job = move || {
                let batch: Vec<learner::Example<'_>> = batch
                    .iter()
                    .map(|&i| learner::Example {
                        ids: &examples[i].ids,
                        loss_mask: &examples[i].loss_mask,
                    })
                    .collect();
                let tokens: usize = batch.iter().map(|e| e.ids.len()).sum();
                learner.sft_step(&batch, &settings).map(|outcome| (learner, outcome, tokens))
            };
            let (back, outcome, tokens) = thread.run(job).await??;
            learner = back;
            step += 1;
            if !outcome.applied {
                return Err(Error::Watchdog {
                    message: format!("step {step} gave a loss or gradient that is not a number"),
                    hint: "lower `optimizer.lr`, or set `grad_clip`".to_owned(),
                });
            }
            let measured = measure(&outcome, lr, tokens, began);
            metrics.record(step, &measured);
            (self.watcher)(Event::Step { stage: self.stage.to_owned(), step, metrics: measured });
            if step.is_multiple_of(self.settings.checkpoint_every) && step < plan.steps {
                metrics.flush();
                learner = self.checkpoint(&thread, learner, &base, step).await?;
            } else if metrics.pending_steps() >= FLUSH_STEPS {
                metrics.flush();
            }
        }
        metrics.flush();
        if step < plan.steps {
            self.checkpoint(&thread, learner, &base, step).await?;
            return Err(Error::Interrupted);
        }
        models::save(
            &self.dir.model(self.stage),
            learner.model(),
            &base.tokenizer,
            aha_model::save::SaveDtype::F32,
        )
    }

    fn begin(&self, base: &Loaded) -> Result<(Learner, u64)> {
        match checkpoint::newest(self.dir, self.stage, self.device)? {
            Some(saved) => {
                let learner = Learner::resume(saved.model, saved.optimizer, saved.position.version);
                Ok((learner, saved.position.step))
            }
            None => Ok((Learner::new(Arc::clone(&base.model)), 0)),
        }
    }

    async fn checkpoint(
        &self,
        thread: &ComputeThread,
        learner: Learner,
        base: &Loaded,
        step: u64,
    ) -> Result<Learner> {
        let position = Position {
            stage: self.stage.to_owned(),
            step,
            version: learner.version(),
            optimizer_steps: learner.optimizer().step_count(),
            ..Position::default()
        };
        let (dir, tokenizer, keep) =
            (self.dir.clone(), Arc::clone(&base.tokenizer), self.run.checkpoint_keep);
        let job = move || {
            let content = Content {
                model: learner.model(),
                tokenizer: &tokenizer,
                reference: None,
                optimizer: learner.optimizer(),
                position,
            };
            checkpoint::save(&dir, content, keep as usize).map(|_| learner)
        };
        thread.run(job).await?
    }

    /// The examples of the stage's query, encoded, without those that are too long.
    async fn examples(&self, base: &Loaded) -> Result<Vec<Row>> {
        let prompter = Prompter::new(&base.tokenizer, &self.settings.template)?;
        let positions = base.model.config().max_position_embeddings;
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
            self.warn(
                message,
                "raise `max_tokens`, or set `overlong` to \"truncate\" or \"error\"",
            );
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
        for found in mask_findings(&rows, &base.tokenizer, &self.settings.watchdogs) {
            if found.stops {
                return Err(Error::Watchdog {
                    message: found.message,
                    hint: found.hint.to_owned(),
                });
            }
            self.warn(found.message, found.hint);
        }
        base.model.check_ids(rows.iter().flat_map(|row| row.example.ids.iter().copied()))?;
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
            let id = get(&ids, row).unwrap_or_else(|| (first + row).to_string());
            let within = |error: Error| error.within(&format!("example `{id}`"));
            let (prompt, completion, mut example) = match (&plain, &pair) {
                (Some(column), _) => {
                    let text = column.value(row);
                    (None, text.to_owned(), prompter.text(text).map_err(within)?)
                }
                (None, Some((prompts, completions))) => {
                    let (prompt, completion) = (prompts.value(row), completions.value(row));
                    let example = prompter.example(prompt, completion).map_err(within)?;
                    (Some(prompt.to_owned()), completion.to_owned(), example)
                }
                (None, None) => return Err(Error::bug("examples are plain text or pairs")),
            };
            if self.settings.loss_on == LossOn::All {
                example.loss_mask.fill(true);
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
                Ok(Some(row))
            }
            Overlong::Error => Err(Error::input_with(
                format!("example `{}` has {len} tokens: expected at most {max}", row.id),
                "raise `max_tokens`, or set `overlong` to \"drop\" or \"truncate\"",
            )),
        }
    }

    /// The stage's table: what it trains on.
    fn write_table(&self, rows: &[Row]) -> Result<()> {
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

    fn warn(&self, message: String, hint: &str) {
        tracing::warn!(stage = self.stage, hint, "{message}.");
        (self.watcher)(Event::Warning {
            stage: self.stage.to_owned(),
            message,
            hint: hint.to_owned(),
        });
    }
}

/// A model that never learns the end token, or learns from another place than it samples at, fails later and
/// without a sign.
fn mask_findings(
    rows: &[Row],
    tokenizer: &aha_model::Tokenizer,
    watchdogs: &SftWatchdogs,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |watch: Watch, message: String, hint: &'static str| {
        if watch != Watch::Off {
            findings.push(Finding { stops: watch == Watch::Stop, message, hint });
        }
    };
    if let Some(problem) = rows.iter().find_map(|row| row.example.mask_problem.as_ref()) {
        let hint = "use another `template`, or mend the model's chat template";
        let message = format!("the chat template breaks the loss mask: {problem}");
        find(watchdogs.template_breaks_mask, message, hint);
    }
    let ends = |row: &&Row| {
        let tokens = row.example.ids.iter().zip(&row.example.loss_mask);
        tokens.clone().any(|(id, &m)| m && tokenizer.eos_ids().contains(id))
    };
    let whole: Vec<&Row> =
        rows.iter().filter(|row| row.example.loss_mask.last() == Some(&true)).collect();
    if tokenizer.eos_ids().is_empty() || (!whole.is_empty() && !whole.iter().any(ends)) {
        let message = "no example has the stop token inside its loss mask: the model would never learn to stop";
        let hint = "check the tokenizer's end token and the `template`";
        find(watchdogs.stop_token_masked, message.to_owned(), hint);
    }
    findings
}

fn measure(
    outcome: &learner::StepOutcome,
    lr: f64,
    tokens: usize,
    began: Instant,
) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::from([
        ("loss".to_owned(), outcome.totals.loss),
        ("grad_norm".to_owned(), outcome.grad_norm),
        ("lr".to_owned(), lr),
        ("trained_tokens".to_owned(), outcome.totals.token_count as f64),
    ]);
    if !clock::is_stopped() {
        let seconds = began.elapsed().as_secs_f64();
        metrics.insert("tokens_per_second".to_owned(), tokens as f64 / seconds.max(1e-9));
    }
    metrics
}

/// Which examples each optimizer step has.
struct Plan {
    count: usize,
    batch_size: usize,
    shuffle: bool,
    steps: u64,
    random: Philox,
}

impl Plan {
    fn new(settings: &SftStage, count: usize, random: Philox) -> Plan {
        let batch_size = settings.batch_size as usize;
        let needed = (count * settings.epochs as usize).div_ceil(batch_size) as u64;
        let steps = settings.max_steps.map_or(needed, |max| max.min(needed));
        Plan { count, batch_size, shuffle: settings.shuffle, steps, random }
    }

    /// The examples run on from one epoch into the next; only the last batch of all may be smaller.
    fn batch(&self, step: u64) -> Vec<usize> {
        let start = step as usize * self.batch_size;
        let mut epoch = usize::MAX;
        let mut order = Vec::new();
        let mut batch = Vec::with_capacity(self.batch_size);
        for at in start..start + self.batch_size {
            if at / self.count != epoch {
                epoch = at / self.count;
                order = self.order(epoch);
            }
            batch.push(order[at % self.count]);
        }
        batch
    }

    fn order(&self, epoch: usize) -> Vec<usize> {
        if self.shuffle {
            self.random.permutation(epoch as u64, self.count)
        } else {
            (0..self.count).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(count: usize, batch_size: u32, epochs: u32, shuffle: bool) -> Plan {
        let settings =
            SftStage { batch_size, epochs, shuffle, max_steps: None, ..SftStage::default() };
        Plan::new(&settings, count, Philox::new(1))
    }

    #[test]
    fn an_epoch_has_every_example_once_across_batches() {
        let plan = plan(10, 4, 2, true);
        assert_eq!(plan.steps, 5);
        let all: Vec<usize> = (0..5).flat_map(|step| plan.batch(step)).collect();
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..], "each epoch has its own order");
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_data() {
        assert_eq!(plan(5, 3, 1, false).batch(1), [3, 4, 0]);
    }
}
