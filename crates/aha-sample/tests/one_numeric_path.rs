//! P1 and P2: a completion has the same tokens and the same log-prob bits whatever shares its batch, and
//! the learner's forward pass gives those bits again, for every architecture and instruction set.

#![expect(clippy::unwrap_used, reason = "a fixture of another shape fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_compute::ops::attention::Layout;
use aha_compute::ops::matmul::reference;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_compute::{Device, Dtype, WeightForm};
use aha_model::tokenizer_train::{self, Alphabet, TrainOptions};
use aha_model::{Lora, Model, Target, Tokenizer};
use aha_sample::{Completion, FinishReason, Limits, Request, Sampler, Sampling, Thinking};

const NAMES: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];
const PROMPT_COUNT: usize = 8;
const GROUP_SIZE: u32 = 8;

/// What models compute with, and what they keep keys and values as.
const DTYPES: [(Dtype, Dtype); 3] =
    [(Dtype::F32, Dtype::F32), (Dtype::F32, Dtype::Bf16), (Dtype::Bf16, Dtype::Bf16)];

fn model(name: &str, device: &Device, (dtype, kv_dtype): (Dtype, Dtype)) -> Model {
    let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../aha-model/tests/fixtures")
        .join(name);
    Model::load(&dir, &device.clone().with_dtype(dtype).with_kv_dtype(kv_dtype)).unwrap()
}

/// Any tokenizer does: the tests draw tokens and look at no text but that of stop strings.
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

/// Prompts of 1 to 47 tokens: shorter than a page of the cache, exactly one, and several.
fn requests() -> Vec<Request> {
    let random = Philox::new(7);
    let lens = [1, 5, 16, 17, 23, 32, 40, 47];
    let ids =
        |i: u64, len: u64| (0..len).map(|t| 3 + (random.bits(&[i, t]) % 250) as u32).collect();
    (0..PROMPT_COUNT as u64)
        .map(|i| Request {
            prompt_ids: ids(i, lens[i as usize]),
            address: 100 + i,
            samples: 0..GROUP_SIZE,
        })
        .collect()
}

/// A few stop tokens, so that sequences leave the batch at different times.
fn sampling() -> Sampling {
    Sampling {
        temperature: 0.8,
        max_tokens: 24,
        stop_token_ids: vec![4, 9, 77, 130],
        ..Sampling::default()
    }
}

fn sample(
    model: &Model,
    requests: &[Request],
    sampling: &Sampling,
    limits: Limits,
) -> Vec<Completion> {
    let mut sampler = Sampler::new(model, tokenizer(), limits);
    let mut completions = Vec::new();
    sampler
        .run(
            model,
            requests,
            sampling,
            Philox::new(5),
            &AtomicBool::new(false),
            &mut |completion| {
                completions.push(completion);
                true
            },
        )
        .unwrap();
    completions.sort_by_key(|c| (c.request_idx, c.sample_idx));
    completions
}

