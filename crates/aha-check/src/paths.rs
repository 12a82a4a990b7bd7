//! How far a token's log-prob in the sampler is from that in the learner: promise P1.

use std::sync::atomic::AtomicBool;

use aha_compute::random::Philox;
use aha_compute::{Device, Dtype};
use aha_model::Model;
use aha_sample::{Completion, Limits, Request, Sampler, Sampling};

use crate::compare::{differing, greatest};
use crate::finding::Outcome;
use crate::inputs::{DTYPES, Family, ids, tokenizer};
use crate::{Error, Findings, Part, Size, Subject};

/// The same sums in other orders make so much of a log-prob. Kernels are arranged so that it is zero; where a library's
/// product isn't, importance weights of this size change nothing. What both compute in FP8
/// is as far apart as in bf16, since each row has scales of its own.
fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2e-5,
        Dtype::Bf16 => 0.1,
    }
}

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    for family in Family::ALL {
        for dtype in DTYPES {
            let name = format!("{}, {dtype}: sampler and learner", family.name());
            let device = subject.device(dtype);
            findings.case(Part::Paths, name, || compare(&device, family, size));
        }
        // Where the device has it.
        if let Ok(device) = subject.device(Dtype::Bf16).with_fp8() {
            let name = format!("{}, FP8: sampler and learner", family.name());
            findings.case(Part::Paths, name, || compare(&device, family, size));
        }
    }
}

fn compare(device: &Device, family: Family, size: Size) -> Result<Outcome, Error> {
    let model = family.model(size, device)?;
    let requests = requests(size);
    let sequences_max = if size == Size::Full { 24 } else { 5 };
    let completions = sample(&model, &requests, new_tokens(size), sequences_max, 33)?;
    let sequences: Vec<Vec<u32>> = completions
        .iter()
        .map(|c| [&requests[c.request_idx].prompt_ids[..], &c.token_ids].concat())
        .collect();
    let texts: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let (mut nats, mut others, mut count) = (0.0f64, 0, 0);
    for (completion, all) in completions.iter().zip(model.log_probs(&texts)?) {
        let own = &all[all.len() - completion.token_ids.len()..];
        nats = nats.max(greatest(own, &completion.logprobs));
        others += differing(own, &completion.logprobs);
        count += own.len();
    }
    device.check()?;
    let what = format!("nats at most; {others} of {count} tokens have other bits");
    Ok(Outcome::new(nats, bound(device.dtype()), what))
}

/// Tokens of a completion.
pub(crate) fn new_tokens(size: Size) -> usize {
    if size == Size::Full { 48 } else { 7 }
}

/// Prompts of lengths that end at, before and behind a page's border; several completions of each.
pub(crate) fn requests(size: Size) -> Vec<Request> {
    let lens: &[usize] =
        if size == Size::Full { &[1, 15, 16, 17, 64, 200, 333] } else { &[1, 16, 37] };
    let samples = if size == Size::Full { 8 } else { 2 };
    let request = |(idx, &len): (u64, &usize)| Request {
        prompt_ids: ids(70 + idx, len).into(),
        address: 100 + idx,
        samples: 0..samples,
    };
    (0..).zip(lens).map(request).collect()
}

/// Completions in the order of prompts and samples.
pub(crate) fn sample(
    model: &Model,
    requests: &[Request],
    max_tokens: usize,
    sequences_max: usize,
    prefill_tokens_max: usize,
) -> Result<Vec<Completion>, Error> {
    let limits = Limits { sequences_max, prefill_tokens_max, cache_bytes: 64 << 20 };
    let mut sampler = Sampler::new(model, tokenizer()?, limits);
    let sampling = Sampling { max_tokens, ..Sampling::default() };
    let mut completions = Vec::new();
    let never = AtomicBool::new(false);
    sampler.run(model, requests, &sampling, Philox::new(5), &never, &mut |completion| {
        completions.push(completion);
        true
    })?;
    completions.sort_by_key(|c| (c.request_idx, c.sample_idx));
    Ok(completions)
}
