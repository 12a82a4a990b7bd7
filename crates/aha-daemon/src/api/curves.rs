//! What a run measured, as lines: what charts are drawn of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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
use crate::error::{Result, blocking};
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
    let dir = RunDir::new(&app.board.run(id)?.run_dir).metrics();
    Ok(Json(blocking(move || read_curves(&dir, &wanted)).await?))
}

fn read_curves(dir: &Path, wanted: &Wanted) -> Result<Curves> {
    let mut found: BTreeMap<(String, String), Vec<(u64, f64)>> = BTreeMap::new();
    let is = |filter: &Option<String>, value: &str| filter.as_deref().is_none_or(|f| f == value);
    for part in table::parts(dir)? {
        for batch in read::read_part(&part.path)? {
            let rows = MetricsView::new(&batch)?;
            for row in 0..rows.rows_count() {
                let (stage, name) = (rows.stage(row), rows.name(row));
                if is(&wanted.stage, stage) && is(&wanted.name, name) {
                    let points = found.entry((stage.to_owned(), name.to_owned())).or_default();
                    points.push((rows.step(row), rows.value(row)));
                }
            }
        }
    }
    let points_max = wanted.points.unwrap_or(POINTS).clamp(1, POINTS_MAX) as usize;
    let curves = found.into_iter().map(|((stage, name), points)| {
        let (steps, values, per) = thinned(points, points_max);
        Curve { doc: metrics::doc(&name), stage, name, steps, values, per }
    });
    Ok(Curves { curves: curves.collect() })
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

    #[test]
    fn a_line_has_the_steps_of_all_parts_and_says_what_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let writer = TableWriter::open(temp.path(), schema::metrics()).unwrap();
        for step in [2, 1] {
            let row = |name, value| MetricRow { stage: "zero", step, name, value, at_us: 1 };
            let rows = [row("reward", step as f64), row("kl", f64::NAN)];
            writer.write(&part_name(step), &[rows::metrics(&rows)]).unwrap();
        }
        let all = read_curves(temp.path(), &Wanted::default()).unwrap().curves;
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name.as_str(), &all[0].values), ("kl", &vec![None, None]));
        assert_eq!((&all[1].steps, &all[1].values), (&vec![1, 2], &vec![Some(1.0), Some(2.0)]));
        assert!(all[1].doc.as_deref().unwrap().contains("mean reward"), "{all:?}");
        let wanted = Wanted { stage: Some("none".into()), ..Wanted::default() };
        assert!(read_curves(temp.path(), &wanted).unwrap().curves.is_empty());
        assert!(read_curves(&temp.path().join("none"), &Wanted::default()).is_ok());
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
