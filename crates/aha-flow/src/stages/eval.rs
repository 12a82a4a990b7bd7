//! The `eval` stage: completions of each model on held-out problems, and what they say of it.
//!
//! A model's completions are the table `STAGE_MODEL`, made like those of a `sample` stage, by a model or by an
//! endpoint. The figures are computed from that table, and are a row of the stage's own table and of `evals`.
//!
//! [`problems`], [`draws`] and [`subject`] are what an evaluation without a run directory goes by, too.

use std::sync::Arc;

use aha_compute::random::Philox;
use aha_data::Session;
use aha_reward::wait::Waiting;
use aha_reward::{Backends, OnNull, Spec};
use aha_rollout::table::{self, TableWriter};
use aha_rollout::{read, rows, schema};

use super::Context;
use super::asked::{self, Asked};
use super::completions::{self, Draws, Owner, part_name};
use crate::endpoint::Server;
use crate::error::{Error, Result};
use crate::evaluate::figures::Bootstrap;
use crate::evaluate::{EvalRow, Subject, Tally};
use crate::lend::Lender;
use crate::models::{Loaded, Models};
use crate::pipeline::{Benchmark, Endpoint, EvalStage, Reward, Run, Sampling, Thinking};
use crate::progress::{Event, Watcher};
use crate::prompts::{self, Origin, Problem, Prompter};
use crate::score::Scorer;
use crate::{benchmark, generate, pipeline, planning};

/// What the stage works with.
pub struct Eval<'a> {
    /// What every stage works with.
    pub context: Context<'a>,
    /// Its settings.
    pub settings: &'a EvalStage,
    /// Where models come from.
    pub models: &'a Models<'a>,
    /// What rewards that wait for others share.
    pub waiting: &'a Waiting,
}

