//! Rows of a table, and the sums of their gradients.
//!
//! | buffer         | shape  | written by                            |
//! |----------------|--------|---------------------------------------|
//! | `ids`          | (T)    | caller; below V                       |
//! | `table`        | (V, C) | caller                                |
//! | `y`            | (T, C) | forward `=`: `y_t = table[ids_t]`     |
//! | `dtable`       | (V, C) | backward `+=`: `dtable[ids_t] += dy_t`|
//!
//! The gradient of a row of the table is one chain of additions over its tokens in order.

pub mod cuda;

use crate::Tensor;
use crate::staging::Part;
use crate::tensor::Shards;

/// Elements of `dy` below which the backward pass stays on the caller's thread.
const ALONE_LEN: usize = 1 << 14;

/// Looks up the rows of `ids`.
pub fn forward(y: &mut Tensor, table: &Tensor, ids: &[u32]) {
    let cols = table.cols();
    assert_eq!(y.len(), ids.len() * cols, "`y` must have a row for each of {} ids", ids.len());
    if let Some(gpu) = y.gpu() {
        return gpu.run(|cx| {
            let ids = cuda::Ids::new(cx, ids, table.rows())?;
            cuda::gather(cx, &mut y.view_mut(), table.view(), &ids)
        });
    }
    for (row, &id) in y.as_mut_slice().chunks_exact_mut(cols).zip(ids) {
        row.copy_from_slice(table.row(id as usize));
    }
}

/// As [`forward`], where the ids are on the table's CUDA device too.
pub(crate) fn forward_at(y: &mut Tensor, table: &Tensor, ids: &[u32], on_gpu: &Part) {
    let cols = table.cols();
    assert_eq!(y.len(), ids.len() * cols, "`y` must have a row for each of {} ids", ids.len());
    if let Some(past) = ids.iter().find(|&&id| id as usize >= table.rows()) {
        panic!("id {past} of a table with {} rows", table.rows());
    }
    if let Some(gpu) = y.gpu() {
        gpu.run(|cx| cuda::gather_at(cx, &mut y.view_mut(), table.view(), on_gpu.view(), cols));
    }
}

/// Adds each row of `dy` to the row that it was looked up from.
pub fn backward(dtable: &mut Tensor, dy: &Tensor, ids: &[u32]) {
    let cols = dtable.cols();
    assert_eq!(dy.len(), ids.len() * cols, "`dy` must have a row for each of {} ids", ids.len());
    if let Some(gpu) = dy.gpu() {
        return gpu.run(|cx| {
            let ids = cuda::Ids::new(cx, ids, dtable.rows())?;
            cuda::scatter_add(cx, &mut dtable.view_mut(), dy.view(), &ids)
        });
    }
    let device = dy.device();
    let parts = if dy.len() < ALONE_LEN { 1 } else { device.threads() };
    let row_count = dtable.rows();
    let out = Shards::new(dtable.as_mut_slice());
    device.run_blocks(cols, cols.div_ceil(parts), |start, end| {
        for (&id, dy) in ids.iter().zip(dy.as_slice().chunks_exact(cols)) {
            assert!((id as usize) < row_count, "id {id} of a table with {row_count} rows");
            let at = id as usize * cols;
            // SAFETY: calls have columns of their own.
            let sums = unsafe { out.slice(at + start, at + end) };
            for (sum, x) in sums.iter_mut().zip(&dy[start..end]) {
                *sum += x;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Real;
    use crate::ops::check::{
        F32, assert_close, assert_grad, assert_same_bits, devices, noise, noise_tensor,
    };

    fn reference<R: Real>(table: &[R], cols: usize, ids: &[u32]) -> Vec<R> {
        ids.iter().flat_map(|&id| table[id as usize * cols..][..cols].to_vec()).collect()
    }

    fn reference_backward<R: Real>(dtable: &mut [R], dy: &[R], cols: usize, ids: &[u32]) {
        for (dy, &id) in dy.chunks(cols).zip(ids) {
            for (sum, x) in dtable[id as usize * cols..].iter_mut().zip(dy) {
                *sum += *x;
            }
        }
    }

    #[test]
    fn the_reference_is_the_slope() {
        let (table, dy, ids) = (noise(1, 15), noise(2, 12), [4, 0, 4, 2]);
        let mut dtable = vec![0.0; 15];
        reference_backward(&mut dtable, &dy, 3, &ids);
        assert_grad("dtable", &dtable, &table, |table| {
            reference(table, 3, &ids).iter().zip(&dy).map(|(y, d)| y * d).sum()
        });
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (count, cols) in [(1usize, 1usize), (40, 37), (900, 48)] {
            let ids: Vec<u32> = (0..count as u32).map(|i| i * i % 11).collect();
            let (table, dy) = (noise(1, 11 * cols), noise(2, count * cols));
            let mut want = noise(3, 11 * cols);
            reference_backward(&mut want, &dy, cols, &ids);
            let mut first: Option<Tensor> = None;
            for device in devices() {
                let mut y = Tensor::uninit(&device, &[count, cols]);
                forward(&mut y, &noise_tensor(&device, 1, &[11, cols]), &ids);
                assert_close("y", y.as_slice(), &reference(&table, cols, &ids), F32);
                let mut dtable = noise_tensor(&device, 3, &[11, cols]);
                backward(&mut dtable, &noise_tensor(&device, 2, &[count, cols]), &ids);
                assert_close("dtable", dtable.as_slice(), &want, F32);
                let first = first.get_or_insert_with(|| dtable.clone());
                assert_same_bits("dtable", dtable.as_slice(), first.as_slice());
            }
        }
    }

    #[test]
    fn micro_batches_in_order_give_the_bits_of_one_batch() {
        let device = crate::Device::cpu(2);
        let (dy, ids) = (noise_tensor(&device, 1, &[6, 5]), [1u32, 0, 1, 1, 0, 1]);
        let run = |cuts: &[usize]| {
            let mut dtable = Tensor::zeros(&device, &[2, 5]);
            for cut in cuts.windows(2) {
                backward(&mut dtable, &dy.rows_range(cut[0]..cut[1]), &ids[cut[0]..cut[1]]);
            }
            dtable
        };
        assert_same_bits("dtable", run(&[0, 6]).as_slice(), run(&[0, 1, 4, 6]).as_slice());
    }

    #[test]
    #[should_panic(expected = "id 7 of a table with 2 rows")]
    fn an_id_past_the_table_is_a_bug() {
        let device = crate::Device::cpu(1);
        let dy = Tensor::zeros(&device, &[1, 5]);
        backward(&mut Tensor::zeros(&device, &[2, 5]), &dy, &[7]);
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let (table, mut y) =
                (noise_tensor(&device, 1, &[3, 37]), Tensor::zeros(&device, &[0, 37]));
            forward(&mut y, &table, &[]);
            let mut dtable = table.clone();
            backward(&mut dtable, &y, &[]);
            assert_same_bits("dtable", dtable.as_slice(), table.as_slice());
        }
    }

    #[test]
    #[should_panic(expected = "`dy` must have a row for each of 2 ids")]
    fn a_wrong_length_of_dy_panics() {
        let device = crate::Device::cpu(1);
        let dy = Tensor::zeros(&device, &[1, 5]);
        backward(&mut Tensor::zeros(&device, &[2, 5]), &dy, &[0, 1]);
    }
}
