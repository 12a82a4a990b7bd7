//! `kind = "countdown"`: does the expression reach the target with the given numbers?
//!
//! The answer is `+ - * /` and parentheses over whole numbers, `× ÷ \times \cdot \div` too; what follows an
//! `=` must be the target. It is worked out exactly, in fractions. Nothing is run.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;
use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

/// Longest expression that is read.
const EXPRESSION_BYTES_MAX: usize = 4096;
/// Deepest nesting of parentheses and signs that is read.
const DEPTH_MAX: usize = 64;

/// 1 if the answer's value is the target and it uses the given numbers as it must; else 0.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the expression is.
    #[serde(flatten)]
    pub answer: extract::Settings,
    /// Whether every given number has to be used: exactly once each, else at most once. Default true, as the
    /// prompts of the usual data sets say.
    pub must_use_all: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { answer: extract::Settings::default(), must_use_all: true }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let extraction = self.answer.resolve()?;
        Ok(Box::new(Countdown { extraction, must_use_all: self.must_use_all }))
    }

    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        Some(&mut self.answer)
    }
}

/// See [`Settings`].
pub struct Countdown {
    extraction: Extraction,
    must_use_all: bool,
}

/// What the column `tests` holds.
#[derive(Deserialize)]
struct Tests {
    kind: String,
    numbers: Vec<u32>,
    target: i64,
}

impl Verifier for Countdown {
    fn kind(&self) -> Kind {
        Kind::Countdown
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let tests = match sample.tests.map(serde_json::from_str::<Tests>) {
            None => return Verdict::unscored("the sample has no tests"),
            Some(Err(error)) => {
                return Verdict::unscored(format!("the sample's tests can't be read: {error}"));
            }
            Some(Ok(tests)) if tests.kind != "countdown" => {
                return Verdict::unscored(format!("tests of kind `{}`", excerpt(&tests.kind)));
            }
            Some(Ok(tests)) => tests,
        };
        let found = self.extraction.find(sample.completion);
        match found.and_then(|answer| self.check(answer, tests)) {
            Ok(()) => Verdict::scored(1.0, "reaches the target"),
            Err(reason) => Verdict::scored(0.0, reason),
        }
    }
}

