//! Connections: how many, how slow, how large; and who may ask.
//!
//! - [`guard`]: the address by which we were called, where a page came from, the token.
//! - [`limits`]: size and pace of a request's body. [`headers`]: what answers tell browsers.
//! - [`accept()`]: connections, within their limits.

pub mod guard;
pub mod headers;
pub mod limits;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; those that come then are told to come again.
    pub connections_max: usize,
    /// How long a client has for the head of a request, and an idle connection for the next.
    pub head_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections_max: 1024, head_time: Duration::from_secs(15) }
    }
}

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests on their way have when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(3);
/// The pause after the system refused a connection, as it does when it is out of files.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Connections at once that are told to come again; more are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long one of those has to hear it.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Serves connections until `stop` says so; then those on their way have a moment.
pub async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut open = JoinSet::new();
    loop {
        // What the watch lends doesn't outlive this future, as it mustn't: it can't go to another thread.
        let over = async { drop(stopped.wait_for(|stop| *stop).await) };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            () = over => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "Connection refused.");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (router, stop) = (router.clone(), stop.clone());
            open.spawn(async move {
                connection(stream, router, limits, stop).await;
                drop(place);
            });
        } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
            open.spawn(async move {
                let _ = tokio::time::timeout(REFUSAL_TIME, refuse(stream)).await;
                drop(place);
            });
        }
    }
    drop(listener);
    let all = async { while open.join_next().await.is_some() {} };
    // What is left is dropped with the set.
    let _ = tokio::time::timeout(STOP_TIME, all).await;
}

/// Tells one who is too many to come again. Nothing is looked at of what it sends.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    let body = json!({
        "type": "/problems/busy",
        "title": "The daemon is busy",
        "status": 503,
        "detail": "there are too many connections",
        "hint": "close some, or ask again in a moment",
    })
    .to_string();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with something unread, the connection would be reset, and the answer lost.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    // Events are small and wanted at once. A socket that refuses the option works without.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().call(request.map(Body::new))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(HEAD_BYTES_MAX);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let stopped = async move {
        // A sender that is gone has stopped as well.
        drop(stop.wait_for(|stop| *stop).await);
    };
    // What ends a connection early is the client's affair.
    let _ = tokio::select! {
        done = served.as_mut() => done,
        () = stopped => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A server that answers `ok`, with these limits.
    async fn serve(limits: Limits) -> (std::net::SocketAddr, watch::Sender<bool>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", get(async || "ok"));
        let mut work = JoinSet::new();
        work.spawn(accept(listener, router, limits, stopped));
        (address, stop, work)
    }

    async fn send(address: std::net::SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn heard(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_those_that_are_there_are_served() {
        let limits = Limits { connections_max: 2, ..Limits::default() };
        let (address, stop, mut work) = serve(limits).await;
        let slow = [send(address, "GET / HT").await, send(address, "GET / HT").await];
        let refused = heard(send(address, REQUEST).await).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("too many connections"), "{refused}");
        for mut stream in slow {
            stream.write_all(b"TP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            assert!(heard(stream).await.ends_with("ok"));
        }
        // The places are free again once the server has noticed that the others are gone.
        while !heard(send(address, REQUEST).await).await.ends_with("ok") {}
        stop.send(true).unwrap();
        work.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_head_that_comes_too_slowly_is_not_waited_for() {
        let limits = Limits { head_time: Duration::from_millis(50), ..Limits::default() };
        let (address, _stop, _work) = serve(limits).await;
        let answer = heard(send(address, "GET / HTTP/1.1\r\nhost:").await).await;
        assert!(!answer.contains("ok"), "{answer}");
        assert_eq!(heard(send(address, "").await).await, "", "nor is one that never begins");
    }
}
