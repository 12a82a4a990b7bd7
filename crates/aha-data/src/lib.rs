//! Tables and queries: the DataFusion session, its catalogue and functions.
//!
//! # Map
//! - [`session`]: [`Session`], which holds the tables and answers queries. Start here.
//! - [`deep`]: how long a query may be, and the threads on which it is planned and run.
//! - [`source`]: [`TableSource`], what a pipeline's `[tables]` point at: a file, a folder, a glob.
//! - [`files`]: tables that are Parquet or CSV files, listed anew for each query.
//! - [`jsonl`]: tables that are files of JSON lines.
//! - [`run`]: the tables of one or several run directories, finished or running.
//! - [`functions`]: what SQL can ask about a text: tokens, boxed answers, tags, languages.
//! - [`curation`]: exact and near duplicates, contamination, splits and mixtures.
//! - [`output`]: a query's answer as a table, CSV, JSON or Parquet.
//! - [`error`]: what can go wrong, split by what the receiver can do.
//!
//! # Invariants
//! - A query reads; no statement can write, create or drop anything.
//! - With one partition, which is the default, the order of an answer's rows is a function of the
//!   query and the tables' rows: a stage that trains on a query's answer is reproducible.
//! - An answer's strings are `Utf8`, whatever the tables held.
//! - No model and no tokenizer is known here: tokens are counted by a function the caller gives.

pub mod curation;
pub mod deep;
pub mod error;
pub mod files;
pub mod functions;
pub mod jsonl;
pub mod output;
pub mod run;
pub mod session;
pub mod source;

pub use error::{Error, Location, Result};
pub use output::{Format, write_result};
pub use session::{Session, SessionOptions};
pub use source::TableSource;
