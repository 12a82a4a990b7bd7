//! Are two trees the same answer?

use std::borrow::Cow;

use num_rational::BigRational;
use num_traits::{One, Signed};

use super::approx;
use super::expr::{Brackets, Expr, is_unknown};
use super::sets::{RealSet, turned, unknown_of};
use super::value::{self, Budget, EvalError};

/// What the comparison of two trees depends on.
pub(super) struct Comparison {
    /// A decimal with at least this many places after the point, and as many significant digits,
    /// may be the other answer rounded. 0 turns it off.
    pub rounding_places: u32,
    /// Where two expressions are compared by their values; see [`approx::is_identity`].
    pub seed: u64,
    pub budget: Budget,
}

type Eval<T> = Result<T, EvalError>;

impl Comparison {
    /// Whether `pred` is the answer `gold`.
    pub fn answers(&mut self, gold: &Expr, pred: &Expr) -> Eval<bool> {
        let (gold, pred) = unwrap_relations(gold, pred);
        let pred = match (gold, pred) {
            // 5 + 7 = 12 says 12, 5 = 12 says nothing.
            (_, Expr::Relation('=' | '≈', left, right))
                if !matches!(gold, Expr::Relation(..) | Expr::List(..)) =>
            {
                if !self.is_same(left, right)? {
                    return Ok(false);
                }
                right
            }
            _ => pred,
        };
        if let (Expr::Based { digits, .. }, Expr::Number(literal)) = (gold, pred) {
            // The question names the base, and an answer may leave it out.
            return Ok(literal.fraction.is_empty() && literal.integer == *digits);
        }
        if let (Expr::Symbol(gold), Expr::Symbol(pred)) = (gold, pred)
            && matches!(gold.as_bytes(), [b'A'..=b'J' | b'a'..=b'j'])
            && gold.eq_ignore_ascii_case(pred)
        {
            // The letter of a choice.
            return Ok(true);
        }
        if self.is_same(gold, pred)? || self.is_set_of(gold, pred)? {
            return Ok(true);
        }
        self.is_same_but_for_percent(gold, pred)
    }

    /// Whether `pred` is the set of the numbers for which the relation `gold` holds. Not the other way
    /// round: a question that asks for an interval is not answered by a condition, one that asks for `{x | x > 3}`
    /// is.
    fn is_set_of(&mut self, gold: &Expr, pred: &Expr) -> Eval<bool> {
        let (relation, set) = match gold {
            Expr::Sets('|', _) => (pred, gold),
            _ => (gold, pred),
        };
        if !matches!(set, Expr::Sets(..) | Expr::Symbol(_) | Expr::List(Brackets::Pair(..), _)) {
            return Ok(false);
        }
        let Some(wanted) = RealSet::of_relation(relation, &mut self.budget) else {
            return Ok(false);
        };
        match RealSet::of(set, &mut self.budget).and_then(|set| wanted.pairs_of_ends(&set)) {
            Some(pairs) => self.all_same(pairs.into_iter()),
            None => Ok(false),
        }
    }

    /// A question may say "what percentage": then 50 and 50% are one answer. Up to 1 a number is
    /// taken for the share itself: 0.5 is not 0.5%.
    fn is_same_but_for_percent(&mut self, gold: &Expr, pred: &Expr) -> Eval<bool> {
        // 30% is no 30 degrees.
        if [gold, pred].iter().any(|side| matches!(side, Expr::Quantity(_, Some(_)))) {
            return Ok(false);
        }
        let (percentage, number) = match (bare(gold), bare(pred)) {
            (Expr::Percent(_), Expr::Percent(_)) => return Ok(false),
            (Expr::Percent(percentage), number) | (number, Expr::Percent(percentage)) => {
                (percentage, number)
            }
            _ => return Ok(false),
        };
        if !self.is_same(percentage, number)? {
            return Ok(false);
        }
        let value = value::eval(number, &mut self.budget)?.as_rational();
        Ok(value.is_some_and(|value| value.abs() > BigRational::one()))
    }

