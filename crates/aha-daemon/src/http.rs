//! Connections: how many, how slow, how large; and who may ask.
//!
//! - [`guard`]: the address by which we were called, where a page came from, the token.
//! - [`limits`]: size and pace of a request's body.
//! - [`accept()`]: connections, within their limits.

pub mod guard;
pub mod limits;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service;

/// Connections at once, at most; more wait until one ends.
pub const CONNECTIONS_MAX: usize = 1024;
/// How long a client has for the head of a request, and an idle connection for the next.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests on their way have when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(3);
/// The pause after the system refused a connection, as it does when it is out of files.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `stop` says so; then those on their way have a moment.
pub async fn accept(listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        // What the watch lends doesn't outlive this future, as it mustn't: it can't go to another thread.
        let over = async { drop(stopped.wait_for(|stop| *stop).await) };
        tokio::select! {
            (accepted, place) = next => match (accepted, place) {
                (Ok((stream, _)), Ok(place)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    open.spawn(async move {
                        connection(stream, router, stop).await;
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "Connection refused.");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                (_, Err(_)) => return,
            },
            Some(_) = open.join_next(), if !open.is_empty() => {}
            () = over => break,
        }
    }
    drop(listener);
    let all = async { while open.join_next().await.is_some() {} };
    // What is left is dropped with the set.
    let _ = tokio::time::timeout(STOP_TIME, all).await;
}

async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Events are small and wanted at once. A socket that refuses the option works without.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().call(request.map(Body::new))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES_MAX);
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
