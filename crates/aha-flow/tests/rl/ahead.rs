//! A sampler that runs ahead of its learner. Timing decides which groups a step takes, so what is compared here is what
//! holds whatever the timing: each step is trained on once, each rollout is there once, and no token is too old.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aha_flow::Error;
use aha_flow::progress::{Event, Watcher};
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::rundir::RunDir;

use crate::world::{HOPELESS, How, Outcome, World, each_rollout, metrics, problem, rows};

const AHEAD: &str = "stage.zero.max_staleness=2";
/// Rows of a step: four groups of four.
const ROWS: usize = 16;
/// Longer than anything here takes: what hangs fails.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What a run that has ended has of each step: rows that were trained on, and those that weren't, by reason.
#[derive(Debug, Default)]
struct Seen {
    trained: BTreeMap<u64, usize>,
    skipped: BTreeMap<String, usize>,
    /// Completions whose weights changed while they were drawn.
    mixed: usize,
}

/// Looks at every row: each is there once, says of each token which weights drew it, and isn't too old where it is
/// trained on. `per_step` optimizer steps make a step.
#[track_caller]
fn look(dir: &RunDir, staleness: u64, per_step: u64) -> Seen {
    let (mut seen, mut ids) = (Seen::default(), BTreeSet::new());
    each_rollout(dir, "zero", |view, row| {
        let id = view.rollout_id(row).to_owned();
        let versions: Vec<u64> = view.completion_policy_versions(row).unwrap().collect();
        assert_eq!(versions[0], view.policy_version(row), "{id}");
        assert!(versions.is_sorted(), "{id}: {versions:?}");
        seen.mixed += usize::from(versions[0] < versions[versions.len() - 1]);
        let (step, newest) = (view.step(row), (view.step(row) - 1) * per_step);
        assert!(versions.iter().all(|&version| version <= newest), "{id} of step {step}");
        if view.is_trained(row) {
            assert!(newest - versions[0] <= staleness * per_step, "{id} of step {step}");
            *seen.trained.entry(step).or_default() += 1;
        }
        if let Some(reason) = view.skip_reason(row) {
            *seen.skipped.entry(reason.to_owned()).or_default() += 1;
        }
        assert!(ids.insert(id), "a rollout is there twice");
    });
    seen
}

impl Seen {
    /// That nothing was left out but what came too late: which that is, timing decides.
    #[track_caller]
    fn assert_left_out(&self, others: &[&str]) {
        let is_known =
            |reason: &str| ["stale", "unused"].contains(&reason) || others.contains(&reason);
        assert!(self.skipped.keys().all(|reason| is_known(reason)), "{self:?}");
    }

    /// Groups of four that were too old.
    fn stale_groups(&self) -> f64 {
        self.skipped.get("stale").copied().unwrap_or_default() as f64 / 4.0
    }
}

/// How many groups a run counted as too old.
fn counted(outcome: &Outcome) -> f64 {
    outcome.steps("zero").iter().map(|(_, found)| found["stale_groups"]).sum()
}

/// All six steps, each with as many rows as one has.
fn all_steps() -> BTreeMap<u64, usize> {
    (1..=6).map(|step| (step, ROWS)).collect()
}

