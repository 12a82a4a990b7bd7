//! Text of an answer → tokens. LaTeX's and Unicode's many spellings of a thing become one token here,
//! so that the parser knows none of them.
//!
//! Punctuation is one `char`, the Unicode character where ASCII has none: `*` (also `\cdot`,
//! `\times`, `×`), `/`, `±`, `∓`, `≤`, `≥`, `≠`, `≈`, `∈`, `∪`, `∩`, `°`, `⦃` and `⦄` for `\{` and `\}`,
//! `\n` for a matrix's `\\`, `$ € £` for a currency.

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    /// Whether blanks stand before it.
    pub is_spaced: bool,
    /// Whether it stands in `\text{…}` or its like.
    pub is_text: bool,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Number(Literal),
    /// One letter, a Greek name, `π`, `∞`: something that stands for a value.
    Letter(String),
    /// Two letters or more that are no known name.
    Word(String),
    /// `sin`, `log`, …
    Function(&'static str),
    /// `frac`, `sqrt`, `binom`: takes arguments in braces.
    Command(&'static str),
    Begin(String),
    End(String),
    Punct(char),
}

/// A decimal number as written, separators of thousands removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Literal {
    pub integer: String,
    pub fraction: String,
    /// The digits under a bar.
    pub repeating: String,
    pub exponent: i64,
}

/// How a comma between digits outside of brackets is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commas {
    /// `1,234` is one number.
    GroupDigits,
    /// `1,234` is two numbers.
    Separate,
}

/// Commands that stand for one punctuation character.
const PUNCTUATION: &[(&str, char)] = &[
    ("cdot", '*'),
    ("times", '*'),
    ("ast", '*'),
    ("div", '/'),
    ("pm", '±'),
    ("mp", '∓'),
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("lt", '<'),
    ("gt", '>'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("approx", '≈'),
    ("in", '∈'),
    ("cup", '∪'),
    ("cap", '∩'),
    ("setminus", '∖'),
    ("backslash", '∖'),
    ("colon", ':'),
    ("lfloor", '⌊'),
    ("rfloor", '⌋'),
    ("lceil", '⌈'),
    ("rceil", '⌉'),
    ("simeq", '≈'),
    ("sim", '≈'),
    ("cent", '¢'),
    ("lbrace", '⦃'),
    ("circ", '°'),
    ("degree", '°'),
    ("rbrace", '⦄'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("langle", '('),
    ("rangle", ')'),
    ("vert", '|'),
    ("mid", '|'),
    ("cr", '\n'),
    ("lvert", '|'),
    ("rvert", '|'),
    ("euro", '€'),
    ("pounds", '£'),
];

/// Commands that change nothing about the value.
const IGNORED: &[&str] = &[
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "limits",
    "boxed",
    "fbox",
    "mathopen",
    "mathclose",
    "small",
    "normalsize",
    "large",
    "Large",
    "LARGE",
    "huge",
    "Huge",
    "ensuremath",
    "underline",
];

/// Commands that are a blank.
const BLANKS: &[&str] = &["quad", "qquad", "thinspace", "enspace", "space", "newline"];

/// Commands whose argument is words, or a name in another face.
const TEXT: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "textnormal",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mbox",
    "hbox",
    "operatorname",
    "bf",
    "rm",
];

const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "ln", "lg", "exp",
];

/// Commands whose argument of one letter is another name than the letter: a vector, a set.
const FACES: &[&str] =
    &["mathbf", "bm", "boldsymbol", "hat", "vec", "overrightarrow", "mathbb", "Bbb", "mathcal"];

/// Superscript digits and signs, in the order of [`PLAIN`].
const SUPERSCRIPTS: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻";
const PLAIN: &str = "0123456789+-";

/// Fractions of one character.
const FRACTIONS: &[(char, char, char)] = &[
    ('½', '1', '2'),
    ('⅓', '1', '3'),
    ('⅔', '2', '3'),
    ('¼', '1', '4'),
    ('¾', '3', '4'),
    ('⅕', '1', '5'),
    ('⅖', '2', '5'),
    ('⅗', '3', '5'),
    ('⅘', '4', '5'),
    ('⅙', '1', '6'),
    ('⅚', '5', '6'),
    ('⅛', '1', '8'),
    ('⅜', '3', '8'),
    ('⅝', '5', '8'),
    ('⅞', '7', '8'),
];

