//! Fixed-point real and complex numbers with 320 binary places, and the elementary functions of them.
//!
//! All in whole numbers, so that every machine gets the same bits. What leaves the range, or would lose
//! the digits that a comparison reads, is none.

use std::cmp::Ordering;
use std::sync::LazyLock;

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Binary places.
const PLACES: u32 = 320;
/// Places that a computation carries beyond.
const GUARD: u32 = 32;
/// Two values that agree in this many leading binary digits, about 51 decimal ones, are taken as equal.
const PLACES_EQUAL: u32 = 170;
/// Most bits of a value before its binary point.
const WHOLE_BITS_MAX: u64 = 2048;
/// A factor smaller than this power of two would lose the digits that are compared.
const TINY_BITS: u64 = 100;

/// `value · 2^320`, rounded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fixed(BigInt);

/// π, with 96 more places than a [`Fixed`] has: by Machin's formula.
static PI_LONG: LazyLock<BigInt> = LazyLock::new(|| {
    let one = BigInt::one() << (PLACES + 96 + GUARD);
    let arctan = |n: u32| series(&one / n, n, -1);
    (16 * arctan(5) - 4 * arctan(239)) >> GUARD
});

/// ln 2 with 96 more places: 18 artanh(1/26) - 2 artanh(1/4801) + 8 artanh(1/8749).
static LN_2_LONG: LazyLock<BigInt> = LazyLock::new(|| {
    let one = BigInt::one() << (PLACES + 96 + GUARD);
    let artanh = |n: u32| series(&one / n, n, 1);
    (18 * artanh(26) - 2 * artanh(4801) + 8 * artanh(8749)) >> GUARD
});

/// `Σ sign^k · first / n^2k / (2k + 1)`
fn series(first: BigInt, n: u32, sign: i32) -> BigInt {
    let mut power = first;
    let mut sum = BigInt::zero();
    let mut factor = 1;
    for k in 0u32.. {
        if power.is_zero() {
            break;
        }
        sum += factor * &power / (2 * k + 1);
        power /= n * n;
        factor *= sign;
    }
    sum
}

impl Fixed {
    pub fn zero() -> Self {
        Self(BigInt::zero())
    }

    pub fn one() -> Self {
        Self(BigInt::one() << PLACES)
    }

    pub fn pi() -> Self {
        Self(&*PI_LONG >> 96)
    }

    fn ln_2() -> Self {
        Self(&*LN_2_LONG >> 96)
    }

    /// None where it is too large, or so small that its digits would be lost.
    pub fn of(value: &BigRational) -> Option<Self> {
        let fixed = Self((value.numer() << PLACES).div_floor(value.denom()));
        if fixed.is_tiny() && !value.is_zero() { None } else { fixed.in_range() }
    }

