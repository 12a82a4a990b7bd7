//! What runs take of the machine.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::problem::{At, Problem, Problems};
use crate::record::RunId;
use crate::usage::Sample;

/// What a run's processes took over time.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageOfRun {
    /// Since the daemon was started, oldest first; of a long time ever fewer.
    samples: Vec<Sample>,
}

/// Memory and processor time of a run's processes, since the daemon was started. New ones come as events.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/usage", operation_id = "usage_of_run", tag = "runs",
    params(("id" = u64, Path, description = "The run's number.")),
    responses((status = 200, description = "What it took.", body = UsageOfRun), Problems)
)]
pub async fn of_run(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
) -> Result<Json<UsageOfRun>, Problem> {
    app.board.run(id)?;
    Ok(Json(UsageOfRun { samples: app.usages.of(id) }))
}

/// The memory of the daemon.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageOfDaemon {
    /// Its version.
    version: &'static str,
    /// Memory of all runs and models.
    budget_bytes: u64,
    /// What running runs have of it.
    runs_bytes: u64,
    /// What loaded models have of it.
    models_bytes: u64,
    /// Runs at once, at most.
    runs_max: usize,
}

/// The memory that runs and models share, and who has it.
#[utoipa::path(
    get, path = "/api/v1/usage", operation_id = "usage", tag = "daemon",
    responses((status = 200, description = "The memory.", body = UsageOfDaemon), Problems)
)]
pub async fn of_daemon(State(app): State<Arc<App>>) -> Json<UsageOfDaemon> {
    Json(UsageOfDaemon {
        version: env!("CARGO_PKG_VERSION"),
        budget_bytes: app.budget.total_bytes(),
        runs_bytes: app.budget.runs().memory_bytes,
        models_bytes: app.budget.models_bytes(),
        runs_max: app.options.runs_max,
    })
}
