//! Admits groups, prefills each prompt once, and decodes all sequences together.
//!
//! A step runs one forward pass over the newest token of every live sequence and a chunk of the prompts
//! still being prefilled. When a prompt is through, the first tokens of all its completions are drawn from
//! the one row of logits, and each completion takes a place in the batch as soon as there is one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_compute::ops::attention::{KvCache, PAGE_LEN, PagedSeq};
use aha_compute::ops::lm_head;
use aha_compute::profile::{moving, multiplying};
use aha_compute::random::Philox;
use aha_compute::tape::Rows;
use aha_compute::{Tape, Tensor};
use aha_model::model::Batch;
use aha_model::{Model, Tokenizer};

use crate::draw::{Address, Drawn, draw};
use crate::pages::Pages;
use crate::{Error, FinishReason, Limits, Sampling};

/// Most logits kept at a time, in floats; a row always is.
pub const LOGITS_LEN_MAX: usize = 4 << 20;

/// A prompt and how many completions of it are wanted.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's tokens; at least one.
    pub prompt_ids: Arc<[u32]>,
    /// The prompt's identity in draws.
    pub address: u64,
    /// Which completions: each index is a completion of its own, whoever asks for it.
    pub samples: Range<u32>,
}

/// A finished completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of its request.
    pub request_idx: usize,
    /// Which of the request's completions.
    pub sample_idx: u32,
    /// Tokens, the stop token included.
    pub token_ids: Vec<u32>,
    /// Log-prob of each token under the weights and temperature that drew it.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Draws completions from a model.
///
/// It holds the cache, not the weights: each run says which weights it draws from.
pub struct Sampler {
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    cache: KvCache,
    pages: Pages,
}

impl Sampler {
    /// A sampler for models of this shape, whose cache takes `limits.cache_bytes`.
    pub fn new(model: &Model, tokenizer: Arc<Tokenizer>, limits: Limits) -> Sampler {
        let dims = model.attention_dims();
        let layer_count = model.config().layer_count;
        let page_count = (limits.cache_bytes / KvCache::bytes_per_page(layer_count, dims)).max(1);
        let cache = KvCache::new(model.device(), layer_count, page_count, dims);
        Sampler { tokenizer, limits, cache, pages: Pages::new(page_count) }
    }

    /// Draws every completion of `requests` from `model` and hands each to `done` as it ends, in no promised order.
    /// `done` returns whether to go on; the rest is dropped if not. So it is when `cancel` is raised, which is
    /// looked at before each forward pass.
    pub fn run(
        &mut self,
        model: &Model,
        requests: &[Request],
        sampling: &Sampling,
        random: Philox,
        cancel: &AtomicBool,
        done: &mut dyn FnMut(Completion) -> bool,
    ) -> Result<(), Error> {
        sampling.check()?;
        for request in requests {
            self.check(model, request, sampling)?;
        }
        let mut batch = Running {
            model,
            tokenizer: &self.tokenizer,
            limits: self.limits,
            cache: &mut self.cache,
            pages: &mut self.pages,
            requests,
            sampling,
            random,
            next_request: 0,
            groups: VecDeque::new(),
            live: Vec::new(),
            stopped: false,
        };
        while !batch.stopped && !cancel.load(Ordering::Relaxed) && batch.admit() {
            batch.step(done);
        }
        batch.release_all();
        Ok(())
    }

