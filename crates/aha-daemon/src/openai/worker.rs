//! A loaded model's thread: it draws for all who ask with the same settings together, and takes more in while it does.
//!
//! - Inbox: jobs; the hub bounds those that are not done.
//! - State: the model and its cache of keys and values. It is loaded when the thread starts.
//! - Fails with [`Piece::Failed`], to whoever asked. A model that can't be loaded fails every job, and the thread ends.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use aha_compute::random::Philox;
use aha_flow::devices;
use aha_flow::generate;
use aha_flow::models::{self, Loaded};
use aha_flow::pipeline::{self, Template};
use aha_flow::prompts::{self, Prompter};
use aha_model::Tokenizer;
use aha_model::chat_template::{ChatTemplate, Message};
use aha_sample::{
    Audience, Completion, FinishReason, News, Request, Room, Sampler, Sampling, Scored, score,
};
use tokio::sync::mpsc::UnboundedSender;

use super::catalogue::Found;
use super::hub::Open;
use crate::error::{Error, Result};

/// The family of all draws: what tells one from another is its address.
const RANDOM: &str = "openai";
/// How much shorter a tokenizer may make a text before it encodes it.
const NORMALISED_MAX: usize = 2;
/// Tokens of an answer where a request says nothing, at most; fewer where the model has no room.
pub const TOKENS_DEFAULT: u32 = 1024;

/// What is to be written.
pub struct Job {
    /// What goes in.
    pub prompt: Prompt,
    /// How it is drawn. `max_tokens` of 0 draws nothing.
    pub drawing: Drawing,
    /// Whether log-probs of the prompt, or of other tokens than those drawn, are wanted: so many beside each.
    pub scores: Option<usize>,
    /// The name of its draws: the same gives the same completions.
    pub address: u64,
    /// Completions.
    pub samples: u32,
    /// Who hears. What is sent is bounded by `max_tokens`.
    pub reply: UnboundedSender<Piece>,
    /// Counts the job.
    pub open: Open,
}

/// What goes into the model.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text as it is.
    Text(String),
    /// Tokens.
    Ids(Vec<u32>),
    /// A conversation, by the model's template or its stage's.
    Chat(Vec<Message>),
}

/// How completions are drawn.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Softmax temperature.
    pub temperature: f64,
    /// Share of the likeliest tokens.
    pub top_p: f64,
    /// Number of the likeliest tokens; 0 is off.
    pub top_k: u32,
    /// Tokens, at most; absent: as many as there is room for, up to [`TOKENS_DEFAULT`].
    pub max_tokens: Option<u32>,
    /// Texts that end it.
    pub stop: Vec<String>,
}

/// What is told of a job.
pub enum Piece {
    /// It has begun: what went in, and what tokens are read with.
    Begun {
        /// The prompt's tokens.
        prompt_ids: Arc<[u32]>,
        /// The tokenizer.
        tokenizer: Arc<Tokenizer>,
    },
    /// A token.
    Token {
        /// Which completion.
        sample_idx: u32,
        /// The token.
        id: u32,
        /// Its log-prob.
        logprob: f32,
    },
    /// Scores of prompt and completion, from the second token on, if they were wanted.
    Scores {
        /// Which completion.
        sample_idx: u32,
        /// One for each token but the first.
        scores: Vec<Scored>,
    },
    /// A completion has ended; none where nothing was to be drawn.
    Done {
        /// Which completion.
        sample_idx: u32,
        /// Why.
        finish_reason: Option<FinishReason>,
    },
    /// It can't be.
    Failed(Error),
}

/// Works until nobody asks for `idle`, or there is nobody who could.
pub fn work(found: &Found, inbox: &Receiver<Job>, idle: Duration, tokens: &AtomicU64) {
    let began = std::time::Instant::now();
    let loaded = match catch_unwind(AssertUnwindSafe(|| load(found))) {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => return refuse_all(inbox, &error),
        Err(_) => return refuse_all(inbox, &Error::bug("loading the model panicked")),
    };
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(model = found.id, seconds, "Model loaded.");
    let sampler = generate::sampler(&loaded.model, &loaded.tokenizer, &found.run);
    let mut worker = Worker { found, loaded, sampler, inbox, later: VecDeque::new(), tokens };
    while let Some(job) = worker.wait(idle) {
        // The sampler's pages may be lost with a panic; so is the model then, and is loaded again for the next job.
        if catch_unwind(AssertUnwindSafe(|| worker.serve(job))).is_err() {
            tracing::error!(model = found.id, "Sampling panicked.");
            return;
        }
        // Nothing more is done on a device that has failed: the next job loads the model again.
        if let Err(error) = worker.loaded.model.check_device() {
            tracing::error!(model = found.id, %error, "The device failed.");
            return;
        }
    }
    tracing::info!(model = found.id, "Model dropped.");
}

fn load(found: &Found) -> Result<Loaded> {
    let run = &found.run;
    let device = devices::open(&*devices::of_machine(), run)?;
    Ok(models::load(&found.path, &device)?)
}

