//! `kind = "numeric"`: is the final answer the sample's number, within a tolerance?

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction};
use crate::math::{CHANGES, gold_answer};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

/// Longest text that is read as a number.
pub const LEN_BYTES_MAX: usize = 1_000;

/// Relative tolerance, unless set otherwise.
pub const REL_TOLERANCE: f64 = 1e-6;

/// 1 if the completion's final answer is one number that is near the sample's; else 0.
///
/// Near is `|answer - gold| <= abs_tolerance + rel_tolerance · |gold|`. Read are decimals, with separators of
/// thousands, exponents (`1.5e3`, `1.5 × 10^3`), fractions, mixed numbers, percent, currency, scales such as
/// "million", infinity, `x = 5`, and LaTeX's spellings of these. Where the sample's or the answer alone has a
/// percent sign, `50%` is 0.5 and 50. Words after the number are left out, but two known units must be the
/// same. No number equals NaN, and infinity only itself.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the answer is.
    #[serde(flatten)]
    pub answer: extract::Settings,
    /// Largest difference that counts as none, in the answer's unit, at least 0. Default 0.
    pub abs_tolerance: f64,
    /// The same as a share of the sample's number, at least 0. Default 1e-6: only rounding is forgiven.
    pub rel_tolerance: f64,
}

impl Default for Settings {
    fn default() -> Self {
        let answer = extract::Settings::default();
        Self { answer, abs_tolerance: 0.0, rel_tolerance: REL_TOLERANCE }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let &Settings { abs_tolerance, rel_tolerance, .. } = self;
        let tolerance = Tolerance { abs: abs_tolerance, rel: rel_tolerance };
        let keys = [("abs_tolerance", abs_tolerance), ("rel_tolerance", rel_tolerance)];
        let wrong = keys.into_iter().filter(|(_, value)| !(0.0..f64::INFINITY).contains(value));
        let wrong: Vec<Problem> = wrong
            .map(|(key, value)| Problem::new(key, "finite and at least 0", value.to_string()))
            .collect();
        match self.answer.resolve() {
            Ok(extraction) if wrong.is_empty() => Ok(Box::new(Numeric { extraction, tolerance })),
            answer => Err(answer.err().unwrap_or_default().into_iter().chain(wrong).collect()),
        }
    }

    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        Some(&mut self.answer)
    }
}

/// How far two numbers may be apart.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    abs: f64,
    rel: f64,
}

/// See [`Settings`].
struct Numeric {
    extraction: Extraction,
    tolerance: Tolerance,
}

impl Verifier for Numeric {
    fn kind(&self) -> Kind {
        Kind::Numeric
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let Some(text) = sample.answer.map(gold_answer).filter(|gold| !gold.is_empty()) else {
            return Verdict::unscored("the sample has no answer");
        };
        let gold = match read(text) {
            Ok(gold) if !gold.value.is_nan() => gold,
            _ => {
                return Verdict::unscored(format!(
                    "the sample's answer, {}, is no number",
                    excerpt(text)
                ));
            }
        };
        let pred = match self.extraction.find(sample.completion) {
            Ok(pred) => pred,
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        match read(pred) {
            Ok(number) if is_near(&gold, &number, self.tolerance) => Verdict::scored(1.0, "near"),
            Ok(_) => Verdict::scored(0.0, format!("{} is not {}", excerpt(pred), excerpt(text))),
            Err(reason) => Verdict::scored(0.0, format!("{}: {reason}", excerpt(pred))),
        }
    }
}

/// Whether `pred` is the number `gold` but for rounding, both bare answers such as `1,200` or `1.2e3`; null
/// where `gold` is no number.
///
/// ```
/// use aha_reward::numeric_equal;
/// assert_eq!(numeric_equal("1,200 km", r"1.2 \times 10^3"), Some(true));
/// assert_eq!(numeric_equal("two", "2"), None);
/// ```
pub fn numeric_equal(gold: &str, pred: &str) -> Option<bool> {
    let gold = read(gold).ok().filter(|gold| !gold.value.is_nan())?;
    let tolerance = Tolerance { abs: 0.0, rel: REL_TOLERANCE };
    Some(read(pred).is_ok_and(|pred| is_near(&gold, &pred, tolerance)))
}

/// A number that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Number {
    /// As it stands, before the percent sign.
    value: f64,
    is_percent: bool,
    unit: Option<&'static str>,
}

