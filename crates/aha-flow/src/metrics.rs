//! The table of metrics, and the timings that only watchers see.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use aha_rollout::rows::{self, MetricRow};
use aha_rollout::schema;
use aha_rollout::table::{self, TableWriter};

use crate::clock;
use crate::error::{Error, Result};
use crate::progress::{Event, Watcher};
use crate::rundir::RunDir;

/// What each metric of a training stage says. `reward_NAME` has a row for each part of the reward,
/// `source_…_NAME` for each source.
pub const REFERENCE: [(&str, &str); 55] = [
    (
        "accuracy",
        "`rl`: share of completions to which the first reward that compares with answers gives 1, of those that it \
         can score. `reward-model`: share of the step's pairs whose chosen completion has the higher score; `dpo`: \
         the higher implicit reward.",
    ),
    (
        "all_in_band_share",
        "`rl` with a curriculum: share of all prompts whose pass rate is in the band, after the step.",
    ),
    ("all_pass_rate", "Likewise: mean pass rate of all prompts, as it is known after the step."),
    ("clip_high_share", "`rl`: share of trained tokens whose ratio is clipped above."),
    ("clip_low_share", "`rl`: share of trained tokens whose ratio is clipped below."),
    ("completion_len_tokens", "`rl`: mean number of tokens per completion."),
    (
        "critic_grad_norm",
        "`rl` with a critic: global norm of its gradient before clipping, mean over the step's optimizer steps.",
    ),
    ("critic_lr", "Likewise: learning rate of its last optimizer step."),
    ("entropy", "`rl`: mean entropy of the policy over trained tokens."),
    (
        "explained_variance",
        "`rl` with a critic: how much of the returns' variance over tokens its values explain, before it has learnt \
         from them: 1 is all of it, and below 0 values are worse than a constant.",
    ),
    (
        "grad_norm",
        "Global norm of the gradient before clipping, mean over the step's optimizer steps.",
    ),
    (
        "held_out_accuracy",
        "`reward-model`, `dpo`: `accuracy` on the held-out pairs, after the step.",
    ),
    ("held_out_loss", "`reward-model`, `dpo`: `loss` on the held-out pairs, after the step."),
    ("held_out_margin", "`reward-model`, `dpo`: `margin` on the held-out pairs, after the step."),
    (
        "importance_cut_share",
        "`rl` with `max_staleness` above 0 or `sampling.weights = \"int8\"`: share of trained tokens whose importance \
         weight is cut off at `objective.importance_cap`.",
    ),
    ("importance_max", "Likewise: the largest importance weight of a trained token."),
    ("importance_mean", "Likewise: mean importance weight over trained tokens."),
    (
        "in_band_share",
        "`rl` with a curriculum: share of the step's prompts whose pass rate was in the band when they were asked.",
    ),
    ("kl", "`rl`: mean KL estimate between policy and reference over trained tokens."),
    (
        "learner_idle_seconds",
        "`rl` with `max_staleness` above 0: wall-clock time that the learner waited for the step's groups.",
    ),
    ("learning_seconds", "`rl`: wall-clock time that the learner worked on the step."),
    (
        "logp_chosen",
        "`dpo`: mean log-prob of the step's chosen completions, each the sum over its tokens.",
    ),
    ("logp_rejected", "`dpo`: the same of the rejected ones."),
    ("loss", "The loss, mean over the step's optimizer steps."),
    ("lr", "Learning rate of the last optimizer step."),
    (
        "margin",
        "`reward-model`: mean of the step's chosen scores less the rejected ones; `dpo`: of the implicit rewards.",
    ),
    ("nll", "`dpo`: mean negative log-prob of a token of the step's chosen completions."),
    ("no_signal_share", "`rl`: share of groups whose completions all have the same reward."),
    (
        "pass_rate",
        "`rl` with a curriculum: mean share of the completions of the step's prompts that passed.",
    ),
    ("policy_version", "`rl`: optimizer steps that the stage's weights have seen."),
    ("ratio_max", "`rl`: largest importance ratio of a trained token."),
    ("ratio_mean", "`rl`: mean importance ratio over trained tokens."),
    (
        "returns_mean",
        "`rl` with a critic: mean over tokens of what it is to expect, advantage and value together.",
    ),
    ("reward", "`rl`: mean reward of the completions that have one."),
    ("reward_NAME", "`rl`: mean score of the part `NAME` of the reward."),
    (
        "reward_chosen",
        "`dpo`: mean implicit reward of the step's chosen completions: `beta` times the log-ratio of policy and \
         reference.",
    ),
    ("reward_rejected", "`dpo`: the same of the rejected ones."),
    (
        "sampler_gap_mean",
        "`rl` with `max_staleness` above 0 or `sampling.weights = \"int8\"`: mean distance in nats between the log-prob \
         of a trained token that the learner computes before the step, and the one that it was sampled with.",
    ),
    (
        "sampler_idle_seconds",
        "`rl` with `max_staleness` above 0: wall-clock time since the step before in which the sampler had no prompt.",
    ),
    (
        "sampling_seconds",
        "`rl`: wall-clock time from the step's prompts to its last completion; with `max_staleness` above 0 that since \
         the step before in which the sampler worked.",
    ),
    ("score_mean", "`reward-model`: mean score of the step's completions."),
    ("score_std", "`reward-model`: standard deviation of the scores of the step's completions."),
    (
        "source_reward_NAME",
        "`rl` that tells sources apart: mean reward of the step's completions of prompts from the source `NAME`.",
    ),
    ("source_share_NAME", "Likewise: share of the step's prompts that are from the source `NAME`."),
    (
        "stale_groups",
        "`rl` with `max_staleness` above 0: groups that were too old when the step took its own, and are not trained \
         on.",
    ),
    (
        "staleness_max",
        "Likewise: the oldest token that the step trains on, in publications of weights since it was drawn.",
    ),
    ("staleness_mean", "Likewise: mean age of the tokens that the step trains on."),
    (
        "teacher_kl",
        "`rl` with a teacher: mean reverse KL divergence from the teacher over trained tokens, in nats, over the whole \
         vocabulary.",
    ),
    (
        "tokens_in_flight",
        "`rl` with `max_staleness` above 0: tokens that were drawn and not trained on when the step began.",
    ),
    ("tokens_per_second", "Tokens of the step per second of wall-clock time."),
    ("trained_tokens", "`sft`: tokens in the loss."),
    ("truncated_share", "`rl`: share of completions cut at `sampling.max_tokens`."),
    (
        "value_clip_share",
        "`rl` with a critic: share of trained tokens whose value has moved too far to be pulled any further.",
    ),
    ("value_loss", "Likewise: the critic's loss, mean over the step's optimizer steps."),
    (
        "value_mean",
        "Likewise: mean over tokens of what it expected, before it has learnt from them.",
    ),
];

