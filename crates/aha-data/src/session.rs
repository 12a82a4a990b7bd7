//! The session: a catalogue of tables, and queries over them.

use std::any::Any;
use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_rollout::part::{PartSize, PartWriter};
use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::TableReference;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext};
use futures::{FutureExt, StreamExt};

use crate::deep::{self, Threads};
use crate::files::{FilesTable, Place, union_by_name};
use crate::functions::{self, Tokenizer};
use crate::jsonl::JsonLines;
use crate::source::{Kind, TableSource};
use crate::{Error, Result, curation, run};

/// How a session works.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// What sorts, joins and groups may hold in memory before they spill to the disk; none for as
    /// much as they like.
    pub memory_limit_bytes: Option<usize>,
    /// Where they spill to; none for the system's folder of temporary files. It is created, and what
    /// is in it removed when the session ends.
    pub spill_dir: Option<PathBuf>,
    /// Parts of a query that run at once. 1 by default: with more, the order of an answer's rows
    /// depends on which part is first, and a stage that trains on the answer would differ from
    /// run to run.
    pub partitions: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { memory_limit_bytes: None, spill_dir: None, partitions: 1 }
    }
}

/// A catalogue of tables, and queries over them. Its methods belong on a Tokio runtime.
pub struct Session {
    context: SessionContext,
    threads: Threads,
}

impl Session {
    /// A session without tables.
    pub fn new(options: &SessionOptions) -> Result<Self> {
        let mut config = SessionConfig::new()
            .with_target_partitions(options.partitions.max(1))
            .with_information_schema(true);
        let settings = config.options_mut();
        settings.sql_parser.collect_spans = true;
        // Strings stay `Utf8`, the type that the views of `aha-rollout` read.
        settings.sql_parser.map_string_types_to_utf8view = false;
        settings.execution.parquet.schema_force_view_types = false;
        let mut runtime = RuntimeEnvBuilder::new();
        if let Some(bytes) = options.memory_limit_bytes {
            runtime = runtime.with_memory_limit(bytes, 1.0);
        }
        if let Some(dir) = &options.spill_dir {
            runtime = runtime.with_temp_file_path(dir);
        }
        let runtime = runtime.build_arc().map_err(|error| Error::from_datafusion(&error, &[]))?;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_default_features()
            .with_query_planner(Arc::new(curation::Planner))
            .with_relation_planners(vec![Arc::new(curation::Calls)])
            .build();
        let context = SessionContext::new_with_state(state);
        functions::all().into_iter().for_each(|function| context.register_udf(function));
        context.register_udf(functions::token_count(None));
        Ok(Self { context, threads: Threads::start(options.partitions.max(1))? })
    }

    /// Sets what `token_count` counts with, for queries that are planned from now on.
    pub fn set_tokenizer(&self, tokenizer: Tokenizer) {
        self.context.register_udf(functions::token_count(Some(tokenizer)));
    }

    /// Makes the files of `source` the table `name`. A table of that name is replaced.
    pub async fn register(&self, name: &str, source: &TableSource) -> Result<()> {
        let (kind, files) = source.files()?;
        let table: Arc<dyn TableProvider> = match kind {
            Kind::Parquet => Arc::new(parquet_files(files)?),
            Kind::Csv => Arc::new(FilesTable::csv(&self.context.state(), files).await?),
            Kind::JsonLines => {
                let lines = Arc::new(JsonLines::open(files)?);
                let columns = lines.columns().clone();
                let table = StreamingTable::try_new(columns, vec![lines]);
                Arc::new(table.map_err(|error| self.error(&error))?)
            }
        };
        self.put(name, table)
    }

    /// Makes an empty table `name` with these columns, so that queries over a stage that hasn't
    /// run yet can be checked.
    pub fn register_schema(&self, name: &str, schema: SchemaRef) -> Result<()> {
        self.register_batches(name, schema, Vec::new())
    }

