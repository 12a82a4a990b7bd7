//! Size and pace of a request's body: it is read whole before anybody looks at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::problem::Problem;
use crate::error::{Error, Kind, Result};

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// How long a client has for the body.
const BODY_TIME: Duration = Duration::from_secs(20);

/// Requests and answers, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that were answered, by the hundreds of their status: 0 for 1xx, 4 for 5xx.
    pub answered: [AtomicU64; 5],
}

/// Counts answers.
pub async fn count(State(counts): State<Arc<Counts>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let hundreds = usize::from(response.status().as_u16() / 100).clamp(1, 5);
    counts.answered[hundreds - 1].fetch_add(1, Ordering::Relaxed);
    response
}

/// Reads the body, or answers that it is too large or too slow.
pub async fn check(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let declared = head.headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    match read(declared, body, BODY_TIME).await {
        Ok(body) => next.run(Request::from_parts(head, body)).await,
        Err(error) => {
            let mut response = Problem(error).into_response();
            // The rest of the body is never read, so nothing may follow it.
            let close = header::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            response
        }
    }
}

async fn read(declared: Option<usize>, body: Body, time: Duration) -> Result<Body> {
    let too_large = || {
        let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
        Error::new(Kind::TooLarge, message).hint("send less at a time")
    };
    if declared.is_some_and(|len| len > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    match tokio::time::timeout(time, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(error)) if is_length(&error) => Err(too_large()),
        Ok(Err(error)) => {
            Err(Error::input(format!("the body can't be read: {error}"), "send it again"))
        }
        Err(_) => {
            let message = format!("the body took longer than {} seconds", time.as_secs());
            Err(Error::new(Kind::TooSlow, message).hint("send it faster"))
        }
    }
}

/// Whether a body was too long: the wrapped error has no public type.
fn is_length(error: &axum::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(|source| source.to_string().contains("length limit"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::stream;

    use super::*;

    fn kind<T>(result: Result<T>) -> Option<Kind> {
        result.err().map(|error| error.kind)
    }

    #[tokio::test]
    async fn bodies_have_a_largest_size_whether_they_say_so_or_not() {
        let time = Duration::from_secs(5);
        assert_eq!(kind(read(Some(3), Body::from("abc"), time).await), None);
        let declared = read(Some(BODY_BYTES_MAX + 1), Body::empty(), time).await;
        assert_eq!(kind(declared), Some(Kind::TooLarge));
        let chunks =
            (0..=BODY_BYTES_MAX >> 16).map(|_| Ok::<_, Infallible>(Bytes::from(vec![0; 1 << 16])));
        let endless = Body::from_stream(stream::iter(chunks));
        assert_eq!(kind(read(None, endless, time).await), Some(Kind::TooLarge));
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_not_waited_for() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(kind(read(None, silent, Duration::from_millis(20)).await), Some(Kind::TooSlow));
    }
}
