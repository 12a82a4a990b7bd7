//! Inner loops: a tile of query rows against pages of sixteen keys.
//!
//! The rows of a tile are consecutive queries, each with the heads of one group, so a key that is loaded
//! once serves them all. A tile's queries lie in one page, so all its rows read the same pages, and only
//! the last page has keys that some row must not see. Those may be anything, even NaN: they are never
//! used.

use std::ops::Range;

use super::PAGE_LEN;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, LANES, Portable, Simd, simd_fn};
use crate::tensor::Values;

/// Rows that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Queries times heads of the group; row `r` is query `r / group`.
    pub row_count: usize,
    pub group: usize,
    /// Position of the first query.
    pub position: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl Tile {
    /// Pages that the rows read.
    pub fn page_count(self) -> usize {
        self.position / PAGE_LEN + 1
    }

    /// Floats of the rows.
    pub fn rows_len(self) -> usize {
        self.row_count * self.head_dim
    }

    /// Scores of a row, those in the last page that it must not see included.
    fn scores_len(self) -> usize {
        self.page_count() * PAGE_LEN
    }

    /// Keys of the last page that row `r` sees.
    fn last_len(self, r: usize) -> usize {
        (self.position + r / self.group) % PAGE_LEN + 1
    }

    /// Floats of scratch that [`forward`] needs.
    pub fn forward_scratch_len(self) -> usize {
        self.rows_len() + self.row_count * (1 + self.scores_len()) + PAGE_LEN * self.head_dim
    }

    /// Floats of scratch that [`backward`] needs.
    pub fn backward_scratch_len(self) -> usize {
        2 * self.rows_len() + 2 * self.row_count * self.scores_len()
    }
}

/// Where the pages of a head's keys and values are.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    /// Keys from this head in page 0 on; a page's head is `(D, 16)`.
    pub k: Values<'a>,
    /// Values from this head in page 0 on; a page's head is `(16, D)`.
    pub v: Values<'a>,
    /// The pages that hold the sequence.
    pub ids: &'a [u32],
    pub page_stride: usize,
}

impl Keys<'_> {
    /// The keys of a page; `wide` takes those that aren't `f32`.
    #[inline(always)]
    unsafe fn k_page<'s, S: Simd>(&'s self, page: usize, wide: &'s mut [f32]) -> &'s [f32] {
        unsafe { self.page::<S>(self.k, page, wide.len(), wide) }
    }

    /// The first `count` rows of a page of values; `wide` takes those that aren't `f32`.
    #[inline(always)]
    unsafe fn v_rows<'s, S: Simd>(
        &'s self,
        page: usize,
        count: usize,
        wide: &'s mut [f32],
    ) -> &'s [f32] {
        unsafe { self.page::<S>(self.v, page, wide.len() / PAGE_LEN * count, wide) }
    }

    #[inline(always)]
    unsafe fn page<'s, S: Simd>(
        &'s self,
        of: Values<'s>,
        page: usize,
        len: usize,
        wide: &'s mut [f32],
    ) -> &'s [f32] {
        let at = self.ids[page] as usize * self.page_stride;
        match of {
            Values::F32(all) => &all[at..at + len],
            Values::Bf16(all) => {
                let (from, to) = (&all[at..at + len], &mut wide[..len]);
                for (from, to) in from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)) {
                    unsafe { S::store(to.as_mut_ptr(), S::load_bf16(from.as_ptr())) };
                }
                to
            }
        }
    }
}

/// Rows that fill the registers.
pub(super) fn register_rows(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => Avx512::TILE_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx2::TILE_ROWS,
        _ => Portable::TILE_ROWS,
    }
}

simd_fn! {
    /// Attention of the query `rows` `(rows, D)`: `out` `(rows, D)` and `lse` `(rows)`.
    pub(super) fn forward<S>(
        out: &mut [f32],
        lse: &mut [f32],
        rows: &[f32],
        keys: &Keys<'_>,
        scratch: &mut [f32],
        tile: Tile,
    ) {
        let (n, d, stride) = (tile.row_count, tile.head_dim, tile.scores_len());
        assert!(out.len() == n * d && rows.len() == n * d && lse.len() == n);
        let (columns, rest) = scratch.split_at_mut(n * d);
        let (sums, rest) = rest.split_at_mut(n);
        let (wide, rest) = rest.split_at_mut(PAGE_LEN * d);
        let scores = &mut rest[..n * stride];

        interleave::<S>(columns, rows, d);
        score_pages::<S>(scores, stride, columns, keys, 0..tile.page_count(), wide, tile);
        for r in 0..n {
            let (max, sum) = softmax::<S>(&mut scores[r * stride..(r + 1) * stride], tile.last_len(r));
            sums[r] = sum;
            lse[r] = (f64::from(max) + f64::from(sum).ln()) as f32;
        }
        out.fill(0.0);
        mix_pages::<S>(out, scores, stride, keys, 0, wide, tile);
        divide_rows::<S>(out, sums, d);
    }
}

