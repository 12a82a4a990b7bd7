//! What is sent: all completions at once, or pieces as they come.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use aha_model::Tokenizer;
use aha_rollout::time;
use aha_sample::{FinishReason, Scored};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::forms::{
    ChatAnswer, ChatChoice, ChatLogprobs, CompletionAnswer, Order, Said, TextChoice, TextLogprobs,
    TokenLogprob, Usage,
};
use super::text::Reader;
use super::worker::Piece;
use crate::api::stream::response;
use crate::error::{Error, Kind, Result};

/// In which form an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Completions of texts.
    Plain,
    /// Answers in a conversation.
    Chat,
}

/// A request that the model has taken.
pub struct Ask {
    asker: Asker,
    id: String,
    model: String,
    created: u64,
    order: Order,
    prompts: Vec<Begun>,
}

/// A prompt whose completions are being drawn.
struct Begun {
    prompt_ids: Arc<[u32]>,
    tokenizer: Arc<Tokenizer>,
    pieces: UnboundedReceiver<Piece>,
}

/// A completion so far.
struct Drawn {
    reader: Reader,
    text: String,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    scores: Vec<Scored>,
    finish_reason: Option<FinishReason>,
}

impl Drawn {
    fn new(tokenizer: &Arc<Tokenizer>, order: &Order) -> Drawn {
        Drawn {
            reader: Reader::new(Arc::clone(tokenizer), order.drawing.stop.clone()),
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            scores: Vec::new(),
            finish_reason: None,
        }
    }
}

impl Ask {
    /// Waits until the model has taken each prompt; fails where it can't take one.
    pub async fn begin(
        asker: Asker,
        model: String,
        order: Order,
        name: u64,
        heard: Vec<UnboundedReceiver<Piece>>,
    ) -> Result<Ask> {
        let created = u64::try_from(time::now_us() / 1_000_000).unwrap_or(0);
        let prefix = if asker == Asker::Chat { "chatcmpl" } else { "cmpl" };
        let mut prompts = Vec::new();
        for mut pieces in heard {
            match pieces.recv().await {
                Some(Piece::Begun { prompt_ids, tokenizer }) => {
                    prompts.push(Begun { prompt_ids, tokenizer, pieces });
                }
                Some(Piece::Failed(error)) => return Err(error),
                _ => return Err(ended_early()),
            }
        }
        Ok(Ask { asker, id: format!("{prefix}-{name:016x}"), model, created, order, prompts })
    }

    /// The answer.
    pub async fn respond(self) -> Result<Response> {
        match self.order.stream {
            true => Ok(response(Body::from_stream(self.stream().map(Ok::<_, Error>)))),
            false => self.collect().await,
        }
    }

    async fn collect(mut self) -> Result<Response> {
        let mut usage = Usage::default();
        let (mut texts, mut chats) = (Vec::new(), Vec::new());
        for prompt in std::mem::take(&mut self.prompts) {
            usage.prompt_tokens += prompt.prompt_ids.len();
            let (prompt_ids, tokenizer) =
                (Arc::clone(&prompt.prompt_ids), Arc::clone(&prompt.tokenizer));
            for drawn in prompt.collect(&self.order).await? {
                usage.completion_tokens += drawn.ids.len();
                let tokens =
                    Tokens { tokenizer: &tokenizer, prompt_ids: &prompt_ids, drawn: &drawn };
                match self.asker {
                    Asker::Plain => texts.push(self.text_choice(texts.len(), &tokens)),
                    Asker::Chat => chats.push(self.chat_choice(chats.len(), &tokens)),
                }
            }
        }
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        Ok(match self.asker {
            Asker::Plain => Json(self.text_answer(texts, Some(usage))).into_response(),
            Asker::Chat => {
                Json(self.chat_answer("chat.completion", chats, Some(usage))).into_response()
            }
        })
    }

    fn text_choice(&self, index: usize, tokens: &Tokens<'_>) -> TextChoice {
        let echoed = match self.order.echo {
            true => tokens.tokenizer.decode(tokens.prompt_ids, true).unwrap_or_default(),
            false => String::new(),
        };
        let logprobs = self.order.logprobs.map(|top| match self.order.echo {
            true => tokens.echoed(top > 0),
            false => tokens.drawn(top > 0),
        });
        let finish_reason = Some(word(tokens.drawn.finish_reason));
        TextChoice { index, text: echoed + &tokens.drawn.text, logprobs, finish_reason }
    }

