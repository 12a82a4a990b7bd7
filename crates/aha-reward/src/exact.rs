//! `kind = "exact"`: is the final answer, character by character, the sample's?

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

/// 1 if the extracted answer equals the sample's, both trimmed; else 0.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the answer is.
    #[serde(flatten)]
    pub answer: extract::Settings,
    /// Whether letter case matters. Default true.
    pub is_case_sensitive: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { answer: extract::Settings::default(), is_case_sensitive: true }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let extraction = self.answer.resolve()?;
        Ok(Box::new(Exact { extraction, is_case_sensitive: self.is_case_sensitive }))
    }

    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        Some(&mut self.answer)
    }
}

/// See [`Settings`].
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
