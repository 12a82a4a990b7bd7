//! The `reward-model` stage: a head that scores, trained on pairs of completions of which one was preferred.
//!
//! # Map
//! - `pairs`, of [`super`]: what the stage's queries give, as tokens, and which prompts are held out.
//! - Here: a step, the measurement on held-out pairs, and what is saved. `training` goes from step to step;
//!   which pairs a step has is a function of seed and step, as for `sft`.
//!
//! What is saved has a card (see [`Card`]): the template, and mean and deviation of the scores of the pairs that
//! were trained on, measured once at the end.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use aha_learn::learner::{self, Learner, PreferenceOutcome, compare};
use aha_learn::preference::Totals;
use aha_model::{Model, Tokenizer};

use super::Context;
use super::pairs::{self, Pair};
use super::sft::plan::Plan;
use super::training::{Done, Steps, Task, Training, add_speed};
use crate::compute::ComputeThread;
use crate::error::Result;
use crate::models::{self, Loaded};
use crate::pipeline::RewardModelStage;
use crate::reward_model::Card;

/// What the stage works with.
pub struct RewardModel<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its settings.
    pub settings: &'a RewardModelStage,
}

impl RewardModel<'_> {
    /// Runs the stage from its last checkpoint, or from the start, to its end.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let Loaded { model, tokenizer } = base;
        let source = self.source();
        let pairs = source.pairs(&model, &tokenizer).await?;
        source.write_table(&pairs)?;
        let (model, tokenizer) = self.prepare(model, tokenizer, &pairs)?;
        let (held_out, trained): (Vec<Pair>, Vec<Pair>) =
            pairs.into_iter().partition(|pair| pair.is_held_out);
        let settings = self.settings.clone();
        let steps = (settings.epochs, settings.max_steps);
        let random = self.context.random();
        let plan = Plan::new(trained.len(), settings.batch_size, steps, settings.shuffle, random);
        let model = models::to_train(model, settings.lora.as_ref(), random)?;
        let task = Arc::new(Preference { settings, trained, held_out, plan });
        let training = self.training();
        let learner = training.run(model, None, Arc::clone(&tokenizer), task.clone()).await?;
        let thread = ComputeThread::start("aha-learner")?;
        let (dir, stage, template) = (
            self.context.dir.clone(),
            self.context.stage.to_owned(),
            self.settings.template.clone(),
        );
        let job = move || {
            let mut model = models::finish(&dir, &stage, learner)?;
            let totals = task.compare(&model, &task.trained)?;
            let moments = [totals.score_mean() as f32, totals.score_std() as f32];
            let card = Card { template: Some(template.text().to_owned()), moments: Some(moments) };
            card.put(Arc::make_mut(&mut model))?;
            models::save_final(&dir, &stage, &model, &tokenizer)
        };
        thread.run(job).await?
    }

    /// The model to train, which has a head that scores, and the token that fills in transformers.
    fn prepare(
        &self,
        model: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        pairs: &[Pair],
    ) -> Result<(Arc<Model>, Arc<Tokenizer>)> {
        let mut model = match model.is_reward() {
            true => model,
            false => Arc::new(model.to_reward(self.context.random())?),
        };
        let card = Card { template: Some(self.settings.template.text().to_owned()), moments: None };
        let pad_id = pad_id(&model, &tokenizer, pairs);
        let changed = Arc::make_mut(&mut model);
        changed.set_pad(pad_id);
        card.put(changed)?;
        match pad_id.filter(|&id| tokenizer.is_special(id)) {
            Some(id) => Ok((model, Arc::new(tokenizer.with_pad(id)?))),
            None => Ok((model, tokenizer)),
        }
    }

    fn source(&self) -> pairs::Source<'_> {
        pairs::Source {
            context: self.context,
            data: &self.settings.data,
            held_out: self.settings.held_out.as_ref(),
            held_out_share: self.settings.held_out_share,
            template: &self.settings.template,
            max_tokens: self.settings.max_tokens,
            overlong: self.settings.overlong,
        }
    }

    fn training(&self) -> Training<'_> {
        Training {
            context: self.context,
            kind: "reward-model",
            checkpoint_every: self.settings.checkpoint_every,
            nan: self.settings.watchdogs.clone(),
            state: self.settings.optimizer.state.into(),
        }
    }
}

