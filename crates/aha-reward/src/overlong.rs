//! `kind = "overlong"`: DAPO's soft punishment of completions that come near their limit.

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// 0 up to `max_tokens - cache_tokens` tokens, from there in a straight line to -1 at `max_tokens`, -1 beyond.
///
/// Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", eq. 13.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Tokens at which the score has fallen to -1, at least 1; usually the stage's `sampling.max_tokens`. No
    /// default.
    pub max_tokens: Option<usize>,
    /// Tokens over which it falls, at most `max_tokens`. Default: a fifth of `max_tokens`, which is DAPO's
    /// 4096 of 20480.
    pub cache_tokens: Option<usize>,
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let Some(max_tokens) = self.max_tokens else {
            return Err(vec![Problem::missing("max_tokens")]);
        };
        if max_tokens == 0 {
            return Err(vec![Problem::new("max_tokens", "at least 1", "0")]);
        }
        let cache_tokens = self.cache_tokens.unwrap_or(max_tokens / 5);
        if cache_tokens > max_tokens {
            let must = format!("at most `max_tokens`, {max_tokens}");
            return Err(vec![Problem::new("cache_tokens", must, cache_tokens.to_string())]);
        }
        Ok(Box::new(Overlong { max_tokens, cache_tokens }))
    }
}

/// See [`Settings`].
pub struct Overlong {
    /// Tokens at which the score has fallen to -1.
    pub max_tokens: usize,
    /// Tokens over which it falls; 0 for at once.
    pub cache_tokens: usize,
}

impl Verifier for Overlong {
    fn kind(&self) -> Kind {
        Kind::Overlong
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let len_tokens = sample.completion_len_tokens;
        if len_tokens > self.max_tokens {
            return Verdict::scored(-1.0, format!("{len_tokens} tokens, over the limit"));
        }
        let past = len_tokens.saturating_sub(self.max_tokens - self.cache_tokens);
        if past == 0 {
            return Verdict::scored(0.0, format!("{len_tokens} tokens"));
        }
        let score = -(past as f32 / self.cache_tokens as f32);
        Verdict::scored(score, format!("{len_tokens} tokens, {past} into the last"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_falls_over_the_last_tokens() {
        let soft = Overlong { max_tokens: 20, cache_tokens: 4 };
        let hard = Overlong { max_tokens: 20, cache_tokens: 0 };
        let cases = [(0, 0.0, 0.0), (16, 0.0, 0.0), (17, -0.25, 0.0), (20, -1.0, 0.0)];
        for (completion_len_tokens, with_cache, without) in
            cases.into_iter().chain([(21, -1.0, -1.0)])
        {
            let sample = Sample { completion_len_tokens, ..Sample::default() };
            assert_eq!(soft.score(&sample).score, Some(with_cache), "{completion_len_tokens}");
            assert_eq!(hard.score(&sample).score, Some(without), "{completion_len_tokens}");
        }
    }

    #[test]
    fn the_cache_is_a_fifth_unless_it_is_given() {
        let score = |json: &str, completion_len_tokens| {
            let settings: Settings = serde_json::from_str(json).unwrap();
            let verifier =
                settings.resolve(&crate::NoBackends).map_err(|problems| problems.len())?;
            Ok(verifier
                .score(&Sample { completion_len_tokens, ..Sample::default() })
                .score
                .unwrap())
        };
        assert_eq!(score(r#"{"max_tokens":20480}"#, 18432), Ok(-0.5));
        assert_eq!(score(r#"{"max_tokens":20,"cache_tokens":20}"#, 5), Ok(-0.25));
        assert_eq!(score(r#"{"max_tokens":20,"cache_tokens":21}"#, 5), Err(1));
        assert_eq!(score(r#"{"max_tokens":0}"#, 5), Err(1));
        assert_eq!(score("{}", 5), Err(1));
    }
}
