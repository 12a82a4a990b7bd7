//! Sets of real numbers as sorted pieces, so that two spellings of one set compare as one:
//! `(0,2) ∪ [1,3]` and `(0,3]`, `x ≠ 2` and `(-∞,2) ∪ (2,∞)`, `ℝ \ {0}`.

use std::cmp::Ordering;

use super::approx;
use super::expr::{Brackets, Expr};
use super::fixed::Fixed;
use super::value::Budget;

/// An end of a piece.
#[derive(Clone)]
enum End<'a> {
    NegInfinity,
    At(Fixed, &'a Expr),
    Infinity,
}

impl End<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (End::At(a, _), End::At(b, _)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn cmp_digits(&self, other: &Self) -> Ordering {
        match (self, other) {
            (End::At(a, _), End::At(b, _)) => a.cmp_digits(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            End::NegInfinity => 0,
            End::At(..) => 1,
            End::Infinity => 2,
        }
    }
}

/// The numbers between two ends, a single one where both are the same.
#[derive(Clone)]
struct Piece<'a> {
    low: End<'a>,
    is_low_in: bool,
    high: End<'a>,
    is_high_in: bool,
}

/// Pieces in order, none touching the next.
pub(super) struct RealSet<'a> {
    pieces: Vec<Piece<'a>>,
}

impl<'a> RealSet<'a> {
    /// The set that a tree stands for; none where it is no set of real numbers with known ends.
    pub fn of(expr: &'a Expr, budget: &mut Budget) -> Option<Self> {
        let set = match expr {
            Expr::Symbol(name) if name == "ℝ" => Self::all(),
            Expr::Symbol(name) if name == "∅" => Self { pieces: Vec::new() },
            Expr::List(Brackets::Pair(open, close), items) if items.len() == 2 => {
                let piece = Piece {
                    low: end(&items[0], budget)?,
                    is_low_in: *open == '[',
                    high: end(&items[1], budget)?,
                    is_high_in: *close == ']',
                };
                // (2, 1) is a point of the plane.
                if piece.low.cmp(&piece.high) == Ordering::Greater {
                    return None;
                }
                Self::normal(vec![piece])
            }
            Expr::List(Brackets::Set, items) => {
                let mut pieces = Vec::new();
                for item in items {
                    let at = end(item, budget)?;
                    pieces.push(Piece {
                        low: at.clone(),
                        is_low_in: true,
                        high: at,
                        is_high_in: true,
                    });
                }
                Self::normal(pieces)
            }
            Expr::Sets('|', parts) => {
                let (letter, conditions) = parts.split_first()?;
                let mut result = Self::all();
                for condition in conditions {
                    if !matches!(letter, Expr::Symbol(name) if unknown_of(condition) == Some(name))
                    {
                        return None;
                    }
                    result = result.and(&Self::of_relation(condition, budget)?);
                }
                result
            }
            Expr::Sets(operator, sets) => {
                let mut sets = sets.iter().map(|set| Self::of(set, budget));
                let mut result = sets.next()??;
                for set in sets {
                    result = match operator {
                        '∪' => result.or(set?),
                        '∩' => result.and(&set?),
                        _ => result.and(&set?.complement()),
                    };
                }
                result
            }
            _ => return None,
        };
        Some(set)
    }

    /// The numbers for which a relation of one unknown and numbers holds: `x > 5`, `1 < x ≤ 2`, or several
    /// of them.
    pub fn of_relation(expr: &'a Expr, budget: &mut Budget) -> Option<Self> {
        match expr {
            Expr::Relation('∈', left, set) if is_unknown(left) => Self::of(set, budget),
            Expr::Relation(first, left, rest) => {
                if let Expr::Relation(second, middle, right) = &**rest {
                    // a < x < b; the second relation stands on the right of the first.
                    if !is_unknown(middle) {
                        return None;
                    }
                    let above = Self::of_one(turned(*first)?, left, budget)?;
                    return Some(above.and(&Self::of_one(*second, right, budget)?));
                }
                if is_unknown(left) {
                    Self::of_one(*first, rest, budget)
                } else if is_unknown(rest) {
                    Self::of_one(turned(*first)?, left, budget)
                } else {
                    None
                }
            }
            Expr::List(Brackets::Bare, items) => {
                let name = items.first().and_then(unknown_of);
                let mut sets = Vec::new();
                for item in items {
                    if unknown_of(item) != name {
                        return None;
                    }
                    sets.push(Self::of_relation(item, budget)?);
                }
                let either = sets.iter().fold(Self { pieces: Vec::new() }, |a, b| a.or(b.copy()));
                // "x > 1, x < 3" would be everything: then both are meant.
                let is_all = either.complement().pieces.is_empty();
                Some(if is_all { sets.iter().fold(Self::all(), |a, b| a.and(b)) } else { either })
            }
            _ => None,
        }
    }

    /// The numbers x with `x operator bound`.
    fn of_one(operator: char, bound: &'a Expr, budget: &mut Budget) -> Option<Self> {
        let at = end(bound, budget)?;
        let below = |is_high_in| Piece {
            low: End::NegInfinity,
            is_low_in: false,
            high: at.clone(),
            is_high_in,
        };
        let above = |is_low_in| Piece {
            low: at.clone(),
            is_low_in,
            high: End::Infinity,
            is_high_in: false,
        };
        Some(Self::normal(match operator {
            '<' => vec![below(false)],
            '≤' => vec![below(true)],
            '>' => vec![above(false)],
            '≥' => vec![above(true)],
            '≠' => vec![below(false), above(false)],
            _ => return None,
        }))
    }

