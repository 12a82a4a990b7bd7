//! A whole step of GRPO: completions are drawn, scored, and trained on.

use std::time::Instant;

use aha_compute::WeightForm;
use aha_flow::models::Loaded;
use aha_learn::advantage::{Sample, advantages};
use aha_learn::learner::{self, Learner, OldLogps, Rollout, StepSettings};
use aha_learn::objective::{Normaliser, Objective};
use aha_learn::preset::Preset;
use aha_sample::Completion;
use anyhow::ensure;

use super::decode::{Drawing, name, sampled, suffix};
use super::job::{Job, Sampled, Work};
use super::place::Open;
use super::row::{Row, median_of};
use super::train::settings;
use super::{Bench, Kind};

/// TRL's old default, and what its figures are taken with.
const KL_COEF: f64 = 0.04;

/// A row without a KL term, and one with it.
pub fn rows(bench: &Bench<'_>) -> anyhow::Result<Vec<Row>> {
    let sampled = sampled(bench);
    let of = |(kl, kl_coef)| {
        let work = Work::Grpo {
            sampled,
            kl_coef,
            micro_batch_tokens: bench.args.micro_batch_tokens as usize,
            checkpointing: bench.args.activation_checkpointing,
        };
        let weights = suffix(bench.args.weights);
        bench.job(Kind::Grpo, &format!("{}{weights}, {kl}", name(sampled)), work)
    };
    [("no KL", 0.0), ("KL", KL_COEF)].into_iter().map(of).collect()
}

/// Seconds by phase.
struct Phases {
    generate: f64,
    train: f64,
}

/// Measures steps. The reference's log-probs are part of the training phase, which computes them batch by batch;
/// how long they take is measured by itself.
pub fn grpo(
    job: &Job,
    sampled: Sampled,
    kl_coef: f64,
    micro_batch_tokens: usize,
    checkpointing: bool,
) -> anyhow::Result<Row> {
    let open = job.open()?;
    let Loaded { model, tokenizer } = job.subject.open(&open.device)?;
    let (mut drawing, weights) = (Drawing::new(&model, &tokenizer, sampled), job.weights.form());
    let mut learner = Learner::new(model);
    if kl_coef != 0.0 {
        // The first step then changes a copy, as in a run.
        learner.set_reference(Some(learner.model().clone()));
    }
    let objective = Objective { kl_coef, ..Preset::default().objective(sampled.new_tokens as u32) };
    let settings = settings(micro_batch_tokens, checkpointing);
    let mut score_seconds = Vec::new();
    let mut step = |learner: &mut Learner, is_alone: bool| {
        let begun = Instant::now();
        let completions = drawing.run(learner.model(), sampled.new_tokens, weights)?;
        let generate = begun.elapsed().as_secs_f64();
        let advantages = rewards(&completions, sampled, &objective)?;
        let prompts = drawing.requests();
        let old = match weights {
            WeightForm::Same => OldLogps::Behaviour,
            WeightForm::Int8 => OldLogps::Current,
        };
        let rollout =
            |(completion, &advantage): (_, _)| rollout(prompts, completion, old, advantage);
        let rollouts: Vec<_> = completions.iter().zip(&advantages).map(rollout).collect();
        train(learner, &rollouts, &objective, &settings)?;
        open.wait()?;
        let train = begun.elapsed().as_secs_f64() - generate;
        if let Some(reference) = learner.reference().filter(|_| is_alone) {
            let begun = Instant::now();
            learner::score(reference, &rollouts, 1.0, micro_batch_tokens);
            score_seconds.push(begun.elapsed().as_secs_f64());
        }
        anyhow::Ok(Phases { generate, train })
    };
    let found = job.repeat(|| step(&mut learner, true))?;
    let profile = job.profile(|| step(&mut learner, false))?;
    Ok(Row { profile, ..row(job, &open, sampled, &found, score_seconds) })
}

fn row(job: &Job, open: &Open, sampled: Sampled, found: &[Phases], score_seconds: Vec<f64>) -> Row {
    let mut row = Row::new(job.kind, &job.name, open.device.threads());
    let whole: Vec<f64> = found.iter().map(|phases| phases.generate + phases.train).collect();
    let generate = median_of(found.iter().map(|phases| phases.generate).collect());
    let train = median_of(found.iter().map(|phases| phases.train).collect());
    let trained = sampled.sequences() * (sampled.prompt_tokens + sampled.new_tokens);
    row.add("tokens_per_second", sampled.tokens() as f64 / median_of(whole.clone()));
    row.add("generate_seconds", generate);
    row.add("generate_tokens_per_second", sampled.tokens() as f64 / generate);
    row.add("train_seconds", train);
    row.add("train_tokens_per_second", trained as f64 / train);
    row.add("score_seconds", median_of(score_seconds));
    row.add_seconds(&whole);
    open.add_memory(&mut row);
    row
}

/// Advantages of rewards that differ inside a group: how many of a completion's tokens are even.
fn rewards(
    completions: &[Completion],
    sampled: Sampled,
    objective: &Objective,
) -> anyhow::Result<Vec<f32>> {
    let reward = |c: &Completion| {
        let even_count = c.token_ids.iter().filter(|&&id| id % 2 == 0).count();
        let reward = Some(even_count as f32 / c.token_ids.len() as f32);
        Sample { reward, len_tokens: c.token_ids.len() }
    };
    let rewards: Vec<Sample> = completions.iter().map(reward).collect();
    let groups: Vec<&[Sample]> = rewards.chunks(sampled.samples).collect();
    let groups = advantages(&groups, &objective.advantage)?;
    Ok(groups.iter().flat_map(|group| &group.rows).map(|row| row.value).collect())
}

fn rollout<'a>(
    prompts: &'a [aha_sample::Request],
    completion: &'a Completion,
    old: OldLogps<'a>,
    advantage: f32,
) -> Rollout<'a> {
    Rollout {
        prompt_ids: &prompts[completion.request_idx].prompt_ids,
        completion_ids: &completion.token_ids,
        behaviour_logps: &completion.logprobs,
        old,
        advantage,
        token_advantages: None,
        mask: None,
    }
}

fn train(
    learner: &mut Learner,
    rollouts: &[Rollout<'_>],
    objective: &Objective,
    settings: &StepSettings,
) -> anyhow::Result<()> {
    let lens: Vec<usize> = rollouts.iter().map(|r| r.completion_ids.len()).collect();
    let normaliser = Normaliser::of(objective, &lens);
    let outcome = learner.policy_step(rollouts, objective, normaliser, 1.0, settings)?;
    ensure!(outcome.applied, "a step's loss or gradient is not finite");
    Ok(())
}
