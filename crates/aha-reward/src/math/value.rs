//! Exact values: quotients of sums of `rational · √n · i^b · symbols`.
//!
//! A sum is kept as a map from monomials to rational coefficients, `√n` with squarefree `n`, so two
//! sums are equal exactly when their maps are. `a/b = c/d` is decided as `ad = bc`. Symbols (letters,
//! `π`, `e`, and functions or roots that have no exact form here) are taken as independent: equal
//! values built from them may be missed, unequal ones are never called equal. Every operation
//! pays from a [`Budget`] before it computes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use num_bigint::BigInt;
use num_rational::{BigRational, Ratio};
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use super::expr::Expr;
use super::lex::Literal;

/// Most bits of the numerator and denominator of a result: about 4,900 digits in all. A whole number
/// that is written out may have more: it is only compared.
const BITS_MAX: u64 = 1 << 14;
/// Most terms of a sum.
const TERMS_MAX: usize = 512;
/// Largest absolute exponent of a symbol.
const EXPONENT_MAX: i64 = 10_000;
/// Largest power that a sum of several terms is raised to.
const SUM_POWER_MAX: i64 = 64;
/// What one comparison may cost, in word operations: some ten milliseconds.
const WORK_MAX: u64 = 1 << 22;
/// Primes below this are looked for in a radicand.
const FACTOR_MAX: u64 = 1 << 14;
/// Longest name of a symbol that stands for an expression.
const NAME_LEN_MAX: usize = 4096;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EvalError {
    /// A limit was met.
    TooLarge(&'static str),
    /// Division by zero and the like.
    Undefined,
    /// A list, a relation: no number.
    NotANumber,
}

type Eval<T> = Result<T, EvalError>;

/// Work left for one comparison.
pub(super) struct Budget {
    work_left: u64,
}

impl Budget {
    pub fn new() -> Self {
        Self { work_left: WORK_MAX }
    }

    pub fn charge(&mut self, work: u64) -> Eval<()> {
        self.work_left =
            self.work_left.checked_sub(work).ok_or(EvalError::TooLarge("takes too much work"))?;
        Ok(())
    }

    /// Pays for an operation whose result, unreduced, has that many bits.
    fn charge_bits(&mut self, bits: u64) -> Eval<()> {
        if bits > BITS_MAX {
            return Err(EvalError::TooLarge("a number of more than 16384 bits"));
        }
        // Reducing a fraction takes one pass over the words for each bit.
        self.charge(64 + bits * (bits / 64 + 1))
    }
}

fn bits(r: &BigRational) -> u64 {
    r.numer().bits() + r.denom().bits()
}

/// `√root · i^is_imaginary · Π symbol^exponent`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Monomial {
    symbols: BTreeMap<Rc<str>, Ratio<i64>>,
    /// Squarefree; 1 where there is no root.
    root: u64,
    is_imaginary: bool,
}

impl Monomial {
    fn one() -> Self {
        Self { symbols: BTreeMap::new(), root: 1, is_imaginary: false }
    }

    /// What copying the symbols costs.
    fn names_cost(&self) -> u64 {
        self.symbols.keys().map(|name| 64 + name.len() as u64).sum()
    }

    /// The product, and the rational that comes out of the roots.
    fn times(&self, other: &Self) -> Eval<(Self, BigRational)> {
        let gcd = gcd(self.root, other.root);
        let root = (self.root / gcd).checked_mul(other.root / gcd);
        let root = root.ok_or(EvalError::TooLarge("the number under a root"))?;
        let mut factor = BigRational::from_integer(gcd.into());
        if self.is_imaginary && other.is_imaginary {
            factor = -factor;
        }
        let mut symbols = self.symbols.clone();
        for (name, exponent) in &other.symbols {
            let sum = match symbols.get(name) {
                None => *exponent,
                Some(own) if own.is_integer() && exponent.is_integer() => {
                    Ratio::from_integer(own.numer() + exponent.numer())
                }
                Some(own) => own + exponent,
            };
            if sum.numer().abs() > EXPONENT_MAX || *sum.denom() > EXPONENT_MAX {
                return Err(EvalError::TooLarge("an exponent"));
            }
            if sum.is_zero() {
                symbols.remove(name);
            } else {
                symbols.insert(name.clone(), sum);
            }
        }
        let is_imaginary = self.is_imaginary != other.is_imaginary;
        Ok((Self { symbols, root, is_imaginary }, factor))
    }
}

