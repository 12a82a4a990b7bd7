//! Which sequences a step continues, and how their attention is cut into tasks.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

use super::kernel::{self, Tile};
use super::tiles::queries_of_tile;
use super::{Dims, PAGE_LEN, cuda};
use crate::cuda::{Context, Error};
use crate::profile::Work;
use crate::{Device, Dtype};

/// Register tiles of rows that a task of several sequences has at most: a page of keys that is loaded once
/// serves them all.
const REGISTER_TILES_MAX: usize = 4;
/// Tasks per thread below which sequences are not put together: threads would wait for each other.
const TASKS_PER_THREAD: usize = 4;

/// New tokens of sequences, and the pages of their past and of themselves. Filled anew for each step, in memory
/// that is kept.
#[derive(Debug, Default)]
pub struct PagedSeqs {
    seqs: Vec<PagedSeq>,
    page_ids: Vec<u32>,
    row_count: usize,
    /// What the tasks were made for; none where sequences were added since.
    planned: Option<(Dims, usize)>,
    /// The sequences, those that share pages beside each other.
    order: Vec<u32>,
    tasks: Vec<Task>,
    /// They on a CUDA device, for all layers of a step.
    on_gpu: Option<cuda::Paged>,
}

/// One sequence of [`PagedSeqs`].
#[derive(Debug)]
pub(super) struct PagedSeq {
    pub row_start: usize,
    pub row_count: usize,
    /// Position of its first row.
    pub position: usize,
    pages: Range<usize>,
}

/// Rows that are computed together: queries of one sequence, or a query each of sequences that share pages.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub kv_head: usize,
    /// Sequences, as a part of their order.
    members: Range<usize>,
    /// Pages in front that the members share, and that are full.
    pub shared_page_count: usize,
    /// The first query of each member, counted from its first row, and how many.
    first_query: usize,
    pub query_count: usize,
    /// About how many scores it computes for each head of the group.
    score_count: usize,
}

impl PagedSeqs {
    /// Forgets all sequences.
    pub fn clear(&mut self) {
        self.seqs.clear();
        self.page_ids.clear();
        self.row_count = 0;
        self.planned = None;
        self.on_gpu = None;
    }

    /// Adds `row_count` new tokens, the first at `position`, to a sequence with these pages from position 0 on.
    /// Pages that take new positions belong to the sequence alone.
    pub fn push(&mut self, row_count: usize, position: usize, pages: &[u32]) {
        let (idx, end) = (self.seqs.len(), position + row_count);
        assert!(
            end <= pages.len() * PAGE_LEN,
            "sequence {idx} has {} pages: too few for {end} positions",
            pages.len()
        );
        let at = self.page_ids.len();
        self.page_ids.extend_from_slice(pages);
        let pages = at..self.page_ids.len();
        self.seqs.push(PagedSeq { row_start: self.row_count, row_count, position, pages });
        self.row_count += row_count;
        self.planned = None;
        self.on_gpu = None;
    }

    /// They are on the device already.
    pub(crate) fn set_on_gpu(&mut self, paged: cuda::Paged) {
        self.on_gpu = Some(paged);
    }

    /// They on the device of a cache.
    pub(super) fn on_gpu(
        &mut self,
        cx: &Context,
        cache: &cuda::KvCache,
    ) -> Result<&cuda::Paged, Error> {
        let paged = match self.on_gpu.take() {
            Some(paged) => paged,
            None => cuda::Paged::upload(cx, self, cache)?,
        };
        Ok(self.on_gpu.insert(paged))
    }

    /// Rows of all sequences.
    pub fn row_count(&self) -> usize {
        self.row_count
    }

    /// Work of their attention: scores and mixing; and each page of a cache of this dtype that any of them has, read
    /// once.
    pub(crate) fn work(&self, dims: Dims, dtype: Dtype) -> Work {
        let pairs = |s: &PagedSeq| s.row_count * s.position + s.row_count * (s.row_count + 1) / 2;
        let pair_count: usize = self.seqs().iter().map(pairs).sum();
        let pages: BTreeSet<u32> =
            self.seqs().iter().flat_map(|seq| self.pages(seq)).copied().collect();
        Work {
            flop: 4.0 * (pair_count * dims.q_cols()) as f64,
            bytes: (pages.len() * 2 * dims.page_len() * dtype.bytes()) as f64,
        }
    }

