//! Gradients of attention over packed sequences.
//!
//! Probabilities are computed again from `lse`, so memory grows with the rows and not with their square.
//! One call computes one sequence's head of keys, with all queries that read it in order.

use std::cmp::Reverse;

use super::kernel::{self, BackwardRows};
use super::tiles::{Span, Task, tiles_of, with_scratch};
use super::{Dims, PAGE_LEN, check_len, check_starts};
use crate::Tensor;
use crate::tensor::Shards;

/// `dq`, `dk` and `dv`, from `do_`, the gradient of `o`, and what [`super::forward`] took and wrote.
pub fn backward(
    [dq, dk, dv]: [&mut Tensor; 3],
    do_: &Tensor,
    [q, k, v]: [&Tensor; 3],
    o: &Tensor,
    lse: &Tensor,
    seq_starts: &[usize],
    dims: Dims,
    scale: f32,
) {
    dims.check();
    let rows = q.rows();
    check_starts(seq_starts, rows);
    for (name, buffer, cols) in [
        ("dq", &*dq, dims.q_cols()),
        ("dk", dk, dims.kv_cols()),
        ("dv", dv, dims.kv_cols()),
        ("do", do_, dims.q_cols()),
        ("q", q, dims.q_cols()),
        ("k", k, dims.kv_cols()),
        ("v", v, dims.kv_cols()),
        ("o", o, dims.q_cols()),
        ("lse", lse, dims.heads),
    ] {
        check_len(name, buffer.len(), rows, cols);
    }
    let inputs = Inputs { do_, q, k, v, o, lse };
    let outputs = Outputs {
        dq: Shards::new(dq.as_mut_slice()),
        dk: Shards::new(dk.as_mut_slice()),
        dv: Shards::new(dv.as_mut_slice()),
    };
    // The longest first, so that threads end together.
    let mut seqs: Vec<Span> =
        super::packed::spans(seq_starts).filter(|s| s.row_count > 0).collect();
    seqs.sort_by_key(|seq| Reverse(seq.row_count));
    q.device().run(seqs.len() * dims.kv_heads, |i| {
        let (seq, kv_head) = (&seqs[i / dims.kv_heads], i % dims.kv_heads);
        backward_head(&outputs, &inputs, seq, kv_head, dims, scale);
    });
}

struct Inputs<'a> {
    do_: &'a Tensor,
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    o: &'a Tensor,
    lse: &'a Tensor,
}

struct Outputs<'a> {
    dq: Shards<'a>,
    dk: Shards<'a>,
    dv: Shards<'a>,
}

fn backward_head(
    outputs: &Outputs<'_>,
    inputs: &Inputs<'_>,
    seq: &Span,
    kv_head: usize,
    dims: Dims,
    scale: f32,
) {
    let (device, d, cols) = (inputs.q.device(), dims.head_dim, dims.kv_cols());
    let at = seq.row * cols + kv_head * d;
    let (k, v) = (&inputs.k.as_slice()[at..], &inputs.v.as_slice()[at..]);
    let tasks = tiles_of(seq, kv_head, dims, scale);
    let (keys_len, pages_len) = (seq.row_count * d, seq.row_count.next_multiple_of(PAGE_LEN) * d);
    let tile_len = tasks.iter().map(tile_scratch_len).max().unwrap_or(0);
    with_scratch(device, 2 * (keys_len + pages_len) + tile_len, |scratch| {
        let (k_pages, rest) = scratch.split_at_mut(pages_len);
        let (v_pages, rest) = rest.split_at_mut(pages_len);
        let (dk, rest) = rest.split_at_mut(keys_len);
        let (dv, rest) = rest.split_at_mut(keys_len);
        to_pages(k_pages, k, cols, seq.row_count, dims);
        to_pages(v_pages, v, cols, seq.row_count, dims);
        dk.fill(0.0);
        dv.fill(0.0);
        for task in &tasks {
            backward_tile(&outputs.dq, dk, dv, inputs, [k_pages, v_pages, k], task, rest, dims);
        }
        for (j, (dk, dv)) in dk.chunks_exact(d).zip(dv.chunks_exact(d)).enumerate() {
            let at = at + j * cols;
            // SAFETY: this call alone has this sequence and this head.
            unsafe {
                outputs.dk.slice(at, at + d).copy_from_slice(dk);
                outputs.dv.slice(at, at + d).copy_from_slice(dv);
            }
        }
    });
}

fn tile_scratch_len(task: &Task) -> usize {
    4 * task.tile.rows_len() + task.tile.row_count + task.tile.backward_scratch_len()
}

fn backward_tile(
    dq: &Shards<'_>,
    dk: &mut [f32],
    dv: &mut [f32],
    inputs: &Inputs<'_>,
    [k_pages, v_pages, k]: [&[f32]; 3],
    task: &Task,
    scratch: &mut [f32],
    dims: Dims,
) {
    let tile = task.tile;
    let (q, rest) = scratch.split_at_mut(tile.rows_len());
    let (o, rest) = rest.split_at_mut(tile.rows_len());
    let (do_, rest) = rest.split_at_mut(tile.rows_len());
    let (dq_rows, rest) = rest.split_at_mut(tile.rows_len());
    let (lse, rest) = rest.split_at_mut(tile.row_count);
    task.gather(q, inputs.q.as_slice(), dims.head_dim, dims);
    task.gather(o, inputs.o.as_slice(), dims.head_dim, dims);
    task.gather(do_, inputs.do_.as_slice(), dims.head_dim, dims);
    task.gather(lse, inputs.lse.as_slice(), 1, dims);
    let rows = BackwardRows { q, o, do_, lse, k_pages, v_pages, k, k_row_stride: dims.kv_cols() };
    kernel::backward(inputs.q.device().isa(), dq_rows, dk, dv, &rows, rest, tile);
    task.scatter(dq, dq_rows, dims.head_dim, dims);
}

