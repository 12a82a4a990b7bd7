//! `kind = "exact"`: is the final answer, character by character, the sample's?

use crate::extract::Extraction;
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

/// 1 if the extracted answer equals the sample's, both trimmed; else 0.
pub struct Exact {
    /// Where the final answer is.
    pub extraction: Extraction,
    /// Whether letter case matters.
    pub is_case_sensitive: bool,
}

impl Verifier for Exact {
    fn kind(&self) -> Kind {
        Kind::Exact
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let Some(gold) = sample.answer.map(str::trim) else {
            return Verdict::unscored("the sample has no answer");
        };
        let pred = match self.extraction.find(sample.completion) {
            Ok(pred) => pred,
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        let is_equal = if self.is_case_sensitive {
            pred == gold
        } else {
            pred.to_lowercase() == gold.to_lowercase()
        };
        if is_equal {
            Verdict::scored(1.0, "equal")
        } else {
            Verdict::scored(0.0, format!("{} is not {}", excerpt(pred), excerpt(gold)))
        }
    }
}