/// Sequences that are computed together: the queries of one, or a query each of several that have the same pages
/// in front.
pub(super) struct Members<'a> {
    pub count: usize,
    /// Pages in front that all have; they are full.
    pub shared_page_count: usize,
    /// Rows of all members together.
    pub row_count: usize,
    /// Most pages that a member reads.
    pub page_count_max: usize,
    /// A member's rows, and its keys.
    pub part: &'a dyn Fn(usize) -> (Tile, Keys<'a>),
}

impl Members<'_> {
    /// Floats of scratch that [`forward_members`] needs.
    pub fn scratch_len(&self, head_dim: usize) -> usize {
        self.row_count * (head_dim + 1 + self.page_count_max * PAGE_LEN) + PAGE_LEN * head_dim
    }
}

simd_fn! {
    /// As [`forward`] for the rows of several sequences, member after member, with the same bits: what a row adds
    /// up comes in the same order, first its keys in the shared pages, which are read once for all members.
    pub(super) fn forward_members<S>(
        out: &mut [f32],
        rows: &[f32],
        members: &Members<'_>,
        scratch: &mut [f32],
    ) {
        let (first, shared_keys) = (members.part)(0);
        let (n, d, stride) = (members.row_count, first.head_dim, members.page_count_max * PAGE_LEN);
        assert!(out.len() == n * d && rows.len() == n * d);
        let (columns, rest) = scratch.split_at_mut(n * d);
        let (sums, rest) = rest.split_at_mut(n);
        let (wide, rest) = rest.split_at_mut(PAGE_LEN * d);
        let scores = &mut rest[..n * stride];
        let all = Tile { row_count: n, ..first };
        let shared = members.shared_page_count;

        if shared > 0 {
            interleave::<S>(columns, rows, d);
            score_pages::<S>(scores, stride, columns, &shared_keys, 0..shared, wide, all);
        }
        let mut start = 0;
        for i in 0..members.count {
            let (tile, keys) = (members.part)(i);
            let of_tile = start..start + tile.row_count;
            let scores = &mut scores[of_tile.start * stride..of_tile.end * stride];
            let columns = &mut columns[..tile.rows_len()];
            interleave::<S>(columns, &rows[of_tile.start * d..of_tile.end * d], d);
            score_pages::<S>(scores, stride, columns, &keys, shared..tile.page_count(), wide, tile);
            for (r, sum) in sums[of_tile.clone()].iter_mut().enumerate() {
                let row = &mut scores[r * stride..][..tile.scores_len()];
                *sum = softmax::<S>(row, tile.last_len(r)).1;
            }
            start = of_tile.end;
        }
        assert_eq!(start, n, "rows of the members");
        out.fill(0.0);
        for page in 0..shared {
            let v = shared_keys.v_rows::<S>(page, PAGE_LEN, wide);
            mix_full::<S>(out, &scores[page * PAGE_LEN..], stride, v, d, PAGE_LEN, all);
        }
        let mut start = 0;
        for i in 0..members.count {
            let (tile, keys) = (members.part)(i);
            let out = &mut out[start * d..(start + tile.row_count) * d];
            mix_pages::<S>(out, &scores[start * stride..], stride, &keys, shared, wide, tile);
            start += tile.row_count;
        }
        divide_rows::<S>(out, sums, d);
    }
}

/// Scores of all rows of a tile for the keys of some pages.
#[inline(always)]
unsafe fn score_pages<S: Simd>(
    scores: &mut [f32],
    stride: usize,
    columns: &[f32],
    keys: &Keys<'_>,
    pages: Range<usize>,
    wide: &mut [f32],
    tile: Tile,
) {
    for page in pages {
        let to = &mut scores[page * PAGE_LEN..];
        unsafe {
            let keys = keys.k_page::<S>(page, wide);
            page_dots::<S>(to, stride, columns, keys, tile.scale, tile);
        }
    }
}

