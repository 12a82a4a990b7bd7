//! Which groups are on their way to the learner, whether others may begin, and which a step takes. Pure.
//!
//! **Rounds.** Prompts are asked in rounds: those of round `r` are what step `r` would ask with `max_staleness = 0`. A
//! group goes by its round and its place in it.
//!
//! **Pace.** With `k` the staleness allowed and `B` the groups of a step, a round may begin while `B` more groups make
//! no more than `(k + 1) B` that have begun and whose step is not done; so their number is bounded, and known. It is
//! AReaL's rule (arXiv:2505.24298, eq. 3): the groups that have begun are at most `(v + k + 1) B` after `v` steps. A
//! group that is overtaken by none is then at most `k` versions old when it is taken.
//!
//! **Order.** A step takes of the groups that have arrived those of the earliest rounds, by their places: the ones that
//! have waited longest go first.
//!
//! **Waiting.** Groups differ in length, and one that was overtaken may be too old by the time that it arrives. A stage
//! either leaves it out then, or its steps wait: none is taken after which a group on its way could not be taken in
//! time, were all groups taken by age from then on.
//!
//! **Age.** A step publishes weights once, however many optimizer steps it makes. A token's age is the number of times
//! that weights were published after those that drew it; a group is as old as its oldest token.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What holds for a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The oldest that a group may be when it is taken.
    pub max_staleness: u64,
    /// Groups of a step.
    pub per_step: usize,
    /// How often a step's groups may be without spread and others are waited for; 0: they are trained on.
    pub resample_rounds: usize,
    /// Steps of the stage.
    pub steps: u64,
    /// Whether a step waits for groups that would be too old after it.
    pub waits: bool,
    /// Whether a round's prompts depend on which are on their way: the next is asked for once they are known.
    pub one_by_one: bool,
}

/// What a checkpoint keeps: everything that was asked for and that no step has taken. It is sampled again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Rounds whose prompts are known.
    pub rounds: u64,
    /// Prompts that are on their way, with their rounds and places.
    pub open: Vec<(u64, usize, String)>,
}

impl Asked {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        *self == Asked::default()
    }
}

/// A group with its rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<T> {
    /// Its rows.
    pub rows: T,
    /// The version of the weights that drew its oldest token.
    pub oldest: u64,
    /// Whether its rewards differ.
    pub has_spread: bool,
    /// Tokens of its completions.
    pub tokens: u64,
}

/// What became of a prompt: its group, or why there is none.
pub type Outcome<T> = Result<Group<T>, String>;

/// Why a step takes a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// To train on it.
    Kept,
    /// Its rewards don't differ, and others came in its place.
    NoSignal,
    /// It is too old.
    Stale,
    /// The stage ends, and has enough.
    Unused,
}

/// What a step takes.
#[derive(Debug, PartialEq)]
pub struct Taken<T> {
    /// Groups in order.
    pub groups: Vec<(Fate, Group<T>)>,
    /// Prompts that have none, with their errors.
    pub failed: Vec<(String, String)>,
}

/// A round that has to be asked for again, since whoever worked on it is gone.
#[derive(Debug, PartialEq, Eq)]
pub enum Again {
    /// Nobody has said which prompts it has.
    Round(u64),
    /// These of its prompts are missing.
    Prompts(u64, Vec<String>),
}

/// The groups that have begun.
#[derive(Debug)]
pub struct Ledger<T> {
    rule: Rule,
    /// Rounds that were asked for.
    rounds: u64,
    /// Those of them whose prompts nobody has named yet, and the steps that were done when they were asked for.
    feeding: BTreeMap<u64, u64>,
    /// Prompts whose groups are on their way, by round and place.
    open: BTreeMap<(u64, usize), Open>,
    /// What has arrived, likewise.
    ready: BTreeMap<(u64, usize), (String, Outcome<T>)>,
    /// Groups of the step that is being trained on.
    training: usize,
    /// Whether a round had no prompts: all are set aside.
    is_dry: bool,
    /// By version, the steps that were done when its weights were published.
    published: BTreeMap<u64, u64>,
}

