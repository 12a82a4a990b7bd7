//! `kind = "command"`: programs that score, and programs that don't.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{Lender, judge, samples, verifier};

/// Scores by length, but does what a completion says: `die`, `kill`, `hang`, `garbage`, `flood`, `endless`,
/// `stray`, `deaf`, `close`, `null`.
const PROGRAM: &str = r#"
import json, os, signal, sys, time
def say(text):
    sys.stdout.write(text); sys.stdout.flush()
sys.stderr.write("started\n")
for line in sys.stdin:
    sample = json.loads(line)
    id, what = sample["id"], sample["completion"]
    if what == "die": sys.exit(3)
    if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang": time.sleep(3600)
    if what == "garbage": say("loading...\n")
    if what == "close": os.close(1); time.sleep(3600)
    if what == "flood":
        while True: say("x" * 65536)
    if what == "endless":
        while True: say('{"id": -1, "score": 1}\n')
    if what == "stray": say(json.dumps({"id": id + 1000, "score": 9}) + "\n")
    if what == "child":
        pid = os.fork()
        if pid == 0: time.sleep(3600)
        open(sample["prompt"], "w").write(str(pid))
        sys.exit(0)
    score = None if what == "null" else len(what)
    say(json.dumps({"id": id, "score": score, "reason": str(os.getpid())}) + "\n")
"#;

fn reward(keys: &str) -> String {
    let command = json!(["python3", "-c", PROGRAM]);
    format!(r#"{{"kind":"command","command":{command}{keys}}}"#)
}

#[test]
fn one_program_scores_sample_after_sample() {
    let verifier = verifier(&reward(""), &Lender::default());
    let verdicts = verifier.score_all(&samples(&["a", "bbb", "null", "stray"]));
    let scores: Vec<Option<f32>> = verdicts.iter().map(|verdict| verdict.score).collect();
    assert_eq!(scores, [Some(1.0), Some(3.0), None, Some(5.0)]);
    assert!(verdicts.iter().all(|verdict| verdict.reason == verdicts[0].reason), "one process");
    assert_eq!(judge(verifier.as_ref(), "cc").reason, verdicts[0].reason);
}

#[test]
fn what_breaks_the_program_costs_its_sample_the_score_and_no_other() {
    let verifier = verifier(&reward(r#","sample_seconds_max":3"#), &Lender::default());
    for (completion, reason) in [
        ("die", "died: exit code 3"),
        ("kill", "died: signal 9"),
        ("garbage", "what is no answer: loading..."),
        ("flood", "a line of more than"),
        ("endless", "what nobody asked"),
        ("close", "closed its output"),
    ] {
        let verdicts = verifier.score_all(&samples(&["a", completion, "bb"]));
        let scores: Vec<Option<f32>> = verdicts.iter().map(|verdict| verdict.score).collect();
        assert_eq!(scores, [Some(1.0), None, Some(2.0)], "{completion} {verdicts:?}");
        assert!(verdicts[1].reason.contains(reason), "{verdicts:?}");
    }
}

#[test]
fn a_sample_has_its_time_also_where_the_program_does_not_read() {
    let hangs = verifier(&reward(r#","sample_seconds_max":0.5"#), &Lender::default());
    assert!(judge(hangs.as_ref(), "hang").reason.contains("no answer within 0.5 s"));
    let deaf = r#"{"kind":"command","command":["sleep","3600"],"sample_seconds_max":0.1}"#;
    let long = "x".repeat(1 << 20);
    assert!(judge(verifier(deaf, &Lender::default()).as_ref(), &long).reason.contains("0.1 s"));
}

#[test]
fn a_program_that_always_dies_is_no_endless_loop() {
    let reward = r#"{"kind":"command","command":["false"]}"#;
    let verdicts = verifier(reward, &Lender::default()).score_all(&samples(&["a", "b", "c"]));
    assert!(
        verdicts.iter().all(|verdict| verdict.reason.contains("died: exit code 1")),
        "{verdicts:?}"
    );
}

#[test]
fn answers_are_kept_and_a_stop_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let scores = || {
        let verifier = verifier(&reward(""), &Lender::keeping(folder.path()));
        verifier.score_all(&samples(&["a", "die", "bb"]))
    };
    let first = scores();
    // Its reason holds the process: asked again it would be another one.
    assert_eq!(scores(), first);
    let lender = Lender::default();
    let cancel = lender.waiting.cancel.clone();
    let hangs = verifier(&reward(r#","sample_seconds_max":3600"#), &lender);
    let begun = Instant::now();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        cancel.raise();
    });
    assert!(judge(hangs.as_ref(), "hang").reason.contains("stopped"));
    assert!(begun.elapsed() < Duration::from_secs(60));
    stopper.join().unwrap();
}

#[test]
fn what_a_program_has_started_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("pid");
    let verifier = verifier(&reward(r#","sample_seconds_max":2"#), &Lender::default());
    let mut sample = samples(&["child"]);
    sample[0].prompt = note.to_str().unwrap();
    // The child holds the output open, so only the end of its parent shows; both go when time is up.
    let begun = Instant::now();
    assert_eq!(verifier.score(&sample[0]).score, None);
    let pid = fs_err::read_to_string(&note).unwrap();
    while is_running(&pid) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and no zombie.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
