//! Whether the tables that a run has are those that this version of the program writes.

use std::path::PathBuf;

use aha_rollout::table;

use super::{Difference, versions};
use crate::pipeline::{Pipeline, StageOutput};
use crate::planning::columns_of_output;
use crate::rundir::RunDir;

/// Says which table of a run that isn't finished has other columns than this version writes, if one has.
///
/// Such a run can't go on: a table has the same columns in each of its parts, and rows without a column that
/// completions have by now would be missing in `rollouts`. What a query gave is as it is.
pub fn other_columns(pipeline: &Pipeline, dir: &RunDir, version: &str) -> Option<Difference> {
    tables_of(pipeline, dir).into_iter().find_map(|(name, path, output)| {
        // What can't be read is said by whoever needs it.
        let columns = columns_of_output(&output).ok()?;
        let difference = table::other_columns(&path, &columns).ok()??;
        let (of_version, or_version) = versions(version);
        Some(Difference {
            message: format!(
                "the run directory holds a run{of_version}: its table `{name}` has other columns than this \
                 version writes: {difference}"
            ),
            hint: format!(
                "go on with the program that it began with{or_version}, or give another directory with --dir"
            ),
        })
    })
}

/// The tables that its stages write, and where they are.
fn tables_of(pipeline: &Pipeline, dir: &RunDir) -> Vec<(String, PathBuf, StageOutput)> {
    let mut found = vec![
        ("metrics".to_owned(), dir.metrics(), StageOutput::Metrics),
        ("evals".to_owned(), dir.table("evals"), StageOutput::Evals),
    ];
    for stage in &pipeline.stages {
        let own = stage.output().map(|output| (stage.name.clone(), output));
        for (name, output) in own.into_iter().chain(stage.side_tables()) {
            found.push((name.clone(), dir.table(&name), output));
        }
    }
    found
}
