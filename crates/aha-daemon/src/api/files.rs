//! What a run wrote: metrics, tables, checkpoints, the files of its models.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use aha_flow::rundir::RunDir;
use aha_rollout::schema::DOC;
use aha_rollout::{col, read};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{Asked, At, Problem, Problems};
use crate::error::{Error, Result, blocking};
use crate::record::RunId;

/// Measurements of an answer where it says nothing, and at most.
const METRICS: u32 = 100_000;
/// Bytes of a file that are read at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Which measurements are wanted.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WantedMetrics {
    /// Only of this stage.
    stage: Option<String>,
    /// Only of this name.
    name: Option<String>,
    /// Only of steps after this one.
    after_step: Option<u64>,
    /// At most so many.
    limit: Option<u32>,
}

/// Measurements.
#[derive(Debug, Serialize, ToSchema)]
pub struct Metrics {
    /// In the order in which they were written.
    metrics: Vec<Metric>,
    /// Whether there are more than were wanted.
    is_cut: bool,
}

/// One measurement.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct Metric {
    /// The stage that measured.
    stage: String,
    /// The step.
    step: i64,
    /// What was measured.
    name: String,
    /// Its value; null where it is no finite number.
    value: Option<f64>,
    /// When it was written, in µs since 1970, UTC.
    at_us: i64,
}

/// Measurements of a run, as they are written: by each checkpoint. Those of a step come at once as events.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/metrics", operation_id = "metrics_of_run", tag = "files",
    params(("id" = u64, Path, description = "The run's number.", example = 1), WantedMetrics),
    responses((status = 200, description = "The measurements.", body = Metrics), Problems)
)]
pub async fn metrics(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
    Asked(wanted): Asked<WantedMetrics>,
) -> Result<Json<Metrics>, Problem> {
    let dir = RunDir::new(&app.board.run(id)?.run_dir).metrics();
    Ok(Json(app.read(move || read_metrics(&dir, &wanted)).await?))
}

fn read_metrics(dir: &Path, wanted: &WantedMetrics) -> Result<Metrics> {
    let limit = wanted.limit.unwrap_or(METRICS).min(METRICS) as usize;
    let mut found = Metrics { metrics: Vec::new(), is_cut: false };
    for part in aha_rollout::table::parts(dir)? {
        if part.step.is_some_and(|step| wanted.after_step.is_some_and(|after| step <= after)) {
            continue;
        }
        for batch in read::read_part(&part.path)? {
            take_metrics(&batch, wanted, limit, &mut found)?;
            if found.is_cut {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn take_metrics(
    batch: &RecordBatch,
    wanted: &WantedMetrics,
    limit: usize,
    found: &mut Metrics,
) -> Result<()> {
    let column = |name: &str| {
        let column = batch.column_by_name(name);
        column.ok_or_else(|| Error::environment(format!("the metrics have no column `{name}`")))
    };
    let other = || Error::environment("the metrics have columns of other types");
    let (stages, names) = (column(col::STAGE)?, column(col::NAME)?);
    let stages = stages.as_string_opt::<i32>().ok_or_else(other)?;
    let names = names.as_string_opt::<i32>().ok_or_else(other)?;
    let steps = column(col::STEP)?.as_primitive_opt::<Int64Type>().ok_or_else(other)?;
    let values = column(col::VALUE)?.as_primitive_opt::<Float64Type>().ok_or_else(other)?;
    let times = column(col::AT)?;
    let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(other)?;
    let is = |filter: &Option<String>, value: &str| filter.as_deref().is_none_or(|f| f == value);
    for row in 0..batch.num_rows() {
        let (stage, name, step) = (stages.value(row), names.value(row), steps.value(row));
        let is_after =
            wanted.after_step.is_none_or(|after| u64::try_from(step).is_ok_and(|s| s > after));
        if !is_after || !is(&wanted.stage, stage) || !is(&wanted.name, name) {
            continue;
        }
        if found.metrics.len() == limit {
            found.is_cut = true;
            return Ok(());
        }
        let value = values.is_valid(row).then(|| values.value(row)).filter(|v| v.is_finite());
        found.metrics.push(Metric {
            stage: stage.to_owned(),
            step,
            name: name.to_owned(),
            value,
            at_us: times.value(row),
        });
    }
    Ok(())
}

/// Tables of a run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tables {
    /// By their names.
    tables: Vec<Table>,
}

/// A table of a run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Table {
    /// Its name.
    name: String,
    /// Its rows so far.
    rows: u64,
    /// Its columns.
    columns: Vec<Column>,
}

/// A column of a table.
#[derive(Debug, Serialize, ToSchema)]
pub struct Column {
    /// Its name.
    name: String,
    /// Its Arrow type, as Arrow displays it.
    r#type: String,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    doc: Option<String>,
}

/// The tables that a run has written so far, `metrics` among them. `rollouts` joins those of all stages that sample.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/tables", tag = "files",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The tables.", body = Tables), Problems)
)]
pub async fn tables(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Tables>, Problem> {
    let dir = RunDir::new(&app.board.run(id)?.run_dir);
    Ok(Json(app.read(move || read_tables(&dir)).await?))
}

fn read_tables(dir: &RunDir) -> Result<Tables> {
    let mut dirs: Vec<(String, PathBuf)> =
        names_in(&dir.tables())?.into_iter().map(|name| (name.clone(), dir.table(&name))).collect();
    dirs.push(("metrics".to_owned(), dir.metrics()));
    dirs.sort();
    let mut tables = Vec::new();
    for (name, dir) in dirs {
        let Some(schema) = read::table_schema(&dir)? else { continue };
        let columns = schema.fields().iter().map(|field| Column {
            name: field.name().clone(),
            r#type: field.data_type().to_string(),
            doc: field.metadata().get(DOC).cloned(),
        });
        let rows = read::rows_count(&dir)? as u64;
        tables.push(Table { name, rows, columns: columns.collect() });
    }
    Ok(Tables { tables })
}

/// Checkpoints of a run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Checkpoints {
    /// By stage and step.
    checkpoints: Vec<Checkpoint>,
}

