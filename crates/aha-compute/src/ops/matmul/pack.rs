//! Operands in the order in which the microkernel reads them.
//!
//! A left operand becomes panels of [`Tiles`] rows, each `(depth, rows)`; a right operand panels of
//! [`Tile::cols`] columns, each `(depth, cols)`.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Portable, Simd, simd_fn};
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
            Isa::Avx512 => of::<Avx512>(),
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

    /// First row and rows of each tile.
    fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        self.groups()
            .into_iter()
            .flat_map(|(row, len, count)| (0..count).map(move |i| (row + i * len, len)))
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
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            8 => $f::<8>($($arg),*),
            9 => $f::<9>($($arg),*),
            10 => $f::<10>($($arg),*),
            11 => $f::<11>($($arg),*),
            12 => $f::<12>($($arg),*),
            16 => $f::<16>($($arg),*),
            32 => $f::<32>($($arg),*),
            rows => unreachable!("{rows} rows of a panel"),
        }
    };
}

/// One panel `(depth, cols)` of the columns that are the rows of `from (…, depth)`; zeros where it has no
/// more rows.
pub(super) fn panel_of_rows(to: &mut [f32], from: &[f32], depth: usize, cols: usize) {
    if from.len() == depth * cols {
        with_rows!(cols, transpose(to, from, depth));
    } else {
        to.fill(0.0);
        for (col, row) in from.chunks_exact(depth).enumerate() {
            for (k, &x) in row.iter().enumerate() {
                to[k * cols + col] = x;
            }
        }
    }
}

/// Panels of the `rows` rows of `from`, which are `stride` apart, from each the first `depth` elements.
pub(super) fn left_of_rows(
    to: &mut [f32],
    from: &[f32],
    stride: usize,
    depth: usize,
    tiles: Tiles,
) {
    for (row, len) in tiles.iter() {
        let to = &mut to[row * depth..(row + len) * depth];
        with_rows!(len, transpose(to, &from[row * stride..], stride));
    }
}

/// `to (depth, R)` of `R` rows that are `stride` apart.
fn transpose<const R: usize>(to: &mut [f32], from: &[f32], stride: usize) {
    let (to, rest) = to.as_chunks_mut::<R>();
    assert!(rest.is_empty() && from.len() >= (R - 1) * stride + to.len());
    for (k, to) in to.iter_mut().enumerate() {
        for (r, to) in to.iter_mut().enumerate() {
            // SAFETY: `r < R` and `k < to.len()`, so the assertion bounds it.
            *to = unsafe { *from.get_unchecked(r * stride + k) };
        }
    }
}

/// Panels of as many rows as `tiles` has, from the columns of `from`: `depth` rows that are `stride`
/// apart.
pub(super) fn left_of_columns(
    to: &mut [f32],
    from: &[f32],
    stride: usize,
    depth: usize,
    tiles: Tiles,
) {
    for (row, len, count) in tiles.groups() {
        if count > 0 {
            let columns = row..row + len * count;
            let to = &mut to[columns.start * depth..columns.end * depth];
            with_rows!(len, gather(to, from, stride, depth, columns));
        }
    }
}

/// Panels `(depth, R)` of neighbouring columns.
fn gather<const R: usize>(
    to: &mut [f32],
    from: &[f32],
    stride: usize,
    depth: usize,
    columns: Range<usize>,
) {
    let (to, _) = to.as_chunks_mut::<R>();
    for k in 0..depth {
        let (columns, _) = from[k * stride..][columns.clone()].as_chunks::<R>();
        for (panel, columns) in columns.iter().enumerate() {
            to[panel * depth + k] = *columns;
        }
    }
}

simd_fn! {
    /// Panels of the first `cols` columns of `from`: `depth` rows that are `stride` apart.
    pub(super) fn right_of_rows<S>(to: &mut [f32], from: &[f32], stride: usize, depth: usize, cols: usize) {
        let width = S::TILE_VECTORS * LANES;
        assert!(to.len() >= cols.div_ceil(width) * width * depth);
        assert!(depth == 0 || from.len() >= (depth - 1) * stride + cols);
        for k in 0..depth {
            let from = from.as_ptr().add(k * stride);
            let mut to = to.as_mut_ptr().add(k * width);
            let mut col = 0;
            while col < cols {
                for v in 0..S::TILE_VECTORS {
                    let at = col + v * LANES;
                    let vector = if at + LANES <= cols {
                        S::load(from.add(at))
                    } else if at < cols {
                        S::load_part(from.add(at), cols - at)
                    } else {
                        S::splat(0.0)
                    };
                    S::store(to.add(v * LANES), vector);
                }
                to = to.add(width * depth);
                col += width;
            }
        }
    }
}