/// Adds the values of a tile's pages from `first` on, times their weights, to `out`.
#[inline(always)]
unsafe fn mix_pages<S: Simd>(
    out: &mut [f32],
    weights: &[f32],
    stride: usize,
    keys: &Keys<'_>,
    first: usize,
    wide: &mut [f32],
    tile: Tile,
) {
    let (last, d) = (tile.page_count() - 1, tile.head_dim);
    unsafe {
        for page in first..last {
            let v = keys.v_rows::<S>(page, PAGE_LEN, wide);
            mix_full::<S>(out, &weights[page * PAGE_LEN..], stride, v, d, PAGE_LEN, tile);
        }
        let v = keys.v_rows::<S>(last, tile.last_len(tile.row_count - 1), wide);
        mix_last::<S>(out, &weights[last * PAGE_LEN..], stride, v, d, tile);
    }
}

/// Divides each row by its sum.
#[inline(always)]
unsafe fn divide_rows<S: Simd>(out: &mut [f32], sums: &[f32], width: usize) {
    for (row, &sum) in out.chunks_exact_mut(width).zip(sums) {
        for part in row.chunks_exact_mut(LANES) {
            let at = part.as_mut_ptr();
            unsafe { S::store(at, S::div(S::load(at), S::splat(sum))) };
        }
    }
}

/// What the backward pass of a tile reads. Rows are `(rows, D)`.
pub(super) struct BackwardRows<'a> {
    pub q: &'a [f32],
    pub o: &'a [f32],
    pub do_: &'a [f32],
    /// `(rows)`.
    pub lse: &'a [f32],
    /// Keys and values from this head in page 0 on; a page's head is `(D, 16)`.
    pub k_columns: &'a [f32],
    pub v_columns: &'a [f32],
    /// Keys likewise; a page's head is `(16, D)`.
    pub k_rows: &'a [f32],
    /// The pages that hold the sequence.
    pub ids: &'a [u32],
    pub page_stride: usize,
}

impl BackwardRows<'_> {
    /// This head's part of a page.
    fn page<'p>(&self, pages: &'p [f32], page: usize, head_dim: usize) -> &'p [f32] {
        &pages[self.ids[page] as usize * self.page_stride..][..PAGE_LEN * head_dim]
    }
}

simd_fn! {
    /// Gradients of a tile: `dq` `(rows, D)` is written, `dk` and `dv` `(keys, D)` of the sequence are
    /// added to.
    pub(super) fn backward<S>(
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
        rows: &BackwardRows<'_>,
        scratch: &mut [f32],
        tile: Tile,
    ) {
        let (n, d, stride) = (tile.row_count, tile.head_dim, tile.scores_len());
        let key_count = (tile.page_count() - 1) * PAGE_LEN + tile.last_len(n - 1);
        assert!(dq.len() == n * d && rows.q.len() == n * d && rows.do_.len() == n * d && rows.o.len() == n * d);
        assert!(rows.lse.len() == n && dk.len() >= key_count * d && dv.len() >= key_count * d);
        let (q_columns, rest) = scratch.split_at_mut(n * d);
        let (do_columns, rest) = rest.split_at_mut(n * d);
        let (p, rest) = rest.split_at_mut(n * stride);
        let ds = &mut rest[..n * stride];

        interleave::<S>(q_columns, rows.q, d);
        interleave::<S>(do_columns, rows.do_, d);
        for page in 0..tile.page_count() {
            let at = page * PAGE_LEN;
            let (k, v) = (rows.page(rows.k_columns, page, d), rows.page(rows.v_columns, page, d));
            page_dots::<S>(&mut p[at..], stride, q_columns, k, tile.scale, tile);
            page_dots::<S>(&mut ds[at..], stride, do_columns, v, 1.0, tile);
        }
        for r in 0..n {
            let row = r * stride..(r + 1) * stride;
            let delta = dot::<S>(&rows.do_[r * d..(r + 1) * d], &rows.o[r * d..(r + 1) * d]);
            let (p, ds) = (&mut p[row.clone()], &mut ds[row]);
            softmax_backward::<S>(p, ds, rows.lse[r], delta, tile.last_len(r), tile.scale);
        }
        dq.fill(0.0);
        for page in 0..tile.page_count() {
            let at = page * PAGE_LEN;
            let count = (key_count - at).min(PAGE_LEN);
            mix_full::<S>(dq, &ds[at..], stride, rows.page(rows.k_rows, page, d), d, count, tile);
            let keys = at * d..(at + count) * d;
            mix_keys::<S>(&mut dk[keys.clone()], &ds[at..], stride, rows.q, tile);
            mix_keys::<S>(&mut dv[keys], &p[at..], stride, rows.do_, tile);
        }
    }
}