    fn chat_choice(&self, index: usize, tokens: &Tokens<'_>) -> ChatChoice {
        let content = Some(tokens.drawn.text.clone());
        ChatChoice {
            index,
            message: Some(Said { role: Some("assistant"), content }),
            delta: None,
            logprobs: self.order.logprobs.map(|_| ChatLogprobs { content: tokens.chat() }),
            finish_reason: Some(word(tokens.drawn.finish_reason)),
        }
    }

    fn text_answer(&self, choices: Vec<TextChoice>, usage: Option<Usage>) -> CompletionAnswer {
        CompletionAnswer {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }

    fn chat_answer(
        &self,
        object: &'static str,
        choices: Vec<ChatChoice>,
        usage: Option<Usage>,
    ) -> ChatAnswer {
        let (id, model) = (self.id.clone(), self.model.clone());
        ChatAnswer { id, object, created: self.created, model, choices, usage }
    }

    /// The answer piece by piece, as server-sent events.
    fn stream(mut self) -> impl Stream<Item = Bytes> {
        let n = self.order.n as usize;
        let prompts = std::mem::take(&mut self.prompts);
        let usage = Usage {
            prompt_tokens: prompts.iter().map(|p| p.prompt_ids.len()).sum(),
            ..Usage::default()
        };
        let drawn = prompts
            .iter()
            .flat_map(|prompt| (0..n).map(|_| Drawn::new(&prompt.tokenizer, &self.order)))
            .collect::<Vec<_>>();
        let read = prompts
            .iter()
            .map(|prompt| (Arc::clone(&prompt.prompt_ids), Arc::clone(&prompt.tokenizer)));
        let read = read.collect();
        let pieces = prompts.into_iter().enumerate().map(|(idx, prompt)| {
            let each = stream::unfold(prompt.pieces, |mut pieces| async move {
                Some((pieces.recv().await?, pieces))
            });
            each.map(move |piece| (idx * n, piece)).boxed()
        });
        let streamer = Streamer {
            left: drawn.len(),
            pieces: stream::select_all(pieces),
            ready: VecDeque::new(),
            is_over: false,
            ask: self,
            prompts: read,
            drawn,
            usage,
        };
        stream::unfold(streamer, Streamer::next)
    }
}

impl Begun {
    /// Waits for all completions of the prompt.
    async fn collect(mut self, order: &Order) -> Result<Vec<Drawn>> {
        let n = order.n as usize;
        let mut all: Vec<Drawn> = (0..n).map(|_| Drawn::new(&self.tokenizer, order)).collect();
        let mut left = n;
        while left > 0 {
            match self.pieces.recv().await {
                Some(Piece::Token { sample_idx, id, logprob }) => {
                    let drawn = &mut all[sample_idx as usize];
                    let text = drawn.reader.push(id);
                    drawn.text.push_str(&text);
                    drawn.ids.push(id);
                    drawn.logprobs.push(logprob);
                }
                Some(Piece::Scores { sample_idx, scores }) => {
                    all[sample_idx as usize].scores = scores
                }
                Some(Piece::Done { sample_idx, finish_reason }) => {
                    let drawn = &mut all[sample_idx as usize];
                    let rest = drawn.reader.finish();
                    drawn.text.push_str(&rest);
                    drawn.finish_reason = finish_reason;
                    left -= 1;
                }
                Some(Piece::Failed(error)) => return Err(error),
                Some(Piece::Begun { .. }) => {}
                None => return Err(ended_early()),
            }
        }
        Ok(all)
    }
}

/// A stream of pieces on its way.
struct Streamer {
    ask: Ask,
    /// What went in, prompt by prompt, and what tokens are read with.
    prompts: Vec<(Arc<[u32]>, Arc<Tokenizer>)>,
    pieces: SelectAll<BoxStream<'static, (usize, Piece)>>,
    drawn: Vec<Drawn>,
    usage: Usage,
    ready: VecDeque<Bytes>,
    left: usize,
    is_over: bool,
}

impl Streamer {
    async fn next(mut self) -> Option<(Bytes, Streamer)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((bytes, self));
            }
            if self.is_over {
                return None;
            }
            match self.pieces.next().await {
                Some((first, piece)) => self.take(first, piece),
                None => self.fail(&ended_early()),
            }
        }
    }

    /// Takes a piece of the prompt whose first completion has the index `first`.
    fn take(&mut self, first: usize, piece: Piece) {
        match piece {
            Piece::Token { sample_idx, id, logprob } => {
                let index = first + sample_idx as usize;
                let drawn = &mut self.drawn[index];
                let is_first = drawn.ids.is_empty();
                let text = drawn.reader.push(id);
                drawn.ids.push(id);
                drawn.logprobs.push(logprob);
                drawn.text.push_str(&text);
                self.usage.completion_tokens += 1;
                let logprob = self.ask.order.logprobs.map(|_| (id, logprob));
                if !self.comes_whole() && (is_first || !text.is_empty() || logprob.is_some()) {
                    self.send(index, is_first, text, logprob, None);
                }
            }
            Piece::Scores { sample_idx, scores } => {
                self.drawn[first + sample_idx as usize].scores = scores;
            }
            Piece::Done { sample_idx, finish_reason } => {
                let index = first + sample_idx as usize;
                let drawn = &mut self.drawn[index];
                let text = drawn.reader.finish();
                drawn.text.push_str(&text);
                drawn.finish_reason = finish_reason;
                match self.comes_whole() {
                    true => self.send_whole(index),
                    false => self.send(index, false, text, None, Some(word(finish_reason))),
                }
                self.left -= 1;
                if self.left == 0 {
                    self.finish();
                }
            }
            Piece::Failed(error) => self.fail(&error),
            Piece::Begun { .. } => {}
        }
    }

    /// Whether each completion comes in one piece: what is said of other tokens, and of the prompt's, is known when it
    /// has ended.
    fn comes_whole(&self) -> bool {
        self.ask.order.echo || self.ask.order.logprobs.is_some_and(|top| top > 0)
    }

    fn send_whole(&mut self, index: usize) {
        let (prompt_ids, tokenizer) = &self.prompts[index / self.ask.order.n as usize];
        let tokens = Tokens { tokenizer, prompt_ids, drawn: &self.drawn[index] };
        let bytes = match self.ask.asker {
            Asker::Plain => {
                let choice = self.ask.text_choice(index, &tokens);
                event(&self.ask.text_answer(vec![choice], None))
            }
            Asker::Chat => {
                let whole = self.ask.chat_choice(index, &tokens);
                let choice = ChatChoice { delta: whole.message, message: None, ..whole };
                event(&self.ask.chat_answer("chat.completion.chunk", vec![choice], None))
            }
        };
        self.ready.push_back(bytes);
    }

    fn send(
        &mut self,
        index: usize,
        is_first: bool,
        text: String,
        logprob: Option<(u32, f32)>,
        finish_reason: Option<&'static str>,
    ) {
        let (_, tokenizer) = &self.prompts[index / self.ask.order.n as usize];
        let token = logprob.map(|(id, logprob)| (tokenizer, id, logprob));
        let bytes = match self.ask.asker {
            Asker::Plain => {
                let logprobs = token.map(|(tokenizer, id, logprob)| TextLogprobs {
                    tokens: vec![token_text(tokenizer, id)],
                    token_logprobs: vec![Some(logprob)],
                    ..TextLogprobs::default()
                });
                let choice = TextChoice { index, text, logprobs, finish_reason };
                event(&self.ask.text_answer(vec![choice], None))
            }
            Asker::Chat => {
                let logprobs = token.map(|(tokenizer, id, logprob)| ChatLogprobs {
                    content: vec![token_logprob(tokenizer, id, logprob, Some(Vec::new()))],
                });
                let role = is_first.then_some("assistant");
                let delta = Some(Said { role, content: Some(text) });
                let choice = ChatChoice { index, delta, logprobs, finish_reason, message: None };
                event(&self.ask.chat_answer("chat.completion.chunk", vec![choice], None))
            }
        };
        self.ready.push_back(bytes);
    }

    fn finish(&mut self) {
        if self.ask.order.include_usage {
            let total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
            let usage = Some(Usage { total_tokens, ..self.usage });
            self.ready.push_back(match self.ask.asker {
                Asker::Plain => event(&self.ask.text_answer(Vec::new(), usage)),
                Asker::Chat => {
                    event(&self.ask.chat_answer("chat.completion.chunk", Vec::new(), usage))
                }
            });
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.is_over = true;
    }

    /// Says in the stream what went wrong: its status is sent already.
    fn fail(&mut self, error: &Error) {
        let error =
            json!({ "error": { "message": error.message, "type": "server_error", "code": null } });
        self.ready.push_back(event(&error));
        self.is_over = true;
    }
}

