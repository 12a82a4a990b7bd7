//! The microkernel: a tile of outputs in registers, one fused multiply-add per element and step.
//!
//! bf16 operands come in words of two: step `2p` in the upper half, `2p + 1` in the lower. Processors with an
//! instruction for it multiply words; on others the right operand is taken apart in registers, which costs
//! little where several rows share it, and the left one is `f32` that holds bf16 numbers. Either way an element
//! is the same chain as that of an `f32` product of the rounded operands.
//!
//! Bytes are turned into floats the same way: in registers for few rows, a panel at a time for many.
#![expect(clippy::needless_range_loop, reason = "rows and vectors of a tile are indices")]

use crate::simd::{Isa, LANES, Simd};

use super::pack::{self, Tile, Tiles};

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
    pub(super) form: Form,
    /// As many floats as a panel of the right operand, for [`Form::RowsByWords`] and [`Form::RowsByBytes`].
    pub(super) scratch: *mut f32,
    /// Panels `(depth, tile columns)`, of words `(depth / 2, tile columns)` or of bytes, this many floats apart.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    /// Whether the sums start at what `c` holds.
    pub(super) accumulate: bool,
    /// Multiplied with the finished sums, one per column.
    pub(super) scales: Option<*const f32>,
    /// Added to the finished sums, one per column.
    pub(super) bias: Option<*const f32>,
    /// What is read next, behind the block's last panel.
    pub(super) ahead: Region,
}

/// Memory that is asked for while something else is worked on. Weights of a decode step come from main memory, and
/// waiting for a panel takes about as long as the rows take to pass over it.
#[derive(Clone, Copy)]
pub(super) struct Region {
    pub(super) at: *const f32,
    pub(super) len: usize,
}

impl Region {
    pub(super) const NONE: Region = Region { at: std::ptr::null(), len: 0 };

    /// One of so many parts.
    fn part(self, idx: usize, count: usize) -> Region {
        let len = self.len / count;
        Region { at: self.at.wrapping_add(idx * len), len }
    }
}

/// A region that is asked for evenly over so many steps.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const f32,
    /// Floats per step, times 256.
    pace: usize,
}

impl Ahead {
    #[inline(always)]
    fn new(region: Region, steps: usize) -> Ahead {
        Ahead { at: region.at, pace: (region.len << 8) / steps.max(1) }
    }

    #[inline(always)]
    unsafe fn ask<S: Simd>(self, step: usize) {
        let at = self.at.wrapping_add((step * self.pace) >> 8);
        unsafe {
            S::prefetch(at);
            if self.pace > LANES << 8 {
                S::prefetch(at.wrapping_add(LANES));
            }
        }
    }
}

impl Block {
    /// Floats of a panel of the right operand.
    fn panel_len(&self, tile: Tile) -> usize {
        let rows = match self.form {
            Form::Rows(_) | Form::Panels => self.depth,
            Form::RowsByWords(_) | Form::WordRows(_) | Form::WordPanels => self.depth / 2,
            Form::RowsByBytes(_) => self.depth.div_ceil(4),
        };
        rows * tile.cols
    }
}

/// What the operands of a block look like. Rows of `a` that aren't in panels are so far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `a` in rows, both operands floats.
    Rows(usize),
    /// `a` in panels of [`Tiles`], both operands floats.
    Panels,
    /// `a` in rows of floats, `b` in words; the depth is even.
    RowsByWords(usize),
    /// `a` in rows of floats, `b` in bytes.
    RowsByBytes(usize),
    /// `a` in rows, both operands in words; the depth is even.
    WordRows(usize),
    /// `a` in panels `(depth / 2, rows)` of [`Tiles`], both operands in words; the depth is even.
    WordPanels,
}

impl Form {
    /// How far apart rows of the left operand are, where they are not in panels.
    #[inline(always)]
    fn stride(self) -> usize {
        match self {
            Form::Rows(stride)
            | Form::RowsByWords(stride)
            | Form::RowsByBytes(stride)
            | Form::WordRows(stride) => stride,
            Form::Panels | Form::WordPanels => 0,
        }
    }
}

