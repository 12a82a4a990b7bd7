//! How many models a stage holds.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use aha_flow::progress::{Event, Watcher, nobody};
use aha_flow::rl::fault::Faults;
use aha_flow::rl::{self, train};
use aha_flow::stop::Stop;
use aha_learn::learner::Learner as Engine;
use aha_model::Model;

use crate::actors::{Actors, groups};
use crate::world::World;

/// Runs the stage to its end; whether the model that it began with was still held after each step. Where it
/// shouldn't be, whoever is about to let go of it gets the time to.
async fn is_first_model_held(sets: &[&str], is_wanted: fn(u64) -> bool) -> Vec<bool> {
    let world = World::new();
    let actors = Actors::new(&world, sets).await;
    let first: Arc<OnceLock<Weak<Model>>> = Arc::default();
    let held: Arc<Mutex<Vec<bool>>> = Arc::default();
    let watcher: Watcher = {
        let (first, held) = (Arc::clone(&first), Arc::clone(&held));
        Arc::new(move |event| {
            let Event::Step { step, .. } = event else { return };
            let is_held = || first.get().unwrap().strong_count() > 0;
            let until = Instant::now() + Duration::from_secs(5);
            while !is_wanted(step) && is_held() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            held.lock().unwrap().push(is_held());
        })
    };
    let (shared, base) = actors.shared(watcher, Faults::default()).await;
    first.set(Arc::downgrade(&base.model)).unwrap();
    rl::run(shared, base, &actors.models(), &Stop::default()).await.unwrap();
    held.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_without_a_reference_holds_the_model_that_it_trains_and_no_other() {
    let held = is_first_model_held(&["stage.zero.objective.kl=0"], |_| false).await;
    assert_eq!(held, [false; 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_model_is_held_as_long_as_it_is_the_reference() {
    let held = is_first_model_held(&[], |_| true).await;
    assert_eq!(held, [true; 6]);
    let refreshed = ["stage.zero.reference.refresh_every=2"];
    let held = is_first_model_held(&refreshed, |step| step < 2).await;
    assert_eq!(held, [true, false, false, false, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refresh_there_are_the_learners_model_and_the_reference() {
    let world = World::new();
    world.finish("run", &[]).await;
    let actors = Actors::new(&world, &["stage.zero.reference.refresh_every=2"]).await;
    let (shared, base) = actors.shared(nobody(), Faults::default()).await;
    let first = Arc::downgrade(&base.model);
    let mut engine = Engine::new(Arc::clone(&base.model));
    engine.set_reference(Some(base.model));
    let mut reference_version = 0;
    for step in 1..=3 {
        let groups = groups(&world.dir("run"), shared.scorer.names(), |x| x);
        let goes_on = Default::default();
        let trained =
            train::train(&mut engine, &shared, step, &groups, reference_version, &goes_on).unwrap();
        reference_version = trained.reference_version;
    }
    assert_eq!((engine.version(), reference_version), (3, 2));
    assert_eq!(first.strong_count(), 0);
    let (model, reference) = (engine.model(), engine.reference().unwrap());
    assert!(!Arc::ptr_eq(model, reference));
    assert_eq!((Arc::strong_count(model), Arc::strong_count(reference)), (1, 1));
}