fn refuse_all(inbox: &Receiver<Job>, error: &Error) {
    // Those that come until the hub knows are answered too.
    while let Ok(job) = inbox.recv_timeout(Duration::from_millis(100)) {
        let _ = job.reply.send(Piece::Failed(error.clone()));
    }
}

struct Worker<'a> {
    found: &'a Found,
    loaded: Loaded,
    sampler: Sampler,
    inbox: &'a Receiver<Job>,
    /// Jobs with other settings than those that are drawn.
    later: VecDeque<Ready>,
    tokens: &'a AtomicU64,
}

/// A job that can be served.
struct Ready {
    job: Job,
    prompt_ids: Arc<[u32]>,
    sampling: Sampling,
}

impl Worker<'_> {
    /// The next job that can be served; none where nobody asked for `idle`.
    fn wait(&mut self, idle: Duration) -> Option<Ready> {
        loop {
            let ready = match self.later.pop_front() {
                Some(ready) => Some(ready),
                None => self.prepare(self.inbox.recv_timeout(idle).ok()?),
            };
            if ready.is_some() {
                return ready;
            }
        }
    }

    fn serve(&mut self, first: Ready) {
        if first.job.drawing.max_tokens == Some(0) {
            return self.only_score(&first);
        }
        let sampling = first.sampling.clone();
        let (model, tokenizer) =
            (Arc::clone(&self.loaded.model), Arc::clone(&self.loaded.tokenizer));
        let mut audience = Crowd {
            found: self.found,
            loaded: Loaded { model: Arc::clone(&model), tokenizer },
            room: self.sampler.room(),
            inbox: self.inbox,
            later: &mut self.later,
            first: Some(first),
            sampling: &sampling,
            jobs: Vec::new(),
            tokens: self.tokens,
        };
        let random = Philox::new(0).derive(RANDOM);
        let served = self.sampler.serve(&model, &sampling, random, &mut audience);
        if let Err(error) = served {
            let error = Error::from(error);
            for ready in &audience.jobs {
                let _ = ready.job.reply.send(Piece::Failed(error.clone()));
            }
        }
    }

    fn only_score(&self, ready: &Ready) {
        let reply = &ready.job.reply;
        let told = scores(&self.loaded, ready, &[]);
        for sample_idx in 0..ready.job.samples {
            match told.clone() {
                Ok(scores) => {
                    let _ = reply.send(Piece::Scores { sample_idx, scores });
                    let _ = reply.send(Piece::Done { sample_idx, finish_reason: None });
                }
                Err(error) => drop(reply.send(Piece::Failed(error))),
            }
        }
    }

    fn prepare(&self, job: Job) -> Option<Ready> {
        prepare(self.found, &self.loaded, self.sampler.room(), job)
    }
}

/// Encodes a job's prompt and checks it; says what is wrong to who asked.
fn prepare(found: &Found, loaded: &Loaded, room: Room, job: Job) -> Option<Ready> {
    // Encoding takes a while, in which the model draws for nobody.
    if job.reply.is_closed() {
        return None;
    }
    let prepared = || -> Result<(Arc<[u32]>, Sampling)> {
        check_len(loaded, &job.prompt)?;
        let prompt_ids: Arc<[u32]> =
            prompt_ids(loaded, found.template.as_ref(), &job.prompt)?.into();
        let positions = loaded.model.config().max_position_embeddings;
        let left = positions.saturating_sub(prompt_ids.len());
        let left = u32::try_from(left).unwrap_or(u32::MAX).clamp(1, TOKENS_DEFAULT);
        let drawing = &job.drawing;
        let file = pipeline::Sampling {
            temperature: drawing.temperature,
            top_p: drawing.top_p,
            top_k: drawing.top_k,
            // What draws nothing is checked as if it drew one.
            max_tokens: drawing.max_tokens.unwrap_or(left).max(1),
            stop: drawing.stop.clone(),
            ..pipeline::Sampling::default()
        };
        let sampling = prompts::sampling(&file, &loaded.model, &loaded.tokenizer);
        sampling.check()?;
        if drawing.max_tokens == Some(0) {
            loaded.model.check_sequence(&prompt_ids)?;
        } else {
            let samples = 0..job.samples;
            let request =
                Request { prompt_ids: Arc::clone(&prompt_ids), address: job.address, samples };
            room.check(&loaded.model, &request, &sampling)?;
        }
        Ok((prompt_ids, sampling))
    };
    match prepared() {
        Ok((prompt_ids, sampling)) => {
            let tokenizer = Arc::clone(&loaded.tokenizer);
            let begun = Piece::Begun { prompt_ids: Arc::clone(&prompt_ids), tokenizer };
            // One who has gone asks for nothing any more.
            job.reply.send(begun).ok()?;
            Some(Ready { job, prompt_ids, sampling })
        }
        Err(error) => {
            let _ = job.reply.send(Piece::Failed(error));
            None
        }
    }
}