/// Names that words and commands share.
const NAMES: &[(&str, &str)] =
    &[("pi", "π"), ("infty", "∞"), ("infinity", "∞"), ("emptyset", "∅"), ("varnothing", "∅")];

/// Tokens of `text`. Never fails: what is no known command is a letter of that name.
pub(super) fn lex(text: &str, commas: Commas) -> Vec<Token> {
    let mut lexer = Lexer {
        rest: text,
        commas,
        bracket_depth: 0,
        braces: Vec::new(),
        next_group_is_text: false,
        is_spaced: false,
        tokens: Vec::new(),
    };
    while let Some(c) = lexer.rest.chars().next() {
        lexer.step(c);
    }
    // A full stop that ends the sentence is no part of the answer.
    if lexer.tokens.last().is_some_and(|t| t.kind == Kind::Punct('.')) {
        lexer.tokens.pop();
    }
    lexer.tokens
}

struct Lexer<'a> {
    rest: &'a str,
    commas: Commas,
    bracket_depth: u32,
    /// For each open brace whether it is a text command's, whose braces make no token.
    braces: Vec<bool>,
    next_group_is_text: bool,
    is_spaced: bool,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn step(&mut self, c: char) {
        match c {
            '\\' => self.command(),
            '0'..='9' => self.number(),
            '.' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            '{' => self.open_brace(),
            '}' => self.close_brace(),
            _ if c.is_whitespace() || c == '~' => self.blank(c.len_utf8()),
            _ if c.is_alphabetic() => self.word(),
            _ => self.other(c),
        }
    }

    fn push(&mut self, kind: Kind) {
        let is_text = self.braces.contains(&true);
        self.tokens.push(Token { kind, is_spaced: self.is_spaced, is_text });
        self.is_spaced = false;
    }

    fn punct(&mut self, c: char) {
        match c {
            '(' | '[' | '⦃' => self.bracket_depth += 1,
            ')' | ']' | '⦄' => self.bracket_depth = self.bracket_depth.saturating_sub(1),
            _ => {}
        }
        self.push(Kind::Punct(c));
    }

    fn blank(&mut self, len: usize) {
        self.rest = &self.rest[len..];
        self.is_spaced = true;
    }

    fn open_brace(&mut self) {
        self.rest = &self.rest[1..];
        let is_text = std::mem::take(&mut self.next_group_is_text);
        self.braces.push(is_text);
        if is_text {
            self.is_spaced = true;
        } else {
            self.punct('{');
        }
    }

    fn close_brace(&mut self) {
        self.rest = &self.rest[1..];
        if self.braces.pop() == Some(true) {
            self.is_spaced = true;
        } else {
            self.punct('}');
        }
    }

    fn other(&mut self, c: char) {
        self.rest = &self.rest[c.len_utf8()..];
        match c {
            // The dollar of TeX; that of money is written `\$`.
            '$' | '`' => {}
            '−' | '–' | '‐' => self.punct('-'),
            '×' | '·' | '⋅' | '∙' => self.punct('*'),
            '*' if self.rest.starts_with('*') => {
                self.rest = &self.rest[1..];
                self.punct('^');
            }
            '÷' | '∕' | '⁄' => self.punct('/'),
            '，' | '、' => self.punct(','),
            '；' => self.punct(';'),
            '（' => self.punct('('),
            '）' => self.punct(')'),
            '＝' => self.punct('='),
            '％' => self.punct('%'),
            '。' => self.punct('.'),
            '⩽' => self.punct('≤'),
            '⩾' => self.punct('≥'),
            '√' => self.push(Kind::Command("sqrt")),
            '∞' | '∅' => self.push(Kind::Letter(c.to_string())),
            'ℝ' | 'ℤ' | 'ℕ' | 'ℚ' | 'ℂ' => self.push(Kind::Letter(c.to_string())),
            '≔' => self.punct('='),
            '！' => self.punct('!'),
            '：' => self.punct(':'),
            '\'' | '′' | '’' => self.prime(),
            _ if SUPERSCRIPTS.contains(c) => self.superscript(c),
            _ if let Some((_, over, under)) = FRACTIONS.iter().find(|f| f.0 == c) => {
                self.fraction(*over, *under);
            }
            '<' | '>' if self.rest.starts_with('=') => {
                self.rest = &self.rest[1..];
                self.punct(if c == '<' { '≤' } else { '≥' });
            }
            _ => self.punct(c),
        }
    }

    /// `f'` is one name.
    fn prime(&mut self) {
        match self.tokens.last_mut() {
            Some(Token { kind: Kind::Letter(name), .. }) if !self.is_spaced => name.push('\''),
            _ => self.punct('\''),
        }
    }

    /// `⁻³` and its like, all that follow one another.
    fn superscript(&mut self, first: char) {
        let plain = |c| SUPERSCRIPTS.chars().zip(PLAIN.chars()).find(|(s, _)| *s == c);
        self.punct('^');
        let mut digits = String::new();
        let mut next = Some(first);
        while let Some((_, c)) = next.and_then(plain) {
            if !digits.is_empty() {
                let len = self.rest.chars().next().map_or(0, char::len_utf8);
                self.rest = &self.rest[len..];
            }
            digits.push(c);
            next = self.rest.chars().next();
        }
        if let Some(digits) = digits.strip_prefix('-') {
            self.punct('-');
            return self.digits(digits);
        }
        self.digits(digits.trim_start_matches('+'));
    }

    fn fraction(&mut self, numerator: char, denominator: char) {
        self.push(Kind::Command("frac"));
        self.digits(&numerator.to_string());
        self.digits(&denominator.to_string());
    }

    fn digits(&mut self, digits: &str) {
        let integer = digits.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
        self.push(Kind::Number(Literal { integer, ..Literal::default() }));
    }

    fn command(&mut self) {
        let after = &self.rest[1..];
        let name_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        if name_len == 0 {
            return self.command_of_one_character(after);
        }
        let (name, rest) = after.split_at(name_len);
        self.rest = rest;
        if let Some((_, c)) = PUNCTUATION.iter().find(|(n, _)| *n == name) {
            self.punct(*c);
        } else if IGNORED.contains(&name) {
            // `\left.` is an invisible bracket, `\left\{` a shown one.
            if matches!(name, "left" | "right") {
                self.rest = self.rest.strip_prefix('.').unwrap_or(self.rest);
            }
        } else if FACES.contains(&name) && self.letter_in_a_face(name) {
            // Its token is pushed.
        } else if matches!(name, "mathrm" | "rm") && self.constant_in_roman() {
            // Likewise.
        } else if TEXT.contains(&name) {
            self.next_group_is_text = self.rest.trim_start().starts_with('{');
            self.is_spaced = true;
        } else if BLANKS.contains(&name) {
            self.is_spaced = true;
        } else if let "color" | "textcolor" = name {
            let group =
                self.rest.trim_start().strip_prefix('{').and_then(|rest| rest.split_once('}'));
            self.rest = group.map_or(self.rest, |(_, rest)| rest);
        } else if let "begin" | "end" = name {
            self.environment(name == "begin");
        } else {
            self.name(name);
        }
    }

    /// `\mathbb{R}`, `\hat{\imath}`, `\mathbf i`: one letter in another face is a name of its own.
    fn letter_in_a_face(&mut self, face: &str) -> bool {
        let Some((letter, rest)) = argument_of_one_letter(self.rest) else {
            return false;
        };
        let name = match (face, letter) {
            ("mathbb" | "Bbb", 'R') => "ℝ".to_owned(),
            ("mathbb" | "Bbb", 'Z') => "ℤ".to_owned(),
            ("mathbb" | "Bbb", 'N') => "ℕ".to_owned(),
            ("mathbb" | "Bbb", 'Q') => "ℚ".to_owned(),
            ("mathbb" | "Bbb", 'C') => "ℂ".to_owned(),
            // A choice.
            (_, 'A'..='H') => return false,
            _ => format!("vector {letter}"),
        };
        self.rest = rest;
        self.push(Kind::Letter(name));
        true
    }

    /// `\mathrm{e}` and `\mathrm{i}` are the constants.
    fn constant_in_roman(&mut self) -> bool {
        let Some((letter @ ('e' | 'i'), rest)) = argument_of_one_letter(self.rest) else {
            return false;
        };
        self.rest = rest;
        self.push(Kind::Letter(letter.to_string()));
        true
    }

    fn command_of_one_character(&mut self, after: &str) {
        let Some(c) = after.chars().next() else {
            self.rest = "";
            return;
        };
        self.rest = &self.rest[1 + c.len_utf8()..];
        match c {
            '{' => self.punct('⦃'),
            '}' => self.punct('⦄'),
            '\\' => {
                self.punct('\n');
                self.row_space();
            }
            '%' | '$' => self.punct(c),
            '|' => self.punct('|'),
            '!' => {}
            // Blanks of several widths, and `\(`, `\[` around a formula.
            _ => self.is_spaced = true,
        }
    }

    /// `[4pt]` after the end of a row.
    fn row_space(&mut self) {
        let Some((space, rest)) = self.rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
        else {
            return;
        };
        let unit = space.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
        if unit.len() < space.len() && ["pt", "em", "ex", "mm", "cm"].contains(&unit.trim()) {
            self.rest = rest;
        }
    }

    fn environment(&mut self, is_begin: bool) {
        let Some((name, rest)) = self.rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        else {
            return;
        };
        self.rest = rest;
        let name = name.to_owned();
        self.push(if is_begin { Kind::Begin(name) } else { Kind::End(name) });
    }

    /// A command or a word that may be the name of something.
    fn name(&mut self, name: &str) {
        if let Some(function) = FUNCTIONS.iter().find(|f| **f == name) {
            self.push(Kind::Function(function));
        } else if let Some((_, letter)) = NAMES.iter().find(|(n, _)| *n == name) {
            self.push(Kind::Letter((*letter).to_owned()));
        } else {
            match name {
                "lor" | "vee" => self.push(Kind::Word("or".to_owned())),
                "land" | "wedge" => self.push(Kind::Word("and".to_owned())),
                "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" => {
                    self.push(Kind::Command("frac"))
                }
                "sqrt" => self.push(Kind::Command("sqrt")),
                "binom" | "dbinom" | "tbinom" => self.push(Kind::Command("binom")),
                // `\cotx`, which TeX would not know.
                _ if let Some((function, letter)) = function_and_letter(name) => {
                    self.push(Kind::Function(function));
                    self.push(Kind::Letter(letter.to_owned()));
                }
                _ => self.push(Kind::Letter(format!("\\{name}"))),
            }
        }
    }

    fn word(&mut self) {
        let len = self.rest.find(|c: char| !c.is_alphabetic()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        let is_name =
            FUNCTIONS.contains(&word) || NAMES.iter().any(|(n, _)| *n == word) || word == "sqrt";
        if is_name {
            self.name(word);
        } else if word.chars().nth(1).is_none() {
            self.push(Kind::Letter(word.to_owned()));
        } else {
            self.push(Kind::Word(word.to_owned()));
        }
    }

    fn number(&mut self) {
        let integer = self.integer();
        let mut literal = Literal { integer, ..Literal::default() };
        if let Some(rest) = self.rest.strip_prefix('.') {
            let fraction_len = digit_count(rest);
            // "5." ends a sentence at the end of the text, "5.x" is left to the parser to refuse.
            if fraction_len > 0 {
                literal.fraction = rest[..fraction_len].to_owned();
                self.rest = &rest[fraction_len..];
            }
            self.bar(&mut literal);
        }
        self.exponent(&mut literal);
        self.push(Kind::Number(literal));
    }

    /// The digits before the point; where separators of thousands are well placed, without them.
    fn integer(&mut self) -> String {
        let first_len = digit_count(self.rest);
        let mut digits = self.rest[..first_len].to_owned();
        let mut rest = &self.rest[first_len..];
        self.rest = rest;
        if !(1..=3).contains(&first_len) || (digits.starts_with('0')) {
            return digits;
        }
        if let Some((grouped, after)) = self.groups_with_blanks(&digits, rest) {
            self.rest = after;
            return grouped;
        }
        let may_be_comma = self.commas == Commas::GroupDigits && self.bracket_depth == 0;
        while let Some(len) = separator_len(rest, may_be_comma) {
            if digit_count(&rest[len..]) != 3 {
                // Not "1,234,5": then none of its commas groups digits.
                if rest.starts_with(',') && digit_count(&rest[len..]) > 0 {
                    digits.truncate(first_len);
                    return digits;
                }
                break;
            }
            digits.push_str(&rest[len..len + 3]);
            rest = &rest[len + 3..];
        }
        self.rest = rest;
        digits
    }

    /// `10 000`: blanks separate thousands where the whole text is such a number.
    fn groups_with_blanks<'b>(&self, first: &str, rest: &'b str) -> Option<(String, &'b str)> {
        if !self.tokens.iter().all(|t| matches!(t.kind, Kind::Punct('-' | '+' | '$' | '€' | '£')))
        {
            return None;
        }
        let mut digits = first.to_owned();
        let mut after = rest;
        while let Some(group) = after.strip_prefix(' ').filter(|t| digit_count(t) == 3) {
            digits.push_str(&group[..3]);
            after = &group[3..];
        }
        let is_all = after.trim_end_matches(['.', '$', ' ']).is_empty();
        (after.len() < rest.len() && is_all).then_some((digits, after))
    }

    /// `\overline{36}` or `\bar{3}` straight after the digits.
    fn bar(&mut self, literal: &mut Literal) {
        let rest = self.rest.strip_prefix('.').unwrap_or(self.rest);
        let Some(rest) = ["\\overline{", "\\bar{"].iter().find_map(|p| rest.strip_prefix(*p))
        else {
            return;
        };
        let len = digit_count(rest);
        if len > 0 && rest[len..].starts_with('}') {
            literal.repeating = rest[..len].to_owned();
            self.rest = &rest[len + 1..];
        }
    }

    /// `e3`, `E-3` straight after the digits; not `e3x`, and not more than nine digits.
    fn exponent(&mut self, literal: &mut Literal) {
        let Some(rest) = self.rest.strip_prefix(['e', 'E']) else {
            return;
        };
        let sign_len = usize::from(rest.starts_with(['+', '-']));
        let len = sign_len + digit_count(&rest[sign_len..]);
        let is_followed = rest[len..].starts_with(|c: char| c.is_alphabetic() || c == '.');
        if len == sign_len || len > sign_len + 9 || is_followed {
            return;
        }
        if let Ok(exponent) = rest[..len].parse() {
            literal.exponent = exponent;
            self.rest = &rest[len..];
        }
    }
}

