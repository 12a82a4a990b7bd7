//! What a text looks like: its words, and those of reflection. Pure, for SQL and reports.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::prose::every_word;

/// The phrases that [`reflection_count`] counts, as patterns: what R1 says when it looks back at its
/// own reasoning.
pub const REFLECTIONS: &[&str] = &[
    r"wait",
    r"hm+",
    r"actually",
    r"re-?check(?:s|ed|ing)?",
    r"double[- ]check(?:s|ed|ing)?",
    r"re-?examin(?:e|es|ed|ing)",
    r"re-?consider(?:s|ed|ing)?",
    r"re-?evaluat(?:e|es|ed|ing)",
    r"re-?think(?:s|ing)?",
    r"let me (?:check|verify|re-?read|think again|try again|see if)",
    r"let's (?:check|verify|try again)",
    r"on second thought",
    r"i made (?:a|an) (?:mistake|error)",
];

static REFLECTION: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = format!(r"(?i)\b(?:{})\b", REFLECTIONS.join("|"));
    Regex::new(&pattern).expect("the patterns are constants")
});

/// How often the text reflects: whole words and phrases of [`REFLECTIONS`] in any letter case.
/// Phrases that overlap count once.
///
/// ```
/// assert_eq!(aha_reward::reflection_count("Wait, let me check. The waiter waits."), 2);
/// ```
pub fn reflection_count(text: &str) -> usize {
    reflections(text).count()
}

/// Where those are that [`reflection_count`] counts, in order: ranges of bytes of the text.
pub fn reflections(text: &str) -> impl Iterator<Item = Range<usize>> {
    REFLECTION.find_iter(text).map(|found| found.range())
}

/// The number of words: runs of letters and digits, and each character of a script without blanks (Han, kana,
/// Thai).
///
/// ```
/// assert_eq!(aha_reward::word_count("The answer is 42: 四十二"), 7);
/// ```
pub fn word_count(text: &str) -> usize {
    words(text).count()
}

/// The words that [`word_count`] counts, each a part of the text. Apostrophes and underlines are parts of words.
///
/// ```
/// let words: Vec<&str> = aha_reward::text::words("It's 4.2: 四二").collect();
/// assert_eq!(words, ["It's", "4", "2", "四", "二"]);
/// ```
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    every_word(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_words_count_whole_and_in_any_case() {
        let cases = [
            ("", 0),
            ("Wait, wait. WAIT!", 3),
            ("waiter awaits waiting", 0),
            ("Hmm, hm, hmmmm", 3),
            ("Let me check. Let me double-check.", 2),
            ("recheck re-check rechecking", 3),
            ("re-examine it, reexamine it", 2),
            ("Actually, no", 1),
            ("factually", 0),
            ("On second thought, let's verify", 2),
            ("I made a mistake; let me try again", 2),
        ];
        for (text, want) in cases {
            assert_eq!(reflection_count(text), want, "{text}");
        }
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let cases = [
            ("", 0),
            ("one two", 2),
            ("x_1 = 3.5", 3),
            ("don't", 1),
            ("答案是five五", 5),
            ("ответ пять", 2),
            ("--- !!!", 0),
        ];
        for (text, want) in cases {
            assert_eq!(word_count(text), want, "{text}");
        }
    }
}
