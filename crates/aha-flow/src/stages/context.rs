//! What every stage works with, whatever its kind.

use aha_compute::Device;
use aha_compute::random::Philox;
use aha_data::Session;

use crate::error::{Error, Result};
use crate::generate;
use crate::pipeline::Run;
use crate::progress::{Event, Watcher};
use crate::rundir::RunDir;
use crate::stop::Stop;
use crate::watchdog::Finding;

/// What a stage works with, besides its settings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// What holds for every stage.
    pub run: &'a Run,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// Where weights are.
    pub device: &'a Device,
    /// More devices that train.
    pub others: &'a [Device],
    /// The tables.
    pub session: &'a Session,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// A request to stop.
    pub stop: &'a Stop,
}

impl Context<'_> {
    /// The family of its draws.
    pub fn random(&self) -> Philox {
        generate::stage_random(self.run.seed, self.stage)
    }

    /// Warns; a finding that stops is the error that the stage ends with.
    pub fn tell(&self, finding: Finding) -> Result<()> {
        let Finding { stops, message, hint } = finding;
        self.warn(message.clone(), hint);
        if stops { Err(Error::Watchdog { message, hint: hint.to_owned() }) } else { Ok(()) }
    }

    /// Warns whoever watches.
    pub fn warn(&self, message: String, hint: &str) {
        tracing::warn!(stage = self.stage, hint, "{message}.");
        (self.watcher)(Event::Warning {
            stage: self.stage.to_owned(),
            message,
            hint: hint.to_owned(),
        });
    }
}
