//! One look through a run's completions: each part of a table is opened once, however many steps there are.
//!
//! # What it costs
//! Of every part the columns of [`SizesView`] are read, and in stages `rl` the texts. Of a table of more than
//! [`TEXT_FILES_BYTES_MAX`] the texts of steps at even distances are, so that the time that a report takes has a
//! bound. A thread holds those columns of one part; what is kept is a few numbers a step.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::thread;

use aha_flow::evaluate::answers::Votes;
use aha_flow::evaluate::{Answers, Sample};
use aha_flow::pipeline::{EvalStage, Pipeline, StageKind};
use aha_flow::rundir::RunDir;
use aha_flow::state::StageState;
use aha_reward::{language_share, reflection_count};
use aha_rollout::table::Part;
use aha_rollout::view::{SizesView, TextsView};
use aha_rollout::{read, schema, table};

use super::browser::evenly;
use super::rules::Rules;

/// Files whose texts are read, of a table, in bytes.
const TEXT_FILES_BYTES_MAX: u64 = 1 << 30;
/// Text whose language is told, of a table, in bytes; and completions of a step, at least.
const LANGUAGE_BYTES_MAX: usize = 16 << 20;
const LANGUAGE_COMPLETIONS_MIN: usize = 8;
/// Threads that read parts.
const THREADS_MAX: usize = 8;

/// A table of completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// The stage that wrote it.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// The model that wrote the completions; none where the stage's own did.
    pub model: Option<String>,
    /// The model whose tokenizer its tokens are of.
    pub written_by: String,
}

