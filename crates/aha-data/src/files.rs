//! Tables that are Parquet or CSV files. What files there are is looked up anew for each query,
//! so a session sees the rows that a run has written since it began. What a Parquet file claims is compared
//! with its bytes each time, since nothing else stands between a damaged file and the reader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::object_store::{ObjectMeta, path::Path as StorePath};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;

use crate::source::Kind;
use crate::{Error, Result};

/// A table of files.
#[derive(Debug)]
pub struct FilesTable {
    kind: Kind,
    format: Arc<dyn FileFormat>,
    /// Columns of the files.
    columns: SchemaRef,
    /// `columns`, and `run` where the table joins several runs.
    schema: SchemaRef,
    places: Vec<Place>,
}

/// Where some of a table's files are.
#[derive(Clone, Debug)]
pub enum Place {
    /// One file.
    File(PathBuf),
    /// The parts of a run's table, however many there are when a query comes.
    Table {
        /// The table's directory.
        dir: PathBuf,
        /// The run's name, where the table joins several.
        run: Option<String>,
    },
}

impl FilesTable {
    /// A table of Parquet files with these columns; `run_column` says whether its places have
    /// names of runs.
    pub fn parquet(columns: SchemaRef, places: Vec<Place>, run_column: Option<Field>) -> Self {
        let mut options = TableParquetOptions::default();
        options.global.schema_force_view_types = false;
        // They spare reading some pages of large files; but the reader allocates what they claim.
        options.global.enable_page_index = false;
        options.global.bloom_filter_on_read = false;
        let format = ParquetFormat::default().with_options(options);
        let schema = match run_column {
            None => columns.clone(),
            Some(run) => {
                let mut fields = columns.fields().to_vec();
                fields.push(Arc::new(run));
                Arc::new(Schema::new(fields))
            }
        };
        Self { kind: Kind::Parquet, format: Arc::new(format), columns, schema, places }
    }

    /// A table of the CSV files at `paths`, whose types are found by reading all of them.
    pub async fn csv(state: &dyn Session, paths: Vec<PathBuf>) -> Result<Self> {
        // Quoted text may span lines: a prompt often does.
        let format = CsvFormat::default()
            .with_has_header(true)
            .with_newlines_in_values(true)
            .with_schema_infer_max_rec(usize::MAX);
        let store = state
            .runtime_env()
            .object_store(ObjectStoreUrl::local_filesystem())
            .map_err(|error| Error::from_datafusion(&error, &[]))?;
        let mut columns: Option<(SchemaRef, &Path)> = None;
        for path in &paths {
            let meta = object_meta(path).map_err(|error| Error::io("read", path, &error))?;
            let found = format.infer_schema(state, &store, &[meta]).await.map_err(|error| {
                Error::input(
                    format!("`{}` is not a readable CSV file: {}", path.display(), error),
                    "check that every line has as many fields as the header",
                )
            })?;
            columns = Some(match columns {
                None => (found, path),
                Some((before, first)) => (same_csv_columns(&before, first, &found, path)?, first),
            });
        }
        let (columns, _) = columns.ok_or_else(|| Error::bug("a CSV table without files"))?;
        if columns.fields().is_empty() {
            return Err(Error::input(
                format!("`{}` is empty", paths[0].display()),
                "a CSV file begins with a line that names its columns",
            ));
        }
        let places = paths.into_iter().map(Place::File).collect();
        let (kind, schema) = (Kind::Csv, columns.clone());
        Ok(Self { kind, format: Arc::new(format), schema, columns, places })
    }

    /// The files there are now.
    fn files(&self) -> Result<Vec<PartitionedFile>> {
        let mut files = Vec::new();
        for place in &self.places {
            match place {
                Place::File(path) => files.push(self.file(path, None)?),
                Place::Table { dir, run } => {
                    for part in aha_rollout::table::parts(dir)? {
                        files.push(self.file(&part.path, run.as_deref())?);
                    }
                }
            }
        }
        Ok(files)
    }

