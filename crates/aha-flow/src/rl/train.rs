//! What the learner does with a step's rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_compute::WeightForm;
use aha_compute::ops::adamw::Hyper;
use aha_learn::learner::{self, Learner, OldLogps, Rollout, StepSettings};
use aha_learn::objective::{Normaliser, Totals};
use aha_learn::packing::minibatches;
use aha_learn::schedule::{Schedule, Shape};
use aha_rollout::schema::Progress;
use aha_rollout::steps::{self, Outcome};
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

use super::advantage::{Groups, NO_SIGNAL};
use super::appraise::appraise;
use super::critic::CriticSteps;
use super::fault::Point;
use super::stage::Shared;
use crate::error::{Error, Result};
use crate::pipeline::{Optimizer, ScheduleKind};
use crate::watchdog::Facts;

/// A step that is done.
pub struct Trained {
    /// Rows of `aha_rollout::schema::rollouts`, in the order of the groups.
    pub rows: RecordBatch,
    /// Rows of each group.
    pub lens: Vec<usize>,
    /// What was measured.
    pub metrics: BTreeMap<String, f64>,
    /// What the watchdogs look at; the counters over steps are the learner's to fill in.
    pub facts: Facts,
    /// Checksum of the weights that the step left.
    pub checksum: u64,
    /// The optimizer step at which the policy last became the reference.
    pub reference_version: u64,
    /// Prompts that failed: not served, or none of their completions could be scored.
    pub failures: Vec<(String, String)>,
}

/// Trains on a step's groups: `inner_epochs` passes of `minibatches` optimizer steps each. Raising `cancel`
/// ends it early.
pub fn train(
    learner: &mut Learner,
    shared: &Shared,
    step: u64,
    groups: &Groups,
    mut reference_version: u64,
    cancel: &AtomicBool,
) -> Result<Trained> {
    shared.faults.at(Point::Train, step)?;
    let appraised = appraise(learner, shared, groups)?;
    let groups = appraised.as_ref().map_or(groups, |appraised| &appraised.groups);
    let view = RolloutsView::new(&groups.rows, Progress::Grouped)?;
    let settings = &shared.settings;
    let mut outcomes = first_outcomes(&view, groups, shared);
    let starts = starts(&groups.lens);
    let kept = groups.kept();
    let old = Old::of(learner, shared, &view, &outcomes);
    let moves = !shared.is_warming_up(step);
    let returns = appraised.as_ref().and_then(|appraised| appraised.returns.as_deref());
    let mut run = Minibatches {
        learner,
        old,
        shared,
        view: &view,
        critic: returns.and_then(|returns| CriticSteps::new(shared, returns)),
        moves,
        totals: Totals::default(),
        grad_norms: Vec::new(),
        nan: 0,
        lr: 0.0,
    };
    for epoch in 0..u64::from(settings.inner_epochs) {
        let random = shared.random.derive("minibatches");
        let address = step * u64::from(settings.inner_epochs) + epoch;
        let split =
            minibatches(kept.len(), settings.minibatches as usize, |i| random.bits(&[address, i]));
        let in_step = kept.iter().flat_map(|&g| starts[g]..starts[g] + groups.lens[g]);
        let trained_total = in_step.filter_map(|row| counted_len(&view, row, &outcomes[row])).sum();
        for (idx, hand) in split.iter().enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            run.lr = if moves { shared.learning_rate(step, epoch, idx as u64) } else { 0.0 };
            if let Some(critic) = &mut run.critic {
                critic.lr = shared.critic_learning_rate(step, epoch, idx as u64);
            }
            let groups_of = hand.iter().map(|&i| kept[i]);
            let rows: Vec<usize> =
                groups_of.flat_map(|g| starts[g]..starts[g] + groups.lens[g]).collect();
            run.minibatch(&rows, &mut outcomes, (trained_total, split.len()))?;
            reference_version = run.refresh_reference(reference_version);
        }
    }
    let mut metrics = measure(&view, groups, shared);
    run.measure(&mut metrics);
    for (name, value) in appraised.iter().flat_map(|appraised| &appraised.metrics) {
        metrics.insert((*name).to_owned(), *value);
    }
    let nan_batches = run.nan + run.critic.as_ref().map_or(0, |critic| critic.nan);
    let checksum = run.learner.model().checksum()?;
    let facts = facts(&view, groups, shared, &outcomes, nan_batches);
    if !moves {
        let of_critic = outcomes.iter_mut().filter(|outcome| **outcome == Outcome::Trained);
        of_critic.for_each(|outcome| *outcome = Outcome::Skipped("critic_warmup".to_owned()));
    }
    let rows = steps::add_outcomes(&groups.rows, &outcomes)?;
    let failures = failures(&view, groups, &starts);
    let lens = groups.lens.clone();
    Ok(Trained { rows, lens, metrics, facts, checksum, reference_version, failures })
}

