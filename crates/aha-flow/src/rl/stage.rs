//! What the actors of an `rl` stage share, and the loop that goes on from the last checkpoint.

use std::sync::Arc;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_learn::learner::Learner;
use aha_model::{Head, Model, Tokenizer};
use ractor::Actor;
use tokio::sync::oneshot;

use super::draw::Draw;
use super::fault::Faults;
use super::supervisor::{self, Ending, Supervisor};
use super::train;
use crate::checkpoint::{self, Begun, Position, Saved, States};
use crate::error::{Error, Result};
use crate::evaluate::Answers;
use crate::models::{self, Loaded, Models};
use crate::pipeline::{Optimizer, RlStage, Run, Template, Watch};
use crate::progress::{Event, Watcher};
use crate::prompts::{Problem, Prompter};
use crate::rundir::RunDir;
use crate::score::Scorer;
use crate::stop::Stop;

/// Times that a stage goes on from the same checkpoint, at most.
const STAGE_RESTARTS_MAX: u32 = 2;

/// What the actors of a stage share.
pub struct Shared {
    /// The stage.
    pub stage: String,
    /// Its settings.
    pub settings: RlStage,
    /// What holds for every stage.
    pub run: Run,
    /// What computes; a sampler that runs ahead has one beside it.
    pub device: Device,
    /// More devices that train.
    pub others: Vec<Device>,
    /// Where everything is written.
    pub dir: RunDir,
    /// Problems that prompts are made of.
    pub problems: Vec<Problem>,
    /// Which of them a step asks; none: each pass over them asks all.
    pub draw: Option<Draw>,
    /// How prompts are made.
    pub prompter: Prompter,
    /// How tokens are drawn.
    pub sampling: aha_sample::Sampling,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The rewards.
    pub scorer: Scorer,
    /// The model that is learned from, if there is one. It knows the tokens of the one that learns.
    pub teacher: Option<Arc<Model>>,
    /// The family of the stage's draws.
    pub random: Philox,
    /// Who watches.
    pub watcher: Watcher,
    /// Faults that a test injects.
    pub faults: Faults,
}

impl Shared {
    /// Where the optimizers' state is.
    fn states(&self) -> States {
        let critic = self.settings.critic.as_ref().map(|critic| critic.optimizer.state.into());
        let policy = self.settings.optimizer.state.into();
        States { policy, critic: critic.unwrap_or_default() }
    }

    /// The learning rate of a minibatch, by its place among those that are planned. A minibatch that gives no
    /// optimizer step, and one that a step with fewer groups doesn't have, takes its place all the same:
    /// otherwise the schedule would not be through when the stage is. It begins when the policy first moves.
    pub fn learning_rate(&self, step: u64, epoch: u64, minibatch_idx: u64) -> f64 {
        let before = self.warmup_steps();
        self.rate_of(&self.settings.optimizer, (before, step), epoch, minibatch_idx)
    }

    /// The same of the critic, which learns from the first step on.
    pub fn critic_learning_rate(&self, step: u64, epoch: u64, minibatch_idx: u64) -> f64 {
        let optimizer = self.settings.critic.as_ref().map(|critic| &critic.optimizer);
        optimizer.map_or(0.0, |optimizer| self.rate_of(optimizer, (0, step), epoch, minibatch_idx))
    }

    fn rate_of(
        &self,
        optimizer: &Optimizer,
        (before, step): (u64, u64),
        epoch: u64,
        minibatch_idx: u64,
    ) -> f64 {
        let settings = &self.settings;
        let per_pass = u64::from(settings.prompts_per_step.min(settings.minibatches));
        let passes = u64::from(settings.inner_epochs);
        let done = ((step - 1 - before) * passes + epoch) * per_pass + minibatch_idx;
        train::learning_rate(optimizer, (settings.steps - before) * passes * per_pass, done)
    }

    /// Whether the policy rests in this step, and only the critic learns.
    pub fn is_warming_up(&self, step: u64) -> bool {
        step <= self.warmup_steps()
    }

    fn warmup_steps(&self) -> u64 {
        self.settings.critic.as_ref().map_or(0, |critic| critic.warmup_steps)
    }

    /// Whether the objective measures its distance from a reference model.
    pub fn needs_reference(&self) -> bool {
        self.settings.objective.kl_coef != 0.0
    }

    /// The part that is 1 for a right answer, or for a program that passes its tests, of completions of prompts from
    /// `source`: the first.
    pub fn accuracy_part(&self, source: Option<&str>) -> Option<usize> {
        let rewards = self.settings.rewards.iter().enumerate();
        let mut parts =
            rewards.filter(|(_, reward)| reward.needs().is_some()).map(|(part, _)| part);
        parts.find(|&part| self.scorer.is_applied(part, source))
    }

    /// How the rewards find final answers that read them, with their parts.
    pub fn answers(&self) -> Vec<(usize, Answers)> {
        let rewards = self.settings.rewards.iter().enumerate();
        rewards.filter_map(|(part, reward)| Some((part, Answers::of(&reward.0)?))).collect()
    }

