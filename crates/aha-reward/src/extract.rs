//! Where in a completion the final answer is.
//!
//! An [`Extraction`] is an ordered list of [`Strategy`]; the first that finds something decides. A
//! strategy that finds its marks misused (two answer tags, say) ends the search: a completion must
//! not win by writing several answers in several ways.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::spec::{Problem, is_word};

/// One way to find the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The text between `<answer>` and `</answer>`, which occur once each and after `</think>`; if
    /// it holds one `\boxed{…}`, what that holds.
    AnswerTag,
    /// The last balanced `\boxed{…}` or `\fbox{…}` after `</think>`.
    Boxed,
    /// GSM8K's mark: the rest of the line after the last `####`.
    Hashes,
    /// The rest of the sentence after the last "answer is", "answer:" or "answer =".
    AnswerIs,
    /// The whole text after `</think>`.
    Whole,
}

/// The keys by which a reward says where the final answer is.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the final answer is looked for, in this order, out of `answer_tag`, `boxed`, `hashes`,
    /// `answer_is`, `whole`. Default `["answer_tag", "boxed"]`: an answer that is not marked as one doesn't
    /// count.
    pub extract: Vec<Strategy>,
    /// Name of the tag around the chain of thought. Default `think`.
    pub think_tag: String,
    /// Name of the tag around the answer. Default `answer`.
    pub answer_tag: String,
}

impl Default for Settings {
    fn default() -> Self {
        let Extraction { strategies, answer_tag, think_tag } = Extraction::default();
        Self { extract: strategies, think_tag, answer_tag }
    }
}

impl Settings {
    /// How to find the answer, or every problem of these keys.
    pub fn resolve(&self) -> Result<Extraction, Vec<Problem>> {
        let mut problems = Vec::new();
        if self.extract.is_empty() {
            problems.push(Problem::new("extract", "at least one strategy", "empty"));
        }
        for (key, tag) in [("think_tag", &self.think_tag), ("answer_tag", &self.answer_tag)] {
            if !is_word(tag) {
                problems.push(Problem::new(key, "letters, digits and `_`", format!("`{tag}`")));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Extraction {
            strategies: self.extract.clone(),
            answer_tag: self.answer_tag.clone(),
            think_tag: self.think_tag.clone(),
        })
    }
}

/// How to find the answer in a completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// What to try, in this order.
    pub strategies: Vec<Strategy>,
    /// Name of the tag around the answer.
    pub answer_tag: String,
    /// Name of the tag around the chain of thought.
    pub think_tag: String,
}

/// The default order: strict, so that an answer has to be marked as one.
pub const STRICT: [Strategy; 2] = [Strategy::AnswerTag, Strategy::Boxed];

/// The order for text that may be nothing but an answer, as in `aha grade`.
pub const LENIENT: [Strategy; 5] =
    [Strategy::AnswerTag, Strategy::Boxed, Strategy::Hashes, Strategy::AnswerIs, Strategy::Whole];

impl Default for Extraction {
    fn default() -> Self {
        Self {
            strategies: STRICT.to_vec(),
            answer_tag: "answer".to_owned(),
            think_tag: "think".to_owned(),
        }
    }
}

/// What one strategy found.
enum Found<'a> {
    Answer(&'a str),
    Nothing,
    Misused(String),
}