/// How many of `left` rows the inner loops take next: as many as fill the registers, or an even split of
/// what a full step would leave a single row of.
#[inline(always)]
fn step(left: usize, rows_max: usize) -> usize {
    match left {
        7 if rows_max >= 4 => 4,
        5 if rows_max >= 4 => 3,
        _ => match left.min(rows_max) {
            12.. => 12,
            6..=11 => 6,
            rows => rows,
        },
    }
}

/// Calls a function that is generic over the number of rows with a number that [`step`] yields.
macro_rules! with_rows {
    ($rows:expr, $f:ident::<$S:ident>($($arg:expr),* $(,)?)) => {
        match $rows {
            12 if $S::TILE_ROWS >= 12 => $f::<$S, 12>($($arg),*),
            6 => $f::<$S, 6>($($arg),*),
            4 => $f::<$S, 4>($($arg),*),
            3 => $f::<$S, 3>($($arg),*),
            2 => $f::<$S, 2>($($arg),*),
            _ => $f::<$S, 1>($($arg),*),
        }
    };
}

/// Lays rows out so that a step's elements of one column are neighbours: per step `(D, rows of the step)`.
#[inline(always)]
unsafe fn interleave<S: Simd>(columns: &mut [f32], rows: &[f32], width: usize) {
    let n = rows.len() / width;
    let mut r = 0;
    while r < n {
        let count = step(n - r, S::TILE_ROWS);
        let part = r * width..(r + count) * width;
        let (to, from) = (&mut columns[part.clone()], &rows[part]);
        for (lane, row) in from.chunks_exact(width).enumerate() {
            for (column, &x) in to.chunks_exact_mut(count).zip(row) {
                column[lane] = x;
            }
        }
        r += count;
    }
}

/// `to[r][0..16] = scale * (row r . each key of the page)`.
#[inline(always)]
unsafe fn page_dots<S: Simd>(
    to: &mut [f32],
    stride: usize,
    columns: &[f32],
    page: &[f32],
    scale: f32,
    tile: Tile,
) {
    let (n, d) = (tile.row_count, tile.head_dim);
    assert!(
        to.len() >= (n - 1) * stride + PAGE_LEN
            && columns.len() >= n * d
            && page.len() == d * PAGE_LEN
    );
    let mut r = 0;
    while r < n {
        let rows = step(n - r, S::TILE_ROWS);
        unsafe {
            let (to, columns) = (to.as_mut_ptr().add(r * stride), columns.as_ptr().add(r * d));
            with_rows!(rows, dots::<S>(to, stride, columns, page.as_ptr(), d, scale));
        }
        r += rows;
    }
}

#[inline(always)]
unsafe fn dots<S: Simd, const R: usize>(
    to: *mut f32,
    stride: usize,
    columns: *const f32,
    page: *const f32,
    width: usize,
    scale: f32,
) {
    unsafe {
        let mut sums = [S::splat(0.0); R];
        for d in 0..width {
            let keys = S::load(page.add(d * LANES));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(S::splat(*columns.add(d * R + r)), keys, *sum);
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            S::store(to.add(r * stride), S::mul(*sum, S::splat(scale)));
        }
    }
}

/// Turns a row of scores into weights `e^(s - max)`, zero where the row must not look; returns the greatest
/// score and the sum of the weights.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: &mut [f32], last_len: usize) -> (f32, f32) {
    let last = row.len() - PAGE_LEN;
    row[last + last_len..].fill(f32::NEG_INFINITY);
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for page in row.chunks_exact(LANES) {
            max = S::max(S::load(page.as_ptr()), max);
        }
        let max = S::reduce_max(max);
        let mut sum = S::splat(0.0);
        for page in row.chunks_exact_mut(LANES) {
            let e = S::exp(S::sub(S::load(page.as_ptr()), S::splat(max)));
            S::store(page.as_mut_ptr(), e);
            sum = S::add(sum, e);
        }
        (max, S::reduce_add(sum))
    }
}

/// Turns scores into `p` in place, and `do . v` in `ds` into `ds`; zero where the row must not look.
#[inline(always)]
unsafe fn softmax_backward<S: Simd>(
    p: &mut [f32],
    ds: &mut [f32],
    lse: f32,
    delta: f32,
    last_len: usize,
    scale: f32,
) {
    unsafe {
        for (p, ds) in p.chunks_exact_mut(LANES).zip(ds.chunks_exact_mut(LANES)) {
            let weights = S::exp(S::sub(S::load(p.as_ptr()), S::splat(lse)));
            S::store(p.as_mut_ptr(), weights);
            let off = S::sub(S::load(ds.as_ptr()), S::splat(delta));
            S::store(ds.as_mut_ptr(), S::mul(S::mul(weights, off), S::splat(scale)));
        }
    }
    let last = p.len() - PAGE_LEN;
    p[last + last_len..].fill(0.0);
    ds[last + last_len..].fill(0.0);
}