/// A checkpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct Checkpoint {
    /// The stage.
    stage: String,
    /// The step after which it was written.
    step: u64,
    /// Its size.
    bytes: u64,
    /// When it was written, in µs since 1970, UTC.
    written_at_us: Option<u64>,
}

/// The checkpoints that a run has.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/checkpoints", tag = "files",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The checkpoints.", body = Checkpoints), Problems)
)]
pub async fn checkpoints(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Checkpoints>, Problem> {
    let dir = app.board.run(id)?.run_dir.join("checkpoints");
    let checkpoints = blocking(move || {
        let mut found = Vec::new();
        for stage in names_in(&dir)? {
            for name in names_in(&dir.join(&stage))? {
                let Some(step) = name.strip_prefix("step-").and_then(|n| n.parse().ok()) else {
                    continue;
                };
                let path = dir.join(&stage).join(&name);
                // One that is removed meanwhile is none.
                let Ok(files) = files_in(&path) else { continue };
                let bytes = files.iter().map(|file| file.bytes).sum();
                let written_at_us = changed_us(&path.join("position.json"));
                found.push(Checkpoint { stage: stage.clone(), step, bytes, written_at_us });
            }
        }
        Ok(Checkpoints { checkpoints: found })
    });
    Ok(Json(checkpoints.await?))
}

/// Models of a run.
#[derive(Debug, Serialize, ToSchema)]
pub struct Models {
    /// By their names.
    models: Vec<Model>,
}

/// The final model of a stage.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    /// The stage.
    name: String,
    /// Its files, in Hugging Face layout.
    files: Vec<FileOf>,
}

/// A file.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct FileOf {
    /// Its path in the model's directory.
    path: String,
    /// Its size.
    bytes: u64,
}

/// The final models of a run's stages.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/models", tag = "files",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The models.", body = Models), Problems)
)]
pub async fn models(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Models>, Problem> {
    let dir = RunDir::new(&app.board.run(id)?.run_dir);
    let models = blocking(move || {
        let names = names_in(&dir.models())?;
        let models =
            names.into_iter().map(|name| Ok(Model { files: files_in(&dir.model(&name))?, name }));
        Ok(Models { models: models.collect::<Result<_>>()? })
    });
    Ok(Json(models.await?))
}

/// Which file is wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WantedFile {
    /// Its path in the model's directory.
    #[param(example = "config.json")]
    path: String,
}

/// A file of a stage's final model.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/models/{model}/file", tag = "files",
    params(
        ("id" = u64, Path, description = "The run's number.", example = 1),
        ("model" = String, Path, description = "The stage.", example = "zero"),
        WantedFile
    ),
    responses(
        (status = 200, description = "The file.", body = Vec<u8>, content_type = "application/octet-stream"),
        Problems
    )
)]
pub async fn model_file(
    State(app): State<Arc<App>>,
    At((id, model)): At<(RunId, String)>,
    Asked(WantedFile { path }): Asked<WantedFile>,
) -> Result<impl IntoResponse, Problem> {
    let models = RunDir::new(&app.board.run(id)?.run_dir).models();
    let (file, bytes) = blocking(move || open_inside(&models, &model, &path)).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    Ok((headers, Body::from_stream(chunks(file))))
}