/// What a metric of that name says; none where it is none of ours.
pub fn doc(name: &str) -> Option<String> {
    if let Some((_, doc)) = REFERENCE.iter().find(|(known, _)| *known == name) {
        return Some((*doc).to_owned());
    }
    let of_many =
        REFERENCE.iter().filter_map(|(known, doc)| Some((known.strip_suffix("NAME")?, doc)));
    let longest = of_many
        .filter(|(prefix, _)| name.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len());
    longest.map(|(prefix, doc)| doc.replace("NAME", &name[prefix.len()..]))
}

/// Rows that wait for a sink that fails, at most; the oldest go first.
const PENDING_MAX: usize = 100_000;

/// A measure of a step.
struct Measure {
    step: u64,
    name: String,
    value: f64,
    at_us: i64,
}

/// Measures of one stage. A sink that fails never stops training: rows wait, with a warning.
pub struct MetricsLog {
    dir: PathBuf,
    stage: String,
    after: u64,
    watcher: Watcher,
    /// None until the table could be opened.
    writer: Option<TableWriter>,
    is_failing: bool,
    /// Noted since the last flush.
    open: Vec<Measure>,
    /// What each flush was to write and couldn't yet, oldest first.
    waiting: VecDeque<Vec<Measure>>,
}

impl MetricsLog {
    /// The log of `stage`, without what was measured after step `after`.
    pub fn open(dir: &RunDir, stage: &str, after: u64, watcher: &Watcher) -> MetricsLog {
        let mut log = MetricsLog {
            dir: dir.metrics(),
            stage: stage.to_owned(),
            after,
            watcher: Arc::clone(watcher),
            writer: None,
            is_failing: false,
            open: Vec::new(),
            waiting: VecDeque::new(),
        };
        let outcome = log.open_table();
        log.notice(outcome);
        log
    }

