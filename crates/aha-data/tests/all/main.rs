//! The tests of the session's public surface. One program, because linking the query engine is
//! what takes the time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod curation;
mod deep;
mod queries;
mod runs;
