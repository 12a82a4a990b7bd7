//! Which prompts a step asks, where sources have weights or a curriculum follows how hard prompts are. Pure.
//!
//! **Sources.** With weights `w`, a step of `n` prompts takes of source `s` the floor or the ceiling of `n w_s / sum
//! w`: of the points `u, u + 1, …, u + n - 1`, with `u` in [0, 1) drawn from the seed and the step, as many as fall
//! into the source's interval when intervals of these lengths lie end to end (systematic sampling, Madow and Madow
//! 1944). So each share is exact on average.
//!
//! **Order.** Each source has rounds. A round asks every prompt of the source that is drawn at all, once, in an order
//! of its own; a prompt that comes back into the band takes part in the round that is under way.
//!
//! **Curriculum.** See [`Curriculum`]. What is known of a prompt changes when a step that asked it is trained on, by
//! the step's rows alone, and is part of the checkpoint: a run that goes on draws what it would have drawn.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use aha_compute::random::Philox;
use aha_rollout::view::RolloutsView;
use serde::{Deserialize, Serialize};

use super::feeder::Refill;
use crate::error::{Error, Result};
use crate::pipeline::{Curriculum, RlStage};
use crate::prompts::Problem;
use crate::score::Scorer;

/// What is known of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The round of its source in which it was asked last; 0: it never was.
    pub round: u64,
    /// The step in which it was asked last; 0: it never was.
    pub step: u64,
    /// Its pass rate, as it is followed.
    pub pass_rate: f64,
}

/// How prompts are drawn.
pub struct Draw {
    /// Sources with their shares of a step, and what a curriculum knows of prompts. No weights: one pool of all.
    pools: Vec<Pool>,
    curriculum: Option<Curriculum>,
    /// By problem, the part of the reward that says whether a completion of it passed; none: it isn't followed.
    pass_parts: Vec<Option<usize>>,
    idx_by_id: HashMap<String, usize>,
    per_step: usize,
    shuffle: bool,
    random: Philox,
}

struct Pool {
    share: f64,
    /// Indices of its problems.
    problems: Vec<usize>,
}

/// What a step measured of a prompt that it asked: the share of its completions that passed, where any was scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    problem: usize,
    pass_share: Option<f64>,
}

impl Draw {
    /// None where every prompt is drawn alike. Fails where the problems don't fit the settings.
    pub fn new(
        settings: &RlStage,
        problems: &[Problem],
        scorer: &Scorer,
        random: Philox,
    ) -> Result<Option<Draw>> {
        if settings.source_weights.0.is_empty() && settings.curriculum.is_none() {
            return Ok(None);
        }
        let per_step = settings.prompts_per_step as usize;
        let pass_parts = match &settings.curriculum {
            Some(curriculum) => pass_parts(curriculum, settings, problems, scorer)?,
            None => vec![None; problems.len()],
        };
        let ids = problems.iter().enumerate();
        let pools = pools(&settings.source_weights.0, problems, per_step)?;
        check_room(&pools, settings)?;
        Ok(Some(Draw {
            pools,
            curriculum: settings.curriculum.clone(),
            pass_parts,
            idx_by_id: ids.map(|(idx, problem)| (problem.id.clone(), idx)).collect(),
            per_step,
            shuffle: settings.shuffle,
            random: random.derive("draws of prompts"),
        }))
    }

    /// What is known before the first step, or after that which `saved` is of.
    pub fn begin(&self, problems: &[Problem], saved: &BTreeMap<String, Seen>) -> Vec<Seen> {
        let prior = self.curriculum.as_ref().map_or(0.0, |curriculum| curriculum.prior);
        let new = |problem: &Problem| Seen {
            pass_rate: problem.pass_rate.unwrap_or(prior),
            ..Seen::default()
        };
        problems.iter().map(|p| saved.get(&p.id).copied().unwrap_or_else(|| new(p))).collect()
    }

    /// What a checkpoint keeps: the prompts that were asked.
    pub fn saved(&self, problems: &[Problem], seen: &[Seen]) -> BTreeMap<String, Seen> {
        let asked = problems.iter().zip(seen).filter(|(_, seen)| seen.round > 0);
        asked.map(|(problem, seen)| (problem.id.clone(), *seen)).collect()
    }

