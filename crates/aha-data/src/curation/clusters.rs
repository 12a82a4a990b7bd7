//! Which rows are alike: those that meet in a bucket are compared, and joined if they are alike enough.

use datafusion::error::Result;

use super::ngrams::jaccard;

/// Rows of a bucket that others are compared with. What a bucket holds beyond these, all unlike one another, is
/// compared with the first of them and the newest.
const REPRESENTATIVES_MAX: usize = 8;

/// The clusters of rows, each known by its first row. Rows are numbers from 0.
#[derive(Debug)]
pub(super) struct Clusters {
    /// An earlier row of the same cluster for each row; itself for the first.
    parents: Vec<u32>,
    threshold: f64,
}

impl Clusters {
    /// Every row is its own cluster. Takes [`Clusters::bytes`].
    pub(super) fn new(rows_count: u32, threshold: f64) -> Clusters {
        Clusters { parents: (0..rows_count).collect(), threshold }
    }

    /// Memory for so many rows.
    pub(super) fn bytes(rows_count: u32) -> usize {
        rows_count as usize * size_of::<u32>()
    }

    /// The first row of the cluster of `row`.
    pub(super) fn first(&mut self, row: u32) -> u32 {
        let mut at = row;
        while self.parents[at as usize] != at {
            let parent = self.parents[at as usize];
            // The next search has half the way.
            self.parents[at as usize] = self.parents[parent as usize];
            at = self.parents[at as usize];
        }
        at
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.first(a), self.first(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// Joins the rows of a bucket that are alike; `rows` are in order, `read` gives a row's set.
    pub(super) fn bucket(
        &mut self,
        rows: &[u32],
        mut read: impl FnMut(u32, &mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let mut known: Vec<(u32, Vec<u32>)> = Vec::new();
        let mut set = Vec::new();
        for &row in rows {
            let first = self.first(row);
            if known.iter().any(|(other, _)| self.first(*other) == first) {
                continue;
            }
            read(row, &mut set)?;
            let mut is_joined = false;
            for (other, other_set) in &known {
                if is_alike(&set, other_set, self.threshold) {
                    self.join(row, *other);
                    is_joined = true;
                }
            }
            if is_joined {
                continue;
            }
            if known.len() == REPRESENTATIVES_MAX {
                known.pop();
            }
            known.push((row, std::mem::take(&mut set)));
        }
        Ok(())
    }
}

/// Whether two sets are at least as alike as `threshold`.
fn is_alike(a: &[u32], b: &[u32], threshold: f64) -> bool {
    // At most so alike are sets of these sizes.
    let alike_max = a.len().min(b.len()) as f64 / a.len().max(b.len()) as f64;
    alike_max >= threshold && jaccard(a, b) >= threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(sets: &[Vec<u32>], buckets: &[&[u32]], threshold: f64) -> Vec<u32> {
        let mut clusters = Clusters::new(sets.len() as u32, threshold);
        for bucket in buckets {
            let read = |row: u32, set: &mut Vec<u32>| {
                set.clone_from(&sets[row as usize]);
                Ok(())
            };
            clusters.bucket(bucket, read).unwrap();
        }
        (0..sets.len() as u32).map(|row| clusters.first(row)).collect()
    }

    #[test]
    fn rows_that_meet_and_are_alike_are_a_cluster_of_the_first() {
        let sets = [vec![1, 2, 3], vec![7, 8], vec![1, 2, 3, 4], vec![1, 2, 3], vec![7, 8, 9, 10]];
        assert_eq!(clusters(&sets, &[&[0, 1, 2, 3, 4]], 0.7), [0, 1, 0, 0, 4]);
        // What never meets is never joined, however alike.
        assert_eq!(clusters(&sets, &[&[0, 1], &[2, 3]], 0.7), [0, 1, 2, 2, 4]);
        // Chains are one cluster, whatever comes first.
        assert_eq!(clusters(&sets, &[&[2, 3], &[0, 2]], 0.7), [0, 1, 0, 0, 4]);
        assert_eq!(clusters(&sets, &[&[0, 2], &[2, 3]], 1.0), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_row_that_is_like_two_joins_them() {
        let sets = [vec![1, 2, 3], vec![3, 4, 5], vec![1, 2, 3, 4, 5]];
        assert_eq!(clusters(&sets, &[&[0, 1, 2]], 0.6), [0, 0, 0]);
    }

    #[test]
    fn a_crowded_bucket_compares_with_the_first_rows_and_the_newest() {
        let mut sets: Vec<Vec<u32>> = (0..50).map(|row| vec![10 * row, 10 * row + 1]).collect();
        sets.push(sets[49].clone());
        sets.push(sets[3].clone());
        let all: Vec<u32> = (0..52).collect();
        let found = clusters(&sets, &[&all], 0.9);
        assert_eq!(found[50..], [49, 3]);
        assert_eq!(found[..50], all[..50]);
    }
}
