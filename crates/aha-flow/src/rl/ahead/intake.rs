//! The learner's side: groups that have arrived, and what a step makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aha_rollout::schema::Progress;
use aha_rollout::steps;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

use super::idle::Idle;
use super::lane::Lane;
use super::ledger::{Again, Asked, Fate, Group, Ledger, Outcome, Rule, Taken};
use crate::error::Result;
use crate::pipeline::OnStale;
use crate::rl::advantage::{self, Groups, NO_SIGNAL};
use crate::rl::feeder::Wanted;
use crate::rl::stage::Shared;

/// What became of a prompt, on its way to the learner.
pub struct Arrival {
    prompt_id: String,
    outcome: Outcome<RecordBatch>,
}

impl Arrival {
    /// A group with its rewards: rows of `aha_rollout::schema::scored`.
    pub(in crate::rl) fn scored(rows: RecordBatch, has_spread: bool) -> Result<Arrival> {
        let view = RolloutsView::new(&rows, Progress::Scored)?;
        let all = 0..view.rows_count();
        let tokens = all.clone().map(|row| view.completion_token_ids(row).len() as u64).sum();
        // The first token of a completion is its oldest.
        let oldest = all.map(|row| view.policy_version(row)).min().unwrap_or_default();
        let prompt_id = view.prompt_id(0).to_owned();
        let group = Group { rows, oldest, has_spread, tokens };
        Ok(Arrival { prompt_id, outcome: Ok(group) })
    }

    /// A prompt that has no group.
    pub(in crate::rl) fn failed(prompt_id: String, error: String) -> Arrival {
        Arrival { prompt_id, outcome: Err(error) }
    }
}

/// Groups on their way and in waiting, and how long the learner waits for them.
pub struct Intake {
    ledger: Ledger<RecordBatch>,
    idle: Idle,
    /// When the step before was done.
    since: Instant,
    /// The spawn of the left side and the step whose weights it was given last.
    given: Option<(u64, u64)>,
    /// Of the step that was taken last.
    measured: BTreeMap<String, f64>,
}

impl Intake {
    /// What a stage begins with after `step` steps, or goes on with; none where the sampler doesn't run ahead.
    pub fn new(shared: &Shared, asked: &Asked, (version, step): (u64, u64)) -> Option<Intake> {
        let settings = &shared.settings;
        if settings.max_staleness == 0 {
            return None;
        }
        let rule = Rule {
            max_staleness: u64::from(settings.max_staleness),
            per_step: settings.prompts_per_step as usize,
            resample_rounds: settings.resample_rounds as usize,
            steps: settings.steps,
            waits: settings.on_stale == OnStale::Wait,
            one_by_one: shared.draw.is_some(),
        };
        let mut ledger = Ledger::new(rule, asked.clone(), step);
        ledger.publish(version, step);
        let (idle, measured) = Default::default();
        Some(Intake { ledger, idle, since: Instant::now(), given: None, measured })
    }

    /// What a checkpoint keeps.
    pub fn asked(&self) -> Asked {
        self.ledger.asked()
    }

    /// Whether the spawn of the left side has to be given the weights that there are after `step` steps.
    pub fn has_to_give(&mut self, attempt: u64, step: u64) -> bool {
        self.given.replace((attempt, step)) != Some((attempt, step))
    }

    /// A step is done; its weights are published as this version.
    pub fn step_done(&mut self, version: u64, step: u64) {
        self.ledger.publish(version, step);
    }

    /// Rounds that whoever is left now has to be asked for, since those before are gone.
    pub fn again(&self, left_out: &BTreeSet<String>) -> Vec<(u64, Wanted)> {
        let wanted = |again| match again {
            Again::Round(round) => (round, Wanted::Round(left_out.clone())),
            Again::Prompts(round, prompt_ids) => (round, Wanted::Prompts(prompt_ids)),
        };
        self.ledger.again().into_iter().map(wanted).collect()
    }