    fn is_same(&mut self, a: &Expr, b: &Expr) -> Eval<bool> {
        self.budget.charge(16)?;
        match (a, b) {
            (Expr::Quantity(_, Some(a_unit)), Expr::Quantity(_, Some(b_unit)))
                if !is_same_unit(a_unit, b_unit) =>
            {
                Ok(false)
            }
            (Expr::Quantity(a, _), b) | (b, Expr::Quantity(a, _)) => self.is_same(a, b),
            (Expr::List(a_kind, a), Expr::List(b_kind, b)) => {
                self.is_same_list((*a_kind, a), (*b_kind, b))
            }
            // The set of one solution is that solution.
            (Expr::List(Brackets::Set, items), other)
            | (other, Expr::List(Brackets::Set, items))
                if items.len() == 1 =>
            {
                self.is_same(&items[0], other)
            }
            _ if let (Some(a), Some(b)) = (matrix(a), matrix(b)) => {
                let is_same_shape =
                    a.len() == b.len() && a.iter().zip(&*b).all(|(a, b)| a.len() == b.len());
                let items = a.iter().flatten().zip(b.iter().flatten());
                Ok(is_same_shape && self.all_same(items)?)
            }
            (Expr::Sets(..), _) | (_, Expr::Sets(..)) => self.is_same_set(a, b),
            (Expr::Symbol(name), _) | (_, Expr::Symbol(name)) if name == "ℝ" => {
                self.is_same_set(a, b)
            }
            (Expr::Relation(..), Expr::Relation(..)) => self.is_same_relation(a, b),
            (Expr::List(..) | Expr::Matrix(_) | Expr::Relation(..), _)
            | (_, Expr::List(..) | Expr::Matrix(_) | Expr::Relation(..)) => Ok(false),
            _ => self.is_same_value(a, b),
        }
    }

    /// Unions, intersections and differences: by the numbers in them, or part by part.
    fn is_same_set(&mut self, a: &Expr, b: &Expr) -> Eval<bool> {
        if a == b {
            return Ok(true);
        }
        let sets = (RealSet::of(a, &mut self.budget), RealSet::of(b, &mut self.budget));
        if let (Some(a), Some(b)) = sets {
            return match a.pairs_of_ends(&b) {
                Some(pairs) => self.all_same(pairs.into_iter()),
                None => Ok(false),
            };
        }
        let (Expr::Sets(a_operator, a), Expr::Sets(b_operator, b)) = (a, b) else {
            return Ok(false);
        };
        let (a, b): (Vec<_>, Vec<_>) = (a.iter().collect(), b.iter().collect());
        if a_operator != b_operator {
            return Ok(false);
        }
        match a_operator {
            '∪' | '∩' => self.is_same_in_any_order(&a, b),
            _ => Ok(a.len() == b.len() && self.all_same(a.into_iter().zip(b))?),
        }
    }

    fn all_same<'a>(&mut self, pairs: impl Iterator<Item = (&'a Expr, &'a Expr)>) -> Eval<bool> {
        for (a, b) in pairs {
            if !self.is_same(a, b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_same_list(&mut self, a: (Brackets, &[Expr]), b: (Brackets, &[Expr])) -> Eval<bool> {
        use Brackets::{Bare, Pair, Set};
        let ((a_kind, a), (b_kind, b)) = (a, b);
        if (a_kind, b_kind) == (Set, Set) && a.len() != b.len() {
            // {1, 1, 2} is {1, 2}.
            let (a, b) = (self.distinct(a)?, self.distinct(b)?);
            return self.is_same_in_any_order(&a, b);
        }
        if a.len() != b.len() {
            return Ok(false);
        }
        match (a_kind, b_kind) {
            (Bare | Set, Bare | Set) => {
                let ((a_name, a), (b_name, b)) = (solutions(a), solutions(b));
                let is_other_name = a_name.is_some() && b_name.is_some() && a_name != b_name;
                Ok(!is_other_name && self.is_same_in_any_order(&a, b)?)
            }
            (Bare, Pair('(', ')')) => self.all_same(in_order_of_names(a).into_iter().zip(b)),
            (Pair('(', ')'), Bare) => self.all_same(a.iter().zip(in_order_of_names(b))),
            _ => Ok(a_kind == b_kind && self.all_same(a.iter().zip(b))?),
        }
    }

    fn distinct<'a>(&mut self, items: &'a [Expr]) -> Eval<Vec<&'a Expr>> {
        let mut distinct: Vec<&Expr> = Vec::new();
        for item in items {
            let mut is_new = true;
            for known in &distinct {
                is_new &= !self.is_same(known, item)?;
            }
            if is_new {
                distinct.push(item);
            }
        }
        Ok(distinct)
    }

