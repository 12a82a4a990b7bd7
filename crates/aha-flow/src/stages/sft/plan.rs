//! Which examples each optimizer step has: a function of seed and step.

use aha_compute::random::Philox;

/// Which examples each optimizer step has.
pub struct Plan {
    count: usize,
    batch_size: usize,
    shuffle: bool,
    /// Optimizer steps of the whole stage.
    pub steps: u64,
    random: Philox,
}

impl Plan {
    /// Batches of `count` examples: as many as the epochs need, but no more than the steps that may follow
    /// their number.
    pub fn new(
        count: usize,
        batch_size: u32,
        (epochs, steps_max): (u32, Option<u64>),
        shuffle: bool,
        random: Philox,
    ) -> Plan {
        let batch_size = batch_size as usize;
        let needed = (count * epochs as usize).div_ceil(batch_size) as u64;
        let steps = steps_max.map_or(needed, |max| max.min(needed));
        Plan { count, batch_size, shuffle, steps, random }
    }

    /// The examples of the step after `step` others. They run on from one epoch into the next, and every
    /// batch is full: the last of all may run into an epoch more than were asked for.
    pub fn batch(&self, step: u64) -> Vec<usize> {
        let start = step as usize * self.batch_size;
        let mut epoch = usize::MAX;
        let mut order = Vec::new();
        let mut batch = Vec::with_capacity(self.batch_size);
        for at in start..start + self.batch_size {
            if at / self.count != epoch {
                epoch = at / self.count;
                order = self.order(epoch);
            }
            batch.push(order[at % self.count]);
        }
        batch
    }

    fn order(&self, epoch: usize) -> Vec<usize> {
        if self.shuffle {
            self.random.permutation(epoch as u64, self.count)
        } else {
            (0..self.count).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(count: usize, batch_size: u32, epochs: u32, shuffle: bool) -> Plan {
        Plan::new(count, batch_size, (epochs, None), shuffle, Philox::new(1))
    }

    #[test]
    fn an_epoch_has_every_example_once_across_batches() {
        let plan = plan(10, 4, 2, true);
        assert_eq!(plan.steps, 5);
        let all: Vec<usize> = (0..5).flat_map(|step| plan.batch(step)).collect();
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..], "each epoch has its own order");
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_data() {
        assert_eq!(plan(5, 3, 1, false).batch(1), [3, 4, 0]);
    }
}
