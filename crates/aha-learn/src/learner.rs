//! One optimizer step: sequences in, changed weights out.
//!
//! A minibatch is packed in micro-batches without padding; gradients are summed over tokens in order. So the
//! weights after a step have the same bits with and without activation checkpointing, and whatever
//! `micro_batch_tokens`.
//!
//! Only weights that are trained have gradients and moments, and are in the gradient's norm: of a model with low-rank
//! adapters these are the adapters.
//!
//! A group's prompt runs through the model once, forwards and backwards, and its completions attend to it.
//! A group that doesn't fit into a micro-batch is cut into parts with the prompt in each. Its gradients are
//! those of a whole group, bit for bit: all parts add to the sums for the prompt's keys and values, and the
//! last one's backward pass goes on from them.
//!
//! Several devices share a minibatch out, neighbours to one device, and add their gradients up in the order of devices
//! ([`peers`]). Normalisers are those of the whole minibatch, and so are the sums that are reported. Every device has
//! the same gradients then, and makes the same step: see `team`. The bits are the same in every run on as many devices
//! of a kind; with another number of devices they differ by rounding.

mod critic;
mod dpo;
mod packed;
mod team;

pub use dpo::{DpoOutcome, DpoPair, compare_dpo};

use std::ops::Range;
use std::sync::Arc;

use aha_compute::ops::adamw::{AdamW, Hyper, StatePlace};
use aha_compute::ops::grad_norm;
use aha_compute::peers::{self, Peers};
use aha_compute::{Grads, Tape, Tensor};
use aha_model::Model;

use crate::Error;
use crate::objective::{self, Normaliser, Objective, Totals};
use crate::packing::{pack, shares};
use crate::preference::{self, PairScores};
use crate::sft;
use packed::Packed;

pub use critic::{ValueOutcome, ValueTarget, values};

/// Steps from one comparison of all devices' weights to the next: a fault of a device must not stay unseen.
const WEIGHTS_COMPARED_EVERY: u64 = 100;

/// What one optimizer step does beside its objective.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSettings {
    /// Optimizer constants; the learning rate is the step's.
    pub hyper: Hyper,
    /// Gradients are scaled down to this global L2 norm; absent: not at all.
    pub grad_norm_max: Option<f64>,
    /// Most tokens that run through the model at once, unless a completion and its prompt, an example or a
    /// pair has more. Changes memory and speed, and no result.
    pub micro_batch_tokens: usize,
    /// Keep only the inputs of each layer, and compute the rest again for the backward pass.
    pub activation_checkpointing: bool,
}

/// A completion to learn from by reinforcement.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    /// The prompt's tokens; at least one.
    pub prompt_ids: &'a [u32],
    /// The completion's tokens, exactly as they were sampled.
    pub completion_ids: &'a [u32],
    /// Log-probs of the completion's tokens under the weights that sampled them, as the sampler computed them.
    pub behaviour_logps: &'a [f32],
    /// The same, as the learner computes them; of weights that were older, under those before the step.
    pub old: OldLogps<'a>,
    /// The completion's advantage.
    pub advantage: f32,
    /// Advantages of its tokens, in place of the completion's.
    pub token_advantages: Option<&'a [f32]>,
    /// Which tokens count; all where absent.
    pub mask: Option<&'a [bool]>,
}

/// Log-probs of a completion's tokens under the weights that sampled them, as the learner computes them.
#[derive(Clone, Copy, Debug, Default)]
pub enum OldLogps<'a> {
    /// The behaviour log-probs are these, bit for bit: sampler and learner run the same kernels.
    #[default]
    Behaviour,
    /// The sampler computes otherwise, or from older weights, and the step hasn't changed them yet: the forward pass
    /// gives them.
    Current,
    /// The sampler computes otherwise, or from older weights; [`score`] gave these before the weights changed.
    Scored(&'a [f32]),
}

