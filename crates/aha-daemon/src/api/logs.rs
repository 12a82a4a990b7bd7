//! What a run says: its tracing events, and what its processes wrote to stderr; from the end on, and as it comes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aha_flow::rundir::RunDir;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::{Stream, stream};
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::problem::{Asked, At, Problem, Problems};
use crate::error::{Error, Result, blocking};
use crate::record::RunId;

/// Lines of the end where a request says nothing, and at most.
const TAIL: u32 = 200;
const TAIL_MAX: u32 = 100_000;
/// How much of the end is looked through for lines.
const TAIL_BYTES_MAX: u64 = 8 << 20;
/// Bytes that are sent at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// How often a file is looked at that is followed.
const PAUSE: Duration = Duration::from_millis(300);

/// Which lines are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Which file; absent: `log`.
    #[param(inline)]
    source: Option<Source>,
    /// So many lines from the end; absent: 200.
    tail: Option<u32>,
    /// Whether lines that come later follow, until the run's process ends.
    follow: Option<bool>,
}

/// A file of lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Tracing events, a JSON object a line.
    #[default]
    Log,
    /// What the run's processes wrote to stderr.
    Output,
}

/// Lines of a run's log.
#[utoipa::path(
    get, path = "/api/v1/runs/{id}/logs", tag = "files",
    params(("id" = u64, Path, description = "The run's number.", example = 1), Wanted),
    responses((status = 200, description = "The lines.", body = String, content_type = "text/plain"), Problems)
)]
pub async fn logs(
    State(app): State<Arc<App>>,
    At(id): At<RunId>,
    Asked(wanted): Asked<Wanted>,
) -> Result<impl IntoResponse, Problem> {
    let record = app.board.run(id)?;
    let path = match wanted.source.unwrap_or_default() {
        Source::Log => RunDir::new(&record.run_dir).log(),
        Source::Output => app.home.output(id),
    };
    let tail = wanted.tail.unwrap_or(TAIL).min(TAIL_MAX);
    let (file, at) = (path.clone(), tail as usize);
    let offset = blocking(move || start_of_tail(&file, at)).await?;
    let follow = wanted.follow.unwrap_or(false).then_some((app, id));
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::from_stream(lines(path, offset, follow))))
}

/// Where the last `count` lines begin. A file that isn't there has none.
fn start_of_tail(path: &Path, count: usize) -> Result<u64> {
    let Some(mut file) = open(path)? else { return Ok(0) };
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let from = len.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(from)).map_err(Error::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    // The line break at the end is of the last line.
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = match count {
        0 => bytes.len(),
        _ => breaks.map(|(at, _)| at + 1).nth(count - 1).unwrap_or(0),
    };
    Ok(from + start as u64)
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// What is in the file from `offset` on, and with `follow` what comes until the run has no process.
fn lines(
    path: PathBuf,
    offset: u64,
    follow: Option<(Arc<App>, RunId)>,
) -> impl Stream<Item = Result<Bytes>> {
    stream::try_unfold((path, offset, follow), |(path, mut offset, follow)| async move {
        loop {
            // Looked at before the file: what was written by then is read.
            let goes_on = follow.as_ref().is_some_and(|(app, id)| {
                let is_alive = app.board.run(*id).is_ok_and(|r| !r.status.is_end());
                is_alive && !*app.stop.borrow()
            });
            let file = path.clone();
            let (chunk, next) = blocking(move || read_chunk(&file, offset)).await?;
            offset = next;
            if !chunk.is_empty() {
                return Ok(Some((chunk, (path, offset, follow))));
            }
            if !goes_on {
                return Ok(None);
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// What is behind `offset`, and where it ends. A file that has become shorter was begun anew.
fn read_chunk(path: &Path, offset: u64) -> Result<(Bytes, u64)> {
    let Some(mut file) = open(path)? else { return Ok((Bytes::new(), 0)) };
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let from = if len < offset { 0 } else { offset };
    file.seek(SeekFrom::Start(from)).map_err(Error::io("read", path))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let read = file.read(&mut chunk).map_err(Error::io("read", path))?;
    chunk.truncate(read);
    Ok((chunk.into(), from + read as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_at_a_line() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        assert_eq!(start_of_tail(&path, 3).unwrap(), 0);
        std::fs::write(&path, "a\nbb\nccc\n").unwrap();
        let tail = |count| {
            let (bytes, _) = read_chunk(&path, start_of_tail(&path, count).unwrap()).unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "ccc\n");
        assert_eq!(tail(2), "bb\nccc\n");
        assert_eq!(tail(9), "a\nbb\nccc\n");
        std::fs::write(&path, "a\nhalf").unwrap();
        assert_eq!(tail(1), "half");
        assert_eq!(read_chunk(&path, 99).unwrap().1, 6, "a shorter file is read anew");
    }
}