impl Countdown {
    fn check(&self, answer: &str, tests: Tests) -> Result<(), String> {
        let answer = answer.trim().trim_matches('$');
        let inner = answer.strip_prefix("\\(").and_then(|answer| answer.strip_suffix("\\)"));
        let answer = inner.unwrap_or(answer);
        let (expression, result) = match answer.split_once('=') {
            Some((expression, result)) => (expression, Some(result.trim())),
            None => (answer, None),
        };
        if result.is_some_and(|result| result.parse() != Ok(tests.target)) {
            return Err("what follows `=` is not the target".to_owned());
        }
        let mut reader = Reader::new(expression)?;
        let value = reader.sum(0)?;
        if let Some(rest) = reader.tokens.get(reader.at) {
            return Err(format!("{rest:?} is out of place"));
        }
        if value != BigRational::from_integer(tests.target.into()) {
            return Err(format!("the value is {}", excerpt(&value.to_string())));
        }
        let mut left = tests.numbers;
        for used in reader.used {
            let at = left.iter().position(|number| *number == used);
            let at = at.ok_or_else(|| format!("{used} is not there, or not as often"))?;
            left.swap_remove(at);
        }
        match left.first() {
            Some(unused) if self.must_use_all => Err(format!("{unused} is not used")),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Number(u32),
    Mark(char),
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    /// The numbers that were read.
    used: Vec<u32>,
}

impl Reader {
    fn new(text: &str) -> Result<Self, String> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err("the expression is too long".to_owned());
        }
        let plain = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/");
        let mut tokens = Vec::new();
        let mut chars = plain.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                c if c.is_whitespace() => continue,
                '+' | '-' | '*' | '/' | '(' | ')' => Token::Mark(c),
                '×' | '·' => Token::Mark('*'),
                '÷' => Token::Mark('/'),
                '−' => Token::Mark('-'),
                '0'..='9' => {
                    let mut digits = c.to_string();
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        digits.push(digit);
                    }
                    let number = digits.parse();
                    Token::Number(number.map_err(|_| format!("{} is no number", excerpt(&digits)))?)
                }
                c => return Err(format!("{c:?} is not part of an expression")),
            });
        }
        Ok(Self { tokens, at: 0, used: Vec::new() })
    }

    /// Whether the next token is one of these marks; if so it is read.
    fn take(&mut self, marks: &[char]) -> Option<char> {
        match self.tokens.get(self.at) {
            Some(Token::Mark(mark)) if marks.contains(mark) => {
                self.at += 1;
                Some(*mark)
            }
            _ => None,
        }
    }

    fn sum(&mut self, depth: usize) -> Result<BigRational, String> {
        let mut value = self.product(depth)?;
        while let Some(mark) = self.take(&['+', '-']) {
            let next = self.product(depth)?;
            value = if mark == '+' { value + next } else { value - next };
        }
        Ok(value)
    }

    fn product(&mut self, depth: usize) -> Result<BigRational, String> {
        let mut value = self.factor(depth)?;
        while let Some(mark) = self.take(&['*', '/']) {
            let next = self.factor(depth)?;
            if mark == '/' && next.is_zero() {
                return Err("it divides by 0".to_owned());
            }
            value = if mark == '*' { value * next } else { value / next };
        }
        Ok(value)
    }

    fn factor(&mut self, depth: usize) -> Result<BigRational, String> {
        if depth > DEPTH_MAX {
            return Err("the expression is too deep".to_owned());
        }
        if let Some(mark) = self.take(&['(', '-', '+']) {
            return match mark {
                '(' => {
                    let value = self.sum(depth + 1)?;
                    self.take(&[')']).ok_or("`(` is not closed")?;
                    Ok(value)
                }
                '-' => Ok(-self.factor(depth + 1)?),
                _ => self.factor(depth + 1),
            };
        }
        match self.tokens.get(self.at) {
            Some(Token::Number(number)) => {
                self.at += 1;
                self.used.push(*number);
                Ok(BigRational::from_integer(BigInt::from(*number)))
            }
            Some(Token::Mark(mark)) => Err(format!("{mark:?} is out of place")),
            None => Err("the expression ends early".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(answer: &str, must_use_all: bool, tests: &str) -> Verdict {
        let verifier = Countdown { extraction: Extraction::default(), must_use_all };
        let completion = format!("<answer>{answer}</answer>");
        let sample = Sample { completion: &completion, tests: Some(tests), ..Sample::default() };
        verifier.score(&sample)
    }

    const TESTS: &str = r#"{"kind":"countdown","numbers":[2,4,20,4],"target":18}"#;

    #[test]
    fn an_expression_is_worked_out_exactly_and_its_numbers_are_counted() {
        let cases = [
            ("20 - 2 * 4 / 4", 1.0),
            ("20 − 2 × 4 ÷ 4 = 18", 1.0),
            (r"$20 - 2 \times (4 \div 4)$", 1.0),
            (r"\(20 - 2 \times (4 \div 4)\)", 1.0),
            ("-(2 - 20) + 4 - 4", 1.0),
            ("20-2/(4/4)", 1.0),
            ("20 - 2", 0.0),
            ("20 - 2 * 4 / 4 = 19", 0.0),
            ("20 - 2 + 4 * 0", 0.0),
            ("20 - 2 + 2 - 2", 0.0),
            ("20 + 4 - 4 - 2 + 20 - 20", 0.0),
            ("18", 0.0),
            ("2 * 4 + 20 / 4", 0.0),
            ("20 - 2 * (4 / (4 - 4))", 0.0),
            ("(20 - 2 * 4 / 4", 0.0),
            ("20 - 2 * 4 / 4)", 0.0),
            ("20 2 4 4", 0.0),
            ("20 - 2 ** 4 / 4", 0.0),
            ("20.0 - 2 * 4 / 4", 0.0),
            ("__import__('os')", 0.0),
            ("", 0.0),
            ("99999999999999999999 - 2", 0.0),
        ];
        for (answer, want) in cases {
            let verdict = verdict(answer, true, TESTS);
            assert_eq!(verdict.score, Some(want), "{answer}: {}", verdict.reason);
        }
        assert_eq!(verdict("20 - 2", false, TESTS).score, Some(1.0));
        assert_eq!(verdict("20 - 2 + 2 - 2", false, TESTS).score, Some(0.0));
    }

    #[test]
    fn long_and_deep_expressions_are_refused() {
        for answer in ["(".repeat(4000), "-".repeat(4000) + "1", "1+".repeat(9000)] {
            assert_eq!(verdict(&answer, true, TESTS).score, Some(0.0));
        }
    }

    #[test]
    fn tests_that_cannot_be_used_give_no_score() {
        for tests in [r#"{"kind":"asserts","numbers":[],"target":1}"#, "{}", "x"] {
            assert_eq!(verdict("1", true, tests).score, None);
        }
    }
}
