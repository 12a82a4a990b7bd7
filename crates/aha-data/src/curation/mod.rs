//! Curation: what a query needs to make a data set out of a heap of rows.
//!
//! # Map
//! - [`terms`]: the words, numbers and signs of a text in one form, and hashes that never change. Start here.
//! - [`ngrams`]: runs of terms, sets of them, and how alike two sets are.
//! - `functions`: the scalar functions, such as `text_hash` and `hash_share`.
//! - [`reference`](fn@reference): what can be written after FROM: `mark_duplicates` and `mark_contaminated`.
//! - `planner`: reads these from SQL. `node`: what they are in a plan.
//! - `duplicates`: near duplicates, on the disk but for four bytes a row. `minhash`: which rows may be alike.
//!   `clusters`: which are. `scratch`: the files in between.
//! - `contaminated`: n-grams of evaluation sets, held in memory, that rows streaming by share.
//!
//! # Invariants
//! - What is marked depends on the rows alone: not on their order, nor on how many parts a query runs in.
//! - Memory that grows with the rows is asked of the session, so that its limit holds.

mod clusters;
mod contaminated;
mod duplicates;
pub(crate) mod functions;
mod minhash;
pub mod ngrams;
mod node;
mod planner;
mod scratch;
pub mod terms;

pub(crate) use planner::{Calls, Planner};

/// A call that stands after FROM, and what its reference says.
#[derive(Clone, Copy, Debug)]
pub struct TableFunction {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, as they are written.
    pub arguments: &'static str,
    /// What it gives.
    pub doc: &'static str,
    /// The columns that it adds to the query's, each with its type and what it holds.
    pub columns: [(&'static str, &'static str, &'static str); 2],
}

/// See [`TableFunction::doc`].
pub const MARK_DUPLICATES: TableFunction = TableFunction {
    name: "mark_duplicates",
    arguments: "(SELECT …), id, text, threshold, n => 3, keep => column",
    doc: "The query's rows, each with whether it is nearly the same as another. Two texts are as alike as the share \
          of n-grams that they have in common, of all that either has (`ngram_jaccard`). Rows at least as alike as \
          `threshold`, from 0.2 to 1, are of one cluster, and so are those that a chain of such pairs joins. A \
          cluster's first row is the one with the greatest value of the column `keep`, if that is given; of equal \
          ones the one with the smallest `id`. Pairs are found by banded MinHash and then compared: one that is just \
          as alike as the threshold is found with a chance of 98 in 100, one that is more alike with a greater one, \
          and none that is less alike is taken for one. Rows come back in the order of `keep` and `id`.",
    columns: [
        (
            "duplicate_of",
            "type of `id`",
            "`id` of the first row of the cluster; null for that row itself, for a row that is like no other, and for \
             one whose text is null or has no words",
        ),
        (
            "similarity",
            "number",
            "how alike the row is to that one, in [0, 1]; where a chain joins the two it may be less than the \
             threshold; null where `duplicate_of` is",
        ),
    ],
};

/// See [`TableFunction::doc`].
pub const MARK_CONTAMINATED: TableFunction = TableFunction {
    name: "mark_contaminated",
    arguments: "(SELECT …), text, (SELECT id, text FROM evaluations), n => 13",
    doc: "The query's rows in their order, each with whether its text shares `n` words in a row with a text of \
          an evaluation set: small and capital letters, punctuation and signs make no difference. A text of the \
          evaluation set with fewer than `n` words has to be the whole of the row's text, signs included. The \
          second query gives what names a text of the evaluation set, and the text; all of its n-grams are held in \
          memory, 20 to 60 bytes each.",
    columns: [
        (
            "contaminated_by",
            "type of the second query's first column",
            "what names the text of the evaluation set that has the row's first shared n-gram, the smallest where \
             several have it; null where the row shares none",
        ),
        (
            "shared_ngram",
            "text",
            "the first shared n-gram, as the row has it; null where the row shares none",
        ),
    ],
};

/// Every call that can stand after FROM besides DataFusion's own.
pub fn reference() -> [TableFunction; 2] {
    [MARK_DUPLICATES, MARK_CONTAMINATED]
}
