//! Stopped on request at many moments, and resumed.

use aha_flow::progress::Event;
use aha_flow::state::{RunState, Status};

use crate::world::{How, World, assert_same_run, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let world = World::long();
    let whole = world.finish("whole", &[]).await;
    let mut stopped_count = 0;
    for event in (0..whole.events.len()).step_by(2) {
        let name = format!("stopped-{event}");
        stopped_count += usize::from(world.stop_and_resume(&name, event, &[]).await);
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
    assert!(stopped_count >= 8, "{stopped_count} of {} events", whole.events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_a_checkpoint_of_the_last_step() {
    let world = World::new();
    let stop = aha_flow::stop::Stop::default();
    let request = stop.clone();
    let watcher = std::sync::Arc::new(move |event: Event| {
        if matches!(event, Event::Step { step: 3, .. }) {
            request.request();
        }
    });
    // No checkpoint is due, after whatever step; on a busy machine a fourth may have begun when the third is seen.
    let sets = ["stage.zero.checkpoint_every=100"];
    let how = How { stop, watcher: Some(watcher), sets: &sets, ..How::default() };
    let outcome = world.run("run", how).await;
    assert!(matches!(outcome.error(), aha_flow::Error::Interrupted));
    let last = outcome.steps("zero").len();
    assert!((3..=4).contains(&last), "{last} steps");
    let position = format!("step-{last:06}/position.json");
    assert!(world.dir("run").checkpoints("zero").join(position).is_file());
    let resumed = world.run("run", How { resume: true, sets: &sets, ..How::default() }).await;
    resumed.result.as_ref().unwrap();
    assert_eq!(resumed.steps("zero")[0].0, last as u64 + 1, "no step is done twice");
    let state = RunState::read(&world.dir("run")).unwrap().unwrap();
    assert!(state.stages.iter().all(|stage| stage.status == Status::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_run_is_left_as_it_is() {
    let world = World::new();
    world.finish("run", &[]).await;
    let again = world.run("run", How { resume: true, ..How::default() }).await;
    again.result.as_ref().unwrap();
    assert!(again.steps("zero").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_prompts_are_counted_over_a_stop() {
    let mut problems: String = (0..3).map(|i| problem(&format!("p{i}"), "1+1=", "2")).collect();
    problems.push_str(&problem("bad-character", "x", "2"));
    let world = World::with(&problems);
    let sets = ["stage.zero.prompt_failures_max=3"];
    world.finish("whole", &sets).await;
    for event in 1..5 {
        let name = format!("stopped-{event}");
        assert!(world.stop_and_resume(&name, event, &sets).await);
        assert_same_run(&world.dir("whole"), &world.dir(&name));
    }
}
