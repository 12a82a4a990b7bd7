//! The page of pipeline files: a section for each table, a row for each key.

use aha_flow::benchmark;
use aha_flow::pipeline::{Benchmark, Key, Table, reference};
use aha_reward::{Kind, Spec};
use anyhow::Result;

use super::NOTE;
use super::foreign;
use super::markdown::{one_line, paragraph, section_link, table};
use super::source::{Source, plain};

/// The section whose tables are written as `[models.NAME]`.
const MODELS: &str = "models";

const INTRODUCTION: &str = "\
A pipeline is a TOML file: what holds for the run, the models and tables to start from, and stages that run in \
the order of the file. A stage leaves a table of its name and, where it trains, a model of its name; later \
stages use both. Only what is marked *required* has to be there, whole numbers are never negative, and an unknown \
key is an error.

`aha check PIPELINE` says what will run, or every problem with its line and remedy. `--set KEY=VALUE` changes a \
key for one run; a stage's keys are found by its name: `--set stage.zero.steps=10`. The run directory has the \
file as it was resolved, with every default written out.

Every query sees `[tables]`, the tables of earlier stages, and `rollouts`, `metrics` and `evals`; \
[their columns](tables.md) and the [SQL functions](tables.md#sql-functions) have a page of their own.
";

/// A section of the page.
struct Section {
    heading: String,
    about: String,
    body: String,
}

/// A table inside others: everyone who has it, with the keys as they have them.
struct Inner {
    path: String,
    about: &'static str,
    users: Vec<(String, Vec<Key>)>,
}

/// The page.
pub fn page() -> Result<String> {
    let sections = sections()?;
    let mut text = format!("# Pipeline files\n\n{NOTE}\n\n");
    for part in INTRODUCTION.split("\n\n") {
        text.push_str(&paragraph(part));
        text.push('\n');
    }
    text.push_str("## Contents\n\n");
    for section in &sections {
        let link = section_link(&section.heading, &section.heading);
        text.push_str(&format!("- {link}: {}\n", summary(&section.about)));
    }
    for section in sections {
        text.push_str(&format!("\n## {}\n\n", section.heading));
        text.push_str(&paragraph(&section.about));
        text.push('\n');
        text.push_str(&section.body);
    }
    Ok(text)
}

/// The first sentence, without formulas.
fn summary(about: &str) -> &str {
    let first = about.split(". ").next().unwrap_or_default();
    first.split(": `").next().unwrap_or_default().trim_end_matches('.')
}

/// The tables of a file in its order, those inside others at the end, but those of models, which are
/// written as sections of their own.
fn sections() -> Result<Vec<Section>> {
    let tables = reference();
    let mut inner: Vec<Inner> = Vec::new();
    for table in &tables {
        collect(&table.keys, "", &label(table), &mut inner);
    }
    let section_of = |table: &Inner| -> Result<Section> {
        let body = match table.path.as_str() {
            "rewards" => rewards()?,
            path => keys_table(&table.users, path, &inner),
        };
        Ok(Section { heading: heading(table, &inner), about: plain_doc(table.about), body })
    };
    let (of_models, of_stages): (Vec<_>, Vec<_>) =
        inner.iter().partition(|table| table.path.starts_with(MODELS));
    let mut sections: Vec<Section> = Vec::new();
    for table in &tables {
        let users = [(label(table), table.keys.clone())];
        sections.push(Section {
            heading: format!("`{}`", table.heading),
            about: plain_doc(table.about),
            body: keys_table(&users, "", &inner),
        });
        if label(table) == MODELS {
            for inner in &of_models {
                sections.push(section_of(inner)?);
            }
        }
    }
    for inner in of_stages {
        sections.push(section_of(inner)?);
    }
    sections.push(benchmarks());
    Ok(sections)
}

/// What each benchmark asks, how it verifies, and which columns it reads.
fn benchmarks() -> Section {
    let known = Benchmark::WORDS.iter().filter_map(|word| Benchmark::from_word(word));
    let code = |text: &str| format!("`{}`", text.replace('\n', "⏎").replace('`', "'"));
    let rows = known.map(|benchmark| {
        let card = benchmark.card();
        [
            code(benchmark.word()),
            code(card.instruction),
            code(card.reward),
            benchmark::layouts(card),
            code(card.split),
        ]
    });
    let head = ["name", "what is asked", "verifier", "columns (whose)", "split"];
    Section {
        heading: "Benchmarks".to_owned(),
        about: "What `benchmark` of an `eval` stage and `aha eval --benchmark` bring along. The data are \
                files of yours, or `hf://datasets/owner/name/path` in the local cache. The first layout \
                whose columns are there is read; `id`, `rating` and `source` are read where they are there. \
                In what is asked, ⏎ is a line break, and three accents `'''` a code fence."
            .to_owned(),
        body: table(head, rows),
    }
}

/// What a table's keys are said to be of: the kind of a stage, or the section.
fn label(table: &Table) -> String {
    match table.heading.split('"').nth(1) {
        Some(kind) => kind.to_owned(),
        None => table.heading.trim_matches(['[', ']']).to_owned(),
    }
}

/// Finds the tables inside `keys`; those with the same keys in the same place are one.
fn collect(keys: &[Key], path: &str, label: &str, found: &mut Vec<Inner>) {
    for key in keys.iter().filter(|key| !key.keys.is_empty() && !is_elsewhere(key)) {
        let path = inner_path(path, &key.name, label);
        let names = |keys: &[Key]| keys.iter().map(|key| key.name.clone()).collect::<Vec<_>>();
        let is_same =
            |inner: &&mut Inner| inner.path == path && names(&inner.users[0].1) == names(&key.keys);
        let user = (label.to_owned(), key.keys.clone());
        match found.iter_mut().find(is_same) {
            Some(inner) => inner.users.push(user),
            None => found.push(Inner { path: path.clone(), about: key.about, users: vec![user] }),
        }
        collect(&key.keys, &path, label, found);
    }
}

/// Whether the keys inside have a page of their own.
fn is_elsewhere(key: &Key) -> bool {
    key.name == "objective"
}

/// Where a table is: `optimizer.schedule` in any stage, `models.NAME` at the top.
fn inner_path(outer: &str, name: &str, label: &str) -> String {
    match (outer, name) {
        ("", "NAME") => format!("{label}.NAME"),
        ("", "reward" | "rank_by") => "rewards".to_owned(),
        ("", name) => name.to_owned(),
        (outer, name) => format!("{outer}.{name}"),
    }
}

fn heading(inner: &Inner, all: &[Inner]) -> String {
    let twins = all.iter().filter(|other| other.path == inner.path).count();
    if inner.path.starts_with(MODELS) {
        format!("`[{}]`", inner.path)
    } else if twins > 1 {
        format!("`{}` of `{}`", inner.path, inner.users[0].0)
    } else {
        format!("`{}`", inner.path)
    }
}

fn keys_table(users: &[(String, Vec<Key>)], path: &str, inner: &[Inner]) -> String {
    let keys = &users[0].1;
    // Words that several keys choose from are explained once, below the table.
    let is_shared = |key: &Key| {
        !key.words.is_empty() && keys.iter().filter(|other| other.words == key.words).count() > 1
    };
    let rows = keys.iter().enumerate().map(|(idx, key)| {
        let all: Vec<(&str, &Key)> =
            users.iter().map(|(label, keys)| (label.as_str(), &keys[idx])).collect();
        let words = if is_shared(key) { String::new() } else { words(key, "<br>") };
        let meaning = format!("{}{words}", plain_doc(key.doc));
        [format!("`{}`", key.name), value(key, path, &users[0].0, inner), default(&all), meaning]
    });
    let mut text = table(["key", "value", "default", "what it does"], rows);
    if let Some(key) = keys.iter().find(|key| is_shared(key)) {
        text.push_str(&words(key, "\n- "));
        text.push('\n');
    }
    text
}

/// What each word means that the key chooses from.
fn words(key: &Key, before_each: &str) -> String {
    let word = |(word, doc): &(&str, &str)| format!("{before_each}`{word}`: {}", plain_doc(doc));
    key.words.iter().map(word).collect()
}

/// What a value must be, with a link to the keys inside.
fn value(key: &Key, path: &str, label: &str, inner: &[Inner]) -> String {
    let mut text = match key.expects.strip_prefix("one of ") {
        Some(words) => {
            words.split(", ").map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        }
        None if key.words.len() == 1 => format!("`{}`", key.expects),
        None => key.expects.clone(),
    };
    if let Some(must) = key.must {
        text.push_str(&format!("; {must}"));
    }
    if is_elsewhere(key) {
        text.push_str(" ([its keys](objective.md#keys))");
    } else if !key.keys.is_empty() {
        let path = inner_path(path, &key.name, label);
        let target = inner
            .iter()
            .find(|inner| inner.path == path && inner.users.iter().any(|(user, _)| user == label));
        let target = target.expect("every table inside was collected");
        text.push_str(&format!(" ({})", section_link("its keys", &heading(target, inner))));
    }
    text
}

/// The default, of each user where they differ.
fn default(all: &[(&str, &Key)]) -> String {
    let shown = |key: &Key| match &key.default {
        _ if key.name == "NAME" => "–".to_owned(),
        _ if key.is_required => "*required*".to_owned(),
        Some(_) if key.expects == "a table" => "that of its keys".to_owned(),
        Some(default) => format!("`{}`", one_line(default)),
        None => "absent".to_owned(),
    };
    let first = shown(all[0].1);
    if all.iter().all(|(_, key)| shown(key) == first) {
        return first;
    }
    let each = all.iter().map(|(label, key)| format!("{} in `{label}`", shown(key)));
    each.collect::<Vec<_>>().join(", ")
}

fn plain_doc(doc: &str) -> String {
    plain(&doc.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
}

/// The kinds of rewards, the keys of all of them, then those of each.
fn rewards() -> Result<String> {
    let mut kinds = Vec::new();
    let mut of_each = String::new();
    let spec = Source::read("aha-reward", &["spec.rs", "composite.rs"])?;
    let common = spec.item("Common")?;
    for kind in Kind::ALL {
        let source =
            Source::read("aha-reward", &[&module_of(kind), "extract.rs", TOOLCHAIN, ISOLATION])?;
        let answer = Source::read("aha-reward", &["extract.rs"])?.item("Settings")?;
        let settings = foreign::flattened(source.item("Settings")?, "extract::Settings", answer);
        let service = Source::read("aha-reward", &["wait/client.rs"])?.item("Settings")?;
        let settings = foreign::flattened(settings, "client::Settings", service);
        kinds.push([format!("`{kind}`"), plain(&settings.doc)]);
        let known = Spec::key_names(kind);
        let own = &known[1 + common.members.len()..];
        foreign::ensure_same(&settings, own)?;
        if !own.is_empty() {
            of_each.push_str(&format!("\nKeys of `{kind}`:\n\n"));
            of_each.push_str(&foreign::keys_table(&settings, &source)?);
        }
    }
    let mut text = table(["kind", "score"], kinds);
    text.push_str("\nKeys of every kind, besides `kind`:\n\n");
    text.push_str(&foreign::keys_table(&common, &spec)?);
    text.push_str(&of_each);
    Ok(text)
}

/// Where the words are declared that settings of `code` take.
const TOOLCHAIN: &str = "code/toolchain.rs";
const ISOLATION: &str = "../../aha-sandbox/src/job.rs";

/// The source of a kind's settings and verifier.
fn module_of(kind: Kind) -> String {
    match kind {
        Kind::Regex => "pattern.rs".to_owned(),
        Kind::Math | Kind::Code => format!("{kind}/mod.rs"),
        kind => format!("{kind}.rs"),
    }
}
