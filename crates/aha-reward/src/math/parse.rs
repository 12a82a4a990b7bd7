//! Tokens → a small syntax tree.
//!
//! ```text
//! list     = relation { ("," | ";" | "and" | "or") relation }
//! relation = sum { ("=" | "<" | ">" | "≤" | "≥" | "≠" | "≈" | "∈") sum } [ unit ]
//! sum      = ["±" | "∓"] term { ("+" | "-" | "±" | "∓" | "∪" | "∩") term }
//! term     = sign { ("*" | "/" | nothing) sign }
//! power    = primary { "%" | "!" | "°" } [ "^" sign ]
//! primary  = number | letter | fraction | root | call | brackets | matrix
//! ```

use super::expr::{Brackets, Expr, both_signs, is_unknown};
use super::lex::{self, Commas, Kind, Literal, Token};
use super::units;

/// Longest answer that is parsed; longer ones are compared as text.
pub(super) const LEN_BYTES_MAX: usize = 8192;
/// Deepest nesting of brackets, fractions, roots, exponents and signs.
const DEPTH_MAX: u32 = 64;
/// Most items of a list, rows and columns of a matrix.
pub(super) const ITEMS_MAX: usize = 256;

/// Why there is no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParseError {
    /// A limit was met.
    TooLarge(&'static str),
    /// Not an expression; may be words.
    Syntax,
}

type Parse<T> = Result<T, ParseError>;