impl Extraction {
    /// The final answer, trimmed, or in a few words why there is none.
    pub fn find<'a>(&self, completion: &'a str) -> Result<&'a str, String> {
        let Some(last_part) = after_thinking(completion, &self.think_tag) else {
            return Err(format!("<{}> is not closed", self.think_tag));
        };
        for strategy in &self.strategies {
            let found = match strategy {
                Strategy::AnswerTag => self.in_answer_tag(completion, last_part),
                Strategy::Boxed => extract_boxed(last_part).map_or(Found::Nothing, Found::Answer),
                Strategy::Hashes => after_hashes(last_part),
                Strategy::AnswerIs => after_answer_is(last_part),
                Strategy::Whole => Found::Answer(last_part),
            };
            match found {
                Found::Answer(answer) if answer.trim().is_empty() => {
                    return Err("the answer is empty".to_owned());
                }
                Found::Answer(answer) => return Ok(answer.trim()),
                Found::Nothing => {}
                Found::Misused(reason) => return Err(reason),
            }
        }
        Err("no answer found".to_owned())
    }

    /// The text between the answer tags as it stands, else all of it after `</think>`; or in a few words why
    /// the tags are misused.
    pub fn find_text<'a>(&self, completion: &'a str) -> Result<&'a str, String> {
        let Some(last_part) = after_thinking(completion, &self.think_tag) else {
            return Err(format!("<{}> is not closed", self.think_tag));
        };
        match self.tag_content(completion, last_part) {
            Found::Answer(content) => Ok(content),
            Found::Nothing => Ok(last_part),
            Found::Misused(reason) => Err(reason),
        }
    }

    fn tag_content<'a>(&self, completion: &'a str, last_part: &'a str) -> Found<'a> {
        let (open, close) = tags(&self.answer_tag);
        let count = completion.matches(&open).count();
        if count == 0 && !completion.contains(&close) {
            return Found::Nothing;
        }
        if count > 1 {
            return Found::Misused(format!("{open} occurs {count} times"));
        }
        let Some(content) = extract_tag(completion, &self.answer_tag) else {
            return Found::Misused(format!("{open} and {close} are not a pair"));
        };
        if extract_tag(last_part, &self.answer_tag).is_none() {
            return Found::Misused(format!("{open} stands before </{}>", self.think_tag));
        }
        Found::Answer(content)
    }

    fn in_answer_tag<'a>(&self, completion: &'a str, last_part: &'a str) -> Found<'a> {
        let content = match self.tag_content(completion, last_part) {
            Found::Answer(content) => content,
            other => return other,
        };
        let open = tags(&self.answer_tag).0;
        match boxes(content) {
            (_, 0) => Found::Answer(content),
            (Some(boxed), 1) => Found::Answer(boxed),
            (_, boxed_count) => {
                Found::Misused(format!("{boxed_count} boxed expressions in {open}"))
            }
        }
    }
}

fn tags(name: &str) -> (String, String) {
    (format!("<{name}>"), format!("</{name}>"))
}

/// What follows the last `</think>`; all of it if there are no such tags; none if the chain of
/// thought was begun and not ended.
fn after_thinking<'a>(completion: &'a str, think_tag: &str) -> Option<&'a str> {
    let (open, close) = tags(think_tag);
    match completion.rfind(&close) {
        Some(at) => {
            let rest = &completion[at + close.len()..];
            (!rest.contains(&open)).then_some(rest)
        }
        None => (!completion.contains(&open)).then_some(completion),
    }
}

/// The chain of thought: from the first `<think>`, or the start where there is none, to the last `</think>`,
/// or the end where there is none. All of a completion without these tags is its chain of thought.
pub(crate) fn thinking<'a>(completion: &'a str, think_tag: &str) -> &'a str {
    let (open, close) = tags(think_tag);
    let thoughts = &completion[..completion.rfind(&close).unwrap_or(completion.len())];
    thoughts.find(&open).map_or(thoughts, |at| &thoughts[at + open.len()..])
}

/// The text between `<tag>` and `</tag>` if each occurs exactly once and in this order.
///
/// ```
/// assert_eq!(aha_reward::extract_tag("<answer>7</answer>", "answer"), Some("7"));
/// ```
pub fn extract_tag<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (open, close) = tags(tag);
    let mut opens = text.match_indices(&open);
    let mut closes = text.match_indices(&close);
    let (open_at, _) = opens.next()?;
    let (close_at, _) = closes.next()?;
    if opens.next().is_some() || closes.next().is_some() {
        return None;
    }
    text.get(open_at + open.len()..close_at)
}

