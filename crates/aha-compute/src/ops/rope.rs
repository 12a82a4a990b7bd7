//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), pairing column `i` of a head with column
//! `i + D/2` as transformers does.
//!
//! | buffer      | shape    | written by                      |
//! |-------------|----------|---------------------------------|
//! | `x`         | (T, H·D) | caller                          |
//! | `positions` | (T)      | caller; below the table's size  |
//! | `y`         | (T, H·D) | forward `=`                     |
//! | `dx`        | (T, H·D) | backward `=`                    |
//!
//! With `c`, `s` the cosine and sine of `position · inv_freq_i`, both times the table's scale:
//! `y_i = x_i c - x_{i+D/2} s` and `y_{i+D/2} = x_{i+D/2} c + x_i s`; backward rotates by `-s`. `x` and `y` may be
//! bf16: what is between is `f32`.

pub mod cuda;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::cuda::Context;
use crate::simd::{LANES, simd_fn};
use crate::staging::Part;
use crate::{Device, Tensor};

/// Rows that one call of a kernel takes.
const BLOCK_ROWS: usize = 64;
/// Positions that are computed together, when one of them is first used.
const BLOCK_POSITIONS: usize = 2048;

/// Cosines and sines of positions in a device's memory.
///
/// A model may promise a million positions, and a hostile file any number: what is never used is never
/// computed. Finding a row costs one load of a flag.
#[derive(Debug)]
pub struct Table {
    device: Device,
    inv_freq: Vec<f32>,
    scale: f32,
    positions_max: usize,
    /// Rows of `D` floats: the cosines of a position, then its sines.
    blocks: Vec<OnceLock<Tensor>>,
    /// Of the first positions, on a CUDA device that needs them; the last has the most. Work of other streams may still
    /// read the others.
    on_gpu: Mutex<Vec<Arc<cuda::Table>>>,
}

impl Table {
    /// For heads of twice as many columns as there are inverse frequencies, and positions below
    /// `positions_max`. Angles are products in `f32`, as transformers computes them.
    pub fn new(device: &Device, inv_freq: &[f32], scale: f32, positions_max: usize) -> Table {
        assert!(!inv_freq.is_empty(), "`inv_freq` is empty: a head has at least one pair");
        let blocks = (0..positions_max.div_ceil(BLOCK_POSITIONS)).map(|_| OnceLock::new());
        Table {
            device: device.host(),
            inv_freq: inv_freq.to_vec(),
            scale,
            positions_max,
            blocks: blocks.collect(),
            on_gpu: Mutex::default(),
        }
    }

    /// The same table on another device.
    pub fn replica_on(&self, device: &Device) -> Table {
        Table::new(device, &self.inv_freq, self.scale, self.positions_max)
    }

    /// Width of a head: `D`.
    pub fn head_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Cosines and sines of a position.
    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let (block_idx, row) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
        let block = self.blocks[block_idx].get_or_init(|| self.block(block_idx));
        block.row(row).split_at(self.inv_freq.len())
    }

    /// The table on a CUDA device, with all positions below `end`. Whichever stream asks for it, it is there.
    fn on_gpu(&self, cx: &Context, end: usize) -> Result<Arc<cuda::Table>, crate::cuda::Error> {
        let mut known = self.on_gpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = known.last().filter(|table| table.position_count() >= end) {
            return Ok(Arc::clone(table));
        }
        let count = end.next_power_of_two().max(BLOCK_POSITIONS).min(self.positions_max);
        let table = Arc::new(cuda::Table::new(cx, self, count)?);
        cx.synchronize()?;
        known.push(Arc::clone(&table));
        Ok(table)
    }

    /// Where the table is on a CUDA device, with all positions below `end`. It moves when it grows.
    pub fn address(&self, device: &Device, end: usize) -> u64 {
        let table = device.gpu().and_then(|gpu| gpu.ask(|cx| self.on_gpu(cx, end)));
        table.map_or(0, |table| table.address())
    }

    /// A position's row is a function of the position alone, whichever thread comes first.
    fn block(&self, block_idx: usize) -> Tensor {
        let start = block_idx * BLOCK_POSITIONS;
        let end = (start + BLOCK_POSITIONS).min(self.positions_max);
        let mut rows = Tensor::uninit(&self.device, &[end - start, self.head_dim()]);
        let each = rows.as_mut_slice().chunks_exact_mut(self.head_dim());
        for (position, row) in (start..end).zip(each) {
            let (cos, sin) = row.split_at_mut(self.inv_freq.len());
            for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
                let angle = f64::from(position as f32 * inv_freq);
                *cos = angle.cos() as f32 * self.scale;
                *sin = angle.sin() as f32 * self.scale;
            }
        }
        rows
    }
}

