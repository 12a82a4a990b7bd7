//! What was measured by step: the table of metrics, and what a stage's completions say besides.

use std::collections::BTreeMap;

use aha_data::Session;
use aha_flow::evaluate::answers::Votes;
use aha_flow::evaluate::{Answers, Sample};
use aha_flow::metrics;
use aha_flow::pipeline::Pipeline;
use aha_reward::Settings;
use aha_rollout::col;
use serde::{Deserialize, Serialize};

use super::ask::{self, Num};
use super::facts::Stage;

/// What the page adds to the metrics of a run, each with what it says.
pub const DERIVED: [(&str, &str); 4] = [
    (
        "cons_at_k",
        "`rl`: share of groups whose most frequent answer is right: cons@k with the group's size as k.",
    ),
    (
        "foreign_share",
        "`rl`: mean share of a completion's words that are not in the target language of the stage's reward \
         `language`, or not in English where it has none.",
    ),
    ("reflecting_share", "`rl`: share of completions with a reflection word."),
    ("reflections_mean", "`rl`: mean number of reflection words per completion."),
];

/// Points of a line on the page, at most: of more, neighbours are averaged.
const POINTS_MAX: usize = 2000;
/// Text of completions that is held at once, in bytes.
const TEXT_BYTES_MAX: u64 = 32 << 20;

