//! Faults that tests inject, at named points of a stage.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// Where a fault can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The feeder makes a step's prompts.
    Feed,
    /// The sampler begins a step.
    Sample,
    /// The reward actor takes a batch.
    Reward,
    /// The advantage actor takes a batch.
    Advantage,
    /// The learner takes a step's groups.
    Learn,
    /// The recorder takes a step's rows.
    Record,
    /// The checkpointer begins a checkpoint.
    Checkpoint,
}

type Strike = dyn Fn(Point, u64) -> Result<(), Error> + Send + Sync;

/// Called at each point with the step; may return an error or panic.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Strike>>);

impl Faults {
    /// Faults as `strike` has them.
    pub fn new(strike: impl Fn(Point, u64) -> Result<(), Error> + Send + Sync + 'static) -> Faults {
        Faults(Some(Arc::new(strike)))
    }

    /// Lets a fault strike.
    pub fn at(&self, point: Point, step: u64) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |strike| strike(point, step))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Faults(some)" } else { "Faults(none)" })
    }
}
