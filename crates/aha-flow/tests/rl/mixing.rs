//! Prompts of several sources with rewards of their own, and prompts that are drawn by how hard they are.

use std::collections::{BTreeMap, BTreeSet};

use aha_flow::Error;
use aha_flow::rl::fault::{Faults, Point};
use serde_json::json;

use crate::server::{Reply, Server};
use crate::world::{How, Outcome, World, assert_same_run, each_rollout};

const PROMPTS: &str = "stage.zero.prompts=\"SELECT id, prompt, answer, source FROM problems\"";
const WEIGHTS: &str = "stage.zero.source_weights={ sums = 3, chat = 1 }";
/// Sums are compared with their answers; the others have a score for their looks.
const REWARDS: &str = "stage.zero.rewards=[{ kind = \"math\", extract = [\"whole\"], sources = [\"sums\"] }, \
                       { kind = \"regex\", pattern = \"[0-3]$\", weight = 0.5, sources = [\"chat\"] }]";

/// Eight sums, and four problems of another source.
fn world() -> World {
    let line = |i: usize| {
        let source = if i < 8 { "sums" } else { "chat" };
        let (prompt, answer) = (format!("{i}+1="), (i + 1).to_string());
        let line =
            json!({"id": format!("p{i}"), "prompt": prompt, "answer": answer, "source": source});
        format!("{line}\n")
    };
    World::with(&(0..12).map(line).collect::<String>())
}

/// The prompts of each step, in order.
fn prompts(world: &World, name: &str) -> BTreeMap<u64, Vec<String>> {
    let mut steps: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        let prompts = steps.entry(view.step(row)).or_default();
        if view.sample_idx(row) == 0 {
            prompts.push(view.prompt_id(row).to_owned());
        }
    });
    steps
}

