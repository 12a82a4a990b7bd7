//! Attention over packed sequences.

use super::kernel::{self, Keys, PageIds};
use super::tiles::{self, Span};
use super::{Dims, PAGE_LEN, check_len, check_starts};
use crate::Tensor;
use crate::tensor::Shards;

/// Attention within each sequence: `o` `(T, H·D)`, and `lse` `(T, H)` for the backward pass.
///
/// `seq_starts` has the first row of each sequence and the number of rows.
pub fn forward(
    o: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seq_starts: &[usize],
    dims: Dims,
    scale: f32,
) {
    dims.check();
    let rows = q.rows();
    check_starts(seq_starts, rows);
    for (name, buffer, cols) in [
        ("q", q, dims.q_cols()),
        ("k", k, dims.kv_cols()),
        ("v", v, dims.kv_cols()),
        ("o", o, dims.q_cols()),
        ("lse", lse, dims.heads),
    ] {
        check_len(name, buffer.len(), rows, cols);
    }
    let (pages, first_pages) = key_pages(k, seq_starts, dims);
    let keys = |task: &tiles::Task| {
        let (kv_at, cols) = (task.kv_head * dims.head_dim, dims.kv_cols());
        let first_page = first_pages[task.seq] * dims.page_len();
        Keys {
            k: &pages.as_slice()[first_page + task.kv_head * dims.page_head_len()..],
            v: &v.as_slice()[seq_starts[task.seq] * cols + kv_at..],
            ids: PageIds::InOrder,
            k_page_stride: dims.page_len(),
            v_page_stride: PAGE_LEN * cols,
            v_row_stride: cols,
        }
    };
    let tasks = tiles::all_tiles(spans(seq_starts), dims, scale);
    tiles::forward(o, Some(lse), q, keys, &tasks, dims);
}

/// Sequences as spans.
pub(super) fn spans(seq_starts: &[usize]) -> impl Iterator<Item = Span> {
    seq_starts.windows(2).enumerate().map(|(seq, w)| Span {
        seq,
        row: w[0],
        row_count: w[1] - w[0],
        position: 0,
    })
}