    fn all() -> Self {
        Self {
            pieces: vec![Piece {
                low: End::NegInfinity,
                is_low_in: false,
                high: End::Infinity,
                is_high_in: false,
            }],
        }
    }

    fn copy(&self) -> Self {
        Self { pieces: self.pieces.clone() }
    }

    /// Pieces sorted, and joined where they meet.
    fn normal(mut pieces: Vec<Piece<'a>>) -> Self {
        pieces.retain(|piece| match piece.low.cmp(&piece.high) {
            Ordering::Less => true,
            Ordering::Equal => piece.is_low_in && piece.is_high_in,
            Ordering::Greater => false,
        });
        // By the very digits: closeness is no order.
        pieces.sort_by(|a, b| a.low.cmp_digits(&b.low));
        let mut joined: Vec<Piece<'a>> = Vec::new();
        for piece in pieces {
            let Some(last) = joined.last_mut() else {
                joined.push(piece);
                continue;
            };
            let gap = last.high.cmp(&piece.low);
            let is_apart = match gap {
                Ordering::Less => true,
                Ordering::Equal => !last.is_high_in && !piece.is_low_in,
                Ordering::Greater => false,
            };
            if is_apart {
                joined.push(piece);
                continue;
            }
            if last.low.cmp(&piece.low) == Ordering::Equal {
                last.is_low_in |= piece.is_low_in;
            }
            match last.high.cmp(&piece.high) {
                Ordering::Less => {
                    last.high = piece.high;
                    last.is_high_in = piece.is_high_in;
                }
                Ordering::Equal => last.is_high_in |= piece.is_high_in,
                Ordering::Greater => {}
            }
        }
        Self { pieces: joined }
    }

    fn or(mut self, other: Self) -> Self {
        self.pieces.extend(other.pieces);
        Self::normal(self.pieces)
    }

    /// What is in both: not what is out of either.
    fn and(&self, other: &Self) -> Self {
        self.complement().or(other.complement()).complement()
    }

    fn complement(&self) -> Self {
        let mut pieces = Vec::new();
        let (mut low, mut is_low_in) = (End::NegInfinity, false);
        for piece in &self.pieces {
            let is_high_in = !piece.is_low_in && matches!(piece.low, End::At(..));
            pieces.push(Piece { low, is_low_in, high: piece.low.clone(), is_high_in });
            low = piece.high.clone();
            is_low_in = !piece.is_high_in && matches!(piece.high, End::At(..));
        }
        pieces.push(Piece { low, is_low_in, high: End::Infinity, is_high_in: false });
        Self::normal(pieces)
    }

    /// The ends of both in pairs, if the sets have the same pieces, open and closed at the same ends.
    pub fn pairs_of_ends(&self, other: &Self) -> Option<Vec<(&'a Expr, &'a Expr)>> {
        if self.pieces.len() != other.pieces.len() {
            return None;
        }
        let mut pairs = Vec::new();
        for (a, b) in self.pieces.iter().zip(&other.pieces) {
            if (a.is_low_in, a.is_high_in) != (b.is_low_in, b.is_high_in) {
                return None;
            }
            for ends in [(&a.low, &b.low), (&a.high, &b.high)] {
                match ends {
                    (End::At(_, a), End::At(_, b)) => pairs.push((*a, *b)),
                    (a, b) if a.rank() == b.rank() => {}
                    _ => return None,
                }
            }
        }
        Some(pairs)
    }
}

fn is_unknown(expr: &Expr) -> bool {
    matches!(expr, Expr::Symbol(_)) && expr.has_unknowns()
}

/// The letter that a relation, or the first one of several, is about.
pub(super) fn unknown_of(relation: &Expr) -> Option<&str> {
    match relation {
        Expr::List(Brackets::Bare, items) => items.first().and_then(unknown_of),
        Expr::Relation(_, left, rest) => {
            let middle = match &**rest {
                Expr::Relation(_, middle, _) => middle,
                _ => rest,
            };
            [left, middle].into_iter().find(|side| is_unknown(side)).and_then(
                |side| match &**side {
                    Expr::Symbol(name) => Some(name.as_str()),
                    _ => None,
                },
            )
        }
        _ => None,
    }
}

fn end<'a>(expr: &'a Expr, budget: &mut Budget) -> Option<End<'a>> {
    let is_infinity = |expr: &Expr| matches!(expr, Expr::Symbol(name) if name == "∞");
    match expr {
        Expr::Neg(inner) if is_infinity(inner) => Some(End::NegInfinity),
        _ if is_infinity(expr) => Some(End::Infinity),
        _ => approx::real(expr, budget).map(|value| End::At(value, expr)),
    }
}

/// The relation read from right to left.
pub(super) fn turned(operator: char) -> Option<char> {
    match operator {
        '=' | '≠' | '≈' => Some(operator),
        '<' => Some('>'),
        '>' => Some('<'),
        '≤' => Some('≥'),
        '≥' => Some('≤'),
        _ => None,
    }
}
