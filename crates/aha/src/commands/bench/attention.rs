//! Attention over packed sequences, forward and backward, on the heads of models.

use std::time::{Duration, Instant};

use aha_compute::ops::attention::{self, Dims, Layout};
use aha_compute::{Dtype, Tensor};

use super::place::{Open, Place};
use super::row::Row;
use super::{Bench, Kind};

/// Sequences, tokens of each, heads, heads of keys, width of a head: those of Qwen2.5-0.5B and 1.5B.
const ON_CUDA: [[usize; 5]; 5] = [
    [1, 4096, 14, 2, 64],
    [16, 256, 14, 2, 64],
    [1, 4096, 12, 2, 128],
    [4, 1024, 12, 2, 128],
    [1, 16_384, 12, 2, 128],
];
/// Those of SmolLM2-135M.
const ON_CPU: [[usize; 5]; 2] = [[8, 256, 9, 3, 64], [1, 2048, 9, 3, 64]];
/// Time that is spent on each for each of `--runs`.
const TURN: Duration = Duration::from_millis(50);

/// A row for each shape and direction whose name contains the filter.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let shapes = if bench.args.device == Place::Cpu { &ON_CPU[..] } else { &ON_CUDA };
    let mut rows = Vec::new();
    for shape in shapes {
        let [count, len, heads, kv_heads, head_dim] = shape;
        for direction in ["forward", "backward"] {
            let name = format!("{direction}/{count}x{len}, {heads}/{kv_heads} heads of {head_dim}");
            if name.contains(&bench.args.filter) {
                bench.say(Kind::Attention, &name);
                rows.push(row(bench, name, *shape, direction == "forward")?);
            }
        }
    }
    Ok(rows)
}

/// Two products of each query with its key and those before it; backward five, as FlashAttention counts them (Dao 2023,
/// arXiv:2307.08691, section 4.1, where backward is 2.5 times forward).
fn flop([count, len, heads, _, head_dim]: [usize; 5], is_forward: bool) -> f64 {
    let pairs = (count * len * (len + 1) / 2) as f64;
    let products = if is_forward { 2.0 } else { 5.0 };
    products * 2.0 * pairs * (heads * head_dim) as f64
}

fn row(
    bench: &Bench<'_>,
    name: String,
    shape: [usize; 5],
    is_forward: bool,
) -> anyhow::Result<Row> {
    let open = &bench.open;
    let mut run = pass(open, shape, is_forward);
    run();
    open.wait()?;
    let mut best = f64::INFINITY;
    for _ in 0..bench.args.runs {
        let (turn, mut calls) = (Instant::now(), 0);
        while calls == 0 || turn.elapsed() < TURN {
            // On a device calls return before they are done.
            for _ in 0..if open.name().is_some() { 10 } else { 1 } {
                run();
                calls += 1;
            }
            open.wait()?;
        }
        best = best.min(turn.elapsed().as_secs_f64() / f64::from(calls));
    }
    let mut row = Row::new(Kind::Attention, name, open.device.threads());
    row.add("seconds_min", best);
    row.add("gflop_per_second", flop(shape, is_forward) / best / 1e9);
    row.judge(&bench.limits());
    open.add_memory(&mut row);
    Ok(row)
}

fn pass(open: &Open, shape: [usize; 5], is_forward: bool) -> Box<dyn FnMut()> {
    let [count, len, heads, kv_heads, head_dim] = shape;
    let (device, rows) = (&open.device, count * len);
    let dims = Dims { heads, kv_heads, head_dim };
    let layout = Layout::sequences(vec![len; count]);
    let scale = (head_dim as f32).sqrt().recip();
    // As models have them: on a processor kernels take f32.
    let dtype = if device.is_cuda() { device.dtype() } else { Dtype::F32 };
    let values = |seed: usize, cols: usize| {
        let values: Vec<f32> = super::matmul::values(seed, rows * cols).collect();
        Tensor::from_slice(device, &[rows, cols], &values)
    };
    let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
    let [q, k, v] = [(1, q_cols), (2, kv_cols), (3, kv_cols)]
        .map(|(seed, cols)| values(seed, cols).into_dtype(dtype));
    let mut o = Tensor::uninit_as(device, dtype, &[rows, q_cols]);
    let mut lse = Tensor::uninit(device, &[rows, heads]);
    attention::forward(&mut o, &mut lse, &q, &k, &v, &layout, dims, scale);
    if is_forward {
        return Box::new(move || {
            attention::forward(&mut o, &mut lse, &q, &k, &v, &layout, dims, scale);
        });
    }
    let do_ = values(4, q_cols);
    let [mut dq, mut dk, mut dv] =
        [q_cols, kv_cols, kv_cols].map(|cols| Tensor::uninit(device, &[rows, cols]));
    Box::new(move || {
        let to = [&mut dq, &mut dk, &mut dv];
        attention::backward(to, &do_, [&q, &k, &v], &o, &lse, &layout, dims, scale, None);
    })
}