/// A text to imitate.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// Tokens.
    pub ids: &'a [u32],
    /// Which tokens count; the first never does, since nothing precedes it. As long as `ids`.
    pub loss_mask: &'a [bool],
}

/// Two completions of a prompt, each with it, one of which was preferred.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Tokens of prompt and chosen completion; at least one.
    pub chosen: &'a [u32],
    /// Tokens of prompt and rejected completion; at least one.
    pub rejected: &'a [u32],
    /// By how much the first ought to be ahead.
    pub margin: f32,
}

/// What a step of a reward model did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreferenceOutcome {
    /// Sums over the minibatch's pairs, by the weights before the step.
    pub totals: preference::Totals,
    /// Global L2 norm of the gradient, before it was scaled down.
    pub grad_norm: f64,
    /// Whether the weights changed. They don't where the loss or the gradient isn't finite.
    pub applied: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Sums over the minibatch's tokens.
    pub totals: Totals,
    /// Global L2 norm of the gradient, before it was scaled down.
    pub grad_norm: f64,
    /// Whether the weights changed. They don't where the loss or the gradient isn't finite.
    pub applied: bool,
}

/// A model being trained, and its optimizer.
pub struct Learner {
    model: Arc<Model>,
    reference: Option<Arc<Model>>,
    critic: Option<Box<Learner>>,
    teacher: Option<Arc<Model>>,
    adamw: AdamW,
    grads: Grads,
    version: u64,
    /// This one's place among the devices that learn together.
    peers: Arc<dyn Peers>,
    /// Those of the other devices, where this is the first.
    followers: Vec<Learner>,
}

impl Learner {
    /// A learner that has made no step.
    pub fn new(model: Arc<Model>) -> Learner {
        Learner::placed(model, StatePlace::Device)
    }

    /// As [`Learner::new`], with the optimizer's state in this place.
    pub fn placed(model: Arc<Model>, place: StatePlace) -> Learner {
        let adamw = AdamW::placed(model.params(), place);
        Learner::resume(model, adamw, 0)
    }

    /// A learner that goes on from saved state, after `version` optimizer steps.
    pub fn resume(model: Arc<Model>, adamw: AdamW, version: u64) -> Learner {
        let grads = Grads::zeros(model.device(), model.params());
        Learner {
            model,
            reference: None,
            critic: None,
            teacher: None,
            adamw,
            grads,
            version,
            peers: Arc::new(peers::Alone),
            followers: Vec::new(),
        }
    }

    /// The weights. A holder of this handle keeps them: the next step then changes a copy.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The weights, alone: gradients, optimizer and reference are dropped.
    pub fn into_model(self) -> Arc<Model> {
        self.model
    }

    /// Optimizer steps made.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The optimizer's state, to save.
    pub fn optimizer(&self) -> &AdamW {
        &self.adamw
    }

    /// The model that KL is measured from, or the log-probs of pairs; absent where no objective needs it.
    pub fn set_reference(&mut self, reference: Option<Arc<Model>>) {
        self.each_with_model(reference, |learner, reference| learner.reference = reference);
    }

    /// The model that KL is measured from, or the log-probs of pairs.
    pub fn reference(&self) -> Option<&Arc<Model>> {
        self.reference.as_ref()
    }

    /// What learns to expect a completion's reward, where advantages are measured against that.
    pub fn set_critic(&mut self, critic: Option<Learner>) {
        self.critic = critic.map(Box::new);
        if let Some(critic) = &mut self.critic {
            critic.follow(self.followers.iter().map(Learner::place), &self.peers);
        }
    }

    /// The critic.
    pub fn critic(&self) -> Option<&Learner> {
        self.critic.as_deref()
    }

    /// The critic, to train it.
    pub fn critic_mut(&mut self) -> Option<&mut Learner> {
        self.critic.as_deref_mut()
    }

