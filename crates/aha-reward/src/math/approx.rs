//! Trees → complex numbers of some ninety digits, for what has no exact value here.

use std::collections::BTreeMap;

use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive, Zero};

use super::expr::Expr;
use super::fixed::{Complex, Fixed};
use super::value::{self, Budget};

/// What a multiplication costs, in word operations.
const COST_OF_PRODUCT: u64 = 512;
/// What a function of a real number costs.
const COST_OF_FUNCTION: u64 = 1 << 15;
/// Largest exponent by repeated squaring.
const EXPONENT_MAX: i64 = 1 << 20;

/// The value of a tree at one place.
pub(super) struct Place<'a> {
    pub budget: &'a mut Budget,
    /// What the unknowns are here.
    pub unknowns: &'a BTreeMap<&'a str, Fixed>,
    /// Whether the root or the logarithm of a negative number has a value, the principal one.
    pub is_complex: bool,
}

impl Place<'_> {
    /// The value; none where there is none, or it leaves the range, or would have too few digits.
    pub fn value(&mut self, expr: &Expr) -> Option<Complex> {
        self.budget.charge(COST_OF_PRODUCT).ok()?;
        match expr {
            Expr::Number(literal) => {
                Fixed::of(&value::literal_value(literal, self.budget).ok()?).map(Complex::real)
            }
            Expr::Symbol(name) => self.symbol(name),
            Expr::Neg(inner) => Some(self.value(inner)?.negated()),
            Expr::Sum(terms) => {
                let mut sum = Complex::real(Fixed::zero());
                for term in terms {
                    sum = sum.plus(&self.value(term)?)?;
                }
                Some(sum)
            }
            Expr::Product(factors) => {
                let mut product = Complex::real(Fixed::one());
                for factor in factors {
                    product = product.times(&self.value(factor)?)?;
                }
                Some(product)
            }
            Expr::Quotient(dividend, divisor) => {
                let divisor = self.value(divisor)?;
                self.value(dividend)?.over(&divisor)
            }
            Expr::Power(base, exponent) => {
                let base = self.value(base)?;
                match self.exact(exponent) {
                    Some(exponent) => self.rational_power(&base, &exponent),
                    None => {
                        let exponent = self.value(exponent)?;
                        self.power(&base, &exponent)
                    }
                }
            }
            Expr::Root(index, radicand) => {
                let index = self.exact(index)?;
                let exponent = (!index.is_zero()).then(|| index.recip())?;
                let radicand = self.value(radicand)?;
                self.rational_power(&radicand, &exponent)
            }
            Expr::Percent(inner) => {
                let hundred = Fixed::of(&BigRational::from_integer(100.into()))?;
                self.value(inner)?.over(&Complex::real(hundred))
            }
            Expr::Abs(inner) => self.value(inner)?.size().map(Complex::real),
            Expr::Quantity(inner, _) => self.value(inner),
            Expr::Factorial(_) | Expr::Binomial(..) | Expr::Based { .. } => {
                Fixed::of(&self.exact(expr)?).map(Complex::real)
            }
            Expr::Call { name, base, argument } => self.call(name, base.as_deref(), argument),
            Expr::PlusMinus(..)
            | Expr::List(..)
            | Expr::Matrix(_)
            | Expr::Sets(..)
            | Expr::Relation(..) => None,
        }
    }

    fn exact(&mut self, expr: &Expr) -> Option<BigRational> {
        value::eval(expr, self.budget).ok()?.as_rational()
    }

    fn symbol(&mut self, name: &str) -> Option<Complex> {
        match name {
            "π" => Some(Complex::real(Fixed::pi())),
            "e" => Some(Complex::real(Fixed::one().exp()?)),
            "i" => Some(Complex::i()),
            _ => self.unknowns.get(name).cloned().map(Complex::real),
        }
    }

    /// A power with a rational exponent; a negative number has real roots of odd index.
    fn rational_power(&mut self, base: &Complex, exponent: &BigRational) -> Option<Complex> {
        let count = exponent.numer().to_i64().filter(|n| n.abs() <= EXPONENT_MAX)?;
        let index = exponent.denom().to_u32().filter(|i| *i <= 64)?;
        if base.is_zero() {
            return exponent.is_positive().then(|| base.clone());
        }
        if index == 1 {
            self.budget.charge(COST_OF_PRODUCT * 64).ok()?;
            return base.power_whole(count);
        }
        self.budget.charge(COST_OF_FUNCTION * u64::from(index)).ok()?;
        if base.is_real() && (index % 2 == 1 || !base.re.is_negative()) {
            let root = base.re.abs().root(index)?;
            let root = if base.re.is_negative() { root.negated() } else { root };
            return Complex::real(root).power_whole(count);
        }
        let exponent = Fixed::of(exponent)?;
        self.power(base, &Complex::real(exponent))
    }

    /// `e^(exponent · ln base)`
    fn power(&mut self, base: &Complex, exponent: &Complex) -> Option<Complex> {
        if base.is_zero() {
            let is_positive =
                exponent.is_real() && !exponent.is_zero() && !exponent.re.is_negative();
            return is_positive.then(|| base.clone());
        }
        let ln = self.ln(base)?;
        self.exp(&exponent.times(&ln)?)
    }

    fn ln(&mut self, value: &Complex) -> Option<Complex> {
        self.budget.charge(4 * COST_OF_FUNCTION).ok()?;
        let is_in_domain = value.is_real() && !value.re.is_negative();
        if is_in_domain || self.is_complex { value.ln() } else { None }
    }

    fn exp(&mut self, value: &Complex) -> Option<Complex> {
        self.budget.charge(2 * COST_OF_FUNCTION).ok()?;
        value.exp()
    }

    fn sqrt(&mut self, value: &Complex) -> Option<Complex> {
        self.rational_power(value, &BigRational::new(1.into(), 2.into()))
    }

    fn call(&mut self, name: &str, base: Option<&Expr>, argument: &Expr) -> Option<Complex> {
        let argument = match name {
            "log" | "ln" | "lg" | "exp" | "floor" | "ceil" => self.value(argument)?,
            _ => {
                let radians = value::in_radians(argument);
                self.value(&radians)?
            }
        };
        self.budget.charge(2 * COST_OF_FUNCTION).ok()?;
        match name {
            "exp" => self.exp(&argument),
            "ln" => self.ln(&argument),
            "log" | "lg" => {
                let base = match base {
                    Some(base) => self.value(base)?,
                    None => Complex::real(Fixed::of(&BigRational::from_integer(10.into()))?),
                };
                let of_base = self.ln(&base)?;
                self.ln(&argument)?.over(&of_base)
            }
            "floor" => argument.is_real().then(|| argument.re.floor())?.map(Complex::real),
            "ceil" => {
                let negated = argument.is_real().then(|| argument.re.negated().floor())??;
                Some(Complex::real(negated.negated()))
            }
            "sinh" | "cosh" | "tanh" => self.hyperbolic(name, &argument),
            "arcsin" | "arccos" | "arctan" => self.inverse(name, &argument),
            _ => {
                let (sin, cos) = argument.sin_cos()?;
                let one = Complex::real(Fixed::one());
                match name {
                    "sin" => Some(sin),
                    "cos" => Some(cos),
                    "tan" => sin.over(&cos),
                    "cot" => cos.over(&sin),
                    "sec" => one.over(&cos),
                    "csc" => one.over(&sin),
                    _ => None,
                }
            }
        }
    }

    fn hyperbolic(&mut self, name: &str, argument: &Complex) -> Option<Complex> {
        let up = self.exp(argument)?;
        let down = self.exp(&argument.negated())?;
        let (sinh, cosh) = (up.minus(&down)?.halved(), up.plus(&down)?.halved());
        match name {
            "sinh" => Some(sinh),
            "cosh" => Some(cosh),
            _ => sinh.over(&cosh),
        }
    }

    /// Arc functions of real numbers.
    fn inverse(&mut self, name: &str, argument: &Complex) -> Option<Complex> {
        if !argument.is_real() {
            return None;
        }
        self.budget.charge(2 * COST_OF_FUNCTION).ok()?;
        let x = &argument.re;
        let half_pi = Complex::real(Fixed::pi()).halved().re;
        let arc = match name {
            "arctan" => x.atan()?,
            _ => {
                let one = Fixed::one();
                let square = one.minus(&x.times(x)?)?;
                if square.is_negative() {
                    return None;
                }
                let arcsin = if square.is_zero() {
                    if x.is_negative() { half_pi.negated() } else { half_pi.clone() }
                } else {
                    let beside = self.sqrt(&Complex::real(square))?.re;
                    x.over(&beside)?.atan()?
                };
                if name == "arccos" { half_pi.minus(&arcsin)? } else { arcsin }
            }
        };
        Some(Complex::real(arc))
    }
}

