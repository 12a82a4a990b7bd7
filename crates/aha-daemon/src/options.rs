//! What a daemon is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use aha_flow::pipeline::Device;

/// Where it listens if it is told nothing.
pub const LISTEN: &str = "127.0.0.1:7717";

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that it owns.
    pub home: PathBuf,
    /// Where it listens. Another address than a loopback one requires a token of everybody who asks.
    pub listen: SocketAddr,
    /// Whether a token is required on a loopback address too.
    pub requires_token: bool,
    /// A token to require in place of the one in the home folder.
    pub token: Option<String>,
    /// Names, beside addresses, by which browsers and clients may call it.
    pub hosts: Vec<String>,
    /// Runs at once, at most.
    pub runs_max: usize,
    /// Memory of all runs and loaded models together, in bytes; none: what the machine has free.
    pub memory_bytes: Option<u64>,
    /// What is left free of the machine's memory, in bytes: below it no run is started.
    pub memory_reserve_bytes: u64,
    /// What is left free on disks, in bytes: below it no run is taken or started, and those that run wait.
    pub disk_reserve_bytes: u64,
    /// What pipelines may name.
    pub allowed: Allowed,
    /// How often in a row a run is tried again after a failure that may pass.
    pub retries_max: u32,
    /// How long runs have to write a checkpoint and stop when the daemon stops; then they are killed, and lose the
    /// steps since their last checkpoint.
    pub drain: Duration,
    /// The limits of a query.
    pub query: QueryLimits,
    /// How long a model that nobody asks stays loaded.
    pub model_idle: Duration,
    /// What models that are asked compute on.
    pub device: Device,
    /// The program that runs are started with: this one.
    pub program: PathBuf,
}

/// What pipelines that are submitted may name.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Folders of data and models, and of what is exported.
    pub folders: Vec<PathBuf>,
    /// Whether rewards may start programs of the user's own, and the sandbox may be weak.
    pub commands: bool,
    /// Whether rewards and stages may ask servers.
    pub network: bool,
    /// Environment variables that they may take keys for servers from.
    pub keys: Vec<String>,
}

/// The limits of a query.
#[derive(Clone, Copy, Debug)]
pub struct QueryLimits {
    /// Time by the clock.
    pub time: Duration,
    /// Memory of sorts, joins and groups, in bytes.
    pub memory_bytes: u64,
    /// Bytes of the answer.
    pub answer_bytes: u64,
    /// Queries at once.
    pub parallel_max: usize,
}

impl Default for QueryLimits {
    fn default() -> QueryLimits {
        QueryLimits {
            time: Duration::from_secs(30),
            memory_bytes: 256 << 20,
            answer_bytes: 64 << 20,
            parallel_max: 2,
        }
    }
}

/// This program, whatever has become of its file.
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}
