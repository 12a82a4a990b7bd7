//! What is wrong with a pipeline, and how it is shown.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong in a pipeline, with the place it was written at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The pipeline file, or `--set` for an override on the command line.
    pub file: String,
    /// Line in `file`, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Characters to underline, at least 1.
    pub length: u32,
    /// Dotted path of the key, with a stage by its name: `stage.zero.group_size`.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
    /// The remedy, where one is known.
    pub hint: Option<String>,
    /// The line of `file` that the problem is in.
    pub source_line: String,
    /// Place in reading order: the file first, then the overrides.
    #[serde(skip)]
    pub(crate) order: (usize, usize),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.to_string();
        let gutter = " ".repeat(line.len());
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{gutter}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{gutter} |")?;
        // A tab would move the caret away from what it points at.
        writeln!(f, "{line} | {}", self.source_line.replace('\t', " "))?;
        let indent = " ".repeat(self.column.saturating_sub(1) as usize);
        writeln!(f, "{gutter} | {indent}{}", "^".repeat(self.length.max(1) as usize))?;
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

/// Every problem of a pipeline, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the problems by position; `None` when there are none.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.message.cmp(&b.message)));
        problems.dedup();
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The errors that a parser found, at least one.
    pub(crate) fn of_syntax(problems: Vec<Problem>) -> Self {
        Self::new(problems).expect("a parser that fails says why")
    }

    /// The problems in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// The problems as a JSON array of objects.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("strings and numbers always serialize")
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, problem) in self.0.iter().enumerate() {
            if idx > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The name in `known` that is most like `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let edits = strsim::osa_distance(&wanted, &lower);
            (edits, strsim::jaro_winkler(&wanted, &lower), lower.len(), candidate)
        })
        .filter(|(edits, likeness, len, _)| *edits <= (*len).max(3) / 3 || *likeness > 0.88)
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.total_cmp(&a.1)))
        .map(|(_, _, _, candidate)| candidate)
}

/// A hint that names the nearest known name, then all of them: "did you mean `answer`? …".
pub(crate) fn suggest(name: &str, known: &[&str], which_are: &str) -> String {
    let list = known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    match (nearest(name, known.iter().copied()), known.is_empty()) {
        (_, true) => format!("there are no {which_are}"),
        (Some(candidate), _) => format!("did you mean `{candidate}`? {which_are}: {list}"),
        (None, _) => format!("{which_are}: {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_leaves_strangers_alone() {
        let known = ["group_size", "prompts", "prompts_per_step"];
        assert_eq!(nearest("goup_size", known), Some("group_size"));
        assert_eq!(nearest("prompt", known), Some("prompts"));
        assert_eq!(nearest("banana", known), None);
    }

    #[test]
    fn a_problem_shows_its_line_with_a_caret_under_the_value() {
        let problem = Problem {
            file: "p.toml".into(),
            line: 12,
            column: 14,
            length: 1,
            key: "stage.zero.group_size".into(),
            message: "`stage.zero.group_size` must be at least 2, got 1".into(),
            hint: Some("use 8".into()),
            source_line: "group_size = 1".into(),
            order: (0, 0),
        };
        let expected = "error: `stage.zero.group_size` must be at least 2, got 1\n  --> p.toml:12:14\n   |\n12 | group_size = 1\n   |              ^\nhint: use 8\n";
        assert_eq!(problem.to_string(), expected);
    }
}