/// The keys as pages `(KV, D, 16)`, and the first page of each sequence.
fn key_pages(k: &Tensor, seq_starts: &[usize], dims: Dims) -> (Tensor, Vec<usize>) {
    let mut first_pages = Vec::with_capacity(seq_starts.len());
    let mut page_rows = Vec::new();
    for w in seq_starts.windows(2) {
        first_pages.push(page_rows.len());
        page_rows.extend((w[0]..w[1]).step_by(PAGE_LEN).map(|row| row..w[1].min(row + PAGE_LEN)));
    }
    let device = k.device();
    let mut pages =
        Tensor::uninit(device, &[page_rows.len(), dims.kv_heads, dims.head_dim, PAGE_LEN]);
    let shards = Shards::new(pages.as_mut_slice());
    let cols = dims.kv_cols();
    device.run(page_rows.len(), |i| {
        // SAFETY: each page is written by one call.
        let page = unsafe { shards.slice(i * dims.page_len(), (i + 1) * dims.page_len()) };
        for (kv_head, page) in page.chunks_exact_mut(dims.page_head_len()).enumerate() {
            let rows = &k.as_slice()[page_rows[i].start * cols + kv_head * dims.head_dim..];
            kernel::transpose(page, rows, cols, page_rows[i].len());
        }
    });
    (pages, first_pages)
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::Device;
    use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise, noise_tensor};

    /// `o` and `lse` of noise.
    fn run(device: &Device, seq_starts: &[usize], dims: Dims, scale: f32) -> (Tensor, Tensor) {
        let t = *seq_starts.last().unwrap();
        let q = noise_tensor(device, 1, &[t, dims.q_cols()]);
        let k = noise_tensor(device, 2, &[t, dims.kv_cols()]);
        let v = noise_tensor(device, 3, &[t, dims.kv_cols()]);
        let mut o = Tensor::uninit(device, &[t, dims.q_cols()]);
        let mut lse = Tensor::uninit(device, &[t, dims.heads]);
        forward(&mut o, &mut lse, &q, &k, &v, seq_starts, dims, scale);
        (o, lse)
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 32), (7, 1, 16), (1, 1, 64)] {
            let dims = Dims { heads, kv_heads, head_dim };
            let (starts, t) = ([0, 1, 1, 38, 54], 54);
            let [q, k, v] = [(1, dims.q_cols()), (2, dims.kv_cols()), (3, dims.kv_cols())]
                .map(|(seed, cols)| noise(seed, t * cols));
            let (mut want, mut want_lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
            // A scale of one makes the softmax sharp enough to matter.
            reference::forward(&mut want, &mut want_lse, [&q, &k, &v], &starts, dims, 1.0);
            let mut first: Option<(Tensor, Tensor)> = None;
            for device in devices() {
                let (o, lse) = run(&device, &starts, dims, 1.0);
                assert_close("o", o.as_slice(), &want, F32);
                assert_close("lse", lse.as_slice(), &want_lse, F32);
                let (first_o, first_lse) = first.get_or_insert_with(|| (o.clone(), lse.clone()));
                assert_same_bits("o", o.as_slice(), first_o.as_slice());
                assert_same_bits("lse", lse.as_slice(), first_lse.as_slice());
            }
        }
    }

    #[test]
    fn a_sequence_does_not_see_what_it_is_packed_with() {
        let dims = Dims { heads: 4, kv_heads: 2, head_dim: 16 };
        let device = Device::cpu(2);
        let rows = |seed, cols| noise_tensor(&device, seed, &[61, cols]);
        let (q, k, v) = (rows(1, dims.q_cols()), rows(2, dims.kv_cols()), rows(3, dims.kv_cols()));
        let attend = |from: usize, to: usize, starts: &[usize]| {
            let [q, k, v] = [&q, &k, &v].map(|x| x.rows_range(from..to));
            let mut o = Tensor::uninit(&device, &[to - from, dims.q_cols()]);
            let mut lse = Tensor::uninit(&device, &[to - from, dims.heads]);
            forward(&mut o, &mut lse, &q, &k, &v, starts, dims, 0.25);
            o
        };
        let packed = attend(0, 61, &[0, 7, 47, 61]);
        for (from, to) in [(0, 7), (7, 47), (47, 61)] {
            let alone = attend(from, to, &[0, to - from]);
            assert_same_bits("o", alone.as_slice(), packed.rows_range(from..to).as_slice());
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let (o, lse) = run(&Device::cpu(1), &[0, 20], dims, 1e4);
        assert!(o.as_slice().iter().chain(lse.as_slice()).all(|x| x.is_finite()));
    }

    #[test]
    fn no_rows_are_no_work() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        assert!(run(&Device::cpu(2), &[0], dims, 1.0).0.is_empty());
        assert!(run(&Device::cpu(2), &[0, 0, 0], dims, 1.0).0.is_empty());
    }

    #[test]
    #[should_panic(expected = "`k` has 96 floats: expected 3 rows of 16")]
    fn a_wrong_length_names_the_buffer() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let device = Device::cpu(1);
        let q = Tensor::zeros(&device, &[3, 32]);
        let (mut o, mut lse) = (q.clone(), Tensor::zeros(&device, &[3, 2]));
        forward(&mut o, &mut lse, &q, &q, &q, &[0, 3], dims, 1.0);
    }

    #[test]
    #[should_panic(expected = "`seq_starts` must rise from 0 to the 3 rows")]
    fn sequences_must_cover_all_rows() {
        let dims = Dims { heads: 1, kv_heads: 1, head_dim: 16 };
        let q = Tensor::zeros(&Device::cpu(1), &[3, 16]);
        let (mut o, mut lse) = (q.clone(), Tensor::zeros(q.device(), &[3, 1]));
        forward(&mut o, &mut lse, &q, &q, &q, &[0, 2], dims, 1.0);
    }
}
