//! Reads the tree into structs, writes structs back, and documents them: one declaration each.
//!
//! A struct declared with [`section!`] gets a reader that reports every problem and goes on, a
//! writer with every default, and the reference of its keys, whose text is the doc comments.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Problem, nearest};
use super::source::{Entry, Node, Sources, Span, Value};
use super::write::Out;

/// Documentation of one key, taken from the struct that holds it.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key as the file spells it.
    pub name: String,
    /// The doc comment; empty for a key of another crate's table, which documents it.
    pub doc: &'static str,
    /// What a value must be: "a whole number".
    pub expects: String,
    /// The range, where there is one: "at least 2".
    pub must: Option<&'static str>,
    /// True where there is no default.
    pub is_required: bool,
    /// The default as the file would spell it; `None` for a required key or where absent means off.
    pub default: Option<String>,
    /// True where no table and no weight depends on it: a run may go on with another value.
    pub is_neutral: bool,
    /// The words that it chooses from, each with what it means.
    pub words: Vec<Word>,
    /// What the table is, for a table.
    pub about: &'static str,
    /// The keys inside, for a table; their defaults are those that they have here.
    pub keys: Vec<Key>,
}

/// A word of the file, and what it means.
pub type Word = (&'static str, &'static str);

impl Key {
    /// The key of that name, whose value is `default` unless it is required.
    pub(crate) fn of<T: Field>(
        name: &str,
        doc: &'static str,
        must: Option<&'static str>,
        (is_required, default): (bool, &T),
    ) -> Key {
        let written = if is_required { None } else { default.write() };
        Key {
            name: name.to_owned(),
            doc,
            expects: T::expects(),
            must,
            is_required,
            default: written.map(|out| out.inline()),
            is_neutral: false,
            words: T::words(),
            about: T::about(),
            keys: default.keys(),
        }
    }
}

/// Collects problems and remembers where every key was written.
pub(crate) struct Reader<'a> {
    pub sources: &'a Sources<'a>,
    pub problems: Vec<Problem>,
    /// The longest completion of the stage being read: its objective may divide by it.
    pub completion_len_tokens_max: u32,
    places: BTreeMap<String, Span>,
    bad: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub fn new(sources: &'a Sources<'a>, problems: Vec<Problem>) -> Self {
        Self {
            sources,
            problems,
            completion_len_tokens_max: 0,
            places: BTreeMap::new(),
            bad: BTreeSet::new(),
        }
    }

    /// Reports a problem at a span and marks the key, so that nothing built on its value is
    /// reported as well.
    pub fn report(&mut self, span: Span, path: &str, message: String, hint: Option<String>) {
        self.problems.push(self.sources.problem(span, path, message, hint));
        self.bad.insert(path.to_owned());
    }

    /// Reports a problem of the value at `path`, or of the nearest table around it.
    pub fn report_at(&mut self, path: &str, message: String, hint: Option<String>) {
        let span = self.span_of(path);
        self.report(span, path, message, hint);
    }

    /// The value's place, or that of the nearest table around it when the file doesn't have it.
    pub fn span_of(&self, path: &str) -> Span {
        let mut prefix = path;
        loop {
            if let Some(place) = self.places.get(prefix) {
                return *place;
            }
            match prefix.rfind(['.', '[']) {
                Some(dot) => prefix = &prefix[..dot],
                None => return Span { origin: super::source::Origin::File, start: 0, end: 0 },
            }
        }
    }

    /// True when the value was written and nothing was wrong with it, around it or inside it.
    pub fn is_good(&self, path: &str) -> bool {
        let around = (0..=path.len())
            .filter(|&end| end == path.len() || matches!(path.as_bytes()[end], b'.' | b'['))
            .any(|end| self.bad.contains(&path[..end]));
        let inside = self
            .bad
            .range(path.to_owned()..)
            .take_while(|bad| bad.starts_with(path))
            .any(|bad| matches!(bad.as_bytes().get(path.len()), None | Some(b'.' | b'[')));
        !around && !inside
    }

    /// Whether the file or an override has this key.
    pub fn has(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Notes where the value at `path` was written.
    pub fn remember(&mut self, path: &str, place: Span) {
        self.places.insert(path.to_owned(), place);
    }

    pub fn wrong_type(&mut self, node: &Node, path: &str, expects: &str) {
        let message = format!("`{path}` must be {expects}, got {}", node.value.describe());
        let hint = type_remedy(&node.value, path, expects);
        self.report(node.span, path, message, Some(hint));
    }
}

/// What to do about a value of the wrong type.
fn type_remedy(value: &Value, path: &str, expects: &str) -> String {
    let name = path.rsplit('.').next().unwrap_or(path);
    let wants = |what: &str| expects.contains(what);
    match value {
        Value::String(text) if wants("number") && text.trim().parse::<f64>().is_ok() => {
            format!("write it without quotes: `{name} = {}`", text.trim())
        }
        Value::String(text) if wants("true") && text.trim().parse::<bool>().is_ok() => {
            format!("write it without quotes: `{name} = {}`", text.trim())
        }
        Value::Float(_) if wants("whole number") => "write it without a fraction".to_owned(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) if wants("string") => {
            "put it in quotes".to_owned()
        }
        _ if expects.starts_with("a table") => {
            format!("write its keys in braces: `{name} = {{ … }}`")
        }
        _ => format!("write `{name} = …` with {expects}"),
    }
}

