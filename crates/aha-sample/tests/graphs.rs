//! Steps of decoding on an emulated CUDA device: as graphs they give the bits that they give op by op, and cost the
//! host a handful of calls.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aha_compute::cuda::{Context, Kind};
use aha_compute::ops::adamw::{AdamW, Hyper};
use aha_compute::random::Philox;
use aha_compute::{Device, Dtype, Grads};
use aha_emulate::{Calls, Emulated, Order};
use aha_model::config::Config;
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer};
use aha_sample::{Completion, Error, Limits, Request, Sampler, Sampling, Thinking};

const MEMORY_BYTES: usize = 1 << 30;

fn device(dtype: Dtype) -> (Arc<Emulated>, Device) {
    let emulated = Emulated::new(Order::Backward, MEMORY_BYTES);
    (Arc::clone(&emulated), on(emulated, dtype))
}

fn on(emulated: Arc<Emulated>, dtype: Dtype) -> Device {
    Device::cpu(1).with_context(Context::new(emulated)).with_dtype(dtype)
}

fn fixture(name: &str, device: &Device) -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    Model::load(&dir, device).unwrap()
}

/// A model whose heads are for tensor cores.
fn wide(device: &Device, seed: u64) -> Model {
    let like = fixture("tiny_qwen2", &Device::cpu(1)).config().clone();
    let heads = Config { head_dim: 64, head_count: 2, kv_head_count: 1, ..like };
    Model::random(Config { hidden_size: 128, ..heads }, device, Philox::new(seed)).unwrap()
}

/// Has the bytes as tokens.
fn tokenizer() -> Arc<Tokenizer> {
    let options =
        TrainOptions { vocab_size: 257, alphabet: Alphabet::Full, ..TrainOptions::default() };
    Arc::new(tokenizer_train::train(["a"], &options).unwrap())
}

fn requests(lens: &[u64], samples: u32) -> Vec<Request> {
    let random = Philox::new(7);
    let ids =
        |i: u64, len: u64| (0..len).map(|t| 3 + (random.bits(&[i, t]) % 250) as u32).collect();
    let request = |(i, &len): (u64, &u64)| Request {
        prompt_ids: ids(i, len),
        address: 100 + i,
        samples: 0..samples,
    };
    (0..).zip(lens).map(request).collect()
}

fn limits(sequences_max: usize) -> Limits {
    Limits { sequences_max, prefill_tokens_max: 64, cache_bytes: 1 << 20 }
}

fn run(
    sampler: &mut Sampler,
    model: &Model,
    requests: &[Request],
    sampling: &Sampling,
) -> Result<Vec<Completion>, Error> {
    let mut completions = Vec::new();
    let mut take = |completion| {
        completions.push(completion);
        true
    };
    let never = AtomicBool::new(false);
    sampler.run(model, requests, sampling, Philox::new(5), &never, &mut take)?;
    completions.sort_by_key(|c| (c.request_idx, c.sample_idx));
    Ok(completions)
}

#[track_caller]
fn assert_same(what: &str, got: &[Completion], want: &[Completion]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let bits = |c: &Completion| c.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (a, b) in got.iter().zip(want) {
        assert_eq!(a.token_ids, b.token_ids, "{what}");
        assert_eq!(bits(a), bits(b), "{what}");
        assert_eq!((&a.forced_mask, a.finish_reason), (&b.forced_mask, b.finish_reason), "{what}");
    }
}

fn samplings() -> [Sampling; 3] {
    let of_all = Sampling {
        max_tokens: 14,
        stop_token_ids: (3..20).collect(),
        temperature: 1.3,
        ..Sampling::default()
    };
    let of_few = Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, ..of_all.clone() };
    let thinking = Thinking {
        end: "e".to_owned(),
        min_tokens: 3,
        max_tokens: Some(6),
        waits: 1,
        wait: "so".to_owned(),
        close: " e".to_owned(),
    };
    let forced =
        Sampling { thinking: Some(thinking), stop_token_ids: Vec::new(), ..of_all.clone() };
    [of_all, of_few, forced]
}

/// Goal: a graph's rows have the bits of the same pass op by op. Method: groups that share their prompts' pages, whose
/// sequences end at different times, so that batches go through several buckets; all ways to draw, and forced tokens.
#[test]
fn graphs_change_no_bit() {
    let (_, device) = device(Dtype::F32);
    let model = fixture("tiny_qwen2", &device);
    let requests = requests(&[1, 16, 21, 5], 3);
    let mut sampler = Sampler::new(&model, tokenizer(), limits(9));
    for (i, sampling) in samplings().iter().enumerate() {
        let mut plain = Sampler::new(&model, tokenizer(), limits(9)).without_graphs();
        let want = run(&mut plain, &model, &requests, sampling).unwrap();
        assert_eq!(plain.graph_count(), 0);
        let got = run(&mut sampler, &model, &requests, sampling).unwrap();
        assert_same(&format!("sampling {i}"), &got, &want);
        let forced = got.iter().flat_map(|c| c.forced_mask.iter().flatten());
        assert_eq!(forced.filter(|is_forced| **is_forced).count() > 0, i == 2);
    }
    assert!(sampler.graph_count() >= 3, "{} buckets", sampler.graph_count());
}

