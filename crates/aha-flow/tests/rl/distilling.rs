//! On-policy distillation: a student that comes close to its teacher, with rewards and without; bits, stops, and
//! teachers that don't fit.

use aha_model::Tokenizer;

use crate::world::{How, World, assert_same_run, assert_same_weights, each_rollout};

/// A step size at which a tiny student moves.
const FAST: &str = "stage.zero.optimizer.lr=1e-2";
const REWARDS: &str = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"[0-3]$\" }]";

#[tokio::test(flavor = "multi_thread")]
async fn a_student_without_rewards_comes_close_to_its_teacher() {
    let world = World::taught();
    let outcome = world.finish("run", &[FAST, "stage.zero.steps=40"]).await;
    let divergences: Vec<f64> =
        outcome.steps("zero").iter().map(|(_, metrics)| metrics["teacher_kl"]).collect();
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (first, last) = (mean(&divergences[..3]), mean(&divergences[37..]));
    assert!(0.0 < last && last < 0.5 * first, "{first}, then {last}: {divergences:?}");
    for (_, metrics) in outcome.steps("zero") {
        // The same sum, but divided before and after it is added up.
        assert!((metrics["loss"] - metrics["teacher_kl"]).abs() < 1e-12, "{metrics:?}");
        assert_eq!(metrics["ratio_max"], 1.0);
        assert!(!metrics.contains_key("reward"), "{metrics:?}");
        assert_eq!(metrics["no_signal_share"], 0.0);
    }
    each_rollout(&world.dir("run"), "zero", |view, row| {
        assert!(view.is_trained(row), "{:?}", view.skip_reason(row));
        assert_eq!((view.reward(row), view.advantage(row)), (None, Some(0.0)));
    });
    let warned = outcome.warnings().iter().any(|(message, _)| message.contains("same reward"));
    assert!(!warned, "{:?}", outcome.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_batch_limits_and_stops_change_no_bit() {
    let world = World::taught();
    let inner = ["stage.zero.minibatches=2", "stage.zero.inner_epochs=2", REWARDS];
    for (idx, base) in [&[][..], &inner].into_iter().enumerate() {
        let whole = format!("whole-{idx}");
        let outcome = world.finish(&whole, base).await;
        let others: [&[&str]; 3] = [
            &["run.threads=1", "stage.zero.micro_batch_tokens=7"],
            &["stage.zero.micro_batch_tokens=33", "stage.zero.activation_checkpointing=true"],
            &["run.sequences_max=5"],
        ];
        for (other, sets) in others.iter().enumerate() {
            let name = format!("other-{idx}-{other}");
            world.finish(&name, &[base, sets].concat()).await;
            assert_same_run(&world.dir(&whole), &world.dir(&name));
        }
        for event in (0..outcome.events.len()).step_by(2) {
            let name = format!("stopped-{idx}-{event}");
            world.stop_and_resume(&name, event, base).await;
            assert_same_run(&world.dir(&whole), &world.dir(&name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rewards_and_a_teacher_are_both_learned_from() {
    let world = World::taught();
    let weights_differ = |a: &str, b: &str| {
        let [a, b] = [a, b].map(|name| {
            fs_err::read(world.dir(name).model("zero").join("model.safetensors")).unwrap()
        });
        a != b
    };
    world.finish("teacher", &[FAST]).await;
    let outcome = world.finish("both", &[FAST, REWARDS]).await;
    for (_, metrics) in outcome.steps("zero") {
        assert!(metrics["teacher_kl"] > 0.0 && metrics.contains_key("reward"), "{metrics:?}");
    }
    world.finish("half", &[FAST, REWARDS, "stage.zero.objective.distill=0.5"]).await;
    assert!(weights_differ("teacher", "both") && weights_differ("both", "half"));
    // Where all rewards are the same there is still the teacher.
    let same = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^\" }]";
    world.finish("same", &[FAST, same]).await;
    assert_same_weights(&world.dir("teacher"), &world.dir("same"));
    each_rollout(&world.dir("same"), "zero", |view, row| assert!(view.is_trained(row)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_that_does_not_fit_is_refused_before_the_first_step() {
    let world = World::taught();
    let other = "models.sage.tokenizer={ train = \"SELECT answer || prompt || '%&' AS text FROM problems\", \
                 vocab_size = 24, alphabet = \"seen\" }";
    let few = "models.sage.max_position_embeddings=8";
    for (name, sets, expected) in [
        ("other", other, "whose tokenizer is another one"),
        ("few", few, "10 tokens: the teacher has 8 positions"),
    ] {
        let outcome = world.run(name, How { sets: &[sets], ..How::default() }).await;
        let error = outcome.error().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(outcome.steps("zero").is_empty());
    }
}

/// A student that has rows for more tokens than its tokenizer may draw one of those, which its teacher has none for.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_teacher_can_not_read_is_left_out() {
    let world = World::taught();
    let sets = ["models.blank.vocab_size=25", "stage.zero.sampling.max_tokens=3"];
    let outcome = world.finish("run", &sets).await;
    // They are no part of the mean either.
    for (step, metrics) in outcome.steps("zero") {
        assert!((metrics["loss"] - metrics["teacher_kl"]).abs() < 1e-12, "{step}: {metrics:?}");
    }
    let tokens = Tokenizer::load(&world.dir("run").model("zero")).unwrap().vocab_len();
    let (mut trained, mut left_out) = (0, 0);
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let is_known = view.completion_token_ids(row).iter().all(|&id| (id as usize) < tokens);
        assert_eq!(view.is_trained(row), is_known);
        if is_known {
            trained += 1;
        } else {
            assert_eq!(view.skip_reason(row), Some("unknown_to_teacher"));
            left_out += 1;
        }
    });
    assert!(trained > 0 && left_out > 0, "{trained} {left_out}");
}