/// The content of the last balanced `\boxed{…}` or `\fbox{…}`; of nested ones, the outermost.
///
/// ```
/// assert_eq!(aha_reward::extract_boxed(r"so \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
/// ```
pub fn extract_boxed(text: &str) -> Option<&str> {
    boxes(text).0
}

/// The last balanced box, and how many boxes there are, those inside another not counted.
/// One pass over the text, so that ten thousand open braces cost no more than any other text.
fn boxes(text: &str) -> (Option<&str>, usize) {
    let bytes = text.as_bytes();
    // For each open brace: where its content begins, whether it is a box's, and how many boxes were
    // complete when it opened.
    let mut open: Vec<(usize, bool, usize)> = Vec::new();
    let mut last = None;
    let mut box_count = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            // The byte after a backslash is no brace of the grouping kind.
            b'\\' => match box_command_len(&bytes[at..]) {
                Some(len) => {
                    at += len;
                    open.push((at, true, box_count));
                }
                None => at += 2,
            },
            b'{' => {
                at += 1;
                open.push((at, false, box_count));
            }
            b'}' => {
                if let Some((start, true, count_before)) = open.pop() {
                    last = text.get(start..at);
                    box_count = count_before + 1;
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    (last, box_count)
}

/// The length of `\boxed{` or `\fbox{`, blanks before the brace included, at the start of `bytes`.
fn box_command_len(bytes: &[u8]) -> Option<usize> {
    let name_len = [&br"\boxed"[..], br"\fbox"].iter().find(|n| bytes.starts_with(n))?.len();
    // A limit, so that a run of blanks after many commands isn't read again for each of them.
    let blank_count = bytes[name_len..].iter().take(8).take_while(|b| **b == b' ').count();
    (bytes.get(name_len + blank_count) == Some(&b'{')).then_some(name_len + blank_count + 1)
}

fn after_hashes(text: &str) -> Found<'_> {
    match text.rfind("####") {
        Some(at) => Found::Answer(text[at + 4..].lines().next().unwrap_or("")),
        None => Found::Nothing,
    }
}

static ANSWER_IS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\banswer\s{0,4}(?:is|:|=)[\s:*]{0,8}").expect("the pattern is a constant")
});

