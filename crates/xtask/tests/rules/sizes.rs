//! A function fits a screen, a file can be read in one go, a line fits its column.

use crate::scan::{Class, classify, functions};
use crate::{files, none, read};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;
const CRATE_ROOT_LINES_MAX: usize = 120;
const LINE_WIDTH_MAX: usize = 120;

/// Functions that are longer, with the length that they must not exceed.
const LONG: [(&str, &str, usize); 3] = [
    // One arm for each op.
    // Tables of cases.
    (
        "crates/aha-data/tests/all/queries.rs",
        "bad_queries_say_what_is_wrong_where_and_what_to_do",
        86,
    ),
    ("crates/aha-model/tests/mutations.rs", "hostile_tokenizers", 90),
    // One arm for each type of block, written as the format's own reference is.
    ("crates/aha-model/tests/gguf.rs", "reference", 83),
];

#[test]
fn a_function_fits_a_screen() {
    let mut complaints = Vec::new();
    let mut is_met = [false; LONG.len()];
    for path in files(".rs") {
        for function in functions(&read(&path)) {
            let known = LONG.iter().position(|(p, n, _)| *p == path && *n == function.name);
            let max = known.map_or(FUNCTION_LINES_MAX, |idx| LONG[idx].2);
            if function.lines_count > max {
                complaints.push(format!(
                    "{path}:{}: `{}` has {} lines, at most {max} are allowed: split it",
                    function.line, function.name, function.lines_count
                ));
            }
            if let Some(idx) = known.filter(|_| function.lines_count > FUNCTION_LINES_MAX) {
                is_met[idx] = true;
            }
        }
    }
    for ((path, name, _), _) in LONG.iter().zip(is_met).filter(|(_, is_met)| !is_met) {
        complaints.push(format!("{path}: `{name}` isn't too long any more: take it off the list"));
    }
    none(&complaints);
}

#[test]
fn a_file_can_be_read_in_one_go() {
    let mut complaints = Vec::new();
    for path in files(".rs") {
        let max = if path.ends_with("src/lib.rs") { CRATE_ROOT_LINES_MAX } else { FILE_LINES_MAX };
        let count = read(&path).lines().count();
        if count > max {
            complaints.push(format!("{path} has {count} lines, at most {max} are allowed"));
        }
    }
    none(&complaints);
}

#[test]
fn a_line_fits_its_column() {
    let mut complaints = Vec::new();
    let mut complain = |path: &str, idx: usize, width: usize| {
        if width > LINE_WIDTH_MAX {
            let line = idx + 1;
            complaints.push(format!("{path}:{line}: {width} columns, at most {LINE_WIDTH_MAX}"));
        }
    };
    for path in files(".rs") {
        // Text of a string may be as long as what it must equal.
        let classes = classify(&read(&path));
        for (idx, line) in classes.split(|(c, _)| *c == '\n').enumerate() {
            complain(&path, idx, line.iter().filter(|(_, class)| *class != Class::Text).count());
        }
    }
    let others =
        [".md", ".toml", ".py", ".ci/run", "ops/test", "ops/fetch-smollm2", "ops/bench/compare"]
            .map(files);
    for path in others.into_iter().flatten().filter(|path| !path.contains("tests/check/")) {
        for (idx, line) in read(&path).lines().enumerate() {
            // A row of a table can't be broken, nor can a list of features.
            if !line.starts_with('|') && !line.contains("features = [") {
                complain(&path, idx, line.chars().count());
            }
        }
    }
    none(&complaints);
}
