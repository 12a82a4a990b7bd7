//! Which rows of a batch make a sequence, and which rows several sequences share.

use std::ops::Range;
use std::sync::Arc;

use super::tiles::copy_row;
use super::{Dims, PAGE_LEN};
use crate::Tensor;
use crate::simd::{LANES, simd_fn};
use crate::tensor::Shards;

/// Rows that follow one another in a sequence, such as a whole text, a group's prompt or a completion of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first row.
    pub row: usize,
    /// Its rows; there may be none.
    pub row_count: usize,
    /// Position of its first row: 0, or where its parent ends.
    pub position: usize,
    /// The segment that it goes on from.
    pub parent: Option<usize>,
    /// Whether others go on from it, in this batch or in another.
    pub is_shared: bool,
}

impl Segment {
    /// The position behind its last row.
    pub fn end(&self) -> usize {
        self.position + self.row_count
    }
}

/// Segments of which a batch has only some of the sequences that go on from them.
///
/// Such a segment's rows are in each of the batches, so that its keys and values are there. Its gradients are
/// complete with the last: until then they are handed on as sums, and its rows have gradients of zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The segment that earlier batches had others of.
    pub begun: Option<usize>,
    /// The segment that later batches have others of.
    pub open: Option<usize>,
}

/// The segments of a batch in the order of their rows, each before its parent: gradients flow from a segment to
/// its parent, and are summed in that order. A query sees the keys of its segment's ancestors, and those of its
/// own segment up to itself: what it would see if every sequence had all of its rows to itself.
///
/// Clones share what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Arc<Plan>);

/// Keys are read in pages by absolute position. A segment reads the pages that its ancestors fill; a page
/// that a segment begins in the middle of is made anew for it, with its ancestors' rows in the first lanes.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    segments: Vec<Segment>,
    split: Split,
    /// The row in each lane of each page.
    page_rows: Vec<Vec<usize>>,
    /// The pages of each segment, from position 0 on.
    page_ids: Vec<Vec<u32>>,
}

impl Layout {
    /// Segments of so many rows, each from position 0 or from the end of one behind it.
    pub fn new(segments: impl IntoIterator<Item = (usize, Option<usize>)>) -> Layout {
        Layout::with_split(segments, Split::default())
    }

    /// As [`Layout::new`], where not all that goes on from a segment is in this batch.
    pub fn with_split(
        segments: impl IntoIterator<Item = (usize, Option<usize>)>,
        split: Split,
    ) -> Layout {
        let mut row = 0;
        let place = |(row_count, parent)| {
            row += row_count;
            Segment { row: row - row_count, row_count, position: 0, parent, is_shared: false }
        };
        let mut segments: Vec<Segment> = segments.into_iter().map(place).collect();
        for idx in (0..segments.len()).rev() {
            if let Some(parent) = segments[idx].parent {
                let is_behind = idx < parent && parent < segments.len();
                assert!(is_behind, "segment {idx} goes on from {parent}, which isn't behind it");
                segments[idx].position = segments[parent].end();
                segments[parent].is_shared = true;
            }
        }
        for idx in [split.begun, split.open].into_iter().flatten() {
            segments[idx].is_shared = true;
        }
        let page_ids = vec![Vec::new(); segments.len()];
        let mut plan = Plan { segments, split, page_rows: Vec::new(), page_ids };
        (0..plan.segments.len()).rev().for_each(|idx| plan.add_pages(idx));
        Layout(Arc::new(plan))
    }

    /// Whole sequences of so many rows, one after the other.
    pub fn sequences(lens: impl IntoIterator<Item = usize>) -> Layout {
        Layout::new(lens.into_iter().map(|len| (len, None)))
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.0.segments
    }

    /// Rows whose gradients an earlier batch began.
    pub fn begun_rows(&self) -> Option<Range<usize>> {
        self.0.split.begun.map(|idx| self.rows_of(idx))
    }