    /// Fails for a request that this sampler can't serve, whatever else is running.
    pub fn check(
        &self,
        model: &Model,
        request: &Request,
        sampling: &Sampling,
    ) -> Result<(), Error> {
        let prompt_len = request.prompt_ids.len();
        let input = |what: String, hint: &str| Err(Error::Input { what, hint: hint.to_owned() });
        if prompt_len == 0 {
            return input(
                "a prompt without tokens".into(),
                "give a prompt, or a template that begins it",
            );
        }
        model.check_ids(request.prompt_ids.iter().copied())?;
        let positions = prompt_len + sampling.max_tokens;
        let positions_max = model.config().max_position_embeddings;
        if positions > positions_max {
            return input(
                format!(
                    "a prompt of {prompt_len} tokens and {} new ones: the model has {positions_max} positions",
                    sampling.max_tokens
                ),
                "lower `max_tokens` or drop long prompts",
            );
        }
        if pages_for(positions) + 1 > self.pages.count() {
            return input(
                format!(
                    "a sequence of {positions} tokens needs {} cache pages: there are {}",
                    pages_for(positions) + 1,
                    self.pages.count()
                ),
                "lower `max_tokens` or give the sampler's cache more memory",
            );
        }
        Ok(())
    }
}

fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE_LEN)
}

/// A request whose prompt is in the cache, or on its way there.
struct Group {
    request_idx: usize,
    /// The prompt's pages, the last perhaps partly filled. Reserved until the last completion has ended.
    pages: Vec<u32>,
    /// Pages that each of its completions reserves.
    completion_pages: usize,
    /// Whether pages are reserved for a completion that has not started. A group keeps them from its
    /// admission on, and passes them from a completion that ends to the next one: so it always goes on.
    holds_next: bool,
    /// Prompt tokens in the cache.
    prefilled: usize,
    /// First tokens of the completions that have not started, last one first.
    waiting: Vec<(u32, Drawn)>,
    /// Completions being decoded.
    live_count: usize,
}

/// A completion being decoded.
struct Sequence {
    request_idx: usize,
    sample_idx: u32,
    pages: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
    /// Whether the newest token was looked at for an end.
    is_checked: bool,
    /// The end of the text, as long as the longest stop text needs.
    tail: Vec<u8>,
}

struct Running<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    limits: Limits,
    cache: &'a mut KvCache,
    pages: &'a mut Pages,
    requests: &'a [Request],
    sampling: &'a Sampling,
    random: Philox,
    next_request: usize,
    groups: VecDeque<Group>,
    live: Vec<Sequence>,
    stopped: bool,
}

