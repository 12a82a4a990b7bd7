//! Admits groups, prefills each prompt once, and decodes all sequences together.
//!
//! A step runs one forward pass over the newest token of every live sequence and a chunk of the prompts
//! still being prefilled. When a prompt is through, the first tokens of all its completions are drawn from
//! the one row of logits, and each completion takes a place in the batch as soon as there is one.

mod on_cuda;
mod plan;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aha_compute::ops::attention::{KvCache, PAGE_LEN};
use aha_compute::ops::lm_head;
use aha_compute::profile::{self, Work, bytes, moving};
use aha_compute::random::Philox;
use aha_compute::tape::Rows;
use aha_compute::{Tape, Tensor};
use aha_model::model::Batch;
use aha_model::{Model, Tokenizer};

use crate::audience::{Audience, Listener, News};
use crate::draw::{Address, Drawer, Drawn};
use crate::pages::Pages;
use crate::thinking::{Forcing, Next, Thought};
use crate::weights::{Held, Versions, Weights};
use crate::{Error, FinishReason, Limits, Sampling};
use on_cuda::{OnCuda, cache};
use plan::Plan;

/// Most logits kept at a time, in floats; a row always is.
pub const LOGITS_LEN_MAX: usize = 4 << 20;
/// Requests that a batch remembers, at most.
const REQUESTS_MAX: usize = 4096;
/// Tokens of a completion for which memory is set aside when it starts; past them it grows by doubling.
const TOKENS_SET_ASIDE_MAX: usize = 1024;

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
    /// The version of the weights that drew each token, where they change; 0 where they don't.
    pub versions: Versions,
    /// Whether each token was put there by [`crate::Thinking`] and not drawn; none without it.
    pub forced_mask: Option<Vec<bool>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Draws completions from a model.
///
/// It holds the cache, not the weights: each run says which weights it draws from.
pub struct Sampler {
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    /// On a CUDA device.
    on_cuda: Option<OnCuda>,
    /// None after [`Sampler::release_cache`].
    cache: Option<KvCache>,
    pages: Pages,
}

impl Sampler {
    /// A sampler for models of this shape, whose cache takes `limits.cache_bytes`.
    pub fn new(model: &Model, tokenizer: Arc<Tokenizer>, limits: Limits) -> Sampler {
        let dims = model.attention_dims();
        let layer_count = model.config().layer_count;
        let page_count = (limits.cache_bytes
            / KvCache::bytes_per_page(model.device().kv_dtype(), layer_count, dims))
        .max(1);
        let cache = Some(cache(model, page_count));
        let on_cuda = model.device().is_cuda().then(OnCuda::default);
        Sampler { tokenizer, limits, on_cuda, cache, pages: Pages::new(page_count) }
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
        let tokenizer = Arc::clone(&self.tokenizer);
        let forcing = Forcing::of(sampling, &tokenizer)?;
        let settings = (sampling, forcing.as_ref());
        let mut batch = self.running(Held::Lent(model), requests.to_vec(), settings, random);
        let mut listener = Listener { done };
        while !batch.stopped && !cancel.load(Ordering::Relaxed) && batch.admit() {
            batch.step(&mut listener);
        }
        batch.release_all();
        Ok(model.check_device()?)
    }

    /// Draws completions for whoever asks while others are drawn: before each forward pass `audience` is asked for
    /// more, and after it hears of each new token. Returns when nothing is left to do and nobody asks, or when so many
    /// requests were served that it is time to begin anew. A request that can't be served is the caller's to find with
    /// [`Sampler::check`]: here it fails all.
    pub fn serve(
        &mut self,
        model: &Model,
        sampling: &Sampling,
        random: Philox,
        audience: &mut dyn Audience,
    ) -> Result<(), Error> {
        sampling.check()?;
        let tokenizer = Arc::clone(&self.tokenizer);
        let forcing = Forcing::of(sampling, &tokenizer)?;
        let settings = (sampling, forcing.as_ref());
        self.running(Held::Lent(model), Vec::new(), settings, random).serve(audience)
    }