    /// Rows whose gradients a later batch completes.
    pub fn open_rows(&self) -> Option<Range<usize>> {
        self.0.split.open.map(|idx| self.rows_of(idx))
    }

    /// Whether a later batch completes the gradients of a segment.
    pub(super) fn is_open(&self, segment: usize) -> bool {
        self.0.split.open == Some(segment)
    }

    fn rows_of(&self, segment: usize) -> Range<usize> {
        let Segment { row, row_count, .. } = self.segments()[segment];
        row..row + row_count
    }

    /// Whether both are clones of one.
    pub(crate) fn is_same(&self, other: &Layout) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Rows of all segments.
    pub fn row_count(&self) -> usize {
        self.segments().last().map_or(0, |last| last.row + last.row_count)
    }

    /// The position of each row.
    pub fn positions(&self) -> Arc<[u32]> {
        let of = |s: &Segment| s.position as u32..s.end() as u32;
        self.segments().iter().flat_map(of).collect()
    }

    /// The row at a position that a segment or one of its ancestors has.
    pub(super) fn row_at(&self, segment: usize, position: usize) -> usize {
        self.0.row_at(segment, position)
    }

    /// A segment's pages, from position 0 on.
    pub(super) fn page_ids(&self, segment: usize) -> &[u32] {
        &self.0.page_ids[segment]
    }

    /// The row in each lane of each page.
    pub(super) fn page_rows(&self) -> &[Vec<usize>] {
        &self.0.page_rows
    }

    /// Asserts that the segments have all of a batch's rows.
    pub(super) fn check(&self, rows: usize) {
        assert_eq!(self.row_count(), rows, "rows of the layout, and of the batch");
    }

    /// The rows of keys or values as pages `(KV, 16, D)`. Lanes behind a segment's end hold anything.
    pub(super) fn pages_of_rows(&self, x: &Tensor, dims: Dims) -> Tensor {
        self.pages(x, dims, |page, rows| {
            for (to, row) in page.chunks_exact_mut(dims.head_dim).zip(rows) {
                copy_row(to, row);
            }
        })
    }

    /// The same as pages `(KV, D, 16)`.
    pub(super) fn pages_of_columns(&self, x: &Tensor, dims: Dims) -> Tensor {
        let isa = x.device().isa();
        self.pages(x, dims, |page, rows| columns(isa, page, rows))
    }

    /// Pages that `put` writes from a head's rows.
    fn pages(&self, x: &Tensor, dims: Dims, put: impl Fn(&mut [f32], &[&[f32]]) + Sync) -> Tensor {
        let Plan { page_rows, .. } = &*self.0;
        let (device, d, cols) = (x.device(), dims.head_dim, dims.kv_cols());
        let mut pages = Tensor::uninit(device, &[page_rows.len(), dims.page_len()]);
        let shards = Shards::new(pages.as_mut_slice());
        device.run(page_rows.len(), |i| {
            // SAFETY: each page is written by one call.
            let page = unsafe { shards.slice(i * dims.page_len(), (i + 1) * dims.page_len()) };
            for (kv_head, page) in page.chunks_exact_mut(dims.page_head_len()).enumerate() {
                let mut rows: [&[f32]; PAGE_LEN] = [&[]; PAGE_LEN];
                for (to, row) in rows.iter_mut().zip(&page_rows[i]) {
                    *to = &x.as_slice()[row * cols + kv_head * d..][..d];
                }
                put(page, &rows[..page_rows[i].len()]);
            }
        });
        pages
    }
}

/// Rows from which on a page is transposed as a square; with fewer, most of it would be for nothing.
const SQUARE_ROWS_MIN: usize = 3;

