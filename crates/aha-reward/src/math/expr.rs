//! The tree of an answer.

use std::collections::BTreeSet;

use super::lex::Literal;

/// An answer as a tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Number(Literal),
    /// `1011_2`
    Based {
        digits: String,
        base: u32,
    },
    Symbol(String),
    Neg(Box<Expr>),
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Quotient(Box<Expr>, Box<Expr>),
    Power(Box<Expr>, Box<Expr>),
    /// A root of that index.
    Root(Box<Expr>, Box<Expr>),
    Percent(Box<Expr>),
    Factorial(Box<Expr>),
    Binomial(Box<Expr>, Box<Expr>),
    Abs(Box<Expr>),
    Call {
        name: &'static str,
        base: Option<Box<Expr>>,
        argument: Box<Expr>,
    },
    /// `±` or `∓` before a term; the whole answer becomes two answers.
    PlusMinus(char, Box<Expr>),
    List(Brackets, Vec<Expr>),
    Matrix(Vec<Vec<Expr>>),
    /// Sets joined by `∪`, `∩` or `∖`; with `|`, the letter and the conditions of `{x | x > 3}`.
    Sets(char, Vec<Expr>),
    Relation(char, Box<Expr>, Box<Expr>),
    /// A value and what it is measured in, where that is a known unit.
    Quantity(Box<Expr>, Option<&'static str>),
}

/// What stands around the items of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brackets {
    /// Nothing: the order doesn't matter.
    Bare,
    /// Braces: the order doesn't matter.
    Set,
    /// A tuple or an interval.
    Pair(char, char),
    /// Parts of a ratio, `2:3:5`.
    Ratio,
}

/// Whether the name is a variable, and not a constant or a set.
pub(super) fn is_unknown(name: &str) -> bool {
    !matches!(name, "π" | "e" | "i" | "∞" | "∅" | "ℝ" | "ℤ" | "ℕ" | "ℚ" | "ℂ")
}

/// Replaces an item that holds `±` by the two that it stands for.
pub(super) fn both_signs(item: Expr) -> Vec<Expr> {
    if has_plus_minus(&item) {
        vec![with_sign(&item, '±'), with_sign(&item, '∓')]
    } else {
        vec![item]
    }
}

fn has_plus_minus(expr: &Expr) -> bool {
    matches!(expr, Expr::PlusMinus(..)) || expr.children().into_iter().any(has_plus_minus)
}

/// The expression with that sign read as plus and the other as minus.
fn with_sign(expr: &Expr, plus: char) -> Expr {
    let mut copy = expr.clone();
    replace_signs(&mut copy, plus);
    copy
}

fn replace_signs(expr: &mut Expr, plus: char) {
    if let Expr::PlusMinus(sign, term) = expr {
        let term = std::mem::replace(&mut **term, Expr::Sum(Vec::new()));
        *expr = if *sign == plus { term } else { Expr::Neg(Box::new(term)) };
    }
    for child in expr.children_mut() {
        replace_signs(child, plus);
    }
}

impl Expr {
    /// A whole number by its digits.
    pub fn whole(digits: &str) -> Self {
        Expr::Number(Literal { integer: digits.to_owned(), ..Literal::default() })
    }

    /// Adds the names of the letters that stand for an unknown.
    pub fn add_unknowns<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        match self {
            Expr::Symbol(name) if is_unknown(name) => {
                names.insert(name);
            }
            _ => self.children().into_iter().for_each(|child| child.add_unknowns(names)),
        }
    }

    /// Whether an unknown occurs.
    pub fn has_unknowns(&self) -> bool {
        match self {
            Expr::Symbol(name) => is_unknown(name),
            _ => self.children().into_iter().any(Expr::has_unknowns),
        }
    }

    /// Whether the imaginary unit occurs.
    pub fn is_complex(&self) -> bool {
        matches!(self, Expr::Symbol(name) if name == "i")
            || self.children().into_iter().any(Expr::is_complex)
    }

    /// The parts, from left to right.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Number(_) | Expr::Based { .. } | Expr::Symbol(_) => Vec::new(),
            Expr::Neg(a)
            | Expr::Percent(a)
            | Expr::Factorial(a)
            | Expr::Abs(a)
            | Expr::PlusMinus(_, a)
            | Expr::Quantity(a, _) => vec![&**a],
            Expr::Quotient(a, b)
            | Expr::Power(a, b)
            | Expr::Root(a, b)
            | Expr::Binomial(a, b)
            | Expr::Relation(_, a, b) => vec![&**a, &**b],
            Expr::Call { base, argument, .. } => {
                base.as_deref().into_iter().chain([&**argument]).collect()
            }
            Expr::Sum(items)
            | Expr::Product(items)
            | Expr::List(_, items)
            | Expr::Sets(_, items) => items.iter().collect(),
            Expr::Matrix(rows) => rows.iter().flatten().collect(),
        }
    }

    /// The parts, to be changed.
    pub fn children_mut(&mut self) -> Vec<&mut Expr> {
        match self {
            Expr::Number(_) | Expr::Based { .. } | Expr::Symbol(_) => Vec::new(),
            Expr::Neg(a)
            | Expr::Percent(a)
            | Expr::Factorial(a)
            | Expr::Abs(a)
            | Expr::PlusMinus(_, a)
            | Expr::Quantity(a, _) => vec![&mut **a],
            Expr::Quotient(a, b)
            | Expr::Power(a, b)
            | Expr::Root(a, b)
            | Expr::Binomial(a, b)
            | Expr::Relation(_, a, b) => vec![&mut **a, &mut **b],
            Expr::Call { base, argument, .. } => {
                base.as_deref_mut().into_iter().chain([&mut **argument]).collect()
            }
            Expr::Sum(items)
            | Expr::Product(items)
            | Expr::List(_, items)
            | Expr::Sets(_, items) => items.iter_mut().collect(),
            Expr::Matrix(rows) => rows.iter_mut().flatten().collect(),
        }
    }
}
