//! Text to token ids and back; special tokens; the model's chat template.

mod bytes;
mod files;
mod validate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};

pub use bytes::Utf8Stream;
pub(crate) use bytes::byte_chars;
pub(crate) use files::write_json;

use crate::chat_template::{ChatTemplate, Rendered};
use crate::config::Config;
use crate::error::{Error, Result};
use bytes::{ByteTable, Spelling};

/// A tokenizer with everything around it that a Hugging Face directory or a GGUF states.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    table: ByteTable,
    spelling: Spelling,
    /// Some bytes have no token: every text must be checked.
    is_partial: bool,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    eos_ids: Vec<u32>,
    chat_template: Option<ChatTemplate>,
    /// `tokenizer_config.json` without its chat template.
    settings: Map<String, Value>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_len", &self.vocab_len())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("eos_ids", &self.eos_ids)
            .finish_non_exhaustive()
    }
}

/// A token with a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
}

/// What a tokenizer is made from.
pub(crate) struct Parts {
    /// The content of `tokenizer.json`.
    pub json: Value,
    /// The content of `tokenizer_config.json`.
    pub settings: Map<String, Value>,
    /// The chat template's source, where it isn't in the settings.
    pub chat_template: Option<String>,
    /// Tokens that end a completion, besides the settings' `eos_token`.
    pub eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face directory or of a `.gguf` file.
    pub fn load(path: &Path) -> Result<Self> {
        if crate::weights::is_gguf(path) && path.is_file() {
            return crate::gguf::Gguf::open(path)?.tokenizer();
        }
        files::load(path)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` into an existing directory.
    pub fn save(&self, dir: &Path) -> Result<()> {
        files::save(self, dir)
    }

    pub(crate) fn from_parts(parts: Parts) -> Result<Self> {
        let Parts { json, mut settings, chat_template, mut eos_ids } = parts;
        validate::tokenizer_json(&json)?;
        let mut inner = guarded("reading tokenizer.json", || {
            json.to_string().parse::<tokenizers::Tokenizer>()
        })?;
        // Prompts are never cut or filled behind the caller's back.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| Error::Bug(format!("truncation could not be removed: {error}")))?;
        validate::added_token_ids(&json, &inner)?;

        let spelling = Spelling::of(&json["decoder"]);
        let table = ByteTable::new(&inner, spelling)?;
        let special = |key: &str| special_token(&inner, &settings, key);
        let (bos, eos, pad) = (special("bos_token")?, special("eos_token")?, special("pad_token")?);
        if let Some(eos) = &eos {
            eos_ids.retain(|id| *id != eos.id);
            eos_ids.insert(0, eos.id);
        }
        let source = settings.remove("chat_template").as_ref().and_then(template_source);
        let chat_template = chat_template
            .or(source)
            .map(|source| ChatTemplate::new(&source, bos.as_ref(), eos.as_ref(), pad.as_ref()))
            .transpose()?;
        let is_partial = validate::lacks_bytes(&json, &inner);
        Ok(Tokenizer {
            inner,
            table,
            spelling,
            is_partial,
            bos,
            eos,
            pad,
            eos_ids,
            chat_template,
            settings,
        })
    }

    /// Token ids of a text. `add_special` adds what the model expects around a text that doesn't
    /// spell it out itself: for most models nothing, for some the beginning-of-text token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded("encoding", || self.inner.encode_fast(text, add_special))?;
        if self.is_partial {
            self.check_covered(text, &encoding)?;
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a rendered conversation, and for each whether the assistant wrote it.
    ///
    /// The assistant's parts are encoded apart from the rest, because a sampler sees the prompt's
    /// tokens before the completion exists: a token that spans the border would never be sampled.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<(Vec<u32>, Vec<bool>)> {
        if self.spelling == Spelling::SentencePiece {
            return self.encode_by_offsets(rendered);
        }
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        let mut push = |text: &str, is_assistant: bool, add_special: bool| -> Result<()> {
            ids.extend(self.encode(text, add_special)?);
            mask.resize(ids.len(), is_assistant);
            Ok(())
        };
        let mut at = 0;
        for span in &rendered.assistant_spans {
            push(&rendered.text[at..span.start], false, at == 0 && rendered.add_special)?;
            push(&rendered.text[span.clone()], true, false)?;
            at = span.end;
        }
        push(&rendered.text[at..], false, at == 0 && rendered.add_special)?;
        Ok((ids, mask))
    }

    /// For tokenizers that treat the beginning of every text as the beginning of a word.
    fn encode_by_offsets(&self, rendered: &Rendered) -> Result<(Vec<u32>, Vec<bool>)> {
        let encoding = guarded("encoding", || {
            self.inner.encode(rendered.text.as_str(), rendered.add_special)
        })?;
        let in_span = |at: usize| rendered.assistant_spans.iter().any(|span| span.contains(&at));
        let mask = encoding
            .get_offsets()
            .iter()
            .map(|(start, end)| start < end && in_span(*start))
            .collect();
        Ok((encoding.get_ids().to_vec(), mask))
    }

    /// Checks that the tokens spell the whole text, those aside that were put around it.
    fn check_covered(&self, text: &str, encoding: &tokenizers::Encoding) -> Result<()> {
        let added = encoding.get_special_tokens_mask();
        let of_text = encoding.get_ids().iter().zip(added).filter(|(_, added)| **added == 0);
        let spelled_bytes: usize = of_text.map(|(id, _)| self.token_bytes(*id).len()).sum();
        if spelled_bytes == text.len() {
            return Ok(());
        }
        let lost = self.inner.encode(text, false).ok().and_then(|encoding| {
            let covered = |at: usize| {
                encoding.get_offsets().iter().any(|(start, end)| (*start..*end).contains(&at))
            };
            text.char_indices().find(|(at, _)| !covered(*at)).map(|(_, c)| c)
        });
        let what = lost.map_or("some bytes of the text".to_owned(), |c| format!("{c:?}"));
        Err(Error::input(format!("the tokenizer has no token for {what}"))
            .hint("train it on a corpus with these characters, or with the full alphabet"))
    }

    /// The text of token ids; bytes that aren't UTF-8 become replacement characters.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded("decoding", || self.inner.decode(ids, skip_special))
    }

    /// The bytes that a token stands for; nothing for an id without a token. The concatenation over
    /// a completion is its text (except that SentencePiece drops one leading space).
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.get(id)
    }

    /// One more than the largest id.
    pub fn vocab_len(&self) -> usize {
        self.table.len()
    }

    /// How the tokens of `other` are others than these, if they are: the same id has to stand for the same bytes.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (own, others) = (self.vocab_len(), other.vocab_len());
        if own != others {
            return Some(format!("it has {others} tokens, not {own}"));
        }
        let whole = u32::try_from(own).unwrap_or(u32::MAX);
        let id = (0..whole).find(|&id| self.token_bytes(id) != other.token_bytes(id))?;
        let [found, wanted] =
            [other, self].map(|of| String::from_utf8_lossy(of.token_bytes(id)).into_owned());
        Some(format!("its token {id} is {found:?}, not {wanted:?}"))
    }

    /// The id of a token, given as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether decoding with `skip_special` leaves this token out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// The text with a blank inside of whatever spells a special token, so that it is read as text: for text
    /// that somebody else wrote and that a template is put around.
    pub fn as_plain_text(&self, text: &str) -> String {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.values().filter(|token| token.special && !token.content.is_empty());
        special.fold(text.to_owned(), |text, token| {
            let first = token.content.chars().next().map_or(0, char::len_utf8);
            let (head, tail) = token.content.split_at(first);
            text.replace(&token.content, &format!("{head} {tail}"))
        })
    }

    /// Tokens that end a completion.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The token that ends a text or a turn.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// The token that fills.
    pub fn pad(&self) -> Option<&SpecialToken> {
        self.pad.as_ref()
    }

    /// The same with another token that fills, which has to be a special one: transformers would cut it out
    /// of every text.
    pub fn with_pad(&self, id: u32) -> Result<Self> {
        let text =
            self.inner.id_to_token(id).filter(|_| self.is_special(id)).ok_or_else(|| {
                Error::Bug(format!("token {id} is no special token, and can't fill"))
            })?;
        let mut copy = self.clone();
        copy.settings.insert("pad_token".to_owned(), Value::from(text.clone()));
        copy.pad = Some(SpecialToken { id, text });
        Ok(copy)
    }

    /// The model's own chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Checks that the model has a row for every token.
    pub fn check_fits(&self, config: &Config) -> Result<()> {
        let last_id = self.vocab_len().saturating_sub(1);
        if self.vocab_len() > config.vocab_size {
            return Err(Error::input(format!(
                "the tokenizer has ids up to {last_id}, the model's vocabulary has {} rows",
                config.vocab_size
            ))
            .hint("use the tokenizer that came with the model, or a model with more rows"));
        }
        if let Some(id) = self.eos_ids.iter().find(|id| **id as usize >= config.vocab_size) {
            return Err(Error::input(format!(
                "the end-of-text id {id} is not below the model's vocabulary size, {}",
                config.vocab_size
            ))
            .hint("correct `eos_token_id` in generation_config.json"));
        }
        Ok(())
    }
}

/// `chat_template` of `tokenizer_config.json`: a string, or a list of named ones.
fn template_source(value: &Value) -> Option<String> {
    match value {
        Value::String(source) => Some(source.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default");
            default.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}

fn special_token(
    inner: &tokenizers::Tokenizer,
    settings: &Map<String, Value>,
    key: &str,
) -> Result<Option<SpecialToken>> {
    let text = match settings.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text,
        Some(value) => match value.get("content") {
            Some(Value::String(text)) => text,
            _ => return Err(Error::input(format!("`{key}` is {value}: expected a token"))),
        },
    };
    let id = inner.token_to_id(text).ok_or_else(|| {
        Error::input(format!("`{key}` is {text:?}, which the vocabulary doesn't have"))
    })?;
    Ok(Some(SpecialToken { id, text: text.clone() }))
}

/// Runs a call into `tokenizers`, which panics on some hostile files: such a panic is a bad input.
fn guarded<T>(action: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::input(format!("{action} failed")).caused_by(error)),
        Err(_) => Err(Error::input(format!("{action} failed: the tokenizer is broken"))),
    }
}
