//! Completions for whoever asks while others are drawn: the same bits as those of one batch.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Model, Tokenizer};
use aha_sample::{Audience, Completion, Limits, News, Request, Sampler, Sampling, score};

fn model() -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures/tiny_llama");
    Model::load(&dir, &Device::cpu(2)).unwrap()
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

fn requests() -> Vec<Request> {
    let prompt = |i: u32| (0..5 + 9 * i).map(|t| 3 + (t * 7 + i) % 250).collect();
    (0..4)
        .map(|i| Request { prompt_ids: prompt(i), address: u64::from(i), samples: 0..2 })
        .collect()
}

fn sampling() -> Sampling {
    Sampling { temperature: 0.9, max_tokens: 20, ..Sampling::default() }
}

/// Asks for one more whenever somebody has so many tokens; wants some requests no longer then.
struct Crowd {
    waiting: VecDeque<Request>,
    is_due: bool,
    unwanted: Option<usize>,
    heard: BTreeMap<(usize, u32), Vec<usize>>,
    done: Vec<Completion>,
}

impl Audience for Crowd {
    fn next(&mut self) -> Option<Request> {
        std::mem::take(&mut self.is_due).then(|| self.waiting.pop_front()).flatten()
    }

    fn hears(&mut self, news: News<'_>) -> bool {
        assert_eq!(news.token_ids.len(), news.logprobs.len());
        let len = news.token_ids.len();
        self.heard.entry((news.request_idx, news.sample_idx)).or_default().push(len);
        self.is_due |= len == 7;
        !(len == 9 && self.unwanted == Some(news.request_idx))
    }

    fn done(&mut self, completion: Completion) -> bool {
        self.done.push(completion);
        true
    }
}

fn serve(unwanted: Option<usize>) -> Crowd {
    let model = model();
    let mut sampler = Sampler::new(&model, tokenizer(), Limits::default());
    let mut crowd = Crowd {
        waiting: requests().into(),
        is_due: true,
        unwanted,
        heard: BTreeMap::new(),
        done: Vec::new(),
    };
    sampler.serve(&model, &sampling(), Philox::new(5), &mut crowd).unwrap();
    crowd.done.sort_by_key(|c| (c.request_idx, c.sample_idx));
    crowd
}

fn at_once() -> Vec<Completion> {
    let model = model();
    let mut sampler = Sampler::new(&model, tokenizer(), Limits::default());
    let mut all = Vec::new();
    let never = AtomicBool::new(false);
    let take = &mut |completion| {
        all.push(completion);
        true
    };
    sampler.run(&model, &requests(), &sampling(), Philox::new(5), &never, take).unwrap();
    all.sort_by_key(|c| (c.request_idx, c.sample_idx));
    all
}

#[test]
fn who_asks_later_gets_what_one_who_asks_at_once_gets() {
    let crowd = serve(None);
    assert_eq!(crowd.done, at_once());
    for completion in &crowd.done {
        let heard = &crowd.heard[&(completion.request_idx, completion.sample_idx)];
        let each: Vec<usize> = (1..=completion.token_ids.len()).collect();
        assert_eq!(*heard, each, "each token is heard of once");
    }
}

#[test]
fn what_nobody_wants_is_dropped_and_changes_nothing_for_others() {
    let crowd = serve(Some(1));
    let others: Vec<Completion> = at_once().into_iter().filter(|c| c.request_idx != 1).collect();
    assert_eq!(crowd.done, others);
    assert_eq!(crowd.heard[&(1, 0)].last(), Some(&9));
}

/// P1: a text that is given has the log-probs that it was drawn with, bit for bit.
#[test]
fn what_was_drawn_scores_as_it_was_drawn() {
    let (model, requests) = (model(), requests());
    for completion in at_once() {
        let prompt_ids = &requests[completion.request_idx].prompt_ids;
        let ids = [&prompt_ids[..], &completion.token_ids].concat();
        let scored = score(&model, &ids, sampling().temperature, 3).unwrap();
        assert_eq!(scored.len(), ids.len() - 1);
        let drawn = &scored[prompt_ids.len() - 1..];
        let bits = |values: Vec<f32>| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let logprobs = drawn.iter().map(|scored| scored.logprob).collect();
        assert_eq!(bits(logprobs), bits(completion.logprobs.clone()));
        for scored in &scored {
            assert!(scored.top.is_sorted_by(|a, b| a.1 >= b.1) && scored.top.len() == 3);
            assert!(scored.logprob <= scored.top[0].1);
        }
    }
    assert!(score(&model, &[5], 1.0, 2).unwrap().is_empty());
    assert!(score(&model, &[5, 70_000], 1.0, 2).is_err());
}
