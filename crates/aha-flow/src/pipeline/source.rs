//! Pipeline text as a tree in which every key and value knows where it was written.
//!
//! Overrides from the command line are parsed by the same code and merged into the tree, so that a
//! problem in one is shown like a problem in the file.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, nearest};

/// Which text a span points into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    File,
    /// The override with this index.
    Set(usize),
}

/// A byte range of one of the texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    pub origin: Origin,
    pub start: usize,
    pub end: usize,
}

/// A value and the place it was written at.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Value,
    pub span: Span,
}

/// A key of a table with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub node: Node,
}

impl Node {
    /// The value of a table's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Value::Table(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The table of that name in an array of them.
    pub fn stage(&self, name: &str) -> Option<&Node> {
        let Value::Array(stages) = &self.value else { return None };
        stages.iter().find(|stage| stage_name(stage) == Some(name))
    }
}

/// What TOML can say.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

impl Value {
    /// The value as a message shows it: short, with its type where that isn't plain.
    pub fn describe(&self) -> String {
        match self {
            Value::String(s) if s.chars().count() > 40 => {
                format!("the string \"{}…\"", s.chars().take(39).collect::<String>())
            }
            Value::String(s) => format!("the string \"{s}\""),
            Value::Integer(i) => i.to_string(),
            Value::Float(x) => format!("{x:?}"),
            Value::Boolean(b) => b.to_string(),
            Value::Datetime(d) => format!("the date {d}"),
            Value::Array(_) => "an array".into(),
            Value::Table(_) => "a table".into(),
        }
    }
}

/// The texts that spans point into.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    pub path: &'a str,
    pub text: &'a str,
    pub sets: &'a [String],
}

impl Sources<'_> {
    fn text(&self, origin: Origin) -> &str {
        match origin {
            Origin::File => self.text,
            Origin::Set(idx) => &self.sets[idx],
        }
    }

    /// A problem at `span`.
    pub fn problem(&self, span: Span, key: &str, message: String, hint: Option<String>) -> Problem {
        let text = self.text(span.origin);
        let start = floor_char_boundary(text, span.start);
        let end = floor_char_boundary(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let (file, order) = match span.origin {
            Origin::File => (self.path.to_owned(), (0, start)),
            Origin::Set(idx) => ("--set".to_owned(), (idx + 1, start)),
        };
        Problem {
            file,
            line: count_u32(text[..start].matches('\n').count() + 1),
            column: count_u32(text[line_start..start].chars().count() + 1),
            length: count_u32(text[start..end.min(line_end)].trim_end().chars().count().max(1)),
            key: key.to_owned(),
            message,
            hint,
            source_line: text[line_start..line_end].trim_end_matches('\r').to_owned(),
            order,
        }
    }

    /// The span of a word inside a TOML string value, by its line and column (both from 1) in
    /// the string's own text. Escapes before it on the same line shift the column; the line is
    /// right in any case.
    pub fn span_within(&self, string: Span, line: u32, column: u32, len: usize) -> Span {
        let text = self.text(string.origin);
        let raw = &text[string.start..string.end];
        let mut at = string.start;
        if raw.starts_with("\"\"\"") || raw.starts_with("'''") {
            at += 3;
            // TOML drops a line break right after the opening quotes.
            let rest = &text[at..string.end];
            at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
        } else if raw.starts_with(['"', '\'']) {
            at += 1;
        }
        for _ in 1..line {
            match text[at..string.end].find('\n') {
                Some(newline) => at += newline + 1,
                None => break,
            }
        }
        let skip = column.saturating_sub(1) as usize;
        let offset = text[at..string.end].char_indices().nth(skip).map_or(0, |(offset, _)| offset);
        let start = at + offset;
        Span { origin: string.origin, start, end: (start + len).min(string.end) }
    }
}

