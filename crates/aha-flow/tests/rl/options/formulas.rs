//! What reaches the rows and the loss of a stage `rl` is what the formulas say: second versions of them, of the tables.

use std::collections::BTreeMap;

use aha_rollout::view::RolloutsView;
use serde_json::json;

use super::learning::STAGE;
use super::{MODELS, problems, run};
use crate::actors::Actors;
use crate::server::{Reply, Server};
use crate::world::{HOPELESS, Outcome, World, each_rollout, metrics};

fn world() -> World {
    let world = World::with(&problems());
    world.write_pipeline(&format!("{MODELS}{STAGE}"));
    world
}

/// The estimates `logp - ref` of each token of each row of the table, with what `look` finds in the row. The reference
/// is the model that the stage began with, asked sequence by sequence.
async fn with_estimates<T>(
    world: &World,
    (name, sets): (&str, &[&str]),
    look: impl Fn(&RolloutsView<'_>, usize) -> T,
) -> Vec<(T, Vec<f64>)> {
    world.finish(name, sets).await;
    let reference = Actors::new(world, sets).await.models().load("blank").await.unwrap().model;
    let mut found = Vec::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        let prompt = view.prompt_token_ids(row);
        let sequence = [prompt, view.completion_token_ids(row)].concat();
        let under_reference = &reference.log_probs(&[&sequence]).unwrap()[0][prompt.len() - 1..];
        let own = view.completion_logprobs(row);
        assert_eq!(own.len(), under_reference.len());
        let estimate = |(&logp, &of): (&f32, &f32)| f64::from(logp) - f64::from(of);
        found.push((look(view, row), own.iter().zip(under_reference).map(estimate).collect()));
    });
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn kl_in_the_reward_is_taken_off_each_completion() {
    let world = world();
    let sets = ["stage.zero.objective={ preset = 'rloo', kl = 0.5 }"];
    let rows = with_estimates(&world, ("run", &sets), |view, row| {
        let group = (view.step(row), view.prompt_id(row).to_owned());
        (group, view.reward(row).unwrap(), view.advantage(row).unwrap())
    })
    .await;
    let mut groups: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    let mut kl_most: f64 = 0.0;
    for ((group, reward, advantage), estimates) in rows {
        let kl = 0.5 * estimates.iter().sum::<f64>();
        kl_most = kl_most.max(kl.abs());
        groups.entry(group).or_default().push((reward - kl, advantage));
    }
    assert!(kl_most > 0.1 && groups.len() == 12, "{kl_most}");
    for (group, rows) in &groups {
        let sum: f64 = rows.iter().map(|(reward, _)| reward).sum();
        for (reward, advantage) in rows {
            // Against the mean of the three others.
            let want = reward - (sum - reward) / 3.0;
            assert!((advantage - want).abs() < 1e-5, "{group:?}: {advantage} {want}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kl_in_the_reward_is_taken_off_each_token_where_there_is_a_critic() {
    let world = world();
    let sets = [
        "stage.zero.objective={ preset = 'ppo', kl = 0.5, gamma = 0.9, lambda = 0.8, advantage_scale = 'none' }",
        "stage.zero.critic={ optimizer = { lr = 1e-2 } }",
    ];
    let rows = with_estimates(&world, ("run", &sets), |view, row| {
        let floats =
            |x: Option<&[f32]>| -> Vec<f64> { x.unwrap().iter().map(|&x| f64::from(x)).collect() };
        let values = floats(view.completion_values(row));
        (view.reward(row).unwrap(), values, floats(view.completion_advantages(row)))
    })
    .await;
    let mut kl_most: f64 = 0.0;
    for ((reward, values, advantages), estimates) in rows {
        let len = values.len();
        let delta = |t: usize| {
            let (last, next) = if t + 1 == len { (reward, 0.0) } else { (0.0, values[t + 1]) };
            last - 0.5 * estimates[t] + 0.9 * next - values[t]
        };
        for (t, found) in advantages.iter().enumerate() {
            let want: f64 = (t..len).map(|s| 0.72_f64.powi((s - t) as i32) * delta(s)).sum();
            assert!((found - want).abs() < 1e-5, "{found} {want}");
        }
        kl_most = estimates.iter().fold(kl_most, |most, kl| most.max(kl.abs()));
    }
    assert!(kl_most > 0.1, "{kl_most}");
}

/// The rows of the first step that count, as (advantage, tokens), and the step's loss.
fn first_step(world: &World, name: &str, outcome: &Outcome) -> (Vec<(f64, f64)>, f64) {
    let mut rows = Vec::new();
    each_rollout(&world.dir(name), "zero", |view, row| {
        if view.step(row) == 1 {
            let len = view.completion_token_ids(row).len() as f64;
            rows.push((view.advantage(row).unwrap(), len));
        }
    });
    (rows, outcome.steps("zero")[0].1["loss"])
}

/// Goal: the divisors of a loss are those of its aggregation, over two minibatches. Method: a learning rate at which no
/// bit of a weight changes, so that all ratios are one; the loss is then that of the advantages, here the rewards, and
/// its mean over the minibatches the same whatever completions each of them has, where each is divided alike.
#[tokio::test(flavor = "multi_thread")]
async fn the_loss_is_divided_as_its_aggregation_says() {
    let world = world();
    for aggregation in ["rollout_token_mean", "sequence_mean", "constant"] {
        let sets = [
            format!("stage.zero.objective={{ kl = 0.0, aggregation = '{aggregation}' }}"),
            "stage.zero.objective.advantage_baseline=none".to_owned(),
            "stage.zero.objective.advantage_scale=none".to_owned(),
            "stage.zero.optimizer={ lr = 1e-30, eps = 1.0 }".to_owned(),
            "stage.zero.inner_epochs=1".to_owned(),
            "stage.zero.steps=1".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let outcome = world.finish(aggregation, &sets).await;
        let (rows, loss) = first_step(&world, aggregation, &outcome);
        let tokens: f64 = rows.iter().map(|(_, len)| len).sum();
        let share = |len: f64| match aggregation {
            "rollout_token_mean" => len / tokens,
            "sequence_mean" => 1.0 / rows.len() as f64,
            _ => len / 6.0 / rows.len() as f64,
        };
        let want = -rows.iter().map(|&(advantage, len)| advantage * share(len)).sum::<f64>();
        assert!((loss - want).abs() < 1e-6, "{aggregation}: {loss} {want}");
        assert!(want < -1e-2, "a loss of 0 says nothing");
    }
}

/// Goal: a group whose rewards are all equal still has its terms of KL, entropy and divergence. Method: no completion
/// gets a reward; rows are trained on and weights move only where there is such a term.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_signal_is_trained_on_for_its_other_terms() {
    let world = world();
    for (name, set, is_trained) in [
        ("none", "stage.zero.objective.kl=0.0", false),
        ("kl", "stage.zero.objective.kl=0.5", true),
        ("reward", "stage.zero.objective={ kl = 0.5, kl_in_reward = true }", false),
        ("entropy", "stage.zero.objective={ kl = 0.0, entropy = 0.1 }", true),
    ] {
        let outcome = world.finish(name, &[HOPELESS, set, "stage.zero.steps=1"]).await;
        each_rollout(&world.dir(name), "zero", |view, row| {
            assert_eq!(view.is_trained(row), is_trained, "{name}");
        });
        assert_eq!(outcome.steps("zero")[0].1.contains_key("loss"), is_trained, "{name}");
    }
    let taught = ["stage.zero.objective={ kl = 0.0, distill = 1.0 }", "stage.zero.teacher=sage"];
    world.finish("taught", &[&taught[..], &[HOPELESS, "stage.zero.steps=1"]].concat()).await;
    each_rollout(&world.dir("taught"), "zero", |view, row| assert!(view.is_trained(row)));
}

/// Goal: the rule for a completion that alone of its group has a reward reaches the rows. Method: a service that scores
/// no completion but the first of each prompt; its advantage is 0, or its reward divided as by a deviation of 1.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_completion_has_the_advantage_that_is_set() {
    let asked = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let server = Server::start(move |_, request| {
        let prompt = request.body["prompt"].as_str().unwrap().to_owned();
        let is_first = asked.lock().unwrap().insert(prompt);
        Reply::ok(&if is_first { json!({"score": 2.0}) } else { json!({"score": null}) })
    });
    let world = world();
    let rewards = format!("stage.zero.rewards=[{{ kind = 'http', url = '{}/' }}]", server.url);
    let rule = "stage.zero.objective={ advantage_single = 'reward', advantage_eps = 1.0 }";
    let sets = [rewards, rule.to_owned(), "stage.zero.steps=1".to_owned()];
    run(&world, "reward", &sets).await.unwrap();
    let mut count = 0;
    each_rollout(&world.dir("reward"), "zero", |view, row| {
        assert_eq!(view.advantage(row), view.reward(row).map(|_| 1.0));
        count += usize::from(view.reward(row).is_some());
    });
    assert_eq!(count, 4);
}

/// Goal: sampler, learner and reference all take log-probs at the temperature that tokens are drawn at. Method: on the
/// first step of a stage policy and reference are what was sampled from, so that ratios are one and KL is 0 exactly, in
/// the loss and in the reward.
#[tokio::test(flavor = "multi_thread")]
async fn log_probs_are_those_at_the_temperature_of_the_draws() {
    let world = world();
    for (name, in_reward) in [("loss", "false"), ("reward", "true")] {
        let sets = [
            "stage.zero.sampling.temperature=0.7".to_owned(),
            format!("stage.zero.objective.kl_in_reward={in_reward}"),
            "stage.zero.minibatches=1".to_owned(),
            "stage.zero.inner_epochs=1".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let outcome = world.finish(name, &sets).await;
        let steps = outcome.steps("zero");
        assert_eq!(steps[0].1["kl"], 0.0, "{name}");
        assert!(steps[1].1["kl"] != 0.0, "{name}");
        for (step, metrics) in steps {
            assert_eq!((metrics["ratio_max"], metrics["ratio_mean"]), (1.0, 1.0), "{name} {step}");
        }
    }
}

/// What a row says of what is measured.
struct Row {
    step: i64,
    prompt_id: String,
    reward: f64,
    parts: [f64; 2],
    is_trained: bool,
    is_cut: bool,
}

/// One optimizer step in each, so that the weights are still those that sampled.
const ONCE: [&str; 3] =
    ["stage.zero.objective={ kl = 0.5 }", "stage.zero.minibatches=1", "stage.zero.inner_epochs=1"];

/// The measures of each step.
fn measures(world: &World, name: &str) -> BTreeMap<(i64, String), f64> {
    let found = metrics(&world.dir(name)).into_iter();
    found.map(|(_, step, name, bits)| ((step, name), f64::from_bits(bits))).collect()
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured_of_a_step_is_what_its_rows_say() {
    let world = world();
    let rows = with_estimates(&world, ("run", &ONCE), |view, row| Row {
        step: view.step(row) as i64,
        prompt_id: view.prompt_id(row).to_owned(),
        reward: view.reward(row).unwrap(),
        parts: [0, 1].map(|part| view.reward_part(part, row).unwrap()),
        is_trained: view.is_trained(row),
        is_cut: view.finish_reason(row) == "length",
    })
    .await;
    let found = measures(&world, "run");
    let share = |is_so: bool| f64::from(u8::from(is_so));
    for step in 1..=3 {
        let of_step = || rows.iter().filter(move |(row, _)| row.step == step);
        let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        of_step().for_each(|(row, _)| groups.entry(&row.prompt_id).or_default().push(row.reward));
        let equal = |rewards: &Vec<f64>| share(rewards.iter().all(|r| *r == rewards[0]));
        let trained = of_step().filter(|(row, _)| row.is_trained).flat_map(|(_, d)| d);
        let want = [
            ("reward", mean(of_step().map(|(row, _)| row.reward))),
            ("reward_regex", mean(of_step().map(|(row, _)| row.parts[0]))),
            ("reward_math", mean(of_step().map(|(row, _)| row.parts[1]))),
            ("completion_len_tokens", mean(of_step().map(|(_, d)| d.len() as f64))),
            ("truncated_share", mean(of_step().map(|(row, _)| share(row.is_cut)))),
            ("no_signal_share", mean(groups.values().map(equal))),
            ("kl", mean(trained.map(|d| (-d).exp() + d - 1.0))),
        ];
        for (name, want) in want {
            let found = found[&(step, name.to_owned())];
            assert!((found - want).abs() < 1e-6, "{step} {name}: {found}, expected {want}");
        }
    }
    let cut = |row: &Row| row.is_cut;
    assert!(rows.iter().any(|(row, _)| cut(row)) && rows.iter().any(|(row, _)| !cut(row)));
    assert!(found[&(3, "kl".to_owned())] > 1e-4, "KL of 0 says nothing");
}

/// Goal: the entropy that is shown is that of the policy where it was trained on. Method: the log-prob of every token
/// of the vocabulary behind every beginning of every completion.
#[tokio::test(flavor = "multi_thread")]
async fn entropy_is_that_of_the_distributions_that_tokens_were_drawn_from() {
    let world = world();
    let sets = [&ONCE[..], &["stage.zero.steps=1"]].concat();
    world.finish("run", &sets).await;
    let policy = Actors::new(&world, &sets).await.models().load("blank").await.unwrap().model;
    let mut entropies = Vec::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let prompt = view.prompt_token_ids(row);
        let sequence = [prompt, view.completion_token_ids(row)].concat();
        for end in prompt.len()..sequence.len() {
            let vocabulary = 0..policy.config().vocab_size as u32;
            let next: Vec<Vec<u32>> =
                vocabulary.map(|id| [&sequence[..end], &[id]].concat()).collect();
            let next: Vec<&[u32]> = next.iter().map(Vec::as_slice).collect();
            let log_probs = policy.log_probs(&next).unwrap();
            let log_probs = log_probs.iter().map(|of| f64::from(*of.last().unwrap()));
            entropies.push(-log_probs.map(|p| p * p.exp()).sum::<f64>());
        }
    });
    let want = mean(entropies.iter().copied());
    let found = measures(&world, "run")[&(1, "entropy".to_owned())];
    assert!(want > 0.1 && (found - want).abs() < 1e-5, "{found}, expected {want}");
}

/// Goal: shares of clipped tokens are told of the side that they are clipped on, and ratios are those of tokens.
/// Method: several optimizer steps a step, with a bound on one side only.
#[tokio::test(flavor = "multi_thread")]
async fn clipped_shares_are_of_their_side() {
    let world = world();
    for (name, bounds, side, other) in [
        ("low", "clip_low = 0.0, clip_high = 1000.0", "clip_low_share", "clip_high_share"),
        ("high", "clip_low = 1.0, clip_high = 0.0", "clip_high_share", "clip_low_share"),
    ] {
        let set = format!("stage.zero.objective={{ kl = 0.0, {bounds} }}");
        world.finish(name, &[&set]).await;
        let found = measures(&world, name);
        let of = |name: &str| -> Vec<f64> {
            (1..=3).filter_map(|step| found.get(&(step, name.to_owned())).copied()).collect()
        };
        assert!(of(side).iter().any(|&share| share > 0.0), "{name}: {:?}", of(side));
        assert!(of(other).iter().all(|&share| share == 0.0), "{name}: {:?}", of(other));
        let (most, mean) = (of("ratio_max"), of("ratio_mean"));
        assert!(most.iter().zip(mean).any(|(&most, mean)| most > 1.0 && mean < most), "{name}");
    }
}
