//! What was measured by step: the table of metrics, and what a stage's completions say besides.

use std::collections::BTreeMap;

use aha_flow::metrics;
use aha_flow::rundir::RunDir;
use aha_rollout::view::MetricsView;
use aha_rollout::{read, table};
use serde::Serialize;

use super::ask::Num;
use super::facts::Stage;
use super::look::Looked;

/// What the page adds to the metrics of a run, each with what it says.
pub const DERIVED: [(&str, &str); 4] = [
    (
        "cons_at_k",
        "`rl`: share of groups whose most frequent answer is right: cons@k with the group's size as k.",
    ),
    (
        "foreign_share",
        "`rl`: mean share of a completion's words that are not in the target language of the stage's reward \
         `language`, or not in English where it has none. Of stages with much text, over completions of each step \
         at even distances.",
    ),
    ("reflecting_share", "`rl`: share of completions with a reflection word."),
    ("reflections_mean", "`rl`: mean number of reflection words per completion."),
];

/// Points of a line on the page, at most, and of all lines together, about: of more, neighbours are averaged.
const POINTS_MAX: usize = 1000;
const POINTS_TOTAL: usize = 200_000;
const POINTS_MIN: usize = 100;

/// What a stage measured.
pub struct Curves {
    /// The stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Its measures, by name.
    pub series: Series,
}

/// A measure of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The step.
    pub step: u64,
    /// The measured value.
    pub value: f64,
    /// When it was measured, in µs since 1970, UTC.
    pub at_us: i64,
}

/// A line on the page.
#[derive(Debug, PartialEq, Serialize)]
pub struct Line {
    /// Steps, ascending.
    pub steps: Vec<u64>,
    /// A value for each of them.
    pub values: Vec<Num>,
    /// Steps that a value is the mean of; 1 where nothing was left out.
    pub per: usize,
}

impl Line {
    /// The points of one of so many lines as they are, or means of as few neighbours as the page has room for.
    pub fn of(points: &[Point], lines_count: usize) -> Line {
        let room = POINTS_TOTAL / lines_count.max(1);
        let per = points.len().div_ceil(room.clamp(POINTS_MIN, POINTS_MAX)).max(1);
        let mean = |some: &[Point]| {
            Num(some.iter().map(|point| point.value).sum::<f64>() / some.len() as f64)
        };
        Line {
            steps: points.chunks(per).map(|some| some[some.len() - 1].step).collect(),
            values: points.chunks(per).map(mean).collect(),
            per,
        }
    }
}

/// Every name that a line can have, with what it says.
pub fn docs() -> BTreeMap<&'static str, &'static str> {
    metrics::REFERENCE.into_iter().chain(DERIVED).collect()
}

/// Measures of a stage, by name.
pub type Series = BTreeMap<String, Vec<Point>>;

/// What each stage has measured: the table of metrics, a point a row.
pub fn measured(dir: &RunDir) -> anyhow::Result<BTreeMap<String, Series>> {
    let mut found: BTreeMap<String, Series> = BTreeMap::new();
    let of_rollout = aha_data::Error::from;
    for part in table::parts(&dir.metrics()).map_err(of_rollout)? {
        for batch in read::read_part(&part.path).map_err(of_rollout)? {
            add(&mut found, &MetricsView::new(&batch).map_err(of_rollout)?);
        }
    }
    let lines = found.values_mut().flat_map(BTreeMap::values_mut);
    lines.for_each(|points| points.sort_by_key(|point| point.step));
    Ok(found)
}

fn add(found: &mut BTreeMap<String, Series>, rows: &MetricsView<'_>) {
    for row in 0..rows.rows_count() {
        let (stage, name) = (rows.stage(row), rows.name(row));
        if !found.contains_key(stage) {
            found.insert(stage.to_owned(), Series::new());
        }
        let Some(series) = found.get_mut(stage) else { continue };
        let point = Point { step: rows.step(row), value: rows.value(row), at_us: rows.at_us(row) };
        match series.get_mut(name) {
            Some(points) => points.push(point),
            None => {
                series.insert(name.to_owned(), vec![point]);
            }
        }
    }
}

