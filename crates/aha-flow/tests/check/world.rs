//! Tables and models for pipelines to be checked against: real planning by DataFusion over tables
//! without files, and models without weights.

use std::path::Path;
use std::sync::Arc;

use aha_flow::pipeline::session::{problem_of, schema_of, tables_of};
use aha_flow::pipeline::{
    Catalogue, Column, ModelFacts, ModelProbe, ProbeProblem, SqlProblem, StageOutput, TableFacts,
};
use aha_rollout::schema;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

/// A session whose only file is `datasets/problems.parquet`.
#[derive(Default)]
pub struct Tables {
    session: SessionContext,
}

impl Tables {
    fn add(&self, name: &str, schema: SchemaRef) -> Result<(), SqlProblem> {
        let table = MemTable::try_new(schema, vec![vec![]]).map_err(|e| problem_of(&e))?;
        self.session.register_table(name, Arc::new(table)).map_err(|e| problem_of(&e))?;
        Ok(())
    }
}

impl Catalogue for Tables {
    fn register_table(&mut self, name: &str, path: &str) -> Result<TableFacts, SqlProblem> {
        if path != "datasets/problems.parquet" {
            return Err(SqlProblem {
                message: format!("there is no file `{path}`"),
                hint: Some("relative paths start from the directory `aha` is started in".into()),
                ..SqlProblem::default()
            });
        }
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let level = Field::new("level", DataType::Int64, true);
        let fields = vec![text("id"), text("prompt"), text("answer"), text("split"), level];
        let columns = fields
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                type_name: field.data_type().to_string(),
                nullable: true,
            })
            .collect();
        self.add(name, Arc::new(Schema::new(fields)))?;
        Ok(TableFacts { row_count: Some(1200), columns })
    }

    fn register_output(&mut self, name: &str, output: &StageOutput) -> Result<(), SqlProblem> {
        let schema = match output {
            StageOutput::Rollouts { reward_names } => {
                schema::rollouts(reward_names).map_err(|error| SqlProblem {
                    message: error.to_string(),
                    ..SqlProblem::default()
                })?
            }
            StageOutput::SftExamples => schema::sft_examples(),
            StageOutput::Evals => schema::evals(),
            StageOutput::Metrics => schema::metrics(),
            StageOutput::Query { columns } => {
                let fields: Vec<Field> = columns
                    .iter()
                    .map(|column| Field::new(&column.name, type_of(column), true))
                    .collect();
                Arc::new(Schema::new(fields))
            }
        };
        self.add(name, schema)
    }

    fn tables_of(&self, sql: &str) -> Result<Vec<String>, SqlProblem> {
        tables_of(&self.session.state(), sql)
    }

    fn schema_of(&self, sql: &str) -> Result<Vec<Column>, SqlProblem> {
        schema_of(&self.session.state(), sql)
    }
}

/// The Arrow type of a column by its name; what these pipelines need.
fn type_of(column: &Column) -> DataType {
    column.type_name.parse().unwrap_or(DataType::Utf8)
}

/// Makes what [`Places::locate`](aha_flow::pipeline::Places::locate) looks for.
pub fn write_models(dir: &Path) {
    for name in ["base", "shrunk"] {
        fs_err::create_dir_all(dir.join("models").join(name)).unwrap();
        fs_err::write(dir.join("models").join(name).join("config.json"), "{}").unwrap();
    }
}

/// Models by the name of their folder: `base`, and `shrunk` whose embedding lost rows.
pub struct FakeModels;

impl ModelProbe for FakeModels {
    fn probe(&self, path: &Path) -> Result<ModelFacts, ProbeProblem> {
        let vocab_size = if path.ends_with("shrunk") { 32_000 } else { 49_152 };
        Ok(ModelFacts {
            architecture: "llama".into(),
            param_count: 134_515_008,
            vocab_size,
            tokenizer_vocab_size: 49_152,
            layers: 30,
            hidden_size: 576,
            intermediate_size: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            max_position_embeddings: 2048,
            has_chat_template: true,
        })
    }
}
