//! The tables of run directories, finished or running, one or several at once.
//!
//! Every `tables/NAME/` is the table NAME. `rollouts` joins the tables of all stages that
//! sampled, each completion once: what a `query` stage took from them is not among them. `metrics` is
//! the run's own directory of that name, `evals` is there even before the first evaluation. Several
//! runs' tables are joined by name, with a column `run`.

use std::path::{Path, PathBuf};

use aha_rollout::table::SCHEMA_PART;
use aha_rollout::{col, read, schema as columns};
use arrow::datatypes::{DataType, Field, SchemaRef};

use crate::files::{FilesTable, Place, union_by_name};
use crate::{Error, Result};

/// A run directory and what to call it.
#[derive(Clone, Debug)]
struct Run {
    name: String,
    dir: PathBuf,
}

/// One directory of Parquet parts in one run.
struct Found {
    table: String,
    run: String,
    dir: PathBuf,
    /// None as long as nothing was written.
    columns: Option<SchemaRef>,
    /// Whether a stage wrote it step by step; a query's answer comes in one piece.
    is_of_steps: bool,
}

impl Found {
    /// Whether it holds what a stage sampled. The answer of a `query` stage may have the same
    /// columns, but its rows are in the table they come from already.
    fn is_rollouts(&self) -> bool {
        self.is_of_steps && self.columns.as_ref().is_some_and(|c| columns::is_rollouts(c))
    }
}

/// The tables of the runs in `dirs`, each with its name.
pub fn tables(dirs: &[PathBuf]) -> Result<Vec<(String, FilesTable)>> {
    let runs = named(dirs)?;
    let mut found = Vec::new();
    for run in &runs {
        found.extend(tables_of(run)?);
    }
    let mut names: Vec<String> = found.iter().map(|f| f.table.clone()).collect();
    names.extend(["rollouts", "metrics", "evals"].map(str::to_owned));
    names.sort();
    names.dedup();
    let is_many = runs.len() > 1;
    names
        .into_iter()
        .map(|name| {
            let is_of = |f: &&Found| f.table == name || name == "rollouts" && f.is_rollouts();
            let of: Vec<&Found> = found.iter().filter(is_of).collect();
            let table = join(&name, &of, is_many)?;
            Ok((name, table))
        })
        .collect()
}

/// Names runs by their directories; by their whole paths where two directories have one name.
fn named(dirs: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for dir in dirs {
        check_run(dir)?;
        let dir = fs_err::canonicalize(dir).map_err(|error| Error::io("read", dir, &error))?;
        if runs.iter().any(|run| run.dir == dir) {
            continue;
        }
        let name = dir.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy());
        runs.push(Run { name: name.into_owned(), dir });
    }
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in &mut runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = run.dir.display().to_string();
        }
    }
    Ok(runs)
}

fn check_run(dir: &Path) -> Result<()> {
    let hint = "give the directory that `aha run` wrote: it holds pipeline.toml and tables/";
    if !dir.is_dir() {
        return Err(Error::input(format!("no run directory at `{}`", dir.display()), hint));
    }
    let marks = ["pipeline.toml", "run.json", "tables", "metrics"];
    if marks.iter().any(|mark| dir.join(mark).exists()) {
        return Ok(());
    }
    Err(Error::input(format!("`{}` is not a run directory", dir.display()), hint))
}

fn tables_of(run: &Run) -> Result<Vec<Found>> {
    let mut dirs = vec![("metrics".to_owned(), run.dir.join("metrics"))];
    let tables = run.dir.join("tables");
    if tables.is_dir() {
        let entries =
            fs_err::read_dir(&tables).map_err(|error| Error::io("list", &tables, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("list", &tables, &error))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.path().is_dir() && !name.starts_with('.') {
                dirs.push((name, entry.path()));
            }
        }
    }
    dirs.sort();
    let found = dirs.into_iter().map(|(table, dir)| {
        let columns = read::table_schema(&dir)?;
        let is_of_steps = dir.join(SCHEMA_PART).exists();
        Ok(Found { table, run: run.name.clone(), dir, columns, is_of_steps })
    });
    found.collect()
}

fn join(name: &str, found: &[&Found], is_many: bool) -> Result<FilesTable> {
    let mut schemas: Vec<(String, SchemaRef)> = found
        .iter()
        .filter_map(|f| Some((format!("{}/tables/{}", f.run, f.table), f.columns.clone()?)))
        .collect();
    if schemas.is_empty() {
        schemas.push((name.to_owned(), expected_columns(name)?));
    }
    let schema = union_by_name(&schemas)?;
    // A table that a query over several runs made may have such a column of its own.
    let is_named = is_many && schema.column_with_name(col::RUN).is_none();
    let places = found
        .iter()
        .filter(|f| f.columns.is_some())
        .map(|f| Place::Table { dir: f.dir.clone(), run: is_named.then(|| f.run.clone()) });
    let run_column = is_named.then(|| Field::new(col::RUN, DataType::Utf8, false));
    Ok(FilesTable::parquet(schema, places.collect(), run_column))
}

/// The columns of a table that nothing was written to yet. A stage's own table is most often
/// that of a stage that samples.
fn expected_columns(name: &str) -> Result<SchemaRef> {
    Ok(match name {
        "metrics" => columns::metrics(),
        "evals" => columns::evals(),
        "set_aside" => columns::set_aside(),
        _ => columns::rollouts(&[])?,
    })
}
