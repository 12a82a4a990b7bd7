//! Are two trees the same answer?

use num_rational::BigRational;
use num_traits::{One, Signed};

use super::approx::approx;
use super::parse::{Brackets, Expr};
use super::value::{self, Budget, EvalError};

/// What the comparison of two trees depends on.
pub(super) struct Comparison {
    /// A decimal with at least this many places after the point, and as many significant digits,
    /// may be the other answer rounded. 0 turns it off.
    pub rounding_places: u32,
    pub budget: Budget,
}

type Eval<T> = Result<T, EvalError>;

impl Comparison {
    /// Whether `pred` is the answer `gold`.
    pub fn answers(&mut self, gold: &Expr, pred: &Expr) -> Eval<bool> {
        let (gold, pred) = unwrap_relations(gold, pred);
        let pred = match (gold, pred) {
            // 5 + 7 = 12 says 12, 5 = 12 says nothing.
            (_, Expr::Relation('=', left, right))
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
            && gold.eq_ignore_ascii_case(pred)
        {
            // The letter of a choice.
            return Ok(true);
        }
        if self.is_same(gold, pred)? {
            return Ok(true);
        }
        self.is_same_but_for_percent(gold, pred)
    }

    /// A question may say "what percentage": then 50 and 50% are one answer. Up to 1 a number is
    /// taken for the share itself: 0.5 is not 0.5%.
    fn is_same_but_for_percent(&mut self, gold: &Expr, pred: &Expr) -> Eval<bool> {
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
                if a_unit != b_unit =>
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
            (Expr::Matrix(a), Expr::Matrix(b)) => {
                let is_same_shape =
                    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len());
                let items = a.iter().flatten().zip(b.iter().flatten());
                Ok(is_same_shape && self.all_same(items)?)
            }
            (Expr::Sets(a_operator, a), Expr::Sets(b_operator, b)) => {
                let (a, b): (Vec<_>, Vec<_>) = (a.iter().collect(), b.iter().collect());
                Ok(a_operator == b_operator && self.is_same_in_any_order(&a, b)?)
            }
            (Expr::Relation(..), Expr::Relation(..)) => self.is_same_relation(a, b),
            (Expr::List(..) | Expr::Matrix(_) | Expr::Sets(..) | Expr::Relation(..), _)
            | (_, Expr::List(..) | Expr::Matrix(_) | Expr::Sets(..) | Expr::Relation(..)) => {
                Ok(false)
            }
            _ => self.is_same_value(a, b),
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
        if a.len() != b.len() {
            return Ok(false);
        }
        match (a_kind, b_kind) {
            (Bare | Set, Bare | Set) => {
                let ((a_name, a), (b_name, b)) = (solutions(a), solutions(b));
                let is_other_name = a_name.is_some() && b_name.is_some() && a_name != b_name;
                Ok(!is_other_name && self.is_same_in_any_order(&a, b)?)
            }
            (Bare, Pair('(', ')')) | (Pair('(', ')'), Bare) => self.all_same(a.iter().zip(b)),
            _ => Ok(a_kind == b_kind && self.all_same(a.iter().zip(b))?),
        }
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
        // x = 5 is solved, 2x = 10 is not.
        let is_solved = solution(a).is_some() || solution(b).is_some();
        if is_solved || turned(*a_op).is_none() {
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
                    return Err(EvalError::TooLarge(what));
                }
                // Nothing equals 1/0; equal spelling was looked at before.
                _ => return Ok(false),
            };
        if a_value.equals(&b_value, &mut self.budget)? {
            return Ok(true);
        }
        if (a_value.is_opaque || b_value.is_opaque)
            && let (Some(a), Some(b)) = (approx(a, &mut self.budget), approx(b, &mut self.budget))
            && a.is_close(&b)
        {
            return Ok(true);
        }
        Ok(self.is_rounded(a, b)? || self.is_rounded(b, a)?)
    }

    /// Whether `rounded` is a decimal that `exact` rounds to.
    fn is_rounded(&mut self, rounded: &Expr, exact: &Expr) -> Eval<bool> {
        let Some((value, places)) = self.long_decimal(rounded)? else {
            return Ok(false);
        };
        let exact = approx(exact, &mut self.budget);
        Ok(exact.is_some_and(|exact| exact.rounds_to(&value, places)))
    }

    /// The value of a decimal that is long enough to be a rounded number, and its places.
    fn long_decimal(&mut self, expr: &Expr) -> Eval<Option<(BigRational, u32)>> {
        match expr {
            Expr::Neg(inner) => {
                Ok(self.long_decimal(inner)?.map(|(value, places)| (-value, places)))
            }
            Expr::Quantity(inner, _) => self.long_decimal(inner),
            Expr::Number(literal) if literal.repeating.is_empty() && literal.exponent == 0 => {
                let places = literal.fraction.len() as u32;
                let significant_count = literal
                    .integer
                    .bytes()
                    .chain(literal.fraction.bytes())
                    .skip_while(|b| *b == b'0');
                let is_long = self.rounding_places > 0
                    && (self.rounding_places..=64).contains(&places)
                    && significant_count.count() >= self.rounding_places as usize;
                if !is_long {
                    return Ok(None);
                }
                Ok(Some((value::literal_value(literal, &mut self.budget)?, places)))
            }
            _ => Ok(None),
        }
    }
}

/// Without the unit.
fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Quantity(inner, _) => bare(inner),
        _ => expr,
    }
}

/// The value in `x = value`, `f(x) = value`, `value = x` or `x ∈ value`.
fn solution(relation: &Expr) -> Option<&Expr> {
    let is_name = |expr: &Expr| match expr {
        Expr::Symbol(name) => name != "π" && name != "∞",
        // f(x)
        Expr::Product(factors) => {
            factors.len() == 2 && factors.iter().all(|f| matches!(f, Expr::Symbol(_)))
        }
        _ => false,
    };
    match relation {
        Expr::Relation('=' | '∈', left, right) if is_name(left) => Some(right),
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

/// The relation read from right to left.
fn turned(operator: char) -> Option<char> {
    match operator {
        '=' | '≠' | '≈' => Some(operator),
        '<' => Some('>'),
        '>' => Some('<'),
        '≤' => Some('≥'),
        '≥' => Some('≤'),
        _ => None,
    }
}
