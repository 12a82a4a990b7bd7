//! The tree as a [`Pipeline`], and a [`Pipeline`] as a file.

use super::models::ModelSource;
use super::problem::{nearest, suggest};
use super::reader::{
    Field, Key, Reader, Section, join, one_of, read_key, read_word, refuse_unknown,
};
use super::run::Run;
use super::source::{Entry, Node, Value, stage_name};
use super::stages::{
    DpoStage, EvalStage, ExportStage, Pipeline, QueryStage, RewardModelStage, RlStage, SampleStage,
    SftStage, Stage, StageKind,
};
use super::write::{Out, table};

/// First line of a pipeline that we wrote.
pub const RESOLVED_HEADER: &str = "# As resolved, with every default written out.";
const SECTIONS: [&str; 4] = ["run", "models", "tables", "stage"];
const COMMON: [&str; 3] = ["name", "kind", "description"];
/// The kinds of stage, in the order of the docs.
const KINDS: [&str; 8] = ["sft", "reward-model", "dpo", "rl", "sample", "query", "eval", "export"];

/// Reads the whole tree; what is wrong is in the reader, and stages that can't be read are left out.
pub(crate) fn read(root: &Node, reader: &mut Reader<'_>) -> Pipeline {
    let Value::Table(entries) = &root.value else { unreachable!("the root of TOML is a table") };
    let find = |name: &str| entries.iter().find(|entry| entry.key == name);
    for entry in entries.iter().filter(|entry| !SECTIONS.contains(&entry.key.as_str())) {
        let hint = match nearest(&entry.key, SECTIONS) {
            Some("stage") => "did you mean `[[stage]]`?".to_owned(),
            Some(name) => format!("did you mean `[{name}]`?"),
            None => "a pipeline has [run], [models], [tables] and [[stage]]".to_owned(),
        };
        let message = format!("unknown key `{}`", entry.key);
        let problem = reader.sources.problem(entry.key_span, &entry.key, message, Some(hint));
        reader.problems.push(problem);
    }
    let run = read_key(entries, ("run", false), "", reader, Run::default());
    let models = find("models").map(|e| read_named::<ModelSource>(e, reader)).unwrap_or_default();
    let tables = find("tables").map(|e| read_named::<String>(e, reader)).unwrap_or_default();
    let stages = find("stage").map(|e| read_stages(e, reader)).unwrap_or_default();
    if stages.is_empty() && reader.problems.is_empty() {
        let hint = "add a `[[stage]]` with `name` and `kind`".to_owned();
        reader.report_at("stage", "the pipeline has no stage".into(), Some(hint));
    }
    Pipeline { run, models, tables, stages }
}

/// A table whose keys are names.
fn read_named<T: Field + Default>(section: &Entry, reader: &mut Reader<'_>) -> Vec<(String, T)> {
    reader.remember(&section.key, section.node.span);
    let Value::Table(entries) = &section.node.value else {
        reader.wrong_type(&section.node, &section.key, "a table of names");
        return Vec::new();
    };
    entries
        .iter()
        .map(|entry| {
            let name = entry.key.as_str();
            let key = (name, false);
            (name.to_owned(), read_key(entries, key, &section.key, reader, T::default()))
        })
        .collect()
}

fn read_stages(section: &Entry, reader: &mut Reader<'_>) -> Vec<Stage> {
    reader.remember("stage", section.key_span);
    let Value::Array(nodes) = &section.node.value else {
        let hint = "write each stage under a heading `[[stage]]`".to_owned();
        let message =
            format!("`stage` must be an array of tables, got {}", section.node.value.describe());
        reader.report(section.key_span, "stage", message, Some(hint));
        return Vec::new();
    };
    let mut paths: Vec<String> = Vec::new();
    let mut stages = Vec::new();
    for (idx, node) in nodes.iter().enumerate() {
        // Two stages of one name are a problem, and must not share the places of their keys.
        let path = match stage_name(node).map(|name| format!("stage.{name}")) {
            Some(path) if !paths.contains(&path) => path,
            _ => format!("stage[{idx}]"),
        };
        paths.push(path.clone());
        reader.remember(&path, node.span);
        stages.extend(read_stage(node, &path, reader));
    }
    stages
}