/// Prompts that could not be served, and those none of whose completions could be scored.
fn failures(view: &RolloutsView<'_>, groups: &Groups, starts: &[usize]) -> Vec<(String, String)> {
    let unscored = starts.iter().zip(&groups.lens).filter_map(|(&start, &len)| {
        // Where there are no rewards at all, every row has an advantage.
        let all = (start..start + len).all(|row| view.advantage(row).is_none());
        let error = || view.reward_error(start).unwrap_or("no reward").to_owned();
        (all && len > 0).then(|| (view.prompt_id(start).to_owned(), error()))
    });
    groups.failed.iter().cloned().chain(unscored).collect()
}

/// What is said of groups, for each of their rows.
pub(super) fn by_row<'a, T: Copy>(
    groups: &'a Groups,
    of_groups: &'a [T],
) -> impl Iterator<Item = T> + 'a {
    let of_group = |(&len, &said): (&usize, &T)| std::iter::repeat_n(said, len);
    groups.lens.iter().zip(of_groups).flat_map(of_group)
}

/// First rows of the groups.
fn starts(lens: &[usize]) -> Vec<usize> {
    lens.iter().scan(0, |at, &len| Some(std::mem::replace(at, *at + len))).collect()
}

/// Why a completion's tokens are masked: it counts as one without a trained token.
const MASKED: [&str; 2] = ["truncated", "unknown_to_teacher"];

/// Tokens of a completion that count in the loss's divisors; none for one that doesn't count at all.
fn counted_len(view: &RolloutsView<'_>, row: usize, outcome: &Outcome) -> Option<usize> {
    view.advantage(row)?;
    match outcome {
        Outcome::Skipped(reason) if MASKED.contains(&reason.as_str()) => Some(0),
        _ => Some(view.completion_token_ids(row).len()),
    }
}

/// Which rows can be trained on, before anything is.
fn first_outcomes(view: &RolloutsView<'_>, groups: &Groups, shared: &Shared) -> Vec<Outcome> {
    let skip = |reason: &str| Outcome::Skipped(reason.to_owned());
    let needs_all = shared.settings.objective.kl_loss_coef() != 0.0
        || shared.settings.objective.entropy_coef != 0.0
        || shared.settings.objective.distill_coef != 0.0;
    let teacher = shared.teacher.as_ref().map(|teacher| teacher.config().vocab_size);
    let is_known = |row| {
        let mut ids = view.completion_token_ids(row).iter().chain(view.prompt_token_ids(row));
        teacher.is_none_or(|size| ids.all(|&id| (id as usize) < size))
    };
    let masks_truncated = shared.settings.overlong_filter;
    let groups = by_row(groups, &groups.left_out).zip(by_row(groups, &groups.has_signal));
    groups
        .enumerate()
        .map(|(row, (left_out, has_signal))| {
            if view.advantage(row).is_none() {
                return skip("reward_null");
            }
            // Others are in its place.
            if let Some(reason) = left_out {
                return skip(reason);
            }
            if masks_truncated && is_truncated(view, row) {
                return skip("truncated");
            }
            // A row of the embedding that no token has.
            if !is_known(row) {
                return skip("unknown_to_teacher");
            }
            // Its gradient is exactly zero; it still counts in the loss's mean.
            let is_idle = !has_signal && !needs_all;
            if is_idle { skip(NO_SIGNAL) } else { Outcome::Trained }
        })
        .collect()
}

