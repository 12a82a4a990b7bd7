//! The pipelines that ship: each is checked as it is, and what they assert at their ends can fail.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aha_data::{Session, SessionOptions};
use aha_flow::pipeline::{ModelSource, Pipeline, StageKind, Text, parse};
use aha_reward::Settings;
use aha_reward::format::ThinkInPrompt;
use aha_rollout::rows::{self, EvalRow};
use arrow::array::{ArrayRef, RecordBatch, StringArray};

use crate::world::{check_from, write_table};

fn root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..")
}

fn shipped(name: &str) -> String {
    fs_err::read_to_string(root().join("pipelines").join(name)).unwrap()
}

/// Qwen2.5-1.5B's sizes.
const QWEN: &str = "{ init = \"random\", architecture = \"qwen2\", hidden_size = 1536, intermediate_size = 8960, \
                    layers = 28, heads = 12, kv_heads = 2, head_dim = 128, vocab_size = 151936, \
                    max_position_embeddings = 131072, tokenizer = { train = \"SELECT prompt AS text FROM problems\" } }";

/// What a pipeline that needs files of its user is given instead, as overrides: a table with all columns for each
/// of its tables that doesn't ship, and a model for each that it doesn't make itself.
fn stand_ins(name: &str, dir: &Path) -> Vec<String> {
    let (model, table) = (dir.join("model.gguf"), dir.join("table.parquet"));
    fs_err::write(&model, "").unwrap();
    let columns = [
        "id",
        "source",
        "prompt",
        "answer",
        "solution",
        "split",
        "completion",
        "chosen",
        "rejected",
    ]
    .map(|name| (name, Arc::new(StringArray::from(vec![name])) as ArrayRef));
    write_table(&table, &RecordBatch::try_from_iter(columns).unwrap());
    let text = shipped(name);
    let pipeline: Pipeline = parse(Text { path: name, text: &text, sets: &[] }).unwrap();
    let models = pipeline.models.iter().filter_map(|(name, source)| match source {
        ModelSource::Path(path) if path.contains("Qwen2.5-1.5B") => {
            Some(format!("models.{name}={QWEN}"))
        }
        ModelSource::Path(_) => Some(format!("models.{name}={:?}", model.display().to_string())),
        ModelSource::Random(_) | ModelSource::Adapted(_) => None,
    });
    let tables = pipeline
        .tables
        .iter()
        .filter(|(_, path)| !path.starts_with("datasets/"))
        .map(|(name, _)| format!("tables.{name}={:?}", table.display().to_string()));
    models.chain(tables).collect()
}

#[test]
fn every_pipeline_that_ships_resolves() {
    let mut count = 0;
    for entry in fs_err::read_dir(root().join("pipelines")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let dir = tempfile::tempdir().unwrap();
        let sets = stand_ins(&name, dir.path());
        let checked = check_from(&root(), &name, &shipped(&name), &sets);
        let plan = checked.unwrap_or_else(|problems| panic!("{problems}"));
        assert!(!plan.pipeline.stages.is_empty(), "{name}");
        count += 1;
    }
    assert!(count > 0);
}

/// R1-Zero's template ends with the assistant's name: what opens the thought is the completion.
#[test]
fn no_recipe_takes_a_thought_for_open_that_its_template_does_not_open() {
    let mut count = 0;
    for entry in fs_err::read_dir(root().join("pipelines")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let text = shipped(&name);
        let pipeline: Pipeline = parse(Text { path: &name, text: &text, sets: &[] }).unwrap();
        for reward in pipeline.stages.iter().flat_map(|stage| stage.kind.rewards()) {
            if let Settings::Format(format) = &reward.0.settings {
                assert_eq!(format.think_in_prompt, ThinkInPrompt::Auto, "{name}");
                count += 1;
            }
        }
    }
    assert!(count > 0);
}

/// The SQL of a query stage of a pipeline that ships.
fn sql_of(name: &str, stage: &str) -> String {
    let text = shipped(name);
    let pipeline: Pipeline = parse(Text { path: name, text: &text, sets: &[] }).unwrap();
    match &pipeline.stage(stage).unwrap().kind {
        StageKind::Query(query) => query.sql.0.clone(),
        other => panic!("{stage} is a stage of kind {}", other.word()),
    }
}