/// A value that a key can have.
pub(crate) trait Field: Sized {
    /// What a value must be: "a whole number".
    fn expects() -> String;
    /// Reads a value; what is wrong is reported and `base` stays.
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self;
    /// The value as it is written; `None` where absence says it.
    fn write(&self) -> Option<Out>;
    /// The words that it chooses from.
    fn words() -> Vec<Word> {
        Vec::new()
    }
    /// What the table is, for a table.
    fn about() -> &'static str {
        ""
    }
    /// The keys inside, for a table, with this one's settings as their defaults.
    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }
}

/// A table with a fixed set of keys.
pub(crate) trait Section: Sized {
    /// The doc comment of the table.
    const ABOUT: &'static str;
    /// Its keys, with this one's settings as their defaults.
    fn section_keys(&self) -> Vec<Key>;
    /// Reads the keys of a table over `base`. Unknown keys are the caller's affair.
    fn read_over(base: Self, entries: &[Entry], path: &str, reader: &mut Reader<'_>) -> Self;
    fn write_section(&self) -> Vec<(String, Out)>;
}

/// Reads one key of a table.
pub(crate) fn read_key<T: Field>(
    entries: &[Entry],
    (name, is_required): (&str, bool),
    path: &str,
    reader: &mut Reader<'_>,
    base: T,
) -> T {
    let path = join(path, name);
    match entries.iter().find(|entry| entry.key == name) {
        Some(entry) => {
            reader.remember(&path, entry.node.span);
            T::read(&entry.node, &path, reader, base)
        }
        None => {
            if is_required {
                let hint = format!("add `{name} = …`: {}", T::expects());
                reader.report_at(&path, format!("`{path}` is missing"), Some(hint));
            }
            base
        }
    }
}

/// Reports a value outside its range, unless it was reported before. `default`: what the key is
/// when it is left out.
pub(crate) fn require(
    ok: bool,
    path: &str,
    must: &str,
    [got, default]: [Option<String>; 2],
    reader: &mut Reader<'_>,
) {
    if ok || !reader.is_good(path) {
        return;
    }
    let name = path.rsplit('.').next().unwrap_or(path);
    let hint = match default {
        Some(default) => format!("the default is `{name} = {default}`"),
        None => format!("set `{name}` to what is {must}"),
    };
    let got = got.unwrap_or_default();
    reader.report_at(path, format!("`{path}` must be {must}, got {got}"), Some(hint));
}

/// Reports every key of a table that isn't among `keys`.
pub(crate) fn refuse_unknown(
    entries: &[Entry],
    keys: &[Key],
    more: &[&str],
    path: &str,
    reader: &mut Reader<'_>,
) {
    let names: Vec<&str> =
        more.iter().copied().chain(keys.iter().map(|key| key.name.as_str())).collect();
    for entry in entries.iter().filter(|entry| !names.contains(&entry.key.as_str())) {
        let inside = keys
            .iter()
            .find(|key| key.keys.iter().any(|inner| inner.name == entry.key))
            .map(|key| format!("did you mean `{}.{}`?", key.name, entry.key));
        let hint = nearest(&entry.key, names.iter().copied())
            .map(|name| format!("did you mean `{name}`?"))
            .or(inside)
            .unwrap_or_else(|| format!("the keys here are: {}", names.join(", ")));
        let key = join(path, &entry.key);
        let message = format!("unknown key `{key}`");
        let problem = reader.sources.problem(entry.key_span, &key, message, Some(hint));
        reader.problems.push(problem);
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The [`Field`] of a [`Section`]: a table whose unknown keys are refused.
pub(crate) fn read_section<S: Section>(
    node: &Node,
    path: &str,
    reader: &mut Reader<'_>,
    base: S,
) -> S {
    let Value::Table(entries) = &node.value else {
        reader.wrong_type(node, path, "a table");
        return base;
    };
    refuse_unknown(entries, &base.section_keys(), &[], path, reader);
    S::read_over(base, entries, path, reader)
}

/// Declares a table of the file and the struct it becomes. After a field's type: its default
/// (without one the key is required), then optionally its range, as words and as a check. `@neutral`
/// before a field says that no table and no weight depends on its value.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $(@ $mark:ident)?
                pub $field:ident : $ty:ty $(= $default:expr)? $(, $must:literal $check:expr)? ;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Section { $( $(#[doc = $doc])+ pub $field: $ty, )+ }

        impl Default for $Section {
            fn default() -> Self {
                Self { $( $field: section!(@default $ty $(, $default)?), )+ }
            }
        }

        impl $crate::pipeline::reader::Section for $Section {
            const ABOUT: &'static str = concat!($($about, "\n"),+);

            fn section_keys(&self) -> Vec<$crate::pipeline::reader::Key> {
                vec![$( $crate::pipeline::reader::Key {
                    is_neutral: section!(@neutral $($mark)?),
                    ..$crate::pipeline::reader::Key::of(
                        stringify!($field),
                        concat!($($doc, "\n"),+),
                        section!(@must $($must)?),
                        (section!(@required $($default)?), &self.$field),
                    )
                } ),+]
            }

            fn read_over(
                base: Self,
                entries: &[$crate::pipeline::source::Entry],
                path: &str,
                reader: &mut $crate::pipeline::reader::Reader<'_>,
            ) -> Self {
                use $crate::pipeline::reader;
                Self { $( $field: {
                    let key = (stringify!($field), section!(@required $($default)?));
                    let value: $ty = reader::read_key(entries, key, path, reader, base.$field);
                    $( {
                        let check: fn(&$ty) -> bool = $check;
                        let shown = |value: &$ty| reader::Field::write(value).map(|out| out.inline());
                        let default = if key.1 { None } else { shown(&Self::default().$field) };
                        let path = reader::join(path, stringify!($field));
                        let texts = [shown(&value), default];
                        reader::require(check(&value), &path, $must, texts, reader);
                    } )?
                    value
                } ),+ }
            }

            fn write_section(&self) -> Vec<(String, $crate::pipeline::write::Out)> {
                use $crate::pipeline::reader::Field;
                let mut keys = Vec::new();
                $( if let Some(out) = self.$field.write() {
                    keys.push((stringify!($field).to_owned(), out));
                } )+
                keys
            }
        }
    };
    (@default $ty:ty, $default:expr) => { $default };
    (@default $ty:ty) => { <$ty as Default>::default() };
    (@must $must:literal) => { Some($must) };
    (@must) => { None };
    (@neutral neutral) => { true };
    (@neutral) => { false };
    (@required $default:expr) => { false };
    (@required) => { true };
}
pub(crate) use section;

/// Makes sections usable as values of a key.
macro_rules! section_fields {
    ($($Section:ty),+ $(,)?) => { $(
        impl $crate::pipeline::reader::Field for $Section {
            fn expects() -> String { "a table".into() }
            fn read(
                node: &$crate::pipeline::source::Node,
                path: &str,
                reader: &mut $crate::pipeline::reader::Reader<'_>,
                base: Self,
            ) -> Self {
                $crate::pipeline::reader::read_section(node, path, reader, base)
            }
            fn write(&self) -> Option<$crate::pipeline::write::Out> {
                use $crate::pipeline::reader::Section;
                Some($crate::pipeline::write::Out::Table(self.write_section()))
            }
            fn about() -> &'static str {
                <$Section as $crate::pipeline::reader::Section>::ABOUT
            }
            fn keys(&self) -> Vec<$crate::pipeline::reader::Key> {
                $crate::pipeline::reader::Section::section_keys(self)
            }
        }
    )+ };
}
pub(crate) use section_fields;

/// Declares an enum whose values are words of the file.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        pub enum $Choice:ident { $( $(#[doc = $doc:literal])+ $Variant:ident = $word:literal ),+ $(,)? }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Choice { $( $(#[doc = $doc])+ $Variant ),+ }

        impl $Choice {
            /// The words of the file, in the order of the docs.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of the file.
            pub fn word(self) -> &'static str {
                match self { $( Self::$Variant => $word ),+ }
            }

            /// The value that a word of the file stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $( $word => Some(Self::$Variant), )+ _ => None }
            }
        }

