//! Attention over packed sequences, with prompts that are shared, and over pages.

use aha_compute::ops::attention::{self, Dims, KvCache, Layout, PagedSeqs};
use aha_compute::{Device, Dtype, Tensor};

use super::{Case, Outputs};
use crate::Size;
use crate::inputs::tensor;

const SCALE: f32 = 0.3;

pub(super) fn cases(size: Size) -> Vec<Case> {
    let small = [[3, 1, 48], [4, 2, 64], [3, 1, 128]];
    let full = [[14, 2, 64], [12, 2, 128], [8, 8, 32]];
    let mut cases = Vec::new();
    for &heads in small.iter().chain(if size == Size::Full { &full[..] } else { &[] }) {
        let [heads, kv_heads, head_dim] = heads;
        let dims = Dims { heads, kv_heads, head_dim };
        let shape = format!("{heads}/{kv_heads}x{head_dim}");
        let mut layouts = vec![
            ("sequences", Layout::sequences([70, 1, 0, 37])),
            ("a shared prompt", Layout::new([(17, Some(2)), (40, Some(2)), (21, None)])),
        ];
        if size == Size::Full {
            layouts.push(("long sequences", Layout::sequences([1030, 515])));
            layouts.push((
                "a large group",
                Layout::new([(300, Some(3)), (257, Some(3)), (1, Some(3)), (700, None)]),
            ));
        }
        for (name, layout) in layouts {
            let named = format!("attention {shape} of {name}");
            cases.push(Case::new(named, move |d, t| packed(d, t, &layout, dims)));
        }
        cases.push(Case::new(format!("attention {shape} of pages"), move |d, t| paged(d, t, dims)));
    }
    cases
}

/// What attention reads on this device, as the tape gives it.
fn input(x: Tensor) -> Tensor {
    if x.device().is_cuda() { x } else { x.into_dtype(Dtype::F32) }
}

/// What it writes.
fn output(device: &Device, dtype: Dtype, shape: &[usize]) -> Tensor {
    Tensor::uninit_as(device, if device.is_cuda() { dtype } else { Dtype::F32 }, shape)
}

fn packed(device: &Device, dtype: Dtype, layout: &Layout, dims: Dims) -> Outputs {
    let rows = layout.row_count();
    let (q_cols, kv_cols) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
    let [q, k, v] = [(1, q_cols), (2, kv_cols), (3, kv_cols)]
        .map(|(seed, cols)| input(tensor(device, seed, &[rows, cols], dtype)));
    let mut o = output(device, dtype, &[rows, q_cols]);
    let mut lse = Tensor::uninit(device, &[rows, dims.heads]);
    attention::forward(&mut o, &mut lse, &q, &k, &v, layout, dims, SCALE);
    let o = input(o.into_dtype(dtype));
    let [mut dq, mut dk, mut dv] =
        [q_cols, kv_cols, kv_cols].map(|cols| Tensor::uninit(device, &[rows, cols]));
    let do_ = tensor(device, 4, &[rows, q_cols], Dtype::F32);
    let to = [&mut dq, &mut dk, &mut dv];
    attention::backward(to, &do_, [&q, &k, &v], &o, &lse, layout, dims, SCALE, None);
    Outputs::of([("o", &o), ("lse", &lse), ("dq", &dq), ("dk", &dk), ("dv", &dv)])
}

/// Two sequences with two pages in common are prefilled; then each has two more tokens, one after the other.
fn paged(device: &Device, dtype: Dtype, dims: Dims) -> Outputs {
    let mut cache = KvCache::new(device, 1, 8, dims);
    let mut seqs = PagedSeqs::default();
    let mut outputs = Outputs::default();
    let mut step = |seqs: &mut PagedSeqs, seed: u64, name: &'static str| {
        let rows = seqs.row_count();
        let (q_cols, kv_cols) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        let [k, v] = [1, 2].map(|i| tensor(device, 10 * seed + i, &[rows, kv_cols], dtype));
        let q = input(tensor(device, 10 * seed, &[rows, q_cols], dtype));
        cache.append(0, &k, &v, seqs);
        let mut o = output(device, dtype, &[rows, q_cols]);
        attention::attend(&mut o, &q, &cache, 0, seqs, dims, SCALE);
        outputs.add(name, &o.into_dtype(dtype));
    };
    let (first, second) = ([5, 2, 7], [5, 2, 4]);
    seqs.push(37, 0, &first);
    step(&mut seqs, 1, "prefill");
    seqs.clear();
    // Goes on behind the two pages that it shares.
    seqs.push(3, 32, &second);
    step(&mut seqs, 2, "prefill behind a shared prompt");
    for (token, name) in [(0, "first token"), (1, "second token")] {
        seqs.clear();
        seqs.push(1, 37 + token, &first);
        seqs.push(1, 35 + token, &second);
        step(&mut seqs, 3 + token as u64, name);
    }
    outputs
}