    fn is_same_in_any_order(&mut self, a: &[&Expr], b: Vec<&Expr>) -> Eval<bool> {
        let mut left = b;
        for item in a {
            let mut found = None;
            for (idx, other) in left.iter().enumerate() {
                if self.is_same(item, other)? {
                    found = Some(idx);
                    break;
                }
            }
            match found {
                Some(idx) => left.remove(idx),
                None => return Ok(false),
            };
        }
        Ok(left.is_empty())
    }

    fn is_same_relation(&mut self, a: &Expr, b: &Expr) -> Eval<bool> {
        let (Expr::Relation(a_op, a_left, a_right), Expr::Relation(b_op, b_left, b_right)) = (a, b)
        else {
            return Ok(false);
        };
        let is_as_written =
            a_op == b_op && self.is_same(a_left, b_left)? && self.is_same(a_right, b_right)?;
        if is_as_written {
            return Ok(true);
        }
        if turned(*a_op) == Some(*b_op)
            && self.is_same(a_left, b_right)?
            && self.is_same(a_right, b_left)?
        {
            return Ok(true);
        }
        // 1 < x < 2 and 2 > x > 1.
        if unknown_of(a).is_some() && unknown_of(a) == unknown_of(b) {
            let of = |relation| RealSet::of_relation(relation, &mut self.budget);
            let sets: Vec<_> = [a, b].into_iter().map_while(of).collect();
            if let [a, b] = &sets[..] {
                return match a.pairs_of_ends(b) {
                    Some(pairs) => self.all_same(pairs.into_iter()),
                    None => Ok(false),
                };
            }
        }
        // x = 5 is solved, 2x = 10 is not.
        let is_solved = |relation| solution(relation).is_some_and(|value| !value.has_unknowns());
        if is_solved(a) || is_solved(b) || turned(*a_op).is_none() {
            return Ok(false);
        }
        self.is_multiple((*a_op, a_left, a_right), (*b_op, b_left, b_right))
    }

    /// Whether one relation is the other multiplied by a number: x + y = 1 and 2x = 2 - 2y.
    fn is_multiple(
        &mut self,
        (a_op, a_left, a_right): (char, &Expr, &Expr),
        (b_op, b_left, b_right): (char, &Expr, &Expr),
    ) -> Eval<bool> {
        let Some(a) = self.difference(a_left, a_right)? else {
            return Ok(false);
        };
        let Some(b) = self.difference(b_left, b_right)? else {
            return Ok(false);
        };
        let Some(ratio) = a.rational_ratio(&b, &mut self.budget)? else {
            return Ok(false);
        };
        Ok(match a_op {
            '=' | '≠' => a_op == b_op,
            _ if ratio.is_positive() => a_op == b_op,
            _ => turned(a_op) == Some(b_op),
        })
    }

    fn difference(&mut self, left: &Expr, right: &Expr) -> Eval<Option<value::Value>> {
        let mut of = |expr: &Expr| match value::eval(expr, &mut self.budget) {
            Ok(value) => Ok(Some(value)),
            Err(EvalError::TooLarge(what)) => Err(EvalError::TooLarge(what)),
            Err(_) => Ok(None),
        };
        match (of(left)?, of(right)?) {
            (Some(left), Some(right)) => left.minus(right, &mut self.budget).map(Some),
            _ => Ok(None),
        }
    }

