//! Completions of an endpoint as a table, a part per chunk of prompts, as `completions` makes those of a model.
//!
//! Several chunks are under way at once, so that the endpoint is not idle while the last completion of one comes. What
//! it gave is kept until a chunk's part is durable: a stage that goes on asks nothing twice, and a chunk that is made
//! again has the same rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use aha_reward::wait::Answers;
use aha_rollout::rows::{self, RolloutRow};
use aha_rollout::steps;
use arrow::array::RecordBatch;
use tokio::sync::mpsc;

use super::completions::{
    CHUNK_PROMPTS, Chunk, Owner, Report, SKIP_REASON, Speed, Tables, part_name,
};
use crate::compute::ComputeThread;
use crate::endpoint::{Given, Outcome, Server};
use crate::error::{Error, Result};
use crate::lend;
use crate::prompts::Problem;
use crate::rundir::RunDir;
use crate::score::Scorer;
use crate::stop::Stop;

/// More of a chunk's completions than this share that failed without being refused are the endpoint's fault.
const FAILED_SHARE_MAX: f64 = 0.5;

/// What is asked for.
pub struct Asked {
    /// The name in the rows, and of the table.
    pub table: String,
    /// The problems, in order.
    pub problems: Vec<Problem>,
    /// Who is asked.
    pub server: Arc<Server>,
    /// The rewards; absent: nothing is scored.
    pub scorer: Option<Scorer>,
    /// Whether a reward counts tokens.
    pub needs_len: bool,
    /// Completions per prompt.
    pub samples: u32,
    /// Calls under way at once.
    pub parallel_max: usize,
    /// Where everything is written.
    pub dir: RunDir,
}

/// Chunks that are under way at once: as many calls wait for their turn as can be under way.
pub fn lanes(parallel_max: usize, samples: usize) -> usize {
    (2 * parallel_max).div_ceil(CHUNK_PROMPTS * samples.max(1)) + 1
}

/// Makes the parts that the table doesn't have yet. Asked to stop, it leaves at once: what came so far is kept.
pub async fn write(owner: &Owner<'_>, asked: Asked) -> Result<()> {
    let names = asked.scorer.as_ref().map_or(&[][..], Scorer::names);
    let tables = Tables::open(owner.context.dir, &asked.table, names)?;
    let kept = asked.dir.asked(&asked.table);
    fs_err::create_dir_all(&kept).map_err(Error::io("create", &kept))?;
    let todo: Vec<usize> = (0..asked.chunks_count()).filter(|&idx| !tables.has(idx)).collect();
    let lanes = lanes(asked.parallel_max, asked.samples as usize).min(todo.len());
    let table = asked.table.clone();
    let work = Arc::new(Work {
        asked,
        tables,
        todo: todo.clone(),
        next: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
        stop: owner.context.stop.clone(),
    });
    let threads = ComputeThread::start_several("aha-asking", lanes.max(1))?;
    let (told, mut heard) = mpsc::unbounded_channel();
    let jobs: Vec<_> = (0..lanes)
        .map(|_| {
            let (work, told) = (Arc::clone(&work), told.clone());
            threads.run(move || work.lane(&told))
        })
        .collect();
    drop(told);
    // Told in the order of the chunks.
    let (mut early, mut rest) = (BTreeMap::new(), todo.iter().peekable());
    while let Some((idx, report)) = heard.recv().await {
        early.insert(idx, report);
        while let Some(report) = rest.peek().and_then(|idx| early.remove(*idx)) {
            report.tell(owner, &table, *rest.next().expect("it was there"));
        }
    }
    for job in jobs {
        job.await??;
    }
    fs_err::remove_dir_all(&kept).map_err(Error::io("remove", &kept))?;
    // Another stage's may be there.
    let _ = kept.parent().map(std::fs::remove_dir);
    Ok(())
}

/// What the lanes share.
struct Work {
    asked: Asked,
    tables: Tables,
    todo: Vec<usize>,
    next: AtomicUsize,
    /// Raised when a lane has failed: the others end what they are at, which has been paid for.
    has_failed: AtomicBool,
    stop: Stop,
}

impl Work {
    /// Makes one chunk after another.
    fn lane(&self, told: &mpsc::UnboundedSender<(usize, Report)>) -> Result<()> {
        while !self.has_failed.load(Ordering::Relaxed) {
            let Some(&idx) = self.todo.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            if self.stop.is_requested() {
                return Err(Error::Interrupted);
            }
            let report = self.chunk(idx).inspect_err(|_| {
                self.has_failed.store(true, Ordering::Relaxed);
            })?;
            let _ = told.send((idx, report)); // The asker may have stopped.
        }
        Ok(())
    }

    fn chunk(&self, idx: usize) -> Result<Report> {
        let path =
            self.asked.dir.asked(&self.asked.table).join(part_name(idx)).with_extension("jsonl");
        let answers = lend::answers(&self.asked.dir, &path)?;
        let chunk = self.asked.chunk(idx, &Arc::new(answers))?;
        self.tables.write(idx, &chunk)?;
        fs_err::remove_file(&path).map_err(Error::io("remove", &path))?;
        Report::of(&chunk)
    }
}

impl Asked {
    /// How many chunks there are.
    pub fn chunks_count(&self) -> usize {
        self.problems.len().div_ceil(CHUNK_PROMPTS)
    }

