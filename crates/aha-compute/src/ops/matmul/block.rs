//! Splits a product among threads and into blocks that stay in the caches.
//!
//! A task owns a rectangle of outputs and walks the contraction in blocks: the right operand's block goes
//! into panels (a packed weight already is), then block after block of rows passes over it. One panel of
//! the right operand stays in the first-level cache while the rows of a block, in the second, pass by.

use std::ops::Range;

use half::bf16;

use crate::simd::Isa;
use crate::tensor::{self, Dtype, Shards, Values};
use crate::{Device, Tensor};

use super::kernel::{self, Block, Form, Region};
use super::pack::{self, Aligned, Steps, Tile, Tiles};
use super::pairs;

/// Deepest block: a panel of it fills half of a first-level cache of 32 KiB.
const DEPTH_MAX: usize = 320;
/// The same of words. Their panels then stay in the second-level cache, which is near enough for dots, and sums are
/// loaded and stored half as often.
const WORDS_DEPTH_MAX: usize = 2 * DEPTH_MAX;
/// Most rows of a block: with the depth in floats, half of a second-level cache of 512 KiB.
const ROWS_MAX: usize = 192;
/// Most columns of a task, so that its outputs are still cached when the next block of the contraction
/// comes.
const COLS_MAX: usize = 1024;
/// Products with fewer multiply-adds stay on the caller's thread: waking another costs more.
const ALONE_MAX: usize = 50_000;
/// Rows of a task, in tiles, up to which its left operand is read in place whatever its depth.
const IN_PLACE_TILES: usize = 4;
/// Most rows whose sums are kept in `f32` until they are finished and rounded.
const ROUNDED_ROWS_MAX: usize = 96;

/// `c (rows, cols) (=|+=) left (rows, depth)·right (depth, cols) + bias (cols)`.
pub(super) struct Product<'a> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) depth: usize,
    pub(super) left: Left<'a>,
    pub(super) right: Right<'a>,
    /// Whether the sums start at what `c` holds.
    pub(super) accumulate: bool,
    /// Added to the finished sums.
    pub(super) bias: Option<&'a [f32]>,
}

/// The left operand. Its kind is that of the product: with bf16 both operands are rounded to it.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `(rows, depth)`.
    Rows(Values<'a>),
    /// `(depth, rows)`.
    Columns(Values<'a>),
}

impl<'a> Left<'a> {
    fn values(self) -> Values<'a> {
        match self {
            Left::Rows(values) | Left::Columns(values) => values,
        }
    }

    fn is_bf16(self) -> bool {
        matches!(self.values(), Values::Bf16(_))
    }
}

