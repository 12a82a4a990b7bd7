//! The `sample` stage: completions of a model, scored where rewards are given, as a table.

use aha_data::Session;
use aha_reward::wait::Waiting;

use super::completions::{self, Draws, Owner};
use crate::error::Result;
use crate::generate;
use crate::lend::Lender;
use crate::models::{Loaded, Models};
use crate::pipeline::{OnNull, Run, SampleStage, Thinking};
use crate::progress::{Event, Watcher};
use crate::prompts::{self, Prompter};
use crate::rundir::RunDir;
use crate::score::Scorer;
use crate::stop::Stop;

/// What the stage works with.
pub struct Sample<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its settings.
    pub settings: &'a SampleStage,
    /// What holds for every stage.
    pub run: &'a Run,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// The tables.
    pub session: &'a Session,
    /// Where models come from.
    pub models: &'a Models<'a>,
    /// What rewards that wait for others share.
    pub waiting: &'a Waiting,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// A request to stop.
    pub stop: &'a Stop,
}

impl Sample<'_> {
    /// Draws what the table doesn't have yet.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let settings = self.settings;
        let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
        let (stage, models) = (self.stage, self.models);
        let lender = Lender::new(stage, &specs, models, self.waiting).await?;
        let draws = Draws {
            table: self.stage.to_owned(),
            problems: prompts::load(self.session, &settings.prompts).await?,
            prompter: Prompter::new(&base.tokenizer, &settings.template)?,
            sampling: aha_sample::Sampling {
                thinking: settings.thinking.as_ref().map(Thinking::resolved),
                ..prompts::sampling(&settings.sampling, &base.model, &base.tokenizer)
            },
            scorer: (!specs.is_empty())
                .then(|| Scorer::new(&specs, OnNull::Drop, settings.reward_clip, &lender))
                .transpose()?,
            random: generate::stage_random(self.run.seed, self.stage),
            samples: settings.n,
            run: self.run.clone(),
            model: base,
        };
        (self.watcher)(Event::StageStarted {
            stage: self.stage.to_owned(),
            kind: "sample",
            step: 0,
            steps: draws.chunks_count() as u64,
        });
        let owner = Owner {
            stage: self.stage,
            dir: self.dir,
            watcher: self.watcher,
            stop: self.stop,
            chunks_before: 0,
        };
        completions::write(&owner, draws).await.map(drop)
    }
}