    /// Asks for the completions of one chunk, and scores them.
    fn chunk(&self, idx: usize, answers: &Arc<Answers>) -> Result<Chunk> {
        let start = idx * CHUNK_PROMPTS;
        let problems = &self.problems[start..self.problems.len().min(start + CHUNK_PROMPTS)];
        let calls = problems.iter().flat_map(|problem| {
            let call = |sample| self.server.call(&problem.id, &problem.prompt, sample);
            (0..self.samples).map(call)
        });
        let began = Instant::now();
        let outcomes = self.server.ask(answers, calls.collect())?;
        let took = began.elapsed();
        let outcomes: Vec<Outcome> = outcomes.into_iter().map(|o| self.with_len(o)).collect();
        check_endpoint(&outcomes)?;
        let by_problem = problems.iter().zip(outcomes.chunks(self.samples.max(1) as usize));
        let mut given = Vec::with_capacity(outcomes.len());
        let mut set_aside = Vec::new();
        for (problem, outcomes) in by_problem {
            let completions =
                (0..).zip(outcomes).filter_map(|(sample_idx, outcome)| match outcome {
                    Outcome::Given(completion) => Some((problem, sample_idx, completion)),
                    Outcome::Refused(_) | Outcome::Failed(_) => None,
                });
            given.extend(completions);
            set_aside.extend(lacking(outcomes).map(|error| (problem.id.clone(), error)));
        }
        let sampled = self.rows(&given)?;
        let scored = match &self.scorer {
            Some(scorer) => scorer.score(&sampled)?,
            None => {
                let scores = vec![steps::Scores::default(); sampled.num_rows()];
                steps::add_scores(&sampled, &[], &scores)?
            }
        };
        let tokens =
            given.iter().filter_map(|(_, _, completion)| completion.len_tokens).sum::<u64>();
        let speed = Speed::new(tokens as usize, took);
        Ok(Chunk { rows: steps::add_untrained(&scored, SKIP_REASON)?, set_aside, speed })
    }

    /// A completion whose length nobody knows can't be scored by its length.
    fn with_len(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Given(Given { len_tokens: None, .. }) if self.needs_len => Outcome::Failed(
                "a reward counts tokens, and the endpoint's answer has no `usage.completion_tokens`"
                    .to_owned(),
            ),
            outcome => outcome,
        }
    }

    fn rows(&self, given: &[(&Problem, u32, &Given)]) -> Result<RecordBatch> {
        let rows = given.iter().map(|(problem, sample_idx, completion)| RolloutRow {
            stage: &self.table,
            step: 0,
            prompt_id: &problem.id,
            source: problem.source.as_deref(),
            sample_idx: *sample_idx,
            policy_version: 0,
            prompt: &problem.prompt,
            completion: &completion.text,
            answer: problem.answer.as_deref(),
            tests: problem.tests.as_deref(),
            prompt_token_ids: &completion.prompt_token_ids,
            completion_token_ids: &completion.token_ids,
            completion_logprobs: &completion.logprobs,
            completion_forced_mask: None,
            completion_policy_versions: None,
            finish_reason: &completion.finish_reason,
            finished_at_us: completion.finished_at_us,
        });
        let rows: Vec<RolloutRow<'_>> = rows.collect();
        let lens = given.iter().map(|(_, _, completion)| completion.len_tokens.unwrap_or(0));
        Ok(rows::rollouts_of_lens(&rows, &lens.collect::<Vec<_>>())?)
    }
}

/// Why a prompt lacks completions, if it does.
fn lacking(outcomes: &[Outcome]) -> Option<Error> {
    let reason = |outcome: &Outcome| match outcome {
        Outcome::Given(_) => None,
        Outcome::Refused(reason) | Outcome::Failed(reason) => Some(reason.clone()),
    };
    let reasons: Vec<String> = outcomes.iter().filter_map(reason).collect();
    let first = reasons.first()?;
    let (count, all) = (reasons.len(), outcomes.len());
    Some(Error::input(format!("{count} of {all} completions can't be had: {first}")))
}

/// Fails where the endpoint is at fault and not its requests: the stage goes on when it is mended.
fn check_endpoint(outcomes: &[Outcome]) -> Result<()> {
    let failed = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Failed(reason) => Some(reason),
        Outcome::Given(_) | Outcome::Refused(_) => None,
    });
    let failed: Vec<&String> = failed.collect();
    if failed.len() as f64 <= FAILED_SHARE_MAX * outcomes.len() as f64 {
        return Ok(());
    }
    let (count, all) = (failed.len(), outcomes.len());
    Err(Error::input_with(
        format!("{count} of {all} completions can't be had, as the endpoint fails: {}", failed[0]),
        "what came so far is kept: see that the endpoint answers, and go on with --resume",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_fails_is_told_from_requests_that_do() {
        let given = || Outcome::Given(Given::default());
        let refused = || Outcome::Refused("too long".to_owned());
        let failed = || Outcome::Failed("busy".to_owned());
        assert!(check_endpoint(&[]).is_ok());
        assert!(check_endpoint(&[refused(), refused()]).is_ok());
        assert!(check_endpoint(&[given(), failed()]).is_ok());
        let error = check_endpoint(&[failed(), refused(), failed()]).unwrap_err().to_string();
        assert!(error.contains("2 of 3") && error.contains("busy"), "{error}");
        assert!(lacking(&[given()]).is_none());
        let error = lacking(&[given(), refused(), failed()]).unwrap().to_string();
        assert_eq!(error, "2 of 3 completions can't be had: too long");
    }

    #[test]
    fn as_many_calls_wait_as_are_under_way() {
        for (parallel_max, samples) in [(1, 1), (16, 4), (256, 1), (1024, 16)] {
            let chunks = lanes(parallel_max, samples);
            // The one that ends may have a single call left.
            assert!((chunks - 1) * CHUNK_PROMPTS * samples >= 2 * parallel_max);
        }
    }
}
