//! Completions of many prompts as a table, a part per chunk of prompts: what `sample` and `eval` share. Those of an
//! endpoint are made by `asked`.
//!
//! A part is written aside and renamed. Draws are addressed, so a chunk that is made again after a kill has
//! the same rows, and a stage goes on with the chunks that have no part yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use aha_compute::random::Philox;
use aha_rollout::read;
use aha_rollout::rows::{self, PromptRow, SetAsideRow};
use aha_rollout::schema::{self, Progress};
use aha_rollout::steps;
use aha_rollout::table::TableWriter;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;

use super::Context;
use crate::clock;
use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::generate::{self, Source};
use crate::models::Loaded;
use crate::pipeline::Run;
use crate::progress::Event;
use crate::prompts::{Problem, Prompter};
use crate::rundir::RunDir;
use crate::score::Scorer;

/// Prompts of one part.
pub const CHUNK_PROMPTS: usize = 64;

/// Why no completion of these stages was trained on.
pub(super) const SKIP_REASON: &str = "not_trained";

/// What completions are drawn of, and how.
pub struct Draws {
    /// The name in the rows, and of the table.
    pub table: String,
    /// The model.
    pub model: Loaded,
    /// The problems, in order.
    pub problems: Vec<Problem>,
    /// How prompts are made of them.
    pub prompter: Prompter,
    /// How tokens are drawn.
    pub sampling: aha_sample::Sampling,
    /// The rewards; absent: nothing is scored.
    pub scorer: Option<Scorer>,
    /// The family of the draws.
    pub random: Philox,
    /// Completions per prompt.
    pub samples: u32,
    /// Bounds of the sampler.
    pub run: Run,
}

/// What one chunk gave.
pub struct Chunk {
    /// Rows of `aha_rollout::schema::rollouts`, in the order of prompts and samples.
    pub rows: RecordBatch,
    /// Prompts that can't be served, with their errors.
    pub set_aside: Vec<(String, Error)>,
    /// How fast its tokens were drawn.
    pub speed: Speed,
}

/// Tokens, and the time in which they were drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    tokens: usize,
    took: Duration,
}

impl Speed {
    /// That of so many tokens.
    pub fn new(tokens: usize, took: Duration) -> Speed {
        Speed { tokens, took }
    }

    /// Adds what another chunk took.
    pub fn add(&mut self, other: Speed) {
        self.tokens += other.tokens;
        self.took += other.took;
    }

    /// None where nothing was drawn, or the clock of tables is stopped.
    pub fn tokens_per_second(self) -> Option<f64> {
        let is_measured = self.tokens > 0 && !clock::is_stopped();
        is_measured.then(|| self.tokens as f64 / self.took.as_secs_f64().max(1e-9))
    }
}

impl Draws {
    /// How many chunks there are.
    pub fn chunks_count(&self) -> usize {
        self.problems.len().div_ceil(CHUNK_PROMPTS)
    }

    /// The names of the reward's parts.
    pub fn reward_names(&self) -> &[String] {
        self.scorer.as_ref().map_or(&[], Scorer::names)
    }

    /// Draws and scores one chunk, on the caller's thread. `group_done` is called after each prompt. Raising
    /// `cancel` drops the chunk: made again, it has the same rows.
    pub fn chunk(
        &self,
        sampler: &mut aha_sample::Sampler,
        idx: usize,
        cancel: &AtomicBool,
        group_done: &dyn Fn(),
    ) -> Result<Chunk> {
        let start = idx * CHUNK_PROMPTS;
        let problems = &self.problems[start..self.problems.len().min(start + CHUNK_PROMPTS)];
        let (prompts, mut set_aside) = self.prompts(problems);
        let source = Source {
            model: &self.model.model,
            tokenizer: &self.model.tokenizer,
            sampling: &self.sampling,
            random: self.random,
            policy_version: 0,
            samples: self.samples,
        };
        let began = Instant::now();
        let mut groups: Vec<(usize, RecordBatch)> = Vec::new();
        let failed = generate::generate(sampler, &source, &prompts, cancel, &mut |row, rows| {
            groups.push((row, rows));
            group_done();
            Ok(())
        })?;
        let took = began.elapsed();
        let view = aha_rollout::view::PromptsView::new(&prompts)?;
        set_aside
            .extend(failed.into_iter().map(|(row, error)| (view.prompt_id(row).to_owned(), error)));
        groups.sort_by_key(|(row, _)| *row);
        let sampled = concat_batches(&schema::sampled(), groups.iter().map(|(_, rows)| rows))
            .map_err(|error| Error::bug(format!("groups can't be joined: {error}")))?;
        let drawn = RolloutsView::new(&sampled, Progress::Sampled)?;
        let tokens = |row| drawn.completion_token_ids(row).len();
        let speed = Speed { tokens: (0..drawn.rows_count()).map(tokens).sum(), took };
        let scored = match &self.scorer {
            Some(scorer) => scorer.score(&sampled)?,
            None => steps::add_scores(
                &sampled,
                &[],
                &vec![steps::Scores::default(); sampled.num_rows()],
            )?,
        };
        Ok(Chunk { rows: steps::add_untrained(&scored, SKIP_REASON)?, set_aside, speed })
    }

