//! The parts, and what runs them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::{
    Finding, Findings, Subject, determinism, draws, driver, gradients, grpo, models, ops, paths,
};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Memory that is taken, freed and used again, out of memory, captured work, pinned copies, streams.
    Driver,
    /// Each op forward and backward against the processor's, in f32 and bf16, on odd shapes and on models'.
    Ops,
    /// The same tokens as on the processor for the same logits.
    Draws,
    /// Log-probs and gradients of a model of each family against the processor's.
    Models,
    /// The backward pass against central differences of the device's own forward pass.
    Gradients,
    /// The same bits each time, and in any company.
    Determinism,
    /// How far a token's log-prob in the sampler is from that in the learner.
    Paths,
    /// Steps of GRPO: the same tokens, losses and norms as on the processor.
    Grpo,
}

impl Part {
    /// All parts, what others are built on first.
    pub const ALL: [Part; 8] = [
        Part::Driver,
        Part::Ops,
        Part::Draws,
        Part::Models,
        Part::Gradients,
        Part::Determinism,
        Part::Paths,
        Part::Grpo,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Driver => "driver",
            Part::Ops => "ops",
            Part::Draws => "draws",
            Part::Models => "models",
            Part::Gradients => "gradients",
            Part::Determinism => "determinism",
            Part::Paths => "paths",
            Part::Grpo => "grpo",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let names = || Part::ALL.map(Part::name).join(", ");
        let found = Part::ALL.into_iter().find(|part| part.name() == text);
        found.ok_or_else(|| format!("there is no part `{text}`: expected one of {}", names()))
    }
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Shapes that an emulated device, or one under a sanitizer, has time for.
    Small,
    /// Those of models beside them.
    Full,
}

/// Looks at these parts; `told` hears of each case as soon as it is done.
pub fn run(
    subject: &Subject,
    parts: &[Part],
    size: Size,
    told: &mut dyn FnMut(&Finding),
) -> Vec<Finding> {
    let mut findings = Findings::new(told);
    for part in parts {
        match part {
            Part::Driver => driver::check(subject, &mut findings),
            Part::Ops => ops::check(subject, size, &mut findings),
            Part::Draws => draws::check(subject, size, &mut findings),
            Part::Models => models::check(subject, size, &mut findings),
            Part::Gradients => gradients::check(subject, size, &mut findings),
            Part::Determinism => determinism::check(subject, size, &mut findings),
            Part::Paths => paths::check(subject, size, &mut findings),
            Part::Grpo => grpo::check(subject, size, &mut findings),
        }
    }
    findings.into_list()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_name() {
        for part in Part::ALL {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        assert!("kernels".parse::<Part>().is_err_and(|error| error.contains("gradients")));
    }
}