/// Opens a file of a model, and says its size. Nothing outside of the model's directory is opened.
fn open_inside(models: &Path, model: &str, path: &str) -> Result<(std::fs::File, u64)> {
    let none = || {
        let message = format!("there is no file `{path}` of a model `{model}`");
        Error::not_found(message, "the models of the run and their files are listed at `models`")
    };
    let is_plain = |path: &str| {
        !path.is_empty()
            && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
    };
    if !is_plain(model) || model.contains('/') || !is_plain(path) {
        return Err(none());
    }
    let dir = models.join(model).canonicalize().map_err(|_| none())?;
    let file = dir.join(path).canonicalize().map_err(|_| none())?;
    let models = models.canonicalize().map_err(|_| none())?;
    if !dir.starts_with(&models) || !file.starts_with(&dir) || !file.is_file() {
        return Err(none());
    }
    let opened = std::fs::File::open(&file).map_err(Error::io("open", &file))?;
    let bytes = opened.metadata().map_err(Error::io("read", &file))?.len();
    Ok((opened, bytes))
}

/// A file's content, a piece at a time.
fn chunks(file: std::fs::File) -> impl futures::Stream<Item = Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = std::io::Read::read(&mut file, &mut chunk);
            let len =
                read.map_err(|error| Error::environment(format!("can't read a file: {error}")))?;
            chunk.truncate(len);
            Ok((len > 0).then(|| (Bytes::from(chunk), file)))
        })
        .await
    })
}

/// The names of the directories in `dir`, sorted, hidden ones left out; none where there is no such directory.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'));
        names.extend(name.filter(|_| entry.path().is_dir()));
    }
    names.sort();
    Ok(names)
}

/// The files below a directory, by their paths in it.
fn files_in(root: &Path) -> Result<Vec<FileOf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("read", &dir))?);
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                let bytes = entry.metadata().map_err(Error::io("read", &path))?.len();
                let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                found.push(FileOf { path, bytes });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// When a file was last changed, in µs since 1970.
pub(crate) fn changed_us(path: &Path) -> Option<u64> {
    let changed = std::fs::metadata(path).ok()?.modified().ok()?;
    u64::try_from(changed.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()
}

#[cfg(test)]
mod tests {
    use aha_rollout::rows::{self, MetricRow};
    use aha_rollout::schema;
    use aha_rollout::table::{TableWriter, part_name};

    use super::*;

    #[test]
    fn only_files_of_a_model_are_opened() {
        let temp = tempfile::tempdir().unwrap();
        let models = temp.path().join("run/models");
        std::fs::create_dir_all(models.join("zero/sub")).unwrap();
        std::fs::create_dir_all(temp.path().join("run/models-not")).unwrap();
        for file in [
            "run/models/zero/config.json",
            "run/models/zero/sub/x",
            "run/run.json",
            "run/models-not/x",
        ] {
            std::fs::write(temp.path().join(file), "abc").unwrap();
        }
        std::os::unix::fs::symlink(temp.path().join("run/run.json"), models.join("zero/link"))
            .unwrap();
        std::os::unix::fs::symlink(temp.path().join("run"), models.join("out")).unwrap();
        assert_eq!(open_inside(&models, "zero", "config.json").unwrap().1, 3);
        assert_eq!(open_inside(&models, "zero", "sub/x").unwrap().1, 3);
        for (model, path) in [
            ("zero", "../../run.json"),
            ("zero", "/etc/passwd"),
            ("zero", "link"),
            ("zero", "sub"),
            ("zero", "sub/../config.json"),
            ("zero", ""),
            ("zero", "none"),
            ("out", "run.json"),
            ("..", "run.json"),
            (".", "zero/config.json"),
            ("../models-not", "x"),
            ("", "zero/config.json"),
        ] {
            let error = open_inside(&models, model, path).err();
            let error = error.unwrap_or_else(|| panic!("{model} {path}"));
            assert!(error.message.contains("there is no file"), "{error}");
        }
        let listed = files_in(&models.join("zero")).unwrap();
        assert_eq!(
            listed.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(),
            ["config.json", "sub/x"]
        );
    }

    #[test]
    fn metrics_are_filtered_and_cut() {
        let temp = tempfile::tempdir().unwrap();
        let table = TableWriter::open(temp.path(), schema::metrics()).unwrap();
        for step in 1..=3 {
            let row = |name, value| MetricRow { stage: "zero", step, name, value, at_us: 5 };
            let rows = rows::metrics(&[row("loss", 0.5), row("kl", f64::NAN)]);
            table.write(&part_name(step), &[rows]).unwrap();
        }
        let read = |wanted: WantedMetrics| read_metrics(temp.path(), &wanted).unwrap();
        assert_eq!(read(WantedMetrics::default()).metrics.len(), 6);
        let name = Some("kl".to_owned());
        let found = read(WantedMetrics { name, after_step: Some(2), ..WantedMetrics::default() });
        let expected =
            Metric { stage: "zero".into(), step: 3, name: "kl".into(), value: None, at_us: 5 };
        assert_eq!((found.metrics, found.is_cut), (vec![expected], false));
        let stage = Some("other".to_owned());
        assert!(read(WantedMetrics { stage, ..WantedMetrics::default() }).metrics.is_empty());
        let cut = read(WantedMetrics { limit: Some(4), ..WantedMetrics::default() });
        assert_eq!((cut.metrics.len(), cut.is_cut), (4, true));
    }
}