fn assert_same(what: &str, a: &[Completion], b: &[Completion]) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        let at = format!("{what}: request {}, sample {}", a.request_idx, a.sample_idx);
        assert_eq!(a.token_ids, b.token_ids, "{at}");
        assert_eq!(bits(&a.logprobs), bits(&b.logprobs), "{at}");
        assert_eq!(a.finish_reason, b.finish_reason, "{at}");
        assert_eq!(a.forced_mask, b.forced_mask, "{at}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Limits under which the same completions are made in very different batches.
fn batchings() -> [Limits; 4] {
    let limits = |sequences_max, prefill_tokens_max, cache_bytes| Limits {
        sequences_max,
        prefill_tokens_max,
        cache_bytes,
    };
    [
        limits(64, 512, 64 << 20),
        limits(1, 3, 64 << 20),
        limits(7, 16, 64 << 20),
        limits(64, 33, 300 << 10),
    ]
}

#[test]
fn the_learner_finds_the_bits_that_the_sampler_drew() {
    for name in NAMES {
        for dtypes in DTYPES {
            let mut first: Option<Vec<Completion>> = None;
            for isa in Isa::available() {
                // The portable path is slow where the compiler has no fused multiply-add.
                let is_slow = isa == Isa::Portable && dtypes != DTYPES[0];
                for threads in if is_slow { 2..=2 } else { 1..=2 } {
                    let device = Device::cpu_with(threads, isa);
                    check_batchings(&model(name, &device, dtypes), name, &mut first);
                }
            }
        }
    }
}

/// Adapters, none of whose matrices is zero.
fn adapted(model: &Model) -> Model {
    let targets = Target::ALL.to_vec();
    let lora = Lora { rank: 6, alpha: 4.0, targets, is_rank_stabilised: false };
    let mut adapted = model.with_lora(&lora, Philox::new(1)).unwrap();
    for (seed, id) in (0..).zip(adapted.params().trained().collect::<Vec<_>>()) {
        let values = adapted.params_mut().value_mut(id).as_mut_slice();
        let random = Philox::new(seed);
        (0..).zip(values).for_each(|(i, x)| *x += (0.05 * random.normal(i)) as f32);
    }
    adapted
}

#[test]
fn the_learner_finds_the_bits_that_a_sampler_with_adapters_drew() {
    for name in NAMES {
        for dtypes in DTYPES {
            let mut first: Option<Vec<Completion>> = None;
            for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Portable) {
                let base =
                    model(name, &Device::cpu_with(1 + usize::from(isa > Isa::Avx2), isa), dtypes);
                check_batchings(&adapted(&base), name, &mut first);
                let plain = sample(&base, &requests(), &sampling(), Limits::default());
                let drawn = first.as_ref().unwrap();
                assert!(plain.iter().zip(drawn).any(|(a, b)| a.token_ids != b.token_ids));
            }
        }
    }
}

/// int8 rounds the frozen weights and not the adapters.
#[test]
fn adapters_beside_int8_weights_give_the_same_bits_in_any_batch() {
    let sampling = Sampling { weights: WeightForm::Int8, ..sampling() };
    for name in NAMES {
        for dtypes in [DTYPES[0], DTYPES[2]] {
            let mut first: Option<Vec<Completion>> = None;
            let adapted = adapted(&model(name, &Device::cpu(2), dtypes));
            for limits in batchings() {
                let completions = sample(&adapted, &requests(), &sampling, limits);
                assert_same(name, first.get_or_insert_with(|| completions.clone()), &completions);
            }
            let (mean, max) = gaps(&adapted, &first.unwrap(), sampling.inv_temperature());
            assert!(0.0 < mean && mean < 0.06 && max < 0.5, "{name}: mean {mean}, max {max}");
        }
    }
}

/// Samples in different batches, and scores in others; all must yield the bits of `first`.
fn check_batchings(model: &Model, name: &str, first: &mut Option<Vec<Completion>>) {
    let (requests, sampling) = (requests(), sampling());
    let batchings = match (model.device().isa(), model.device().kv_dtype()) {
        (Isa::Portable, Dtype::F32) => &batchings()[..2],
        (Isa::Portable, Dtype::Bf16) => &batchings()[..1],
        _ => &batchings()[..],
    };
    for &limits in batchings {
        let kv_dtype = model.device().kv_dtype();
        let what = format!("{name} {:?} {kv_dtype} {limits:?}", model.device());
        let completions = sample(model, &requests, &sampling, limits);
        assert_eq!(completions.len(), 64, "{what}");
        assert_same(&what, first.get_or_insert_with(|| completions.clone()), &completions);
    }
    let completions = first.as_ref().unwrap();
    let all = [(5, true), (1, false), (5, false), (64, false), (64, true)];
    for &(chunk, shares) in if batchings.len() == 1 { &all[..1] } else { &all[..] } {
        for part in completions.chunks(chunk) {
            check_learner(model, &requests, part, sampling.inv_temperature(), shares);
        }
    }
}