fn is_near(gold: &Number, pred: &Number, tolerance: Tolerance) -> bool {
    if let (Some(gold), Some(pred)) = (gold.unit, pred.unit)
        && !is_same_unit(gold, pred)
    {
        return false;
    }
    let near = |gold: f64, pred: f64| {
        // Written so that NaN fails; infinity is near only to itself.
        gold == pred
            || (gold.is_finite()
                && (pred - gold).abs() <= tolerance.abs + tolerance.rel * gold.abs())
    };
    let (g, p) = (gold.value, pred.value);
    match (gold.is_percent, pred.is_percent) {
        // Up to 1 a number is taken for the share itself: 0.5 is not 0.5%.
        (true, false) => near(g / 100.0, p) || (p.abs() > 1.0 && near(g, p)),
        (false, true) => near(g, p / 100.0) || (g.abs() > 1.0 && near(g, p)),
        _ => near(g, p),
    }
}

type Read<T> = Result<T, &'static str>;

const NO_NUMBER: &str = "no number";
const SEVERAL: &str = "more than one number";
const TOO_LARGE: &str = "too large";

/// Reads a text that is one number, or in a few words why it isn't.
fn read(text: &str) -> Read<Number> {
    if text.len() > LEN_BYTES_MAX {
        return Err("too long for a number");
    }
    let plain = plain(text);
    let text = after_name(plain.trim().trim_end_matches('.'))?;
    // What is left of `\text{5}`.
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    let text = inner.filter(|inner| !inner.contains(['{', '}'])).unwrap_or(text);
    let mut reader = Reader { rest: text };
    let (sign, currency) = reader.sign_and_currency();
    let mut value = reader.value()?;
    let (scale, is_percent, unit) = reader.words()?;
    value *= sign * scale;
    Ok(Number { value, is_percent, unit: currency.or(unit) })
}

/// The text with LaTeX's spellings replaced by plain ones.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => rest = command(rest, &mut plain),
            '−' | '–' | '﹣' | '－' => plain.push('-'),
            '×' | '·' | '⋅' => plain.push('*'),
            '≈' | '≃' | '≅' => plain.push('='),
            '％' => plain.push('%'),
            '∞' => plain.push_str("infinity"),
            '\u{a0}' | '\u{2009}' | '\u{202f}' | '~' => plain.push(' '),
            '*' if rest.starts_with('*') && !plain.ends_with(|c: char| c.is_ascii_digit()) => {
                // Bold text.
                rest = &rest[1..];
            }
            '{' if rest.starts_with(",}") => {
                rest = &rest[2..];
                plain.push(',');
            }
            '$' if plain.trim().is_empty() && rest.trim_end().ends_with('$') => {}
            '$' if rest.trim_matches([' ', '.']).is_empty() => {}
            c => plain.push(c),
        }
    }
    let bold = plain.trim().strip_suffix("**");
    bold.map(str::to_owned).unwrap_or(plain)
}

/// Writes what a command stands for, and gives the text after it.
fn command<'a>(rest: &'a str, plain: &mut String) -> &'a str {
    let name_len = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (name, after) = rest.split_at(name_len);
    let meaning = match name {
        "" => {
            let Some(c) = after.chars().next() else { return after };
            match c {
                '%' | '$' | '#' | '&' | '_' | '{' | '}' => plain.push(c),
                ',' | ';' | ':' | ' ' => plain.push(' '),
                _ => {}
            }
            return &after[c.len_utf8()..];
        }
        "times" | "cdot" => "*",
        "approx" | "simeq" | "cong" => "=",
        "infty" => "infinity",
        "circ" | "degree" => "°",
        "pounds" => "£",
        "euro" => "€",
        "frac" | "dfrac" | "tfrac" | "cfrac" => "\\frac",
        "quad" | "qquad" => " ",
        // Those that change how a text looks. What they hold follows in braces.
        "text" | "textbf" | "textit" | "textrm" | "mathrm" | "mathbf" | "mathit" | "mbox"
        | "left" | "right" | "displaystyle" | "bf" | "rm" | "operatorname" => "",
        _ => "\\?",
    };
    plain.push_str(meaning);
    after
}

