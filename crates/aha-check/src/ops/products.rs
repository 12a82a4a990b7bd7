//! Products with weights, plain and with adapters.

use aha_compute::ops::{lora, matmul};
use aha_compute::{Device, Dtype, Params, Tensor};

use super::{Case, Outputs};
use crate::Size;
use crate::inputs::tensor;

/// Rows, inputs and outputs. Widths of bf16 tensors are what a model has: multiples of 8.
const SMALL: [[usize; 3]; 3] = [[1, 40, 24], [33, 64, 136], [70, 256, 72]];
/// Those of Qwen2.5-0.5B and 1.5B: one row, and many.
const FULL: [[usize; 3]; 6] = [
    [1, 896, 4864],
    [16, 4864, 896],
    [129, 896, 1152],
    [1000, 896, 896],
    [777, 1536, 8960],
    [300, 8960, 1536],
];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size == Size::Full { &FULL[..] } else { &[] };
    let shapes = SMALL.iter().chain(full);
    let of = |&[rows, inner, outer]: &[usize; 3]| {
        let named = |op: &str| format!("{op} {rows}x{inner}->{outer}");
        [
            Case::new(named("linear"), move |d, t| linear(d, t, [rows, inner, outer])),
            Case::new(named("lora"), move |d, t| adapted(d, t, [rows, inner, outer])),
        ]
    };
    shapes.flat_map(of).collect()
}

/// Shares of what sums of so many terms are, so that results are near one.
fn scaled(mut params: Params, device: &Device, seed: u64, name: &str, shape: [usize; 2]) -> Params {
    let scale = (3.0 / shape[1] as f32).sqrt();
    let values: Vec<f32> =
        crate::inputs::noise(seed, shape[0] * shape[1]).into_iter().map(|x| scale * x).collect();
    params.push(name, Tensor::from_slice(device, &shape, &values));
    params
}

fn linear(device: &Device, dtype: Dtype, [rows, inner, outer]: [usize; 3]) -> Outputs {
    let params = scaled(Params::default(), device, 1, "w", [outer, inner]);
    let [w] = ["w"].map(|name| params.find(name).expect("it was pushed"));
    let x = tensor(device, 2, &[rows, inner], dtype);
    let bias = tensor(device, 3, &[outer], Dtype::F32);
    let mut y = Tensor::uninit_as(device, dtype, &[rows, outer]);
    matmul::forward(&mut y, &x, params.packed(w), Some(&bias));
    let mut sums = Tensor::uninit(device, &[rows, outer]);
    matmul::forward(&mut sums, &x, params.packed(w), None);
    let dy = tensor(device, 4, &[rows, outer], Dtype::F32);
    let mut db = tensor(device, 5, &[outer], Dtype::F32);
    matmul::backward_bias(&mut db, &dy);
    let dy = dy.into_dtype(dtype);
    let mut dw = tensor(device, 6, &[outer, inner], Dtype::F32);
    matmul::backward_weight(&mut dw, &dy, &x);
    let mut dx = Tensor::uninit(device, &[rows, inner]);
    matmul::backward_input(&mut dx, &dy, params.factor(w), false);
    matmul::backward_input(&mut dx, &dy, params.factor(w), true);
    Outputs::of([("y", &y), ("y in f32", &sums), ("db", &db), ("dw", &dw), ("dx", &dx)])
}

fn adapted(device: &Device, dtype: Dtype, [rows, inner, outer]: [usize; 3]) -> Outputs {
    let rank = 8;
    let params = scaled(Params::default(), device, 1, "w", [outer, inner]);
    let params = scaled(params, device, 2, "a", [rank, inner]);
    let params = scaled(params, device, 3, "b", [outer, rank]);
    let [w, a, b] = ["w", "a", "b"].map(|name| params.find(name).expect("it was pushed"));
    let x = tensor(device, 4, &[rows, inner], dtype);
    let mut y = Tensor::uninit(device, &[rows, outer]);
    let two = [params.packed(a), params.packed(b)];
    let u = lora::forward(&mut y, &x, params.packed(w), None, two, 0.5);
    let dy = tensor(device, 5, &[rows, outer], dtype);
    let mut dx = Tensor::uninit(device, &[rows, inner]);
    let [mut da, mut db] =
        [[rank, inner], [outer, rank]].map(|shape| tensor(device, 6, &shape, Dtype::F32));
    let factors = [params.factor(a), params.factor(b)];
    let to = [&mut da, &mut db];
    lora::backward(&mut dx, to, &dy, &x, &u, params.factor(w), factors, 0.5, false);
    Outputs::of([("y", &y), ("dx", &dx), ("da", &da), ("db", &db)])
}