/// Runs to the end with these settings, and looks at every row.
async fn finished(world: &World, name: &str, sets: &[&str]) -> (Outcome, Seen) {
    let outcome = world.finish(name, sets).await;
    let seen = look(&world.dir(name), 2, 1);
    (outcome, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_trained_on_once_and_every_rollout_is_there_once() {
    let world = World::new();
    for (staleness, set) in
        [(1, "stage.zero.max_staleness=1"), (2, AHEAD), (64, "stage.zero.max_staleness=64")]
    {
        let name = format!("ahead-{staleness}");
        let outcome = world.finish(&name, &[set]).await;
        let seen = look(&world.dir(&name), staleness, 1);
        assert_eq!(seen.trained, all_steps(), "{staleness}");
        seen.assert_left_out(&[]);
        assert_eq!(seen.stale_groups(), counted(&outcome));
        let steps = outcome.steps("zero");
        assert_eq!(steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        for (step, metrics) in steps {
            for name in ["staleness_mean", "staleness_max", "stale_groups", "tokens_in_flight"] {
                assert!(metrics[name] >= 0.0, "{name} of step {step}");
            }
            for name in ["sampler_idle_seconds", "learner_idle_seconds", "sampling_seconds"] {
                assert!(metrics[name] >= 0.0, "{name} of step {step}");
            }
            assert!(metrics["staleness_max"] <= staleness.min(step - 1) as f64, "step {step}");
            assert!(metrics["staleness_mean"] <= metrics["staleness_max"], "step {step}");
        }
    }
}

/// P1 holds where weights are as old as the learner's: what it computes is what was sampled, and weighs exactly 1.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_newest_weights_weigh_exactly_one() {
    let world = World::new();
    for more in [&[][..], &["stage.zero.minibatches=2", "stage.zero.inner_epochs=2"]] {
        let outcome =
            world.finish(&format!("run-{}", more.len()), &[&[AHEAD], more].concat()).await;
        let steps = outcome.steps("zero");
        let (_, first) = steps[0];
        assert_eq!((first["importance_mean"], first["importance_max"]), (1.0, 1.0));
        assert_eq!((first["sampler_gap_mean"], first["importance_cut_share"]), (0.0, 0.0));
        let older = steps.iter().filter(|(_, metrics)| metrics["staleness_mean"] > 0.0);
        for (step, metrics) in older {
            assert!(metrics["sampler_gap_mean"] > 0.0, "step {step}");
            assert!(metrics["importance_max"] <= 2.0, "step {step}");
        }
    }
}

/// The sampler is slower than the learner, so whenever that publishes something is being drawn.
#[tokio::test(flavor = "multi_thread")]
async fn weights_change_while_completions_are_drawn() {
    let world = World::new();
    let faults = Faults::new(|point, _| {
        if point == Point::Decode {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    });
    let sets =
        [AHEAD, "stage.zero.steps=20", "stage.zero.sampling.max_tokens=24", "run.sequences_max=6"];
    world.run("run", How { sets: &sets, faults, ..How::default() }).await.result.unwrap();
    let seen = look(&world.dir("run"), 2, 1);
    assert_eq!(seen.trained.len(), 20);
    assert!(seen.mixed > 0, "{seen:?}");
}

/// Holds what comes to it until the run has done so many steps.
struct Gate {
    steps: Arc<AtomicU64>,
}

impl Gate {
    fn new() -> (Gate, Watcher) {
        let steps: Arc<AtomicU64> = Arc::default();
        let counter = Arc::clone(&steps);
        let watcher: Watcher = Arc::new(move |event| {
            if let Event::Step { step, .. } = event {
                counter.store(step, Ordering::Relaxed);
            }
        });
        (Gate { steps }, watcher)
    }

    fn wait_for(&self, step: u64) {
        let until = Instant::now() + WAIT_MAX;
        while self.steps.load(Ordering::Relaxed) < step && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_too_old_is_left_out_and_said() {
    let world = World::new();
    let (gate, watcher) = Gate::new();
    let has_struck = AtomicBool::new(false);
    // The first group to be scored waits until three steps are done.
    let faults = Faults::new(move |point, _| {
        if point == Point::Score && !has_struck.swap(true, Ordering::Relaxed) {
            gate.wait_for(3);
        }
        Ok(())
    });
    let sets = ["stage.zero.max_staleness=1"];
    let how = How { sets: &sets, faults, watcher: Some(watcher), ..How::default() };
    let outcome = world.run("run", how).await;
    outcome.result.as_ref().unwrap();
    let seen = look(&world.dir("run"), 1, 1);
    assert_eq!(seen.trained, all_steps());
    seen.assert_left_out(&[]);
    assert!(seen.stale_groups() >= 1.0, "{seen:?}");
    assert_eq!(seen.stale_groups(), counted(&outcome));
    // The prompt that came in its place is of a round of four: the others are there, too.
    let unused = seen.skipped.get("unused").copied().unwrap_or_default();
    let all: usize = rows(&world.dir("run"), "zero").iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(all, 6 * ROWS + seen.skipped["stale"] + unused);
}

/// With the same delay a step waits, so that nothing is too old: until it gives up, the first group holds everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_may_wait_for_groups_that_would_be_too_old() {
    let world = World::new();
    let steps: Arc<AtomicU64> = Arc::default();
    let (counter, seen_at) = (Arc::clone(&steps), Arc::new(AtomicU64::new(u64::MAX)));
    let watcher: Watcher = Arc::new(move |event| {
        if let Event::Step { step, .. } = event {
            counter.store(step, Ordering::Relaxed);
        }
    });
    let (first, has_struck) = (Arc::clone(&seen_at), AtomicBool::new(false));
    let faults = Faults::new(move |point, _| {
        if point == Point::Score && !has_struck.swap(true, Ordering::Relaxed) {
            // Longer than a step takes, many times over.
            std::thread::sleep(Duration::from_millis(500));
            first.store(steps.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    });
    let sets = ["stage.zero.max_staleness=1", "stage.zero.on_stale=wait"];
    let how = How { sets: &sets, faults, watcher: Some(watcher), ..How::default() };
    world.run("run", how).await.result.unwrap();
    let seen = look(&world.dir("run"), 1, 1);
    assert_eq!((seen.trained, seen.skipped), (all_steps(), BTreeMap::new()));
    let done = seen_at.load(Ordering::Relaxed);
    assert!(done <= 1, "{done} steps were done without a group that was due in the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_stopped_goes_on_and_asks_again_for_what_was_on_its_way() {
    let world = World::new();
    let mut stopped = 0;
    for event in 1..8 {
        let name = format!("stopped-{event}");
        stopped += usize::from(world.stop_and_resume(&name, event, &[AHEAD]).await);
        let seen = look(&world.dir(&name), 2, 1);
        seen.assert_left_out(&[]);
        assert_eq!(seen.trained, all_steps(), "{name}");
        let steps: BTreeSet<i64> = metrics(&world.dir(&name)).iter().map(|found| found.1).collect();
        assert_eq!(steps, (1..=6).collect());
    }
    assert!(stopped >= 4, "{stopped}");
}

/// A fault at a point, the first `times` times that it is reached in that round or step, and how often it struck.
fn faults(point: Point, at: u64, panics: bool, times: u32) -> (Faults, Arc<AtomicU32>) {
    let count: Arc<AtomicU32> = Arc::default();
    let counter = Arc::clone(&count);
    let faults = Faults::new(move |found, now| {
        if (found, now) != (point, at) || counter.fetch_add(1, Ordering::Relaxed) >= times {
            return Ok(());
        }
        assert!(!panics, "no luck");
        Err(Error::Environment { message: "no room".to_owned() })
    });
    (faults, count)
}

const POINTS: [Point; 10] = [
    Point::Feed,
    Point::Sample,
    Point::Reward,
    Point::Score,
    Point::Advantage,
    Point::Learn,
    Point::Train,
    Point::Record,
    Point::Checkpoint,
    Point::Model,
];

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_fails_once_costs_no_step_and_no_rollout() {
    let world = World::new();
    for (idx, point) in POINTS.into_iter().enumerate() {
        for panics in [false, true] {
            let at = match point {
                Point::Checkpoint => 4,
                Point::Model => 6,
                _ => 1 + idx as u64 % 5,
            };
            let (faults, count) = faults(point, at, panics, 1);
            let name = format!("{point:?}-{panics}");
            let outcome = world.run(&name, How { sets: &[AHEAD], faults, ..How::default() }).await;
            outcome.result.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(count.load(Ordering::Relaxed) >= 1, "{name} never struck");
            let seen = look(&world.dir(&name), 2, 1);
            seen.assert_left_out(&[]);
            assert_eq!(seen.trained, all_steps(), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_never_ends_stops_the_run() {
    let world = World::new();
    for point in POINTS {
        let at = if point == Point::Model { 6 } else { 2 };
        for panics in [false, true] {
            let (faults, count) = faults(point, at, panics, u32::MAX);
            let name = format!("{point:?}-{panics}");
            let outcome = world.run(&name, How { sets: &[AHEAD], faults, ..How::default() }).await;
            let text = outcome.error().to_string();
            let cause = if panics { "no luck" } else { "no room" };
            assert!(text.contains(cause) && text.contains("stage `zero`"), "{name}: {text}");
            assert!(count.load(Ordering::Relaxed) >= 3, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_that_keep_failing_are_set_aside_and_the_run_goes_on() {
    let mut problems: String = (0..6).map(|i| problem(&format!("p{i}"), "1+1=", "2")).collect();
    problems += &problem("bad-text", "what?", "2");
    problems += &problem("bad-long", &"1+".repeat(60), "60");
    let world = World::with(&problems);
    let sets = [AHEAD, "stage.zero.prompt_failures_max=1"];
    world.finish("run", &sets).await;
    let seen = look(&world.dir("run"), 2, 1);
    assert_eq!(seen.trained.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let mut set_aside: Vec<String> = Vec::new();
    for batch in rows(&world.dir("run"), "zero_set_aside") {
        use arrow::array::AsArray;
        let ids = batch.column_by_name("prompt_id").unwrap().as_string::<i32>();
        set_aside.extend(ids.iter().flatten().map(str::to_owned));
    }
    set_aside.sort();
    assert_eq!(set_aside, ["bad-long", "bad-text"]);
}

/// Three times together, then prompt by prompt: the one at which sampling fails costs no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_at_which_sampling_fails_is_set_aside_and_the_run_goes_on() {
    let world = World::new();
    for panics in [false, true] {
        let faults = Faults::of_prompts(move |id| match (id, panics) {
            ("p1", true) => panic!("no luck"),
            ("p1", false) => Err(Error::Environment { message: "no room".to_owned() }),
            _ => Ok(()),
        });
        let name = format!("run-{panics}");
        let sets = [AHEAD, "stage.zero.prompt_failures_max=1"];
        let outcome = world.run(&name, How { sets: &sets, faults, ..How::default() }).await;
        outcome.result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let seen = look(&world.dir(&name), 2, 1);
        // Another round may ask it before it is set aside.
        let lost = 6 * ROWS - seen.trained.values().sum::<usize>();
        assert!(lost == 4 || lost == 8, "{seen:?}");
        let set_aside = rows(&world.dir(&name), "zero_set_aside");
        assert_eq!(set_aside.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
        each_rollout(&world.dir(&name), "zero", |view, row| assert_ne!(view.prompt_id(row), "p1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_that_fails_at_every_prompt_stops_the_run_and_blames_none() {
    let world = World::new();
    let faults = Faults::of_prompts(|_| Err(Error::Environment { message: "no room".to_owned() }));
    let outcome = world.run("run", How { sets: &[AHEAD], faults, ..How::default() }).await;
    assert!(outcome.error().to_string().contains("no room"), "{}", outcome.error());
    assert!(rows(&world.dir("run"), "zero_set_aside").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_whose_every_prompt_fails_says_so() {
    let world = World::with(&problem("bad-text", "what?", "2"));
    let tokenizer = "models.blank.tokenizer.train=SELECT '0123456789+=' AS text FROM problems";
    let sets = [AHEAD, tokenizer, "stage.zero.watchdogs.trains_on_nothing_steps_max=3"];
    let outcome = world.run("run", How { sets: &sets, ..How::default() }).await;
    let error = outcome.error().to_string();
    assert!(error.contains("nothing to train on in 4 steps"), "{error}");
}

/// What else a stage may have goes on with a sampler that runs ahead.
#[tokio::test(flavor = "multi_thread")]
async fn other_settings_go_together_with_it() {
    let world = World::new();
    let flat = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[0-4]\" }]";
    let curriculum = "stage.zero.curriculum={ rewards = [\"regex\"], band = [0.0, 1.0] }";
    let cases: [(&str, &[&str]); 9] = [
        ("int8", &["stage.zero.sampling.weights=int8"]),
        ("lora", &["stage.zero.lora={ rank = 4, alpha = 8 }"]),
        ("refresh", &["stage.zero.reference.refresh_every=2"]),
        ("critic", &["stage.zero.objective={ preset = \"ppo\" }"]),
        ("kl in reward", &["stage.zero.objective={ kl = 0.05, kl_in_reward = true }"]),
        ("whiten", &["stage.zero.objective={ preset = \"reinforce++\" }"]),
        ("curriculum", &[curriculum, flat]),
        ("bf16", &["run.dtype=bf16"]),
        ("threads", &["stage.zero.sampler_threads=2", "stage.zero.learner_threads=1"]),
    ];
    for (name, more) in cases {
        let (outcome, seen) = finished(&world, name, &[&[AHEAD], more].concat()).await;
        assert_eq!(seen.trained.len(), 6, "{name}: {seen:?}");
        assert_eq!(outcome.steps("zero").len(), 6, "{name}");
        seen.assert_left_out(&["no_signal"]);
    }
    let world = World::taught();
    let (_, seen) = finished(&world, "taught", &[AHEAD]).await;
    assert_eq!(seen.trained, all_steps());
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_several_optimizer_steps_publish_once() {
    let world = World::new();
    let sets = [AHEAD, "stage.zero.minibatches=2", "stage.zero.inner_epochs=2"];
    world.finish("run", &sets).await;
    let seen = look(&world.dir("run"), 2, 4);
    assert_eq!(seen.trained, all_steps());
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_without_signal_are_replaced_by_those_of_later_rounds() {
    let world = World::new();
    let rewards = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[67]\" }]";
    let sets = [AHEAD, rewards, "stage.zero.resample_rounds=2", "stage.zero.objective={ kl = 0 }"];
    let (_, seen) = finished(&world, "run", &sets).await;
    assert!(seen.skipped["no_signal"] > 0, "{seen:?}");
    assert!(seen.trained.values().all(|&rows| rows <= ROWS), "{seen:?}");
    // Where nothing ever has one, steps take what they have and say so.
    let never =
        [AHEAD, HOPELESS, "stage.zero.resample_rounds=1", "stage.zero.objective={ kl = 0 }"];
    let outcome = world.finish("never", &never).await;
    let seen = look(&world.dir("never"), 2, 1);
    assert_eq!((outcome.steps("zero").len(), seen.trained.len()), (6, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_curriculum_asks_no_prompt_that_is_on_its_way_and_needs_enough_of_them() {
    let world = World::new();
    let open: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let counter = Arc::clone(&open);
    let faults = Faults::of_prompts(move |id| {
        *counter.lock().unwrap().entry(id.to_owned()).or_default() += 1;
        Ok(())
    });
    let curriculum = "stage.zero.curriculum={ rewards = [\"regex\"], band = [0.0, 1.0] }";
    let sets = [AHEAD, curriculum];
    world.run("run", How { sets: &sets, faults, ..How::default() }).await.result.unwrap();
    // Twelve prompts, four a step, six steps: every one is asked twice.
    let left_out = look(&world.dir("run"), 2, 1).skipped;
    let is_twice = open.lock().unwrap().values().all(|&count| count == 2);
    assert!(is_twice || !left_out.is_empty(), "{open:?}");
    let outcome = world
        .run("few", How { sets: &["stage.zero.max_staleness=3", curriculum], ..How::default() })
        .await;
    let error = outcome.error().to_string();
    assert!(error.contains("16 prompts are on their way at once"), "{error}");
}

/// The reward is as easy as can be, so that timing decides nothing: a completion that begins with one of five digits.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_whose_sampler_runs_ahead_learns() {
    let world = World::new();
    let rewards = "stage.zero.rewards=[{ kind = \"regex\", pattern = \"^[0-4]\" }]";
    let sets = [
        AHEAD,
        rewards,
        "stage.zero.steps=60",
        "stage.zero.group_size=8",
        "stage.zero.optimizer.lr=1e-2",
        "stage.zero.checkpoint_every=100",
    ];
    let outcome = world.finish("run", &sets).await;
    let rewards: Vec<f64> =
        outcome.steps("zero").iter().map(|(_, found)| found["reward"]).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&rewards[..5]), mean(&rewards[55..]));
    assert!(first < 0.8 && last > 0.95, "from {first} to {last}");
}
