//! The `eval` stage: completions of each model on held-out problems, and what they say of it.
//!
//! A model's completions are the table `STAGE_MODEL`, made like those of a `sample` stage. The figures are
//! computed from that table, and are a row of the stage's own table and of `evals`.

use aha_data::Session;
use aha_rollout::table::{self, TableWriter};
use aha_rollout::{read, rows, schema};

use super::completions::{self, Draws, Owner, part_name};
use crate::error::{Error, Result};
use crate::evaluate::{Answers, Evaluation, Tally};
use crate::models::{Loaded, Models};
use crate::pipeline::{EvalStage, OnNull, Run, Sampling};
use crate::progress::{Event, Watcher};
use crate::prompts::{self, Problem, Prompter};
use crate::reward_model::Lent;
use crate::rundir::RunDir;
use crate::score::Scorer;
use crate::stop::Stop;
use crate::{generate, planning};

/// What the stage works with.
pub struct Eval<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its settings.
    pub settings: &'a EvalStage,
    /// What holds for every stage.
    pub run: &'a Run,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// The tables.
    pub session: &'a Session,
    /// Where models come from.
    pub models: &'a Models<'a>,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// A request to stop.
    pub stop: &'a Stop,
}

impl Eval<'_> {
    /// Draws what the tables don't have yet, then measures each model.
    pub async fn run(&self) -> Result<()> {
        let problems = prompts::load(self.session, &self.settings.data).await?;
        let chunks = problems.len().div_ceil(completions::CHUNK_PROMPTS);
        let names = &self.settings.model.0;
        (self.watcher)(Event::StageStarted {
            stage: self.stage.to_owned(),
            kind: "eval",
            step: 0,
            steps: (chunks * names.len()) as u64,
        });
        let dataset = self.dataset()?;
        let lent = self.models.lend(std::iter::once(&self.settings.reward)).await?;
        for (idx, name) in names.iter().enumerate() {
            let owner = Owner {
                stage: self.stage,
                dir: self.dir,
                watcher: self.watcher,
                stop: self.stop,
                chunks_before: idx * chunks,
            };
            let draws = self.draws(name, self.models.load(name).await?, problems.clone(), &lent)?;
            completions::write(&owner, draws).await?;
            self.record(idx, &self.measure(name, &dataset, problems.len())?)?;
        }
        Ok(())
    }

    fn draws(
        &self,
        name: &str,
        model: Loaded,
        problems: Vec<Problem>,
        lent: &Lent,
    ) -> Result<Draws> {
        let settings = self.settings;
        let sampling = Sampling {
            temperature: settings.temperature,
            top_p: settings.top_p,
            top_k: settings.top_k,
            max_tokens: settings.max_tokens,
            stop: settings.stop.clone(),
            ..Sampling::default()
        };
        Ok(Draws {
            table: EvalStage::completions(self.stage, name),
            problems,
            prompter: Prompter::new(&model.tokenizer, &settings.template)?,
            sampling: prompts::sampling(&sampling, &model.model, &model.tokenizer),
            scorer: Some(Scorer::new(
                std::slice::from_ref(&settings.reward.0),
                OnNull::Drop,
                None,
                lent,
            )?),
            // Each model meets the same draws: what differs between them is the models' doing.
            random: generate::stage_random(self.run.seed, self.stage),
            samples: settings.k,
            run: self.run.clone(),
            model,
        })
    }

    /// The data set's name: the tables that the problems come from.
    fn dataset(&self) -> Result<String> {
        let mut tables = planning::tables_of(&self.settings.data.0)
            .map_err(|problem| Error::input(problem.message))?;
        tables.sort();
        Ok(tables.join("+"))
    }

    /// What the table of a model's completions says.
    fn measure(&self, name: &str, dataset: &str, problem_count: usize) -> Result<Evaluation> {
        let reward = &self.settings.reward;
        let answers = Answers::of(&reward.0);
        let completions = EvalStage::completions(self.stage, name);
        let mut tally = Tally::default();
        for part in table::parts(&self.dir.table(&completions))? {
            for batch in read::read_part(&part.path)? {
                tally.add(&batch, reward.name(), answers.as_ref())?;
            }
        }
        let found = tally.evaluation(self.stage, name, dataset, answers.as_ref())?;
        let left_out = problem_count as u64 - found.problem_count;
        if left_out > 0 {
            let message = format!(
                "{left_out} of {problem_count} problems are left out of the figures of `{name}`"
            );
            let hint =
                format!("see `reward_error` in `{completions}`, and `{completions}_set_aside`");
            tracing::warn!(stage = self.stage, model = name, left_out, "Problems left out.");
            (self.watcher)(Event::Warning { stage: self.stage.to_owned(), message, hint });
        }
        Ok(found)
    }

    /// The row goes to the stage's table and to that of all evaluations, each in a part of its own.
    fn record(&self, model_idx: usize, found: &Evaluation) -> Result<()> {
        let batch = rows::evals(&[found.row()]);
        let own = part_name(model_idx);
        let all = format!("{}-{model_idx:06}.parquet", self.stage);
        for (table, part) in [(self.stage, own), ("evals", all)] {
            let writer = TableWriter::open(&self.dir.table(table), schema::evals())?;
            writer.write(&part, std::slice::from_ref(&batch))?;
        }
        Ok(())
    }
}
