//! PPO: a critic beside the policy, advantages of tokens, and what both are told by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_flow::Error;
use aha_flow::progress::nobody;
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::rl::train;
use aha_learn::learner::Learner as Engine;

use crate::actors::{Actors, groups};
use crate::world::{How, Outcome, World, assert_same_run, each_rollout, metrics};

const PPO: &str = "stage.zero.objective={ preset = \"ppo\" }";
/// Rates at which six steps show, and several optimizer steps a step.
const FAST: [&str; 5] = [
    PPO,
    "stage.zero.critic.optimizer.lr=1e-2",
    "stage.zero.optimizer.lr=1e-2",
    "stage.zero.minibatches=2",
    "stage.zero.inner_epochs=2",
];
/// A reward that some completions get and others don't.
const SPREAD: &str = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[0-4]\" }]";

/// Completions of six tokens are cut off, and nothing else is said.
#[track_caller]
fn assert_no_idle_steps(outcome: &Outcome) {
    let mut others =
        outcome.warnings().into_iter().filter(|(text, _)| !text.contains("token limit"));
    assert_eq!(others.next(), None);
}

fn of_steps(outcome: &Outcome, name: &str) -> Vec<f64> {
    outcome.steps("zero").iter().filter_map(|(_, m)| m.get(name).copied()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critic_learns_and_every_token_has_its_advantage() {
    let world = World::new();
    let outcome = world.finish("run", &FAST).await;
    let losses = of_steps(&outcome, "value_loss");
    assert!(losses.len() == 6 && losses[5] < losses[0], "{losses:?}");
    for name in [
        "value_clip_share",
        "explained_variance",
        "returns_mean",
        "value_mean",
        "critic_grad_norm",
        "critic_lr",
        "loss",
        "kl",
    ] {
        assert_eq!(of_steps(&outcome, name).len(), 6, "{name}");
    }
    // It expects nothing at first.
    assert_eq!(of_steps(&outcome, "value_mean")[0], 0.0);
    assert!(of_steps(&outcome, "value_mean")[5] != 0.0);
    assert!(of_steps(&outcome, "no_signal_share").iter().all(|&share| share == 0.0));
    // Whitened over the tokens of each step.
    let mut tokens: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let advantages = view.completion_advantages(row).unwrap();
        assert!(view.is_trained(row));
        assert_eq!(view.completion_values(row).unwrap().len(), advantages.len());
        let mean = advantages.iter().map(|&a| f64::from(a)).sum::<f64>() / advantages.len() as f64;
        assert!((view.advantage(row).unwrap() - mean).abs() < 1e-9);
        let step = tokens.entry(view.step(row)).or_default();
        step.extend(advantages.iter().map(|&a| f64::from(a)));
    });
    assert_eq!(tokens.len(), 6);
    for (step, all) in tokens {
        let count = all.len() as f64;
        let mean = all.iter().sum::<f64>() / count;
        let var = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (count - 1.0);
        assert!(mean.abs() < 1e-5 && (var - 1.0).abs() < 1e-4, "step {step}: {mean} {var}");
    }
}

/// Goal: the rows' advantages are those of rewards, penalties and values by the formulas. Method: the sum over deltas
/// in f64, of what the table has; with lambda 1 and without a reference the returns are the rewards.
#[tokio::test(flavor = "multi_thread")]
async fn advantages_in_the_table_are_those_of_the_formula() {
    let world = World::new();
    let objective = "stage.zero.objective={ preset = \"ppo\", kl = 0, gamma = 0.9, lambda = 0.8, \
                     advantage_scale = \"none\" }";
    let sets = [&FAST[1..], &[objective]].concat();
    let outcome = world.finish("run", &sets).await;
    let mut count = 0;
    let mut tokens: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let values: Vec<f64> =
            view.completion_values(row).unwrap().iter().map(|&v| f64::from(v)).collect();
        let reward = view.reward(row).unwrap();
        let delta = |t: usize| match values.get(t + 1) {
            Some(next) => 0.9 * next - values[t],
            None => reward - values[t],
        };
        for (t, &found) in view.completion_advantages(row).unwrap().iter().enumerate() {
            let want: f64 =
                (t..values.len()).map(|s| (0.9_f64 * 0.8).powi((s - t) as i32) * delta(s)).sum();
            assert!((f64::from(found) - want).abs() < 1e-5, "{found} {want}");
            tokens.entry(view.step(row)).or_default().push((values[t], want));
            count += 1;
        }
    });
    assert!(count > 300, "{count}");
    for (step, metrics) in outcome.steps("zero") {
        let (values, advantages): (Vec<f64>, Vec<f64>) = tokens[&step].iter().copied().unzip();
        let returns: Vec<f64> = values.iter().zip(&advantages).map(|(v, a)| v + a).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let var = |x: &[f64]| mean(&x.iter().map(|y| (y - mean(x)).powi(2)).collect::<Vec<_>>());
        for (name, want) in [
            ("value_mean", mean(&values)),
            ("returns_mean", mean(&returns)),
            ("explained_variance", 1.0 - var(&advantages) / var(&returns)),
        ] {
            let found = metrics[name];
            assert!((found - want).abs() < 1e-4, "{step} {name}: {found}, expected {want}");
        }
    }
}

