//! Every key of the rewards that read nothing but the sample, or a model that is lent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../keys/mod.rs"]
mod keys;

use std::sync::Arc;

use aha_reward::backend::{Backends, ChatModel, PreferenceModel};
use aha_reward::{Kind, Sample};
use keys::{Case, Outcome, check_cases, check_keys};
use serde_json::{Value, json};

/// A completion of ten tokens, after a prompt that asks for 5.
fn says(completion: &str) -> Sample<'_> {
    Sample {
        prompt: "p",
        completion,
        answer: Some("5"),
        completion_len_tokens: 10,
        ..Sample::default()
    }
}

const fn score(score: f32) -> Outcome {
    Ok(Some(score))
}

/// Makes the cases of a kind.
struct Of {
    kind: Kind,
    within: Value,
}

impl Of {
    fn case<'a>(
        &self,
        key: &'static str,
        value: Value,
        sample: Sample<'a>,
        [without, with]: [Outcome; 2],
    ) -> Case<'a> {
        Case { kind: self.kind, key, value, within: self.within.clone(), sample, without, with }
    }
}

fn of(kind: Kind, within: Value) -> Of {
    Of { kind, within }
}

const WRONG_THEN_RIGHT: [Outcome; 2] = [score(0.0), score(1.0)];
const RIGHT_THEN_WRONG: [Outcome; 2] = [score(1.0), score(0.0)];

/// Where the final answer is, of a kind that reads it: three completions with the right one.
fn of_answer<'a>(
    of: &Of,
    [bare, tagged, thought]: [&'a str; 3],
    sample: Sample<'a>,
) -> [Case<'a>; 3] {
    let says = |completion| Sample { completion, ..sample };
    [
        of.case("extract", json!(["whole"]), says(bare), WRONG_THEN_RIGHT),
        of.case("answer_tag", json!("a"), says(tagged), WRONG_THEN_RIGHT),
        // A chain of thought that doesn't end has no answer.
        of.case("think_tag", json!("t"), says(thought), RIGHT_THEN_WRONG),
    ]
}

const FIVE: [&str; 3] = ["5", "<a>5</a>", "<t>so <answer>5</answer>"];

fn of_comparisons() -> Vec<Case<'static>> {
    let (math, exact) = (of(Kind::Math, json!({})), of(Kind::Exact, json!({})));
    let numeric = of(Kind::Numeric, json!({}));
    let third = Sample { answer: Some("1/3"), ..says("<answer>0.333</answer>") };
    let yes = Sample { answer: Some("yes"), ..says("<answer>YES</answer>") };
    let near = says("<answer>5.4</answer>");
    let mut cases = vec![
        math.case("rounding_places", json!(3), third, WRONG_THEN_RIGHT),
        exact.case("is_case_sensitive", json!(false), yes, WRONG_THEN_RIGHT),
        numeric.case("abs_tolerance", json!(0.5), near, WRONG_THEN_RIGHT),
        numeric.case("rel_tolerance", json!(0.1), near, WRONG_THEN_RIGHT),
    ];
    for of in [&math, &exact, &numeric] {
        cases.extend(of_answer(of, FIVE, says("")));
    }
    cases
}

fn of_choice() -> Vec<Case<'static>> {
    let choice = of(Kind::Choice, json!({}));
    let by_index = of(Kind::Choice, json!({"gold": "index"}));
    let sample = |answer, completion| Sample { answer: Some(answer), ..says(completion) };
    let two = Sample { prompt: "Which?\nA) 2\nB) 3", ..sample("2", "<answer>C</answer>") };
    let crossed = Sample { prompt: "Which?\nA) B\nB) A", ..sample("B", "<answer>A</answer>") };
    let fifth = sample("E", "<answer>E</answer>");
    let third = sample("2", "<answer>C</answer>");
    let mut cases = vec![
        choice.case("option_count", json!(5), fifth, [Ok(None), score(1.0)]),
        choice.case("gold", json!("letter"), third, [score(1.0), Ok(None)]),
        choice.case("gold", json!("index"), two, WRONG_THEN_RIGHT),
        choice.case("gold", json!("text"), crossed, WRONG_THEN_RIGHT),
        by_index.case("index_from", json!(1), sample("1", "<answer>A</answer>"), WRONG_THEN_RIGHT),
    ];
    let b = ["B", "<a>B</a>", "<t>so <answer>B</answer>"];
    cases.extend(of_answer(&choice, b, sample("B", "")));
    cases
}

