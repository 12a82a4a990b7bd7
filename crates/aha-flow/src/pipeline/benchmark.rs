//! The benchmarks that an evaluation can name.

use aha_reward::Spec;

use super::reader::choice;
use super::rewards::Reward;
use crate::benchmark::{self, Card};

choice! {
    /// A published set of problems: the layouts of its files, its prompt and its verifier.
    pub enum Benchmark {
        /// GSM8K, word problems of grade-school arithmetic.
        Gsm8k = "gsm8k",
        /// MATH-500, competition problems with answers of every form.
        Math500 = "math500",
        /// AIME, competition problems whose answers are integers from 0 to 999.
        Aime = "aime",
        /// HumanEval, Python functions from their signatures and docstrings.
        HumanEval = "humaneval",
        /// MBPP, Python functions from a sentence and three asserts.
        Mbpp = "mbpp",
        /// GPQA, questions with four choices, shuffled by the seed and the question's id.
        Gpqa = "gpqa",
        /// Problems of Codeforces with tests of standard input and output, and ratings.
        Codeforces = "codeforces",
    }
}

impl Default for Benchmark {
    /// What a key is read over; a key that isn't there is none.
    fn default() -> Benchmark {
        Benchmark::Gsm8k
    }
}

impl Benchmark {
    /// What the benchmark is.
    pub fn card(self) -> &'static Card {
        benchmark::card(self)
    }

    /// Its verifier.
    pub fn reward(self) -> Reward {
        let spec: Spec = serde_json::from_str(self.card().reward).expect("a test reads each card");
        Reward(spec.named())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_has_a_verifier_a_place_for_the_problem_and_our_own_layout() {
        for benchmark in Benchmark::WORDS.iter().filter_map(|word| Benchmark::from_word(word)) {
            let (word, card) = (benchmark.word(), benchmark.card());
            assert!(benchmark.reward().needs().is_some(), "{word}");
            assert_eq!(card.instruction.matches("{prompt}").count(), 1, "{word}");
            let is_ours = |layout: &&benchmark::Layout| layout.publisher == "aha";
            assert_eq!(card.layouts.iter().filter(is_ours).count(), 1, "{word}");
        }
    }
}
