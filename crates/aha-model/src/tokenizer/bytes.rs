//! What each token stands for, in bytes.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::config::VOCAB_SIZE_MAX;
use crate::error::{Error, Result};

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: a printable character for each byte.
    ByteLevel,
    /// SentencePiece's: `▁` for a space, `<0x0A>` for a byte that is no character.
    SentencePiece,
    /// Tokens are text as it is.
    Plain,
}

impl Spelling {
    pub fn of(decoder: &Value) -> Self {
        let kinds: Vec<&str> = match decoder["decoders"].as_array() {
            Some(list) => list.iter().filter_map(|decoder| decoder["type"].as_str()).collect(),
            None => decoder["type"].as_str().into_iter().collect(),
        };
        if kinds.contains(&"ByteLevel") {
            Spelling::ByteLevel
        } else if kinds.contains(&"ByteFallback") || kinds.contains(&"Metaspace") {
            Spelling::SentencePiece
        } else {
            Spelling::Plain
        }
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => {
                let bytes = token.chars().map(|c| BYTE_OF_CHAR.get(&c).copied());
                bytes.collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Spelling::SentencePiece => match byte_piece(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Spelling::Plain => token.as_bytes().to_vec(),
        }
    }
}

fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// GPT-2's character for each byte: printable Latin-1 stands for itself, the others get the
/// characters from U+0100 on.
pub(crate) fn byte_chars() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        let c = char::from_u32(next).expect("U+0100 to U+0143 are characters");
        next += 1;
        c
    })
}

static BYTE_OF_CHAR: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| byte_chars().into_iter().zip(0..=255).collect());

/// The bytes of every token, in one buffer.
#[derive(Clone)]
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
}

impl ByteTable {
    pub fn new(inner: &tokenizers::Tokenizer, spelling: Spelling) -> Result<Self> {
        let last_id = inner.get_vocab(true).values().copied().max();
        let len = last_id.map_or(0, |id| id as usize + 1);
        if len > VOCAB_SIZE_MAX {
            return Err(Error::input(format!(
                "a token has the id {}: expected below {VOCAB_SIZE_MAX}",
                len - 1
            )));
        }
        let added = inner.get_added_tokens_decoder();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(len));
        for id in 0..len as u32 {
            match added.get(&id) {
                Some(token) => bytes.extend_from_slice(token.content.as_bytes()),
                None => {
                    let token = inner.id_to_token(id).unwrap_or_default();
                    bytes.extend_from_slice(&spelling.bytes(&token));
                }
            }
            let end = u32::try_from(bytes.len())
                .map_err(|_| Error::input("the vocabulary's tokens are too long"))?;
            ends.push(end);
        }
        Ok(ByteTable { bytes, ends })
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }
}

/// Turns the bytes of tokens into text as they come, holding back the bytes of an unfinished
/// character.
///
/// ```
/// # use aha_model::tokenizer::Utf8Stream;
/// let mut stream = Utf8Stream::default();
/// assert_eq!(stream.push(b"caf\xc3"), "caf");
/// assert_eq!(stream.push(b"\xa9!"), "é!");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds bytes and returns the text that they finish. Bytes that can't begin or go on with a
    /// character become U+FFFD, as [`String::from_utf8_lossy`] replaces them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad_len) = error.error_len() else {
                        self.pending = after.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad_len..];
                }
            }
        }
    }

    /// What is left at the end: a replacement character if a character was never finished.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_gives_what_decoding_at_once_gives() {
        let bytes = b"a\xf0\x9f\x8e\x89b\xff\xc3(\xe2\x82";
        for cut in 0..bytes.len() {
            let mut stream = Utf8Stream::default();
            let mut text = stream.push(&bytes[..cut]);
            text += &stream.push(&bytes[cut..]);
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn every_byte_has_its_own_character() {
        let chars = byte_chars();
        assert_eq!(chars[b' ' as usize], 'Ġ');
        assert_eq!(chars[b'\n' as usize], 'Ċ');
        assert_eq!(chars.iter().collect::<std::collections::HashSet<_>>().len(), 256);
    }
}
