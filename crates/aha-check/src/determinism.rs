//! The same bits each time, and in any company.

use std::sync::Arc;

use aha_compute::Device;
use aha_learn::learner::{Example, Learner};

use crate::compare::differing;
use crate::finding::Outcome;
use crate::grpo::settings;
use crate::inputs::{DTYPES, Family, host, ids};
use crate::paths::{new_tokens, requests, sample};
use crate::{Error, Findings, Part, Size, Subject};

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    for dtype in DTYPES {
        let part = Part::Determinism;
        findings.case(part, format!("{dtype}: a training step twice"), || {
            let [first, second] = [0; 2].map(|_| step(&subject.device(dtype), size, 4096));
            Ok(Outcome::none_of(differing(&first?, &second?), "numbers with other bits"))
        });
        findings.case(part, format!("{dtype}: a step in micro-batches"), || {
            let [whole, parts] =
                [4096, 40].map(|tokens| step(&subject.device(dtype), size, tokens));
            // Sums over rows are cut in other places, so that weights differ by their rounding: 7e-8 in emulation.
            let (whole, parts) = (whole?, parts?);
            let off = crate::compare::Distance::of(&parts, &whole).norm;
            Ok(Outcome::new(off, 1e-5, "of the weights' norm; not the same sums"))
        });
        findings.case(part, format!("{dtype}: sampling twice"), || {
            let drawn = |_| draw(&subject.device(dtype), size, 16, 512);
            let [first, second] = [0; 2].map(drawn);
            Ok(Outcome::none_of(others(&first?, &second?), "tokens or log-probs are others"))
        });
        findings.case(part, format!("{dtype}: a completion alone and in company"), || {
            let [alone, together] = [(1, 5), (16, 512)]
                .map(|(max, prefill)| draw(&subject.device(dtype), size, max, prefill));
            Ok(Outcome::none_of(others(&alone?, &together?), "tokens or log-probs are others"))
        });
        findings.case(part, format!("{dtype}: a sequence alone and in a pack"), || {
            let device = subject.device(dtype);
            let model = Family::Qwen3.model(size, &device)?;
            let texts: Vec<Vec<u32>> =
                [3, 50, 17, 64].iter().map(|len| ids(*len as u64, *len)).collect();
            let together = model.log_probs(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            let mut wrong = 0;
            for (text, together) in texts.iter().zip(&together) {
                wrong += differing(&model.log_probs(&[text])?[0], together);
            }
            device.check()?;
            Ok(Outcome::none_of(wrong, "log-probs with other bits"))
        });
    }
}

/// All weights after two steps, and what the steps said.
fn step(device: &Device, size: Size, micro_batch_tokens: usize) -> Result<Vec<f32>, Error> {
    let model = Arc::new(Family::Qwen2.model(size, device)?);
    let mut learner = Learner::new(model);
    let texts: Vec<Vec<u32>> = [33, 9, 40, 21].iter().map(|len| ids(*len as u64, *len)).collect();
    let mask = [true; 40];
    let examples: Vec<Example<'_>> =
        texts.iter().map(|ids| Example { ids, loss_mask: &mask[..ids.len()] }).collect();
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let outcome = learner.sft_step(&examples, &settings(micro_batch_tokens))?;
        numbers.extend([outcome.totals.loss as f32, outcome.grad_norm as f32]);
    }
    let params = learner.model().params();
    numbers.extend(params.ids().flat_map(|id| host(params.value(id))));
    device.check()?;
    Ok(numbers)
}

/// Tokens and log-probs of completions.
type Drawn = Vec<(Vec<u32>, Vec<f32>)>;

fn draw(device: &Device, size: Size, sequences_max: usize, prefill: usize) -> Result<Drawn, Error> {
    let model = Family::Qwen2.model(size, device)?;
    // One at a time takes long, so there are fewer of them.
    let requests = &requests(size)[..3];
    let completions = sample(&model, requests, new_tokens(size), sequences_max, prefill)?;
    device.check()?;
    Ok(completions.into_iter().map(|c| (c.token_ids, c.logprobs)).collect())
}

fn others(a: &Drawn, b: &Drawn) -> usize {
    let wrong = a.iter().zip(b).map(|((ids, logprobs), (other_ids, other_logprobs))| {
        usize::from(ids != other_ids) + differing(logprobs, other_logprobs)
    });
    wrong.sum::<usize>() + a.len().abs_diff(b.len())
}