    /// Whether the stage tells prompts apart by their sources.
    pub fn tells_sources(&self) -> bool {
        let mut rewards = self.settings.rewards.iter();
        !self.settings.source_weights.0.is_empty()
            || rewards.any(|reward| reward.0.common.sources.is_some())
    }
}

/// Runs a stage from its last checkpoint, or from the start, to its end. `base` is the model that it begins
/// with, one of `models`.
pub async fn run(
    shared: Arc<Shared>,
    base: Loaded,
    models: &Models<'_>,
    stop: &Stop,
) -> Result<()> {
    check_template(&shared)?;
    check_teacher(&shared, &base.model)?;
    // Held until the stage has begun, not longer: the learner changes it in place if nobody else has it.
    let mut base = Some(base.model);
    // The step that it went on from last, how often it did, and why it has to again.
    let mut last: Option<(u64, u32, Error)> = None;
    loop {
        let (mut engine, position) = begin(&shared, base.take(), models).await?;
        engine.set_teacher(shared.teacher.clone());
        let step = position.step;
        let restarts = match last.take() {
            Some((from, restarts, error)) if from == step && restarts == STAGE_RESTARTS_MAX => {
                return Err(error);
            }
            Some((from, restarts, _)) if from == step => restarts + 1,
            _ => 0,
        };
        (shared.watcher)(Event::StageStarted {
            stage: shared.stage.clone(),
            kind: "rl",
            step,
            steps: shared.settings.steps,
        });
        match spawn_and_wait(&shared, engine, position, stop).await? {
            Ending::Final(outcome) => return outcome,
            Ending::Restart(error) => {
                tracing::warn!(%error, stage = shared.stage, "Stage goes on from its last checkpoint.");
                last = Some((step, restarts, error));
            }
        }
    }
}

async fn spawn_and_wait(
    shared: &Arc<Shared>,
    engine: Learner,
    position: Position,
    stop: &Stop,
) -> Result<Ending> {
    let (ended, ending) = oneshot::channel();
    let args =
        supervisor::Args { shared: Arc::clone(shared), engine: Box::new(engine), position, ended };
    let (supervisor, joined) = Actor::spawn(None, Supervisor, args).await.map_err(|error| {
        Error::Environment { message: format!("the stage's actors don't start: {error}") }
    })?;
    let outcome = tokio::select! {
        ending = ending => ending,
        ending = async {
            stop.requested().await;
            let _ = supervisor.cast(supervisor::Msg::Stop); // It may have ended meanwhile.
            std::future::pending().await
        } => ending,
    };
    // Nobody may still write when the stage begins again.
    supervisor.stop_children_and_wait(None, None).await;
    supervisor.stop(None);
    let _ = joined.await; // The outcome is known already.
    outcome.map_err(|_| Error::bug("the stage's supervisor ended without an outcome"))
}

/// Weights, optimizer and position to go on from. The model that the stage begins with is loaded again where
/// it is needed and `base` is none.
async fn begin(
    shared: &Shared,
    base: Option<Arc<Model>>,
    models: &Models<'_>,
) -> Result<(Learner, Position)> {
    let (mut learner, position) = begin_on_one(shared, base, models).await?;
    learner.spread_to(&shared.others)?;
    Ok((learner, position))
}

/// As [`begin`], on the first device.
async fn begin_on_one(
    shared: &Shared,
    base: Option<Arc<Model>>,
    models: &Models<'_>,
) -> Result<(Learner, Position)> {
    let needs_reference = shared.needs_reference();
    let Some(lora) = &shared.settings.lora else {
        return begin_whole(shared, base, models).await;
    };
    // Its weights are in memory once, whatever has them.
    let first = first_model(shared, base, models).await?;
    let policy = models::to_train(Arc::clone(&first), Some(lora), shared.random)?;
    let begun = Begun::of(&policy);
    let states = shared.states();
    let saved = checkpoint::newest(&shared.dir, &shared.stage, models.device, begun, states)?;
    let (mut learner, reference, position) = match saved {
        None => {
            // Read before the policy's gradients and moments are there.
            let critic = first_critic(shared, &first, models).await?;
            let mut learner = Learner::placed(policy, shared.states().policy);
            learner.set_critic(critic);
            let position = Position { stage: shared.stage.clone(), ..Position::default() };
            (learner, first, position)
        }
        Some(saved) => {
            let reference = saved.reference.clone().unwrap_or(first);
            let (learner, position) = resumed(shared, saved)?;
            (learner, reference, position)
        }
    };
    learner.set_reference(needs_reference.then_some(reference));
    Ok((learner, position))
}

