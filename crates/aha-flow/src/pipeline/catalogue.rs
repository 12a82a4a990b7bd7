//! What a pipeline needs to know of the world outside its file, as traits: tables and models.

use std::path::Path;

/// A column that a query gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type, as Arrow displays it: `Utf8`, `Int64`, `List(Int32)`.
    pub type_name: String,
    /// Whether a value may be null.
    pub nullable: bool,
}

impl Column {
    /// Whether the values are text.
    pub fn is_text(&self) -> bool {
        self.type_name.contains("Utf8")
    }

    /// Whether the values are numbers.
    pub fn is_number(&self) -> bool {
        let numbers = ["Int", "UInt", "Float", "Decimal"];
        numbers.iter().any(|name| self.type_name.starts_with(name))
    }
}

/// An input table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFacts {
    /// Its rows, where the files say so cheaply.
    pub row_count: Option<u64>,
    /// Its columns.
    pub columns: Vec<Column>,
}

/// What a stage leaves under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageOutput {
    /// Rollouts, with a column per part of the reward.
    Rollouts {
        /// The names of the parts: `math` for the column `reward_math`.
        reward_names: Vec<String>,
    },
    /// The examples that an `sft` stage was given.
    SftExamples,
    /// The pairs that a `reward-model` stage was given.
    Preferences,
    /// Rows of evaluations.
    Evals,
    /// Rows of metrics.
    Metrics,
    /// Prompts that could not be served, and examples whose batch gave no number.
    SetAside,
    /// What a query gave.
    Query {
        /// Its columns.
        columns: Vec<Column>,
    },
}

/// What is wrong with a query, or with a table's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SqlProblem {
    /// What was expected and found; lower case, no final stop.
    pub message: String,
    /// The remedy, where one is known.
    pub hint: Option<String>,
    /// Line in the query, from 1.
    pub line: Option<u32>,
    /// Column in the query, from 1.
    pub column: Option<u32>,
}

/// The tables that queries see.
pub trait Catalogue {
    /// Adds an input table by the path, folder or glob of the file.
    fn register_table(&mut self, name: &str, path: &str) -> Result<TableFacts, SqlProblem>;
    /// Adds the table that a stage will write, empty.
    fn register_output(&mut self, name: &str, output: &StageOutput) -> Result<(), SqlProblem>;
    /// The tables that a query names, its own `WITH` excepted; they need not exist.
    fn tables_of(&self, sql: &str) -> Result<Vec<String>, SqlProblem>;
    /// The columns that a query gives, planned against the tables added so far.
    fn schema_of(&self, sql: &str) -> Result<Vec<Column>, SqlProblem>;
}

/// What a model is, from its files' headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFacts {
    /// The architecture's name: `llama`.
    pub architecture: String,
    /// Parameters, the LM head counted once where it is the embedding.
    pub param_count: u64,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// One more than the largest token id of the tokenizer.
    pub tokenizer_vocab_size: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width inside the MLP.
    pub intermediate_size: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Positions the model is made for.
    pub max_position_embeddings: u32,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
    /// Whether the head is the embedding.
    pub has_tied_embeddings: bool,
    /// Whether queries and keys are normed.
    pub has_qk_norm: bool,
    /// Whether it is a reward model: it scores text and writes none.
    pub is_reward_model: bool,
    /// Whether a reward model knows the mean and the deviation of its scores.
    pub has_score_moments: bool,
    /// Why the weights can't be loaded, if so: a model whose tokenizer alone is used needs none.
    pub weights_problem: Option<ProbeProblem>,
}

/// Why a model's files can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeProblem {
    /// What was expected and found; lower case, no final stop.
    pub message: String,
    /// The remedy, where one is known.
    pub hint: Option<String>,
}

/// Looks at a model without loading its weights.
pub trait ModelProbe {
    /// The facts of a directory in Hugging Face layout or of a `.gguf` file.
    fn probe(&self, path: &Path) -> Result<ModelFacts, ProbeProblem>;

    /// Fails for an adapter that doesn't fit the model at `base`.
    fn probe_adapter(&self, base: &Path, adapter: &Path) -> Result<(), ProbeProblem>;
}
