//! Runs of terms, sets of them, and how alike two sets are.

use super::terms::{Terms, composed};

/// Most terms of an n-gram.
pub const LEN_TERMS_MAX: usize = 100;

/// Hashes of the runs of `n` terms, in order; of a text with fewer terms, of the one run that they are. None of a
/// text without terms. `hashes` are those of the terms, `n` is at least 1.
pub fn ngrams(hashes: &[u64], n: usize) -> impl Iterator<Item = u64> {
    // An empty list has no windows.
    hashes.windows(n.min(hashes.len()).max(1)).map(hash_of_run)
}

/// A hash of several in their order. It is stored nowhere, so it may change.
pub fn hash_of_run(hashes: &[u64]) -> u64 {
    let joined = hashes.iter().fold(hashes.len() as u64, |joined, hash| {
        (joined.rotate_left(27) ^ hash).wrapping_mul(0x9e37_79b1_85eb_ca87)
    });
    let joined = (joined ^ (joined >> 32)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    joined ^ (joined >> 29)
}

/// Puts the set of n-grams into `set`: the upper halves of their hashes, each once, in order. Two of a thousand
/// n-grams have the same half with a chance of 1 in 8,000.
pub fn set_of(ngrams: &[u64], set: &mut Vec<u32>) {
    set.clear();
    set.extend(ngrams.iter().map(|hash| (hash >> 32) as u32));
    set.sort_unstable();
    set.dedup();
}

/// The share of what both sets have, of all that either has (Jaccard), in [0, 1]; 0 where one is empty. The sets are
/// in order.
pub fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both_count) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        both_count += usize::from(a[i] == b[j]);
        let (next_i, next_j) = (a[i] <= b[j], b[j] <= a[i]);
        i += usize::from(next_i);
        j += usize::from(next_j);
    }
    let either_count = a.len() + b.len() - both_count;
    if both_count == 0 { 0.0 } else { both_count as f64 / either_count as f64 }
}

/// How alike two texts are: the share of n-grams that both have, of all that either has. None where one has no
/// words, or `n` is not from 1 to [`LEN_TERMS_MAX`].
///
/// ```
/// let alike = aha_data::curation::ngrams::ngram_jaccard("one two three", "One, two: four", 1);
/// assert_eq!(alike, Some(0.5));
/// ```
pub fn ngram_jaccard(a: &str, b: &str, n: usize) -> Option<f64> {
    if !(1..=LEN_TERMS_MAX).contains(&n) {
        return None;
    }
    let mut reader = Reader::new(n);
    let [mut first, mut second] = [Vec::new(), Vec::new()];
    reader.read(a);
    set_of(&reader.ngrams, &mut first);
    reader.read(b);
    set_of(&reader.ngrams, &mut second);
    (!first.is_empty() && !second.is_empty()).then(|| jaccard(&first, &second))
}

/// Reads the n-grams of one text after the other; memory is used again.
#[derive(Debug)]
pub struct Reader {
    n: usize,
    terms: Terms,
    hashes: Vec<u64>,
    /// Hashes of the n-grams of the text that was read last.
    pub ngrams: Vec<u64>,
}

impl Reader {
    /// A reader of n-grams of `n` terms, at least 1.
    pub fn new(n: usize) -> Reader {
        assert!(n >= 1, "an n-gram has terms");
        Reader { n, terms: Terms::default(), hashes: Vec::new(), ngrams: Vec::new() }
    }

    /// Reads a text.
    pub fn read(&mut self, text: &str) {
        self.terms.read(&composed(text));
        self.terms.hashes(&mut self.hashes);
        self.ngrams.clear();
        self.ngrams.extend(ngrams(&self.hashes, self.n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_that_of_the_sets_of_ngrams() {
        let cases = [
            ("a b c", "a b c", 2, Some(1.0)),
            ("a b c", "A, b. C!", 2, Some(1.0)),
            ("a b c d", "a b c e", 1, Some(0.6)),
            ("a b c d", "a b c e", 2, Some(0.5)),
            ("a b c d", "d c b a", 2, Some(0.0)),
            // Said twice is said once.
            ("a b a b a b", "a b a", 2, Some(1.0)),
            // Fewer terms than an n-gram has: the whole text.
            ("a b", "a b", 5, Some(1.0)),
            ("a b", "a b c", 5, Some(0.0)),
            ("3 - 4", "3 + 4", 3, Some(0.0)),
            ("", "a", 1, None),
            ("?!", "?!", 1, None),
            ("a", "a", 0, None),
            ("a", "a", 101, None),
        ];
        for (a, b, n, expected) in cases {
            assert_eq!(ngram_jaccard(a, b, n), expected, "{a} {b} {n}");
            assert_eq!(ngram_jaccard(b, a, n), expected, "{b} {a} {n}");
        }
    }

    #[test]
    fn a_run_has_the_hash_of_its_terms_in_their_order() {
        assert_ne!(hash_of_run(&[1, 2]), hash_of_run(&[2, 1]));
        assert_ne!(hash_of_run(&[0]), hash_of_run(&[0, 0]));
        assert_eq!(
            ngrams(&[1, 2, 3], 2).collect::<Vec<_>>(),
            [hash_of_run(&[1, 2]), hash_of_run(&[2, 3])]
        );
        assert_eq!(ngrams(&[], 2).count(), 0);
        assert_eq!(ngrams(&[7], 2).collect::<Vec<_>>(), [hash_of_run(&[7])]);
    }
}