    /// The prompts as rows, without those that can't be encoded.
    fn prompts(&self, problems: &[Problem]) -> (RecordBatch, Vec<(String, Error)>) {
        let mut encoded = Vec::with_capacity(problems.len());
        let mut set_aside = Vec::new();
        for problem in problems {
            match self.prompter.prompt_ids(&problem.prompt) {
                Ok(ids) => encoded.push((problem, ids)),
                Err(error) => set_aside.push((problem.id.clone(), error)),
            }
        }
        let rows: Vec<PromptRow<'_>> = encoded
            .iter()
            .map(|(problem, ids)| PromptRow {
                stage: &self.table,
                step: 0,
                prompt_id: &problem.id,
                source: problem.source.as_deref(),
                prompt: &problem.prompt,
                answer: problem.answer.as_deref(),
                tests: problem.tests.as_deref(),
                prompt_token_ids: ids,
            })
            .collect();
        (rows::prompts(&rows), set_aside)
    }
}

/// The stage that the completions are for.
pub struct Owner<'a> {
    /// What it works with.
    pub context: Context<'a>,
    /// Chunks of the stage that are done before these; for the steps that watchers see.
    pub chunks_before: usize,
}

/// Makes the parts that the table doesn't have yet. Asked to stop, it leaves at once, without the chunk that
/// it is at. Returns how fast the parts that it made were drawn.
pub async fn write(owner: &Owner<'_>, draws: Draws) -> Result<Speed> {
    let tables = Arc::new(Tables::open(owner.context.dir, &draws.table, draws.reward_names())?);
    let thread = ComputeThread::start("aha-sampler")?;
    let draws = Arc::new(draws);
    let mut sampler = None;
    let mut speed = Speed::default();
    for idx in 0..draws.chunks_count() {
        if tables.has(idx) {
            continue;
        }
        if owner.context.stop.is_requested() {
            return Err(Error::Interrupted);
        }
        let (job_draws, job_tables) = (Arc::clone(&draws), Arc::clone(&tables));
        let stop = owner.context.stop.clone();
        let job = move || -> Result<_> {
            let model = &job_draws.model;
            let make = || generate::sampler(&model.model, &model.tokenizer, &job_draws.run);
            let mut sampler = sampler.unwrap_or_else(make);
            let chunk = job_draws.chunk(&mut sampler, idx, stop.flag(), &|| ())?;
            job_tables.write(idx, &chunk)?;
            Ok((sampler, chunk))
        };
        let (back, chunk) = thread.run(job).await??;
        sampler = Some(back);
        speed.add(chunk.speed);
        Report::of(&chunk)?.tell(owner, &draws.table, idx);
    }
    Ok(speed)
}

/// How a chunk went, and which prompts were set aside.
pub(super) struct Report {
    metrics: BTreeMap<String, f64>,
    /// How many, the first of them, why, and the remedy.
    set_aside: Option<(usize, String, String, Option<String>)>,
}

impl Report {
    /// That of a chunk.
    pub fn of(chunk: &Chunk) -> Result<Report> {
        let set_aside = chunk.set_aside.first().map(|(prompt_id, error)| {
            let hint = error.hint().map(str::to_owned);
            (chunk.set_aside.len(), prompt_id.clone(), error.to_string(), hint)
        });
        let metrics = measure(&RolloutsView::new(&chunk.rows, Progress::Trained)?, chunk.speed);
        Ok(Report { metrics, set_aside })
    }

