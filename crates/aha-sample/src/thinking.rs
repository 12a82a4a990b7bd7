//! Budget forcing (s1, Muennighoff et al. 2025): how long a model thinks is set from outside.
//!
//! A completion begins with thinking, which ends where the end text is complete, across tokens or inside one.
//! - An end that comes too early is taken back: the tokens that spell it go, `wait` takes their place, and drawing
//!   goes on. A stop token or a stop text would end the thinking as well, and is taken back alike.
//! - Thinking that has used up its tokens is cut: `close` is put after it, and the model answers. An end text that
//!   is half written then goes.
//!
//! [`Thinking`] is what may be set, `Forcing` the same in tokens, `Thought` where a completion is. Where a
//! token holds bytes ahead of what is taken back, these are spelled again by tokens of their own.

use aha_model::Tokenizer;

use crate::{Error, FinishReason, Sampling};

/// Tokens that are looked at, at most, for where a character begins.
const CHAR_TOKENS_MAX: usize = 4;

/// How long a model thinks ahead of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// The text that ends the thinking.
    pub end: String,
    /// Tokens below which an end is taken back.
    pub min_tokens: usize,
    /// Most tokens of the thinking, the end text not counted; 0 answers at once, none is as many as fit.
    pub max_tokens: Option<usize>,
    /// Ends that are taken back in each completion, whatever the number of tokens.
    pub waits: usize,
    /// What takes the place of an end that is taken back.
    pub wait: String,
    /// What is put after thinking that has used up its tokens.
    pub close: String,
}

impl Default for Thinking {
    fn default() -> Thinking {
        Thinking {
            end: "</think>".to_owned(),
            min_tokens: 0,
            max_tokens: None,
            waits: 0,
            wait: "Wait".to_owned(),
            close: "</think>".to_owned(),
        }
    }
}

impl Thinking {
    /// What is wrong with the settings beside a completion of at most `max_tokens`: the key, what it must be, and
    /// what it is.
    pub fn problem(&self, max_tokens: usize) -> Option<(&'static str, String, String)> {
        let text = |text: &str| format!("\"{text}\"");
        for (key, value) in [("end", &self.end), ("wait", &self.wait), ("close", &self.close)] {
            if value.is_empty() {
                return Some((key, "a text of at least one byte".to_owned(), text(value)));
            }
        }
        if self.wait.contains(&self.end) {
            let must = format!("a text without `end` = {} in it", text(&self.end));
            return Some(("wait", must, text(&self.wait)));
        }
        if let Some(most) = self.max_tokens.filter(|most| *most >= max_tokens) {
            let must = format!("below the {max_tokens} tokens of a completion: an answer follows");
            return Some(("max_tokens", must, most.to_string()));
        }
        let most = self.max_tokens.unwrap_or(max_tokens - 1);
        (self.min_tokens > most).then(|| {
            let must = format!("at most {most}, the most tokens of thinking");
            ("min_tokens", must, self.min_tokens.to_string())
        })
    }
}

/// [`Thinking`] in the tokens of a model.
#[derive(Debug)]
pub(crate) struct Forcing<'a> {
    thinking: &'a Thinking,
    sampling: &'a Sampling,
    tokenizer: &'a Tokenizer,
    wait_ids: Vec<u32>,
    close_ids: Vec<u32>,
}

/// Where a text begins: a token, and the bytes of it that stand ahead of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    token_idx: usize,
    bytes_before: usize,
}

/// What becomes of a completion after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It goes on, or ends, as without budget forcing.
    GoOn,
    /// It goes back to so many tokens, and what is forced comes next.
    Rewind(usize),
}

/// The thinking of one completion.
#[derive(Clone, Debug, Default)]
pub(crate) struct Thought {
    is_over: bool,
    waits_made: usize,
    /// Tokens that come before any is drawn, the next one last.
    forced: Vec<u32>,
    /// Per token of the completion, whether it was forced.
    mask: Vec<bool>,
    /// Tokens up to the end of what was forced last: an end text begins behind them.
    drawn_from: usize,
    /// Tokens that were taken back.
    removed_count: usize,
    /// The bytes that are searched; its memory serves token after token.
    text: Vec<u8>,
}

