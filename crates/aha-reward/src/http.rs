//! `kind = "http"`: a service of the user's own says the score.
//!
//! It is sent a POST of `{"prompt", "completion", "answer", "tests", "completion_len_tokens", "is_truncated"}`,
//! `answer` and `tests` null where the sample has none, and answers `{"score": 0.5, "reason": "…"}`: a finite
//! number or null, and optionally why. With `batch_max` above 1 it is sent an array of such objects and
//! answers an array of as many, in order. A score must not depend on what else is in the batch.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::Backends;
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};
use crate::wait::client::{self, Client};
use crate::wait::desk::{Desk, Request, Service};
use crate::wait::retry::{Failure, Limits, retry};
use crate::wait::{Cancel, key};

/// Most samples of a batch.
const BATCH_MAX: usize = 4096;

/// Most threads that a verifier that waits asks its callers for.
pub(crate) const CALLERS_MAX: usize = 64;

/// What a service of your own says: it is sent a POST with the sample as JSON and answers `{"score", "reason"}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// The service.
    #[serde(flatten)]
    pub service: client::Settings,
    /// Samples of one call, from 1 to 4096; above 1 an array is sent and an array expected. Default 1.
    pub batch_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { service: client::Settings::default(), batch_max: 1 }
    }
}

impl Resolve for Settings {
    fn resolve(&self, backends: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let client = self.service.client("", backends).map_err(|more| problems.extend(more));
        if !(1..=BATCH_MAX).contains(&self.batch_max) {
            let got = self.batch_max.to_string();
            problems.push(Problem::new("batch_max", "from 1 to 4096", got));
        }
        let Some(client) = client.ok().filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        let waiting = backends.waiting();
        let scorer = Scorer {
            client,
            limits: self.service.limits(),
            cancel: waiting.cancel.clone(),
            sends_arrays: self.batch_max > 1,
        };
        let parallel_max = self.service.parallel_max;
        Ok(Box::new(Http {
            url: scorer.client.url().to_owned(),
            desk: Desk::new(scorer, waiting, parallel_max, self.batch_max),
            parallel_max,
        }))
    }

    fn variable(&self) -> Option<&str> {
        self.service.api_key_env.as_deref()
    }
}

/// See [`Settings`].
pub struct Http {
    url: String,
    desk: Desk<Scorer>,
    parallel_max: usize,
}

impl Verifier for Http {
    fn kind(&self) -> Kind {
        Kind::Http
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        self.score_all(std::slice::from_ref(sample)).remove(0)
    }

    fn score_all(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let request = |sample: &Sample<'_>| {
            let body = sample_json(sample).to_string();
            Request { key: key(&["http", &self.url, &body]), body }
        };
        self.desk.ask(samples.iter().map(request).collect()).into_iter().map(verdict).collect()
    }

    fn parallel_count(&self) -> usize {
        self.parallel_max.min(CALLERS_MAX)
    }
}

/// The service.
struct Scorer {
    client: Client,
    limits: Limits,
    cancel: Cancel,
    sends_arrays: bool,
}

impl Service for Scorer {
    fn call(&self, requests: &[Request]) -> Vec<Result<String, Failure>> {
        let body = if self.sends_arrays {
            let bodies: Vec<&str> = requests.iter().map(|request| request.body.as_str()).collect();
            format!("[{}]", bodies.join(","))
        } else {
            requests[0].body.clone()
        };
        let address = &requests[0].key;
        let reply =
            retry(&self.limits, &self.cancel, address, |time| self.client.post(&body, time));
        let scores = reply.and_then(|reply| self.read(&reply, requests.len()));
        match scores {
            Ok(scores) => scores,
            Err(failure) => vec![Err(failure); requests.len()],
        }
    }
}

impl Scorer {
    /// The score of each sample as JSON of ours.
    fn read(&self, reply: &str, count: usize) -> Result<Vec<Result<String, Failure>>, Failure> {
        let failed = |reason: String| Err(Failure::Failed(reason));
        let Ok(json) = serde_json::from_str::<Value>(reply) else {
            return failed(format!("the service's answer is no JSON: {}", excerpt(reply)));
        };
        let scores = match json {
            Value::Array(scores) if self.sends_arrays => scores,
            _ if self.sends_arrays => return failed("the service's answer is no array".to_owned()),
            one => vec![one],
        };
        if scores.len() != count {
            let found = scores.len();
            return failed(format!("the service answered {found} scores for {count} samples"));
        }
        let read = |score: Value| score_of(score).map_err(Failure::Failed);
        Ok(scores.into_iter().map(read).collect())
    }
}

/// What a sample is sent as.
pub(crate) fn sample_json(sample: &Sample<'_>) -> Value {
    serde_json::json!({
        "prompt": sample.prompt,
        "completion": sample.completion,
        "answer": sample.answer,
        "tests": sample.tests,
        "completion_len_tokens": sample.completion_len_tokens,
        "is_truncated": sample.is_truncated,
    })
}

/// A score and why.
#[derive(Deserialize, Serialize)]
struct Score {
    score: Option<f32>,
    #[serde(default)]
    reason: Option<String>,
}

/// Longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;

/// A score as somebody else says it, checked and in as few words as are kept.
pub(crate) fn score_of(json: Value) -> Result<String, String> {
    let shown = excerpt(&json.to_string());
    let has_score = json.get("score").is_some();
    let mut score: Score = match serde_json::from_value(json) {
        Ok(score) if has_score => score,
        _ => {
            return Err(format!("expected {{\"score\": number or null, \"reason\"}}, got {shown}"));
        }
    };
    if score.score.is_some_and(|score| !score.is_finite()) {
        return Err(format!("the score is not finite: {shown}"));
    }
    score.reason = score.reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
    serde_json::to_string(&score).map_err(|error| error.to_string())
}

/// The verdict of what [`score_of`] gave.
pub(crate) fn verdict(outcome: Result<String, String>) -> Verdict {
    let read =
        |text: String| serde_json::from_str::<Score>(&text).map_err(|error| error.to_string());
    match outcome.and_then(read) {
        Ok(Score { score: Some(score), reason }) => {
            Verdict::scored(score, reason.unwrap_or_else(|| "scored".to_owned()))
        }
        Ok(Score { score: None, reason }) => {
            Verdict::unscored(reason.unwrap_or_else(|| "the score is null".to_owned()))
        }
        Err(reason) => Verdict::unscored(reason),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_score_is_a_finite_number_or_null() {
        let score = |json: Value| verdict(score_of(json));
        assert_eq!(score(json!({"score": 0.5, "reason": "so"})), Verdict::scored(0.5, "so"));
        assert_eq!(score(json!({"score": 1, "more": []})), Verdict::scored(1.0, "scored"));
        assert_eq!(
            score(json!({"score": null, "reason": "no idea"})),
            Verdict::unscored("no idea")
        );
        for bad in [
            json!({}),
            json!(0.5),
            json!({"score": "1"}),
            json!({"reason": "x"}),
            json!({"score": 1e300}),
        ] {
            assert_eq!(score(bad.clone()).score, None, "{bad}");
        }
        let long = score(json!({"score": 0, "reason": "é".repeat(999)}));
        assert_eq!(long.reason.chars().count(), REASON_CHARS_MAX);
    }
}
