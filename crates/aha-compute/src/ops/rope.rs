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
//! `y_i = x_i c - x_{i+D/2} s` and `y_{i+D/2} = x_{i+D/2} c + x_i s`; backward rotates by `-s`.

use crate::Tensor;
use crate::simd::{LANES, simd_fn};
use crate::tensor::Shards;

/// Rows that one call of a kernel takes.
const BLOCK_ROWS: usize = 64;

/// Cosines and sines of every position.
#[derive(Debug)]
pub struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Table {
    /// For heads of twice as many columns as there are inverse frequencies, and positions below
    /// `positions_max`. Angles are products in `f32`, as transformers computes them.
    pub fn new(inv_freq: &[f32], scale: f32, positions_max: usize) -> Table {
        let angles =
            (0..positions_max).flat_map(|p| inv_freq.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32 * scale, a.sin() as f32 * scale)).unzip();
        Table { cos, sin, half: inv_freq.len() }
    }

    /// Width of a head: `D`.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }
}

/// Rotates every head of every row by its position.
pub fn forward(y: &mut Tensor, x: &Tensor, positions: &[u32], table: &Table) {
    rotate(y, x, positions, table, 1.0);
}

/// The gradient of `x`: the opposite rotation.
pub fn backward(dx: &mut Tensor, dy: &Tensor, positions: &[u32], table: &Table) {
    rotate(dx, dy, positions, table, -1.0);
}

fn rotate(y: &mut Tensor, x: &Tensor, positions: &[u32], table: &Table, sign: f32) {
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
    let positions_max = table.cos.len() / table.half;
    if let Some(past) = positions.iter().find(|&&p| p as usize >= positions_max) {
        panic!("position {past} of a table with {positions_max}");
    }
    let device = x.device();
    let out = Shards::new(y.as_mut_slice());
    device.run_blocks(positions.len(), BLOCK_ROWS, |start, end| {
        // SAFETY: blocks of rows are disjoint.
        let y = unsafe { out.slice(start * cols, end * cols) };
        let x = &x.as_slice()[start * cols..end * cols];
        for ((y, x), &p) in
            y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(&positions[start..end])
        {
            let at = p as usize * table.half..(p as usize + 1) * table.half;
            rotate_row(device.isa(), y, x, &table.cos[at.clone()], &table.sin[at], sign);
        }
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
            let positions: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 200).collect();
            let table = Table::new(&inv_freq(half), 1.25, 200);
            let (x, dy) = (noise(1, rows * cols), noise(2, rows * cols));
            let want = reference(&x, cols, &positions, half, 1.25, 1.0);
            let want_dx = reference(&dy, cols, &positions, half, 1.25, -1.0);
            let mut first: Option<[Tensor; 2]> = None;
            for device in devices() {
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
        let device = crate::Device::cpu(2);
        let table = Table::new(&inv_freq(16), 1.0, 100);
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
        let device = crate::Device::cpu(1);
        let table = Table::new(&inv_freq(21), 1.0, 60_001);
        let positions: Vec<u32> = (59_990..=60_000).collect();
        let x = noise_tensor(&device, 1, &[11, 42]);
        let mut y = Tensor::uninit(&device, &[11, 42]);
        forward(&mut y, &x, &positions, &table);
        let want = reference(&noise(1, 11 * 42), 42, &positions, 21, 1.0, 1.0);
        assert_close("y", y.as_slice(), &want, F32);
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let [x, mut y] = [0; 2].map(|_| Tensor::zeros(&device, &[0, 42]));
            forward(&mut y, &x, &[], &Table::new(&inv_freq(21), 1.0, 4));
            backward(&mut y, &x, &[], &Table::new(&inv_freq(21), 1.0, 4));
        }
    }

    fn run(y_len: usize, positions: &[u32]) {
        let device = crate::Device::cpu(1);
        let (x, mut y) = (Tensor::zeros(&device, &[2, 4]), Tensor::zeros(&device, &[y_len]));
        forward(&mut y, &x, positions, &Table::new(&inv_freq(2), 1.0, 3));
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
