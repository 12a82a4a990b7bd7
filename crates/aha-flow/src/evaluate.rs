//! How good a model is: pass@1, pass@k and cons@k from completions that are scored. Pure but for
//! [`standalone`], which draws the completions as well.
//!
//! With n problems, k samples each, and c of them right:
//! - `pass@1 = mean(c / k)`;
//! - `pass@j = mean(1 - C(k - c, j) / C(k, j))`, the unbiased estimator of Chen et al. 2021, eq. 1; at j = k it
//!   is the share of problems with a right sample;
//! - `cons@k`: the share of problems whose most frequent answer is right. Answers are grouped by what makes
//!   two of them equal; of groups of one size the one with the earliest sample wins; a completion without an
//!   answer doesn't vote, and a problem without votes is not right;
//! - a standard error is the standard deviation over problems, with n - 1, divided by sqrt(n).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aha_compute::Device;
use aha_data::source::TableSource;
use aha_data::{Session, SessionOptions};
use aha_reward::extract::Extraction;
use aha_reward::{NoBackends, Settings, Spec, math_equal};
use aha_rollout::rows::EvalRow;
use aha_rollout::schema::Progress;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;
use serde::Serialize;

use crate::compute::ComputeThread;
use crate::error::{Error, Result};
use crate::pipeline::{OnNull, Run, Sampling, Sql, Template};
use crate::prompts::{self, Prompter};
use crate::score::Scorer;
use crate::stages::completions::Draws;
use crate::{generate, models};

/// What a problem's completion says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Whether it is right; none where it could not be scored.
    pub is_right: Option<bool>,
    /// Its final answer, where it has one.
    pub answer: Option<String>,
    /// Its tokens.
    pub completion_len_tokens: u64,
}

/// When two answers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equivalence {
    /// The same number, expression or list.
    Math,
    /// The same text.
    Text {
        /// Whether letter case matters.
        is_case_sensitive: bool,
    },
}

impl Equivalence {
    fn holds(self, a: &str, b: &str) -> bool {
        match self {
            Equivalence::Math => a == b || math_equal(a, b),
            Equivalence::Text { is_case_sensitive: true } => a == b,
            Equivalence::Text { is_case_sensitive: false } => a.to_lowercase() == b.to_lowercase(),
        }
    }
}

/// How answers are read out of completions and compared, for a reward that reads answers.
pub struct Answers {
    extraction: Extraction,
    equivalence: Equivalence,
}

impl Answers {
    /// As the reward reads them; none for one that reads no answer.
    pub fn of(reward: &Spec) -> Option<Answers> {
        let equivalence = match &reward.settings {
            Settings::Math(_) => Equivalence::Math,
            Settings::Exact(exact) => {
                Equivalence::Text { is_case_sensitive: exact.is_case_sensitive }
            }
            _ => return None,
        };
        let mut settings = reward.settings.clone();
        let extraction = settings.answer_place()?.resolve().ok()?;
        Some(Answers { extraction, equivalence })
    }

    /// Whether the completion has an answer at all.
    pub fn has_answer(&self, completion: &str) -> bool {
        self.extraction.find(completion).is_ok()
    }
}

/// The figures of an evaluation; as JSON, the row of `evals`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Stage that evaluated; `eval` for the command of that name.
    pub stage: String,
    /// Model that was evaluated.
    pub model: String,
    /// Data set it was evaluated on.
    pub dataset: String,
    /// Problems that could be scored.
    pub problem_count: u64,
    /// Samples per problem.
    pub k: u64,
    /// Mean share of right samples.
    pub pass_at_1: f64,
    /// Its standard error; none with fewer than two problems.
    pub pass_at_1_se: Option<f64>,
    /// Share of problems with a right one among k.
    pub pass_at_k: f64,
    /// Share of problems whose majority is right; none where answers can't be compared.
    pub cons_at_k: Option<f64>,
    /// Its standard error.
    pub cons_at_k_se: Option<f64>,
    /// Mean number of tokens.
    pub completion_len_tokens_mean: f64,
}

impl Evaluation {
    /// As a row of `evals`.
    pub fn row(&self) -> EvalRow<'_> {
        EvalRow {
            stage: &self.stage,
            model: &self.model,
            dataset: &self.dataset,
            problem_count: self.problem_count,
            k: self.k,
            pass_at_1: self.pass_at_1,
            pass_at_1_se: self.pass_at_1_se,
            pass_at_k: self.pass_at_k,
            cons_at_k: self.cons_at_k,
            cons_at_k_se: self.cons_at_k_se,
            completion_len_tokens_mean: self.completion_len_tokens_mean,
        }
    }
}

