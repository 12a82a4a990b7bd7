//! Interpreters and compilers of this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A language that programs are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Python 3.
    Python,
    /// C17.
    C,
    /// C++20.
    Cpp,
    /// Rust 2021.
    Rust,
}

impl Language {
    /// Every language, in the order of this type.
    pub const ALL: [Self; 4] = [Self::Python, Self::C, Self::Cpp, Self::Rust];

    /// The language that a block of code says it is in, of whatever version.
    pub fn from_label(label: &str) -> Option<Self> {
        let is_version = |c: char| c.is_ascii_digit() || c == '.';
        match label.to_ascii_lowercase().trim_end_matches(is_version) {
            "python" | "py" => Some(Self::Python),
            "c" => Some(Self::C),
            "cpp" | "c++" | "cc" | "cxx" => Some(Self::Cpp),
            "rust" | "rs" => Some(Self::Rust),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::C => "c",
            Self::Cpp => "cpp",
            Self::Rust => "rust",
        }
    }

    /// The name of its source file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Python => "main.py",
            Self::C => "main.c",
            Self::Cpp => "main.cpp",
            Self::Rust => "main.rs",
        }
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An interpreter or compiler.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its program.
    pub program: String,
    /// Folders that it needs, besides the system's.
    pub folders: Vec<PathBuf>,
}

/// The tool of a language, looked for once per process; or what is missing.
pub fn find(language: Language) -> Result<&'static Tool, String> {
    static FOUND: [OnceLock<Option<Tool>>; 4] = [const { OnceLock::new() }; 4];
    let tool = FOUND[language as usize].get_or_init(|| match language {
        Language::Python => python(),
        Language::C => compiler(&["gcc", "cc", "clang"]),
        Language::Cpp => compiler(&["g++", "c++", "clang++"]),
        Language::Rust => rust(),
    });
    tool.as_ref().ok_or_else(|| format!("{language}, for which nothing is installed"))
}

/// The languages that can be run here, each with its tool's program.
pub fn installed() -> Vec<(Language, &'static str)> {
    let found = Language::ALL.into_iter().map(|language| (language, find(language)));
    found.filter_map(|(language, tool)| Some((language, tool.ok()?.program.as_str()))).collect()
}

/// The system's before others: it starts faster, and its folder is shown anyway.
fn python() -> Option<Tool> {
    let script = "import sys; print(sys.executable); print(sys.base_prefix); print(sys.version_info >= (3, 8))";
    ["/usr/bin/python3", "/usr/local/bin/python3", "python3"].into_iter().find_map(|program| {
        let text = printed(program, &["-c", script])?;
        let mut lines = text.lines();
        let (program, prefix, is_new) = (lines.next()?, lines.next()?, lines.next()?);
        // Where a virtual environment is active, its interpreter is a link to the real one.
        let program = Path::new(program).canonicalize().ok()?;
        let folders = match prefix {
            "/usr" => Vec::new(),
            "/usr/local" => ["/usr/local/bin", "/usr/local/lib"].map(PathBuf::from).to_vec(),
            prefix => vec![PathBuf::from(prefix)],
        };
        (is_new == "True")
            .then(|| Tool { program: program.to_string_lossy().into_owned(), folders })
    })
}

fn compiler(names: &[&str]) -> Option<Tool> {
    let programs = names.iter().map(|name| format!("/usr/bin/{name}"));
    let mut there = programs.filter(|program| Path::new(program).exists());
    there.next().map(|program| Tool { program, folders: Vec::new() })
}

/// The compiler itself rather than `rustup`'s stand-in, which looks for it in the user's folder. It needs
/// a C compiler to link.
fn rust() -> Option<Tool> {
    compiler(&["cc"])?;
    let root = PathBuf::from(printed("rustc", &["--print", "sysroot"])?.trim());
    let program = root.join("bin/rustc");
    let text = program.to_string_lossy().into_owned();
    program.exists().then(|| Tool { program: text, folders: vec![root] })
}

/// What a program of this machine prints, if it can be started and succeeds.
fn printed(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}
