//! How good a model is: pass@1, pass@k, cons@k and best-of-n from completions that are scored, with their errors.
//!
//! # Map
//! - [`Tally`]: samples by problem out of rows, and the row of `evals` that they give; start here.
//! - [`figures`]: estimates from counts, and the bootstrap. [`answers`]: which answers are the same, and what
//!   wins a vote. [`mod@rating`]: Elo from the ratings of problems.
//! - [`standalone`]: an evaluation without a pipeline file, in memory or in a run directory.
//!
//! # Formulas
//! With n problems, k samples each, and c of them right:
//! - `pass@1 = mean(c / k)`;
//! - `pass@j = mean(1 - C(k - c, j) / C(k, j))`, the unbiased estimator of Chen et al. 2021, eq. 1; at j = k it
//!   is the share of problems with a right sample;
//! - `cons@k`: the share of problems whose most frequent answer is right (Wang et al. 2022, self-consistency).
//!   Answers are grouped by what makes two of them equal; of groups of one size the one with the earliest
//!   sample wins; a completion without an answer doesn't vote, and a problem without votes is not right.
//!   `cons@j` is the mean over the blocks of j samples in their order, each of which is a vote of its own;
//! - `bon@j`, best-of-n for n = j: the share of the subsets of j samples of which the one that a scorer ranks
//!   first is right, `mean(sum_g r_g (C(b_g + n_g, j) - C(b_g, j)) / C(k, j))`. The sum is over the scores that
//!   occur: n_g samples have the score g, a share r_g of them is right, and b_g samples have a lower one. A
//!   subset's best has the score g where it lies within those of g and below, but not within those below; of
//!   equals each is as likely the one. It is the mean over all subsets, so unbiased as pass@j is (Nakano et al.
//!   2021, appendix, for scores without ties);
//! - `weighted_cons@j`: as cons@j, with each vote as heavy as what the scorer says of its sample (Li et al. 2023,
//!   best-of-n weighted);
//! - a standard error is the standard deviation of a figure over bootstrap resamples of the problems. It
//!   tends to the standard deviation over problems, with n, divided by sqrt(n). Where every problem has the
//!   same value it is 0, which says that the problems don't tell, not that the figure is exact.

use std::collections::HashMap;

use aha_rollout::schema::Progress;
use aha_rollout::view::RolloutsView;
use arrow::array::RecordBatch;

pub mod answers;
pub mod figures;
pub mod rating;
pub mod standalone;

pub use aha_rollout::rows::EvalRow;
pub use answers::Answers;

use crate::error::{Error, Result};
use crate::pipeline::{Dtype, Reward, SamplingWeights};
use answers::Votes;
use figures::{Bootstrap, best_of_k, mean, pass_at_k, powers_of_two, quantile};
use rating::{Game, rating};

/// What a problem's completion says.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Whether it is right; none where it could not be scored.
    pub is_right: Option<bool>,
    /// What the scorer says of it, higher ranks first; none where nothing ranks, or it could not be scored.
    pub rank: Option<f64>,
    /// Its final answer, where it has one.
    pub answer: Option<String>,
    /// Its tokens.
    pub completion_len_tokens: u64,
    /// Whether it was cut off by its limit.
    pub is_truncated: bool,
}

/// What was evaluated, and how its figures are made.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The stage, in the row.
    pub stage: &'a str,
    /// The model, in the row.
    pub model: &'a str,
    /// The data set, in the row.
    pub dataset: &'a str,
    /// The benchmark, in the row.
    pub benchmark: Option<&'a str>,
    /// Numbers of samples that figures are given for; empty: powers of two and all.
    pub ks: Vec<u64>,
    /// Where the standard errors come from.
    pub bootstrap: Bootstrap,
    /// The ratings of problems that have one, by their ids.
    pub ratings: HashMap<String, f64>,
    /// How fast tokens were drawn, where that was measured.
    pub tokens_per_second: Option<f64>,
    /// Samples that a problem has to have; one with fewer is left out.
    pub samples: u64,
    /// What the model computed with, and what weights were multiplied as; none where a server did.
    pub computed: Option<(Dtype, SamplingWeights)>,
}

