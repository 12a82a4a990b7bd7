//! Rewards that wait for a server, in runs: nothing else waits for them, and what they said outlives a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use aha_flow::Error;
use aha_flow::progress::Event;
use aha_flow::rl::fault::{Faults, Point};
use aha_flow::stop::Stop;
use serde_json::json;

use crate::server::{Reply, Request, Server};
use crate::world::{How, World, assert_same_run, each_rollout, rows};

fn rewards(server: &Server, keys: &str) -> String {
    format!("stage.zero.rewards=[{{ kind = \"http\", url = \"{}/\"{keys} }}]", server.url)
}

/// A prompt's text.
fn prompt(request: &Request) -> String {
    request.body["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_sampled_to_its_end_while_its_rewards_are_waited_for() {
    // No reward comes before something of each of the step's four prompts was asked: a sampler that waited for
    // a reward would wait for ever.
    let asked = (Mutex::new(BTreeSet::new()), Condvar::new());
    let server = Server::start(move |_, request| {
        let (prompts, is_whole) = &asked;
        let mut prompts = prompts.lock().unwrap();
        prompts.insert(prompt(request));
        is_whole.notify_all();
        drop(is_whole.wait_while(prompts, |prompts| prompts.len() < 4).unwrap());
        Reply::ok(&json!({"score": 1}))
    });
    let world = World::new();
    world.finish("run", &[&rewards(&server, ""), "stage.zero.steps=1"]).await;
    each_rollout(&world.dir("run"), "zero", |view, row| assert_eq!(view.reward(row), Some(1.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_asks_nothing_twice() {
    // Each answer is another one, and some are failures.
    let server = Server::start(|number, _| match number % 5 {
        4 => Reply::status(400),
        _ => Reply::ok(&json!({"score": number})),
    });
    let world = World::new();
    let rewards = rewards(&server, "");
    let sets = [rewards.as_str()];
    // Checkpoints are due after steps 2 and 4.
    let faults = Faults::new(|point, step| match (point, step) {
        (Point::Learn, 4) => Err(Error::input("enough")),
        _ => Ok(()),
    });
    let failed = world.run("run", How { sets: &sets, faults, ..How::default() }).await;
    assert_eq!(failed.error().to_string(), "stage `zero`: enough");
    let asked_count = server.requests().len();
    let resumed = world.run("run", How { sets: &sets, resume: true, ..How::default() }).await;
    resumed.result.as_ref().unwrap();
    assert_eq!(resumed.steps("zero")[0].0, 3, "steps are done again");
    let requests = server.requests();
    assert!(requests.len() > asked_count);
    let mut scores = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        let score = (number % 5 != 4).then_some(number as f64);
        let text = |name: &str| request.body[name].as_str().unwrap().to_owned();
        let is_new = scores.insert((text("prompt"), text("completion")), score).is_none();
        assert!(is_new, "{request:?} was asked twice");
    }
    each_rollout(&world.dir("run"), "zero", |view, row| {
        let sample = (view.prompt(row).to_owned(), view.completion(row).to_owned());
        assert_eq!(view.reward(row), scores[&sample], "{sample:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_server_that_hangs() {
    for (sets, begun) in [(vec!["stage.zero.steps=2"], "zero"), (vec![], "drawn")] {
        let stop = Stop::default();
        let (request, hangs) = (stop.clone(), Arc::new(Mutex::new(false)));
        let is_time = Arc::clone(&hangs);
        let server = Server::start(move |_, _| {
            if *is_time.lock().unwrap() {
                request.request();
                return Reply::Hang;
            }
            Reply::ok(&json!({"score": 1}))
        });
        let keys = ", call_seconds_max = 3600, total_seconds_max = 3600";
        let mut sets = sets;
        let rewards = rewards(&server, keys).replace("zero", begun);
        sets.push(&rewards);
        let watcher = Arc::new(move |event: Event| {
            if matches!(event, Event::StageStarted { stage, .. } if stage == begun) {
                *hangs.lock().unwrap() = true;
            }
        });
        let world = World::long();
        let how = How { sets: &sets, stop, watcher: Some(watcher), ..How::default() };
        let begun_at = std::time::Instant::now();
        let outcome = world.run("run", how).await;
        assert!(matches!(outcome.error(), Error::Interrupted), "{begun}");
        assert!(begun_at.elapsed() < Duration::from_secs(60));
        assert!(!world.dir("run").table(begun).join("part-000000.parquet").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_the_pipeline_judges_the_same_at_any_number_of_threads_and_after_a_stop() {
    let judge = "stage.zero.rewards=[{ kind = \"judge\", model = \"blank\", template = \"{completion}\", \
                 max_tokens = 8, score_pattern = '([0-9])', score_max = 9 }]";
    let world = World::new();
    world.finish("one", &[judge, "run.threads=1"]).await;
    world.finish("two", &[judge, "run.threads=2"]).await;
    assert_same_run(&world.dir("one"), &world.dir("two"));
    assert!(world.stop_and_resume("stopped", 3, &[judge]).await);
    assert_same_run(&world.dir("one"), &world.dir("stopped"));
    let (mut scored_count, mut distinct) = (0, BTreeSet::new());
    each_rollout(&world.dir("one"), "zero", |view, row| {
        scored_count += usize::from(view.reward(row).is_some());
        distinct.extend(view.reward(row).map(f64::to_bits));
    });
    assert!(scored_count > 10 && distinct.len() > 2, "{scored_count} {distinct:?}");
    assert!(!rows(&world.dir("one"), "zero").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_set_is_asked_for_before_anything_runs() {
    let world = World::new();
    let server = Server::start(|_, _| Reply::ok(&json!({"score": 1})));
    let rewards = rewards(&server, ", api_key_env = \"AHA_TEST_NOT_SET\"");
    let outcome = world.run("run", How { sets: &[&rewards], ..How::default() }).await;
    let message = outcome.error().to_string();
    assert!(message.contains("`AHA_TEST_NOT_SET`, which is not set"), "{message}");
    assert!(!world.dir("run").root().exists());
}
