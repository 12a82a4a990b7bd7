//! Two answers, separated by a line break: a verdict without a panic, the same in each run, equality with
//! itself, and within 50 ms of processor time.

#![no_main]

#[path = "../clock.rs"]
mod clock;

use aha_reward::math::{Outcome, ROUNDING_PLACES, compare};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (gold, pred) = text.split_once('\n').unwrap_or((text, text));
    let first = clock::within_50_ms(text, || compare(gold, pred, ROUNDING_PLACES));
    assert_eq!(first, compare(gold, pred, ROUNDING_PLACES), "another verdict in another run");
    let itself = clock::within_50_ms(text, || compare(gold, gold, ROUNDING_PLACES));
    assert!(itself == Outcome::Equal || gold_is_empty(gold), "{gold} is not itself");
});

/// Whether nothing is left of the answer without the marks around it.
fn gold_is_empty(gold: &str) -> bool {
    gold.chars().all(|c| c.is_whitespace() || "$*\\()[]（）＄＊＼［］．.".contains(c))
}
