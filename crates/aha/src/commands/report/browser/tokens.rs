//! Token ids as text. A token need not be whole characters: tokens that share one are one piece.

use std::collections::HashMap;

use aha_model::Tokenizer;
use aha_model::tokenizer::Utf8Stream;
use serde::Serialize;

use crate::text;

/// Of a completion that is cut, this share of what is shown is its beginning, in percent; the rest is its end.
const HEAD_PERCENT: usize = 75;
/// Bytes of a token, about: for completions that are shown without tokens.
const TOKEN_BYTES: usize = 4;

/// A piece of a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, made harmless.
    pub text: String,
    /// Tokens that it is made of; 0 for a special token, which is no part of the completion's text.
    pub tokens_count: u32,
    /// Their log-probs, added.
    pub logprob: f64,
}

/// The completion in pieces; none where they don't say what the completion does, because the ids are those of
/// another tokenizer.
pub fn spell(
    tokenizer: &Tokenizer,
    ids: &[u32],
    logprobs: &[f64],
    completion: &str,
) -> Option<Vec<Piece>> {
    let mut speller = Speller::default();
    for (&id, &logprob) in ids.iter().zip(logprobs) {
        speller.add(tokenizer.token_bytes(id), tokenizer.is_special(id), id, logprob);
    }
    speller.end_piece(None);
    speller.whole.contains(completion.trim()).then_some(speller.pieces)
}

/// Pieces in the making.
#[derive(Default)]
struct Speller {
    pieces: Vec<Piece>,
    /// The text of the pieces so far, special tokens left out.
    whole: String,
    stream: Utf8Stream,
    /// Tokens of the piece that is open, and their log-probs, added.
    open: (u32, f64),
}

impl Speller {
    fn add(&mut self, bytes: &[u8], is_special: bool, id: u32, logprob: f64) {
        if is_special || bytes.is_empty() {
            self.end_piece(None);
            let text = match bytes {
                [] => format!("[{id}]"),
                bytes => text::one_line(&String::from_utf8_lossy(bytes)),
            };
            self.pieces.push(Piece { text, tokens_count: 0, logprob });
            return;
        }
        self.open = (self.open.0 + 1, self.open.1 + logprob);
        let text = self.stream.push(bytes);
        if !text.is_empty() {
            self.end_piece(Some(text));
        }
    }

    /// Ends the open piece with this text; without one, with what is left of a character.
    fn end_piece(&mut self, text: Option<String>) {
        let (tokens_count, logprob) = std::mem::take(&mut self.open);
        if tokens_count == 0 {
            return;
        }
        let text = text.unwrap_or_else(|| self.stream.finish());
        self.whole.push_str(&text);
        self.pieces.push(Piece { text: text::lines(&text), tokens_count, logprob });
    }
}

/// Every different piece of the page once: its text, and how many tokens it is (see [`Piece`]).
#[derive(Debug, Default, Serialize)]
pub struct Pieces {
    texts: Vec<String>,
    counts: Vec<u32>,
    #[serde(skip)]
    known: HashMap<(String, u32), usize>,
}

impl Pieces {
    fn idx_of(&mut self, piece: &Piece) -> usize {
        let key = (piece.text.clone(), piece.tokens_count);
        let next = self.texts.len();
        let idx = *self.known.entry(key).or_insert(next);
        if idx == next {
            self.texts.push(piece.text.clone());
            self.counts.push(piece.tokens_count);
        }
        idx
    }
}

/// What a completion says, as the page has it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Tokens {
    /// By token.
    Spelled {
        /// Pieces by their index in [`Pieces`].
        t: Vec<usize>,
        /// The log-prob of each in hundredths of a nat; none where it isn't finite.
        p: Vec<Option<i32>>,
        /// After how many of them some are left out, and how many.
        #[serde(skip_serializing_if = "Option::is_none")]
        gap: Option<[usize; 2]>,
    },
    /// Its text, where its tokens aren't known; what is left out is a `…`.
    Plain {
        /// The text, made harmless.
        text: String,
    },
}

