//! Rewards of a stage: [`aha_reward::Spec`] as a key of the pipeline.

use std::sync::Arc;

use aha_reward::backend::{Backends, ChatModel, PreferenceModel};
use aha_reward::{Kind, Sample, Settings, Spec};
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
        Self(Spec::new(Kind::Math).named())
    }
}

impl Reward {
    /// The name of its column: `math` for `reward_math`.
    pub fn name(&self) -> &str {
        self.0.column_name()
    }

    /// Factor of its score in the whole reward.
    pub fn weight(&self) -> f32 {
        self.0.common.weight
    }

    /// The model of the pipeline that it borrows, by name.
    pub fn model(&self) -> Option<&str> {
        self.0.settings.model()
    }

    /// The environment variable that holds its secret, where that isn't set.
    pub fn unset_variable(&self) -> Option<&str> {
        self.0.settings.variable().filter(|name| std::env::var_os(name).is_none())
    }

    /// The reward model that it asks, and whether it needs the mean and the deviation of its scores.
    pub fn reward_model(&self) -> Option<(&str, bool)> {
        match &self.0.settings {
            Settings::Model(settings) => {
                settings.model.as_deref().map(|name| (name, settings.normalise))
            }
            _ => None,
        }
    }

    /// What is wrong with its settings, whatever models there are to lend.
    pub fn problems(&self) -> Vec<aha_reward::Problem> {
        self.0.resolve(&Unchecked).err().unwrap_or_default()
    }

    /// The columns of the problems that it can't do without.
    pub fn needs(&self) -> Option<&'static str> {
        let kind = self.0.kind();
        kind.needs_answer().then_some("answer").or(kind.needs_tests().then_some("tests"))
    }
}

/// Lends everything, and none of it says anything: names are checked where the other names are.
pub(crate) struct Unchecked;

impl Backends for Unchecked {
    fn preference_model(&self, _: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        Ok(Arc::new(Unchecked))
    }

    fn chat_model(&self, _: &str, _: usize, _: f64) -> Result<Arc<dyn ChatModel>, String> {
        Ok(Arc::new(Unchecked))
    }

    /// Whether it is set matters where the pipeline is run.
    fn variable(&self, _: &str) -> Result<String, String> {
        Ok("unknown".to_owned())
    }
}

impl PreferenceModel for Unchecked {
    fn scores(&self, samples: &[Sample<'_>]) -> Vec<Result<f32, String>> {
        vec![Err("no model was loaded".to_owned()); samples.len()]
    }

    fn moments(&self) -> Option<[f32; 2]> {
        Some([0.0, 1.0])
    }
}

impl ChatModel for Unchecked {
    fn answers(&self, prompts: &[String]) -> Vec<Result<String, String>> {
        vec![Err("no model was loaded".to_owned()); prompts.len()]
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
        let names = Spec::key_names(kind);
        foreign::refuse_unknown(entries, &names, path, reader);
        let mut table = foreign::good_keys::<Spec>(entries, &names, &fixed, path, reader);
        table.insert("kind".into(), kind.name().into());
        let Some(spec) = foreign::read::<Spec>(table) else { return base };
        if let Err(problems) = spec.resolve(&Unchecked) {
            for problem in problems {
                let path = format!("{path}.{}", problem.key);
                if reader.is_good(&path) {
                    let (message, hint) = told(&path, &problem);
                    reader.report_at(&path, message, Some(hint));
                }
            }
        }
        Self(spec.named())
    }

    fn write(&self) -> Option<Out> {
        Some(foreign::write(&self.0))
    }

    fn keys(&self) -> Vec<Key> {
        // Those of any kind: the page of rewards has each kind's own.
        Spec::key_names(self.0.kind()).iter().map(|name| foreign::key(name)).collect()
    }
}

/// What is wrong with a setting, and the remedy.
pub(crate) fn told(path: &str, problem: &aha_reward::Problem) -> (String, String) {
    let (must, got) = (&problem.must, &problem.got);
    if got == "absent" {
        return (format!("`{path}` is missing"), format!("add `{} = …`", problem.key));
    }
    (format!("`{path}` must be {must}, got {got}"), foreign::remedy(must, got))
}

/// The kind of a reward: one that is known, and built.
fn read_kind(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Kind> {
    let Value::Table(entries) = &node.value else { return None };
    let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let path = format!("{path}.kind");
    let Some(entry) = entries.iter().find(|entry| entry.key == "kind") else {
        reader.report_at(&path, format!("`{path}` is missing"), Some(one_of(&known)));
        return None;
    };
    reader.remember(&path, entry.node.span);
    let Value::String(word) = &entry.node.value else {
        reader.wrong_type(&entry.node, &path, &one_of(&known));
        return None;
    };
    match Kind::from_name(word) {
        Some(kind) => Some(kind),
        None => {
            let hint = nearest(word, Kind::ALL.iter().map(|kind| kind.name()));
            let hint = hint.map(|word| format!("did you mean \"{word}\"?"));
            let message = format!("`{path}` must be {}, got \"{word}\"", one_of(&known));
            reader.report_at(&path, message, hint);
            None
        }
    }
}
