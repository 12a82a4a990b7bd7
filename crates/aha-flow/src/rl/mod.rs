//! The `rl` stage: a ring of actors under one supervisor.
//!
//! ```text
//! Feeder ─prompts▶ Sampler ─rollouts▶ Reward ─scored▶ Advantage ─groups▶ Learner ─weights▶ Sampler
//!                                                                          │ └─credit▶ Feeder
//!                                        Recorder ◀─rows, measures─────────┤
//!                                                 Checkpointer ◀─state─────┘
//! ```
//!
//! # Map
//! - [`stage`]: what the actors share, and the loop that restarts the stage from its last checkpoint.
//! - [`supervisor`]: spawns the actors and decides what a failure means; [`credit`]: bounded edges.
//! - [`feeder`], [`sampler`], [`reward`], [`advantage`], [`learner`], [`recorder`], [`checkpointer`]:
//!   the actors, in the order of the data.
//! - [`ahead`]: what is different where the sampler runs ahead of the learner, with `max_staleness` above 0.
//! - [`draw`]: which prompts a step asks, by sources and by how hard prompts are. Pure.
//! - [`train`]: what the learner does with a step's rows. Pure but for the weights. `appraise`: advantages that need
//!   the learner's models, KL in the reward and a critic's. `critic`: the critic's optimizer steps.
//! - [`fault`]: faults that tests inject.
//!
//! # Invariants
//! - Each data edge holds a fixed number of batches: a sender that has no credit waits.
//! - A step is trained on once: the learner takes a step's groups only if they are of the step and the
//!   attempt that it waits for. Everything left of it can be restarted and yields the same rows.
//! - A row is durable before the checkpoint that has trained on it, and so are the step's measures, unless
//!   their sink fails.
//! - What computes or writes for long does so on threads of its actor's own, never in a handler.
//! - A stage holds the model that it trains, the reference if the objective has one, and the critic if it has one; no
//!   other outlives a step. A sampler that runs ahead has copies of the first, two at most.

pub mod advantage;
pub mod ahead;
mod appraise;
pub mod checkpointer;
pub mod credit;
mod critic;
pub mod draw;
pub mod fault;
pub mod feeder;
pub mod learner;
pub mod recorder;
pub mod reward;
pub mod sampler;
pub mod stage;
pub mod supervisor;
pub mod train;

pub use stage::run;
