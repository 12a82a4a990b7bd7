//! The keeper with a program in `aha run`'s place, which does what the pipeline's text says.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::*;
use crate::options::{Allowed, QueryLimits};
use crate::submit::draft;

struct World {
    home: Home,
    board: Arc<Board>,
    events: Arc<Events>,
    handle: Handle,
    spared: Arc<AtomicUsize>,
    budget: Arc<Budget>,
    work: JoinSet<()>,
}

fn options(home: &Path, runs_max: usize) -> Options {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    Options {
        home: home.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        requires_token: false,
        token: None,
        hosts: Vec::new(),
        runs_max,
        memory_bytes: None,
        memory_reserve_bytes: 0,
        disk_reserve_bytes: 0,
        allowed: Allowed::default(),
        retries_max: 1,
        drain: Duration::from_secs(60),
        query: QueryLimits::default(),
        model_idle: Duration::from_secs(1),
        device: aha_flow::pipeline::Device::Cpu,
        program: Path::new(&manifest).join("tests/fake-run"),
    }
}

async fn world(root: &Path, runs_max: usize) -> World {
    world_with(options(root, runs_max)).await
}

async fn world_with(options: Options) -> World {
    let root = options.home.clone();
    for dir in ["runs", "pipelines", "output", "tmp"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let home = Home::new(root);
    let (board, events) = (Arc::new(Board::default()), Arc::new(Events::default()));
    let (budget, spared) = (Arc::new(Budget::new(100)), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&spared);
    let (handle, keeper) = begin(Args {
        options: Arc::new(options),
        store: Arc::new(Store::open(&home.store()).unwrap()),
        home: home.clone(),
        board: Arc::clone(&board),
        events: Arc::clone(&events),
        budget: Arc::clone(&budget),
        spare: Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    })
    .await
    .unwrap();
    let mut work = JoinSet::new();
    work.spawn(keeper);
    World { home, board, events, handle, spared, budget, work }
}

impl World {
    /// Waits until the keeper is gone, and its hold on the store with it.
    async fn end(mut self) {
        self.work.shutdown().await;
    }

    async fn submit(&self, text: &str) -> RunId {
        self.handle.submit(draft(text, 40)).await.unwrap().id
    }

    /// Waits until the run is so.
    async fn until(&self, id: RunId, is: impl Fn(&Record) -> bool) -> Arc<Record> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let record = self.board.run(id).unwrap();
            if is(&record) {
                return record;
            }
            assert!(Instant::now() < until, "{record:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_is(&self, id: RunId, status: Status) -> Arc<Record> {
        self.until(id, |record| record.status == status).await
    }

    /// Waits until the run's process has made a step.
    async fn until_works(&self, id: RunId) -> Arc<Record> {
        let works =
            |record: &Record| record.process.is_some() && !record.progress.metrics.is_empty();
        self.until(id, works).await
    }

    fn calls(&self, id: RunId) -> Vec<String> {
        let text = std::fs::read_to_string(self.home.run(id).join("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// One run at a time on a device; the processor's go on beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_its_device_and_holds_back_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 4).await;
    let mut ids = Vec::new();
    for (text, device) in [
        ("works", Some("cuda:0")),
        ("works", Some("cuda:0")),
        ("works", Some("cuda:1")),
        ("done", None),
    ] {
        let draft = draft(text, 10).on(device);
        ids.push(world.handle.submit(draft).await.unwrap().id);
    }
    world.until_works(ids[0]).await;
    world.until_works(ids[2]).await;
    world.until_is(ids[3], Status::Finished).await;
    assert_eq!(world.board.run(ids[1]).unwrap().status, Status::Queued);
    let call = &world.calls(ids[0])[0];
    assert!(call.ends_with("--set run.memory=5 --set run.device=\"cuda:0\""), "{call}");
    world.handle.act(ids[0], Change::Cancel).await.unwrap();
    world.until_works(ids[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_go_through_in_order_as_many_as_fit() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 2).await;
    let mut ids = Vec::new();
    for text in ["works", "works", "works", "done"] {
        ids.push(world.submit(text).await);
    }
    let first = world.until_works(ids[0]).await;
    world.until_works(ids[1]).await;
    assert_eq!(world.board.run(ids[2]).unwrap().status, Status::Queued);
    assert_eq!(world.board.run(ids[3]).unwrap().status, Status::Queued, "it came last");
    assert_eq!(first.progress.current().map(|stage| (stage.step, stage.steps)), Some((3, 5)));
    assert_eq!(first.progress.metrics["loss"], 0.5);
    assert_eq!(world.budget.runs(), Load { runs: 2, memory_bytes: 80 });
    world.handle.act(ids[0], Change::Cancel).await.unwrap();
    world.until_is(ids[0], Status::Cancelled).await;
    world.until_works(ids[2]).await;
    world.handle.act(ids[1], Change::Cancel).await.unwrap();
    let done = world.until_is(ids[3], Status::Finished).await;
    assert!(done.ended_at_us.is_some() && done.process.is_none());
    let call = &world.calls(ids[3])[0];
    let end = "--json --disk-reserve 0 --set run.seed=2 --set run.memory=5";
    assert!(call.ends_with(end), "{call}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_paused_goes_on_and_is_cancelled() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 1).await;
    let id = world.submit("works").await;
    world.until_works(id).await;
    assert_eq!(world.handle.act(id, Change::Pause).await.unwrap().status, Status::Pausing);
    world.until_is(id, Status::Paused).await;
    assert_eq!(world.budget.runs(), Load { runs: 0, memory_bytes: 0 });
    assert_eq!(world.handle.act(id, Change::Resume).await.unwrap().status, Status::Queued);
    world.until(id, |record| record.starts == 2 && record.process.is_some()).await;
    world.until(id, |_| world.calls(id).len() == 2).await;
    assert!(world.calls(id)[1].ends_with("--resume"), "{:?}", world.calls(id));
    assert!(world.handle.delete(id).await.unwrap_err().message.contains("its process works"));
    world.handle.act(id, Change::Cancel).await.unwrap();
    world.until_is(id, Status::Cancelled).await;
    assert!(world.handle.act(id, Change::Resume).await.is_err());
    let kinds: Vec<String> =
        world.events.watch(Some(id), Some(0)).past.iter().map(|e| e.kind.clone()).collect();
    assert!(["state", "stage_started", "step"].iter().all(|k| kinds.iter().any(|kind| kind == k)));
    world.handle.delete(id).await.unwrap();
    assert!(world.board.run(id).is_err());
    assert!(!world.home.run(id).exists() && !world.home.pipeline(id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_does_not_listen_is_killed_when_it_is_cancelled() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 1).await;
    let id = world.submit("stubborn").await;
    world.until_works(id).await;
    world.handle.act(id, Change::Cancel).await.unwrap();
    let record = world.until_is(id, Status::Cancelled).await;
    assert_eq!(record.problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_why_and_those_that_may_pass_are_tried_again() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 1).await;
    let fails = world.submit("fails").await;
    let record = world.until_is(fails, Status::Failed).await;
    let trouble = Trouble { message: "bad".into(), hint: Some("mend it".into()) };
    assert_eq!((record.problem.clone(), record.starts), (Some(trouble), 1));
    let dies_once = world.submit("dies-once").await;
    let waiting = world.until(dies_once, |record| record.failures == 1).await;
    let problem = waiting.problem.as_ref().unwrap();
    assert_eq!(problem.message, "the run's process was ended by signal 9: out of luck");
    let record = world.until_is(dies_once, Status::Finished).await;
    assert_eq!((record.starts, record.failures, &record.problem), (2, 0, &None));
    let dies = world.submit("dies").await;
    let record = world.until_is(dies, Status::Failed).await;
    assert_eq!(record.starts, 2, "one try more is allowed");
    world.handle.act(dies, Change::Resume).await.unwrap();
    world.until(dies, |record| record.starts == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_wants_too_much_fails_and_models_make_room() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 1).await;
    let large = world.handle.submit(draft("done", 101)).await.unwrap().id;
    let record = world.until_is(large, Status::Failed).await;
    assert!(record.problem.as_ref().unwrap().message.contains("101 bytes"), "{record:?}");
    let share = world.budget.take_for_model(70).unwrap();
    let id = world.submit("done").await;
    let until = Instant::now() + Duration::from_secs(60);
    while world.spared.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < until, "models were not asked to go");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.board.run(id).unwrap().status, Status::Queued);
    drop(share);
    world.until_is(id, Status::Finished).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_when_the_daemon_stopped_runs_when_it_is_back() {
    let temp = tempfile::tempdir().unwrap();
    let world = world(temp.path(), 2).await;
    let (a, b) = (world.submit("works").await, world.submit("works").await);
    world.until_works(a).await;
    world.until_works(b).await;
    world.handle.act(b, Change::Pause).await.unwrap();
    world.handle.drain().await.unwrap();
    assert_eq!(world.board.run(a).unwrap().status, Status::Queued);
    assert_eq!(world.board.run(b).unwrap().status, Status::Paused);
    assert!(world.handle.submit(draft("done", 1)).await.is_err());
    world.end().await;
    let world = self::world(temp.path(), 2).await;
    world.until(a, |record| record.starts == 2 && record.process.is_some()).await;
    assert_eq!(world.board.run(b).unwrap().status, Status::Paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_take_too_long_to_stop_are_killed_and_go_on_later() {
    let temp = tempfile::tempdir().unwrap();
    let options = Options { drain: Duration::ZERO, ..options(temp.path(), 1) };
    let world = world_with(options).await;
    let id = world.submit("stubborn").await;
    world.until_works(id).await;
    world.handle.drain().await.unwrap();
    let record = world.board.run(id).unwrap();
    assert_eq!((record.status, record.failures), (Status::Queued, 0));
}

/// Goal: a queue that a killed daemon left is taken up. Method: its rows are put into the store as they were then, with
/// a process that is still there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_taken_up() {
    let temp = tempfile::tempdir().unwrap();
    let first = world(temp.path(), 1).await;
    let running = first.submit("done").await;
    let cancelling = first.submit("works").await;
    first.handle.drain().await.unwrap();
    let record = Record::clone(&first.board.run(running).unwrap());
    let other = Record::clone(&first.board.run(cancelling).unwrap());
    first.end().await;
    let mut left = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", left.id())).unwrap();
    let start_ticks = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let process = Process { pid: left.id(), start_ticks: start_ticks.parse().unwrap() };
    let store = Store::open(&temp.path().join("queue.redb")).unwrap();
    store.put(&Record { status: Status::Running, process: Some(process), ..record }).unwrap();
    store.put(&Record { status: Status::Cancelling, ..other }).unwrap();
    drop(store);
    let waited = tokio::task::spawn_blocking(move || left.wait().unwrap());
    let world = world(temp.path(), 1).await;
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(waited.await.unwrap().signal(), Some(libc::SIGKILL));
    world.until_is(running, Status::Finished).await;
    assert_eq!(world.board.run(cancelling).unwrap().status, Status::Cancelled);
}