/// Rotates every head of every row by its position.
pub fn forward(y: &mut Tensor, x: &Tensor, positions: &[u32], table: &Table) {
    rotate(y, x, positions, None, table, 1.0);
}

/// As [`forward`], where the positions are on the CUDA device of `x` too.
pub(crate) fn forward_at(
    y: &mut Tensor,
    x: &Tensor,
    positions: &[u32],
    on_gpu: &Part,
    table: &Table,
) {
    rotate(y, x, positions, Some(on_gpu), table, 1.0);
}

/// The gradient of `x`: the opposite rotation.
pub fn backward(dx: &mut Tensor, dy: &Tensor, positions: &[u32], table: &Table) {
    rotate(dx, dy, positions, None, table, -1.0);
}

fn rotate(
    y: &mut Tensor,
    x: &Tensor,
    positions: &[u32],
    on_gpu: Option<&Part>,
    table: &Table,
    sign: f32,
) {
    let cols = x.cols();
    assert_eq!(
        x.len(),
        positions.len() * cols,
        "`x` must have a row for each of {} positions",
        positions.len()
    );
    assert_eq!(y.len(), x.len(), "`y` must be as long as `x`");
    assert!(
        cols.is_multiple_of(table.head_dim()),
        "{cols} columns are no heads of {}",
        table.head_dim()
    );
    let positions_max = table.positions_max;
    if let Some(past) = positions.iter().find(|&&p| p as usize >= positions_max) {
        panic!("position {past} of a table with {positions_max}");
    }
    if let Some(gpu) = y.gpu() {
        return gpu.run(|cx| {
            let end = positions.iter().max().map_or(0, |&last| last as usize + 1);
            let table = table.on_gpu(cx, end)?;
            if let Some(positions) = on_gpu {
                return cuda::rotate(
                    cx,
                    &mut y.view_mut(),
                    x.view(),
                    positions.view(),
                    &table,
                    sign,
                );
            }
            let positions = cx.upload(positions)?;
            cuda::rotate(cx, &mut y.view_mut(), x.view(), positions.view(), &table, sign)
        });
    }
    let device = x.device();
    let out = y.sink();
    device.run_blocks(positions.len(), BLOCK_ROWS, |start, end| {
        let at = start * cols..end * cols;
        let rotate_rows = |y: &mut [f32], x: &[f32]| {
            let rows = y.chunks_exact_mut(cols).zip(x.chunks_exact(cols));
            for ((y, x), &p) in rows.zip(&positions[start..end]) {
                let (cos, sin) = table.row(p as usize);
                rotate_row(device.isa(), y, x, cos, sin, sign);
            }
        };
        x.values().with(device, at.clone(), |x| {
            // SAFETY: blocks of rows are disjoint.
            unsafe { out.with(at, |y| rotate_rows(y, x)) };
        });
    });
}