/// [`Form`] as a parameter of the kernels.
const ROWS: u8 = 0;
const PANELS: u8 = 1;
const ROWS_BY_WORDS: u8 = 2;
const WORD_ROWS: u8 = 3;
const WORD_PANELS: u8 = 4;
const ROWS_BY_BYTES: u8 = 5;

/// Rows from which on a panel of words or bytes is turned into floats before they pass over it.
const EXPANSION_ROWS_MIN: usize = 13;

/// Computes a block.
pub(super) fn block(isa: Isa, block: &Block) {
    if let Form::RowsByWords(stride) | Form::RowsByBytes(stride) = block.form
        && block.rows >= EXPANSION_ROWS_MIN
    {
        return block_of_expanded(isa, block, stride);
    }
    let tile = Tile::of(isa);
    let tiles = Tiles::new(block.rows, tile.rows);
    let tile_count = block.rows.div_ceil(tile.rows).max(1);
    let mut col = 0;
    while col < block.cols {
        let panels = match block.rows {
            1 => 4,
            2 => 3,
            3 => 2,
            _ => 1,
        };
        let panels = if (block.cols - col) / tile.cols >= panels { panels } else { 1 };
        let next = col / tile.cols + panels;
        let ahead = match panels {
            // Several panels are read at once where memory is all that counts, and the processor sees that coming.
            2.. => Region::NONE,
            _ if next * tile.cols >= block.cols => block.ahead,
            _ => Region {
                at: block.b.wrapping_add(next * block.b_stride),
                len: block.panel_len(tile),
            },
        };
        let mut done = 0;
        for (row, len, count) in tiles.groups() {
            if count == 0 {
                continue;
            }
            let strip = Strip { block, row, col, count, ahead, done, tile_count };
            done += count;
            // SAFETY: a `Device` is only made with an instruction set that the processor has.
            unsafe { run_strip(isa, &strip, len, panels) };
        }
        col += panels * tile.cols;
    }
}

/// A block whose right operand is in words or bytes, a panel of which is turned into floats at a time.
fn block_of_expanded(isa: Isa, block: &Block, stride: usize) {
    let tile = Tile::of(isa);
    let width = tile.cols;
    for (panel, col) in (0..block.cols).step_by(width).enumerate() {
        // SAFETY: the panel is one of the block's, and the scratch is as long as its floats.
        let floats = unsafe {
            let panel = block.b.add(panel * block.b_stride);
            let floats = std::slice::from_raw_parts_mut(block.scratch, block.depth * width);
            if matches!(block.form, Form::RowsByBytes(_)) {
                let bytes = std::slice::from_raw_parts(panel.cast(), block.depth * width);
                pack::expand_bytes(isa, floats, bytes);
            } else {
                let words = std::slice::from_raw_parts(panel, block.depth / 2 * width);
                pack::expand(isa, floats, words, width);
            }
            floats
        };
        let part = Block {
            c: block.c.wrapping_add(col),
            cols: (block.cols - col).min(width),
            form: Form::Rows(stride),
            b: floats.as_ptr(),
            scales: block.scales.map(|scales| scales.wrapping_add(col)),
            bias: block.bias.map(|bias| bias.wrapping_add(col)),
            ahead: if col + width < block.cols {
                let next = block.b.wrapping_add((panel + 1) * block.b_stride);
                Region { at: next, len: block.panel_len(tile) }
            } else {
                Region::NONE
            },
            ..*block
        };
        self::block(isa, &part);
    }
}

/// Calls the strip function of a module with the form as a constant.
macro_rules! with_form {
    ($module:ident, $strip:expr, $rows:expr, $panels:expr) => {
        match $strip.block.form {
            Form::Rows(_) => $module::strip::<ROWS>($strip, $rows, $panels),
            Form::Panels => $module::strip::<PANELS>($strip, $rows, $panels),
            Form::RowsByWords(_) => $module::strip::<ROWS_BY_WORDS>($strip, $rows, $panels),
            Form::RowsByBytes(_) => $module::strip::<ROWS_BY_BYTES>($strip, $rows, $panels),
            Form::WordRows(_) => $module::strip::<WORD_ROWS>($strip, $rows, $panels),
            Form::WordPanels => $module::strip::<WORD_PANELS>($strip, $rows, $panels),
        }
    };
}

