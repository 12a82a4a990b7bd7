//! The same tokens as on the processor for the same logits.

use aha_compute::ops::draw::{self, NOTHING};
use aha_compute::random::Philox;
use aha_compute::{Dtype, Tensor};
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
    let device = subject.device(Dtype::F32);
    let on_device = Tensor::from_slice(&device, &[rows, vocab], &logits);
    let settings = draw::Settings {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        key: random.key(),
    };
    let got = draw::rows(&on_device, &addresses, &vec![NOTHING; rows], &settings);
    device.check()?;
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
