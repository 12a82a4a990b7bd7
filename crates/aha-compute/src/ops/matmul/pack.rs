//! Operands in the order in which the microkernel reads them.
//!
//! A left operand becomes panels of [`Tiles`] rows, each `(depth, rows)`; a right operand panels of
//! [`Tile::cols`] columns, each `(depth, cols)`. Panels of words have two steps of the contraction in one word of
//! bf16 numbers, the first in its upper half, and zero behind an odd depth. Panels of bytes are `(depth, cols)` too,
//! with zeros up to a multiple of four steps; see [`quantized_panel`].

use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Portable, Simd, simd_fn};
use crate::tensor::Values;
use crate::{Device, Tensor};

/// Floats of a cache line.
const LINE_LEN: usize = 16;

/// The largest tile of an instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Tile {
    pub(super) fn of(isa: Isa) -> Tile {
        fn of<S: Simd>() -> Tile {
            Tile { rows: S::TILE_ROWS, cols: S::TILE_VECTORS * LANES }
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => of::<Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => of::<Avx2>(),
            _ => of::<Portable>(),
        }
    }
}

/// Rows split in as few tiles as they need, no two of which differ by more than a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    count: usize,
    /// Rows of all but the first `longer_count` tiles, which have one more.
    len: usize,
    longer_count: usize,
}

impl Tiles {
    #[inline(always)]
    pub(super) fn new(rows: usize, rows_max: usize) -> Tiles {
        let count = rows.div_ceil(rows_max).max(1);
        Tiles { count, len: rows / count, longer_count: rows % count }
    }

    /// First row, rows of a tile and tiles: of the longer tiles, then of the others.
    #[inline(always)]
    pub(super) fn groups(self) -> [(usize, usize, usize); 2] {
        let Tiles { count, len, longer_count } = self;
        [(0, len + 1, longer_count), (longer_count * (len + 1), len, count - longer_count)]
    }
}

/// A buffer of a device that starts at a cache line.
pub(super) struct Aligned {
    buffer: Tensor,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn uninit(device: &Device, len: usize) -> Aligned {
        let buffer = Tensor::uninit(device, &[len + LINE_LEN]);
        let start = buffer.as_slice().as_ptr().align_offset(LINE_LEN * size_of::<f32>());
        assert!(start < LINE_LEN, "floats are aligned to floats");
        Aligned { buffer, start, len }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        &self.buffer.as_slice()[self.start..self.start + self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[self.start..self.start + self.len]
    }
}

/// Calls a function with a constant number of rows.
macro_rules! with_rows {
    ($rows:expr, $f:ident($($arg:expr),*)) => {
        match $rows {
            1 => $f::<1, _>($($arg),*),
            2 => $f::<2, _>($($arg),*),
            3 => $f::<3, _>($($arg),*),
            4 => $f::<4, _>($($arg),*),
            5 => $f::<5, _>($($arg),*),
            6 => $f::<6, _>($($arg),*),
            7 => $f::<7, _>($($arg),*),
            8 => $f::<8, _>($($arg),*),
            9 => $f::<9, _>($($arg),*),
            10 => $f::<10, _>($($arg),*),
            11 => $f::<11, _>($($arg),*),
            12 => $f::<12, _>($($arg),*),
            16 => $f::<16, _>($($arg),*),
            32 => $f::<32, _>($($arg),*),
            rows => unreachable!("{rows} rows of a panel"),
        }
    };
}

/// How a pack function lays steps of the contraction down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// One to a float.
    Floats,
    /// One to a float, with a step of zeros behind an odd depth.
    EvenFloats,
    /// Two to a word.
    Words,
    /// One to a byte, so four to a float; for a right operand that was packed beforehand only.
    Bytes,
}

impl Steps {
    /// Rows of a panel for so many steps.
    pub(super) fn rows(self, depth: usize) -> usize {
        match self {
            Steps::Floats => depth,
            Steps::EvenFloats => depth.next_multiple_of(2),
            Steps::Words => depth.div_ceil(2),
            Steps::Bytes => depth.div_ceil(4),
        }
    }
}

/// A stored number.
pub(super) trait Element: Copy {
    /// As it is computed with.
    fn wide(self) -> f32;
    /// As bf16 bits.
    fn half(self) -> u32;
}

impl Element for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn half(self) -> u32 {
        bf16::from_f32(self).half()
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn half(self) -> u32 {
        u32::from(self.to_bits())
    }
}

