//! Sequences → micro-batches, groups → minibatches.
//!
//! A minibatch is what one optimizer step sees. A micro-batch is what fits through the model at once:
//! its size changes memory and speed and no result, so packing keeps the order of the sequences and gradients are
//! summed in the same order however they are cut.

use std::ops::Range;

/// Cuts sequences into micro-batches of at most `micro_batch_tokens` tokens: greedy, in order, unpadded.
///
/// Each range is one micro-batch, as indices into `lens_tokens`; together they cover all of it. A sequence
/// longer than the budget gets a micro-batch of its own.
pub fn pack(lens_tokens: &[usize], micro_batch_tokens: usize) -> Vec<Range<usize>> {
    let mut micro_batches = Vec::new();
    let mut start_idx = 0;
    let mut filled_tokens = 0_usize;
    for (idx, &len_tokens) in lens_tokens.iter().enumerate() {
        if start_idx < idx && micro_batch_tokens < filled_tokens.saturating_add(len_tokens) {
            micro_batches.push(start_idx..idx);
            start_idx = idx;
            filled_tokens = 0;
        }
        filled_tokens = filled_tokens.saturating_add(len_tokens);
    }
    if start_idx < lens_tokens.len() {
        micro_batches.push(start_idx..lens_tokens.len());
    }
    micro_batches
}

/// Cuts groups into micro-batches, as [`pack`] does sequences. A group is the tokens of its prompt, which its
/// completions have in common, and of each completion.
///
/// A group that has at most `micro_batch_tokens` tokens stays whole. A larger one is cut into parts, each of
/// which has the prompt. Ranges are indices into the completions of all groups.
pub fn pack_groups(groups: &[(usize, Vec<usize>)], micro_batch_tokens: usize) -> Vec<Range<usize>> {
    let (mut lens_tokens, mut ends) = (Vec::new(), vec![0]);
    for (prompt_tokens, completions) in groups {
        for part in pack(completions, micro_batch_tokens.saturating_sub(*prompt_tokens)) {
            let own_tokens: usize = completions[part.clone()].iter().sum();
            lens_tokens.push(prompt_tokens + own_tokens);
            ends.push(ends[ends.len() - 1] + part.len());
        }
    }
    let completions = |parts: Range<usize>| ends[parts.start]..ends[parts.end];
    pack(&lens_tokens, micro_batch_tokens).into_iter().map(completions).collect()
}

/// Shares sequences out to devices that learn together: neighbours to one device, about as many tokens to each. A
/// function of the lengths, so the same sequences are shared out in the same way in every run. With fewer sequences
/// than devices some get none.
pub fn shares(lens_tokens: &[usize], count: usize) -> Vec<Range<usize>> {
    let total: u128 = lens_tokens.iter().map(|&len| 2 * len as u128).sum();
    let mut before = 0;
    // A sequence goes where its middle is.
    let share = |len: &usize| {
        let middle = before + *len as u128;
        before += 2 * *len as u128;
        (middle * count as u128 / total.max(1)).min(count as u128 - 1) as usize
    };
    let shares: Vec<usize> = lens_tokens.iter().map(share).collect();
    let start = |of: usize| shares.partition_point(|share| *share < of);
    (0..count).map(|share| start(share)..start(share + 1)).collect()
}

/// Deals the groups of a rollout batch into minibatches, whole groups, in an order that `random` decides.
///
/// `random` is a function of an address (0, 1, 2, …) and the caller's seed, so the same seed deals the same
/// hands. Minibatch sizes differ by at most one group; with fewer groups than minibatches there are fewer
/// minibatches, none empty. Inside a minibatch the groups keep the order of the rollout batch.
pub fn minibatches(
    group_count: usize,
    minibatch_count: usize,
    random: impl Fn(u64) -> u64,
) -> Vec<Vec<usize>> {
    assert!(0 < minibatch_count, "a rollout batch is split in at least one minibatch");
    let hands = minibatch_count.min(group_count);
    let order = permutation(group_count, random);
    (0..hands)
        .map(|hand| {
            let range = hand * group_count / hands..(hand + 1) * group_count / hands;
            let mut groups = order[range].to_vec();
            groups.sort_unstable();
            groups
        })
        .collect()
}

