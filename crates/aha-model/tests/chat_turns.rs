//! Conversations as tokens, against those of transformers' `apply_chat_template` (ops/gen-chat-fixture.py).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use aha_model::chat_template::{ChatTemplate, Message};
use aha_model::tokenizer::Tokenizer;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures/chat_turns")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn message(value: &Value) -> Message {
    let text = |key: &str| value[key].as_str().unwrap();
    let mut more = value.as_object().unwrap().clone();
    more.retain(|key, _| !["role", "content"].contains(&key.as_str()));
    Message { more, ..Message::new(text("role"), text("content")) }
}

/// A case of the fixture, with what it is about.
struct Case<'a> {
    name: String,
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
    messages: Vec<Message>,
    expected: &'a Value,
}

impl Case<'_> {
    fn turns(&self) -> Vec<usize> {
        (0..self.messages.len()).filter(|&idx| self.messages[idx].is_assistants()).collect()
    }

    /// Tokens of the turns: each begins where a sampler would, and ends with the end-of-turn token.
    fn mask(&self, turns: &[usize]) -> Vec<bool> {
        let ids = ids(&self.expected["ids"]);
        let end = self.tokenizer.eos_ids()[0];
        let mut mask = vec![false; ids.len()];
        for idx in turns {
            let prompt = self::ids(&self.expected["prompts"][idx.to_string()]);
            assert!(ids.starts_with(&prompt), "{}: turn {idx}", self.name);
            let len = ids[prompt.len()..].iter().position(|&id| id == end).unwrap() + 1;
            mask[prompt.len()..][..len].fill(true);
        }
        mask
    }

    fn check(&self, turns: &[usize]) {
        let rendered = self.template.render_turns(&self.messages, turns).unwrap();
        let place = format!("{}, turns {turns:?}", self.name);
        assert_eq!(rendered.mask_problem, None, "{place}");
        assert_eq!(rendered.text, self.expected["text"].as_str().unwrap(), "{place}");
        let (found, mask) = self.tokenizer.encode_rendered(&rendered).unwrap();
        assert_eq!(found, ids(&self.expected["ids"]), "{place}");
        assert_eq!(mask, self.mask(turns), "{place}");
    }
}

/// Calls `check` with every case of the fixture.
fn for_each(check: impl Fn(&Case<'_>)) {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let fixture: Value = serde_json::from_str(&text).unwrap();
    let tokenizer = Tokenizer::load(&folder()).unwrap();
    for expected in fixture["cases"].as_array().unwrap() {
        let of = |key: &str| expected[key].as_str().unwrap();
        let source = fixture["templates"][of("template")].as_str().unwrap();
        let messages = fixture["conversations"][of("conversation")].as_array().unwrap();
        check(&Case {
            name: format!("{}, {}", of("template"), of("conversation")),
            template: ChatTemplate::new(source, None, tokenizer.eos(), tokenizer.pad()).unwrap(),
            tokenizer: &tokenizer,
            messages: messages.iter().map(message).collect(),
            expected,
        });
    }
}

#[test]
fn chosen_turns_have_the_tokens_of_transformers_from_where_a_sampler_would_begin() {
    for_each(|case| {
        let turns = case.turns();
        let last = turns.last().copied().into_iter().collect::<Vec<_>>();
        case.check(&last);
        case.check(&[]);
        if case.name != "forgets, thoughts" {
            case.check(&turns);
            case.check(&turns[..1]);
        }
    });
}

/// transformers finds these by itself, from the template's tags.
#[test]
fn the_mask_of_generation_tags_is_that_of_transformers() {
    for_each(|case| {
        let Some(mask) = case.expected.get("mask") else { return };
        let mask: Vec<bool> = ids(mask).into_iter().map(|flag| flag == 1).collect();
        assert_eq!(case.mask(&case.turns()), mask, "{}", case.name);
        let rendered = case.template.render(&case.messages, false).unwrap();
        assert_eq!(case.tokenizer.encode_rendered(&rendered).unwrap().1, mask, "{}", case.name);
    });
}

#[test]
fn a_turn_that_the_template_shows_without_its_thoughts_is_named() {
    for_each(|case| {
        if case.name == "forgets, thoughts" {
            let rendered = case.template.render_turns(&case.messages, &case.turns()).unwrap();
            let problem = rendered.mask_problem.unwrap();
            assert!(problem.starts_with("messages[1]: the template shows"), "{problem}");
            assert_eq!(rendered.assistant_spans.len(), 1, "the last turn is as it was written");
        }
    });
}