/// Two steps in one word.
#[inline(always)]
fn word<T: Element>(first: T, second: Option<T>) -> f32 {
    f32::from_bits(first.half() << 16 | second.map_or(0, T::half))
}

/// One panel of the columns that are the rows of `from (…, depth)`, bf16 numbers as words; zeros where it has no
/// more rows.
pub(super) fn panel_of_rows(to: &mut [f32], from: Values<'_>, depth: usize, cols: usize) {
    match from {
        Values::F32(from) => with_rows!(cols, transpose(to, from, depth, Steps::Floats)),
        Values::Bf16(from) => with_rows!(cols, transpose(to, from, depth, Steps::Words)),
    }
}

simd_fn! {
    /// Rows of `depth` elements, `stride` apart, one below the other as rows of `steps`.
    pub(super) fn left_of_rows<S>(
        to: &mut [f32],
        from: Values<'_>,
        stride: usize,
        depth: usize,
        row_count: usize,
        steps: Steps,
    ) {
        let width = steps.rows(depth);
        for (row, to) in to.chunks_exact_mut(width.max(1)).take(row_count).enumerate() {
            let part = row * stride..row * stride + depth;
            match (from, steps) {
                (Values::F32(from), _) => to[..depth].copy_from_slice(&from[part]),
                (Values::Bf16(from), Steps::Words) => {
                    let (pairs, rest) = from[part].as_chunks();
                    for (to, &[first, second]) in to.iter_mut().zip(pairs) {
                        *to = word(first, Some(second));
                    }
                    if let [last] = rest {
                        to[depth / 2] = word(*last, None);
                    }
                }
                (Values::Bf16(from), _) => {
                    let from = &from[part];
                    for at in (0..depth).step_by(LANES) {
                        let len = (depth - at).min(LANES);
                        S::store_part(to.as_mut_ptr().add(at), S::load_bf16_part(from.as_ptr().add(at), len), len);
                    }
                    to[depth..].fill(0.0);
                }
            }
        }
    }
}

/// A panel of `R` rows of `depth` elements, the last of which may be missing.
fn transpose<const R: usize, T: Element>(to: &mut [f32], from: &[T], depth: usize, steps: Steps) {
    let (to, rest) = to.as_chunks_mut::<R>();
    assert!(rest.is_empty() && to.len() == steps.rows(depth) && from.len() <= R * depth);
    if from.len() < R * depth {
        for (r, row) in from.chunks_exact(depth).enumerate() {
            set_column(to, r, row, steps);
        }
        let row_count = from.len() / depth;
        to.iter_mut().for_each(|to| to[row_count..].fill(0.0));
        return;
    }
    // SAFETY: `r < R` and `k < depth`, so there are as many.
    let at = |r: usize, k: usize| unsafe { *from.get_unchecked(r * depth + k) };
    if steps == Steps::Words {
        for (p, to) in to[..depth / 2].iter_mut().enumerate() {
            *to = std::array::from_fn(|r| word(at(r, 2 * p), Some(at(r, 2 * p + 1))));
        }
        if depth % 2 == 1 {
            to[depth / 2] = std::array::from_fn(|r| word(at(r, depth - 1), None));
        }
    } else {
        for (k, to) in to.iter_mut().enumerate() {
            *to = std::array::from_fn(|r| at(r, k).wide());
        }
    }
}

/// One row of elements as column `r` of a panel.
fn set_column<const R: usize, T: Element>(to: &mut [[f32; R]], r: usize, row: &[T], steps: Steps) {
    if steps == Steps::Words {
        for (to, two) in to.iter_mut().zip(row.chunks(2)) {
            to[r] = word(two[0], two.get(1).copied());
        }
    } else {
        to.iter_mut().zip(row).for_each(|(to, x)| to[r] = x.wide());
    }
}

simd_fn! {
    /// Panels of as many rows as `tiles` has, from the columns of `from`: `depth` rows that are `stride` apart.
    pub(super) fn left_of_columns<S>(
        to: &mut [f32],
        from: Values<'_>,
        stride: usize,
        depth: usize,
        tiles: Tiles,
        steps: Steps,
    ) {
        let panel_rows = steps.rows(depth);
        for (row, len, count) in tiles.groups() {
            if count > 0 {
                assert!(len <= S::TILE_ROWS, "tiles of another instruction set");
                let columns = row..row + len * count;
                let to = &mut to[columns.start * panel_rows..columns.end * panel_rows];
                match from {
                    Values::F32(x) => with_rows!(len, gather(to, x, stride, depth, columns, steps)),
                    Values::Bf16(x) => with_rows!(len, gather(to, x, stride, depth, columns, steps)),
                }
            }
        }
    }
}

