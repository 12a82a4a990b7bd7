//! Draws on a CUDA device: by kernels, where the logits are.

use aha_compute::Tensor;
use aha_compute::ops::{draw, select};

use super::Running;
use crate::Sampling;
use crate::draw::{Address, Drawn};

impl Running<'_> {
    /// As [`Running::draw_chunk`], where the logits are.
    pub(super) fn draw_on_device(&mut self, logits: &Tensor, start: usize) {
        let live = &self.live[start..start + logits.rows()];
        let forced = live.iter().map(|sequence| sequence.thought.as_ref().and_then(|t| t.next()));
        let addresses = live.iter().map(|sequence| self.next_address(sequence));
        let drawn = self.drawn(logits, addresses, forced);
        if self.fails() {
            return;
        }
        let version = self.version;
        for (sequence, drawn) in self.live[start..].iter_mut().zip(drawn) {
            sequence.push(drawn, version);
        }
    }

    /// What is drawn from each row of logits on a device.
    fn drawn(
        &self,
        logits: &Tensor,
        addresses: impl Iterator<Item = Address>,
        forced: impl Iterator<Item = Option<u32>>,
    ) -> Vec<Drawn> {
        let addresses: Vec<[u64; 3]> =
            addresses.map(|at| [at.prompt, at.sample, at.position]).collect();
        let forced: Vec<u32> = forced.map(|id| id.unwrap_or(draw::NOTHING)).collect();
        let Sampling { temperature, top_k, top_p, .. } = *self.sampling;
        let settings = draw::Settings { temperature, top_k, top_p, key: self.random.key() };
        let drawn = draw::rows(logits, &addresses, &forced, &settings);
        drawn.into_iter().map(|(id, logprob)| Drawn { id, logprob }).collect()
    }

    /// Stops where the device has failed.
    fn fails(&mut self) -> bool {
        let fails = self.model.check_device().is_err();
        self.stopped |= fails;
        fails
    }

    /// As [`Running::draw_first`], where the logits are.
    pub(super) fn draw_first_on_device(&mut self, group_idx: usize, logits: &Tensor) {
        let request = &self.requests[self.groups[group_idx].request_idx];
        let (prompt, samples) = (request.address, request.samples.clone());
        let mut rows = Tensor::uninit(logits.device(), &[samples.len(), logits.cols()]);
        select::forward(&mut rows, logits, &vec![0; samples.len()]);
        let address = |sample| Address { prompt, sample: u64::from(sample), position: 0 };
        let forced = self.forcing.and_then(|forcing| forcing.start().next());
        let forced = samples.clone().map(|_| forced);
        let drawn = self.drawn(&rows, samples.clone().map(address), forced);
        if !self.fails() {
            let group = &mut self.groups[group_idx];
            group.version = self.version;
            group.waiting = samples.zip(drawn).rev().collect();
        }
    }
}
