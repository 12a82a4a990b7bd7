//! The sandbox by itself: how programs end, what comes back, and what is left. Hostile programs are in the
//! tests of `aha-reward`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aha_sandbox::{
    Exit, File, Isolation, Job, Limit, State, Stdin, enter_if_asked, probe, run, start,
};

fn main() -> ExitCode {
    enter_if_asked();
    for layer in probe() {
        // Never skipped: where nothing is contained, nothing is shown by passing.
        assert_eq!(layer.state, State::Works, "`{}` does not work: {}", layer.name, layer.remedy);
    }
    for isolation in [Isolation::Strong, Isolation::Weak] {
        programs_end_as_they_end(isolation);
        files_and_input_arrive(isolation);
        a_job_that_nobody_waits_for_is_killed(isolation);
        a_dialogue_is_input_and_output(isolation);
    }
    a_missing_program_is_told();
    many_threads_run_programs_at_once();
    println!("sandbox: ok");
    ExitCode::SUCCESS
}

fn shell(script: &str, isolation: Isolation) -> Job {
    let mut job = Job::new(["/bin/sh", "-c", script]);
    job.isolation = isolation;
    job.limits.wall_ms = Some(1000);
    job.limits.output_bytes = 1000;
    job
}

fn programs_end_as_they_end(isolation: Isolation) {
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 7", Exit::Code(7)),
        ("kill -9 $$", Exit::Signal(9)),
        ("sleep 100", Exit::Limit(Limit::Wall)),
        ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done", Exit::Limit(Limit::Output)),
        // What was left running holds the output open, and is killed all the same.
        ("sleep 100 & exit 3", Exit::Code(3)),
    ] {
        let outcome = run(&shell(script, isolation)).unwrap();
        assert_eq!(outcome.exit, exit, "{isolation:?}: {script}");
        assert!(outcome.wall < Duration::from_secs(5), "{script}: {:?}", outcome.wall);
        assert!(outcome.stdout.len() <= 1000);
    }
}

fn files_and_input_arrive(isolation: Isolation) {
    let mut job = shell("cat; cat a; ./b; echo $WORD >&2", isolation);
    job.env = vec![("WORD".to_owned(), "four".to_owned())];
    job.stdin = Stdin::Bytes(b"one\n".to_vec());
    let file = |name: &str, text: &str, is_program| File {
        name: name.to_owned(),
        bytes: text.as_bytes().to_vec(),
        is_program,
    };
    job.files = vec![file("a", "two\n", false), file("b", "#!/bin/sh\necho three\n", true)];
    let outcome = run(&job).unwrap();
    assert_eq!(outcome.stdout, b"one\ntwo\nthree\n");
    assert_eq!(outcome.stderr, b"four\n");
    // Nothing can be put elsewhere.
    job.files = vec![file("../a", "", false)];
    assert!(run(&job).is_err());
}

fn a_job_that_nobody_waits_for_is_killed(isolation: Isolation) {
    let mut job = shell("sleep 100 & sleep 100", isolation);
    job.limits.wall_ms = None;
    job.stdin = Stdin::Channel;
    let begun = Instant::now();
    drop(start(&job).unwrap());
    let running = start(&job).unwrap();
    running.cancel();
    assert_eq!(running.finish().unwrap().exit, Exit::Cancelled);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn a_dialogue_is_input_and_output(isolation: Isolation) {
    let mut job = shell("read word; echo \"$word$word\"; echo lost >&2; exit 4", isolation);
    job.stdin = Stdin::Dialogue;
    let mut running = start(&job).unwrap();
    let channel = running.channel().unwrap();
    channel.write_all(b"two\n").unwrap();
    let mut text = String::new();
    channel.read_to_string(&mut text).unwrap();
    assert_eq!(text, "twotwo\n");
    assert_eq!(running.finish().unwrap().exit, Exit::Code(4));
}

fn a_missing_program_is_told() {
    let error = run(&Job::new(["/usr/bin/no-such-program"])).unwrap_err().to_string();
    assert!(error.contains("`program`") && error.contains("No such file"), "{error}");
}

fn many_threads_run_programs_at_once() {
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let outcome = run(&shell(&format!("echo {number}"), Isolation::Strong)).unwrap();
                assert_eq!(outcome.stdout, format!("{number}\n").into_bytes());
            });
        }
    });
}
