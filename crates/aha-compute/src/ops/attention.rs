//! Causal attention with grouped queries, over packed sequences and over a paged cache. Packed sequences
//! may have their first rows in common, which then are there once.
//!
//! Query `i` of head `h` reads keys and values `j <= i` of its own sequence, of the head `h / (H / KV)`:
//!
//! ```text
//! s_ij  = scale (q_i . k_j)    m_i = max_j s_ij        e_ij  = exp(s_ij - m_i)   l_i = sum_j e_ij
//! o_i   = sum_j e_ij v_j / l_i                         lse_i = m_i + ln l_i
//! p_ij  = exp(s_ij - lse_i)    delta_i = do_i . o_i    ds_ij = scale p_ij (do_i . v_j - delta_i)
//! dq_i  = sum_j ds_ij k_j      dk_j = sum_i ds_ij q_i  dv_j  = sum_i p_ij do_i
//! ```
//!
//! | buffer          | shape                | unit             | written by                  |
//! |-----------------|----------------------|------------------|-----------------------------|
//! | `q`             | (T, H·D)             | activation       | caller                      |
//! | `k` `v`         | (T, KV·D)            | activation       | caller                      |
//! | `o`             | (T, H·D)             | activation       | forward, attend `=`         |
//! | `lse`           | (T, H)               | nats             | forward `=`, saved          |
//! | `dq` `dk` `dv`  | as `q` `k` `v`       | loss per unit    | backward `=`                |
//! | `KvCache`       | pages of 16 positions| activation       | append, copy_page `=`       |
//!
//! # Order of sums
//! `q_i . k_j` is one chain of fused multiply-adds over `d`; `l_i` is summed in 16 lanes, lane `j mod 16`;
//! `o_i[d]` is one chain over `j` from 0, divided by `l_i` at its end. None of it depends on which queries
//! share a call, nor on which sequences share their first keys, so packed sequences, prefill in any chunks
//! and decode yield the same bits. Gradients of keys and values are chains over the queries of their own
//! segment in order, and over the heads of a group within a query; then each segment that goes on from
//! theirs, in order, adds a sum of its own, which is such a chain from zero.
//!
//! # Map
//! - [`reference`](mod@reference): the formulas above as scalar loops.
//! - `kernel`: a tile of query rows against pages of keys; what the paths below share.
//! - `tiles`: which rows make a tile, and who computes it.
//! - [`Layout`]: which packed rows make a sequence, and their keys and values as pages.
//! - `packed`: [`forward`]; `backward`: [`backward()`]; `paged`: [`KvCache`], [`attend`];
//!   `seqs`: [`PagedSeqs`], and which of them are computed together.

mod backward;
#[cfg(test)]
mod check;
pub mod cuda;
mod kernel;
mod layout;
mod packed;
mod paged;
pub mod reference;
mod seqs;
mod tiles;

pub use backward::backward;
pub use layout::{Layout, Segment, Split};
pub use packed::forward;
pub use paged::{KvCache, attend};
pub use seqs::PagedSeqs;

use std::borrow::Cow;

use crate::simd::LANES;
use crate::{Dtype, Tensor};

/// Positions of a page of keys and values: one vector.
pub const PAGE_LEN: usize = LANES;

/// Heads and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Heads of queries, `H`: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values, `KV`.
    pub kv_heads: usize,
    /// Width of a head, `D`: a multiple of 16.
    pub head_dim: usize,
}

impl Dims {
    /// Query heads that read one head of keys.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of `q` and `o`.
    fn q_cols(self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of `k` and `v`.
    fn kv_cols(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Floats of one head in a page of keys, or in one of values.
    fn page_head_len(self) -> usize {
        PAGE_LEN * self.head_dim
    }

    /// Floats of a page of keys, or of one of values.
    fn page_len(self) -> usize {
        self.kv_heads * self.page_head_len()
    }

    fn check(self) {
        let Dims { heads, kv_heads, head_dim } = self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads can't share {kv_heads} heads of keys evenly"
        );
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(LANES),
            "heads are {head_dim} wide: the kernels take multiples of {LANES}"
        );
    }
}

/// What attention reads: a processor's kernels `f32`, those of a CUDA device what is stored.
pub(crate) fn input(x: &Tensor) -> Cow<'_, Tensor> {
    if x.device().is_cuda() { Cow::Borrowed(x) } else { x.as_f32() }
}

/// What attention writes for such queries.
pub(crate) fn dtype(q: &Tensor) -> Dtype {
    if q.device().is_cuda() { q.dtype() } else { Dtype::F32 }
}

/// Asserts that a buffer has as many floats as the rows and columns that it should have.
fn check_len(name: &str, len: usize, rows: usize, cols: usize) {
    assert_eq!(len, rows * cols, "`{name}` has {len} floats: expected {rows} rows of {cols}");
}