    /// None where it is too large.
    fn in_range(self) -> Option<Self> {
        (self.0.bits() <= WHOLE_BITS_MAX + u64::from(PLACES)).then_some(self)
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    pub fn is_negative(&self) -> bool {
        self.0.is_negative()
    }

    /// So small that dividing by it, or multiplying, would lose digits that count.
    fn is_tiny(&self) -> bool {
        self.0.bits() < u64::from(PLACES) - TINY_BITS
    }

    pub fn plus(&self, other: &Self) -> Option<Self> {
        Self(&self.0 + &other.0).in_range()
    }

    pub fn minus(&self, other: &Self) -> Option<Self> {
        Self(&self.0 - &other.0).in_range()
    }

    pub fn negated(&self) -> Self {
        Self(-&self.0)
    }

    pub fn abs(&self) -> Self {
        Self(self.0.abs())
    }

    /// None too where two sizeable factors would make a product near zero.
    pub fn times(&self, other: &Self) -> Option<Self> {
        let product = Self((&self.0 * &other.0) >> PLACES);
        let is_lost = product.is_tiny()
            && !self.is_zero()
            && !other.is_zero()
            && !self.is_tiny()
            && !other.is_tiny();
        if is_lost { None } else { product.in_range() }
    }

    pub fn over(&self, other: &Self) -> Option<Self> {
        if other.is_tiny() {
            return None;
        }
        let quotient = Self((&self.0 << PLACES) / &other.0);
        let is_lost = quotient.is_tiny() && !self.is_tiny();
        if is_lost { None } else { quotient.in_range() }
    }

    /// Whether they agree to some fifty digits, or are both nothing but rounding errors.
    pub fn is_close(&self, other: &Self) -> bool {
        let difference = (&self.0 - &other.0).abs();
        if self.is_tiny() || other.is_tiny() {
            return difference.bits() < u64::from(PLACES) - 240;
        }
        (difference << PLACES_EQUAL) <= self.0.abs().max(other.0.abs())
    }

    /// Which is larger; equal where they are close.
    pub fn cmp(&self, other: &Self) -> Ordering {
        if self.is_close(other) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }

    /// Which is larger, to the last digit.
    pub fn cmp_digits(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }

    /// Whether it lies within half a unit of the last of `places` decimals of `rounded`.
    pub fn rounds_to(&self, rounded: &BigRational, places: u32) -> bool {
        let scale: BigInt = Pow::pow(BigInt::from(10), places);
        // |self/2^320 - n/d| * 2 * 10^places <= 1, but for the rounding of the value itself
        let difference = (&self.0 * rounded.denom() - (rounded.numer() << PLACES)).abs();
        difference * 2 * scale <= (rounded.denom() << PLACES) + (rounded.denom() << 64)
    }

    /// Whether a decimal is this number but for the rounding of a double.
    pub fn is_double(&self, decimal: &BigRational) -> bool {
        let scaled = (decimal.numer() << PLACES) / decimal.denom();
        ((&self.0 - scaled).abs() << 52) <= self.0.abs()
    }

    /// The whole number below; none where it is so near to one that it may be it.
    pub fn floor(&self) -> Option<Self> {
        let floor = (&self.0 >> PLACES) << PLACES;
        let above = &self.0 - &floor;
        let near = BigInt::one() << (PLACES - 240);
        let is_near = above < near || above > (BigInt::one() << PLACES) - near;
        (!is_near).then_some(Self(floor))
    }

    pub fn root(&self, index: u32) -> Option<Self> {
        if self.is_negative() {
            return None;
        }
        // The root of v·2^(320·index) is the fixed-point form of the root.
        Some(Self((&self.0 << (PLACES * (index - 1))).nth_root(index)))
    }

    pub fn exp(&self) -> Option<Self> {
        let ln_2 = Self::ln_2().0;
        let doublings = self.0.div_floor(&ln_2).to_i64()?;
        if doublings.unsigned_abs() > WHOLE_BITS_MAX || doublings < -(TINY_BITS as i64) {
            return None;
        }
        // e^x = 2^k e^r, and e^r = (e^(r/256))^256.
        let rest = (&self.0 << 96) - doublings * &*LN_2_LONG;
        let rest: BigInt = rest >> (96 - GUARD + 8);
        let one = BigInt::one() << (PLACES + GUARD);
        let (mut term, mut sum) = (one.clone(), one);
        for n in 1u32.. {
            term = ((term * &rest) >> (PLACES + GUARD)) / n;
            if term.is_zero() {
                break;
            }
            sum += &term;
        }
        for _ in 0..8 {
            sum = (&sum * &sum) >> (PLACES + GUARD);
        }
        let value = if doublings < 0 {
            sum >> (GUARD as usize + doublings.unsigned_abs() as usize)
        } else {
            (sum << doublings as usize) >> GUARD
        };
        Self(value).in_range()
    }

    /// The natural logarithm of a positive number.
    pub fn ln(&self) -> Option<Self> {
        if !self.0.is_positive() || self.is_tiny() {
            return None;
        }
        let doublings = self.0.bits() as i64 - i64::from(PLACES) - 1;
        let scaled = if doublings >= 0 {
            Self(&self.0 >> doublings as usize)
        } else {
            Self(&self.0 << doublings.unsigned_abs() as usize)
        };
        let mut ln = Self::of_f64(scaled.to_f64()?.ln());
        // Halley's method triples the digits: 50, 150, 450.
        for _ in 0..3 {
            let exp = ln.exp()?;
            let step = 2 * (&scaled.0 - &exp.0);
            ln = Self(ln.0 + (step << PLACES) / (&scaled.0 + &exp.0));
        }
        Some(Self(ln.0 + ((&*LN_2_LONG * doublings) >> 96)))
    }

    pub fn sin_cos(&self) -> Option<(Self, Self)> {
        if self.0.bits() > u64::from(PLACES) + 64 {
            return None;
        }
        let long: BigInt = &self.0 << 96;
        let half_pi: BigInt = &*PI_LONG >> 1;
        let quarter: BigInt = &half_pi >> 1;
        let turns = (&long + quarter).div_floor(&half_pi);
        let rest: BigInt = (long - &turns * half_pi) >> (96 - GUARD);
        let (sin, cos) = sin_cos_series(&rest);
        let (sin, cos) = (Self(sin >> GUARD), Self(cos >> GUARD));
        Some(match turns.mod_floor(&BigInt::from(4)).to_u8()? {
            0 => (sin, cos),
            1 => (cos, sin.negated()),
            2 => (sin.negated(), cos.negated()),
            _ => (cos.negated(), sin),
        })
    }

    pub fn atan(&self) -> Option<Self> {
        let one = Self::one();
        if self.0.abs() > one.0 {
            let half_pi = Self(&Self::pi().0 >> 1);
            let half_pi = if self.is_negative() { half_pi.negated() } else { half_pi };
            let inverse = Self((BigInt::one() << (2 * PLACES)) / &self.0);
            return half_pi.minus(&inverse.atan()?);
        }
        let mut atan = Self::of_f64(self.to_f64()?.atan());
        for _ in 0..2 {
            let (sin, cos) = atan.sin_cos()?;
            // tan(arctan x - y), and the arc of it by its series.
            let over = self.0.clone() * &cos.0 - (&sin.0 << PLACES);
            let under = (&cos.0 << PLACES) + &self.0 * &sin.0;
            let tan = Self((over << PLACES) / under);
            let cube = Self((&tan.0 * &tan.0 * &tan.0) >> (2 * PLACES));
            atan = Self(atan.0 + tan.0 - cube.0 / 3);
        }
        Some(atan)
    }

    /// The angle of the point (self, y) seen from the origin, in (-π, π].
    fn angle_of(x: &Self, y: &Self) -> Option<Self> {
        if x.is_zero() && y.is_zero() {
            return None;
        }
        if x.0.abs() >= y.0.abs() {
            let angle = Self((&y.0 << PLACES) / &x.0).atan()?;
            return match (x.is_negative(), y.is_negative()) {
                (false, _) => Some(angle),
                (true, false) => angle.plus(&Self::pi()),
                (true, true) => angle.minus(&Self::pi()),
            };
        }
        let half_pi = Self(&Self::pi().0 >> 1);
        let half_pi = if y.is_negative() { half_pi.negated() } else { half_pi };
        half_pi.minus(&Self((&x.0 << PLACES) / &y.0).atan()?)
    }

    /// For numbers below 1024 in size.
    fn to_f64(&self) -> Option<f64> {
        let scaled: BigInt = &self.0 >> (PLACES - 52);
        Some(scaled.to_i64()? as f64 / (1u64 << 52) as f64)
    }

    /// For numbers below 1024 in size.
    fn of_f64(value: f64) -> Self {
        Self(BigInt::from((value * (1u64 << 52) as f64) as i64) << (PLACES - 52))
    }

    fn halved(&self) -> Self {
        Self(&self.0 >> 1)
    }
}

/// Sine and cosine of at most π/4, with guard places.
fn sin_cos_series(x: &BigInt) -> (BigInt, BigInt) {
    let places = PLACES + GUARD;
    let mut term = BigInt::one() << places;
    let (mut sin, mut cos) = (BigInt::zero(), term.clone());
    for n in 1u32.. {
        term = ((term * x) >> places) / n;
        if term.is_zero() || (-&term).is_one() {
            break;
        }
        match n % 4 {
            0 => cos += &term,
            1 => sin += &term,
            2 => cos -= &term,
            _ => sin -= &term,
        }
    }
    (sin, cos)
}

/// A complex number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Complex {
    pub re: Fixed,
    pub im: Fixed,
}

