//! What a text looks like: reflection words, and the share of a language. Pure, for SQL and reports.

use std::sync::LazyLock;

use regex::Regex;

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
    REFLECTION.find_iter(text).count()
}

/// A writing system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Latin,
    Han,
    Kana,
    Hangul,
    Cyrillic,
    Greek,
    Arabic,
    Hebrew,
    Devanagari,
    Thai,
    Other,
}

impl Script {
    fn of(c: char) -> Self {
        match c {
            'A'..='Z' | 'a'..='z' | '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => Script::Latin,
            '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{323af}' => Script::Han,
            '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' => Script::Kana,
            '\u{ac00}'..='\u{d7af}' | '\u{1100}'..='\u{11ff}' => Script::Hangul,
            '\u{400}'..='\u{52f}' => Script::Cyrillic,
            '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}' => Script::Greek,
            '\u{600}'..='\u{6ff}' | '\u{750}'..='\u{77f}' => Script::Arabic,
            '\u{590}'..='\u{5ff}' => Script::Hebrew,
            '\u{900}'..='\u{97f}' => Script::Devanagari,
            '\u{e00}'..='\u{e7f}' => Script::Thai,
            _ => Script::Other,
        }
    }

    /// Whether words have no blanks between them, so that each character counts as one.
    fn is_unspaced(self) -> bool {
        matches!(self, Script::Han | Script::Kana | Script::Thai)
    }
}

/// The scripts of a language's code (ISO 639-1).
fn scripts(lang: &str) -> Option<&'static [Script]> {
    Some(match lang {
        "en" | "fr" | "de" | "es" | "it" | "pt" | "nl" | "pl" | "sv" | "da" | "no" | "fi"
        | "cs" | "ro" | "hu" | "tr" | "vi" | "id" => &[Script::Latin],
        "zh" => &[Script::Han],
        "ja" => &[Script::Kana, Script::Han],
        "ko" => &[Script::Hangul],
        "ru" | "uk" | "bg" => &[Script::Cyrillic],
        "el" => &[Script::Greek],
        "ar" | "fa" | "ur" => &[Script::Arabic],
        "he" => &[Script::Hebrew],
        "hi" | "mr" | "ne" => &[Script::Devanagari],
        "th" => &[Script::Thai],
        _ => return None,
    })
}

/// The share of the text's words that are in the script of `lang`, in [0, 1]; null where the text
/// has no words or the language is unknown.
///
/// Words are runs of letters. Code (fenced, or in backticks), formulas (`$…$`, `\(…\)`, `\[…\]`),
/// TeX commands, tags, words with digits and single Latin letters, which may be variables, don't
/// count. Scripts without blanks (Han, kana, Thai) count one word a character.
///
/// The limit of it: languages that share a script are not told apart. French counts as English.
///
/// ```
/// use aha_reward::language_share;
/// assert_eq!(language_share("So the answer is $x^2$ 所以", "en"), Some(4.0 / 6.0));
/// ```
pub fn language_share(text: &str, lang: &str) -> Option<f64> {
    let wanted = scripts(lang)?;
    let mut word_count = 0usize;
    let mut wanted_count = 0usize;
    for_each_word(text, |script, count| {
        word_count += count;
        if wanted.contains(&script) {
            wanted_count += count;
        }
    });
    (word_count > 0).then(|| wanted_count as f64 / word_count as f64)
}

/// Code, formulas, commands and tags. A formula in dollars stays on its line, doesn't begin or end
/// with a blank: "$5 and $6" is money.
static NO_WORDS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?s)```.*?(?:```|\z)|`[^`\n]*`|\$\$.*?\$\$|\\\(.*?\\\)|\\\[.*?\\\]|\$[^\s$](?:[^$\n]*[^\s$])?\$|\\[A-Za-z]+|</?[A-Za-z_]+>",
    )
    .expect("the pattern is a constant")
});

/// Calls `visit` with the script of each word and how many words it counts for.
fn for_each_word(text: &str, mut visit: impl FnMut(Script, usize)) {
    let mut start = 0;
    for skip in NO_WORDS.find_iter(text) {
        words_of_prose(&text[start..skip.start()], &mut visit);
        start = skip.end();
    }
    words_of_prose(&text[start..], &mut visit);
}

fn words_of_prose(text: &str, visit: &mut impl FnMut(Script, usize)) {
    for run in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'') {
        let mut rest = run;
        while !rest.is_empty() {
            // Characters of no script (digits, marks) stay with the word.
            let script =
                rest.chars().map(Script::of).find(|s| *s != Script::Other).unwrap_or(Script::Other);
            let len = rest
                .find(|c: char| {
                    let other = Script::of(c);
                    other != Script::Other && other != script
                })
                .unwrap_or(rest.len());
            let (word, tail) = rest.split_at(len);
            rest = tail;
            let has_digit = word.contains(|c: char| c.is_numeric() || c == '_');
            let letter_count = word.chars().filter(|c| c.is_alphabetic()).count();
            if script.is_unspaced() {
                visit(script, word.chars().filter(|c| Script::of(*c) == script).count());
            } else if !has_digit
                && (letter_count > 1 || (letter_count == 1 && script != Script::Latin))
            {
                visit(script, 1);
            }
        }
    }
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
    fn the_share_counts_words_of_the_script() {
        let cases = [
            ("two words", "en", Some(1.0)),
            ("two words", "zh", Some(0.0)),
            ("two words", "ru", Some(0.0)),
            ("答案是五", "zh", Some(1.0)),
            ("ответ пять", "ru", Some(1.0)),
            ("answer 是", "en", Some(0.5)),
            ("answer是", "en", Some(0.5)),
            ("これは答え", "ja", Some(1.0)),
            ("정답은 다섯", "ko", Some(1.0)),
            ("naïve café", "fr", Some(1.0)),
            ("don't can't", "en", Some(1.0)),
            ("x + y = 12", "en", None),
            ("", "en", None),
            ("word", "xx", None),
        ];
        for (text, lang, want) in cases {
            assert_eq!(language_share(text, lang), want, "{text}");
        }
    }

    #[test]
    fn maths_code_and_tags_do_not_count() {
        let share = |text: &str| language_share(text, "zh");
        assert_eq!(share("<think>答案</think>"), Some(1.0));
        assert_eq!(share(r"答案 $\text{area} = ab$ 是 \boxed{5}"), Some(1.0));
        assert_eq!(share(r"答案 \(speed \times time\) 和 \[ mass \]"), Some(1.0));
        assert_eq!(share("答案\n```python\nprint('hello world')\n```\n是 `code`"), Some(1.0));
        assert_eq!(share("答案\n```\nnever closed"), Some(1.0));
        assert_eq!(share("答案 x1 var_2 3rd"), Some(1.0));
        assert_eq!(language_share("it costs $5 and then $6", "en"), Some(1.0));
        assert_eq!(language_share("it costs $5 или $6", "en"), Some(2.0 / 3.0));
    }
}