/// The right operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Panels `(depth, tile columns)`, the last filled up with zeros.
    Panels(&'a [f32]),
    /// Panels of words, for bf16 products only.
    Words(&'a [f32]),
    /// Panels of bytes, and what each column's finished sums are multiplied by.
    Bytes { panels: &'a [f32], scales: &'a [f32] },
    /// `(depth, cols)`.
    Rows(Values<'a>),
}

/// Where outputs go.
pub(crate) enum Out<'a> {
    /// As they are.
    F32(Shards<'a, f32>),
    /// Rounded when their sums are finished; they can't accumulate.
    Bf16(Shards<'a, bf16>),
}

impl<'a> Out<'a> {
    /// The elements of a tensor.
    pub(super) fn of(tensor: &'a mut Tensor) -> Out<'a> {
        match tensor.dtype() {
            Dtype::F32 => Out::F32(Shards::new(tensor.as_mut_slice())),
            Dtype::Bf16 => Out::Bf16(Shards::new(tensor.as_mut_bf16())),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Out::F32(out) => out.len(),
            Out::Bf16(out) => out.len(),
        }
    }
}

/// Computes a product into `c`.
pub(super) fn run(device: &Device, c: &Out<'_>, product: &Product) {
    let in_words = product.left.is_bf16()
        && !matches!(product.right, Right::Bytes { .. })
        && device.isa() == Isa::Avx512Bf16
        && pairs::round_twice(device);
    run_as(device, c, product, in_words);
}

/// [`run`], with both operands in words or not.
pub(super) fn run_as(device: &Device, c: &Out<'_>, product: &Product, in_words: bool) {
    if product.rows == 0 || product.cols == 0 {
        return;
    }
    check(c, product, device);
    let tile = Tile::of(device.isa());
    let grid = Grid::choose(product, tile, device.threads());
    let (row_tasks, col_tasks) = grid.tasks(product);
    // Tasks that follow each other share columns, and so the right operand in a shared cache.
    device.run(row_tasks * col_tasks, |i| {
        let (row, col) = (i % row_tasks * grid.rows, i / row_tasks * grid.cols);
        let task = Task {
            device,
            product,
            tile,
            in_words,
            rows: row..(row + grid.rows).min(product.rows),
            cols: col..(col + grid.cols).min(product.cols),
        };
        task.run(c);
    });
}

/// The kernel works on raw pointers: this is where the operands' sizes are made sure of.
fn check(c: &Out<'_>, product: &Product, device: &Device) {
    let &Product { rows, cols, depth, left, right, accumulate, bias } = product;
    let width = cols.next_multiple_of(Tile::of(device.isa()).cols);
    assert_eq!(c.len(), rows * cols, "outputs");
    assert!(!accumulate || matches!(c, Out::F32(_)), "rounded outputs can't accumulate");
    assert_eq!(left.values().len(), rows * depth, "left operand");
    match right {
        Right::Panels(b) => {
            assert!(!left.is_bf16(), "panels of floats for a bf16 product");
            assert_eq!(b.len(), width * depth, "panels");
        }
        Right::Words(b) => {
            assert!(left.is_bf16(), "panels of words for an f32 product");
            assert_eq!(b.len(), width * Steps::Words.rows(depth), "panels of words");
        }
        Right::Bytes { panels, scales } => {
            assert_eq!(panels.len(), width * Steps::Bytes.rows(depth), "panels of bytes");
            assert_eq!(scales.len(), cols, "scales");
        }
        Right::Rows(b) => assert_eq!(b.len(), depth * cols, "right operand"),
    }
    assert!(bias.is_none_or(|bias| bias.len() == cols), "bias");
}

/// Rows and columns of a task.
#[derive(Clone, Copy, Debug)]
struct Grid {
    rows: usize,
    cols: usize,
}

impl Grid {
    /// The grid that is done first by an estimate in cycles.
    fn choose(product: &Product, tile: Tile, threads: usize) -> Grid {
        let cols_least = product.cols.div_ceil(COLS_MAX);
        let alone = product.rows * product.cols * product.depth < ALONE_MAX || threads == 1;
        if alone {
            return Grid::of(product, tile, 1, cols_least);
        }
        let mut best = (f64::INFINITY, Grid::of(product, tile, 1, cols_least));
        for tasks in [threads, 2 * threads, 4 * threads] {
            for row_tasks in 1..=tasks {
                let col_tasks = tasks.div_ceil(row_tasks).max(cols_least);
                let grid = Grid::of(product, tile, row_tasks, col_tasks);
                let cycles = grid.cycles(product, tile, threads);
                if cycles < best.0 {
                    best = (cycles, grid);
                }
            }
        }
        best.1
    }

    /// About `row_tasks` by `col_tasks` tasks.
    fn of(product: &Product, tile: Tile, row_tasks: usize, col_tasks: usize) -> Grid {
        let rows = product.rows.div_ceil(row_tasks);
        // Four panels are worked on at once where rows are few.
        let panels = if product.rows < tile.rows { 4 } else { 1 };
        Grid {
            rows: if row_tasks == 1 { rows } else { rows.next_multiple_of(tile.rows) },
            cols: product.cols.div_ceil(col_tasks).next_multiple_of(panels * tile.cols),
        }
    }

    fn tasks(self, product: &Product) -> (usize, usize) {
        (product.rows.div_ceil(self.rows), product.cols.div_ceil(self.cols))
    }

    /// An estimate of the time until all tasks are done.
    fn cycles(self, product: &Product, tile: Tile, threads: usize) -> f64 {
        let left = match product.left {
            left if is_in_place(left, self.rows, product.depth, tile) => 0.0,
            Left::Rows(_) => 1.0,
            Left::Columns(_) => 0.5,
        };
        let right = match product.right {
            Right::Panels(_) | Right::Words(_) | Right::Bytes { .. } => 0.25,
            Right::Rows(_) => 0.75,
        };
        let (rows, cols) = (self.rows as f64, self.cols as f64);
        let per_depth = rows * cols / tile.cols as f64 + left * rows + right * cols;
        let task = per_depth * product.depth as f64 + 500.0;
        let (row_tasks, col_tasks) = self.tasks(product);
        // A thread that others hold up finishes late: the smaller its last task, the better.
        task * ((row_tasks * col_tasks).div_ceil(threads) as f64 + 0.1)
    }
}

struct Task<'a> {
    device: &'a Device,
    product: &'a Product<'a>,
    tile: Tile,
    /// Whether both operands are packed in words.
    in_words: bool,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// Packed operands of a task's block.
struct Scratch {
    left: Aligned,
    right: Aligned,
    /// A panel of words or bytes as floats.
    floats: Aligned,
}

/// The first output of some rows and the task's columns, and how far apart rows are.
#[derive(Clone, Copy)]
struct Outputs {
    at: *mut f32,
    stride: usize,
}

impl Task<'_> {
    fn run(&self, c: &Out<'_>) {
        match c {
            Out::F32(c) => {
                let stride = self.product.cols;
                // In bounds: rows and columns are those of the product, whose size `check` made sure of.
                let at = c.as_mut_ptr().wrapping_add(self.rows.start * stride + self.cols.start);
                self.walk(self.rows.clone(), ROWS_MAX, Outputs { at, stride });
            }
            Out::Bf16(c) => {
                let step = even_step(self.rows.len(), ROUNDED_ROWS_MAX, self.tile.rows);
                let stride = self.cols.len();
                let mut sums = Aligned::uninit(self.device, step * stride);
                for row in self.rows.clone().step_by(step) {
                    let rows = row..(row + step).min(self.rows.end);
                    let at = sums.as_mut_slice().as_mut_ptr();
                    self.walk(rows.clone(), step, Outputs { at, stride });
                    for (row, sums) in rows.zip(sums.as_slice().chunks_exact(stride)) {
                        let at = row * self.product.cols;
                        // SAFETY: each output belongs to one task.
                        let to = unsafe { c.slice(at + self.cols.start, at + self.cols.end) };
                        tensor::round(self.device.isa(), to, sums);
                    }
                }
            }
        }
    }

    /// Computes some of the task's rows, at most `rows_max` at a time.
    fn walk(&self, all: Range<usize>, rows_max: usize, c: Outputs) {
        let depth = self.product.depth;
        let (row_step, step) =
            (even_step(all.len(), rows_max, self.tile.rows), self.depth_step(all.len()));
        let mut scratch = self.scratch(row_step, step);
        let mut from = 0;
        loop {
            // A contraction of length zero still has one block, which writes zeros.
            let part = from..(from + step).min(depth);
            let (b, b_stride) = self.right_block(&mut scratch.right, part.clone());
            for row in all.clone().step_by(row_step) {
                let rows = row..(row + row_step).min(all.end);
                let (a, form) = self.left_block(&mut scratch.left, rows.clone(), part.clone());
                let offset = (row - all.start) * c.stride;
                let c = Outputs { at: c.at.wrapping_add(offset), ..c };
                let scratch = scratch.floats.as_mut_slice().as_mut_ptr();
                self.block(c, rows.len(), part.clone(), (a, form), (b, b_stride), scratch);
            }
            from = part.end;
            if from >= depth {
                break;
            }
        }
    }

    fn scratch(&self, row_step: usize, step: usize) -> Scratch {
        let left_len = if self.is_in_place() { 0 } else { row_step * self.steps().rows(step) };
        let floats_len = match self.product.right {
            Right::Words(_) if !self.in_words => step.next_multiple_of(2) * self.tile.cols,
            Right::Bytes { .. } => step * self.tile.cols,
            _ => 0,
        };
        let right_len = match self.product.right {
            Right::Panels(_) | Right::Words(_) | Right::Bytes { .. } => 0,
            Right::Rows(_) => {
                self.cols.len().next_multiple_of(self.tile.cols) * self.steps().rows(step)
            }
        };
        Scratch {
            left: Aligned::uninit(self.device, left_len),
            right: Aligned::uninit(self.device, right_len),
            floats: Aligned::uninit(self.device, floats_len),
        }
    }

    fn is_in_place(&self) -> bool {
        is_in_place(self.product.left, self.rows.len(), self.product.depth, self.tile)
    }

    /// How the panels are laid out that are packed here.
    fn steps(&self) -> Steps {
        match (self.product.left.is_bf16(), self.in_words) {
            _ if matches!(self.product.right, Right::Bytes { .. }) => Steps::Floats,
            (false, _) => Steps::Floats,
            (true, false) => Steps::EvenFloats,
            (true, true) => Steps::Words,
        }
    }

    /// Depth of the blocks for so many rows. Where one tile has all rows, nothing is read twice and nothing
    /// needs to stay in a cache.
    fn depth_step(&self, row_count: usize) -> usize {
        let is_read_once = row_count <= self.tile.rows;
        let depth = self.product.depth;
        match self.product.right {
            Right::Panels(_) | Right::Words(_) | Right::Bytes { .. } if is_read_once => {
                depth.max(1)
            }
            // A float holds four steps.
            Right::Bytes { .. } => even_step(depth, DEPTH_MAX, 4),
            // Words end with a block.
            _ if self.in_words => even_step(depth, WORDS_DEPTH_MAX, 2),
            _ if self.product.left.is_bf16() => even_step(depth, DEPTH_MAX, 2),
            _ => even_step(depth, DEPTH_MAX, 1),
        }
    }

    /// The right operand's panels for a part of the contraction, and how far apart they are.
    fn right_block(&self, scratch: &mut Aligned, part: Range<usize>) -> (*const f32, usize) {
        let (depth, width) = (self.product.depth, self.tile.cols);
        match self.product.right {
            Right::Panels(panels) => {
                let panel_len = depth * width;
                let at = self.cols.start / width * panel_len + part.start * width;
                (panels[at..].as_ptr(), panel_len)
            }
            Right::Words(panels) => {
                let panel_len = Steps::Words.rows(depth) * width;
                let at = self.cols.start / width * panel_len + part.start / 2 * width;
                (panels[at..].as_ptr(), panel_len)
            }
            Right::Bytes { panels, .. } => {
                let panel_len = Steps::Bytes.rows(depth) * width;
                let at = self.cols.start / width * panel_len + part.start / 4 * width;
                (panels[at..].as_ptr(), panel_len)
            }
            Right::Rows(b) => {
                let (stride, isa, steps) = (self.product.cols, self.device.isa(), self.steps());
                let from = b.slice((part.start * stride + self.cols.start).min(b.len())..b.len());
                let to = scratch.as_mut_slice();
                pack::right_of_rows(isa, to, from, stride, part.len(), self.cols.len(), steps);
                (scratch.as_slice().as_ptr(), steps.rows(part.len()) * width)
            }
        }
    }

    /// The left operand's rows for a part of the contraction, and what they look like.
    fn left_block(
        &self,
        scratch: &mut Aligned,
        rows: Range<usize>,
        part: Range<usize>,
    ) -> (*const f32, Form) {
        let (isa, steps) = (self.device.isa(), self.steps());
        let to = scratch.as_mut_slice();
        let form = match self.product.left {
            Left::Rows(a) => {
                let stride = self.product.depth;
                let from = a.slice((rows.start * stride + part.start).min(a.len())..a.len());
                if let Values::F32(from) = from
                    && self.is_in_place()
                {
                    let form = match self.product.right {
                        Right::Bytes { .. } => Form::RowsByBytes(stride),
                        _ => Form::Rows(stride),
                    };
                    return (from.as_ptr(), form);
                }
                pack::left_of_rows(isa, to, from, stride, part.len(), rows.len(), steps);
                let stride = steps.rows(part.len());
                match (steps, self.product.right) {
                    (Steps::Words, _) => Form::WordRows(stride),
                    (_, Right::Words(_)) => Form::RowsByWords(stride),
                    (_, Right::Bytes { .. }) => Form::RowsByBytes(stride),
                    _ => Form::Rows(stride),
                }
            }
            Left::Columns(a) => {
                let stride = self.product.rows;
                let from = a.slice((part.start * stride + rows.start).min(a.len())..a.len());
                let tiles = Tiles::new(rows.len(), self.tile.rows);
                pack::left_of_columns(isa, to, from, stride, part.len(), tiles, steps);
                if steps == Steps::Words { Form::WordPanels } else { Form::Panels }
            }
        };
        (to.as_ptr(), form)
    }

    fn block(
        &self,
        c: Outputs,
        rows: usize,
        part: Range<usize>,
        (a, form): (*const f32, Form),
        (b, b_stride): (*const f32, usize),
        scratch: *mut f32,
    ) {
        let Product { depth, accumulate, bias, .. } = *self.product;
        let is_last = part.end == depth;
        let block = Block {
            c: c.at,
            c_stride: c.stride,
            rows,
            cols: self.cols.len(),
            depth: match self.steps() {
                Steps::Floats => part.len(),
                _ => part.len().next_multiple_of(2),
            },
            a,
            form,
            scratch,
            b,
            b_stride,
            accumulate: accumulate || part.start > 0,
            scales: match self.product.right {
                Right::Bytes { scales, .. } if is_last => Some(scales[self.cols.start..].as_ptr()),
                _ => None,
            },
            bias: bias.filter(|_| is_last).map(|bias| bias[self.cols.start..].as_ptr()),
            ahead: Region::NONE,
        };
        kernel::block(self.device.isa(), &block);
    }
}

/// Whether so many rows of the left operand are read where they are: floats that few tiles read, or that a block takes
/// whole, so that a copy would look the same.
fn is_in_place(left: Left<'_>, rows: usize, depth: usize, tile: Tile) -> bool {
    matches!(left, Left::Rows(Values::F32(_)))
        && (rows <= IN_PLACE_TILES * tile.rows || depth <= DEPTH_MAX)
}

/// The step that splits `len` in as few even parts of at most `max` as it needs, a multiple of `unit`.
fn even_step(len: usize, max: usize, unit: usize) -> usize {
    let parts = len.div_ceil(max).max(1);
    len.div_ceil(parts).max(1).next_multiple_of(unit)
}
