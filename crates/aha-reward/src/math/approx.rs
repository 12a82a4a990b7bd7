//! Fixed-point values with 256 binary places, for roots that have no exact form and for decimals
//! that were rounded.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Num, One, Pow, Signed, ToPrimitive, Zero};

use super::parse::Expr;
use super::value::{self, Budget};

/// Binary places.
const PLACES: u32 = 256;
/// Two values that differ by less than one in this many binary places, about 51 decimal ones, are
/// taken as equal.
const PLACES_EQUAL: u32 = 170;
/// Most bits of a value before its binary point.
const WHOLE_BITS_MAX: u64 = 2048;

const PI: &str = "314159265358979323846264338327950288419716939937510\
                  582097494459230781640628620899";
const E: &str = "271828182845904523536028747135266249775724709369995\
                 957496696762772407663035354759";
/// Digits after the point in the constants above.
const CONSTANT_PLACES: u32 = 80;

/// `value · 2^256`, rounded.
pub(super) struct Fixed(BigInt);

impl Fixed {
    /// Whether they agree to some fifty digits.
    pub fn is_close(&self, other: &Self) -> bool {
        let difference = (&self.0 - &other.0).abs() << PLACES_EQUAL;
        difference <= self.0.abs().max(BigInt::one() << PLACES)
    }

    /// Whether it lies within half a unit of the last of `places` decimals of `rounded`.
    pub fn rounds_to(&self, rounded: &BigRational, places: u32) -> bool {
        let scale: BigInt = Pow::pow(BigInt::from(10), places);
        // |self/2^256 - n/d| * 2 * 10^places <= 1
        let difference = (&self.0 * rounded.denom() - (rounded.numer() << PLACES)).abs();
        difference * 2 * scale <= rounded.denom() << PLACES
    }

    /// A value so small that dividing by it would lose the digits that [`Self::is_close`] reads.
    fn is_tiny(&self) -> bool {
        self.0.bits() < u64::from(PLACES) - 64
    }
}

/// The value of an expression of real numbers; none where it has symbols, functions or lists, or
/// leaves the range.
pub(super) fn approx(expr: &Expr, budget: &mut Budget) -> Option<Fixed> {
    budget.charge(4096).ok()?;
    let value = match expr {
        Expr::Number(literal) => rational(&value::literal_value(literal, budget).ok()?),
        Expr::Symbol(name) => constant(name)?,
        Expr::Neg(inner) => -approx(inner, budget)?.0,
        Expr::Sum(terms) => {
            let mut sum = BigInt::zero();
            for term in terms {
                sum += approx(term, budget)?.0;
            }
            sum
        }
        Expr::Product(factors) => {
            let mut product = BigInt::one() << PLACES;
            for factor in factors {
                product = in_range((product * approx(factor, budget)?.0) >> PLACES)?;
            }
            product
        }
        Expr::Quotient(dividend, divisor) => {
            let divisor = approx(divisor, budget)?;
            if divisor.is_tiny() {
                return None;
            }
            (approx(dividend, budget)?.0 << PLACES) / divisor.0
        }
        Expr::Power(base, exponent) => {
            let exponent = value::eval(exponent, budget).ok()?.as_rational()?;
            power(approx(base, budget)?, &exponent, budget)?
        }
        Expr::Root(index, radicand) => {
            let index = value::eval(index, budget).ok()?.as_rational()?;
            let exponent = (!index.is_zero()).then(|| index.recip())?;
            power(approx(radicand, budget)?, &exponent, budget)?
        }
        Expr::Percent(inner) => approx(inner, budget)?.0 / 100,
        Expr::Abs(inner) => approx(inner, budget)?.0.abs(),
        Expr::Quantity(inner, _) => approx(inner, budget)?.0,
        Expr::Factorial(_) | Expr::Binomial(..) | Expr::Based { .. } => {
            rational(&value::eval(expr, budget).ok()?.as_rational()?)
        }
        Expr::Call { .. }
        | Expr::PlusMinus(..)
        | Expr::List(..)
        | Expr::Matrix(_)
        | Expr::Sets(..)
        | Expr::Relation(..) => return None,
    };
    in_range(value).map(Fixed)
}

fn in_range(value: BigInt) -> Option<BigInt> {
    (value.bits() <= WHOLE_BITS_MAX + u64::from(PLACES)).then_some(value)
}

fn rational(value: &BigRational) -> BigInt {
    (value.numer() << PLACES) / value.denom()
}

fn constant(name: &str) -> Option<BigInt> {
    let digits = match name {
        "π" => PI,
        "e" => E,
        _ => return None,
    };
    let digits = BigInt::from_str_radix(digits, 10).ok()?;
    let scale: BigInt = Pow::pow(BigInt::from(10), CONSTANT_PLACES);
    Some((digits << PLACES) / scale)
}

fn power(base: Fixed, exponent: &BigRational, budget: &mut Budget) -> Option<BigInt> {
    let count = exponent.numer().to_i64().filter(|n| n.abs() <= 1024)?;
    let index = exponent.denom().to_u32().filter(|i| *i <= 64)?;
    let mut value = base.0;
    if index > 1 {
        if value.is_negative() && index % 2 == 0 {
            return None;
        }
        // The root of v·2^(256·index) is the fixed-point form of the root.
        let shifted = value << (PLACES * (index - 1));
        budget.charge(64 * (shifted.bits() / 64 + 1).pow(2)).ok()?;
        value = shifted.nth_root(index);
    }
    let mut result = BigInt::one() << PLACES;
    budget.charge(4096 * count.unsigned_abs()).ok()?;
    for _ in 0..count.unsigned_abs() {
        result = in_range((result * &value) >> PLACES)?;
    }
    if count < 0 {
        let result = Fixed(result);
        return (!result.is_tiny()).then(|| (BigInt::one() << (2 * PLACES)) / result.0);
    }
    Some(result)
}
