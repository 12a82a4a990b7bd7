//! Sequences as one batch without padding, and which of their tokens' log-probs are wanted.
//!
//! Rollouts that follow one another and have the same prompt are a group, whose prompt is there once. A
//! completion's last token is not there at all, since nothing is predicted from it.

use std::ops::Range;
use std::sync::Arc;

use aha_compute::ops::attention::Layout;
use aha_compute::{Tape, Var};
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
pub(super) fn pack(rollouts: &[Rollout<'_>], micro_batch_tokens: usize) -> Vec<Range<usize>> {
    let lens = |group: &[Rollout<'_>]| {
        let own = group.iter().map(|r| inputs(r.completion_ids).len()).collect();
        (group[0].prompt_ids.len(), own)
    };
    packing::pack_groups(&groups(rollouts).map(lens).collect::<Vec<_>>(), micro_batch_tokens)
}

fn groups<'a, 'r>(rollouts: &'a [Rollout<'r>]) -> impl Iterator<Item = &'a [Rollout<'r>]> {
    rollouts.chunk_by(|a, b| a.prompt_ids == b.prompt_ids)
}

/// The tokens of a completion that another is predicted from.
fn inputs(completion_ids: &[u32]) -> &[u32] {
    completion_ids.split_last().map_or(&[], |(_, inputs)| inputs)
}

impl Packed {
    /// All tokens of completions are wanted.
    pub fn completions(rollouts: &[Rollout<'_>]) -> Packed {
        let mut parts = Parts::default();
        for group in groups(rollouts) {
            let prompt = parts.segment(group[0].prompt_ids, None);
            let last_row = parts.ids.len() - 1;
            for completion_ids in group.iter().map(|r| r.completion_ids) {
                let first_row = parts.ids.len();
                parts.segment(inputs(completion_ids), Some(prompt));
                let rows = std::iter::once(last_row).chain(first_row..);
                parts.want(rows.zip(completion_ids.iter().copied()));
            }
        }
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

    /// Log-probs of the wanted tokens, and the entropies of the distributions that they are from.
    pub fn run<'m>(
        &self,
        model: &'m Model,
        tape: &mut Tape<'m>,
        inv_temperature: f32,
        checkpointing: bool,
    ) -> (Var, Var) {
        let batch = Batch::laid_out(&self.ids, self.layout.clone());
        let hidden = model.hidden(tape, batch, checkpointing);
        let hidden = tape.select_rows(&hidden, &self.rows);
        tape.log_probs(&hidden, model.head(), &self.targets, inv_temperature)
    }

    /// Log-probs of the wanted tokens under a model that isn't trained.
    pub fn score(&self, model: &Model, inv_temperature: f32) -> Vec<f32> {
        let mut tape = Tape::inference(model.device(), model.params());
        self.run(model, &mut tape, inv_temperature, false).0.value().as_slice().to_vec()
    }
}

/// A batch in the making.
#[derive(Default)]
struct Parts {
    ids: Vec<u32>,
    segments: Vec<(usize, Option<usize>)>,
    rows: Vec<usize>,
    targets: Vec<u32>,
    outputs: Vec<Range<usize>>,
}

impl Parts {
    /// Adds a segment and returns its index.
    fn segment(&mut self, ids: &[u32], parent: Option<usize>) -> usize {
        self.ids.extend(ids);
        self.segments.push((ids.len(), parent));
        self.segments.len() - 1
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
            layout: Layout::new(parts.segments),
            rows: parts.rows.into(),
            targets: parts.targets.into(),
            outputs: parts.outputs,
        }
    }
}
