//! Which rows of a batch make a sequence, and which rows several sequences share.

use std::sync::Arc;

use super::{Dims, PAGE_LEN};
use crate::Tensor;
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
}

impl Segment {
    /// The position behind its last row.
    pub fn end(&self) -> usize {
        self.position + self.row_count
    }
}

/// The segments of a batch in the order of their rows, each behind its parent. A query sees the keys of
/// its segment's ancestors, and those of its own segment up to itself: what it would see if every sequence
/// had all of its rows to itself.
///
/// Clones share what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Arc<Plan>);

/// Keys are read in pages by absolute position. A segment reads the pages that its ancestors fill; a page
/// that a segment begins in the middle of is made anew for it, with its ancestors' rows in the first lanes.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    segments: Vec<Segment>,
    /// The row in each lane of each page.
    page_rows: Vec<Vec<usize>>,
    /// The pages of each segment, from position 0 on.
    page_ids: Vec<Vec<u32>>,
}

impl Layout {
    /// Segments of so many rows, each from position 0 or from the end of one before it.
    pub fn new(segments: impl IntoIterator<Item = (usize, Option<usize>)>) -> Layout {
        let mut plan = Plan { segments: Vec::new(), page_rows: Vec::new(), page_ids: Vec::new() };
        let mut row = 0;
        for (row_count, parent) in segments {
            let idx = plan.segments.len();
            if let Some(parent) = parent {
                assert!(parent < idx, "segment {idx} goes on from {parent}, which isn't before it");
            }
            let position = parent.map_or(0, |parent| plan.segments[parent].end());
            plan.segments.push(Segment { row, row_count, position, parent });
            plan.add_pages(idx);
            row += row_count;
        }
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

    /// Asserts that the segments have all of a batch's rows.
    pub(super) fn check(&self, rows: usize) {
        assert_eq!(self.row_count(), rows, "rows of the layout, and of the batch");
    }

    /// The rows of keys or values as pages `(KV, 16, D)`. Lanes behind a segment's end hold anything.
    pub(super) fn pages_of_rows(&self, x: &Tensor, dims: Dims) -> Tensor {
        self.pages(x, dims, |page, lane, row| {
            page[lane * dims.head_dim..(lane + 1) * dims.head_dim].copy_from_slice(row);
        })
    }

    /// The same as pages `(KV, D, 16)`.
    pub(super) fn pages_of_columns(&self, x: &Tensor, dims: Dims) -> Tensor {
        self.pages(x, dims, |page, lane, row| {
            for (column, &x) in page.chunks_exact_mut(PAGE_LEN).zip(row) {
                column[lane] = x;
            }
        })
    }

    fn pages(
        &self,
        x: &Tensor,
        dims: Dims,
        put: impl Fn(&mut [f32], usize, &[f32]) + Sync,
    ) -> Tensor {
        let Plan { page_rows, .. } = &*self.0;
        let (device, d, cols) = (x.device(), dims.head_dim, dims.kv_cols());
        let mut pages = Tensor::uninit(device, &[page_rows.len(), dims.page_len()]);
        let shards = Shards::new(pages.as_mut_slice());
        device.run(page_rows.len(), |i| {
            // SAFETY: each page is written by one call.
            let page = unsafe { shards.slice(i * dims.page_len(), (i + 1) * dims.page_len()) };
            for (kv_head, page) in page.chunks_exact_mut(dims.page_head_len()).enumerate() {
                for (lane, row) in page_rows[i].iter().enumerate() {
                    put(page, lane, &x.as_slice()[row * cols + kv_head * d..][..d]);
                }
            }
        });
        pages
    }
}

impl Plan {
    /// Pages of the last segment, whose ancestors have theirs.
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
        self.page_ids.push(ids);
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
        let layout = Layout::new([(3, None), (2, Some(0)), (0, Some(0)), (1, Some(1)), (2, None)]);
        assert_eq!(layout.row_count(), 8);
        assert_eq!(*layout.positions(), [0, 1, 2, 3, 4, 5, 0, 1]);
        let rows: Vec<usize> = (0..6).map(|position| layout.row_at(3, position)).collect();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5]);
        assert_eq!(layout.segments()[4].row, 6);
    }

    #[test]
    fn whole_pages_of_a_parent_are_read_and_not_copied() {
        let layout = Layout::new([(37, None), (20, Some(0)), (3, Some(0)), (0, Some(0))]);
        assert_eq!(layout.page_ids(0), [0, 1, 2]);
        assert_eq!(layout.page_ids(1), [0, 1, 3, 4]);
        assert_eq!(layout.page_ids(2), [0, 1, 5]);
        assert_eq!(layout.page_ids(3), [0, 1]);
        assert_eq!(layout.0.page_rows[5], [32, 33, 34, 35, 36, 57, 58, 59]);
        // A parent that ends with a page leaves nothing to copy.
        let layout = Layout::new([(32, None), (1, Some(0))]);
        assert_eq!(layout.0.page_rows.len(), 3);
        assert_eq!(layout.0.page_rows[2], [32]);
    }

    #[test]
    fn a_layout_without_rows_has_none() {
        assert_eq!(Layout::sequences([]).row_count(), 0);
        assert_eq!(Layout::sequences([0, 0]).row_count(), 0);
        assert!(Layout::sequences([0]).positions().is_empty());
    }

    #[test]
    #[should_panic(expected = "segment 1 goes on from 1, which isn't before it")]
    fn a_parent_comes_before_its_children() {
        let _ = Layout::new([(1, None), (1, Some(1))]);
    }
}
