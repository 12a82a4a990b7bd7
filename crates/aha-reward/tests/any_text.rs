//! Verifiers that read text, on text that wants to hurt: none panics, each gives a score in bounded work.
//!
//! Nothing here is timed. Work that grows with the square of a text's length would take minutes for one of these.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aha_reward::{Composite, NoBackends, OnNull, Sample, Spec};

/// Each kind that reads text, some in several ways.
const SPECS: &[&str] = &[
    r#"{"kind":"math"}"#,
    r#"{"kind":"math","name":"lenient","extract":["answer_tag","boxed","hashes","answer_is","whole"]}"#,
    r#"{"kind":"format"}"#,
    r#"{"kind":"language"}"#,
    r#"{"kind":"language","name":"chinese","target":"zh","part":"completion"}"#,
    r#"{"kind":"language","name":"russian","target":"ru","part":"answer"}"#,
    r#"{"kind":"length","max_tokens":10}"#,
    r#"{"kind":"length","name":"cosine","form":"cosine","of":"math","max_tokens":10}"#,
    r#"{"kind":"overlong","max_tokens":10}"#,
    r#"{"kind":"repetition"}"#,
    r#"{"kind":"repetition","name":"long","ngram_len_words":100}"#,
    r#"{"kind":"regex","pattern":"(a*)*b$"}"#,
    r#"{"kind":"exact","extract":["whole"]}"#,
    r#"{"kind":"numeric","extract":["hashes","answer_is","whole"]}"#,
    r#"{"kind":"choice","extract":["boxed","answer_is","whole"],"option_count":26}"#,
    r#"{"kind":"json_schema","schema":{"type":"array","uniqueItems":true,"items":{"pattern":"(a*)*b$"}}}"#,
];

const LEN_BYTES: usize = 1 << 18;

fn composite() -> Composite {
    let specs: Vec<Spec> = SPECS.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    Composite::new(&specs, OnNull::Drop, None, &NoBackends).ok().unwrap()
}

/// Asserts that each verifier says something of a completion, and the same of it alone.
fn score(composite: &Composite, completion: &str, prompt: &str, answer: &str) {
    let sample = Sample { prompt, completion, answer: Some(answer), ..Sample::default() };
    let scored = composite.score(&sample);
    assert_eq!(scored.parts.len(), SPECS.len());
    for (spec, reason) in SPECS.iter().zip(&scored.reasons) {
        assert!(!reason.is_empty() && reason.chars().count() < 400, "{spec}: {reason}");
    }
    let all_finite = scored.parts.iter().flatten().all(|score| score.is_finite());
    assert!(all_finite, "{:?}", scored.parts);
}

/// What fills a text.
const UNITS: &[&str] = &[
    "9",
    "a",
    "a ",
    "ab cd. ",
    "один два. ",
    "是",
    "か",
    "{",
    "}",
    "[",
    "(",
    "$",
    "$ ",
    "$$",
    "`",
    "``` ",
    "\\",
    "\\(",
    "\\(\\a ",
    "\\[",
    "\\boxed{",
    "\\boxed",
    "\\begin{a}",
    "\\end{a}",
    "\\begin{a}\\b ",
    "\\frac{",
    "<",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<answer>5</answer>",
    "####",
    "answer is ",
    "answer is 5. ",
    "A) ",
    "(A) b ",
    "A or ",
    "A, ",
    "\nA) x",
    "1,",
    "1,000",
    "1e",
    "9^",
    "1/",
    "%",
    "\"",
    "{\"a\":",
    "[1,",
    "\n",
    " ",
    "\u{301}",
    "\u{200d}",
    "🦀",
    "http://",
    "'",
    "。",
    "\0",
];

#[test]
fn a_quarter_megabyte_of_anything_is_scored() {
    let composite = composite();
    for unit in UNITS {
        let text = unit.repeat(LEN_BYTES / unit.len());
        score(&composite, &text, "2 + 3?", "5");
        score(&composite, &format!("<think>x</think> <answer>{text}</answer>"), "2 + 3?", "5");
    }
    let marks = "\nA) x".repeat(LEN_BYTES / 5);
    score(&composite, "<answer>5</answer>", &marks, &marks);
}

/// A generator of numbers from a seed, so that a failure can be had again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What texts are made of.
const PARTS: &[&str] = &[
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "}",
    "{",
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "\\begin{x}",
    "\\end{x}",
    "\\frac",
    "\\text{",
    "`",
    "```",
    "```json\n",
    "####",
    "the answer is ",
    "A",
    "(B)",
    "C)",
    " or ",
    ", ",
    "1",
    "-",
    "1,000",
    "1e9",
    ".",
    "/",
    "^",
    "%",
    "°",
    "inf",
    "nan",
    "x = ",
    "[",
    "]",
    "\"a\":",
    "null",
    "\n",
    " ",
    "a",
    "Wait",
    "是",
    "か",
    "ж",
    "ß",
    "İ",
    "é",
    "\u{301}",
    "ﬁ",
    "Ⅷ",
    "½",
    "²",
    "٣",
    "।",
    "ำ",
    "🦀",
    "\u{0}",
    "\u{10ffff}",
    "\u{feff}",
    "\u{202e}",
    "http://a",
    "&",
    "'",
    "’",
    "_",
    "\\",
    "\\\\",
];

#[test]
fn no_mixture_of_marks_and_characters_makes_a_verifier_panic() {
    let composite = composite();
    let mut numbers = Numbers(7);
    for _ in 0..1_500 {
        let mut text = |limit| -> String {
            let len = numbers.below(limit);
            (0..len).map(|_| PARTS[numbers.below(PARTS.len())]).collect()
        };
        let (prompt, completion, answer) = (text(20), text(60), text(8));
        score(&composite, &completion, &prompt, &answer);
        aha_reward::numeric_equal(&answer, &completion);
        aha_reward::choice_letter(&completion);
        aha_reward::language_share(&completion, "ja");
        aha_reward::repetition_share(&completion, 2);
        aha_reward::has_format(&prompt, &completion);
        aha_reward::word_count(&completion);
    }
}
