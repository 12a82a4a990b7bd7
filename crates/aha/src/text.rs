//! Text for people: what a model wrote made harmless, numbers, sizes and durations.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// On one line, with control characters escaped: those could move the cursor, or worse.
pub fn one_line(text: &str) -> String {
    escape(text, |_| false)
}

/// As [`one_line`], but line breaks and tabs stay.
pub fn lines(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !stays(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and marks that turn the direction of the text around.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON on one line, in which hidden characters are escaped as well.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|text| harmless_json(&text))
}

/// A number in JSON, which has none for what is not finite: a null there would look like a value that is
/// missing, so it is one of the texts "NaN", "Infinity" and "-Infinity".
#[derive(Clone, Copy, Debug)]
pub struct Number<T>(pub T);

impl<T: Copy + Into<f64> + Serialize> Serialize for Number<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.into() {
            x if x.is_nan() => serializer.serialize_str("NaN"),
            f64::INFINITY => serializer.serialize_str("Infinity"),
            f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            _ => self.0.serialize(serializer),
        }
    }
}

/// Several numbers, for JSON.
pub fn numbers<T: Copy>(values: &[T]) -> Vec<Number<T>> {
    values.iter().copied().map(Number).collect()
}

/// Escapes the hidden characters that JSON allows in strings. Outside of strings it has none but
/// line breaks.
pub fn harmless_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hidden(c) && c != '\n' {
            // All of them are below U+10000.
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest unit that it has one of.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit_idx = 0;
    while value >= 1024.0 && unit_idx + 1 < units.len() {
        value /= 1024.0;
        unit_idx += 1;
    }
    let unit = units[unit_idx];
    if unit_idx == 0 { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A duration in its two largest units.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A measure with about three significant digits.
pub fn measure(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    match value.abs() {
        _ if !value.is_finite() => value.to_string(),
        x if x >= 1000.0 => format!("{sign}{}", grouped(x.round() as u64)),
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        x if x >= 0.001 || x == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_move_the_cursor_is_shown() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc\u{9b}d\u{202e}"), r"a\u{1b}[2Jb\nc\u{9b}d\u{202e}");
        assert_eq!(lines("a\n\tb\r"), "a\n\tb\\r");
        assert_eq!(one_line("wait… 等"), "wait… 等");
    }

    #[test]
    fn json_with_escapes_reads_back() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}\n\"";
        let shown = json(&text).unwrap();
        assert!(shown.chars().all(|c| !is_hidden(c)), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }

    #[test]
    fn what_is_not_finite_is_told_from_what_is_not_there() {
        let values = [0.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2.0];
        let expected = r#"[0.1,"NaN","Infinity","-Infinity",-2.0]"#;
        assert_eq!(json(&numbers(&values)).unwrap(), expected);
    }

    #[test]
    fn numbers_are_short() {
        let values = [0.0, 0.5, 0.00012, 12.34, 123.4, 12345.6, -2.0, -1234.0];
        let expected = ["0.000", "0.500", "1.2e-4", "12.3", "123", "12,346", "-2.000", "-1,234"];
        assert_eq!(values.map(measure), expected);
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(7), "7 B");
        assert_eq!(duration(Duration::from_secs(3725)), "1h02m");
        assert_eq!(duration(Duration::from_secs(65)), "1m05s");
        assert_eq!(duration(Duration::from_millis(1300)), "1.3s");
    }
}
