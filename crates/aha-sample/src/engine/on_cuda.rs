//! Steps on a CUDA device: lists go there at once, draws come back at once.
//!
//! A step is made of a handful of calls of the driver. One copy brings all lists ([`Step`]); one replay of a graph is
//! the forward pass, where all rows decode ([`Decoder`]), while a step that prefills calls op by op; then the head's
//! product and the draws, which kernels make where the logits are; and one copy brings back tokens and log-probs. The
//! host waits once, for these. Copies of pages that a prompt's completions write to are gathered until a step.

use aha_compute::ops::draw::{self, Draws};
use aha_compute::profile::moving;
use aha_compute::staging::{Staging, Words};
use aha_compute::step::{LOGITS_LEN_MAX, Step, Task};
use aha_compute::tape::Rows;
use aha_compute::{Tape, Tensor, WeightForm};
use aha_model::Model;
use aha_model::model::Batch;
use aha_model::model::decode::{Decoder, bucket};

use super::plan::Plan;
use super::{Arc, KvCache, Running, Sampler};
use crate::Sampling;
use crate::draw::{Address, Drawn};

/// What a sampler on a CUDA device keeps from step to step.
pub(super) struct OnCuda {
    decoder: Decoder,
    staging: Staging,
    words: Words,
    draws: Draws,
    /// The rows that are drawn after.
    wanted: Vec<u32>,
    /// Pages to be copied before the next forward pass: from, to.
    pub copies: Vec<[u32; 2]>,
    pub has_graphs: bool,
    pub logits_len_max: usize,
}

impl Default for OnCuda {
    fn default() -> OnCuda {
        OnCuda {
            decoder: Decoder::default(),
            staging: Staging::default(),
            words: Words::default(),
            draws: Draws::default(),
            wanted: Vec::new(),
            copies: Vec::new(),
            has_graphs: true,
            logits_len_max: LOGITS_LEN_MAX,
        }
    }
}

impl OnCuda {
    /// How many rows a step of this many sequences, all of which decode, is filled up to; none without graphs.
    pub fn rows(&self, sequence_count: usize, sampling: &Sampling) -> Option<usize> {
        let has_graphs = self.has_graphs && sampling.weights == WeightForm::Same;
        has_graphs.then(|| bucket(sequence_count))
    }

    /// How many steps are captured.
    pub fn graph_count(&self) -> usize {
        self.decoder.graph_count()
    }

    /// The forward pass, and what is drawn after it. None after a failure of the device.
    fn drawn(
        &mut self,
        model: &Model,
        cache: &mut KvCache,
        plan: &mut Plan,
        sampling: &Sampling,
        key: u64,
    ) -> Option<Vec<(u32, f32)>> {
        let (device, params) = (model.device(), model.params());
        let positions = &plan.positions.shared;
        let task = Task {
            ids: &plan.ids,
            positions,
            seqs: &mut plan.seqs,
            has_room: plan.is_filled_up,
            wanted: (!plan.is_filled_up).then_some(&self.wanted),
            copies: &self.copies,
            draws: &self.draws,
        };
        let step = Step::new(device, &mut self.staging, &mut self.words, cache, task);
        self.copies.clear();
        let step = step?;
        let wanted;
        let hidden: &Tensor = if plan.is_filled_up {
            self.decoder.hidden(model, &step, (&plan.ids, positions), cache, &mut plan.seqs)
        } else {
            let mut tape = Tape::inference_with(device, params, sampling.weights).of_step(&step);
            let rows = Rows::Paged { cache, seqs: &mut plan.seqs };
            let batch = Batch { ids: &plan.ids, positions: Arc::clone(positions), rows };
            wanted = step.wanted(model.hidden(&mut tape, batch, false).value());
            &wanted
        };
        if self.draws.is_empty() {
            return Some(Vec::new());
        }
        let _span = moving("draw", &[hidden]);
        let Sampling { temperature, top_k, top_p, .. } = *sampling;
        let settings = draw::Settings { temperature, top_k, top_p, key };
        let of = (hidden, self.wanted.len());
        let head = params.packed_as(model.head(), sampling.weights);
        step.draw(&mut self.staging, of, head, &self.draws, &settings, self.logits_len_max)
    }
}

