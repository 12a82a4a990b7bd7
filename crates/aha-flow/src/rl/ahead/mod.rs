//! Sampling ahead of the learner: what is different with `max_staleness` above 0.
//!
//! ```text
//! Feeder ─prompts▶ Sampler ─rollouts▶ Reward ─scored▶ Advantage ─group by group▶ Learner
//!    ▲                ▲ └ goes on while the learner steps                      │ takes `prompts_per_step` groups
//!    │                └── copies of its weights, through a lane ───────────────┤ of those that have arrived
//!    └─────────────────── rounds, as many as the ledger allows ────────────────┘
//! ```
//!
//! # Map
//! - [`ledger`]: which groups are on their way, whether others may begin, which a step takes. Pure; start here.
//! - [`lane`]: copies of the weights from learner to sampler, and what the sampler says of itself.
//! - [`idle`]: how long somebody waited. Pure but for the time.
//! - `stream`: the sampler's thread, which draws without end. `intake`: the learner's side.
//!
//! # Invariants
//! - At most `(max_staleness + 1) * prompts_per_step` groups have begun whose step is not done.
//! - The learner changes its weights in place; the sampler has copies, two at most, and the learner never waits for it.
//! - A group is trained on once, or is in the table with the reason why not. What a failure or a restart costs is
//!   sampled again.
//! - No token that is trained on is more than `max_staleness` publications of weights old.

pub mod idle;
pub(super) mod intake;
pub mod lane;
pub mod ledger;
pub(super) mod stream;
