//! Runs programs that nobody trusts, such as those that a model wrote.
//!
//! # Map
//! - [`job`]: [`Job`], a program with its files, input and [`Limits`], and its [`Outcome`]; start here.
//! - [`host`]: [`run`] and [`start`], the side of whoever wants it run.
//! - [`enter`]: [`enter_if_asked`], the other side: this program again, as a keeper. It makes the
//!   namespaces, watches time and memory, and says how it ended.
//! - `inside`: the first process in the new namespaces; `root`: the files that it sees; `filter`: the
//!   system calls that a program may make; `cage`: what is the same with and without namespaces.
//! - [`mod@probe`]: which layers the kernel grants here, tried out.
//! - `tree`: a job's processes, seen from outside.
//! - `sys`: system calls that the standard library doesn't have. `wire`: a job on its way.
//!
//! # Layers
//! A program runs in user, mount, process, network, IPC and host-name namespaces of its own, as a user
//! that owns nothing, under limits of resources, without privileges and ways to get any, and with a list
//! of the system calls that it may make. Its root holds the system's programs and libraries, read-only,
//! a folder in memory to write to, and two harmless devices; there is no `/proc`. Two processes keep
//! it: one outside, which kills everything at the deadline, when memory runs over or when whoever asked
//! has gone, and one inside, process 1, with which every other process dies.
//!
//! # What it does not protect from
//! - Bugs of the kernel in the calls that are allowed, and leaks through the processor's caches. For
//!   programs of somebody who would spend such a bug on you, use a virtual machine.
//! - A program sees the processor's model, the kernel's version, the clock, and files of the system that
//!   everybody may read below `/usr/bin`, `/usr/lib` and `/usr/include`. Keep no secrets there.
//! - It may use a processor fully until its limit: others on the machine get slower.
//! - Memory of several processes together is looked at fifty times a second: between two looks they can
//!   take as much as they can touch in that time.
//! - A deadline is a matter of time: a program that ends close to it may pass once and fail once. Processor
//!   time decides as long as a program computes, so that others on the machine make little difference.
//! - [`Isolation::Weak`] leaves the namespaces out. Started by root, a program is then a user of its own and
//!   can read and write what anybody may. Started by anybody else it is that user: it can read and write all
//!   of the user's files, see secrets in the environment of the user's processes, and signal these. Its
//!   limit on processes counts all of the user's. Files in memory that it may write to, and `/dev/zero` mapped
//!   to be shared, count against no limit.
//!
//! # Invariants
//! - Nothing of the caller's memory, environment or open files reaches a program but its [`Job`].
//! - When [`run`] returns, or a [`Running`] is dropped, no process of the job is left.
//! - A layer that the kernel refuses ends the job before the program starts. Nothing is skipped.
//! - No code of ours runs between fork and exec in a process with threads: the keeper is started as a
//!   new program, and forks while it has one thread.

#![cfg(target_os = "linux")]

mod cage;
pub mod enter;
mod error;
mod filter;
pub mod host;
mod inside;
pub mod job;
pub mod probe;
mod root;
mod sys;
mod tree;
mod wire;

pub use enter::{enter_if_asked, longest_ms};
pub use error::Error;
pub use host::{Running, run, start};
pub use job::{Exit, File, Isolation, Job, Limit, Limits, Outcome, Stdin};
pub use probe::{Layer, State, probe};
pub use root::is_shown;
