//! The terms of a text: its words, numbers and signs, in one form whatever their spelling.
//!
//! A word is a run of letters and digits, or one character of a script without blanks. A sign is any other
//! character but blanks, punctuation of sentences and marks of TeX and Markdown: signs tell `3 - 4` from `3 + 4`.

use std::borrow::Cow;
use std::ops::Range;

use twox_hash::XxHash64;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// XXH64 with seed 0, which is the same in every version and on every machine.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// A number in [0, 1) that is a function of both texts: the upper 53 bits of XXH64 of `id`, with XXH64 of `salt` as
/// its seed, divided by 2^53. The same in every version and on every machine.
///
/// ```
/// let share = aha_data::curation::terms::stable_share("problem-7", "split");
/// assert_eq!(share, aha_data::curation::terms::stable_share("problem-7", "split"));
/// assert!((0.0..1.0).contains(&share));
/// ```
pub fn stable_share(id: &str, salt: &str) -> f64 {
    let hash = XxHash64::oneshot(stable_hash(salt.as_bytes()), id.as_bytes());
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// The text with its letters and their accents composed (Unicode's form C).
pub fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc(text) {
        text.into()
    } else {
        text.nfc().collect::<String>().into()
    }
}

/// The text's terms with one blank between them.
///
/// ```
/// let normalised = aha_data::curation::terms::normalised;
/// assert_eq!(normalised("What's \"3-4\", plus 5.5?"), "whats 3 - 4 plus 5 . 5");
/// ```
pub fn normalised(text: &str) -> String {
    let mut terms = Terms::default();
    terms.read(&composed(text));
    let mut normal = String::with_capacity(terms.normal.len() + terms.len());
    for idx in 0..terms.len() {
        if idx > 0 {
            normal.push(' ');
        }
        normal.push_str(terms.get(idx));
    }
    normal
}

/// The terms of one text after the other; memory is used again.
#[derive(Debug, Default)]
pub struct Terms {
    /// The terms, one behind the other.
    normal: String,
    terms: Vec<Term>,
}

#[derive(Debug)]
struct Term {
    /// Where it ends in `normal`.
    end: usize,
    /// Where it is in the text.
    source: Range<usize>,
    is_word: bool,
}

impl Terms {
    /// Reads a text, which is [`composed`], in place of the one before.
    pub fn read(&mut self, text: &str) {
        self.normal.clear();
        self.terms.clear();
        let mut at = 0;
        for word in aha_reward::text::words(text) {
            // A word is a part of the text.
            let start = word.as_ptr() as usize - text.as_ptr() as usize;
            self.signs(text, at..start);
            self.word(word, start);
            at = start + word.len();
        }
        self.signs(text, at..text.len());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.terms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The term `idx`, normalised.
    pub fn get(&self, idx: usize) -> &str {
        let start = if idx == 0 { 0 } else { self.terms[idx - 1].end };
        &self.normal[start..self.terms[idx].end]
    }

    /// Puts hashes of all terms into `hashes`.
    pub fn hashes(&self, hashes: &mut Vec<u64>) {
        hashes.clear();
        hashes.extend((0..self.len()).map(|idx| stable_hash(self.get(idx).as_bytes())));
    }

    /// Puts hashes of the words alone into `hashes`, and where each is in the text into `sources`.
    pub fn words(&self, hashes: &mut Vec<u64>, sources: &mut Vec<Range<usize>>) {
        hashes.clear();
        sources.clear();
        for (idx, term) in self.terms.iter().enumerate().filter(|(_, term)| term.is_word) {
            hashes.push(stable_hash(self.get(idx).as_bytes()));
            sources.push(term.source.clone());
        }
    }

    /// Adds a word that begins at `start` of the text. An underline joins words, an apostrophe is none of a word's
    /// letters.
    fn word(&mut self, word: &str, start: usize) {
        let mut at = start;
        for part in word.split('_') {
            let from = self.normal.len();
            if part.is_ascii() {
                let kept = part.chars().filter(|c| *c != '\'');
                self.normal.extend(kept.map(|c| c.to_ascii_lowercase()));
            } else {
                let kept = part.chars().filter(|c| !matches!(c, '\'' | '’'));
                self.normal.extend(kept.flat_map(|c| half_width(c).to_lowercase()));
            }
            self.push(from, at..at + part.len(), true);
            at += part.len() + 1;
        }
    }

    /// Adds the signs in a part of the text that has no words.
    fn signs(&mut self, text: &str, gap: Range<usize>) {
        for (offset, found) in text[gap.clone()].char_indices() {
            let at = gap.start + offset;
            let source = at..at + found.len_utf8();
            let sign = half_width(found);
            let before = text[..source.start].chars().next_back();
            let after = text[source.end..].chars().next();
            if is_sign(sign, before, after) {
                let from = self.normal.len();
                self.normal.push(sign);
                self.push(from, source, false);
            }
        }
    }

    fn push(&mut self, from: usize, source: Range<usize>, is_word: bool) {
        if self.normal.len() > from {
            self.terms.push(Term { end: self.normal.len(), source, is_word });
        }
    }
}

/// Letters, digits and signs of East Asian width are those of ASCII, and the minus sign is a hyphen.
fn half_width(c: char) -> char {
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        '\u{3000}' => ' ',
        '\u{2212}' => '-',
        c => c,
    }
}

