//! Checks of a `tokenizer.json` that `tokenizers` doesn't make, before and after it reads it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::byte_chars;
use crate::config::VOCAB_SIZE_MAX;
use crate::error::{Error, Result};

/// Deepest nesting that is believed; a real file has about six levels.
const DEPTH_MAX: usize = 16;

/// Refuses what would make `tokenizers` panic, allocate without measure, or draw at random.
pub(super) fn tokenizer_json(json: &Value) -> Result<()> {
    if depth(json) > DEPTH_MAX {
        return Err(Error::input(format!("nested deeper than {DEPTH_MAX} levels")));
    }
    check_charsmaps(&json["normalizer"])?;
    let model = &json["model"];
    if !model["dropout"].is_null() && model["dropout"] != 0.0 {
        return Err(Error::input(
            "`model.dropout` is set: the same text would have many encodings",
        ));
    }
    if let Some(added) = json["added_tokens"].as_array() {
        if added.len() > VOCAB_SIZE_MAX {
            return Err(Error::input("`added_tokens` has too many entries"));
        }
        for id in added.iter().map(|token| &token["id"]) {
            check_id("added_tokens", id)?;
        }
    }
    if let Some(vocab) = model["vocab"].as_object() {
        let mut seen = HashSet::new();
        for (token, id) in vocab {
            let id = check_id(token, id)?;
            if !seen.insert(id) {
                return Err(Error::input(format!("id {id} stands for two tokens")));
            }
        }
        if let Some(merges) = model["merges"].as_array() {
            let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
            merges.iter().try_for_each(|merge| check_merge(vocab, merge, prefix))?;
        }
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(list) => list.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        _ => return 0,
    };
    deepest.unwrap_or(0) + 1
}

/// SentencePiece's normalizer begins with the length of its trie, which `tokenizers` allocates
/// (twice) before it looks whether that much is there.
fn check_charsmaps(normalizer: &Value) -> Result<()> {
    match normalizer {
        Value::Array(list) => list.iter().try_for_each(check_charsmaps),
        Value::Object(map) => {
            let text = map.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default();
            let len_bytes = text.len() as u64 / 4 * 3;
            if let Some(trie_bytes) = first_u32(text).filter(|bytes| u64::from(*bytes) > len_bytes)
            {
                return Err(Error::input(format!(
                    "`precompiled_charsmap` promises {trie_bytes} bytes: expected at most \
                     {len_bytes}"
                )));
            }
            map.values().try_for_each(check_charsmaps)
        }
        _ => Ok(()),
    }
}

/// The first four bytes of a text in base64 as a little-endian number; none if it has not so many.
fn first_u32(base64: &str) -> Option<u32> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0u64;
    for c in base64.as_bytes().get(..6)? {
        bits = bits << 6 | DIGITS.iter().position(|digit| digit == c)? as u64;
    }
    // 36 bits are four bytes and four bits over.
    Some(((bits >> 4) as u32).swap_bytes())
}

fn check_id(token: &str, id: &Value) -> Result<u64> {
    id.as_u64().filter(|id| *id < VOCAB_SIZE_MAX as u64).ok_or_else(|| {
        Error::input(format!("token {token:?} has the id {id}: expected below {VOCAB_SIZE_MAX}"))
    })
}

fn check_merge(vocab: &Map<String, Value>, merge: &Value, prefix: &str) -> Result<()> {
    let pair = match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => match &pair[..] {
            [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
            _ => None,
        },
        _ => None,
    };
    let Some((left, right)) = pair else {
        return Err(Error::input(format!("merge {merge} is not a pair of tokens")));
    };
    let joined = right.get(prefix.len()..).map(|rest| format!("{left}{rest}"));
    let is_known = |token: &str| vocab.contains_key(token);
    if is_known(left) && is_known(right) && joined.is_some_and(|joined| is_known(&joined)) {
        return Ok(());
    }
    Err(Error::input(format!("merge {left:?} {right:?} uses or makes a token without an id")))
}

/// `tokenizers` numbers added tokens itself; a file whose numbers have gaps would silently get
/// other ids than its model was trained with.
pub(super) fn added_token_ids(json: &Value, inner: &tokenizers::Tokenizer) -> Result<()> {
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let found = inner.token_to_id(content).map(u64::from);
        if !content.is_empty() && found != Some(id) {
            return Err(Error::input(format!(
                "added token {content:?} has the id {id}, which leaves a gap in the vocabulary"
            ))
            .hint("number the added tokens without gaps, after the vocabulary"));
        }
    }
    Ok(())
}

/// Whether a byte-level vocabulary has bytes without a token and no token for the unknown: then
/// `tokenizers` would drop them without a word.
pub(super) fn lacks_bytes(json: &Value, inner: &tokenizers::Tokenizer) -> bool {
    json["decoder"]["type"] == "ByteLevel"
        && json["model"]["unk_token"].is_null()
        && byte_chars().iter().any(|c| inner.token_to_id(&c.to_string()).is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_charsmap_longer_than_its_text_is_refused() {
        assert_eq!(first_u32("AQIDBAU="), Some(u32::from_le_bytes([1, 2, 3, 4])));
        assert_eq!(first_u32("AQID"), None);
        let map = |text: &str| json!({"normalizers": [{"precompiled_charsmap": text}]});
        let error = check_charsmaps(&map("/////w==")).unwrap_err().to_string();
        assert!(error.contains("promises 4294967295 bytes"), "{error}");
        // A trie of one unit.
        assert!(check_charsmaps(&map("BAAAAAAAAAA=")).is_ok());
    }
}
