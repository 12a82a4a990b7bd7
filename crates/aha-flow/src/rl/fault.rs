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
    /// A sampler that runs ahead begins a forward pass; the step is 0.
    Decode,
    /// The reward actor takes a batch.
    Reward,
    /// A thread of the reward actor begins to score a batch.
    Score,
    /// The advantage actor takes a batch.
    Advantage,
    /// The learner takes a step's groups.
    Learn,
    /// The learner's thread begins to train on them.
    Train,
    /// The recorder takes a step's rows.
    Record,
    /// The checkpointer begins a checkpoint.
    Checkpoint,
    /// The checkpointer's thread begins to write the stage's model.
    Model,
}

type Strike = dyn Fn(Point, u64) -> Result<(), Error> + Send + Sync;
type StrikePrompt = dyn Fn(&str) -> Result<(), Error> + Send + Sync;

/// Called at each point with the step, and for each prompt as it is sampled; may return an error or panic.
#[derive(Clone, Default)]
pub struct Faults {
    strike: Option<Arc<Strike>>,
    strike_prompt: Option<Arc<StrikePrompt>>,
}

impl Faults {
    /// Faults as `strike` has them.
    pub fn new(strike: impl Fn(Point, u64) -> Result<(), Error> + Send + Sync + 'static) -> Faults {
        Faults { strike: Some(Arc::new(strike)), strike_prompt: None }
    }

    /// Faults in the sampling of prompts, by their ids.
    pub fn of_prompts(
        strike: impl Fn(&str) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Faults {
        Faults::default().and_of_prompts(strike)
    }

    /// These, and faults in the sampling of prompts.
    pub fn and_of_prompts(
        self,
        strike: impl Fn(&str) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Faults {
        Faults { strike_prompt: Some(Arc::new(strike)), ..self }
    }

    /// Lets a fault strike.
    pub fn at(&self, point: Point, step: u64) -> Result<(), Error> {
        self.strike.as_ref().map_or(Ok(()), |strike| strike(point, step))
    }

    /// Lets a fault strike in the sampling of a prompt.
    pub fn at_prompt(&self, prompt_id: &str) -> Result<(), Error> {
        self.strike_prompt.as_ref().map_or(Ok(()), |strike| strike(prompt_id))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_some = self.strike.is_some() || self.strike_prompt.is_some();
        f.write_str(if is_some { "Faults(some)" } else { "Faults(none)" })
    }
}
