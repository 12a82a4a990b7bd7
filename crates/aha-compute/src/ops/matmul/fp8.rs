//! Products in FP8, as DeepSeek-V3 is trained with (arXiv:2412.19437, section 3.3): all three products of a linear
//! layer multiply e4m3 numbers with a scale for each tile.
//!
//! | buffer            | shape              | tiles that have a scale in common                       |
//! |-------------------|--------------------|---------------------------------------------------------|
//! | `x` in [`forward`](super::forward) | (T, K) | 1 x 128, along K                             |
//! | `w`               | (N, K)             | 128 x 128; the transpose has the same quanta            |
//! | `dy` in [`backward_input`](super::backward_input) | (T, N) | 1 x 128, along N              |
//! | `dy` `x` in [`backward_weight`] | (T, N) (T, K) | 128 x 1, along T                               |
//!
//! ```text
//! s   = max(max |v| / 448, 2^-126)          of a tile of values v, in f32
//! q   = e4m3(v (1 / s))                     to nearest, ties to even, to 448 at most; the product is rounded to f32
//! c_mn = c_mn + sum_j (a_mj b_nj) (sum_k qa_mk qb_nk)     over tiles j of the contraction and their elements k
//! ```
//!
//! with `a` and `b` the scales of the factors' tiles. The inner sums, of 128 terms at most, are those of a device's
//! tensor cores (Hopper's keep fewer than f32's bits of them); the outer one is a chain in f32 in order of `j`, which
//! starts at zero or, where it accumulates, at what is stored. The last tiles of a row may be shorter. A tile with a
//! number that isn't finite makes results that aren't.
//!
//! A row's bits depend on nothing beside it: its tiles are its own, and blocks of any size have the same sums. So
//! sampler and learner agree, as with bf16. Gradients of weights are cut in tiles of 128 rows from a batch's first on:
//! micro-batches change them by rounding.
//!
//! Weights that are trained, gradients and results are as without FP8: `x` is bf16 (or f32, for tests), `w` f32, `dy`
//! f32, sums f32. On a CUDA device of compute capability 8.9 or more: see
//! [`Device::with_fp8`](crate::Device::with_fp8).
//!
//! [`reference`](mod@reference) is the definition.

pub mod reference;

#[cfg(test)]
mod tests;

use crate::Tensor;
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{EIGHT, assert_aligned, assert_float};

pub(crate) static SOURCE: Source = Source { name: "fp8.cu", text: include_str!("fp8.cu") };

/// Elements that have a scale in common: of a row, and of a block to either side.
pub const TILE: usize = 128;
/// Rows of a block of threads that makes tiles of rows, and columns of one that makes tiles of columns.
const QUANTIZED_ROWS: usize = 16;
const QUANTIZED_COLS: usize = 32;
/// Blocks that keep a device busy: where there would be fewer, they are made smaller.
const BLOCKS_MIN: usize = 96;
/// Bytes of a group of eight rows in shared memory, at a multiple of which a block's tiles begin.
const GROUP_BYTES: usize = 8 * TILE;

/// `dw += dyᵀ·x` for `dy (T, N)`, `x (T, K)` and `dw (N, K)`, on a CUDA device.
pub fn backward_weight(dw: &mut Tensor, dy: &Tensor, x: &Tensor) {
    let gpu = dy.gpu().expect("FP8 is for CUDA devices");
    let [out_len, in_len] = [dw.rows(), dw.cols()];
    let rows = super::rows_of("dy", dy, out_len);
    gpu.run(|cx| {
        let dy = Quantized::of_columns(cx, dy.view(), [rows, out_len])?;
        let x = Quantized::of_columns(cx, x.view(), [rows, in_len])?;
        product(cx, &mut dw.view_mut(), &dy, &x, None, true)
    })
}

/// As the op's [`forward`](super::forward), or added to what `y` holds.
pub(super) fn forward(
    cx: &Context,
    y: &mut Tensor,
    x: &Tensor,
    w: &Weight,
    bias: Option<&Tensor>,
    accumulates: bool,
) -> Result<(), Error> {
    let x = Quantized::of_rows(cx, x.view(), [x.len() / w.rows.depth.max(1), w.rows.depth])?;
    product(cx, &mut y.view_mut(), &x, &w.rows, bias.map(Tensor::view), accumulates)
}

/// As the op's [`backward_input`](super::backward_input).
pub(super) fn backward_input(
    cx: &Context,
    dx: &mut Tensor,
    dy: &Tensor,
    w: &Weight,
    accumulates: bool,
) -> Result<(), Error> {
    let depth = w.cols.depth;
    let dy = Quantized::of_rows(cx, dy.view(), [dy.len() / depth.max(1), depth])?;
    product(cx, &mut dx.view_mut(), &dy, &w.cols, None, accumulates)
}

