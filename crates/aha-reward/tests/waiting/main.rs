//! Rewards that wait for others, against servers and programs with faults. Servers listen on the loopback
//! device; nothing here depends on how fast they are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod command;
mod http;
mod judge;
#[path = "../keys/mod.rs"]
mod key_cases;
mod keys;
mod server;

use std::path::Path;
use std::sync::Arc;

use aha_reward::backend::{ChatModel, PreferenceModel};
use aha_reward::wait::{Answers, Waiting};
use aha_reward::{Backends, Sample, Spec, Verdict, Verifier};

/// Lends a key, a place for answers, and a judge that says how long its prompt is.
#[derive(Default)]
struct Lender {
    waiting: Waiting,
}

impl Lender {
    /// With answers in that folder.
    fn keeping(folder: &Path) -> Lender {
        let answers = Answers::open(&folder.join("answers.jsonl")).unwrap();
        let answers = Some(Arc::new(answers));
        Lender { waiting: Waiting { answers, keeps_failures: true, ..Waiting::default() } }
    }
}

const KEY: &str = "sk-very/secret";

impl Backends for Lender {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        Err(name.to_owned())
    }

    fn chat_model(
        &self,
        name: &str,
        max_tokens: usize,
        temperature: f64,
    ) -> Result<Arc<dyn ChatModel>, String> {
        match name {
            "critic" => Ok(Arc::new(Critic { max_tokens, temperature })),
            _ => Err(format!("`{name}`")),
        }
    }

    fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    fn variable(&self, _: &str) -> Result<String, String> {
        Ok(KEY.to_owned())
    }
}

/// What it says is the prompt's length, cut off at its limit, and at a temperature as much more.
struct Critic {
    max_tokens: usize,
    temperature: f64,
}

impl ChatModel for Critic {
    fn answers(&self, prompts: &[String]) -> Vec<Result<String, String>> {
        let score = |prompt: &String| prompt.len().min(self.max_tokens) as f64 + self.temperature;
        prompts.iter().map(|prompt| Ok(format!("Score: {}", score(prompt)))).collect()
    }
}

/// The verifier of a reward as JSON.
fn verifier(json: &str, lender: &Lender) -> Box<dyn Verifier> {
    let spec: Spec = serde_json::from_str(json).unwrap();
    spec.resolve(lender).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A sample of each completion.
fn samples<'a>(completions: &[&'a str]) -> Vec<Sample<'a>> {
    let sample = |completion: &&'a str| Sample {
        prompt: "p",
        completion,
        answer: Some("a"),
        ..Sample::default()
    };
    completions.iter().map(sample).collect()
}

/// The verdict of one completion.
fn judge(verifier: &dyn Verifier, completion: &str) -> Verdict {
    verifier.score(&samples(&[completion])[0])
}
