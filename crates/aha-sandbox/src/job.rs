//! What is run, under which limits, and how it ended.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A program to run. It starts in an empty folder that holds `files` and is the only one it may write to.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments. A path that is not absolute is one of `files`.
    pub argv: Vec<String>,
    /// Variables of its environment, besides `PATH`, `HOME` and `LANG`.
    pub env: Vec<(String, String)>,
    /// Files that it finds in its folder.
    pub files: Vec<File>,
    /// What it reads.
    pub stdin: Stdin,
    /// Folders of the machine that it sees at their own place, read-only, besides the system's programs
    /// and libraries: where an interpreter or compiler lives elsewhere.
    pub folders: Vec<PathBuf>,
    /// What it may use.
    pub limits: Limits,
    /// Whether it has to be shut off from the machine.
    pub isolation: Isolation,
}

impl Job {
    /// A program with default limits, no files and nothing to read.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            files: Vec::new(),
            stdin: Stdin::Bytes(Vec::new()),
            folders: Vec::new(),
            limits: Limits::default(),
            isolation: Isolation::Strong,
        }
    }
}

/// A file in the program's folder.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name, without any `/`.
    pub name: String,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Whether it can be executed.
    pub is_program: bool,
}

/// What a program reads, and where it writes.
#[derive(Clone, Debug)]
pub enum Stdin {
    /// These bytes; what it writes is collected.
    Bytes(Vec<u8>),
    /// Its descriptor 1 is a socket to whoever called [`crate::start`]; the other two lead nowhere.
    Channel,
    /// Its descriptors 0 and 1 are one socket to whoever called [`crate::start`]; 2 leads nowhere. For programs
    /// that read their input and write to their output as ever.
    Dialogue,
}

/// Whether a program has to be shut off from the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Every layer, or it doesn't run. The default.
    #[default]
    Strong,
    /// No namespaces: limits of resources, no new privileges, and a filter of system calls where the
    /// kernel has one, which refuses the network. Unless whoever starts it is root, the program is the same
    /// user: it can read and write what that user can, read the environment of the user's processes, and
    /// signal them. For programs that are trusted, or on a machine that holds nothing else.
    Weak,
}

/// What a program may use.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Limits {
    /// Processor time of each process, in milliseconds; the kernel rounds up to seconds.
    pub cpu_ms: u64,
    /// Time from its start after which it must not wait, in milliseconds; one that computes all the while has
    /// five times as long, up to its processor time. None for a program that waits for work.
    pub wall_ms: Option<u64>,
    /// Memory in bytes: address space of each process, and what all of them occupy together.
    pub memory_bytes: u64,
    /// Processes and threads at a time.
    pub process_count_max: u64,
    /// Size of one file, in bytes.
    pub file_bytes: u64,
    /// Size of its folder, in bytes. It is held in memory.
    pub folder_bytes: u64,
    /// What it may write to standard output and standard error, in bytes each.
    pub output_bytes: usize,
    /// Files open at a time, in each process.
    pub open_files_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms: 4_000,
            wall_ms: Some(10_000),
            memory_bytes: 512 << 20,
            process_count_max: 16,
            file_bytes: 16 << 20,
            folder_bytes: 32 << 20,
            output_bytes: 4 << 20,
            open_files_max: 64,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal, most often one that it caused itself.
    Signal(i32),
    /// It was killed because of a limit.
    Limit(Limit),
    /// It was killed because nobody waited any more.
    Cancelled,
}

/// A limit that ended a program. Others show as an error or a signal inside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// [`Limits::cpu_ms`].
    Cpu,
    /// [`Limits::wall_ms`].
    Wall,
    /// [`Limits::memory_bytes`].
    Memory,
    /// [`Limits::output_bytes`].
    Output,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Limit(Limit::Cpu) => f.write_str("processor time over the limit"),
            Exit::Limit(Limit::Wall) => f.write_str("time over the limit"),
            Exit::Limit(Limit::Memory) => f.write_str("memory over the limit"),
            Exit::Limit(Limit::Output) => f.write_str("output over the limit"),
            Exit::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, likewise.
    pub stderr: Vec<u8>,
    /// Processor time of all of its processes that ended before it.
    pub cpu: Duration,
    /// Time from start to end.
    pub wall: Duration,
}
