//! Tables whose keys another crate declares with serde: read key by key, so that every wrong one
//! is reported at its place.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::problem::{nearest, suggest};
use super::reader::{Key, Reader, join};
use super::source::{Entry, Node, Value};
use super::write::Out;

/// A TOML value as JSON.
pub(crate) fn to_json(node: &Node) -> Json {
    match &node.value {
        Value::String(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Boolean(flag) => Json::from(*flag),
        Value::Datetime(text) => Json::from(text.as_str()),
        Value::Array(items) => Json::from(items.iter().map(to_json).collect::<Vec<_>>()),
        Value::Table(entries) => {
            Json::Object(entries.iter().map(|e| (e.key.clone(), to_json(&e.node))).collect())
        }
    }
}

/// A value of another crate as it is written into a pipeline; what is null is left out.
pub(crate) fn write<T: Serialize>(value: &T) -> Out {
    // Through text, which has the fewest digits that give a number of either width back.
    let text = serde_json::to_string(value).expect("settings serialize as plain JSON");
    from_json(&serde_json::from_str(&text).expect("JSON just written is JSON"))
}

fn from_json(json: &Json) -> Out {
    match json {
        Json::String(text) => Out::string(text),
        Json::Array(items) => Out::Array(items.iter().map(from_json).collect()),
        Json::Object(map) => Out::Table(
            map.iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.clone(), from_json(value)))
                .collect(),
        ),
        Json::Number(number) if number.is_f64() => {
            Out::Raw(format!("{:?}", number.as_f64().unwrap_or_default()))
        }
        plain => Out::Raw(plain.to_string()),
    }
}

/// The names that a struct with `deny_unknown_fields` knows, from what it says to a strange one.
/// `fixed` are keys it can't do without.
pub(crate) fn field_names<T: DeserializeOwned>(fixed: &[(&str, Json)]) -> Vec<String> {
    let mut map: Map<String, Json> =
        fixed.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    map.insert("?".into(), Json::Null);
    let message = match serde_json::from_value::<T>(Json::Object(map)) {
        Ok(_) => return Vec::new(),
        Err(error) => error.to_string(),
    };
    quoted(&message).filter(|name| *name != "?").map(str::to_owned).collect()
}

/// What stands between backticks.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

/// What to do about a value that must be `must` and is `got`.
pub(crate) fn remedy(must: &str, got: &str) -> String {
    let words = must.split('"').skip(1).step_by(2);
    match nearest(got.trim_matches('"'), words) {
        Some(word) => format!("did you mean \"{word}\"?"),
        None => "mend it, or leave it out for the default".to_owned(),
    }
}

pub(crate) fn refuse_unknown(
    entries: &[Entry],
    names: &[String],
    path: &str,
    reader: &mut Reader<'_>,
) {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for entry in entries.iter().filter(|entry| !names.contains(&entry.key.as_str())) {
        let key = join(path, &entry.key);
        let hint = suggest(&entry.key, &names, "the keys here are");
        let message = format!("unknown key `{key}`");
        let problem = reader.sources.problem(entry.key_span, &key, message, Some(hint));
        reader.problems.push(problem);
    }
}

/// The known keys whose values have the right type; the others are reported.
pub(crate) fn good_keys<T: DeserializeOwned>(
    entries: &[Entry],
    names: &[String],
    fixed: &[(&str, Json)],
    path: &str,
    reader: &mut Reader<'_>,
) -> Map<String, Json> {
    let mut good = Map::new();
    for entry in entries.iter().filter(|entry| names.contains(&entry.key)) {
        let key = join(path, &entry.key);
        reader.remember(&key, entry.node.span);
        if matches!(entry.node.value, Value::Float(x) if !x.is_finite()) {
            reader.wrong_type(&entry.node, &key, "a finite number");
            continue;
        }
        let mut table: Map<String, Json> =
            fixed.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        table.insert(entry.key.clone(), to_json(&entry.node));
        match serde_json::from_value::<T>(Json::Object(table)) {
            Ok(_) => {
                good.insert(entry.key.clone(), to_json(&entry.node));
            }
            Err(error) => report_type(&error.to_string(), &entry.node, &key, reader),
        }
    }
    good
}

/// Turns serde's message into ours.
fn report_type(message: &str, node: &Node, path: &str, reader: &mut Reader<'_>) {
    if message.contains("untagged") {
        return reader.wrong_type(node, path, "a number or false");
    }
    if message.starts_with("unknown variant") {
        let words: Vec<&str> = quoted(message).skip(1).collect();
        let got = quoted(message).next().unwrap_or_default();
        let hint =
            nearest(got, words.iter().copied()).map(|word| format!("did you mean \"{word}\"?"));
        let message = format!("`{path}` must be {}, got \"{got}\"", super::reader::one_of(&words));
        return reader.report(node.span, path, message, hint);
    }
    let expected = message.rsplit_once("expected ").map_or("of another type", |(_, rest)| rest);
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number, at least 0",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        other => other,
    };
    reader.wrong_type(node, path, expected);
}

/// The table as its own crate reads it.
pub(crate) fn read<T: DeserializeOwned>(table: Map<String, Json>) -> Option<T> {
    serde_json::from_value(Json::Object(table)).ok()
}

/// A key known by its name alone; the crate that declares it documents it.
pub(crate) fn key(name: &str) -> Key {
    Key {
        name: name.to_owned(),
        doc: "",
        expects: String::new(),
        must: None,
        is_required: false,
        default: None,
        is_neutral: false,
        words: Vec::new(),
        about: "",
        keys: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use aha_learn::objective::ObjectiveFile;

    use super::*;

    #[test]
    fn the_names_of_a_foreign_table_are_those_it_declares() {
        let names = field_names::<ObjectiveFile>(&[]);
        for name in ["kind", "preset", "clip", "kl_estimator", "advantage_std"] {
            assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
        }
    }
}
