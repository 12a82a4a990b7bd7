//! Attention over packed segments.

use super::kernel::Keys;
use super::tiles::{self, Span};
use super::{Dims, Layout, check_len, cuda};
use crate::Tensor;
use crate::tensor::{Values, kind_of};

/// Attention within each sequence of `layout`: `o` `(T, H·D)`, and `lse` `(T, H)` for the backward pass. On a processor
/// all are `f32`; on a CUDA device `q`, `k`, `v` and `o` are of one dtype.
pub fn forward(
    o: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layout: &Layout,
    dims: Dims,
    scale: f32,
) {
    dims.check();
    let rows = q.rows();
    layout.check(rows);
    for (name, buffer, cols) in [
        ("q", q, dims.q_cols()),
        ("k", k, dims.kv_cols()),
        ("v", v, dims.kv_cols()),
        ("o", o, dims.q_cols()),
        ("lse", lse, dims.heads),
    ] {
        check_len(name, buffer.len(), rows, cols);
    }
    if let Some(gpu) = q.gpu() {
        return gpu.run(|cx| {
            let packed = gpu.layout(cx, layout, dims, kind_of(q.dtype()))?;
            let (o, lse, qkv) =
                (&mut o.view_mut(), &mut lse.view_mut(), [q, k, v].map(Tensor::view));
            cuda::forward(cx, o, lse, qkv, &packed, scale)
        });
    }
    let (k_pages, v_pages) = (layout.pages_of_columns(k, dims), layout.pages_of_rows(v, dims));
    let keys = |task: &tiles::Task| {
        let head_at = task.kv_head * dims.page_head_len();
        Keys {
            k: Values::F32(&k_pages.as_slice()[head_at..]),
            v: Values::F32(&v_pages.as_slice()[head_at..]),
            ids: layout.page_ids(task.seq),
            page_stride: dims.page_len(),
        }
    };
    let spans = layout.segments().iter().enumerate().map(|(seq, s)| Span {
        seq,
        row: s.row,
        row_count: s.row_count,
        position: s.position,
    });
    let tasks = tiles::all_tiles(spans, dims, scale);
    tiles::forward(o, Some(lse), q, keys, &tasks, dims);
}

