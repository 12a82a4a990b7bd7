//! The kernels against the reference, on odd shapes.

use super::super::check::{mixed_layout, tree};
use super::super::{Split, reference};
use super::*;
use crate::ops::check::{
    F32, MODELS, ROWS, Tol, assert_close, assert_fits, assert_same_bits, contexts, download,
    rounding, upload, upload_noise, wide,
};

const SCALE: f32 = 0.3;

fn dims([heads, kv_heads, head_dim]: [usize; 3]) -> Dims {
    Dims { heads, kv_heads, head_dim }
}

/// Heads of every path.
fn cases() -> [(Dims, Kind); 6] {
    [
        (dims([3, 1, 24]), Kind::F32),
        (dims([4, 2, 64]), Kind::F32),
        (dims([2, 2, 8]), Kind::Bf16),
        (dims([7, 1, 64]), Kind::Bf16),
        (dims([4, 2, 64]), Kind::Bf16),
        (dims([3, 1, 128]), Kind::Bf16),
    ]
}

fn tol(kind: Kind) -> Tol {
    match kind {
        // Weights and results are rounded to 8 bits.
        Kind::Bf16 => Tol { abs: 4e-3, rel: 1.0 / 128.0 },
        _ => F32,
    }
}

struct Got {
    o: Vec<f32>,
    lse: Vec<f32>,
}

fn run_forward(cx: &Context, layout: &Layout, dims: Dims, kind: Kind) -> Got {
    let t = layout.row_count();
    let [q, k, v] = [(1, dims.q_cols()), (2, dims.kv_cols()), (3, dims.kv_cols())]
        .map(|(seed, cols)| upload_noise(cx, seed, t * cols, kind).0);
    let packed = Packed::upload(cx, layout, dims, kind).unwrap();
    let mut o = cx.buffer(kind, t * dims.q_cols()).unwrap();
    let mut lse = cx.buffer(Kind::F32, t * dims.heads).unwrap();
    let qkv = [q.view(), k.view(), v.view()];
    forward(cx, &mut o.view_mut(), &mut lse.view_mut(), qkv, &packed, SCALE).unwrap();
    Got { o: download(cx, &o), lse: download(cx, &lse) }
}

fn inputs(layout: &Layout, dims: Dims, kind: Kind) -> [Vec<f64>; 3] {
    [(1, dims.q_cols()), (2, dims.kv_cols()), (3, dims.kv_cols())]
        .map(|(seed, cols)| wide(&rounding(seed, layout.row_count() * cols, kind)))
}

fn expected_forward(layout: &Layout, dims: Dims, kind: Kind) -> [Vec<f64>; 2] {
    let [q, k, v] = inputs(layout, dims, kind);
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; layout.row_count() * dims.heads]);
    reference::forward(&mut o, &mut lse, [&q, &k, &v], layout, dims, f64::from(SCALE));
    [o, lse]
}

#[test]
fn forward_matches_the_reference_in_both_orders() {
    for (dims, kind) in cases() {
        for layout in [mixed_layout(), Layout::sequences([150, 1, 0, 65])] {
            let [o, lse] = expected_forward(&layout, dims, kind);
            let mut first: Option<Got> = None;
            for cx in contexts() {
                let got = run_forward(&cx, &layout, dims, kind);
                assert_close("o", &got.o, &o, tol(kind));
                assert_close("lse", &got.lse, &lse, F32);
                let first =
                    first.get_or_insert_with(|| Got { o: got.o.clone(), lse: got.lse.clone() });
                assert_same_bits("o", &got.o, &first.o);
                assert_same_bits("lse", &got.lse, &first.lse);
            }
        }
    }
}

/// Gradients of batches that follow one another, each with its own rows.
struct Gradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// What a batch's rows hold: rows of the whole.
fn take(values: &[f32], cols: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| values[row * cols..(row + 1) * cols].to_vec()).collect()
}

