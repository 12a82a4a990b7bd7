//! What to draw, and within which limits.

use aha_compute::WeightForm;
use serde::{Deserialize, Serialize};

use crate::{Error, Thinking};

/// How completions are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature, from 1e-6 to 1e6. 1.0 draws from the policy itself; 0 takes the likeliest token.
    pub temperature: f32,
    /// Draws from the fewest likeliest tokens whose probabilities reach this sum, in (0, 1]. 1.0 is off.
    pub top_p: f32,
    /// Draws from this many likeliest tokens; 0 is off. Applied before `top_p`.
    pub top_k: usize,
    /// Most tokens of a completion, the stop token included.
    pub max_tokens: usize,
    /// A completion ends with the token that completes one of these texts.
    pub stop: Vec<String>,
    /// A completion ends with one of these tokens, which belongs to it.
    pub stop_token_ids: Vec<u32>,
    /// How long the model thinks ahead of its answer; none: as long as it wants.
    pub thinking: Option<Thinking>,
    /// What weights are multiplied as. Log-probs are then those of that product: with another form than
    /// [`WeightForm::Same`] they are not what the learner computes.
    pub weights: WeightForm,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_tokens: 256,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            thinking: None,
            weights: WeightForm::Same,
        }
    }
}

impl Sampling {
    /// Fails for settings out of range. Written so that NaN fails.
    pub fn check(&self) -> Result<(), Error> {
        let require = |ok: bool, key: &str, must: &str, got: String| {
            let what = format!("sampling setting `{key}` is {got}");
            if ok {
                Ok(())
            } else {
                Err(Error::Input { what, hint: format!("`{key}` must be {must}") })
            }
        };
        let (t, p) = (self.temperature, self.top_p);
        // So that logits can be divided by it, and a difference is left of them.
        let is_temperature = t == 0.0 || (1e-6..=1e6).contains(&t);
        require(is_temperature, "temperature", "0, or from 1e-6 to 1e6", t.to_string())?;
        require(0.0 < p && p <= 1.0, "top_p", "in (0, 1]", p.to_string())?;
        require(1 <= self.max_tokens, "max_tokens", "at least 1", self.max_tokens.to_string())?;
        require(
            self.stop.iter().all(|s| !s.is_empty()),
            "stop",
            "texts of at least one byte",
            "empty".into(),
        )?;
        match self.thinking.as_ref().and_then(|thinking| thinking.problem(self.max_tokens)) {
            Some((key, must, got)) => require(false, &format!("thinking.{key}"), &must, got),
            None => Ok(()),
        }
    }

    /// The factor on logits. At temperature 0 log-probs are those of temperature 1.
    pub fn inv_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { 1.0 / self.temperature }
    }
}

/// Bounds of the engine's work and memory. They change speed, never results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences decoded together.
    pub sequences_max: usize,
    /// Most prompt tokens prefilled in one step beside the decoding sequences.
    pub prefill_tokens_max: usize,
    /// Bytes of the key/value cache.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { sequences_max: 256, prefill_tokens_max: 512, cache_bytes: 512 << 20 }
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was drawn.
    Stop,
    /// A stop text was completed.
    StopString,
    /// `max_tokens` was reached: the completion is truncated.
    Length,
}

impl FinishReason {
    /// The value of the column `finish_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::StopString => "stop_string",
            FinishReason::Length => "length",
        }
    }
}