/// What each stage measured, with what its completions say besides; stages that measured nothing are left out.
pub fn gather(
    mut measured: BTreeMap<String, Series>,
    stages: &[Stage],
    looked: &[Looked],
) -> Vec<Curves> {
    let curves = stages.iter().map(|stage| {
        let mut series = measured.remove(&stage.name).unwrap_or_default();
        let own = looked.iter().filter(|of| of.table.kind == "rl" && of.table.stage == stage.name);
        own.for_each(|table| series.extend(of_completions(table)));
        Curves { stage: stage.name.clone(), kind: stage.kind.clone(), series }
    });
    curves.filter(|curves| !curves.series.is_empty()).collect()
}

/// What the completions of a stage say by step.
fn of_completions(table: &Looked) -> Series {
    let mut series = Series::new();
    for (step, texts) in table.steps.iter().filter_map(|s| Some((s, s.texts.as_ref()?))) {
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        for (name, value) in [
            ("reflections_mean", mean(texts.reflections as f64, texts.rows)),
            ("reflecting_share", mean(texts.reflecting as f64, texts.rows)),
            ("foreign_share", mean(texts.foreign.0, texts.foreign.1)),
            ("cons_at_k", mean(texts.majorities.0, texts.majorities.1)),
        ] {
            let Some(value) = value else { continue };
            let point = Point { step: step.step, value, at_us: step.span_us[1] };
            series.entry(name.to_owned()).or_default().push(point);
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::report::look;

    fn points(count: u64) -> Vec<Point> {
        (1..=count).map(|step| Point { step, value: step as f64, at_us: 0 }).collect()
    }

    #[test]
    fn a_short_line_is_left_as_it_is() {
        let line = Line::of(&points(3), 1);
        assert_eq!(line.steps, [1, 2, 3]);
        assert_eq!((line.values, line.per), (vec![Num(1.0), Num(2.0), Num(3.0)], 1));
        let none = Line::of(&[], 0);
        assert_eq!((none.steps, none.values, none.per), (vec![], vec![], 1));
    }

    #[test]
    fn a_long_line_has_means_of_neighbours() {
        let many = points(2 * POINTS_MAX as u64 + 1);
        let line = Line::of(&many, 1);
        assert_eq!(line.per, 3);
        assert_eq!((line.steps[0], line.values[0]), (3, Num(2.0)));
        assert_eq!(line.steps.last(), Some(&2001), "the last step is there");
        assert!(line.steps.len() <= POINTS_MAX);
        let among_many = Line::of(&many, POINTS_TOTAL / 500);
        assert_eq!((among_many.per, among_many.steps.len()), (5, 401));
        assert!(Line::of(&many, usize::MAX).steps.len() <= POINTS_MIN);
    }

    #[test]
    fn completions_are_measured_where_their_texts_were_read() {
        let step =
            |step, texts| look::Step { step, span_us: [0, 7], texts, ..look::Step::default() };
        let texts = look::Texts {
            rows: 4,
            reflecting: 1,
            reflections: 3,
            foreign: (0.5, 2),
            ..look::Texts::default()
        };
        let table = look::Table {
            name: "zero".to_owned(),
            stage: "zero".to_owned(),
            kind: "rl".to_owned(),
            model: None,
            written_by: "zero".to_owned(),
        };
        let looked = Looked {
            table,
            reward_names: Vec::new(),
            columns: Vec::new(),
            steps: vec![step(1, None), step(2, Some(texts))],
        };
        let point = |value| vec![Point { step: 2, value, at_us: 7 }];
        let expected = [
            ("foreign_share".to_owned(), point(0.25)),
            ("reflecting_share".to_owned(), point(0.25)),
            ("reflections_mean".to_owned(), point(0.75)),
        ];
        assert_eq!(of_completions(&looked), Series::from(expected), "no group could be scored");
    }

    /// One name has one doc, and none of ours is a metric of a run.
    #[test]
    fn every_line_has_its_doc() {
        assert_eq!(docs().len(), metrics::REFERENCE.len() + DERIVED.len());
    }
}
