//! Where in a completion the final answer is.
//!
//! An [`Extraction`] is an ordered list of [`Strategy`]; the first that finds something decides. A
//! strategy that finds its marks misused (two answer tags, say) ends the search: a completion must
//! not win by writing several answers in several ways.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::math;
use crate::spec::{Problem, is_word};

/// One way to find the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The text between `<answer>` and `</answer>`, which occur once each and after `</think>`; if
    /// it holds one `\boxed{…}`, what that holds.
    AnswerTag,
    /// The last balanced `\boxed{…}` or `\fbox{…}` after `</think>`, `\boxed 5` too. Boxes joined by commas,
    /// "and" or "or" are one list; several others in the last sentence are misused.
    Boxed,
    /// GSM8K's mark: the rest of the line after the last `####`.
    Hashes,
    /// The rest of the sentence after the last "answer is", "answer:" or "answer =".
    AnswerIs,
    /// The last formula in dollars or brackets, or the last number, of the last 4,096 bytes.
    LastExpression,
    /// The whole text after `</think>`.
    Whole,
}

/// The keys by which a reward says where the final answer is.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Settings {
    /// Where the final answer is looked for, in this order, out of `answer_tag`, `boxed`, `hashes`,
    /// `answer_is`, `last_expression`, `whole`. Default `["answer_tag", "boxed"]`: an answer that is not marked
    /// as one doesn't count.
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
                Strategy::Boxed => final_boxes(last_part),
                Strategy::Hashes => after_hashes(last_part),
                Strategy::AnswerIs => after_answer_is(last_part),
                Strategy::LastExpression => last_expression(last_part),
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
        let boxes = boxes(content);
        match one_answer(content, &boxes) {
            _ if boxes.is_empty() => Found::Answer(content),
            Some(_) if hedges(content, &boxes) => {
                Found::Misused(format!("another answer beside the boxed one in {open}"))
            }
            Some(answer) => Found::Answer(answer),
            None => Found::Misused(format!("{} boxed expressions in {open}", boxes.len())),
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

/// The content of the last balanced `\boxed{…}` or `\fbox{…}`, or of `\boxed 5`; of nested ones, the
/// outermost.
///
/// ```
/// assert_eq!(aha_reward::extract_boxed(r"so \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
/// ```
pub fn extract_boxed(text: &str) -> Option<&str> {
    boxes(text).last().map(|b| b.content)
}

/// The last box of a data set's solution, or the list of boxes that it ends with.
pub(crate) fn gold_boxes(text: &str) -> Option<&str> {
    let boxes = boxes(text);
    let last = boxes.last()?;
    let joined = boxes.windows(2).rev().take_while(|pair| is_list_mark(gap(text, pair))).count();
    if joined == 0 {
        return Some(last.content);
    }
    text.get(boxes[boxes.len() - 1 - joined].start..last.end)
}

/// The last box, or several in one sentence that make one answer: the same twice, or a list.
fn final_boxes(text: &str) -> Found<'_> {
    let boxes = boxes(text);
    if boxes.is_empty() {
        return Found::Nothing;
    }
    let is_near = |pair: &&[Boxed<'_>]| !ends_a_sentence(gap(text, pair));
    let count = 1 + boxes.windows(2).rev().take_while(is_near).count();
    match one_answer(text, &boxes[boxes.len() - count..]) {
        Some(answer) => Found::Answer(answer),
        None => Found::Misused(format!("{count} boxed expressions in one sentence")),
    }
}

/// The answer that all of the boxes make: each the same, or together a list.
fn one_answer<'a>(text: &'a str, boxes: &[Boxed<'a>]) -> Option<&'a str> {
    let (first, last) = (boxes.first()?, boxes.last()?);
    if boxes.iter().all(|b| b.content.split_whitespace().eq(last.content.split_whitespace())) {
        return Some(last.content);
    }
    let is_list = boxes.windows(2).all(|pair| is_list_mark(gap(text, pair)));
    if is_list { text.get(first.start..last.end) } else { None }
}

/// Whether an answer says more than its boxes hold: other numbers, alternatives, or that they are wrong.
fn hedges(content: &str, boxes: &[Boxed<'_>]) -> bool {
    const WORDS: [&str; 12] = [
        "or", "not", "isn", "but", "either", "neither", "nor", "maybe", "unless", "wrong", "false",
        "rather",
    ];
    let (Some(first), Some(last)) = (boxes.first(), boxes.last()) else { return false };
    let outside = [&content[..first.start], &content[last.end..]];
    outside.iter().any(|text| {
        let mut words = text.split(|c: char| !c.is_alphabetic());
        text.contains(|c: char| c.is_ascii_digit())
            || words.any(|word| WORDS.contains(&word.to_ascii_lowercase().as_str()))
    })
}

/// What stands between two boxes.
fn gap<'a>(text: &'a str, pair: &[Boxed<'_>]) -> &'a str {
    text.get(pair[0].end..pair[1].start).unwrap_or("")
}

fn ends_a_sentence(gap: &str) -> bool {
    let is_end = |(at, c): (usize, char)| match c {
        '\n' | '。' | '！' | '？' => true,
        '.' | '!' | '?' => gap[at + 1..].starts_with(|c: char| c.is_whitespace() || c == '$'),
        _ => false,
    };
    gap.char_indices().any(is_end)
}

/// Whether a text between two boxes does nothing but join them: a comma, "and", "or".
fn is_list_mark(gap: &str) -> bool {
    if gap.len() > 64 {
        return false;
    }
    let mut words = gap.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let is_word = |word| matches!(word, "and" | "or" | "text" | "quad" | "qquad" | "mbox");
    let has_mark = gap.contains([',', ';']) || gap.contains("and") || gap.contains("or");
    let is_mark = |c: char| c.is_alphabetic() || c.is_whitespace() || ",;$\\{}()[]".contains(c);
    has_mark && words.all(is_word) && gap.chars().all(is_mark)
}

/// A box and where it stands.
#[derive(Clone, Copy)]
struct Boxed<'a> {
    start: usize,
    content: &'a str,
    end: usize,
}

/// An open brace.
struct Open {
    /// Where its content begins.
    content: usize,
    /// Where the command before it begins, if it is a box's.
    command: Option<usize>,
    /// How many boxes were complete when it opened.
    box_count: usize,
}

/// The balanced boxes, those inside another left out. One pass over the text, so that ten thousand
/// open braces cost no more than any other text.
fn boxes(text: &str) -> Vec<Boxed<'_>> {
    let bytes = text.as_bytes();
    let mut open: Vec<Open> = Vec::new();
    let mut boxes: Vec<Boxed<'_>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            // The byte after a backslash is no brace of the grouping kind.
            b'\\' => match box_command(&bytes[at..]) {
                Some((len, true)) => {
                    open.push(Open {
                        content: at + len,
                        command: Some(at),
                        box_count: boxes.len(),
                    });
                    at += len;
                }
                Some((len, false)) => {
                    let content = bare_content(text.get(at + len..).unwrap_or(""));
                    if !content.is_empty() {
                        let end = at + len + content.len();
                        boxes.push(Boxed { start: at, content, end });
                    }
                    at += len + content.len();
                }
                None => at += 2,
            },
            b'{' => {
                at += 1;
                open.push(Open { content: at, command: None, box_count: boxes.len() });
            }
            b'}' => {
                if let Some(Open { content, command: Some(start), box_count }) = open.pop()
                    && let Some(content) = text.get(content..at)
                {
                    boxes.truncate(box_count);
                    boxes.push(Boxed { start, content, end: at + 1 });
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    boxes
}

/// The length of `\boxed{` or `\fbox{`, blanks before the brace included, and true; or of `\boxed ` before
/// something else, and false.
fn box_command(bytes: &[u8]) -> Option<(usize, bool)> {
    let name_len = [&br"\boxed"[..], br"\fbox"].iter().find(|n| bytes.starts_with(n))?.len();
    // A limit, so that a run of blanks after many commands isn't read again for each of them.
    let blank_count = bytes[name_len..].iter().take(8).take_while(|b| **b == b' ').count();
    let len = name_len + blank_count;
    match bytes.get(len) {
        Some(b'{') => Some((len + 1, true)),
        Some(_) if blank_count > 0 => Some((len, false)),
        _ => None,
    }
}

/// The number or formula after `\boxed `: up to a blank or dollar outside of braces. Words are none.
fn bare_content(text: &str) -> &str {
    let begins = text.starts_with(|c: char| c.is_ascii_digit() || "-+.(\\".contains(c));
    if !begins || text.starts_with("\\boxed") || text.starts_with("\\fbox") {
        return "";
    }
    let mut depth = 0u32;
    let mut len = text.len().min(BARE_BYTES_MAX);
    for (at, byte) in text.bytes().enumerate().take(BARE_BYTES_MAX) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b'}' | b'\n' | b'$' => {
                len = at;
                break;
            }
            b' ' if depth == 0 => {
                len = at;
                break;
            }
            _ => {}
        }
    }
    text.get(..len).unwrap_or("").trim_end_matches(['.', ',', ';'])
}

/// Longest content of a box without braces.
const BARE_BYTES_MAX: usize = 256;

fn after_hashes(text: &str) -> Found<'_> {
    match text.rfind("####") {
        Some(at) => Found::Answer(text[at + 4..].lines().next().unwrap_or("")),
        None => Found::Nothing,
    }
}

static ANSWER_IS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)(?:\banswer\s{0,4}(?:is|:|=)|答案\s{0,4}(?:是|为|：|:))[\s:*：]{0,8}")
        .expect("the pattern is a constant")
});