impl<'a> Forcing<'a> {
    /// The settings that `sampling` has, if any. Fails where its texts can't be spelled, or leave no room.
    pub fn of(
        sampling: &'a Sampling,
        tokenizer: &'a Tokenizer,
    ) -> Result<Option<Forcing<'a>>, Error> {
        let Some(thinking) = &sampling.thinking else { return Ok(None) };
        let spelled = |key: &str, text: &str| {
            spell(tokenizer, text)?.ok_or_else(|| Error::Input {
                what: format!("the tokenizer can't spell `thinking.{key}` = \"{text}\""),
                hint: "give a text of characters that it has tokens for".to_owned(),
            })
        };
        let wait_ids = spelled("wait", &thinking.wait)?;
        let close_ids = spelled("close", &thinking.close)?;
        let closed = thinking.max_tokens.map(|most| most + close_ids.len());
        if let Some(closed) = closed.filter(|closed| *closed >= sampling.max_tokens) {
            return Err(Error::Input {
                what: format!(
                    "thinking and the text that closes it may have {closed} tokens: of the {} of a completion \
                     none is left for an answer",
                    sampling.max_tokens
                ),
                hint: "raise `max_tokens`, or lower `thinking.max_tokens`".to_owned(),
            });
        }
        Ok(Some(Forcing { thinking, sampling, tokenizer, wait_ids, close_ids }))
    }

    /// A completion's thinking, ahead of its first token.
    pub fn start(&self) -> Thought {
        let mut thought = Thought::default();
        if self.thinking.max_tokens == Some(0) {
            thought.is_over = true;
            thought.force(0, &[], &self.close_ids);
        }
        thought
    }

    /// Looks at the newest token, which was drawn and for which the completion would stop for this reason.
    pub fn look(
        &self,
        thought: &mut Thought,
        token_ids: &[u32],
        stop: Option<FinishReason>,
    ) -> Next {
        if thought.is_over {
            return Next::GoOn;
        }
        let end = self.find(thought, token_ids, &self.thinking.end);
        let stopped = match stop {
            Some(FinishReason::StopString) => {
                let texts = self.sampling.stop.iter();
                texts.filter_map(|text| self.find(thought, token_ids, text)).min()
            }
            Some(_) => Some(Place { token_idx: token_ids.len() - 1, bytes_before: 0 }),
            None => None,
        };
        if let Some(place) = end.into_iter().chain(stopped).min() {
            let len = place.token_idx + usize::from(place.bytes_before > 0);
            let is_early =
                len < self.thinking.min_tokens || thought.waits_made < self.thinking.waits;
            if is_early && let Some(len) = self.wait(thought, token_ids, place) {
                return Next::Rewind(len);
            }
            thought.is_over = end.is_some();
            return Next::GoOn;
        }
        match self.thinking.max_tokens {
            Some(most) if token_ids.len() >= most => {
                Next::Rewind(self.close(thought, token_ids, most))
            }
            _ => Next::GoOn,
        }
    }

    /// Takes back what begins at `place`, and lets `wait` follow; none where that leaves no token to think with.
    fn wait(&self, thought: &mut Thought, token_ids: &[u32], place: Place) -> Option<usize> {
        let (len, before) = self.kept(thought, token_ids, place);
        let most = self.thinking.max_tokens.unwrap_or(self.sampling.max_tokens);
        if len + before.len() + self.wait_ids.len() >= most {
            return None;
        }
        thought.waits_made += 1;
        thought.rewind(token_ids.len(), len);
        thought.force(len, &before, &self.wait_ids);
        Some(len)
    }

    /// Cuts the thinking, with an end text that is half written.
    fn close(&self, thought: &mut Thought, token_ids: &[u32], most: usize) -> usize {
        let end = self.thinking.end.as_bytes();
        let place = (1..end.len()).rev().find_map(|len| {
            let text = self.collect(thought, token_ids, len);
            let at = thought.text.len().checked_sub(len)?;
            (thought.text[at..] == end[..len]).then(|| self.place(token_ids, text, at))
        });
        let whole = Place { token_idx: token_ids.len(), bytes_before: 0 };
        let (len, mut before) = self.kept(thought, token_ids, place.unwrap_or(whole));
        if len + before.len() > most {
            before.clear();
        }
        thought.is_over = true;
        thought.rewind(token_ids.len(), len);
        thought.force(len, &before, &self.close_ids);
        len
    }

    /// Tokens that stay of those ahead of `place`, and the tokens that spell the rest. Nothing is spelled but
    /// whole characters.
    fn kept(&self, thought: &Thought, token_ids: &[u32], place: Place) -> (usize, Vec<u32>) {
        if place.bytes_before == 0 {
            return (place.token_idx, Vec::new());
        }
        let bytes = |idx: usize| self.tokenizer.token_bytes(token_ids[idx]);
        let mut text = bytes(place.token_idx)[..place.bytes_before].to_vec();
        let first = thought.drawn_from.max((place.token_idx + 1).saturating_sub(CHAR_TOKENS_MAX));
        for len in (first..=place.token_idx).rev() {
            if len < place.token_idx {
                text.splice(..0, bytes(len).iter().copied());
            }
            if let Ok(text) = std::str::from_utf8(&text)
                && let Ok(Some(ids)) = spell(self.tokenizer, text)
            {
                return (len, ids);
            }
        }
        (place.token_idx, Vec::new())
    }

    /// Where the text begins that the newest token completes.
    fn find(&self, thought: &mut Thought, token_ids: &[u32], text: &str) -> Option<Place> {
        let newest_len = self.tokenizer.token_bytes(*token_ids.last()?).len();
        let first = self.collect(thought, token_ids, newest_len + text.len() - 1);
        let at = thought.text.windows(text.len()).position(|w| w == text.as_bytes())?;
        // One that ended earlier was looked at then.
        (at + text.len() > thought.text.len() - newest_len)
            .then(|| self.place(token_ids, first, at))
    }

    /// Collects the last `len` bytes that were drawn since something was forced, and what else their first token
    /// holds; returns that token.
    fn collect(&self, thought: &mut Thought, token_ids: &[u32], len: usize) -> usize {
        let mut first = token_ids.len();
        let mut found = 0;
        while first > thought.drawn_from && found < len {
            first -= 1;
            found += self.tokenizer.token_bytes(token_ids[first]).len();
        }
        thought.text.clear();
        for id in &token_ids[first..] {
            thought.text.extend_from_slice(self.tokenizer.token_bytes(*id));
        }
        first
    }

    /// The place of a byte of what was collected.
    fn place(&self, token_ids: &[u32], first: usize, byte_idx: usize) -> Place {
        let (mut token_idx, mut bytes_before) = (first, byte_idx);
        loop {
            let len = self.tokenizer.token_bytes(token_ids[token_idx]).len();
            if bytes_before < len {
                return Place { token_idx, bytes_before };
            }
            (token_idx, bytes_before) = (token_idx + 1, bytes_before - len);
        }
    }
}

