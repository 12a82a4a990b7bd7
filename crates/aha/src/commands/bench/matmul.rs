//! Products of rows of activations with a weight, on the shapes of our models: forward, and for as many rows
//! as training has, the gradients of rows and weight.

use std::time::{Duration, Instant};

use aha_compute::ops::matmul::{self, Packed};
use aha_compute::{Device, Tensor};

use super::limits::flop_per_second;
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
pub fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let mut found = Vec::new();
    for (name, rows, inp, out) in SHAPES {
        for &pass in Pass::of(rows) {
            let id = format!("{}/{name} {rows}x{inp}x{out}", pass.name());
            if id.contains(&bench.args.filter) {
                bench.say(Kind::Matmul, &id);
                found.push(row(&id, &bench.device, pass, [rows, inp, out], bench.args.runs));
            }
        }
    }
    found
}

fn row(id: &str, device: &Device, pass: Pass, [rows, inp, out]: [usize; 3], runs: u32) -> Row {
    let mut run = product(device, pass, [rows, inp, out]);
    // The peak is taken between the repetitions, so that both meet the same neighbours.
    let (mut best, mut top) = (f64::INFINITY, 0.0f64);
    for _ in 0..runs {
        top = top.max(flop_per_second(device));
        let turn = Instant::now();
        loop {
            let begun = Instant::now();
            run();
            best = best.min(begun.elapsed().as_secs_f64());
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
    row
}

fn product(device: &Device, pass: Pass, [rows, inp, out]: [usize; 3]) -> Box<dyn FnMut()> {
    let values = |len: usize| (0..len).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect::<Vec<_>>();
    let tensor =
        |shape: &[usize]| Tensor::from_slice(device, shape, &values(shape.iter().product()));
    let dtype = device.dtype();
    let (x, w) = (tensor(&[rows, inp]).into_dtype(dtype), tensor(&[out, inp]));
    match pass {
        Pass::Forward => {
            let packed = Packed::of_weight(&w, dtype);
            let mut y = tensor(&[rows, out]).into_dtype(dtype);
            Box::new(move || matmul::forward(&mut y, &x, &packed, None))
        }
        Pass::BackwardInput => {
            let (dy, mut dx) = (tensor(&[rows, out]).into_dtype(dtype), tensor(&[rows, inp]));
            Box::new(move || matmul::backward_input(&mut dx, &dy, &w, false))
        }
        Pass::BackwardWeight => {
            let (dy, mut dw) = (tensor(&[rows, out]).into_dtype(dtype), tensor(&[out, inp]));
            Box::new(move || matmul::backward_weight(&mut dw, &dy, &x))
        }
    }
}
