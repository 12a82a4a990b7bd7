//! Is what a program printed what was expected? As judges see it.

/// Whether the lines are equal, but for blanks at their ends and blank lines at the end of all. Where an
/// expected word is a number with a decimal point or an exponent, a number within the tolerance will do.
pub fn is_same(expected: &str, printed: &str, tolerance: f64) -> bool {
    let (expected, printed) = (lines(expected), lines(printed));
    expected.len() == printed.len()
        && expected.iter().zip(&printed).all(|(e, p)| e == p || is_close(e, p, tolerance))
}

fn lines(text: &str) -> Vec<&str> {
    text.trim_end().split('\n').map(str::trim_end).collect()
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
    let is_inexact = expected.contains(['.', 'e', 'E']);
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    match (number(expected), number(printed)) {
        (Some(e), Some(p)) if is_inexact && tolerance > 0.0 => {
            (e - p).abs() <= tolerance * e.abs().max(1.0)
        }
        _ => false,
    }
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
            (" 1", "1", false),
            ("", "\n", true),
            ("", "0", false),
            ("Yes", "yes", false),
            ("0.333333333", "0.33333334", true),
            ("0.333333333", "0.3334", false),
            ("1000000000.0", "1000000001", true),
            ("1e3 x", "1000 x", true),
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