        impl $crate::pipeline::reader::Field for $Choice {
            fn expects() -> String { $crate::pipeline::reader::one_of(Self::WORDS) }
            fn words() -> Vec<$crate::pipeline::reader::Word> {
                vec![$( ($word, concat!($($doc, "\n"),+)) ),+]
            }
            fn read(
                node: &$crate::pipeline::source::Node,
                path: &str,
                reader: &mut $crate::pipeline::reader::Reader<'_>,
                base: Self,
            ) -> Self {
                let found = $crate::pipeline::reader::read_word(node, path, reader, Self::WORDS);
                found.and_then(Self::from_word).unwrap_or(base)
            }
            fn write(&self) -> Option<$crate::pipeline::write::Out> {
                Some($crate::pipeline::write::Out::string(self.word()))
            }
        }
    };
}
pub(crate) use choice;

/// "one of "a", "b"".
pub(crate) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// Reads a string that must be one of `words`.
pub(crate) fn read_word<'n>(
    node: &'n Node,
    path: &str,
    reader: &mut Reader<'_>,
    words: &[&str],
) -> Option<&'n str> {
    match &node.value {
        Value::String(word) if words.contains(&word.as_str()) => Some(word),
        Value::String(word) => {
            let hint = nearest(word, words.iter().copied());
            let hint = hint.map(|word| format!("did you mean \"{word}\"?"));
            let message = format!("`{path}` must be {}, got \"{word}\"", one_of(words));
            reader.report(node.span, path, message, hint);
            None
        }
        _ => {
            reader.wrong_type(node, path, &one_of(words));
            None
        }
    }
}
