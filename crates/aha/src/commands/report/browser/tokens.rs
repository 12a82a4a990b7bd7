//! Token ids as text. A token need not be whole characters: tokens that share one are one piece.

use std::collections::HashMap;
use std::ops::Range;

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
    /// Whether it is a special token, which is no part of the completion's text.
    pub is_special: bool,
    /// The tokens that it is made of.
    pub tokens: Range<usize>,
}

/// What is known of each token of a completion.
#[derive(Debug, Default)]
pub struct Measures {
    /// Log-probs.
    pub logprobs: Vec<f64>,
    /// Advantages, where tokens have their own.
    pub advantages: Option<Vec<f64>>,
    /// What the critic expected, where there is one.
    pub values: Option<Vec<f64>>,
    /// Whether it was put there and not drawn; empty where none was.
    pub forced: Vec<bool>,
}

/// The completion in pieces; none where they don't say what the completion does, because the ids are those of
/// another tokenizer.
pub fn spell(tokenizer: &Tokenizer, ids: &[u32], completion: &str) -> Option<Vec<Piece>> {
    let mut speller = Speller::default();
    for &id in ids {
        speller.add(tokenizer.token_bytes(id), tokenizer.is_special(id), id);
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
    /// Tokens so far.
    count: usize,
    /// Tokens of the piece that is open.
    open: usize,
}

impl Speller {
    fn add(&mut self, bytes: &[u8], is_special: bool, id: u32) {
        if is_special || bytes.is_empty() {
            self.end_piece(None);
            let text = match bytes {
                [] => format!("[{id}]"),
                bytes => text::one_line(&String::from_utf8_lossy(bytes)),
            };
            self.count += 1;
            let tokens = self.count - 1..self.count;
            self.pieces.push(Piece { text, is_special: true, tokens });
            return;
        }
        self.count += 1;
        self.open += 1;
        let text = self.stream.push(bytes);
        if !text.is_empty() {
            self.end_piece(Some(text));
        }
    }

    /// Ends the open piece with this text; without one, with what is left of a character.
    fn end_piece(&mut self, text: Option<String>) {
        let tokens = self.count - std::mem::take(&mut self.open)..self.count;
        if tokens.is_empty() {
            return;
        }
        let text = text.unwrap_or_else(|| self.stream.finish());
        self.whole.push_str(&text);
        self.pieces.push(Piece { text: text::lines(&text), is_special: false, tokens });
    }
}

/// Every different piece of the page once: its text, and how many tokens it is, 0 for a special token.
#[derive(Debug, Default, Serialize)]
pub struct Pieces {
    texts: Vec<String>,
    counts: Vec<u32>,
    #[serde(skip)]
    known: HashMap<(String, u32), usize>,
}

impl Pieces {
    fn idx_of(&mut self, piece: &Piece) -> usize {
        let count = if piece.is_special { 0 } else { piece.tokens.len() as u32 };
        let next = self.texts.len();
        let idx = *self.known.entry((piece.text.clone(), count)).or_insert(next);
        if idx == next {
            self.texts.push(piece.text.clone());
            self.counts.push(count);
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
        /// The log-prob of each in hundredths of a nat, of several tokens the sum; none where it isn't finite.
        p: Vec<Option<i32>>,
        /// The advantage of each in hundredths, of several tokens the mean, where tokens have their own.
        #[serde(skip_serializing_if = "Option::is_none")]
        a: Option<Vec<Option<i32>>>,
        /// What the critic expected before each, likewise.
        #[serde(skip_serializing_if = "Option::is_none")]
        v: Option<Vec<Option<i32>>>,
        /// Those that were put there and not drawn, by their place among the pieces that are shown.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        forced: Vec<usize>,
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
    pub fn of(
        mut spelled: Vec<Piece>,
        measures: &Measures,
        max: usize,
        pieces: &mut Pieces,
    ) -> Tokens {
        let head = max * HEAD_PERCENT / 100;
        let gap = spelled.len().checked_sub(max).filter(|left_out| *left_out > 0);
        if let Some(left_out) = gap {
            spelled.drain(head..head + left_out);
        }
        let sum = |of: &[f64], piece: &Piece| {
            of.get(piece.tokens.clone()).map_or(f64::NAN, |some| some.iter().sum::<f64>())
        };
        let mean = |of: &Vec<f64>| {
            let mean = |piece: &Piece| hundredths(sum(of, piece) / piece.tokens.len() as f64);
            spelled.iter().map(mean).collect()
        };
        let is_forced = |piece: &Piece| {
            let mask = measures.forced.get(piece.tokens.clone());
            mask.is_some_and(|mask| mask.contains(&true))
        };
        let places = spelled.iter().enumerate().filter(|(_, piece)| is_forced(piece));
        Tokens::Spelled {
            t: spelled.iter().map(|piece| pieces.idx_of(piece)).collect(),
            p: spelled.iter().map(|piece| hundredths(sum(&measures.logprobs, piece))).collect(),
            a: measures.advantages.as_ref().map(mean),
            v: measures.values.as_ref().map(mean),
            forced: places.map(|(place, _)| place).collect(),
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

fn hundredths(value: f64) -> Option<i32> {
    value.is_finite().then(|| (value * 100.0).round() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(tokens: &[(&[u8], bool)]) -> (Vec<Piece>, String) {
        let mut speller = Speller::default();
        for (idx, (bytes, is_special)) in tokens.iter().enumerate() {
            speller.add(bytes, *is_special, 7 + idx as u32);
        }
        speller.end_piece(None);
        (speller.pieces, speller.whole)
    }

    fn piece(text: &str, is_special: bool, tokens: Range<usize>) -> Piece {
        Piece { text: text.to_owned(), is_special, tokens }
    }

    #[test]
    fn tokens_that_share_a_character_are_one_piece() {
        let (pieces, whole) =
            spelled(&[(b"caf\xc3", false), (b"\xa9", false), (b"\xf0\x9f", false), (b"!", false)]);
        let expected = [
            piece("caf", false, 0..1),
            // The rest of the first token, and the second.
            piece("é", false, 1..2),
            piece("\u{fffd}!", false, 2..4),
        ];
        assert_eq!((&pieces[..], whole.as_str()), (&expected[..], "café\u{fffd}!"));
    }

    #[test]
    fn a_special_token_is_shown_and_is_no_text() {
        let (pieces, whole) =
            spelled(&[(b"\xe2\x82", false), (b"<|end|>", true), (b"", false), (b"x", false)]);
        let expected = [
            piece("\u{fffd}", false, 0..1),
            piece("<|end|>", true, 1..2),
            piece("[9]", true, 2..3),
            piece("x", false, 3..4),
        ];
        assert_eq!((&pieces[..], whole.as_str()), (&expected[..], "\u{fffd}x"));
    }

    #[test]
    fn what_could_change_the_page_is_spelled_out() {
        let (pieces, _) = spelled(&[("\u{202e}\u{1b}[2J\n".as_bytes(), false)]);
        assert_eq!(pieces[0].text, "\\u{202e}\\u{1b}[2J\n");
    }

    #[test]
    fn a_piece_of_several_tokens_has_their_sum_or_their_mean() {
        let mut pieces = Pieces::default();
        let spelled = vec![piece("é", false, 0..2), piece("x", false, 2..3)];
        let measures = Measures {
            logprobs: vec![-0.5, -0.25, f64::NEG_INFINITY],
            advantages: None,
            values: Some(vec![1.0, 2.0]),
            forced: Vec::new(),
        };
        let expected = Tokens::Spelled {
            t: vec![0, 1],
            p: vec![Some(-75), None],
            a: None,
            // A list that is too short says nothing of the rest.
            v: Some(vec![Some(150), None]),
            forced: Vec::new(),
            gap: None,
        };
        assert_eq!(Tokens::of(spelled, &measures, 9, &mut pieces), expected);
        assert_eq!(pieces.counts, [2, 1]);
    }

    #[test]
    fn the_middle_of_a_long_completion_is_left_out() {
        let mut pieces = Pieces::default();
        let long: Vec<Piece> = (0..10).map(|i| piece(&i.to_string(), false, i..i + 1)).collect();
        let measures = Measures {
            logprobs: vec![-0.25; 10],
            advantages: Some((0..10).map(f64::from).collect()),
            values: None,
            forced: (0..10).map(|i| i == 1 || i == 5 || i == 9).collect(),
        };
        let expected = Tokens::Spelled {
            t: vec![0, 1, 2, 3],
            p: vec![Some(-25); 4],
            a: Some(vec![Some(0), Some(100), Some(200), Some(900)]),
            v: None,
            forced: vec![1, 3],
            gap: Some([3, 6]),
        };
        assert_eq!(Tokens::of(long, &measures, 4, &mut pieces), expected);
        assert_eq!(pieces.texts, ["0", "1", "2", "9"]);
        let text = Tokens::Plain { text: "aaaaaa … bb".to_owned() };
        assert_eq!(Tokens::plain("aaaaaaaaabbbb", 2), text);
        assert_eq!(Tokens::plain("aé\u{7}", 2), Tokens::Plain { text: "aé\\u{7}".to_owned() });
    }
}