    /// As [`Sampler::serve`], from weights that change: before each forward pass `audience` is asked for newer ones
    /// too. Sequences that are under way go on. Leaves the weights that the last token was drawn from. Weights that
    /// change have one shape.
    pub fn serve_changing(
        &mut self,
        weights: &mut Weights,
        sampling: &Sampling,
        random: Philox,
        audience: &mut dyn Audience,
    ) -> Result<(), Error> {
        sampling.check()?;
        let tokenizer = Arc::clone(&self.tokenizer);
        let forcing = Forcing::of(sampling, &tokenizer)?;
        let held = Held::Shared(Arc::clone(&weights.model));
        let mut batch = self.running(held, Vec::new(), (sampling, forcing.as_ref()), random);
        batch.version = weights.version;
        batch.weights = Some(weights);
        batch.serve(audience)
    }

    fn running<'a>(
        &'a mut self,
        model: Held<'a>,
        requests: Vec<Request>,
        (sampling, forcing): (&'a Sampling, Option<&'a Forcing<'a>>),
        random: Philox,
    ) -> Running<'a> {
        let page_count = self.pages.count();
        Running {
            room: self.room(),
            cache: self.cache.get_or_insert_with(|| cache(&model, page_count)),
            model,
            version: 0,
            weights: None,
            tokenizer: &self.tokenizer,
            limits: self.limits,
            on_cuda: self.on_cuda.as_mut(),
            pages: &mut self.pages,
            requests,
            sampling,
            forcing,
            random,
            next_request: 0,
            groups: VecDeque::new(),
            live: Vec::new(),
            plan: Plan::default(),
            draws: Draws::default(),
            stopped: false,
        }
    }

    /// Fails for a request that this sampler can't serve, whatever else is running.
    pub fn check(
        &self,
        model: &Model,
        request: &Request,
        sampling: &Sampling,
    ) -> Result<(), Error> {
        self.room().check(model, request, sampling)
    }

    /// The room for a request, for those who check it while the sampler draws.
    pub fn room(&self) -> Room {
        Room { page_count: self.pages.count() }
    }
}

/// The room that a sampler has for a request.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    page_count: usize,
}

