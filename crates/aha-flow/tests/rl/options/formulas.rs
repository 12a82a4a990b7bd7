//! What reaches the rows and the loss of a stage `rl` is what the formulas say: second versions of them, of the tables.

use std::collections::BTreeMap;

use aha_rollout::view::RolloutsView;
use serde_json::json;

use super::learning::STAGE;
use super::{MODELS, problems, run};
use crate::actors::Actors;
use crate::server::{Reply, Server};
use crate::world::{HOPELESS, Outcome, World, each_rollout};

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