/// Sixteen chains over the columns, then their sum.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    unsafe {
        let mut sum = S::splat(0.0);
        for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
            sum = S::fma(S::load(a.as_ptr()), S::load(b.as_ptr()), sum);
        }
        S::reduce_add(sum)
    }
}

/// `out[r] += weights[r][j] * x[j]` for `j` below `count`, for all rows of the tile.
#[inline(always)]
unsafe fn mix_full<S: Simd>(
    out: &mut [f32],
    weights: &[f32],
    stride: usize,
    x: &[f32],
    x_stride: usize,
    count: usize,
    tile: Tile,
) {
    let (n, d) = (tile.row_count, tile.head_dim);
    assert!(out.len() == n * d && weights.len() >= (n - 1) * stride + count);
    assert!(x.len() >= (count - 1) * x_stride + d);
    let mut r = 0;
    while r < n {
        let rows = step(n - r, S::TILE_ROWS);
        unsafe {
            let (out, weights) = (out.as_mut_ptr().add(r * d), weights.as_ptr().add(r * stride));
            with_rows!(rows, mix::<S>(out, d, weights, stride, 1, x.as_ptr(), x_stride, count));
        }
        r += rows;
    }
}

/// As [`mix_full`] for the last page, where each row ends at its own position.
#[inline(always)]
unsafe fn mix_last<S: Simd>(
    out: &mut [f32],
    weights: &[f32],
    stride: usize,
    x: &[f32],
    x_stride: usize,
    tile: Tile,
) {
    let (n, d) = (tile.row_count, tile.head_dim);
    assert!(out.len() == n * d && weights.len() >= (n - 1) * stride + tile.last_len(n - 1));
    assert!(x.len() >= (tile.last_len(n - 1) - 1) * x_stride + d);
    let mut first = 0;
    while first < n {
        let rows = step(n - first, S::TILE_ROWS);
        // What all rows of the step see comes first, then what only the later ones see.
        let shared = tile.last_len(first);
        unsafe {
            let (to, from) =
                (out.as_mut_ptr().add(first * d), weights.as_ptr().add(first * stride));
            with_rows!(rows, mix::<S>(to, d, from, stride, 1, x.as_ptr(), x_stride, shared));
            for r in 0..rows {
                let rest = tile.last_len(first + r) - shared;
                let (to, from) = (to.add(r * d), from.add(r * stride + shared));
                mix::<S, 1>(
                    to,
                    d,
                    from,
                    stride,
                    1,
                    x.as_ptr().add(shared * x_stride),
                    x_stride,
                    rest,
                );
            }
        }
        first += rows;
    }
}

/// `out[j] += weights[r][j] * x[r]` for all rows `r` of the tile in order, for a page of keys `j`.
#[inline(always)]
unsafe fn mix_keys<S: Simd>(
    out: &mut [f32],
    weights: &[f32],
    stride: usize,
    x: &[f32],
    tile: Tile,
) {
    let (n, d) = (tile.row_count, tile.head_dim);
    let count = out.len() / d;
    assert!(weights.len() >= (n - 1) * stride + count && x.len() == n * d);
    let mut j = 0;
    while j < count {
        let keys = step(count - j, S::TILE_ROWS);
        unsafe {
            let (out, weights) = (out.as_mut_ptr().add(j * d), weights.as_ptr().add(j));
            with_rows!(keys, mix::<S>(out, d, weights, 1, stride, x.as_ptr(), d, n));
        }
        j += keys;
    }
}

/// `out[r] += sum over t of w[r * w_row_stride + t * w_term_stride] * x[t]`: one chain per element, which
/// goes on from what `out` holds.
#[inline(always)]
unsafe fn mix<S: Simd, const R: usize>(
    out: *mut f32,
    width: usize,
    w: *const f32,
    w_row_stride: usize,
    w_term_stride: usize,
    x: *const f32,
    x_stride: usize,
    term_count: usize,
) {
    unsafe {
        for at in (0..width).step_by(LANES) {
            let mut sums = [S::splat(0.0); R];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(out.add(r * width + at));
            }
            for t in 0..term_count {
                let x = S::load(x.add(t * x_stride + at));
                let w = w.add(t * w_term_stride);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*w.add(r * w_row_stride)), x, *sum);
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                S::store(out.add(r * width + at), *sum);
            }
        }
    }
}