/// Scores completions as the learner does, one after the other, whole or with prompts that they share, and
/// compares bits.
fn check_learner(
    model: &Model,
    requests: &[Request],
    part: &[Completion],
    inv_temperature: f32,
    shares_prompts: bool,
) {
    let (mut ids, mut segments, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for group in part.chunk_by(|a, b| shares_prompts && a.request_idx == b.request_idx) {
        let prompt = &requests[group[0].request_idx].prompt_ids;
        let parent = segments.len() + group.len();
        let own_len: usize = group.iter().map(|c| c.token_ids.len()).sum();
        let (prompt_at, mut at) = match shares_prompts {
            true => (ids.len() + own_len, ids.len()),
            false => (ids.len(), ids.len() + prompt.len()),
        };
        let last_row = prompt_at + prompt.len() - 1;
        for completion in group {
            rows.push(last_row);
            rows.extend(at..at + completion.token_ids.len() - 1);
            at += completion.token_ids.len();
            segments.push((completion.token_ids.len(), Some(parent)));
        }
        segments.push((prompt.len(), None));
        let own = group.iter().flat_map(|c| c.token_ids.iter().copied());
        match shares_prompts {
            true => ids.extend(own.chain(prompt.iter().copied())),
            false => ids.extend(prompt.iter().copied().chain(own)),
        }
    }
    let layout = match shares_prompts {
        true => Layout::new(segments),
        false => Layout::sequences(segments.chunks(2).map(|two| two[0].0 + two[1].0)),
    };
    let targets: Arc<[u32]> = part.iter().flat_map(|c| c.token_ids.clone()).collect();
    let mut tape = aha_compute::Tape::recording(model.device(), model.params());
    let batch = aha_model::model::Batch::laid_out(&ids, layout);
    let hidden = model.hidden(&mut tape, batch, false);
    let hidden = tape.select_rows(&hidden, &rows.into());
    let (logps, _) = tape.log_probs(&hidden, model.head(), &targets, inv_temperature);
    let want: Vec<f32> = part.iter().flat_map(|c| c.logprobs.clone()).collect();
    assert_eq!(bits(logps.value().as_slice()), bits(&want));
}

/// The learner's log-probs are others, but those of the sampler depend on nothing that they shouldn't.
#[test]
fn int8_weights_give_the_same_bits_in_any_batch_and_log_probs_near_the_learner_s() {
    let sampling = Sampling { weights: WeightForm::Int8, ..sampling() };
    for name in NAMES {
        for dtypes in [DTYPES[0], DTYPES[2]] {
            let mut first: Option<Vec<Completion>> = None;
            for isa in Isa::available() {
                let device = Device::cpu_with(1 + usize::from(isa > Isa::Avx2), isa);
                let model = model(name, &device, dtypes);
                let batchings = batchings();
                let is_slow = isa == Isa::Portable;
                for &limits in if is_slow { &batchings[..1] } else { &batchings[..] } {
                    let what = format!("{name} {:?} {limits:?}", model.device());
                    let completions = sample(&model, &requests(), &sampling, limits);
                    let first = first.get_or_insert_with(|| completions.clone());
                    assert_same(&what, first, &completions);
                }
            }
            let model = model(name, &Device::cpu(2), dtypes);
            let completions = first.unwrap();
            let (mean, max) = gaps(&model, &completions, sampling.inv_temperature());
            // Measured: means from 0.029 to 0.040 nats, none above 0.31.
            assert!(0.0 < mean && mean < 0.06 && max < 0.5, "{name}: mean {mean}, max {max}");
            if dtypes == DTYPES[0] && !model.config().tie_word_embeddings {
                let (mean, max) = gaps(&rounded(&model), &completions, sampling.inv_temperature());
                // The same sums but for the scale, which here is in each term. Measured: none above 1e-5.
                assert!(max < 1e-4, "{name}: not of the rounded weights: mean {mean}, max {max}");
            }
        }
    }
}

/// The model whose weights are those that int8 stands for.
fn rounded(model: &Model) -> Model {
    let mut model = model.clone();
    let params = model.params_mut();
    for id in params.ids() {
        if params.value(id).shape().len() < 2 || params.name(id).contains("embed_tokens") {
            continue;
        }
        let cols = params.value(id).cols();
        let (quanta, scales) = reference::quantize(params.value(id).as_slice(), cols);
        let rows = params.value_mut(id).as_mut_slice().chunks_exact_mut(cols);
        for ((row, quanta), scale) in rows.zip(quanta.chunks_exact(cols)).zip(scales) {
            row.iter_mut().zip(quanta).for_each(|(w, q)| *w = scale * q);
        }
    }
    model
}

/// How far the log-probs of completions' tokens are from the learner's: on average, and at most.
fn gaps(model: &Model, completions: &[Completion], inv_temperature: f32) -> (f32, f32) {
    let requests = requests();
    let gaps_of = |completion: &Completion| {
        let prompt = &requests[completion.request_idx].prompt_ids;
        let ids = [prompt, completion.token_ids.as_slice()].concat();
        let mut tape = aha_compute::Tape::inference(model.device(), model.params());
        let batch = aha_model::model::Batch::packed(&ids, [ids.len()]);
        let hidden = model.hidden(&mut tape, batch, false);
        let rows: Vec<usize> = (prompt.len() - 1..ids.len() - 1).collect();
        let hidden = tape.select_rows(&hidden, &rows.into());
        let targets = completion.token_ids.clone().into();
        let (logps, _) = tape.log_probs(&hidden, model.head(), &targets, inv_temperature);
        let pairs = logps.value().as_slice().iter().zip(&completion.logprobs);
        pairs.map(|(learner, sampler)| (learner - sampler).abs()).collect::<Vec<_>>()
    };
    let gaps: Vec<f32> = completions.iter().flat_map(gaps_of).collect();
    let max = gaps.iter().fold(0.0, |max: f32, gap| max.max(*gap));
    (gaps.iter().sum::<f32>() / gaps.len() as f32, max)
}

#[test]
fn a_completion_does_not_depend_on_the_other_requests() {
    let device = Device::cpu(2);
    let model = model("tiny_qwen3", &device, DTYPES[0]);
    let (requests, sampling) = (requests(), sampling());
    let together = sample(&model, &requests, &sampling, Limits::default());
    for idx in [0, 3, 7] {
        let request = Request { samples: 2..5, ..requests[idx].clone() };
        let alone = sample(&model, &[request], &sampling, Limits::default());
        assert_eq!(alone.len(), 3);
        for completion in alone {
            let same = &together[idx * GROUP_SIZE as usize + completion.sample_idx as usize];
            assert_eq!(same.token_ids, completion.token_ids);
            assert_eq!(bits(&same.logprobs), bits(&completion.logprobs));
        }
    }
}

#[test]
fn a_small_cache_serves_more_sequences_than_it_holds() {
    let device = Device::cpu(1);
    let model = model("tiny_llama", &device, DTYPES[0]);
    let sampling = Sampling { max_tokens: 60, ..Sampling::default() };
    let dims = model.attention_dims();
    let page = aha_compute::ops::attention::KvCache::bytes_per_page(Dtype::F32, 2, dims);
    // The longest request needs 7 pages and one to copy a partly filled one: from no room to spare on.
    for pages in [8, 9, 11, 14, 20, 33] {
        let limits =
            Limits { sequences_max: 64, prefill_tokens_max: 16, cache_bytes: pages * page };
        let completions = sample(&model, &requests(), &sampling, limits);
        assert_eq!(completions.len(), 64, "{pages} pages");
        assert!(
            completions
                .iter()
                .all(|c| c.finish_reason == FinishReason::Length && c.token_ids.len() == 60)
        );
    }
}

#[test]
fn a_run_that_is_cancelled_ends_before_its_next_forward_pass_and_leaves_nothing_behind() {
    let device = Device::cpu(2);
    let model = model("tiny_llama", &device, DTYPES[0]);
    let whole = sample(&model, &requests(), &sampling(), Limits::default());
    let mut sampler = Sampler::new(&model, tokenizer(), Limits::default());
    let mut run = |cancel: &AtomicBool, raises: bool| {
        let mut completions = Vec::new();
        sampler
            .run(&model, &requests(), &sampling(), Philox::new(5), cancel, &mut |completion| {
                completions.push(completion);
                cancel.fetch_or(raises, Ordering::Relaxed);
                true
            })
            .unwrap();
        completions.sort_by_key(|c| (c.request_idx, c.sample_idx));
        completions
    };
    assert!(run(&AtomicBool::new(true), false).is_empty());
    let some = run(&AtomicBool::new(false), true).len();
    assert!(0 < some && some < whole.len(), "{some} of {}", whole.len());
    assert_same("after two that were cancelled", &whole, &run(&AtomicBool::new(false), false));
}

#[test]
fn a_request_that_can_never_fit_is_refused() {
    let device = Device::cpu(1);
    let model = model("tiny_llama", &device, DTYPES[0]);
    let refuse = |request: Request, max_tokens: usize, cache_bytes: usize| {
        let limits = Limits { cache_bytes, ..Limits::default() };
        let sampler = Sampler::new(&model, tokenizer(), limits);
        let sampling = Sampling { max_tokens, ..Sampling::default() };
        sampler.check(&model, &request, &sampling).unwrap_err().to_string()
    };
    let request = |ids: &[u32]| Request { prompt_ids: ids.into(), address: 0, samples: 0..1 };
    assert!(refuse(request(&[]), 8, 1 << 20).contains("without tokens"));
    assert!(refuse(request(&[999]), 8, 1 << 20).contains("999"));
    assert!(refuse(request(&[5]), 4000, 1 << 20).contains("512 positions"));
    assert!(refuse(request(&[5; 100]), 100, 0).contains("cache pages"));
}

#[test]
fn stop_texts_end_completions_and_belong_to_them() {
    let device = Device::cpu(2);
    let model = model("tiny_llama", &device, DTYPES[0]);
    let tokenizer = tokenizer();
    let free = sample(&model, &requests(), &sampling(), Limits::default());
    // The text of two neighbouring tokens of a completion, as a stop text.
    let text = |c: &Completion, at: usize| {
        let bytes =
            c.token_ids[at..at + 2].iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec());
        String::from_utf8(bytes.collect()).ok().filter(|text| text.len() >= 2)
    };
    let mut found = free.iter().flat_map(|c| (1..c.token_ids.len() - 1).map(move |at| (c, at)));
    let (chosen, at) = found.find(|(c, at)| text(c, *at).is_some()).unwrap();
    let text = text(chosen, at).unwrap();
    let sampling = Sampling { stop: vec![text], ..sampling() };
    let stopped = sample(&model, &requests(), &sampling, Limits::default());
    let same = &stopped[chosen.request_idx * GROUP_SIZE as usize + chosen.sample_idx as usize];
    assert_eq!(same.finish_reason, FinishReason::StopString);
    assert_eq!(same.token_ids, chosen.token_ids[..same.token_ids.len()]);
    assert!(same.token_ids.len() <= at + 2);
}

