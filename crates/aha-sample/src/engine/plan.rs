//! The rows of a forward pass, in memory that serves step after step.

use std::sync::Arc;

use aha_compute::ops::attention::PagedSeqs;

/// What a forward pass computes; its memory serves step after step.
#[derive(Default)]
pub(super) struct Plan {
    pub ids: Vec<u32>,
    pub positions: Shared<u32>,
    pub seqs: PagedSeqs,
    /// The last row of each sequence or chunk.
    pub wanted_rows: Shared<usize>,
    /// Groups, and how many of their prompt's tokens this pass takes.
    pub prefilled: Vec<(usize, usize)>,
    /// Whether there are rows behind those of sequences, or room for them: see [`Plan::fill_up`].
    pub is_filled_up: bool,
}

impl Plan {
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.values.clear();
        self.seqs.clear();
        self.wanted_rows.values.clear();
        self.prefilled.clear();
        self.is_filled_up = false;
    }

    /// Adds rows without a sequence, so that there are so many.
    pub fn fill_up(&mut self, rows: usize) {
        self.ids.resize(rows, 0);
        self.positions.values.resize(rows, 0);
        self.is_filled_up = true;
    }

    pub fn push(&mut self, ids: &[u32], position: usize, pages: &[u32]) {
        self.ids.extend(ids);
        self.positions.values.extend((position..position + ids.len()).map(|p| p as u32));
        self.seqs.push(ids.len(), position, pages);
        self.wanted_rows.values.push(self.ids.len() - 1);
    }
}

/// A list that ops share: made anew only if its length has changed.
pub(super) struct Shared<T> {
    values: Vec<T>,
    pub shared: Arc<[T]>,
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { values: Vec::new(), shared: Arc::new([]) }
    }
}

impl<T: Copy> Shared<T> {
    pub fn share(&mut self) {
        match Arc::get_mut(&mut self.shared) {
            Some(to) if to.len() == self.values.len() => to.copy_from_slice(&self.values),
            _ => self.shared = self.values.as_slice().into(),
        }
    }
}