    pub(super) fn seqs(&self) -> &[PagedSeq] {
        &self.seqs
    }

    pub(super) fn pages(&self, seq: &PagedSeq) -> &[u32] {
        &self.page_ids[seq.pages.clone()]
    }

    /// The tasks of [`PagedSeqs::plan`], those with most keys first so that threads end together.
    pub(super) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// A member of a task: its sequence, the row of its first query, and its part of the tile.
    pub(super) fn member(&self, task: &Task, i: usize, dims: Dims, scale: f32) -> Member<'_> {
        let seq = &self.seqs[self.order[task.members.start + i] as usize];
        let tile = Tile {
            row_count: task.query_count * dims.group(),
            group: dims.group(),
            position: seq.position + task.first_query,
            head_dim: dims.head_dim,
            scale,
        };
        Member { pages: self.pages(seq), row: seq.row_start + task.first_query, tile }
    }

    /// Makes sure that the sequences fit a cache, and cuts their attention into tasks: once per step, since all
    /// layers have the same.
    pub(super) fn plan(&mut self, device: &Device, dims: Dims, page_count: usize) {
        if self.planned == Some((dims, page_count)) {
            return;
        }
        if let Some(page) = self.page_ids.iter().find(|&&page| page as usize >= page_count) {
            panic!("a sequence names page {page}: the cache has {page_count}");
        }
        self.order.clear();
        self.order.extend(0..self.seqs.len() as u32);
        let (seqs, page_ids) = (&self.seqs, &self.page_ids);
        let first_page = |&seq: &u32| {
            let seq = &seqs[seq as usize];
            (page_ids[seq.pages.clone()].first().copied(), seq.row_start)
        };
        self.order.sort_unstable_by_key(first_page);
        self.tasks.clear();
        let members_max = self.members_max(device, dims);
        let mut start = 0;
        while start < self.order.len() {
            let (end, shared_page_count) = self.sharing(start);
            let count = (end - start).div_ceil((end - start).div_ceil(members_max));
            for from in (start..end).step_by(count) {
                let members = from..(from + count).min(end);
                // Alone there is nothing to share with.
                let shared_page_count = if members.len() > 1 { shared_page_count } else { 0 };
                self.push_tasks(members, shared_page_count, dims);
            }
            start = end;
        }
        self.tasks.sort_unstable_by_key(|task| Reverse(task.score_count));
        self.planned = Some((dims, page_count));
    }

    /// Most members of a task.
    fn members_max(&self, device: &Device, dims: Dims) -> usize {
        let register_rows = kernel::register_rows(device.isa());
        let tasks_least = TASKS_PER_THREAD * device.threads();
        let even = self.seqs.len() * dims.kv_heads / tasks_least;
        let members = even.min(REGISTER_TILES_MAX * register_rows / dims.group());
        // Whole register tiles, if there are any.
        let per_tile = (register_rows / dims.group()).max(1);
        if members > per_tile { members / per_tile * per_tile } else { members.max(1) }
    }

    /// The end of the sequences that can be computed together with the one at `start` of the order, and how many
    /// full pages they all share in front.
    fn sharing(&self, start: usize) -> (usize, usize) {
        let seq = |at: usize| &self.seqs[self.order[at] as usize];
        let first = seq(start);
        let full = |seq: &PagedSeq| &self.pages(seq)[..seq.position / PAGE_LEN];
        let mut shared = full(first);
        let mut end = start + 1;
        while first.row_count == 1 && end < self.order.len() && seq(end).row_count == 1 {
            let common = shared.iter().zip(full(seq(end))).take_while(|(a, b)| a == b).count();
            if common == 0 {
                break;
            }
            shared = &shared[..common];
            end += 1;
        }
        (end, shared.len())
    }

    fn push_tasks(&mut self, members: Range<usize>, shared_page_count: usize, dims: Dims) {
        let first = &self.seqs[self.order[members.start] as usize];
        let mut first_query = 0;
        while first_query < first.row_count {
            let position = first.position + first_query;
            let query_count = queries_of_tile(position, first.row_count - first_query, dims);
            self.tasks.extend((0..dims.kv_heads).map(|kv_head| Task {
                kv_head,
                members: members.clone(),
                shared_page_count,
                first_query,
                query_count,
                score_count: (position + 1) * query_count * members.len(),
            }));
            first_query += query_count;
        }
    }
}

