//! `kind = "choice"`: is the right option of a multiple choice named, and no other?

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::backend::Backends;
use crate::extract::{self, Extraction, LENIENT};
use crate::spec::{Problem, Resolve};
use crate::verifier::{Kind, Sample, Verdict, Verifier, excerpt};

/// Longest answer that is read, and the end of a prompt in which options are looked for.
const ANSWER_BYTES_MAX: usize = 4_096;
const PROMPT_BYTES_MAX: usize = 1 << 16;

/// How the sample's answer says which option is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gold {
    /// As a letter, else as the text of an option in the prompt, else as a whole number, its index.
    #[default]
    Auto,
    /// As a letter: `C`, `(C)`, `C) 42`.
    Letter,
    /// As a whole number, its index.
    Index,
    /// As the text of an option in the prompt.
    Text,
}

/// 1 if the completion's final answer is the letter or the text of the right option; else 0.
///
/// `C`, `(C)`, `C.`, `C) 42`, `\text{C}`, `option C` and the option's text, as the prompt has it, are one answer. An
/// answer with several letters is wrong, and so is one with a letter and the text of another option. The
/// prompt's options are its last lines or marks `A) …`, `(B) …`, `C. …` in the order of the letters.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the answer is.
    #[serde(flatten)]
    pub answer: extract::Settings,
    /// Number of options, 2 to 26, named by the letters from A on. Default 4, as in GPQA and MMLU.
    pub option_count: usize,
    /// How the sample's answer says which option is right, `auto`, `letter`, `index` or `text`. Default `auto`.
    pub gold: Gold,
    /// Index of the first option. Default 0.
    pub index_from: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let answer = extract::Settings::default();
        Self { answer, option_count: 4, gold: Gold::default(), index_from: 0 }
    }
}

impl Resolve for Settings {
    fn resolve(&self, _: &dyn Backends) -> Result<Box<dyn Verifier>, Vec<Problem>> {
        let &Settings { option_count, gold, index_from, .. } = self;
        let wrong = (!(2..=26).contains(&option_count))
            .then(|| Problem::new("option_count", "from 2 to 26", option_count.to_string()));
        match (self.answer.resolve(), wrong) {
            (Ok(extraction), None) => {
                Ok(Box::new(Choice { extraction, option_count, gold, index_from }))
            }
            (answer, wrong) => {
                Err(answer.err().unwrap_or_default().into_iter().chain(wrong).collect())
            }
        }
    }

    fn answer_place(&mut self) -> Option<&mut extract::Settings> {
        Some(&mut self.answer)
    }
}

/// See [`Settings`].
pub struct Choice {
    /// Where the final answer is.
    pub extraction: Extraction,
    /// Number of options.
    pub option_count: usize,
    /// How the sample's answer says which is right.
    pub gold: Gold,
    /// Index of the first option.
    pub index_from: usize,
}

impl Verifier for Choice {
    fn kind(&self) -> Kind {
        Kind::Choice
    }

    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let Some(answer) = sample.answer.map(str::trim).filter(|answer| !answer.is_empty()) else {
            return Verdict::unscored("the sample has no answer");
        };
        let options = options(sample.prompt, self.option_count);
        let Some(gold) = self.gold_letter(answer, &options) else {
            return Verdict::unscored(format!("{} names no option", excerpt(answer)));
        };
        let pred = match self.extraction.find(sample.completion) {
            Ok(pred) => pred,
            Err(reason) => return Verdict::scored(0.0, reason),
        };
        match letter(pred, self.option_count, &options) {
            Ok(pred) if pred == gold => Verdict::scored(1.0, format!("{gold}")),
            Ok(pred) => Verdict::scored(0.0, format!("{pred} is not {gold}")),
            Err(reason) => Verdict::scored(0.0, format!("{}: {reason}", excerpt(pred))),
        }
    }
}

impl Choice {
    fn gold_letter(&self, answer: &str, options: &[String]) -> Option<char> {
        let by_letter = || letter(answer, self.option_count, &[]).ok();
        let by_text = || option_letter(&plain(answer), options);
        let by_index = || {
            let idx = answer.parse::<usize>().ok()?.checked_sub(self.index_from)?;
            (idx < self.option_count).then(|| nth_letter(idx))
        };
        match self.gold {
            Gold::Auto => by_letter().or_else(by_text).or_else(by_index),
            Gold::Letter => by_letter(),
            Gold::Index => by_index(),
            Gold::Text => by_text(),
        }
    }
}

/// The letter of the option, A to Z, that a text names as its final answer, in any way that the reward `choice`
/// reads; null where it names none or several.
///
/// ```
/// assert_eq!(aha_reward::choice_letter("So the answer is (C)."), Some('C'));
/// assert_eq!(aha_reward::choice_letter("A or C"), None);
/// ```
pub fn choice_letter(text: &str) -> Option<char> {
    let lenient = Extraction { strategies: LENIENT.to_vec(), ..Extraction::default() };
    letter(lenient.find(text).ok()?, 26, &[]).ok()
}