/// Thinking whose ends are single bytes or stop tokens, so that models without sense meet many of them; the
/// first token is one in some completions.
fn thinking() -> Thinking {
    Thinking {
        end: "q".to_owned(),
        min_tokens: 10,
        max_tokens: Some(20),
        waits: 1,
        wait: "Wait, ".to_owned(),
        close: "q\n<x>".to_owned(),
    }
}

fn forced_sampling(thinking: Thinking) -> Sampling {
    let stop_token_ids = (100..140).collect();
    Sampling { max_tokens: 40, stop_token_ids, thinking: Some(thinking), ..sampling() }
}

/// P1 and P2 with budget forcing: what was forced and what was drawn has the learner's bits, in any batch.
#[test]
fn forced_tokens_have_the_log_probs_that_the_learner_finds() {
    let sampling = forced_sampling(thinking());
    for name in NAMES {
        for dtypes in [DTYPES[0], DTYPES[2]] {
            let model = model(name, &Device::cpu(2), dtypes);
            let mut first: Option<Vec<Completion>> = None;
            for limits in batchings() {
                let what = format!("{name} {dtypes:?} {limits:?}");
                let completions = sample(&model, &requests(), &sampling, limits);
                assert_eq!(completions.len(), 64, "{what}");
                assert_same(&what, first.get_or_insert_with(|| completions.clone()), &completions);
            }
            let completions = first.unwrap();
            let at_once = completions.iter().filter(|c| c.forced_mask.as_ref().unwrap()[0]).count();
            assert!(at_once > 0, "{name}: no completion began with an end");
            for part in completions.chunks(16) {
                check_learner(&model, &requests(), part, sampling.inv_temperature(), true);
            }
        }
    }
}

