//! Checks a pipeline against this machine: its tables by DataFusion, its models by their files' headers.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_data::source::{Kind, TableSource};
use aha_data::{Session, SessionOptions, deep};
use aha_model::config::{Architecture, Head};
use aha_model::gguf::Gguf;
use aha_model::{Config, Tokenizer, weights};
use aha_rollout::schema;
use arrow::array::{Array, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, TableFactor, Visit, Visitor};
use tokio::runtime::Handle;

use crate::devices::{self, Devices};
use crate::error::Error;
use crate::machine;
use crate::pipeline::{
    self, Catalogue, Column, ModelFacts, ModelProbe, Pipeline, Places, Plan, ProbeProblem, Room,
    SqlProblem, StageOutput, TableFacts, Text,
};
use crate::reward_model::Card;
use crate::run::Failure;

/// Where paths of a pipeline are looked up: from the current directory, and in Hugging Face's local cache.
pub fn places() -> Places {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let hub = variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")));
    let base_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    Places { base_dir, hf_cache: hub.filter(|dir| dir.is_dir()) }
}

/// What a pipeline is checked against besides data and models.
#[derive(Debug)]
pub struct Around {
    /// CUDA devices.
    pub devices: Arc<dyn Devices>,
    /// The pipeline of the run that goes on, whose choices are kept.
    pub earlier: Option<Pipeline>,
    /// Whether the run starts now, with the room that a device has now.
    pub starts: bool,
}

impl Around {
    /// This machine, where no run goes on.
    pub fn of_machine() -> Around {
        Around { devices: devices::of_machine(), earlier: None, starts: false }
    }
}

/// Reads a pipeline and checks all of it. Nothing is run and nothing is written.
pub async fn check(
    path: &Path,
    sets: &[String],
    places: &Places,
    around: Around,
) -> Result<Plan, Failure> {
    let text = fs_err::read_to_string(path).map_err(|error| {
        let hint = "give the path of a pipeline file, such as pipelines/quickstart.toml";
        Error::input_with(format!("can't read the pipeline: {error}"), hint)
    })?;
    check_text(&path.display().to_string(), &text, sets, places, around).await
}

/// As [`check()`], of a text that is in no file. Problems are shown as of the file `shown`.
pub async fn check_text(
    shown: &str,
    text: &str,
    sets: &[String],
    places: &Places,
    around: Around,
) -> Result<Plan, Failure> {
    let (shown, text) = (shown.to_owned(), text.to_owned());
    let (sets, places) = (sets.to_vec(), places.clone());
    let runtime = Handle::current();
    // The pipeline asks its questions one after the other, so it gets a thread on which it may wait.
    let checked = tokio::task::spawn_blocking(move || {
        let mut tables = Tables::new(&places, runtime)?;
        let text = Text { path: &shown, text: &text, sets: &sets };
        let room = Room {
            devices: Some(&*around.devices),
            starts: around.starts,
            free_bytes: machine::memory().free_bytes(),
            earlier: around.earlier.as_ref(),
        };
        pipeline::check(text, &mut tables, &ModelFiles, &places, room).map_err(Failure::Problems)
    });
    checked.await.map_err(|error| Error::bug(format!("checking the pipeline panicked: {error}")))?
}

/// The tables of a pipeline, those of stages empty.
pub struct Tables {
    session: Session,
    places: Places,
    runtime: Handle,
    /// What queries give: a stage's table has these types exactly.
    planned: RefCell<Vec<(Vec<Column>, SchemaRef)>>,
}

impl Tables {
    /// No tables yet. `runtime` is where queries are planned; not to be used on one of its async threads.
    pub fn new(places: &Places, runtime: Handle) -> Result<Tables, Error> {
        let session = Session::new(&SessionOptions::default())?;
        Ok(Tables { session, places: places.clone(), runtime, planned: RefCell::default() })
    }

    fn columns_of(&self, sql: &str) -> Result<Vec<Column>, SqlProblem> {
        let schema =
            self.runtime.block_on(self.session.schema_of(sql)).map_err(|e| problem_of(&e))?;
        let columns: Vec<Column> = schema
            .fields()
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                type_name: field.data_type().to_string(),
                nullable: field.is_nullable(),
            })
            .collect();
        self.planned.borrow_mut().push((columns.clone(), schema));
        Ok(columns)
    }

    /// The rows of a table of Parquet files, which say it in their footers.
    fn row_count(&self, name: &str, source: &TableSource) -> Result<Option<u64>, aha_data::Error> {
        if source.files()?.0 != Kind::Parquet {
            return Ok(None);
        }
        let sql = format!("SELECT count(*) AS n FROM \"{name}\"");
        let batches = self.runtime.block_on(self.session.collect(&sql))?;
        let count = batches
            .first()
            .and_then(|b| b.column(0).as_any().downcast_ref::<Int64Array>().cloned());
        Ok(count.filter(|c| !c.is_empty()).and_then(|c| u64::try_from(c.value(0)).ok()))
    }

    fn schema_of_output(&self, output: &StageOutput) -> Result<SchemaRef, SqlProblem> {
        if let StageOutput::Query { columns } = output {
            let planned = self.planned.borrow();
            let found = planned.iter().rev().find(|(known, _)| known == columns);
            let known = found.map(|(_, schema)| Arc::clone(schema));
            return Ok(known.unwrap_or_else(|| schema_by_names(columns)));
        }
        columns_of_output(output).map_err(|error| {
            let hint = error.hint().map(str::to_owned);
            SqlProblem { message: error.to_string(), hint, ..SqlProblem::default() }
        })
    }
}

