//! What a verifier needs that this crate doesn't have: models, secrets, a place for answers. Whoever has them
//! lends them through [`Backends`].

use std::sync::Arc;

use crate::verifier::Sample;
use crate::wait::Waiting;

/// A trained preference model.
pub trait PreferenceModel: Send + Sync {
    /// The score of each sample, unbounded, or why it has none. A sample's score doesn't depend on what else
    /// is asked with it.
    fn scores(&self, samples: &[Sample<'_>]) -> Vec<Result<f32, String>>;

    /// Mean and standard deviation of its scores over the pairs that it was trained on, where they are known.
    fn moments(&self) -> Option<[f32; 2]> {
        None
    }
}

/// A language model that answers.
pub trait ChatModel: Send + Sync {
    /// The answer to each prompt, or why there is none. An answer doesn't depend on what else is asked with it.
    fn answers(&self, prompts: &[String]) -> Vec<Result<String, String>>;
}

/// Lends models by their names in the pipeline, and what verifiers need that wait for others.
pub trait Backends {
    /// The preference model of that name, or why there is none.
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String>;

    /// The language model of that name, which answers with at most `max_tokens` tokens drawn at that
    /// temperature; or why there is none.
    fn chat_model(
        &self,
        name: &str,
        max_tokens: usize,
        temperature: f64,
    ) -> Result<Arc<dyn ChatModel>, String>;

    /// What verifiers that wait for others share.
    fn waiting(&self) -> Waiting {
        Waiting::default()
    }

    /// The value of an environment variable, or what is wrong with it.
    fn variable(&self, name: &str) -> Result<String, String> {
        std::env::var(name).map_err(|_| format!("`{name}`, which is not set"))
    }
}

/// Lends nothing: where there is no pipeline.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBackends;

impl Backends for NoBackends {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        Err(format!("`{name}`, which only a pipeline can lend"))
    }

    fn chat_model(&self, name: &str, _: usize, _: f64) -> Result<Arc<dyn ChatModel>, String> {
        Err(format!("`{name}`, which only a pipeline can lend"))
    }
}