fn after_answer_is(text: &str) -> Found<'_> {
    let Some(mark) = ANSWER_IS.find_iter(text).last() else {
        return Found::Nothing;
    };
    let line = text[mark.end()..].lines().next().unwrap_or("");
    let sentence = line.find(". ").map_or(line, |at| &line[..at]);
    Found::Answer(sentence.trim().trim_end_matches(['.', '*']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_balanced_box_counts() {
        let cases = [
            (r"\boxed{5}", Some("5")),
            (r"\boxed{5} and \boxed{6}", Some("6")),
            (r"\fbox{7}", Some("7")),
            (r"\boxed {7}", Some("7")),
            (r"\boxed{\frac{1}{\sqrt{2}}}", Some(r"\frac{1}{\sqrt{2}}")),
            (r"\boxed{\{1,2\}}", Some(r"\{1,2\}")),
            (r"\boxed{1 \} 2}", Some(r"1 \} 2")),
            (r"\boxed{6} then \boxed{7", Some("6")),
            (r"\boxed{\boxed{5}}", Some(r"\boxed{5}")),
            (r"code { \boxed{5}", Some("5")),
            (r"} \boxed{5} }", Some("5")),
            (r"\boxed{}", Some("")),
            (r"\boxed{", None),
            (r"\boxed 5", None),
            (r"\boxedx{5}", None),
            (r"\\boxed", None),
            ("", None),
            ("\\", None),
            (r"\boxed{é\é}", Some(r"é\é")),
        ];
        for (text, want) in cases {
            assert_eq!(extract_boxed(text), want, "{text}");
        }
    }

    #[test]
    fn a_tag_counts_when_it_occurs_once() {
        let cases = [
            ("<answer>5</answer>", Some("5")),
            ("a<answer></answer>b", Some("")),
            ("<answer>5", None),
            ("5</answer>", None),
            ("</answer>5<answer>", None),
            ("<answer>5</answer><answer>5</answer>", None),
            ("<Answer>5</Answer>", None),
        ];
        for (text, want) in cases {
            assert_eq!(extract_tag(text, "answer"), want, "{text}");
        }
    }

    #[test]
    fn the_default_order_is_strict() {
        let cases: [(&str, Result<&str, &str>); 17] = [
            ("<think>a</think> <answer> 5 </answer>", Ok("5")),
            ("<answer>5</answer>", Ok("5")),
            (r"<answer>It is $\boxed{5}$.</answer>", Ok("5")),
            (r"<think>\boxed{4}</think> so \boxed{5}", Ok("5")),
            (r"\boxed{4} <answer>5</answer>", Ok("5")),
            ("a</think><answer>5</answer>", Ok("5")),
            (r"<answer>\boxed{5} \boxed{6}</answer>", Err("2 boxed expressions in <answer>")),
            ("<answer>5</answer><answer>6</answer>", Err("<answer> occurs 2 times")),
            (r"<answer>5 \boxed{5}", Err("<answer> and </answer> are not a pair")),
            (r"5</answer> \boxed{5}", Err("<answer> and </answer> are not a pair")),
            ("<think><answer>5</answer></think>", Err("<answer> stands before </think>")),
            (r"<think>\boxed{5}</think>", Err("no answer found")),
            (r"<think>\boxed{5}", Err("<think> is not closed")),
            (r"</think><think>\boxed{5}", Err("<think> is not closed")),
            ("<answer> </answer>", Err("the answer is empty")),
            ("The answer is 5.", Err("no answer found")),
            ("#### 5", Err("no answer found")),
        ];
        for (text, want) in cases {
            let got = Extraction::default().find(text);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn the_lenient_order_reads_marks_of_other_data_sets() {
        let lenient = Extraction { strategies: LENIENT.to_vec(), ..Extraction::default() };
        let cases = [
            ("6 * 7 = 42\n#### 42", "42"),
            ("#### 1\n#### 2\nend", "2"),
            ("The answer is 5.", "5"),
            ("The answer is 5. I am sure.", "5"),
            ("Answer: 3.5", "3.5"),
            ("**Final answer:** 12", "12"),
            ("the answer is 4, no, the answer is 5", "5"),
            ("the answer is 5 or 6", "5 or 6"),
            (" 7 ", "7"),
            ("<think>x</think> 8", "8"),
            (r"The answer is 4 \boxed{5}", "5"),
        ];
        for (text, want) in cases {
            assert_eq!(lenient.find(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn the_chain_of_thought_ends_with_its_last_tag() {
        let cases = [
            ("<think>a</think> b", "a"),
            ("a</think> b", "a"),
            ("x <think>a", "a"),
            ("<think>a</think> b</think> c", "a</think> b"),
            ("a", "a"),
            ("</think>a", ""),
            ("a</think><think>b", "a"),
        ];
        for (text, want) in cases {
            assert_eq!(thinking(text, "think"), want, "{text}");
        }
    }

    #[test]
    fn the_text_of_an_answer_is_that_of_its_tag_or_all_after_thinking() {
        let cases = [
            (r"<think>a</think> b <answer>{\boxed{5}}</answer>", Ok(r"{\boxed{5}}")),
            ("<think>a</think> b", Ok(" b")),
            ("b", Ok("b")),
            ("<think>b", Err("<think> is not closed")),
            ("<answer>b", Err("<answer> and </answer> are not a pair")),
        ];
        for (text, want) in cases {
            let got = Extraction::default().find_text(text);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn the_order_of_the_list_decides() {
        let hashes_first = Extraction {
            strategies: vec![Strategy::Hashes, Strategy::Boxed],
            ..Extraction::default()
        };
        assert_eq!(hashes_first.find("\\boxed{5}\n#### 6"), Ok("6"));
        assert_eq!(hashes_first.find(r"\boxed{5}"), Ok("5"));
    }
}
