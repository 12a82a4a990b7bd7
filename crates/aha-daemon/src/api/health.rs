//! Whether the daemon works: for service managers, for Prometheus, for programs that ask what they may ask.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::problem::{Problem, Problems};
use crate::error::{Error, Kind, blocking};
use crate::metrics;

/// The daemon's health.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`: otherwise there is a problem.
    status: &'static str,
    /// Its version.
    version: &'static str,
}

const OK: Health = Health { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Says that the daemon is there.
#[utoipa::path(
    get, path = "/healthz", tag = "daemon",
    responses((status = 200, description = "It is there.", body = Health), Problems)
)]
pub async fn healthz() -> Json<Health> {
    Json(OK)
}

/// Says whether the daemon takes runs: not while it is stopping.
#[utoipa::path(
    get, path = "/readyz", tag = "daemon",
    responses((status = 200, description = "It takes runs.", body = Health), Problems)
)]
pub async fn readyz(State(app): State<Arc<App>>) -> Result<Json<Health>, Problem> {
    match *app.stop.borrow() {
        false => Ok(Json(OK)),
        true => Err(Error::new(Kind::Busy, "the daemon is stopping").into()),
    }
}

/// Metrics in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "daemon",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"), Problems)
)]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let text = blocking(move || Ok(metrics::text(&app))).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// This document.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "daemon",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = serde_json::Value), Problems)
)]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}
