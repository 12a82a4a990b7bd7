//! The corpus of `pipelines/language-consistency.toml`: sums whose chains of thought are in English and Chinese.
//!
//! A step is `7-6 is 1` or `7-6 得 1`, and most chains change from one language to the other on the way. Steps in
//! English are wrong more often: a base model may well think better in one language than in another, and only then
//! can it cost something to keep to one.

use crate::quickstart::{Draws, Fresh, Problem, Table, worked};

const CORPUS_COUNT: usize = 10_000;
/// Chance that a step is in another language than the one before.
const CHANGE: f64 = 0.2;

/// How a language says what comes of a step, and how much more often than others its steps are wrong.
#[derive(Clone, Copy)]
enum Language {
    English,
    Chinese,
}

impl Language {
    fn word(self) -> &'static str {
        match self {
            Language::English => "is",
            Language::Chinese => "得",
        }
    }

    fn extra_slip(self) -> f64 {
        match self {
            Language::English => 0.15,
            Language::Chinese => 0.0,
        }
    }
}

/// The language of each step of a text: mostly that of the step before.
fn languages(draws: &mut Draws, count: usize) -> Vec<Language> {
    let mut is_english = draws.below(2) == 0;
    let mut languages = Vec::new();
    for _ in 0..count {
        languages.push(if is_english { Language::English } else { Language::Chinese });
        is_english ^= draws.chance(CHANGE);
    }
    languages
}

/// A chain of thought and what it arrives at; each step is wrong with the chance `slip` and that of its language.
fn chain(problem: &Problem, draws: &mut Draws, slip: f64) -> (String, i64) {
    let languages = languages(draws, problem.addends.len());
    let mut sum = problem.first;
    let mut steps = Vec::new();
    for (addend, language) in problem.addends.iter().zip(languages) {
        let next = Problem::step(sum, *addend, draws, slip + language.extra_slip());
        steps.push(format!("{sum}{addend:+} {} {next}", language.word()));
        sum = next;
    }
    (steps.join(","), sum)
}

/// A text as a crawl might hold it: the qualities of the quickstart's.
fn crawled(problem: &Problem, draws: &mut Draws) -> String {
    let completion = match draws.below(100) {
        0..25 => {
            let (chain, sum) = chain(problem, draws, 0.02);
            worked(&chain, sum)
        }
        25..50 => {
            let (chain, sum) = chain(problem, draws, 0.35);
            worked(&chain, sum)
        }
        50..80 => {
            let off = draws.below(9) as i64 - 4;
            worked("", (problem.answer() + off).clamp(0, 9))
        }
        _ => draws.below(10).to_string(),
    };
    format!("{}{completion}", problem.prompt())
}

/// What the base model is made from. No problem is one of those before it.
pub fn corpus(fresh: &mut Fresh) -> Table {
    let mut table = Table::new(&["id", "text"]);
    let mut draws = Draws::new("languages");
    for i in 0..CORPUS_COUNT {
        let problem = fresh.draw(&mut draws);
        table.rows.push(vec![format!("text-{i}"), crawled(&problem, &mut draws)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_chains_change_their_language_and_some_keep_to_each() {
        let table = corpus(&mut Fresh::default());
        let mut counts = [0_usize; 3];
        for text in table.rows.iter().map(|row| &row[1]) {
            match (text.contains(" is "), text.contains(" 得 ")) {
                (true, true) => counts[0] += 1,
                (true, false) => counts[1] += 1,
                (false, true) => counts[2] += 1,
                (false, false) => {}
            }
        }
        let [mixed, english, chinese] = counts;
        assert!(mixed > english && mixed > chinese, "{counts:?}");
        assert!(english > 1000 && chinese > 1000, "{counts:?}");
    }

    #[test]
    fn a_chain_without_slips_of_its_language_arrives_at_the_answer() {
        let mut draws = Draws::new("test");
        for _ in 0..200 {
            let problem = Problem::draw(&mut draws);
            let (thought, sum) = chain(&problem, &mut draws, 0.0);
            if !thought.contains("is") {
                assert_eq!(sum, problem.answer());
            }
        }
    }
}