/// The unbiased estimate of pass@k from `n` samples of which `right` are right.
pub fn pass_at_k(n: u64, right: u64, k: u64) -> f64 {
    assert!(right <= n && 1 <= k && k <= n, "pass@{k} of {right} right among {n}");
    if n - right < k {
        return 1.0;
    }
    // C(n - c, k) / C(n, k), as a product whose factors stay in [0, 1].
    1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// Whether the most frequent answer of a problem's samples is right.
pub fn is_majority_right(samples: &[Sample], equivalence: Equivalence) -> bool {
    // (first sample's answer, whether that is right, votes) in the order of the first samples.
    let mut groups: Vec<(&str, bool, usize)> = Vec::new();
    for sample in samples {
        let Some(answer) = sample.answer.as_deref() else { continue };
        match groups.iter_mut().find(|(known, _, _)| equivalence.holds(known, answer)) {
            Some((_, _, votes)) => *votes += 1,
            None => groups.push((answer, sample.is_right == Some(true), 1)),
        }
    }
    let most = groups.iter().map(|(_, _, votes)| *votes).max().unwrap_or(0);
    groups.iter().find(|(_, _, votes)| *votes == most).is_some_and(|(_, is_right, _)| *is_right)
}

/// Mean and standard error; no error with fewer than two values.
pub fn mean_and_se(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (values.len() >= 2).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()))
}

/// Samples by problem, collected from rows, and what they say of the model.
#[derive(Debug, Default)]
pub struct Tally {
    problems: Vec<Vec<Sample>>,
    idx_by_id: HashMap<String, usize>,
}

impl Tally {
    /// Adds rows of a table of rollouts. A score of 1 of `reward` counts as right.
    pub fn add(
        &mut self,
        rows: &RecordBatch,
        reward: &str,
        answers: Option<&Answers>,
    ) -> Result<()> {
        let view = RolloutsView::new(rows, Progress::Trained)?;
        let part = view.reward_names().iter().position(|name| name == reward);
        let part =
            part.ok_or_else(|| Error::bug(format!("the rows have no column `reward_{reward}`")))?;
        for row in 0..view.rows_count() {
            let next = self.problems.len();
            let idx = *self.idx_by_id.entry(view.prompt_id(row).to_owned()).or_insert(next);
            if idx == next {
                self.problems.push(Vec::new());
            }
            let answer =
                answers.and_then(|answers| answers.extraction.find(view.completion(row)).ok());
            self.problems[idx].push(Sample {
                is_right: view.reward_part(part, row).map(|score| score == 1.0),
                answer: answer.map(str::to_owned),
                completion_len_tokens: view.completion_token_ids(row).len() as u64,
            });
        }
        Ok(())
    }

    /// Problems of which a sample could not be scored, and which so count for nothing.
    pub fn unscored_count(&self) -> usize {
        self.problems.iter().filter(|samples| !is_scored(samples)).count()
    }

    /// The figures, over the problems whose every sample was scored.
    pub fn evaluation(
        &self,
        stage: &str,
        model: &str,
        dataset: &str,
        answers: Option<&Answers>,
    ) -> Result<Evaluation> {
        let scored: Vec<&[Sample]> =
            self.problems.iter().map(Vec::as_slice).filter(|s| is_scored(s)).collect();
        let Some(k) = scored.first().map(|samples| samples.len() as u64) else {
            return Err(Error::input_with(
                format!("no completion of `{model}` on `{dataset}` could be scored"),
                "look at the column `reward_error` of its completions: problems may lack an answer",
            ));
        };
        if scored.iter().any(|samples| samples.len() as u64 != k) {
            return Err(Error::bug("problems have different numbers of samples"));
        }
        let right =
            |samples: &[Sample]| samples.iter().filter(|s| s.is_right == Some(true)).count() as u64;
        let mean_of = |value: &dyn Fn(&[Sample]) -> f64| {
            mean_and_se(&scored.iter().map(|samples| value(samples)).collect::<Vec<_>>())
        };
        let (pass_at_1, pass_at_1_se) = mean_of(&|samples| right(samples) as f64 / k as f64);
        let cons = answers.map(|answers| {
            mean_of(&|samples| f64::from(u8::from(is_majority_right(samples, answers.equivalence))))
        });
        let tokens = |samples: &[Sample]| {
            samples.iter().map(|s| s.completion_len_tokens).sum::<u64>() as f64
        };
        Ok(Evaluation {
            stage: stage.to_owned(),
            model: model.to_owned(),
            dataset: dataset.to_owned(),
            problem_count: scored.len() as u64,
            k,
            pass_at_1,
            pass_at_1_se,
            pass_at_k: mean_of(&|samples| pass_at_k(k, right(samples), k)).0,
            cons_at_k: cons.map(|(mean, _)| mean),
            cons_at_k_se: cons.and_then(|(_, se)| se),
            completion_len_tokens_mean: mean_of(&|samples| tokens(samples) / k as f64).0,
        })
    }
}

