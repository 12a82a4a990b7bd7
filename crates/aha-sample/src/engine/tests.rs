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
    f(&mut sampler.running(Held::Lent(&model), requests.to_vec(), (sampling, None), Philox::new(5)))
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

/// Asks for its requests at once, and changes weights before each forward pass whose number is given.
struct Changing {
    requests: Vec<Request>,
    passes: usize,
    changes: Vec<(usize, Weights)>,
    found: Vec<Completion>,
}

impl Audience for Changing {
    fn next(&mut self) -> Option<Request> {
        self.requests.pop()
    }

    fn weights(&mut self) -> Option<Weights> {
        self.passes += 1;
        let is_due = self.changes.first().is_some_and(|(pass, _)| *pass == self.passes);
        is_due.then(|| self.changes.remove(0).1)
    }

    fn hears(&mut self, _: News<'_>) -> bool {
        true
    }

    fn done(&mut self, completion: Completion) -> bool {
        self.found.push(completion);
        true
    }
}

/// The same model with other weights.
fn moved(model: &Model) -> Model {
    let mut model = model.copy_on(&Device::cpu(1));
    for id in model.params().ids() {
        model.params_mut().value_mut(id).as_mut_slice().iter_mut().for_each(|x| *x *= 1.5);
    }
    model
}

fn drawn_with(changes: Vec<(usize, Weights)>) -> (Vec<Completion>, Weights) {
    let mut weights = Weights { model: Arc::new(model()), version: 3 };
    let mut sampler = Sampler::new(&weights.model, tokenizer(), Limits::default());
    let sampling = Sampling { max_tokens: 8, ..Sampling::default() };
    let requests = vec![request(1, 5, 2)];
    let mut audience = Changing { requests, passes: 0, changes, found: Vec::new() };
    sampler.serve_changing(&mut weights, &sampling, Philox::new(5), &mut audience).unwrap();
    audience.found.sort_by_key(|completion| completion.sample_idx);
    (audience.found, weights)
}

#[test]
fn sequences_go_on_under_new_weights_and_each_token_says_which_drew_it() {
    let (before, _) = drawn_with(Vec::new());
    let newer = Weights { model: Arc::new(moved(&model())), version: 7 };
    // The first pass draws the first tokens, so the fourth draws the fourth.
    let (found, last) = drawn_with(vec![(4, newer)]);
    assert_eq!(last.version, 7);
    for (before, found) in before.iter().zip(&found) {
        assert_eq!(before.versions.expand(8), [3; 8]);
        assert_eq!(found.versions.expand(8), [3, 3, 3, 7, 7, 7, 7, 7]);
        assert_eq!(before.token_ids[..3], found.token_ids[..3]);
        assert_eq!(before.logprobs[..3], found.logprobs[..3]);
        assert_ne!(before.logprobs[3], found.logprobs[3]);
    }
    // The same weights under another number change no bit but the number.
    let same = Weights { model: Arc::new(model()), version: 4 };
    let (found, _) = drawn_with(vec![(2, same)]);
    for (before, found) in before.iter().zip(&found) {
        assert_eq!((&before.token_ids, &before.logprobs), (&found.token_ids, &found.logprobs));
        assert_eq!(found.versions.expand(8), [3, 4, 4, 4, 4, 4, 4, 4]);
    }
}

/// Goal: on a device logits come in chunks that change nothing. Method: chunks of two rows and of all, with rows that
/// several first tokens are drawn after.
#[test]
fn draws_on_a_device_are_the_same_in_chunks_of_logits() {
    let [emulated, _] = aha_emulate::Emulated::both();
    let device = Device::cpu(1).with_context(aha_compute::cuda::Context::new(emulated));
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures/tiny_llama");
    let model = Model::load(&dir, &device).unwrap();
    let requests = [request(1, 3, 3), request(2, 9, 2), request(3, 5, 2)];
    let sampling = Sampling { max_tokens: 5, ..Sampling::default() };
    let mut drawn = [2, 1000].map(|rows| {
        let mut sampler = Sampler::new(&model, tokenizer(), Limits::default());
        let on_cuda = sampler.on_cuda.as_mut().expect("a CUDA device");
        on_cuda.logits_len_max = rows * model.config().vocab_size;
        let mut completions = Vec::new();
        let mut take = |completion| {
            completions.push(completion);
            true
        };
        let never = AtomicBool::new(false);
        sampler.run(&model, &requests, &sampling, Philox::new(5), &never, &mut take).unwrap();
        completions
    });
    let [few, all] = &mut drawn;
    assert_eq!(few.len(), 7);
    few.sort_by_key(|c| (c.request_idx, c.sample_idx));
    all.sort_by_key(|c| (c.request_idx, c.sample_idx));
    assert_eq!(few, all);
}
