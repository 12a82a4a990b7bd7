//! Where queries are planned and run: on threads whose stack is large enough for any query that is let in.
//!
//! A chain such as `a OR a OR …` is a tree as deep as the chain is long, and parser, optimizer, planner and
//! even dropping a plan recurse over it. So a query's length and its number of words and operators are
//! bounded, and the stack is made for what the bounds let in. Its pages take memory only once touched.

use std::thread;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Error, Result};

/// Longest query, in bytes.
pub const QUERY_BYTES_MAX: usize = 1 << 20;
/// Words and operators of a query: each may make its tree one level deeper. Values, commas and parentheses
/// don't count: lists are flat, and the parser bounds nesting itself.
pub const QUERY_TERMS_MAX: usize = 5_000;
/// Measured: what takes most, tables of a `WITH` that read one another, takes 63 KiB a term.
const STACK_BYTES: usize = QUERY_TERMS_MAX * (96 << 10);

/// Refuses a query that is too long or may be too deep.
pub fn check(sql: &str) -> Result<()> {
    if sql.len() > QUERY_BYTES_MAX {
        return Err(Error::input(
            format!("the query has {} bytes, and may have {QUERY_BYTES_MAX}", sql.len()),
            "put the values that it lists into a table, and join it",
        ));
    }
    // What can't be split into tokens is the parser's to refuse, which says where.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize() else { return Ok(()) };
    let terms_count = tokens.iter().filter(|token| is_term(token)).count();
    if terms_count > QUERY_TERMS_MAX {
        return Err(Error::input(
            format!(
                "the query has {terms_count} words and operators, and may have {QUERY_TERMS_MAX}"
            ),
            "write `x IN (…)` instead of a chain of `x = … OR`, put values into a table and join it, or \
             split the query in two",
        ));
    }
    Ok(())
}

fn is_term(token: &Token) -> bool {
    let is_flat = matches!(
        token,
        Token::Whitespace(_)
            | Token::Comma
            | Token::LParen
            | Token::RParen
            | Token::Number(..)
            | Token::SingleQuotedString(_)
    );
    !is_flat
}

/// Runs `work` on a thread with a stack for any query that [`check`] lets in, and waits for it.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("aha-query".to_owned()).stack_size(STACK_BYTES);
        let started = builder.spawn_scoped(scope, work).map_err(|error| refused(&error))?;
        started.join().map_err(|_| Error::bug("reading a query panicked"))
    })
}

/// The threads of a session. With one, tasks of a query take turns in the order in which they were begun: on
/// several, the parts of a `UNION ALL` would come in any order.
pub(crate) struct Threads {
    handle: Handle,
    /// Dropped, it ends them; nobody waits for that.
    _alive: oneshot::Sender<()>,
}

impl Threads {
    /// Starts `count` of them.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let runtime = match count {
            1 => Builder::new_current_thread().enable_all().build(),
            _ => Builder::new_multi_thread()
                .worker_threads(count)
                .thread_name("aha-query")
                .thread_stack_size(STACK_BYTES)
                .enable_all()
                .build(),
        };
        let runtime = runtime.map_err(|error| refused(&error))?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel();
        let drive = move || {
            // It is only ever dropped.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        };
        let builder = thread::Builder::new().name("aha-query".to_owned()).stack_size(STACK_BYTES);
        builder.spawn(drive).map_err(|error| refused(&error))?;
        Ok(Self { handle, _alive: alive })
    }

    /// Runs `work` there. Dropping the future ends it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut task = Task(self.handle.spawn(work));
        (&mut task.0).await.unwrap_or_else(|error| Err(Error::bug(format!("a query: {error}"))))
    }
}

/// Ends its task when it is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refused(error: &std::io::Error) -> Error {
    Error::Environment {
        message: format!("can't start a thread for queries: {error}"),
        hint: Some("raise the limits on threads and on virtual memory (`ulimit -u -v`)".to_owned()),
        is_full: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_flat_and_chains_are_bounded() {
        let values = vec!["1"; 100_000].join(", ");
        check(&format!("SELECT 1 IN ({values})")).unwrap();
        let chain = |count: usize| format!("SELECT {}", vec!["a"; count].join(" OR "));
        check(&chain(QUERY_TERMS_MAX / 2)).unwrap();
        let error = check(&chain(QUERY_TERMS_MAX / 2 + 1)).unwrap_err();
        assert!(error.to_string().contains("words and operators"), "{error}");
        assert!(error.hint().unwrap().contains("IN (…)"), "{error}");
        let error = check(&format!("SELECT '{}'", "x".repeat(QUERY_BYTES_MAX))).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}