    /// Indices of a step's problems, or of those that come in place of others. None of `set_aside` is among them.
    pub fn choose(
        &self,
        seen: &[Seen],
        step: u64,
        set_aside: &BTreeSet<String>,
        refill: Option<&Refill>,
    ) -> Vec<usize> {
        let asked_ids = refill.map_or(&[][..], |refill| &refill.asked_ids);
        let excluded: HashSet<usize> =
            set_aside.iter().chain(asked_ids).filter_map(|id| self.idx_of(id)).collect();
        let kept: HashSet<usize> = refill.map_or_else(HashSet::new, |refill| {
            refill.kept_ids.iter().filter_map(|id| self.idx_of(id)).collect()
        });
        let mut chosen = Vec::with_capacity(self.per_step);
        for ((pool_idx, pool), count) in self.pools.iter().enumerate().zip(self.counts(step)) {
            let stays = pool.problems.iter().filter(|idx| kept.contains(idx)).count();
            let count = count.saturating_sub(stays);
            let share = self.curriculum.as_ref().map_or(0.0, |c| c.revisit_share);
            // Others are wanted for their signal, which the band has.
            let revisits = if refill.is_some() { 0.0 } else { share * count as f64 };
            let draw = self.random.derive("revisits").uniform(&[step, pool_idx as u64]);
            let revisits = (revisits + draw).floor() as usize;
            chosen.extend(self.of_pool(pool, seen, &excluded, (count, revisits)));
        }
        chosen
    }

    /// How many prompts a step takes of each pool.
    fn counts(&self, step: u64) -> Vec<usize> {
        systematic(
            self.pools.iter().map(|pool| pool.share),
            self.per_step,
            self.random.derive("sources").uniform(&[step]),
        )
    }

    /// Problems of a pool: `count`, of which `revisits` from outside the band.
    fn of_pool(
        &self,
        pool: &Pool,
        seen: &[Seen],
        excluded: &HashSet<usize>,
        (count, revisits): (usize, usize),
    ) -> Vec<usize> {
        let round = round_of(pool, seen);
        let free = pool.problems.iter().copied().filter(|idx| !excluded.contains(idx));
        let (mut inside, mut outside): (Vec<usize>, Vec<usize>) =
            free.partition(|&idx| self.is_drawn(idx, seen[idx].pass_rate));
        let order = |round: u64, idx: usize| match self.shuffle {
            true => self.random.derive("order").bits(&[round, idx as u64]),
            false => idx as u64,
        };
        inside.sort_by_cached_key(|&idx| {
            let next = next_round(seen[idx].round, round);
            (next, order(next, idx), idx)
        });
        outside.sort_by_cached_key(|&idx| (seen[idx].step, order(0, idx), idx));
        let revisits = revisits.min(count).min(outside.len());
        let mut chosen: Vec<usize> = inside.into_iter().take(count - revisits).collect();
        let mut rest = outside.split_off(revisits);
        chosen.append(&mut outside);
        // In the order of the longest wait where they are as far away.
        rest.sort_by(|&a, &b| self.distance(seen[a]).total_cmp(&self.distance(seen[b])));
        let missing = count - chosen.len();
        chosen.extend(rest.into_iter().take(missing));
        chosen
    }

    /// Whether a problem is drawn at that pass rate.
    fn is_drawn(&self, problem: usize, pass_rate: f64) -> bool {
        let Some(curriculum) = &self.curriculum else { return true };
        let [least, most] = curriculum.band;
        self.pass_parts[problem].is_none() || (least <= pass_rate && pass_rate <= most)
    }

    /// How far outside the band a pass rate is.
    fn distance(&self, seen: Seen) -> f64 {
        let Some(curriculum) = &self.curriculum else { return 0.0 };
        let [least, most] = curriculum.band;
        (least - seen.pass_rate).max(seen.pass_rate - most).max(0.0)
    }