    fn file(&self, path: &Path, run: Option<&str>) -> Result<PartitionedFile> {
        if self.kind == Kind::Parquet {
            aha_rollout::read::check(path)?;
        }
        partitioned(path, run)
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let files = self.files().map_err(|error| DataFusionError::External(Box::new(error)))?;
        if files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => self.schema.clone(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let run_columns = self.schema.fields()[self.columns.fields().len()..].to_vec();
        let schema = TableSchema::builder(self.columns.clone())
            .with_table_partition_cols(run_columns)
            .build();
        let groups = match state.config().target_partitions() {
            // One group keeps the files in their order.
            0 | 1 => vec![FileGroup::new(files)],
            n => FileGroup::new(files).split_files(n),
        };
        let source = self.format.file_source(schema);
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        self.format.create_physical_plan(state, config).await
    }
}

/// The columns of all of `schemas`, by name, in the order in which they first appear. A column
/// that one of them lacks is null in its rows. Each schema comes with what to call it.
pub(crate) fn union_by_name(schemas: &[(String, SchemaRef)]) -> Result<SchemaRef> {
    let mut union: Vec<(Field, &str)> = Vec::new();
    for (name, schema) in schemas {
        for field in schema.fields() {
            let Some((known, first)) = union.iter_mut().find(|(f, _)| f.name() == field.name())
            else {
                union.push((Field::clone(field), name));
                continue;
            };
            if known.data_type() != field.data_type() {
                return Err(Error::input(
                    format!(
                        "column `{}` is {} in `{first}` and {} in `{name}`",
                        field.name(),
                        known.data_type(),
                        field.data_type()
                    ),
                    "read them as tables of their own and cast the column in a query",
                ));
            }
            if field.is_nullable() {
                known.set_nullable(true);
            }
        }
    }
    let everywhere = |name: &str| schemas.iter().all(|(_, s)| s.column_with_name(name).is_some());
    let fields = union.into_iter().map(|(field, _)| {
        let nullable = field.is_nullable() || !everywhere(field.name());
        field.with_nullable(nullable)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// CSV files are read by position, so their columns must agree; of two types the one that holds
/// both is taken.
fn same_csv_columns(
    before: &SchemaRef,
    first: &Path,
    found: &SchemaRef,
    path: &Path,
) -> Result<SchemaRef> {
    let names = |schema: &SchemaRef| -> Vec<String> {
        schema.fields().iter().map(|f| f.name().clone()).collect()
    };
    if names(before) != names(found) {
        return Err(Error::input(
            format!(
                "`{}` has the columns {}, `{}` has {}",
                first.display(),
                names(before).join(", "),
                path.display(),
                names(found).join(", ")
            ),
            "the CSV files of a table have the same columns in the same order",
        ));
    }
    let fields = before.fields().iter().zip(found.fields()).map(|(a, b)| {
        let data_type = match (a.data_type(), b.data_type()) {
            (a, b) if a == b => a.clone(),
            (DataType::Null, other) | (other, DataType::Null) => other.clone(),
            (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => {
                DataType::Float64
            }
            _ => DataType::Utf8,
        };
        Field::new(a.name(), data_type, true)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

fn partitioned(path: &Path, run: Option<&str>) -> Result<PartitionedFile> {
    let meta = object_meta(path).map_err(|error| Error::io("read", path, &error))?;
    let values = run.map(|run| ScalarValue::Utf8(Some(run.to_owned()))).into_iter().collect();
    Ok(PartitionedFile::new_from_meta(meta).with_partition_values(values))
}

fn object_meta(path: &Path) -> std::io::Result<ObjectMeta> {
    let path = fs_err::canonicalize(path)?;
    let metadata = fs_err::metadata(&path)?;
    let location = StorePath::from_absolute_path(&path).map_err(std::io::Error::other)?;
    Ok(ObjectMeta {
        location,
        last_modified: metadata.modified()?.into(),
        size: metadata.len(),
        e_tag: None,
        version: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, DataType, bool)]) -> SchemaRef {
        let fields = fields.iter().map(|(n, t, null)| Field::new(*n, t.clone(), *null));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    #[test]
    fn a_union_has_every_column_and_nulls_where_one_is_missing() {
        let a = schema(&[("x", DataType::Int64, false), ("y", DataType::Utf8, false)]);
        let b = schema(&[("z", DataType::Utf8, false), ("x", DataType::Int64, false)]);
        let union = union_by_name(&[("a".into(), a.clone()), ("b".into(), b)]).unwrap();
        let expected = [
            ("x", DataType::Int64, false),
            ("y", DataType::Utf8, true),
            ("z", DataType::Utf8, true),
        ];
        assert_eq!(union, schema(&expected));
        let c = schema(&[("x", DataType::Utf8, false)]);
        let error = union_by_name(&[("a".into(), a), ("c".into(), c)]).unwrap_err();
        assert_eq!(error.to_string(), "column `x` is Int64 in `a` and Utf8 in `c`");
    }
}
