//! `kind = "repetition"`: does the completion say the same again and again?

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::prose::every_word;
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// Words of a text that are read, from its start: more than any context window has tokens today.
pub const READ_WORDS_MAX: usize = 1 << 18;

/// Most words of an n-gram.
pub const LEN_WORDS_MAX: usize = 100;

/// The share of n-grams that occur again, times `penalty`: 0 where none does.
///
/// `penalty · (1 - distinct n-grams / all n-grams)`, 0 for a text with fewer than `ngram_len_words` words. Words
/// are runs of letters and digits in any letter case, and each Chinese character, kana or Thai letter. The
/// penalty of Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", as a score of the whole
/// completion.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Words of an n-gram, 1 to 100. Default 3, as is common practice: it sees loops of any length. Longer ones
    /// leave phrases alone that any text on one subject repeats.
    pub ngram_len_words: usize,
    /// Score of a text that is nothing but repetition, finite. Default -1.
    pub penalty: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ngram_len_words: 3, penalty: -1.0 }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let mut problems = Vec::new();
        let &Settings { ngram_len_words, penalty } = self;
        if !(1..=LEN_WORDS_MAX).contains(&ngram_len_words) {
            let must = format!("from 1 to {LEN_WORDS_MAX}");
            problems.push(Problem::new("ngram_len_words", must, ngram_len_words.to_string()));
        }
        if !penalty.is_finite() {
            problems.push(Problem::new("penalty", "finite", penalty.to_string()));
        }
        if problems.is_empty() {
            Ok(Box::new(Repetition { ngram_len_words, penalty }))
        } else {
            Err(problems)
        }
    }
}

/// See [`Settings`].
pub struct Repetition {
    /// Words of an n-gram, from 1.
    pub ngram_len_words: usize,
    /// Score of a text that is nothing but repetition.
    pub penalty: f32,
}

impl Verifier for Repetition {
    fn kind(&self) -> Kind {
        Kind::Repetition
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let len = self.ngram_len_words;
        match ngrams(sample.completion, len) {
            Some((distinct_count, all_count)) => {
                let share = share(distinct_count, all_count) as f32;
                let again_count = all_count - distinct_count;
                // Not -0 where nothing is repeated.
                let score = if again_count == 0 { 0.0 } else { self.penalty * share };
                Verdict::scored(score, format!("{again_count} of {all_count} {len}-grams again"))
            }
            None => Verdict::scored(0.0, format!("fewer than {len} words")),
        }
    }
}

/// The share of the text's n-grams of `len_words` words that occur again, in [0, 1), as the reward `repetition`
/// counts them; null where the text has fewer words or `len_words` is not from 1 to 100.
///
/// ```
/// assert_eq!(aha_reward::repetition_share("wait, wait, wait", 1), Some(2.0 / 3.0));
/// ```
pub fn repetition_share(text: &str, len_words: usize) -> Option<f64> {
    if !(1..=LEN_WORDS_MAX).contains(&len_words) {
        return None;
    }
    ngrams(text, len_words).map(|(distinct_count, all_count)| share(distinct_count, all_count))
}

fn share(distinct_count: usize, all_count: usize) -> f64 {
    (all_count - distinct_count) as f64 / all_count as f64
}

/// How many distinct n-grams there are, and how many in all.
fn ngrams(text: &str, len: usize) -> Option<(usize, usize)> {
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let words: Vec<u32> = every_word(text)
        .take(READ_WORDS_MAX)
        .map(|word| {
            let next = numbers.len() as u32;
            *numbers.entry(word.to_lowercase()).or_insert(next)
        })
        .collect();
    let distinct: HashSet<&[u32]> = words.windows(len).collect();
    (words.len() >= len).then(|| (distinct.len(), words.len() - len + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_ngrams_seen_before() {
        let cases = [
            ("a b c d", 1, Some(0.0)),
            ("a b a b", 1, Some(0.5)),
            ("a b a b", 2, Some(1.0 / 3.0)),
            ("a b a b", 4, Some(0.0)),
            ("a b a b", 5, None),
            ("Wait, wait. WAIT", 1, Some(2.0 / 3.0)),
            ("是的是的", 2, Some(1.0 / 3.0)),
            ("1 + 1 = 2, 1 + 1 = 2", 3, Some(0.25)),
            ("a b", 0, None),
            ("a b", 101, None),
            ("", 1, None),
        ];
        for (text, len, want) in cases {
            assert_eq!(repetition_share(text, len), want, "{text} {len}");
        }
    }

    #[test]
    fn the_penalty_is_scaled_by_the_share() {
        let score = |text: &str, penalty| {
            let verifier = Repetition { ngram_len_words: 1, penalty };
            verifier.score(&Sample { completion: text, ..Sample::default() }).score
        };
        assert_eq!(score("a a a a", -1.0), Some(-0.75));
        assert_eq!(score("a a a a", 2.0), Some(1.5));
        assert_eq!(score("", -1.0), Some(0.0));
        assert!(score("a b", -1.0).unwrap().is_sign_positive());
    }

    #[test]
    fn a_loop_of_any_length_is_seen() {
        let text = "let me check that once more ".repeat(50);
        assert!(repetition_share(&text, 3).unwrap() > 0.95);
        assert!(repetition_share(&text, 40).unwrap() > 0.9);
    }
}