/// Places at which two trees are compared.
const PLACES_MAX: u64 = 10;
/// At how many of them both must have a value.
const PLACES_MIN: u32 = 3;
/// Most unknowns of trees that are compared so.
const UNKNOWNS_MAX: usize = 16;

/// Whether two trees have the same value: as complex numbers where they hold no unknowns; else at
/// several places, real ones unless `i` occurs, at which both have a value. The places depend on `seed`.
pub(super) fn is_identity(a: &Expr, b: &Expr, seed: u64, budget: &mut Budget) -> bool {
    let mut names = std::collections::BTreeSet::new();
    a.add_unknowns(&mut names);
    b.add_unknowns(&mut names);
    if names.len() > UNKNOWNS_MAX {
        return false;
    }
    if names.is_empty() {
        let unknowns = BTreeMap::new();
        let mut place = Place { budget, unknowns: &unknowns, is_complex: true };
        return match (place.value(a), place.value(b)) {
            (Some(a), Some(b)) => a.is_close(&b),
            _ => false,
        };
    }
    let is_complex = a.is_complex() || b.is_complex();
    let mut same_count = 0;
    for place_idx in 0..PLACES_MAX {
        let unknowns: BTreeMap<&str, Fixed> = names
            .iter()
            .enumerate()
            .filter_map(|(idx, name)| Some((*name, coordinate(seed, place_idx, idx as u64)?)))
            .collect();
        let mut place = Place { budget: &mut *budget, unknowns: &unknowns, is_complex };
        let (Some(a), Some(b)) = (place.value(a), place.value(b)) else {
            continue;
        };
        if !a.is_close(&b) {
            return false;
        }
        same_count += 1;
    }
    same_count >= PLACES_MIN
}

/// A number with 24 binary places: from 0 to 1 at the first places, from 1 to 3 at the next, of either
/// sign at the last.
fn coordinate(seed: u64, place_idx: u64, name_idx: u64) -> Option<Fixed> {
    // The finaliser of SplitMix64.
    let mut bits = seed
        .wrapping_add(place_idx.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((name_idx + 1).wrapping_mul(0xd1b5_4a32_d192_ed03));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let unit = (bits >> 40) as i64 | 1;
    let one = 1 << 24;
    let scaled = match place_idx {
        0..=3 => unit,
        4..=6 => one + 2 * unit,
        _ if bits.is_multiple_of(2) => -3 * unit,
        _ => 3 * unit,
    };
    Fixed::of(&BigRational::new(scaled.into(), one.into()))
}

/// The value of a tree without unknowns, if it is a real number.
pub(super) fn real(expr: &Expr, budget: &mut Budget) -> Option<Fixed> {
    let unknowns = BTreeMap::new();
    let value = Place { budget, unknowns: &unknowns, is_complex: true }.value(expr)?;
    value.is_real().then_some(value.re)
}