/// Panels `(depth, R)` of neighbouring columns.
///
/// # Safety
/// `to` must have room for the panels of all `columns`.
#[inline(always)]
unsafe fn gather<const R: usize, T: Element>(
    to: &mut [f32],
    from: &[T],
    stride: usize,
    depth: usize,
    columns: Range<usize>,
    steps: Steps,
) {
    let panel_rows = steps.rows(depth);
    let panels = to.as_mut_ptr().cast::<[f32; R]>();
    let set = |panel: usize, i: usize, row: [f32; R]| {
        // SAFETY: the caller's promise; a panel has this many rows.
        unsafe { panels.add(panel * panel_rows + i).write(row) };
    };
    for i in 0..panel_rows {
        let two = steps == Steps::Words;
        let k = if two { 2 * i } else { i };
        if k >= depth {
            (0..columns.len() / R).for_each(|panel| set(panel, i, [0.0; R]));
            continue;
        }
        let (first, _) = from[k * stride..][columns.clone()].as_chunks::<R>();
        if !two {
            for (panel, first) in first.iter().enumerate() {
                set(panel, i, std::array::from_fn(|r| first[r].wide()));
            }
        } else if k + 1 < depth {
            let (second, _) = from[(k + 1) * stride..][columns.clone()].as_chunks::<R>();
            for (panel, (first, second)) in first.iter().zip(second).enumerate() {
                set(panel, i, std::array::from_fn(|r| word(first[r], Some(second[r]))));
            }
        } else {
            for (panel, first) in first.iter().enumerate() {
                set(panel, i, std::array::from_fn(|r| word(first[r], None)));
            }
        }
    }
}

/// The right operand in rows: panels of its first `cols` columns, of `depth` rows that are `stride` apart.
/// With [`Steps::EvenFloats`] and [`Steps::Words`] numbers are rounded to bf16.
pub(super) fn right_of_rows(
    isa: Isa,
    to: &mut [f32],
    from: Values<'_>,
    stride: usize,
    depth: usize,
    cols: usize,
    steps: Steps,
) {
    match from {
        Values::F32(from) => right_of_f32(isa, to, from, stride, depth, cols, steps),
        Values::Bf16(from) => right_of_bf16(isa, to, from, stride, depth, cols, steps),
    }
}

/// Rows of a right operand that are asked for ahead of time: what is packed is only a part of each, and the processor
/// doesn't see the next one coming.
const ROWS_AHEAD: usize = 8;

/// `right_of_rows` of one kind of elements, which are bf16 numbers already or not.
macro_rules! right_of {
    ($name:ident, $element:ty, $load:ident, $load_part:ident, $is_rounded:literal) => {
        simd_fn! {
            fn $name<S>(
                to: &mut [f32],
                from: &[$element],
                stride: usize,
                depth: usize,
                cols: usize,
                steps: Steps,
            ) {
                let width = S::TILE_VECTORS * LANES;
                let panel_rows = steps.rows(depth);
                assert!(to.len() >= cols.div_ceil(width) * width * panel_rows);
                assert!(depth == 0 || from.len() >= (depth - 1) * stride + cols);
                let per_row = if steps == Steps::Words { 2 } else { 1 };
                for i in 0..panel_rows {
                    let k = per_row * i;
                    let first = from.as_ptr().wrapping_add(k * stride);
                    let second = first.wrapping_add(stride);
                    let has = (k < depth, k + 1 < depth);
                    let ahead = first.wrapping_add(ROWS_AHEAD * stride);
                    for col in (0..cols.next_multiple_of(width)).step_by(LANES) {
                        S::prefetch(ahead.wrapping_add(col).cast());
                        if per_row == 2 {
                            S::prefetch(ahead.wrapping_add(stride + col).cast());
                        }
                        let (mut x, mut y) = (S::splat(0.0), S::splat(0.0));
                        if col + LANES <= cols {
                            if has.0 {
                                x = S::$load(first.add(col));
                            }
                            if per_row == 2 && has.1 {
                                y = S::$load(second.add(col));
                            }
                        } else if col < cols {
                            let len = cols - col;
                            if has.0 {
                                x = S::$load_part(first.add(col), len);
                            }
                            if per_row == 2 && has.1 {
                                y = S::$load_part(second.add(col), len);
                            }
                        }
                        let x = match steps {
                            Steps::EvenFloats if !$is_rounded => S::round_bf16(x),
                            Steps::Floats | Steps::EvenFloats => x,
                            Steps::Words if $is_rounded => S::pair_rounded(x, y),
                            Steps::Words => S::pair(x, y),
                            Steps::Bytes => unreachable!("rows are packed as floats or words"),
                        };
                        let (panel, at) = (col / width, col % width);
                        S::store(to.as_mut_ptr().add((panel * panel_rows + i) * width + at), x);
                    }
                }
            }
        }
    };
}