/// An evaluation: stage, model, pass@1 and cons@k.
type Eval<'a> = (&'a str, &'a str, f64, Option<f64>);

/// The first column of what a query over these evaluations finds.
fn found(sql: &str, evals: &[Eval<'_>]) -> Vec<String> {
    let rows: Vec<EvalRow> = evals
        .iter()
        .map(|&(stage, model, pass_at_1, cons_at_k)| EvalRow {
            stage: stage.to_owned(),
            model: model.to_owned(),
            dataset: "problems".to_owned(),
            problem_count: 100,
            k: 16,
            pass_at_1,
            pass_at_1_se: Some(0.03),
            pass_at_k: 1.0,
            cons_at_k,
            cons_at_k_se: Some(0.03),
            completion_len_tokens_mean: 10.0,
            ..EvalRow::default()
        })
        .collect();
    let batch = rows::evals(&rows);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let session = Session::new(&SessionOptions::default()).unwrap();
    session.register_batches("evals", batch.schema(), vec![batch]).unwrap();
    let batches = runtime.block_on(session.collect(sql)).unwrap();
    let text = |batch: &RecordBatch, row| {
        arrow::util::display::array_value_to_string(batch.column(0), row).unwrap()
    };
    batches
        .iter()
        .flat_map(|b| (0..b.num_rows()).map(|row| text(b, row)).collect::<Vec<_>>())
        .collect()
}

const CLAIMS: [&str; 3] = [
    "RL lifts pass@1 of its base by 20 points",
    "cons@16 is at least pass@1",
    "the distilled student beats the student by RL alone",
];

/// Evaluations of the quickstart for which every claim holds, in an order that isn't the story's.
const GOOD: [Eval<'_>; 4] = [
    ("scores", "distilled", 0.9, Some(0.95)),
    ("scores", "student_zero", 0.8, Some(0.8)),
    ("scores", "zero", 0.75, Some(0.85)),
    ("scores", "base", 0.5, Some(0.6)),
];

#[test]
fn the_quickstarts_verdict_names_each_claim_that_does_not_hold() {
    let sql = sql_of("quickstart.toml", "verdict");
    let verdict = |change: &dyn Fn(&mut Vec<Eval<'_>>)| {
        let mut evals = GOOD.to_vec();
        change(&mut evals);
        found(&sql, &evals)
    };
    assert_eq!(verdict(&|_| {}), [""; 0]);
    assert_eq!(verdict(&|evals| evals[2].2 = 0.69), [CLAIMS[0]]);
    assert_eq!(verdict(&|evals| evals[3].3 = Some(0.49)), [CLAIMS[1]]);
    assert_eq!(verdict(&|evals| evals[3].3 = None), [CLAIMS[1]]);
    assert_eq!(verdict(&|evals| evals[0].2 = 0.8), [CLAIMS[2]]);
    // A model that was not evaluated proves nothing.
    assert_eq!(verdict(&|evals| evals.retain(|eval| eval.1 != "base")), [CLAIMS[0]]);
    assert_eq!(verdict(&|evals| evals.retain(|eval| eval.1 != "student_zero")), [CLAIMS[2]]);
    assert_eq!(verdict(&|evals| evals.clear()), [CLAIMS[0], CLAIMS[2]]);
}

#[test]
fn the_quickstarts_results_are_in_the_order_of_its_story() {
    let sql = sql_of("quickstart.toml", "results");
    assert_eq!(found(&sql, &GOOD), ["base", "zero", "student_zero", "distilled"]);
}

#[test]
fn a_gain_within_its_error_is_found() {
    let sql = sql_of("smollm2-arithmetic.toml", "gain");
    let gain = |after| {
        let after: Eval<'_> = ("after", "arithmetic", after, None);
        found(&sql, &[("before", "smollm2", 0.5, None), after]).len()
    };
    // Twice the error is 2 * sqrt(2) * 0.03 = 0.085.
    assert_eq!((gain(0.6), gain(0.58), gain(0.4)), (0, 1, 1));
    assert_eq!(found(&sql, &[("after", "arithmetic", 0.9, None)]).len(), 1);
}