/// Where the learner's own log-probs of a step's completions come from: see [`OldLogps`].
enum Old {
    Behaviour,
    Current,
    /// By row; empty where a row isn't trained on.
    Scored(Vec<Vec<f32>>),
}

impl Old {
    /// To be called before the weights change. A sampler that computes as the learner does needs no second forward
    /// pass, nor does a step that changes the weights once.
    fn of(
        learner: &Learner,
        shared: &Shared,
        view: &RolloutsView<'_>,
        outcomes: &[Outcome],
    ) -> Old {
        let settings = &shared.settings;
        // With weights that changed meanwhile, `Current` and `Scored` are those before the step: the proximal policy.
        if shared.sampling.weights == WeightForm::Same && settings.max_staleness == 0 {
            return Old::Behaviour;
        }
        if settings.minibatches == 1 && settings.inner_epochs == 1 {
            return Old::Current;
        }
        let rows: Vec<usize> =
            (0..outcomes.len()).filter(|&r| outcomes[r] == Outcome::Trained).collect();
        let rollouts: Vec<Rollout<'_>> =
            rows.iter().map(|&r| rollout_of(view, r, OldLogps::Behaviour)).collect();
        let tokens = settings.micro_batch_tokens.tokens() as usize;
        let found = learner::score(learner.model(), &rollouts, temperature(shared), tokens);
        let mut scores = vec![Vec::new(); outcomes.len()];
        rows.into_iter().zip(found).for_each(|(row, found)| scores[row] = found);
        Old::Scored(scores)
    }

    fn at(&self, row: usize) -> OldLogps<'_> {
        match self {
            Old::Behaviour => OldLogps::Behaviour,
            Old::Current => OldLogps::Current,
            Old::Scored(scores) => OldLogps::Scored(&scores[row]),
        }
    }
}

pub(super) fn rollout_of<'a>(
    view: &'a RolloutsView<'a>,
    row: usize,
    old: OldLogps<'a>,
) -> Rollout<'a> {
    Rollout {
        prompt_ids: view.prompt_token_ids(row),
        completion_ids: view.completion_token_ids(row),
        behaviour_logps: view.completion_logprobs(row),
        old,
        advantage: view.advantage(row).unwrap_or(0.0) as f32,
        token_advantages: view.completion_advantages(row),
        mask: None,
    }
}

/// The temperature of the log-probs.
pub(super) fn temperature(shared: &Shared) -> f32 {
    1.0 / shared.sampling.inv_temperature()
}

/// Optimizer steps of one step of the stage.
struct Minibatches<'a> {
    learner: &'a mut Learner,
    old: Old,
    shared: &'a Shared,
    view: &'a RolloutsView<'a>,
    /// Where advantages are measured against a critic.
    critic: Option<CriticSteps<'a>>,
    /// Whether the policy is trained; before, its critic is alone.
    moves: bool,
    totals: Totals,
    grad_norms: Vec<f64>,
    nan: u32,
    /// The learning rate of the minibatch.
    lr: f64,
}

