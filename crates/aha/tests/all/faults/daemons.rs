//! Faults of a daemon: its folder, its queue, the machine, and those who ask it.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;

use super::*;
use crate::daemons::Daemon;

pub const CASES: [Case; 17] = [
    ("home folder not to be written", "the daemon ends with code 1 and names the file", read_only),
    (
        "home folder of another daemon",
        "the second waits five seconds, ends with code 1 and says so; the other goes on",
        two_daemons,
    ),
    ("port taken", "the daemon ends with code 1 and says so", port_taken),
    (
        "store corrupt",
        "the daemon ends with code 1; its runs go on without it with `aha run --resume`",
        || corrupt(|bytes| bytes.fill(7)),
    ),
    (
        "store cut in half",
        "the daemon ends with code 1; its runs go on without it with `aha run --resume`",
        || corrupt(|bytes| bytes.truncate(bytes.len() / 2)),
    ),
    ("disk full: the queue", REFUSES, || queue_fails("write", "*/queue.redb", "ENOSPC")),
    ("fsync of the queue fails", REFUSES, || queue_fails("fsync", "*/queue.redb", "EIO")),
    ("permissions lost in the home folder", REFUSES, || {
        queue_fails("open", "*/home/pipelines/*", "EACCES")
    }),
    (
        "disk full under a daemon's run",
        "`aha show`, the dashboard and `aha_run_waiting` say that it waits; it goes on by itself",
        run_waits,
    ),
    (
        "less room than the daemon's `--disk-reserve`",
        "submissions are refused with status 507; the daemon lives",
        under_the_reserve,
    ),
    ("a run's process is killed", "it is started again after a second and goes on", child_killed),
    (
        "a run's process hangs and is cancelled",
        "it is killed after five seconds, and the run is cancelled",
        child_hangs,
    ),
    (
        "a run's directory is deleted",
        "the run fails and names what is gone; the daemon lives",
        run_deleted,
    ),
    (
        "machine short of memory",
        "no run is started, and `aha show` says why; it starts when there is memory",
        no_memory,
    ),
    (
        "the kernel ends a run for want of memory",
        "told apart from a crash; tried again with half as much more memory kept for it",
        out_of_memory,
    ),
    (
        "clock set back while a run waits to be tried again",
        "it is tried again all the same",
        clock_set_back,
    ),
    ("event streams that nobody reads", "the daemon answers others, and runs go on", nobody_reads),
];

const REFUSES: &str = "the submission is refused with status 507 and loses nothing; the daemon lives, and takes the \
                       next one when it can";

/// A folder, and the environment of a daemon with these rules.
fn place(rules: &[String]) -> (Bench, Vec<(&'static str, String)>) {
    let variables = match rules {
        [] => Vec::new(),
        rules => {
            vec![("LD_PRELOAD", shim().display().to_string()), ("AHA_FAULTS", rules.join("\n"))]
        }
    };
    (Bench::new(), variables)
}

/// A daemon that has to end by itself; what it said.
fn ends(bench: &Bench, args: &[&str], rules: &[String]) -> String {
    let all = [&["daemon", "--home", "home", "--listen", "127.0.0.1:0"], args].concat();
    let mut command = command(bench.dir(), &all);
    with_rules(&mut command, rules);
    let ended = outcome(&mut command);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("\nhint: "), "{ended:?}");
    ended.stderr.lines().next().unwrap().chars().take(80).collect()
}

fn read_only() -> String {
    let said = {
        let bench = Bench::new();
        let all = ["daemon", "--home", "home", "--listen", "127.0.0.1:0"];
        let mut command = command(bench.dir(), &all);
        with_rules(&mut command, &[rule("open", "*/home/*", "EROFS", (0, 0), None)]);
        outcome(&mut command)
    };
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("home/") && said.stderr.contains("Read-only"), "{said:?}");
    "ended, named the file".to_owned()
}

fn two_daemons() -> String {
    let (bench, _) = place(&[]);
    let daemon = Daemon::start(bench.dir(), &[]);
    let said = ends(&bench, &[], &[]);
    assert!(said.contains("another daemon works in"), "{said}");
    assert_eq!(daemon.get("/healthz").0, 200);
    "ended, named the folder; the other answers".to_owned()
}

fn port_taken() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let bench = Bench::new();
    let ended =
        outcome(&mut command(bench.dir(), &["daemon", "--home", "home", "--listen", &address]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(&format!("can't listen on {address}")), "{ended:?}");
    "ended, named the port".to_owned()
}

