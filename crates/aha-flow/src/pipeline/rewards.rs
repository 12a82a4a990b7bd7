//! Rewards of a stage: [`aha_reward::Spec`] as a key of the pipeline.

use aha_reward::{Kind, Spec};
use serde_json::Value as Json;

use super::foreign;
use super::problem::nearest;
use super::reader::{Field, Key, Reader, one_of};
use super::source::{Node, Value};
use super::write::Out;

/// A reward: which verifier, its weight, its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Reward(pub Spec);

impl Default for Reward {
    fn default() -> Self {
        Self::of(Kind::Math)
    }
}

impl Reward {
    /// A reward of that kind with the defaults of its settings.
    pub fn of(kind: Kind) -> Self {
        Self(Spec::new(kind).with_defaults())
    }

    /// The name of its column: `math` for `reward_math`.
    pub fn name(&self) -> &str {
        self.0.column_name()
    }

    /// Factor of its score in the whole reward.
    pub fn weight(&self) -> f32 {
        self.0.weight.unwrap_or(1.0)
    }

    /// Whether it compares with the answer of the data set.
    pub fn needs_answer(&self) -> bool {
        self.0.kind.needs_answer()
    }
}

impl Field for Reward {
    fn expects() -> String {
        "a table such as `{ kind = \"math\", weight = 1.0 }`".into()
    }

    fn about() -> &'static str {
        "A verifier, its weight in the whole reward, and its settings."
    }

    fn read(node: &Node, path: &str, reader: &mut Reader<'_>, base: Self) -> Self {
        let Value::Table(entries) = &node.value else {
            reader.wrong_type(node, path, &Self::expects());
            return base;
        };
        let Some(kind) = read_kind(node, path, reader) else { return base };
        let fixed = [("kind", Json::from(kind.name()))];
        let names = foreign::field_names::<Spec>(&fixed);
        foreign::refuse_unknown(entries, &names, path, reader);
        let mut table = foreign::good_keys::<Spec>(entries, &names, &fixed, path, reader);
        table.insert("kind".into(), kind.name().into());
        let Some(spec) = foreign::read::<Spec>(table) else { return base };
        if let Err(problems) = spec.resolve() {
            for problem in problems {
                let path = format!("{path}.{}", problem.key);
                if reader.is_good(&path) {
                    let (message, hint) = told(&path, &problem);
                    reader.report_at(&path, message, Some(hint));
                }
            }
        }
        Self(spec.with_defaults())
    }

    fn write(&self) -> Option<Out> {
        Some(foreign::write(&self.0))
    }

    fn keys(&self) -> Vec<Key> {
        let fixed = [("kind", Json::from(Kind::Math.name()))];
        foreign::field_names::<Spec>(&fixed).iter().map(|name| foreign::key(name)).collect()
    }
}

/// What is wrong with a setting, and the remedy.
fn told(path: &str, problem: &aha_reward::Problem) -> (String, String) {
    let (must, got) = (&problem.must, &problem.got);
    match must.strip_prefix("absent: ") {
        Some(who) => (format!("`{path}` doesn't belong here: {who}"), "leave it out".to_owned()),
        None if got == "absent" => {
            (format!("`{path}` is missing"), format!("add `{} = …`", problem.key))
        }
        None => (format!("`{path}` must be {must}, got {got}"), foreign::remedy(must, got)),
    }
}

/// The kind of a reward: one that is known, and built.
fn read_kind(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Kind> {
    let Value::Table(entries) = &node.value else { return None };
    let built: Vec<&str> = Kind::BUILT.iter().map(|kind| kind.name()).collect();
    let path = format!("{path}.kind");
    let Some(entry) = entries.iter().find(|entry| entry.key == "kind") else {
        reader.report_at(&path, format!("`{path}` is missing"), Some(one_of(&built)));
        return None;
    };
    reader.remember(&path, entry.node.span);
    let Value::String(word) = &entry.node.value else {
        reader.wrong_type(&entry.node, &path, &one_of(&built));
        return None;
    };
    match Kind::from_name(word) {
        Some(kind) if kind.is_built() => Some(kind),
        Some(kind) => {
            let message = format!("rewards of kind `{kind}` are not built in this version");
            reader.report_at(&path, message, Some(format!("use {}", one_of(&built))));
            None
        }
        None => {
            let hint = nearest(word, Kind::ALL.iter().map(|kind| kind.name()));
            let hint = hint.map(|word| format!("did you mean \"{word}\"?"));
            let message = format!("`{path}` must be {}, got \"{word}\"", one_of(&built));
            reader.report_at(&path, message, hint);
            None
        }
    }
}
