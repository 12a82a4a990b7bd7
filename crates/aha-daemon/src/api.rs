//! `/api/v1`: what there is, and its OpenAPI document, which is made of the same declarations.
//!
//! - [`runs`]: submit, list, show, pause, resume, cancel, delete. [`files`]: what a run wrote. [`logs`]: what it says.
//!   [`curves`]: what it measured, as lines. [`usage`]: what its process takes.
//! - [`query`]: SQL over runs. [`stream`]: events as they happen. [`health`]: whether the daemon works.
//! - [`problem`]: errors, and requests that can't be read.

pub mod curves;
pub mod files;
pub mod health;
pub mod logs;
pub mod problem;
pub mod query;
pub mod runs;
pub mod stream;
pub mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::board::{Board, Budget};
use crate::dashboard;
use crate::error::{Error, Kind, Result, blocking};
use crate::events::Events;
use crate::home::Home;
use crate::http::guard::{self, Guard};
use crate::http::{headers, limits};
use crate::keeper;
use crate::openai::{self, Hub};
use crate::options::Options;
use crate::policy::Policy;
use crate::usage::Usages;
use problem::Problem;

/// What requests are answered with.
pub struct App {
    /// What the daemon was started with.
    pub options: Arc<Options>,
    /// Its folder.
    pub home: Home,
    /// What pipelines may name.
    pub policy: Policy,
    /// The runs.
    pub board: Arc<Board>,
    /// What happens to them.
    pub events: Arc<Events>,
    /// The memory.
    pub budget: Arc<Budget>,
    /// Who changes runs.
    pub keeper: keeper::Handle,
    /// The models of runs.
    pub hub: Arc<Hub>,
    /// What processes of runs take.
    pub usages: Arc<Usages>,
    /// Places for queries.
    pub queries: Semaphore,
    /// The place of whoever reads many files of a run: one at a time, so that reads take no processor from training.
    pub readers: Arc<Semaphore>,
    /// What runs measured, as far as it was read.
    pub curves: curves::Remembered,
    /// Places for checks of pipelines.
    pub checks: Semaphore,
    /// Answers, counted.
    pub counts: Arc<limits::Counts>,
    /// Queries, counted.
    pub query_counts: query::Counts,
    /// Whether the daemon is stopping.
    pub stop: watch::Receiver<bool>,
}

impl App {
    /// Reads, once the place of a reader is free. The read keeps it to its end, also where whoever asked has gone.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.readers).acquire_owned().await;
        blocking(move || {
            let _place = place;
            read()
        })
        .await
    }
}

/// The head of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "aha daemon",
        description = "Runs of pipelines: submitted, watched, queried; and their models in OpenAI's form. \
                       Errors are problem documents (RFC 9457)."
    ),
    components(schemas(problem::Details, problem::ErrorObject)),
    tags(
        (name = "runs", description = "The queue."),
        (name = "files", description = "What runs write."),
        (name = "queries", description = "SQL over the tables of runs."),
        (name = "events", description = "What happens, as it happens (server-sent events)."),
        (name = "models", description = "Models of runs, in OpenAI's form."),
        (name = "daemon", description = "The daemon itself.")
    )
)]
struct Head;

/// Every route with its declaration.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(runs::submit, runs::list))
        .routes(routes!(runs::check))
        .routes(routes!(runs::show, runs::delete))
        .routes(routes!(runs::pause))
        .routes(routes!(runs::resume))
        .routes(routes!(runs::cancel))
        .routes(routes!(runs::pipeline))
        .routes(routes!(logs::logs))
        .routes(routes!(files::metrics))
        .routes(routes!(curves::curves))
        .routes(routes!(usage::of_run))
        .routes(routes!(usage::of_daemon))
        .routes(routes!(files::tables))
        .routes(routes!(files::checkpoints))
        .routes(routes!(files::models))
        .routes(routes!(files::model_file))
        .routes(routes!(query::of_run))
        .routes(routes!(query::of_runs))
        .routes(routes!(stream::of_run))
        .routes(routes!(stream::of_all))
        .routes(routes!(openai::list_models))
        .routes(routes!(openai::show_model))
        .routes(routes!(openai::show_model_of_run))
        .routes(routes!(openai::completions))
        .routes(routes!(openai::chat_completions))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(health::document))
}

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// All routes, behind the guard and the limits.
pub fn router(app: Arc<App>, guard: Guard) -> Router {
    let counts = Arc::clone(&app.counts);
    let (router, _) = routes().with_state(app).split_for_parts();
    router
        .merge(dashboard::router())
        .fallback(nothing)
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::disable()) // The one below says what is too large.
        .layer(from_fn(limits::check))
        .layer(from_fn_with_state(guard, guard::check))
        .layer(from_fn(problem::in_openai_form))
        .layer(from_fn(headers::add))
        .layer(from_fn_with_state(counts, limits::count))
}

async fn nothing(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem(Error::not_found(
        format!("there is nothing at `{path}`"),
        "what there is is in /api/v1/openapi.json",
    ))
}

async fn not_so(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem(
        Error::new(Kind::Method, format!("`{path}` is not asked by {method}"))
            .hint("what there is is in /api/v1/openapi.json"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_is_of_openapi_3_1_and_has_every_path() {
        let document = serde_json::to_value(document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        for path in [
            "/api/v1/runs",
            "/api/v1/runs/{id}",
            "/api/v1/runs/{id}/pause",
            "/api/v1/runs/{id}/events",
            "/api/v1/runs/{id}/query",
            "/v1/chat/completions",
            "/metrics",
        ] {
            assert!(document["paths"][path].is_object(), "{path}");
        }
        let operations = document["paths"].as_object().unwrap().values();
        let operations = operations.flat_map(|path| path.as_object().unwrap().values());
        let ids: Vec<&str> = operations.filter_map(|of| of["operationId"].as_str()).collect();
        let unlike: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!((ids.len(), ids.len() > 20), (unlike.len(), true), "{ids:?}");
        let submit = &document["paths"]["/api/v1/runs"]["post"];
        assert!(submit["responses"]["201"].is_object(), "{submit}");
        for status in ["400", "401", "403", "404", "405", "408", "409", "413", "500", "503", "507"]
        {
            let problem = &submit["responses"][status]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{status}: {submit}");
        }
    }
}
