//! A request to stop, raised by a signal or a caller and seen by whoever works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_reward::wait::Cancel;
use tokio::sync::watch;

/// A request to stop. Cloning it clones the handle.
#[derive(Clone, Debug)]
pub struct Stop {
    sender: Arc<watch::Sender<bool>>,
    flag: Arc<AtomicBool>,
}

impl Default for Stop {
    fn default() -> Stop {
        Stop { sender: Arc::new(watch::Sender::new(false)), flag: Arc::default() }
    }
}

impl Stop {
    /// Asks everyone to stop.
    pub fn request(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.sender.send_replace(true);
    }

    /// Whether a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// For computations that look at a flag now and then.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// For rewards that wait for others.
    pub fn cancel(&self) -> Cancel {
        Cancel::new(Arc::clone(&self.flag))
    }

    /// Waits until a stop is requested.
    pub async fn requested(&self) {
        // The sender lives as long as this handle, so the wait ends only with a request.
        let _ = self.sender.subscribe().wait_for(|&stop| stop).await;
    }
}
