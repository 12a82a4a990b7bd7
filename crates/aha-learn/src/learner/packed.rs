//! Sequences as one batch without padding, and which of their tokens' log-probs are wanted.
//!
//! Rollouts that follow one another and have the same prompt are a group, whose prompt is there once, behind its
//! completions: so their gradients are complete before its are computed, also where batches have a group in parts.
//! A completion's last token is not there at all, since nothing is predicted from it.

use std::ops::Range;
use std::sync::Arc;

use aha_compute::ops::attention::{Layout, Split};
use aha_compute::ops::lm_head::Slopes;
use aha_compute::tape::Predictions;
use aha_compute::{Grads, Tape, Tensor, Var};
use aha_model::Model;
use aha_model::model::Batch;

use super::{Example, Rollout};
use crate::packing;

/// A batch, and the rows whose next token is wanted.
pub(super) struct Packed {
    ids: Vec<u32>,
    layout: Layout,
    rows: Arc<[usize]>,
    targets: Arc<[u32]>,
    /// Each sequence's part of the wanted log-probs.
    pub outputs: Vec<Range<usize>>,
}

/// Micro-batches of rollouts: groups stay whole where they fit.
pub(super) fn micro_batches(rollouts: &[Rollout<'_>], tokens: usize) -> Vec<Range<usize>> {
    let lens = |group: &[Rollout<'_>]| {
        let own = group.iter().map(|r| inputs(r.completion_ids).len()).collect();
        (group[0].prompt_ids.len(), own)
    };
    packing::pack_groups(&groups(rollouts).map(lens).collect::<Vec<_>>(), tokens)
}

/// Tokens of rollouts; a group's prompt counts as its first completion's.
pub(super) fn lens(rollouts: &[Rollout<'_>]) -> Vec<usize> {
    let lens = |group: &[Rollout<'_>]| -> Vec<usize> {
        let own = group.iter().map(|r| r.completion_ids.len());
        let prompt = std::iter::once(group[0].prompt_ids.len()).chain(std::iter::repeat(0));
        own.zip(prompt).map(|(own, prompt)| own + prompt).collect()
    };
    groups(rollouts).flat_map(lens).collect()
}

fn groups<'a, 'r>(rollouts: &'a [Rollout<'r>]) -> impl Iterator<Item = &'a [Rollout<'r>]> {
    rollouts.chunk_by(are_of_one_group)
}

fn are_of_one_group(a: &Rollout<'_>, b: &Rollout<'_>) -> bool {
    a.prompt_ids == b.prompt_ids
}

/// The tokens of a completion that another is predicted from.
fn inputs(completion_ids: &[u32]) -> &[u32] {
    completion_ids.split_last().map_or(&[], |(_, inputs)| inputs)
}