fn is_chat(prompt: &str) -> bool {
    ["p8", "p9", "p10", "p11"].contains(&prompt)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_has_its_share_and_rewards_of_its_own() {
    let world = world();
    let outcome = world.finish("run", &[PROMPTS, WEIGHTS, REWARDS]).await;
    let steps = prompts(&world, "run");
    for prompts in steps.values() {
        assert_eq!(prompts.iter().filter(|prompt| is_chat(prompt)).count(), 1, "{prompts:?}");
        assert_eq!(prompts.len(), 4);
    }
    // Six of eight sums would be asked in two steps, if some were asked twice before others were once.
    let asked: BTreeSet<&String> = steps.values().take(3).flatten().collect();
    assert_eq!(asked.iter().filter(|prompt| !is_chat(prompt)).count(), 8);
    let mut scored = 0;
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let (math, regex) = (view.reward_part(0, row), view.reward_part(1, row));
        let (mine, other) =
            if is_chat(view.prompt_id(row)) { (regex, math) } else { (math, regex) };
        let weight = if is_chat(view.prompt_id(row)) { 0.5 } else { 1.0 };
        assert!(other.is_none() && view.reward_error(row).is_none());
        assert_eq!(view.reward(row), mine.map(|score| weight * score));
        scored += usize::from(mine.is_some());
    });
    assert_eq!(scored, 6 * 4 * 4);
    for (_, metrics) in outcome.steps("zero") {
        assert_eq!((metrics["source_share_sums"], metrics["source_share_chat"]), (0.75, 0.25));
        // A group each; parts are means over the rows that they are for.
        assert_eq!(metrics["source_reward_chat"], 0.5 * metrics["reward_regex"]);
        assert_eq!(metrics["source_reward_sums"], metrics["reward_math"]);
        assert_eq!(metrics["accuracy"], metrics["reward_math"]);
    }
    let even = ["stage.zero.source_weights={ sums = 1, chat = 1 }", PROMPTS, REWARDS];
    world.finish("even", &even).await;
    for step in prompts(&world, "even").values() {
        assert_eq!(step.iter().filter(|prompt| is_chat(prompt)).count(), 2, "{step:?}");
    }
    // Without weights rewards keep their sources, and the data decide how many prompts of each there are.
    let outcome = world.finish("plain", &[PROMPTS, REWARDS]).await;
    let asked: Vec<String> = prompts(&world, "plain").into_values().take(3).flatten().collect();
    assert_eq!(asked.iter().filter(|prompt| is_chat(prompt)).count(), 4);
    assert!(
        outcome.steps("zero").iter().all(|(_, metrics)| metrics.contains_key("source_share_sums"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_of_a_problem_reach_the_reward_that_reads_them() {
    let world = world();
    let sets = [
        "stage.zero.prompts=SELECT id, prompt, CASE WHEN id <> 'p0' THEN \
         '{\"kind\":\"countdown\",\"numbers\":[1],\"target\":1}' END AS tests FROM problems",
        "stage.zero.rewards=[{ kind = 'countdown', extract = ['whole'] }]",
        "stage.zero.steps=3",
    ];
    world.finish("run", &sets).await;
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let is_known = view.prompt_id(row) != "p0";
        assert_eq!(view.reward_part(0, row).is_some(), is_known, "{:?}", view.reward_error(row));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_without_a_reward_or_a_weight_end_the_stage_before_it_begins() {
    let world = world();
    let only = "stage.zero.rewards=[{ kind = \"math\", sources = [\"sums\"] }]";
    for (sets, want) in [
        (vec![PROMPTS, only], "no reward is for the prompt `p8`, which is from `chat`"),
        (
            vec![PROMPTS, only, "stage.zero.source_weights={ sums = 1 }"],
            "no reward is for the prompt `p8`",
        ),
        (
            vec![PROMPTS, "stage.zero.source_weights={ sums = 1 }"],
            "`p8` is from `chat`, which has no weight in `source_weights`",
        ),
        (
            vec![
                PROMPTS,
                "stage.zero.source_weights={ chat = 1 }",
                "stage.zero.prompts_per_step=5",
            ],
            "`p0` is from `sums`, which has no weight",
        ),
    ] {
        let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
        let message = outcome.error().to_string();
        assert!(message.contains(want), "{message}");
        fs_err::remove_dir_all(world.dir("run").root()).unwrap();
    }
}

/// A run's prompts have pass rates that a naive copy of the rule follows: by the rows alone.
struct Rates {
    rates: BTreeMap<String, f64>,
    momentum: f64,
    band: [f64; 2],
}

impl Rates {
    fn is_in(&self, prompt: &str) -> bool {
        let rate = self.rates[prompt];
        self.band[0] <= rate && rate <= self.band[1]
    }
}

/// A reward whose pass rates are known: of four prompts all pass, of four none, of the others those completions that
/// have an even length.
fn graded() -> Server {
    Server::start(|_, request| {
        let prompt: usize =
            request.body["prompt"].as_str().unwrap().trim_end_matches("+1=").parse().unwrap();
        let len = request.body["completion"].as_str().unwrap().len();
        let score = match prompt {
            0..4 => 1,
            4..8 => 0,
            _ => 1 - len % 2,
        };
        Reply::ok(&json!({ "score": score }))
    })
}

/// What the table says of each step: the share of each prompt's completions that passed.
fn shares(world: &World, name: &str) -> BTreeMap<u64, BTreeMap<String, f64>> {
    let mut steps: BTreeMap<u64, BTreeMap<String, f64>> = BTreeMap::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        let share = steps.entry(view.step(row)).or_default();
        let share = share.entry(view.prompt_id(row).to_owned()).or_default();
        *share += view.reward_part(0, row).unwrap() / 4.0;
    });
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_drawn_by_the_pass_rate_that_was_measured() {
    let server = graded();
    let world = World::new();
    let rewards = format!("stage.zero.rewards=[{{ kind = \"http\", url = \"{}/\" }}]", server.url);
    let curriculum = "stage.zero.curriculum={ band = [0.2, 0.8], rewards = [\"http\"], momentum = 0.25, \
                      revisit_share = 0.25 }";
    let sets = [rewards.as_str(), curriculum, "stage.zero.steps=12"];
    let outcome = world.finish("run", &sets).await;
    let rates = (0..12).map(|i| (format!("p{i}"), 0.5)).collect();
    let mut rates = Rates { rates, momentum: 0.25, band: [0.2, 0.8] };
    let metrics: BTreeMap<u64, _> = outcome.steps("zero").into_iter().collect();
    let mut came_back = 0;
    for (step, shares) in shares(&world, "run") {
        assert_eq!(shares.len(), 4, "step {step}");
        let inside = shares.keys().filter(|prompt| rates.is_in(prompt)).count();
        let in_band = rates.rates.keys().filter(|prompt| rates.is_in(prompt)).count();
        let outside = 12 - in_band;
        // One of four comes back, where one is outside; the band gives the rest, as far as it goes.
        assert_eq!(inside, in_band.min(4 - 1.min(outside)), "step {step}: {shares:?}");
        came_back += usize::from(inside < 4 && in_band >= 4);
        assert_eq!(metrics[&step]["in_band_share"], inside as f64 / 4.0);
        let mean = shares.values().sum::<f64>() / 4.0;
        assert!((metrics[&step]["pass_rate"] - mean).abs() < 1e-12);
        for (prompt, share) in &shares {
            let rate = rates.rates.get_mut(prompt).unwrap();
            *rate = rates.momentum * *rate + (1.0 - rates.momentum) * share;
        }
        let in_band = rates.rates.keys().filter(|prompt| rates.is_in(prompt)).count();
        assert!((metrics[&step]["all_in_band_share"] - in_band as f64 / 12.0).abs() < 1e-12);
        let mean = rates.rates.values().sum::<f64>() / 12.0;
        assert!((metrics[&step]["all_pass_rate"] - mean).abs() < 1e-12);
    }
    assert!(came_back > 0, "every prompt stayed in the band");
    let plain = world.finish("plain", &[&rewards, "stage.zero.steps=3"]).await;
    assert!(plain.steps("zero").iter().all(|(_, metrics)| !metrics.contains_key("pass_rate")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_curriculum_starts_from_the_rates_of_the_query() {
    let world = World::new();
    // `p4` to `p7` are in the band, the others are too easy.
    let rated = "stage.zero.prompts=\"SELECT id, prompt, answer, CASE WHEN id IN ('p4', 'p5', 'p6', 'p7') \
                   THEN 0.5 ELSE 0.99 END AS pass_rate FROM problems\"";
    let curriculum = "stage.zero.curriculum={ revisit_share = 0 }";
    world.finish("run", &[rated, curriculum, "stage.zero.steps=1"]).await;
    let mut first = prompts(&world, "run").remove(&1).unwrap();
    first.sort();
    assert_eq!(first, ["p4", "p5", "p6", "p7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewards_and_their_least_score_say_what_passed() {
    let world = World::new();
    let means = |outcome: &Outcome, name: &str| -> Vec<f64> {
        outcome.steps("zero").iter().map(|(_, metrics)| metrics[name]).collect()
    };
    let math = world.finish("math", &["stage.zero.curriculum={}"]).await;
    assert_eq!(means(&math, "pass_rate"), means(&math, "reward_math"));
    let regex = world.finish("regex", &["stage.zero.curriculum={ rewards = [\"regex\"] }"]).await;
    assert_eq!(means(&regex, "pass_rate"), means(&regex, "reward_regex"));
    assert!(means(&regex, "pass_rate").iter().any(|rate| *rate > 0.0));
    let strict = ["stage.zero.curriculum={ rewards = [\"regex\"], pass_score = 1.5 }"];
    let strict = world.finish("strict", &strict).await;
    assert!(means(&strict, "pass_rate").iter().all(|rate| *rate == 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn draws_are_reproducible_through_stops_and_faults() {
    let world = world();
    let curriculum = "stage.zero.curriculum={ band = [0.1, 0.6], rewards = [\"math\", \"regex\"], \
                      momentum = 0.3, revisit_share = 0.3 }";
    let sets = [PROMPTS, WEIGHTS, REWARDS, curriculum, "stage.zero.resample_rounds=2"];
    let whole = world.finish("whole", &sets).await;
    let steps = prompts(&world, "whole");
    assert!(steps.values().any(|prompts| prompts.len() > 4), "nothing was replaced");
    for prompts in steps.values() {
        let distinct: BTreeSet<&String> = prompts.iter().collect();
        assert_eq!(distinct.len(), prompts.len());
    }
    world.finish("threads", &[&sets[..], &["run.threads=1", "run.sequences_max=3"]].concat()).await;
    assert_same_run(&world.dir("whole"), &world.dir("threads"));
    for event in 0..whole.events.len() {
        let name = format!("stopped-{event}");
        world.stop_and_resume(&name, event, &sets).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    // A feeder that is spawned anew, and a stage that goes on from its checkpoint of step 2 or 4.
    for (point, step) in [(Point::Feed, 3), (Point::Learn, 4), (Point::Learn, 5)] {
        let name = format!("fault-{point:?}-{step}");
        let has_struck = std::sync::atomic::AtomicBool::new(false);
        let faults = Faults::new(move |at, in_step| {
            let strikes = (at, in_step) == (point, step)
                && !has_struck.swap(true, std::sync::atomic::Ordering::Relaxed);
            if strikes {
                return Err(Error::Environment { message: "injected".to_owned() });
            }
            Ok(())
        });
        world.run(&name, How { sets: &sets, faults, ..How::default() }).await.result.unwrap();
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    let other = world.finish("seed", &[&sets[..], &["run.seed=6"]].concat()).await;
    assert!(!other.events.is_empty());
    assert_ne!(prompts(&world, "seed"), steps);
}
