//! The lane between learner and sampler: copies of weights one way, what the sampler says of itself the other.
//!
//! The learner changes its weights in place, so what the sampler draws from is a copy. A copy that nobody has taken
//! when the next is made goes first: there are two at most, the one that is drawn from and the one that waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aha_compute::Device;
use aha_model::Model;
use aha_sample::Weights;

use super::idle::Idle;

/// How often whoever waits for the first weights looks whether anybody still wants it to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Weights as the learner published them.
#[derive(Clone, Debug)]
pub struct Published {
    /// The copy.
    pub weights: Weights,
    /// The checksum of what it is a copy of.
    pub checksum: u64,
}

/// The lane of one spawn of the sampler.
#[derive(Debug)]
pub struct Lane {
    device: Device,
    waiting: Mutex<Option<Published>>,
    news: Condvar,
    idle: Mutex<Idle>,
    tokens: AtomicU64,
}

impl Lane {
    /// The lane of a sampler that computes with this device.
    pub fn new(device: Device) -> Lane {
        Lane {
            device,
            waiting: Mutex::default(),
            news: Condvar::new(),
            idle: Mutex::default(),
            tokens: AtomicU64::new(0),
        }
    }

    /// Copies the weights, and leaves the copy in place of one that nobody has taken.
    pub fn publish(&self, model: &Model, version: u64, checksum: u64) {
        drop(self.lock().take()); // Before there is another.
        let model = model.copy_on(&self.device).into();
        *self.lock() = Some(Published { weights: Weights { model, version }, checksum });
        self.news.notify_all();
    }

    /// The newest weights, if they weren't taken before.
    pub fn newer(&self) -> Option<Published> {
        self.lock().take()
    }

    /// The newest weights, once there are some; none where nobody wants them any more.
    pub fn first(&self, cancel: &AtomicBool) -> Option<Published> {
        let mut waiting = self.lock();
        loop {
            if cancel.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(found) = waiting.take() {
                return Some(found);
            }
            let woken = self.news.wait_timeout(waiting, LOOK_EVERY);
            (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Published>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the sampler waits for prompts, and when it does no more.
    pub fn idle(&self, is_idle: bool) {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if is_idle { idle.begin(now) } else { idle.end(now) }
    }

    /// How long the sampler has waited for prompts since this was asked last.
    pub fn take_idle(&self) -> Duration {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }

    /// A token was drawn.
    pub fn drew(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// So many tokens that were drawn have arrived at the learner.
    pub fn arrived(&self, tokens: u64) {
        self.tokens.fetch_sub(tokens, Ordering::Relaxed);
    }

    /// Tokens that were drawn and have not arrived.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn model() -> Model {
        let dir = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
            .join("../aha-model/tests/fixtures/tiny_llama");
        Model::load(&dir, &Device::cpu(1)).unwrap()
    }

    #[test]
    fn the_newest_copy_is_what_waits_and_it_is_nobody_elses() {
        let lane = Lane::new(Device::cpu(1));
        assert!(lane.newer().is_none());
        let mut model = model();
        let before = model.params().checksum();
        lane.publish(&model, 1, before);
        lane.publish(&model, 2, before);
        let id = model.params().ids().next().unwrap();
        model.params_mut().value_mut(id).fill(0.5);
        let found = lane.newer().unwrap();
        assert_eq!((found.weights.version, found.checksum), (2, before));
        assert_eq!(found.weights.model.params().checksum(), before);
        assert_ne!(model.params().checksum(), before);
        assert_eq!(Arc::strong_count(&found.weights.model), 1);
        assert!(lane.newer().is_none(), "each is taken once");
    }

    #[test]
    fn whoever_waits_for_the_first_weights_gets_them_or_is_let_go() {
        let lane = Lane::new(Device::cpu(1));
        let cancel = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lane.first(&cancel).map(|found| found.weights.version));
            lane.publish(&model(), 5, 0);
            assert_eq!(waiting.join().unwrap(), Some(5));
            let waiting = scope.spawn(|| lane.first(&cancel).is_none());
            cancel.store(true, Ordering::Relaxed);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn tokens_are_in_flight_until_they_arrive() {
        let lane = Lane::new(Device::cpu(1));
        (0..5).for_each(|_| lane.drew());
        lane.arrived(2);
        assert_eq!(lane.tokens(), 3);
    }
}