    /// Makes rows in memory the table `name`. A table of that name is replaced.
    pub fn register_batches(
        &self,
        name: &str,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<()> {
        let table = MemTable::try_new(schema, vec![batches]);
        self.put(name, Arc::new(table.map_err(|error| self.error(&error))?))
    }

    /// Registers the tables of a run directory: see [`run`].
    pub fn register_run(&self, run_dir: &Path) -> Result<()> {
        self.register_runs(&[run_dir.to_owned()])
    }

    /// Registers the tables of several run directories, joined by name; with more than one run
    /// each has a column `run`. Rows that are written later are seen by later queries, tables
    /// that begin later are not.
    pub fn register_runs(&self, run_dirs: &[PathBuf]) -> Result<()> {
        for (name, table) in run::tables(run_dirs)? {
            self.put(&name, Arc::new(table))?;
        }
        Ok(())
    }

    /// Makes some parts of a run's table the table `name`, in their order: of a large one, those that a query is
    /// about. A table of that name is replaced.
    pub fn register_parts(&self, name: &str, parts: &[PathBuf]) -> Result<()> {
        self.put(name, Arc::new(parquet_files(parts.to_vec())?))
    }

    /// Removes the table `name`. Says whether there was one.
    pub fn deregister(&self, name: &str) -> Result<bool> {
        let removed = self.context.deregister_table(TableReference::bare(name));
        Ok(removed.map_err(|error| self.error(&error))?.is_some())
    }

    /// The names of all tables, sorted.
    pub fn table_names(&self) -> Vec<String> {
        table_names(&self.context)
    }

    /// The columns of a query's answer. Plans the query without running it.
    pub async fn schema_of(&self, sql: &str) -> Result<SchemaRef> {
        let query = self.ask(sql);
        let schema = async move {
            let frame = query.plan().await?;
            // Optimizing checks what planning doesn't, such as the types of arguments.
            let plan = frame.into_optimized_plan().map_err(|error| query.error(&error))?;
            Ok(plain(plan.schema().as_arrow()))
        };
        self.threads.run(schema).await
    }

    /// A query's answer, all of it.
    pub async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.query(sql).await?.1)
    }

    /// A query's columns and rows; the columns are there when no row is.
    pub async fn query(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let query = self.ask(sql);
        let answer = async move {
            let frame = query.plan().await?;
            let schema = plain(frame.schema().as_arrow());
            let batches = query.contained(frame.collect()).await?;
            let batches = batches.into_iter().filter(|batch| batch.num_rows() > 0);
            let batches = batches.map(|batch| plain_batch(&batch)).collect::<Result<Vec<_>>>()?;
            Ok((batches.first().map_or(schema, RecordBatch::schema), batches))
        };
        self.threads.run(answer).await
    }

    /// Writes a query's answer to a Parquet file, which appears whole or not at all, without
    /// holding all of it in memory.
    pub async fn write_parquet(&self, sql: &str, path: &Path) -> Result<PartSize> {
        let (query, path) = (self.ask(sql), path.to_owned());
        let written = async move {
            let frame = query.plan().await?;
            let mut stream = query.contained(frame.execute_stream()).await?;
            let mut writer = PartWriter::create(&path, plain(&stream.schema()))?;
            while let Some(batch) = query.contained(stream.next().map(Option::transpose)).await? {
                writer.write(&plain_batch(&batch)?)?;
            }
            Ok(writer.finish()?)
        };
        self.threads.run(written).await
    }

    fn ask(&self, sql: &str) -> Query {
        Query { context: self.context.clone(), sql: sql.to_owned() }
    }

    fn error(&self, error: &DataFusionError) -> Error {
        Error::from_datafusion(error, &self.table_names())
    }

    fn put(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
        self.deregister(name)?;
        let put = self.context.register_table(TableReference::bare(name), table);
        put.map(drop).map_err(|error| self.error(&error))
    }
}

/// A query on the session's threads: its plan lives and ends there.
struct Query {
    context: SessionContext,
    sql: String,
}

impl Query {
    async fn plan(&self) -> Result<DataFrame> {
        deep::check(&self.sql)?;
        let only_queries = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let planned = self.context.sql_with_options(&self.sql, only_queries);
        let frame = self.contained(planned).await?;
        refuse_twins(frame.schema().as_arrow())?;
        Ok(frame)
    }

    /// Runs a part of a query, turning its errors and its panics into ours. A damaged Parquet
    /// file can make the reader panic; nothing of the query is used after that.
    async fn contained<T>(
        &self,
        part: impl Future<Output = Result<T, DataFusionError>>,
    ) -> Result<T> {
        match AssertUnwindSafe(part).catch_unwind().await {
            Ok(result) => result.map_err(|error| self.error(&error)),
            Err(panic) => Err(Error::Input {
                message: format!("the query broke off: {}", panic_message(&*panic)),
                hint: Some("a file that it reads may be damaged".to_owned()),
                location: None,
            }),
        }
    }

    fn error(&self, error: &DataFusionError) -> Error {
        Error::from_datafusion(error, &table_names(&self.context))
    }
}

fn table_names(context: &SessionContext) -> Vec<String> {
    let catalog = context.state().config_options().catalog.clone();
    let schema = context
        .catalog(&catalog.default_catalog)
        .and_then(|found| found.schema(&catalog.default_schema));
    let mut names = schema.map_or_else(Vec::new, |schema| schema.table_names());
    names.sort();
    names
}

fn plain_batch(batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = plain(&batch.schema());
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        if column.data_type() == field.data_type() {
            Ok(column.clone())
        } else {
            cast(column, field.data_type())
        }
    });
    let batch = columns
        .collect::<Result<Vec<_>, _>>()
        .and_then(|columns| RecordBatch::try_new(schema.clone(), columns));
    batch.map_err(|error| Error::bug(format!("an answer can't be made plain: {error}")))
}

/// Refuses an answer with two columns of one name: no file could be read by name.
fn refuse_twins(schema: &Schema) -> Result<()> {
    let mut names = HashSet::new();
    match schema.fields().iter().find(|field| !names.insert(field.name())) {
        None => Ok(()),
        Some(twin) => Err(Error::input(
            format!("the answer has two columns called `{}`", twin.name()),
            "select the columns that you need, and name one of the two with `AS`",
        )),
    }
}

fn parquet_files(files: Vec<PathBuf>) -> Result<FilesTable> {
    let mut schemas = Vec::with_capacity(files.len());
    for file in &files {
        schemas.push((file.display().to_string(), aha_rollout::read::read_schema(file)?));
    }
    let places = files.into_iter().map(Place::File).collect();
    Ok(FilesTable::parquet(union_by_name(&schemas)?, places, None))
}

/// `schema` with the several encodings of text as `Utf8`, and without metadata of its own; that
/// of its fields stays.
fn plain(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::Dictionary(_, value) if value.is_string() => DataType::Utf8,
            data_type => data_type.clone(),
        };
        Field::clone(field).with_data_type(data_type)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
