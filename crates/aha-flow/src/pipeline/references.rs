//! Who reads whom: every name a stage uses is known, of the right kind, and comes before it.

use std::collections::{BTreeMap, BTreeSet};

use super::local::{TABLES_OF_THE_RUN, stage_path};
use super::problem::suggest;
use super::reader::Reader;
use super::source::Span;
use super::stages::{Pipeline, Stage, StageKind};

/// One name that a stage reads.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub name: String,
    /// The key that reads it.
    pub path: String,
    pub span: Span,
}

/// Everything a stage reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    pub models: Vec<Read>,
    /// Reward models, by the rewards that ask them.
    pub reward_models: Vec<Read>,
    pub tables: Vec<Read>,
}

/// Reports what can't be read; returns the names that no query should be planned against.
pub(crate) fn check(
    pipeline: &Pipeline,
    reads: &[Reads],
    reader: &mut Reader<'_>,
) -> BTreeSet<String> {
    let mut broken = BTreeSet::new();
    let edges = edges_of(pipeline, reads);
    for (idx, of_stage) in reads.iter().enumerate() {
        for read in of_stage.models.iter().chain(&of_stage.reward_models) {
            if let Some((message, hint)) = bad_model(pipeline, idx, read, &edges) {
                reader.report(read.span, &read.path, message, Some(hint));
            }
        }
        for read in &of_stage.tables {
            if let Some((message, hint)) = bad_table(pipeline, idx, read, &edges) {
                reader.report(read.span, &read.path, message, Some(hint));
                broken.insert(read.name.clone());
            }
        }
    }
    // A stage that could not be read makes nothing, and what reads it is not to blame.
    let unread = (0..pipeline.stages.len()).filter(|idx| {
        let path = stage_path(pipeline, *idx, reader);
        matches!(pipeline.stages[*idx].kind, StageKind::Query(_))
            && !reader.is_good(&format!("{path}.sql"))
    });
    broken.extend(unread.map(|idx| pipeline.stages[idx].name.clone()));
    broken
}

/// For each stage the names of the stages that it reads, in the order of the pipeline.
pub(crate) fn stages_read(pipeline: &Pipeline, reads: &[Reads]) -> BTreeMap<String, Vec<String>> {
    let edges = edges_of(pipeline, reads).into_iter().map(BTreeSet::from_iter);
    let name = |idx: usize| pipeline.stages[idx].name.clone();
    edges
        .enumerate()
        .map(|(idx, of): (usize, BTreeSet<usize>)| (name(idx), of.into_iter().map(name).collect()))
        .collect()
}

/// For each stage the stages it reads.
fn edges_of(pipeline: &Pipeline, reads: &[Reads]) -> Vec<Vec<usize>> {
    reads
        .iter()
        .map(|of_stage| {
            let models = of_stage.models.iter().chain(&of_stage.reward_models);
            let models = models.filter_map(|read| stage_idx(pipeline, &read.name));
            let tables = of_stage.tables.iter().filter_map(|read| writer_idx(pipeline, &read.name));
            models.chain(tables).collect()
        })
        .collect()
}

fn stage_idx(pipeline: &Pipeline, name: &str) -> Option<usize> {
    pipeline.stages.iter().position(|stage| stage.name == name)
}

/// The stage that writes a table: the one of its name, or one that writes it as well.
fn writer_idx(pipeline: &Pipeline, name: &str) -> Option<usize> {
    let writes = |stage: &Stage| stage.side_tables().iter().any(|(table, _)| table == name);
    stage_idx(pipeline, name).or_else(|| pipeline.stages.iter().position(writes))
}