/// What follows `x =`, or all of it.
fn after_name(text: &str) -> Read<&str> {
    let Some((name, value)) = text.split_once('=') else { return Ok(text) };
    let is_name = name.trim_start().starts_with(|c: char| c.is_alphabetic() || c == '=')
        || name.trim().is_empty();
    if is_name && !value.contains('=') { Ok(value.trim_start()) } else { Err(NO_NUMBER) }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn eat_any(&mut self, texts: &[&str]) -> bool {
        texts.iter().any(|text| self.eat(text))
    }

    fn currency(&mut self) -> Option<&'static str> {
        self.blanks();
        CURRENCIES.iter().find(|(sign, _)| self.eat(sign)).map(|(_, name)| *name)
    }

    /// 1 or -1, and the currency that stands before or after the sign.
    fn sign_and_currency(&mut self) -> (f64, Option<&'static str>) {
        let mut sign = 1.0;
        let currency = self.currency();
        self.blanks();
        if self.eat("-") {
            sign = -1.0;
        } else {
            self.eat("+");
        }
        let currency = currency.or_else(|| self.currency());
        self.blanks();
        (sign, currency)
    }

    fn value(&mut self) -> Read<f64> {
        for word in ["infinity", "inf", "nan"] {
            let (head, tail) = self.rest.split_at(self.rest.floor_char_boundary(word.len()));
            if head.eq_ignore_ascii_case(word) && !tail.starts_with(char::is_alphanumeric) {
                self.rest = tail;
                return Ok(if word == "nan" { f64::NAN } else { f64::INFINITY });
            }
        }
        if let Some(value) = self.latex_fraction()? {
            return Ok(value);
        }
        let (digits, is_whole) = self.decimal().ok_or(NO_NUMBER)?;
        if digits == "10" && self.eat("^") {
            let power = self.power()?;
            return finite(&format!("1e{power}"));
        }
        if is_whole && let Some(value) = self.fraction_after(&digits)? {
            return Ok(value);
        }
        let exponent = self.exponent()?;
        finite(&format!("{digits}e{exponent}"))
    }

    /// `a/b` after `a`, `a b/c` after `a`, and the same with `\frac`.
    fn fraction_after(&mut self, digits: &str) -> Read<Option<f64>> {
        let whole = finite(digits)?;
        let before = self.rest;
        self.blanks();
        if self.eat("/") {
            self.blanks();
            // "5/km" is a number per something.
            let Some((divisor, _)) = self.decimal() else {
                self.rest = before;
                return Ok(None);
            };
            return quotient(whole, finite(&divisor)?).map(Some);
        }
        if let Some(part) = self.latex_fraction()? {
            return Ok(Some(whole + part));
        }
        if let Some((numerator, true)) = self.decimal()
            && self.eat("/")
            && let Some((divisor, true)) = self.decimal()
        {
            return Ok(Some(whole + quotient(finite(&numerator)?, finite(&divisor)?)?));
        }
        self.rest = before;
        Ok(None)
    }

    /// `\frac{a}{b}` and `\frac12`.
    fn latex_fraction(&mut self) -> Read<Option<f64>> {
        if !self.eat("\\frac") {
            return Ok(None);
        }
        let numerator = self.fraction_part()?;
        let divisor = self.fraction_part()?;
        quotient(numerator, divisor).map(Some)
    }

    fn fraction_part(&mut self) -> Read<f64> {
        self.blanks();
        if self.eat("{") {
            self.blanks();
            let sign = if self.eat("-") { -1.0 } else { 1.0 };
            let (digits, _) = self.decimal().ok_or(NO_NUMBER)?;
            self.blanks();
            return if self.eat("}") { Ok(sign * finite(&digits)?) } else { Err(NO_NUMBER) };
        }
        let digit = self.rest.chars().next().and_then(|c| c.to_digit(10)).ok_or(NO_NUMBER)?;
        self.rest = &self.rest[1..];
        Ok(f64::from(digit))
    }

    /// The digits of a decimal without separators of thousands, and whether it has no point.
    fn decimal(&mut self) -> Option<(String, bool)> {
        let mut digits = self.digits().to_owned();
        if (1..=3).contains(&digits.len()) {
            let separator =
                self.rest.chars().next().filter(|c| matches!(c, ',' | ' ' | '_' | '\''));
            while let Some(group) =
                separator.and_then(|separator| group_after(self.rest, separator))
            {
                digits.push_str(group);
                self.rest = &self.rest[4..];
            }
        }
        let is_fraction = self.rest.strip_prefix('.').is_some_and(|after| {
            after.starts_with(|c: char| c.is_ascii_digit()) || !digits.is_empty()
        });
        if !is_fraction {
            return (!digits.is_empty()).then_some((digits, true));
        }
        self.rest = &self.rest[1..];
        let places = self.digits();
        Some((format!("0{digits}.{places}0"), false))
    }

    fn digits(&mut self) -> &'a str {
        let len = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(len);
        self.rest = rest;
        digits
    }

    /// `e5`, `*10^5`, `x 10^{-5}`, `*10**5`; 0 where there is none.
    fn exponent(&mut self) -> Read<i32> {
        let before = self.rest;
        if self.eat_any(&["e", "E"])
            && let Some(exponent) = self.whole()
        {
            return Ok(exponent);
        }
        self.rest = before;
        self.blanks();
        if self.eat_any(&["*", "x", "X"]) {
            self.blanks();
            if self.eat("10") {
                if self.eat_any(&["^{", "^(", "^", "**"]) {
                    let exponent = self.whole().ok_or(NO_NUMBER)?;
                    self.eat_any(&["}", ")"]);
                    return Ok(exponent);
                }
                return Err(NO_NUMBER);
            }
        }
        self.rest = before;
        Ok(0)
    }

    /// The exponent behind `10^`.
    fn power(&mut self) -> Read<i32> {
        let has_brace = self.eat("{");
        let power = self.whole().ok_or(NO_NUMBER)?;
        if has_brace && !self.eat("}") {
            return Err(NO_NUMBER);
        }
        Ok(power)
    }

    fn whole(&mut self) -> Option<i32> {
        self.blanks();
        let is_negative = self.eat("-");
        if !is_negative {
            self.eat("+");
        }
        let digits = self.digits();
        let size: i32 = match digits.len() {
            0 => return None,
            1..=8 => digits.parse().ok()?,
            // Past every number that there is.
            _ => 99_999_999,
        };
        Some(if is_negative { -size } else { size })
    }

    /// The factor, percent sign and unit after a number, of which nothing else may follow.
    fn words(&mut self) -> Read<(f64, bool, Option<&'static str>)> {
        let rest: String = self.rest.chars().filter(|c| !matches!(c, '{' | '}')).collect();
        let rest = rest.trim().trim_end_matches('.').trim();
        let (scale, rest) = scale_of(rest);
        if let Some(after) = rest.strip_prefix('%') {
            // "50% of it" and "50%" are one answer; "50% or 60%" is not.
            check_words(after)?;
            return Ok((scale, true, None));
        }
        check_words(rest)?;
        let word = rest.split_whitespace().next().unwrap_or_default();
        // `5x` and `5e0e9` are no numbers of something.
        let is_short = self.rest.starts_with(char::is_alphabetic) && word.chars().count() <= 2;
        let is_ordinal = ["st", "nd", "rd", "th"].contains(&word);
        if is_short && !is_ordinal && unit_of(word).is_none() {
            return Err(NO_NUMBER);
        }
        let is_percent = ["percent", "percentage", "pct"].contains(&word.to_lowercase().as_str());
        Ok((scale, is_percent, unit_of(rest).or_else(|| unit_of(word))))
    }
}