/// Fails for a text that has more tokens than the model has positions, however it is encoded.
fn check_len(loaded: &Loaded, prompt: &Prompt) -> Result<()> {
    let text_len: usize = match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Ids(_) => 0,
        Prompt::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
    };
    let positions = loaded.model.config().max_position_embeddings;
    if text_len <= positions {
        return Ok(());
    }
    let tokenizer = &loaded.tokenizer;
    let longest = (0..tokenizer.vocab_len() as u32).map(|id| tokenizer.token_bytes(id).len()).max();
    // A tokenizer may put a text into fewer bytes first.
    let least = text_len / (NORMALISED_MAX * longest.unwrap_or(1).max(1));
    if least <= positions {
        return Ok(());
    }
    let message = format!(
        "a prompt of {text_len} bytes is at least {least} tokens: the model has {positions} positions"
    );
    Err(Error::input(message, "send a shorter one"))
}

/// A prompt as tokens. A conversation goes by the template that the model was trained with: its stage's where that is
/// R1-Zero's, or for one message a text of its own; else the model's chat template; else one turn after the other.
fn prompt_ids(loaded: &Loaded, template: Option<&Template>, prompt: &Prompt) -> Result<Vec<u32>> {
    let tokenizer = &loaded.tokenizer;
    let messages = match prompt {
        Prompt::Text(text) => return Ok(tokenizer.encode(text, true)?),
        Prompt::Ids(ids) => return Ok(ids.clone()),
        Prompt::Chat(messages) => messages,
    };
    let named = match (template, &messages[..]) {
        (Some(template @ Template::Text(_)), [message]) => {
            return Ok(Prompter::new(tokenizer, template)?.prompt_ids(&message.content)?);
        }
        (Some(Template::R1Zero), _) => "r1-zero",
        _ if tokenizer.chat_template().is_some() => "chat",
        _ => "plain",
    };
    let rendered = ChatTemplate::named(named, tokenizer)?.render(messages, true)?;
    Ok(tokenizer.encode_rendered(&rendered)?.0)
}

/// Scores of a prompt and what was drawn behind it.
fn scores(loaded: &Loaded, ready: &Ready, token_ids: &[u32]) -> Result<Vec<Scored>> {
    let ids = [&ready.prompt_ids[..], token_ids].concat();
    let top = ready.job.scores.unwrap_or(0);
    Ok(score(&loaded.model, &ids, ready.sampling.temperature, top)?)
}

/// Those who ask with the same settings.
struct Crowd<'a> {
    found: &'a Found,
    loaded: Loaded,
    room: Room,
    inbox: &'a Receiver<Job>,
    later: &'a mut VecDeque<Ready>,
    first: Option<Ready>,
    sampling: &'a Sampling,
    jobs: Vec<Ready>,
    tokens: &'a AtomicU64,
}

impl Audience for Crowd<'_> {
    fn next(&mut self) -> Option<Request> {
        let ready = match self.first.take() {
            Some(first) => first,
            // Whoever asks with other settings isn't to wait for ever.
            None if !self.later.is_empty() => return None,
            None => loop {
                let job = match self.inbox.try_recv() {
                    Ok(job) => job,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
                };
                let Some(ready) = prepare(self.found, &self.loaded, self.room, job) else {
                    continue;
                };
                let is_other =
                    ready.sampling != *self.sampling || ready.job.drawing.max_tokens == Some(0);
                if is_other {
                    self.later.push_back(ready);
                    return None;
                }
                break ready;
            },
        };
        let request = Request {
            prompt_ids: Arc::clone(&ready.prompt_ids),
            address: ready.job.address,
            samples: 0..ready.job.samples,
        };
        self.jobs.push(ready);
        Some(request)
    }

    fn hears(&mut self, news: News<'_>) -> bool {
        let job = &self.jobs[news.request_idx].job;
        if let (Some(id), Some(logprob)) = (news.token_ids.last(), news.logprobs.last()) {
            self.tokens.fetch_add(1, Ordering::Relaxed);
            let (sample_idx, id, logprob) = (news.sample_idx, *id, *logprob);
            return job.reply.send(Piece::Token { sample_idx, id, logprob }).is_ok();
        }
        true
    }

    fn done(&mut self, completion: Completion) -> bool {
        let ready = &self.jobs[completion.request_idx];
        let (sample_idx, reply) = (completion.sample_idx, &ready.job.reply);
        if ready.job.scores.is_some() && !reply.is_closed() {
            match scores(&self.loaded, ready, &completion.token_ids) {
                Ok(scores) => drop(reply.send(Piece::Scores { sample_idx, scores })),
                Err(error) => drop(reply.send(Piece::Failed(error))),
            }
        }
        let finish_reason = Some(completion.finish_reason);
        let _ = reply.send(Piece::Done { sample_idx, finish_reason });
        true
    }
}
