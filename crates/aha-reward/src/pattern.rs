//! `kind = "regex"`: does the completion match a pattern?

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::extract_tag;
use crate::spec::{Problem, Resolve, is_word};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// Most bytes that a compiled pattern may take.
pub const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Which text the pattern is looked for in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The whole completion.
    #[default]
    Completion,
    /// The content of the only answer tag; no match without one.
    AnswerTag,
}

/// 1 if the pattern occurs in the text, else 0. Anchor it with `^` and `$` to match all of it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The pattern, in the syntax of Rust's `regex`. No default.
    pub pattern: Option<String>,
    /// Where it must occur, `completion` or `answer_tag`. Default `completion`.
    pub place: Place,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
    /// Whether letter case matters. Default true.
    pub is_case_sensitive: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pattern: None,
            place: Place::default(),
            answer_tag: "answer".to_owned(),
            is_case_sensitive: true,
        }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let (answer_tag, place) = (self.answer_tag.clone(), self.place);
        if !is_word(&answer_tag) {
            let got = format!("`{answer_tag}`");
            problems.push(Problem::new("answer_tag", "letters, digits and `_`", got));
        }
        let Some(pattern) = &self.pattern else {
            problems.push(Problem::missing("pattern"));
            return Err(problems);
        };
        let regex = RegexBuilder::new(pattern)
            .case_insensitive(!self.is_case_sensitive)
            .size_limit(PATTERN_BYTES_MAX)
            .build();
        match regex {
            Ok(regex) if problems.is_empty() => Ok(Box::new(Pattern { regex, place, answer_tag })),
            Ok(_) => Err(problems),
            Err(error) => {
                let must = "a regular expression that compiles to at most 1 MiB";
                problems.push(Problem::new("pattern", must, format!("`{pattern}`: {error}")));
                Err(problems)
            }
        }
    }
}

/// See [`Settings`].
pub struct Pattern {
    /// The pattern; matching takes time linear in the text.
    pub regex: Regex,
    /// Where to look.
    pub place: Place,
    /// Name of the tag around the answer.
    pub answer_tag: String,
}

impl Verifier for Pattern {
    fn kind(&self) -> Kind {
        Kind::Regex
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let text = match self.place {
            Place::Completion => Some(sample.completion),
            Place::AnswerTag => extract_tag(sample.completion, &self.answer_tag),
        };
        match text {
            None => Verdict::scored(0.0, "no answer found"),
            Some(text) if self.regex.is_match(text) => Verdict::scored(1.0, "matches"),
            Some(_) => Verdict::scored(0.0, "does not match"),
        }
    }
}