/// Forward and backward of a batch with these rows of the noise, with what an earlier one handed on.
fn run_backward(
    cx: &Context,
    layout: &Layout,
    (dims, kind, do_kind): (Dims, Kind, Kind),
    rows: &[usize],
    begun: Option<Sums>,
    aside_len_max: Option<usize>,
) -> (Gradients, Option<Sums>) {
    let t = rows.iter().max().map_or(0, |row| row + 1);
    let noise = |seed, cols, kind| {
        let values = take(&rounding(seed, t * cols, kind), cols, rows);
        upload(cx, &values, kind)
    };
    let (q_cols, cols) = (dims.q_cols(), dims.kv_cols());
    let [q, k, v] = [(1, q_cols), (2, cols), (3, cols)].map(|(seed, cols)| noise(seed, cols, kind));
    let do_ = noise(4, q_cols, do_kind);
    let packed = match aside_len_max {
        Some(max) => {
            let lists = PackedLists::with_limit(layout, dims, Sizes::of(dims, kind), max);
            assert!(lists.waves.len() > 1, "the limit cuts the segments into waves");
            Packed::of(cx, layout, dims, kind, &lists).unwrap()
        }
        None => Packed::upload(cx, layout, dims, kind).unwrap(),
    };
    let mut o = cx.buffer(kind, q.len()).unwrap();
    let mut lse = cx.buffer(Kind::F32, rows.len() * dims.heads).unwrap();
    let qkv = [q.view(), k.view(), v.view()];
    forward(cx, &mut o.view_mut(), &mut lse.view_mut(), qkv, &packed, SCALE).unwrap();
    let [mut dq, mut dk, mut dv] =
        [q.len(), k.len(), v.len()].map(|len| cx.buffer(Kind::F32, len).unwrap());
    let to = [&mut dq.view_mut(), &mut dk.view_mut(), &mut dv.view_mut()];
    let handed_on =
        backward(cx, to, do_.view(), qkv, o.view(), lse.view(), &packed, SCALE, begun).unwrap();
    let [dq, dk, dv] = [&dq, &dk, &dv].map(|buffer| download(cx, buffer));
    (Gradients { dq, dk, dv }, handed_on)
}

fn whole(cx: &Context, layout: &Layout, kinds: (Dims, Kind, Kind)) -> Gradients {
    let rows: Vec<usize> = (0..layout.row_count()).collect();
    run_backward(cx, layout, kinds, &rows, None, None).0
}

fn expected_backward(layout: &Layout, (dims, kind, do_kind): (Dims, Kind, Kind)) -> [Vec<f64>; 3] {
    let [q, k, v] = inputs(layout, dims, kind);
    let [o, lse] = expected_forward(layout, dims, kind);
    let do_ = wide(&rounding(4, q.len(), do_kind));
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
    let to = [&mut dq[..], &mut dk, &mut dv];
    let scale = f64::from(SCALE);
    reference::backward(to, &do_, [&q, &k, &v], &o, &lse, layout, dims, scale);
    [dq, dk, dv]
}

fn assert_same(a: &Gradients, b: &Gradients) {
    assert_same_bits("dq", &a.dq, &b.dq);
    assert_same_bits("dk", &a.dk, &b.dk);
    assert_same_bits("dv", &a.dv, &b.dv);
}

/// Gradients of keys sum over up to a thousand rows, each with a weight and a slope that are rounded to 8 bits.
fn gradient_tol(kind: Kind) -> Tol {
    match kind {
        Kind::Bf16 => Tol { abs: 2e-2, rel: 1.0 / 64.0 },
        _ => Tol { abs: 1e-4, rel: 1e-4 },
    }
}

#[test]
fn backward_matches_the_reference_in_both_orders() {
    let mut all: Vec<(Dims, Kind, Kind)> = cases().map(|(dims, kind)| (dims, kind, kind)).to_vec();
    all.push((dims([7, 1, 64]), Kind::Bf16, Kind::F32));
    for kinds in all {
        for layout in [mixed_layout(), Layout::sequences([131, 1, 0])] {
            let [dq, dk, dv] = expected_backward(&layout, kinds);
            let tol = gradient_tol(kinds.1);
            let mut first: Option<Gradients> = None;
            for cx in contexts() {
                let got = whole(&cx, &layout, kinds);
                assert_close("dq", &got.dq, &dq, tol);
                assert_close("dk", &got.dk, &dk, tol);
                assert_close("dv", &got.dv, &dv, tol);
                if let Some(first) = &first {
                    assert_same(&got, first);
                }
                first.get_or_insert(got);
            }
        }
    }
}

/// Goal: gradients don't depend on how much waits to be added at once.
#[test]
fn waves_have_the_bits_of_the_whole() {
    let cx = &contexts()[0];
    for kinds in
        [(dims([4, 2, 64]), Kind::Bf16, Kind::Bf16), (dims([3, 1, 24]), Kind::F32, Kind::F32)]
    {
        let layout = tree(70);
        let rows: Vec<usize> = (0..layout.row_count()).collect();
        let want = whole(cx, &layout, kinds);
        assert_same(&run_backward(cx, &layout, kinds, &rows, None, Some(1)).0, &want);
    }
}