/// A weight `(N, K)` as quanta, for products over either side.
#[derive(Debug)]
pub struct Weight {
    /// For products over K.
    rows: Quantized,
    /// Of the transpose, for products over N.
    cols: Quantized,
}

impl Weight {
    /// Of an `f32` weight.
    pub(super) fn new(cx: &Context, w: View<'_>, [out, inp]: [usize; 2]) -> Result<Weight, Error> {
        let buffers = |shape| Quantized::uninit(cx, shape, Scales::OfBlocks);
        let mut weight = Weight { rows: buffers([out, inp])?, cols: buffers([inp, out])? };
        weight.write(cx, w, [out, inp])?;
        Ok(weight)
    }

    /// Another weight of the same shape.
    pub(super) fn write(
        &mut self,
        cx: &Context,
        w: View<'_>,
        [out, inp]: [usize; 2],
    ) -> Result<(), Error> {
        w.assert_is(Kind::F32, out * inp);
        assert_eq!([self.rows.rows, self.rows.depth], [out, inp], "shape of a weight");
        let [quanta, scales] = self.rows.args();
        let [transposed, transposed_scales] = self.cols.args();
        let sizes = [out, inp].map(Arg::size);
        let args = [quanta, scales, transposed, transposed_scales, Arg::from(&w)];
        // SAFETY: lengths are checked above, and buffers were made for them.
        unsafe { cx.launch(&blocks_plan(out, inp), &[&args[..], &sizes].concat()) }
    }

    /// Where all that kernels read of it is.
    pub(super) fn addresses(&self) -> [u64; 4] {
        let Weight { rows, cols } = self;
        [&rows.quanta, &rows.scales, &cols.quanta, &cols.scales].map(|part| part.view().at().0)
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        [&self.rows, &self.cols].map(Quantized::bytes).iter().sum()
    }

    #[cfg(test)]
    fn sides(&self) -> [&Quantized; 2] {
        [&self.rows, &self.cols]
    }
}

/// What a scale is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// A tile of a row.
    OfRows,
    /// A block of as many rows.
    OfBlocks,
}

/// A factor `(rows, depth)` of a product over `depth`.
#[derive(Debug)]
struct Quantized {
    rows: usize,
    depth: usize,
    /// `(rows, depth up to a multiple of TILE)`, zeros behind the end.
    quanta: Buffer,
    /// `(tiles, rows)` or `(tiles, blocks of rows)`.
    scales: Buffer,
    of: Scales,
}

impl Quantized {
    fn uninit(cx: &Context, [rows, depth]: [usize; 2], of: Scales) -> Result<Quantized, Error> {
        let tiles = depth.div_ceil(TILE);
        let count = match of {
            Scales::OfRows => rows,
            Scales::OfBlocks => rows.div_ceil(TILE),
        };
        let quanta = cx.buffer(Kind::U8, rows * tiles * TILE)?;
        let scales = cx.buffer(Kind::F32, tiles * count)?;
        Ok(Quantized { rows, depth, quanta, scales, of })
    }

    /// Rows of `x (rows, depth)`.
    fn of_rows(cx: &Context, x: View<'_>, [rows, depth]: [usize; 2]) -> Result<Quantized, Error> {
        x.assert_is(x.kind(), rows * depth);
        let quantized = Quantized::uninit(cx, [rows, depth], Scales::OfRows)?;
        quantized.fill(cx, &rows_plan(x.kind(), rows, depth), x, [rows, depth])
    }

    /// Columns of `x (depth, cols)`.
    fn of_columns(
        cx: &Context,
        x: View<'_>,
        [depth, cols]: [usize; 2],
    ) -> Result<Quantized, Error> {
        x.assert_is(x.kind(), depth * cols);
        let quantized = Quantized::uninit(cx, [cols, depth], Scales::OfRows)?;
        quantized.fill(cx, &columns_plan(x.kind(), depth, cols), x, [depth, cols])
    }

    fn fill(
        self,
        cx: &Context,
        plan: &Plan,
        x: View<'_>,
        shape: [usize; 2],
    ) -> Result<Self, Error> {
        let [quanta, scales] = self.args();
        let [rows, cols] = shape.map(Arg::size);
        let x = Arg::from(&x);
        assert_aligned("x", &x);
        // SAFETY: the buffers are as long as the plan's kernel writes them, and `x` as it reads it.
        unsafe { cx.launch(plan, &[quanta, scales, x, rows, cols])? };
        Ok(self)
    }

    fn tiles(&self) -> usize {
        self.depth.div_ceil(TILE)
    }

    fn bytes(&self) -> usize {
        [&self.quanta, &self.scales].map(|buffer| buffer.len() * buffer.kind().bytes()).iter().sum()
    }