/// The three digits after a separator, if no fourth follows.
fn group_after(text: &str, separator: char) -> Option<&str> {
    let group = text.strip_prefix(separator)?.get(..3)?;
    let is_group = group.bytes().all(|b| b.is_ascii_digit())
        && !text[4..].starts_with(|c: char| c.is_ascii_digit());
    // "1 234/5" is a mixed number.
    let is_mixed = separator == ' ' && text[4..].starts_with('/');
    (is_group && !is_mixed).then_some(group)
}

fn finite(digits: &str) -> Read<f64> {
    let value: f64 = digits.parse().map_err(|_| NO_NUMBER)?;
    if value.is_finite() { Ok(value) } else { Err(TOO_LARGE) }
}

fn quotient(numerator: f64, divisor: f64) -> Read<f64> {
    if divisor == 0.0 { Err("a division by zero") } else { Ok(numerator / divisor) }
}

/// The factor that the first word is, and what follows it.
fn scale_of(text: &str) -> (f64, &str) {
    const SCALES: &[(&str, f64)] = &[
        ("dozen", 12.0),
        ("hundred", 1e2),
        ("thousand", 1e3),
        ("million", 1e6),
        ("billion", 1e9),
        ("trillion", 1e12),
    ];
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let word = word.to_lowercase();
    match SCALES.iter().find(|(name, _)| *name == word || word.strip_suffix('s') == Some(name)) {
        Some((_, scale)) => (*scale, rest.trim_start()),
        None => (1.0, text),
    }
}