impl Room {
    /// Fails for a request that doesn't fit, whatever else is running.
    pub fn check(self, model: &Model, request: &Request, sampling: &Sampling) -> Result<(), Error> {
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
        if pages_for(positions) + 1 > self.page_count {
            return input(
                format!(
                    "a sequence of {positions} tokens needs {} cache pages: there are {}",
                    pages_for(positions) + 1,
                    self.page_count
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
    /// The version of the weights that drew them.
    version: u64,
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
    versions: Versions,
    /// Whether the newest token was looked at for an end.
    is_checked: bool,
    /// The end of the text, as long as the longest stop text needs.
    tail: Vec<u8>,
    /// What is forced; none without budget forcing.
    thought: Option<Box<Thought>>,
}

impl Sequence {
    fn push(&mut self, drawn: Drawn, version: u64) {
        self.versions.push(self.token_ids.len(), version);
        self.token_ids.push(drawn.id);
        self.logprobs.push(drawn.logprob);
        self.is_checked = false;
        if let Some(thought) = &mut self.thought {
            thought.push();
        }
    }

    /// What it has so far.
    fn news(&self) -> News<'_> {
        News {
            request_idx: self.request_idx,
            sample_idx: self.sample_idx,
            token_ids: &self.token_ids,
            logprobs: &self.logprobs,
        }
    }

    /// Goes back to `len` tokens, of which the newest is computed again.
    fn rewind(&mut self, len: usize, prompt_len: usize) {
        self.token_ids.truncate(len);
        self.logprobs.truncate(len);
        self.versions.truncate(len);
        self.cached = prompt_len + len - 1;
        self.tail.clear();
    }
}

struct Running<'a> {
    room: Room,
    model: Held<'a>,
    version: u64,
    /// Where weights that change are left for the caller.
    weights: Option<&'a mut Weights>,
    tokenizer: &'a Tokenizer,
    limits: Limits,
    on_cuda: Option<&'a mut OnCuda>,
    cache: &'a mut KvCache,
    pages: &'a mut Pages,
    requests: Vec<Request>,
    sampling: &'a Sampling,
    forcing: Option<&'a Forcing<'a>>,
    random: Philox,
    next_request: usize,
    groups: VecDeque<Group>,
    live: Vec<Sequence>,
    plan: Plan,
    draws: Draws,
    stopped: bool,
}

impl Running<'_> {
    /// Draws for the audience until nothing is left to do.
    fn serve(mut self, audience: &mut dyn Audience) -> Result<(), Error> {
        let mut outcome = self.take_more(audience);
        while outcome.is_ok() && !self.stopped && self.admit() {
            self.take_weights(audience);
            self.step(audience);
            outcome = self.take_more(audience);
        }
        self.release_all();
        self.model.check_device()?;
        outcome
    }

    /// Goes on with newer weights, where they change and there are some.
    fn take_weights(&mut self, audience: &mut dyn Audience) {
        let Some(weights) = &mut self.weights else { return };
        if let Some(newer) = audience.weights() {
            (self.model, self.version) = (Held::Shared(Arc::clone(&newer.model)), newer.version);
            **weights = newer;
        }
    }

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
                version: self.version,
                live_count: 0,
            });
            self.next_request += 1;
            open += request.samples.len();
        }
        !(self.live.is_empty() && self.groups.is_empty())
    }

    /// Takes in what the audience asks for now. So many requests at most go through one batch, which remembers each.
    fn take_more(&mut self, audience: &mut dyn Audience) -> Result<(), Error> {
        while self.requests.len() < REQUESTS_MAX {
            let Some(request) = audience.next() else { break };
            self.room.check(&self.model, &request, self.sampling)?;
            self.requests.push(request);
        }
        Ok(())
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

    /// Pages that a completion needs beside those of its prompt that it shares.
    fn pages_of_completion(&self, request: &Request) -> usize {
        let prompt_len = request.prompt_ids.len();
        pages_for(prompt_len + self.sampling.max_tokens) - self.shared_pages(prompt_len)
    }

    /// Pages of a prompt that its completions share: those that none of them writes to. A completion whose first
    /// tokens are taken back computes the prompt's last token again.
    fn shared_pages(&self, prompt_len: usize) -> usize {
        (prompt_len - usize::from(self.forcing.is_some())) / PAGE_LEN
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
        let prompt_len = self.prompt_len(group_idx);
        let shared = self.shared_pages(prompt_len);
        let group = &mut self.groups[group_idx];
        let (sample_idx, first) = group.waiting.pop().expect("a completion is waiting");
        group.live_count += 1;
        let max_tokens = self.sampling.max_tokens;
        let mut pages = Vec::with_capacity(pages_for(prompt_len + max_tokens));
        pages.extend(group.pages[..shared].iter().map(|&page| self.pages.share(page)));
        if let Some(&own) = group.pages.get(shared) {
            let page = self.pages.take();
            match &mut self.on_cuda {
                Some(on_cuda) => on_cuda.copies.push([own, page]),
                None => self.cache.copy_page(self.model.device(), own, page),
            }
            pages.push(page);
        }
        let thought = self.forcing.map(|forcing| {
            let mut thought = Box::new(forcing.start());
            thought.push();
            thought
        });
        self.live.push(Sequence {
            request_idx: group.request_idx,
            sample_idx,
            pages,
            cached: prompt_len,
            token_ids: started(first.id, max_tokens),
            logprobs: started(first.logprob, max_tokens),
            versions: Versions::new(group.version),
            is_checked: false,
            tail: Vec::new(),
            thought,
        });
    }

    /// One forward pass, and what follows from it.
    fn step(&mut self, audience: &mut dyn Audience) {
        // First tokens may already end their completions.
        self.retire(audience);
        if self.stopped {
            return;
        }
        self.make_plan();
        let mut plan = std::mem::take(&mut self.plan);
        if !plan.ids.is_empty() {
            self.forward(&mut plan);
            self.retire(audience);
        } else if let Some(on_cuda) = &mut self.on_cuda {
            // Those that they were for have ended.
            on_cuda.copies.clear();
        }
        self.plan = plan;
    }

    fn forward(&mut self, plan: &mut Plan) {
        if self.on_cuda.is_some() {
            return self.forward_on_cuda(plan);
        }
        let model = self.model.clone();
        let (device, params) = (model.device(), model.params());
        let mut tape = Tape::inference_with(device, params, self.sampling.weights);
        let batch = Batch {
            ids: &plan.ids,
            positions: Arc::clone(&plan.positions.shared),
            rows: Rows::Paged { cache: self.cache, seqs: &mut plan.seqs },
        };
        let hidden = model.hidden(&mut tape, batch, false);
        let hidden = tape.select_rows(&hidden, &plan.wanted_rows.shared);
        let live_count = self.live.len();
        self.draw_decoded(&hidden.value().rows_range(0..live_count));
        for (i, &(group_idx, through)) in plan.prefilled.iter().enumerate() {
            self.groups[group_idx].prefilled += through;
            let at = live_count + i;
            if self.groups[group_idx].prefilled == self.prompt_len(group_idx) {
                self.draw_first(group_idx, &hidden.value().rows_range(at..at + 1));
            }
        }
    }

    fn prompt_len(&self, group_idx: usize) -> usize {
        self.requests[self.groups[group_idx].request_idx].prompt_ids.len()
    }

    /// The rows of the next forward pass: live sequences first, then chunks of prompts.
    fn make_plan(&mut self) {
        let plan = &mut self.plan;
        plan.clear();
        for sequence in &mut self.live {
            if sequence.cached / PAGE_LEN == sequence.pages.len() {
                sequence.pages.push(self.pages.take());
            }
            // One whose first tokens were taken back goes on from its prompt.
            let prompt_ids = &self.requests[sequence.request_idx].prompt_ids;
            let id = *sequence.token_ids.last().or(prompt_ids.last()).expect("no prompt is empty");
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
        if let Some(on_cuda) = self.on_cuda.as_ref().filter(|_| plan.prefilled.is_empty())
            && let Some(rows) = on_cuda.rows(self.live.len(), self.sampling)
            && !plan.ids.is_empty()
        {
            plan.fill_up(rows);
        }
        plan.positions.share();
        plan.wanted_rows.share();
    }

    /// Draws the next token of every live sequence.
    fn draw_decoded(&mut self, hidden: &Tensor) {
        let vocab_size = self.model.config().vocab_size;
        let chunk = (LOGITS_LEN_MAX / vocab_size).max(1);
        let mut draws = std::mem::take(&mut self.draws);
        for start in (0..self.live.len()).step_by(chunk) {
            let end = (start + chunk).min(self.live.len());
            let logits = if end - start == hidden.rows() {
                self.logits(hidden)
            } else {
                self.logits(&hidden.rows_range(start..end))
            };
            self.draw_chunk(&logits, start, &mut draws);
        }
        self.draws = draws;
    }

    /// Draws from a chunk of rows, those of the live sequences from `start` on.
    fn draw_chunk(&mut self, logits: &Tensor, start: usize, draws: &mut Draws) {
        let _span = moving("draw", &[logits]);
        let device = self.model.device();
        let rows = logits.rows();
        let rows_per_part = rows.div_ceil(DRAW_PARTS_PER_THREAD * device.threads()).max(1);
        let part_count = rows.div_ceil(rows_per_part);
        if draws.0.len() < part_count {
            draws.0.resize_with(part_count, Mutex::default);
        }
        let draws = &draws.0[..part_count];
        let live = &self.live[start..start + rows];
        device.run(part_count, |part| {
            let mut draw = draws[part].lock().unwrap_or_else(PoisonError::into_inner);
            let Draw { drawer, drawn } = &mut *draw;
            drawn.clear();
            let first = part * rows_per_part;
            let part = first..(first + rows_per_part).min(rows);
            for (sequence, row) in live[part.clone()].iter().zip(part) {
                let row = drawer.row(device.isa(), logits.row(row), self.sampling);
                drawn.push(match sequence.thought.as_ref().and_then(|thought| thought.next()) {
                    Some(id) => row.take(id),
                    None => row.draw(self.random, self.next_address(sequence)),
                });
            }
        });
        let mut live = self.live[start..].iter_mut();
        for draw in draws {
            let draw = draw.lock().unwrap_or_else(PoisonError::into_inner);
            for (drawn, sequence) in draw.drawn.iter().zip(&mut live) {
                sequence.push(*drawn, self.version);
            }
        }
    }

    /// The address of a sequence's next token. Tokens that were taken back count: no number is drawn twice.
    fn next_address(&self, sequence: &Sequence) -> Address {
        let removed = sequence.thought.as_ref().map_or(0, |thought| thought.removed_count());
        Address {
            prompt: self.requests[sequence.request_idx].address,
            sample: u64::from(sequence.sample_idx),
            position: (sequence.token_ids.len() + removed) as u64,
        }
    }

    /// Draws the first tokens of all of a group's completions from the prompt's last row.
    fn draw_first(&mut self, group_idx: usize, hidden: &Tensor) {
        let request = &self.requests[self.groups[group_idx].request_idx];
        let logits = self.logits(hidden);
        let _span = moving("draw", &[&logits]);
        let mut drawer = Drawer::default();
        let row = drawer.row(self.model.device().isa(), logits.row(0), self.sampling);
        let forced = self.forcing.and_then(|forcing| forcing.start().next());
        let first = |sample_idx: u32| {
            let address =
                Address { prompt: request.address, sample: u64::from(sample_idx), position: 0 };
            (sample_idx, forced.map_or_else(|| row.draw(self.random, address), |id| row.take(id)))
        };
        let waiting = request.samples.clone().rev().map(first).collect();
        let group = &mut self.groups[group_idx];
        (group.waiting, group.version) = (waiting, self.version);
    }

    fn logits(&self, hidden: &Tensor) -> Tensor {
        let (params, head) = (self.model.params(), self.model.head());
        let packed = params.packed_as(head, self.sampling.weights);
        let mut logits = Tensor::uninit(self.model.device(), &[hidden.rows(), packed.out_len()]);
        let _span = profile::span("lm_head.logits", || Work {
            flop: 2.0 * hidden.rows() as f64 * params.value(head).len() as f64,
            bytes: bytes(hidden) + packed.bytes() as f64 + bytes(&logits),
        });
        lm_head::logits(&mut logits, hidden, packed, self.sampling.inv_temperature());
        logits
    }

    /// Hands over the sequences that have ended and frees their places.
    fn retire(&mut self, audience: &mut dyn Audience) {
        let mut i = 0;
        while i < self.live.len() && !self.stopped {
            let sequence = &mut self.live[i];
            let prompt_len = self.requests[sequence.request_idx].prompt_ids.len();
            let is_new = !sequence.is_checked;
            let ended = ended(sequence, self.tokenizer, (self.sampling, self.forcing), prompt_len);
            let is_wanted = !is_new || audience.hears(sequence.news());
            if ended.is_none() && is_wanted {
                i += 1;
                continue;
            }
            let sequence = self.live.swap_remove(i);
            sequence.pages.into_iter().for_each(|page| self.pages.release(page));
            self.leave(sequence.request_idx);
            let Some(finish_reason) = ended else { continue };
            self.stopped = !audience.done(Completion {
                request_idx: sequence.request_idx,
                sample_idx: sequence.sample_idx,
                token_ids: sequence.token_ids,
                logprobs: sequence.logprobs,
                versions: sequence.versions,
                forced_mask: sequence.thought.map(|thought| thought.into_mask()),
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
        self.on_cuda.iter_mut().for_each(|on_cuda| on_cuda.copies.clear());
        for sequence in std::mem::take(&mut self.live) {
            sequence.pages.into_iter().for_each(|page| self.pages.release(page));
        }
        for group in std::mem::take(&mut self.groups) {
            self.release(group);
        }
    }
}

/// A completion's list with its first entry, and memory for more.
fn started<T>(first: T, max_tokens: usize) -> Vec<T> {
    let mut list = Vec::with_capacity(max_tokens.min(TOKENS_SET_ASIDE_MAX));
    list.push(first);
    list
}

/// Parts of a chunk's rows that a thread draws from, so that both end together.
const DRAW_PARTS_PER_THREAD: usize = 4;

/// What draws need, for each part of the rows.
#[derive(Default)]
struct Draws(Vec<Mutex<Draw>>);

#[derive(Default)]
struct Draw {
    drawer: Drawer,
    drawn: Vec<Drawn>,
}

/// Whether the newest token ends the sequence, or what it makes of the thinking that it is part of.
fn ended(
    sequence: &mut Sequence,
    tokenizer: &Tokenizer,
    (sampling, forcing): (&Sampling, Option<&Forcing<'_>>),
    prompt_len: usize,
) -> Option<FinishReason> {
    if std::mem::replace(&mut sequence.is_checked, true) {
        return None;
    }
    let id = *sequence.token_ids.last()?;
    let is_forced = sequence.thought.as_ref().is_some_and(|thought| thought.is_forced());
    let mut reason = None;
    if is_forced {
        // A stop text is drawn from its first byte to its last.
        sequence.tail.clear();
    } else if sampling.stop_token_ids.contains(&id) {
        reason = Some(FinishReason::Stop);
    } else if completes_stop_text(&mut sequence.tail, tokenizer.token_bytes(id), &sampling.stop) {
        reason = Some(FinishReason::StopString);
    }
    if let (Some(forcing), Some(thought), false) = (forcing, &mut sequence.thought, is_forced)
        && let Next::Rewind(len) = forcing.look(thought, &sequence.token_ids, reason)
    {
        sequence.rewind(len, prompt_len);
        return None;
    }
    let is_full = sequence.token_ids.len() >= sampling.max_tokens;
    reason.or(is_full.then_some(FinishReason::Length))
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
mod tests;
