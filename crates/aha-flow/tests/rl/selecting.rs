//! What a step is trained on: groups that were sampled in place of others, and completions that were cut off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aha_flow::Error;
use aha_flow::rl::fault::{Faults, Point};

use crate::world::{HOPELESS, How, Outcome, World, assert_same_run, each_rollout};

/// A reward that few completions get, so that most groups have none.
const RARE: &str = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[67]\" }]";
/// Up to three rounds of other groups in place of those.
const RESAMPLED: [&str; 2] = [RARE, "stage.zero.resample_rounds=3"];

const DAPO: &str = "stage.zero.objective={ preset = \"dapo\" }";

/// The rewards of a step's groups, and why none of their rows was trained on.
#[derive(Default)]
struct Group {
    rewards: Vec<f64>,
    skip_reasons: Vec<Option<String>>,
}

/// The groups of each step, by prompt.
fn groups(world: &World, name: &str) -> BTreeMap<u64, BTreeMap<String, Group>> {
    let mut steps: BTreeMap<u64, BTreeMap<String, Group>> = BTreeMap::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        let groups = steps.entry(view.step(row)).or_default();
        let group = groups.entry(view.prompt_id(row).to_owned()).or_default();
        group.rewards.push(view.reward(row).unwrap());
        group.skip_reasons.push(view.skip_reason(row).map(str::to_owned));
    });
    steps
}