fn is_scored(samples: &[Sample]) -> bool {
    samples.iter().all(|sample| sample.is_right.is_some())
}

/// An evaluation without a run directory.
#[derive(Clone, Debug)]
pub struct Standalone {
    /// The model: a Hugging Face directory or a GGUF file.
    pub model: PathBuf,
    /// The problems: a file, folder or glob with columns `id`, `prompt`, `answer`.
    pub data: String,
    /// How prompts are made; absent: the model's chat template, or else the prompt as it is.
    pub template: Option<Template>,
    /// Samples per problem.
    pub k: u32,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The verifier.
    pub reward: Spec,
    /// Seed, threads and bounds of the sampler.
    pub run: Run,
}

/// Problems done, and of how many: called on a compute thread as each is done.
pub type ProblemDone = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// Draws completions, scores them and returns the figures. Nothing is written.
pub async fn standalone(options: Standalone, progress: ProblemDone) -> Result<Evaluation> {
    if options.k == 0 {
        return Err(Error::input_with(
            "no samples per problem were asked for",
            "give at least 1, such as 16",
        ));
    }
    let session = Session::new(&SessionOptions::default())?;
    session.register("data", &TableSource::new(&options.data, std::path::Path::new(""))?).await?;
    let problems = prompts::load(&session, &Sql("SELECT * FROM data".to_owned())).await?;
    let thread = ComputeThread::start("aha-sampler")?;
    thread.run(move || evaluate(&options, problems, &progress)).await?
}

fn evaluate(
    options: &Standalone,
    problems: Vec<prompts::Problem>,
    progress: &ProblemDone,
) -> Result<Evaluation> {
    let model = models::load(&options.model, &Device::cpu(options.run.threads as usize))?;
    let default =
        if model.tokenizer.chat_template().is_some() { Template::Chat } else { Template::Raw };
    let template = options.template.as_ref().unwrap_or(&default);
    let draws = Draws {
        table: "eval".to_owned(),
        prompter: Prompter::new(&model.tokenizer, template)?,
        sampling: prompts::sampling(&options.sampling, &model.model, &model.tokenizer),
        scorer: Some(Scorer::new(
            std::slice::from_ref(&options.reward),
            OnNull::Drop,
            None,
            &NoBackends,
        )?),
        random: generate::stage_random(options.run.seed, "eval"),
        samples: options.k,
        run: options.run.clone(),
        problems,
        model,
    };
    let mut sampler = generate::sampler(&draws.model.model, &draws.model.tokenizer, &draws.run);
    let answers = Answers::of(&options.reward);
    let mut tally = Tally::default();
    let (done, total) = (std::cell::Cell::new(0), draws.problems.len());
    // Nothing is written, so a signal that ends the process loses nothing.
    let never = AtomicBool::new(false);
    for idx in 0..draws.chunks_count() {
        let chunk = draws.chunk(&mut sampler, idx, &never, &|| {
            done.set(done.get() + 1);
            progress(done.get(), total);
        })?;
        if let Some((id, error)) = chunk.set_aside.into_iter().next() {
            return Err(error.within(&format!("problem `{id}`")));
        }
        tally.add(&chunk.rows, options.reward.column_name(), answers.as_ref())?;
    }
    if tally.unscored_count() > 0 {
        tracing::warn!(
            count = tally.unscored_count(),
            "Problems that can't be scored are left out."
        );
    }
    tally.evaluation("eval", &options.model.display().to_string(), &options.data, answers.as_ref())
}

#[cfg(test)]
mod tests {
    use aha_reward::Kind;

    use super::*;

