//! Advantage actor: collects a step's groups, and sends them on with their advantages.
//! - Inbox: scored groups; each keeps its credit until it is taken in here.
//! - State: groups of the current step. After a restart the step is issued again. None where the sampler runs ahead:
//!   each group goes on by itself, and is compared with others by the learner.
//! - With `resample_rounds`, groups whose rewards are all equal are kept apart, and the learner is asked for others in
//!   their place (DAPO's dynamic sampling, arXiv:2503.14476, section 3.2).
//! - Fails with [`Error`] for a reward that isn't a number.

use std::collections::BTreeMap;
use std::sync::Arc;

use aha_learn::advantage::{AdvantageRule, Sample, advantages};
use aha_rollout::schema::Progress;
use aha_rollout::steps;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::ahead::intake::Arrival;
use super::credit::Credit;
use super::fault::Point;
use super::feeder::Refill;
use super::learner;
use super::stage::Shared;
use crate::error::{Error, Result};

/// Others talk to the advantage actor through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
}

impl Handle {
    /// The actor, for its supervisor.
    pub fn cell(&self) -> ractor::ActorCell {
        self.actor.get_cell()
    }

    /// Says which groups a step has; with `is_refill`, which others beside those that it has already.
    pub fn expect(&self, step: u64, attempt: u64, prompt_ids: Vec<String>, is_refill: bool) {
        // One that has ended is restarted.
        let _ = self.actor.cast(Msg::Expect { step, attempt, prompt_ids, is_refill });
    }

    /// Hands over a scored group.
    pub fn take(&self, step: u64, attempt: u64, rows: RecordBatch, credit: Credit) {
        let _ = self.actor.cast(Msg::Group { step, attempt, rows, credit }); // As above.
    }

    /// Says that a group will never come.
    pub fn failed(&self, step: u64, attempt: u64, prompt_id: String, error: Error) {
        let _ = self.actor.cast(Msg::Failed { step, attempt, prompt_id, error }); // As above.
    }
}

/// What the advantage actor is told.
pub enum Msg {
    /// Which groups to wait for, in their order.
    Expect {
        /// The step.
        step: u64,
        /// Which spawn of the left side asks.
        attempt: u64,
        /// Their prompts.
        prompt_ids: Vec<String>,
        /// Whether the step goes on, and these come in addition.
        is_refill: bool,
    },
    /// A scored group.
    Group {
        /// The step.
        step: u64,
        /// Which spawn of the left side sent it.
        attempt: u64,
        /// Rows of `aha_rollout::schema::scored`.
        rows: RecordBatch,
        /// Pays for the group's place.
        credit: Credit,
    },
    /// A prompt that can't be served.
    Failed {
        /// The step.
        step: u64,
        /// Which spawn of the left side says so.
        attempt: u64,
        /// The prompt.
        prompt_id: String,
        /// Why.
        error: Error,
    },
}

/// A step's rows with advantages, group after group in the order of the prompts.
pub struct Groups {
    /// Rows of `aha_rollout::schema::grouped`.
    pub rows: RecordBatch,
    /// Rows of each group.
    pub lens: Vec<usize>,
    /// Whether each group teaches anything but closeness to the reference, and to a teacher beside rewards.
    pub has_signal: Vec<bool>,
    /// Why a group isn't trained on as a whole; none where it is.
    pub left_out: Vec<Option<&'static str>>,
    /// Prompts that could not be served, with their errors.
    pub failed: Vec<(String, String)>,
}

/// Why groups without a spread of rewards are left out where others were sampled in their place.
pub const NO_SIGNAL: &str = "no_signal";

impl Groups {
    /// Indices of the groups that are trained on.
    pub fn kept(&self) -> Vec<usize> {
        (0..self.lens.len()).filter(|&group| self.left_out[group].is_none()).collect()
    }

    /// Of the groups whose rewards were compared, whether each has a signal.
    pub fn compared(&self) -> impl Iterator<Item = bool> + '_ {
        let both = self.left_out.iter().zip(&self.has_signal);
        both.filter(|(reason, _)| reason.is_none_or(|reason| reason == NO_SIGNAL)).map(|(_, &s)| s)
    }
}

/// What the advantage actor needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where groups go.
    pub learner: learner::Handle,
}