/// What ranks completions, and how its score is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    name: String,
    weight: f32,
    clip: Option<[f32; 2]>,
    is_null_zero: bool,
}

impl Ranking {
    /// By a reward: its weight times its score, which is taken within its `clip`.
    pub fn of(reward: &Reward) -> Ranking {
        let common = &reward.0.common;
        Ranking {
            name: reward.name().to_owned(),
            weight: common.weight,
            clip: common.clip,
            is_null_zero: common.on_null == Some(aha_reward::OnNull::Zero),
        }
    }

    /// The rank of a completion with this score; the highest is first.
    pub fn rank(&self, score: Option<f64>) -> Option<f64> {
        let score = score.or(self.is_null_zero.then_some(0.0)).filter(|score| score.is_finite())?;
        let clipped =
            self.clip.map_or(score, |[least, most]| score.clamp(f64::from(least), f64::from(most)));
        // A sum of zeros of either sign is one zero: they are equals.
        Some(f64::from(self.weight) * clipped + 0.0)
    }
}

/// Samples by problem, collected from rows, and what they say of the model.
#[derive(Debug)]
pub struct Tally {
    reward: String,
    ranking: Option<Ranking>,
    answers: Option<Answers>,
    problems: Vec<(String, Vec<Sample>)>,
    idx_by_id: HashMap<String, usize>,
    /// Why a sample could not be scored.
    error: Option<String>,
}

impl Tally {
    /// Of completions that this reward verifies: a score of 1 counts as right. `rank_by` ranks them.
    pub fn new(reward: &Reward, rank_by: Option<&Reward>) -> Tally {
        Tally {
            reward: reward.name().to_owned(),
            ranking: rank_by.map(Ranking::of),
            answers: Answers::of(&reward.0),
            problems: Vec::new(),
            idx_by_id: HashMap::new(),
            error: None,
        }
    }

