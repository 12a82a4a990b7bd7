//! The microkernel: a tile of outputs in registers, one fused multiply-add per element and step.
#![expect(clippy::needless_range_loop, reason = "rows and vectors of a tile are indices")]

use crate::simd::{Isa, LANES, Simd};

use super::pack::{Tile, Tiles};

/// `c (rows, cols) (=|+=) a (rows, depth)·b (depth, cols)`, all of it in the caches.
///
/// Raw pointers, since blocks of `c` interleave in memory. Whoever makes one vouches for every element
/// that its sizes reach.
pub(super) struct Block {
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) depth: usize,
    pub(super) a: *const f32,
    /// `None` where `a` is packed in panels of [`Tiles`]; else its rows are this far apart.
    pub(super) a_stride: Option<usize>,
    /// Panels `(depth, tile columns)`, this far apart.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    /// Whether the sums start at what `c` holds.
    pub(super) accumulate: bool,
    /// Added to the finished sums, one per column.
    pub(super) bias: Option<*const f32>,
}

/// Computes a block.
pub(super) fn block(isa: Isa, block: &Block) {
    let tile = Tile::of(isa);
    let tiles = Tiles::new(block.rows, tile.rows);
    let mut col = 0;
    while col < block.cols {
        let panels = match block.rows {
            1 => 4,
            2 => 3,
            3 => 2,
            _ => 1,
        };
        let panels = if (block.cols - col) / tile.cols >= panels { panels } else { 1 };
        for (row, len, count) in tiles.groups() {
            if count == 0 {
                continue;
            }
            let strip = Strip { block, row, col, count };
            match isa {
                // SAFETY: a `Device` is only made with an instruction set that the processor has.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512::strip(&strip, len, panels) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2::strip(&strip, len, panels) },
                // SAFETY: the portable lanes need nothing of the processor.
                _ => unsafe { portable::strip(&strip, len, panels) },
            }
        }
        col += panels * tile.cols;
    }
}

/// Tiles of one size below each other.
struct Strip<'a> {
    block: &'a Block,
    /// The first tile's first output, inside the block.
    row: usize,
    col: usize,
    count: usize,
}

