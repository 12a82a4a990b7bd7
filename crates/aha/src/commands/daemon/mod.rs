//! The daemon and the commands that ask it.
//!
//! - [`serve`]: `aha daemon`. [`submit`]: `aha submit`. [`runs`]: `aha runs`, `show`, `pause`, `resume`, `cancel`.
//! - [`logs`]: `aha logs`. [`top`]: `aha top`. `client`: how the daemon is asked. `shown`: runs as people read them.

pub mod logs;
pub mod runs;
pub mod serve;
pub mod submit;
pub mod top;

mod client;
mod shown;