/// A token that no sequence ends in, the likelier one to be meant for it first. transformers looks for the token
/// whose score counts from the right, past those that fill.
fn pad_id(model: &Model, tokenizer: &Tokenizer, pairs: &[Pair]) -> Option<u32> {
    let mut taken: BTreeSet<u32> = tokenizer.eos_ids().iter().copied().collect();
    taken.extend(&model.config().eos_ids);
    taken.extend(pairs.iter().flat_map(Pair::examples).filter_map(|example| example.ids.last()));
    let rows = u32::try_from(model.config().vocab_size).unwrap_or(u32::MAX);
    let named = [tokenizer.pad().map(|token| token.id), model.config().pad_id];
    let special = (0..rows).filter(|&id| tokenizer.is_special(id));
    named.into_iter().flatten().chain(special).chain(0..rows).find(|id| !taken.contains(id))
}

/// What the stage trains on.
struct Preference {
    settings: RewardModelStage,
    trained: Vec<Pair>,
    held_out: Vec<Pair>,
    plan: Plan,
}

impl Preference {
    fn compare(&self, model: &Model, pairs: &[Pair]) -> Result<Totals> {
        let pairs: Vec<learner::Pair<'_>> = pairs.iter().map(tokens).collect();
        let micro_batch_tokens = self.settings.micro_batch_tokens.tokens() as usize;
        Ok(compare(model, &pairs, self.settings.centering, micro_batch_tokens)?)
    }
}

impl Task for Preference {
    fn steps(&self) -> u64 {
        self.plan.steps
    }

    fn step(&self, learner: &mut Learner, step: u64) -> Result<Done> {
        let began = Instant::now();
        let (lr, settings) = steps(&self.settings).settings(self.plan.steps, step);
        let batch = self.plan.batch(step);
        let batch: Vec<learner::Pair<'_>> =
            batch.iter().map(|&i| tokens(&self.trained[i])).collect();
        let outcome = learner.preference_step(&batch, self.settings.centering, &settings)?;
        let tokens: usize = batch.iter().map(|p| p.chosen.len() + p.rejected.len()).sum();
        let mut metrics = measure(&outcome, lr, tokens, began);
        let (steps, every) = (self.plan.steps, self.settings.held_out_every);
        if pairs::is_measured(&self.held_out, step + 1, steps, every)
            && learner.model().params().is_finite()
        {
            let totals = self.compare(learner.model(), &self.held_out)?;
            metrics.insert("held_out_loss".to_owned(), totals.loss);
            metrics.insert("held_out_accuracy".to_owned(), totals.accuracy());
            metrics.insert("held_out_margin".to_owned(), totals.margin_mean());
        }
        Ok(Done { applied: outcome.applied, metrics })
    }

    fn example_ids(&self, step: u64) -> Vec<&str> {
        self.plan.batch(step).into_iter().map(|i| self.trained[i].id.as_str()).collect()
    }
}

/// What the learner needs of a pair.
fn tokens(pair: &Pair) -> learner::Pair<'_> {
    learner::Pair {
        chosen: &pair.chosen_example.ids,
        rejected: &pair.rejected_example.ids,
        margin: pair.margin as f32,
    }
}

fn measure(
    outcome: &PreferenceOutcome,
    lr: f64,
    tokens: usize,
    began: Instant,
) -> BTreeMap<String, f64> {
    let totals = &outcome.totals;
    let mut metrics = BTreeMap::from([
        ("loss".to_owned(), totals.loss),
        ("accuracy".to_owned(), totals.accuracy()),
        ("margin".to_owned(), totals.margin_mean()),
        ("score_mean".to_owned(), totals.score_mean()),
        ("score_std".to_owned(), totals.score_std()),
        ("grad_norm".to_owned(), outcome.grad_norm),
        ("lr".to_owned(), lr),
    ]);
    add_speed(&mut metrics, tokens, began);
    metrics
}

fn steps(settings: &RewardModelStage) -> Steps<'_> {
    Steps {
        optimizer: &settings.optimizer,
        grad_clip: settings.grad_clip,
        micro_batch_tokens: settings.micro_batch_tokens,
        activation_checkpointing: settings.activation_checkpointing,
    }
}
