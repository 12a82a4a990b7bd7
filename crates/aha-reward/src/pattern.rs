//! `kind = "regex"`: does the completion match a pattern?

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::extract::extract_tag;
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
