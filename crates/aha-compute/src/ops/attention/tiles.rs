//! Cuts rows of queries into tiles and computes them on all threads.

use std::cmp::Reverse;

use super::kernel::{self, Keys, Tile};
use super::{Dims, PAGE_LEN};
use crate::simd::LANES;
use crate::tensor::Shards;
use crate::{Device, Tensor};

/// Most scores of a tile, in floats: they should stay in the cache of a core.
const SCORES_LEN_MAX: usize = 1 << 17;

/// Consecutive queries of a sequence, or of a segment of one.
pub(super) struct Span {
    /// Index of the sequence or segment.
    pub seq: usize,
    /// Row of the first query.
    pub row: usize,
    pub row_count: usize,
    /// Position of the first query.
    pub position: usize,
}

/// A tile's place.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub seq: usize,
    pub kv_head: usize,
    /// Row of the first query.
    row: usize,
    pub tile: Tile,
}

/// Tiles of one head of keys, in order.
pub(super) fn tiles_of(span: &Span, kv_head: usize, dims: Dims, scale: f32) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut done = 0;
    while done < span.row_count {
        let position = span.position + done;
        let queries = queries_of_tile(position, span.row_count - done, dims);
        let tile = Tile {
            row_count: queries * dims.group(),
            group: dims.group(),
            position,
            head_dim: dims.head_dim,
            scale,
        };
        tasks.push(Task { seq: span.seq, kv_head, row: span.row + done, tile });
        done += queries;
    }
    tasks
}

/// How many of `left` queries from `position` on the next tile takes: those in one page, or as many as have
/// their scores in a cache.
pub(super) fn queries_of_tile(position: usize, left: usize, dims: Dims) -> usize {
    let scores_len = (position / PAGE_LEN + 1) * PAGE_LEN;
    let queries_max = (SCORES_LEN_MAX / (scores_len * dims.group())).clamp(1, PAGE_LEN);
    (PAGE_LEN - position % PAGE_LEN).min(left).min(queries_max)
}

/// Tiles of all heads, those with most keys first so that threads end together.
pub(super) fn all_tiles(spans: impl Iterator<Item = Span>, dims: Dims, scale: f32) -> Vec<Task> {
    let mut tasks = Vec::new();
    for span in spans {
        for kv_head in 0..dims.kv_heads {
            tasks.extend(tiles_of(&span, kv_head, dims, scale));
        }
    }
    tasks.sort_by_key(|task| Reverse(task.tile.position));
    tasks
}

impl Task {
    /// Where row `r` of the tile is, counted in heads from the start of `q`.
    fn head_idx(&self, r: usize, dims: Dims) -> usize {
        let group = self.tile.group;
        (self.row + r / group) * dims.heads + self.kv_head * group + r % group
    }

    /// Copies the tile's rows of `from` `(T, H·width)` to `to` `(rows, width)`.
    pub fn gather(&self, to: &mut [f32], from: &[f32], width: usize, dims: Dims) {
        for (r, to) in to.chunks_exact_mut(width).enumerate() {
            copy_row(to, &from[self.head_idx(r, dims) * width..][..width]);
        }
    }

    /// Copies the tile's rows from `from` `(rows, width)` to `to` `(T, H·width)`.
    pub fn scatter(&self, to: &Shards<'_>, from: &[f32], width: usize, dims: Dims) {
        for (r, from) in from.chunks_exact(width).enumerate() {
            let at = self.head_idx(r, dims) * width;
            // SAFETY: a query's head belongs to one tile only.
            copy_row(unsafe { to.slice(at, at + width) }, from);
        }
    }
}

/// Copies a head of a row, or one number: too little for a call of `memcpy`, which a loop would become.
#[inline(always)]
pub(super) fn copy_row(to: &mut [f32], from: &[f32]) {
    const TWICE: usize = 2 * LANES;
    match to.len() {
        1 => to[0] = from[0],
        LANES => copy_whole::<LANES>(to, from),
        TWICE => copy_whole::<TWICE>(to, from),
        _ => to.copy_from_slice(from),
    }
}

#[inline(always)]
fn copy_whole<const N: usize>(to: &mut [f32], from: &[f32]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
}

/// Computes `o`, and `lse` if wanted, of all tasks.
pub(super) fn forward<'k>(
    o: &mut Tensor,
    lse: Option<&mut Tensor>,
    q: &Tensor,
    keys: impl Fn(&Task) -> Keys<'k> + Sync,
    tasks: &[Task],
    dims: Dims,
) {
    let device = q.device();
    // One size for all, so that the device hands out the same buffers again and again.
    let needed = |t: &Task| 2 * t.tile.rows_len() + t.tile.row_count + t.tile.forward_scratch_len();
    let scratch_len = tasks.iter().map(needed).max().unwrap_or(0).next_power_of_two();
    let o = Shards::new(o.as_mut_slice());
    let lse = lse.map(|lse| Shards::new(lse.as_mut_slice()));
    device.run(tasks.len(), |i| {
        let task = &tasks[i];
        let tile = task.tile;
        with_scratch(device, scratch_len, |scratch| {
            let (rows, rest) = scratch.split_at_mut(tile.rows_len());
            let (out, rest) = rest.split_at_mut(tile.rows_len());
            let (nats, rest) = rest.split_at_mut(tile.row_count);
            task.gather(rows, q.as_slice(), dims.head_dim, dims);
            kernel::forward(device.isa(), out, nats, rows, &keys(task), rest, tile);
            task.scatter(&o, out, dims.head_dim, dims);
            if let Some(lse) = &lse {
                task.scatter(lse, nats, 1, dims);
            }
        });
    });
}

/// Lends `len` floats with unspecified contents.
pub(super) fn with_scratch(device: &Device, len: usize, f: impl FnOnce(&mut [f32])) {
    let mut scratch = device.take(len);
    f(&mut scratch);
    device.give(scratch);
}