    /// Adds rows of a table of rollouts.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let view = RolloutsView::new(rows, Progress::Trained)?;
        let part_of = |reward: &String| {
            let part = view.reward_names().iter().position(|name| name == reward);
            part.ok_or_else(|| Error::bug(format!("the rows have no column `reward_{reward}`")))
        };
        let part = part_of(&self.reward)?;
        let ranking = self.ranking.as_ref();
        let ranking = ranking.map(|r| Ok::<_, Error>((r, part_of(&r.name)?))).transpose()?;
        for row in 0..view.rows_count() {
            let (id, next) = (view.prompt_id(row), self.problems.len());
            let idx = *self.idx_by_id.entry(id.to_owned()).or_insert(next);
            if idx == next {
                self.problems.push((id.to_owned(), Vec::new()));
            }
            let answer = self.answers.as_ref().and_then(|found| found.find(view.completion(row)));
            if let Some(error) = view.reward_error(row) {
                self.error.get_or_insert_with(|| error.to_owned());
            }
            self.problems[idx].1.push(Sample {
                is_right: view.reward_part(part, row).map(|score| score == 1.0),
                rank: ranking.and_then(|(ranking, part)| ranking.rank(view.reward_part(part, row))),
                answer: answer.map(str::to_owned),
                completion_len_tokens: view.completion_len_tokens(row),
                is_truncated: view.finish_reason(row) == aha_sample::FinishReason::Length.as_str(),
            });
        }
        Ok(())
    }

    /// How many completions have no tokens: those of a server that doesn't say how many they have.
    pub fn empty_count(&self) -> usize {
        let samples = self.problems.iter().flat_map(|(_, samples)| samples);
        samples.filter(|sample| sample.completion_len_tokens == 0).count()
    }

    /// Why a sample could not be scored, where one couldn't.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The figures, over the problems that have all of their samples, each scored.
    pub fn evaluation(&self, subject: &Subject<'_>) -> Result<EvalRow> {
        let k = subject.samples;
        if self.problems.iter().any(|(_, samples)| samples.len() as u64 > k) {
            return Err(Error::bug("a problem has more samples than were asked for"));
        }
        let is_whole = |samples: &[Sample]| samples.len() as u64 == k && self.is_scored(samples);
        let scored: Vec<&(String, Vec<Sample>)> =
            self.problems.iter().filter(|(_, samples)| is_whole(samples)).collect();
        if scored.is_empty() {
            return Err(self.nothing_scored(subject));
        }
        let samples: Vec<&[Sample]> = scored.iter().map(|(_, samples)| &samples[..]).collect();
        let ks = if subject.ks.is_empty() { powers_of_two(k) } else { subject.ks.clone() };
        let votes = self.answers.as_ref().map(|answers| {
            let votes = samples.iter().map(|samples| Votes::of(samples, answers.equivalence()));
            votes.collect::<Vec<_>>()
        });
        let rating = rating(&games(&scored, &subject.ratings));
        let row = EvalRow {
            stage: subject.stage.to_owned(),
            model: subject.model.to_owned(),
            dataset: subject.dataset.to_owned(),
            benchmark: subject.benchmark.map(str::to_owned),
            problem_count: scored.len() as u64,
            k,
            ks,
            answered_share: votes
                .as_ref()
                .map(|votes| mean(&votes.iter().map(Votes::answered_share).collect::<Vec<_>>())),
            rating: rating.map(|found| found.rating),
            rating_se: rating.map(|found| found.se),
            tokens_per_second: subject.tokens_per_second,
            dtype: subject.computed.map(|(dtype, _)| dtype.word().to_owned()),
            weights: subject.computed.map(|(_, weights)| weights.word().to_owned()),
            rank_by: self.ranking.as_ref().map(|ranking| ranking.name.clone()),
            ..lengths(&samples)
        };
        let problems = Problems { samples, votes, is_ranked: self.ranking.is_some() };
        Ok(problems.shares(row, subject.bootstrap))
    }

    fn is_scored(&self, samples: &[Sample]) -> bool {
        let is_ranked = self.ranking.is_some();
        samples.iter().all(|sample| sample.is_right.is_some() && sample.rank.is_some() == is_ranked)
    }

    fn nothing_scored(&self, subject: &Subject<'_>) -> Error {
        let why = self.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        Error::input_with(
            format!(
                "no completion of `{}` on `{}` could be scored{why}",
                subject.model, subject.dataset
            ),
            "the verifier reads the column `answer` of the problems, or `tests`: see that they have it",
        )
    }
}

fn right_count(samples: &[Sample]) -> u64 {
    samples.iter().filter(|sample| sample.is_right == Some(true)).count() as u64
}

/// Problems with a rating, and how much of each was solved.
fn games(scored: &[&(String, Vec<Sample>)], ratings: &HashMap<String, f64>) -> Vec<Game> {
    let game = |(id, samples): &&(String, Vec<Sample>)| {
        Some(Game {
            problem_rating: *ratings.get(id)?,
            solved_share: right_count(samples) as f64 / samples.len() as f64,
        })
    };
    scored.iter().filter_map(game).collect()
}

/// A row with what the completions' lengths say.
fn lengths(problems: &[&[Sample]]) -> EvalRow {
    let samples = || problems.iter().copied().flatten();
    let mut lens: Vec<u64> = samples().map(|sample| sample.completion_len_tokens).collect();
    lens.sort_unstable();
    let count = lens.len().max(1) as f64;
    EvalRow {
        completion_len_tokens_mean: lens.iter().sum::<u64>() as f64 / count,
        completion_len_tokens_median: quantile(&lens, 0.5),
        completion_len_tokens_p95: quantile(&lens, 0.95),
        truncated_share: samples().filter(|sample| sample.is_truncated).count() as f64 / count,
        ..EvalRow::default()
    }
}