/// The text of a completion's tokens, and that of the forced ones alone.
fn texts(completion: &Completion) -> (String, String) {
    let tokenizer = tokenizer();
    let mask = completion.forced_mask.as_ref().unwrap();
    assert_eq!(mask.len(), completion.token_ids.len());
    let text = |keep: &dyn Fn(bool) -> bool| {
        let ids = completion.token_ids.iter().zip(mask).filter(|(_, forced)| keep(**forced));
        let bytes = ids.flat_map(|(id, _)| tokenizer.token_bytes(*id).to_vec());
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    };
    (text(&|_| true), text(&|forced| forced))
}

#[test]
fn thinking_stays_within_its_tokens_and_forced_texts_are_those_that_are_set() {
    let model = model("tiny_llama", &Device::cpu(2), DTYPES[0]);
    let run = |thinking: Thinking| {
        sample(&model, &requests(), &forced_sampling(thinking), Limits::default())
    };
    let tokenizer = tokenizer();
    let is_end = |id: &u32| (100..140).contains(id) || tokenizer.token_bytes(*id) == b"q";
    let (mut closed, mut waited) = (0, 0);
    for completion in run(thinking()) {
        let (text, forced) = texts(&completion);
        let wait_count = forced.matches("Wait, ").count();
        let is_closed = forced.ends_with("q\n<x>");
        let expected = "Wait, ".repeat(wait_count) + if is_closed { "q\n<x>" } else { "" };
        assert_eq!(forced, expected, "{text}");
        let mask = completion.forced_mask.as_ref().unwrap();
        if is_closed {
            // Twenty tokens, and then the five that close.
            let close_at = mask
                .windows(5)
                .collect::<Vec<_>>()
                .iter()
                .rposition(|forced| forced.iter().all(|f| *f));
            assert_eq!(close_at, Some(20), "{text}");
            assert_eq!(tokenizer.token_bytes(completion.token_ids[20]), b"q");
        } else {
            let is_drawn_end = |i: &usize| !mask[*i] && is_end(&completion.token_ids[*i]);
            let thinking_len = (0..mask.len()).find(is_drawn_end).unwrap();
            // Each wait has six tokens: an end that is taken back leaves room for them and one more.
            let least = if wait_count == 0 { 14 } else { 10 };
            assert!((least..=20).contains(&thinking_len), "{thinking_len} tokens: {text}");
            assert!(wait_count <= 2, "{text}");
        }
        closed += usize::from(is_closed);
        waited += wait_count;
    }
    assert!(closed > 5 && waited > 32, "{closed} {waited}");
}