/// Fails where what follows a number is more than the name of what was counted.
fn check_words(text: &str) -> Read<()> {
    const JOINS: &[&str] = &["and", "or", "divided", "percentile"];
    if text.starts_with('-') || (text.starts_with('^') && !text.starts_with("^°")) {
        return Err(NO_NUMBER);
    }
    let mut previous = ' ';
    for c in text.chars() {
        // A digit in a unit is an exponent: m^2, s^-1, cm3.
        let is_exponent = matches!(previous, '^' | '-') || previous.is_alphabetic();
        if c.is_ascii_digit() && !is_exponent {
            return Err(SEVERAL);
        }
        if matches!(c, '+' | '*' | '=' | ',' | ';' | '|' | '±' | '\\' | '<' | '>' | '!') {
            return Err(NO_NUMBER);
        }
        previous = c;
    }
    let mut words = text.split(|c: char| !c.is_alphabetic()).map(str::to_lowercase);
    if words.any(|word| JOINS.contains(&word.as_str()) || CHANGES.contains(&word.as_str())) {
        Err(NO_NUMBER)
    } else {
        Ok(())
    }
}

/// The signs before a number, and the units that they are.
const CURRENCIES: &[(&str, &str)] = &[
    ("US$", "dollar"),
    ("$", "dollar"),
    ("€", "euro"),
    ("£", "pound sterling"),
    ("¥", "yen"),
    ("₹", "rupee"),
];

