//! A completion: each way to find its answer ends without a panic, within 50 ms of processor time, and finds a
//! part of the text.

#![no_main]

#[path = "../clock.rs"]
mod clock;

use aha_reward::extract::{Extraction, LENIENT, STRICT, Strategy};
use aha_reward::{extract_boxed, extract_tag};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for strategies in [&STRICT[..], &LENIENT[..], &[Strategy::LastExpression]] {
        let extraction = Extraction { strategies: strategies.to_vec(), ..Extraction::default() };
        if let Ok(answer) = clock::within_50_ms(text, || extraction.find(text)) {
            assert!(!answer.is_empty() && text.contains(answer));
        }
    }
    clock::within_50_ms(text, || (extract_boxed(text), extract_tag(text, "answer")));
    clock::within_50_ms(text, || aha_reward::math::gold_answer(text).len());
});