    fn is_same_value(&mut self, a: &Expr, b: &Expr) -> Eval<bool> {
        let (a_value, b_value) =
            match (value::eval(a, &mut self.budget), value::eval(b, &mut self.budget)) {
                (Ok(a), Ok(b)) => (a, b),
                (Err(EvalError::TooLarge(what)), _) | (_, Err(EvalError::TooLarge(what))) => {
                    // Too large to be multiplied out, but not to be looked at here and there.
                    let is_same = a.has_unknowns()
                        && b.has_unknowns()
                        && approx::is_identity(a, b, self.seed, &mut self.budget);
                    return if is_same { Ok(true) } else { Err(EvalError::TooLarge(what)) };
                }
                // Nothing equals 1/0; equal spelling was looked at before.
                _ => return Ok(false),
            };
        let is_equal = a_value.equals(&b_value, &mut self.budget)?;
        let is_opaque = a_value.is_opaque || b_value.is_opaque;
        if is_equal || (is_opaque && approx::is_identity(a, b, self.seed, &mut self.budget)) {
            return Ok(true);
        }
        Ok(self.is_rounded(a, b)? || self.is_rounded(b, a)?)
    }

    /// Whether `rounded` is a decimal that `exact` rounds to.
    fn is_rounded(&mut self, rounded: &Expr, exact: &Expr) -> Eval<bool> {
        let Some(decimal) = self.long_decimal(rounded)? else {
            return Ok(false);
        };
        let exact = approx::real(exact, &mut self.budget);
        // A program that divides prints a double: some sixteen digits, the last ones not rounded.
        Ok(exact.is_some_and(|exact| {
            exact.rounds_to(&decimal.value, decimal.places)
                || (decimal.digit_count >= 15 && exact.is_double(&decimal.value))
        }))
    }

    /// The value of a decimal that is long enough to be a rounded number.
    fn long_decimal(&mut self, expr: &Expr) -> Eval<Option<Decimal>> {
        match expr {
            Expr::Neg(inner) => Ok(self
                .long_decimal(inner)?
                .map(|decimal| Decimal { value: -decimal.value, ..decimal })),
            Expr::Quantity(inner, _) => self.long_decimal(inner),
            Expr::Number(literal) if literal.repeating.is_empty() && literal.exponent == 0 => {
                let places = literal.fraction.len() as u32;
                let digits = literal.integer.bytes().chain(literal.fraction.bytes());
                let digit_count = digits.skip_while(|b| *b == b'0').count();
                let is_long = self.rounding_places > 0
                    && (self.rounding_places..=64).contains(&places)
                    && digit_count >= self.rounding_places as usize;
                if !is_long {
                    return Ok(None);
                }
                let value = value::literal_value(literal, &mut self.budget)?;
                Ok(Some(Decimal { value, places, digit_count }))
            }
            _ => Ok(None),
        }
    }
}

/// A decimal that may be rounded.
struct Decimal {
    value: BigRational,
    /// Digits after the point.
    places: u32,
    /// Significant ones.
    digit_count: usize,
}

/// Without the unit.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Quantity(inner, _) => bare(inner),
        _ => expr,
    }
}

/// Most entries of a matrix that is multiplied by a number.
const SCALED_ENTRIES_MAX: usize = 36;

/// The matrix that a tree is, multiples and sums worked out entry by entry.
fn matrix(expr: &Expr) -> Option<Cow<'_, [Vec<Expr>]>> {
    // A large factor would be copied to each entry.
    let each = |rows: &[Vec<Expr>], entry: &dyn Fn(Expr) -> Expr| {
        let is_small = rows.iter().map(Vec::len).sum::<usize>() <= SCALED_ENTRIES_MAX;
        is_small.then(|| {
            let changed = rows.iter().map(|row| row.iter().cloned().map(entry).collect());
            Cow::Owned(changed.collect::<Vec<_>>())
        })
    };
    match expr {
        Expr::Matrix(rows) => Some(Cow::Borrowed(rows)),
        Expr::Neg(inner) => each(&matrix(inner)?, &|entry| Expr::Neg(Box::new(entry))),
        Expr::Quotient(dividend, divisor) => {
            let rows = matrix(dividend)?;
            let over = |entry| Expr::Quotient(Box::new(entry), divisor.clone());
            each(&rows, &over)
        }
        // A number before or behind; the product of two matrices is not worked out.
        Expr::Product(factors) if factors.len() == 2 => {
            let (factor, rows) = match (matrix(&factors[0]), matrix(&factors[1])) {
                (Some(rows), None) => (&factors[1], rows),
                (None, Some(rows)) => (&factors[0], rows),
                _ => return None,
            };
            let times = |entry| Expr::Product(vec![factor.clone(), entry]);
            each(&rows, &times)
        }
        Expr::Sum(terms) => {
            let mut sum = matrix(terms.first()?)?.into_owned();
            for term in &terms[1..] {
                let rows = matrix(term)?;
                let is_same_shape = sum.len() == rows.len()
                    && sum.iter().zip(&*rows).all(|(a, b)| a.len() == b.len());
                if !is_same_shape {
                    return None;
                }
                for (a, b) in sum.iter_mut().flatten().zip(rows.iter().flatten()) {
                    *a = Expr::Sum(vec![a.clone(), b.clone()]);
                }
            }
            Some(Cow::Owned(sum))
        }
        _ => None,
    }
}