/// A prompt whose group is on its way.
#[derive(Debug)]
struct Open {
    prompt_id: String,
    /// Steps that were done when it was asked for: its first token is of no older weights.
    since: u64,
}

impl<T> Ledger<T> {
    /// What a stage begins with, or goes on with after `step` steps.
    pub fn new(rule: Rule, asked: Asked, step: u64) -> Ledger<T> {
        let open = asked
            .open
            .into_iter()
            .map(|(round, place, prompt_id)| ((round, place), Open { prompt_id, since: step }));
        Ledger {
            rule,
            rounds: asked.rounds,
            feeding: BTreeMap::new(),
            open: open.collect(),
            ready: BTreeMap::new(),
            training: 0,
            is_dry: false,
            published: BTreeMap::new(),
        }
    }

    /// What a checkpoint keeps.
    pub fn asked(&self) -> Asked {
        let open =
            self.open.iter().map(|(&(round, place), open)| (round, place, open.prompt_id.clone()));
        let ready = self.ready.iter().map(|(&(round, place), (id, _))| (round, place, id.clone()));
        let mut open: Vec<_> = open.chain(ready).collect();
        open.sort();
        // Rounds are asked for and named in order.
        Asked { rounds: self.rounds - self.feeding.len() as u64, open }
    }

    /// Weights of this version are the newest after `step` steps.
    pub fn publish(&mut self, version: u64, step: u64) {
        self.training = 0;
        self.published.insert(version, step);
        let k = self.rule.max_staleness;
        self.published.retain(|_, &mut of| of + k >= step);
    }

    /// How often weights were published after this version's, after `step` steps; none where that is too often.
    pub fn age(&self, version: u64, step: u64) -> Option<u64> {
        let (_, &of) = self.published.range(..=version).next_back()?;
        let age = step.saturating_sub(of);
        (age <= self.rule.max_staleness).then_some(age)
    }

    /// The next round, if it may begin after `step` steps.
    pub fn next_round(&mut self, step: u64) -> Option<u64> {
        let Rule { max_staleness, per_step, steps, .. } = self.rule;
        let (kept, apart) = self.counts(step);
        let has_to_wait = self.rule.one_by_one && !self.feeding.is_empty();
        if self.is_dry || has_to_wait || self.is_worn_out(kept, apart) {
            return None;
        }
        let begun = self.open.len() + self.feeding.len() * per_step + kept + self.training;
        let wanted = steps.saturating_sub(step) as usize * per_step;
        let has_room = begun + per_step <= (max_staleness as usize + 1) * per_step;
        if begun >= wanted || !has_room {
            return None;
        }
        self.rounds += 1;
        self.feeding.insert(self.rounds, step);
        Some(self.rounds)
    }

    /// The prompts of a round, in order.
    pub fn fed(&mut self, round: u64, prompt_ids: Vec<String>) {
        let Some(since) = self.feeding.remove(&round) else { return };
        self.is_dry |= prompt_ids.is_empty();
        let places = prompt_ids.into_iter().enumerate();
        self.open
            .extend(places.map(|(place, prompt_id)| ((round, place), Open { prompt_id, since })));
    }

    /// What became of a prompt. False where nobody waits for it.
    pub fn arrive(&mut self, round: u64, prompt_id: &str, outcome: Outcome<T>) -> bool {
        let mut of_round = self.open.range((round, 0)..=(round, usize::MAX));
        let Some((&key, _)) = of_round.find(|(_, open)| open.prompt_id == prompt_id) else {
            return false;
        };
        self.open.remove(&key);
        self.ready.insert(key, (prompt_id.to_owned(), outcome));
        true
    }

    /// What has to be asked for again of those who come in place of others that ended.
    pub fn again(&self) -> Vec<Again> {
        let mut rounds: BTreeMap<u64, Again> = BTreeMap::new();
        for (&(round, _), open) in &self.open {
            let of_round = rounds.entry(round).or_insert(Again::Prompts(round, Vec::new()));
            if let Again::Prompts(_, ids) = of_round {
                ids.push(open.prompt_id.clone());
            }
        }
        let feeding = self.feeding.keys().map(|&round| (round, Again::Round(round)));
        rounds.extend(feeding);
        rounds.into_values().collect()
    }