impl Running<'_> {
    /// Takes in what fits; false when nothing is left to do.
    fn admit(&mut self) -> bool {
        self.start_waiting();
        let mut open: usize = self.groups.iter().map(|g| self.open_samples(g)).sum();
        while self.next_request < self.requests.len()
            && self.live.len() + open < self.limits.sequences_max
        {
            let request_idx = self.next_request;
            let request = &self.requests[request_idx];
            if request.samples.is_empty() {
                self.next_request += 1;
                continue;
            }
            let page_count = pages_for(request.prompt_ids.len());
            let completion_pages = self.pages_of_completion(request);
            if !self.pages.reserve(page_count + completion_pages) {
                break;
            }
            let pages = (0..page_count).map(|_| self.pages.take()).collect();
            self.groups.push_back(Group {
                request_idx,
                pages,
                completion_pages,
                holds_next: true,
                prefilled: 0,
                waiting: Vec::new(),
                live_count: 0,
            });
            self.next_request += 1;
            open += request.samples.len();
        }
        !(self.live.is_empty() && self.groups.is_empty())
    }

    /// Completions of a group that are still to start.
    fn open_samples(&self, group: &Group) -> usize {
        let request = &self.requests[group.request_idx];
        if group.prefilled < request.prompt_ids.len() {
            request.samples.len()
        } else {
            group.waiting.len()
        }
    }

    /// Pages that a completion needs beside the full pages of its prompt.
    fn pages_of_completion(&self, request: &Request) -> usize {
        let prompt_len = request.prompt_ids.len();
        pages_for(prompt_len + self.sampling.max_tokens) - prompt_len / PAGE_LEN
    }

    /// Gives waiting completions their places in the batch, oldest groups first.
    fn start_waiting(&mut self) {
        for at in 0..self.groups.len() {
            while self.live.len() < self.limits.sequences_max && self.take_place(at) {
                self.start(at);
            }
        }
    }

    /// Whether a completion of the group is waiting and its pages are reserved now.
    fn take_place(&mut self, group_idx: usize) -> bool {
        let group = &mut self.groups[group_idx];
        if group.waiting.is_empty() {
            return false;
        }
        std::mem::take(&mut group.holds_next) || self.pages.reserve(group.completion_pages)
    }

    fn start(&mut self, group_idx: usize) {
        let group = &mut self.groups[group_idx];
        let prompt_len = self.requests[group.request_idx].prompt_ids.len();
        let (sample_idx, first) = group.waiting.pop().expect("a completion is waiting");
        group.live_count += 1;
        let full = prompt_len / PAGE_LEN;
        let mut pages: Vec<u32> =
            group.pages[..full].iter().map(|&page| self.pages.share(page)).collect();
        if let Some(&partial) = group.pages.get(full) {
            let page = self.pages.take();
            self.cache.copy_page(partial, page);
            pages.push(page);
        }
        self.live.push(Sequence {
            request_idx: group.request_idx,
            sample_idx,
            pages,
            cached: prompt_len,
            token_ids: vec![first.id],
            logprobs: vec![first.logprob],
            is_checked: false,
            tail: Vec::new(),
        });
    }

    /// One forward pass, and what follows from it.
    fn step(&mut self, done: &mut dyn FnMut(Completion) -> bool) {
        // First tokens may already end their completions.
        self.retire(done);
        if self.stopped {
            return;
        }
        let plan = self.plan();
        if plan.ids.is_empty() {
            return;
        }
        let mut tape = Tape::inference(self.model.device(), self.model.params());
        let batch = Batch {
            ids: &plan.ids,
            positions: plan.positions.into(),
            rows: Rows::Paged { cache: self.cache, seqs: &plan.seqs },
        };
        let hidden = self.model.hidden(&mut tape, batch, false);
        let hidden = tape.select_rows(&hidden, &plan.wanted_rows.into());
        let live_count = self.live.len();
        self.draw_decoded(&hidden.value().rows_range(0..live_count));
        for (i, (group_idx, through)) in plan.prefilled.into_iter().enumerate() {
            self.groups[group_idx].prefilled += through;
            let at = live_count + i;
            if self.groups[group_idx].prefilled == self.prompt_len(group_idx) {
                self.draw_first(group_idx, &hidden.value().rows_range(at..at + 1));
            }
        }
        self.retire(done);
    }

    fn prompt_len(&self, group_idx: usize) -> usize {
        self.requests[self.groups[group_idx].request_idx].prompt_ids.len()
    }

    /// The rows of the next forward pass: live sequences first, then chunks of prompts.
    fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        for sequence in &mut self.live {
            if sequence.cached / PAGE_LEN == sequence.pages.len() {
                sequence.pages.push(self.pages.take());
            }
            let id = *sequence.token_ids.last().expect("a sequence has a first token");
            plan.push(&[id], sequence.cached, &sequence.pages);
            sequence.cached += 1;
        }
        let mut budget = self.limits.prefill_tokens_max.max(1);
        for (group_idx, group) in self.groups.iter().enumerate() {
            let prompt_ids = &self.requests[group.request_idx].prompt_ids;
            let count = (prompt_ids.len() - group.prefilled).min(budget);
            if count > 0 {
                plan.push(
                    &prompt_ids[group.prefilled..group.prefilled + count],
                    group.prefilled,
                    &group.pages,
                );
                plan.prefilled.push((group_idx, count));
                budget -= count;
            }
        }
        plan
    }

    /// Draws the next token of every live sequence.
    fn draw_decoded(&mut self, hidden: &Tensor) {
        let addresses: Vec<Address> = self
            .live
            .iter()
            .map(|s| Address {
                prompt: self.requests[s.request_idx].address,
                sample: u64::from(s.sample_idx),
                position: s.token_ids.len() as u64,
            })
            .collect();
        let drawn = self.draw_rows(hidden, &addresses);
        for (sequence, drawn) in self.live.iter_mut().zip(drawn) {
            sequence.token_ids.push(drawn.id);
            sequence.logprobs.push(drawn.logprob);
            sequence.is_checked = false;
        }
    }

    /// Draws the first tokens of all of a group's completions from the prompt's last row.
    fn draw_first(&mut self, group_idx: usize, hidden: &Tensor) {
        let request = &self.requests[self.groups[group_idx].request_idx];
        let mut waiting = Vec::with_capacity(request.samples.len());
        let logits = self.logits(hidden);
        let _span = moving("draw", &[&logits]);
        let (isa, row) = (self.model.device().isa(), logits.row(0));
        let stats = lm_head::row_stats(isa, row);
        let mut scratch = vec![0.0; logits.cols()];
        for sample_idx in request.samples.clone() {
            let address =
                Address { prompt: request.address, sample: u64::from(sample_idx), position: 0 };
            waiting.push((
                sample_idx,
                draw(isa, row, &stats, self.sampling, self.random, address, &mut scratch),
            ));
        }
        waiting.reverse();
        self.groups[group_idx].waiting = waiting;
    }

    fn draw_rows(&self, hidden: &Tensor, addresses: &[Address]) -> Vec<Drawn> {
        let vocab_size = self.model.config().vocab_size;
        let chunk = (LOGITS_LEN_MAX / vocab_size).max(1);
        let mut drawn = Vec::with_capacity(addresses.len());
        for start in (0..addresses.len()).step_by(chunk) {
            let end = (start + chunk).min(addresses.len());
            let logits = self.logits(&hidden.rows_range(start..end));
            let _span = moving("draw", &[&logits]);
            let device = self.model.device();
            let out: Vec<std::sync::OnceLock<Drawn>> =
                (start..end).map(|_| std::sync::OnceLock::new()).collect();
            device.run_blocks(end - start, 8, |from, to| {
                let mut scratch = vec![0.0; vocab_size];
                for i in from..to {
                    let (isa, row, address) = (device.isa(), logits.row(i), addresses[start + i]);
                    let stats = lm_head::row_stats(isa, row);
                    let token =
                        draw(isa, row, &stats, self.sampling, self.random, address, &mut scratch);
                    out[i].set(token).expect("each row is drawn once");
                }
            });
            drawn.extend(out.into_iter().map(|d| d.into_inner().expect("every row is drawn")));
        }
        drawn
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        let (params, head) = (self.model.params(), self.model.head());
        let packed = params.packed(head);
        let mut logits = Tensor::uninit(self.model.device(), &[hidden.rows(), packed.out_len()]);
        let flop = || 2.0 * hidden.rows() as f64 * params.value(head).len() as f64;
        let _span = multiplying("lm_head.logits", flop, &[hidden, params.value(head), &logits]);
        lm_head::logits(&mut logits, hidden, packed, self.sampling.inv_temperature());
        logits
    }

    /// Hands over the sequences that have ended and frees their places.
    fn retire(&mut self, done: &mut dyn FnMut(Completion) -> bool) {
        let mut i = 0;
        while i < self.live.len() && !self.stopped {
            let Some(finish_reason) = ended(&mut self.live[i], self.tokenizer, self.sampling)
            else {
                i += 1;
                continue;
            };
            let sequence = self.live.swap_remove(i);
            sequence.pages.into_iter().for_each(|page| self.pages.release(page));
            self.leave(sequence.request_idx);
            self.stopped = !done(Completion {
                request_idx: sequence.request_idx,
                sample_idx: sequence.sample_idx,
                token_ids: sequence.token_ids,
                logprobs: sequence.logprobs,
                finish_reason,
            });
        }
    }

    /// A completion of this request has ended: its reservation goes to the next one, or back.
    fn leave(&mut self, request_idx: usize) {
        let at = self.groups.iter().position(|group| group.request_idx == request_idx);
        let at = at.expect("a group stays until its last completion has ended");
        let group = &mut self.groups[at];
        group.live_count -= 1;
        if !group.waiting.is_empty() && !group.holds_next {
            group.holds_next = true;
            return;
        }
        self.pages.unreserve(group.completion_pages);
        if group.waiting.is_empty() && group.live_count == 0 {
            let group = self.groups.remove(at).expect("the index is in bounds");
            self.release(group);
        }
    }

    fn release(&mut self, group: Group) {
        let next = if group.holds_next { group.completion_pages } else { 0 };
        self.pages.unreserve(group.pages.len() + group.live_count * group.completion_pages + next);
        group.pages.into_iter().for_each(|page| self.pages.release(page));
    }

    fn release_all(&mut self) {
        for sequence in std::mem::take(&mut self.live) {
            sequence.pages.into_iter().for_each(|page| self.pages.release(page));
        }
        for group in std::mem::take(&mut self.groups) {
            self.release(group);
        }
    }
}

