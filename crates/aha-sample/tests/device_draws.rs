//! A device draws the tokens that the processor draws, from the same logits at the same addresses.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aha_compute::cuda::{Context, Kind};
use aha_compute::ops::draw::{self, Addresses, Settings};
use aha_compute::ops::lm_head::cuda::statistics;
use aha_compute::random::Philox;
use aha_compute::simd::Isa;
use aha_emulate::Emulated;
use aha_sample::Sampling;
use aha_sample::draw::{Address, Drawer};

const ROWS: u64 = 24;
const VOCAB: usize = 1500;

/// Logits from flat to peaked.
fn logits(row: u64) -> Vec<f32> {
    let random = Philox::new(11);
    let spread = 0.1 * 1.3f64.powi(row as i32);
    (0..VOCAB as u64).map(|i| (spread * random.normal(row << 32 | i)) as f32).collect()
}

fn address(row: u64) -> Address {
    Address { prompt: row / 4, sample: row % 4, position: 100 * row }
}

/// Tokens and log-probs as the sampler on the processor draws them.
fn on_processor(random: Philox, sampling: &Sampling) -> Vec<(u32, u32)> {
    let mut drawer = Drawer::default();
    let scale = |x: f32| x * sampling.inv_temperature();
    let mut draw = |row| {
        let logits: Vec<f32> = logits(row).into_iter().map(scale).collect();
        let drawn = drawer.row(Isa::best(), &logits, sampling).draw(random, address(row));
        (drawn.id, drawn.logprob.to_bits())
    };
    (0..ROWS).map(&mut draw).collect()
}

fn on_device(cx: &Context, random: Philox, sampling: &Sampling) -> Vec<(u32, u32)> {
    let Sampling { temperature, top_k, top_p, .. } = *sampling;
    let settings = Settings { temperature, top_k, top_p, key: random.key() };
    let rows = cx.upload(&(0..ROWS).flat_map(logits).collect::<Vec<f32>>()).unwrap();
    let words = |f: fn(Address) -> u64| {
        cx.upload(&(0..ROWS).map(|row| f(address(row))).collect::<Vec<u64>>()).unwrap()
    };
    let (prompts, samples) = (words(|at| at.prompt), words(|at| at.sample));
    let positions = words(|at| at.position);
    let scale = settings.inv_temperature();
    let stats = statistics(cx, rows.view(), VOCAB, scale, None, true).unwrap();
    let mut ids = cx.buffer(Kind::U32, ROWS as usize).unwrap();
    let mut log_probs = cx.buffer(Kind::F32, ROWS as usize).unwrap();
    let addresses = Addresses {
        prompts: prompts.view(),
        samples: samples.view(),
        positions: positions.view(),
        forced: None,
        rows: None,
    };
    let (to, log_probs_to) = (&mut ids.view_mut(), &mut log_probs.view_mut());
    draw::draw(cx, to, log_probs_to, rows.view(), &stats, addresses, &settings).unwrap();
    let ids: Vec<u32> = cx.download(ids.view()).unwrap();
    let log_probs: Vec<f32> = cx.download(log_probs.view()).unwrap();
    ids.into_iter().zip(log_probs.into_iter().map(f32::to_bits)).collect()
}

#[test]
fn a_device_draws_what_the_processor_draws() {
    let random = Philox::new(5).derive("stage");
    for (temperature, top_k, top_p) in [
        (1.0, 0, 1.0),
        (0.6, 0, 0.95),
        (0.7, 20, 0.8),
        (1.3, 50, 1.0),
        (0.0, 0, 1.0),
        (0.0, 7, 0.5),
    ] {
        let sampling = Sampling { temperature, top_k, top_p, ..Sampling::default() };
        let want = on_processor(random, &sampling);
        for driver in Emulated::both() {
            let got = on_device(&Context::new(driver), random, &sampling);
            assert_eq!(got, want, "temperature {temperature}, top_k {top_k}, top_p {top_p}");
        }
    }
}