/// Problems whose samples are all scored.
struct Problems<'a> {
    samples: Vec<&'a [Sample]>,
    votes: Option<Vec<Votes>>,
    is_ranked: bool,
}

/// A figure for all samples and for each of `ks`, with its standard errors.
#[derive(Default)]
struct Figure {
    at_k: Option<f64>,
    at_k_se: Option<f64>,
    at_ks: Option<Vec<f64>>,
    at_ks_se: Option<Vec<f64>>,
}

impl Problems<'_> {
    /// The row with pass@, cons@ and best-of-n, and their standard errors.
    fn shares(&self, row: EvalRow, bootstrap: Bootstrap) -> EvalRow {
        let k = row.k;
        let pass = |j: u64| -> Vec<f64> {
            let share = |samples: &&[Sample]| pass_at_k(k, right_count(samples), j);
            self.samples.iter().map(share).collect()
        };
        let scores: Vec<Vec<f64>> = self.samples.iter().map(|samples| ranks(samples)).collect();
        let best = |j: u64| -> Vec<f64> {
            let ranked = self.samples.iter().zip(&scores).map(|(samples, scores)| {
                let is_right = samples.iter().map(|sample| sample.is_right == Some(true));
                best_of_k(&scores.iter().copied().zip(is_right).collect::<Vec<_>>(), j)
            });
            ranked.collect()
        };
        let votes = self.votes.as_deref();
        let cons = |votes: &[Votes], j: u64| votes.iter().map(|votes| votes.cons_at(j)).collect();
        let weighted = |votes: &[Votes], j: u64| {
            let shares = votes.iter().zip(&scores);
            shares.map(|(votes, scores)| votes.weighted_cons_at(scores, j)).collect()
        };
        let ranked_votes = votes.filter(|_| self.is_ranked);
        let at = |column: &dyn Fn(u64) -> Vec<f64>| -> Vec<Vec<f64>> {
            std::iter::once(k).chain(row.ks.iter().copied()).map(column).collect()
        };
        // One draw of resamples serves all: pass@1, then each figure at k and at each of ks.
        let parts = [
            Some(at(&pass)),
            votes.map(|votes| at(&|j| cons(votes, j))),
            self.is_ranked.then(|| at(&best)),
            ranked_votes.map(|votes| at(&|j| weighted(votes, j))),
        ];
        let mut columns = vec![pass(1)];
        columns.extend(parts.iter().flatten().flatten().cloned());
        let errors = bootstrap.standard_errors(&columns);
        let mut start = 1;
        let mut figure = |part: &Option<Vec<Vec<f64>>>| {
            let Some(part) = part else { return Figure::default() };
            let means: Vec<f64> = part.iter().map(|column| mean(column)).collect();
            let errors = errors.as_ref().map(|errors| &errors[start..start + part.len()]);
            start += part.len();
            Figure {
                at_k: Some(means[0]),
                at_k_se: errors.map(|errors| errors[0]),
                at_ks: Some(means[1..].to_vec()),
                at_ks_se: errors.map(|errors| errors[1..].to_vec()),
            }
        };
        let [pass_at, cons_at, bon_at, weighted_at] = parts.each_ref().map(&mut figure);
        EvalRow {
            pass_at_1: mean(&columns[0]),
            pass_at_1_se: errors.as_ref().map(|errors| errors[0]),
            pass_at_k: pass_at.at_k.unwrap_or_default(),
            pass_at_k_se: pass_at.at_k_se,
            pass_at_ks: pass_at.at_ks.unwrap_or_default(),
            pass_at_ks_se: pass_at.at_ks_se,
            cons_at_k: cons_at.at_k,
            cons_at_k_se: cons_at.at_k_se,
            cons_at_ks: cons_at.at_ks,
            cons_at_ks_se: cons_at.at_ks_se,
            bon_at_k: bon_at.at_k,
            bon_at_k_se: bon_at.at_k_se,
            bon_at_ks: bon_at.at_ks,
            bon_at_ks_se: bon_at.at_ks_se,
            weighted_cons_at_k: weighted_at.at_k,
            weighted_cons_at_k_se: weighted_at.at_k_se,
            weighted_cons_at_ks: weighted_at.at_ks,
            weighted_cons_at_ks_se: weighted_at.at_ks_se,
            ..row
        }
    }
}