impl Minibatches<'_> {
    /// One optimizer step over `rows`. `rollout` has the trained tokens and the minibatches of the step.
    fn minibatch(
        &mut self,
        rows: &[usize],
        outcomes: &mut [Outcome],
        rollout: (usize, usize),
    ) -> Result<()> {
        let settings = &self.shared.settings;
        let view = self.view;
        // Rows without signal count in the mean although they are not run.
        let lens: Vec<usize> =
            rows.iter().filter_map(|&row| counted_len(view, row, &outcomes[row])).collect();
        let normaliser =
            Normaliser::of(&settings.objective, &lens).with_rollout(rollout.0, rollout.1);
        let trained: Vec<usize> =
            rows.iter().copied().filter(|&r| outcomes[r] == Outcome::Trained).collect();
        if trained.is_empty() {
            return Ok(());
        }
        let rollouts: Vec<Rollout<'_>> =
            trained.iter().map(|&r| rollout_of(view, r, self.old.at(r))).collect();
        if let (Some(steps), Some(critic)) = (&mut self.critic, self.learner.critic_mut()) {
            steps.step(critic, view, &trained, &rollouts)?;
        }
        if !self.moves {
            return Ok(());
        }
        let step = step_settings(
            &settings.optimizer,
            self.lr,
            settings.grad_clip,
            settings.micro_batch_tokens.tokens(),
            settings.activation_checkpointing.is_on(),
        );
        let outcome = self.learner.policy_step(
            &rollouts,
            &settings.objective,
            normaliser,
            temperature(self.shared),
            &step,
        )?;
        self.totals.add(&outcome.totals);
        self.grad_norms.push(outcome.grad_norm);
        if !outcome.applied {
            self.nan += 1;
            for row in trained {
                outcomes[row] = Outcome::Skipped("not_finite".to_owned());
            }
            if !self.learner.model().params().is_finite() {
                return Err(Error::Environment { message: "weights are not finite".to_owned() });
            }
        }
        Ok(())
    }

    /// Makes the policy the reference if that is due. Returns the version that is the reference then.
    fn refresh_reference(&mut self, reference_version: u64) -> u64 {
        let (every, version) =
            (self.shared.settings.reference.refresh_every, self.learner.version());
        let is_due = every > 0 && version - reference_version >= every;
        if !is_due || !self.shared.needs_reference() {
            return reference_version;
        }
        self.learner.set_reference(Some(Arc::clone(self.learner.model())));
        version
    }

    fn measure(&self, metrics: &mut BTreeMap<String, f64>) {
        self.critic.iter().for_each(|critic| critic.measure(metrics));
        let totals = &self.totals;
        let mut set = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
        set("lr", self.lr);
        set("policy_version", self.learner.version() as f64);
        if self.grad_norms.is_empty() {
            return;
        }
        let count = self.grad_norms.len() as f64;
        set("loss", totals.loss / count);
        set("grad_norm", self.grad_norms.iter().sum::<f64>() / count);
        set("clip_low_share", totals.clip_low_fraction());
        set("clip_high_share", totals.clip_high_fraction());
        set("ratio_max", totals.ratio_max);
        set("ratio_mean", totals.ratio_mean());
        for (name, mean) in [
            ("entropy", totals.entropy_mean()),
            ("kl", totals.kl_mean()),
            ("teacher_kl", totals.divergence_mean()),
        ] {
            if let Some(mean) = mean {
                set(name, mean);
            }
        }
        if let Some(importance) = totals.importance() {
            set("importance_mean", importance.mean);
            set("importance_max", importance.max);
            set("importance_cut_share", importance.cut_share);
            set("sampler_gap_mean", importance.sampler_gap_mean);
        }
    }
}

/// AdamW's constants and the step's bounds.
pub fn step_settings(
    optimizer: &Optimizer,
    lr: f64,
    grad_clip: f64,
    micro_batch_tokens: u32,
    activation_checkpointing: bool,
) -> StepSettings {
    StepSettings {
        hyper: Hyper {
            lr,
            beta1: optimizer.betas[0],
            beta2: optimizer.betas[1],
            eps: optimizer.eps,
            weight_decay: optimizer.weight_decay,
        },
        grad_norm_max: (grad_clip > 0.0).then_some(grad_clip),
        micro_batch_tokens: micro_batch_tokens as usize,
        activation_checkpointing,
    }
}

/// The learning rate at place `done` of `total` planned optimizer steps, the first being 0.
pub fn learning_rate(optimizer: &Optimizer, total: u64, done: u64) -> f64 {
    let schedule = Schedule {
        shape: match optimizer.schedule.kind {
            ScheduleKind::Constant => Shape::Constant,
            ScheduleKind::Linear => Shape::Linear,
            ScheduleKind::Cosine => Shape::Cosine,
        },
        lr: optimizer.lr,
        lr_min: optimizer.schedule.min_lr,
        warmup_steps: optimizer.schedule.warmup_steps,
        total_steps: total,
    };
    schedule.lr(done)
}

