//! A reward model at work: scores of prompts with their completions.
//!
//! The text is made as it was when the model was trained: by the template in its [`Card`], or for a model from
//! elsewhere by its own chat template, or else plain. Where the template writes no end token, one is put at the
//! end, whether the completion was cut off or not. The score is that of the last token.
//!
//! What is scored together is packed into batches of at most [`SCORING_TOKENS_MAX`] tokens on the caller's
//! thread; a score has the same bits whatever is beside it.

use std::sync::Arc;

use aha_learn::packing::pack;
use aha_model::{Config, Model, Tokenizer};
use aha_reward::Sample;
use aha_reward::backend::PreferenceModel;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::Loaded;
use crate::pipeline::Template;
use crate::prompts::Prompter;

/// Tokens that run through a reward model at once, but for a sequence that is longer.
pub const SCORING_TOKENS_MAX: usize = 2048;

/// The key of `config.json` under which a reward model has its card.
const CARD: &str = "aha_reward";

/// What a reward model that was trained here says of itself in its `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Card {
    /// The template that it was trained with, as a pipeline file has it.
    pub template: Option<String>,
    /// Mean and standard deviation of its scores over the pairs that it was trained on.
    pub moments: Option<[f32; 2]>,
}

impl Card {
    /// The card of a model; an empty one where there is none that can be read.
    pub fn of(config: &Config) -> Card {
        let card = config.extra.get(CARD).cloned().unwrap_or_default();
        let card: Card = serde_json::from_value(card).unwrap_or_default();
        let is_sound = |[mean, std]: &[f32; 2]| mean.is_finite() && std.is_finite() && *std >= 0.0;
        Card { moments: card.moments.filter(is_sound), ..card }
    }

    /// Writes the card into a model, in place of the one that it has.
    pub fn put(&self, model: &mut Model) -> Result<()> {
        let card = serde_json::to_value(self)
            .map_err(|error| Error::bug(format!("a card has no JSON: {error}")))?;
        model.annotate(CARD, card);
        Ok(())
    }
}

/// A reward model that is ready to score.
pub struct RewardModel {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    prompter: Prompter,
    moments: Option<[f32; 2]>,
}

impl RewardModel {
    /// From a model with a head that scores.
    pub fn new(loaded: Loaded) -> Result<RewardModel> {
        let Loaded { model, tokenizer } = loaded;
        let card = Card::of(model.config());
        let template = match card.template.as_deref().and_then(Template::of_text) {
            Some(template) => template,
            None if tokenizer.chat_template().is_some() => Template::Chat,
            None => Template::Raw,
        };
        let prompter = Prompter::new(&tokenizer, &template)?;
        Ok(RewardModel { model, tokenizer, prompter, moments: card.moments })
    }

    fn plain(&self, text: &str) -> String {
        self.tokenizer.as_plain_text(text)
    }

    /// The tokens of a prompt and its completion, or why they can't be scored.
    fn encode(&self, prompt: &str, completion: &str) -> Result<Vec<u32>, String> {
        // What is scored must not end the turn that it stands in.
        let (prompt, completion) = (self.plain(prompt), self.plain(completion));
        let ids = self.prompter.example(&prompt, &completion).map_err(|e| e.to_string())?.ids;
        let positions = self.model.config().max_position_embeddings;
        match ids.len() {
            0 => Err("prompt and completion are empty".to_owned()),
            len if len > positions => {
                Err(format!("{len} tokens: the reward model has {positions} positions"))
            }
            _ => Ok(ids),
        }
    }
}

impl PreferenceModel for RewardModel {
    fn scores(&self, samples: &[Sample<'_>]) -> Vec<Result<f32, String>> {
        let encoded: Vec<Result<Vec<u32>, String>> =
            samples.iter().map(|s| self.encode(s.prompt, s.completion)).collect();
        let sequences: Vec<&[u32]> = encoded.iter().flatten().map(Vec::as_slice).collect();
        let lens: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut scores = Vec::with_capacity(sequences.len());
        for range in pack(&lens, SCORING_TOKENS_MAX) {
            let batch = &sequences[range];
            match self.model.scores(batch) {
                Ok(found) => scores.extend(found.into_iter().map(Ok)),
                Err(error) => scores.extend(batch.iter().map(|_| Err(error.to_string()))),
            }
        }
        let mut scores = scores.into_iter();
        let score = |ids: Result<Vec<u32>, String>| {
            ids.and_then(|_| scores.next().expect("there is a score for each sequence"))
        };
        encoded.into_iter().map(score).collect()
    }

    fn moments(&self) -> Option<[f32; 2]> {
        self.moments
    }
}
