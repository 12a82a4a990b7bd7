//! How answers are read out of completions and compared, and which of them wins a vote.

use std::collections::HashMap;

use aha_reward::extract::Extraction;
use aha_reward::{Kind, Settings, Spec, choice_letter, math_equal};

use super::Sample;

/// Answers of one problem that are compared with each other as expressions. One past them is another
/// answer than all of them unless it is written like one.
const COMPARED_MAX: usize = 256;
/// A decimal of as many places may be another answer rounded, so that its text alone decides nothing.
const ROUNDED_PLACES: usize = aha_reward::math::ROUNDING_PLACES as usize;

/// When two answers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equivalence {
    /// The same number, expression or list.
    Math,
    /// The same text.
    Text {
        /// Whether letter case matters.
        is_case_sensitive: bool,
    },
    /// The same letter of a multiple choice, whatever stands around it.
    Letter,
}

/// An answer in a form in which most answers that are equal are the same text.
struct Form {
    text: String,
    /// Whether two such forms are equal only if their texts are.
    decides: bool,
}

impl Equivalence {
    fn form(self, answer: &str) -> Form {
        match self {
            Equivalence::Text { is_case_sensitive: true } => {
                Form { text: answer.to_owned(), decides: true }
            }
            Equivalence::Text { is_case_sensitive: false } => {
                Form { text: answer.to_lowercase(), decides: true }
            }
            Equivalence::Letter => Form { text: option_letter(answer), decides: true },
            Equivalence::Math => match plain_number(answer) {
                Some(text) => Form { text, decides: true },
                None => Form { text: answer.split_whitespace().collect(), decides: false },
            },
        }
    }

    /// Whether two answers whose forms don't decide are the same.
    fn holds(self, a: &str, b: &str) -> bool {
        match self {
            // What is taken for the gold answer may make a difference, and here neither is.
            Equivalence::Math => math_equal(a, b) || math_equal(b, a),
            Equivalence::Text { .. } | Equivalence::Letter => {
                self.form(a).text == self.form(b).text
            }
        }
    }
}

/// The shortest spelling of an integer or a short decimal; none for anything else.
fn plain_number(answer: &str) -> Option<String> {
    let (sign, digits) = match answer.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", answer),
    };
    let (whole, places) = digits.split_once('.').unwrap_or((digits, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !are_digits(whole) || !are_digits(places) || places.len() >= ROUNDED_PLACES {
        return None;
    }
    let (whole, places) = (whole.trim_start_matches('0'), places.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if whole == "0" && places.is_empty() { "" } else { sign };
    Some(match places {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{places}"),
    })
}

/// The letter that an answer names; the text in small letters where it names none.
fn option_letter(answer: &str) -> String {
    choice_letter(answer).map_or_else(|| answer.to_lowercase(), String::from)
}

/// How answers are read out of completions and compared, for a reward that reads answers.
#[derive(Debug)]
pub struct Answers {
    extraction: Extraction,
    equivalence: Equivalence,
}

impl Answers {
    /// As the reward reads them; none for one that reads no answer.
    pub fn of(reward: &Spec) -> Option<Answers> {
        let equivalence = match (reward.kind(), &reward.settings) {
            (_, Settings::Exact(exact)) => {
                Equivalence::Text { is_case_sensitive: exact.is_case_sensitive }
            }
            (Kind::Math | Kind::Numeric, _) => Equivalence::Math,
            (Kind::Choice, _) => Equivalence::Letter,
            _ => return None,
        };
        let mut settings = reward.settings.clone();
        let extraction = settings.answer_place()?.resolve().ok()?;
        Some(Answers { extraction, equivalence })
    }

    /// The completion's answer, if it has one.
    pub fn find<'a>(&self, completion: &'a str) -> Option<&'a str> {
        self.extraction.find(completion).ok()
    }

    /// When two of them are the same.
    pub fn equivalence(&self) -> Equivalence {
        self.equivalence
    }
}

/// The votes of a problem's samples: for each that has an answer, which of the different answers it is.
#[derive(Debug)]
pub struct Votes {
    /// By sample: its answer's number, and whether it is right.
    cast: Vec<Option<(usize, bool)>>,
    answers_count: usize,
}

impl Votes {
    /// Groups the samples' answers.
    pub fn of(samples: &[Sample], equivalence: Equivalence) -> Votes {
        let mut known = Known { equivalence, by_text: HashMap::new(), open: Vec::new(), count: 0 };
        let cast = samples.iter().map(|sample| {
            let idx = known.idx_of(sample.answer.as_deref()?);
            Some((idx, sample.is_right == Some(true)))
        });
        Votes { cast: cast.collect(), answers_count: known.count }
    }

    /// cons@k: the share of the blocks of k samples, in their order, whose majority is right. Samples that
    /// fill no block are left out; with as many samples as k there is one block, and the share is 0 or 1.
    pub fn cons_at(&self, k: u64) -> f64 {
        let blocks = self.cast.chunks_exact(k.max(1) as usize);
        let count = blocks.len().max(1);
        let mut tally = vec![(0, false); self.answers_count];
        blocks.filter(|block| is_majority_right(block, &mut tally)).count() as f64 / count as f64
    }

