//! Models of runs in OpenAI's form, so that programs that know that form can ask them.
//!
//! - [`catalogue`]: which models there are. [`hub`]: those that are loaded. [`worker`]: one of them at work.
//! - [`forms`]: requests and answers. [`text`]: tokens as text. `answer`: what is sent, at once or token by token.
//!
//! Completions come from the sampler that stages train with, so a token's log-prob is the one that a rollout would
//! have.

mod answer;
pub mod catalogue;
pub mod forms;
pub mod hub;
pub mod text;
pub mod worker;

use std::sync::Arc;

use aha_compute::random::Philox;
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use tokio::sync::mpsc::unbounded_channel;

use self::answer::{Ask, Asker};
pub use self::hub::Hub;
use crate::api::App;
use crate::api::problem::{At, Body, Problem, Problems};
use crate::error::{Error, blocking};
use crate::record::RunId;
use crate::token;
use catalogue::Found;
use forms::{
    ChatAnswer, ChatRequest, CompletionAnswer, CompletionRequest, ModelList, ModelObject, Order,
};
use worker::Job;

/// The models of all runs.
#[utoipa::path(
    get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "The models.", body = ModelList), Problems)
)]
pub async fn list_models(State(app): State<Arc<App>>) -> Result<Json<ModelList>, Problem> {
    let found = blocking(move || Ok(catalogue::list(&app.board))).await?;
    Ok(Json(ModelList { object: "list", data: found.into_iter().map(object).collect() }))
}

/// A model, its name in one part of the path, as clients write it that escape the slash.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "The model: `RUN/STAGE`, or `RUN`.", example = "1/zero")),
    responses((status = 200, description = "The model.", body = ModelObject), Problems)
)]
pub async fn show_model(
    State(app): State<Arc<App>>,
    At(model): At<String>,
) -> Result<Json<ModelObject>, Problem> {
    let found = blocking(move || catalogue::find(&app.board, &model)).await?;
    Ok(Json(object(found)))
}

/// A model, its name in two parts of the path.
#[utoipa::path(
    get, path = "/v1/models/{run}/{stage}", tag = "models",
    params(
        ("run" = u64, Path, description = "The run's number.", example = 1),
        ("stage" = String, Path, description = "The stage.", example = "zero")
    ),
    responses((status = 200, description = "The model.", body = ModelObject), Problems)
)]
pub async fn show_model_of_run(
    State(app): State<Arc<App>>,
    At((run, stage)): At<(RunId, String)>,
) -> Result<Json<ModelObject>, Problem> {
    let found = blocking(move || catalogue::find(&app.board, &format!("{run}/{stage}"))).await?;
    Ok(Json(object(found)))
}

fn object(found: Found) -> ModelObject {
    ModelObject {
        id: found.id,
        object: "model",
        created: found.written_at_us / 1_000_000,
        owned_by: "aha",
    }
}

/// Completions of texts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "models", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The completions; with `stream` events, each a piece.", content(
            (CompletionAnswer = "application/json"), (String = "text/event-stream")
        )),
        Problems
    )
)]
pub async fn completions(
    State(app): State<Arc<App>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, Problem> {
    let model = request.common.model.clone();
    let order = request.order()?;
    let ask = ask(&app, model, order, Asker::Plain).await?;
    Ok(ask.respond().await?)
}

/// Answers in a conversation, by the template that the model was trained with.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "models", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers; with `stream` events, each a piece.", content(
            (ChatAnswer = "application/json"), (String = "text/event-stream")
        )),
        Problems
    )
)]
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, Problem> {
    let model = request.common.model.clone();
    let order = request.order()?;
    let ask = ask(&app, model, order, Asker::Chat).await?;
    Ok(ask.respond().await?)
}

/// Gives a request's prompts to the model, and waits until it has taken all of them.
async fn ask(app: &Arc<App>, model: String, order: Order, asker: Asker) -> Result<Ask, Error> {
    let at = Arc::clone(app);
    let found = blocking(move || catalogue::find(&at.board, &model)).await?;
    let seed = match order.seed {
        Some(seed) => seed.cast_unsigned(),
        None => u64::from_le_bytes(blocking(token::random::<8>).await?),
    };
    let random = Philox::new(seed);
    // Other tokens' log-probs, and a prompt's own, are computed when a completion has ended.
    let scores = order.logprobs.filter(|top| *top > 0 || order.echo).map(|top| top as usize);
    let mut heard = Vec::new();
    for (idx, prompt) in order.prompts.iter().enumerate() {
        let (reply, pieces) = unbounded_channel();
        let job = |open| Job {
            prompt: prompt.clone(),
            drawing: order.drawing.clone(),
            scores,
            address: random.bits(&[idx as u64]),
            samples: order.n,
            reply: reply.clone(),
            open,
        };
        app.hub.give(&found, job).await?;
        heard.push(pieces);
    }
    Ask::begin(asker, found.id, order, seed, heard).await
}
