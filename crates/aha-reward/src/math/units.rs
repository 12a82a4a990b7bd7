//! What a word after a number means.

/// What a word after a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A unit of measurement, by its canonical name. Two that differ make two answers differ.
    Unit(&'static str),
    /// Multiplies the number.
    Scale(&'static str),
    Percent,
    /// "and", "or": another value follows.
    Joins,
    /// Changes the value in a way we don't compute.
    Changes,
    /// Any other word: says what is counted, and is ignored.
    Other,
}

/// Spellings of units whose difference matters, the canonical name first.
const UNITS: &[&[&str]] = &[
    &["nanometer", "nm", "nanometre"],
    &["micrometer", "micrometre"],
    &["millimeter", "mm", "millimetre"],
    &["centimeter", "cm", "centimetre"],
    &["meter", "metre", "m"],
    &["kilometer", "km", "kilometre"],
    &["inch", "inche", "in"],
    &["foot", "feet", "ft"],
    &["yard", "yd"],
    &["mile", "mi"],
    &["mile per hour", "mph"],
    &["kilometer per hour", "kph", "kmh"],
    &["microgram", "mcg"],
    &["milligram", "mg"],
    &["gram", "g"],
    &["kilogram", "kg"],
    &["ounce", "oz"],
    &["pound", "lb"],
    &["celsius"],
    &["fahrenheit"],
    &["ton", "tonne"],
    &["nanosecond", "ns"],
    &["microsecond"],
    &["millisecond", "ms", "msec"],
    &["second", "sec"],
    &["minute", "min"],
    &["hour", "hr"],
    &["day"],
    &["week"],
    &["month"],
    &["year", "yr"],
    &["milliliter", "ml", "millilitre"],
    &["liter", "litre", "l"],
    &["dollar", "usd", "buck"],
    &["cent"],
    &["euro", "eur"],
    &["pound sterling", "gbp"],
    &["yen", "jpy"],
    &["rupee", "inr"],
    &["degree", "deg"],
    &["radian", "rad"],
];

const SCALES: &[(&str, &str)] = &[
    ("dozen", "12"),
    ("hundred", "100"),
    ("thousand", "1000"),
    ("million", "1000000"),
    ("billion", "1000000000"),
    ("trillion", "1000000000000"),
    ("quadrillion", "1000000000000000"),
    ("lakh", "100000"),
    ("crore", "10000000"),
];

/// Words that change the number before them in a way we don't compute.
pub(crate) const CHANGES: &[&str] = &[
    "not",
    "no",
    "plus",
    "minus",
    "times",
    "over",
    "to",
    "through",
    "mod",
    "modulo",
    "squared",
    "cubed",
    "factorial",
    "point",
    "half",
    "halves",
    "third",
    "thirds",
    "fourth",
    "fourths",
    "quarter",
    "quarters",
    "fifth",
    "fifths",
    "sixth",
    "sixths",
    "seventh",
    "sevenths",
    "eighth",
    "eighths",
    "ninth",
    "ninths",
    "tenth",
    "tenths",
    "eleventh",
    "elevenths",
    "twelfth",
    "twelfths",
    "sixteenth",
    "sixteenths",
    "twentieth",
    "twentieths",
    "hundredth",
    "hundredths",
    "thousandth",
    "thousandths",
    "millionth",
    "millionths",
    "doubled",
    "tripled",
    "halved",
    "inverse",
    "below",
    "wrong",
    "incorrect",
    "am",
    "pm",
    "more",
    "less",
    "than",
    "least",
    "most",
];

/// The meaning of a word after a number.
pub(super) fn meaning(word: &str) -> Meaning {
    let word = word.to_lowercase();
    if matches!(word.as_str(), "and" | "or") {
        return Meaning::Joins;
    }
    if matches!(word.as_str(), "percent" | "percentage" | "pct") {
        return Meaning::Percent;
    }
    if CHANGES.contains(&word.as_str()) {
        return Meaning::Changes;
    }
    // "as" is no plural of "a".
    let singular = word.strip_suffix('s').filter(|s| s.len() > 1).unwrap_or(&word);
    if let Some((_, factor)) = SCALES.iter().find(|(name, _)| *name == word || *name == singular) {
        return Meaning::Scale(factor);
    }
    let is_name = |name: &&str| **name == word || **name == *singular;
    match UNITS.iter().find(|names| names.iter().any(is_name)) {
        Some(names) => Meaning::Unit(names[0]),
        None => Meaning::Other,
    }
}