/// The columns of a table that a stage writes; of a query's by their names alone.
pub fn columns_of_output(output: &StageOutput) -> aha_rollout::Result<SchemaRef> {
    Ok(match output {
        StageOutput::Rollouts { reward_names } => schema::rollouts(reward_names)?,
        StageOutput::SftExamples => schema::sft_examples(),
        StageOutput::Preferences => schema::preferences(),
        StageOutput::Evals => schema::evals(),
        StageOutput::Metrics => schema::metrics(),
        StageOutput::SetAside => schema::set_aside(),
        StageOutput::Query { columns } => schema_by_names(columns),
    })
}

/// For columns that no query of ours gave.
fn schema_by_names(columns: &[Column]) -> SchemaRef {
    let field = |column: &Column| {
        let data_type = column.type_name.parse().unwrap_or(DataType::Utf8);
        Field::new(&column.name, data_type, column.nullable)
    };
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

impl Catalogue for Tables {
    fn register_table(&mut self, name: &str, path: &str) -> Result<TableFacts, SqlProblem> {
        let register = || -> Result<Option<u64>, aha_data::Error> {
            let source = self.places.table(path)?;
            self.runtime.block_on(self.session.register(name, &source))?;
            self.row_count(name, &source)
        };
        let row_count = register().map_err(|error| problem_of(&error))?;
        Ok(TableFacts {
            row_count,
            columns: self.columns_of(&format!("SELECT * FROM \"{name}\""))?,
        })
    }

    fn register_output(&mut self, name: &str, output: &StageOutput) -> Result<(), SqlProblem> {
        let schema = self.schema_of_output(output)?;
        self.session.register_schema(name, schema).map_err(|error| problem_of(&error))
    }

    fn tables_of(&self, sql: &str) -> Result<Vec<String>, SqlProblem> {
        tables_of(sql)
    }

    fn schema_of(&self, sql: &str) -> Result<Vec<Column>, SqlProblem> {
        self.columns_of(sql)
    }
}

fn problem_of(error: &aha_data::Error) -> SqlProblem {
    let place = |at: u64| u32::try_from(at).ok().filter(|at| *at > 0);
    let at = error.location();
    SqlProblem {
        message: uncapitalised(error.message()),
        hint: error.hint().map(str::to_owned),
        line: at.and_then(|at| place(at.line)),
        column: at.and_then(|at| place(at.column)),
    }
}

/// The tables that a query names, its own `WITH` excepted; they need not exist.
pub fn tables_of(sql: &str) -> Result<Vec<String>, SqlProblem> {
    deep::check(sql).map_err(|error| problem_of(&error))?;
    deep::run(|| named_tables(sql)).map_err(|error| problem_of(&error))?
}

fn named_tables(sql: &str) -> Result<Vec<String>, SqlProblem> {
    let state = SessionContext::new().state();
    let dialect = state.config_options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect).map_err(|e| syntax_problem(&e))?;
    if !is_query(&statement) {
        return Err(SqlProblem {
            message: "expected a query, got a statement that changes something".to_owned(),
            hint: Some(QUERY_HINT.to_owned()),
            ..SqlProblem::default()
        });
    }
    let references = state.resolve_table_references(&statement).map_err(|e| syntax_problem(&e))?;
    let mut calls = Calls::default();
    if let Statement::Statement(statement) = &statement {
        // It never breaks off.
        let _ = statement.visit(&mut calls);
    }
    let names = references.iter().map(|reference| reference.table().to_owned());
    Ok(names.filter(|name| !calls.0.contains(&name.to_lowercase())).collect())
}

/// What is called after FROM, such as `generate_series`: its name is no table's.
#[derive(Default)]
struct Calls(HashSet<String>);

impl Visitor for Calls {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } = factor {
            self.0.insert(name.to_string().to_lowercase());
        }
        ControlFlow::Continue(())
    }
}

/// Words that a query is built of.
const WORDS: [&str; 12] = [
    "SELECT", "FROM", "WHERE", "WITH", "JOIN", "ORDER", "GROUP", "LIMIT", "HAVING", "UNION",
    "DISTINCT", "BETWEEN",
];

const QUERY_HINT: &str = "a stage's query starts with SELECT or WITH";

fn is_query(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(**statement, ast::Statement::Query(_)),
        _ => false,
    }
}