    /// Tells whoever watches.
    pub fn tell(self, owner: &Owner<'_>, table: &str, idx: usize) {
        if let Some((count, prompt_id, error, hint)) = self.set_aside {
            let message = format!("{count} prompts are set aside, such as `{prompt_id}`: {error}");
            tracing::warn!(
                stage = owner.context.stage,
                count,
                prompt_id,
                error,
                "Prompts set aside."
            );
            let hint = hint.as_deref().unwrap_or("the others go on");
            let hint = format!("see the table `{table}_set_aside`; {hint}");
            (owner.context.watcher)(Event::Warning {
                stage: owner.context.stage.to_owned(),
                message,
                hint,
            });
        }
        let step = (owner.chunks_before + idx + 1) as u64;
        let stage = owner.context.stage.to_owned();
        (owner.context.watcher)(Event::Step { stage, step, metrics: self.metrics });
    }
}

fn measure(view: &RolloutsView<'_>, speed: Speed) -> BTreeMap<String, f64> {
    let count = view.rows_count();
    let mut metrics = BTreeMap::new();
    let mut mean = |name: &str, values: Vec<f64>| {
        if !values.is_empty() {
            metrics.insert(name.to_owned(), values.iter().sum::<f64>() / values.len() as f64);
        }
    };
    mean("reward", (0..count).filter_map(|row| view.reward(row)).collect());
    for (part, name) in view.reward_names().iter().enumerate() {
        mean(
            &format!("reward_{name}"),
            (0..count).filter_map(|row| view.reward_part(part, row)).collect(),
        );
    }
    let lens: Vec<f64> = (0..count).map(|row| view.completion_len_tokens(row) as f64).collect();
    mean("completion_len_tokens", lens);
    let is_cut = |row| view.finish_reason(row) == aha_sample::FinishReason::Length.as_str();
    mean("truncated_share", (0..count).map(|row| f64::from(u8::from(is_cut(row)))).collect());
    if let Some(rate) = speed.tokens_per_second() {
        metrics.insert("tokens_per_second".to_owned(), rate);
    }
    metrics
}

/// The table of completions, and that of the prompts set aside.
pub(super) struct Tables {
    dir: RunDir,
    name: String,
    completions: TableWriter,
    set_aside: TableWriter,
}

impl Tables {
    /// Those of the table of that name.
    pub fn open(dir: &RunDir, table: &str, reward_names: &[String]) -> Result<Tables> {
        let schema = schema::rollouts(reward_names)?;
        let set_aside = dir.table(&format!("{table}_set_aside"));
        dir.write(|| {
            Ok(Tables {
                dir: dir.clone(),
                name: table.to_owned(),
                completions: TableWriter::open(&dir.table(table), schema.clone())?,
                set_aside: TableWriter::open(&set_aside, schema::set_aside())?,
            })
        })
    }

    /// A part that can't be read is made again, with the same rows.
    pub fn has(&self, chunk_idx: usize) -> bool {
        let path = self.completions.dir().join(part_name(chunk_idx));
        path.is_file()
            && read::read_part(&path)
                .inspect_err(|error| tracing::warn!(%error, "Part is made again."))
                .is_ok()
    }

    /// The part of the completions comes last: a chunk that has it is complete.
    pub fn write(&self, chunk_idx: usize, chunk: &Chunk) -> Result<()> {
        let name = part_name(chunk_idx);
        if !chunk.set_aside.is_empty() {
            let errors: Vec<String> =
                chunk.set_aside.iter().map(|(_, error)| error.to_string()).collect();
            let rows: Vec<SetAsideRow<'_>> = chunk
                .set_aside
                .iter()
                .zip(&errors)
                .map(|((prompt_id, _), error)| SetAsideRow {
                    stage: &self.name,
                    step: 0,
                    prompt_id,
                    // The same prompt would fail again: its failure is a function of it and the model.
                    failures_count: 1,
                    error,
                    at_us: clock::now_us(),
                })
                .collect();
            let rows = [rows::set_aside(&rows)];
            self.dir.write(|| Ok(self.set_aside.write(&name, &rows)?))?;
        }
        let rows = std::slice::from_ref(&chunk.rows);
        self.dir.write(|| Ok(self.completions.write(&name, rows)?))?;
        Ok(())
    }
}

/// The part of a chunk.
pub fn part_name(chunk_idx: usize) -> String {
    format!("part-{chunk_idx:06}.parquet")
}
