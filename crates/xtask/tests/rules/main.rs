//! The house rules that a test can know: dependencies, the map of the repository, sizes, words.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dependencies;
mod map;
mod scan;
mod sizes;
mod words;

use std::path::{Path, PathBuf};

/// The repository's root.
fn root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn read(path: &str) -> String {
    fs_err::read_to_string(root().join(path)).unwrap()
}

/// Folders that hold what is built and run here.
const BUILT: [&str; 4] = ["target", "runs", "__pycache__", "node_modules"];

/// The repository's files that end so, by their paths from the root, in order.
fn files(suffix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // What isn't checked in: `.git`, and what is built and run here.
            if path.is_dir() {
                let is_ours = name == ".ci" || name == ".cargo" || !name.starts_with('.');
                if is_ours && !BUILT.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else {
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.extend(Some(path).filter(|path| path.ends_with(suffix)));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no file ends in `{suffix}`");
    found
}

/// Fails with every complaint at once.
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
