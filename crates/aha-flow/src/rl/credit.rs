//! Bounded edges: a ractor mailbox takes any number of messages, so every batch carries the credit that pays
//! for its place, and a sender without credit waits.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::progress::Waiting;

/// Credits of one edge.
#[derive(Clone, Debug)]
pub struct Credits {
    semaphore: Arc<Semaphore>,
    batches_max: usize,
}

/// A batch's place on an edge, free again when dropped.
pub type Credit = OwnedSemaphorePermit;

impl Credits {
    /// An edge that holds `batches_max` batches.
    pub fn new(batches_max: usize) -> Credits {
        Credits { semaphore: Arc::new(Semaphore::new(batches_max)), batches_max }
    }

    /// Waits for a place. None once the edge is closed.
    pub async fn take(&self) -> Option<Credit> {
        Arc::clone(&self.semaphore).acquire_owned().await.ok()
    }

    /// Waits for a place on a thread outside the runtime. None once the edge is closed.
    pub fn take_blocking(&self) -> Option<Credit> {
        futures::executor::block_on(self.take())
    }

    /// Lets waiting senders go, with nothing.
    pub fn close(&self) {
        self.semaphore.close();
    }

    /// Places that are free.
    pub fn free(&self) -> usize {
        self.semaphore.available_permits()
    }

    /// What waits at the edge's end, which is `actor`.
    pub fn waiting(&self, actor: &'static str) -> Waiting {
        Waiting { actor, count: self.batches_max - self.free(), max: self.batches_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stalled_receiver_lets_through_as_many_batches_as_there_are_credits() {
        let credits = Credits::new(3);
        let mut held = Vec::new();
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), async {
            loop {
                held.push(credits.take().await);
            }
        });
        assert!(waits.await.is_err());
        assert_eq!(held.len(), 3);
        held.pop();
        assert_eq!(credits.free(), 1);
        assert_eq!(credits.waiting("reward"), Waiting { actor: "reward", count: 2, max: 3 });
    }

    #[tokio::test]
    async fn closing_an_edge_wakes_its_senders() {
        let credits = Credits::new(1);
        let held = credits.take().await;
        let waiting = {
            let credits = credits.clone();
            std::thread::spawn(move || credits.take_blocking())
        };
        credits.close();
        assert!(waiting.join().unwrap().is_none());
        drop(held);
    }
}