fn nth_letter(idx: usize) -> char {
    char::from(b'A' + idx as u8)
}

/// The letter at the start of an answer, the mark after it, and the rest.
static HEAD: LazyLock<Regex> = LazyLock::new(|| {
    let lead = r"(?i:(?:the )?(?:(?:correct|right|final|best) )?(?:answer|option|choice)(?: is)? ?[:=]? ?)?";
    let lead_again = r"(?i:option |choice )?";
    Regex::new(&format!(
        r"^{lead}{lead_again}[(\[]? ?([A-Za-z])(?: ?([)\].:,]+|[-–—]))?(?: (.*))?$"
    ))
    .expect("the pattern is a constant")
});

/// A letter that is marked as an option's, or that stands in a list.
static LISTED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[(\[]([A-Z])[)\]]|\b([A-Z])[):]|(?:^ ?|,|/|&|\+|\b(?:or|and|not) )[ (\[]*([A-Z])(?:[)\].:,/&]|$| )")
        .expect("the pattern is a constant")
});

/// The letter that an answer names, or in a few words why there is none.
fn letter(answer: &str, option_count: usize, options: &[String]) -> Result<char, &'static str> {
    if answer.len() > ANSWER_BYTES_MAX {
        return Err("too long for a choice");
    }
    let answer = plain(answer);
    let by_text = option_letter(&answer, options).ok_or("names no option");
    let Some(head) = HEAD.captures(&answer) else { return by_text };
    let written = &head[1];
    let [has_mark, has_rest] = [2, 3].map(|idx| head.get(idx).is_some());
    let rest = head.get(3).map_or("", |rest| rest.as_str().trim());
    let Some(letter) = written.chars().next().map(|c| c.to_ascii_uppercase()) else {
        return by_text;
    };
    let idx = usize::from(letter as u8 - b'A');
    if idx >= option_count || (has_rest && written != letter.to_string()) {
        return by_text;
    }
    match option_letter(rest, options) {
        Some(named) if named == letter => return Ok(letter),
        Some(_) => return Err("the letter of one option and the text of another"),
        None => {}
    }
    if !has_mark && has_rest {
        // A sentence may begin with "A" or "I".
        return by_text;
    }
    let is_other = |c: &str| {
        let listed = c.bytes().next().map_or(0, |b| b - b'A');
        usize::from(listed) < option_count && usize::from(listed) != idx
    };
    let mut listed = LISTED.captures_iter(rest).flat_map(|found| {
        let groups: Vec<String> =
            found.iter().skip(1).flatten().map(|group| group.as_str().to_owned()).collect();
        groups
    });
    if listed.any(|c| is_other(&c)) { Err("several letters") } else { Ok(letter) }
}

/// The letter of the only option with that text.
fn option_letter(text: &str, options: &[String]) -> Option<char> {
    let mut same = options.iter().enumerate().filter(|(_, option)| {
        !text.is_empty()
            && option.trim_end_matches('.').eq_ignore_ascii_case(text.trim_end_matches('.'))
    });
    let (idx, _) = same.next()?;
    same.next().is_none().then(|| nth_letter(idx))
}

/// What only changes how a text looks.
static LOOKS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|left|right|bf|rm|boxed)\b|\\[(),;! ]|[$*{}]|\s+")
        .expect("the pattern is a constant")
});

/// The text without marks of how it looks, blanks made one.
fn plain(text: &str) -> String {
    let plain =
        LOOKS.replace_all(
            text,
            |found: &regex::Captures<'_>| {
                if found[0].starts_with(char::is_whitespace) { " " } else { "" }
            },
        );
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `A) `, `(A) `, `[A] ` anywhere; `A. `, `A: ` where a line begins.
static OPTION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)(?:^|\s)(?:\*\*)?[(\[]?([A-Z])[)\]](?:\*\*)?[ \t]+|^[ \t]*(?:\*\*)?([A-Z])[.:](?:\*\*)?[ \t]+")
        .expect("the pattern is a constant")
});