    /// The next round, if it may begin after `step` steps.
    pub fn next_round(&mut self, step: u64) -> Option<u64> {
        self.ledger.next_round(step)
    }

    /// Prompts that are on their way or have arrived.
    pub fn prompt_ids(&self) -> impl Iterator<Item = &str> {
        self.ledger.prompt_ids()
    }

    /// The prompts of a round.
    pub fn fed(&mut self, round: u64, prompt_ids: Vec<String>) {
        self.ledger.fed(round, prompt_ids);
    }

    /// Takes in what became of a prompt; what nobody waits for is dropped.
    pub fn arrive(&mut self, round: u64, arrival: Arrival, lane: Option<&Lane>) {
        if let (Ok(group), Some(lane)) = (&arrival.outcome, lane) {
            lane.arrived(group.tokens);
        }
        self.ledger.arrive(round, &arrival.prompt_id, arrival.outcome);
    }

    /// The groups of step `step`, if it is time; else the learner waits from now on.
    pub fn take(
        &mut self,
        shared: &Shared,
        step: u64,
        lane: Option<&Lane>,
    ) -> Result<Option<Groups>> {
        let Some(taken) = self.ledger.take(step) else {
            self.idle.begin(Instant::now());
            return Ok(None);
        };
        self.idle.end(Instant::now());
        let in_flight = lane.map_or(0, Lane::tokens) + self.ledger.tokens_waiting();
        self.measured = measure(&self.ledger, &taken, step)?;
        self.measured.insert("tokens_in_flight".to_owned(), in_flight as f64);
        gather(shared, taken, step).map(Some)
    }

    /// What was measured of the step that was taken last.
    pub fn measured(&mut self) -> BTreeMap<String, f64> {
        std::mem::take(&mut self.measured)
    }

    /// The time since this was asked last, and how much of it the learner has waited.
    pub fn take_times(&mut self) -> (Duration, Duration) {
        let now = Instant::now();
        let since = std::mem::replace(&mut self.since, now);
        (now.saturating_duration_since(since), self.idle.take(now))
    }
}

/// How old the tokens are that a step trains on, and how many groups were too old.
fn measure(
    ledger: &Ledger<RecordBatch>,
    taken: &Taken<RecordBatch>,
    step: u64,
) -> Result<BTreeMap<String, f64>> {
    let (mut sum, mut count, mut max) = (0_u64, 0_u64, 0);
    for (_, group) in taken.groups.iter().filter(|(fate, _)| *fate == Fate::Kept) {
        let view = RolloutsView::new(&group.rows, Progress::Scored)?;
        for row in 0..view.rows_count() {
            for version in view.completion_policy_versions(row).into_iter().flatten() {
                let age = ledger.age(version, step - 1).unwrap_or_default();
                (sum, count, max) = (sum + age, count + 1, max.max(age));
            }
        }
    }
    let stale = taken.groups.iter().filter(|(fate, _)| *fate == Fate::Stale).count();
    let measures = [
        ("staleness_mean", sum as f64 / count.max(1) as f64),
        ("staleness_max", max as f64),
        ("stale_groups", stale as f64),
    ];
    Ok(measures.map(|(name, value)| (name.to_owned(), value)).into())
}

/// What a step takes, with advantages among those that it trains on.
fn gather(shared: &Shared, taken: Taken<RecordBatch>, step: u64) -> Result<Groups> {
    let rows: Result<Vec<RecordBatch>> =
        taken.groups.iter().map(|(_, group)| Ok(steps::set_step(&group.rows, step)?)).collect();
    let left_out = taken.groups.iter().map(|(fate, _)| match fate {
        Fate::Kept => None,
        Fate::NoSignal => Some(NO_SIGNAL),
        Fate::Stale => Some("stale"),
        Fate::Unused => Some("unused"),
    });
    advantage::normalise(
        &rows?.iter().collect::<Vec<_>>(),
        left_out.collect(),
        &shared.settings.objective.advantage,
        shared.scorer.names(),
        taken.failed,
    )
}
