//! Sampler and learner on a CUDA device, in emulation: a completion has the same bits whatever shares its batch, the
//! learner's forward pass gives them again, and in f32 its tokens are those that a processor draws.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_compute::cuda::{Agreement, Context};
use aha_compute::random::Philox;
use aha_compute::{Device, Dtype};
use aha_emulate::{Emulated, ORDERS, Sums};
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer};
use aha_sample::{Completion, Error, Limits, Request, Sampler, Sampling, score};

const NAMES: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];
const PROMPT_LENS: [u64; 4] = [1, 16, 21, 37];
const GROUP_SIZE: u32 = 2;

fn model(name: &str, device: &Device) -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    Model::load(&dir, device).unwrap()
}

/// Any does: no text is looked at.
fn tokenizer() -> Arc<Tokenizer> {
    let options =
        TrainOptions { vocab_size: 257, alphabet: Alphabet::Full, ..TrainOptions::default() };
    Arc::new(tokenizer_train::train(["a"], &options).unwrap())
}

fn requests() -> Vec<Request> {
    let random = Philox::new(7);
    let ids =
        |i: u64, len: u64| (0..len).map(|t| 3 + (random.bits(&[i, t]) % 250) as u32).collect();
    let requests = (0..).zip(PROMPT_LENS).map(|(i, len)| Request {
        prompt_ids: ids(i, len),
        address: 100 + i,
        samples: 0..GROUP_SIZE,
    });
    requests.collect()
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
        max_tokens: 6,
        stop_token_ids: vec![4, 9, 77, 130],
        ..Sampling::default()
    }
}

fn sample(model: &Model, sequences_max: usize, prefill: usize) -> Result<Vec<Completion>, Error> {
    sample_of(model, &requests(), sequences_max, prefill)
}

fn sample_of(
    model: &Model,
    requests: &[Request],
    sequences_max: usize,
    prefill: usize,
) -> Result<Vec<Completion>, Error> {
    let limits = Limits { sequences_max, prefill_tokens_max: prefill, cache_bytes: 1 << 20 };
    let mut sampler = Sampler::new(model, tokenizer(), limits);
    let mut completions = Vec::new();
    let mut take = |completion| {
        completions.push(completion);
        true
    };
    let stop = AtomicBool::new(false);
    sampler.run(model, requests, &sampling(), Philox::new(5), &stop, &mut take)?;
    assert!(!stop.load(Ordering::Relaxed));
    completions.sort_by_key(|c| (c.request_idx, c.sample_idx));
    Ok(completions)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn cuda(dtype: Dtype) -> Device {
    let [emulated, _] = Emulated::both();
    Device::cpu(1).with_context(Context::new(emulated)).with_dtype(dtype)
}

#[test]
fn the_learner_finds_the_bits_that_the_sampler_drew() {
    let fp8 = cuda(Dtype::Bf16).with_fp8().unwrap();
    for name in NAMES {
        for device in [&cuda(Dtype::F32), &cuda(Dtype::Bf16), &fp8] {
            let (dtype, model_on) = (device.dtype(), model(name, device));
            let drawn = sample(&model_on, 8, 64).unwrap();
            assert_eq!(drawn.len(), PROMPT_LENS.len() * GROUP_SIZE as usize);
            for (sequences_max, prefill) in [(1, 3), (5, 17)] {
                let again = sample(&model_on, sequences_max, prefill).unwrap();
                for (a, b) in drawn.iter().zip(&again) {
                    assert_eq!(a.token_ids, b.token_ids, "{name}, {device:?}, {prefill}");
                    assert_eq!(
                        bits(&a.logprobs),
                        bits(&b.logprobs),
                        "{name}, {device:?}, {prefill}"
                    );
                }
            }
            for completion in &drawn {
                let prompt = &requests()[completion.request_idx].prompt_ids;
                let ids = [&prompt[..], &completion.token_ids].concat();
                let scores = score(&model_on, &ids, sampling().temperature, 0).unwrap();
                let own: Vec<f32> =
                    scores[prompt.len() - 1..].iter().map(|score| score.logprob).collect();
                assert_eq!(bits(&own), bits(&completion.logprobs), "{name}, {device:?}");
            }
            if dtype == Dtype::F32 {
                let on_cpu = sample(&model(name, &Device::cpu(1)), 8, 64).unwrap();
                for (a, b) in drawn.iter().zip(&on_cpu) {
                    assert_eq!(a.token_ids, b.token_ids, "{name}: device and processor");
                    let off = a.logprobs.iter().zip(&b.logprobs).map(|(a, b)| (a - b).abs());
                    assert!(off.fold(0.0, f32::max) < 1e-5, "{name}: device and processor");
                }
            }
        }
    }
}

/// Goal: a sampler's products of few rows have the bits of the learner's products of many: through the kernel for few
/// rows where it has the library's bits, and through the library where it hasn't. Method: a prompt of more rows than
/// the kernel takes, which the sampler reads in pieces and the learner at once; libraries that sum otherwise.
#[test]
fn few_rows_of_the_sampler_have_the_bits_of_many_of_the_learner() {
    for sums in [Sums::InOrder, Sums::TwoHalves] {
        for name in ["tiny_llama", "tiny_qwen2"] {
            let context = Context::new(Emulated::with_sums(ORDERS[0], 1 << 30, sums));
            let device = Device::cpu(1).with_context(context).with_dtype(Dtype::Bf16);
            let model_on = model(name, &device);
            let random = Philox::new(8);
            let ids = (0..90).map(|t| 3 + (random.bits(&[t]) % 250) as u32).collect();
            let request = Request { prompt_ids: ids, address: 7, samples: 0..3 };
            let drawn = sample_of(&model_on, std::slice::from_ref(&request), 8, 50).unwrap();
            assert_eq!(drawn.len(), 3);
            for completion in &drawn {
                let ids = [&request.prompt_ids[..], &completion.token_ids].concat();
                let scores = score(&model_on, &ids, sampling().temperature, 0).unwrap();
                let own: Vec<f32> =
                    scores[request.prompt_ids.len() - 1..].iter().map(|s| s.logprob).collect();
                assert_eq!(bits(&own), bits(&completion.logprobs), "{name}, {sums:?}");
            }
            let answers = device.probed_products();
            assert!(answers.len() >= 4, "{name}: {answers:?}");
            assert_eq!(answers.iter().any(|(shape, _)| shape.has_bias), name == "tiny_qwen2");
            for (shape, answer) in answers {
                let is_equal = answer == Agreement::Equal;
                assert_eq!(is_equal, sums == Sums::InOrder, "{name}, {shape}: {answer}");
            }
        }
    }
}

/// Goal: a device without room is an error that says what to turn, and not a panic. Method: an emulated device with
/// less memory than the model and its cache take.
#[test]
fn a_device_without_room_is_an_error_with_a_remedy() {
    let emulated = Emulated::new(ORDERS[0], 300 << 10);
    let device = Device::cpu(1).with_context(Context::new(emulated));
    let model = model("tiny_llama", &device);
    let error = sample(&model, 8, 64).unwrap_err().to_string();
    assert!(error.contains("out of memory on the device"), "{error}");
    assert!(error.contains("micro-batches"), "{error}");
}