impl Complex {
    pub fn real(re: Fixed) -> Self {
        Self { re, im: Fixed::zero() }
    }

    pub fn i() -> Self {
        Self { re: Fixed::zero(), im: Fixed::one() }
    }

    pub fn is_real(&self) -> bool {
        self.im.is_zero()
    }

    pub fn is_zero(&self) -> bool {
        self.re.is_zero() && self.im.is_zero()
    }

    pub fn is_close(&self, other: &Self) -> bool {
        self.re.is_close(&other.re) && self.im.is_close(&other.im)
    }

    pub fn plus(&self, other: &Self) -> Option<Self> {
        Some(Self { re: self.re.plus(&other.re)?, im: self.im.plus(&other.im)? })
    }

    pub fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negated())
    }

    pub fn negated(&self) -> Self {
        Self { re: self.re.negated(), im: self.im.negated() }
    }

    pub fn times(&self, other: &Self) -> Option<Self> {
        if self.is_real() && other.is_real() {
            return Some(Self::real(self.re.times(&other.re)?));
        }
        let re = self.re.times(&other.re)?.minus(&self.im.times(&other.im)?)?;
        let im = self.re.times(&other.im)?.plus(&self.im.times(&other.re)?)?;
        Some(Self { re, im })
    }

    pub fn over(&self, other: &Self) -> Option<Self> {
        if other.is_real() {
            return Some(Self { re: self.re.over(&other.re)?, im: self.im.over(&other.re)? });
        }
        let conjugate = Self { re: other.re.clone(), im: other.im.negated() };
        let product = self.times(&conjugate)?;
        let square = other.square_of_size()?;
        Some(Self { re: product.re.over(&square)?, im: product.im.over(&square)? })
    }

    fn square_of_size(&self) -> Option<Fixed> {
        self.re.times(&self.re)?.plus(&self.im.times(&self.im)?)
    }

    pub fn size(&self) -> Option<Fixed> {
        if self.is_real() { Some(self.re.abs()) } else { self.square_of_size()?.root(2) }
    }

    pub fn exp(&self) -> Option<Self> {
        let size = self.re.exp()?;
        if self.is_real() {
            return Some(Self::real(size));
        }
        let (sin, cos) = self.im.sin_cos()?;
        Some(Self { re: size.times(&cos)?, im: size.times(&sin)? })
    }

    /// The principal value.
    pub fn ln(&self) -> Option<Self> {
        let ln = self.square_of_size()?.ln()?.halved();
        Some(Self { re: ln, im: Fixed::angle_of(&self.re, &self.im)? })
    }

    pub fn sin_cos(&self) -> Option<(Self, Self)> {
        if self.is_real() {
            let (sin, cos) = self.re.sin_cos()?;
            return Some((Self::real(sin), Self::real(cos)));
        }
        // e^(iz) = c + is, e^(-iz) = c - is
        let up = self.times(&Self::i())?.exp()?;
        let down = self.times(&Self::i())?.negated().exp()?;
        let sin = up.minus(&down)?.times(&Self::i())?.negated();
        Some((sin.halved(), up.plus(&down)?.halved()))
    }

    pub fn halved(&self) -> Self {
        Self { re: self.re.halved(), im: self.im.halved() }
    }

    pub fn power_whole(&self, exponent: i64) -> Option<Self> {
        let mut result = Self::real(Fixed::one());
        let mut square = self.clone();
        let mut left = exponent.unsigned_abs();
        while left > 0 {
            if left % 2 == 1 {
                result = result.times(&square)?;
            }
            left /= 2;
            if left > 0 {
                square = square.times(&square)?;
            }
        }
        if exponent < 0 { Self::real(Fixed::one()).over(&result) } else { Some(result) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(numerator: i64, denominator: i64) -> Fixed {
        Fixed::of(&BigRational::new(numerator.into(), denominator.into())).unwrap()
    }

    fn decimal(text: &str) -> Fixed {
        let digits: BigInt = text.replace('.', "").parse().unwrap();
        let places = text.len() - text.find('.').unwrap() - 1;
        let ten_to: BigInt = Pow::pow(BigInt::from(10), places);
        Fixed::of(&BigRational::new(digits, ten_to)).unwrap()
    }

    #[test]
    fn constants_have_their_digits() {
        let close = |value: &Fixed, digits: &str| {
            let gap = value.minus(&decimal(digits)).unwrap().0.bits();
            assert!(gap < u64::from(PLACES) - 195, "{digits}");
        };
        close(&Fixed::pi(), "3.14159265358979323846264338327950288419716939937510582097494459");
        close(
            &Fixed::one().exp().unwrap(),
            "2.71828182845904523536028747135266249775724709369995957496696763",
        );
        close(
            &fixed(2, 1).ln().unwrap(),
            "0.69314718055994530941723212145817656807550013436025525412068001",
        );
    }

    #[test]
    fn functions_are_inverse_to_each_other() {
        for (n, d) in [(1, 3), (7, 5), (1, 1), (99, 100), (-5, 7), (23, 2), (-40, 1), (1, 999)] {
            let x = fixed(n, d);
            assert!(x.exp().unwrap().ln().unwrap().is_close(&x), "ln exp {n}/{d}");
            let (sin, cos) = x.atan().unwrap().sin_cos().unwrap();
            assert!(sin.over(&cos).unwrap().is_close(&x), "tan arctan {n}/{d}");
            let (sin, cos) = x.sin_cos().unwrap();
            let one = sin.times(&sin).unwrap().plus(&cos.times(&cos).unwrap()).unwrap();
            assert!(one.is_close(&Fixed::one()), "sin² + cos² {n}/{d}");
            let z = Complex { re: fixed(n, d), im: fixed(1, 3) };
            let back = z.ln().unwrap().exp().unwrap();
            assert!(back.is_close(&z), "exp ln {n}/{d} + i/3");
        }
    }

    #[test]
    fn angles_are_reduced_with_enough_digits_of_pi() {
        let turns = Fixed(&*PI_LONG >> 96).times(&fixed(2_000_000, 1)).unwrap();
        let (sin, cos) = turns.plus(&fixed(1, 4)).unwrap().sin_cos().unwrap();
        let (want_sin, want_cos) = fixed(1, 4).sin_cos().unwrap();
        assert!(sin.is_close(&want_sin) && cos.is_close(&want_cos));
    }

    #[test]
    fn what_leaves_the_range_is_none() {
        assert_eq!(fixed(100_000, 1).exp(), None);
        assert_eq!(fixed(-200, 1).exp(), None);
        assert_eq!(fixed(0, 1).ln(), None);
        assert_eq!(fixed(-1, 1).ln(), None);
        assert_eq!(fixed(1, 1).over(&Fixed::zero()), None);
        let tiny = decimal("0.00000000000000000001");
        assert_eq!(tiny.times(&tiny), None);
        let ten_billion = fixed(10_000_000_000, 1);
        assert!(Complex::real(ten_billion).power_whole(100_000).is_none());
    }
}