fn read_stage(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Stage> {
    let Value::Table(entries) = &node.value else {
        reader.wrong_type(node, path, "a table");
        return None;
    };
    let name = read_key(entries, ("name", true), path, reader, String::new());
    let description = read_key(entries, ("description", false), path, reader, String::new());
    let kind_path = join(path, "kind");
    let Some(kind) = entries.iter().find(|entry| entry.key == "kind") else {
        let hint = suggest("", &KINDS, "the kinds are");
        reader.report_at(&kind_path, format!("`{kind_path}` is missing"), Some(hint));
        return None;
    };
    reader.remember(&kind_path, kind.node.span);
    let kind = match read_word(&kind.node, &kind_path, reader, &KINDS)? {
        "sft" => StageKind::Sft(Box::new(read_kind(entries, path, reader))),
        "reward-model" => StageKind::RewardModel(Box::new(read_kind(entries, path, reader))),
        "rl" => StageKind::Rl(Box::new(read_rl(entries, path, reader))),
        "dpo" => StageKind::Dpo(Box::new(read_kind(entries, path, reader))),
        "sample" => StageKind::Sample(Box::new(read_kind(entries, path, reader))),
        "query" => StageKind::Query(read_kind(entries, path, reader)),
        "eval" => StageKind::Eval(Box::new(read_eval(entries, path, reader))),
        "export" => StageKind::Export(read_kind(entries, path, reader)),
        other => unreachable!("`{other}` is not among the kinds"),
    };
    Some(Stage { name, description, kind })
}

fn read_kind<S: Section + Default>(entries: &[Entry], path: &str, reader: &mut Reader<'_>) -> S {
    let defaults = S::default();
    refuse_unknown(entries, &defaults.section_keys(), &COMMON, path, reader);
    reader.completion_len_tokens_max = completion_len_tokens_max(entries);
    S::read_over(defaults, entries, path, reader)
}

/// Advantages by a critic bring one along.
fn read_rl(entries: &[Entry], path: &str, reader: &mut Reader<'_>) -> RlStage {
    let mut stage: RlStage = read_kind(entries, path, reader);
    if stage.objective.critic().is_some() {
        stage.critic.get_or_insert_default();
    }
    stage
}

/// A benchmark brings its verifier along.
fn read_eval(entries: &[Entry], path: &str, reader: &mut Reader<'_>) -> EvalStage {
    let mut eval: EvalStage = read_kind(entries, path, reader);
    if let Some(benchmark) = eval.benchmark
        && !entries.iter().any(|entry| entry.key == "reward")
    {
        let reward_path = join(path, "reward");
        eval.reward = benchmark.reward();
        // It stands where the benchmark does.
        let place = reader.span_of(&join(path, "benchmark"));
        reader.remember(&reward_path, place);
    }
    eval
}

/// `sampling.max_tokens` as written, ahead of the other keys: the objective's default needs it.
fn completion_len_tokens_max(entries: &[Entry]) -> u32 {
    let inside = |entries: &[Entry], name: &str| {
        entries.iter().find(|entry| entry.key == name).map(|entry| entry.node.value.clone())
    };
    let written = match inside(entries, "sampling") {
        Some(Value::Table(sampling)) => inside(&sampling, "max_tokens"),
        _ => None,
    };
    match written {
        Some(Value::Integer(tokens)) => u32::try_from(tokens).unwrap_or(0).max(1),
        _ => super::sampling::Sampling::default().max_tokens,
    }
}

impl Pipeline {
    /// The pipeline as a file with every default written out; it reads back as an equal value.
    pub fn to_toml(&self) -> String {
        let mut text = format!("{RESOLVED_HEADER}\n\n");
        table(&mut text, "[run]", "run", &self.run.write_section());
        if !self.models.is_empty() {
            let keys = named(&self.models);
            text.push('\n');
            table(&mut text, "[models]", "models", &keys);
        }
        if !self.tables.is_empty() {
            text.push('\n');
            table(&mut text, "[tables]", "tables", &named(&self.tables));
        }
        for stage in &self.stages {
            text.push('\n');
            table(&mut text, "[[stage]]", "stage", &stage.write());
        }
        text
    }
}

fn named<T: Field>(values: &[(String, T)]) -> Vec<(String, Out)> {
    values.iter().filter_map(|(name, value)| Some((name.clone(), value.write()?))).collect()
}

impl Stage {
    fn write(&self) -> Vec<(String, Out)> {
        let mut keys = vec![
            ("name".to_owned(), Out::string(&self.name)),
            ("kind".to_owned(), Out::string(self.kind.word())),
            ("description".to_owned(), Out::string(&self.description)),
        ];
        keys.extend(self.write_kind());
        keys
    }

    pub(super) fn write_kind(&self) -> Vec<(String, Out)> {
        match &self.kind {
            StageKind::Sft(stage) => stage.write_section(),
            StageKind::RewardModel(stage) => stage.write_section(),
            StageKind::Dpo(stage) => stage.write_section(),
            StageKind::Rl(stage) => stage.write_section(),
            StageKind::Sample(stage) => stage.write_section(),
            StageKind::Query(stage) => stage.write_section(),
            StageKind::Eval(stage) => stage.write_section(),
            StageKind::Export(stage) => stage.write_section(),
        }
    }
}

impl StageKind {
    pub(super) fn keys(&self) -> Vec<Key> {
        match self {
            StageKind::Sft(stage) => stage.section_keys(),
            StageKind::RewardModel(stage) => stage.section_keys(),
            StageKind::Dpo(stage) => stage.section_keys(),
            StageKind::Rl(stage) => stage.section_keys(),
            StageKind::Sample(stage) => stage.section_keys(),
            StageKind::Query(stage) => stage.section_keys(),
            StageKind::Eval(stage) => stage.section_keys(),
            StageKind::Export(stage) => stage.section_keys(),
        }
    }
}

/// A table of a pipeline file, for its reference.
#[derive(Clone, Debug)]
pub struct Table {
    /// As the file spells it: `[run]`.
    pub heading: String,
    /// What it is.
    pub about: &'static str,
    /// Its keys.
    pub keys: Vec<Key>,
}

/// Every table of a pipeline file, in the order of a file.
pub fn reference() -> Vec<Table> {
    let model = Key::of(
        "NAME",
        "A model to start from, by the name that stages use. A path is a directory in Hugging Face \
         layout, a `.gguf` file, or `hf://owner/name` in the local cache; relative paths start from \
         the directory that `aha` is started in. `{ base = \"…\", adapter = \"…\" }` is the model at a \
         path with an adapter merged into it: a directory in peft's layout, or `hf://owner/name`.",
        None,
        (true, &ModelSource::default()),
    );
    let table = Key::of(
        "NAME",
        "An input table, by the name that queries use: a Parquet, JSON lines (`.jsonl`) or CSV file, \
         a folder or a glob of such files, or `hf://datasets/owner/name/path` in the local cache.",
        None,
        (true, &String::new()),
    );
    let mut tables = vec![
        part::<Run>("[run]"),
        Table { heading: "[models]".to_owned(), about: "Models by name.", keys: vec![model] },
        Table { heading: "[tables]".to_owned(), about: "Input tables by name.", keys: vec![table] },
        Table {
            heading: "[[stage]]".to_owned(),
            about: "What every stage has, whatever its kind.",
            keys: stage_keys(),
        },
    ];
    tables.extend([
        part::<SftStage>("kind = \"sft\""),
        part::<RewardModelStage>("kind = \"reward-model\""),
        part::<DpoStage>("kind = \"dpo\""),
        part::<RlStage>("kind = \"rl\""),
        part::<SampleStage>("kind = \"sample\""),
        part::<QueryStage>("kind = \"query\""),
        part::<EvalStage>("kind = \"eval\""),
        part::<ExportStage>("kind = \"export\""),
    ]);
    tables
}

fn part<S: Section + Default>(heading: &str) -> Table {
    Table { heading: heading.to_owned(), about: S::ABOUT, keys: S::default().section_keys() }
}

/// The keys that every stage has.
fn stage_keys() -> Vec<Key> {
    let text = String::new();
    let name = "Its name, and that of the table and the model that it makes: lower-case letters, \
                digits and `_`, a letter first. Models, tables and stages share one set of names.";
    let description = "One line for the plan, and the heading of what a query prints.";
    let kind = Key {
        expects: one_of(&KINDS),
        ..Key::of("kind", "What it does; the sections below have a kind each.", None, (true, &text))
    };
    vec![
        Key::of("name", name, None, (true, &text)),
        kind,
        Key::of("description", description, None, (false, &text)),
    ]
}
