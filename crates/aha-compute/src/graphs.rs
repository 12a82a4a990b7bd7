//! Work on a CUDA device that is captured once and done again at one call of the driver.
//!
//! What is captured has the addresses of all that it reads and writes, and sizes of launches. So each graph goes by a
//! key that has all of these; work with another key is captured anew, and the graph that was used least lately goes.

use crate::Device;
use crate::cuda::{Captured, Context, Error, Workspace};

/// Graphs that are kept. One of a model with 24 layers is about 400 launches; beside them it has no memory of its own.
const GRAPHS_MAX: usize = 64;

/// Captured work of one stream.
#[derive(Debug, Default)]
pub struct Graphs {
    known: Vec<Known>,
    /// What all of them take and free.
    workspace: Option<Workspace>,
    clock: u64,
}

#[derive(Debug)]
struct Known {
    key: Vec<u64>,
    captured: Captured,
    used_at: u64,
}

impl Graphs {
    /// Does `work`, which asks the device's stream for the same at each call with the same key: the first time by
    /// calling it, and then by what was captured. A failure is the device's.
    ///
    /// # Safety
    /// The key has the address of each buffer that `work` uses and doesn't make itself, or that lives as long as this;
    /// each is there during the call. What `work` makes isn't used after it.
    pub unsafe fn run(&mut self, device: &Device, key: &[u64], mut work: impl FnMut()) {
        let gpu = device.gpu().expect("a CUDA device");
        gpu.run(|cx| {
            // What failed inside of it is the device's failure already.
            let work = |_: &Context| {
                work();
                gpu.failure().map_or(Ok(()), |failure| Err(failure.clone()))
            };
            // SAFETY: the caller's promise.
            unsafe { self.run_on(cx, key, work) }
        });
    }

    unsafe fn run_on(
        &mut self,
        cx: &Context,
        key: &[u64],
        work: impl FnMut(&Context) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.clock += 1;
        if self.workspace.as_ref().is_some_and(|workspace| !workspace.is_of(cx)) {
            (self.known, self.workspace) = (Vec::new(), None);
        }
        if let Some(known) = self.known.iter_mut().find(|known| known.key == key) {
            known.used_at = self.clock;
            // SAFETY: the addresses are those of buffers that are there now, as the caller promises.
            return unsafe { known.captured.replay() };
        }
        if self.known.len() >= GRAPHS_MAX {
            let used_at = self.known.iter().map(|known| known.used_at).min();
            self.known.retain(|known| Some(known.used_at) != used_at);
        }
        let workspace = self.workspace.get_or_insert_with(|| Workspace::new(cx));
        // SAFETY: as above; all graphs are of one stream.
        let captured = unsafe { cx.capture(workspace, work)? };
        self.known.push(Known { key: key.to_vec(), captured, used_at: self.clock });
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}