simd_fn! {
    /// Rows of a head as the columns of a page; columns without one hold anything.
    fn columns<S>(page: &mut [f32], rows: &[&[f32]]) {
        const { assert!(PAGE_LEN == LANES, "a page is a square of lanes") };
        let width = page.len() / PAGE_LEN;
        assert!(rows.len() <= PAGE_LEN && rows.iter().all(|row| row.len() == width));
        let whole = if rows.len() < SQUARE_ROWS_MIN { 0 } else { width / LANES * LANES };
        for at in (0..whole).step_by(LANES) {
            let square = std::array::from_fn(|row| S::load(rows[row.min(rows.len() - 1)].as_ptr().add(at)));
            for (column, v) in S::transpose(square).into_iter().enumerate() {
                S::store(page.as_mut_ptr().add((at + column) * PAGE_LEN), v);
            }
        }
        for (lane, row) in rows.iter().enumerate() {
            for (column, &x) in row.iter().enumerate().skip(whole) {
                page[column * PAGE_LEN + lane] = x;
            }
        }
    }
}

impl Plan {
    /// Pages of a segment, whose ancestors have theirs.
    fn add_pages(&mut self, idx: usize) {
        let Segment { row_count, position, parent, .. } = self.segments[idx];
        let end = position + row_count;
        let whole = position / PAGE_LEN;
        let mut ids = parent.map_or(Vec::new(), |parent| self.page_ids[parent][..whole].to_vec());
        if row_count > 0 {
            for page in whole..end.div_ceil(PAGE_LEN) {
                let lanes = page * PAGE_LEN..end.min((page + 1) * PAGE_LEN);
                ids.push(self.page_rows.len() as u32);
                self.page_rows.push(lanes.map(|position| self.row_at(idx, position)).collect());
            }
        }
        self.page_ids[idx] = ids;
    }

    fn row_at(&self, segment: usize, position: usize) -> usize {
        let mut at = &self.segments[segment];
        while position < at.position {
            let parent = at.parent.expect("only a segment with a parent begins behind position 0");
            at = &self.segments[parent];
        }
        at.row + position - at.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_go_on_where_their_parents_end() {
        let layout = Layout::new([(2, None), (1, Some(3)), (0, Some(4)), (2, Some(4)), (3, None)]);
        assert_eq!(layout.row_count(), 8);
        assert_eq!(*layout.positions(), [0, 1, 5, 3, 4, 0, 1, 2]);
        let rows: Vec<usize> = (0..6).map(|position| layout.row_at(1, position)).collect();
        assert_eq!(rows, [5, 6, 7, 3, 4, 2]);
        let is_shared: Vec<bool> = layout.segments().iter().map(|s| s.is_shared).collect();
        assert_eq!(is_shared, [false, false, false, true, true]);
    }

    #[test]
    fn whole_pages_of_a_parent_are_read_and_not_copied() {
        let layout = Layout::new([(20, Some(3)), (3, Some(3)), (0, Some(3)), (37, None)]);
        assert_eq!(layout.page_ids(3), [0, 1, 2]);
        assert_eq!(layout.page_ids(2), [0, 1]);
        assert_eq!(layout.page_ids(1), [0, 1, 3]);
        assert_eq!(layout.page_ids(0), [0, 1, 4, 5]);
        assert_eq!(layout.0.page_rows[3], [55, 56, 57, 58, 59, 20, 21, 22]);
        // A parent that ends with a page leaves nothing to copy.
        let layout = Layout::new([(1, Some(1)), (32, None)]);
        assert_eq!(layout.0.page_rows.len(), 3);
        assert_eq!(layout.0.page_rows[2], [0]);
    }

    #[test]
    fn a_layout_without_rows_has_none() {
        assert_eq!(Layout::sequences([]).row_count(), 0);
        assert_eq!(Layout::sequences([0, 0]).row_count(), 0);
        assert!(Layout::sequences([0]).positions().is_empty());
    }

    #[test]
    #[should_panic(expected = "segment 1 goes on from 0, which isn't behind it")]
    fn a_parent_comes_behind_its_children() {
        let _ = Layout::new([(1, None), (1, Some(0))]);
    }
}