/// What a stage measured.
pub struct Curves {
    /// The stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Its measures, by name.
    pub series: BTreeMap<String, Vec<Point>>,
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
    /// The points as they are, or means of as few neighbours as the page has room for.
    pub fn of(points: &[Point]) -> Line {
        let per = points.len().div_ceil(POINTS_MAX).max(1);
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

#[derive(Deserialize)]
struct MetricRow {
    stage: String,
    step: u64,
    name: String,
    value: Num,
    at_us: i64,
}

/// Gathers what each stage measured; stages that measured nothing are left out.
pub async fn gather(
    session: &Session,
    stages: &[Stage],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Vec<Curves>> {
    let rows: Vec<MetricRow> = ask::rows(
        session,
        "SELECT stage, step, name, value, CAST(\"at\" AS BIGINT) AS at_us FROM metrics ORDER BY step",
    )
    .await?;
    let mut found: BTreeMap<String, BTreeMap<String, Vec<Point>>> = BTreeMap::new();
    for MetricRow { stage, step, name, value, at_us } in rows {
        let point = Point { step, value: value.0, at_us };
        found.entry(stage).or_default().entry(name).or_default().push(point);
    }
    let mut curves = Vec::new();
    for stage in stages {
        let mut series = found.remove(&stage.name).unwrap_or_default();
        if stage.kind == "rl" && stage.completions_count.is_some() {
            series.extend(of_completions(session, &stage.name, pipeline).await?);
        }
        if !series.is_empty() {
            let (stage, kind) = (stage.name.clone(), stage.kind.clone());
            curves.push(Curves { stage, kind, series });
        }
    }
    Ok(curves)
}

/// What a step's completions say.
#[derive(Deserialize)]
struct StepRow {
    step: u64,
    bytes: u64,
    at_us: i64,
    reflections_mean: Num,
    reflecting_share: Num,
    foreign_share: Option<Num>,
}

async fn of_completions(
    session: &Session,
    stage: &str,
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<BTreeMap<String, Vec<Point>>> {
    let rules = Rules::of(stage, pipeline);
    let (table, language) = (ask::name(stage), ask::text(&rules.language));
    let rows: Vec<StepRow> = ask::rows(
        session,
        &format!(
            "SELECT step, sum(octet_length(completion)) AS bytes, \
                    max(CAST(finished_at AS BIGINT)) AS at_us, \
                    avg(reflection_count(completion)) AS reflections_mean, \
                    avg(CASE WHEN reflection_count(completion) > 0 THEN 1.0 ELSE 0.0 END) AS reflecting_share, \
                    avg(1.0 - language_share(completion, {language})) AS foreign_share \
             FROM {table} GROUP BY step ORDER BY step"
        ),
    )
    .await?;
    let mut series: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    let mut add = |name: &str, row: &StepRow, value: Option<f64>| {
        let point = value.map(|value| Point { step: row.step, value, at_us: row.at_us });
        series.entry(name.to_owned()).or_default().extend(point);
    };
    for row in &rows {
        add("reflections_mean", row, Some(row.reflections_mean.0));
        add("reflecting_share", row, Some(row.reflecting_share.0));
        add("foreign_share", row, row.foreign_share.map(|share| share.0));
    }
    if let Some((reward, answers)) = &rules.answers {
        let shares = majorities(session, &table, (reward.as_str(), answers), &rows).await?;
        for row in &rows {
            add("cons_at_k", row, shares.get(&row.step).copied());
        }
    }
    series.retain(|_, points| !points.is_empty());
    Ok(series)
}

/// What the pipeline says of a stage's completions.
pub struct Rules {
    /// The reward part that decides whether a completion is right; none where none compares with answers.
    pub right: Option<String>,
    /// The reward part that reads final answers, and how it does.
    pub answers: Option<(String, Answers)>,
    /// The language that completions are to be in.
    pub language: String,
}

impl Rules {
    /// Those of a stage.
    pub fn of(stage: &str, pipeline: Option<&Pipeline>) -> Rules {
        let stage = pipeline.and_then(|pipeline| pipeline.stage(stage));
        let rewards = stage.map(|stage| stage.kind.rewards()).unwrap_or_default();
        let right = rewards.iter().find(|reward| reward.needs().is_some());
        let answers = rewards
            .iter()
            .find_map(|reward| Some((reward.name().to_owned(), Answers::of(&reward.0)?)));
        let language = rewards.iter().find_map(|reward| match &reward.0.settings {
            Settings::Language(language) => Some(language.target.clone()),
            _ => None,
        });
        Rules {
            right: right.map(|reward| reward.name().to_owned()),
            answers,
            language: language.unwrap_or_else(|| "en".to_owned()),
        }
    }
}

#[derive(Deserialize)]
struct VoteRow {
    step: u64,
    prompt_id: String,
    completion: String,
    is_right: Option<bool>,
}

/// By step, the share of groups whose most frequent answer is right. Groups with a completion that could not
/// be scored are left out, as an evaluation leaves such problems out.
async fn majorities(
    session: &Session,
    table: &str,
    (reward, answers): (&str, &Answers),
    steps: &[StepRow],
) -> anyhow::Result<BTreeMap<u64, f64>> {
    let score = ask::name(&col::reward(reward));
    let mut shares = BTreeMap::new();
    for (first, last) in ranges(steps) {
        let rows: Vec<VoteRow> = ask::rows(
            session,
            &format!(
                "SELECT step, prompt_id, completion, {score} = 1 AS is_right FROM {table} \
                 WHERE step BETWEEN {first} AND {last} ORDER BY step, prompt_id, sample_idx"
            ),
        )
        .await?;
        shares.extend(shares_of(&rows, answers));
    }
    Ok(shares)
}

/// Steps that are read together, each range with its first and its last.
fn ranges(steps: &[StepRow]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut held_bytes = 0;
    for row in steps {
        held_bytes += row.bytes;
        match ranges.last_mut().filter(|_| held_bytes <= TEXT_BYTES_MAX) {
            Some((_, last)) => *last = row.step,
            None => {
                ranges.push((row.step, row.step));
                held_bytes = row.bytes;
            }
        }
    }
    ranges
}

fn shares_of(rows: &[VoteRow], answers: &Answers) -> BTreeMap<u64, f64> {
    let mut groups: BTreeMap<u64, (usize, f64)> = BTreeMap::new();
    for group in rows.chunk_by(|a, b| (a.step, &a.prompt_id) == (b.step, &b.prompt_id)) {
        if group.iter().any(|row| row.is_right.is_none()) {
            continue;
        }
        let samples: Vec<Sample> = group.iter().map(|row| sample(row, answers)).collect();
        let votes = Votes::of(&samples, answers.equivalence());
        let (count, right) = groups.entry(group[0].step).or_default();
        *count += 1;
        *right += votes.cons_at(samples.len() as u64);
    }
    groups.into_iter().map(|(step, (count, right))| (step, right / count as f64)).collect()
}

fn sample(row: &VoteRow, answers: &Answers) -> Sample {
    Sample {
        is_right: row.is_right,
        rank: None,
        answer: answers.find(&row.completion).map(str::to_owned),
        // A vote doesn't ask for them.
        completion_len_tokens: 0,
        is_truncated: false,
    }
}

#[cfg(test)]
mod tests {
    use aha_reward::{Kind, Spec};

    use super::*;

    fn points(count: u64) -> Vec<Point> {
        (1..=count).map(|step| Point { step, value: step as f64, at_us: 0 }).collect()
    }

    #[test]
    fn a_short_line_is_left_as_it_is() {
        let line = Line::of(&points(3));
        assert_eq!(line.steps, [1, 2, 3]);
        assert_eq!((line.values, line.per), (vec![Num(1.0), Num(2.0), Num(3.0)], 1));
        let none = Line::of(&[]);
        assert_eq!((none.steps, none.values, none.per), (vec![], vec![], 1));
    }

    #[test]
    fn a_long_line_has_means_of_neighbours() {
        let line = Line::of(&points(2 * POINTS_MAX as u64 + 1));
        assert_eq!(line.per, 3);
        assert_eq!((line.steps[0], line.values[0]), (3, Num(2.0)));
        assert_eq!(line.steps.last(), Some(&4001), "the last step is there");
        assert!(line.steps.len() <= POINTS_MAX);
    }

    #[test]
    fn a_step_has_the_share_of_its_groups_whose_majority_is_right() {
        let answers = Answers::of(&Spec::new(Kind::Math)).unwrap();
        let row = |step, id: &str, answer: &str, is_right| VoteRow {
            step,
            prompt_id: id.to_owned(),
            completion: format!("<answer>{answer}</answer>"),
            is_right,
        };
        let rows = [
            row(1, "a", "7", Some(true)),
            row(1, "a", "8", Some(false)),
            row(1, "a", "7.0", Some(true)),
            row(1, "b", "3", Some(false)),
            row(1, "b", "3", Some(false)),
            row(1, "b", "4", Some(true)),
            row(2, "b", "4", Some(true)),
            row(3, "b", "4", Some(true)),
            row(3, "b", "5", None),
        ];
        assert_eq!(shares_of(&rows, &answers), BTreeMap::from([(1, 0.5), (2, 1.0)]));
    }

    #[test]
    fn steps_are_read_in_ranges_that_memory_holds() {
        let row = |step, bytes| StepRow {
            step,
            bytes,
            at_us: 0,
            reflections_mean: Num(0.0),
            reflecting_share: Num(0.0),
            foreign_share: None,
        };
        let half = TEXT_BYTES_MAX / 2;
        let rows = [row(1, half), row(2, half), row(3, 1), row(5, 4 * half), row(6, 1)];
        assert_eq!(ranges(&rows), [(1, 2), (3, 3), (5, 5), (6, 6)]);
        assert!(ranges(&[]).is_empty());
    }

    /// One name has one doc, and none of ours is a metric of a run.
    #[test]
    fn every_line_has_its_doc() {
        assert_eq!(docs().len(), metrics::REFERENCE.len() + DERIVED.len());
    }
}
