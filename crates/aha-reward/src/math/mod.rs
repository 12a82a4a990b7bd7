//! Is an answer the right one? Text first, then lists and relations part by part, numbers exactly.
//!
//! # Map
//! - `lex`: text → tokens; every spelling of a thing becomes one token.
//! - `parse`: tokens → tree; `units`: the words after a number.
//! - `value`: tree → exact value; `approx`: tree → 256 binary places, for what has no exact one.
//! - `equal`: are two trees the same answer?
//!
//! # What counts as equal
//! - The same text but for blanks, LaTeX's spelling and, in words, letter case.
//! - The same exact value: `1/2`, `0.5`, `\frac12`, `50\%`; `\sqrt8`, `2\sqrt2`; `(x+1)^2`, `x^2+2x+1`.
//! - A percentage with and without its sign (`50\%`, `50`): the question may have asked for either.
//! - A number with and without words after it (`5`, `5 apples`); two known units must be the same.
//! - Lists of the same items: in any order if bare or in braces, in order and with the same brackets
//!   as tuples and intervals; a bare list and a tuple, in order.
//! - `x = 5` and `5`.
//! - A decimal of at least six places that is the other answer rounded to these places.
//!
//! A list never equals one of its items. What is no expression is compared as text.

mod approx;
mod equal;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod units;
mod value;

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction, extract_boxed};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

use equal::Comparison;
use lex::Commas;
use parse::{Brackets, Expr, ParseError};
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

/// Compares two bare answers. `rounding_places`: a decimal with at least as many digits after the
/// point may be the other answer rounded; 0 for never.
pub fn compare(gold: &str, pred: &str, rounding_places: u32) -> Outcome {
    let (gold, pred) = (tidy(gold), tidy(pred));
    if pred.is_empty() || gold.is_empty() {
        return Outcome::Different;
    }
    if is_same_text(gold, pred) {
        return Outcome::Equal;
    }
    let gold_tree = match parse::parse(gold, Commas::GroupDigits) {
        Ok(tree) => tree,
        Err(ParseError::TooLarge(what)) => return Outcome::GoldTooLarge(what),
        Err(ParseError::Syntax) => return Outcome::Different,
    };
    let outcome = compare_with(&gold_tree, pred, Commas::GroupDigits, rounding_places);
    let outcome = match outcome {
        // "100,200" may be two numbers if two are wanted.
        Outcome::Different
            if matches!(gold_tree, Expr::List(Brackets::Bare, _)) && pred.contains(',') =>
        {
            compare_with(&gold_tree, pred, Commas::Separate, rounding_places)
        }
        outcome => outcome,
    };
    match outcome {
        Outcome::TooLarge(_) => {
            // Whose fault is it? A gold answer that can't be compared with itself is the data's.
            let mut alone = Comparison { rounding_places, budget: Budget::new() };
            match alone.answers(&gold_tree, &gold_tree) {
                Err(EvalError::TooLarge(what)) => Outcome::GoldTooLarge(what),
                _ => outcome,
            }
        }
        outcome => outcome,
    }
}

fn compare_with(gold: &Expr, pred: &str, commas: Commas, rounding_places: u32) -> Outcome {
    let pred = match parse::parse(pred, commas) {
        Ok(tree) => tree,
        Err(ParseError::TooLarge(what)) => return Outcome::TooLarge(what),
        Err(ParseError::Syntax) => return Outcome::Different,
    };
    let mut comparison = Comparison { rounding_places, budget: Budget::new() };
    match comparison.answers(gold, &pred) {
        Ok(true) => Outcome::Equal,
        Ok(false) | Err(EvalError::Undefined | EvalError::NotANumber) => Outcome::Different,
        Err(EvalError::TooLarge(what)) => Outcome::TooLarge(what),
    }
}

/// The answer without the marks around it: dollars and brackets of a formula, stars of bold text.
fn tidy(text: &str) -> &str {
    const MARKS: &[(&str, &str)] =
        &[("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")];
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
    text
}

fn is_same_text(a: &str, b: &str) -> bool {
    if a.len() > parse::LEN_BYTES_MAX || b.len() > parse::LEN_BYTES_MAX {
        return a.split_whitespace().eq(b.split_whitespace());
    }
    let key = |text: &str| lex::key(&lex::lex(text, Commas::GroupDigits));
    key(a) == key(b)
}

/// The bare answer in a data set's `answer`: what its last box holds, or what follows GSM8K's mark.
pub fn gold_answer(answer: &str) -> &str {
    if let Some(boxed) = extract_boxed(answer) {
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
