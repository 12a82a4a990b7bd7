//! The tests of the session's public surface. One program, because linking the query engine is
//! what takes the time.

mod queries;
mod runs;