fn after_answer_is(text: &str) -> Found<'_> {
    let Some(mark) = ANSWER_IS.find_iter(text).last() else {
        return Found::Nothing;
    };
    let line = text[mark.end()..].lines().next().unwrap_or("");
    if let Some(formula) = only_formula(line) {
        return Found::Answer(formula);
    }
    let sentence = line.find(". ").map_or(line, |at| &line[..at]);
    let sentence = sentence.split('。').next().unwrap_or(sentence);
    Found::Answer(sentence.trim().trim_end_matches(['.', '*']))
}

/// The formula that a line begins with, if no other and no number follows it.
fn only_formula(line: &str) -> Option<&str> {
    const MARKS: [(&str, &str); 3] = [("$$", "$$"), ("$", "$"), ("\\(", "\\)")];
    let (open, close) = MARKS.into_iter().find(|(open, _)| line.starts_with(open))?;
    let (formula, rest) = line[open.len()..].split_once(close)?;
    let names_more = rest.contains(|c: char| c.is_ascii_digit() || "$\\,;".contains(c))
        || rest.split_whitespace().any(|word| matches!(word, "or" | "and" | "not"));
    (!names_more && !formula.trim().is_empty()).then_some(formula)
}

/// Where the last expression is looked for: so far from the end.
const LAST_BYTES_MAX: usize = 4096;

