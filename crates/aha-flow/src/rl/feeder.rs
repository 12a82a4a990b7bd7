//! Feeder: the prompts of a step, as rows; where the sampler runs ahead, those of a round.
//! - Inbox: one credit per step, and one for each time that groups of it are replaced, from the learner; unbounded only
//!   in name, since they follow each other.
//! - State: none. Which prompts a step has, and which come in place of others, is a function of the step, the seed, and
//!   what the credit says of the steps before.
//! - Fails only where a test has it fail. A prompt that can't be encoded is reported, not fatal.

use std::collections::BTreeSet;
use std::sync::Arc;

use aha_compute::random::Philox;
use aha_rollout::rows::{self, PromptRow};
use arrow::array::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::ahead::intake::Arrival;
use super::draw::Seen;
use super::fault::Point;
use super::stage::Shared;
use super::{advantage, learner, sampler};
use crate::error::{Error, Result};

/// Others talk to the feeder through this.
#[derive(Clone)]
pub struct Handle {
    actor: ActorRef<Msg>,
}

impl Handle {
    /// The actor, for its supervisor.
    pub fn cell(&self) -> ractor::ActorCell {
        self.actor.get_cell()
    }

    /// Asks for prompts of a round, where the sampler runs ahead. `seen` is what is known of each problem.
    pub fn round(&self, round: u64, wanted: Wanted, seen: Arc<Vec<Seen>>) {
        let _ = self.actor.cast(Msg::Round { round, wanted, seen }); // As below.
    }

    /// Says that the learner can take the groups of a step, or those that replace some of them.
    pub fn credit(
        &self,
        step: u64,
        set_aside: BTreeSet<String>,
        seen: Arc<Vec<Seen>>,
        refill: Option<Refill>,
    ) {
        // A feeder that has ended is restarted, and the step issued again.
        let _ = self.actor.cast(Msg::Credit { step, set_aside, seen, refill });
    }
}

impl From<ActorRef<Msg>> for Handle {
    /// For whoever stands in for the feeder.
    fn from(actor: ActorRef<Msg>) -> Handle {
        Handle { actor }
    }
}

/// Groups that are wanted in place of others of their step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refill {
    /// Prompts that were asked for in this way before, in the same step.
    pub asked: usize,
    /// Prompts that are asked for now.
    pub count: usize,
    /// The prompts that the step has asked, in all ways.
    pub asked_ids: Vec<String>,
    /// Those of them whose groups stay.
    pub kept_ids: Vec<String>,
}

/// Which prompts of a round are wanted, where the sampler runs ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All but these. The learner hears which they are.
    Round(BTreeSet<String>),
    /// These, whose groups were lost.
    Prompts(Vec<String>),
}

/// What the feeder is told.
pub enum Msg {
    /// The learner can take the groups of this step.
    Credit {
        /// The step.
        step: u64,
        /// Prompts that are left out.
        set_aside: BTreeSet<String>,
        /// What is known of each problem, where that decides which are drawn.
        seen: Arc<Vec<Seen>>,
        /// Which groups of the step; none: the first.
        refill: Option<Refill>,
    },
    /// The prompts of a round are wanted, where the sampler runs ahead.
    Round {
        /// The round.
        round: u64,
        /// Which of its prompts.
        wanted: Wanted,
        /// What is known of each problem, where that decides which are drawn.
        seen: Arc<Vec<Seen>>,
    },
}

/// What the feeder needs.
pub struct Args {
    /// What the stage's actors share.
    pub shared: Arc<Shared>,
    /// Where prompts go.
    pub sampler: sampler::Handle,
    /// Who has to know which groups to wait for.
    pub advantage: advantage::Handle,
    /// Who has to know which groups are on their way, where the sampler runs ahead.
    pub learner: learner::Handle,
    /// Which spawn of the left side this is.
    pub attempt: u64,
}

/// Makes prompts on demand.
pub struct Feeder;

/// Spawns the feeder under `supervisor`.
pub async fn spawn(args: Args, supervisor: ractor::ActorCell) -> Result<Handle> {
    let (actor, _) = Actor::spawn_linked(None, Feeder, args, supervisor)
        .await
        .map_err(|error| Error::bug(format!("the feeder doesn't start: {error}")))?;
    Ok(Handle { actor })
}

impl Actor for Feeder {
    type Msg = Msg;
    type State = Args;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<Args, ActorProcessingErr> {
        Ok(args)
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        msg: Msg,
        args: &mut Args,
    ) -> Result<(), ActorProcessingErr> {
        let (step, set_aside, seen, refill) = match msg {
            Msg::Credit { step, set_aside, seen, refill } => (step, set_aside, seen, refill),
            Msg::Round { round, wanted, seen } => {
                args.shared.faults.at(Point::Feed, round)?;
                args.feed_round(round, wanted, &seen).await;
                return Ok(());
            }
        };
        let shared = &args.shared;
        shared.faults.at(Point::Feed, step)?;
        let chosen = choose(shared, step, &set_aside, &seen, refill.as_ref());
        let Prompts { rows, prompt_ids, failed } = prompts_of(shared, step, &set_aside, &chosen);
        args.advantage.expect(step, args.attempt, prompt_ids, refill.is_some());
        for (prompt_id, error) in failed {
            args.advantage.failed(step, args.attempt, prompt_id, error);
        }
        args.sampler.sample(step, rows).await;
        Ok(())
    }
}

