//! Errors as RFC 9457 has them, and requests that can't be read as such errors.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder, ResponsesBuilder};

use crate::error::{Error, Kind};

/// What problems are written as.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error, as the answer to a request.
#[derive(Debug)]
pub struct Problem(pub Error);

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Details {
    /// What kind of problem it is: a name that stays the same.
    #[schema(example = "/problems/not-found")]
    pub r#type: String,
    /// The same for people.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What, where, expected, found.
    pub detail: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Every problem of a pipeline, with its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<serde_json::Value>,
    /// The same in OpenAI's form, where the request was in that form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// An error in OpenAI's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// What, where, expected, found.
    pub message: String,
    /// What kind of problem it is.
    pub r#type: String,
    /// The same.
    pub code: String,
}

/// What an answer was made of, for [`in_openai_form`].
#[derive(Clone, Debug)]
struct Told(Error);

/// Status, name and title of each kind.
pub fn class(kind: Kind) -> (StatusCode, &'static str, &'static str) {
    use StatusCode as S;
    match kind {
        Kind::Input => (S::BAD_REQUEST, "bad-request", "Something in the request is wrong"),
        Kind::Unauthorized => (S::UNAUTHORIZED, "unauthorized", "A token is required"),
        Kind::Forbidden => (S::FORBIDDEN, "forbidden", "The daemon doesn't allow this"),
        Kind::NotFound => (S::NOT_FOUND, "not-found", "There is no such thing"),
        Kind::Method => (S::METHOD_NOT_ALLOWED, "method", "It is not asked so"),
        Kind::Conflict => (S::CONFLICT, "conflict", "The run's state doesn't allow this"),
        Kind::TooLarge => (S::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
        Kind::TooSlow => (S::REQUEST_TIMEOUT, "too-slow", "The request takes too long"),
        Kind::Busy => (S::SERVICE_UNAVAILABLE, "busy", "The daemon is busy"),
        Kind::Environment => {
            (S::INSUFFICIENT_STORAGE, "environment", "The machine refused something")
        }
        Kind::Bug => (S::INTERNAL_SERVER_ERROR, "bug", "This is a bug in aha"),
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem(error) = self;
        if error.kind == Kind::Bug || error.kind == Kind::Environment {
            tracing::error!(message = %error.message, "Request failed.");
        }
        let kind = error.kind;
        let mut response = (class(kind).0, Json(details(error.clone()))).into_response();
        response.extensions_mut().insert(Told(error));
        add_headers(kind, response.headers_mut());
        response
    }
}

/// Adds the error object that OpenAI's clients read to problems of requests in OpenAI's form, whoever found them.
pub async fn in_openai_form(request: Request, next: Next) -> Response {
    let is_openai = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    let told = response.extensions_mut().remove::<Told>();
    let Some(Told(error)) = told.filter(|_| is_openai) else { return response };
    let object = object(&error);
    let body = Json(Details { error: Some(object), ..details(error) }).into_response().into_body();
    response.map(|_| body)
}

fn details(error: Error) -> Details {
    let (status, name, title) = class(error.kind);
    Details {
        r#type: format!("/problems/{name}"),
        title: title.to_owned(),
        status: status.as_u16(),
        detail: error.message,
        hint: error.hint,
        problems: error.problems.map(|problems| *problems),
        error: None,
    }
}

fn object(error: &Error) -> ErrorObject {
    let (status, name, _) = class(error.kind);
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    ErrorObject { message: error.message.clone(), r#type: kind.to_owned(), code: name.to_owned() }
}

fn add_headers(kind: Kind, headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    match kind {
        Kind::Unauthorized => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Kind::Busy => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
}

/// The problems that any request may meet, for the OpenAPI document.
pub struct Problems;

impl utoipa::IntoResponses for Problems {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let kinds = [
            Kind::Input,
            Kind::Unauthorized,
            Kind::Forbidden,
            Kind::NotFound,
            Kind::Method,
            Kind::Conflict,
            Kind::TooLarge,
            Kind::TooSlow,
            Kind::Busy,
            Kind::Environment,
            Kind::Bug,
        ];
        let responses = kinds.into_iter().fold(ResponsesBuilder::new(), |responses, kind| {
            let (status, _, title) = class(kind);
            let content = Content::new(Some(Ref::from_schema_name("Details")));
            let response = ResponseBuilder::new().description(title).content(MEDIA_TYPE, content);
            responses.response(status.as_str(), response.build())
        });
        responses.build().into()
    }
}

/// A body of JSON.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Problem> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Body(value)),
            Err(rejection) => {
                let hint = match &rejection {
                    JsonRejection::MissingJsonContentType(_) => {
                        "send JSON, with the header `Content-Type: application/json`"
                    }
                    _ => "the forms are in /api/v1/openapi.json",
                };
                Err(Problem(Error::input(uncapitalised(&rejection.body_text()), hint)))
            }
        }
    }
}

/// What is behind the question mark.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, Problem> {
        let asked = Query::from_request_parts(parts, state).await;
        asked.map(|Query(value)| Asked(value)).map_err(|rejection: QueryRejection| {
            let message = uncapitalised(&rejection.body_text());
            Problem(Error::input(message, "the parameters are in /api/v1/openapi.json"))
        })
    }
}

/// The parts of a path. One that can't be is of nothing that there is.
pub struct At<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<At<T>, Problem> {
        let found = Path::from_request_parts(parts, state).await;
        found.map(|Path(value)| At(value)).map_err(|rejection: PathRejection| {
            let message = uncapitalised(&rejection.body_text());
            Problem(Error::not_found(message, "the paths are in /api/v1/openapi.json"))
        })
    }
}

fn uncapitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_a_document_with_its_remedy() {
        let error = Error::not_found("there is no run 7", "look for another");
        let response = Problem(error).into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({
            "type": "/problems/not-found",
            "title": "There is no such thing",
            "status": 404,
            "detail": "there is no run 7",
            "hint": "look for another",
        });
        assert_eq!(document, expected);
    }

    /// Goal: clients of OpenAI's API read our errors. Method: a problem that a layer found before any handler.
    #[tokio::test]
    async fn problems_of_openai_s_paths_have_its_error_object() {
        use tower_service::Service;
        let refuse = async || Problem(Error::new(Kind::Unauthorized, "no token").hint("send one"));
        let layer = axum::middleware::from_fn(in_openai_form);
        let mut router = axum::Router::<()>::new().fallback(refuse).layer(layer);
        for (path, has_object) in [("/v1/models", true), ("/api/v1/runs", false)] {
            let request = Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
            let response = router.call(request).await.unwrap();
            assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
            assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(document["detail"], "no token", "{path}");
            let object = serde_json::json!({
                "message": "no token", "type": "invalid_request_error", "code": "unauthorized",
            });
            assert_eq!(document.get("error"), has_object.then_some(&object), "{path}");
        }
    }

    #[test]
    fn who_has_no_token_is_told_how_to_send_one() {
        let response = Problem(Error::new(Kind::Unauthorized, "no")).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    }
}
