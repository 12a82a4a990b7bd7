//! The learning rate follows the plan of the stage, whatever its steps give.

use std::sync::Arc;

use aha_flow::progress::nobody;
use aha_flow::rl::fault::Faults;
use aha_flow::rl::train;
use aha_learn::learner::Learner as Engine;

use crate::actors::{Actors, groups};
use crate::world::{HOPELESS, World};

/// From 1e-3 in a straight line to nothing.
const LINEAR: &str = "stage.zero.optimizer={ lr = 1e-3, schedule = { kind = \"linear\" } }";

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_train_on_nothing_take_their_place_in_the_schedule() {
    let world = World::new();
    let sets = [LINEAR, HOPELESS, "stage.zero.objective.kl=0"];
    let outcome = world.finish("run", &sets).await;
    for (step, metrics) in outcome.steps("zero") {
        assert_eq!(metrics["policy_version"], 0.0, "step {step}");
        let wanted = 1e-3 * (7 - step) as f64 / 6.0;
        assert!((metrics["lr"] - wanted).abs() < 1e-12, "step {step}: {}", metrics["lr"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_learning_rate_of_a_minibatch_is_that_of_its_place_in_the_stage() {
    let world = World::new();
    world.finish("run", &[]).await;
    let sets = [LINEAR, "stage.zero.minibatches=2", "stage.zero.inner_epochs=2"];
    let actors = Actors::new(&world, &sets).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    // Six steps of two passes of two minibatches.
    let lr = |done: u32| 1e-3 * f64::from(24 - done) / 24.0;
    for (address, done) in [((1, 0, 0), 0), ((1, 0, 1), 1), ((1, 1, 0), 2), ((4, 1, 1), 15)] {
        let (step, epoch, minibatch) = address;
        let found = shared.learning_rate(step, epoch, minibatch);
        assert!((found - lr(done)).abs() < 1e-12, "{address:?}: {found}");
    }
    // An engine that has made no step, though it is the fourth step of the stage.
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(base.model));
    let groups = groups(&world.dir("run"), shared.scorer.names(), |x| x);
    let trained = train::train(&mut engine, &shared, 4, &groups, 0, &Default::default()).unwrap();
    assert_eq!(engine.version(), 4);
    assert!((trained.metrics["lr"] - lr(15)).abs() < 1e-12, "{}", trained.metrics["lr"]);
}

/// The critic's schedule begins with the stage, and the policy's when it first moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_critic_has_a_schedule_of_its_own() {
    let world = World::new();
    let sets = [
        LINEAR,
        "stage.zero.objective={ preset = \"ppo\" }",
        "stage.zero.critic={ warmup_steps = 2, optimizer = { lr = 1e-2, schedule = { kind = \"linear\" } } }",
    ];
    let outcome = world.finish("run", &sets).await;
    for (step, metrics) in outcome.steps("zero") {
        let left = (7 - step) as f64;
        let policy = if step <= 2 { 0.0 } else { 1e-3 * left / 4.0 };
        for (name, wanted) in [("lr", policy), ("critic_lr", 1e-2 * left / 6.0)] {
            let found = metrics[name];
            assert!((found - wanted).abs() < 1e-12, "step {step}, {name}: {found}");
        }
    }
}