/// What a step's rows show by themselves.
fn measure(view: &RolloutsView<'_>, groups: &Groups, shared: &Shared) -> BTreeMap<String, f64> {
    let count = view.rows_count();
    let mut metrics = BTreeMap::new();
    let mut mean = |name: String, values: &mut dyn Iterator<Item = Option<f64>>| {
        let values: Vec<f64> = values.flatten().collect();
        if !values.is_empty() {
            metrics.insert(name, values.iter().sum::<f64>() / values.len() as f64);
        }
    };
    mean("reward".to_owned(), &mut (0..count).map(|r| view.reward(r)));
    for (part, name) in shared.scorer.names().iter().enumerate() {
        mean(format!("reward_{name}"), &mut (0..count).map(|r| view.reward_part(part, r)));
    }
    let flag = |x: bool| Some(f64::from(u8::from(x)));
    let is_right = |row: usize| {
        let part = shared.accuracy_part(view.source(row))?;
        // What can't be scored is not wrong.
        flag(view.reward_part(part, row)? == 1.0)
    };
    mean("accuracy".to_owned(), &mut (0..count).map(is_right));
    mean(
        "completion_len_tokens".to_owned(),
        &mut (0..count).map(|r| Some(view.completion_token_ids(r).len() as f64)),
    );
    mean("truncated_share".to_owned(), &mut (0..count).map(|r| flag(is_truncated(view, r))));
    mean("no_signal_share".to_owned(), &mut groups.compared().map(|s| flag(!s)));
    if shared.tells_sources() {
        metrics.extend(measure_sources(view, &groups.lens));
    }
    metrics
}

/// The share of each source in a step's prompts, and the mean reward of its completions.
fn measure_sources(view: &RolloutsView<'_>, lens: &[usize]) -> BTreeMap<String, f64> {
    let starts = starts(lens);
    let mut prompts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rewards: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (&start, &len) in starts.iter().zip(lens).filter(|(_, len)| **len > 0) {
        let Some(source) = view.source(start) else { continue };
        *prompts.entry(source).or_default() += 1;
        let of_source = rewards.entry(source).or_default();
        of_source.extend((start..start + len).filter_map(|row| view.reward(row)));
    }
    let shares = prompts.into_iter().map(|(source, count)| {
        (format!("source_share_{source}"), count as f64 / lens.len().max(1) as f64)
    });
    let means = rewards.into_iter().filter(|(_, rewards)| !rewards.is_empty());
    let means = means.map(|(source, rewards)| {
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        (format!("source_reward_{source}"), mean)
    });
    shares.chain(means).collect()
}

fn is_truncated(view: &RolloutsView<'_>, row: usize) -> bool {
    view.finish_reason(row) == aha_sample::FinishReason::Length.as_str()
}

/// Completions that a stop token ended but whose last token is another: the loss is over a completion's
/// tokens, so the model would not learn to stop.
fn stops_outside_mask(view: &RolloutsView<'_>, stop_ids: &[u32]) -> usize {
    let lacks_it = |&row: &usize| {
        view.finish_reason(row) == aha_sample::FinishReason::Stop.as_str()
            && !view.completion_token_ids(row).last().is_some_and(|id| stop_ids.contains(id))
    };
    (0..view.rows_count()).filter(lacks_it).count()
}