/// Whether a character that is no word's says something: not so blanks, the punctuation of sentences, and the marks of
/// TeX and Markdown.
fn is_sign(c: char, before: Option<char>, after: Option<char>) -> bool {
    let both = |is: fn(char) -> bool| before.is_some_and(is) && after.is_some_and(is);
    match c {
        c if c.is_whitespace() || c.is_control() => false,
        '.' => both(char::is_numeric),
        '-' => !both(char::is_alphabetic),
        '*' => before != Some('*') && after != Some('*'),
        ',' | ';' | ':' | '!' | '?' | '¿' | '¡' | '"' | '\'' | '`' | '´' | '_' => false,
        '#' | '$' | '@' | '\\' | '{' | '}' | '«' | '»' | '·' | '\u{ad}' | '\u{feff}' => false,
        // Marks of no width, dashes and quotes, bullets and dots.
        '\u{200b}'..='\u{2027}' | '\u{202a}'..='\u{202f}' | '\u{2060}'..='\u{2064}' => false,
        // East Asian stops, commas and brackets.
        '\u{3001}'..='\u{3011}' | '\u{30fb}' | '\u{ff61}'..='\u{ff65}' => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stored split never changes. Method: values of XXH64's reference, and shares computed from its
    /// specification in another language.
    #[test]
    fn hashes_are_those_of_the_specification() {
        assert_eq!(stable_hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(stable_hash(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(stable_hash(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(stable_hash("答案".as_bytes()), 0x74bb_856a_c296_143a);
        let long = "a".repeat(100);
        let shares = [
            ("", "", 0.6341680838083542),
            ("problem-7", "split", 0.40216111960446554),
            ("1", "split", 0.5836519667440331),
            ("1", "mixture", 0.48641546553357295),
            (&*long, "split", 0.45288016088386285),
            ("答案", "split", 0.2106094416277019),
        ];
        for (id, salt, share) in shares {
            assert_eq!(stable_share(id, salt), share, "{id} {salt}");
        }
    }

    #[test]
    fn terms_are_words_numbers_and_signs() {
        let cases = [
            ("", ""),
            (" \n\t", ""),
            ("?!…", ""),
            ("The ANSWER is: 42.", "the answer is 42"),
            ("don't — “don’t”", "dont dont"),
            ("a well-known x - y, 3-4", "a well known x - y 3 - 4"),
            ("3.5 or 3, 5", "3 . 5 or 3 5"),
            ("2*(3+4) = 14", "2 * ( 3 + 4 ) = 14"),
            ("**bold** and `code_of`", "bold and code of"),
            (r"$\frac{1}{2}$ of $x_1^{2}$", "frac 1 2 of x 1 ^ 2"),
            ("１２＋３　ＡＢ", "12 + 3 ab"),
            ("答案是五。", "答 案 是 五"),
            ("cafe\u{301} CAFÉ", "café café"),
            ("5 − 3", "5 - 3"),
            ("10² is not 102", "10² is not 102"),
            ("🙂", "🙂"),
        ];
        for (text, expected) in cases {
            assert_eq!(normalised(text), expected, "{text}");
        }
    }

    #[test]
    fn words_know_where_they_are() {
        let text = composed("So: it's 3-4 well-known x_1!").into_owned();
        let (mut terms, mut hashes, mut sources) = (Terms::default(), Vec::new(), Vec::new());
        terms.read(&text);
        terms.words(&mut hashes, &mut sources);
        let found: Vec<&str> = sources.into_iter().map(|source| &text[source]).collect();
        assert_eq!(found, ["So", "it's", "3", "4", "well", "known", "x", "1"]);
        assert_eq!(hashes.len(), found.len());
    }
}