/// Goal: also where sequences are cut for attention, into more parts as they grow. Method: heads for tensor cores, and
/// sequences that grow past two tiles of keys, beside short ones.
#[test]
fn graphs_change_no_bit_where_sequences_are_cut() {
    let (_, device) = device(Dtype::Bf16);
    let model = wide(&device, 3);
    let requests = requests(&[124, 7, 120], 2);
    let sampling = Sampling { max_tokens: 12, ..Sampling::default() };
    let mut plain = Sampler::new(&model, tokenizer(), limits(5)).without_graphs();
    let want = run(&mut plain, &model, &requests, &sampling).unwrap();
    let mut sampler = Sampler::new(&model, tokenizer(), limits(5));
    let got = run(&mut sampler, &model, &requests, &sampling).unwrap();
    assert_same("cut", &got, &want);
    // Rows 8, 4, 2 or 1 with two tiles, and with four.
    assert!(sampler.graph_count() >= 3, "{}", sampler.graph_count());
    // A graph is kept from run to run.
    let graphs = sampler.graph_count();
    let again = run(&mut sampler, &model, &requests, &sampling).unwrap();
    assert_same("again", &again, &want);
    assert_eq!(sampler.graph_count(), graphs);
}

/// Goal: a graph goes with its weights. Method: weights that change in place, others in their place, and the first ones
/// again; each time what a sampler without graphs draws.
#[test]
fn weights_that_change_or_are_swapped_are_those_that_are_drawn_from() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (_, device) = device(dtype);
        let requests = requests(&[5, 18], 3);
        let sampling = Sampling { max_tokens: 6, ..Sampling::default() };
        let mut one = wide(&device, 3);
        let other = wide(&device, 4);
        let mut sampler = Sampler::new(&one, tokenizer(), limits(6));
        let mut check = |what: &str, model: &Model| {
            let mut plain = Sampler::new(model, tokenizer(), limits(6)).without_graphs();
            let want = run(&mut plain, model, &requests, &sampling).unwrap();
            assert_same(what, &run(&mut sampler, model, &requests, &sampling).unwrap(), &want);
            want
        };
        let first = check("first", &one);
        let second = check("other weights", &other);
        assert_ne!(first[0].logprobs, second[0].logprobs);
        assert_same("first again", &check("first again", &one), &first);
        for id in one.params().ids() {
            let values: Vec<f32> = one.params().value(id).host().iter().map(|x| 1.25 * x).collect();
            one.params_mut().value_mut(id).write(&values);
        }
        let changed = check("changed in place", &one);
        assert_ne!(first[0].logprobs, changed[0].logprobs);
        drop(one);
        check("others, when the first are gone", &wide(&device, 9));
    }
}

/// Goal: publishing weights costs nothing: an optimizer's step leaves weights and their copies where they are, so what
/// is captured stays, and is drawn from with the new values. Method: steps between runs, as a learner makes them.
#[test]
fn steps_of_the_optimizer_leave_graphs_as_they_are() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (_, device) = device(dtype);
        let requests = requests(&[5, 18], 3);
        let sampling = Sampling { max_tokens: 6, ..Sampling::default() };
        let mut model = wide(&device, 3);
        let mut sampler = Sampler::new(&model, tokenizer(), limits(6));
        let mut optimizer = AdamW::new(model.params());
        let mut grads = Grads::zeros(&device, model.params());
        let hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let mut before = run(&mut sampler, &model, &requests, &sampling).unwrap();
        let graphs = sampler.graph_count();
        assert!(graphs > 0);
        for seed in 0..3 {
            for id in model.params().ids() {
                let random = Philox::new(seed);
                let len = model.params().value(id).len() as u64;
                let noise: Vec<f32> = (0..len).map(|i| random.normal(i) as f32).collect();
                grads.get_mut(id).write(&noise);
            }
            optimizer.step(model.params_mut(), &grads, &hyper, 1.0);
            let drawn = run(&mut sampler, &model, &requests, &sampling).unwrap();
            let mut plain = Sampler::new(&model, tokenizer(), limits(6)).without_graphs();
            let want = run(&mut plain, &model, &requests, &sampling).unwrap();
            assert_same("after a step", &drawn, &want);
            assert_ne!(drawn[0].logprobs, before[0].logprobs);
            assert_eq!(sampler.graph_count(), graphs, "{dtype}: what is captured stays");
            before = drawn;
        }
    }
}

