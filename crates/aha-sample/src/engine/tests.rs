//! The engine step by step, and the ends of completions.

use std::path::Path;

use aha_compute::Device;
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};

use super::*;

#[test]
fn a_stop_text_is_found_across_tokens_and_inside_one() {
    let stop = ["</answer>".to_owned(), "\n\n".to_owned()];
    let run = |pieces: &[&str]| {
        let mut tail = Vec::new();
        pieces.iter().position(|p| completes_stop_text(&mut tail, p.as_bytes(), &stop))
    };
    assert_eq!(run(&["4 </", "ans", "wer", "> and"]), Some(3));
    assert_eq!(run(&["a\n", "b", "\n", "\nc"]), Some(3));
    assert_eq!(run(&["x</answer>y"]), Some(0));
    assert_eq!(run(&["</answer", "<", ">"]), None);
}

fn model() -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures/tiny_llama");
    Model::load(&dir, &Device::cpu(1)).unwrap()
}

fn tokenizer() -> Arc<Tokenizer> {
    let options = TrainOptions {
        vocab_size: 257,
        special_tokens: vec!["<|end|>".to_owned()],
        eos_token: Some("<|end|>".to_owned()),
        alphabet: Alphabet::Full,
        ..TrainOptions::default()
    };
    Arc::new(tokenizer_train::train(["a"], &options).unwrap())
}

fn request(address: u64, len: u32, samples: u32) -> Request {
    let prompt_ids = (0..len).map(|t| 3 + (t * 7 + address as u32) % 250).collect();
    Request { prompt_ids, address, samples: 0..samples }
}

/// Lends an engine that has admitted nothing yet.
fn with_engine<T>(
    requests: &[Request],
    sampling: &Sampling,
    limits: Limits,
    f: impl FnOnce(&mut Running) -> T,
) -> T {
    let model = model();
    let mut sampler = Sampler::new(&model, tokenizer(), limits);
    f(&mut sampler.running(&model, requests.to_vec(), (sampling, None), Philox::new(5)))
}

#[test]
fn decoding_goes_on_while_a_long_prompt_is_prefilled_in_chunks() {
    let requests = [request(1, 3, 2), request(2, 100, 2)];
    let sampling = Sampling { max_tokens: 60, ..Sampling::default() };
    let limits = Limits { prefill_tokens_max: 8, ..Limits::default() };
    with_engine(&requests, &sampling, limits, |engine| {
        let mut seen = Vec::new();
        while engine.admit() && engine.groups.iter().any(|g| g.prefilled < 100) {
            let long = engine.groups.iter().find(|g| g.request_idx == 1);
            seen.push((
                long.map_or(0, |g| g.prefilled),
                engine.live.iter().map(|s| s.token_ids.len()).collect::<Vec<_>>(),
            ));
            engine.step(&mut Listener { done: &mut |_| true });
            if long_prompt_is_through(engine) {
                break;
            }
        }
        assert_eq!(seen[0], (0, vec![]));
        // The short prompt leaves five tokens of the first chunk.
        for (i, (prefilled, lens)) in seen.iter().enumerate().skip(1) {
            assert_eq!((*prefilled, lens), (5 + 8 * (i - 1), &vec![i, i]));
        }
        assert_eq!(seen.len(), 13);
        engine.release_all();
        assert_eq!(engine.pages.used(), 0);
    });
}

fn long_prompt_is_through(engine: &Running) -> bool {
    engine.groups.iter().any(|g| g.request_idx == 1 && g.prefilled == 100)
}

#[test]
fn a_completion_that_ends_leaves_at_once_and_another_takes_its_place() {
    let requests = [request(1, 20, 12)];
    let limits = Limits { sequences_max: 3, ..Limits::default() };
    let sampling =
        Sampling { max_tokens: 40, stop_token_ids: (0..40).collect(), ..Sampling::default() };
    with_engine(&requests, &sampling, limits, |engine| {
        let (mut ended, mut steps) = (0, 0);
        while engine.admit() {
            let waiting: usize = engine.groups.iter().map(|g| g.waiting.len()).sum();
            assert!(engine.live.len() == 3 || waiting == 0, "a place is free and {waiting} wait");
            let done = &mut |completion: Completion| {
                ended += 1;
                let stops = completion.token_ids.iter().filter(|id| **id < 40).count();
                assert_eq!(stops, usize::from(completion.finish_reason == FinishReason::Stop));
                true
            };
            engine.step(&mut Listener { done });
            let is_over = |s: &Sequence| s.token_ids.iter().any(|id| *id < 40);
            assert!(!engine.live.iter().any(is_over), "a completion that ended is still decoded");
            steps += 1;
        }
        assert_eq!((ended, engine.pages.used()), (12, 0));
        assert!(steps < 12 * 40 / 3, "{steps} steps");
    });
}
