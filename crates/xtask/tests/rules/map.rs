//! ARCHITECTURE.md and README.md say where things are: every crate is there, every path leads somewhere.

use crate::{none, read, root};

/// The crates in the order of ARCHITECTURE.md, bottom to top.
pub fn crates() -> Vec<String> {
    let text = read("ARCHITECTURE.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| crate |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn every_crate_is_in_the_map() {
    let mut mapped = crates();
    let folders = fs_err::read_dir(root().join("crates")).unwrap();
    let mut there: Vec<String> =
        folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    mapped.sort();
    there.sort();
    assert_eq!(mapped, there);
}

/// The paths that a page names: in backticks, as targets of links, and in commands set off by four blanks.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_example = false;
    for (idx, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_example = !is_example;
        }
        if is_example {
            continue;
        }
        // What is quoted as the text of a link says less than where the link leads.
        let parts: Vec<&str> = line.split('`').collect();
        let quoted = parts.windows(2).step_by(2).filter(|w| !w[0].ends_with('[')).map(|w| w[1]);
        let linked = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let named = quoted.chain(linked).filter(|path| is_path(path));
        let commands = line
            .strip_prefix("    ")
            .into_iter()
            .flat_map(|line| line.split([' ', '(', ')', '"', '$']));
        let used = commands.filter(|word| {
            is_path(word)
                && ["crates/", "docs/", "ops/", "pipelines/", "datasets/"]
                    .iter()
                    .any(|folder| word.starts_with(folder))
        });
        found.extend(named.chain(used).map(|path| (idx + 1, path.to_owned())));
    }
    found
}

/// Whether it looks like a path of the repository: not of a machine, of the web or of what is built.
fn is_path(text: &str) -> bool {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/#".contains(c));
    let is_file = [".md", ".toml"].iter().any(|end| text.ends_with(end));
    is_plain
        && (text.contains('/') || is_file)
        && !text.starts_with(['/', '~'])
        && !text.starts_with("target/")
}

#[test]
fn every_path_leads_somewhere() {
    let mut complaints = Vec::new();
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "datasets/README.md",
        "ops/bench/README.md",
        "ops/bench/RESULTS.md",
    ] {
        let text = read(page);
        for (line, path) in paths(&text) {
            // A row of the table of crates names files of its crate.
            let row = text.lines().nth(line - 1).unwrap();
            let of_crate = row.split('`').nth(1).unwrap_or_default();
            let path = path.split('#').next().unwrap();
            let places = [format!("crates/{path}"), format!("crates/{of_crate}/{path}")];
            let is_there = path.is_empty()
                || root().join(path).exists()
                || places.iter().any(|place| root().join(place).exists());
            if !is_there && !is_of_a_run(path) {
                complaints.push(format!("{page}:{line}: there is no `{path}`"));
            }
        }
    }
    none(&complaints);
}

/// Whether a path is one of a run directory, which `aha-flow` lays out.
fn is_of_a_run(path: &str) -> bool {
    ["tables/", "metrics/", "checkpoints/", "models/", "runs/"]
        .iter()
        .any(|dir| path.starts_with(dir))
        || path == "pipeline.toml"
}

#[test]
fn a_path_that_leads_nowhere_is_seen() {
    let text =
        "See `crates/nowhere.rs` and [this](docs/none.md#x).\n    ops/none \"$(ops/other)\"\n";
    let found: Vec<String> = paths(text).into_iter().map(|(_, path)| path).collect();
    assert_eq!(found, ["crates/nowhere.rs", "docs/none.md#x", "ops/none", "ops/other"]);
}
