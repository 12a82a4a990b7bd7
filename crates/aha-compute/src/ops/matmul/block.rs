//! Splits a product among threads and into blocks that stay in the caches.
//!
//! A task owns a rectangle of outputs and walks the contraction in blocks: the right operand's block goes
//! into panels (a packed weight already is), then block after block of rows passes over it. One panel of
//! the right operand stays in the first-level cache while the rows of a block, in the second, pass by.

use std::ops::Range;

use crate::Device;
use crate::tensor::Shards;

use super::kernel::{self, Block};
use super::pack::{self, Aligned, Tile, Tiles};

/// Deepest block: a panel of it fills half of a first-level cache of 32 KiB.
const DEPTH_MAX: usize = 320;
/// Most rows of a block: with the depth above, half of a second-level cache of 512 KiB.
const ROWS_MAX: usize = 192;
/// Most columns of a task, so that its outputs are still cached when the next block of the contraction
/// comes.
const COLS_MAX: usize = 1024;
/// Products with fewer multiply-adds stay on the caller's thread: waking another costs more.
const ALONE_MAX: usize = 50_000;
/// Rows of a task, in tiles, up to which its left operand is read in place.
const IN_PLACE_TILES: usize = 4;

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

/// The left operand.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `(rows, depth)`.
    Rows(&'a [f32]),
    /// `(depth, rows)`.
    Columns(&'a [f32]),
}

/// The right operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Panels `(depth, tile columns)`, the last filled up with zeros.
    Panels(&'a [f32]),
    /// `(depth, cols)`.
    Rows(&'a [f32]),
}

/// Computes a product into `c`.
pub(super) fn run(device: &Device, c: &mut [f32], product: &Product) {
    if product.rows == 0 || product.cols == 0 {
        return;
    }
    check(c, product, device);
    let tile = Tile::of(device.isa());
    let grid = Grid::choose(product, tile, device.threads());
    let (row_tasks, col_tasks) = grid.tasks(product);
    let c = Shards::new(c);
    // Tasks that follow each other share columns, and so the right operand in a shared cache.
    device.run(row_tasks * col_tasks, |i| {
        let (row, col) = (i % row_tasks * grid.rows, i / row_tasks * grid.cols);
        let task = Task {
            device,
            product,
            tile,
            rows: row..(row + grid.rows).min(product.rows),
            cols: col..(col + grid.cols).min(product.cols),
        };
        task.run(&c);
    });
}

/// The kernel works on raw pointers: this is where the operands' sizes are made sure of.
fn check(c: &[f32], product: &Product, device: &Device) {
    let &Product { rows, cols, depth, left, right, bias, .. } = product;
    let tile = Tile::of(device.isa());
    assert_eq!(c.len(), rows * cols, "outputs");
    let (Left::Rows(a) | Left::Columns(a)) = left;
    assert_eq!(a.len(), rows * depth, "left operand");
    match right {
        Right::Panels(b) => assert_eq!(b.len(), cols.next_multiple_of(tile.cols) * depth, "panels"),
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
            Left::Rows(_) if self.rows <= IN_PLACE_TILES * tile.rows => 0.0,
            Left::Rows(_) => 1.0,
            Left::Columns(_) => 0.5,
        };
        let right = match product.right {
            Right::Panels(_) => 0.25,
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
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Task<'_> {
    fn run(&self, c: &Shards) {
        let Product { depth, .. } = *self.product;
        let step = self.depth_step();
        let row_step = even_step(self.rows.len(), ROWS_MAX, self.tile.rows);
        let mut left = match self.product.left {
            Left::Rows(_) if self.is_in_place() => Aligned::uninit(self.device, 0),
            _ => Aligned::uninit(self.device, row_step * step),
        };
        let mut right = match self.product.right {
            Right::Panels(_) => Aligned::uninit(self.device, 0),
            Right::Rows(_) => {
                let cols = self.cols.len().next_multiple_of(self.tile.cols);
                Aligned::uninit(self.device, cols * step)
            }
        };
        let mut from = 0;
        loop {
            // A contraction of length zero still has one block, which writes zeros.
            let part = from..(from + step).min(depth);
            let (b, b_stride) = self.right_block(&mut right, part.clone());
            for row in self.rows.clone().step_by(row_step) {
                let rows = row..(row + row_step).min(self.rows.end);
                let (a, a_stride) = self.left_block(&mut left, rows.clone(), part.clone());
                self.block(c, rows, part.clone(), (a, a_stride), (b, b_stride));
            }
            from = part.end;
            if from >= depth {
                break;
            }
        }
    }

    fn is_in_place(&self) -> bool {
        self.rows.len() <= IN_PLACE_TILES * self.tile.rows
    }

    /// Depth of the blocks. Where one tile has all rows, nothing is read twice and nothing needs to stay
    /// in a cache.
    fn depth_step(&self) -> usize {
        let is_read_once = self.rows.len() <= self.tile.rows;
        match self.product.right {
            Right::Panels(_) if is_read_once => self.product.depth.max(1),
            _ => even_step(self.product.depth, DEPTH_MAX, 1),
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
            Right::Rows(b) => {
                let (stride, isa) = (self.product.cols, self.device.isa());
                let from = &b[(part.start * stride + self.cols.start).min(b.len())..];
                pack::right_of_rows(
                    isa,
                    scratch.as_mut_slice(),
                    from,
                    stride,
                    part.len(),
                    self.cols.len(),
                );
                (scratch.as_slice().as_ptr(), part.len() * width)
            }
        }
    }

    /// The left operand's rows for a part of the contraction: packed, or in place with their distance.
    fn left_block(
        &self,
        scratch: &mut Aligned,
        rows: Range<usize>,
        part: Range<usize>,
    ) -> (*const f32, Option<usize>) {
        let tiles = Tiles::new(rows.len(), self.tile.rows);
        match self.product.left {
            Left::Rows(a) => {
                let stride = self.product.depth;
                let from = &a[rows.start * stride + part.start..];
                if self.is_in_place() {
                    return (from.as_ptr(), Some(stride));
                }
                pack::left_of_rows(scratch.as_mut_slice(), from, stride, part.len(), tiles);
            }
            Left::Columns(a) => {
                let stride = self.product.rows;
                let from = &a[(part.start * stride + rows.start).min(a.len())..];
                pack::left_of_columns(scratch.as_mut_slice(), from, stride, part.len(), tiles);
            }
        }
        (scratch.as_slice().as_ptr(), None)
    }

    fn block(
        &self,
        c: &Shards,
        rows: Range<usize>,
        part: Range<usize>,
        (a, a_stride): (*const f32, Option<usize>),
        (b, b_stride): (*const f32, usize),
    ) {
        let Product { cols: c_stride, depth, accumulate, bias, .. } = *self.product;
        let is_last = part.end == depth;
        let block = Block {
            // In bounds: rows and columns are those of the product, whose size `check` made sure of.
            c: c.as_mut_ptr().wrapping_add(rows.start * c_stride + self.cols.start),
            c_stride,
            rows: rows.len(),
            cols: self.cols.len(),
            depth: part.len(),
            a,
            a_stride,
            b,
            b_stride,
            accumulate: accumulate || part.start > 0,
            bias: bias.filter(|_| is_last).map(|bias| bias[self.cols.start..].as_ptr()),
        };
        kernel::block(self.device.isa(), &block);
    }
}

/// The step that splits `len` in as few even parts of at most `max` as it needs, a multiple of `unit`.
fn even_step(len: usize, max: usize, unit: usize) -> usize {
    let parts = len.div_ceil(max).max(1);
    len.div_ceil(parts).max(1).next_multiple_of(unit)
}
