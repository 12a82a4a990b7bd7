//! Quantization and product as scalar loops.

use super::TILE;
use crate::ops::Real;

/// Greatest e4m3 number.
pub const E4M3_MAX: f32 = 448.0;

/// A number with a sign, four bits of exponent and three of mantissa (OCP FP8 E4M3): rounded to nearest, ties to even,
/// to 448 at most. It has no infinities; a NaN is `0x7f`.
pub fn round_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let size = x.abs();
    if size.is_nan() {
        return 0x7f;
    }
    // Neighbours are 2^-3 of the power of two below apart, and 2^-9 from 2^-6 down.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).clamp(-6, 8);
    let apart = 2f32.powi(exponent - 3);
    let rounded = (size / apart).round_ties_even() * apart;
    let size = rounded.min(E4M3_MAX);
    sign | if size < 2f32.powi(-6) {
        (size * 512.0) as u8
    } else {
        ((size.to_bits() >> 20) - (120 << 3)) as u8
    }
}

/// The value of an e4m3 number.
pub fn wide_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match byte & 0x7f {
        0x7f => f32::NAN,
        0..8 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// The scale of a tile.
pub fn scale(tile: impl IntoIterator<Item = f32>) -> f32 {
    let greatest = tile.into_iter().fold(0.0, |greatest: f32, x| greatest.max(x.abs()));
    (greatest / E4M3_MAX).max(f32::MIN_POSITIVE)
}

/// The quantum of a number in a tile with this scale.
pub fn quantum(x: f32, scale: f32) -> u8 {
    round_e4m3(x * (1.0 / scale))
}

/// A factor `(rows, depth)`: quanta and the scale of each.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// e4m3 numbers.
    pub quanta: Vec<u8>,
    /// As many.
    pub scales: Vec<f32>,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub depth: usize,
}

impl Quantized {
    /// Of `x (rows, depth)` with tiles of so many rows and [`TILE`] columns.
    pub fn new(x: &[f32], [rows, depth]: [usize; 2], tile_rows: usize) -> Quantized {
        let mut scales = vec![0.0; x.len()];
        let at = |row: usize, col: usize| row * depth + col;
        for (first_row, first_col) in (0..rows)
            .step_by(tile_rows)
            .flat_map(|row| (0..depth).step_by(TILE).map(move |col| (row, col)))
        {
            let (end_row, end_col) =
                ((first_row + tile_rows).min(rows), (first_col + TILE).min(depth));
            let places = || {
                (first_row..end_row)
                    .flat_map(move |row| (first_col..end_col).map(move |col| at(row, col)))
            };
            let scale = scale(places().map(|i| x[i]));
            places().for_each(|i| scales[i] = scale);
        }
        let quanta = x.iter().zip(&scales).map(|(x, scale)| quantum(*x, *scale)).collect();
        Quantized { quanta, scales, rows, depth }
    }

    /// The transpose: for blocks of weights, whose tiles have as many rows as columns.
    pub fn transposed(&self) -> Quantized {
        let rows = self.rows;
        let places = || (0..self.depth).flat_map(|col| (0..rows).map(move |row| (row, col)));
        let place = |(row, col)| row * self.depth + col;
        Quantized {
            quanta: places().map(|at| self.quanta[place(at)]).collect(),
            scales: places().map(|at| self.scales[place(at)]).collect(),
            rows: self.depth,
            depth: rows,
        }
    }
}

/// `c (rows, cols) += a (rows, depth)·b (cols, depth)ᵀ`.
pub fn product<R: Real>(c: &mut [R], a: &Quantized, b: &Quantized) {
    let (depth, cols) = (a.depth, b.rows);
    let of_byte: [R; 256] = std::array::from_fn(|byte| R::of(f64::from(wide_e4m3(byte as u8))));
    let value = |of: &Quantized, i: usize| of_byte[usize::from(of.quanta[i])];
    for (i, c) in c.iter_mut().enumerate() {
        let (row, col) = (i / cols * depth, i % cols * depth);
        for tile in (0..depth).step_by(TILE) {
            let sum = (tile..(tile + TILE).min(depth))
                .fold(R::of(0.0), |sum, k| value(a, row + k).mul_add(value(b, col + k), sum));
            let scale = |of: &Quantized, i: usize| R::of(f64::from(of.scales[i]));
            *c = sum.mul_add(scale(a, row + tile) * scale(b, col + tile), *c);
        }
    }
}