impl Eval<'_> {
    /// Draws what the tables don't have yet, then measures each model.
    pub async fn run(&self) -> Result<()> {
        let problems =
            problems(self.context.session, self.settings, self.context.run.seed, Origin::Query)
                .await?;
        let chunks = problems.len().div_ceil(completions::CHUNK_PROMPTS);
        let names = self.settings.subjects();
        (self.context.watcher)(Event::StageStarted {
            stage: self.context.stage.to_owned(),
            kind: "eval",
            step: 0,
            steps: (chunks * names.len()) as u64,
        });
        let dataset = self.dataset()?;
        let (stage, models) = (self.context.stage, self.models);
        let lender = Lender::new(stage, &specs(self.settings), models, self.waiting).await?;
        let scorer = scorer(self.settings, &lender)?;
        scorer.check_sources(&problems)?;
        for (idx, name) in names.iter().enumerate() {
            let owner = Owner { context: self.context, chunks_before: idx * chunks };
            let of_all = subject(self.context.stage, self.settings, self.context.run, &problems);
            let of_all = Subject { model: name, dataset: &dataset, ..of_all };
            let what = (problems.clone(), scorer.clone());
            let endpoint = self.settings.endpoint.as_ref();
            let subject = match endpoint.filter(|_| idx == self.settings.models().len()) {
                Some(endpoint) => {
                    asked::write(&owner, self.asked(endpoint, what)?).await?;
                    // What it computes with is known to itself alone.
                    Subject { computed: None, ..of_all }
                }
                None => {
                    let model = self.models.load(name).await?;
                    let draws = draws(
                        self.context.stage,
                        name,
                        self.settings,
                        self.context.run,
                        (model, what),
                    )?;
                    let speed = completions::write(&owner, draws).await?;
                    Subject { tokens_per_second: speed.tokens_per_second(), ..of_all }
                }
            };
            self.record(idx, &self.measure(&subject, problems.len())?)?;
        }
        Ok(())
    }

    /// What an endpoint is asked for.
    fn asked(
        &self,
        endpoint: &Endpoint,
        (problems, scorer): (Vec<Problem>, Scorer),
    ) -> Result<Asked> {
        let settings = self.settings;
        let server = Server::new(
            endpoint,
            &sampling(settings),
            &settings.template,
            self.context.random(),
            self.context.stop.cancel(),
        )?;
        let server = match settings.benchmark {
            Some(benchmark) => server.with_instruction(benchmark.card().instruction),
            None => server,
        };
        let rewards = std::iter::once(&settings.reward).chain(&settings.rank_by);
        Ok(Asked {
            table: EvalStage::completions(self.context.stage, &endpoint.name()),
            problems,
            server: Arc::new(server),
            scorer: Some(scorer),
            needs_len: rewards.into_iter().any(|reward| reward.0.kind().needs_tokens()),
            samples: settings.k,
            parallel_max: endpoint.parallel_max as usize,
            dir: self.context.dir.clone(),
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
    fn measure(&self, subject: &Subject<'_>, problem_count: usize) -> Result<EvalRow> {
        let name = subject.model;
        let completions = EvalStage::completions(self.context.stage, name);
        let mut tally = Tally::new(&self.settings.reward, self.settings.rank_by.as_ref());
        for part in table::parts(&self.context.dir.table(&completions))? {
            for batch in read::read_part(&part.path)? {
                tally.add(&batch)?;
            }
        }
        let empty_count = tally.empty_count();
        let found = tally.evaluation(subject)?;
        let hint = format!("see `reward_error` in `{completions}`, and `{completions}_set_aside`");
        warn_of_left_out(self.context.stage, &found, problem_count, hint, self.context.watcher);
        if subject.computed.is_none() && empty_count > 0 {
            let message = format!(
                "`{name}` gives {empty_count} completions no length: they count as 0 tokens"
            );
            self.context.warn(message, "ask a server whose answers have `usage.completion_tokens`");
        }
        Ok(found)
    }

    /// The row goes to the stage's table and to that of all evaluations, each in a part of its own.
    fn record(&self, model_idx: usize, found: &EvalRow) -> Result<()> {
        let batch = rows::evals(std::slice::from_ref(found));
        let own = part_name(model_idx);
        let all = format!("{}-{model_idx:06}.parquet", self.context.stage);
        for (table, part) in [(self.context.stage, own), ("evals", all)] {
            let dir = self.context.dir;
            dir.write(|| {
                let writer = TableWriter::open(&dir.table(table), schema::evals())?;
                Ok(writer.write(&part, std::slice::from_ref(&batch))?)
            })?;
        }
        Ok(())
    }
}

/// What scores the completions: the verifier, then what ranks. The latter is a column and no part of the reward.
pub fn specs(settings: &EvalStage) -> Vec<Spec> {
    let unweighted = |scorer: &Reward| {
        let mut spec = scorer.0.clone();
        (spec.common.weight, spec.common.gate) = (0.0, None);
        // What it can't score still has the verifier's reward.
        if spec.common.on_null != Some(OnNull::Stop) {
            spec.common.on_null = Some(OnNull::Zero);
        }
        spec
    };
    let ranks = settings.rank_by.as_ref().map(unweighted);
    std::iter::once(settings.reward.0.clone()).chain(ranks).collect()
}

/// Scores as [`specs`] say.
pub fn scorer(settings: &EvalStage, backends: &dyn Backends) -> Result<Scorer> {
    Scorer::new(&specs(settings), pipeline::OnNull::Drop, None, backends)
}

/// Says how many problems the figures leave out.
pub fn warn_of_left_out(
    stage: &str,
    found: &EvalRow,
    problem_count: usize,
    hint: String,
    watcher: &Watcher,
) {
    let (model, left_out) = (&found.model, problem_count as u64 - found.problem_count);
    if left_out > 0 {
        let message = format!(
            "{left_out} of {problem_count} problems are left out of the figures of `{model}`"
        );
        tracing::warn!(stage, model, left_out, "Problems left out.");
        watcher(Event::Warning { stage: stage.to_owned(), message, hint });
    }
}

/// The problems of an evaluation.
pub async fn problems(
    session: &Session,
    settings: &EvalStage,
    seed: u64,
    origin: Origin,
) -> Result<Vec<Problem>> {
    let batches = session.collect(&settings.data.0).await?;
    let mut problems = match settings.benchmark {
        Some(benchmark) => {
            // Of the seed alone, so that two stages of a run ask the same questions.
            let random = Philox::new(seed).derive(benchmark.word());
            let card = benchmark.card();
            benchmark::problems(benchmark.word(), card, &batches, random, origin)?
        }
        None => prompts::of_rows(&batches, origin)?,
    };
    if let Some(limit) = settings.limit {
        problems.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    Ok(problems)
}

/// How tokens are drawn.
fn sampling(settings: &EvalStage) -> Sampling {
    Sampling {
        temperature: settings.temperature,
        top_p: settings.top_p,
        top_k: settings.top_k,
        max_tokens: settings.max_tokens,
        stop: settings.stop.clone(),
        weights: settings.weights,
        ..Sampling::default()
    }
}

/// What is drawn of a model.
pub fn draws(
    stage: &str,
    name: &str,
    settings: &EvalStage,
    run: &Run,
    (model, (problems, scorer)): (Loaded, (Vec<Problem>, Scorer)),
) -> Result<Draws> {
    let sampling = sampling(settings);
    let prompter = Prompter::new(&model.tokenizer, &settings.template)?;
    Ok(Draws {
        table: EvalStage::completions(stage, name),
        problems,
        prompter: match settings.benchmark {
            Some(benchmark) => prompter.with_instruction(benchmark.card().instruction),
            None => prompter,
        },
        sampling: aha_sample::Sampling {
            thinking: settings.thinking.as_ref().map(Thinking::resolved),
            ..prompts::sampling(&sampling, &model.model, &model.tokenizer)
        },
        scorer: Some(scorer),
        // Each model meets the same draws: what differs between them is the models' doing.
        random: generate::stage_random(run.seed, stage),
        samples: settings.k,
        run: run.clone(),
        model,
    })
}

/// How the figures of a stage are made; the model and the data set are the caller's.
pub fn subject<'a>(
    stage: &'a str,
    settings: &EvalStage,
    run: &Run,
    problems: &[Problem],
) -> Subject<'a> {
    let rated = problems.iter().filter_map(|problem| Some((problem.id.clone(), problem.rating?)));
    Subject {
        stage,
        model: "",
        dataset: "",
        benchmark: settings.benchmark.map(Benchmark::word),
        ks: settings.ks.iter().map(|k| u64::from(*k)).collect(),
        bootstrap: Bootstrap {
            random: generate::stage_random(run.seed, stage).derive("bootstrap"),
            resamples: settings.resamples,
        },
        ratings: rated.collect(),
        samples: u64::from(settings.k),
        tokens_per_second: None,
        computed: Some((run.dtype, settings.weights)),
    }
}