/// Goal: a group that is cut over batches has the gradients of a whole one. Method: a prompt and its completions in one
/// batch, and in three that hand the prompt's sums on.
#[test]
fn a_group_in_parts_has_the_bits_of_a_whole_one() {
    let cx = &contexts()[0];
    for kinds in
        [(dims([4, 2, 64]), Kind::Bf16, Kind::Bf16), (dims([3, 1, 24]), Kind::F32, Kind::F32)]
    {
        let (dims, ..) = kinds;
        let (q_cols, cols) = (dims.q_cols(), dims.kv_cols());
        let lens = [9, 1, 30, 16];
        let prompt = 37;
        let layout = tree(prompt);
        let want = whole(cx, &layout, kinds);
        let mut begun: Option<Sums> = None;
        let mut start = 0;
        for part in [0..2, 2..3, 3..4] {
            let count = part.len();
            let completions: Vec<(usize, Option<usize>)> =
                lens[part.clone()].iter().map(|&len| (len, Some(count))).collect();
            let own: usize = lens[part.clone()].iter().sum();
            let is_last = part.end == lens.len();
            let split = Split {
                begun: (part.start > 0).then_some(count),
                open: (!is_last).then_some(count),
            };
            let layout = Layout::with_split(completions.into_iter().chain([(prompt, None)]), split);
            let rows: Vec<usize> = (start..start + own).chain(56..56 + prompt).collect();
            let (got, handed_on) = run_backward(cx, &layout, kinds, &rows, begun.take(), None);
            assert_eq!(handed_on.is_some(), !is_last);
            begun = handed_on;
            let (q_at, at) = (start * q_cols, start * cols);
            assert_same_bits("dq", &got.dq[..own * q_cols], &want.dq[q_at..q_at + own * q_cols]);
            assert_same_bits("dk", &got.dk[..own * cols], &want.dk[at..at + own * cols]);
            assert_same_bits("dv", &got.dv[..own * cols], &want.dv[at..at + own * cols]);
            let of_prompt = |all: &[f32], cols| all[own * cols..].to_vec();
            if is_last {
                assert_same_bits("dq", &of_prompt(&got.dq, q_cols), &want.dq[56 * q_cols..]);
                assert_same_bits("dk", &of_prompt(&got.dk, cols), &want.dk[56 * cols..]);
                assert_same_bits("dv", &of_prompt(&got.dv, cols), &want.dv[56 * cols..]);
            } else {
                for zeros in
                    [of_prompt(&got.dq, q_cols), of_prompt(&got.dk, cols), of_prompt(&got.dv, cols)]
                {
                    assert!(
                        zeros.iter().all(|x| *x == 0.0),
                        "an open segment has no gradients yet"
                    );
                }
            }
            start += own;
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    for cx in contexts() {
        for layout in [Layout::sequences([]), Layout::new([(0, Some(1)), (0, None)])] {
            for kind in [Kind::F32, Kind::Bf16] {
                assert!(whole(&cx, &layout, (dims([4, 2, 64]), kind, kind)).dq.is_empty());
            }
        }
    }
}

#[test]
fn launches_fit_every_device() {
    for model in MODELS {
        let dims = Dims { heads: model.heads, kv_heads: model.kv_heads, head_dim: model.head_dim };
        for rows in ROWS {
            for kind in [Kind::F32, Kind::Bf16] {
                assert_fits(&forward_plan(rows, dims, kind));
                assert_fits(&backward_plan("queries", rows, dims, kind));
                assert_fits(&backward_plan("keys", rows, dims, kind));
                assert_fits(&deltas_plan([kind, kind], rows * dims.heads));
            }
            assert_fits(&add_aside_plan(rows));
        }
    }
    let widest = dims([8, 8, HEAD_DIM_MAX]);
    assert_fits(&forward_plan(1, widest, Kind::F32));
    assert_fits(&backward_plan("keys", 1, widest, Kind::F32));
    let plan = forward_plan(100, dims([14, 2, 64]), Kind::Bf16);
    assert_eq!((plan.grid, plan.block, plan.shared_bytes), ([100, 2, 1], [128, 1, 1], 49_152));
    assert_eq!(plan.kernel, "attention_rows_64");
    let plan = backward_plan("keys", 7, dims([28, 4, 128]), Kind::Bf16);
    assert_eq!((plan.grid, plan.block, plan.shared_bytes), ([7, 4, 1], [128, 1, 1], 98_304));
    let plan = backward_plan("queries", 7, dims([28, 4, 80]), Kind::Bf16);
    assert_eq!(plan.kernel, "attention_plain_backward_queries_bf16");
}

#[test]
#[should_panic(expected = "heads are 20 wide: the kernels take multiples of 8 up to 256")]
fn heads_of_an_odd_width_are_a_bug() {
    Packed::upload(&contexts()[0], &Layout::sequences([1]), dims([1, 1, 20]), Kind::F32).unwrap();
}