/// DAPO's loss of the first step: on-policy, without KL, so that it is the mean of the advantages over the tokens of
/// the completions that count, whose rows `counts` says.
fn assert_loss(
    world: &World,
    (name, outcome): (&str, &Outcome),
    counts: impl Fn(Option<&str>) -> bool,
) {
    let (mut sum, mut tokens) = (0.0, 0.0);
    each_rollout(&world.dir(name), "zero", |view, row| {
        if view.step(row) == 1 && counts(view.skip_reason(row)) {
            let len = view.completion_token_ids(row).len() as f64;
            sum += view.advantage(row).unwrap() * len;
            tokens += len;
        }
    });
    let loss = outcome.steps("zero")[0].1["loss"];
    assert!(sum.abs() > 1e-3, "a loss of 0 says nothing");
    assert!((loss + sum / tokens).abs() < 1e-6, "{loss}, expected {}", -sum / tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_without_spread_are_replaced_and_kept_in_the_table() {
    let world = World::new();
    let outcome = world.finish("run", &[&RESAMPLED[..], &[DAPO]].concat()).await;
    assert_loss(&world, ("run", &outcome), |skip_reason| skip_reason.is_none());
    let steps = groups(&world, "run");
    assert_eq!(steps.len(), 6);
    for (step, groups) in &steps {
        let mut trained = 0;
        for (prompt, group) in groups {
            assert_eq!(group.rewards.len(), 4, "step {step}, {prompt}");
            let has_spread = group.rewards.iter().any(|&reward| reward != group.rewards[0]);
            let want = if has_spread { None } else { Some("no_signal".to_owned()) };
            assert!(
                group.skip_reasons.iter().all(|reason| *reason == want),
                "step {step}, {prompt}"
            );
            trained += usize::from(has_spread);
        }
        // Four a step, or all twelve problems were asked, or three rounds were over.
        assert!(trained <= 4 && groups.len() >= 4, "step {step}: {trained} of {}", groups.len());
    }
    assert!(steps.values().any(|groups| groups.len() > 4), "nothing was replaced");
    world.finish("plain", &[RARE]).await;
    assert!(groups(&world, "plain").values().all(|groups| groups.len() == 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_groups_is_reproducible_through_stops_and_faults() {
    let world = World::new();
    let whole = world.finish("whole", &RESAMPLED).await;
    let sets = [&RESAMPLED[..], &["run.threads=1", "run.sequences_max=3"]].concat();
    world.finish("threads", &sets).await;
    assert_same_run(&world.dir("whole"), &world.dir("threads"));
    for event in 0..whole.events.len() {
        let name = format!("stopped-{event}");
        world.stop_and_resume(&name, event, &RESAMPLED).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    // The second time that an actor is at its point is that of the first round of other groups.
    for (point, time) in [(Point::Feed, 1), (Point::Sample, 1), (Point::Advantage, 5)] {
        let name = format!("fault-{point:?}");
        let (count, struck) = (AtomicU32::new(0), Arc::new(AtomicBool::new(false)));
        let has_struck = Arc::clone(&struck);
        let faults = Faults::new(move |at, step| {
            if (at, step) != (point, 1) || count.fetch_add(1, Ordering::Relaxed) != time {
                return Ok(());
            }
            has_struck.store(true, Ordering::Relaxed);
            Err(Error::Environment { message: "injected".to_owned() })
        });
        let how = How { sets: &RESAMPLED, faults, ..How::default() };
        world.run(&name, how).await.result.unwrap();
        assert!(struck.load(Ordering::Relaxed), "{point:?}: nothing was replaced in step 1");
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
}

/// Goal: with KL in the reward the policy is pulled back by its advantages and not by the loss, and the table has
/// the advantages that were trained on. Method: on the first step the policy is the reference, so nothing changes;
/// after it advantages are those of other rewards than the table's, and all else is as reproducible.
#[tokio::test(flavor = "multi_thread")]
async fn kl_in_the_reward_changes_advantages() {
    let world = World::new();
    let sets =
        ["stage.zero.objective={ preset = \"rloo\", kl = 0.5 }", "stage.zero.optimizer.lr=1e-2"];
    let outcome = world.finish("run", &sets).await;
    let steps = outcome.steps("zero");
    assert_eq!(steps[0].1["kl"], 0.0);
    assert!(steps.iter().skip(1).all(|(_, metrics)| metrics["kl"] != 0.0));
    let mut off = BTreeMap::new();
    let mut rows: BTreeMap<(u64, String), Vec<(f64, f64)>> = BTreeMap::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let group = rows.entry((view.step(row), view.prompt_id(row).to_owned())).or_default();
        group.push((view.reward(row).unwrap(), view.advantage(row).unwrap()));
    });
    for ((step, _), group) in &rows {
        let sum: f64 = group.iter().map(|(reward, _)| reward).sum();
        for (reward, advantage) in group {
            let without = reward - (sum - reward) / 3.0;
            let most: &mut f64 = off.entry(*step).or_default();
            *most = most.max((advantage - without).abs());
        }
    }
    assert!(off[&1] < 1e-6, "{off:?}");
    assert!(off.iter().skip(1).all(|(_, &most)| most > 1e-4), "{off:?}");
    world.finish("again", &[&sets[..], &["run.threads=1"]].concat()).await;
    assert_same_run(&world.dir("run"), &world.dir("again"));
    world.stop_and_resume("stopped", 3, &sets).await;
    assert_same_run(&world.dir("run"), &world.dir("stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_that_were_cut_off_are_left_out_of_the_loss() {
    let world = World::new();
    let outcome = world.finish("dapo", &["stage.zero.overlong_filter=true", DAPO]).await;
    assert_loss(&world, ("dapo", &outcome), |skip_reason| skip_reason != Some("truncated"));
    world.finish("run", &["stage.zero.overlong_filter=true"]).await;
    let (mut cut, mut whole) = (0, 0);
    each_rollout(&world.dir("run"), "zero", |view, row| {
        if view.finish_reason(row) == "length" {
            assert_eq!(view.skip_reason(row), Some("truncated"));
            assert!(view.advantage(row).is_some(), "its reward counts for the others");
            cut += 1;
        } else {
            assert!(view.is_trained(row));
            whole += 1;
        }
    });
    assert!(cut > 0 && whole > 0, "{cut} were cut off, {whole} weren't");
}

/// Goal: a completion that can't be scored is no wrong one. Method: two prompts without an answer, in two of three
/// steps; of the others every number is right.
#[tokio::test(flavor = "multi_thread")]
async fn accuracy_is_that_of_completions_that_can_be_scored() {
    let world = World::new();
    let sets = [
        "stage.zero.prompts=SELECT id, prompt, CASE WHEN id NOT IN ('p0', 'p5') THEN answer END AS answer \
         FROM problems",
        "stage.zero.rewards=[{ kind = 'numeric', extract = ['whole'], abs_tolerance = 1e30 }]",
        "stage.zero.steps=3",
        "stage.zero.shuffle=false",
    ];
    let outcome = world.finish("run", &sets).await;
    let mut scores: BTreeMap<u64, Vec<Option<f64>>> = BTreeMap::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        scores.entry(view.step(row)).or_default().push(view.reward_part(0, row));
    });
    for ((step, metrics), scores) in outcome.steps("zero").into_iter().zip(scores.values()) {
        let known: Vec<f64> = scores.iter().flatten().copied().collect();
        assert_eq!(known.len(), if step == 3 { 16 } else { 12 });
        let share = known.iter().sum::<f64>() / known.len() as f64;
        assert!(share > 0.0, "a share of 0 says nothing");
        let found = (metrics["accuracy"], metrics["reward_numeric"]);
        assert_eq!(found, (share, share), "step {step}");
    }
}

/// Goal: each round asks for as many groups as have no spread, and there are as many rounds as are set. Method: no group
/// of twelve problems has any, so that four are asked for again each time, until there are no others.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_ask_for_all_groups_without_spread_again() {
    let world = World::new();
    for (rounds, count) in [(0, 4), (1, 8), (2, 12), (3, 12)] {
        let (name, set) =
            (format!("rounds-{rounds}"), format!("stage.zero.resample_rounds={rounds}"));
        world.finish(&name, &[HOPELESS, &set, "stage.zero.steps=1"]).await;
        assert_eq!(groups(&world, &name)[&1].len(), count, "{rounds} rounds");
    }
}