impl Packed {
    /// All tokens of the completions of a micro-batch are wanted. The other rollouts are in others.
    pub fn completions(rollouts: &[Rollout<'_>], micro_batch: Range<usize>) -> Packed {
        let is_cut = |at: usize| {
            0 < at && at < rollouts.len() && are_of_one_group(&rollouts[at - 1], &rollouts[at])
        };
        let (mut parts, mut prompts) = (Parts::default(), Vec::new());
        for group in groups(&rollouts[micro_batch.clone()]) {
            let prompt = parts.segments.len() + group.len();
            let inputs_len: usize = group.iter().map(|r| inputs(r.completion_ids).len()).sum();
            let last_row = parts.ids.len() + inputs_len + group[0].prompt_ids.len() - 1;
            for completion_ids in group.iter().map(|r| r.completion_ids) {
                let first_row = parts.ids.len();
                parts.segment(inputs(completion_ids), Some(prompt));
                let rows = std::iter::once(last_row).chain(first_row..);
                parts.want(rows.zip(completion_ids.iter().copied()));
            }
            parts.segment(group[0].prompt_ids, None);
            prompts.push(prompt);
        }
        parts.split = Split {
            begun: prompts.first().copied().filter(|_| is_cut(micro_batch.start)),
            open: prompts.last().copied().filter(|_| is_cut(micro_batch.end)),
        };
        parts.into()
    }

    /// Tokens in the loss mask are wanted.
    pub fn examples(examples: &[Example<'_>]) -> Packed {
        let mut parts = Parts::default();
        for Example { ids, loss_mask } in examples {
            let first_row = parts.ids.len();
            parts.segment(ids, None);
            let wanted = (1..ids.len()).filter(|&i| loss_mask[i]);
            parts.want(wanted.map(|i| (first_row + i - 1, ids[i])));
        }
        parts.into()
    }

    /// Log-probs of the wanted tokens, the entropies of the distributions that they are from, and the divergences of
    /// those from what another model predicts.
    pub fn run<'m>(
        &self,
        model: &'m Model,
        tape: &mut Tape<'m>,
        inv_temperature: f32,
        checkpointing: bool,
        beside: Option<&Predictions<'m>>,
    ) -> (Var, Var, Option<Var>) {
        let hidden = self.hidden(model, tape, checkpointing);
        let (head, targets) = (model.head(), &self.targets);
        let Some(beside) = beside else {
            let (log_probs, entropies) = tape.log_probs(&hidden, head, targets, inv_temperature);
            return (log_probs, entropies, None);
        };
        let [log_probs, entropies, divergences] =
            tape.log_probs_beside(&hidden, head, targets, inv_temperature, beside);
        (log_probs, entropies, Some(divergences))
    }

    /// As [`Packed::run`], for a loss whose gradients follow from each token's log-prob and entropy alone.
    pub fn run_learning<'m>(
        &self,
        model: &'m Model,
        tape: &mut Tape<'m>,
        inv_temperature: f32,
        checkpointing: bool,
        slopes: Slopes<'_>,
        grads: &mut Grads,
    ) -> [Tensor; 2] {
        let hidden = self.hidden(model, tape, checkpointing);
        let (head, targets) = (model.head(), &self.targets);
        tape.log_probs_learning(&hidden, head, targets, inv_temperature, slopes, grads)
    }

    /// What a model that isn't trained predicts in the places of the wanted tokens.
    pub fn predictions<'m>(&self, model: &'m Model) -> Predictions<'m> {
        let mut tape = Tape::inference(model.device(), model.params());
        let hidden = self.hidden(model, &mut tape, false);
        tape.predictions(&hidden, model.head())
    }

    /// The final activations that the wanted tokens are predicted from.
    fn hidden<'m>(&self, model: &'m Model, tape: &mut Tape<'m>, checkpointing: bool) -> Var {
        let batch = Batch::laid_out(&self.ids, self.layout.clone());
        let hidden = model.hidden(tape, batch, checkpointing);
        tape.select_rows_of(&hidden, &self.rows, &self.layout)
    }

    /// What a critic expects before each of the wanted tokens, `(N, 1)`.
    pub fn values<'m>(&self, critic: &'m Model, tape: &mut Tape<'m>, checkpointing: bool) -> Var {
        let batch = Batch::laid_out(&self.ids, self.layout.clone());
        let hidden = critic.hidden(tape, batch, checkpointing);
        let hidden = tape.select_rows_of(&hidden, &self.rows, &self.layout);
        critic.score_hidden(tape, &hidden)
    }

    /// Log-probs of the wanted tokens under a model that isn't trained.
    pub fn score(&self, model: &Model, inv_temperature: f32) -> Vec<f32> {
        let mut tape = Tape::inference(model.device(), model.params());
        self.run(model, &mut tape, inv_temperature, false, None).0.value().host().into_owned()
    }
}

/// A batch in the making.
#[derive(Default)]
struct Parts {
    ids: Vec<u32>,
    segments: Vec<(usize, Option<usize>)>,
    split: Split,
    rows: Vec<usize>,
    targets: Vec<u32>,
    outputs: Vec<Range<usize>>,
}

impl Parts {
    /// Adds a segment.
    fn segment(&mut self, ids: &[u32], parent: Option<usize>) {
        self.ids.extend(ids);
        self.segments.push((ids.len(), parent));
    }

    /// Wants tokens of a sequence, each behind a row.
    fn want(&mut self, wanted: impl Iterator<Item = (usize, u32)>) {
        let first = self.targets.len();
        for (row, target) in wanted {
            self.rows.push(row);
            self.targets.push(target);
        }
        self.outputs.push(first..self.targets.len());
    }
}

impl From<Parts> for Packed {
    fn from(parts: Parts) -> Packed {
        Packed {
            ids: parts.ids,
            layout: Layout::with_split(parts.segments, parts.split),
            rows: parts.rows.into(),
            targets: parts.targets.into(),
            outputs: parts.outputs,
        }
    }
}
