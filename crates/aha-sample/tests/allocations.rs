//! Decoding takes its memory once: a step asks the system for no more when there are more sequences, or when they
//! have grown.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer};
use aha_sample::{Limits, Request, Sampler, Sampling};

/// The system's allocator, and how often it was asked.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

/// How often memory was asked for while `samples` completions of two prompts had `max_tokens` tokens each.
fn asked(model: &Model, tokenizer: &Arc<Tokenizer>, samples: u32, sampling: &Sampling) -> usize {
    let prompt = |i: u32| Request {
        prompt_ids: (0..40).map(|t| 3 + (t + i) % 250).collect(),
        address: u64::from(i),
        samples: 0..samples,
    };
    let mut sampler = Sampler::new(model, Arc::clone(tokenizer), Limits::default());
    let requests = [prompt(0), prompt(1)];
    let before = ASKED.load(Ordering::Relaxed);
    let never = AtomicBool::new(false);
    let mut done = |_| true;
    sampler.run(model, &requests, sampling, Philox::new(1), &never, &mut done).unwrap();
    ASKED.load(Ordering::Relaxed) - before
}

/// Goal: a step's allocations are those of its ops, whose number the model gives. Method: with one thread they can
/// be counted. Runs that differ in their last 16 steps alone, early and late, with few and with many sequences.
#[test]
fn a_step_asks_for_no_more_memory_when_sequences_are_many_or_long() {
    const STEPS: usize = 16;
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures/tiny_llama");
    let model = Model::load(&dir, &Device::cpu(1)).unwrap();
    let tokenizer = tokenizer();
    for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (1.0, 20, 0.9), (1.0, 0, 0.9)] {
        let of_steps = |samples: u32, from: usize| {
            let count = |max_tokens: usize| {
                let sampling =
                    Sampling { temperature, top_k, top_p, max_tokens, ..Sampling::default() };
                // Buffers of the device are warm after the first run.
                asked(&model, &tokenizer, samples, &sampling);
                asked(&model, &tokenizer, samples, &sampling)
            };
            count(from + STEPS).abs_diff(count(from))
        };
        let (few, many, long) = (of_steps(8, 16), of_steps(24, 16), of_steps(24, 160));
        let what = format!("top_k {top_k}, top_p {top_p}: {few} {many} {long}");
        // Lists may double, and buffers of the device may change places: less than one a step.
        let slack = STEPS;
        assert!(few > STEPS, "the ops of a step are counted: {what}");
        assert!(many <= few + slack, "48 sequences in place of 16: {what}");
        assert!(long <= many + slack, "160 tokens in place of 16: {what}");
    }
}