/// A module with the kernels of an instruction set. Each number of rows has a function of its own, since
/// in one with all of them the compiler runs out of registers.
macro_rules! kernels {
    ($isa:ident, $Simd:ident, $vectors:literal, [$($feature:meta)?], [$($rows:literal)*]) => {
        mod $isa {
            use super::Strip;
            use crate::simd::$Simd;

            /// Computes a strip of tiles of so many rows and panels.
            pub(super) unsafe fn strip(strip: &Strip, rows: usize, panels: usize) {
                let is_packed = strip.block.a_stride.is_none();
                unsafe {
                    match (rows, panels, is_packed) {
                        (1, 4, false) => tiles::<1, { 4 * $vectors }, false>(strip),
                        (2, 3, false) => tiles::<2, { 3 * $vectors }, false>(strip),
                        (3, 2, false) => tiles::<3, { 2 * $vectors }, false>(strip),
                        (1, 4, true) => tiles::<1, { 4 * $vectors }, true>(strip),
                        (2, 3, true) => tiles::<2, { 3 * $vectors }, true>(strip),
                        (3, 2, true) => tiles::<3, { 2 * $vectors }, true>(strip),
                        $(($rows, 1, false) => tiles::<$rows, $vectors, false>(strip),
                        ($rows, 1, true) => tiles::<$rows, $vectors, true>(strip),)*
                        _ => unreachable!("a tile of {rows} rows and {panels} panels"),
                    }
                }
            }

            #[inline(never)]
            $(#[$feature])?
            unsafe fn tiles<const R: usize, const W: usize, const PACKED: bool>(strip: &Strip) {
                unsafe { super::tiles::<$Simd, R, W, PACKED>(strip) }
            }
        }
    };
}

kernels!(portable, Portable, 1, [], [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, Avx2, 1, [target_feature(enable = "avx2,fma")], [1 2 3 4 5 6]);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512, Avx512, 2, [target_feature(enable = "avx512f,avx2,fma")],
    [1 2 3 4 5 6 7 8 9 10 11 12]
);

/// Tiles of `R` rows and `W` vectors of columns.
#[inline(always)]
unsafe fn tiles<S: Simd, const R: usize, const W: usize, const PACKED: bool>(strip: &Strip) {
    let block = strip.block;
    let width = LANES * S::TILE_VECTORS;
    let a_stride = block.a_stride.unwrap_or(1);
    for i in 0..strip.count {
        unsafe {
            let row = strip.row + i * R;
            let b = block.b.add(strip.col / width * block.b_stride);
            let c = block.c.add(row * block.c_stride + strip.col);
            let cols = block.cols - strip.col;
            let mut sums = [[S::splat(0.0); W]; R];
            if block.accumulate {
                for r in 0..R {
                    load::<S, W>(&mut sums[r], c.add(r * block.c_stride), cols);
                }
            }
            if PACKED {
                let a = block.a.add(row * block.depth);
                for k in 0..block.depth {
                    step::<S, R, W>(&mut sums, b.add(k * width), block.b_stride, |r| {
                        *a.add(k * R + r)
                    });
                }
            } else {
                let a: [*const f32; R] = std::array::from_fn(|r| block.a.add((row + r) * a_stride));
                for k in 0..block.depth {
                    step::<S, R, W>(&mut sums, b.add(k * width), block.b_stride, |r| *a[r].add(k));
                }
            }
            if let Some(bias) = block.bias {
                add_bias::<S, R, W>(&mut sums, bias.add(strip.col), cols);
            }
            for r in 0..R {
                store::<S, W>(c.add(r * block.c_stride), &sums[r], cols);
            }
        }
    }
}

/// One element of each row times `W` vectors of `b`, whose panels are `b_stride` apart.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const W: usize>(
    sums: &mut [[S::V; W]; R],
    b: *const f32,
    b_stride: usize,
    left: impl Fn(usize) -> f32,
) {
    let right = |v: usize| unsafe {
        let (panel, vector) = (v / S::TILE_VECTORS, v % S::TILE_VECTORS);
        S::load(b.add(panel * b_stride + vector * LANES))
    };
    // What there is less of stays in registers for the step.
    unsafe {
        if R <= W {
            let left: [S::V; R] = std::array::from_fn(|r| S::splat(left(r)));
            for v in 0..W {
                let right = right(v);
                for r in 0..R {
                    sums[r][v] = S::fma(left[r], right, sums[r][v]);
                }
            }
        } else {
            let right: [S::V; W] = std::array::from_fn(right);
            for r in 0..R {
                let left = S::splat(left(r));
                for v in 0..W {
                    sums[r][v] = S::fma(left, right[v], sums[r][v]);
                }
            }
        }
    }
}

/// Adds the first `cols` elements of `bias` to each row.
#[inline(always)]
unsafe fn add_bias<S: Simd, const R: usize, const W: usize>(
    sums: &mut [[S::V; W]; R],
    bias: *const f32,
    cols: usize,
) {
    unsafe {
        let mut row = [S::splat(0.0); W];
        load::<S, W>(&mut row, bias, cols);
        for r in 0..R {
            for v in 0..W {
                sums[r][v] = S::add(sums[r][v], row[v]);
            }
        }
    }
}

/// The first `cols` of `W` vectors.
#[inline(always)]
unsafe fn load<S: Simd, const W: usize>(to: &mut [S::V; W], from: *const f32, cols: usize) {
    for v in 0..W {
        unsafe {
            if cols >= W * LANES {
                to[v] = S::load(from.add(v * LANES));
            } else if cols > v * LANES {
                to[v] = S::load_part(from.add(v * LANES), cols - v * LANES);
            }
        }
    }
}

/// The first `cols` of `W` vectors.
#[inline(always)]
unsafe fn store<S: Simd, const W: usize>(to: *mut f32, from: &[S::V; W], cols: usize) {
    for v in 0..W {
        unsafe {
            if cols >= W * LANES {
                S::store(to.add(v * LANES), from[v]);
            } else if cols > v * LANES {
                S::store_part(to.add(v * LANES), from[v], cols - v * LANES);
            }
        }
    }
}
