//! Ops of rows and of elements.

use std::sync::Arc;

use aha_compute::ops::adamw::{AdamW, Hyper};
use aha_compute::ops::{embedding, grad_norm, rms_norm, rope, select, swiglu};
use aha_compute::{Device, Dtype, Grads, Params, Tensor};

use super::{Case, Outputs};
use crate::Size;
use crate::inputs::tensor;

pub(super) fn cases(size: Size) -> Vec<Case> {
    let mut cases = Vec::new();
    let small = [(1, 1), (5, 37), (33, 1032)];
    let full = [(300, 896), (257, 1536), (70, 8960)];
    let shapes = small.iter().chain(if size == Size::Full { &full[..] } else { &[] });
    for &(rows, cols) in shapes {
        let named = |op: &str| format!("{op} {rows}x{cols}");
        cases.push(Case::new(named("embedding"), move |d, t| embeddings(d, t, rows, cols)));
        cases.push(Case::new(named("rms_norm"), move |d, t| norms(d, t, rows, cols)));
        cases.push(Case::new(named("swiglu"), move |d, t| gates(d, t, rows, cols)));
        cases.push(Case::new(named("select_rows"), move |d, t| selection(d, t, rows, cols)));
        cases.push(Case::new(named("adamw"), move |d, _| steps(d, rows, cols)));
        cases.push(Case::new(named("grad_norm"), move |d, _| norm(d, rows, cols)));
    }
    let heads = [(16, 3), (64, 2), (128, 3)];
    for (head_dim, heads) in heads {
        let name = format!("rope 30x{heads}x{head_dim}");
        cases.push(Case::new(name, move |d, t| rotations(d, t, heads, head_dim)));
    }
    let name = "rms_norm over heads 9x6x64";
    cases.push(Case::new(name, |d, t| norms_of(d, [9 * 6, 64], tensor(d, 1, &[54, 64], t), t)));
    cases
}

fn embeddings(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Outputs {
    let table = tensor(device, 1, &[11, cols], Dtype::F32);
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * i % 11).collect();
    let mut y = Tensor::uninit(device, &[rows, cols]);
    embedding::forward(&mut y, &table, &ids);
    // As a model rounds it.
    let y = y.into_dtype(dtype);
    let mut dtable = tensor(device, 2, &[11, cols], Dtype::F32);
    embedding::backward(&mut dtable, &tensor(device, 3, &[rows, cols], Dtype::F32), &ids);
    Outputs::of([("y", &y), ("dtable", &dtable)])
}

fn norms(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Outputs {
    let shape = [rows, cols];
    let [x, residual] = [1, 2].map(|seed| tensor(device, seed, &shape, Dtype::F32));
    let (mut sum, mut r) = (Tensor::uninit(device, &shape), Tensor::uninit(device, &[rows]));
    let mut y = Tensor::uninit_as(device, dtype, &shape);
    let w = tensor(device, 3, &[cols], Dtype::F32);
    rms_norm::forward_add(&mut y, &mut r, &mut sum, &x, &residual, &w, 1e-6);
    let mut outputs = Outputs::of([("y", &y), ("sum", &sum), ("r", &r)]);
    outputs.0.extend(norms_of(device, shape, sum, dtype).0);
    outputs
}

/// Of `x` alone, and backward.
fn norms_of(device: &Device, shape: [usize; 2], x: Tensor, dtype: Dtype) -> Outputs {
    let w = tensor(device, 3, &shape[1..], Dtype::F32);
    let (mut y, mut r) =
        (Tensor::uninit_as(device, dtype, &shape), Tensor::uninit(device, &shape[..1]));
    rms_norm::forward(&mut y, &mut r, &x, &w, 1e-6);
    let dy = tensor(device, 4, &shape, Dtype::F32);
    let (mut dx, mut dw) =
        (tensor(device, 5, &shape, Dtype::F32), tensor(device, 6, &shape[1..], Dtype::F32));
    rms_norm::backward(&mut dx, Some(&mut dw), &dy, &x, &w, &r);
    Outputs::of([("y alone", &y), ("dx", &dx), ("dw", &dw)])
}

fn gates(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Outputs {
    let shape = [rows, cols];
    let [gate, up] = [1, 2].map(|seed| tensor(device, seed, &shape, dtype));
    let mut y = Tensor::uninit_as(device, dtype, &shape);
    swiglu::forward(&mut y, &gate, &up);
    let [mut dgate, mut dup] = [0; 2].map(|_| Tensor::uninit(device, &shape));
    let dy = tensor(device, 3, &shape, Dtype::F32);
    swiglu::backward(&mut dgate, &mut dup, &dy, &gate, &up);
    Outputs::of([("y", &y), ("dgate", &dgate), ("dup", &dup)])
}

fn rotations(device: &Device, dtype: Dtype, heads: usize, head_dim: usize) -> Outputs {
    let shape = [30, heads * head_dim];
    let half = head_dim / 2;
    let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let table = Arc::new(rope::Table::new(device, &inv_freq, 1.25, 5000));
    let positions: Vec<u32> = (0..30).map(|i| i * 71 % 500).collect();
    let mut y = Tensor::uninit_as(device, dtype, &shape);
    rope::forward(&mut y, &tensor(device, 1, &shape, dtype), &positions, &table);
    let mut dx = Tensor::uninit(device, &shape);
    rope::backward(&mut dx, &tensor(device, 2, &shape, Dtype::F32), &positions, &table);
    Outputs::of([("y", &y), ("dx", &dx)])
}

fn selection(device: &Device, dtype: Dtype, rows: usize, cols: usize) -> Outputs {
    let picked: Vec<usize> = (0..rows + 3).map(|i| i * 7 % rows).collect();
    let mut y = Tensor::uninit_as(device, dtype, &[picked.len(), cols]);
    select::forward(&mut y, &tensor(device, 1, &[rows, cols], dtype), &picked);
    let mut dx = tensor(device, 2, &[rows, cols], Dtype::F32);
    let dy = tensor(device, 3, &[picked.len(), cols], Dtype::F32);
    select::backward(&mut dx, &dy, &picked);
    Outputs::of([("y", &y), ("dx", &dx)])
}

/// Three steps, the second with a gradient that is scaled down.
fn steps(device: &Device, rows: usize, cols: usize) -> Outputs {
    let mut params = Params::default();
    let id = params.push("weight", tensor(device, 1, &[rows, cols], Dtype::F32));
    let mut grads = Grads::zeros(device, &params);
    let mut adamw = AdamW::new(&params);
    let hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    for (seed, scale) in (10..).zip([1.0, 0.25, 1.0]) {
        *grads.get_mut(id) = tensor(device, seed, &[rows, cols], Dtype::F32);
        adamw.step(&mut params, &grads, &hyper, scale);
    }
    let (m, v) = adamw.moments(id);
    Outputs::of([("w", params.value(id)), ("m", m), ("v", v)])
}

fn norm(device: &Device, rows: usize, cols: usize) -> Outputs {
    let grads = [1, 2].map(|seed| tensor(device, seed, &[rows, cols], Dtype::F32));
    Outputs(vec![("norm", vec![grad_norm::global_norm(grads.iter()) as f32])])
}