/// A permutation of `0..count` by Fisher and Yates; draw number `i` is `random(i)`.
pub fn permutation(count: usize, random: impl Fn(u64) -> u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last_idx in (1..count).rev() {
        let bound = last_idx as u128 + 1;
        // The high half of a 128-bit product: off from uniform by less than bound / 2^64.
        let chosen_idx = (u128::from(random(last_idx as u64)) * bound) >> 64;
        order.swap(last_idx, chosen_idx as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each sequence is in one share, in order, and no share is much larger than another. Method: many lengths;
    /// a share is off an equal one by no more than a sequence.
    #[test]
    fn shares_have_every_sequence_once_and_about_as_many_tokens() {
        for count in [1, 2, 3, 8] {
            for len in [0, 1, 2, 7, 100] {
                let lens: Vec<usize> = (0..len).map(|i| (i * 37 + 11) % 50).collect();
                let shares = shares(&lens, count);
                assert_eq!((shares.len(), shares[0].start, shares[count - 1].end), (count, 0, len));
                assert!(shares.windows(2).all(|two| two[0].end == two[1].start));
                let total: usize = lens.iter().sum();
                for share in shares {
                    let tokens: usize = lens[share].iter().sum();
                    assert!(tokens.abs_diff(total / count) <= 50, "{tokens} of {total}, {count}");
                }
            }
        }
        assert_eq!(shares(&[5, 5, 5, 5], 2), [0..2, 2..4]);
        assert_eq!(shares(&[0, 0], 2), [0..2, 2..2]);
    }

    /// SplitMix64: any good function of seed and address will do here.
    fn random(seed: u64) -> impl Fn(u64) -> u64 {
        move |address| {
            let mut z = seed.wrapping_add(address.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn packing_is_greedy_and_in_order() {
        assert_eq!(pack(&[3, 3, 4, 1, 1], 6), [0..2, 2..5]);
        assert_eq!(pack(&[3, 3, 4, 1, 1], 7), [0..2, 2..5]);
        assert_eq!(pack(&[3, 3, 4, 1, 1], 5), [0..1, 1..2, 2..4, 4..5]);
        assert_eq!(pack(&[3, 3, 4, 1, 1], usize::MAX), [0..5; 1]);
    }

    #[test]
    fn a_sequence_longer_than_the_budget_is_alone() {
        assert_eq!(pack(&[9, 1, 9, 9, 1, 1], 4), [0..1, 1..2, 2..3, 3..4, 4..6]);
        assert_eq!(pack(&[1, 2], 0), [0..1, 1..2]);
    }

    #[test]
    fn a_group_is_cut_only_where_it_does_not_fit() {
        let groups = [(4, vec![3, 2, 1]), (2, vec![5]), (1, vec![2, 2, 2])];
        assert_eq!(pack_groups(&groups, 100), [0..7; 1]);
        assert_eq!(pack_groups(&groups, 17), [0..4, 4..7]);
        assert_eq!(pack_groups(&groups, 10), [0..3, 3..4, 4..7]);
        // The first group has ten tokens. Each of its parts has its prompt's four.
        assert_eq!(pack_groups(&groups, 9), [0..2, 2..3, 3..4, 4..7]);
        assert_eq!(pack_groups(&groups, 7), [0..1, 1..3, 3..4, 4..7]);
        assert_eq!(pack_groups(&groups, 4), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6, 6..7]);
        assert!(pack_groups(&[], 4).is_empty());
    }

    #[test]
    fn nothing_packs_into_nothing_and_empty_sequences_ride_along() {
        assert!(pack(&[], 4).is_empty());
        assert_eq!(pack(&[0, 4, 0, 0], 4), [0..4; 1]);
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_follows_its_seed() {
        for count in [0, 1, 2, 3, 50] {
            let mut order = permutation(count, random(1));
            assert_eq!(order, permutation(count, random(1)));
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
        assert_ne!(permutation(50, random(1)), permutation(50, random(2)));
    }

    #[test]
    fn every_order_of_three_is_about_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            *counts.entry(permutation(3, random(seed * 7919))).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // The standard deviation of such a count is 29.
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn minibatches_deal_every_group_once_in_hands_of_even_size() {
        for (groups, count) in [(32, 16), (10, 4), (3, 5), (7, 1), (0, 2)] {
            let hands = minibatches(groups, count, random(3));
            assert_eq!(hands.len(), count.min(groups));
            let sizes: Vec<usize> = hands.iter().map(Vec::len).collect();
            if let (Some(min), Some(max)) = (sizes.iter().min(), sizes.iter().max()) {
                assert!(0 < *min && max - min <= 1, "{sizes:?}");
            }
            let mut all = hands.concat();
            all.sort_unstable();
            assert_eq!(all, (0..groups).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_minibatch_is_the_batch_in_its_order_and_more_are_shuffled() {
        assert_eq!(minibatches(5, 1, random(9)), [[0, 1, 2, 3, 4]]);
        let hands = minibatches(64, 4, random(9));
        assert_ne!(hands[0], (0..16).collect::<Vec<_>>());
        assert!(hands.iter().all(|hand| hand.is_sorted()));
        assert_ne!(hands, minibatches(64, 4, random(10)));
    }
}