unsafe fn run_strip(isa: Isa, strip: &Strip, rows: usize, panels: usize) {
    unsafe {
        match (isa, strip.block.form) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Form::WordRows(_)) => {
                avx512bf16::strip::<WORD_ROWS>(strip, rows, panels);
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Form::WordPanels) => {
                avx512bf16::strip::<WORD_PANELS>(strip, rows, panels);
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, _) => with_form!(avx512, strip, rows, panels),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => with_form!(avx2, strip, rows, panels),
            _ => with_form!(portable, strip, rows, panels),
        }
    }
}

/// Tiles of one size below each other.
struct Strip<'a> {
    block: &'a Block,
    /// The first tile's first output, inside the block.
    row: usize,
    col: usize,
    count: usize,
    /// What all tiles of the panel together ask for, each a part.
    ahead: Region,
    /// Tiles before the strip, and all of them.
    done: usize,
    tile_count: usize,
}

/// A module with the kernels of an instruction set. Each number of rows has a function of its own, since
/// in one with all of them the compiler runs out of registers.
macro_rules! kernels {
    ($isa:ident, $Simd:ident, $vectors:literal, [$($feature:meta)?], [$($rows:literal)*]) => {
        mod $isa {
            use super::Strip;
            use crate::simd::$Simd;

            /// Computes a strip of tiles of so many rows and panels.
            pub(super) unsafe fn strip<const FORM: u8>(strip: &Strip, rows: usize, panels: usize) {
                unsafe {
                    match (rows, panels) {
                        (1, 4) => tiles::<1, { 4 * $vectors }, FORM>(strip),
                        (2, 3) => tiles::<2, { 3 * $vectors }, FORM>(strip),
                        (3, 2) => tiles::<3, { 2 * $vectors }, FORM>(strip),
                        $(($rows, 1) => tiles::<$rows, $vectors, FORM>(strip),)*
                        _ => unreachable!("a tile of {rows} rows and {panels} panels"),
                    }
                }
            }

            #[inline(never)]
            $(#[$feature])?
            unsafe fn tiles<const R: usize, const W: usize, const FORM: u8>(strip: &Strip) {
                unsafe { super::tiles::<$Simd, R, W, FORM>(strip) }
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
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512bf16, Avx512Bf16, 2, [target_feature(enable = "avx512bf16,avx512f,avx2,fma")],
    [1 2 3 4 5 6 7 8 9 10 11 12]
);

/// Tiles of `R` rows and `W` vectors of columns.
#[inline(always)]
unsafe fn tiles<S: Simd, const R: usize, const W: usize, const FORM: u8>(strip: &Strip) {
    let block = strip.block;
    let width = LANES * S::TILE_VECTORS;
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
            let ahead = strip.ahead.part(strip.done + i, strip.tile_count);
            let next = if i + 1 < strip.count {
                c.wrapping_add(R * block.c_stride)
            } else {
                block.c.wrapping_add(strip.row * block.c_stride + strip.col + width)
            };
            ask_for_outputs::<S, R, W>(next, block.c_stride);
            contract::<S, R, W, FORM>(&mut sums, block, row, b, ahead);
            if let Some(scales) = block.scales {
                scale::<S, R, W>(&mut sums, scales.add(strip.col), cols);
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

/// Asks for the next tile of outputs while this one is worked on: rows that are far apart come one by one otherwise.
#[inline(always)]
unsafe fn ask_for_outputs<S: Simd, const R: usize, const W: usize>(c: *mut f32, stride: usize) {
    for r in 0..R {
        for v in 0..W {
            unsafe { S::prefetch_near(c.wrapping_add(r * stride + v * LANES)) };
        }
    }
}

/// Goes through the depth of a block for the rows from `row` on and the panels from `b` on.
#[inline(always)]
unsafe fn contract<S: Simd, const R: usize, const W: usize, const FORM: u8>(
    sums: &mut [[S::V; W]; R],
    block: &Block,
    row: usize,
    b: *const f32,
    ahead: Region,
) {
    let steps =
        if matches!(FORM, ROWS | PANELS | ROWS_BY_BYTES) { block.depth } else { block.depth / 2 };
    let ahead = Ahead::new(ahead, steps);
    let width = LANES * S::TILE_VECTORS;
    // Where vector `v` of step `k` is: in which panel, and where in it.
    let at = |k: usize, v: usize| unsafe {
        let (panel, vector) = (v / S::TILE_VECTORS, v % S::TILE_VECTORS);
        b.add(k * width + panel * block.b_stride + vector * LANES)
    };
    let stride = block.form.stride();
    let a: [*const f32; R] = std::array::from_fn(|r| block.a.wrapping_add((row + r) * stride));
    unsafe {
        match FORM {
            ROWS => {
                for k in 0..steps {
                    ahead.ask::<S>(k);
                    step::<S, R, W>(sums, |v| S::load(at(k, v)), |r| *a[r].add(k));
                }
            }
            ROWS_BY_WORDS => {
                for p in 0..steps {
                    ahead.ask::<S>(p);
                    step::<S, R, W>(sums, |v| S::load_first(at(p, v)), |r| *a[r].add(2 * p));
                    step::<S, R, W>(sums, |v| S::load_second(at(p, v)), |r| *a[r].add(2 * p + 1));
                }
            }
            ROWS_BY_BYTES => {
                let at = |k: usize, v: usize| {
                    let (panel, vector) = (v / S::TILE_VECTORS, v % S::TILE_VECTORS);
                    b.add(panel * block.b_stride).cast::<i8>().add(k * width + vector * LANES)
                };
                for k in 0..steps {
                    ahead.ask::<S>(k);
                    step::<S, R, W>(sums, |v| S::load_i8(at(k, v)), |r| *a[r].add(k));
                }
            }
            WORD_ROWS => {
                for p in 0..steps {
                    ahead.ask::<S>(p);
                    dots::<S, R, W>(sums, |v| at(p, v), |r| *a[r].add(p));
                }
            }
            WORD_PANELS => {
                let a = block.a.add(row * (block.depth / 2));
                for p in 0..steps {
                    ahead.ask::<S>(p);
                    dots::<S, R, W>(sums, |v| at(p, v), |r| *a.add(p * R + r));
                }
            }
            _ => {
                let a = block.a.add(row * block.depth);
                for k in 0..steps {
                    ahead.ask::<S>(k);
                    step::<S, R, W>(sums, |v| S::load(at(k, v)), |r| *a.add(k * R + r));
                }
            }
        }
    }
}

/// A word of each row times `W` vectors of words.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const W: usize>(
    sums: &mut [[S::V; W]; R],
    right: impl Fn(usize) -> *const f32,
    left: impl Fn(usize) -> f32,
) {
    for r in 0..R {
        let left = left(r);
        for v in 0..W {
            sums[r][v] = unsafe { S::dot_pairs(left, right(v), sums[r][v]) };
        }
    }
}

/// One element of each row times `W` vectors of the right operand.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const W: usize>(
    sums: &mut [[S::V; W]; R],
    right: impl Fn(usize) -> S::V,
    left: impl Fn(usize) -> f32,
) {
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

/// Multiplies each row with the first `cols` elements of `scales`.
#[inline(always)]
unsafe fn scale<S: Simd, const R: usize, const W: usize>(
    sums: &mut [[S::V; W]; R],
    scales: *const f32,
    cols: usize,
) {
    unsafe {
        let mut row = [S::splat(0.0); W];
        load::<S, W>(&mut row, scales, cols);
        for r in 0..R {
            for v in 0..W {
                sums[r][v] = S::mul(sums[r][v], row[v]);
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
