use super::*;
use crate::ops::check::{ROWS, assert_fits, contexts};
use crate::ops::lm_head::{self, cuda::statistics};
use crate::random::Philox;
use crate::simd::Isa;

/// A token and its weight.
type Candidate = (u32, f32);

/// What top-k and then top-p leave, by sorting everything: the definition.
fn kept_by_sorting(weights: &[f32], settings: &Settings) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = (0..).zip(weights.iter().copied()).collect();
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if settings.top_k > 0 {
        candidates.truncate(settings.top_k);
    }
    let total: f64 = candidates.iter().map(|c| f64::from(c.1)).sum();
    total_and_truncate(candidates, f64::from(settings.top_p), total)
}

fn total_and_truncate(mut candidates: Vec<Candidate>, top_p: f64, total: f64) -> Vec<Candidate> {
    let mut sum = 0.0;
    let reached = |c: &Candidate| {
        sum += f64::from(c.1);
        sum >= top_p * total
    };
    if top_p < 1.0
        && let Some(last) = candidates.iter().position(reached)
    {
        candidates.truncate(last + 1);
    }
    candidates
}

/// The first candidate at which the running sum of weights exceeds `left`.
fn pick(candidates: impl Iterator<Item = Candidate>, mut left: f64) -> u32 {
    let mut last = 0;
    for (id, weight) in candidates.filter(|c| c.1 > 0.0) {
        last = id;
        left -= f64::from(weight);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// The token that the definition draws from a row.
fn definition(logits: &[f32], settings: &Settings, unit: f64) -> u32 {
    let isa = Isa::best();
    let mut block_sums = vec![0.0; logits.len().div_ceil(lm_head::BLOCK_LEN)];
    let stats = lm_head::row_sums(isa, &mut block_sums, logits);
    if settings.temperature == 0.0 {
        return logits.iter().position(|x| *x == stats.max).unwrap_or(0) as u32;
    }
    let mut weights = vec![0.0; logits.len()];
    lm_head::weights(isa, &mut weights, logits, &stats);
    if settings.top_p == 1.0 && (settings.top_k == 0 || settings.top_k >= logits.len()) {
        let total: f64 = block_sums.iter().sum();
        return pick((0..).zip(weights), unit * total);
    }
    let kept = kept_by_sorting(&weights, settings);
    let total: f64 = kept.iter().map(|c| f64::from(c.1)).sum();
    pick(kept.into_iter(), unit * total)
}

/// Logits of several kinds: peaked, flat, with many equals, with some that are impossible, all equal.
fn noise_logits(kind: u64, len: u64) -> Vec<f32> {
    let random = Philox::new(9);
    (0..len)
        .map(|i| {
            let x = random.normal(kind << 40 | len << 20 | i);
            match kind {
                0 => 8.0 * x,
                1 => 0.01 * x,
                2 => (2.0 * x).round(),
                3 if random.bits(&[len, i]).is_multiple_of(3) => f64::NEG_INFINITY,
                3 => 20.0 * x,
                4 => 40.0 * x,
                _ => 0.0,
            }
        })
        .map(|x| x as f32)
        .collect()
}

struct Drawn {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
}

/// Draws from rows, whose addresses are their places, so many words apart.
fn draws(
    cx: &Context,
    logits: &[f32],
    cols: usize,
    settings: &Settings,
    forced: Option<&[u32]>,
) -> Drawn {
    let rows = logits.len() / cols;
    let words = |f: fn(u64) -> u64| {
        let words: Vec<u64> = (0..rows as u64).map(f).collect();
        cx.upload(&words).unwrap()
    };
    let x = cx.upload(logits).unwrap();
    let (prompts, samples) = (words(|i| i / 3), words(|i| i % 3));
    let positions = words(|i| i << 33 | 5);
    let forced = forced.map(|forced| cx.upload(forced).unwrap());
    let scale = settings.inv_temperature();
    let stats = statistics(cx, x.view(), cols, scale, None, true).unwrap();
    let mut ids = cx.buffer(Kind::U32, rows).unwrap();
    let mut log_probs = cx.buffer(Kind::F32, rows).unwrap();
    let addresses = Addresses {
        rows: None,
        prompts: prompts.view(),
        samples: samples.view(),
        positions: positions.view(),
        forced: forced.as_ref().map(|forced| forced.view()),
    };
    let (to_ids, to_log_probs) = (&mut ids.view_mut(), &mut log_probs.view_mut());
    draw(cx, to_ids, to_log_probs, x.view(), &stats, addresses, settings).unwrap();
    Drawn {
        ids: cx.download(ids.view()).unwrap(),
        log_probs: cx.download(log_probs.view()).unwrap(),
    }
}

fn settings(temperature: f32, top_k: usize, top_p: f32) -> Settings {
    Settings { temperature, top_k, top_p, key: Philox::new(7).derive("draws").key() }
}

/// Checks a call against the definition, row by row.
fn check(logits: &[f32], cols: usize, settings: &Settings) {
    let random = Philox::new(7).derive("draws");
    for cx in contexts() {
        let got = draws(&cx, logits, cols, settings, None);
        for (i, row) in logits.chunks(cols).enumerate() {
            let scaled: Vec<f32> = row.iter().map(|x| x * settings.inv_temperature()).collect();
            let row_idx = i as u64;
            let unit = random.uniform(&[row_idx / 3, row_idx % 3, row_idx << 33 | 5]);
            let want = definition(&scaled, settings, unit);
            assert_eq!(got.ids[i], want, "row {i} of {cols}, {settings:?}");
            let stats = lm_head::row_stats(Isa::best(), &scaled);
            let log_prob = lm_head::log_prob(&scaled, &stats, want);
            assert_eq!(got.log_probs[i].to_bits(), log_prob.to_bits(), "row {i}, {settings:?}");
        }
    }
}

#[test]
fn draws_from_all_tokens_are_the_processors() {
    for len in [1, 2, 63, 511, 513, 3000] {
        let rows: Vec<f32> = (0..8).flat_map(|row| noise_logits(row % 5, len)).collect();
        check(&rows, len as usize, &settings(1.0, 0, 1.0));
        check(&rows, len as usize, &settings(0.7, 0, 1.0));
        check(&rows, len as usize, &settings(0.0, 0, 1.0));
    }
}

#[test]
fn draws_after_top_k_and_top_p_are_the_processors() {
    for len in [1, 65, 3000] {
        // Where many are equal, their order decides: more draws from such.
        let kinds = [0, 1, 2, 2, 3, 5, 5, 5, 5];
        let rows: Vec<f32> = kinds.into_iter().flat_map(|kind| noise_logits(kind, len)).collect();
        for (top_k, top_p) in [
            (1, 1.0),
            (7, 1.0),
            (64, 0.9),
            (188, 0.5),
            (0, 0.95),
            (0, 1e-6),
            (0, 0.999),
            (2999, 0.3),
        ] {
            check(&rows, len as usize, &settings(1.0, top_k, top_p));
        }
    }
}

/// More candidates than are sorted at once: flat logits, and such with many equals.
#[test]
fn candidates_past_the_first_chunk_are_gone_through_in_order() {
    let rows: Vec<f32> =
        [1, 5, 5, 5, 2].into_iter().flat_map(|kind| noise_logits(kind, 9001)).collect();
    for (top_k, top_p) in [(0, 0.9), (5000, 1.0), (8999, 0.99)] {
        check(&rows, 9001, &settings(1.0, top_k, top_p));
    }
}

#[test]
fn forced_tokens_are_taken_and_broken_rows_draw_all_the_same() {
    let logits = [noise_logits(0, 40), vec![f32::NAN; 40], noise_logits(1, 40)].concat();
    let forced = [NOTHING, NOTHING, 39];
    for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (0.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.5)]
    {
        for cx in contexts() {
            let settings = settings(temperature, top_k, top_p);
            let got = draws(&cx, &logits, 40, &settings, Some(&forced));
            assert_eq!((got.ids[1], got.ids[2]), (0, 39), "{settings:?}");
            assert!(got.log_probs[1].is_nan() && got.log_probs[2] < 0.0, "{settings:?}");
        }
    }
}

#[test]
fn no_rows_are_a_no_op_and_launches_fit() {
    for cx in contexts() {
        assert!(draws(&cx, &[], 40, &settings(1.0, 0, 1.0), None).ids.is_empty());
    }
    for rows in ROWS {
        assert_fits(&plan(rows));
    }
}
