//! Is what a program printed what was expected? As judges see it.

/// Whether the lines are equal, but for blanks at their ends, and blanks and blank lines at the start and end
/// of all. Where an expected word is a decimal number with a point or a signed exponent, a number within the
/// tolerance will do: `1.1` for `1.10`, even if that was a version. `0e12` may be part of a digest; it is text.
pub fn is_same(expected: &str, printed: &str, tolerance: f64) -> bool {
    let (expected, printed) = (lines(expected), lines(printed));
    expected.len() == printed.len()
        && expected.iter().zip(&printed).all(|(e, p)| e == p || is_close(e, p, tolerance))
}

fn lines(text: &str) -> Vec<&str> {
    text.trim().split('\n').map(str::trim_end).collect()
}

fn is_close(expected: &str, printed: &str, tolerance: f64) -> bool {
    // Blanks between words count, as everywhere in a line.
    let mut printed = printed.split(' ');
    let mut expected = expected.split(' ');
    loop {
        match (expected.next(), printed.next()) {
            (None, None) => return true,
            (Some(e), Some(p)) if e == p || is_close_number(e, p, tolerance) => {}
            _ => return false,
        }
    }
}

fn is_close_number(expected: &str, printed: &str, tolerance: f64) -> bool {
    match (number(expected), number(printed)) {
        (Some(e), Some(p)) if expected.contains(['.', 'e', 'E']) && tolerance > 0.0 => {
            (e - p).abs() <= tolerance * e.abs().max(1.0)
        }
        _ => false,
    }
}

/// The value of a decimal number. An exponent needs a point before it or a sign, as languages print it:
/// without both it can't be told from hexadecimal digits.
fn number(text: &str) -> Option<f64> {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "+0"));
    let unsigned = mantissa.strip_prefix(['+', '-']).unwrap_or(mantissa);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let power = exponent.strip_prefix(['+', '-']);
    let is_number = is_digits(whole)
        && is_digits(fraction)
        && is_digits(power.unwrap_or(exponent))
        && (power.is_some() || unsigned.contains('.'));
    // What lacks digits where there must be some doesn't parse.
    text.parse::<f64>().ok().filter(|number| is_number && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_compared_as_judges_do() {
        let cases = [
            ("1 2\n", "1 2", true),
            ("1 2\n", "1 2 \n\n", true),
            ("1\r\n2\r\n", "1\n2\n", true),
            ("1\n2", "1 2", false),
            ("1\n\n2", "1\n2", false),
            ("5", " 5", true),
            (" 1", "1", true),
            ("5", "\n\n5\n", true),
            ("1\n 2", "1\n2", false),
            ("1 2", "1  2", false),
            ("", "\n", true),
            ("", "0", false),
            ("Yes", "yes", false),
            ("0.333333333", "0.33333334", true),
            ("0.333333333", "0.3334", false),
            ("1000000000.0", "1000000001", true),
            ("1.0e3 x", "1000 x", true),
            ("1e+3 x", "1000 x", true),
            ("1e3", "1000", false),
            ("1e-09", "0.000000001", true),
            ("-.5", "-0.5", true),
            ("1.10", "1.1", true),
            ("1.2.3", "1.2.30", false),
            ("0e12", "0e99", false),
            ("0e12", "0", false),
            ("10000000e1", "10000001e1", false),
            ("0.0", "0e12", false),
            ("1.0e999", "2.0e999", false),
            ("0.5", ".", false),
            ("0.5", "e-1", false),
            ("10", "10.0", false),
            ("1000000007", "1000000008", false),
            ("0.5", "nan", false),
            ("1.5 2", "1.5", false),
            ("1.5", "1.5 2", false),
            ("é.", "é.", true),
        ];
        for (expected, printed, want) in cases {
            assert_eq!(is_same(expected, printed, 1e-6), want, "{expected:?} {printed:?}");
        }
        assert!(!is_same("0.5", "0.50", 0.0));
    }
}