/// Without the work of reducing where both are whole.
fn product_of(a: &BigRational, b: &BigRational) -> BigRational {
    if a.is_integer() && b.is_integer() {
        return BigRational::from_integer(a.numer() * b.numer());
    }
    a * b
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A sum of monomials with rational coefficients, none of them 0.
#[derive(Clone, Debug, PartialEq)]
struct Poly(BTreeMap<Monomial, BigRational>);

impl Poly {
    fn rational(value: BigRational) -> Self {
        Self::single(Monomial::one(), value)
    }

    fn single(monomial: Monomial, coefficient: BigRational) -> Self {
        let mut terms = BTreeMap::new();
        if !coefficient.is_zero() {
            terms.insert(monomial, coefficient);
        }
        Self(terms)
    }

    fn one() -> Self {
        Self::rational(BigRational::one())
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn as_single(&self) -> Option<(&Monomial, &BigRational)> {
        if self.0.len() == 1 { self.0.first_key_value() } else { None }
    }

    fn as_rational(&self) -> Option<BigRational> {
        match self.as_single() {
            Some((monomial, value)) if *monomial == Monomial::one() => Some(value.clone()),
            None if self.is_zero() => Some(BigRational::zero()),
            _ => None,
        }
    }

    fn add_term(
        &mut self,
        monomial: Monomial,
        value: BigRational,
        budget: &mut Budget,
    ) -> Eval<()> {
        use std::collections::btree_map::Entry;
        match self.0.entry(monomial) {
            Entry::Vacant(place) => {
                if !value.is_zero() {
                    place.insert(value);
                }
            }
            Entry::Occupied(mut place) => {
                budget.charge_bits(bits(place.get()) + bits(&value))?;
                let sum = place.get_mut();
                if sum.is_integer() && value.is_integer() {
                    *sum = BigRational::from_integer(sum.numer() + value.numer());
                } else {
                    *sum += value;
                }
                if place.get().is_zero() {
                    place.remove();
                }
            }
        }
        if self.0.len() > TERMS_MAX {
            return Err(EvalError::TooLarge("more than 512 terms"));
        }
        Ok(())
    }

    fn plus(mut self, other: Self, budget: &mut Budget) -> Eval<Self> {
        for (monomial, value) in other.0 {
            self.add_term(monomial, value, budget)?;
        }
        Ok(self)
    }

    fn times(&self, other: &Self, budget: &mut Budget) -> Eval<Self> {
        let mut product = Self(BTreeMap::new());
        for (a, a_value) in &self.0 {
            for (b, b_value) in &other.0 {
                budget.charge_bits(bits(a_value) + bits(b_value))?;
                budget.charge(1024 + a.names_cost() + b.names_cost())?;
                let (monomial, factor) = a.times(b)?;
                let mut value = product_of(a_value, b_value);
                if !factor.is_one() {
                    value *= factor;
                }
                product.add_term(monomial, value, budget)?;
            }
        }
        Ok(product)
    }

    fn negated(mut self) -> Self {
        for value in self.0.values_mut() {
            *value = -std::mem::take(value);
        }
        self
    }
}

/// An exact value.
#[derive(Clone, Debug)]
pub(super) struct Value {
    numerator: Poly,
    /// Not zero.
    denominator: Poly,
    /// Whether it holds a symbol that stands for a root or a function.
    pub is_opaque: bool,
}

impl Value {
    fn from_poly(numerator: Poly) -> Self {
        Self { numerator, denominator: Poly::one(), is_opaque: false }
    }

    fn rational(value: BigRational) -> Self {
        Self::from_poly(Poly::rational(value))
    }

    fn integer(value: i64) -> Self {
        Self::rational(BigRational::from_integer(value.into()))
    }

    fn symbol(name: Rc<str>, exponent: Ratio<i64>) -> Self {
        let symbols = BTreeMap::from([(name, exponent)]);
        let monomial = Monomial { symbols, root: 1, is_imaginary: false };
        Self::from_poly(Poly::single(monomial, BigRational::one()))
    }

    /// A symbol that stands for an expression which has no exact form here.
    fn opaque(name: String, exponent: Ratio<i64>) -> Eval<Self> {
        if name.len() > NAME_LEN_MAX {
            return Err(EvalError::TooLarge("an expression under a root or function"));
        }
        Ok(Self { is_opaque: true, ..Self::symbol(name.into(), exponent) })
    }

    fn is_zero(&self) -> bool {
        self.numerator.is_zero()
    }

    /// The number, if it is a rational one.
    pub fn as_rational(&self) -> Option<BigRational> {
        if self.denominator != Poly::one() {
            return None;
        }
        self.numerator.as_rational()
    }

    fn plus(self, other: Self, budget: &mut Budget) -> Eval<Self> {
        let is_opaque = self.is_opaque || other.is_opaque;
        if self.denominator == other.denominator {
            let numerator = self.numerator.plus(other.numerator, budget)?;
            return Self { numerator, denominator: self.denominator, is_opaque }.reduced(budget);
        }
        let left = self.numerator.times(&other.denominator, budget)?;
        let right = other.numerator.times(&self.denominator, budget)?;
        let numerator = left.plus(right, budget)?;
        let denominator = self.denominator.times(&other.denominator, budget)?;
        Self { numerator, denominator, is_opaque }.reduced(budget)
    }

    fn negated(self) -> Self {
        Self { numerator: self.numerator.negated(), ..self }
    }

    fn times(&self, other: &Self, budget: &mut Budget) -> Eval<Self> {
        let numerator = self.numerator.times(&other.numerator, budget)?;
        let denominator = self.denominator.times(&other.denominator, budget)?;
        let is_opaque = self.is_opaque || other.is_opaque;
        Self { numerator, denominator, is_opaque }.reduced(budget)
    }

    fn reciprocal(self, budget: &mut Budget) -> Eval<Self> {
        if self.is_zero() {
            return Err(EvalError::Undefined);
        }
        let (numerator, denominator) = (self.denominator, self.numerator);
        Self { numerator, denominator, is_opaque: self.is_opaque }.reduced(budget)
    }

    /// Divides a denominator of one term out, so that a surd or a rational has the denominator 1.
    fn reduced(self, budget: &mut Budget) -> Eval<Self> {
        let Some((monomial, value)) = self.denominator.as_single() else {
            return Ok(self);
        };
        if self.denominator == Poly::one() {
            return Ok(self);
        }
        let symbols = monomial.symbols.iter().map(|(name, e)| (name.clone(), -e)).collect();
        // 1/√n = √n/n and 1/i = -i.
        let inverse = Monomial { symbols, ..monomial.clone() };
        budget.charge_bits(bits(value) + 64)?;
        let mut factor = (value * BigRational::from_integer(monomial.root.into())).recip();
        if monomial.is_imaginary {
            factor = -factor;
        }
        let numerator = self.numerator.times(&Poly::single(inverse, factor), budget)?;
        Ok(Self { numerator, denominator: Poly::one(), is_opaque: self.is_opaque })
    }

    /// Whether both are the same value.
    pub fn equals(&self, other: &Self, budget: &mut Budget) -> Eval<bool> {
        if self.denominator == other.denominator {
            return Ok(self.numerator == other.numerator);
        }
        let left = self.numerator.times(&other.denominator, budget)?;
        let right = other.numerator.times(&self.denominator, budget)?;
        Ok(left == right)
    }

    /// `self / other` where that is a rational number other than 0.
    pub fn rational_ratio(&self, other: &Self, budget: &mut Budget) -> Eval<Option<BigRational>> {
        if self.is_zero() || other.is_zero() {
            return Ok(None);
        }
        let left = self.numerator.times(&other.denominator, budget)?;
        let right = other.numerator.times(&self.denominator, budget)?;
        let (Some((monomial, a)), Some((_, b))) =
            (left.0.first_key_value(), right.0.first_key_value())
        else {
            return Ok(None);
        };
        budget.charge_bits(bits(a) + bits(b))?;
        let ratio = a / b;
        let scaled = right.times(&Poly::rational(ratio.clone()), budget)?;
        Ok((right.0.contains_key(monomial) && scaled == left).then_some(ratio))
    }

    /// `self - other`
    pub fn minus(self, other: Self, budget: &mut Budget) -> Eval<Self> {
        self.plus(other.negated(), budget)
    }

    fn power_integer(self, exponent: i64, budget: &mut Budget) -> Eval<Self> {
        if exponent < 0 {
            let positive = exponent.checked_neg().ok_or(EvalError::TooLarge("an exponent"))?;
            return self.reciprocal(budget)?.power_integer(positive, budget);
        }
        if let Some(value) = self.as_rational() {
            return power_rational(&value, exponent, budget).map(Self::rational);
        }
        let is_sum = self.numerator.0.len() > 1 || self.denominator.0.len() > 1;
        if exponent > if is_sum { SUM_POWER_MAX } else { EXPONENT_MAX } {
            return Err(EvalError::TooLarge("an exponent"));
        }
        let mut result = Self::integer(1);
        let mut square = self;
        let mut left = exponent;
        while left > 0 {
            if left % 2 == 1 {
                result = result.times(&square, budget)?;
            }
            left /= 2;
            if left > 0 {
                square = square.times(&square, budget)?;
            }
        }
        Ok(result)
    }

    /// The `index`-th root, `index` at least 2.
    fn root(self, index: i64, budget: &mut Budget) -> Eval<Self> {
        if self.is_zero() {
            return Ok(self);
        }
        let single = match self.numerator.as_single() {
            Some((monomial, value)) if self.denominator == Poly::one() => {
                (monomial.clone(), value.clone())
            }
            _ => return self.opaque_root(index),
        };
        let (monomial, value) = single;
        let is_plain = monomial.root == 1 && !monomial.is_imaginary;
        // √(x²) is not x; √x is x^(1/2), and its square is x.
        let has_sign = |(name, exponent): (&Rc<str>, &Ratio<i64>)| {
            let is_positive = matches!(&**name, "π" | "e");
            !is_positive && index % 2 == 0 && (exponent / index).is_integer()
        };
        if !is_plain || monomial.symbols.iter().any(has_sign) {
            return self.opaque_root(index);
        }
        let mut result = root_of_rational(&value, index, budget)?;
        for (name, exponent) in monomial.symbols {
            result = result.times(&Self::symbol(name, exponent / index), budget)?;
        }
        result.is_opaque |= self.is_opaque;
        Ok(result)
    }

    fn opaque_root(self, index: i64) -> Eval<Self> {
        Self::opaque(format!("({})", self.name()?), Ratio::new(1, index))
    }

    /// A text that is the same for equal values wherever the denominator is one term.
    fn name(&self) -> Eval<String> {
        let mut name = String::new();
        for poly in [&self.numerator, &self.denominator] {
            for (Monomial { symbols, root, is_imaginary }, value) in &poly.0 {
                // Writing decimal digits takes time quadratic in their count.
                if bits(value) > 1024 {
                    return Err(EvalError::TooLarge("a number under a root or function"));
                }
                // Writing to a string never fails.
                let _ = write!(name, "{value}√{root}{}", if *is_imaginary { "i" } else { "" });
                for (symbol, exponent) in symbols {
                    let _ = write!(name, "·{symbol}^{exponent}");
                }
                name.push('+');
            }
            name.push('/');
            if name.len() > NAME_LEN_MAX {
                return Err(EvalError::TooLarge("an expression under a root or function"));
            }
        }
        Ok(name)
    }
}

fn power_rational(base: &BigRational, exponent: i64, budget: &mut Budget) -> Eval<BigRational> {
    if base.is_zero() || base.is_one() {
        return Ok(if exponent == 0 { BigRational::one() } else { base.clone() });
    }
    if (-base).is_one() {
        return Ok(if exponent % 2 == 0 { BigRational::one() } else { base.clone() });
    }
    let bits = bits(base).saturating_mul(exponent.unsigned_abs());
    budget.charge_bits(bits)?;
    let exponent = u32::try_from(exponent).map_err(|_| EvalError::TooLarge("an exponent"))?;
    Ok(Pow::pow(base, exponent))
}

/// A root of a rational number: exact where there is one, `a·√n` for square roots, `a·n^(1/k)` with
/// the `n^(1/k)` as a symbol otherwise.
fn root_of_rational(value: &BigRational, index: i64, budget: &mut Budget) -> Eval<Value> {
    let Some(index_u32) = u32::try_from(index).ok().filter(|i| *i <= 64) else {
        return Value::rational(value.clone()).opaque_root(index);
    };
    if value.is_negative() {
        let positive = root_of_rational(&-value, index, budget)?;
        return match index {
            2 => {
                let unit = Monomial { is_imaginary: true, ..Monomial::one() };
                let i = Value::from_poly(Poly::single(unit, BigRational::one()));
                positive.times(&i, budget)
            }
            _ if index % 2 == 1 => Ok(positive.negated()),
            _ => Value::rational(value.clone()).opaque_root(index),
        };
    }
    // (p/d)^(1/k) = (p·d^(k-1))^(1/k) / d
    budget.charge_bits(value.numer().bits() + value.denom().bits() * index.unsigned_abs())?;
    let radicand = value.numer() * Pow::pow(value.denom(), index_u32 - 1);
    let Some((outside, inside)) = split_power(radicand, index_u32, budget)? else {
        return Value::rational(value.clone()).opaque_root(index);
    };
    let outside = BigRational::new(outside, value.denom().clone());
    if inside.is_one() {
        return Ok(Value::rational(outside));
    }
    if let (2, Some(root)) = (index, inside.to_u64()) {
        let surd = Monomial { root, ..Monomial::one() };
        return Ok(Value::from_poly(Poly::single(surd, outside)));
    }
    let symbol = Value::opaque(format!("({inside})"), Ratio::new(1, index))?;
    symbol.times(&Value::rational(outside), budget)
}

/// `n = a^k · b` with no k-th power left in `b`: (a, b). None where that would take a
/// factorisation that is too long.
fn split_power(n: BigInt, k: u32, budget: &mut Budget) -> Eval<Option<(BigInt, BigInt)>> {
    // Newton's method: some forty divisions.
    budget.charge(64 * (n.bits() / 64 + 1).pow(2))?;
    let root = n.nth_root(k);
    if Pow::pow(&root, k) == n {
        return Ok(Some((root, BigInt::one())));
    }
    let Some(mut rest) = n.to_u64() else {
        return Ok(None);
    };
    budget.charge(16 * FACTOR_MAX.min(rest.isqrt()))?;
    let mut outside = 1u64;
    let mut inside = 1u64;
    for factor in 2..FACTOR_MAX {
        if factor * factor > rest {
            break;
        }
        let mut count = 0;
        while rest % factor == 0 {
            rest /= factor;
            count += 1;
        }
        outside *= factor.pow(count / k);
        inside *= factor.pow(count % k);
    }
    // What is left has no factor below the bound: below its cube it is a prime, a product of two
    // primes, or the square of one.
    let square_root = rest.isqrt();
    if k == 2 && square_root * square_root == rest {
        outside *= square_root;
    } else if rest < FACTOR_MAX.pow(3) {
        inside *= rest;
    } else {
        return Ok(None);
    }
    Ok(Some((outside.into(), inside.into())))
}

/// The exact value of an expression.
pub(super) fn eval(expr: &Expr, budget: &mut Budget) -> Eval<Value> {
    budget.charge(64)?;
    match expr {
        Expr::Number(literal) => literal_value(literal, budget).map(Value::rational),
        Expr::Based { digits, base } => {
            budget.charge_bits(digits.len() as u64 * 6)?;
            let value =
                BigInt::parse_bytes(digits.as_bytes(), *base).ok_or(EvalError::Undefined)?;
            Ok(Value::rational(BigRational::from_integer(value)))
        }
        Expr::Symbol(name) if name == "i" => {
            let i = Monomial { is_imaginary: true, ..Monomial::one() };
            Ok(Value::from_poly(Poly::single(i, BigRational::one())))
        }
        Expr::Symbol(name) => Ok(Value::symbol(name.as_str().into(), Ratio::one())),
        Expr::Neg(inner) => Ok(eval(inner, budget)?.negated()),
        Expr::Sum(terms) => {
            let mut sum = Value::integer(0);
            for term in terms {
                sum = sum.plus(eval(term, budget)?, budget)?;
            }
            Ok(sum)
        }
        Expr::Product(factors) => {
            let mut product = Value::integer(1);
            for factor in factors {
                product = product.times(&eval(factor, budget)?, budget)?;
            }
            Ok(product)
        }
        Expr::Quotient(dividend, divisor) => {
            let divisor = eval(divisor, budget)?.reciprocal(budget)?;
            eval(dividend, budget)?.times(&divisor, budget)
        }
        Expr::Power(base, exponent) => {
            let base = eval(base, budget)?;
            power(base, eval(exponent, budget)?, budget)
        }
        Expr::Root(index, radicand) => {
            let index = eval(index, budget)?.reciprocal(budget)?;
            power(eval(radicand, budget)?, index, budget)
        }
        Expr::Percent(inner) => {
            let hundredth = BigRational::new(1.into(), 100.into());
            eval(inner, budget)?.times(&Value::rational(hundredth), budget)
        }
        Expr::Factorial(inner) => factorial(eval(inner, budget)?, budget),
        Expr::Binomial(n, k) => binomial(eval(n, budget)?, eval(k, budget)?, budget),
        Expr::Abs(inner) => {
            let value = eval(inner, budget)?;
            match value.as_rational() {
                Some(rational) => Ok(Value::rational(rational.abs())),
                None => Value::opaque(format!("|{}|", value.name()?), Ratio::one()),
            }
        }
        Expr::Call { name, base, argument } => call(name, base.as_deref(), argument, budget),
        Expr::Quantity(inner, _) => eval(inner, budget),
        Expr::PlusMinus(..)
        | Expr::List(..)
        | Expr::Matrix(_)
        | Expr::Sets(..)
        | Expr::Relation(..) => Err(EvalError::NotANumber),
    }
}

/// The exact value of a decimal number.
pub(super) fn literal_value(literal: &Literal, budget: &mut Budget) -> Eval<BigRational> {
    let Literal { integer, fraction, repeating, exponent } = literal;
    let shift = exponent.checked_sub(fraction.len() as i64).unwrap_or(i64::MIN);
    let digits_len = (integer.len() + fraction.len() + repeating.len()) as u64;
    // A decimal digit takes less than four bits.
    let bits = digits_len.saturating_add(shift.unsigned_abs()).saturating_mul(4);
    let number = |digits: &str| {
        let digits = if digits.is_empty() { "0" } else { digits };
        BigInt::parse_bytes(digits.as_bytes(), 10).ok_or(EvalError::Undefined)
    };
    if shift == 0 && repeating.is_empty() {
        // No fraction to reduce.
        budget.charge(64 + bits)?;
        return Ok(BigRational::from_integer(number(integer)?));
    }
    budget.charge_bits(bits)?;
    let ten_to = |power: u64| Pow::pow(BigInt::from(10), power);
    let mut value = BigRational::from_integer(number(&format!("{integer}{fraction}"))?);
    if !repeating.is_empty() {
        let nines = ten_to(repeating.len() as u64) - 1;
        value += BigRational::new(number(repeating)?, nines);
    }
    let scale = BigRational::from_integer(ten_to(shift.unsigned_abs()));
    Ok(if shift < 0 { value / scale } else { value * scale })
}

fn power(base: Value, exponent: Value, budget: &mut Budget) -> Eval<Value> {
    let Some(rational) = exponent.as_rational() else {
        let name = format!("({})^({})", base.name()?, exponent.name()?);
        return Value::opaque(name, Ratio::one());
    };
    let is_fixed = base.as_rational().is_some_and(|b| b.is_one());
    if is_fixed {
        return Ok(base);
    }
    let (Some(numerator), Some(index)) = (rational.numer().to_i64(), rational.denom().to_i64())
    else {
        return Err(EvalError::TooLarge("an exponent"));
    };
    if index > EXPONENT_MAX {
        return Err(EvalError::TooLarge("an exponent"));
    }
    if base.is_zero() {
        return if numerator > 0 { Ok(base) } else { Err(EvalError::Undefined) };
    }
    let base = if index == 1 { base } else { base.root(index, budget)? };
    base.power_integer(numerator, budget)
}

/// A whole number from 0 to 1000.
fn small_whole(value: &Value) -> Eval<Option<u32>> {
    match value.as_rational() {
        Some(rational) if rational.is_integer() && !rational.is_negative() => {
            match rational.numer().to_u32() {
                Some(n) if n <= 1000 => Ok(Some(n)),
                _ => Err(EvalError::TooLarge("the argument of a factorial")),
            }
        }
        _ => Ok(None),
    }
}

fn factorial(value: Value, budget: &mut Budget) -> Eval<Value> {
    let Some(n) = small_whole(&value)? else {
        return Value::opaque(format!("({})!", value.name()?), Ratio::one());
    };
    // 1000! has 8,530 bits.
    budget.charge(u64::from(n) * 256)?;
    let product = (2..=n).fold(BigInt::one(), |product, factor| product * factor);
    Ok(Value::rational(BigRational::from_integer(product)))
}

fn binomial(n: Value, k: Value, budget: &mut Budget) -> Eval<Value> {
    let (n_whole, k_whole) = (small_whole(&n)?, small_whole(&k)?);
    if let (None, Some(k_whole @ 0..=8)) = (n_whole, k_whole) {
        // n(n-1)…(n-k+1)/k!
        let mut product = Value::integer(1);
        for step in 0..i64::from(k_whole) {
            let factor = n.clone().plus(Value::integer(-step), budget)?;
            let share = Value::rational(BigRational::new(1.into(), (step + 1).into()));
            product = product.times(&factor, budget)?.times(&share, budget)?;
        }
        return Ok(product);
    }
    let (Some(n_whole), Some(k_whole)) = (n_whole, k_whole) else {
        return Value::opaque(format!("C({},{})", n.name()?, k.name()?), Ratio::one());
    };
    budget.charge(u64::from(n_whole) * 512)?;
    let mut result = if k_whole > n_whole { BigInt::zero() } else { BigInt::one() };
    for step in 0..k_whole.min(n_whole) {
        result = result * (n_whole - step) / (step + 1);
    }
    Ok(Value::rational(BigRational::from_integer(result)))
}

fn call(name: &str, base: Option<&Expr>, argument: &Expr, budget: &mut Budget) -> Eval<Value> {
    let argument = eval(&in_radians(argument), budget)?;
    if let ("floor" | "ceil", Some(value)) = (name, argument.as_rational()) {
        budget.charge_bits(bits(&value))?;
        return Ok(Value::rational(if name == "floor" { value.floor() } else { value.ceil() }));
    }
    let base = match base {
        Some(base) => eval(base, budget)?.name()?,
        None => String::new(),
    };
    Value::opaque(format!("{name}_{base}({})", argument.name()?), Ratio::one())
}

/// The angle with its degrees as multiples of π/180.
pub(super) fn in_radians(angle: &Expr) -> Cow<'_, Expr> {
    if !has_degrees(angle) {
        return Cow::Borrowed(angle);
    }
    let mut radians = angle.clone();
    replace_degrees(&mut radians);
    Cow::Owned(radians)
}

fn has_degrees(expr: &Expr) -> bool {
    matches!(expr, Expr::Quantity(_, Some("degree")))
        || expr.children().into_iter().any(has_degrees)
}

fn replace_degrees(expr: &mut Expr) {
    if let Expr::Quantity(inner, Some("degree")) = expr {
        let inner = std::mem::replace(&mut **inner, Expr::Sum(Vec::new()));
        let half_turn = Box::new(Expr::whole("180"));
        let share = Expr::Quotient(Box::new(Expr::Symbol("π".to_owned())), half_turn);
        *expr = Expr::Product(vec![inner, share]);
    }
    for child in expr.children_mut() {
        replace_degrees(child);
    }
}