/// Goal: between runs the cache's memory is others', and what is captured stays. Method: the allocator's counts before,
/// between and after; then another holds the memory at the cache's address, so that all is captured again elsewhere.
#[test]
fn a_cache_that_is_released_leaves_graphs_and_completions_as_they_are() {
    let emulated = Emulated::new(Order::Backward, MEMORY_BYTES);
    let context = Context::new(emulated);
    let device = Device::cpu(1).with_context(context.clone()).with_dtype(Dtype::F32);
    let model = fixture("tiny_qwen2", &device);
    let (requests, sampling) =
        (requests(&[5, 18], 3), Sampling { max_tokens: 6, ..Sampling::default() });
    let mut sampler = Sampler::new(&model, tokenizer(), limits(6));
    let want = run(&mut sampler, &model, &requests, &sampling).unwrap();
    let (graphs, with_cache) = (sampler.graph_count(), context.stats().in_use_bytes);
    assert!(graphs > 0);
    let release = |sampler: &mut Sampler| {
        sampler.release_cache();
        let freed = with_cache - context.stats().in_use_bytes;
        assert!(freed > limits(6).cache_bytes * 9 / 10, "{freed} of {with_cache}");
        assert_eq!(sampler.graph_count(), graphs, "what is captured stays");
        freed
    };
    let freed = release(&mut sampler);
    let again = run(&mut sampler, &model, &requests, &sampling).unwrap();
    assert_same("at the same place", &again, &want);
    assert_eq!(context.stats().in_use_bytes, with_cache);
    assert_eq!(sampler.graph_count(), graphs, "and is used again");
    release(&mut sampler);
    let other = context.buffer(Kind::U32, freed / 4).unwrap();
    let moved = run(&mut sampler, &model, &requests, &sampling).unwrap();
    assert_same("elsewhere", &moved, &want);
    assert!(sampler.graph_count() > graphs, "captured for the new place");
    drop(other);
}

/// Goal: a cache for which there is no memory any more is the device's error. Method: another takes all there is.
#[test]
fn a_cache_that_cannot_be_taken_again_is_an_error() {
    let context = Context::new(Emulated::new(Order::Forward, 16 << 20));
    let device = Device::cpu(1).with_context(context.clone()).with_dtype(Dtype::F32);
    let model = fixture("tiny_llama", &device);
    let (requests, sampling) =
        (requests(&[5], 2), Sampling { max_tokens: 4, ..Sampling::default() });
    let mut sampler = Sampler::new(&model, tokenizer(), limits(6));
    run(&mut sampler, &model, &requests, &sampling).unwrap();
    sampler.release_cache();
    let mut taken = Vec::new();
    let mut bytes = 16 << 20;
    while bytes > limits(6).cache_bytes / 2 {
        match context.buffer(Kind::U32, bytes / 4) {
            Ok(buffer) => taken.push(buffer),
            Err(_) => bytes /= 2,
        }
    }
    let error = run(&mut sampler, &model, &requests, &sampling).unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

/// Calls of the driver for ten steps of decoding with a batch that stays.
fn calls_of_steps(dtype: Dtype, has_graphs: bool) -> Calls {
    const STEPS: usize = 10;
    let (emulated, device) = device(dtype);
    let model = fixture("tiny_qwen2", &device);
    let requests = requests(&[5, 18], 3);
    let mut sampler = Sampler::new(&model, tokenizer(), limits(6));
    if !has_graphs {
        sampler = sampler.without_graphs();
    }
    let mut calls = |max_tokens| {
        let sampling = Sampling { max_tokens, ..Sampling::default() };
        let before = emulated.calls();
        run(&mut sampler, &model, &requests, &sampling).unwrap();
        emulated.calls().since(&before)
    };
    // What is captured and allocated is there after the longest run, and blocks have found their places.
    for max_tokens in [5 + STEPS, 5, 5 + STEPS] {
        calls(max_tokens);
    }
    let few = calls(5);
    calls(5 + STEPS).since(&few)
}

/// Goal: the host isn't what decoding waits for: a step is one copy each way, a replay, the head's product and draws.
#[test]
fn a_step_of_decoding_is_a_handful_of_calls() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let calls = calls_of_steps(dtype, true);
        let want = Calls {
            copies_in: 10,
            copies_out: 10,
            replays: 10,
            products: 10,
            launches: 40,
            waits: 10,
            ..Calls::default()
        };
        assert_eq!(calls, want, "{dtype}");
        assert_eq!(calls.total(), 90);
        // Op by op, lists go in one copy too, and nothing is allocated.
        let plain = calls_of_steps(dtype, false);
        assert_eq!((plain.copies_in, plain.copies_out, plain.allocs), (10, 10, 0), "{dtype}");
        assert!(plain.launches > 200, "{plain:?}");
    }
}

/// Goal: a device whose memory is full at any moment, also while a step is captured, is an error, and nothing panics.
/// Method: from too little memory for the model to enough for all.
#[test]
fn too_little_memory_is_an_error_wherever_it_shows() {
    let requests = requests(&[5, 18], 3);
    let sampling = Sampling { max_tokens: 4, ..Sampling::default() };
    let mut outcomes = [0, 0];
    let mut want = None;
    for kib in (1400..2800).rev().step_by(100) {
        let emulated = Emulated::new(Order::Forward, kib << 10);
        let device = on(Arc::clone(&emulated), Dtype::F32);
        let model = fixture("tiny_llama", &device);
        let mut sampler = Sampler::new(&model, tokenizer(), limits(6));
        match run(&mut sampler, &model, &requests, &sampling) {
            Ok(got) => {
                assert_same("with room", &got, want.get_or_insert(got.clone()));
                outcomes[0] += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("out of memory"), "{error}");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|&count| count > 1), "{outcomes:?}");
}
