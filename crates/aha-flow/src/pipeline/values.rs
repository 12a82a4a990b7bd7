//! The plain values that keys have: numbers, strings, sizes, lists.

use std::collections::BTreeMap;

use super::reader::{Field, Key, Reader, Word, join};
use super::source::{Node, Value};
use super::write::Out;

impl Field for String {
    fn expects() -> String {
        "a string".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(value) => value.clone(),
            _ => {
                reader.wrong_type(node, path, "a string");
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        Some(Out::string(self))
    }
}

/// An SQL query, as the file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sql(pub String);

impl Field for Sql {
    fn expects() -> String {
        "an SQL query in a string".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(value) if value.trim().is_empty() => {
                let hint = "write a query that starts with SELECT or WITH".to_owned();
                reader.report(node.span, path, format!("`{path}` is an empty query"), Some(hint));
                base
            }
            Value::String(value) => Self(value.clone()),
            _ => {
                reader.wrong_type(node, path, "an SQL query in a string");
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        Some(Out::string(&self.0))
    }
}

impl Field for bool {
    fn expects() -> String {
        "true or false".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match node.value {
            Value::Boolean(value) => value,
            _ => {
                reader.wrong_type(node, path, "true or false");
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        Some(Out::Raw(self.to_string()))
    }
}

impl Field for f64 {
    fn expects() -> String {
        "a number".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match node.value {
            Value::Float(value) if value.is_finite() => value,
            Value::Float(value) => {
                let message = format!("`{path}` must be a finite number, got {value:?}");
                let hint = "write a number such as 1.0 or 3e-6".to_owned();
                reader.report(node.span, path, message, Some(hint));
                base
            }
            // Every whole number that a setting can sensibly have is exact in f64.
            Value::Integer(value) => value as f64,
            _ => {
                reader.wrong_type(node, path, "a number");
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        Some(Out::Raw(format!("{self:?}")))
    }
}

macro_rules! whole_numbers {
    ($($ty:ty),+) => { $(
        impl Field for $ty {
            fn expects() -> String {
                "a whole number".into()
            }
            fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
                let Value::Integer(value) = node.value else {
                    reader.wrong_type(node, path, "a whole number");
                    return base;
                };
                <$ty>::try_from(value).unwrap_or_else(|_| {
                    let (message, hint) = if value < 0 {
                        (format!("`{path}` must not be negative, got {value}"), "write 0 or more")
                    } else {
                        let max = <$ty>::MAX;
                        (format!("`{path}` must be at most {max}, got {value}"), "write a smaller number")
                    };
                    reader.report(node.span, path, message, Some(hint.to_owned()));
                    base
                })
            }
            fn write(&self) -> Option<Out> {
                Some(Out::Raw(self.to_string()))
            }
        }
    )+ };
}
whole_numbers!(u32, u64);

impl<T: Field + Default> Field for Option<T> {
    fn expects() -> String {
        T::expects()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        Some(T::read(node, path, reader, base.unwrap_or_default()))
    }
    fn write(&self) -> Option<Out> {
        self.as_ref().and_then(Field::write)
    }
    fn words() -> Vec<Word> {
        T::words()
    }
    fn about() -> &'static str {
        T::about()
    }
    fn keys(&self) -> Vec<Key> {
        self.as_ref().map_or_else(|| T::default().keys(), Field::keys)
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn expects() -> String {
        format!("an array, each {}", T::expects())
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::Array(items) = &node.value else {
            reader.wrong_type(node, path, &Self::expects());
            return base;
        };
        let mut values = Vec::with_capacity(items.len());
        for (idx, item) in items.iter().enumerate() {
            let path = format!("{path}[{idx}]");
            reader.remember(&path, item.span);
            values.push(T::read(item, &path, reader, T::default()));
        }
        values
    }
    fn write(&self) -> Option<Out> {
        Some(Out::Array(self.iter().filter_map(Field::write).collect()))
    }
    fn words() -> Vec<Word> {
        T::words()
    }
    fn about() -> &'static str {
        T::about()
    }
    fn keys(&self) -> Vec<Key> {
        T::default().keys()
    }
}

impl Field for [f64; 2] {
    fn expects() -> String {
        "an array of two numbers".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::Array(items) if items.len() == 2 => [
                f64::read(&items[0], path, reader, base[0]),
                f64::read(&items[1], path, reader, base[1]),
            ],
            _ => {
                reader.wrong_type(node, path, "an array of two numbers");
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        Some(Out::Array(self.iter().filter_map(Field::write).collect()))
    }
}

/// A number of bytes, written with a unit: `"512MiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl ByteSize {
    /// Reads a number with a unit; without one it counts bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_len);
        let factor = match unit.trim() {
            "" | "B" => 1,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self);
        }
        let bytes = number.parse::<f64>().ok()? * factor as f64;
        // Beyond 2^53 a fraction of a byte has long lost its meaning; refuse it.
        (0.0..9.0e15).contains(&bytes).then_some(Self(bytes.round() as u64))
    }
}

impl std::fmt::Display for ByteSize {
    /// Exact: the largest binary unit that divides the number, or else the largest decimal one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Field for ByteSize {
    fn expects() -> String {
        "a size such as \"512MiB\" or \"4GiB\"".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let size = match &node.value {
            Value::String(text) => Self::parse(text),
            Value::Integer(bytes) => u64::try_from(*bytes).ok().map(Self),
            _ => None,
        };
        size.unwrap_or_else(|| {
            reader.wrong_type(node, path, &Self::expects());
            base
        })
    }
    fn write(&self) -> Option<Out> {
        Some(Out::string(&self.to_string()))
    }
}

/// One name or several: `"base"` or `["base", "zero"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Field for Names {
    fn expects() -> String {
        "a name, or an array of names".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        match &node.value {
            Value::String(name) => Self(vec![name.clone()]),
            Value::Array(_) => Self(Vec::read(node, path, reader, base.0)),
            _ => {
                reader.wrong_type(node, path, &Self::expects());
                base
            }
        }
    }
    fn write(&self) -> Option<Out> {
        match self.0.as_slice() {
            [name] => Some(Out::string(name)),
            _ => self.0.write(),
        }
    }
}

/// Weights by name: `{ sums = 3, general = 1 }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights(pub BTreeMap<String, f64>);

impl Field for Weights {
    fn expects() -> String {
        "a table of weights by name, such as `{ sums = 3, general = 1 }`".into()
    }
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::Table(entries) = &node.value else {
            reader.wrong_type(node, path, &Self::expects());
            return base;
        };
        let mut weights = BTreeMap::new();
        for entry in entries {
            let path = join(path, &entry.key);
            reader.remember(&path, entry.node.span);
            weights.insert(entry.key.clone(), f64::read(&entry.node, &path, reader, 1.0));
        }
        Self(weights)
    }
    fn write(&self) -> Option<Out> {
        let keys = self.0.iter().filter_map(|(name, weight)| Some((name.clone(), weight.write()?)));
        Some(Out::Table(keys.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_and_written_exactly() {
        for (text, bytes) in
            [("4GiB", 4 << 30), ("1.5 MiB", 3 << 19), ("7", 7), ("2GB", 2_000_000_000)]
        {
            let size = ByteSize::parse(text).unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(ByteSize::parse(&size.to_string()), Some(size));
        }
        for text in ["", "GiB", "-1GiB", "4 giraffes", "99999999999999TiB", "1e400"] {
            assert_eq!(ByteSize::parse(text), None, "{text}");
        }
    }
}