/// What the advantage actor keeps: one step's groups.
pub struct State {
    args: Args,
    step: u64,
    attempt: u64,
    prompt_ids: Vec<String>,
    groups: BTreeMap<String, RecordBatch>,
    failed: BTreeMap<String, String>,
    refills: Refills,
}

/// How often a step was given other groups in place of those without spread.
#[derive(Default)]
struct Refills {
    rounds: u32,
    /// Prompts asked for in all rounds.
    asked: usize,
    /// Whether a round's prompts are on their way.
    is_pending: bool,
}

/// Normalises groups.
pub struct Advantage;

/// Spawns the advantage actor under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Advantage, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the advantage actor doesn't start: {error}")))?;
    Ok(Handle { actor })
}

impl Actor for Advantage {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let (groups, failed, refills) = Default::default();
        Ok(State { args, step: 0, attempt: 0, prompt_ids: Vec::new(), groups, failed, refills })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        msg: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Group { step, attempt, rows, credit } if state.is_ahead() => {
                state.args.shared.faults.at(Point::Advantage, step)?;
                state.pass_on(step, attempt, rows)?;
                drop(credit);
            }
            Msg::Expect { step, attempt, prompt_ids, is_refill: true } => {
                if (step, attempt) == (state.step, state.attempt) {
                    state.prompt_ids.extend(prompt_ids);
                    state.refills.is_pending = false;
                }
            }
            Msg::Expect { step, attempt, prompt_ids, is_refill: false } => {
                (state.step, state.attempt, state.prompt_ids) = (step, attempt, prompt_ids);
                state.groups.clear();
                state.failed.clear();
                state.refills = Refills::default();
            }
            Msg::Group { step, attempt, rows, credit } => {
                state.args.shared.faults.at(Point::Advantage, step)?;
                if (step, attempt) == (state.step, state.attempt) {
                    state.groups.insert(prompt_id(&rows)?, rows);
                }
                drop(credit);
            }
            Msg::Failed { step, attempt, prompt_id, error } => {
                if (step, attempt) == (state.step, state.attempt) {
                    state.failed.insert(prompt_id, error.to_string());
                }
            }
        }
        state.send_if_complete()?;
        Ok(())
    }
}

impl State {
    /// Whether the sampler runs ahead of the learner, which then takes groups one by one.
    fn is_ahead(&self) -> bool {
        self.args.shared.settings.max_staleness > 0
    }

    /// Hands a group on as it is: it is compared with those that its step takes.
    fn pass_on(&self, round: u64, attempt: u64, rows: RecordBatch) -> Result<()> {
        let settings = &self.args.shared.settings;
        let has_spread =
            settings.resample_rounds == 0 || has_spread(&rows, &settings.objective.advantage)?;
        self.args.learner.arrived(attempt, round, Arrival::scored(rows, has_spread)?);
        Ok(())
    }

    fn send_if_complete(&mut self) -> Result<()> {
        let waiting = self.groups.len() + self.failed.len() < self.prompt_ids.len();
        if self.step == 0 || waiting || self.refills.is_pending {
            return Ok(());
        }
        let settings = &self.args.shared.settings;
        let is_selective = settings.resample_rounds > 0;
        let ordered: Vec<&RecordBatch> =
            self.prompt_ids.iter().filter_map(|id| self.groups.get(id)).collect();
        let rule = &settings.objective.advantage;
        let is_kept = match is_selective {
            true => ordered.iter().map(|rows| has_spread(rows, rule)).collect::<Result<_>>()?,
            false => vec![true; ordered.len()],
        };
        let kept = is_kept.iter().filter(|&&is_kept| is_kept).count();
        let missing = (settings.prompts_per_step as usize).saturating_sub(kept);
        if is_selective && missing > 0 && self.refills.rounds < settings.resample_rounds {
            let kept = ordered.iter().zip(&is_kept).filter(|(_, is_kept)| **is_kept);
            let kept_ids: Result<Vec<String>> = kept.map(|(rows, _)| prompt_id(rows)).collect();
            let refill = Refill {
                asked: self.refills.asked,
                count: missing,
                asked_ids: self.prompt_ids.clone(),
                kept_ids: kept_ids?,
            };
            self.refills = Refills {
                rounds: self.refills.rounds + 1,
                asked: self.refills.asked + missing,
                is_pending: true,
            };
            self.args.learner.refill(self.step, self.attempt, refill);
            return Ok(());
        }
        let failed = std::mem::take(&mut self.failed).into_iter().collect();
        let left_out = is_kept.iter().map(|is_kept| (!is_kept).then_some(NO_SIGNAL)).collect();
        let groups = normalise(&ordered, left_out, rule, self.args.shared.scorer.names(), failed)?;
        self.groups.clear();
        self.args.learner.learn(self.step, self.attempt, groups);
        self.step = 0;
        Ok(())
    }
}

