//! What actors let through while they stand still, and what runs beside the runtime.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use aha_flow::progress::{Event, Watcher, nobody};
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::rl::{learner, recorder, reward};
use aha_rollout::schema;
use arrow::array::RecordBatch;

use crate::actors::{Actors, ear, scoring_side};
use crate::world::{How, World, assert_same_run, rows};

/// Longer than a batch takes that nothing holds up.
const A_WHILE: Duration = Duration::from_millis(200);

/// Holds up whoever waits at it until it is dropped; so a test that fails doesn't hang.
#[derive(Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Faults that only hold up, at `point`.
    fn at(&self, point: Point) -> Faults {
        let gate = Arc::clone(&self.0);
        Faults::new(move |at, _| {
            if at == point {
                let (is_open, opened) = &*gate;
                let guard = is_open.lock().unwrap();
                drop(opened.wait_while(guard, |is_open| !*is_open).unwrap());
            }
            Ok(())
        })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let (is_open, opened) = &*self.0;
        *is_open.lock().unwrap() = true;
        opened.notify_all();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recorder_that_stands_still_takes_as_many_steps_as_its_edge_holds() {
    let world = World::new();
    world.finish("run", &[]).await;
    let actors = Actors::new(&world, &[]).await;
    let gate = Gate::default();
    let (shared, _) = actors.shared(nobody(), gate.at(Point::Record)).await;
    let (learner, mut heard) = ear::<learner::Msg>().await;
    let args = recorder::Args { shared, after: 0, learner: learner.clone().into() };
    let recorder = recorder::spawn(args, learner.get_cell()).await.unwrap();
    let rows = rows(&world.dir("run"), "zero")[0].slice(0, 16);
    let record = |step| recorder::Record {
        step,
        rows: rows.clone(),
        set_aside: Vec::new(),
        metrics: Default::default(),
    };
    let mut sent_count = 0;
    let sending = async {
        for step in 1..=9 {
            recorder.record(record(step)).await;
            sent_count += 1;
        }
    };
    assert!(tokio::time::timeout(A_WHILE, sending).await.is_err());
    assert_eq!(sent_count, recorder::STEPS_MAX);
    drop(gate);
    for wanted in 1..=recorder::STEPS_MAX as u64 {
        let Some(learner::Msg::Recorded { step }) = heard.recv().await else { panic!("recorded") };
        assert_eq!(step, wanted);
    }
    // There is room again.
    recorder.record(record(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reward_actor_that_stands_still_takes_as_many_groups_as_its_edge_holds() {
    let world = World::new();
    let actors = Actors::new(&world, &[]).await;
    let gate = Gate::default();
    let (shared, _) = actors.shared(nobody(), gate.at(Point::Score)).await;
    let (learner, _heard) = ear::<learner::Msg>().await;
    let (reward, _advantage) = scoring_side(&shared, &learner).await;
    let sent: Arc<AtomicUsize> = Arc::default();
    let sender = {
        let (reward, sent) = (reward.clone(), Arc::clone(&sent));
        thread::spawn(move || {
            let group = RecordBatch::new_empty(schema::sampled());
            while reward.score(1, 1, group.clone()) {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let full = async {
        while sent.load(Ordering::Relaxed) < reward::GROUPS_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), full).await.expect("the edge is too small");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(sent.load(Ordering::Relaxed), reward::GROUPS_MAX);
    // A sender that waits is let go.
    reward.close();
    sender.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_groups_are_scored_at_once_than_the_run_has_threads() {
    let world = World::new();
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let faults = Faults::new(move |point, _| {
        if point == Point::Score {
            seen.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    });
    let sets = ["stage.zero.prompts_per_step=12", "stage.zero.steps=2", "run.threads=2"];
    world.run("run", How { sets: &sets, faults, ..How::default() }).await.result.unwrap();
    assert_eq!(most.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn scoring_and_writing_leave_the_runtime_alone() {
    let world = World::new();
    world.finish("whole", &[]).await;
    let threads: Arc<Mutex<Vec<(&str, ThreadId)>>> = Arc::default();
    let faults = {
        let threads = Arc::clone(&threads);
        Faults::new(move |point, _| {
            let name = match point {
                Point::Score => "scoring",
                Point::Model => "the model",
                _ => return Ok(()),
            };
            threads.lock().unwrap().push((name, thread::current().id()));
            Ok(())
        })
    };
    // Whoever finds that their sink fails is who writes measures: it fails from the second step's on.
    let (seen, metrics) = (Arc::clone(&threads), world.dir("run").metrics());
    let watcher: Watcher = Arc::new(move |event| match event {
        Event::Warning { message, .. } if message.contains("metrics") => {
            seen.lock().unwrap().push(("measures", thread::current().id()));
        }
        Event::Step { step: 2, .. } => {
            fs_err::rename(&metrics, metrics.with_extension("kept")).unwrap();
            fs_err::write(&metrics, "in the way").unwrap();
        }
        Event::Step { step: 4, .. } => {
            fs_err::remove_file(&metrics).unwrap();
            fs_err::rename(metrics.with_extension("kept"), &metrics).unwrap();
        }
        _ => (),
    });
    let how = How { faults, watcher: Some(watcher), ..How::default() };
    world.run("run", how).await.result.unwrap();
    // What waited was written, all of it.
    assert_same_run(&world.dir("whole"), &world.dir("run"));
    let threads = threads.lock().unwrap();
    for wanted in ["scoring", "the model", "measures"] {
        assert!(threads.iter().any(|(name, _)| *name == wanted), "{wanted} is never seen");
    }
    // The runtime of this test has the test's thread and no other.
    for (name, id) in threads.iter() {
        assert_ne!(*id, thread::current().id(), "{name}");
    }
}

/// Goal: places on the edges are free again once what held them is gone. Method: a stage with more groups than the
/// widest edge has places.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_of_many_groups_has_the_places_of_all_of_them_back() {
    let world = World::new();
    let steps = 1 + reward::GROUPS_MAX / 4;
    let sets = [
        format!("stage.zero.steps={steps}"),
        format!("stage.zero.checkpoint_every={steps}"),
        "stage.zero.group_size=2".to_owned(),
        "stage.zero.sampling.max_tokens=1".to_owned(),
        "stage.zero.watchdogs.trains_on_nothing_steps_max=1000".to_owned(),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let outcome = world.finish("run", &sets).await;
    assert_eq!(outcome.steps("zero").len(), steps);
}