impl Sampler {
    /// The same sampler, which on a CUDA device calls each step of decoding op by op in place of captured graphs: for
    /// comparisons. Completions are the same.
    pub fn without_graphs(mut self) -> Sampler {
        self.on_cuda.iter_mut().for_each(|on_cuda| on_cuda.has_graphs = false);
        self
    }

    /// How many steps of decoding are captured on a CUDA device.
    pub fn graph_count(&self) -> usize {
        self.on_cuda.as_ref().map_or(0, OnCuda::graph_count)
    }

    /// Gives the cache's memory back, for work that is done between runs: the next run takes as much again, and fails
    /// where there isn't any. What is captured on a CUDA device stays, and is used again where the cache's memory is at
    /// its old address.
    pub fn release_cache(&mut self) {
        self.cache = None;
    }
}

/// A cache for models of this shape. Where a device has no room for it, that is the device's failure.
pub(super) fn cache(model: &Model, page_count: usize) -> KvCache {
    KvCache::new(model.device(), model.config().layer_count, page_count, model.attention_dims())
}

impl Running<'_> {
    /// As [`Running::forward`], on a CUDA device.
    pub(super) fn forward_on_cuda(&mut self, plan: &mut Plan) {
        let Some(on_cuda) = self.on_cuda.take() else { return };
        self.list_draws(plan, on_cuda);
        let model = self.model.clone();
        let key = self.random.key();
        let drawn = on_cuda.drawn(&model, self.cache, plan, self.sampling, key);
        self.on_cuda = Some(on_cuda);
        let drawn = drawn.filter(|_| self.model.check_device().is_ok());
        // The failure is the run's when it ends.
        let Some(drawn) = drawn else {
            self.stopped = true;
            return;
        };
        let mut drawn = drawn.into_iter().map(|(id, logprob)| Drawn { id, logprob });
        for (sequence, drawn) in self.live.iter_mut().zip(&mut drawn) {
            sequence.push(drawn, self.version);
        }
        for &(group_idx, through) in &plan.prefilled {
            self.groups[group_idx].prefilled += through;
            if self.groups[group_idx].prefilled < self.prompt_len(group_idx) {
                continue;
            }
            let group = &mut self.groups[group_idx];
            let samples = self.requests[group.request_idx].samples.clone();
            group.version = self.version;
            group.waiting = samples.zip(&mut drawn).collect();
            group.waiting.reverse();
        }
    }

    /// The draws of the next forward pass: live sequences first, then first tokens of prompts that it takes whole.
    fn list_draws(&self, plan: &Plan, on_cuda: &mut OnCuda) {
        let OnCuda { draws, wanted, .. } = on_cuda;
        draws.clear();
        wanted.clear();
        let words = |at: Address| [at.prompt, at.sample, at.position];
        for (row, sequence) in self.live.iter().enumerate() {
            let forced = sequence.thought.as_ref().and_then(|thought| thought.next());
            draws.push(row, words(self.next_address(sequence)), forced);
            wanted.push(row as u32);
        }
        let ends = &plan.wanted_rows.shared[self.live.len()..];
        let forced = self.forcing.and_then(|forcing| forcing.start().next());
        for (&(group_idx, through), &end) in plan.prefilled.iter().zip(ends) {
            if self.groups[group_idx].prefilled + through < self.prompt_len(group_idx) {
                continue;
            }
            let request = &self.requests[self.groups[group_idx].request_idx];
            for sample in request.samples.clone() {
                let at =
                    Address { prompt: request.address, sample: u64::from(sample), position: 0 };
                draws.push(wanted.len(), words(at), forced);
            }
            wanted.push(end as u32);
        }
    }
}