    /// As [`Votes::cons_at`], with votes that weigh as much as each sample's score: the answer of the greatest sum
    /// wins, of equals the one that came first.
    pub fn weighted_cons_at(&self, scores: &[f64], k: u64) -> f64 {
        let k = k.max(1) as usize;
        let blocks = self.cast.chunks_exact(k);
        let count = blocks.len().max(1);
        let right = blocks.zip(scores.chunks_exact(k)).filter(|(block, scores)| {
            winner(block, Some(*scores))
                .is_some_and(|sample_idx| block[sample_idx].is_some_and(|(_, is_right)| is_right))
        });
        right.count() as f64 / count as f64
    }

    /// The first sample of the answer that wins the vote of all samples, and each sample's part in it; none where
    /// no sample has an answer. With scores, votes weigh these.
    pub fn winner(&self, scores: Option<&[f64]>) -> Option<(usize, Vec<bool>)> {
        let sample_idx = winner(&self.cast, scores)?;
        let answer = self.cast[sample_idx].map(|(idx, _)| idx);
        let is_same = |vote: &Option<(usize, bool)>| vote.map(|(idx, _)| idx) == answer;
        Some((sample_idx, self.cast.iter().map(is_same).collect()))
    }

    /// Share of the samples that have an answer.
    pub fn answered_share(&self) -> f64 {
        self.cast.iter().flatten().count() as f64 / self.cast.len().max(1) as f64
    }
}

/// Whether the most frequent answer is right, which is what the first sample of it says; of answers as
/// frequent as each other the one that came first wins. `tally` has room for every answer.
fn is_majority_right(block: &[Option<(usize, bool)>], tally: &mut [(usize, bool)]) -> bool {
    for (idx, _) in block.iter().flatten() {
        tally[*idx] = (0, false);
    }
    for &(idx, is_right) in block.iter().flatten() {
        let (votes, first) = tally[idx];
        tally[idx] = (votes + 1, if votes == 0 { is_right } else { first });
    }
    let voted = || block.iter().flatten().map(|(idx, _)| tally[*idx]);
    let most = voted().map(|(votes, _)| votes).max().unwrap_or(0);
    voted().find(|(votes, _)| *votes == most).is_some_and(|(_, is_right)| is_right)
}

/// The first sample of the answer with the most votes, or with the greatest sum of scores; of equals the one that
/// came first.
fn winner(block: &[Option<(usize, bool)>], scores: Option<&[f64]>) -> Option<usize> {
    let mut sums: Vec<(usize, f64)> = Vec::new();
    let mut place_of: HashMap<usize, usize> = HashMap::new();
    for (sample_idx, vote) in block.iter().enumerate() {
        let Some((answer_idx, _)) = vote else { continue };
        let place = *place_of.entry(*answer_idx).or_insert(sums.len());
        if place == sums.len() {
            sums.push((sample_idx, 0.0));
        }
        sums[place].1 += scores.map_or(1.0, |scores| scores[sample_idx]);
    }
    let best = sums.iter().map(|(_, sum)| *sum).max_by(f64::total_cmp)?;
    sums.iter().find(|(_, sum)| *sum == best).map(|(sample_idx, _)| *sample_idx)
}

/// The different answers of a problem so far.
struct Known {
    equivalence: Equivalence,
    by_text: HashMap<String, usize>,
    /// Number, first spelling, and whether its form decides.
    open: Vec<(usize, String, bool)>,
    count: usize,
}