/// The texts of the last options in a prompt, from A on; empty where there are none.
fn options(prompt: &str, option_count: usize) -> Vec<String> {
    let prompt =
        &prompt[prompt.floor_char_boundary(prompt.len().saturating_sub(PROMPT_BYTES_MAX))..];
    // Where each mark begins and ends.
    let mut marks: Vec<(usize, usize)> = Vec::new();
    for found in OPTION.captures_iter(prompt) {
        let (Some(whole), Some(name)) = (found.get(0), found.get(1).or(found.get(2))) else {
            continue;
        };
        let idx = usize::from(name.as_str().as_bytes()[0] - b'A');
        if idx == 0 {
            marks.clear();
        }
        if idx == marks.len() && idx < option_count {
            marks.push((whole.start(), whole.end()));
        }
    }
    let text = |idx: usize, from: usize| {
        let to = marks.get(idx + 1).map_or(prompt.len(), |(start, _)| *start).max(from);
        plain(prompt[from..to].lines().next().unwrap_or_default())
    };
    let texts = marks.iter().enumerate().map(|(idx, (_, from))| text(idx, *from));
    if marks.len() < 2 { Vec::new() } else { texts.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str =
        "Example: A) 1 B) 2\nWhat is 6 * 7?\nA) 41\nB) 42\n(C) A cat.\nD. $\\frac{1}{2}$\nAnswer:";

    #[test]
    fn letters_are_read_in_their_spellings() {
        let cases = [
            ("C", Ok('C')),
            ("c", Ok('C')),
            ("(C)", Ok('C')),
            ("[C]", Ok('C')),
            ("C.", Ok('C')),
            ("C) 7", Ok('C')),
            ("C: because it is", Ok('C')),
            ("C, because it is", Ok('C')),
            (r"\text{C}", Ok('C')),
            (r"\textbf{(C)} 7", Ok('C')),
            (r"$\mathrm{C}$", Ok('C')),
            ("**C**", Ok('C')),
            ("Option C", Ok('C')),
            ("the correct answer is (C)", Ok('C')),
            ("Answer: C", Ok('C')),
            ("answer: option C", Ok('C')),
            ("C - the third", Ok('C')),
            ("C) the vitamin B", Ok('C')),
            ("C) as (C) says", Ok('C')),
            ("A or C", Err("names no option")),
            ("A, C", Err("several letters")),
            ("A,C", Err("names no option")),
            ("A/C", Err("names no option")),
            ("(A) (C)", Err("several letters")),
            ("A) 7 C) 8", Err("several letters")),
            ("C) or D", Err("several letters")),
            ("AC", Err("names no option")),
            ("E", Err("names no option")),
            ("not C", Err("names no option")),
            ("A dog", Err("names no option")),
            ("c) maybe", Err("names no option")),
            ("", Err("names no option")),
        ];
        for (text, want) in cases {
            assert_eq!(letter(text, 4, &[]), want, "{text}");
        }
    }

    #[test]
    fn options_are_read_off_the_prompt() {
        assert_eq!(options(PROMPT, 4), ["41", "42", "A cat.", r"\frac12"]);
        assert_eq!(options(PROMPT, 2), ["41", "42"]);
        assert_eq!(options("A) one B) two C) three", 4), ["one", "two", "three"]);
        assert!(options("A man. B) is", 4).is_empty());
        let options = options(PROMPT, 4);
        let cases = [
            ("42", Ok('B')),
            ("a cat", Ok('C')),
            (r"$\frac{1}{2}$.", Ok('D')),
            ("B) 42", Ok('B')),
            ("B 42", Ok('B')),
            ("C) 42", Err("the letter of one option and the text of another")),
            ("43", Err("names no option")),
        ];
        for (text, want) in cases {
            assert_eq!(letter(text, 4, &options), want, "{text}");
        }
    }

    #[test]
    fn the_sample_names_the_option_by_letter_text_or_index() {
        let score = |keys: &str, answer: &str| {
            let settings: Settings = serde_json::from_str(keys).unwrap();
            let verifier = settings.resolve(&crate::NoBackends).ok().unwrap();
            let completion = "<think>A)</think> <answer>(B)</answer>";
            let sample =
                Sample { prompt: PROMPT, completion, answer: Some(answer), ..Sample::default() };
            verifier.score(&sample).score
        };
        let cases = [
            ("{}", "B", Some(1.0)),
            ("{}", "(B) 42", Some(1.0)),
            ("{}", "42", Some(1.0)),
            ("{}", "1", Some(1.0)),
            ("{}", "2", Some(0.0)),
            ("{}", "A", Some(0.0)),
            (r#"{"index_from":1}"#, "2", Some(1.0)),
            (r#"{"index_from":1}"#, "0", None),
            (r#"{"gold":"index"}"#, "1", Some(1.0)),
            (r#"{"gold":"index"}"#, "B", None),
            (r#"{"gold":"text"}"#, "42", Some(1.0)),
            (r#"{"gold":"text"}"#, "B", None),
            (r#"{"gold":"letter"}"#, "42", None),
            ("{}", "7", None),
            ("{}", " ", None),
        ];
        for (keys, answer, want) in cases {
            assert_eq!(score(keys, answer), want, "{keys} {answer}");
        }
        let wrong = Settings { option_count: 27, ..Settings::default() };
        assert_eq!(wrong.resolve(&crate::NoBackends).err().unwrap()[0].key, "option_count");
    }
}