#[test]
fn each_setting_of_thinking_changes_what_is_drawn() {
    let model = model("tiny_llama", &Device::cpu(2), DTYPES[0]);
    let tokens = |thinking: Option<Thinking>| {
        let sampling = Sampling { thinking, ..forced_sampling(Thinking::default()) };
        let completions = sample(&model, &requests(), &sampling, Limits::default());
        completions.into_iter().map(|completion| completion.token_ids).collect::<Vec<_>>()
    };
    let base = tokens(Some(thinking()));
    for (name, other) in [
        ("end", Thinking { end: "b".to_owned(), ..thinking() }),
        ("min_tokens", Thinking { min_tokens: 14, ..thinking() }),
        ("max_tokens", Thinking { max_tokens: Some(15), ..thinking() }),
        ("waits", Thinking { waits: 0, ..thinking() }),
        ("wait", Thinking { wait: "Hold".to_owned(), ..thinking() }),
        ("close", Thinking { close: "!".to_owned(), ..thinking() }),
    ] {
        assert_ne!(tokens(Some(other)), base, "{name}");
    }
    // Settings that force nothing leave every token as it is.
    let without = tokens(None);
    assert_ne!(without, base);
    assert_eq!(tokens(Some(Thinking::default())), without);
}

#[test]
fn forcing_works_where_there_is_no_page_to_spare() {
    let model = model("tiny_llama", &Device::cpu(1), DTYPES[0]);
    let sampling = forced_sampling(thinking());
    let whole = sample(&model, &requests(), &sampling, Limits::default());
    let dims = model.attention_dims();
    let page = aha_compute::ops::attention::KvCache::bytes_per_page(Dtype::F32, 2, dims);
    // The longest request needs 6 pages and one for a copy.
    for pages in [7, 8, 12] {
        let limits =
            Limits { sequences_max: 64, prefill_tokens_max: 16, cache_bytes: pages * page };
        let what = format!("{pages} pages");
        assert_same(&what, &whole, &sample(&model, &requests(), &sampling, limits));
    }
}