    /// Prompts that have begun and that no step has taken.
    pub fn prompt_ids(&self) -> impl Iterator<Item = &str> {
        let ready = self.ready.values().map(|(id, _)| id.as_str());
        self.open.values().map(|open| open.prompt_id.as_str()).chain(ready)
    }

    /// Tokens of the groups that have arrived and that no step has taken.
    pub fn tokens_waiting(&self) -> u64 {
        self.ready.values().filter_map(|(_, outcome)| outcome.as_ref().ok()).map(|g| g.tokens).sum()
    }

    /// What step `step` takes, if it is time. The last one waits for all that is on its way, so that nothing that was
    /// sampled is lost.
    pub fn take(&mut self, step: u64) -> Option<Taken<T>> {
        let Rule { per_step, steps, .. } = self.rule;
        let (kept, apart) = self.counts(step - 1);
        let is_on_its_way = !self.open.is_empty() || !self.feeding.is_empty();
        let is_full = kept >= per_step || self.is_worn_out(kept, apart);
        let is_time = match (is_full, is_on_its_way) {
            (true, true) => step < steps,
            (true, false) => true,
            (false, is_on_its_way) => self.is_dry && !is_on_its_way,
        };
        if !is_time || (self.rule.waits && self.makes_late(step)) {
            return None;
        }
        self.is_dry = false;
        let mut taken = Taken { groups: Vec::new(), failed: Vec::new() };
        for (key, (id, outcome)) in std::mem::take(&mut self.ready) {
            let fate = match self.fate(&outcome, step - 1) {
                Fate::Kept if self.training == per_step && step < steps => {
                    self.ready.insert(key, (id, outcome));
                    continue;
                }
                Fate::Kept if self.training == per_step => Fate::Unused,
                fate => fate,
            };
            self.training += usize::from(fate == Fate::Kept);
            match outcome {
                Ok(group) => taken.groups.push((fate, group)),
                Err(error) => taken.failed.push((id, error)),
            }
        }
        Some(taken)
    }

    /// Whether a group that is on its way would be too old after `step`, even if groups were taken by age from then on.
    fn makes_late(&self, step: u64) -> bool {
        let Rule { max_staleness, per_step, .. } = self.rule;
        let ages = self.ready.values().filter_map(|(_, outcome)| match outcome {
            Ok(group) => self.age(group.oldest, step - 1),
            Err(_) => Some(0),
        });
        let left = ages.skip(per_step).map(|age| (step - 1 - age, false));
        let open = self.open.values().map(|open| (open.since, true));
        let mut all: Vec<(u64, bool)> = left.chain(open).collect();
        all.sort_unstable();
        // The one at `idx` is taken so many steps after `step` at the earliest.
        let is_late = |(idx, &(since, is_open)): (usize, &(u64, bool))| {
            is_open && since + max_staleness < step + (idx / per_step) as u64
        };
        all.iter().enumerate().any(is_late)
    }

    fn fate(&self, outcome: &Outcome<T>, step: u64) -> Fate {
        match outcome {
            // It has its place in the step, like one that has no group with `max_staleness = 0`.
            Err(_) => Fate::Kept,
            Ok(group) if self.age(group.oldest, step).is_none() => Fate::Stale,
            Ok(group) if self.rule.resample_rounds > 0 && !group.has_spread => Fate::NoSignal,
            Ok(_) => Fate::Kept,
        }
    }

    /// Of what has arrived, what would be trained on, and what has no signal.
    fn counts(&self, step: u64) -> (usize, usize) {
        let count = |wanted: Fate| {
            let fates = self.ready.values().map(|(_, outcome)| self.fate(outcome, step));
            fates.filter(|&fate| fate == wanted).count()
        };
        (count(Fate::Kept), count(Fate::NoSignal))
    }

    /// Whether a step has waited for groups with a signal for as long as it may.
    fn is_worn_out(&self, kept: usize, apart: usize) -> bool {
        let Rule { resample_rounds, per_step, .. } = self.rule;
        resample_rounds > 0 && kept + apart >= per_step * (1 + resample_rounds)
    }
}

#[cfg(test)]
mod tests;
