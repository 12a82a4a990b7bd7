//! Is an answer the right one? Text first, then lists and relations part by part, numbers exactly.
//!
//! # Map
//! - `lex`: text → tokens; every spelling of a thing becomes one token. `units`: the words after a number.
//! - `parse`: tokens → tree (`expr`).
//! - `value`: tree → exact value. `approx`: tree → complex number of some ninety digits, at given places, with
//!   the functions of `fixed`.
//! - `sets`: intervals, unions and conditions → sorted pieces of the real line. `choice`: `(B) 12` is `B`.
//! - `equal`: are two trees the same answer?
//!
//! # What counts as equal
//! - The same text but for blanks, LaTeX's spelling and, in words, letter case.
//! - The same exact value: `1/2`, `0.5`, `\frac12`, `50\%`; `\sqrt8`, `2\sqrt2`; `(x+1)^2`, `x^2+2x+1`.
//! - What is no quotient of sums of powers and roots, `\sin 30^\circ` and `\frac12` or `\sin 2x` and
//!   `2\sin x\cos x`: the same to fifty digits, with letters at ten places, real ones unless `i` occurs; the places
//!   follow from the two texts. Letters stand for real numbers for which both sides have a value.
//! - A percentage with and without its sign (`50\%`, `50`): the question may have asked for either.
//! - A number with and without words after it (`5`, `5 apples`); two known units must be the same.
//! - Lists of the same items: in any order if bare or in braces, in order and with the same brackets
//!   as tuples and intervals; a bare list and a tuple, in order.
//! - The same set of real numbers: `(0,2) ∪ [1,3]` and `(0,3]`, `{x | x > 3}` and `(3, ∞)`. A bare condition is
//!   the set of its solutions where the gold answer is the condition, not the other way round.
//! - `x = 5` and `5`; `y = 2x + 3` and `2x + 3`; an equation or inequality and a multiple of it, unless one of
//!   them is solved: `2x = 10` doesn't answer `x = 5`.
//! - A decimal of at least six places that is the other answer rounded to these places, or to a double.
//!
//! A list never equals one of its items. What is no expression is compared as text.
//!
//! # Where this differs from Math-Verify
//! The semantics are those of Hugging Face's Math-Verify with its defaults, but for these, all on purpose:
//! - Rounding: `0.3333334` is not `1/3` (there: both are rounded to six places).
//! - `1\%` is not `1`; `12.5\%` is `12.5` (there: only whole numbers have both readings, 1 among them).
//! - Units: `5 cm` is not `5 m`, `4210_5` is not `4210_7` (there: units and bases are dropped).
//! - `2x = 5` doesn't answer `5`, `5, 5` is not `5`, and `{1, 2}` is neither `(1, 2)` nor an interval.
//! - `\sin 30^\circ` is `\frac12`, `2\ln x` is `\ln x^2`, `\sqrt{xy}` is `\sqrt x\sqrt y` (there: not), and
//!   a gold answer "x < 1 or x > 3" is the union of its intervals.
//! - Every verdict is bounded by counts, not by a clock; see `parse` and `value` for the limits.

mod approx;
#[cfg(test)]
mod cases;
mod choice;
mod equal;
mod expr;
mod fixed;
mod lex;
mod parse;
mod sets;
#[cfg(test)]
mod tests;
mod units;
mod value;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction, gold_boxes};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

use equal::Comparison;
use expr::{Brackets, Expr};
use lex::Commas;
use parse::ParseError;
pub(crate) use units::CHANGES;
use value::{Budget, EvalError};