    /// What a step's rows, groups of `lens` rows, say of its prompts; `failed` are those that have no rows.
    pub fn measure<'i>(
        &self,
        view: &RolloutsView<'_>,
        lens: &[usize],
        failed: impl Iterator<Item = &'i str>,
    ) -> Vec<Measured> {
        let mut start = 0;
        let mut found = Vec::with_capacity(lens.len());
        for &len in lens {
            let rows = start..start + len;
            start += len;
            let Some(problem) =
                rows.clone().next().and_then(|row| self.idx_of(view.prompt_id(row)))
            else {
                continue;
            };
            let pass_share = self.pass_parts[problem].and_then(|part| {
                let scores: Vec<f64> = rows.filter_map(|row| view.reward_part(part, row)).collect();
                let pass_score = self.curriculum.as_ref()?.pass_score;
                let passed = scores.iter().filter(|score| **score >= pass_score).count();
                (!scores.is_empty()).then(|| passed as f64 / scores.len() as f64)
            });
            found.push(Measured { problem, pass_share });
        }
        let has_rows: HashSet<usize> = found.iter().map(|found| found.problem).collect();
        let without = failed.filter_map(|id| self.idx_of(id)).filter(|idx| !has_rows.contains(idx));
        found.extend(without.map(|problem| Measured { problem, pass_share: None }));
        found
    }

    /// What is known after a step.
    pub fn update(&self, seen: &mut [Seen], step: u64, measured: &[Measured]) {
        let momentum = self.curriculum.as_ref().map_or(0.0, |curriculum| curriculum.momentum);
        let by_problem: HashMap<usize, Option<f64>> =
            measured.iter().map(|found| (found.problem, found.pass_share)).collect();
        for pool in &self.pools {
            let round = round_of(pool, seen);
            for &idx in &pool.problems {
                let Some(pass_share) = by_problem.get(&idx) else { continue };
                let before = seen[idx];
                let pass_rate = pass_share.map_or(before.pass_rate, |share| {
                    momentum * before.pass_rate + (1.0 - momentum) * share
                });
                seen[idx] = Seen { round: next_round(before.round, round), step, pass_rate };
            }
        }
    }

    /// What a step shows of the curriculum; nothing without one. `before` and `after` are what was known.
    pub fn metrics(
        &self,
        before: &[Seen],
        after: &[Seen],
        measured: &[Measured],
    ) -> BTreeMap<String, f64> {
        let mut metrics = BTreeMap::new();
        if self.curriculum.is_none() {
            return metrics;
        }
        let is_followed = |idx: &usize| self.pass_parts[*idx].is_some();
        let in_band = |seen: &[Seen], idx: usize| {
            f64::from(u8::from(self.is_drawn(idx, seen[idx].pass_rate)))
        };
        let mut mean = |name: &str, values: Vec<f64>| {
            if !values.is_empty() {
                metrics.insert(name.to_owned(), values.iter().sum::<f64>() / values.len() as f64);
            }
        };
        let asked: Vec<usize> =
            measured.iter().map(|found| found.problem).filter(is_followed).collect();
        let all: Vec<usize> = (0..after.len()).filter(is_followed).collect();
        mean("in_band_share", asked.iter().map(|&idx| in_band(before, idx)).collect());
        mean("pass_rate", measured.iter().filter_map(|found| found.pass_share).collect());
        mean("all_in_band_share", all.iter().map(|&idx| in_band(after, idx)).collect());
        mean("all_pass_rate", all.iter().map(|&idx| after[idx].pass_rate).collect());
        metrics
    }

    fn idx_of(&self, id: &str) -> Option<usize> {
        self.idx_by_id.get(id).copied()
    }
}

/// The round that is under way.
fn round_of(pool: &Pool, seen: &[Seen]) -> u64 {
    pool.problems.iter().map(|&idx| seen[idx].round).max().unwrap_or(0).max(1)
}

/// The round in which a prompt is asked next, by that in which it was asked last and that which is under way.
fn next_round(last: u64, round: u64) -> u64 {
    if last < round { round } else { last + 1 }
}