fn bad_model(
    pipeline: &Pipeline,
    idx: usize,
    read: &Read,
    edges: &[Vec<usize>],
) -> Option<(String, String)> {
    if pipeline.model(&read.name).is_some() {
        return None;
    }
    let earlier: Vec<&str> = pipeline.stages[..idx]
        .iter()
        .filter(|stage| stage.kind.is_training())
        .map(|stage| stage.name.as_str())
        .collect();
    let known: Vec<&str> =
        pipeline.models.iter().map(|(name, _)| name.as_str()).chain(earlier).collect();
    match stage_idx(pipeline, &read.name) {
        Some(other) if !pipeline.stages[other].kind.is_training() => Some((
            format!(
                "stage `{}` is of kind `{}` and makes no model",
                read.name,
                pipeline.stages[other].kind.word()
            ),
            suggest(&read.name, &known, "models that it can start from"),
        )),
        Some(other) => bad_order(pipeline, idx, other, edges),
        None => Some((
            format!("unknown model `{}`", read.name),
            suggest(&read.name, &known, "models that it can start from"),
        )),
    }
}

fn bad_table(
    pipeline: &Pipeline,
    idx: usize,
    read: &Read,
    edges: &[Vec<usize>],
) -> Option<(String, String)> {
    let name = read.name.as_str();
    let is_input = pipeline.tables.iter().any(|(table, _)| table == name);
    if is_input || TABLES_OF_THE_RUN.contains(&name) {
        return None;
    }
    let earlier = pipeline.stages[..idx].iter().filter(|stage| writes_table(&stage.kind));
    let known: Vec<&str> = pipeline
        .tables
        .iter()
        .map(|(name, _)| name.as_str())
        .chain(earlier.map(|stage| stage.name.as_str()))
        .chain(TABLES_OF_THE_RUN)
        .collect();
    match writer_idx(pipeline, name) {
        Some(other) if !writes_table(&pipeline.stages[other].kind) => Some((
            format!("stage `{name}` is of kind `export` and writes no table"),
            suggest(name, &known, "tables that it can read"),
        )),
        Some(other) => bad_order(pipeline, idx, other, edges),
        None if pipeline.model(name).is_some() => Some((
            format!("`{name}` is a model, not a table"),
            suggest("", &known, "tables that it can read"),
        )),
        None => Some((
            format!("unknown table `{name}`"),
            suggest(name, &known, "tables that it can read"),
        )),
    }
}

fn writes_table(kind: &StageKind) -> bool {
    !matches!(kind, StageKind::Export(_))
}

/// A stage may only read what stands above it.
fn bad_order(
    pipeline: &Pipeline,
    idx: usize,
    other: usize,
    edges: &[Vec<usize>],
) -> Option<(String, String)> {
    if other < idx {
        return None;
    }
    let name = |idx: usize| pipeline.stages[idx].name.as_str();
    match path_between(other, idx, edges) {
        Some(path) => {
            let circle: Vec<String> =
                std::iter::once(idx).chain(path).map(|idx| format!("`{}`", name(idx))).collect();
            let message = if other == idx {
                format!("stage `{}` reads itself", name(idx))
            } else {
                format!("stages read each other in a cycle: {}", circle.join(" reads "))
            };
            let hint = "a stage can only read what an earlier one has made: break the cycle here";
            Some((message, hint.to_owned()))
        }
        None => Some((
            format!("stage `{}` reads `{}`, which comes later", name(idx), name(other)),
            format!("move the stage `{}` above `{}`", name(other), name(idx)),
        )),
    }
}

/// The stages on a shortest way from `from` to `to`, both included.
fn path_between(from: usize, to: usize, edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut came_from: Vec<Option<usize>> = vec![None; edges.len()];
    let mut queue = std::collections::VecDeque::from([from]);
    let mut seen = vec![false; edges.len()];
    seen[from] = true;
    while let Some(at) = queue.pop_front() {
        if at == to {
            let mut path = vec![to];
            while let Some(before) = came_from[path[path.len() - 1]] {
                path.push(before);
            }
            path.reverse();
            return Some(path);
        }
        for &next in &edges[at] {
            if !seen[next] {
                seen[next] = true;
                came_from[next] = Some(at);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_way_round_is_found() {
        let edges = vec![vec![2], vec![0], vec![1, 0], vec![]];
        assert_eq!(path_between(2, 0, &edges), Some(vec![2, 0]));
        assert_eq!(path_between(2, 1, &edges), Some(vec![2, 1]));
        assert_eq!(path_between(3, 0, &edges), None);
        assert_eq!(path_between(1, 1, &edges), Some(vec![1]));
    }
}