impl Known {
    fn idx_of(&mut self, answer: &str) -> usize {
        let form = self.equivalence.form(answer);
        if let Some(idx) = self.by_text.get(&form.text) {
            return *idx;
        }
        let same = self.open.iter().find(|(_, known, decides)| {
            !(form.decides && *decides) && self.equivalence.holds(known, answer)
        });
        let idx = match same {
            Some((idx, ..)) => *idx,
            None => {
                self.count += 1;
                if self.open.len() < COMPARED_MAX {
                    self.open.push((self.count - 1, answer.to_owned(), form.decides));
                }
                self.count - 1
            }
        };
        self.by_text.insert(form.text, idx);
        idx
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::samples;
    use super::*;

    fn is_right(text: &str, equivalence: Equivalence) -> bool {
        let samples = samples(text);
        Votes::of(&samples, equivalence).cons_at(samples.len() as u64) == 1.0
    }

    #[test]
    fn the_majority_is_over_equal_answers_and_the_earliest_wins_a_tie() {
        let is_right = |text: &str| is_right(text, Equivalence::Math);
        assert!(is_right("0.5! 3 1/2! 4"));
        assert!(!is_right("3 3 0.5!"));
        assert!(is_right("7! 8 8 7!"), "two votes each: 7 came first");
        assert!(!is_right("8 7! 8 7!"), "two votes each: 8 came first");
        assert!(is_right("- - - 7!"), "who has no answer doesn't vote");
        assert!(!is_right("- -"));
    }

    #[test]
    fn text_is_compared_as_the_reward_does() {
        let yes = "no Yes! yes!";
        assert!(is_right(yes, Equivalence::Text { is_case_sensitive: false }));
        assert!(!is_right(yes, Equivalence::Text { is_case_sensitive: true }));
        let spec = |json| serde_json::from_str::<Spec>(json).unwrap();
        let exact = spec(r#"{"kind":"exact","is_case_sensitive":false}"#);
        let answers = Answers::of(&exact).unwrap();
        assert_eq!(answers.equivalence, Equivalence::Text { is_case_sensitive: false });
        assert!(Answers::of(&spec(r#"{"kind":"format"}"#)).is_none());
    }

    #[test]
    fn a_choice_is_its_letter() {
        for text in ["C", "c", "(C)", "C.", "**C**", "C) 42"] {
            assert_eq!(option_letter(text), "C", "{text}");
        }
        assert_eq!(option_letter("Cats"), "cats");
        assert_eq!(option_letter("42"), "42");
        assert!(is_right("(B)! A B. b", Equivalence::Letter));
    }

    #[test]
    fn fewer_votes_are_counted_in_blocks() {
        let votes = Votes::of(&samples("7! 8 8 7! 7! 7! -"), Equivalence::Math);
        // Alone, four of seven are right.
        assert!((votes.cons_at(1) - 4.0 / 7.0).abs() < 1e-15);
        // 7 8 is 7 by the tie; 8 7 is 8; 7 7 is 7; the last is in no pair.
        assert!((votes.cons_at(2) - 2.0 / 3.0).abs() < 1e-15);
        // 7 8 8 is 8; 7 7 7 is 7.
        assert!((votes.cons_at(3) - 0.5).abs() < 1e-15);
        assert_eq!(votes.cons_at(7), 1.0);
        assert!((votes.answered_share() - 6.0 / 7.0).abs() < 1e-15);
    }

    #[test]
    fn a_weighted_vote_goes_to_the_answer_of_the_greatest_sum() {
        let votes = Votes::of(&samples("8 7! 8 7! - 8"), Equivalence::Math);
        let cons = |scores: [f64; 6], k| votes.weighted_cons_at(&scores, k);
        assert_eq!(cons([1.0; 6], 6), votes.cons_at(6));
        assert_eq!(cons([1.0; 6], 2), votes.cons_at(2));
        assert_eq!(cons([0.1, 0.9, 0.1, 0.9, 9.0, 0.1], 6), 1.0, "who has no answer has no vote");
        assert_eq!(cons([0.5, 0.5, 0.5, 0.5, 0.0, 0.0], 6), 0.0, "of equals the first");
        assert_eq!(cons([-1.0, -0.5, -1.0, -0.5, 0.0, -1.0], 6), 1.0);
        // Pairs: 8 7 by 0.1 and 0.9, 8 7 by 0.9 and 0.1, - 8.
        assert!((cons([0.1, 0.9, 0.9, 0.1, 1.0, 1.0], 2) - 1.0 / 3.0).abs() < 1e-15);
        let same = |scores: Option<&[f64]>| votes.winner(scores).unwrap();
        assert_eq!(same(None), (0, vec![true, false, true, false, false, true]));
        let scores = [0.1, 0.9, 0.1, 0.9, 9.0, 0.1];
        assert_eq!(same(Some(&scores)), (1, vec![false, true, false, true, false, false]));
        assert_eq!(Votes::of(&samples("- -"), Equivalence::Math).winner(None), None);
    }

    #[test]
    fn the_short_spelling_of_numbers_says_what_the_comparison_says() {
        let texts =
            ["7", "007", "7.0", "-7", "0", "-0", "0.5", "0.50", "00.5", "12.25", "1.5", "15"];
        for a in texts {
            for b in texts {
                let same = plain_number(a).unwrap() == plain_number(b).unwrap();
                assert_eq!(same, math_equal(a, b), "{a} and {b}");
            }
        }
        for text in ["", "-", "1,000", "1/2", ".5", "5.", "0.333333", "1e3", "x", "7 apples"] {
            assert_eq!(plain_number(text), None, "{text}");
        }
    }

    /// Ten thousand different answers are told apart without being compared with each other.
    #[test]
    fn many_different_answers_are_grouped_at_once() {
        let text: Vec<String> = (0..10_000).map(|i| format!("{i}")).collect();
        let votes = Votes::of(&samples(&format!("{} 77!", text.join(" "))), Equivalence::Math);
        assert_eq!(votes.answers_count, 10_000);
        assert_eq!(votes.cons_at(10_001), 0.0, "the first sample of 77 was not right");
        let text: Vec<String> = (0..600).map(|i| format!("x_{i}")).collect();
        let twice = format!("{} {}", text.join(" "), text.join(" "));
        assert_eq!(Votes::of(&samples(&twice), Equivalence::Math).answers_count, 600);
    }
}