/// Splits `count` by shares: see [the module](self).
fn systematic(shares: impl Iterator<Item = f64>, count: usize, start: f64) -> Vec<usize> {
    let shares: Vec<f64> = shares.collect();
    let total: f64 = shares.iter().sum();
    let (mut sum, mut before) = (0.0, 0);
    let last = shares.len().saturating_sub(1);
    let mut counts = Vec::with_capacity(shares.len());
    for (idx, share) in shares.iter().enumerate() {
        sum += share;
        // Points below the interval's end; the last one's is exact, whatever sums are rounded to.
        let end = if idx == last { count as f64 } else { sum / total * count as f64 };
        let below = ((end - start).ceil().max(0.0) as usize).min(count);
        counts.push(below - before);
        before = below;
    }
    counts
}

/// The problems of each source, or all of them where there are no weights.
fn pools(
    weights: &BTreeMap<String, f64>,
    problems: &[Problem],
    per_step: usize,
) -> Result<Vec<Pool>> {
    if weights.is_empty() {
        return Ok(vec![Pool { share: 1.0, problems: (0..problems.len()).collect() }]);
    }
    let total: f64 = weights.values().sum();
    let mut by_source: BTreeMap<&str, Vec<usize>> =
        weights.keys().map(|source| (source.as_str(), Vec::new())).collect();
    for (idx, problem) in problems.iter().enumerate() {
        let source = problem.source.as_deref();
        match source.and_then(|source| by_source.get_mut(source)) {
            Some(of_source) => of_source.push(idx),
            None => {
                let from = source.map_or("no source".to_owned(), |source| format!("`{source}`"));
                return Err(Error::input_with(
                    format!(
                        "the prompt `{}` is from {from}, which has no weight in `source_weights`",
                        problem.id
                    ),
                    "give its source a weight, or leave such rows out of the query",
                ));
            }
        }
    }
    let pool = |(source, problems): (&str, Vec<usize>)| {
        let share = weights[source] / total;
        let wanted = (share * per_step as f64).ceil() as usize;
        if problems.len() < wanted {
            return Err(Error::input_with(
                format!(
                    "a step takes up to {wanted} prompts from `{source}`, but the query finds {}",
                    problems.len()
                ),
                "give the source more prompts or a lower weight, or lower `prompts_per_step`",
            ));
        }
        Ok(Pool { share, problems })
    };
    by_source.into_iter().map(pool).collect()
}

/// What is on its way to a learner that a sampler runs ahead of isn't drawn again.
fn check_room(pools: &[Pool], settings: &RlStage) -> Result<()> {
    let steps = f64::from(settings.max_staleness) + 1.0;
    for pool in pools.iter().filter(|_| settings.max_staleness > 0) {
        let wanted = (pool.share * f64::from(settings.prompts_per_step)).ceil() * steps;
        if (pool.problems.len() as f64) < wanted {
            return Err(Error::input_with(
                format!(
                    "with `max_staleness = {}` up to {wanted} prompts are on their way at once, none of which is drawn \
                     again, but the query finds {} of a source",
                    settings.max_staleness,
                    pool.problems.len()
                ),
                "give the stage more prompts, or lower `max_staleness` or `prompts_per_step`",
            ));
        }
    }
    Ok(())
}

/// By problem, the part of the reward that says whether a completion of it passed.
fn pass_parts(
    curriculum: &Curriculum,
    settings: &RlStage,
    problems: &[Problem],
    scorer: &Scorer,
) -> Result<Vec<Option<usize>>> {
    let says = |part: &usize| match curriculum.rewards.as_slice() {
        [] => settings.rewards[*part].needs().is_some(),
        names => names.iter().any(|name| name == settings.rewards[*part].name()),
    };
    let parts: Vec<usize> = (0..settings.rewards.len()).filter(says).collect();
    let of_problem = |problem: &Problem| match problem.pass_rate {
        // Written so that NaN fails.
        Some(rate) if !(0.0..=1.0).contains(&rate) => Err(Error::input_with(
            format!("the prompt `{}` has the `pass_rate` {rate}", problem.id),
            "a pass rate is a share from 0 to 1, or null where it isn't known",
        )),
        _ => {
            let source = problem.source.as_deref();
            Ok(parts.iter().copied().find(|&part| scorer.is_applied(part, source)))
        }
    };
    problems.iter().map(of_problem).collect()
}

#[cfg(test)]
mod tests;
