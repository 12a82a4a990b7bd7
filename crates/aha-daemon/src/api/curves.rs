//! What a run measured, as lines: what charts are drawn of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aha_flow::metrics;
use aha_flow::rundir::RunDir;
use aha_rollout::view::MetricsView;
use aha_rollout::{read, table};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{Asked, At, Problem, Problems};
use crate::error::Result;
use crate::record::RunId;

/// Points of a line where a request says nothing, and at most.
const POINTS: u32 = 1000;
const POINTS_MAX: u32 = 20_000;

/// Which lines are wanted.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Only of this stage.
    stage: Option<String>,
    /// Only of this name.
    name: Option<String>,
    /// Points of a line, at most: of more, neighbours are averaged; absent: 1000.
    #[param(minimum = 1)]
    points: Option<u32>,
}

/// Lines.
#[derive(Debug, Serialize, ToSchema)]
pub struct Curves {
    /// By stage and name.
    curves: Vec<Curve>,
}

/// What a stage measured under one name.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct Curve {
    /// The stage.
    stage: String,
    /// What was measured.
    name: String,
    /// What that says, where it is a measure that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    doc: Option<String>,
    /// Steps, ascending.
    steps: Vec<u64>,
    /// A value for each of them; null where there is no finite one.
    values: Vec<Option<f64>>,
    /// Steps that a value is the mean of; 1 where nothing was left out.
    per: usize,
}

/// What a run measured so far, as lines over steps, as far as it is on the disk: each checkpoint writes it. Those of a
/// step come at once as events.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/curves", tag = "files",
    params(("id" = u64, Path, description = "The run's number."), Wanted),
    responses((status = 200, description = "The lines.", body = Curves), Problems)
)]
pub async fn curves(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Curves>, Problem> {
    let record = app.board.run(id)?;
    let dir = RunDir::new(&record.run_dir).metrics();
    let known = app.curves.of(id, record.started_at_us);
    let read = move || known.lock().unwrap_or_else(PoisonError::into_inner).read(&dir, &wanted);
    Ok(Json(app.read(read).await?))
}

/// Runs whose lines are remembered, at most.
const KNOWN_RUNS_MAX: usize = 16;

/// What was read of runs that somebody watches: each part is read once, however often its run is asked for.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<BTreeMap<RunId, OfStart>>);

/// What is known of a run since its process was started.
#[derive(Debug, Default)]
struct OfStart {
    started_at_us: Option<i64>,
    known: Arc<Mutex<Known>>,
}

impl Remembered {
    /// What is known of a run whose process was started then. One that was started again may have made its last
    /// steps anew.
    fn of(&self, run: RunId, started_at_us: Option<i64>) -> Arc<Mutex<Known>> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !runs.contains_key(&run) && runs.len() >= KNOWN_RUNS_MAX {
            runs.clear();
        }
        let of = runs.entry(run).or_default();
        if of.started_at_us != started_at_us {
            *of = OfStart { started_at_us, known: Arc::default() };
        }
        Arc::clone(&of.known)
    }

    /// Forgets a run that is removed.
    pub fn forget(&self, run: RunId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }
}

/// Points by stage and name, and the parts that they were read from.
#[derive(Debug, Default)]
struct Known {
    parts: BTreeSet<PathBuf>,
    points: BTreeMap<(String, String), Vec<(u64, f64)>>,
}

impl Known {
    /// The lines, after a look at parts that are new.
    fn read(&mut self, dir: &Path, wanted: &Wanted) -> Result<Curves> {
        let parts: BTreeSet<PathBuf> =
            table::parts(dir)?.into_iter().map(|part| part.path).collect();
        if !self.parts.is_subset(&parts) {
            *self = Known::default();
        }
        for path in parts.into_iter().filter(|path| !self.parts.contains(path)).collect::<Vec<_>>()
        {
            self.add(path)?;
        }
        let is =
            |filter: &Option<String>, value: &str| filter.as_deref().is_none_or(|f| f == value);
        let points_max = wanted.points.unwrap_or(POINTS).clamp(1, POINTS_MAX) as usize;
        let found = self.points.iter();
        let found =
            found.filter(|((stage, name), _)| is(&wanted.stage, stage) && is(&wanted.name, name));
        let curves = found.map(|((stage, name), points)| {
            let (steps, values, per) = thinned(points.clone(), points_max);
            Curve {
                doc: metrics::doc(name),
                stage: stage.clone(),
                name: name.clone(),
                steps,
                values,
                per,
            }
        });
        Ok(Curves { curves: curves.collect() })
    }

