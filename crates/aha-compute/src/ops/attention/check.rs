//! What the tests of packed attention share: layouts, and sequences cut out of them.

use super::Layout;
use crate::Tensor;

/// Whole sequences, some of them empty, and some that others go on from: in the middle of a page, at the end
/// of one, from one that itself goes on, and from one without rows.
pub(super) fn mixed_layout() -> Layout {
    Layout::new([
        (7, Some(1)),
        (3, Some(2)),
        (16, None),
        (1, Some(6)),
        (2, Some(7)),
        (18, Some(8)),
        (0, Some(8)),
        (5, Some(8)),
        (37, None),
        (0, None),
        (1, None),
    ])
}

/// A prompt, and completions of odd lengths.
pub(super) fn tree(prompt_len: usize) -> Layout {
    let completions = [9, 1, 30, 16].map(|len| (len, Some(4)));
    Layout::new(completions.into_iter().chain([(prompt_len, None)]))
}

/// The rows of the sequence that ends with a segment.
pub(super) fn sequence(layout: &Layout, segment: usize) -> Vec<usize> {
    let end = layout.segments()[segment].end();
    (0..end).map(|position| layout.row_at(segment, position)).collect()
}

/// Copies of rows.
pub(super) fn take_rows(x: &Tensor, rows: &[usize]) -> Tensor {
    let values: Vec<f32> = rows.iter().flat_map(|&row| x.row(row).to_vec()).collect();
    Tensor::from_slice(x.device(), &[rows.len(), x.cols()], &values)
}
