//! Actors that fail, and prompts that do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aha_flow::Error;
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::rundir::RunDir;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use crate::world::{How, World, assert_same_run, assert_same_weights, each_rollout, problem, rows};

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

    /// What its error says.
    fn cause(self) -> &'static str {
        match self {
            Kind::Environment => "no room",
            Kind::Input => "no good",
            Kind::Panic => "no luck",
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

const LEFT: [Point; 5] =
    [Point::Feed, Point::Sample, Point::Reward, Point::Score, Point::Advantage];
const RIGHT: [Point; 4] = [Point::Learn, Point::Record, Point::Checkpoint, Point::Model];

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_fails_once_leaves_no_trace_in_weights_and_tables() {
    let world = World::new();
    world.finish("whole", &[]).await;
    for (idx, point) in LEFT.into_iter().chain(RIGHT).enumerate() {
        for kind in [Kind::Environment, Kind::Panic] {
            // Checkpoints are due after even steps, the model after the last; the others fail in steps of
            // all kinds.
            let step = match point {
                Point::Checkpoint => 4,
                Point::Model => 6,
                _ => 1 + idx as u64 % 5,
            };
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
        let is_hit = point == LEFT[step as usize % LEFT.len()]
            || point == RIGHT[step as usize % RIGHT.len()];
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
            let step = if point == Point::Model { 6 } else { 2 };
            let (faults, count) = faults(point, step, kind, u32::MAX);
            let name = format!("{point:?}-{kind:?}");
            let outcome = world.run(&name, How { faults, ..How::default() }).await;
            let text = outcome.error().to_string();
            assert!(text.contains(kind.cause()) && text.contains("stage `zero`"), "{name}: {text}");
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

/// What was set aside: prompt, step, failures, error.
fn set_aside(dir: &RunDir) -> Vec<(String, i64, i64, String)> {
    let mut found = Vec::new();
    for batch in rows(dir, "zero_set_aside") {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let whole =
            |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
        let (ids, errors, steps, counts) =
            (text("prompt_id"), text("error"), whole("step"), whole("failures_count"));
        found.extend((0..batch.num_rows()).map(|row| {
            let (id, error) = (ids.value(row).to_owned(), errors.value(row).to_owned());
            (id, steps.value(row), counts.value(row), error)
        }));
    }
    found.sort();
    found
}

/// How many completions each prompt has.
fn asked(dir: &RunDir) -> BTreeMap<String, usize> {
    let mut asked = BTreeMap::<String, usize>::new();
    each_rollout(dir, "zero", |view, row| {
        *asked.entry(view.prompt_id(row).to_owned()).or_default() += 1;
    });
    asked
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
    let found = set_aside(&world.dir("run"));
    let ids: Vec<&str> = found.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(ids, ["bad-answer", "bad-long", "bad-text"]);
    for ((id, step, count, error), part) in found.iter().zip(["answer", "positions", "token"]) {
        assert_eq!((*step, *count), (2, 2), "{id}");
        assert!(error.contains(part), "{id}: {error}");
    }
    // The others are asked in every step; the one without an answer until it is set aside.
    let asked: Vec<(String, usize)> = asked(&world.dir("run")).into_iter().collect();
    let wanted = [("bad-answer", 2 * 4), ("p0", 6 * 4), ("p1", 6 * 4)];
    assert_eq!(asked, wanted.map(|(id, count)| (id.to_owned(), count)));
}

/// Three problems, `prompts_per_step` of which are asked in each step.
fn three_problems() -> World {
    World::with(&(0..3).map(|i| problem(&format!("p{i}"), "1+1=", "2")).collect::<String>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_at_which_sampling_fails_is_set_aside_and_the_run_goes_on() {
    let world = three_problems();
    // Beside others, and alone: each problem comes in one step out of three then.
    for (per_step, step, asked_count) in [(3, 2, 6 * 4), (1, 0, 2 * 4)] {
        let sets = [
            &format!("stage.zero.prompts_per_step={per_step}"),
            "stage.zero.prompt_failures_max=2",
        ];
        let mut first = None;
        for kind in [Kind::Panic, Kind::Environment, Kind::Input] {
            let faults =
                Faults::of_prompts(move |id| if id == "p1" { kind.strike() } else { Ok(()) });
            let name = format!("{kind:?}-{per_step}");
            let how = How { sets: &sets, faults, ..How::default() };
            world.run(&name, how).await.result.unwrap_or_else(|error| panic!("{name}: {error}"));
            let dir = world.dir(&name);
            let found = set_aside(&dir);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            let (id, found_step, count, error) = &found[0];
            assert_eq!((id.as_str(), *count), ("p1", 2), "{name}");
            assert!(step == 0 || *found_step == step, "{name}: step {found_step}");
            assert!(error.contains(kind.cause()), "{name}: {error}");
            let asked: Vec<(String, usize)> = asked(&dir).into_iter().collect();
            let wanted = ["p0", "p2"].map(|id| (id.to_owned(), asked_count));
            assert_eq!(asked, wanted, "{name}");
            // How it fails changes no bit of what the others give.
            assert_same_weights(first.get_or_insert_with(|| dir.clone()), &dir);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_fails_sampling_for_a_while_leaves_no_trace() {
    let world = three_problems();
    let sets = ["stage.zero.prompts_per_step=3", "stage.zero.prompt_failures_max=1"];
    world.finish("whole", &sets).await;
    // Three times in one step: the last attempt at it is prompt by prompt, and meets none that fails.
    let left = AtomicU32::new(3);
    let faults = Faults::of_prompts(move |_| {
        let is_left = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if is_left.is_ok() { Kind::Panic.strike() } else { Ok(()) }
    });
    world.run("run", How { sets: &sets, faults, ..How::default() }).await.result.unwrap();
    assert_eq!(set_aside(&world.dir("run")), []);
    assert_same_run(&world.dir("whole"), &world.dir("run"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_that_fails_at_every_prompt_stops_the_run_and_blames_none() {
    let world = three_problems();
    let sets = ["stage.zero.prompts_per_step=3", "stage.zero.prompt_failures_max=1"];
    for kind in [Kind::Panic, Kind::Environment, Kind::Input] {
        let faults = Faults::of_prompts(move |_| kind.strike());
        let name = format!("{kind:?}");
        let outcome = world.run(&name, How { sets: &sets, faults, ..How::default() }).await;
        let error = outcome.error().to_string();
        assert!(error.contains(kind.cause()), "{name}: {error}");
        assert_eq!(set_aside(&world.dir(&name)), [], "{name}");
    }
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