    /// A part that can't be read to its end adds nothing.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let batches = read::read_part(&path)?;
        for batch in &batches {
            let rows = MetricsView::new(batch)?;
            for row in 0..rows.rows_count() {
                let key = (rows.stage(row).to_owned(), rows.name(row).to_owned());
                self.points.entry(key).or_default().push((rows.step(row), rows.value(row)));
            }
        }
        self.parts.insert(path);
        Ok(())
    }
}

/// A line of at most so many points: each the mean of as many neighbours, at the last one's step.
fn thinned(mut points: Vec<(u64, f64)>, points_max: usize) -> (Vec<u64>, Vec<Option<f64>>, usize) {
    points.sort_by_key(|(step, _)| *step);
    let per = points.len().div_ceil(points_max).max(1);
    let steps = points.chunks(per).map(|some| some[some.len() - 1].0).collect();
    let mean = |some: &[(u64, f64)]| {
        let finite = some.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
        let (sum, count) =
            finite.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
        (count > 0.0).then(|| sum / count)
    };
    (steps, points.chunks(per).map(mean).collect(), per)
}

#[cfg(test)]
mod tests {
    use aha_rollout::rows::{self, MetricRow};
    use aha_rollout::schema;
    use aha_rollout::table::{TableWriter, part_name};

    use super::*;
    use crate::error::Error;

    /// Goal: a part is read once, however often its run is asked for. Method: one that was read is damaged.
    #[test]
    fn what_was_read_is_remembered_until_a_part_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let writer = TableWriter::open(temp.path(), schema::metrics()).unwrap();
        let write = |step: u64| {
            let row =
                MetricRow { stage: "zero", step, name: "reward", value: step as f64, at_us: 1 };
            writer.write(&part_name(step), &[rows::metrics(&[row])]).unwrap();
        };
        let mut known = Known::default();
        let mut steps =
            || Ok::<_, Error>(known.read(temp.path(), &Wanted::default())?.curves[0].steps.clone());
        write(1);
        write(2);
        assert_eq!(steps().unwrap(), [1, 2]);
        std::fs::write(temp.path().join(part_name(1)), "no table").unwrap();
        write(3);
        assert_eq!(steps().unwrap(), [1, 2, 3]);
        std::fs::remove_file(temp.path().join(part_name(2))).unwrap();
        steps().expect_err("all is read again where a part is gone");
    }

    #[test]
    fn a_line_has_the_steps_of_all_parts_and_says_what_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let writer = TableWriter::open(temp.path(), schema::metrics()).unwrap();
        for step in [2, 1] {
            let row = |name, value| MetricRow { stage: "zero", step, name, value, at_us: 1 };
            let rows = [row("reward", step as f64), row("kl", f64::NAN)];
            writer.write(&part_name(step), &[rows::metrics(&rows)]).unwrap();
        }
        let all = Known::default().read(temp.path(), &Wanted::default()).unwrap().curves;
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name.as_str(), &all[0].values), ("kl", &vec![None, None]));
        assert_eq!((&all[1].steps, &all[1].values), (&vec![1, 2], &vec![Some(1.0), Some(2.0)]));
        assert!(all[1].doc.as_deref().unwrap().contains("mean reward"), "{all:?}");
        let wanted = Wanted { stage: Some("none".into()), ..Wanted::default() };
        assert!(Known::default().read(temp.path(), &wanted).unwrap().curves.is_empty());
        assert!(Known::default().read(&temp.path().join("none"), &Wanted::default()).is_ok());
    }

    #[test]
    fn neighbours_are_averaged_where_there_are_too_many() {
        let points = vec![(1, 1.0), (2, 3.0), (3, f64::NAN), (4, 5.0), (5, 7.0)];
        let expected = (vec![2, 4, 5], vec![Some(2.0), Some(5.0), Some(7.0)], 2);
        assert_eq!(thinned(points.clone(), 3), expected);
        assert_eq!(thinned(points, 9).2, 1);
        assert_eq!(thinned(Vec::new(), 9), (Vec::new(), Vec::new(), 1));
    }
}