    fn samples(text: &str) -> Vec<Sample> {
        // "7! 8 -": a right 7, a wrong 8, no answer.
        text.split(' ')
            .map(|word| Sample {
                is_right: Some(word.ends_with('!')),
                answer: (word != "-").then(|| word.trim_end_matches('!').to_owned()),
                completion_len_tokens: 10,
            })
            .collect()
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_sample() {
        // Of C(5, 2) = 10 pairs, C(3, 2) = 3 miss both right ones.
        assert!((pass_at_k(5, 2, 2) - 0.7).abs() < 1e-15);
        // Of C(10, 5) = 252, C(7, 5) = 21 miss.
        assert!((pass_at_k(10, 3, 5) - 231.0 / 252.0).abs() < 1e-15);
        assert_eq!(pass_at_k(4, 0, 4), 0.0);
        assert_eq!(pass_at_k(4, 1, 4), 1.0);
        assert!((pass_at_k(8, 3, 1) - 3.0 / 8.0).abs() < 1e-15);
    }

    #[test]
    fn a_standard_error_is_the_deviation_over_the_root_of_n() {
        // Mean 0.5; squares 0.25 + 0 + 0.25 = 0.5; sd = sqrt(0.5 / 2) = 0.5; se = 0.5 / sqrt(3).
        let (mean, se) = mean_and_se(&[0.0, 0.5, 1.0]);
        assert_eq!(mean, 0.5);
        assert!((se.unwrap() - 0.5 / 3.0_f64.sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_se(&[0.3]), (0.3, None));
    }

    #[test]
    fn the_majority_is_over_equal_answers_and_the_earliest_wins_a_tie() {
        let is_right = |text: &str| is_majority_right(&samples(text), Equivalence::Math);
        assert!(is_right("0.5! 3 1/2! 4"));
        assert!(!is_right("3 3 0.5!"));
        assert!(is_right("7! 8 8 7!"), "two votes each: 7 came first");
        assert!(!is_right("8 7! 8 7!"), "two votes each: 8 came first");
        assert!(is_right("- - - 7!"), "who has no answer doesn't vote");
        assert!(!is_right("- -"));
    }

    #[test]
    fn text_is_compared_as_the_reward_does() {
        let yes = samples("no Yes! yes!");
        assert!(is_majority_right(&yes, Equivalence::Text { is_case_sensitive: false }));
        assert!(!is_majority_right(&yes, Equivalence::Text { is_case_sensitive: true }));
        let exact = r#"{"kind":"exact","is_case_sensitive":false}"#;
        let exact: Spec = serde_json::from_str(exact).unwrap();
        let answers = Answers::of(&exact).unwrap();
        assert_eq!(answers.equivalence, Equivalence::Text { is_case_sensitive: false });
        assert!(Answers::of(&Spec::new(Kind::Format).unwrap()).is_none());
    }

    #[test]
    fn figures_match_those_worked_out_by_hand() {
        let texts = ["7! 7! 8 7!", "1 2! 1 -", "3 3 3 3"];
        let tally = Tally { problems: texts.map(samples).to_vec(), idx_by_id: HashMap::new() };
        let answers = Answers::of(&Spec::new(Kind::Math).unwrap()).unwrap();
        let found = tally.evaluation("e", "m", "d", Some(&answers)).unwrap();
        // Shares 3/4, 1/4, 0: mean 1/3; deviations 5/12, -1/12, -4/12; squares 42/144; sd = sqrt(21/144).
        assert!((found.pass_at_1 - 1.0 / 3.0).abs() < 1e-15);
        assert!((found.pass_at_1_se.unwrap() - (21.0 / 144.0 / 3.0_f64).sqrt()).abs() < 1e-15);
        assert!((found.pass_at_k - 2.0 / 3.0).abs() < 1e-15);
        // Majorities: right, wrong, wrong. Deviations 2/3, -1/3, -1/3; squares 6/9; sd = sqrt(1/3).
        assert!((found.cons_at_k.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert!((found.cons_at_k_se.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!((found.problem_count, found.k, found.completion_len_tokens_mean), (3, 4, 10.0));
    }

    #[test]
    fn problems_that_cannot_be_scored_are_left_out_and_counted() {
        let mut problems = vec![samples("7!"), samples("8")];
        problems[1][0].is_right = None;
        let mut tally = Tally { problems, idx_by_id: HashMap::new() };
        assert_eq!(tally.unscored_count(), 1);
        let found = tally.evaluation("e", "m", "d", None).unwrap();
        assert_eq!((found.problem_count, found.pass_at_1, found.cons_at_k), (1, 1.0, None));
        tally.problems.remove(0);
        assert!(
            tally
                .evaluation("e", "m", "d", None)
                .unwrap_err()
                .to_string()
                .contains("could be scored")
        );
    }
}
