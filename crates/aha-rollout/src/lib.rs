//! The Arrow schemas of the records that actors exchange, and the Parquet tables they end in.
//!
//! # Map
//! - [`col`]: one constant per column name. [`schema`]: which columns a table has, each with its
//!   doc, and the stages of the dataflow (sampled ⊂ scored ⊂ grouped ⊂ trained). Start here.
//! - [`rows`]: plain structs for rows and the builders that turn them into batches.
//! - [`steps`]: each step right of the sampler adds its columns to a batch, by [`extend`].
//! - [`view`]: typed reading of a batch's columns, checked once when the view is made.
//! - [`time`]: the wall clock, and comparing tables in everything but it.
//! - [`table`]: a directory of Parquet parts, each written aside and renamed. [`read`]: reading
//!   them back. [`part`]: one file. [`guard`]: looks at a file before the Parquet reader does.
//! - [`error`]: what can go wrong, split by what the receiver can do.
//!
//! # Invariants
//! - A step right of the sampler adds columns; it renames, reorders and drops none.
//! - Every column has a doc in its field's metadata, and so in every file.
//! - The bytes of a part are a function of its rows: no time, no host, no hash order is in them.
//! - A visible part is whole: a reader never sees half a file, whenever the writer was killed.
//! - No file, however damaged, makes a reader panic.
//!
//! ```
//! use aha_rollout::{rows::MetricRow, schema, table::TableWriter};
//!
//! let dir = std::env::temp_dir().join(format!("aha-doc-{}", std::process::id()));
//! let table = TableWriter::open(&dir, schema::metrics())?;
//! let rows = [MetricRow { stage: "zero", step: 1, name: "loss", value: 0.5, at_us: 0 }];
//! table.write(&aha_rollout::table::part_name(1), &[aha_rollout::rows::metrics(&rows)])?;
//! assert_eq!(aha_rollout::read::rows_count(&dir)?, 1);
//! # std::fs::remove_dir_all(&dir).ok();
//! # Ok::<(), aha_rollout::Error>(())
//! ```

pub mod col;
pub mod error;
pub mod extend;
pub mod guard;
pub mod part;
pub mod read;
pub mod rows;
pub mod schema;
pub mod steps;
pub mod table;
pub mod time;
pub mod view;

pub use error::{Error, Result, is_full};
