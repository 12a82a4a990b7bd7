//! One module per subcommand: its flags, then what it does.

pub mod bench;
pub mod check;
pub mod daemon;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod grade;
pub mod logprobs;
pub mod query;
pub mod report;
pub mod run;

mod shared;