/// A head's rows as pages `(D, 16)`. Lanes behind the last row are never used.
fn to_pages(pages: &mut [f32], rows: &[f32], row_stride: usize, row_count: usize, dims: Dims) {
    for (i, page) in pages.chunks_exact_mut(dims.page_head_len()).enumerate() {
        let row = i * PAGE_LEN;
        let count = (row_count - row).min(PAGE_LEN);
        kernel::transpose(page, &rows[row * row_stride..], row_stride, count);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{forward, reference};
    use super::*;
    use crate::Device;
    use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise_f32};

    /// Noise on a device: `q`, `k`, `v` and the gradient of `o`.
    fn inputs(device: &Device, rows: std::ops::Range<usize>, dims: Dims) -> [Tensor; 4] {
        let columns = [dims.q_cols(), dims.kv_cols(), dims.kv_cols(), dims.q_cols()];
        std::array::from_fn(|i| {
            let cols = columns[i];
            let all = noise_f32(i as u64, 100 * cols);
            let part = &all[rows.start * cols..rows.end * cols];
            Tensor::from_slice(device, &[rows.len(), cols], part)
        })
    }

    /// `dq`, `dk` and `dv`.
    fn run(inputs: &[Tensor; 4], seq_starts: &[usize], dims: Dims, scale: f32) -> [Tensor; 3] {
        let [q, k, v, do_] = inputs;
        let mut o = Tensor::uninit(q.device(), q.shape());
        let mut lse = Tensor::uninit(q.device(), &[q.rows(), dims.heads]);
        forward(&mut o, &mut lse, q, k, v, seq_starts, dims, scale);
        let gradients = || [q, k, v].map(|x| Tensor::uninit(q.device(), x.shape()));
        let ([mut dq, mut dk, mut dv], mut again) = (gradients(), gradients());
        let kv = [q, k, v];
        backward([&mut dq, &mut dk, &mut dv], do_, kv, &o, &lse, seq_starts, dims, scale);
        backward(again.each_mut(), do_, kv, &o, &lse, seq_starts, dims, scale);
        for (once, twice) in [&dq, &dk, &dv].into_iter().zip(&again) {
            assert_same_bits("written, not added to", twice.as_slice(), once.as_slice());
        }
        [dq, dk, dv]
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 32), (7, 1, 16), (1, 1, 64)] {
            let dims = Dims { heads, kv_heads, head_dim };
            let (starts, t) = ([0, 1, 1, 38, 54], 54);
            let noise = inputs(&Device::cpu(1), 0..t, dims);
            let [q, k, v, do_] =
                noise.map(|x| x.as_slice().iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
            reference::forward(&mut o, &mut lse, [&q, &k, &v], &starts, dims, 0.5);
            let mut want = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
            let to = want.each_mut().map(|x| x.as_mut_slice());
            reference::backward(to, &do_, [&q, &k, &v], &o, &lse, &starts, dims, 0.5);
            let mut first: Option<[Tensor; 3]> = None;
            for device in devices() {
                let got = run(&inputs(&device, 0..t, dims), &starts, dims, 0.5);
                let first = first.get_or_insert_with(|| got.clone());
                for (i, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    assert_close(name, got[i].as_slice(), &want[i], F32);
                    assert_same_bits(name, got[i].as_slice(), first[i].as_slice());
                }
            }
        }
    }

    #[test]
    fn gradients_do_not_depend_on_packing() {
        let dims = Dims { heads: 4, kv_heads: 2, head_dim: 16 };
        let device = Device::cpu(2);
        let packed = run(&inputs(&device, 0..61, dims), &[0, 7, 47, 61], dims, 0.25);
        for rows in [0..7, 7..47, 47..61] {
            let alone = run(&inputs(&device, rows.clone(), dims), &[0, rows.len()], dims, 0.25);
            for (alone, packed) in alone.iter().zip(&packed) {
                let part = packed.rows_range(rows.clone());
                assert_same_bits("gradient", alone.as_slice(), part.as_slice());
            }
        }
    }

    #[test]
    fn no_rows_are_no_work() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let gradients = run(&inputs(&Device::cpu(2), 0..0, dims), &[0, 0], dims, 1.0);
        assert!(gradients.iter().all(Tensor::is_empty));
    }

    #[test]
    #[should_panic(expected = "`dv` has 32 floats: expected 3 rows of 16")]
    fn a_wrong_length_names_the_buffer() {
        let dims = Dims { heads: 1, kv_heads: 1, head_dim: 16 };
        let x = Tensor::zeros(&Device::cpu(1), &[3, 16]);
        let lse = Tensor::zeros(x.device(), &[3, 1]);
        let (mut dq, mut dk, mut dv) = (x.clone(), x.clone(), x.rows_range(0..2));
        let gradients = [&mut dq, &mut dk, &mut dv];
        backward(gradients, &x, [&x, &x, &x], &x, &lse, &[0, 3], dims, 1.0);
    }
}
