//! The program itself, driven as a shell would: arguments in; exit code, stdout and stderr out.

mod grading;
mod models;
mod queries;
mod runs;
mod support;
mod usage;