fn of_countdown() -> Vec<Case<'static>> {
    let tests = Some(r#"{"kind":"countdown","numbers":[2,3,4],"target":5}"#);
    let countdown = of(Kind::Countdown, json!({}));
    let some = of(Kind::Countdown, json!({"must_use_all": false}));
    let sums = ["2+3", "<a>2+3</a>", "<t>so <answer>2+3</answer>"];
    let two = Sample { tests, ..says("<answer>2+3</answer>") };
    let all = countdown.case("must_use_all", json!(false), two, WRONG_THEN_RIGHT);
    [&[all][..], &of_answer(&some, sums, two)].concat()
}

fn of_format() -> Vec<Case<'static>> {
    let format = of(Kind::Format, json!({}));
    let opened = Sample { prompt: "p <think>", ..says("<think>a</think> <answer>5</answer>") };
    let other_think = says("<t>a</t> <answer>5</answer>");
    let other_answer = says("<think>a</think> <a>5</a>");
    let greets = says("Well: <think>a</think> <answer>5</answer>");
    let goes_on = says("a</think> <answer>5</answer>");
    vec![
        format.case("think_tag", json!("t"), other_think, WRONG_THEN_RIGHT),
        format.case("answer_tag", json!("a"), other_answer, WRONG_THEN_RIGHT),
        format.case("outside", json!("any"), greets, WRONG_THEN_RIGHT),
        format.case("think_in_prompt", json!("yes"), goes_on, WRONG_THEN_RIGHT),
        format.case("think_in_prompt", json!("no"), opened, WRONG_THEN_RIGHT),
    ]
}

fn of_language() -> Vec<Case<'static>> {
    let language = of(Kind::Language, json!({}));
    let of_answer = of(Kind::Language, json!({"part": "answer"}));
    let mixed =
        says("<think>我想</think> <answer>This is the answer to your question now</answer>");
    let other_think = says("<t>我想</t> This is the answer to your question now");
    let other_answer = says("<think>x</think>我想<a>This is the answer to your question now</a>");
    let none_then = |with| [score(0.0), score(with)];
    vec![
        language.case("target", json!("zh"), says("二加三等于五"), WRONG_THEN_RIGHT),
        language.case("part", json!("answer"), mixed, WRONG_THEN_RIGHT),
        language.case("part", json!("completion"), mixed, none_then(0.8)),
        language.case("think_tag", json!("t"), other_think, [score(0.8), score(0.0)]),
        of_answer.case("answer_tag", json!("a"), other_answer, [score(0.8), score(1.0)]),
    ]
}

fn of_lengths() -> Vec<Case<'static>> {
    let plateau = of(Kind::Length, json!({"max_tokens": 20}));
    let short = of(Kind::Length, json!({"max_tokens": 8}));
    let cosine = |of_reward| json!({"form": "cosine", "max_tokens": 20, "of": of_reward});
    let (right, wrong) = (of(Kind::Length, cosine("right")), of(Kind::Length, cosine("wrong")));
    let long = Sample { completion_len_tokens: 20, ..says("") };
    let overlong = of(Kind::Overlong, json!({"max_tokens": 40}));
    let close = of(Kind::Overlong, json!({"max_tokens": 20}));
    let near = Sample { completion_len_tokens: 15, ..says("") };
    vec![
        plateau.case("min_tokens", json!(12), says(""), RIGHT_THEN_WRONG),
        plateau.case("max_tokens", json!(8), says(""), RIGHT_THEN_WRONG),
        short.case("ramp_tokens", json!(4), says(""), [score(0.0), score(0.5)]),
        // It is built on another reward, which a plateau isn't.
        plateau.case("form", json!("cosine"), says(""), [score(1.0), Err("of")]),
        right.case("of", json!("wrong"), says(""), [score(1.5), score(-5.0)]),
        right.case("right_from", json!(2.0), says(""), [score(1.5), score(-5.0)]),
        right.case("right", json!([4.0, 2.0]), says(""), [score(1.5), score(3.0)]),
        wrong.case("wrong", json!([-4.0, -2.0]), says(""), [score(-5.0), score(-3.0)]),
        wrong.case("exceeded", json!(-7.0), long, [score(-10.0), score(-7.0)]),
        overlong.case("max_tokens", json!(20), long, [score(0.0), score(-1.0)]),
        close.case("cache_tokens", json!(10), near, [score(0.0), score(-0.5)]),
    ]
}

