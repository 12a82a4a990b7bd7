//! Events as they happen, as server-sent events.
//!
//! Each has an `id`: one whose connection broke sends the last one that it has seen as `Last-Event-ID`, and gets what
//! it has missed, as far as it is kept. `event` is the kind, `data` an object with `run` and what happened. A watcher
//! that is too slow gets `missed` with the number of events that it lost. Every quarter of a minute without an event a
//! comment is sent, so that both sides know that the other is there.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::App;
use super::problem::{At, Problem, Problems};
use crate::events::{Event, Watch};
use crate::record::RunId;

/// How long a stream is silent.
const SILENCE: Duration = Duration::from_secs(15);

/// What happens to a run.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/events", operation_id = "events_of_run", tag = "events",
    params(("id" = u64, Path, description = "The run's number.", example = 1),
           ("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen.")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream"), Problems)
)]
pub async fn of_run(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.board.run(id)?;
    Ok(events(&app, Some(id), &headers))
}

/// What happens to all runs.
#[utoipa::path(
    get, path = "/api/v1/events", operation_id = "events", tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen.")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream"), Problems)
)]
pub async fn of_all(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    Ok(events(&app, None, &headers))
}

fn events(app: &App, run: Option<RunId>, headers: &HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let watch = app.events.watch(run, last);
    response(Body::from_stream(
        told((watch, run), app.stop.clone(), SILENCE).map(Ok::<_, crate::Error>),
    ))
}

/// A response of server-sent events.
pub(crate) fn response(body: Body) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, body).into_response()
}

fn told(
    (watch, run): (Watch, Option<RunId>),
    stop: watch::Receiver<bool>,
    silence: Duration,
) -> impl Stream<Item = Bytes> {
    let past: Vec<Bytes> = watch.past.iter().map(|event| shown(event)).collect();
    // Something is sent at once, so that the client knows that it is listening.
    let hello = stream::iter([Bytes::from_static(b": listening\n\n")]);
    let coming = stream::unfold((watch.coming, stop), move |(mut coming, mut stop)| async move {
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(silence, coming.recv()) => next,
                _ = stop.wait_for(|stop| *stop) => return None,
            };
            let bytes = match next {
                Ok(Ok(event)) if run.is_none_or(|run| run == event.run) => shown(&event),
                Ok(Ok(_)) => continue,
                Ok(Err(RecvError::Lagged(count))) => {
                    Bytes::from(format!("event: missed\ndata: {}\n\n", json!({ "count": count })))
                }
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => Bytes::from_static(b": still here\n\n"),
            };
            return Some((bytes, (coming, stop)));
        }
    });
    hello.chain(stream::iter(past)).chain(coming)
}

/// An event as it is sent. JSON on one line has no line break that could end it early.
fn shown(event: &Event) -> Bytes {
    let data = json!({ "run": event.run, "data": event.data });
    Bytes::from(format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;

    #[tokio::test]
    async fn events_of_a_run_are_sent_past_ones_first_and_silence_is_broken() {
        let events = Events::default();
        events.tell(RunId(1), "state", json!({ "status": "queued" }));
        let (stop, stopped) = watch::channel(false);
        let watch = events.watch(Some(RunId(1)), Some(0));
        let told = told((watch, Some(RunId(1))), stopped, Duration::from_millis(20));
        tokio::pin!(told);
        events.tell(RunId(2), "state", json!({}));
        events.tell(RunId(1), "step", json!({ "text": "a\nb" }));
        let mut next = async || told.next().await.map(|b| String::from_utf8(b.to_vec()).unwrap());
        assert_eq!(next().await.unwrap(), ": listening\n\n");
        let first = next().await.unwrap();
        assert!(first.starts_with("id: 1\nevent: state\ndata: {\"run\":1,"), "{first}");
        let second = next().await.unwrap();
        assert!(second.starts_with("id: 3\nevent: step\n"), "{second}");
        assert_eq!(second.lines().count(), 4, "{second}");
        assert_eq!(next().await.unwrap(), ": still here\n\n");
        stop.send(true).unwrap();
        assert_eq!(next().await, None);
    }
}