/// A formula between its marks, or a number or fraction among words.
static EXPRESSION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x) \$\$ [^$]+ \$\$ | \$ [^$\n]+ \$ | \\\( .+? \\\) | \\\[ (?s: .+? ) \\\]
        | -? [$€£]? (?: \d+ (?: ,\d{3} )* (?: \.\d+ )? | \.\d+ ) (?: \s? / \s? \d+ )? (?: \s? \\? % )?",
    )
    .expect("the pattern is a constant")
});

/// The last formula or number of the text.
fn last_expression(text: &str) -> Found<'_> {
    let mut start = text.len().saturating_sub(LAST_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let text = &text[start..];
    let Some(found) = EXPRESSION.find_iter(text).last() else { return Found::Nothing };
    let is_formula = found.as_str().starts_with("\\(")
        || found.as_str().starts_with("\\[")
        || (found.len() > 1 && found.as_str().starts_with('$') && found.as_str().ends_with('$'));
    if is_formula {
        return Found::Answer(found.as_str());
    }
    // All that it is a part of: the 5 of `1e5`, `2^5` or "5 million" is no number of its own.
    let start = text[..found.start()].rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let mut end = found.end()
        + text[found.end()..].find(char::is_whitespace).unwrap_or(text.len() - found.end());
    let next = text[end..].trim_start();
    let word = next.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    if end == found.end() && math::changes(word) {
        end = text.len() - next.len() + word.len();
    }
    let start =
        start + text[start..end].len() - text[start..end].trim_start_matches(['"', '\'']).len();
    Found::Answer(text[start..end].trim_end_matches(['.', ',', ';', ':', '?', '"', '\'']))
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
            (r"\boxed 5", Some("5")),
            (r"\boxed 5$.", Some("5")),
            (r"\boxed \frac{1}{2}. So", Some(r"\frac{1}{2}")),
            (r"\boxed 5} and \boxed is a command", Some("5")),
            (r"\boxed5", None),
            (r"\boxed x", None),
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
            ("Final Answer: The final answer is $5$. I hope it is correct.", "5"),
            ("The answer is $5$ apples", "5"),
            ("The answer is $5$ or $6$", "$5$ or $6$"),
            ("The answer is $5$, 6", "$5$, 6"),
            ("所以答案是 5。", "5"),
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
    fn an_answer_with_others_beside_its_box_is_misused() {
        let find = |inside: &str| {
            Extraction::default().find(&format!("<answer>{inside}</answer>")).map(str::to_owned)
        };
        for inside in [
            r"8 or \boxed{7}",
            r"\boxed{7} or 8",
            r"1, 2, \boxed{7}, 8",
            r"It is not \boxed{7}, it is eight",
            r"either \boxed{C} or D",
        ] {
            assert!(find(inside).unwrap_err().contains("beside the boxed one"), "{inside}");
        }
        assert_eq!(find(r"The answer is $x = \boxed{7}$.").as_deref(), Ok("7"));
        assert_eq!(find(r"\boxed{5} and \boxed{6}").as_deref(), Ok(r"\boxed{5} and \boxed{6}"));
    }

    #[test]
    fn several_boxes_in_one_sentence_are_a_list_or_misused() {
        let cases: [(&str, Result<&str, &str>); 10] = [
            (r"\boxed{5} and \boxed{6}", Ok(r"\boxed{5} and \boxed{6}")),
            (r"$\boxed{5}$, $\boxed{6}$.", Ok(r"\boxed{5}$, $\boxed{6}")),
            (r"\boxed{5} \text{ or } \boxed{6}", Ok(r"\boxed{5} \text{ or } \boxed{6}")),
            (r"\boxed{5}, that is \boxed{ 5 }", Ok("5")),
            (r"\boxed{5}. Or \boxed{6}", Ok("6")),
            ("\\boxed{5}\n\\boxed{6}", Ok("6")),
            (r"\boxed{5} \boxed{6}", Err("2 boxed expressions in one sentence")),
            (r"\boxed{5} or rather \boxed{6}", Err("2 boxed expressions in one sentence")),
            (r"$\boxed{4}$. $\boxed{5}$ - $\boxed{6}$", Err("2 boxed expressions in one sentence")),
            (r"<answer>\boxed{5}. \boxed{6}</answer>", Err("2 boxed expressions in <answer>")),
        ];
        for (text, want) in cases {
            let got = Extraction::default().find(text);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn hostile_completions_end() {
        for part in [
            "\\boxed{",
            "\\boxed ",
            "\\boxed 5 ",
            "{",
            "$",
            "\\(",
            "<answer>",
            "####",
            "answer is ",
        ] {
            let text = part.repeat(200_000);
            for strategies in [&STRICT[..], &LENIENT[..], &[Strategy::LastExpression]] {
                let extraction =
                    Extraction { strategies: strategies.to_vec(), ..Extraction::default() };
                let found = extraction.find(&text);
                assert_ne!(found, Ok("6"), "{part}");
            }
        }
    }

    #[test]
    fn the_last_expression_is_a_formula_or_a_number() {
        let last =
            Extraction { strategies: vec![Strategy::LastExpression], ..Extraction::default() };
        let cases = [
            ("first 3, then $x = 5$.", "$x = 5$"),
            ("first $x = 5$, then 3 apples", "3"),
            ("It costs \\(\\frac{1}{2}\\) in all", "\\(\\frac{1}{2}\\)"),
            ("It is 1,234.50 in all.", "1,234.50"),
            ("It is 3/4 of it.", "3/4"),
            ("It is -7.", "-7"),
            ("20% of it", "20%"),
            ("so it is 1e5", "1e5"),
            ("so it is 2^5.", "2^5"),
            ("it is x_5, then", "x_5"),
            ("it is 5 million", "5 million"),
            ("it is 5 hundredths of it", "5 hundredths"),
            ("it is 5 apples", "5"),
            ("say \"7\".", "7"),
            ("x=7", "x=7"),
        ];
        for (text, want) in cases {
            assert_eq!(last.find(text), Ok(want), "{text}");
        }
        assert_eq!(last.find("no number"), Err("no answer found".to_owned()));
        let far = format!("5 {}", "é".repeat(LAST_BYTES_MAX));
        assert_eq!(last.find(&far), Err("no answer found".to_owned()));
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