/// What the scorer says of each sample; nothing where none ranks.
fn ranks(samples: &[Sample]) -> Vec<f64> {
    samples.iter().filter_map(|sample| sample.rank).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use aha_compute::random::Philox;
    use aha_reward::{Kind, Spec};

    use super::*;

    /// "7! 8 -": a right 7, a wrong 8, no answer.
    pub(crate) fn samples(text: &str) -> Vec<Sample> {
        text.split(' ')
            .map(|word| Sample {
                is_right: Some(word.ends_with('!')),
                rank: None,
                answer: (word != "-").then(|| word.trim_end_matches('!').to_owned()),
                completion_len_tokens: 10,
                is_truncated: word == "-",
            })
            .collect()
    }

    fn tally(kind: Kind, texts: &[&str]) -> Tally {
        let problems = texts.iter().enumerate().map(|(idx, text)| (idx.to_string(), samples(text)));
        Tally { problems: problems.collect(), ..Tally::new(&Reward(Spec::new(kind)), None) }
    }

    /// Of problems with so many samples.
    fn subject(samples: u64) -> Subject<'static> {
        Subject {
            stage: "e",
            model: "m",
            dataset: "d",
            benchmark: None,
            ks: Vec::new(),
            bootstrap: Bootstrap { random: Philox::new(1), resamples: 1000 },
            ratings: HashMap::new(),
            samples,
            tokens_per_second: None,
            computed: Some((Dtype::F32, SamplingWeights::Same)),
        }
    }

    #[test]
    fn figures_match_those_worked_out_by_hand() {
        let mut tally = tally(Kind::Math, &["7! 7! 8 7!", "1 2! 1 -", "3 3 3 3"]);
        for (sample, len) in tally.problems.iter_mut().flat_map(|(_, s)| s).zip(1..) {
            sample.completion_len_tokens = len;
        }
        let found = tally.evaluation(&subject(4)).unwrap();
        // Shares 3/4, 1/4, 0. Of the six pairs of 7! 7! 8 7! all hold a 7!; of those of 1 2! 1 - three hold 2!.
        assert_eq!(found.ks, [1, 2, 4]);
        let pass = [1.0 / 3.0, 0.5, 2.0 / 3.0];
        for (found, expected) in found.pass_at_ks.iter().zip(pass) {
            assert!((found - expected).abs() < 1e-15, "{found} is not {expected}");
        }
        assert_eq!((found.pass_at_1, found.pass_at_k), (found.pass_at_ks[0], found.pass_at_ks[2]));
        // Pairs: 77 and 87 (8 came first); 12 (1 came first) and 1-; 33 and 33. All: 7, 1, 3.
        let cons = [1.0 / 3.0, 0.5 / 3.0, 1.0 / 3.0];
        for (found, expected) in found.cons_at_ks.as_ref().unwrap().iter().zip(cons) {
            assert!((found - expected).abs() < 1e-15, "{found} is not {expected}");
        }
        assert_eq!(found.cons_at_k, Some(found.cons_at_ks.as_ref().unwrap()[2]));
        assert!((found.answered_share.unwrap() - 11.0 / 12.0).abs() < 1e-15);
        assert!((found.truncated_share - 1.0 / 12.0).abs() < 1e-15);
        assert_eq!((found.problem_count, found.k, found.completion_len_tokens_mean), (3, 4, 6.5));
        assert_eq!((found.completion_len_tokens_median, found.completion_len_tokens_p95), (6, 12));
        assert_eq!(found.rating, None);
    }

    /// Of three problems there are 27 resamples, so the bootstrap's limit is known: the root of
    /// sum (x - mean)^2 / n^2. With 1,000 resamples it is met within 2.3 % in two of three cases.
    #[test]
    fn standard_errors_are_those_of_the_bootstrap() {
        let found = tally(Kind::Math, &["7! 7! 8 7!", "1 2! 1 -", "3 3 3 3"])
            .evaluation(&subject(4))
            .unwrap();
        // Shares 3/4, 1/4, 0: deviations 5/12, -1/12, -4/12; squares 42/144.
        let expected = (42.0 / 144.0_f64).sqrt() / 3.0;
        let (se, se_1) = (found.pass_at_1_se.unwrap(), found.pass_at_ks_se.as_ref().unwrap()[0]);
        assert!((se / expected - 1.0).abs() < 0.08, "{se} is not near {expected}");
        assert_eq!(se, se_1);
        // Majorities 1, 0, 0: squares 6/9.
        let (se, expected) = (found.cons_at_k_se.unwrap(), (6.0_f64 / 9.0).sqrt() / 3.0);
        assert!((se / expected - 1.0).abs() < 0.08, "{se} is not near {expected}");
        let one = tally(Kind::Math, &["7! 8"]).evaluation(&subject(2)).unwrap();
        assert_eq!((one.pass_at_1_se, one.cons_at_k_se, one.pass_at_ks_se), (None, None, None));
        assert_eq!(one.cons_at_ks_se, None);
    }

    #[test]
    fn problems_with_a_rating_rate_the_model() {
        let tally = tally(Kind::Math, &["7! 8", "7! 8", "1 1"]);
        let ratings = HashMap::from([("0".to_owned(), 1500.0), ("1".to_owned(), 1500.0)]);
        let found = tally.evaluation(&Subject { ratings, ..subject(2) }).unwrap();
        // Half of both is right; the third has no rating, and counts for nothing.
        assert!((found.rating.unwrap() - 1500.0).abs() < 1e-6, "{found:?}");
        assert!(found.rating_se.is_some());
    }

    #[test]
    fn the_completion_that_ranks_first_is_counted() {
        let mut tally = tally(Kind::Math, &["7! 8 8 -", "1 2! 1 -"]);
        tally.ranking = Some(Ranking::of(&Reward(Spec::new(Kind::Length).named())));
        let scores = [[0.9, 0.2, 0.1, 0.5], [0.5, 0.5, 0.1, 0.1]];
        for ((_, samples), scores) in tally.problems.iter_mut().zip(scores) {
            samples.iter_mut().zip(scores).for_each(|(s, score)| s.rank = Some(score));
        }
        let found = tally.evaluation(&subject(4)).unwrap();
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-15, "{found}");
        assert_eq!(found.rank_by.as_deref(), Some("length"));
        // Of 7! 8 8 - the 7! ranks first; of 1 2! 1 - it is as often the 1 as the 2!.
        near(found.bon_at_k.unwrap(), (1.0 + 0.5) / 2.0);
        // Of six pairs three hold 7!. Of the others' six, 1 2! is half right, 2! 1 and 2! - are right.
        let at = found.bon_at_ks.unwrap();
        near(at[0], found.pass_at_1);
        near(at[1], (3.0 / 6.0 + 2.5 / 6.0) / 2.0);
        near(at[2], 0.75);
        assert!(found.bon_at_k_se.unwrap() > 0.0 && found.bon_at_ks_se.unwrap().len() == 3);
        // 7 has 0.9, 8 has 0.3; 1 has 0.6, 2 has 0.5: unweighted, 8 and 1 win.
        assert_eq!((found.weighted_cons_at_k, found.cons_at_k), (Some(0.5), Some(0.0)));
        // Pairs by weight: 7, 8 and 1 (that came first), 1.
        let at = found.weighted_cons_at_ks.unwrap();
        near(at[1], (0.5 + 0.0) / 2.0);
        assert!(found.weighted_cons_at_k_se.is_some() && found.weighted_cons_at_ks_se.is_some());
        tally.problems[0].1[2].rank = None;
        let found = tally.evaluation(&subject(4)).unwrap();
        assert_eq!((found.problem_count, found.bon_at_k_se), (1, None), "one could not be ranked");
    }

    #[test]
    fn a_rank_is_the_score_as_its_reward_counts_it() {
        let rank = |json, score| {
            let spec: Spec = serde_json::from_str(json).unwrap();
            Ranking::of(&Reward(spec.named())).rank(score)
        };
        let plain = r#"{"kind":"format"}"#;
        assert_eq!((rank(plain, Some(0.5)), rank(plain, None)), (Some(0.5), None));
        assert_eq!(rank(plain, Some(f64::NAN)), None);
        let less = r#"{"kind":"format","weight":-2.0,"clip":[0.0,1.0],"on_null":"zero"}"#;
        assert_eq!((rank(less, Some(3.0)), rank(less, Some(0.25))), (Some(-2.0), Some(-0.5)));
        assert!(rank(less, None).is_some_and(|rank| rank == 0.0 && rank.is_sign_positive()));
    }

    #[test]
    fn answers_that_can_not_be_compared_have_no_majority() {
        let found = tally(Kind::Format, &["7! 8", "1 1"]).evaluation(&subject(2)).unwrap();
        assert_eq!((found.cons_at_k, found.cons_at_ks, found.answered_share), (None, None, None));
        assert_eq!((found.rank_by, found.bon_at_k, found.bon_at_ks_se), (None, None, None));
        assert!((found.pass_at_1 - 0.25).abs() < 1e-15 && found.pass_at_1_se.is_some());
        assert_eq!((found.cons_at_k_se, found.cons_at_ks_se), (None, None));
    }

    #[test]
    fn asked_for_numbers_of_samples_are_given() {
        let subject = Subject { ks: vec![3], ..subject(4) };
        let found = tally(Kind::Math, &["7! 8 8 8"]).evaluation(&subject).unwrap();
        // Of four triples one misses the 7.
        assert_eq!((found.ks, found.pass_at_ks), (vec![3], vec![0.75]));
    }

    /// An endpoint may give fewer completions than it was asked for.
    #[test]
    fn problems_that_lack_samples_are_left_out() {
        let tally = tally(Kind::Math, &["7!", "7! 8", "1 1"]);
        let found = tally.evaluation(&subject(2)).unwrap();
        assert_eq!((found.problem_count, found.k, found.pass_at_1), (2, 2, 0.25));
        let error = tally.evaluation(&subject(3)).unwrap_err().to_string();
        assert!(error.contains("no completion of `m` on `d` could be scored"), "{error}");
        let error = tally.evaluation(&subject(1)).unwrap_err().to_string();
        assert!(error.contains("more samples than were asked for"), "{error}");
    }

    #[test]
    fn problems_that_cannot_be_scored_are_left_out_and_counted() {
        let mut tally = tally(Kind::Format, &["7!", "8"]);
        tally.problems[1].1[0].is_right = None;
        tally.error = Some("format: no reason".to_owned());
        let found = tally.evaluation(&subject(1)).unwrap();
        assert_eq!((found.problem_count, found.pass_at_1, found.cons_at_k), (1, 1.0, None));
        tally.problems.remove(0);
        let error = tally.evaluation(&subject(1)).unwrap_err().to_string();
        assert!(error.contains("could be scored: format: no reason"), "{error}");
    }
}
