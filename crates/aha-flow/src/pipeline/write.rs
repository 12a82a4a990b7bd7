//! Writes settings as TOML: what is nested one deep as tables, what is deeper inline.

use std::fmt::Write as _;

/// A value on its way into a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Out {
    /// A number or boolean, as TOML spells it.
    Raw(String),
    String(String),
    Array(Vec<Out>),
    Table(Vec<(String, Out)>),
}

impl Out {
    pub fn string(text: &str) -> Self {
        Self::String(text.to_owned())
    }

    /// The value on one line, but for strings that hold lines themselves.
    pub fn inline(&self) -> String {
        match self {
            Out::Raw(raw) => raw.clone(),
            Out::String(text) => quote(text),
            Out::Array(items) => {
                let items: Vec<String> = items.iter().map(Out::inline).collect();
                format!("[{}]", items.join(", "))
            }
            Out::Table(keys) if keys.is_empty() => "{}".into(),
            Out::Table(keys) => {
                let keys: Vec<String> =
                    keys.iter().map(|(key, value)| line(key, &value.inline())).collect();
                format!("{{ {} }}", keys.join(", "))
            }
        }
    }

    /// As [`Out::inline`], with an array of tables a line each.
    fn value(&self) -> String {
        match self {
            Out::Array(items) if items.iter().any(|item| matches!(item, Out::Table(_))) => {
                let lines: String =
                    items.iter().map(|item| format!("    {},\n", item.inline())).collect();
                format!("[\n{lines}]")
            }
            other => other.inline(),
        }
    }
}

/// A string as TOML has it; text of several lines stays readable where it can be literal.
fn quote(text: &str) -> String {
    let is_plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if text.contains('\n')
        && text.chars().all(is_plain)
        && !text.contains("'''")
        && !text.ends_with('\'')
    {
        return format!("'''\n{text}'''");
    }
    quote_on_one_line(text)
}

/// A key and its value.
fn line(key: &str, value: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(is_bare) {
        true => format!("{key} = {value}"),
        false => format!("{} = {value}", quote_on_one_line(key)),
    }
}

fn quote_on_one_line(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Writes a table under `header`, plain values first, then its tables as `[name.key]`.
pub(crate) fn table(out: &mut String, header: &str, name: &str, keys: &[(String, Out)]) {
    let _ = writeln!(out, "{header}");
    for (key, value) in keys {
        if !matches!(value, Out::Table(_)) {
            let _ = writeln!(out, "{}", line(key, &value.value()));
        }
    }
    for (key, value) in keys {
        if let Out::Table(inner) = value {
            let inner_name = format!("{name}.{key}");
            out.push('\n');
            let _ = writeln!(out, "[{inner_name}]");
            for (key, value) in inner {
                let _ = writeln!(out, "{}", line(key, &value.value()));
            }
        }
    }
}