/// °C and °F are degrees, and not each other's; "5 pounds" may be weight or money.
fn is_same_unit(a: &str, b: &str) -> bool {
    let is_temperature = |unit| matches!(unit, "celsius" | "fahrenheit");
    let is_pound = |unit| matches!(unit, "pound" | "pound sterling");
    a == b
        || (a == "degree" && is_temperature(b))
        || (b == "degree" && is_temperature(a))
        || (is_pound(a) && is_pound(b))
}

/// The values in `y = 2, x = 1` by the names' order, as a tuple would have them; other items as they are.
fn in_order_of_names(items: &[Expr]) -> Vec<&Expr> {
    let mut named = Vec::new();
    for item in items {
        match item {
            Expr::Relation('=', left, right) => match &**left {
                Expr::Symbol(name) if is_unknown(name) => named.push((name, &**right)),
                _ => return items.iter().collect(),
            },
            _ => return items.iter().collect(),
        }
    }
    named.sort_by_key(|(name, _)| *name);
    named.into_iter().map(|(_, value)| value).collect()
}

/// The value in `x = value`, `f(x) = value`, `value = x` or `x ∈ value`.
fn solution(relation: &Expr) -> Option<&Expr> {
    let is_name = |expr: &Expr| match expr {
        Expr::Symbol(name) => is_unknown(name),
        // (x, y) = (1, 2)
        Expr::List(Brackets::Pair('(', ')'), items) => {
            items.iter().all(|item| matches!(item, Expr::Symbol(name) if is_unknown(name)))
        }
        // f(x)
        Expr::Product(factors) => {
            factors.len() == 2 && factors.iter().all(|f| matches!(f, Expr::Symbol(_)))
        }
        _ => false,
    };
    match relation {
        Expr::Relation('=' | '≈' | '∈', left, right) if is_name(left) => Some(right),
        Expr::Relation('=', left, right) if is_name(right) => Some(left),
        _ => None,
    }
}

/// The values in `x = 1, x = 2` or `x = 1, 2`, and the name; other items as they are.
fn solutions(items: &[Expr]) -> (Option<&Expr>, Vec<&Expr>) {
    let name = match items.first() {
        Some(Expr::Relation('=', name, _)) if matches!(**name, Expr::Symbol(_)) => Some(&**name),
        _ => None,
    };
    let mut values: Vec<&Expr> = Vec::new();
    for item in items {
        match item {
            Expr::Relation('=', left, right) if Some(&**left) == name => values.push(right),
            Expr::Relation(..) => return (None, items.iter().collect()),
            _ => values.push(item),
        }
    }
    (name, values)
}

/// Where only one answer is a solution `x = …`, its value alone.
fn unwrap_relations<'a>(gold: &'a Expr, pred: &'a Expr) -> (&'a Expr, &'a Expr) {
    match (gold, pred) {
        (Expr::Relation(..), Expr::Relation(..)) => (gold, pred),
        (Expr::Relation(..), _) => (solution(gold).unwrap_or(gold), pred),
        (_, Expr::Relation(..)) => (gold, solution(pred).unwrap_or(pred)),
        _ => (gold, pred),
    }
}
