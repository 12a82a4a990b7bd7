//! The `sample` stage: completions of a model or of an endpoint, scored where rewards are given, as a table.

use std::sync::Arc;

use aha_reward::wait::Waiting;

use super::Context;
use super::asked::{self, Asked};
use super::completions::{self, Draws, Owner};
use crate::endpoint::Server;
use crate::error::Result;
use crate::lend::Lender;
use crate::models::{Loaded, Models};
use crate::pipeline::{Endpoint, OnNull, SampleStage, Thinking};
use crate::progress::Event;
use crate::prompts::{self, Problem, Prompter};
use crate::score::Scorer;

/// What the stage works with.
pub struct Sample<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its settings.
    pub settings: &'a SampleStage,
    /// Where models come from.
    pub models: &'a Models<'a>,
    /// What rewards that wait for others share.
    pub waiting: &'a Waiting,
}

impl Sample<'_> {
    /// Draws from `base` what the table doesn't have yet.
    pub async fn run(&self, base: Loaded) -> Result<()> {
        let settings = self.settings;
        let (problems, scorer) = self.problems().await?;
        let draws = Draws {
            table: self.context.stage.to_owned(),
            problems,
            prompter: Prompter::new(&base.tokenizer, &settings.template)?,
            sampling: aha_sample::Sampling {
                thinking: settings.thinking.as_ref().map(Thinking::resolved),
                ..prompts::sampling(&settings.sampling, &base.model, &base.tokenizer)
            },
            scorer,
            random: self.context.random(),
            samples: settings.n,
            run: self.context.run.clone(),
            model: base,
        };
        self.started(draws.chunks_count());
        completions::write(&self.owner(), draws).await.map(drop)
    }

    /// Asks an endpoint for what the table doesn't have yet.
    pub async fn ask(&self, endpoint: &Endpoint) -> Result<()> {
        let settings = self.settings;
        let (problems, scorer) = self.problems().await?;
        let server = Server::new(
            endpoint,
            &settings.sampling,
            &settings.template,
            self.context.random(),
            self.context.stop.cancel(),
        )?;
        let asked = Asked {
            table: self.context.stage.to_owned(),
            problems,
            server: Arc::new(server),
            scorer,
            needs_len: settings.rewards.iter().any(|reward| reward.0.kind().needs_tokens()),
            samples: settings.n,
            parallel_max: endpoint.parallel_max as usize,
            dir: self.context.dir.clone(),
        };
        self.started(asked.chunks_count());
        asked::write(&self.owner(), asked).await
    }

    /// The prompts, and what scores their completions.
    async fn problems(&self) -> Result<(Vec<Problem>, Option<Scorer>)> {
        let settings = self.settings;
        let specs: Vec<_> = settings.rewards.iter().map(|reward| reward.0.clone()).collect();
        let lender = Lender::new(self.context.stage, &specs, self.models, self.waiting).await?;
        let problems = prompts::load(self.context.session, &settings.prompts).await?;
        if specs.is_empty() {
            return Ok((problems, None));
        }
        let scorer = Scorer::new(&specs, OnNull::Drop, settings.reward_clip, &lender)?;
        scorer.check_sources(&problems)?;
        Ok((problems, Some(scorer)))
    }

    fn started(&self, chunks: usize) {
        (self.context.watcher)(Event::StageStarted {
            stage: self.context.stage.to_owned(),
            kind: "sample",
            step: 0,
            steps: chunks as u64,
        });
    }

    fn owner(&self) -> Owner<'_> {
        Owner { context: self.context, chunks_before: 0 }
    }
}
