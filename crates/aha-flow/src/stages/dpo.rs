//! The `dpo` stage: direct preference optimization on pairs of completions of which one was preferred.
//!
//! # Map
//! - `pairs`, of [`super`]: what the stage's queries give, as tokens, and which prompts are held out.
//! - Here: a step, and the measurement on held-out pairs. `training` goes from step to step; which pairs a step
//!   has is a function of seed and step, as for `sft`.
//!
//! The reference is a model of the pipeline and never changes: a stage that goes on loads it again. Its log-probs
//! are computed as those of the policy are, step by step, in the same micro-batches. With `lora` the policy is the
//! model that the stage starts from with adapters, so it and a reference that is that model share their weights.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aha_learn::dpo::{LossKind, Objective, Totals};
use aha_learn::learner::{self, DpoPair, Learner, compare_dpo};
use aha_model::Model;

use super::Context;
use super::pairs::{self, Pair};
use super::sft::plan::Plan;
use super::training::{Done, Steps, Task, Training, add_speed};
use crate::error::{Error, Result};
use crate::models::{self, Loaded};
use crate::pipeline::{DpoStage, NanWatchdog, PairLoss};
use crate::prompts::Example;
use crate::watchdog;

/// What the stage works with.
pub struct Dpo<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its settings.
    pub settings: &'a DpoStage,
}

impl Dpo<'_> {
    /// Runs the stage from its last checkpoint, or from the start, to its end. Without a `reference` that is
    /// `base`.
    pub async fn run(&self, base: Loaded, reference: Option<Arc<Model>>) -> Result<()> {
        let Loaded { model, tokenizer } = base;
        let reference = reference.unwrap_or_else(|| Arc::clone(&model));
        let pairs = self.pairs(&model, &reference, &tokenizer).await?;
        let (held_out, trained): (Vec<Pair>, Vec<Pair>) =
            pairs.into_iter().partition(|pair| pair.is_held_out);
        let settings = self.settings.clone();
        let steps = (settings.epochs, settings.max_steps);
        let random = self.context.random();
        let plan = Plan::new(trained.len(), settings.batch_size, steps, settings.shuffle, random);
        let model = models::to_train(model, settings.lora.as_ref(), random)?;
        let objective = objective(&settings);
        let task = Arc::new(Preference { settings, objective, trained, held_out, plan });
        let training = self.training();
        let learner = training.run(model, Some(reference), Arc::clone(&tokenizer), task).await?;
        let model = models::finish(self.context.dir, self.context.stage, learner)?;
        models::save_final(self.context.dir, self.context.stage, &model, &tokenizer)
    }

    /// The pairs, once the watchdogs have seen them; both models know all of their tokens.
    async fn pairs(
        &self,
        model: &Model,
        reference: &Model,
        tokenizer: &Arc<aha_model::Tokenizer>,
    ) -> Result<Vec<Pair>> {
        let source = self.source();
        let pairs = source.pairs(model, tokenizer).await?;
        for found in
            watchdog::examples(&self.settings.watchdogs, pairs.iter().flat_map(Pair::examples))
        {
            self.context.tell(found)?;
        }
        for pair in &pairs {
            for example in pair.examples() {
                check(example).map_err(|error| error.within(&format!("pair `{}`", pair.id)))?;
                let checked = reference.check_sequence(&example.ids);
                checked.map_err(|error| Error::from(error).within("the reference model"))?;
            }
        }
        source.write_table(&pairs)?;
        Ok(pairs)
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
        let watchdogs = &self.settings.watchdogs;
        Training {
            context: self.context,
            kind: "dpo",
            checkpoint_every: self.settings.checkpoint_every,
            nan: NanWatchdog { nan: watchdogs.nan, nan_batches_max: watchdogs.nan_batches_max },
            state: self.settings.optimizer.state.into(),
        }
    }
}

/// The first token never counts, since nothing precedes it.
fn check(example: &Example) -> Result<()> {
    if example.loss_mask.iter().skip(1).any(|&is_trained| is_trained) {
        return Ok(());
    }
    Err(Error::input_with(
        "a completion has no token to train on",
        "leave the pair out, or look at `template`",
    ))
}

fn objective(settings: &DpoStage) -> Objective {
    Objective {
        kind: match settings.loss {
            PairLoss::Sigmoid => LossKind::Sigmoid,
            PairLoss::Ipo => LossKind::Ipo,
            PairLoss::Hinge => LossKind::Hinge,
        },
        beta: settings.beta,
        label_smoothing: settings.label_smoothing,
        is_length_normalised: settings.length_normalised,
        nll_coef: settings.nll,
    }
}

/// What the stage trains on.
struct Preference {
    settings: DpoStage,
    objective: Objective,
    trained: Vec<Pair>,
    held_out: Vec<Pair>,
    plan: Plan,
}

impl Preference {
    fn measure_held_out(&self, learner: &Learner) -> Result<Totals> {
        let reference = learner.reference().ok_or_else(|| Error::bug("DPO has a reference"))?;
        let pairs: Vec<DpoPair<'_>> = self.held_out.iter().map(tokens).collect();
        let micro_batch_tokens = self.settings.micro_batch_tokens.tokens() as usize;
        let model = learner.model();
        Ok(compare_dpo(model, reference, &pairs, &self.objective, micro_batch_tokens)?)
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
        let batch: Vec<DpoPair<'_>> = batch.iter().map(|&i| tokens(&self.trained[i])).collect();
        let outcome = learner.dpo_step(&batch, &self.objective, &settings)?;
        let totals = &outcome.totals;
        let mut metrics = BTreeMap::from([
            ("loss".to_owned(), totals.loss),
            ("accuracy".to_owned(), totals.accuracy()),
            ("margin".to_owned(), totals.margin_mean()),
            ("reward_chosen".to_owned(), totals.mean(totals.reward_chosen)),
            ("reward_rejected".to_owned(), totals.mean(totals.reward_rejected)),
            ("logp_chosen".to_owned(), totals.mean(totals.logp_chosen)),
            ("logp_rejected".to_owned(), totals.mean(totals.logp_rejected)),
            ("nll".to_owned(), totals.mean(totals.nll)),
            ("grad_norm".to_owned(), outcome.grad_norm),
            ("lr".to_owned(), lr),
        ]);
        let tokens = batch.iter().map(|pair| pair.chosen.ids.len() + pair.rejected.ids.len()).sum();
        add_speed(&mut metrics, tokens, began);
        let (steps, every) = (self.plan.steps, self.settings.held_out_every);
        if pairs::is_measured(&self.held_out, step + 1, steps, every)
            && learner.model().params().is_finite()
        {
            let totals = self.measure_held_out(learner)?;
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
fn tokens(pair: &Pair) -> DpoPair<'_> {
    let [chosen, rejected] = pair
        .examples()
        .map(|example| learner::Example { ids: &example.ids, loss_mask: &example.loss_mask });
    DpoPair { chosen, rejected, margin: pair.margin as f32 }
}

fn steps(settings: &DpoStage) -> Steps<'_> {
    Steps {
        optimizer: &settings.optimizer,
        grad_clip: settings.grad_clip,
        micro_batch_tokens: settings.micro_batch_tokens,
        activation_checkpointing: settings.activation_checkpointing,
    }
}
