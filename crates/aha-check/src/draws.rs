//! The same tokens as on the processor for the same logits.

use aha_compute::Dtype;
use aha_compute::cuda::{Context, Kind};
use aha_compute::ops::draw::{self, Addresses};
use aha_compute::ops::lm_head::cuda::statistics;
use aha_compute::random::Philox;
use aha_sample::Sampling;
use aha_sample::draw::{Address, Drawer};

use crate::compare::greatest;
use crate::finding::Outcome;
use crate::{Error, Findings, Part, Size, Subject};

/// How far a log-prob may be from the processor's, in nats: both are sums of the same exponentials in the same order.
const NATS: f64 = 2e-6;

pub(crate) fn check(subject: &Subject, size: Size, findings: &mut Findings<'_>) {
    let vocabularies = [(5, 33), (9, 1000), (40, 151_936)];
    let count = if size == Size::Full { 3 } else { 2 };
    let settings = [(1.0, 0, 1.0), (0.7, 0, 0.95), (1.0, 40, 1.0), (0.6, 20, 0.9), (0.0, 0, 1.0)];
    for (rows, vocab) in &vocabularies[..count] {
        for (temperature, top_k, top_p) in settings {
            let sampling = Sampling { temperature, top_k, top_p, ..Sampling::default() };
            let name = format!(
                "{rows} of {vocab}, temperature {temperature}, top-k {top_k}, top-p {top_p}"
            );
            findings.case(Part::Draws, name, || compare(subject, *rows, *vocab, &sampling));
        }
    }
}

fn compare(
    subject: &Subject,
    rows: usize,
    vocab: usize,
    sampling: &Sampling,
) -> Result<Outcome, Error> {
    let (random, spread) = (Philox::new(3), Philox::new(4));
    // Peaked rows and flat ones.
    let width = |row: usize| [0.05, 1.0, 4.0, 12.0][row % 4];
    let logits: Vec<f32> =
        (0..rows * vocab).map(|i| (width(i / vocab) * spread.normal(i as u64)) as f32).collect();
    let addresses: Vec<[u64; 3]> =
        (0..rows as u64).map(|i| [i / 3, i % 3, (i << 33) | 5]).collect();
    let settings = draw::Settings {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        key: random.key(),
    };
    let got = on_device(&subject.context(), &logits, vocab, &addresses, &settings)?;
    let mut drawer = Drawer::default();
    let host = subject.host(Dtype::F32);
    // Draws on a device scale them; the processor's take them scaled.
    let scaled: Vec<f32> = logits.iter().map(|x| x * settings.inv_temperature()).collect();
    let want: Vec<_> = scaled
        .chunks(vocab)
        .zip(&addresses)
        .map(|(row, &[prompt, sample, position])| {
            let address = Address { prompt, sample, position };
            drawer.row(host.isa(), row, sampling).draw(random, address)
        })
        .collect();
    let others = got.iter().zip(&want).filter(|((id, _), want)| *id != want.id).count();
    if others > 0 || got.len() != want.len() {
        let what = format!("of {rows} tokens are others than on the processor");
        return Ok(Outcome::none_of(others.max(1), what));
    }
    let got: Vec<f32> = got.iter().map(|(_, logprob)| *logprob).collect();
    let want: Vec<f32> = want.iter().map(|drawn| drawn.logprob).collect();
    Ok(Outcome::new(greatest(&got, &want), NATS, "nats; all tokens are the processor's"))
}

/// The token that is drawn from each row of `vocab` logits, and its log-prob in nats.
fn on_device(
    cx: &Context,
    logits: &[f32],
    vocab: usize,
    addresses: &[[u64; 3]],
    settings: &draw::Settings,
) -> Result<Vec<(u32, f32)>, Error> {
    let count = addresses.len();
    let logits = cx.upload(logits)?;
    let stats = statistics(cx, logits.view(), vocab, settings.inv_temperature(), None, true)?;
    let column = |i: usize| -> Vec<u64> { addresses.iter().map(|address| address[i]).collect() };
    let [prompts, samples, positions] = [0, 1, 2].map(|i| cx.upload(&column(i)));
    let (prompts, samples, positions) = (prompts?, samples?, positions?);
    let addresses = Addresses {
        prompts: prompts.view(),
        samples: samples.view(),
        positions: positions.view(),
        forced: None,
        rows: None,
    };
    let (mut ids, mut log_probs) = (cx.buffer(Kind::U32, count)?, cx.buffer(Kind::F32, count)?);
    let (to, log_probs_to) = (&mut ids.view_mut(), &mut log_probs.view_mut());
    draw::draw(cx, to, log_probs_to, logits.view(), &stats, addresses, settings)?;
    let (ids, log_probs): (Vec<u32>, Vec<f32>) =
        (cx.download(ids.view())?, cx.download(log_probs.view())?);
    Ok(ids.into_iter().zip(log_probs).collect())
}