/// The tree of an answer.
pub(super) fn parse(text: &str, commas: Commas) -> Parse<Expr> {
    if text.len() > LEN_BYTES_MAX {
        return Err(ParseError::TooLarge("longer than 8192 bytes"));
    }
    let tokens = lex::lex(text, commas);
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let mut items = parser.items()?;
    if let [_] = items[..] {
        let first = items.remove(0);
        items.push(parser.infix(first)?);
    }
    if parser.at != tokens.len() {
        return Err(ParseError::Syntax);
    }
    let items = items.into_iter().flat_map(both_signs).collect();
    Ok(single_or(items, |items| Expr::List(Brackets::Bare, items)))
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Kind> {
        self.peek_nth(0)
    }

    fn peek_nth(&self, ahead: usize) -> Option<&'a Kind> {
        self.tokens.get(self.at + ahead).map(|t| &t.kind)
    }

    fn peek_punct(&self) -> Option<char> {
        match self.peek() {
            Some(Kind::Punct(c)) => Some(*c),
            _ => None,
        }
    }

    fn eat(&mut self, c: char) -> bool {
        let is_there = self.peek_punct() == Some(c);
        self.at += usize::from(is_there);
        is_there
    }

    fn expect(&mut self, c: char) -> Parse<()> {
        if self.eat(c) { Ok(()) } else { Err(ParseError::Syntax) }
    }

    /// Runs `inner` one level deeper.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        if self.depth == DEPTH_MAX {
            return Err(ParseError::TooLarge("nested deeper than 64"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn items(&mut self) -> Parse<Vec<Expr>> {
        let mut items = Vec::new();
        loop {
            items.push(self.relation()?);
            if items.len() > ITEMS_MAX {
                return Err(ParseError::TooLarge("more than 256 items"));
            }
            if !self.eat_separator() {
                return Ok(items);
            }
        }
    }

    fn eat_separator(&mut self) -> bool {
        let has_mark = self.eat(',') || self.eat(';');
        let has_word = matches!(self.peek(), Some(Kind::Word(w)) if w == "and" || w == "or");
        self.at += usize::from(has_word);
        has_mark || has_word
    }

    fn relation(&mut self) -> Parse<Expr> {
        let mut sides = vec![self.quantity()?];
        let mut operators = Vec::new();
        while let Some(c @ ('=' | '<' | '>' | '≤' | '≥' | '≠' | '≈' | '∈')) = self.peek_punct()
        {
            self.at += 1;
            operators.push(c);
            sides.push(self.quantity()?);
            if sides.len() > 16 {
                return Err(ParseError::TooLarge("more than 16 relations in a chain"));
            }
        }
        // A chain a < b < c is the relation of a to (the relation of b to c).
        let mut result = sides.pop().ok_or(ParseError::Syntax)?;
        while let (Some(operator), Some(side)) = (operators.pop(), sides.pop()) {
            result = Expr::Relation(operator, Box::new(side), Box::new(result));
        }
        Ok(result)
    }

    /// A sum with the unit around it: a currency sign in front, words behind.
    fn quantity(&mut self) -> Parse<Expr> {
        let currency = match self.peek_punct() {
            Some('$') => Some("dollar"),
            Some('€') => Some("euro"),
            Some('£') => Some("pound sterling"),
            Some('¥') => Some("yen"),
            Some('₹') => Some("rupee"),
            _ => None,
        };
        self.at += usize::from(currency.is_some());
        let value = self.ratio()?;
        let (value, unit) = self.unit(value)?;
        match currency.or(unit) {
            Some("") => Ok(Expr::Quantity(Box::new(value), None)),
            Some(name) => Ok(Expr::Quantity(Box::new(value), Some(name))),
            None => Ok(value),
        }
    }

    /// `3:2` is 3/2; of three parts and more, a list.
    fn ratio(&mut self) -> Parse<Expr> {
        let mut parts = vec![self.sum()?];
        while self.eat(':') {
            parts.push(self.sum()?);
            if parts.len() > ITEMS_MAX {
                return Err(ParseError::TooLarge("more than 256 items"));
            }
        }
        if parts.len() == 2 {
            let (second, first) = (parts.remove(1), parts.remove(0));
            return Ok(Expr::Quotient(Box::new(first), Box::new(second)));
        }
        Ok(single_or(parts, |parts| Expr::List(Brackets::Ratio, parts)))
    }

    /// The words after a value. `Some("")` stands for words that are no known unit.
    fn unit(&mut self, value: Expr) -> Parse<(Expr, Option<&'static str>)> {
        let mut value = value;
        let mut unit: Option<&'static str> = None;
        let mut word_count = 0;
        loop {
            let word = match self.tokens.get(self.at) {
                Some(Token { kind: Kind::Word(word), .. }) => word.as_str(),
                Some(Token { kind: Kind::Letter(word), is_text: true, .. }) => word.as_str(),
                _ => break,
            };
            match units::meaning(word) {
                units::Meaning::Joins => break,
                units::Meaning::Changes => return Err(ParseError::Syntax),
                units::Meaning::Percent => value = Expr::Percent(Box::new(value)),
                units::Meaning::Scale(factor) => {
                    value = Expr::Product(vec![value, Expr::whole(factor)]);
                }
                units::Meaning::Unit(name) => unit = unit.filter(|u| !u.is_empty()).or(Some(name)),
                units::Meaning::Other => unit = unit.or(Some("")),
            }
            self.at += 1;
            word_count += 1;
            if word_count > 6 {
                return Err(ParseError::Syntax);
            }
            self.unit_exponent();
            self.at += self.per(unit.is_some_and(|unit| !unit.is_empty()));
            self.unit_exponent();
        }
        Ok((value, unit))
    }

    /// How many tokens are the "/" in `km/hour`, and in `km/h` with the letter behind it.
    fn per(&self, is_unit: bool) -> usize {
        if self.peek_punct() != Some('/') {
            return 0;
        }
        match self.tokens.get(self.at + 1) {
            Some(
                Token { kind: Kind::Word(_), .. }
                | Token { kind: Kind::Letter(_), is_text: true, .. },
            ) => 1,
            Some(Token { kind: Kind::Letter(name), .. })
                if is_unit && (name == "h" || name == "s") =>
            {
                2
            }
            _ => 0,
        }
    }

    /// `^2`, `^{2}`, `^3` after a unit: square and cubic units are told apart by no one.
    fn unit_exponent(&mut self) {
        if self.peek_punct() != Some('^') {
            return;
        }
        let is_number = |kind: Option<&Kind>| matches!(kind, Some(Kind::Number(_)));
        if is_number(self.peek_nth(1)) {
            self.at += 2;
        } else if self.peek_nth(1) == Some(&Kind::Punct('{')) && is_number(self.peek_nth(2)) {
            self.at += 4;
        }
    }

    fn sum(&mut self) -> Parse<Expr> {
        let mut terms = Vec::new();
        if let Some(sign @ ('±' | '∓')) = self.peek_punct() {
            self.at += 1;
            terms.push(Expr::PlusMinus(sign, Box::new(self.term()?)));
        } else {
            terms.push(self.term()?);
        }
        loop {
            match self.peek_punct() {
                Some('+') => {
                    self.at += 1;
                    terms.push(self.term()?);
                }
                Some('-') if terms.len() == 1 && self.peek_nth(1) == Some(&Kind::Punct('⦃')) => {
                    let first = single_or(terms, Expr::Sum);
                    return self.sets('-', first);
                }
                Some('-') => {
                    self.at += 1;
                    terms.push(Expr::Neg(Box::new(self.term()?)));
                }
                Some(sign @ ('±' | '∓')) => {
                    self.at += 1;
                    terms.push(Expr::PlusMinus(sign, Box::new(self.term()?)));
                }
                Some(operator @ ('∪' | '∩' | '∖')) => {
                    let first = single_or(terms, Expr::Sum);
                    return self.sets(operator, first);
                }
                _ => return Ok(single_or(terms, Expr::Sum)),
            }
        }
    }

    fn sets(&mut self, operator: char, first: Expr) -> Parse<Expr> {
        let mut sets = vec![first];
        while self.eat(operator) {
            sets.push(self.term()?);
            if sets.len() > ITEMS_MAX {
                return Err(ParseError::TooLarge("more than 256 sets"));
            }
        }
        Ok(Expr::Sets(operator, sets))
    }

    fn term(&mut self) -> Parse<Expr> {
        let mut product = vec![self.sign()?];
        loop {
            match self.peek_punct() {
                Some('*') => {
                    self.at += 1;
                    product.push(self.sign()?);
                }
                Some('/') => {
                    self.at += 1;
                    let divisor = Box::new(self.sign()?);
                    // Flat, so that a/b/c/… is no deeper than a/b.
                    let dividend =
                        if product.len() == 1 && !matches!(product[0], Expr::Quotient(..)) {
                            product.remove(0)
                        } else {
                            Expr::whole("1")
                        };
                    product.push(Expr::Quotient(Box::new(dividend), divisor));
                }
                _ if self.begins_implicit_factor() => product.push(self.power()?),
                _ => return Ok(single_or(product, Expr::Product)),
            }
        }
    }

    /// Whether a factor follows without a sign of multiplication. Not a number: "2 3" is no product.
    fn begins_implicit_factor(&self) -> bool {
        let Some(token) = self.tokens.get(self.at) else {
            return false;
        };
        match &token.kind {
            Kind::Letter(name) => !token.is_text && name != "\\over" && name != "\\choose",
            // `12xy` and `12 xy` are products, `12cm` and `12 men` are not.
            Kind::Word(word) => {
                let letters_max = if token.is_spaced { 2 } else { 3 };
                !token.is_text
                    && !matches!(word.as_str(), "sq" | "cu")
                    && word.len() <= letters_max
                    && units::meaning(word) == units::Meaning::Other
            }
            Kind::Function(_) | Kind::Command(_) | Kind::Begin(_) => true,
            Kind::Punct('(' | '[' | '{' | '⦃' | '⌊' | '⌈') => true,
            _ => false,
        }
    }

    /// "1 1/2" or "1\frac{1}{2}", a whole number and a proper fraction of whole numbers. Looks at
    /// tokens only and parses nothing twice, so that nesting costs nothing.
    fn mixed_number(&mut self) -> Option<Expr> {
        let whole = whole_number(self.peek()?)?;
        let (numerator, denominator, len) = match self.peek_nth(1)? {
            Kind::Number(_) if self.tokens[self.at + 1].is_spaced => {
                let is_fraction = self.peek_nth(2) == Some(&Kind::Punct('/'));
                let (n, d) = (whole_number(self.peek_nth(1)?)?, whole_number(self.peek_nth(3)?)?);
                is_fraction.then(|| (n.to_owned(), d.to_owned(), 4))?
            }
            Kind::Command("frac") => self.fraction_of_whole_numbers(2)?,
            _ => return None,
        };
        if !is_less(&numerator, &denominator) {
            return None;
        }
        self.at += len;
        let quotient =
            Expr::Quotient(Box::new(Expr::whole(&numerator)), Box::new(Expr::whole(&denominator)));
        Some(Expr::Sum(vec![Expr::whole(whole), quotient]))
    }

    /// The arguments of a `\frac` that begin `ahead` tokens on, and where they end, likewise.
    fn fraction_of_whole_numbers(&self, ahead: usize) -> Option<(String, String, usize)> {
        if let Some(two_digits) = self.peek_nth(ahead).and_then(whole_number)
            && two_digits.len() == 2
        {
            let (n, d) = two_digits.split_at(1);
            return Some((n.to_owned(), d.to_owned(), ahead + 1));
        }
        let mut ahead = ahead;
        let mut arguments = Vec::new();
        while arguments.len() < 2 {
            let has_brace = self.peek_nth(ahead) == Some(&Kind::Punct('{'));
            ahead += usize::from(has_brace);
            arguments.push(whole_number(self.peek_nth(ahead)?)?.to_owned());
            ahead += 1;
            if has_brace {
                (self.peek_nth(ahead) == Some(&Kind::Punct('}'))).then_some(())?;
                ahead += 1;
            }
        }
        let denominator = arguments.pop()?;
        Some((arguments.pop()?, denominator, ahead))
    }

    fn sign(&mut self) -> Parse<Expr> {
        let mut is_negative = false;
        while let Some(c @ ('+' | '-')) = self.peek_punct() {
            is_negative ^= c == '-';
            self.at += 1;
        }
        self.at += usize::from(self.peek_punct() == Some('$'));
        // A sign before a mixed number is the sign of all of it.
        let value = self.power()?;
        Ok(if is_negative { Expr::Neg(Box::new(value)) } else { value })
    }

    fn power(&mut self) -> Parse<Expr> {
        let mixed = self.mixed_number();
        let is_mixed = mixed.is_some();
        let mut base = match mixed {
            Some(mixed) => mixed,
            None => self.primary()?,
        };
        let mut postfix_count = 0;
        loop {
            match self.peek_punct() {
                Some('%') => base = Expr::Percent(Box::new(base)),
                Some('!') => base = Expr::Factorial(Box::new(base)),
                Some('°') => {
                    self.at += 1;
                    base = self.degrees(base);
                    self.at -= 1;
                }
                Some('¢') => base = Expr::Quantity(Box::new(base), Some("cent")),
                _ => break,
            }
            self.at += 1;
            postfix_count += 1;
            if postfix_count > 4 {
                return Err(ParseError::Syntax);
            }
        }
        if !self.eat('^') {
            return Ok(base);
        }
        let is_braced_degree = self.peek() == Some(&Kind::Punct('{'))
            && self.peek_nth(1) == Some(&Kind::Punct('°'))
            && self.peek_nth(2) == Some(&Kind::Punct('}'));
        if is_braced_degree || self.peek_punct() == Some('°') {
            self.at += if is_braced_degree { 3 } else { 1 };
            return Ok(self.degrees(base));
        }
        // `2\frac12^2` may be the power of either.
        if is_mixed {
            return Err(ParseError::Syntax);
        }
        let exponent = self.deeper(|p| p.exponent())?;
        Ok(Expr::Power(Box::new(base), Box::new(exponent)))
    }

    /// The number with `°`, `°C` or `°F` behind it; the parser stands after the sign.
    fn degrees(&mut self, value: Expr) -> Expr {
        let unit = match self.peek() {
            Some(Kind::Letter(letter)) if letter == "C" => "celsius",
            Some(Kind::Letter(letter)) if letter == "F" => "fahrenheit",
            _ => "degree",
        };
        self.at += usize::from(unit != "degree");
        Expr::Quantity(Box::new(value), Some(unit))
    }

    /// In LaTeX `2^10` is 2¹·0, but nobody who writes it means that.
    fn exponent(&mut self) -> Parse<Expr> {
        self.sign()
    }

    fn primary(&mut self) -> Parse<Expr> {
        let token = self.peek().ok_or(ParseError::Syntax)?;
        self.at += 1;
        match token {
            Kind::Number(literal) => self.number(literal),
            Kind::Letter(name) => self.subscript(name.clone()),
            Kind::Word(word) => self.product_of_letters(word),
            Kind::Function(name) => self.deeper(|p| p.call(name)),
            Kind::Command("frac") => self.deeper(|p| {
                let (numerator, denominator) = p.two_arguments()?;
                Ok(Expr::Quotient(Box::new(numerator), Box::new(denominator)))
            }),
            Kind::Command("binom") => self.deeper(|p| {
                let (n, k) = p.two_arguments()?;
                Ok(Expr::Binomial(Box::new(n), Box::new(k)))
            }),
            Kind::Command(_) => self.deeper(|p| p.root()),
            Kind::Begin(name) => self.deeper(|p| p.matrix(name)),
            Kind::Punct('{') => self.deeper(|p| p.group()),
            Kind::Punct(open @ ('⌊' | '⌈')) => self.deeper(|p| {
                let argument = Box::new(p.sum()?);
                p.expect(if *open == '⌊' { '⌋' } else { '⌉' })?;
                let name = if *open == '⌊' { "floor" } else { "ceil" };
                Ok(Expr::Call { name, base: None, argument })
            }),
            Kind::Punct('|') => self.deeper(|p| {
                let value = p.sum()?;
                p.expect('|')?;
                Ok(Expr::Abs(Box::new(value)))
            }),
            Kind::Punct('⦃') => self.deeper(|p| {
                if p.eat('⦄') {
                    return Ok(Expr::Symbol("∅".to_owned()));
                }
                if let Some(set) = p.set_builder()? {
                    return Ok(set);
                }
                let items = p.items()?;
                p.expect('⦄')?;
                let items = items.into_iter().flat_map(both_signs).collect();
                Ok(Expr::List(Brackets::Set, items))
            }),
            Kind::Punct(open @ ('(' | '[')) => self.deeper(|p| p.brackets(*open)),
            Kind::Punct(_) | Kind::End(_) => Err(ParseError::Syntax),
        }
    }

    /// `x | x > 3}` or `x ∈ ℝ : 0 < x, x < 2}`, if that is what follows an opening brace.
    fn set_builder(&mut self) -> Parse<Option<Expr>> {
        let name = match self.peek() {
            Some(Kind::Letter(name)) if is_unknown(name) => name,
            _ => return Ok(None),
        };
        let is_real = self.peek_nth(1) == Some(&Kind::Punct('∈'))
            && matches!(self.peek_nth(2), Some(Kind::Letter(set)) if set == "ℝ");
        let mark = if is_real { 3 } else { 1 };
        if !matches!(self.peek_nth(mark), Some(Kind::Punct('|' | ':'))) {
            return Ok(None);
        }
        self.at += mark + 1;
        let start = self.at;
        let conditions = self.items()?;
        let is_either = self.tokens[start..self.at]
            .iter()
            .any(|token| matches!(&token.kind, Kind::Word(word) if word == "or"));
        self.expect('⦄')?;
        let letter = Expr::Symbol(name.clone());
        Ok(Some(Expr::Sets(
            '|',
            match is_either {
                true => vec![letter, Expr::List(Brackets::Bare, conditions)],
                false => [letter].into_iter().chain(conditions).collect(),
            },
        )))
    }

    /// What stands in bare braces, which show nothing; several items are meant as a set.
    fn group(&mut self) -> Parse<Expr> {
        let mut items = self.items()?;
        if items.len() > 1 {
            self.expect('}')?;
            return Ok(Expr::List(Brackets::Set, items));
        }
        let value = self.infix(items.remove(0))?;
        self.expect('}')?;
        Ok(value)
    }

    /// `\over` and `\choose` have all of the group before them and all of it behind them.
    fn infix(&mut self, first: Expr) -> Parse<Expr> {
        let join = match self.peek() {
            Some(Kind::Letter(name)) if name == "\\over" => Expr::Quotient,
            Some(Kind::Letter(name)) if name == "\\choose" => Expr::Binomial,
            _ => return Ok(first),
        };
        self.at += 1;
        Ok(join(Box::new(first), Box::new(self.sum()?)))
    }

    fn number(&mut self, literal: &Literal) -> Parse<Expr> {
        if self.peek_punct() != Some('_') {
            return Ok(Expr::Number(literal.clone()));
        }
        self.at += 1;
        let has_brace = self.eat('{');
        let base = match self.peek() {
            Some(Kind::Number(base)) => base.integer.parse().ok().filter(|b| (2..=36).contains(b)),
            _ => None,
        };
        let base = base.filter(|_| is_whole(literal)).ok_or(ParseError::Syntax)?;
        self.at += 1;
        if has_brace {
            self.expect('}')?;
        }
        Ok(Expr::Based { digits: literal.integer.clone(), base })
    }

    fn subscript(&mut self, mut name: String) -> Parse<Expr> {
        if !self.eat('_') {
            return Ok(Expr::Symbol(name));
        }
        let has_brace = self.eat('{');
        loop {
            match self.peek() {
                Some(Kind::Number(literal)) => name = format!("{name}_{}", literal.integer),
                Some(Kind::Letter(letter)) => name = format!("{name}_{letter}"),
                Some(Kind::Word(word)) => name = format!("{name}_{word}"),
                Some(Kind::Punct(',')) if has_brace => {}
                _ => return Err(ParseError::Syntax),
            }
            self.at += 1;
            if !has_brace || self.eat('}') {
                return Ok(Expr::Symbol(name));
            }
        }
    }

    /// `xy` beside other things is x·y; alone it is a word, and so is anything longer.
    fn product_of_letters(&mut self, word: &str) -> Parse<Expr> {
        let is_alone = self.tokens.len() == 1 || self.tokens[self.at - 1].is_text;
        if is_alone || word.chars().count() > 3 || !word.is_ascii() {
            return Err(ParseError::Syntax);
        }
        if !matches!(units::meaning(word), units::Meaning::Other) {
            return Err(ParseError::Syntax);
        }
        let mut letters: Vec<Expr> = word.chars().map(|c| Expr::Symbol(c.into())).collect();
        if self.eat('^') {
            let last = letters.pop().ok_or(ParseError::Syntax)?;
            let exponent = self.deeper(|p| p.exponent())?;
            letters.push(Expr::Power(Box::new(last), Box::new(exponent)));
        }
        Ok(Expr::Product(letters))
    }

    fn call(&mut self, name: &'static str) -> Parse<Expr> {
        let base = if self.eat('_') { Some(Box::new(self.argument()?)) } else { None };
        let power = if self.eat('^') { Some(self.exponent()?) } else { None };
        // `\sin 2x` is the sine of all of it, `\sin x + 1` and `\sin(x) y` are not.
        let mut argument = match self.peek() {
            Some(Kind::Punct('(' | '{' | '[')) => vec![self.primary()?],
            _ => vec![self.power()?],
        };
        let is_bare = !matches!(
            self.tokens.get(self.at.wrapping_sub(1)).map(|t| &t.kind),
            Some(Kind::Punct(')' | '}' | ']'))
        );
        while is_bare
            && matches!(self.peek(), Some(Kind::Letter(_)))
            && self.begins_implicit_factor()
        {
            argument.push(self.power()?);
        }
        let argument = Box::new(single_or(argument, Expr::Product));
        let is_inverse = matches!(&power, Some(Expr::Neg(n)) if **n == Expr::whole("1"));
        if let ("sin" | "cos" | "tan", true) = (name, is_inverse) {
            let name = match name {
                "sin" => "arcsin",
                "cos" => "arccos",
                _ => "arctan",
            };
            return Ok(Expr::Call { name, base, argument });
        }
        let call = Expr::Call { name, base, argument };
        Ok(match power {
            Some(power) => Expr::Power(Box::new(call), Box::new(power)),
            None => call,
        })
    }

    fn two_arguments(&mut self) -> Parse<(Expr, Expr)> {
        // `\frac12` is one token "12".
        if let Some(Kind::Number(literal)) = self.peek()
            && literal.fraction.is_empty()
            && literal.exponent == 0
            && literal.integer.len() >= 2
        {
            let (first, second) = literal.integer.split_at(1);
            // `\frac123` is (1/2)·3 in TeX; refused rather than guessed.
            if second.len() > 1 {
                return Err(ParseError::Syntax);
            }
            self.at += 1;
            return Ok((Expr::whole(first), Expr::whole(second)));
        }
        Ok((self.argument()?, self.argument()?))
    }

    /// `{…}`, or one token.
    fn argument(&mut self) -> Parse<Expr> {
        match self.peek() {
            Some(Kind::Punct('{') | Kind::Command(_)) => self.primary(),
            Some(Kind::Number(literal)) => {
                self.at += 1;
                Ok(Expr::Number(literal.clone()))
            }
            Some(Kind::Letter(name)) => {
                self.at += 1;
                Ok(Expr::Symbol(name.clone()))
            }
            _ => Err(ParseError::Syntax),
        }
    }

    fn root(&mut self) -> Parse<Expr> {
        let index = if self.eat('[') {
            let index = self.sum()?;
            self.expect(']')?;
            index
        } else {
            Expr::whole("2")
        };
        let radicand = match self.peek() {
            Some(Kind::Punct('(')) => self.primary()?,
            _ => self.argument()?,
        };
        Ok(Expr::Root(Box::new(index), Box::new(radicand)))
    }

    fn brackets(&mut self, open: char) -> Parse<Expr> {
        let mut items = self.items()?;
        let close = match self.peek_punct() {
            Some(c @ (')' | ']')) => c,
            _ => return Err(ParseError::Syntax),
        };
        self.at += 1;
        let is_grouping = items.len() == 1 && matches!((open, close), ('(', ')') | ('[', ']'));
        if is_grouping {
            Ok(items.remove(0))
        } else {
            Ok(Expr::List(Brackets::Pair(open, close), items))
        }
    }

    fn matrix(&mut self, environment: &str) -> Parse<Expr> {
        if !matches!(
            environment,
            "pmatrix" | "bmatrix" | "Bmatrix" | "smallmatrix" | "matrix" | "array"
        ) {
            return Err(ParseError::Syntax);
        }
        if environment == "array" {
            // The columns' alignment.
            while !self.eat('}') {
                self.at += 1;
                if self.at >= self.tokens.len() {
                    return Err(ParseError::Syntax);
                }
            }
        }
        let mut rows = vec![Vec::new()];
        loop {
            if let Some(Kind::End(_)) = self.peek() {
                self.at += 1;
                // `\\` after the last row.
                rows.retain(|row: &Vec<Expr>| !row.is_empty());
                return Ok(Expr::Matrix(rows));
            }
            let item = self.relation()?;
            if let Some(row) = rows.last_mut() {
                row.push(item);
            }
            if rows.len() > ITEMS_MAX || rows.last().is_some_and(|row| row.len() > ITEMS_MAX) {
                return Err(ParseError::TooLarge("a matrix larger than 256"));
            }
            if self.eat('\n') {
                rows.push(Vec::new());
            } else if !self.eat('&') && !matches!(self.peek(), Some(Kind::End(_))) {
                return Err(ParseError::Syntax);
            }
        }
    }
}

/// The only element, or all of them as one expression.
fn single_or(mut exprs: Vec<Expr>, many: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    if exprs.len() == 1 { exprs.remove(0) } else { many(exprs) }
}

/// The digits of a token that is a whole number.
fn whole_number(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Number(literal) if is_whole(literal) => Some(&literal.integer),
        _ => None,
    }
}

fn is_whole(literal: &Literal) -> bool {
    literal.fraction.is_empty() && literal.repeating.is_empty() && literal.exponent == 0
}

/// Compares whole numbers by their digits.
fn is_less(a: &str, b: &str) -> bool {
    let a = a.trim_start_matches('0');
    let b = b.trim_start_matches('0');
    (a.len(), a) < (b.len(), b)
}