    /// The model that an objective with `distill` comes closer to; absent where there is none. It knows the same
    /// tokens, and has as many positions.
    pub fn set_teacher(&mut self, teacher: Option<Arc<Model>>) {
        self.each_with_model(teacher, |learner, teacher| learner.teacher = teacher);
    }

    /// One step of policy optimization on `rollouts`, of which those of a group follow one another. Log-probs
    /// are those of the softmax at `temperature`, as the sampler drew them.
    pub fn policy_step(
        &mut self,
        rollouts: &[Rollout<'_>],
        objective: &Objective,
        normaliser: Normaliser,
        temperature: f32,
        settings: &StepSettings,
    ) -> Result<StepOutcome, Error> {
        for rollout in rollouts {
            check_rollout(rollout)?;
        }
        self.together(|learner| {
            let rollouts = learner.share(rollouts, &packed::lens(rollouts));
            let mut totals = Totals::default();
            learner.grads.clear();
            for range in packed::micro_batches(rollouts, settings.micro_batch_tokens) {
                let packed = Packed::completions(rollouts, range.clone());
                let terms = PolicyTerms { rollouts: &rollouts[range], objective, normaliser };
                learner.policy_micro_batch(&packed, terms, temperature, settings, &mut totals)?;
            }
            let totals = learner.total(totals, |sum, next| sum.add(&next))?;
            let (grad_norm, applied) = learner.apply(totals.loss, settings)?;
            Ok(StepOutcome { totals, grad_norm, applied })
        })
    }

    fn policy_micro_batch(
        &mut self,
        packed: &Packed,
        terms: PolicyTerms<'_>,
        temperature: f32,
        settings: &StepSettings,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        let inv_temperature = 1.0 / temperature;
        let objective = terms.objective;
        let reference = needed(
            self.reference.as_ref(),
            objective.kl_loss_coef(),
            "a KL term needs a reference model",
        )?
        .map(|reference| packed.score(reference, inv_temperature));
        let known = terms.known(packed, reference.as_deref());
        let model = Arc::clone(&self.model);
        let mut tape = Tape::recording(model.device(), model.params());
        let checkpointing = settings.activation_checkpointing;
        if let Some(slopes) = objective::Slopes::of(objective, &known, &terms.normaliser) {
            let [logps, entropies] = packed.run_learning(
                &model,
                &mut tape,
                inv_temperature,
                checkpointing,
                &|token, logp, _| slopes.at(token, logp),
                &mut self.grads,
            );
            let [logps, entropies] = [&logps, &entropies].map(Tensor::host);
            let measured = Measured { logps: &logps, entropies: &entropies, divergences: None };
            totals.add_all(&terms.loss(packed, known, measured));
            tape.backward(Vec::new(), &mut self.grads);
            return Ok(());
        }
        let teacher =
            needed(self.teacher.as_ref(), objective.distill_coef, "distillation needs a teacher")?;
        let predictions = teacher.map(|teacher| packed.predictions(teacher));
        let (log_probs, entropies, divergences) =
            packed.run(&model, &mut tape, inv_temperature, checkpointing, predictions.as_ref());
        let host = |var: &aha_compute::Var| var.value().host().into_owned();
        let values = (host(&log_probs), host(&entropies), divergences.as_ref().map(host));
        let measured =
            Measured { logps: &values.0, entropies: &values.1, divergences: values.2.as_deref() };
        let out = terms.loss(packed, known, measured);
        totals.add_all(&out);
        let seed = |values: &[f32]| Tensor::from_slice(model.device(), &[values.len()], values);
        let mut seeds = vec![(log_probs, seed(&out.dlogps))];
        if let Some(dentropies) = &out.dentropies {
            seeds.push((entropies, seed(dentropies)));
        }
        if let Some((divergences, ddivergences)) = divergences.zip(out.ddivergences.as_ref()) {
            seeds.push((divergences, seed(ddivergences)));
        }
        tape.backward(seeds, &mut self.grads);
        Ok(())
    }

    /// One step of imitation: the loss is the mean negative log-prob of all counted tokens.
    pub fn sft_step(
        &mut self,
        examples: &[Example<'_>],
        settings: &StepSettings,
    ) -> Result<StepOutcome, Error> {
        for example in examples {
            check_example(example)?;
        }
        let trained = |e: &Example<'_>| e.loss_mask.iter().skip(1).filter(|&&m| m).count();
        let normaliser = sft::Normaliser::of(examples.iter().map(trained));
        let lens = |examples: &[Example<'_>]| -> Vec<usize> {
            examples.iter().map(|e| e.ids.len()).collect()
        };
        self.together(|learner| {
            let examples = learner.share(examples, &lens(examples));
            let mut totals = Totals::default();
            learner.grads.clear();
            for range in pack(&lens(examples), settings.micro_batch_tokens) {
                learner.sft_micro_batch(&examples[range], &normaliser, settings, &mut totals);
            }
            let totals = learner.total(totals, |sum, next| sum.add(&next))?;
            let (grad_norm, applied) = learner.apply(totals.loss, settings)?;
            Ok(StepOutcome { totals, grad_norm, applied })
        })
    }

    fn sft_micro_batch(
        &mut self,
        examples: &[Example<'_>],
        normaliser: &sft::Normaliser,
        settings: &StepSettings,
        totals: &mut Totals,
    ) {
        let packed = Packed::examples(examples);
        let model = Arc::clone(&self.model);
        let mut tape = Tape::recording(model.device(), model.params());
        let dlogp = normaliser.dlogp();
        let [logps, _] = packed.run_learning(
            &model,
            &mut tape,
            1.0,
            settings.activation_checkpointing,
            &|_, _, _| [dlogp, 0.0],
            &mut self.grads,
        );
        let logps = logps.host();
        for range in &packed.outputs {
            totals.loss += normaliser.loss(&logps[range.clone()]);
            totals.token_count += range.len();
        }
        tape.backward(Vec::new(), &mut self.grads);
    }

    /// One step of a reward model on `pairs`, by the loss of [`preference`].
    pub fn preference_step(
        &mut self,
        pairs: &[Pair<'_>],
        centering: f64,
        settings: &StepSettings,
    ) -> Result<PreferenceOutcome, Error> {
        check_pairs(pairs)?;
        let pair_count = pairs.len();
        self.together(|learner| {
            let pairs = learner.share(pairs, &pair_lens(pairs));
            let mut totals = preference::Totals::default();
            learner.grads.clear();
            for range in pack(&pair_lens(pairs), settings.micro_batch_tokens) {
                let pairs_of = &pairs[range];
                let model = Arc::clone(&learner.model);
                let mut tape = Tape::recording(model.device(), model.params());
                let scores =
                    pair_scores(&model, &mut tape, pairs_of, settings.activation_checkpointing);
                let mut dscores = Vec::with_capacity(2 * pairs_of.len());
                for (pair, two) in pairs_of.iter().zip(scores.value().host().chunks_exact(2)) {
                    let two = PairScores { chosen: two[0], rejected: two[1], margin: pair.margin };
                    let out = preference::loss(two, centering, pair_count);
                    totals.add(two, out.loss);
                    dscores.extend([out.dchosen, out.drejected]);
                }
                let seed = Tensor::from_slice(model.device(), &[dscores.len(), 1], &dscores);
                tape.backward(vec![(scores, seed)], &mut learner.grads);
            }
            let totals = learner.total(totals, |sum, next| sum.merge(&next))?;
            let (grad_norm, applied) = learner.apply(totals.loss, settings)?;
            Ok(PreferenceOutcome { totals, grad_norm, applied })
        })
    }

    /// Adds up the gradients of all devices, clips them and steps the optimizer, unless something isn't finite. `loss`
    /// is that of all. Returns the gradient's norm before, and whether there was a step. Fails where a device did.
    fn apply(&mut self, loss: f64, settings: &StepSettings) -> Result<(f64, bool), Error> {
        self.grads.finish();
        self.model.device().check()?;
        self.peers.sum(&mut self.grads)?;
        let grad_norm = grad_norm::global_norm(self.grads.iter());
        self.agree("the norm of the gradient", grad_norm.to_bits())?;
        let applied = grad_norm.is_finite() && loss.is_finite();
        if applied {
            let scale =
                settings.grad_norm_max.map_or(1.0, |max| grad_norm::clip_scale(grad_norm, max));
            let model = Arc::make_mut(&mut self.model);
            self.adamw.step(model.params_mut(), &self.grads, &settings.hyper, scale);
            self.version += 1;
        }
        self.model.device().check()?;
        if applied && self.version % WEIGHTS_COMPARED_EVERY == 1 && self.peers.count() > 1 {
            let checksum = self.model.params().checksum();
            self.model.device().check()?;
            self.agree("the weights", checksum)?;
        }
        Ok((grad_norm, applied))
    }
}

/// What a reward model makes of pairs, in micro-batches.
pub fn compare(
    model: &Model,
    pairs: &[Pair<'_>],
    centering: f64,
    micro_batch_tokens: usize,
) -> Result<preference::Totals, Error> {
    check_pairs(pairs)?;
    let mut totals = preference::Totals::default();
    for range in pack(&pair_lens(pairs), micro_batch_tokens) {
        let mut tape = Tape::inference(model.device(), model.params());
        let scores = pair_scores(model, &mut tape, &pairs[range.clone()], false);
        for (pair, two) in pairs[range].iter().zip(scores.value().host().chunks_exact(2)) {
            let two = PairScores { chosen: two[0], rejected: two[1], margin: pair.margin };
            totals.add(two, preference::loss(two, centering, pairs.len()).loss);
        }
    }
    Ok(totals)
}

/// Tokens of pairs, which stay whole, since a pair's loss takes both of its scores.
fn pair_lens(pairs: &[Pair<'_>]) -> Vec<usize> {
    pairs.iter().map(|p| p.chosen.len() + p.rejected.len()).collect()
}

/// Scores of each pair's chosen and rejected completion, one after the other.
fn pair_scores<'m>(
    model: &'m Model,
    tape: &mut Tape<'m>,
    pairs: &[Pair<'_>],
    checkpointing: bool,
) -> aha_compute::Var {
    let sequences: Vec<&[u32]> = pairs.iter().flat_map(|p| [p.chosen, p.rejected]).collect();
    let lens: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
    model.score(tape, &sequences.concat(), &lens, checkpointing)
}

/// Log-probs of completions under `model`, in micro-batches: what a reference model is asked for.
pub fn score(
    model: &Model,
    rollouts: &[Rollout<'_>],
    temperature: f32,
    micro_batch_tokens: usize,
) -> Vec<Vec<f32>> {
    let mut scores = Vec::with_capacity(rollouts.len());
    for range in packed::micro_batches(rollouts, micro_batch_tokens) {
        let packed = Packed::completions(rollouts, range);
        let logps = packed.score(model, 1.0 / temperature);
        scores.extend(packed.outputs.iter().map(|range| logps[range.clone()].to_vec()));
    }
    scores
}

/// What the loss of a micro-batch needs beside log-probs.
#[derive(Clone, Copy)]
struct PolicyTerms<'a> {
    rollouts: &'a [Rollout<'a>],
    objective: &'a Objective,
    normaliser: Normaliser,
}

/// What the forward pass of a micro-batch gives, token by token.
struct Measured<'a> {
    logps: &'a [f32],
    entropies: &'a [f32],
    divergences: Option<&'a [f32]>,
}

impl<'a> PolicyTerms<'a> {
    /// What is known before the forward pass, which gives the log-probs: until then those of the sampler are in their
    /// place.
    fn known(
        &self,
        packed: &Packed,
        reference: Option<&'a [f32]>,
    ) -> Vec<objective::SequenceTerms<'a>> {
        let terms = |(rollout, range): (&Rollout<'a>, &Range<usize>)| {
            let behaviour = rollout.behaviour_logps;
            let (old_logps, behaviour_logps) = match rollout.old {
                OldLogps::Behaviour => (Some(behaviour), None),
                OldLogps::Current => (None, Some(behaviour)),
                OldLogps::Scored(old) => (Some(old), Some(behaviour)),
            };
            objective::SequenceTerms {
                logps: behaviour,
                old_logps,
                behaviour_logps,
                ref_logps: reference.map(|r| &r[range.clone()]),
                entropies: None,
                divergences: None,
                advantage: rollout.advantage,
                token_advantages: rollout.token_advantages,
                mask: rollout.mask,
            }
        };
        self.rollouts.iter().zip(&packed.outputs).map(terms).collect()
    }

    fn loss<'b>(
        &self,
        packed: &Packed,
        known: Vec<objective::SequenceTerms<'b>>,
        measured: Measured<'b>,
    ) -> objective::LossOut {
        let Measured { logps, entropies, divergences } = measured;
        let terms =
            known.into_iter().zip(&packed.outputs).map(|(known, range)| objective::SequenceTerms {
                logps: &logps[range.clone()],
                entropies: Some(&entropies[range.clone()]),
                divergences: divergences.map(|d| &d[range.clone()]),
                ..known
            });
        objective::loss(self.objective, &terms.collect::<Vec<_>>(), &self.normaliser)
    }
}

/// The model that a term of the loss needs; none where its factor is 0.
fn needed<'a>(
    model: Option<&'a Arc<Model>>,
    factor: f64,
    missing: &str,
) -> Result<Option<&'a Arc<Model>>, Error> {
    match model {
        None if factor != 0.0 => Err(Error::Bug(missing.to_owned())),
        model => Ok(model.filter(|_| factor != 0.0)),
    }
}