/// The prompt of a group.
fn prompt_id(rows: &RecordBatch) -> Result<String> {
    Ok(RolloutsView::new(rows, Progress::Scored)?.prompt_id(0).to_owned())
}

/// Whether the rewards of a group differ by more than what counts as no signal.
fn has_spread(rows: &RecordBatch, rule: &AdvantageRule) -> Result<bool> {
    let view = RolloutsView::new(rows, Progress::Scored)?;
    let samples = samples(&view);
    let found = advantages(&[&samples], rule)?;
    Ok(found.iter().any(|group| group.reward_std > rule.no_signal_std_max))
}

/// A view's completions as advantages see them.
pub(super) fn samples(view: &RolloutsView<'_>) -> Vec<Sample> {
    let sample = |row: usize| Sample {
        reward: view.reward(row).map(|x| x as f32),
        len_tokens: view.completion_token_ids(row).len(),
    };
    (0..view.rows_count()).map(sample).collect()
}

/// Adds advantages to the groups of a step: among those that are kept; the others' are 0. Without rewards all are,
/// and what the groups teach is the teacher's.
pub fn normalise(
    groups: &[&RecordBatch],
    left_out: Vec<Option<&'static str>>,
    rule: &AdvantageRule,
    reward_names: &[String],
    failed: Vec<(String, String)>,
) -> Result<Groups> {
    let schema = aha_rollout::schema::scored(reward_names)?;
    let scored = concat_batches(&schema, groups.iter().copied())
        .map_err(|error| Error::bug(format!("a step's groups don't fit together: {error}")))?;
    let samples = samples(&RolloutsView::new(&scored, Progress::Scored)?);
    let lens: Vec<usize> = groups.iter().map(|rows| rows.num_rows()).collect();
    let slices = split(&samples, &lens);
    let (values, has_signal) = match reward_names {
        [] => (vec![Some(0.0); samples.len()], vec![true; lens.len()]),
        _ => compare(&slices, &left_out, rule)?,
    };
    Ok(Groups {
        rows: steps::add_advantages(&scored, &values)?,
        lens,
        has_signal,
        left_out,
        failed,
    })
}

/// The advantages of all completions, none where one has no reward, and which groups have a signal.
pub(super) fn compare(
    groups: &[&[Sample]],
    left_out: &[Option<&'static str>],
    rule: &AdvantageRule,
) -> Result<(Vec<Option<f64>>, Vec<bool>)> {
    let kept = groups.iter().zip(left_out).filter(|(_, left_out)| left_out.is_none());
    let kept: Vec<&[Sample]> = kept.map(|(group, _)| *group).collect();
    let mut found = advantages(&kept, rule)?.into_iter();
    let (mut values, mut has_signal) = (Vec::new(), Vec::with_capacity(groups.len()));
    for (group, left_out) in groups.iter().zip(left_out) {
        let found = if left_out.is_none() { found.next() } else { None };
        has_signal.push(found.as_ref().is_some_and(|found| found.has_signal));
        match found {
            Some(found) => values.extend(
                found
                    .rows
                    .iter()
                    .map(|row| row.skip_reason.is_none().then(|| f64::from(row.value))),
            ),
            None => values.extend(group.iter().map(|sample| sample.reward.map(|_| 0.0))),
        }
    }
    Ok((values, has_signal))
}

/// The groups of a step's completions.
pub(super) fn split<'a>(mut samples: &'a [Sample], lens: &[usize]) -> Vec<&'a [Sample]> {
    let cut = |&len: &usize| {
        let (group, rest) = samples.split_at(len);
        samples = rest;
        group
    };
    lens.iter().map(cut).collect()
}