/// Goal: what is measured of a critic's optimizer steps is their mean. Method: a rate at which no bit of a weight
/// changes, so that all steps of a step are alike, and the loss is that of what the table has.
#[tokio::test(flavor = "multi_thread")]
async fn measures_of_a_critic_are_means_over_its_optimizer_steps() {
    let world = World::new();
    let objective = "stage.zero.objective={ preset = \"ppo\", kl = 0, advantage_scale = \"none\" }";
    let rests = "stage.zero.critic={ optimizer = { lr = 1e-30, eps = 1.0 } }";
    let mut norms = Vec::new();
    for epochs in ["stage.zero.inner_epochs=1", "stage.zero.inner_epochs=2"] {
        let sets = [objective, rests, epochs, SPREAD, "stage.zero.steps=2"];
        let outcome = world.finish(epochs, &sets).await;
        let mut squares: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        each_rollout(&world.dir(epochs), "zero", |view, row| {
            let advantages = view.completion_advantages(row).unwrap();
            let halves = advantages.iter().map(|&a| 0.5 * f64::from(a) * f64::from(a));
            squares.entry(view.step(row)).or_default().extend(halves);
        });
        for (step, metrics) in outcome.steps("zero") {
            let of_step = &squares[&step];
            let want = of_step.iter().sum::<f64>() / of_step.len() as f64;
            let found = metrics["value_loss"];
            assert!(want > 0.01 && (found - want).abs() < 1e-5, "{step}: {found} {want}");
            assert_eq!(metrics["critic_lr"], 1e-30);
        }
        norms.push(of_steps(&outcome, "critic_grad_norm")[0]);
    }
    assert!(norms[0] > 0.0 && (norms[1] / norms[0] - 1.0).abs() < 1e-9, "{norms:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_and_batch_limits_change_no_bit() {
    let world = World::new();
    world.finish("whole", &FAST).await;
    let others: [&[&str]; 3] = [
        &["run.threads=1"],
        &["run.sequences_max=1", "run.kv_cache='1MiB'"],
        &["stage.zero.micro_batch_tokens=14", "stage.zero.activation_checkpointing=true"],
    ];
    for (idx, other) in others.iter().enumerate() {
        let name = format!("other-{idx}");
        world.finish(&name, &[&FAST, *other].concat()).await;
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
}

/// The policy and the critic both go on with their weights and moments: whatever of either were lost would show in the
/// measures, the values and the weights of later steps.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let world = World::new();
    let sets = [&FAST[..], &["stage.zero.critic.warmup_steps=2"]].concat();
    let whole = world.finish("whole", &sets).await;
    let mut stopped_count = 0;
    for event in 0..whole.events.len() {
        let name = format!("stopped-{event}");
        stopped_count += usize::from(world.stop_and_resume(&name, event, &sets).await);
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    assert!(stopped_count >= 4, "{stopped_count} of {} events", whole.events.len());
    let checkpoint = world.dir("whole").checkpoints("zero").join("step-000004");
    assert!(checkpoint.join("critic/model.safetensors").is_file());
    assert!(checkpoint.join("critic_optimizer.safetensors").is_file());
}

/// Before the first checkpoint the critic is made anew, and after it read.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_goes_on_after_a_failure_ends_with_the_same_bits() {
    let world = World::new();
    world.finish("whole", &FAST).await;
    for (point, step) in [(Point::Learn, 1), (Point::Learn, 4), (Point::Checkpoint, 4)] {
        let name = format!("fault-{point:?}-{step}");
        let has_struck = AtomicBool::new(false);
        let faults = Faults::new(move |at, at_step| {
            if (at, at_step) != (point, step) || has_struck.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            Err(Error::Environment { message: "injected".to_owned() })
        });
        let how = How { sets: &FAST, faults, ..How::default() };
        world.run(&name, how).await.result.unwrap();
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_critic_learns_alone_before_the_policy_moves() {
    let world = World::new();
    let sets = [&FAST[..], &["stage.zero.critic.warmup_steps=2"]].concat();
    let outcome = world.finish("run", &sets).await;
    assert_eq!(of_steps(&outcome, "policy_version"), [0.0, 0.0, 4.0, 8.0, 12.0, 16.0]);
    assert_eq!(of_steps(&outcome, "value_loss").len(), 6);
    assert_eq!(of_steps(&outcome, "loss").len(), 4);
    assert_no_idle_steps(&outcome);
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let is_warmup = view.step(row) <= 2;
        assert_eq!(view.is_trained(row), !is_warmup);
        assert_eq!(view.skip_reason(row), is_warmup.then_some("critic_warmup"));
        assert!(view.completion_advantages(row).is_some());
        assert_eq!(view.policy_version(row), view.step(row).saturating_sub(3) * 4);
    });
}

/// The measures of two steps but for those of the clock.
async fn two_steps(world: &World, name: &str, sets: &[&str]) -> Vec<(String, i64, String, u64)> {
    world.finish(name, &[&["stage.zero.steps=2"], &FAST[..], sets].concat()).await;
    metrics(&world.dir(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_option_of_critic_and_advantages_changes_the_result() {
    let world = World::new();
    let plain = two_steps(&world, "plain", &[]).await;
    let objective = |more: &str| format!("stage.zero.objective={{ preset = \"ppo\", {more} }}");
    let sets = [
        objective("gamma = 0.9"),
        objective("lambda = 1"),
        objective("value_clip = 0.01"),
        objective("value_clip = false"),
        objective("advantage_scale = \"none\""),
        objective("advantage_std = \"population\""),
        objective("advantage_eps = 0.5"),
        objective("kl = 0.5"),
        objective("kl_in_reward = false"),
        "stage.zero.critic.warmup_steps=1".to_owned(),
        "stage.zero.critic.optimizer.lr=1e-3".to_owned(),
        "stage.zero.critic.grad_clip=0.01".to_owned(),
        "stage.zero.critic.optimizer.schedule.warmup_steps=3".to_owned(),
    ];
    for (idx, set) in sets.iter().enumerate() {
        assert_ne!(two_steps(&world, &format!("run-{idx}"), &[set]).await, plain, "{set}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_will_do_and_replaced_groups_are_not_asked_about() {
    let world = World::new();
    let sets = [&FAST[..], &["stage.zero.group_size=1", "stage.zero.prompts_per_step=8"]].concat();
    let outcome = world.finish("one", &sets).await;
    assert_eq!(of_steps(&outcome, "value_loss").len(), 6);
    assert_no_idle_steps(&outcome);
    let mut count = 0;
    each_rollout(&world.dir("one"), "zero", |view, row| count += usize::from(view.is_trained(row)));
    assert_eq!(count, 48);
    let rare = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[67]\" }]";
    let sets = [&FAST[..], &[rare, "stage.zero.resample_rounds=3"]].concat();
    world.finish("replaced", &sets).await;
    let (mut replaced, mut kept) = (0, 0);
    each_rollout(&world.dir("replaced"), "zero", |view, row| {
        let is_kept = view.is_trained(row);
        assert_eq!(view.completion_advantages(row).is_some(), is_kept);
        (replaced, kept) = (replaced + usize::from(!is_kept), kept + usize::from(is_kept));
    });
    assert!(replaced > 0 && kept > 0, "{replaced} {kept}");
}

/// A reward model goes on with its head, a language model gets a new one, and both learn.
#[tokio::test(flavor = "multi_thread")]
async fn a_critic_may_begin_as_another_model() {
    let world = World::new();
    world.append(
        r#"
[[stage]]
name = "prefers"
kind = "reward-model"
model = "blank"
data = "SELECT prompt, answer AS chosen, prompt AS rejected FROM problems"
max_steps = 2
optimizer = { lr = 1e-2 }

[[stage]]
name = "again"
kind = "rl"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 2
prompts_per_step = 4
group_size = 2
sampling = { max_tokens = 6 }
objective = { preset = "ppo" }
critic = { model = "prefers" }
optimizer = { lr = 1e-3 }
rewards = [{ kind = "regex", pattern = "[0-3]$" }]
"#,
    );
    let sets = ["stage.zero.steps=2"];
    let outcome = world.finish("run", &sets).await;
    let value = |outcome: &Outcome| outcome.steps("again")[0].1["value_mean"];
    assert_ne!(value(&outcome), 0.0);
    for (name, model) in [("language", "zero"), ("own", "blank")] {
        let set = format!("stage.again.critic.model={model}");
        let outcome = world.finish(name, &[&sets[..], &[&set]].concat()).await;
        assert_eq!(value(&outcome), 0.0, "{name}");
        assert!(outcome.steps("again")[1].1["value_mean"] != 0.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critic_that_reads_other_tokens_is_refused() {
    let world = World::new();
    let other = "models.other={ init = \"random\", hidden_size = 32, intermediate_size = 48, layers = 1, heads = 2, \
                 kv_heads = 1, head_dim = 16, max_position_embeddings = 64, tokenizer = { train = \
                 \"SELECT 'abcdefghijkl mnopq' AS text FROM problems\", vocab_size = 24, alphabet = \"seen\" } }";
    let sets = [PPO, other, "stage.zero.critic.model=other"];
    let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
    let error = outcome.error().to_string();
    assert!(error.contains("`other` has another tokenizer"), "{error}");
}

/// Trains one step with a critic whose head has `number` in it.
async fn train_with(number: f32) -> (Result<train::Trained, Error>, Engine) {
    let world = World::new();
    world.finish("run", &["stage.zero.steps=1"]).await;
    let actors = Actors::new(&world, &["stage.zero.objective={ preset = \"ppo\", kl = 0 }"]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let mut engine = Engine::new(Arc::clone(&base.model));
    let mut critic = base.model.to_critic().unwrap();
    let head = critic.params().find("score.weight").unwrap();
    critic.params_mut().value_mut(head).as_mut_slice()[0] = number;
    engine.set_critic(Some(Engine::new(Arc::new(critic))));
    let groups = groups(&world.dir("run"), shared.scorer.names(), |x| x);
    let trained = train::train(&mut engine, &shared, 1, &groups, 0, &Default::default());
    (trained, engine)
}

/// A gradient that overflows changes no weight of the critic, and one whose weights are no numbers ends the step.
#[tokio::test(flavor = "multi_thread")]
async fn a_critic_that_gives_no_numbers_is_noticed() {
    let (trained, engine) = train_with(1e38).await;
    assert_eq!(trained.unwrap().facts.nan_batches, 1);
    assert_eq!(engine.critic().unwrap().version(), 0);
    let (trained, engine) = train_with(f32::NAN).await;
    let error = trained.err().unwrap().to_string();
    assert!(error.contains("the critic's weights are not finite"), "{error}");
    assert_eq!(engine.version(), 0);
}

/// Goal: PPO learns. Method: the reward is a completion's first character, which many get by chance; the mean over the
/// last steps is above that of the first ones, with weights that begin as noise.
#[tokio::test(flavor = "multi_thread")]
async fn ppo_gets_more_reward() {
    let world = World::new();
    let sets = [
        &FAST[..],
        &[
            SPREAD,
            "stage.zero.steps=20",
            "stage.zero.critic.warmup_steps=2",
            "stage.zero.objective.kl=0",
        ],
    ]
    .concat();
    let outcome = world.finish("run", &sets).await;
    let rewards = of_steps(&outcome, "reward");
    let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len() as f64;
    let (first, last) = (mean(&rewards[..3]), mean(&rewards[17..]));
    assert!(last > first + 0.2, "{rewards:?}");
}