/// The spellings of units that are known, the name first.
const UNITS: &[&[&str]] = &[
    &["nanometer", "nanometre", "nm"],
    &["micrometer", "micrometre", "µm", "μm"],
    &["millimeter", "millimetre", "mm"],
    &["centimeter", "centimetre", "cm"],
    &["meter", "metre", "m"],
    &["kilometer", "kilometre", "km"],
    &["inch", "inche", "in"],
    &["foot", "feet", "ft"],
    &["yard", "yd"],
    &["mile", "mi"],
    &["square meter", "m^2", "m²", "m2"],
    &["square centimeter", "cm^2", "cm²", "cm2"],
    &["square kilometer", "km^2", "km²", "km2"],
    &["cubic meter", "m^3", "m³", "m3"],
    &["cubic centimeter", "cm^3", "cm³", "cm3"],
    &["milligram", "mg"],
    &["gram", "g"],
    &["kilogram", "kg"],
    &["ton", "tonne", "t"],
    &["ounce", "oz"],
    &["pound", "lb"],
    &["millisecond", "ms"],
    &["second", "sec", "s"],
    &["minute", "min"],
    &["hour", "hr", "h"],
    &["day"],
    &["week"],
    &["month"],
    &["year", "yr"],
    &["milliliter", "millilitre", "ml", "mL"],
    &["liter", "litre", "l", "L"],
    &["meter per second", "m/s"],
    &["kilometer per hour", "km/h", "kmh", "kph"],
    &["mile per hour", "mph"],
    &["newton", "N"],
    &["joule", "J"],
    &["kilojoule", "kJ"],
    &["watt", "W"],
    &["kilowatt", "kW"],
    &["volt", "V"],
    &["ampere", "amp", "A"],
    &["hertz", "Hz"],
    &["kilohertz", "kHz"],
    &["kelvin", "K"],
    &["celsius", "°C"],
    &["fahrenheit", "°F"],
    &["degree", "deg", "°", "^°"],
    &["radian", "rad"],
    &["mole", "mol"],
    &["dollar", "usd"],
    &["cent"],
    &["euro", "eur", "€"],
    &["pound sterling", "gbp", "£"],
    &["yen", "jpy", "¥"],
    &["rupee", "inr", "₹"],
];

/// "5 pounds" may be weight or money.
fn is_same_unit(a: &str, b: &str) -> bool {
    let is_pound = |unit| matches!(unit, "pound" | "pound sterling");
    a == b || (is_pound(a) && is_pound(b))
}

