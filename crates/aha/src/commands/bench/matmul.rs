//! Products of rows of activations with a weight, on the shapes of our models: forward, and for as many rows
//! as training has, the gradients of rows and weight.

use std::time::{Duration, Instant};

use aha_compute::ops::matmul;
use aha_compute::{Device, Params, Tensor};

use super::row::Row;
use super::{Bench, Kind};

/// Name, rows of activations, inputs, outputs.
const SHAPES: [(&str, usize, usize, usize); 17] = [
    ("attention_out", 2048, 576, 576),
    ("ffn_up", 2048, 576, 1536),
    ("ffn_down", 2048, 1536, 576),
    ("square", 2048, 2048, 2048),
    ("head", 2048, 576, 49152),
    ("head_chunk", 256, 576, 49152),
    ("quick_out", 512, 96, 96),
    ("quick_up", 512, 96, 288),
    ("quick_batch", 16000, 96, 288),
    ("ffn_up_64", 64, 576, 1536),
    ("ffn_up_8", 8, 576, 1536),
    ("ffn_up_4", 4, 576, 1536),
    ("ffn_up_1", 1, 576, 1536),
    ("head_64", 64, 576, 49152),
    ("head_8", 8, 576, 49152),
    ("head_1", 1, 576, 49152),
    ("quick_1", 1, 96, 288),
];
/// As [`SHAPES`], for a CUDA device: those of Qwen2.5-0.5B and 1.5B with packs of 4096 tokens and with a token of each
/// sequence.
const ON_CUDA: [(&str, usize, usize, usize); 14] = [
    ("square", 8192, 8192, 8192),
    ("0.5b_attention_out", 4096, 896, 896),
    ("0.5b_ffn_up", 4096, 896, 4864),
    ("0.5b_ffn_down", 4096, 4864, 896),
    ("1.5b_attention_out", 4096, 1536, 1536),
    ("1.5b_ffn_up", 4096, 1536, 8960),
    ("1.5b_ffn_down", 4096, 8960, 1536),
    ("1.5b_head", 512, 1536, 151_936),
    ("0.5b_ffn_up_1", 1, 896, 4864),
    ("0.5b_ffn_up_64", 64, 896, 4864),
    ("0.5b_head_1", 1, 896, 151_936),
    ("0.5b_head_64", 64, 896, 151_936),
    ("1.5b_ffn_up_1", 1, 1536, 8960),
    ("1.5b_ffn_up_64", 64, 1536, 8960),
];
/// Calls between two looks at the clock: on a device they return before they are done.
const CALLS_ON_CUDA: u32 = 20;
/// Rows up to which only the forward pass occurs: these are decode steps.
const DECODE_ROWS_MAX: usize = 64;
/// Time spent on each product for each of `--runs`.
const TURN: Duration = Duration::from_millis(150);

/// Which product.
#[derive(Clone, Copy)]
enum Pass {
    Forward,
    BackwardInput,
    BackwardWeight,
}

impl Pass {
    fn of(rows: usize) -> &'static [Pass] {
        match rows {
            0..=DECODE_ROWS_MAX => &[Pass::Forward],
            _ => &[Pass::Forward, Pass::BackwardInput, Pass::BackwardWeight],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::BackwardInput => "backward_input",
            Pass::BackwardWeight => "backward_weight",
        }
    }
}

/// A row for each shape and product whose name contains the filter.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let mut found = Vec::new();
    let shapes = if bench.device().is_cuda() { &ON_CUDA[..] } else { &SHAPES[..] };
    for &(name, rows, inp, out) in shapes {
        for &pass in Pass::of(rows) {
            let id = format!("{}/{name} {rows}x{inp}x{out}", pass.name());
            if id.contains(&bench.args.filter) {
                bench.say(Kind::Matmul, &id);
                found.push(row(bench, &id, pass, [rows, inp, out])?);
            }
        }
    }
    Ok(found)
}

fn row(
    bench: &Bench<'_>,
    id: &str,
    pass: Pass,
    [rows, inp, out]: [usize; 3],
) -> anyhow::Result<Row> {
    let (open, device) = (&bench.open, bench.device());
    let calls = if device.is_cuda() { CALLS_ON_CUDA } else { 1 };
    let mut run = product(device, pass, [rows, inp, out]);
    if device.is_cuda() {
        // The first call looks for a way to multiply.
        run();
        open.wait()?;
    }
    // The peak is taken between the repetitions, so that both meet the same neighbours.
    let (mut best, mut top) = (f64::INFINITY, 0.0f64);
    for _ in 0..bench.args.runs {
        top = top.max(bench.limits().flop_per_second);
        let turn = Instant::now();
        loop {
            let begun = Instant::now();
            (0..calls).for_each(|_| run());
            open.wait()?;
            best = best.min(begun.elapsed().as_secs_f64() / f64::from(calls));
            if turn.elapsed() > TURN {
                break;
            }
        }
    }
    let flop = 2.0 * (rows * inp * out) as f64;
    let mut row = Row::new(Kind::Matmul, id, device.threads());
    row.add("seconds_min", best);
    row.add("gflop_per_second", flop / best / 1e9);
    row.add("peak_share", flop / best / top);
    row.add("weights_gb_per_second", (inp * out * device.dtype().bytes()) as f64 / best / 1e9);
    Ok(row)
}

/// Numbers in `[-0.5, 0.5)` without a pattern: arithmetic on zeros, or on few numbers, takes less power and time.
pub fn values(seed: usize, len: usize) -> impl Iterator<Item = f32> {
    let mix = move |i: usize| ((i + seed) as u32).wrapping_mul(2_654_435_761).rotate_left(15);
    (0..len).map(move |i| (mix(i).wrapping_mul(2_246_822_519) >> 8) as f32 / 16_777_216.0 - 0.5)
}

fn product(device: &Device, pass: Pass, [rows, inp, out]: [usize; 3]) -> Box<dyn FnMut()> {
    let tensor = |shape: &[usize]| {
        let values: Vec<f32> = values(shape[0], shape.iter().product()).collect();
        Tensor::from_slice(device, shape, &values)
    };
    let dtype = device.dtype();
    let (x, mut params) = (tensor(&[rows, inp]).into_dtype(dtype), Params::default());
    let w = params.push("w", tensor(&[out, inp]));
    match pass {
        Pass::Forward => {
            let mut y = tensor(&[rows, out]).into_dtype(dtype);
            Box::new(move || matmul::forward(&mut y, &x, params.packed(w), None))
        }
        Pass::BackwardInput => {
            let (dy, mut dx) = (tensor(&[rows, out]).into_dtype(dtype), tensor(&[rows, inp]));
            Box::new(move || matmul::backward_input(&mut dx, &dy, params.factor(w), false))
        }
        Pass::BackwardWeight => {
            let (dy, mut dw) = (tensor(&[rows, out]).into_dtype(dtype), tensor(&[out, inp]));
            Box::new(move || matmul::backward_weight(&mut dw, &dy, &x))
        }
    }
}
