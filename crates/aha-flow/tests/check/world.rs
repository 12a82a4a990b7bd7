//! Tables and models for pipelines to be checked against: a table of 1200 problems, and models without
//! weights.

use std::path::Path;
use std::sync::Arc;

use aha_flow::pipeline::{
    ModelFacts, ModelProbe, Places, Plan, ProbeProblem, Problems, Room, Text, check,
};
use aha_flow::planning::Tables;
use aha_rollout::part::PartWriter;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

const PROBLEMS_COUNT: i64 = 1200;

/// Checks a text against a directory with `datasets/problems.parquet` and `models/`.
pub fn check_text(path: &str, text: &str, sets: &[String]) -> Result<Plan, Problems> {
    check_in(tempfile::tempdir().unwrap().path(), path, text, sets)
}

/// As [`check_text`], with what choices are made by.
pub fn check_room(text: &str, sets: &[String], room: Room<'_>) -> Result<Plan, Problems> {
    let dir = tempfile::tempdir().unwrap();
    write_models(dir.path());
    write_problems(&dir.path().join("datasets"));
    check_with(dir.path(), ("pipeline.toml", text, sets), room)
}

/// The plan or the problems as they are shown, with paths from the directory on.
pub fn shown(path: &str, text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let shown = match check_in(dir.path(), path, text, &[]) {
        Ok(plan) => plan.to_text(),
        Err(problems) => problems.to_string(),
    };
    shown.replace(&format!("{}/", dir.path().display()), "")
}

fn check_in(dir: &Path, path: &str, text: &str, sets: &[String]) -> Result<Plan, Problems> {
    write_models(dir);
    write_problems(&dir.join("datasets"));
    check_from(dir, path, text, sets)
}

/// Checks a text whose paths start from `dir`, on a machine whose memory is not known.
pub fn check_from(dir: &Path, path: &str, text: &str, sets: &[String]) -> Result<Plan, Problems> {
    check_with(dir, (path, text, sets), Room::default())
}

fn check_with(
    dir: &Path,
    (path, text, sets): (&str, &str, &[String]),
    room: Room<'_>,
) -> Result<Plan, Problems> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let places = Places { base_dir: dir.to_owned(), hf_cache: None };
    let mut tables = Tables::new(&places, runtime.handle().clone()).unwrap();
    check(Text { path, text, sets }, &mut tables, &FakeModels, &places, room)
}

fn write_problems(dir: &Path) {
    fs_err::create_dir_all(dir).unwrap();
    let text = |make: &dyn Fn(i64) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..PROBLEMS_COUNT).map(make)))
    };
    let batch = RecordBatch::try_from_iter([
        ("id", text(&|i| format!("p{i}"))),
        ("prompt", text(&|i| format!("{i} + 1 ="))),
        ("answer", text(&|i| (i + 1).to_string())),
        ("split", text(&|i| if i % 6 == 0 { "test" } else { "train" }.to_owned())),
        (
            "level",
            Arc::new(Int64Array::from_iter_values((0..PROBLEMS_COUNT).map(|i| i % 5))) as ArrayRef,
        ),
    ])
    .unwrap();
    write_table(&dir.join("problems.parquet"), &batch);
}

/// Writes a table of one file.
pub fn write_table(path: &Path, batch: &RecordBatch) {
    let mut writer = PartWriter::create(path, batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
}

/// Makes what [`Places::locate`] looks for.
fn write_models(dir: &Path) {
    for name in ["base", "shrunk", "empty", "prefers"] {
        fs_err::create_dir_all(dir.join("models").join(name)).unwrap();
        fs_err::write(dir.join("models").join(name).join("config.json"), "{}").unwrap();
    }
    for name in ["fitting", "foreign"] {
        fs_err::create_dir_all(dir.join("models").join(name)).unwrap();
        fs_err::write(dir.join("models").join(name).join("adapter_config.json"), "{}").unwrap();
    }
}

/// Models by the name of their file or folder: `model.gguf` with many positions, `base`, `shrunk` whose embedding
/// lost rows, `empty` without weights, and the reward model `prefers`.
struct FakeModels;

impl ModelProbe for FakeModels {
    fn probe(&self, path: &Path) -> Result<ModelFacts, ProbeProblem> {
        let weights_problem = path.ends_with("empty").then(|| ProbeProblem {
            message: "there are no weights".into(),
            hint: Some("put model.safetensors there".into()),
        });
        Ok(ModelFacts {
            architecture: "llama".into(),
            param_count: 134_515_008,
            vocab_size: if path.ends_with("shrunk") { 32_000 } else { 49_152 },
            tokenizer_vocab_size: 49_152,
            layers: 30,
            hidden_size: 576,
            intermediate_size: 1536,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            max_position_embeddings: if path.ends_with("model.gguf") { 32_768 } else { 2048 },
            has_chat_template: true,
            has_tied_embeddings: true,
            has_qk_norm: false,
            is_reward_model: path.ends_with("prefers"),
            has_score_moments: false,
            weights_problem,
        })
    }

    /// An adapter fits where its folder is called so.
    fn probe_adapter(&self, _: &Path, adapter: &Path) -> Result<(), ProbeProblem> {
        match adapter.ends_with("fitting") {
            true => Ok(()),
            false => Err(ProbeProblem {
                message: "it is of another model".into(),
                hint: Some("name its own".into()),
            }),
        }
    }
}