/// What the parser says, with the place that its message ends in.
fn syntax_problem(error: &DataFusionError) -> SqlProblem {
    let message = match error.find_root() {
        DataFusionError::SQL(parser, _) => parser.to_string(),
        other => other.strip_backtrace(),
    };
    let message = message.trim_start_matches("sql parser error: ");
    let place = message.rsplit_once(" at Line: ").and_then(|(text, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((text, line.trim().parse().ok(), column.trim().parse().ok()))
    });
    let (text, line, column) = place.unwrap_or((message, None, None));
    let message = uncapitalised(text);
    let found = message.rsplit_once("found: ").map_or("", |(_, word)| word);
    let hint = match pipeline::nearest(found, WORDS) {
        Some(word) if !word.eq_ignore_ascii_case(found) => format!("did you mean `{word}`?"),
        _ => QUERY_HINT.to_owned(),
    };
    SqlProblem { message, hint: Some(hint), line, column }
}

/// A sentence as our messages have it: with a small letter first and no stop at its end.
fn uncapitalised(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default().trim_end_matches('.');
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if chars.as_str().starts_with(|c: char| c.is_lowercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Models as their files' headers state them.
pub struct ModelFiles;

impl ModelProbe for ModelFiles {
    fn probe(&self, path: &Path) -> Result<ModelFacts, ProbeProblem> {
        facts_of(path).map_err(probe_problem)
    }

    fn probe_adapter(&self, base: &Path, adapter: &Path) -> Result<(), ProbeProblem> {
        config_of(base)
            .and_then(|config| aha_model::adapter::check(adapter, &config))
            .map_err(probe_problem)
    }
}

fn config_of(path: &Path) -> aha_model::Result<Config> {
    match weights::is_gguf(path) {
        true => Gguf::open(path)?.config(),
        false => Config::load(path),
    }
}

fn facts_of(path: &Path) -> aha_model::Result<ModelFacts> {
    let config = config_of(path)?;
    let tokenizer = Tokenizer::load(path)?;
    let whole = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Ok(ModelFacts {
        architecture: config.architecture.name().to_owned(),
        param_count: config.param_count() as u64,
        vocab_size: whole(config.vocab_size),
        tokenizer_vocab_size: whole(tokenizer.vocab_len()),
        layers: whole(config.layer_count),
        hidden_size: whole(config.hidden_size),
        intermediate_size: whole(config.intermediate_size),
        heads: whole(config.head_count),
        kv_heads: whole(config.kv_head_count),
        head_dim: whole(config.head_dim),
        max_position_embeddings: whole(config.max_position_embeddings),
        has_chat_template: tokenizer.chat_template().is_some(),
        has_tied_embeddings: config.tie_word_embeddings,
        has_qk_norm: config.architecture == Architecture::Qwen3,
        is_reward_model: config.head == Head::Score,
        has_score_moments: Card::of(&config).moments.is_some(),
        weights_problem: weights::open(path).err().map(probe_problem),
    })
}

fn probe_problem(error: aha_model::Error) -> ProbeProblem {
    let hint = match &error {
        aha_model::Error::Input { hint, .. } => hint.clone(),
        _ => None,
    };
    let shown = Error::from(error).to_string();
    // The message carries its hint on a line of its own.
    let message = shown.split("\nhint: ").next().unwrap_or_default().to_owned();
    ProbeProblem { message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_a_query_names_are_found_without_being_there() {
        let sql = "WITH own AS (SELECT * FROM a) SELECT * FROM own JOIN b USING (id)";
        let mut found = tables_of(sql).unwrap();
        found.sort();
        assert_eq!(found, ["a", "b"]);
        let sql = "SELECT * FROM Mark_Duplicates((SELECT * FROM a), id, text, 1) \
                   WHERE id IN (SELECT * FROM generate_series(1, 2)) \
                   OR id IN (SELECT id FROM mark_contaminated((SELECT * FROM b), text, (SELECT * FROM c)))";
        let mut found = tables_of(sql).unwrap();
        found.sort();
        assert_eq!(found, ["a", "b", "c"]);
    }

    /// On the stack of a test's thread the parse tree alone would be too deep.
    #[test]
    fn a_long_chain_is_read_or_refused() {
        let chain = |count: usize| format!("SELECT {} FROM t", vec!["a"; count].join(" OR "));
        assert_eq!(tables_of(&chain(2_000)).unwrap(), ["t"]);
        let refused = tables_of(&chain(100_000)).unwrap_err();
        assert!(refused.message.contains("words and operators"), "{refused:?}");
        assert!(refused.hint.is_some(), "{refused:?}");
    }

    #[test]
    fn the_parsers_place_is_split_from_its_message() {
        let problem = tables_of("SELECT 1\nFROM a WERE x").unwrap_err();
        assert_eq!(problem.line, Some(2), "{problem:?}");
        assert!(!problem.message.contains("Line"), "{problem:?}");
        assert!(problem.message.starts_with("expected"), "{problem:?}");
        let hint = tables_of("SELEC 1").unwrap_err().hint;
        assert_eq!(hint.as_deref(), Some("did you mean `SELECT`?"));
        let refused = tables_of("DROP TABLE a").unwrap_err();
        assert!(refused.message.contains("changes something"), "{refused:?}");
    }

    #[tokio::test]
    async fn a_pipeline_that_is_not_there_is_named() {
        let error = check(Path::new("nowhere.toml"), &[], &places(), Around::of_machine())
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("nowhere.toml"), "{error}");
    }
}
