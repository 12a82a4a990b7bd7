//! The keys of a pipeline that results depend on, which decide whether a run may go on.
//!
//! A run may go on with another version of the program, which may have more keys. So each key's default means what the
//! program did before there was the key, and a run that doesn't know a key has its default. A key whose default were
//! anything else would have to be one that is required.

use super::models::ModelSource;
use super::problem::Problems;
use super::reader::{Key, Section, join};
use super::source::{self, Node, Sources, Value};
use super::stages::Pipeline;
use super::write::Out;
use super::{Text, parse};

/// The keys of a pipeline that results depend on, each with its path and its value.
pub type Settings = Vec<(String, String)>;

/// The settings of a pipeline that this version or another one has written: see [`Pipeline::to_toml`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// As this version reads them.
    pub settings: Settings,
    /// Without the keys that the text doesn't have, as the version that wrote it had them.
    pub known: Settings,
}

impl Written {
    /// Reads a pipeline that was written.
    pub fn read(text: Text<'_>) -> Result<Written, Problems> {
        let pipeline = parse(text)?;
        let sources = Sources { path: text.path, text: text.text, sets: text.sets };
        let (tree, _) = source::parse(&sources).map_err(Problems::of_syntax)?;
        let known = pipeline.settings_in(Some(&tree));
        Ok(Written { settings: pipeline.settings(), known })
    }
}

impl Pipeline {
    /// What tables and weights depend on, besides what files hold: every key but the neutral ones (see
    /// [`Key::is_neutral`]), descriptions, and the paths of tables and models.
    pub fn settings(&self) -> Settings {
        self.settings_in(None)
    }

    /// Of a tree, where there is one, only the keys that it has.
    fn settings_in(&self, tree: Option<&Node>) -> Settings {
        let mut found = Settings::new();
        let mut add =
            |path: &str, values: Vec<(String, Out)>, keys: &[Key], node: Option<&Node>| {
                let values = match (tree, node) {
                    (None, _) => values,
                    (Some(_), None) => Vec::new(),
                    (Some(_), Some(node)) => known_keys(values, node),
                };
                settings_of(&mut found, path, &values, keys);
            };
        let section = |name: &str| tree.and_then(|tree| tree.get(name));
        add("run", self.run.write_section(), &self.run.section_keys(), section("run"));
        for (name, model) in &self.models {
            if let ModelSource::Random(model) = model {
                let node = section("models").and_then(|models| models.get(name));
                add(&format!("models.{name}"), model.write_section(), &[], node);
            }
        }
        for stage in &self.stages {
            let node = section("stage").and_then(|stages| stages.stage(&stage.name));
            let mut keys = vec![("kind".to_owned(), Out::Raw(stage.kind.word().to_owned()))];
            keys.extend(stage.write_kind());
            add(&format!("stage.{}", stage.name), keys, &stage.kind.keys(), node);
        }
        found
    }
}

/// The keys that a node has, and of their tables those that these have.
fn known_keys(values: Vec<(String, Out)>, node: &Node) -> Vec<(String, Out)> {
    let known = |(name, value): (String, Out)| {
        let node = node.get(&name)?;
        Some((name, known_part(value, node)))
    };
    values.into_iter().filter_map(known).collect()
}

fn known_part(value: Out, node: &Node) -> Out {
    match (value, &node.value) {
        (Out::Table(keys), Value::Table(_)) => Out::Table(known_keys(keys, node)),
        (Out::Array(items), Value::Array(nodes)) if items.len() == nodes.len() => {
            let known = items.into_iter().zip(nodes).map(|(item, node)| known_part(item, node));
            Out::Array(known.collect())
        }
        (value, _) => value,
    }
}

fn settings_of(found: &mut Settings, path: &str, values: &[(String, Out)], keys: &[Key]) {
    for (name, value) in values {
        let key = keys.iter().find(|key| key.name == *name);
        let path = join(path, name);
        match value {
            _ if key.is_some_and(|key| key.is_neutral) => {}
            Out::Table(inner) => {
                settings_of(found, &path, inner, key.map_or(&[], |key| &key.keys));
            }
            value => found.push((path, value.inline())),
        }
    }
}