#[derive(Default)]
struct Plan {
    ids: Vec<u32>,
    positions: Vec<u32>,
    seqs: Vec<PagedSeq>,
    /// The last row of each sequence or chunk.
    wanted_rows: Vec<usize>,
    /// Groups, and how many of their prompt's tokens this pass takes.
    prefilled: Vec<(usize, usize)>,
}

impl Plan {
    fn push(&mut self, ids: &[u32], position: usize, pages: &[u32]) {
        let row_start = self.ids.len();
        self.ids.extend(ids);
        self.positions.extend((position..position + ids.len()).map(|p| p as u32));
        self.seqs.push(PagedSeq {
            row_start,
            row_count: ids.len(),
            position,
            pages: pages.to_vec(),
        });
        self.wanted_rows.push(row_start + ids.len() - 1);
    }
}

/// Whether the newest token ends the sequence.
fn ended(
    sequence: &mut Sequence,
    tokenizer: &Tokenizer,
    sampling: &Sampling,
) -> Option<FinishReason> {
    if std::mem::replace(&mut sequence.is_checked, true) {
        return None;
    }
    let id = *sequence.token_ids.last()?;
    if sampling.stop_token_ids.contains(&id) {
        return Some(FinishReason::Stop);
    }
    if completes_stop_text(&mut sequence.tail, tokenizer.token_bytes(id), &sampling.stop) {
        return Some(FinishReason::StopString);
    }
    (sequence.token_ids.len() >= sampling.max_tokens).then_some(FinishReason::Length)
}

/// Appends `bytes` to the tail of the text; whether a stop text now ends inside them.
fn completes_stop_text(tail: &mut Vec<u8>, bytes: &[u8], stop: &[String]) -> bool {
    let Some(longest) = stop.iter().map(String::len).max() else {
        return false;
    };
    tail.extend(bytes);
    let found = stop.iter().any(|text| tail.windows(text.len()).any(|w| w == text.as_bytes()));
    let excess = tail.len().saturating_sub(longest - 1);
    tail.drain(..excess);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_text_is_found_across_tokens_and_inside_one() {
        let stop = ["</answer>".to_owned(), "\n\n".to_owned()];
        let run = |pieces: &[&str]| {
            let mut tail = Vec::new();
            pieces.iter().position(|p| completes_stop_text(&mut tail, p.as_bytes(), &stop))
        };
        assert_eq!(run(&["4 </", "ans", "wer", "> and"]), Some(3));
        assert_eq!(run(&["a\n", "b", "\n", "\nc"]), Some(3));
        assert_eq!(run(&["x</answer>y"]), Some(0));
        assert_eq!(run(&["</answer", "<", ">"]), None);
    }
}