    fn args(&self) -> [Arg; 2] {
        [&self.quanta, &self.scales].map(|buffer| Arg::from(&buffer.view()))
    }
}

/// `c (rows, cols) (=|+=) a (rows, depth)·b (cols, depth)ᵀ + bias`.
fn product(
    cx: &Context,
    c: &mut ViewMut<'_>,
    a: &Quantized,
    b: &Quantized,
    bias: Option<View<'_>>,
    accumulates: bool,
) -> Result<(), Error> {
    product_in(cx, c, a, b, bias, accumulates, Block::of(a.rows, b.rows))
}

/// [`product`] in blocks of that kind, which changes no bit.
fn product_in(
    cx: &Context,
    c: &mut ViewMut<'_>,
    a: &Quantized,
    b: &Quantized,
    bias: Option<View<'_>>,
    accumulates: bool,
    block: Block,
) -> Result<(), Error> {
    c.assert_is(c.kind(), a.rows * b.rows);
    assert_eq!((a.depth, a.of), (b.depth, Scales::OfRows), "factors of one contraction");
    if let Some(bias) = bias {
        bias.assert_is(Kind::F32, b.rows);
    }
    let ([a_quanta, a_scales], [b_quanta, b_scales]) = (a.args(), b.args());
    let at = Arg::from(&*c);
    assert_aligned("c", &at);
    let buffers = [at, a_quanta, a_scales, b_quanta, b_scales, Arg::of(bias)];
    let sizes = [a.rows, b.rows, a.tiles(), usize::from(accumulates)].map(Arg::size);
    let plan = product_plan(block, c.kind(), b.of, a.rows, b.rows);
    // SAFETY: lengths are checked above; a factor's buffers are as long as its shape says.
    unsafe { cx.launch(&plan, &[&buffers[..], &sizes].concat()) }
}

/// What a block of threads has of a product's result. A warp has sixteen rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    name: &'static str,
    rows: usize,
    cols: usize,
    /// Tiles of the contraction that are in shared memory at once.
    stages: usize,
}

const LARGE: Block = Block { name: "large", rows: 128, cols: 128, stages: 3 };
const MEDIUM: Block = Block { name: "medium", rows: 64, cols: 64, stages: 4 };
const SMALL: Block = Block { name: "small", rows: 64, cols: 32, stages: 8 };

impl Block {
    /// The largest that leaves enough blocks.
    fn of(rows: usize, cols: usize) -> Block {
        let count = |block: &Block| rows.div_ceil(block.rows) * cols.div_ceil(block.cols);
        [LARGE, MEDIUM].into_iter().find(|block| count(block) >= BLOCKS_MIN).unwrap_or(SMALL)
    }

    fn threads(self) -> u32 {
        u32::try_from(2 * self.rows).unwrap_or(u32::MAX)
    }

    fn shared_bytes(self) -> u32 {
        let bytes = self.stages * (self.rows + self.cols) * TILE + GROUP_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

fn grid(x: usize, y: usize) -> [u32; 3] {
    let [x, y] = [x, y].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    [x, y, 1]
}

fn rows_plan(kind: Kind, rows: usize, depth: usize) -> Plan {
    assert_float("x", kind);
    let is_whole = depth.is_multiple_of(EIGHT);
    let plan = Plan::new(&SOURCE, format!("fp8_rows_{kind}_{is_whole}"), 0, 256);
    Plan { grid: grid(rows.div_ceil(QUANTIZED_ROWS), depth.div_ceil(TILE)), ..plan }
}

fn columns_plan(kind: Kind, depth: usize, cols: usize) -> Plan {
    assert_float("x", kind);
    let plan = Plan::new(&SOURCE, format!("fp8_columns_{kind}"), 0, 256);
    Plan { grid: grid(cols.div_ceil(QUANTIZED_COLS), depth.div_ceil(TILE)), ..plan }
}

fn blocks_plan(rows: usize, cols: usize) -> Plan {
    let plan = Plan::new(&SOURCE, "fp8_blocks", 0, 256);
    Plan { grid: grid(cols.div_ceil(TILE), rows.div_ceil(TILE)), ..plan }
}

fn product_plan(block: Block, kind: Kind, b: Scales, rows: usize, cols: usize) -> Plan {
    assert_float("c", kind);
    let of_blocks = b == Scales::OfBlocks;
    assert!(of_blocks || kind == Kind::F32, "gradients of weights are f32");
    let name = format!("fp8_product_{}_{kind}_{of_blocks}", block.name);
    let plan = Plan::new(&SOURCE, name, 0, block.threads());
    let grid = grid(cols.div_ceil(block.cols), rows.div_ceil(block.rows));
    Plan { grid, shared_bytes: block.shared_bytes(), ..plan }
}
