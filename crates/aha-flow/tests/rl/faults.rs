//! Actors that fail, and prompts that do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aha_flow::Error;
use aha_flow::rl::fault::{Faults, Point};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use crate::world::{How, World, assert_same_run, each_rollout, problem, rows};

/// How an actor fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Environment,
    Input,
    Panic,
}

impl Kind {
    fn strike(self) -> Result<(), Error> {
        match self {
            Kind::Environment => Err(Error::Environment { message: "no room".to_owned() }),
            Kind::Input => Err(Error::input("no good")),
            Kind::Panic => panic!("no luck"),
        }
    }
}

/// A fault at a point and step, the first `times` times; and how often it struck.
fn faults(point: Point, step: u64, kind: Kind, times: u32) -> (Faults, Arc<AtomicU32>) {
    let count: Arc<AtomicU32> = Arc::default();
    let counter = Arc::clone(&count);
    let faults = Faults::new(move |at, now| {
        if (at, now) != (point, step) || counter.fetch_add(1, Ordering::Relaxed) >= times {
            return Ok(());
        }
        kind.strike()
    });
    (faults, count)
}

const LEFT: [Point; 4] = [Point::Feed, Point::Sample, Point::Reward, Point::Advantage];
const RIGHT: [Point; 3] = [Point::Learn, Point::Record, Point::Checkpoint];

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_fails_once_leaves_no_trace_in_weights_and_tables() {
    let world = World::new();
    world.finish("whole", &[]).await;
    for (idx, point) in LEFT.into_iter().chain(RIGHT).enumerate() {
        for kind in [Kind::Environment, Kind::Panic] {
            // Checkpoints are due after even steps; the others fail in steps of all kinds.
            let step = if point == Point::Checkpoint { 4 } else { 1 + idx as u64 % 5 };
            let (faults, count) = faults(point, step, kind, 1);
            let name = format!("{point:?}-{kind:?}");
            let outcome = world.run(&name, How { faults, ..How::default() }).await;
            outcome.result.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(count.load(Ordering::Relaxed) >= 1, "{name} never struck");
            assert_same_run(&world.dir("whole"), &world.dir(&name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_faults_in_one_run_are_survived() {
    let world = World::new();
    world.finish("whole", &[]).await;
    let struck = std::sync::Mutex::new(Vec::new());
    // In every step one actor of each side fails once, another one each time.
    let faults = Faults::new(move |point, step| {
        let is_hit = point == LEFT[step as usize % 4] || point == RIGHT[step as usize % 3];
        let is_new = {
            let mut struck = struck.lock().unwrap();
            let is_new = !struck.contains(&(point, step));
            struck.push((point, step));
            is_new
        };
        if is_hit && is_new { Kind::Environment.strike() } else { Ok(()) }
    });
    world.run("run", How { faults, ..How::default() }).await.result.unwrap();
    assert_same_run(&world.dir("whole"), &world.dir("run"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_never_ends_stops_the_run_after_a_few_restarts() {
    let world = World::new();
    let cases = LEFT.map(|point| (point, 3)).into_iter().chain(RIGHT.map(|point| (point, 2)));
    for (point, restarts_max) in cases {
        for kind in [Kind::Environment, Kind::Panic, Kind::Input] {
            let (faults, count) = faults(point, 2, kind, u32::MAX);
            let name = format!("{point:?}-{kind:?}");
            let outcome = world.run(&name, How { faults, ..How::default() }).await;
            let text = outcome.error().to_string();
            let cause = match kind {
                Kind::Environment => "no room",
                Kind::Input => "no good",
                Kind::Panic => "no luck",
            };
            assert!(text.contains(cause) && text.contains("stage `zero`"), "{name}: {text}");
            // The same input again gives the same error: that isn't tried. Reward and advantage actors
            // may take several groups before they are gone.
            let count = count.load(Ordering::Relaxed);
            let tries = if kind == Kind::Input { 1 } else { 1 + restarts_max };
            assert!(count >= tries && count <= 4 * tries, "{name}: {count} times");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_step_that_fails_while_a_checkpoint_is_written_is_issued_again() {
    let world = World::new();
    world.finish("whole", &[]).await;
    let has_failed: Arc<AtomicBool> = Arc::default();
    let faults = Faults::new(move |point, step| match (point, step) {
        (Point::Sample, 3) if !has_failed.swap(true, Ordering::Relaxed) => {
            Kind::Environment.strike()
        }
        (Point::Checkpoint, 2) => {
            // Until the sampler has failed, and the left side is there anew.
            let until = Instant::now() + Duration::from_secs(5);
            while !has_failed.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        }
        _ => Ok(()),
    });
    world.run("run", How { faults, ..How::default() }).await.result.unwrap();
    assert_same_run(&world.dir("whole"), &world.dir("run"));
}

/// Problems of which three fail: too long, of characters the tokenizer doesn't know, without an answer.
fn bad_problems() -> String {
    let mut problems = problem("p0", "1+1=", "2") + &problem("p1", "1+2=", "3");
    problems += &problem("bad-long", &"1+".repeat(60), "60");
    problems += &problem("bad-text", "what?", "2");
    problems += "{\"id\":\"bad-answer\",\"prompt\":\"2+2=\",\"answer\":null}\n";
    problems
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_keeps_failing_is_set_aside_and_the_run_goes_on() {
    let world = World::with(&bad_problems());
    let rewards = "stage.zero.rewards=[{ kind = \"math\", extract = [\"whole\"] }]";
    let sets = [rewards, "stage.zero.prompts_per_step=5", "stage.zero.prompt_failures_max=2"];
    world.finish("run", &sets).await;
    let mut found = Vec::new();
    for batch in rows(&world.dir("run"), "zero_set_aside") {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let whole =
            |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
        let (ids, errors, steps, counts) =
            (text("prompt_id"), text("error"), whole("step"), whole("failures_count"));
        for row in 0..batch.num_rows() {
            assert_eq!((steps.value(row), counts.value(row)), (2, 2));
            found.push((ids.value(row).to_owned(), errors.value(row).to_owned()));
        }
    }
    found.sort();
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["bad-answer", "bad-long", "bad-text"]);
    for ((id, error), part) in found.iter().zip(["answer", "positions", "token"]) {
        assert!(error.contains(part), "{id}: {error}");
    }
    // The others are asked in every step; the one without an answer until it is set aside.
    let mut asked = std::collections::BTreeMap::<String, usize>::new();
    each_rollout(&world.dir("run"), "zero", |view, row| {
        *asked.entry(view.prompt_id(row).to_owned()).or_default() += 1;
    });
    let asked: Vec<(&str, usize)> = asked.iter().map(|(id, &n)| (id.as_str(), n)).collect();
    assert_eq!(asked, [("bad-answer", 2 * 4), ("p0", 6 * 4), ("p1", 6 * 4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_whose_every_prompt_fails_says_so() {
    let good = problem("p0", "1+1=", "2");
    let world = World::with(&(good + &problem("bad-text", "what?", "2")));
    let sets = [
        "stage.zero.prompts=SELECT id, prompt, answer FROM problems WHERE id <> 'p0'",
        "stage.zero.watchdogs.trains_on_nothing_steps_max=3",
    ];
    let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
    let error = outcome.error();
    assert!(error.to_string().contains("nothing to train on in 4 steps"), "{error}");
    assert!(error.hint().is_some());
}