simd_fn! {
    fn rotate_row<S>(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        assert!(y.len() == x.len() && sin.len() == half && x.len().is_multiple_of(2 * half));
        let sign = S::splat(sign);
        for head in (0..x.len()).step_by(2 * half) {
            for i in (0..half).step_by(LANES) {
                let len = (half - i).min(LANES);
                let (c, s) = (S::load_part(cos.as_ptr().add(i), len), S::load_part(sin.as_ptr().add(i), len));
                let s = S::mul(s, sign);
                let (low, high) = (head + i, head + half + i);
                let a = S::load_part(x.as_ptr().add(low), len);
                let b = S::load_part(x.as_ptr().add(high), len);
                S::store_part(y.as_mut_ptr().add(low), S::sub(S::mul(a, c), S::mul(b, s)), len);
                S::store_part(y.as_mut_ptr().add(high), S::fma(b, c, S::mul(a, s)), len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Real;
    use crate::ops::check::{
        F32, assert_close, assert_grad, assert_same_bits, devices, noise, noise_tensor,
    };

    fn inv_freq(half: usize) -> Vec<f32> {
        (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect()
    }

    fn reference<R: Real>(
        x: &[R],
        cols: usize,
        positions: &[u32],
        half: usize,
        scale: f64,
        sign: f64,
    ) -> Vec<R> {
        let inv_freq = inv_freq(half);
        let mut y = x.to_vec();
        for (row, &p) in positions.iter().enumerate() {
            for head in (row * cols..(row + 1) * cols).step_by(2 * half) {
                for i in 0..half {
                    let angle = f64::from(p as f32 * inv_freq[i]);
                    let (c, s) = (R::of(angle.cos() * scale), R::of(angle.sin() * scale * sign));
                    let (a, b) = (x[head + i], x[head + half + i]);
                    y[head + i] = a * c - b * s;
                    y[head + half + i] = b * c + a * s;
                }
            }
        }
        y
    }

    #[test]
    fn the_reference_is_the_slope() {
        let positions = [0, 3, 1];
        let (x, dy) = (noise(1, 3 * 8), noise(2, 3 * 8));
        let dx = reference(&dy, 8, &positions, 2, 1.3, -1.0);
        assert_grad("dx", &dx, &x, |x| {
            reference(x, 8, &positions, 2, 1.3, 1.0).iter().zip(&dy).map(|(y, d)| y * d).sum()
        });
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (half, heads) in [(1usize, 1usize), (8, 3), (21, 2), (32, 4)] {
            let (rows, cols) = (150, heads * 2 * half);
            // In three blocks of the table, which several threads come upon at once.
            let positions: Vec<u32> = (0..rows as u32).map(|i| i * 701 % 5000).collect();
            let (x, dy) = (noise(1, rows * cols), noise(2, rows * cols));
            let want = reference(&x, cols, &positions, half, 1.25, 1.0);
            let want_dx = reference(&dy, cols, &positions, half, 1.25, -1.0);
            let mut first: Option<[Tensor; 2]> = None;
            for device in devices() {
                let table = Table::new(&device, &inv_freq(half), 1.25, 5000);
                let [x, dy] = [1, 2].map(|seed| noise_tensor(&device, seed, &[rows, cols]));
                let [mut y, mut dx] = [0; 2].map(|_| Tensor::uninit(&device, &[rows, cols]));
                forward(&mut y, &x, &positions, &table);
                backward(&mut dx, &dy, &positions, &table);
                assert_close("y", y.as_slice(), &want, F32);
                assert_close("dx", dx.as_slice(), &want_dx, F32);
                let got = [y, dx];
                for (got, first) in got.iter().zip(first.get_or_insert_with(|| got.clone())) {
                    assert_same_bits("devices", got.as_slice(), first.as_slice());
                }
            }
        }
    }

    #[test]
    fn a_row_depends_on_its_position_and_not_on_its_place() {
        let device = Device::cpu(2);
        let table = Table::new(&device, &inv_freq(16), 1.0, 100);
        let x = noise_tensor(&device, 1, &[90, 64]);
        let positions: Vec<u32> = (0..90).collect();
        let mut all = Tensor::uninit(&device, &[90, 64]);
        forward(&mut all, &x, &positions, &table);
        let mut one = Tensor::uninit(&device, &[1, 64]);
        forward(&mut one, &x.rows_range(77..78), &[77], &table);
        assert_same_bits("row", one.as_slice(), all.row(77));
    }

    /// Near position 60,000 a product in `f32` is rounded by up to 2e-3 radians: angles of `f64` products
    /// would be off by far more than the tolerance.
    #[test]
    fn angles_are_rounded_to_f32_as_transformers_rounds_them() {
        let device = Device::cpu(1);
        let table = Table::new(&device, &inv_freq(21), 1.0, 60_001);
        let positions: Vec<u32> = (59_990..=60_000).collect();
        let x = noise_tensor(&device, 1, &[11, 42]);
        let mut y = Tensor::uninit(&device, &[11, 42]);
        forward(&mut y, &x, &positions, &table);
        let want = reference(&noise(1, 11 * 42), 42, &positions, 21, 1.0, 1.0);
        assert_close("y", y.as_slice(), &want, F32);
    }

    #[test]
    fn only_what_is_used_is_computed() {
        let device = Device::cpu(1);
        let table = Table::new(&device, &inv_freq(32), 1.0, 1 << 27);
        let built = || -> Vec<usize> {
            (0..table.blocks.len()).filter(|&i| table.blocks[i].get().is_some()).collect()
        };
        assert_eq!(built(), []);
        let [x, mut y] = [0; 2].map(|_| Tensor::zeros(&device, &[3, 64]));
        let last = (1 << 27) - 1;
        forward(&mut y, &x, &[0, 2047, last], &table);
        assert_eq!(built(), [0, table.blocks.len() - 1]);
        forward(&mut y, &x, &[5, 2048, 4095], &table);
        assert_eq!(built(), [0, 1, table.blocks.len() - 1]);
    }

    /// Goal: a row's bits are those of its position alone. Method: the formula for each position by
    /// itself, against tables that meet the positions around the blocks' edges in two orders.
    #[test]
    fn a_row_has_the_same_bits_in_whatever_order_blocks_are_made() {
        let device = Device::cpu(1);
        let edges = [0, 1, 2047, 2048, 2049, 4095, 4096, 5999];
        let orders = [edges.to_vec(), edges.iter().rev().copied().collect()];
        for order in orders {
            let table = Table::new(&device, &inv_freq(16), 1.25, 6000);
            for position in order {
                let angles = inv_freq(16).into_iter().map(|f| f64::from(position as f32 * f));
                let (cos, sin): (Vec<f32>, Vec<f32>) =
                    angles.map(|a| (a.cos() as f32 * 1.25, a.sin() as f32 * 1.25)).unzip();
                let row = table.row(position);
                assert_same_bits("cos", row.0, &cos);
                assert_same_bits("sin", row.1, &sin);
            }
        }
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let [x, mut y] = [0; 2].map(|_| Tensor::zeros(&device, &[0, 42]));
            let table = Table::new(&device, &inv_freq(21), 1.0, 4);
            forward(&mut y, &x, &[], &table);
            backward(&mut y, &x, &[], &table);
        }
    }

    fn run(y_len: usize, positions: &[u32]) {
        let device = Device::cpu(1);
        let (x, mut y) = (Tensor::zeros(&device, &[2, 4]), Tensor::zeros(&device, &[y_len]));
        forward(&mut y, &x, positions, &Table::new(&device, &inv_freq(2), 1.0, 3));
    }

    #[test]
    #[should_panic(expected = "`y` must be as long as `x`")]
    fn a_wrong_length_of_y_panics() {
        run(7, &[0, 1]);
    }

    #[test]
    #[should_panic(expected = "`x` must have a row for each of 3 positions")]
    fn a_wrong_count_of_positions_panics() {
        run(8, &[0, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "position 3 of a table with 3")]
    fn a_position_past_the_table_panics() {
        run(8, &[0, 3]);
    }
}