fn corrupt(damage: fn(&mut Vec<u8>)) -> String {
    let (bench, _) = place(&[]);
    let mut daemon = Daemon::start(bench.dir(), &[]);
    let id = daemon.submit(&SETS);
    daemon.until_is(id, "finished");
    daemon.signal("-KILL");
    daemon.child.wait().unwrap();
    let queue = bench.dir().join("home/queue.redb");
    let mut bytes = fs_err::read(&queue).unwrap();
    damage(&mut bytes);
    fs_err::write(queue, bytes).unwrap();
    let said = ends(&bench, &[], &[]);
    assert!(said.contains("queue"), "{said}");
    let pipeline = format!("home/pipelines/{id}.toml");
    assert!(bench.dir().join(pipeline).exists());
    "ended, named the queue".to_owned()
}

/// What a submission gives: the status and the problem's type.
fn submit(bench: &Bench, daemon: &Daemon) -> (u16, Value) {
    let pipeline = fs_err::read_to_string(bench.dir().join("tiny.toml")).unwrap();
    let body = json!({ "pipeline": pipeline, "base_dir": bench.dir(), "sets": [SETS[1]] });
    daemon.post("/api/v1/runs", &body)
}

#[track_caller]
fn assert_refused_for_the_machine((status, problem): &(u16, Value)) {
    assert_eq!(
        (*status, problem["type"].as_str()),
        (507, Some("/problems/environment")),
        "{problem}"
    );
    assert!(problem["detail"].is_string(), "{problem}");
}

fn queue_fails(call: &str, glob: &str, what: &str) -> String {
    let flag_of = Bench::new();
    let flag = flag_of.flag();
    fs_err::remove_file(&flag).unwrap();
    let (bench, variables) = place(&[rule(call, glob, what, (0, 0), Some(&flag))]);
    let daemon = Daemon::start_with(bench.dir(), &[], &variables);
    let first = daemon.submit(&SETS);
    daemon.until_is(first, "finished");
    fs_err::write(&flag, "").unwrap();
    for _ in 0..2 {
        assert_refused_for_the_machine(&submit(&bench, &daemon));
    }
    assert_eq!(daemon.get("/healthz").0, 200);
    assert_eq!(daemon.run(first)["status"], "finished");
    fs_err::remove_file(&flag).unwrap();
    let second = daemon.submit(&SETS);
    daemon.until_is(second, "finished");
    let (_, runs) = daemon.get("/api/v1/runs");
    assert_eq!(runs["runs"].as_array().unwrap().len(), 2, "{runs}");
    "507 twice; then taken, and finished".to_owned()
}

fn run_waits() -> String {
    let flag_of = Bench::new();
    let flag = flag_of.flag();
    let (bench, variables) =
        place(&[rule("write", "*/tables/*zero*", "ENOSPC", (6, 0), Some(&flag))]);
    let daemon = Daemon::start_with(bench.dir(), &[], &variables);
    let id = daemon.submit(&SETS);
    let run = daemon.until(id, |run| run["problem"].is_object());
    assert_eq!(run["status"], "running");
    let shown = daemon.aha(&["show", &id.to_string()]).stdout;
    assert!(shown.contains("the run waits for room on the disk"), "{shown}");
    let waiting = |is: u8| {
        let (_, text) = daemon.ask("GET", "/metrics", None);
        String::from_utf8(text)
            .unwrap()
            .contains(&format!("aha_run_waiting{{run=\"{id}\",name=\"tiny\"}} {is}"))
    };
    assert!(waiting(1));
    fs_err::remove_file(flag).unwrap();
    let run = daemon.until_is(id, "finished");
    assert!(run["problem"].is_null(), "{run}");
    "waited, said so, finished".to_owned()
}

fn under_the_reserve() -> String {
    let (bench, _) = place(&[]);
    let daemon = Daemon::start(bench.dir(), &["--disk-reserve", "900000TiB"]);
    assert_refused_for_the_machine(&submit(&bench, &daemon));
    assert_eq!(daemon.get("/api/v1/runs").1, json!({ "runs": [] }));
    assert_eq!(daemon.get("/healthz").0, 200);
    "507, nothing in the queue".to_owned()
}