#[cfg(test)]
mod tests {
    use super::super::check::{mixed_layout, sequence, take_rows, tree};
    use super::super::reference;
    use super::*;
    use crate::Device;
    use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise, noise_tensor};

    /// `o` and `lse` of noise.
    fn run(device: &Device, layout: &Layout, dims: Dims, scale: f32) -> (Tensor, Tensor) {
        let t = layout.row_count();
        let q = noise_tensor(device, 1, &[t, dims.q_cols()]);
        let k = noise_tensor(device, 2, &[t, dims.kv_cols()]);
        let v = noise_tensor(device, 3, &[t, dims.kv_cols()]);
        let mut o = Tensor::uninit(device, &[t, dims.q_cols()]);
        let mut lse = Tensor::uninit(device, &[t, dims.heads]);
        forward(&mut o, &mut lse, &q, &k, &v, layout, dims, scale);
        (o, lse)
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 32), (7, 1, 16), (1, 1, 64)] {
            let dims = Dims { heads, kv_heads, head_dim };
            let layout = mixed_layout();
            let t = layout.row_count();
            let [q, k, v] = [(1, dims.q_cols()), (2, dims.kv_cols()), (3, dims.kv_cols())]
                .map(|(seed, cols)| noise(seed, t * cols));
            let (mut want, mut want_lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
            // A scale of one makes the softmax sharp enough to matter.
            reference::forward(&mut want, &mut want_lse, [&q, &k, &v], &layout, dims, 1.0);
            let mut first: Option<(Tensor, Tensor)> = None;
            for device in devices() {
                let (o, lse) = run(&device, &layout, dims, 1.0);
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
        let attend = |from: usize, to: usize, layout: &Layout| {
            let [q, k, v] = [&q, &k, &v].map(|x| x.rows_range(from..to));
            let mut o = Tensor::uninit(&device, &[to - from, dims.q_cols()]);
            let mut lse = Tensor::uninit(&device, &[to - from, dims.heads]);
            forward(&mut o, &mut lse, &q, &k, &v, layout, dims, 0.25);
            o
        };
        let packed = attend(0, 61, &Layout::sequences([7, 40, 14]));
        for (from, to) in [(0, 7), (7, 47), (47, 61)] {
            let alone = attend(from, to, &Layout::sequences([to - from]));
            assert_same_bits("o", alone.as_slice(), packed.rows_range(from..to).as_slice());
        }
    }

    #[test]
    fn shared_rows_yield_the_bits_of_rows_of_their_own() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 32), (9, 3, 64)] {
            let dims = Dims { heads, kv_heads, head_dim };
            for layout in [mixed_layout(), tree(5), tree(16), tree(37)] {
                let mut first: Option<Tensor> = None;
                for device in devices() {
                    let rows =
                        |seed, cols| noise_tensor(&device, seed, &[layout.row_count(), cols]);
                    let qkv =
                        [rows(1, dims.q_cols()), rows(2, dims.kv_cols()), rows(3, dims.kv_cols())];
                    let attend = |[q, k, v]: [&Tensor; 3], layout: &Layout| {
                        let mut o = Tensor::uninit(&device, q.shape());
                        let mut lse = Tensor::uninit(&device, &[q.rows(), dims.heads]);
                        forward(&mut o, &mut lse, q, k, v, layout, dims, 0.5);
                        [o, lse]
                    };
                    let shared = attend(qkv.each_ref(), &layout);
                    for (i, segment) in layout.segments().iter().enumerate() {
                        let rows = sequence(&layout, i);
                        let own = qkv.each_ref().map(|x| take_rows(x, &rows));
                        let alone = attend(own.each_ref(), &Layout::sequences([rows.len()]));
                        for (shared, alone) in shared.iter().zip(alone) {
                            let shared =
                                shared.rows_range(segment.row..segment.row + segment.row_count);
                            let alone = alone.rows_range(segment.position..segment.end());
                            assert_same_bits("o or lse", shared.as_slice(), alone.as_slice());
                        }
                    }
                    let first = first.get_or_insert_with(|| shared[0].clone());
                    assert_same_bits("o", shared[0].as_slice(), first.as_slice());
                }
            }
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let (o, lse) = run(&Device::cpu(1), &Layout::sequences([20]), dims, 1e4);
        assert!(o.as_slice().iter().chain(lse.as_slice()).all(|x| x.is_finite()));
    }

    #[test]
    fn no_rows_are_no_work() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        for layout in [Layout::sequences([]), Layout::new([(0, Some(1)), (0, None)])] {
            assert!(run(&Device::cpu(2), &layout, dims, 1.0).0.is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "`k` has 96 floats: expected 3 rows of 16")]
    fn a_wrong_length_names_the_buffer() {
        let dims = Dims { heads: 2, kv_heads: 1, head_dim: 16 };
        let device = Device::cpu(1);
        let q = Tensor::zeros(&device, &[3, 32]);
        let (mut o, mut lse) = (q.clone(), Tensor::zeros(&device, &[3, 2]));
        forward(&mut o, &mut lse, &q, &q, &q, &Layout::sequences([3]), dims, 1.0);
    }

    #[test]
    #[should_panic(expected = "rows of the layout, and of the batch")]
    fn segments_must_cover_all_rows() {
        let dims = Dims { heads: 1, kv_heads: 1, head_dim: 16 };
        let q = Tensor::zeros(&Device::cpu(1), &[3, 16]);
        let (mut o, mut lse) = (q.clone(), Tensor::zeros(q.device(), &[3, 1]));
        forward(&mut o, &mut lse, &q, &q, &q, &Layout::sequences([2]), dims, 1.0);
    }
}
