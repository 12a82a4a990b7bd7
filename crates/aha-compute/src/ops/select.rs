//! Some rows of a batch, and the sums of their gradients.
//!
//! | buffer | shape  | written by                                    |
//! |--------|--------|-----------------------------------------------|
//! | `rows` | (N)    | caller; below T                               |
//! | `x`    | (T, C) | caller                                        |
//! | `y`    | (N, C) | forward `=`: `y_n = x[rows_n]`                |
//! | `dx`   | (T, C) | backward `+=`: `dx[rows_n] += dy_n`, in order |
//!
//! `x` and `y` are of one kind, gradients are `f32`.

use crate::Tensor;
use crate::ops::embedding::cuda;
use crate::tensor::Values;

/// The given rows, one after the other.
pub fn forward(y: &mut Tensor, x: &Tensor, rows: &[usize]) {
    let cols = x.cols();
    assert_eq!(y.len(), rows.len() * cols, "`y` must have a row for each of {}", rows.len());
    if let Some(gpu) = x.gpu() {
        return gpu.run(|cx| {
            let ids = cuda::Ids::new(cx, &ids_of(rows), x.rows())?;
            cuda::gather(cx, &mut y.view_mut(), x.view(), &ids)
        });
    }
    match x.values() {
        Values::F32(from) => copy_rows(y.as_mut_slice(), from, cols, rows),
        Values::Bf16(from) => copy_rows(y.as_mut_bf16(), from, cols, rows),
    }
}

/// Adds the gradient of each row to that of the row that it was. Those of one that was given more than once are added
/// in order.
pub fn backward(dx: &mut Tensor, dy: &Tensor, rows: &[usize]) {
    let cols = dx.cols();
    assert_eq!(dy.len(), rows.len() * cols, "`dy` must have a row for each of {}", rows.len());
    if let Some(gpu) = dx.gpu() {
        return gpu.run(|cx| {
            let ids = cuda::Ids::new(cx, &ids_of(rows), dx.rows())?;
            cuda::scatter_add(cx, &mut dx.view_mut(), dy.view(), &ids)
        });
    }
    for (from, &to) in dy.as_slice().chunks_exact(cols).zip(rows) {
        dx.rows_mut(to..to + 1).iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
    }
}

fn ids_of(rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|&row| row as u32).collect()
}

/// The given rows of `from`, one after the other.
fn copy_rows<T: Copy>(to: &mut [T], from: &[T], cols: usize, rows: &[usize]) {
    for (to, &row) in to.chunks_exact_mut(cols).zip(rows) {
        to.copy_from_slice(&from[row * cols..(row + 1) * cols]);
    }
}