right_of!(right_of_f32, f32, load, load_part, false);
right_of!(right_of_bf16, bf16, load_bf16, load_bf16_part, true);

simd_fn! {
    /// A panel of words as one of floats, of twice as many rows.
    pub(super) fn expand<S>(to: &mut [f32], words: &[f32], width: usize) {
        let rows = words.chunks_exact(width).zip(to.chunks_exact_mut(2 * width));
        for (words, to) in rows {
            for at in (0..width).step_by(LANES) {
                S::store(to.as_mut_ptr().add(at), S::load_first(words.as_ptr().add(at)));
                S::store(to.as_mut_ptr().add(width + at), S::load_second(words.as_ptr().add(at)));
            }
        }
    }
}

simd_fn! {
    /// A panel of bytes as one of floats.
    pub(super) fn expand_bytes<S>(to: &mut [f32], bytes: &[i8]) {
        assert!(to.len() == bytes.len() && to.len().is_multiple_of(LANES), "a panel of whole vectors");
        for at in (0..to.len()).step_by(LANES) {
            S::store(to.as_mut_ptr().add(at), S::load_i8(bytes.as_ptr().add(at)));
        }
    }
}

/// The largest quantum.
const QUANTUM_MAX: f32 = 127.0;
/// A float whose last place is one: added to a small number, it leaves the nearest integer, ties to even, in the
/// lowest bits of the sum.
const ROUNDER: f32 = 12_582_912.0;

/// One panel of the columns that are the rows of `from (…, depth)`, as bytes, and a scale for each row; zeros where
/// it has no more rows. `rounded` has room for a panel of floats.
pub(super) fn quantized_panel(
    isa: Isa,
    to: &mut [f32],
    scales: &mut [f32],
    from: &[f32],
    rounded: &mut [f32],
    depth: usize,
    cols: usize,
) {
    assert!(to.len() == Steps::Bytes.rows(depth) * cols && from.len() == scales.len() * depth);
    assert!(scales.len() <= cols && rounded.len() >= from.len());
    let quanta = &mut rounded[..from.len()];
    for (row, scale) in scales.iter_mut().enumerate() {
        let part = row * depth..(row + 1) * depth;
        *scale = quantize(isa, &mut quanta[part.clone()], &from[part]);
    }
    // SAFETY: a float has room for four bytes, and any bits are a float.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), 4 * to.len()) };
    bytes.fill(0);
    for (k, bytes) in bytes.chunks_exact_mut(cols).take(depth).enumerate() {
        for (row, byte) in bytes.iter_mut().take(scales.len()).enumerate() {
            *byte = quanta[row * depth + k].to_bits() as u8;
        }
    }
}

simd_fn! {
    /// `to = round(row / scale)`, ties to even, in the lowest bits of each float; returns the scale, a 127th of the
    /// largest magnitude. It is NaN where a number of the row is infinite or NaN, so that a broken weight shows.
    fn quantize<S>(to: &mut [f32], row: &[f32]) -> f32 {
        assert_eq!(to.len(), row.len());
        let (mut max, mut broken) = (S::splat(0.0), S::splat(0.0));
        for at in (0..row.len()).step_by(LANES) {
            let x = S::load_part(row.as_ptr().add(at), row.len() - at);
            // Zero for a finite number, else NaN.
            broken = S::fma(x, S::splat(0.0), broken);
            max = S::max(S::max(x, S::sub(S::splat(0.0), x)), max);
        }
        let scale = S::reduce_max(max) / QUANTUM_MAX + S::reduce_add(broken);
        // A row of zeros, or of numbers whose scale isn't one any more, becomes zeros.
        let divisor = S::splat(if scale == 0.0 { 1.0 } else { scale });
        let (least, most) = (S::splat(-QUANTUM_MAX), S::splat(QUANTUM_MAX));
        for at in (0..row.len()).step_by(LANES) {
            let len = row.len() - at;
            let x = S::div(S::load_part(row.as_ptr().add(at), len), divisor);
            let bounded = S::min(S::max(x, least), most);
            S::store_part(to.as_mut_ptr().add(at), S::add(bounded, S::splat(ROUNDER)), len);
        }
        scale
    }
}