fn facts(
    view: &RolloutsView<'_>,
    groups: &Groups,
    shared: &Shared,
    outcomes: &[Outcome],
    nan_batches: u32,
) -> Facts {
    let rows = 0..view.rows_count();
    let answers = shared.answers();
    // By the first reward that reads answers and is for the row's source.
    let is_parsed = |row: usize| {
        let applied = |part: usize| shared.scorer.is_applied(part, view.source(row));
        let (_, answers) = answers.iter().find(|(part, _)| applied(*part))?;
        Some(answers.find(view.completion(row)).is_some())
    };
    let parsed: Vec<bool> = rows.clone().filter_map(is_parsed).collect();
    Facts {
        completions: view.rows_count(),
        truncated: rows.clone().filter(|&r| is_truncated(view, r)).count(),
        stop_outside_mask: stops_outside_mask(view, &shared.sampling.stop_token_ids),
        answerable: parsed.len(),
        unparsed: parsed.iter().filter(|is_parsed| !**is_parsed).count(),
        groups: groups.compared().count(),
        // From a teacher there is always something to learn.
        without_signal: match shared.teacher {
            Some(_) => 0,
            None => groups.compared().filter(|s| !s).count(),
        },
        trained: outcomes.iter().filter(|o| **o == Outcome::Trained).count(),
        nan_batches,
        ..Facts::default()
    }
}

#[cfg(test)]
mod tests {
    use aha_rollout::rows::{self, RolloutRow};

    use super::*;
    use crate::pipeline;

    fn optimizer(kind: ScheduleKind) -> Optimizer {
        Optimizer {
            lr: 8.0,
            betas: [0.8, 0.95],
            eps: 1e-3,
            weight_decay: 0.1,
            schedule: pipeline::Schedule { kind, warmup_steps: 2, min_lr: 2.0 },
            ..Optimizer::default()
        }
    }

    #[test]
    fn a_step_has_the_constants_of_its_stage() {
        let optimizer = optimizer(ScheduleKind::Constant);
        let hyper = Hyper { lr: 0.5, beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.1 };
        let expected = StepSettings {
            hyper,
            grad_norm_max: Some(0.25),
            micro_batch_tokens: 77,
            activation_checkpointing: true,
        };
        assert_eq!(step_settings(&optimizer, 0.5, 0.25, 77, true), expected);
        assert_eq!(step_settings(&optimizer, 0.5, 0.0, 77, true).grad_norm_max, None);
    }

    #[test]
    fn the_learning_rate_rises_and_falls_as_the_schedule_says() {
        for (kind, expected) in [
            (ScheduleKind::Constant, [4.0, 8.0, 8.0, 8.0, 8.0, 8.0]),
            (ScheduleKind::Linear, [4.0, 8.0, 8.0, 6.5, 5.0, 3.5]),
            // Half a cosine from 8 to 2 in four steps.
            (ScheduleKind::Cosine, [4.0, 8.0, 8.0, 7.121_320_343, 5.0, 2.878_679_656]),
        ] {
            for (done, expected) in expected.into_iter().enumerate() {
                let found = learning_rate(&optimizer(kind), 6, done as u64);
                assert!((found - expected).abs() < 1e-8, "{kind:?} {done}: {found}");
            }
        }
    }

    #[test]
    fn a_completion_that_lost_its_stop_token_is_counted() {
        let row = |finish_reason, completion_token_ids| RolloutRow {
            stage: "zero",
            step: 1,
            prompt_id: "p",
            source: None,
            sample_idx: 0,
            policy_version: 0,
            prompt: "1+1=",
            completion: "2",
            answer: None,
            tests: None,
            prompt_token_ids: &[5],
            completion_token_ids,
            completion_logprobs: &[-0.5, -0.5][..completion_token_ids.len()],
            completion_forced_mask: None,
            completion_policy_versions: None,
            finish_reason,
            finished_at_us: 0,
        };
        let rows = [
            row("stop", &[7, 2]),
            row("stop", &[2, 7]),
            row("stop", &[]),
            row("length", &[7, 7]),
            row("stop_string", &[7]),
        ];
        let rows = rows::rollouts(&rows).unwrap();
        let view = RolloutsView::new(&rows, Progress::Sampled).unwrap();
        assert_eq!(stops_outside_mask(&view, &[2, 3]), 2);
        assert_eq!(stops_outside_mask(&view, &[2, 7]), 1);
    }
}