impl Task {
    pub(super) fn member_count(&self) -> usize {
        self.members.len()
    }
}

/// A sequence's part of a [`Task`].
pub(super) struct Member<'a> {
    pub pages: &'a [u32],
    /// Row of its first query in the batch.
    pub row: usize,
    pub tile: Tile,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    const DIMS: Dims = Dims { heads: 6, kv_heads: 2, head_dim: 16 };

    /// What can be computed together, and the pages that it shares.
    fn together(seqs: &[(usize, usize, &[u32])]) -> Vec<(Vec<u32>, usize)> {
        let mut paged = PagedSeqs::default();
        seqs.iter().for_each(|&(position, count, pages)| paged.push(count, position, pages));
        paged.plan(&Device::cpu(1), DIMS, 100);
        let (mut sets, mut start) = (Vec::new(), 0);
        while start < seqs.len() {
            let (end, shared) = paged.sharing(start);
            sets.push((paged.order[start..end].to_vec(), shared));
            start = end;
        }
        sets.sort();
        sets
    }

    #[test]
    fn sequences_with_the_same_pages_in_front_are_computed_together() {
        let seqs: [(usize, usize, &[u32]); 6] = [
            (40, 1, &[5, 6, 7]),
            (33, 1, &[1, 2, 3]),
            (50, 1, &[5, 6, 8, 9]),
            (47, 1, &[5, 6, 10]),
            (3, 1, &[11]),
            (32, 4, &[5, 6, 12]),
        ];
        let sets = together(&seqs);
        assert_eq!(sets, [(vec![0, 2, 3], 2), (vec![1], 2), (vec![4], 0), (vec![5], 2)]);
    }

    #[test]
    fn a_page_that_still_takes_positions_is_not_shared() {
        assert_eq!(together(&[(15, 1, &[5]), (15, 1, &[5])]), [(vec![0], 0), (vec![1], 0)]);
        let sets = together(&[(16, 1, &[5, 6]), (31, 1, &[5, 7]), (20, 1, &[5, 8])]);
        assert_eq!(sets, [(vec![0, 1, 2], 1)]);
    }

    /// Goal: members of a task are neither too many for its scratch nor so many that threads stand idle.
    #[test]
    fn many_samples_of_a_prompt_are_cut_into_tasks_of_a_few() {
        let mut paged = PagedSeqs::default();
        (0..64).for_each(|i| paged.push(1, 32, &[0, 1, 2 + i]));
        for isa in Isa::available() {
            let (device, rows) = (Device::cpu_with(2, isa), kernel::register_rows(isa));
            paged.planned = None;
            paged.plan(&device, DIMS, 100);
            let member_count: usize = paged.tasks.iter().map(Task::member_count).sum();
            assert_eq!(member_count, 64 * DIMS.kv_heads);
            for task in &paged.tasks {
                assert_eq!(task.shared_page_count, 2);
                assert!(task.member_count() * DIMS.group() <= REGISTER_TILES_MAX * rows.max(3));
            }
            assert!(paged.tasks.len() >= TASKS_PER_THREAD * 2);
        }
    }

    #[test]
    #[should_panic(expected = "names page 100: the cache has 100")]
    fn a_page_that_the_cache_has_not_is_a_bug() {
        together(&[(0, 1, &[100])]);
    }
}