/// As [`begin_on_one`], where all weights are trained.
async fn begin_whole(
    shared: &Shared,
    base: Option<Arc<Model>>,
    models: &Models<'_>,
) -> Result<(Learner, Position)> {
    let needs_reference = shared.needs_reference();
    let begun = Begun::Anew(Head::Language);
    let saved =
        checkpoint::newest(&shared.dir, &shared.stage, models.device, begun, shared.states())?;
    let Some(saved) = saved else {
        let model = first_model(shared, base, models).await?;
        let critic = first_critic(shared, &model, models).await?;
        let mut learner = Learner::placed(Arc::clone(&model), shared.states().policy);
        learner.set_critic(critic);
        learner.set_reference(needs_reference.then_some(model));
        let position = Position { stage: shared.stage.clone(), ..Position::default() };
        return Ok((learner, position));
    };
    let reference = match saved.reference.clone() {
        None if needs_reference => Some(first_model(shared, base, models).await?),
        saved => {
            drop(base); // Before there are gradients.
            saved.filter(|_| needs_reference)
        }
    };
    let (mut learner, position) = resumed(shared, saved)?;
    learner.set_reference(reference);
    Ok((learner, position))
}

/// A checkpoint's learner with its critic, and its position.
fn resumed(shared: &Shared, saved: Saved) -> Result<(Learner, Position)> {
    let mut learner = Learner::resume(saved.model, saved.optimizer, saved.position.version);
    let steps = saved.position.critic_steps;
    let critic = saved.critic.map(|(model, optimizer)| Learner::resume(model, optimizer, steps));
    if critic.is_none() && shared.settings.critic.is_some() {
        return Err(Error::bug("the checkpoint of a stage with a critic has none"));
    }
    learner.set_critic(critic);
    Ok((learner, saved.position))
}

/// The critic that the stage begins with; none where it has none.
async fn first_critic(
    shared: &Shared,
    first: &Model,
    models: &Models<'_>,
) -> Result<Option<Learner>> {
    let Some(settings) = &shared.settings.critic else { return Ok(None) };
    let model = match &settings.model {
        None => Arc::new(first.to_critic()?),
        Some(name) => {
            let Loaded { model, tokenizer } = models.load_any(name).await?;
            check_same_tokens(&shared.tokenizer, &tokenizer, name)?;
            check_rows(first, &model, name)?;
            if model.is_reward() { model } else { Arc::new(model.to_critic()?) }
        }
    };
    Ok(Some(Learner::placed(model, shared.states().critic)))
}

/// A policy may draw a row of its embedding that no token has.
fn check_rows(policy: &Model, critic: &Model, name: &str) -> Result<()> {
    let [needed, found] = [policy, critic].map(|model| model.config().vocab_size);
    if needed <= found {
        return Ok(());
    }
    Err(Error::input_with(
        format!(
            "the critic `{name}` has an embedding of {found} rows, and the policy one of {needed}"
        ),
        "take one that was made of a model of the same family, or leave it out",
    ))
}

/// A critic reads the policy's token ids.
fn check_same_tokens(policy: &Tokenizer, critic: &Tokenizer, name: &str) -> Result<()> {
    let len = policy.vocab_len();
    let is_same = critic.vocab_len() >= len
        && (0..len as u32).all(|id| policy.token_bytes(id) == critic.token_bytes(id));
    if is_same {
        return Ok(());
    }
    Err(Error::input_with(
        format!("the critic `{name}` has another tokenizer than the model that is trained"),
        "take a critic that was made of a model of the same family, or leave `critic.model` out",
    ))
}

async fn first_model(
    shared: &Shared,
    base: Option<Arc<Model>>,
    models: &Models<'_>,
) -> Result<Arc<Model>> {
    match base {
        Some(model) => Ok(model),
        None => Ok(models.load(&shared.settings.model).await?.model),
    }
}

/// A chat template has to give the same tokens for a prompt alone as before its completion: otherwise the
/// model learns from another place than it samples at.
fn check_template(shared: &Shared) -> Result<()> {
    let watch = shared.settings.watchdogs.template_breaks_mask;
    if shared.settings.template != Template::Chat || watch == Watch::Off {
        return Ok(());
    }
    let Some(problem) = shared.problems.first() else { return Ok(()) };
    let Some(message) = shared.prompter.example(&problem.prompt, "4")?.mask_problem else {
        return Ok(());
    };
    let hint = "use another `template`, or mend the model's chat template";
    if watch == Watch::Stop {
        return Err(Error::Watchdog { message, hint: hint.to_owned() });
    }
    (shared.watcher)(Event::Warning {
        stage: shared.stage.clone(),
        message,
        hint: hint.to_owned(),
    });
    Ok(())
}

/// A teacher may have fewer positions than its student: then no prompt may leave too few of them for a completion.
fn check_teacher(shared: &Shared, base: &Model) -> Result<()> {
    let Some(teacher) = &shared.teacher else { return Ok(()) };
    let positions = teacher.config().max_position_embeddings;
    if base.config().max_position_embeddings <= positions {
        return Ok(());
    }
    let max_tokens = shared.sampling.max_tokens;
    for problem in &shared.problems {
        // What can't be encoded is set aside when its turn comes.
        let Ok(ids) = shared.prompter.prompt_ids(&problem.prompt) else { continue };
        let len = ids.len() + max_tokens;
        if positions < len {
            return Err(Error::input_with(
                format!(
                    "prompt `{}` and a completion of `sampling.max_tokens` are {len} tokens: the \
                     teacher has {positions} positions",
                    problem.id
                ),
                "lower `sampling.max_tokens`, leave long prompts out, or take another teacher",
            ));
        }
    }
    Ok(())
}