impl Thought {
    /// The token that comes next, where none is to be drawn.
    pub fn next(&self) -> Option<u32> {
        self.forced.last().copied()
    }

    /// Notes that a token has come.
    pub fn push(&mut self) {
        let is_forced = self.forced.pop().is_some();
        self.mask.push(is_forced);
    }

    /// Whether the newest token was forced.
    pub fn is_forced(&self) -> bool {
        self.mask.last().is_some_and(|is_forced| *is_forced)
    }

    /// Tokens that were taken back: draws after them have positions of their own.
    pub fn removed_count(&self) -> usize {
        self.removed_count
    }

    /// Per token of the completion, whether it was forced.
    pub fn into_mask(self) -> Vec<bool> {
        self.mask
    }

    fn rewind(&mut self, from: usize, to: usize) {
        self.removed_count += from - to;
        self.mask.truncate(to);
    }

    /// What comes after `len` tokens.
    fn force(&mut self, len: usize, before: &[u32], ids: &[u32]) {
        self.forced.clear();
        self.forced.extend(before.iter().chain(ids).rev());
        self.drawn_from = len + self.forced.len();
    }
}

/// The tokens that spell a text in the middle of another; none where there are none. A tokenizer may put a blank
/// ahead of every text: tokens after a line break have none.
fn spell(tokenizer: &Tokenizer, text: &str) -> Result<Option<Vec<u32>>, Error> {
    let spells = |ids: &[u32]| {
        let mut bytes = ids.iter().flat_map(|id| tokenizer.token_bytes(*id));
        text.bytes().all(|byte| bytes.next() == Some(&byte)) && bytes.next().is_none()
    };
    let ids = tokenizer.encode(text, false)?;
    if spells(&ids) {
        return Ok(Some(ids));
    }
    let Ok(after_break) = tokenizer.encode(&format!("\n{text}"), false) else { return Ok(None) };
    let start = (1..after_break.len()).find(|start| spells(&after_break[*start..]));
    Ok(start.map(|start| after_break[start..].to_vec()))
}

#[cfg(test)]
mod tests;