fn check_rollout(rollout: &Rollout<'_>) -> Result<(), Error> {
    let input = |what: &str, expected: String, found: usize| {
        Err(Error::Input { what: what.to_owned(), expected, found: found.to_string() })
    };
    if rollout.prompt_ids.is_empty() {
        return input("tokens of a rollout's prompt", "at least one".to_owned(), 0);
    }
    let len = rollout.completion_ids.len();
    if rollout.behaviour_logps.len() != len {
        return input(
            "log-probs of a rollout",
            format!("one per token, {len}"),
            rollout.behaviour_logps.len(),
        );
    }
    if let OldLogps::Scored(old) = rollout.old
        && old.len() != len
    {
        return input("old log-probs of a rollout", format!("one per token, {len}"), old.len());
    }
    if let Some(advantages) = rollout.token_advantages
        && advantages.len() != len
    {
        let expected = format!("one per token, {len}");
        return input("advantages of a rollout's tokens", expected, advantages.len());
    }
    match rollout.mask {
        Some(mask) if mask.len() != len => {
            input("mask of a rollout", format!("one flag per token, {len}"), mask.len())
        }
        _ => Ok(()),
    }
}

fn check_pairs(pairs: &[Pair<'_>]) -> Result<(), Error> {
    match pairs.iter().any(|pair| pair.chosen.is_empty() || pair.rejected.is_empty()) {
        false => Ok(()),
        true => Err(Error::Input {
            what: "tokens of a completion of a pair".to_owned(),
            expected: "at least one".to_owned(),
            found: "0".to_owned(),
        }),
    }
}

fn check_example(example: &Example<'_>) -> Result<(), Error> {
    if example.loss_mask.len() == example.ids.len() {
        return Ok(());
    }
    Err(Error::Input {
        what: "loss mask of an example".to_owned(),
        expected: format!("one flag per token, {}", example.ids.len()),
        found: example.loss_mask.len().to_string(),
    })
}