/// The unit of that spelling: symbols as they are, words in any letter case and number.
fn unit_of(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    let singular = lower.strip_suffix('s').filter(|word| word.len() > 1).unwrap_or(&lower);
    let is_spelling = |name: &&str| **name == *text || (name.len() > 2 && **name == *singular);
    UNITS.iter().find(|names| names.iter().any(is_spelling)).map(|names| names[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<f64> {
        read(text).ok().map(|number| number.value)
    }

    #[test]
    fn numbers_are_read_in_their_spellings() {
        let cases = [
            ("5", 5.0),
            ("-5", -5.0),
            ("−5", -5.0),
            ("+5.", 5.0),
            (".5", 0.5),
            ("5.25", 5.25),
            ("1,234,567.5", 1234567.5),
            ("1 234", 1234.0),
            (r"1{,}234", 1234.0),
            (r"1\,234", 1234.0),
            ("1_000", 1000.0),
            ("1e3", 1000.0),
            ("1.5E-3", 0.0015),
            (r"1.5 \times 10^{3}", 1500.0),
            ("1.5 x 10^3", 1500.0),
            ("1.5×10^-3", 0.0015),
            ("1.5*10**3", 1500.0),
            ("3/4", 0.75),
            ("-3/4", -0.75),
            (r"\frac{3}{4}", 0.75),
            (r"-\dfrac34", -0.75),
            ("3 1/2", 3.5),
            (r"3\frac{1}{2}", 3.5),
            ("$5", 5.0),
            (r"\$1,200.50", 1200.5),
            ("-$5", -5.0),
            ("$-5", -5.0),
            ("$5$", 5.0),
            ("**5**", 5.0),
            ("5 million", 5e6),
            ("2 dozen eggs", 24.0),
            ("x = 5", 5.0),
            (r"x \approx 5", 5.0),
            ("= 5", 5.0),
            (r"5 \text{ m/s}", 5.0),
            ("5 m^2", 5.0),
            ("5kg", 5.0),
            ("90°", 90.0),
            (r"90^\circ", 90.0),
            ("inf", f64::INFINITY),
            (r"-\infty", f64::NEG_INFINITY),
            ("Infinity", f64::INFINITY),
        ];
        for (text, want) in cases {
            assert_eq!(value(text), Some(want), "{text}");
        }
        assert!(value("NaN").unwrap().is_nan());
    }

    #[test]
    fn what_is_not_one_number_is_none() {
        let texts = [
            "",
            "five",
            "5 or 6",
            "5, 6",
            "5 and 6",
            "5 6",
            "1,23",
            "1,2345",
            "5 = 6",
            "x = 2 = 3",
            "5 + 6",
            "5 and a half",
            "1/0",
            "1e999",
            "5 to 6",
            "±5",
            "5%6",
            r"\sqrt{5}",
            "10^5^2",
            "--5",
            "5-6",
            "(5",
            "1.2.3",
            "e5",
            "infinite",
            "50% or 60%",
        ];
        for text in texts {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(read(&"9".repeat(1_001)), Err("too long for a number"));
        assert_eq!(read(&"9".repeat(400)), Err(TOO_LARGE));
    }

    #[test]
    fn percent_units_and_infinity_are_compared_as_they_mean() {
        let cases = [
            ("50%", "0.5", Some(true)),
            ("50%", "50", Some(true)),
            ("0.5", r"50\%", Some(true)),
            ("50", "50 percent", Some(true)),
            ("0.5%", "0.5", Some(false)),
            ("5 km", "5 kilometers", Some(true)),
            ("5 km", "5", Some(true)),
            ("5 km", "5 m", Some(false)),
            ("5 apples", "5 red apples", Some(true)),
            ("$5", "5 dollars", Some(true)),
            ("$5", "5", Some(true)),
            ("$5", "€5", Some(false)),
            ("5 euros", r"\$5", Some(false)),
            ("5 €", "€5", Some(true)),
            ("£-5", "-5 pounds", Some(true)),
            ("5 pounds", "5 kg", Some(false)),
            ("5", "5 hundredths", Some(false)),
            ("5", "5 squared", Some(false)),
            ("5", "5x", Some(false)),
            ("5", "5e0e9", Some(false)),
            ("5", "5m", Some(true)),
            ("5", "5th", Some(true)),
            ("0.00001", "10^{-5}", Some(true)),
            ("100000", "10^5", Some(true)),
            ("5", r"\text{5}", Some(true)),
            ("inf", r"\infty", Some(true)),
            ("inf", "-inf", Some(false)),
            ("inf", "1e308", Some(false)),
            ("5", "inf", Some(false)),
            ("5", "nan", Some(false)),
            ("nan", "nan", None),
            ("five", "5", None),
            ("5", "five", Some(false)),
            ("1000000", "1000000.5", Some(true)),
            ("1000000", "1000002", Some(false)),
            ("0", "1e-9", Some(false)),
            ("0", "-0.0", Some(true)),
        ];
        for (gold, pred, want) in cases {
            assert_eq!(numeric_equal(gold, pred), want, "{gold} {pred}");
        }
    }

    #[test]
    fn the_tolerances_add_up() {
        let score = |keys: &str, answer: &str, completion: &str| {
            let settings: Settings = serde_json::from_str(keys).unwrap();
            let verifier = settings.resolve(&crate::NoBackends).ok().unwrap();
            let sample = Sample { completion, answer: Some(answer), ..Sample::default() };
            verifier.score(&sample).score
        };
        let pi = r"so \boxed{3.14}";
        assert_eq!(score("{}", "3.14159", pi), Some(0.0));
        assert_eq!(score(r#"{"rel_tolerance":0.001}"#, "3.14159", pi), Some(1.0));
        assert_eq!(score(r#"{"abs_tolerance":0.002}"#, "3.14159", pi), Some(1.0));
        let both = r#"{"abs_tolerance":0.001,"rel_tolerance":0.0002}"#;
        assert_eq!(score(both, "3.14159", pi), Some(1.0));
        assert_eq!(score("{}", "#### 3.14", pi), Some(1.0));
        assert_eq!(score("{}", "pie", pi), None);
        assert_eq!(score("{}", "3.14", "3.14"), Some(0.0));
        let wrong =
            Settings { abs_tolerance: -1.0, rel_tolerance: f64::NAN, ..Settings::default() };
        assert_eq!(wrong.resolve(&crate::NoBackends).err().unwrap().len(), 2);
    }
}