fn count_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Parses the file and merges the overrides into it, with the problems of both. `Err` holds every
/// syntax error of the file: what the rest of it means is anybody's guess.
pub(crate) fn parse(sources: &Sources<'_>) -> Result<(Node, Vec<Problem>), Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(sources.text);
    let mut problems = Vec::new();
    for error in errors {
        let range = error.span().unwrap_or(0..0);
        let span = Span { origin: Origin::File, start: range.start, end: range.end };
        let message = format!("not valid TOML: {}", error.message());
        problems.push(sources.problem(span, "", message, None));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut root = from_table(table, Origin::File, sources, &mut problems);
    for idx in 0..sources.sets.len() {
        if let Some(tree) = parse_set(idx, sources, &mut problems) {
            apply_set(&mut root, tree, sources, &mut problems);
        }
    }
    Ok((root, problems))
}

fn from_table(
    table: Spanned<DeTable<'_>>,
    origin: Origin,
    sources: &Sources<'_>,
    problems: &mut Vec<Problem>,
) -> Node {
    let span = Span { origin, start: table.span().start, end: table.span().end };
    let value = table_value(table.into_inner(), origin, sources, problems);
    Node { value, span }
}

fn table_value(
    table: DeTable<'_>,
    origin: Origin,
    sources: &Sources<'_>,
    problems: &mut Vec<Problem>,
) -> Value {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| Entry {
            key_span: Span { origin, start: key.span().start, end: key.span().end },
            key: key.into_inner().into_owned(),
            node: from_value(value, origin, sources, problems),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    Value::Table(entries)
}

fn from_value(
    spanned: Spanned<DeValue<'_>>,
    origin: Origin,
    sources: &Sources<'_>,
    problems: &mut Vec<Problem>,
) -> Node {
    let span = Span { origin, start: spanned.span().start, end: spanned.span().end };
    let value = match spanned.into_inner() {
        DeValue::String(s) => Value::String(s.into_owned()),
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(value) => Value::Integer(value),
            Err(_) => {
                let message = format!("the whole number {i} does not fit in 64 bits");
                let hint = format!("TOML's whole numbers go from {} to {}", i64::MIN, i64::MAX);
                problems.push(sources.problem(span, "", message, Some(hint)));
                // What a range says of it as well is then true.
                let is_negative = i.as_str().starts_with('-');
                Value::Integer(if is_negative { i64::MIN } else { i64::MAX })
            }
        },
        // Out of range becomes infinite, and every reader of numbers refuses what isn't finite.
        DeValue::Float(x) => Value::Float(x.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Value::Boolean(b),
        DeValue::Datetime(d) => Value::Datetime(d.to_string()),
        DeValue::Array(items) => Value::Array(
            items.into_iter().map(|item| from_value(item, origin, sources, problems)).collect(),
        ),
        DeValue::Table(table) => table_value(table, origin, sources, problems),
    };
    Node { value, span }
}

/// Parses `KEY=VALUE`. A value that isn't TOML is taken as a bare string, so that a shell needs no
/// second layer of quotes: `--set run.device=cpu`.
fn parse_set(idx: usize, sources: &Sources<'_>, problems: &mut Vec<Problem>) -> Option<Node> {
    let origin = Origin::Set(idx);
    let text = &sources.sets[idx];
    let whole = Span { origin, start: 0, end: text.len() };
    let Some(equals) = text.find('=') else {
        let hint = "for example `--set stage.zero.steps=10`".to_owned();
        let message = format!("an override is KEY=VALUE, got `{text}`");
        problems.push(sources.problem(whole, "", message, Some(hint)));
        return None;
    };
    if let Ok(table) = DeTable::parse(text) {
        return Some(from_table(table, origin, sources, problems));
    }
    let value_text = text[equals + 1..].trim();
    // The key is parsed with a stand-in value of the same place.
    let stand_in = format!("{}=0", &text[..equals]);
    match DeTable::parse(&stand_in) {
        Ok(table) if !value_text.is_empty() && !value_text.starts_with(['"', '\'', '[', '{']) => {
            let mut node = from_table(table, origin, sources, problems);
            let span = Span { origin, start: equals + 1, end: text.len() };
            set_leaf(&mut node, Node { value: Value::String(value_text.to_owned()), span });
            Some(node)
        }
        parsed => {
            let (what, start, end) = match parsed {
                Ok(_) => ("value", equals + 1, text.len()),
                Err(_) => ("key", 0, equals),
            };
            let message = format!("the {what} of the override `{text}` is not valid TOML");
            problems.push(sources.problem(Span { origin, start, end }, "", message, None));
            None
        }
    }
}

/// Replaces the one value of a tree made from a dotted key.
fn set_leaf(node: &mut Node, leaf: Node) {
    match &mut node.value {
        Value::Table(entries) => {
            if let Some(entry) = entries.first_mut() {
                set_leaf(&mut entry.node, leaf);
            }
        }
        _ => *node = leaf,
    }
}

/// Merges an override into the tree: tables are merged, anything else is replaced. Below `stage`
/// the next part of the key is the name of a stage.
fn apply_set(root: &mut Node, tree: Node, sources: &Sources<'_>, problems: &mut Vec<Problem>) {
    let Value::Table(entries) = tree.value else { return };
    for entry in entries {
        match (entry.key.as_str(), entry.node.value) {
            ("stage", Value::Table(stages)) => {
                for stage in stages {
                    apply_to_stage(root, stage, sources, problems);
                }
            }
            (_, value) => {
                merge(root, Entry { node: Node { value, span: entry.node.span }, ..entry });
            }
        }
    }
}

fn apply_to_stage(root: &mut Node, set: Entry, sources: &Sources<'_>, problems: &mut Vec<Problem>) {
    let mut names = Vec::new();
    for stage in stages_mut(root) {
        let name = stage_name(stage).unwrap_or_default().to_owned();
        if name == set.key {
            if let Value::Table(entries) = set.node.value {
                entries.into_iter().for_each(|entry| merge(stage, entry));
            } else {
                let message = format!("`stage.{name}` is a table: name one of its keys");
                problems.push(sources.problem(
                    set.key_span,
                    &format!("stage.{name}"),
                    message,
                    None,
                ));
            }
            return;
        }
        names.push(name);
    }
    let hint = nearest(&set.key, names.iter().map(String::as_str))
        .map(|name| format!("did you mean `stage.{name}`?"))
        .unwrap_or_else(|| format!("stages: {}", names.join(", ")));
    let message = format!("there is no stage `{}`", set.key);
    problems.push(sources.problem(
        set.key_span,
        &format!("stage.{}", set.key),
        message,
        Some(hint),
    ));
}

fn stages_mut(root: &mut Node) -> impl Iterator<Item = &mut Node> {
    let Value::Table(entries) = &mut root.value else { unreachable!("the root is a table") };
    entries
        .iter_mut()
        .filter(|entry| entry.key == "stage")
        .filter_map(|entry| match &mut entry.node.value {
            Value::Array(stages) => Some(stages.iter_mut()),
            _ => None,
        })
        .flatten()
}

/// The name that a stage's table gives itself.
pub(crate) fn stage_name(stage: &Node) -> Option<&str> {
    match &stage.get("name")?.value {
        Value::String(name) => Some(name),
        _ => None,
    }
}

fn merge(into: &mut Node, entry: Entry) {
    let Value::Table(entries) = &mut into.value else {
        let span = entry.node.span;
        *into = Node { value: Value::Table(vec![entry]), span };
        return;
    };
    let Some(old) = entries.iter_mut().find(|old| old.key == entry.key) else {
        entries.push(entry);
        return;
    };
    match (&old.node.value, entry.node.value) {
        (Value::Table(_), Value::Table(children)) => {
            children.into_iter().for_each(|child| merge(&mut old.node, child));
        }
        (_, value) => {
            old.key_span = entry.key_span;
            old.node = Node { value, span: entry.node.span };
        }
    }
}