impl Tokens {
    /// Of pieces: at most `max` of them.
    pub fn of(mut spelled: Vec<Piece>, max: usize, pieces: &mut Pieces) -> Tokens {
        let head = max * HEAD_PERCENT / 100;
        let gap = spelled.len().checked_sub(max).filter(|left_out| *left_out > 0);
        if let Some(left_out) = gap {
            spelled.drain(head..head + left_out);
        }
        let centinats = |piece: &Piece| {
            piece.logprob.is_finite().then(|| (piece.logprob * 100.0).round() as i32)
        };
        Tokens::Spelled {
            t: spelled.iter().map(|piece| pieces.idx_of(piece)).collect(),
            p: spelled.iter().map(centinats).collect(),
            gap: gap.map(|left_out| [head, left_out]),
        }
    }

    /// Of a text without tokens: of about as many.
    pub fn plain(completion: &str, max: usize) -> Tokens {
        let max_bytes = max * TOKEN_BYTES;
        if completion.len() <= max_bytes {
            return Tokens::Plain { text: text::lines(completion) };
        }
        let head_bytes = max_bytes * HEAD_PERCENT / 100;
        let head = &completion[..completion.floor_char_boundary(head_bytes)];
        let tail_start = completion.len() - (max_bytes - head_bytes);
        let tail = &completion[completion.ceil_char_boundary(tail_start)..];
        Tokens::Plain { text: format!("{} … {}", text::lines(head), text::lines(tail)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(tokens: &[(&[u8], bool)]) -> (Vec<(String, u32, f64)>, String) {
        let mut speller = Speller::default();
        for (idx, (bytes, is_special)) in tokens.iter().enumerate() {
            speller.add(bytes, *is_special, 7 + idx as u32, -1.0);
        }
        speller.end_piece(None);
        let pieces = speller.pieces.into_iter();
        let pieces = pieces.map(|piece| (piece.text, piece.tokens_count, piece.logprob));
        (pieces.collect(), speller.whole)
    }

    fn piece(text: &str, tokens_count: u32, logprob: f64) -> (String, u32, f64) {
        (text.to_owned(), tokens_count, logprob)
    }

    #[test]
    fn tokens_that_share_a_character_are_one_piece() {
        let (pieces, whole) =
            spelled(&[(b"caf\xc3", false), (b"\xa9", false), (b"\xf0\x9f", false), (b"!", false)]);
        let expected = [
            piece("caf", 1, -1.0),
            // The rest of the first token, and the second.
            piece("é", 1, -1.0),
            piece("\u{fffd}!", 2, -2.0),
        ];
        assert_eq!((&pieces[..], whole.as_str()), (&expected[..], "café\u{fffd}!"));
    }

    #[test]
    fn a_special_token_is_shown_and_is_no_text() {
        let (pieces, whole) =
            spelled(&[(b"\xe2\x82", false), (b"<|end|>", true), (b"", false), (b"x", false)]);
        let expected = [
            piece("\u{fffd}", 1, -1.0),
            piece("<|end|>", 0, -1.0),
            piece("[9]", 0, -1.0),
            piece("x", 1, -1.0),
        ];
        assert_eq!((&pieces[..], whole.as_str()), (&expected[..], "\u{fffd}x"));
    }

    #[test]
    fn what_could_change_the_page_is_spelled_out() {
        let (pieces, _) = spelled(&[("\u{202e}\u{1b}[2J\n".as_bytes(), false)]);
        assert_eq!(pieces[0].0, "\\u{202e}\\u{1b}[2J\n");
    }

    #[test]
    fn the_middle_of_a_long_completion_is_left_out() {
        let mut pieces = Pieces::default();
        let of = |text: &str, logprob| Piece { text: text.to_owned(), tokens_count: 1, logprob };
        let long: Vec<Piece> = (0..10).map(|i| of(&i.to_string(), -0.25)).collect();
        let expected =
            Tokens::Spelled { t: vec![0, 1, 2, 3], p: vec![Some(-25); 4], gap: Some([3, 6]) };
        assert_eq!(Tokens::of(long, 4, &mut pieces), expected);
        assert_eq!(pieces.texts, ["0", "1", "2", "9"]);
        let again = vec![of("9", f64::NEG_INFINITY)];
        let expected = Tokens::Spelled { t: vec![3], p: vec![None], gap: None };
        assert_eq!(Tokens::of(again, 4, &mut pieces), expected);
        let text = Tokens::Plain { text: "aaaaaa … bb".to_owned() };
        assert_eq!(Tokens::plain("aaaaaaaaabbbb", 2), text);
        assert_eq!(Tokens::plain("aé\u{7}", 2), Tokens::Plain { text: "aé\\u{7}".to_owned() });
    }
}