    fn open_table(&mut self) -> Result<()> {
        let writer = TableWriter::open(&self.dir, schema::metrics())?;
        for part in table::parts(&self.dir)? {
            let Some((_, last)) = steps_of(&part.name, &self.stage) else { continue };
            if last > self.after {
                fs_err::remove_file(&part.path).map_err(Error::io("remove", &part.path))?;
            }
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Warns when the sink begins to fail, once.
    fn notice(&mut self, outcome: Result<()>) {
        let Err(error) = outcome else {
            self.is_failing = false;
            return;
        };
        if std::mem::replace(&mut self.is_failing, true) {
            return;
        }
        tracing::warn!(%error, stage = self.stage, "Metrics wait for a sink that fails.");
        (self.watcher)(Event::Warning {
            stage: self.stage.clone(),
            message: format!("metrics can't be written, and training goes on: {error}"),
            hint: format!("mend `{}`: what waits is written then", self.dir.display()),
        });
    }

    /// Notes the measures of a step.
    pub fn record(&mut self, step: u64, metrics: &BTreeMap<String, f64>) {
        let at_us = clock::now_us();
        self.open.extend(metrics.iter().map(|(name, value)| Measure {
            step,
            name: name.clone(),
            value: *value,
            at_us,
        }));
        let mut excess = self.pending().count().saturating_sub(PENDING_MAX);
        while excess > 0 {
            let oldest = self.waiting.front_mut().unwrap_or(&mut self.open);
            let count = excess.min(oldest.len());
            oldest.drain(..count);
            excess -= count;
            if self.waiting.front().is_some_and(Vec::is_empty) {
                self.waiting.pop_front();
            }
        }
    }

    fn pending(&self) -> impl Iterator<Item = &Measure> {
        self.waiting.iter().flatten().chain(&self.open)
    }

    /// Steps whose measures aren't durable yet.
    pub fn pending_steps(&self) -> usize {
        let mut steps: Vec<u64> = self.pending().map(|measure| measure.step).collect();
        steps.dedup();
        steps.len()
    }

    /// Makes what was noted durable. Each flush has a part of its own, also where a sink that failed has it
    /// written later: every checkpoint flushes, so no part reaches over one, and what a resume removes is
    /// exactly what it makes again.
    pub fn flush(&mut self) {
        if !self.open.is_empty() {
            self.waiting.push_back(std::mem::take(&mut self.open));
        }
        let outcome = self.write();
        self.notice(outcome);
    }

    fn write(&mut self) -> Result<()> {
        while let Some(measures) = self.waiting.front() {
            let (Some(first), Some(last)) = (measures.first(), measures.last()) else { break };
            let name = part_name(&self.stage, first.step, last.step);
            let rows: Vec<MetricRow<'_>> = measures
                .iter()
                .map(|measure| MetricRow {
                    stage: &self.stage,
                    step: measure.step,
                    name: &measure.name,
                    value: measure.value,
                    at_us: measure.at_us,
                })
                .collect();
            let rows = rows::metrics(&rows);
            if self.writer.is_none() {
                self.open_table()?;
            }
            if let Some(writer) = &self.writer {
                writer.write(&name, &[rows])?;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}

fn part_name(stage: &str, first: u64, last: u64) -> String {
    format!("{stage}-{first:06}-{last:06}.parquet")
}

/// The steps of a part's name, if it is of `stage`.
pub(crate) fn steps_of(name: &str, stage: &str) -> Option<(u64, u64)> {
    let steps = name.strip_prefix(stage)?.strip_prefix('-')?.strip_suffix(".parquet")?;
    let (first, last) = steps.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::nobody;

    #[test]
    fn a_part_of_the_reward_is_told_by_its_name() {
        assert_eq!(doc("lr").unwrap(), "Learning rate of the last optimizer step.");
        assert_eq!(
            doc("reward_math").unwrap(),
            "`rl`: mean score of the part `math` of the reward."
        );
        assert!(doc("source_share_gsm8k").unwrap().contains("`gsm8k`"));
        assert_eq!(doc("nothing"), None);
    }

    #[test]
    fn measures_after_the_checkpoint_are_dropped_on_resume() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let metrics = BTreeMap::from([("loss".to_owned(), 1.0)]);
        let mut log = MetricsLog::open(&dir, "a", 0, &nobody());
        for step in 1..=4 {
            log.record(step, &metrics);
            if step % 2 == 0 {
                log.flush();
            }
        }
        let mut other = MetricsLog::open(&dir, "ab", 0, &nobody());
        other.record(9, &metrics);
        other.flush();
        MetricsLog::open(&dir, "a", 2, &nobody());
        assert_eq!(aha_rollout::read::rows_count(&dir.metrics()).unwrap(), 3);
    }

    #[test]
    fn a_sink_that_failed_over_a_checkpoint_loses_no_row_before_it_on_resume() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let metrics = BTreeMap::from([("loss".to_owned(), 1.0)]);
        let mut log = MetricsLog::open(&dir, "a", 0, &nobody());
        fs_err::remove_dir_all(dir.metrics()).unwrap();
        for step in 1..=3 {
            log.record(step, &metrics);
            log.flush();
        }
        assert_eq!(log.pending_steps(), 3);
        fs_err::create_dir_all(dir.metrics()).unwrap();
        log.record(4, &metrics);
        log.flush();
        assert_eq!(aha_rollout::read::rows_count(&dir.metrics()).unwrap(), 4);
        // The checkpoint was of step 2.
        MetricsLog::open(&dir, "a", 2, &nobody());
        assert_eq!(aha_rollout::read::rows_count(&dir.metrics()).unwrap(), 2);
    }

    #[test]
    fn a_sink_that_fails_for_ever_holds_the_newest_rows_only() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let mut log = MetricsLog::open(&dir, "a", 0, &nobody());
        fs_err::remove_dir_all(dir.metrics()).unwrap();
        let metrics: BTreeMap<String, f64> = (0..999).map(|i| (i.to_string(), 0.0)).collect();
        for step in 1..=150 {
            log.record(step, &metrics);
            log.flush();
        }
        let pending: Vec<u64> = log.pending().map(|measure| measure.step).collect();
        assert_eq!((pending.len(), pending[0]), (PENDING_MAX, 50));
        assert_eq!(pending.last(), Some(&150));
    }

    #[test]
    fn a_failing_sink_keeps_its_rows() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let mut log = MetricsLog::open(&dir, "a", 0, &nobody());
        fs_err::remove_dir_all(dir.metrics()).unwrap();
        log.record(1, &BTreeMap::from([("loss".to_owned(), 1.0)]));
        log.flush();
        assert_eq!(log.pending_steps(), 1);
        fs_err::create_dir_all(dir.metrics()).unwrap();
        log.flush();
        assert_eq!(log.pending_steps(), 0);
    }
}