fn of_texts() -> Vec<Case<'static>> {
    let repetition = of(Kind::Repetition, json!({}));
    let words = of(Kind::Repetition, json!({"ngram_len_words": 1}));
    let again = says("a b a b");
    let begins = of(Kind::Regex, json!({"pattern": "^x"}));
    let five = of(Kind::Regex, json!({"pattern": "^5$"}));
    let tagged = of(Kind::Regex, json!({"pattern": "^5$", "place": "answer_tag"}));
    let upper = of(Kind::Regex, json!({"pattern": "A"}));
    let array = of(Kind::JsonSchema, json!({"schema": {"type": "array"}}));
    let object = of(Kind::JsonSchema, json!({"schema": {"type": "object"}}));
    vec![
        repetition.case("ngram_len_words", json!(1), again, [score(0.0), score(-0.5)]),
        words.case("penalty", json!(-2.0), again, [score(-0.5), score(-1.0)]),
        begins.case("pattern", json!("^y"), says("y"), WRONG_THEN_RIGHT),
        five.case("place", json!("answer_tag"), says("<answer>5</answer>"), WRONG_THEN_RIGHT),
        tagged.case("answer_tag", json!("a"), says("<a>5</a>"), WRONG_THEN_RIGHT),
        upper.case("is_case_sensitive", json!(false), says("a"), WRONG_THEN_RIGHT),
        array.case("schema", json!({"type": "object"}), says("{}"), WRONG_THEN_RIGHT),
        array.case("json_score", json!(0.5), says("{}"), [score(0.0), score(0.5)]),
        object.case("answer_tag", json!("a"), says("So <a>{}</a>"), WRONG_THEN_RIGHT),
        object.case("think_tag", json!("t"), says("<t>So</t>{}"), WRONG_THEN_RIGHT),
    ]
}

/// Two preference models: a completion's bytes, and minus one.
struct Lender;

struct Preferred(bool);

impl PreferenceModel for Preferred {
    fn scores(&self, samples: &[Sample<'_>]) -> Vec<Result<f32, String>> {
        let score =
            |sample: &Sample<'_>| if self.0 { sample.completion.len() as f32 } else { -1.0 };
        samples.iter().map(|sample| Ok(score(sample))).collect()
    }

    fn moments(&self) -> Option<[f32; 2]> {
        Some([1.0, 4.0])
    }
}

impl Backends for Lender {
    fn preference_model(&self, name: &str) -> Result<Arc<dyn PreferenceModel>, String> {
        Ok(Arc::new(Preferred(name == "liking")))
    }

    fn chat_model(&self, name: &str, _: usize, _: f64) -> Result<Arc<dyn ChatModel>, String> {
        Err(name.to_owned())
    }
}

fn of_model() -> Vec<Case<'static>> {
    let model = of(Kind::Model, json!({"model": "liking"}));
    vec![
        model.case("model", json!("dislike"), says("three"), [score(5.0), score(-1.0)]),
        model.case("scale", json!(0.5), says("three"), [score(5.0), score(2.5)]),
        model.case("normalise", json!(true), says("three"), [score(5.0), score(1.0)]),
    ]
}

#[test]
fn every_key_of_rewards_that_wait_for_nobody_does_something() {
    let cases = [
        of_comparisons(),
        of_choice(),
        of_countdown(),
        of_format(),
        of_language(),
        of_lengths(),
        of_texts(),
        of_model(),
    ]
    .concat();
    // Those that wait have theirs in the tests of what waits, and of code.
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !kind.waits()).collect();
    check_keys(&kinds, &cases, &[]);
    check_cases(&cases, &Lender);
}