impl Table {
    /// Those of a stage of this name and kind.
    pub fn of(stage: &str, kind: &str, pipeline: Option<&Pipeline>) -> Vec<Table> {
        let models = models_of(stage, pipeline);
        let table = |name: &str, model: Option<&String>, written_by: &str| Table {
            name: name.to_owned(),
            stage: stage.to_owned(),
            kind: kind.to_owned(),
            model: model.cloned(),
            written_by: written_by.to_owned(),
        };
        match kind {
            "rl" => vec![table(stage, None, stage)],
            "sample" => {
                let model = models.first();
                vec![table(stage, model, model.map_or(stage, String::as_str))]
            }
            "eval" => {
                let of_model = |model: &String| {
                    table(&EvalStage::completions(stage, model), Some(model), model)
                };
                models.iter().map(of_model).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The models that a stage starts from, or all that it evaluates.
pub fn models_of(stage: &str, pipeline: Option<&Pipeline>) -> Vec<String> {
    let stage = pipeline.and_then(|pipeline| pipeline.stage(stage));
    let models = stage.map(|stage| match &stage.kind {
        StageKind::Eval(eval) => eval.subjects(),
        kind => kind.models().to_vec(),
    });
    models.unwrap_or_default()
}

/// A table of completions that has rows, and what was seen in it.
pub struct Looked {
    /// The table.
    pub table: Table,
    /// The parts of the reward.
    pub reward_names: Vec<String>,
    /// Its columns.
    pub columns: Vec<String>,
    /// Its steps, ascending. That of a stage without steps is 0.
    pub steps: Vec<Step>,
}

impl Looked {
    /// The sum over its steps.
    pub fn total(&self, of: fn(&Step) -> u64) -> u64 {
        self.steps.iter().map(of).sum()
    }

    /// When its first and its last completion were finished.
    pub fn span_us(&self) -> [i64; 2] {
        self.steps.iter().fold([i64::MAX, i64::MIN], |[first, last], step| {
            [first.min(step.span_us[0]), last.max(step.span_us[1])]
        })
    }
}

/// What a table holds of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The step.
    pub step: u64,
    /// Completions.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Prompts. A prompt's completions are in one part.
    pub groups: u64,
    /// When the first and the last completion were finished, in µs since 1970, UTC.
    pub span_us: [i64; 2],
    /// The files that hold it.
    pub parts: Vec<PathBuf>,
    /// What its texts say, where they were read.
    pub texts: Option<Texts>,
}

/// What completions of a step say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    /// Completions.
    pub rows: u64,
    /// Those with a reflection word.
    pub reflecting: u64,
    /// Reflection words.
    pub reflections: u64,
    /// The sum of the shares of words in another language, and of how many completions.
    pub foreign: (f64, u64),
    /// Groups whose majority is right, and groups that could be scored.
    pub majorities: (f64, u64),
    /// Right answers with a reflection word.
    pub moments: u64,
    /// The first of them, by prompt and sample.
    pub first_moment: Option<(String, u64)>,
}

impl Texts {
    fn add(&mut self, other: Texts) {
        self.rows += other.rows;
        self.reflecting += other.reflecting;
        self.reflections += other.reflections;
        self.foreign = (self.foreign.0 + other.foreign.0, self.foreign.1 + other.foreign.1);
        self.majorities =
            (self.majorities.0 + other.majorities.0, self.majorities.1 + other.majorities.1);
        self.moments += other.moments;
        self.first_moment = match (self.first_moment.take(), other.first_moment) {
            (Some(mine), Some(theirs)) => Some(mine.min(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }
}

/// Looks through the tables of these stages. Tables without rows are left out.
pub fn through(
    dir: &RunDir,
    stages: &[StageState],
    pipeline: Option<&Pipeline>,
) -> anyhow::Result<Vec<Looked>> {
    let mut looked = Vec::new();
    for table in stages.iter().flat_map(|stage| Table::of(&stage.name, &stage.kind, pipeline)) {
        let place = dir.table(&table.name);
        let columns = read::table_schema(&place).map_err(aha_data::Error::from)?;
        let Some(columns) = columns.filter(|columns| schema::is_rollouts(columns)) else {
            continue;
        };
        let reward_names = schema::reward_names(&columns);
        let rules = match table.kind.as_str() {
            "rl" => Some(Rules::of(&table.stage, pipeline)),
            _ => None,
        };
        let rules = rules.map(|rules| rules.known(&reward_names));
        let parts = table::parts(&place).map_err(aha_data::Error::from)?;
        let steps = look(&parts, rules.as_ref())?;
        if !steps.is_empty() {
            let columns = columns.fields().iter().map(|field| field.name().clone()).collect();
            looked.push(Looked { table, reward_names, columns, steps });
        }
    }
    Ok(looked)
}

/// A part, and whether its texts are read.
struct Asked<'a> {
    part: &'a Part,
    rules: Option<&'a Rules>,
    language_bytes_max: usize,
}

fn look(parts: &[Part], rules: Option<&Rules>) -> anyhow::Result<Vec<Step>> {
    let sizes = parts.iter().map(|part| fs_err::metadata(&part.path).map_or(0, |of| of.len()));
    let with_texts = chosen(parts.len(), sizes.sum());
    let language_bytes_max = LANGUAGE_BYTES_MAX / with_texts.len().max(1);
    let asked = parts.iter().enumerate().map(|(idx, part)| {
        let rules = rules.filter(|_| with_texts.binary_search(&idx).is_ok());
        Asked { part, rules, language_bytes_max }
    });
    let asked: Vec<Asked<'_>> = asked.collect();
    let mut by_step: BTreeMap<u64, Step> = BTreeMap::new();
    for found in in_parallel(&asked)?.into_iter().flatten() {
        add(by_step.entry(found.step).or_default(), found);
    }
    Ok(by_step.into_values().collect())
}

/// The parts whose texts are read.
fn chosen(parts_count: usize, bytes: u64) -> Vec<usize> {
    let share = TEXT_FILES_BYTES_MAX as f64 / bytes.max(1) as f64;
    evenly(parts_count, (parts_count as f64 * share.min(1.0)) as usize)
}

fn add(to: &mut Step, found: Step) {
    if to.rows == 0 {
        *to = found;
        return;
    }
    to.rows += found.rows;
    to.tokens += found.tokens;
    to.groups += found.groups;
    to.span_us = [to.span_us[0].min(found.span_us[0]), to.span_us[1].max(found.span_us[1])];
    to.parts.extend(found.parts);
    match (&mut to.texts, found.texts) {
        (Some(mine), Some(theirs)) => mine.add(theirs),
        (mine, theirs) => *mine = mine.take().or(theirs),
    }
}

/// What each part holds, in their order: each thread has a run of them.
fn in_parallel(asked: &[Asked<'_>]) -> anyhow::Result<Vec<Vec<Step>>> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS_MAX);
    let run = |some: &[Asked<'_>]| some.iter().map(look_at).collect::<aha_data::Result<Vec<_>>>();
    thread::scope(|scope| {
        let runs = asked.chunks(asked.len().div_ceil(threads).max(1));
        let workers: Vec<_> = runs.map(|some| scope.spawn(move || run(some))).collect();
        let mut all = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(found) => all.extend(found?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

/// What a part holds, by step.
fn look_at(asked: &Asked<'_>) -> aha_data::Result<Vec<Step>> {
    let names = asked.rules.map(Rules::names).unwrap_or_default();
    let texts = asked.rules.map(|_| TextsView::columns(&names)).unwrap_or_default();
    let columns: Vec<&str> =
        SizesView::COLUMNS.into_iter().chain(texts.iter().map(String::as_str)).collect();
    let batches = read::read_columns(&asked.part.path, &columns)?;
    let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
    let mut prompts: HashSet<(u64, &str)> = HashSet::new();
    for batch in &batches {
        let sizes = SizesView::new(batch)?;
        for row in 0..sizes.rows_count() {
            let (number, at_us) = (sizes.step(row), sizes.finished_at_us(row));
            let step = steps.entry(number).or_insert_with(|| Step {
                step: number,
                span_us: [at_us; 2],
                parts: vec![asked.part.path.clone()],
                ..Step::default()
            });
            step.rows += 1;
            step.tokens += sizes.completion_len_tokens(row);
            step.groups += u64::from(prompts.insert((number, sizes.prompt_id(row))));
            step.span_us = [step.span_us[0].min(at_us), step.span_us[1].max(at_us)];
        }
    }
    if let Some(rules) = asked.rules {
        let mut rows = Vec::new();
        for batch in &batches {
            let view = (SizesView::new(batch)?, TextsView::new(batch, &names)?);
            rows.extend(rows_of(&view, rules));
        }
        for (number, texts) in texts_of(&rows, rules, asked.language_bytes_max) {
            steps.entry(number).or_default().texts = Some(texts);
        }
    }
    Ok(steps.into_values().collect())
}

/// A completion, as its text is looked at.
struct Row<'a> {
    step: u64,
    prompt_id: &'a str,
    sample_idx: u64,
    source: Option<&'a str>,
    completion: &'a str,
    /// The scores of the parts that decide, in the order of [`Rules::names`].
    scores: Vec<Option<f64>>,
}

fn rows_of<'a>((sizes, texts): &(SizesView<'a>, TextsView<'a>), rules: &Rules) -> Vec<Row<'a>> {
    let parts_count = rules.names().len();
    let row = |row: usize| Row {
        step: sizes.step(row),
        prompt_id: sizes.prompt_id(row),
        sample_idx: texts.sample_idx(row),
        source: texts.source(row),
        completion: texts.completion(row),
        scores: (0..parts_count).map(|part| texts.reward_part(part, row)).collect(),
    };
    (0..sizes.rows_count()).map(row).collect()
}

/// What rows say, by step.
fn texts_of(rows: &[Row<'_>], rules: &Rules, language_bytes_max: usize) -> BTreeMap<u64, Texts> {
    let mut steps: BTreeMap<u64, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        steps.entry(row.step).or_default().push(row);
    }
    let of_step = |(step, rows): (u64, Vec<&Row<'_>>)| {
        let mut texts = Texts { rows: rows.len() as u64, ..Texts::default() };
        for row in &rows {
            reflect(&mut texts, row, rules);
        }
        texts.foreign = foreign(&rows, &rules.language, language_bytes_max);
        texts.majorities = majorities(&rows, rules);
        (step, texts)
    };
    steps.into_iter().map(of_step).collect()
}

fn reflect(texts: &mut Texts, row: &Row<'_>, rules: &Rules) {
    let count = reflection_count(row.completion) as u64;
    texts.reflections += count;
    texts.reflecting += u64::from(count > 0);
    let is_right = rules.right(row.source).is_some_and(|part| row.scores[part] == Some(1.0));
    if count > 0 && is_right {
        texts.moments += 1;
        let this = (row.prompt_id.to_owned(), row.sample_idx);
        let first = texts.first_moment.take().map_or(this.clone(), |first| first.min(this));
        texts.first_moment = Some(first);
    }
}

/// The sum of the shares of words in another language, and how many completions have one: of a step with much
/// text, of completions at even distances.
fn foreign(rows: &[&Row<'_>], language: &str, bytes_max: usize) -> (f64, u64) {
    let bytes: usize = rows.iter().map(|row| row.completion.len()).sum();
    let affordable = (rows.len() * bytes_max).checked_div(bytes).unwrap_or(rows.len());
    let looked = evenly(rows.len(), affordable.max(LANGUAGE_COMPLETIONS_MIN)).into_iter();
    let shares = looked.filter_map(|idx| language_share(rows[idx].completion, language));
    shares.fold((0.0, 0), |(sum, count), share| (sum + 1.0 - share, count + 1))
}

/// The groups whose most frequent answer is right, and how many there are. Groups with a completion that could not
/// be scored are left out, as an evaluation leaves such problems out.
fn majorities(rows: &[&Row<'_>], rules: &Rules) -> (f64, u64) {
    let mut groups: BTreeMap<&str, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        groups.entry(row.prompt_id).or_default().push(row);
    }
    let (mut right, mut count) = (0.0, 0);
    for group in groups.values() {
        let Some((part, answers)) = rules.answers(group[0].source) else { continue };
        if group.iter().any(|row| row.scores[part].is_none()) {
            continue;
        }
        let samples: Vec<Sample> = group.iter().map(|row| sample(row, part, answers)).collect();
        count += 1;
        right += Votes::of(&samples, answers.equivalence()).cons_at(samples.len() as u64);
    }
    (right, count)
}

fn sample(row: &Row<'_>, part: usize, answers: &Answers) -> Sample {
    Sample {
        is_right: row.scores[part].map(|score| score == 1.0),
        rank: None,
        answer: answers.find(row.completion).map(str::to_owned),
        // A vote doesn't ask for them.
        completion_len_tokens: 0,
        is_truncated: false,
    }
}

#[cfg(test)]
mod tests {
    use aha_reward::{Kind, Spec};

    use super::*;

    fn row<'a>(id: &'a str, completion: &'a str, score: Option<f64>) -> Row<'a> {
        Row { step: 1, prompt_id: id, sample_idx: 0, source: None, completion, scores: vec![score] }
    }

    fn rules() -> Rules {
        Rules::new([Spec::new(Kind::Math)], "en".to_owned())
    }

    #[test]
    fn a_step_has_the_share_of_its_groups_whose_majority_is_right() {
        let rows = [
            row("a", "<answer>7</answer>", Some(1.0)),
            row("a", "<answer>8</answer>", Some(0.0)),
            row("b", "<answer>3</answer>", Some(0.0)),
            row("a", "<answer>7.0</answer>", Some(1.0)),
            row("b", "<answer>3</answer>", Some(0.0)),
            row("b", "<answer>4</answer>", Some(1.0)),
            row("c", "<answer>4</answer>", Some(1.0)),
            row("c", "<answer>5</answer>", None),
        ];
        let rows: Vec<&Row<'_>> = rows.iter().collect();
        assert_eq!(majorities(&rows, &rules()), (1.0, 2), "c can't be scored");
    }

    #[test]
    fn the_first_right_answer_that_looks_back_is_that_of_the_first_prompt() {
        let mut rows = [
            row("c", "Wait, 7", Some(1.0)),
            row("b", "Wait, wait, 8", Some(1.0)),
            row("a", "wait, 9", Some(0.0)),
            row("a", "10", Some(1.0)),
        ];
        rows[0].sample_idx = 3;
        let texts = &texts_of(&rows, &rules(), 1000)[&1];
        assert_eq!((texts.rows, texts.reflecting, texts.reflections), (4, 3, 4));
        assert_eq!((texts.moments, &texts.first_moment), (2, &Some(("b".to_owned(), 0))));
    }

    #[test]
    fn of_much_text_the_language_of_some_completions_is_told() {
        let text = "this sentence is written in English words";
        let rows: Vec<Row<'_>> = (0..100).map(|_| row("a", text, None)).collect();
        let rows: Vec<&Row<'_>> = rows.iter().collect();
        assert_eq!(foreign(&rows, "en", 100 * text.len()), (0.0, 100));
        assert_eq!(foreign(&rows, "en", 20 * text.len()), (0.0, 20));
        assert_eq!(foreign(&rows, "en", 0), (0.0, LANGUAGE_COMPLETIONS_MIN as u64));
        assert_eq!(foreign(&rows, "zh", 0).0, LANGUAGE_COMPLETIONS_MIN as f64);
        assert_eq!(foreign(&[], "en", 0), (0.0, 0));
    }

    #[test]
    fn texts_of_a_table_that_is_too_large_are_read_at_even_distances() {
        assert_eq!(chosen(5, 1000), [0, 1, 2, 3, 4]);
        assert_eq!(chosen(9, 3 * TEXT_FILES_BYTES_MAX), [0, 4, 8]);
        assert!(chosen(0, 0).is_empty());
    }

    #[test]
    fn parts_of_one_step_are_one_step() {
        let texts = |rows, id: &str| Texts {
            rows,
            foreign: (0.5, 1),
            moments: 1,
            first_moment: Some((id.to_owned(), 0)),
            ..Texts::default()
        };
        let step = |rows, at_us, texts| Step {
            step: 0,
            rows,
            groups: 1,
            span_us: [at_us; 2],
            parts: vec![PathBuf::from(rows.to_string())],
            texts,
            ..Step::default()
        };
        let mut joined = Step::default();
        add(&mut joined, step(1, 5, Some(texts(1, "b"))));
        add(&mut joined, step(2, 3, Some(texts(2, "a"))));
        add(&mut joined, step(4, 4, None));
        assert_eq!((joined.rows, joined.groups, joined.span_us), (7, 3, [3, 5]));
        assert_eq!(joined.parts.len(), 3);
        let found = joined.texts.unwrap();
        assert_eq!((found.rows, found.foreign, found.moments), (3, (1.0, 2), 2));
        assert_eq!(found.first_moment, Some(("a".to_owned(), 0)));
    }

    #[test]
    fn an_evaluation_has_a_table_for_each_of_its_models() {
        let path = "pipeline.toml";
        let text = r#"
            [tables]
            p = "p.jsonl"
            [models]
            a = "a"
            b = "b"
            [[stage]]
            name = "s"
            kind = "eval"
            model = ["a", "b"]
            data = "SELECT id, prompt, answer FROM p"
            [[stage]]
            name = "t"
            kind = "sample"
            model = "a"
            prompts = "SELECT id, prompt FROM p"
        "#;
        let text = aha_flow::pipeline::Text { path, text, sets: &[] };
        let pipeline = aha_flow::pipeline::parse(text).unwrap();
        let names = |name: &str, kind: &str| -> Vec<(String, String)> {
            let tables = Table::of(name, kind, Some(&pipeline)).into_iter();
            tables.map(|table| (table.name, table.written_by)).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(names("s", "eval"), [pair("s_a", "a"), pair("s_b", "b")]);
        assert_eq!(names("t", "sample"), [pair("t", "a")]);
        assert_eq!(names("u", "rl"), [pair("u", "u")]);
        assert!(names("u", "sft").is_empty());
    }
}