/// The tokens of a completion and what is known of them.
struct Tokens<'a> {
    tokenizer: &'a Tokenizer,
    prompt_ids: &'a [u32],
    drawn: &'a Drawn,
}

impl Tokens<'_> {
    /// What is known of the token at `at` of prompt and completion, if that was scored.
    fn scored(&self, at: usize) -> Option<&Scored> {
        self.drawn.scores.get(at.checked_sub(1)?)
    }

    /// Log-probs of the completion's tokens.
    fn drawn(&self, with_top: bool) -> TextLogprobs {
        let of = self.drawn.ids.iter().zip(&self.drawn.logprobs).enumerate();
        let of = of.map(|(idx, (id, logprob))| (self.prompt_ids.len() + idx, *id, Some(*logprob)));
        self.text(of, with_top)
    }

    /// Log-probs of the prompt's tokens and the completion's.
    fn echoed(&self, with_top: bool) -> TextLogprobs {
        let ids = self.prompt_ids.iter().chain(&self.drawn.ids).enumerate();
        let of = ids.map(|(at, id)| (at, *id, self.scored(at).map(|scored| scored.logprob)));
        self.text(of, with_top)
    }

    fn text(
        &self,
        of: impl Iterator<Item = (usize, u32, Option<f32>)>,
        with_top: bool,
    ) -> TextLogprobs {
        let mut found = TextLogprobs::default();
        let (mut top, mut offset) = (Vec::new(), 0);
        for (at, id, logprob) in of {
            let token = token_text(self.tokenizer, id);
            top.push(self.scored(at).map(|scored| self.top(scored, &token, logprob)));
            found.text_offset.push(offset);
            offset += token.chars().count();
            found.tokens.push(token);
            found.token_logprobs.push(logprob);
        }
        found.top_logprobs = with_top.then_some(top);
        found
    }

    /// The likeliest tokens by their texts, and the token itself.
    fn top(&self, scored: &Scored, token: &str, logprob: Option<f32>) -> BTreeMap<String, f32> {
        let mut top: BTreeMap<String, f32> =
            logprob.map(|logprob| (token.to_owned(), logprob)).into_iter().collect();
        for (id, logprob) in &scored.top {
            // Of tokens that look alike the likeliest counts.
            let known = top.entry(token_text(self.tokenizer, *id)).or_insert(*logprob);
            *known = known.max(*logprob);
        }
        top
    }

    fn chat(&self) -> Vec<TokenLogprob> {
        let of = self.drawn.ids.iter().zip(&self.drawn.logprobs).enumerate();
        let each = of.map(|(idx, (id, logprob))| {
            let scored = self.scored(self.prompt_ids.len() + idx);
            let top = scored.into_iter().flat_map(|scored| &scored.top);
            let top = top.map(|(id, logprob)| token_logprob(self.tokenizer, *id, *logprob, None));
            token_logprob(self.tokenizer, *id, *logprob, Some(top.collect()))
        });
        each.collect()
    }
}

/// A token's text. Bytes that are no whole character are shown as such.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()
}

fn token_logprob(
    tokenizer: &Tokenizer,
    id: u32,
    logprob: f32,
    top_logprobs: Option<Vec<TokenLogprob>>,
) -> TokenLogprob {
    let bytes = tokenizer.token_bytes(id).to_vec();
    TokenLogprob { token: token_text(tokenizer, id), logprob, bytes, top_logprobs }
}

/// Why a completion ended, in OpenAI's words. What drew nothing has reached its length.
fn word(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::Stop | FinishReason::StopString) => "stop",
        Some(FinishReason::Length) | None => "length",
    }
}

/// An event; JSON on one line has no line break that could end it early.
fn event(value: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(value).unwrap_or_default();
    Bytes::from(format!("data: {data}\n\n"))
}

fn ended_early() -> Error {
    Error::new(Kind::Busy, "the model was dropped before it had answered").hint("ask again")
}