/// `cotx` as `cot` and `x`.
fn function_and_letter(name: &str) -> Option<(&'static str, &str)> {
    let (function, letter) = name.split_at_checked(name.len().checked_sub(1)?)?;
    FUNCTIONS.iter().find(|f| **f == function).map(|f| (*f, letter))
}

/// The letter in `{i}`, `{\imath}`, ` i`, and what follows it.
fn argument_of_one_letter(text: &str) -> Option<(char, &str)> {
    let text = text.trim_start();
    let (inner, is_braced) = match text.strip_prefix('{') {
        Some(inner) => (inner.trim_start(), true),
        None => (text, false),
    };
    let (letter, rest) = if let Some(rest) = inner.strip_prefix("\\imath") {
        ('i', rest)
    } else if let Some(rest) = inner.strip_prefix("\\jmath") {
        ('j', rest)
    } else {
        let letter = inner.chars().next().filter(char::is_ascii_alphabetic)?;
        (letter, &inner[1..])
    };
    if is_braced {
        return Some((letter, rest.trim_start().strip_prefix('}')?));
    }
    (!rest.starts_with(|c: char| c.is_ascii_alphabetic())).then_some((letter, rest))
}

fn digit_count(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Length of a separator of thousands at the start of `text`.
fn separator_len(text: &str, may_be_comma: bool) -> Option<usize> {
    const MARKS: &[&str] = &[
        ", \\! ", "{,}\\!", "{,}", ",\\! ", ",\\!", ", \\!", "\\,", "\\!", "\u{2009}", "\u{202f}",
    ];
    if let Some(mark) = MARKS.iter().find(|mark| text.starts_with(**mark)) {
        return Some(mark.len());
    }
    (may_be_comma && text.starts_with(',')).then_some(1)
}

/// The tokens as one string, equal for two texts that differ only in blanks, letter case of words
/// and LaTeX's spelling.
pub(super) fn key(tokens: &[Token]) -> String {
    use std::fmt::Write;
    // A lone word, letter or choice such as "(b)" is text, whose case says nothing; in an
    // expression x and X are two things.
    let is_text = tokens.iter().all(|t| {
        matches!(t.kind, Kind::Word(_) | Kind::Letter(_) | Kind::Punct('(' | ')' | '.' | ','))
    });
    let mut key = String::new();
    for token in tokens {
        // Writing to a string never fails.
        let _ = match &token.kind {
            Kind::Number(Literal { integer, fraction, repeating, exponent }) => {
                write!(key, "{integer}.{fraction}_{repeating}e{exponent}")
            }
            Kind::Letter(name) if !is_text || name.starts_with('\\') => write!(key, "{name}"),
            Kind::Letter(word) | Kind::Word(word) => write!(key, "{}", word.to_lowercase()),
            Kind::Function(name) | Kind::Command(name) => write!(key, "\\{name}"),
            Kind::Begin(name) => write!(key, "\\begin {name}"),
            Kind::End(name) => write!(key, "\\end {name}"),
            Kind::Punct(c) => write!(key, "{c}"),
        };
        key.push('\u{1f}');
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integers(text: &str, commas: Commas) -> Vec<String> {
        let number = |token: Token| match token.kind {
            Kind::Number(literal) => Some(literal.integer),
            _ => None,
        };
        lex(text, commas).into_iter().filter_map(number).collect()
    }

    #[test]
    fn separators_of_thousands_join_digits() {
        let cases: [(&str, &[&str]); 14] = [
            ("1,234", &["1234"]),
            ("1,234,567", &["1234567"]),
            ("1{,}234", &["1234"]),
            (r"1\,234", &["1234"]),
            (r"10,\!080", &["10080"]),
            (r"11,\! 111,\! 111,\! 100", &["11111111100"]),
            ("1, 234", &["1", "234"]),
            ("1,2,3", &["1", "2", "3"]),
            ("1,23", &["1", "23"]),
            ("1,234,5", &["1", "234", "5"]),
            ("1234,567", &["1234", "567"]),
            ("(1,234)", &["1", "234"]),
            ("(1{,}234)", &["1234"]),
            ("0,123", &["0", "123"]),
        ];
        for (text, want) in cases {
            assert_eq!(integers(text, Commas::GroupDigits), want, "{text}");
        }
        assert_eq!(integers("1,234", Commas::Separate), ["1", "234"]);
    }

    #[test]
    fn spellings_share_a_key() {
        let same = [
            (r"\dfrac{1}{2}", r"\frac{1}{2}"),
            (r"\text{Evelyn}", "evelyn"),
            (r"\text{(B)}", "(b)"),
            (r"\left( 1 , 2\right)", "(1,2)"),
            (r"$x \leq 5$.", "x≤5"),
            ("New  York", "new york"),
            ("2 × 3", r"2 \cdot 3"),
        ];
        for (a, b) in same {
            assert_eq!(
                key(&lex(a, Commas::GroupDigits)),
                key(&lex(b, Commas::GroupDigits)),
                "{a} {b}"
            );
        }
        let different = [("1 1/2", "11/2"), ("x", "y"), ("2x", "2X"), ("12", "1 2")];
        for (a, b) in different {
            assert_ne!(
                key(&lex(a, Commas::GroupDigits)),
                key(&lex(b, Commas::GroupDigits)),
                "{a} {b}"
            );
        }
    }
}
