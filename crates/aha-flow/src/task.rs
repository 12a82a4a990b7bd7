//! Tasks of the async runtime, each with a name.

use std::future::Future;

/// Runs `future` beside its owner. It must end by itself when its owner does: by a failed send, a closed
/// edge, or a flag.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that spawns; the doc says who ends a task"
)]
pub fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    use tracing::Instrument;
    drop(tokio::spawn(future.instrument(tracing::debug_span!("task", name))));
}