/// Digits after the point from which a decimal may be a rounded number, unless set otherwise.
pub const ROUNDING_PLACES: u32 = 6;

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The same answer.
    Equal,
    /// Another answer.
    Different,
    /// The prediction, or both together, exceed a limit, which the text names.
    TooLarge(&'static str),
    /// The gold answer alone exceeds a limit, which the text names.
    GoldTooLarge(&'static str),
}

/// Whether a word after a number makes it another one, as in "5 million" or "5 hundredths".
pub(crate) fn changes(word: &str) -> bool {
    matches!(units::meaning(word), units::Meaning::Scale(_) | units::Meaning::Changes)
}

/// Whether `pred` is the answer `gold`, both bare answers such as `\frac{1}{2}` or `x = 5`.
///
/// ```
/// use aha_reward::math_equal;
/// assert!(math_equal(r"\frac{1}{2}", "0.5"));
/// assert!(!math_equal("5", "5 or 6"));
/// ```
pub fn math_equal(gold: &str, pred: &str) -> bool {
    compare(gold, pred, ROUNDING_PLACES) == Outcome::Equal
}

/// Whether a text is a date in figures, such as 2020-12-25, and no difference of numbers.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').map(str::trim).collect();
    let is_number = |text: &str, lens: &[usize]| {
        lens.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    match parts[..] {
        [a, b, c] => {
            is_number(b, &[1, 2])
                && (is_number(a, &[4]) && is_number(c, &[1, 2])
                    || is_number(a, &[1, 2]) && is_number(c, &[4]))
        }
        _ => false,
    }
}

/// Compares two bare answers. `rounding_places`: a decimal with at least as many digits after the
/// point may be the other answer rounded; 0 for never.
pub fn compare(gold: &str, pred: &str, rounding_places: u32) -> Outcome {
    let (gold, pred) = (halfwidth(gold), halfwidth(pred));
    let (gold, pred) = (tidy(&gold), tidy(&pred));
    if pred.is_empty() || gold.is_empty() {
        return Outcome::Different;
    }
    if is_same_text(gold, pred) || choice::is_same(gold, pred) {
        return Outcome::Equal;
    }
    // Where expressions are compared by values: no two pairs at the same places, and a pair at the
    // same ones in either order.
    let seed = hash(gold) ^ hash(pred);
    let compare_with = |gold: &Expr, pred, commas| {
        compare_with(
            gold,
            pred,
            commas,
            Comparison { rounding_places, seed, budget: Budget::new() },
        )
    };
    if is_date(gold) || is_date(pred) {
        return Outcome::Different;
    }
    let gold_tree = match parse::parse(gold, Commas::GroupDigits) {
        Ok(tree) => tree,
        Err(ParseError::TooLarge(what)) => return Outcome::GoldTooLarge(what),
        Err(ParseError::Syntax) => return Outcome::Different,
    };
    let outcome = compare_with(&gold_tree, pred, Commas::GroupDigits);
    let outcome = match outcome {
        // "100,200" may be two numbers if two are wanted.
        Outcome::Different
            if matches!(gold_tree, Expr::List(Brackets::Bare, _)) && pred.contains(',') =>
        {
            compare_with(&gold_tree, pred, Commas::Separate)
        }
        outcome => outcome,
    };
    match outcome {
        Outcome::TooLarge(_) => {
            // Whose fault is it? A gold answer that can't be compared with itself is the data's.
            let mut alone = Comparison { rounding_places, seed, budget: Budget::new() };
            match alone.answers(&gold_tree, &gold_tree) {
                Err(EvalError::TooLarge(what)) => Outcome::GoldTooLarge(what),
                _ => outcome,
            }
        }
        outcome => outcome,
    }
}

fn compare_with(gold: &Expr, pred: &str, commas: Commas, mut comparison: Comparison) -> Outcome {
    let pred = match parse::parse(pred, commas) {
        Ok(tree) => tree,
        Err(ParseError::TooLarge(what)) => return Outcome::TooLarge(what),
        Err(ParseError::Syntax) => return Outcome::Different,
    };
    match comparison.answers(gold, &pred) {
        Ok(true) => Outcome::Equal,
        Ok(false) | Err(EvalError::Undefined | EvalError::NotANumber) => Outcome::Different,
        Err(EvalError::TooLarge(what)) => Outcome::TooLarge(what),
    }
}

/// The answer without the marks around it: dollars and brackets of a formula, stars of bold text.
fn tidy(text: &str) -> &str {
    const MARKS: &[(&str, &str)] = &[
        ("$$", "$$"),
        ("$", "$"),
        ("\\$", "\\$"),
        ("\\(", "\\)"),
        ("\\[", "\\]"),
        ("**", "**"),
        ("\\begin{align*}", "\\end{align*}"),
        ("\\begin{equation*}", "\\end{equation*}"),
    ];
    let mut text = text.trim();
    for (open, close) in MARKS {
        let inner = text.strip_prefix(open).and_then(|t| {
            t.strip_suffix(close)
                .or_else(|| t.strip_suffix('.').and_then(|t| t.strip_suffix(close)))
        });
        if let Some(inner) = inner
            && !inner.contains(open)
        {
            text = inner.trim();
        }
    }
    text.strip_prefix('=').map_or(text, str::trim_start)
}

/// The text with full-width letters, digits and marks in their usual width.
fn halfwidth(text: &str) -> Cow<'_, str> {
    let is_wide = |c: char| ('！'..='～').contains(&c);
    if !text.contains(is_wide) {
        return Cow::Borrowed(text);
    }
    let narrow = |c: char| match u32::from(c).checked_sub(0xfee0).and_then(char::from_u32) {
        Some(narrow) if is_wide(c) => narrow,
        _ => c,
    };
    Cow::Owned(text.chars().map(narrow).collect())
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn is_same_text(a: &str, b: &str) -> bool {
    if a.len() > parse::LEN_BYTES_MAX || b.len() > parse::LEN_BYTES_MAX {
        return a.split_whitespace().eq(b.split_whitespace());
    }
    let key = |text: &str| lex::key(&lex::lex(text, Commas::GroupDigits));
    key(a) == key(b)
}

/// The bare answer in a data set's `answer`: what its last box, or the list of boxes at its end, holds, or
/// what follows GSM8K's mark.
pub fn gold_answer(answer: &str) -> &str {
    if let Some(boxed) = gold_boxes(answer) {
        return boxed.trim();
    }
    match answer.rfind("####") {
        Some(at) => answer[at + 4..].trim(),
        None => answer.trim(),
    }
}

/// 1 if the completion's final answer is the sample's as numbers, expressions or lists go; else 0.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the answer is.
    #[serde(flatten)]
    pub answer: extract::Settings,
    /// A decimal with at least as many digits after the point, 0 to 64, may be the answer rounded; 0 for
    /// never. Default 6, as Math-Verify rounds.
    pub rounding_places: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { answer: extract::Settings::default(), rounding_places: ROUNDING_PLACES }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let rounding_places = self.rounding_places;
        let too_many = (rounding_places > 64)
            .then(|| Problem::new("rounding_places", "at most 64", rounding_places.to_string()));
        match (self.answer.resolve(), too_many) {
            (Ok(extraction), None) => Ok(Box::new(Math { extraction, rounding_places })),
            (answer, too_many) => {
                Err(answer.err().unwrap_or_default().into_iter().chain(too_many).collect())
            }
        }
    }

    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        Some(&mut self.answer)
    }
}

/// See [`Settings`].
pub struct Math {
    /// Where the final answer is.
    pub extraction: Extraction,
    /// See [`compare`].
    pub rounding_places: u32,
}

impl Verifier for Math {
    fn kind(&self) -> Kind {
        Kind::Math
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let Some(gold) = sample.answer.map(gold_answer).filter(|gold| !gold.is_empty()) else {
            return Verdict::unscored("the sample has no answer");
        };
        let pred = match self.extraction.find(sample.completion) {
            Ok(pred) => pred,
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        match compare(gold, pred, self.rounding_places) {
            Outcome::Equal => Verdict::scored(1.0, "equal"),
            Outcome::Different => {
                Verdict::scored(0.0, format!("{} is not {}", excerpt(pred), excerpt(gold)))
            }
            Outcome::TooLarge(what) => Verdict::scored(0.0, format!("too large: {what}")),
            Outcome::GoldTooLarge(what) => {
                Verdict::unscored(format!("the sample's answer is too large: {what}"))
            }
        }
    }
}