impl Args {
    async fn feed_round(&self, round: u64, wanted: Wanted, seen: &[Seen]) {
        let shared = &self.shared;
        let (left_out, chosen) = match &wanted {
            Wanted::Round(left_out) => {
                (left_out.clone(), choose(shared, round, left_out, seen, None))
            }
            Wanted::Prompts(prompt_ids) => {
                let all = 0..shared.problems.len();
                let is_wanted = |&idx: &usize| prompt_ids.contains(&shared.problems[idx].id);
                (BTreeSet::new(), all.filter(is_wanted).collect())
            }
        };
        let Prompts { rows, prompt_ids, failed } = prompts_of(shared, round, &left_out, &chosen);
        if let Wanted::Round(_) = wanted {
            self.learner.fed(self.attempt, round, prompt_ids);
        }
        for (prompt_id, error) in failed {
            let arrival = Arrival::failed(prompt_id, error.to_string());
            self.learner.arrived(self.attempt, round, arrival);
        }
        self.sampler.sample(round, rows).await;
    }
}

/// Indices of a step's problems. Each pass over the data has its own order; what is left over at the end of
/// a pass is not asked in it, so that no step has a problem twice.
pub fn problems_of(
    problem_count: usize,
    per_step: usize,
    shuffle: bool,
    random: Philox,
    step: u64,
) -> Vec<usize> {
    let steps_per_pass = (problem_count / per_step.max(1)).max(1) as u64;
    let (pass, within) = ((step - 1) / steps_per_pass, ((step - 1) % steps_per_pass) as usize);
    let order = if shuffle {
        random.permutation(pass, problem_count)
    } else {
        (0..problem_count).collect()
    };
    order.into_iter().skip(within * per_step).take(per_step).collect()
}

/// Indices of problems that come in place of others of a step: none that is in `first`, the step's own, in an order
/// drawn from the seed and the step.
fn refills_of(
    problem_count: usize,
    first: &[usize],
    random: Philox,
    step: u64,
    refill: &Refill,
) -> Vec<usize> {
    let others = random.permutation(step, problem_count).into_iter();
    others.filter(|idx| !first.contains(idx)).skip(refill.asked).take(refill.count).collect()
}

/// The prompts of a step.
struct Prompts {
    /// Rows of `aha_rollout::schema::prompts`.
    rows: RecordBatch,
    /// All of them, in order.
    prompt_ids: Vec<String>,
    /// Those that can't be encoded, with their errors.
    failed: Vec<(String, Error)>,
}

/// Indices of the problems that a step asks, or of those that come in place of others.
fn choose(
    shared: &Shared,
    step: u64,
    set_aside: &BTreeSet<String>,
    seen: &[Seen],
    refill: Option<&Refill>,
) -> Vec<usize> {
    if let Some(draw) = &shared.draw {
        return draw.choose(seen, step, set_aside, refill);
    }
    let settings = &shared.settings;
    let random = shared.random.derive("order of the prompts");
    let per_step = settings.prompts_per_step as usize;
    let count = shared.problems.len();
    let first = problems_of(count, per_step, settings.shuffle, random, step);
    match refill {
        None => first,
        Some(refill) => refills_of(count, &first, shared.random.derive("refills"), step, refill),
    }
}

fn prompts_of(
    shared: &Shared,
    step: u64,
    set_aside: &BTreeSet<String>,
    chosen: &[usize],
) -> Prompts {
    let chosen: Vec<_> = chosen
        .iter()
        .map(|&idx| &shared.problems[idx])
        .filter(|problem| !set_aside.contains(&problem.id))
        .collect();
    let mut encoded = Vec::with_capacity(chosen.len());
    let mut failed = Vec::new();
    for problem in &chosen {
        match shared.prompter.prompt_ids(&problem.prompt) {
            Ok(ids) => encoded.push((problem, ids)),
            Err(error) => failed.push((problem.id.clone(), error)),
        }
    }
    let rows: Vec<PromptRow<'_>> = encoded
        .iter()
        .map(|(problem, ids)| PromptRow {
            stage: &shared.stage,
            step,
            prompt_id: &problem.id,
            source: problem.source.as_deref(),
            prompt: &problem.prompt,
            answer: problem.answer.as_deref(),
            tests: problem.tests.as_deref(),
            prompt_token_ids: ids,
        })
        .collect();
    let prompt_ids = chosen.iter().map(|problem| problem.id.clone()).collect();
    Prompts { rows: rows::prompts(&rows), prompt_ids, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_asks_every_problem_once_and_no_step_has_one_twice() {
        let step = |s| problems_of(10, 3, true, Philox::new(1), s);
        let mut pass: Vec<usize> = (1..=3).flat_map(step).collect();
        pass.sort_unstable();
        pass.dedup();
        assert_eq!(pass.len(), 9);
        assert_ne!(step(1), step(4), "the second pass has its own order");
        assert_eq!(step(5), step(5));
    }

    #[test]
    fn refills_are_the_other_problems_each_once() {
        let first = [2, 5];
        let refill = |asked, count| {
            let refill = Refill { asked, count, ..Refill::default() };
            refills_of(6, &first, Philox::new(1), 3, &refill)
        };
        let mut all = [refill(0, 1), refill(1, 2), refill(3, 5)].concat();
        assert!(refill(4, 1).is_empty());
        all.sort_unstable();
        assert_eq!(all, [0, 1, 3, 4]);
        assert_eq!(refill(0, 4)[1..3], refill(1, 2));
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_data() {
        assert_eq!(problems_of(4, 2, false, Philox::new(1), 2), [2, 3]);
        assert_eq!(problems_of(4, 2, false, Philox::new(1), 3), [0, 1]);
    }
}