/// A daemon with a run that makes steps for longer than any test waits, and the number of its process.
fn working(bench: &Bench, variables: &[(&str, String)]) -> (Daemon, u64, String) {
    bench.edit(&format!("steps = {STEPS}"), "steps = 1000000");
    let daemon = Daemon::start_with(bench.dir(), &[], variables);
    let id = daemon.submit(&SETS);
    let pid = daemon.until_step(id, "zero", 3)["process"]["pid"].to_string();
    (daemon, id, pid)
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

fn child_killed() -> String {
    let (bench, _) = place(&[]);
    let (daemon, id, pid) = working(&bench, &[]);
    kill("-ABRT", &pid);
    let run = daemon.until(id, |run| run["starts"] == 2 && run["process"]["pid"].is_u64());
    assert!(run["problem"]["message"].as_str().unwrap().contains("signal 6"), "{run}");
    daemon.until_step(id, "zero", 4);
    "started again, made steps".to_owned()
}

fn child_hangs() -> String {
    let (bench, _) = place(&[]);
    let (daemon, id, pid) = working(&bench, &[]);
    kill("-STOP", &pid);
    let began = Instant::now();
    assert_eq!(daemon.aha(&["cancel", &id.to_string()]).code, Some(0));
    daemon.until_is(id, "cancelled");
    assert!(began.elapsed() >= Duration::from_secs(5), "it had its time");
    "killed, cancelled".to_owned()
}

fn run_deleted() -> String {
    let (bench, _) = place(&[]);
    let (daemon, id, _) = working(&bench, &[]);
    fs_err::rename(bench.dir().join(format!("home/runs/{id}")), bench.dir().join("gone")).unwrap();
    let run = daemon.until_is(id, "failed");
    let message = run["problem"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("home/runs/{id}")), "{message}");
    assert_eq!(daemon.get("/healthz").0, 200);
    "failed by the name of what is gone".to_owned()
}

fn no_memory() -> String {
    let flag_of = Bench::new();
    let flag = flag_of.flag();
    fs_err::remove_file(&flag).unwrap();
    let short = flag_of.dir().join("meminfo");
    fs_err::write(&short, "MemTotal: 8000000 kB\nMemAvailable: 1000 kB\n").unwrap();
    let target = format!("={}", short.display());
    let (bench, variables) = place(&[rule("open", "/proc/meminfo", &target, (0, 0), Some(&flag))]);
    let daemon = Daemon::start_with(bench.dir(), &["--memory", "2GiB"], &variables);
    fs_err::write(&flag, "").unwrap();
    let id = daemon.submit(&[&SETS[..], &["--set", "run.memory=1GiB"]].concat());
    let run = daemon.until(id, |run| run["problem"].is_object());
    assert_eq!(run["status"], "queued");
    let message = run["problem"]["message"].as_str().unwrap();
    assert!(message.contains("not started: the machine has 0 MiB of memory free"), "{message}");
    fs_err::remove_file(&flag).unwrap();
    let run = daemon.until_is(id, "finished");
    assert!(run["problem"].is_null(), "{run}");
    "held back, said why, finished later".to_owned()
}

fn out_of_memory() -> String {
    let counts_of = Bench::new();
    let counts = counts_of.dir().join("vmstat");
    fs_err::write(&counts, "nr_free_pages 1\noom_kill 4\n").unwrap();
    let target = format!("={}", counts.display());
    let (bench, variables) = place(&[rule("open", "/proc/vmstat", &target, (0, 0), None)]);
    let (daemon, id, pid) = working(&bench, &variables);
    let before = daemon.run(id)["memory_bytes"].as_u64().unwrap();
    fs_err::write(&counts, "nr_free_pages 1\noom_kill 5\n").unwrap();
    kill("-KILL", &pid);
    let run = daemon.until(id, |run| run["starts"] == 2 && run["process"]["pid"].is_u64());
    assert!(run["problem"]["message"].as_str().unwrap().contains("for want of memory"), "{run}");
    assert_eq!(run["memory_bytes"].as_u64().unwrap(), before + before / 2);
    daemon.until_step(id, "zero", 4);
    "said so, started again with more memory kept".to_owned()
}

fn clock_set_back() -> String {
    let (bench, mut variables) = place(&[]);
    let clock = bench.dir().join("clock");
    fs_err::write(&clock, "0").unwrap();
    variables.push(("LD_PRELOAD", shim().display().to_string()));
    variables.push(("AHA_FAULTS_CLOCK", clock.display().to_string()));
    let (daemon, id, pid) = working(&bench, &variables);
    kill("-ABRT", &pid);
    daemon.until(id, |run| run["not_before_us"].is_i64());
    fs_err::write(&clock, "-300000000").unwrap();
    daemon.until(id, |run| run["starts"] == 2 && run["process"]["pid"].is_u64());
    "started again".to_owned()
}

fn nobody_reads() -> String {
    let (bench, _) = place(&[]);
    let (daemon, id, _) = working(&bench, &[]);
    let address = daemon.url.strip_prefix("http://").unwrap();
    let streams: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            let request =
                format!("GET /api/v1/runs/{id}/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    let step = daemon.run(id)["progress"]["stages"][1]["step"].as_u64().unwrap();
    daemon.until_step(id, "zero", step + 300);
    assert_eq!(daemon.get("/healthz").0, 200);
    drop(streams);
    "answered others, run made steps".to_owned()
}
