//! The queue: submit, list, show, pause, resume, cancel, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{Asked, At, Body, Problem, Problems};
use crate::error::{Error, Result, blocking};
use crate::record::{Record, RunId};
use crate::status::{Change, Status};
use crate::submit::{self, Checked, Draft, Submission};

/// Adds a run to the queue. Its pipeline is checked first, as `aha check` does.
#[utoipa::path(
    post, path = "/api/v1/runs", tag = "runs", request_body = Submission,
    responses((status = 201, description = "The run is in the queue.", body = Record), Problems)
)]
pub async fn submit(
    State(app): State<Arc<App>>,
    Body(submission): Body<Submission>,
) -> Result<impl IntoResponse, Problem> {
    let record = app.keeper.submit(checked(&app, submission).await?).await?;
    let place = format!("/api/v1/runs/{}", record.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(record)))
}

/// Checks a submission, when there is a place for it.
async fn checked(app: &App, submission: Submission) -> Result<Draft> {
    let _place =
        app.checks.acquire().await.map_err(|_| Error::bug("the places for checks are gone"))?;
    let total = app.budget.total_bytes();
    submit::check(submission, &app.options, &app.policy, (&app.home, total)).await
}

/// Checks a pipeline as a submission is checked, and adds nothing to the queue.
#[utoipa::path(
    post, path = "/api/v1/check", tag = "runs", request_body = Submission,
    responses((status = 200, description = "It may be submitted.", body = Checked), Problems)
)]
pub async fn check(
    State(app): State<Arc<App>>,
    Body(submission): Body<Submission>,
) -> Result<Json<Checked>, Problem> {
    Ok(Json(checked(&app, submission).await?.into()))
}

/// Which runs are listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Only runs in this state.
    #[param(inline)]
    status: Option<Status>,
    /// Only runs after this number.
    after: Option<u64>,
    /// At most so many, the first ones; absent: 1000, and no more than that.
    limit: Option<u32>,
}

/// Runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed {
    /// The runs, in the order of their numbers. For those behind them ask again, with `after` the last one's number.
    runs: Vec<Record>,
}

/// Runs of an answer, at most.
const LISTED: u32 = 1000;

/// Lists runs in the order of their numbers.
#[utoipa::path(
    get, path = "/api/v1/runs", tag = "runs", params(Wanted),
    responses((status = 200, description = "The runs.", body = Listed), Problems)
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Listed>, Problem> {
    let runs = app.board.runs();
    let is_wanted = |record: &&Arc<Record>| {
        wanted.status.is_none_or(|status| record.status == status)
            && wanted.after.is_none_or(|after| record.id.0 > after)
    };
    let limit = wanted.limit.unwrap_or(LISTED).min(LISTED) as usize;
    let runs = runs.iter().filter(is_wanted).take(limit).map(|record| Record::clone(record));
    Ok(Json(Listed { runs: runs.collect() }))
}

/// Shows a run.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The run.", body = Record), Problems)
)]
pub async fn show(State(app): State<Arc<App>>, At(id): At<RunId>) -> Result<Json<Record>, Problem> {
    Ok(Json(Record::clone(&*app.board.run(id)?)))
}

/// Removes a run that has no process, with all that it wrote.
#[utoipa::path(
    delete, path = "/api/v1/runs/{id}", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 2)),
    responses((status = 204, description = "The run is gone."), Problems)
)]
pub async fn delete(State(app): State<Arc<App>>, At(id): At<RunId>) -> Result<StatusCode, Problem> {
    app.keeper.delete(id).await?;
    app.hub.forget(id);
    app.curves.forget(id);
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a run. One that runs stops after a checkpoint: until then it is `pausing`.
#[utoipa::path(
    post, path = "/api/v1/runs/{id}/pause", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The run.", body = Record), Problems)
)]
pub async fn pause(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Record>, Problem> {
    Ok(Json(app.keeper.act(id, Change::Pause).await?))
}

/// Resumes a run that is paused, or one that failed, from its last checkpoint.
#[utoipa::path(
    post, path = "/api/v1/runs/{id}/resume", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The run.", body = Record), Problems)
)]
pub async fn resume(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Record>, Problem> {
    Ok(Json(app.keeper.act(id, Change::Resume).await?))
}

/// Cancels a run. What it wrote stays until it is deleted.
#[utoipa::path(
    post, path = "/api/v1/runs/{id}/cancel", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The run.", body = Record), Problems)
)]
pub async fn cancel(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<Record>, Problem> {
    Ok(Json(app.keeper.act(id, Change::Cancel).await?))
}

/// Shows a run's pipeline as it was submitted.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/pipeline", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.", example = 1)),
    responses((status = 200, description = "The pipeline.", body = String, content_type = "text/plain"), Problems)
)]
pub async fn pipeline(State(app): State<Arc<App>>, At(id): At<RunId>) -> Result<String, Problem> {
    let path = app.home.pipeline(app.board.run(id)?.id);
    Ok(blocking(move || std::fs::read_to_string(&path).map_err(Error::io("read", &path))).await?)
}
