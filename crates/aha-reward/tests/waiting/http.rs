//! `kind = "http"` and what all calls have in common.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use aha_reward::{Composite, OnNull, Verdict, Verifier};
use serde_json::json;

use crate::server::{Reply, Server};
use crate::{KEY, Lender, judge, samples, verifier};

/// The score is the completion's length.
fn scoring(_: usize, request: &crate::server::Request) -> Reply {
    let len = request.body["completion"].as_str().unwrap().len();
    Reply::ok(&json!({"score": len, "reason": "its length"}))
}

fn reward(server: &Server, keys: &str) -> String {
    format!(r#"{{"kind":"http","url":"{}/score"{keys}}}"#, server.url)
}

#[test]
fn a_sample_is_posted_whole_with_the_key_and_scored() {
    let server = Server::start(scoring);
    let reward = reward(&server, r#","api_key_env":"SOME_KEY""#);
    let verdict = judge(verifier(&reward, &Lender::default()).as_ref(), "four");
    assert_eq!(verdict, Verdict::scored(4.0, "its length"));
    let request = &server.requests()[0];
    assert_eq!(request.line, "POST /score HTTP/1.1\r\n");
    assert!(request.headers.contains(&format!("authorization: bearer {KEY}\r\n")));
    let sent = json!({
        "prompt": "p", "completion": "four", "answer": "a", "tests": null,
        "completion_len_tokens": 0, "is_truncated": false,
    });
    assert_eq!(request.body, sent);
}

#[test]
fn faults_that_pass_are_tried_again() {
    let server = Server::start(|number, request| match number {
        0 => Reply::Whole(500, "retry-after: 0\r\n", String::new()),
        1 => Reply::Whole(503, "retry-after: 0.01\r\n", String::new()),
        2 => Reply::Whole(429, "retry-after: 0\r\n", String::new()),
        _ => scoring(number, request),
    });
    let verifier = verifier(&reward(&server, ""), &Lender::default());
    assert_eq!(judge(verifier.as_ref(), "four").score, Some(4.0));
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_connection_that_breaks_in_the_middle_is_tried_again() {
    let server = Server::start(|number, request| match number {
        0 => Reply::CutOff,
        _ => scoring(number, request),
    });
    let verifier = verifier(&reward(&server, ""), &Lender::default());
    assert_eq!(judge(verifier.as_ref(), "four").score, Some(4.0));
}

#[test]
fn faults_that_last_give_null_with_the_reason_at_once() {
    let cases = [
        (Reply::status(401), "answered 401"),
        (Reply::Whole(302, "location: http://192.0.2.1/\r\n", String::new()), "not followed"),
        (Reply::Whole(200, "", "<html>".to_owned()), "is no JSON: <html>"),
        (Reply::ok(&json!({"score": "high"})), "expected {\"score\""),
        (Reply::ok(&json!([{"score": 1}])), "expected {\"score\""),
        (Reply::Whole(200, "", "x".repeat(2 << 20)), "longer than"),
        (Reply::Whole(400, "", format!("bad key {KEY}!")), "answered 400: bad key …!"),
        (Reply::ok(&json!({"error": format!("bad key {KEY}!")})), "bad key …!"),
        (Reply::Whole(200, "", format!("bad key {KEY}!")), "is no JSON: bad key …!"),
        (Reply::ok(&json!({"score": null, "reason": format!("bad key {KEY}!")})), "bad key …!"),
        // As JSON may write it.
        (Reply::Whole(200, "", format!("[\"{}\"]", KEY.replace('/', r"\/"))), "got [\"…\"]"),
    ];
    for (reply, reason) in cases {
        let server = Server::start(move |_, _| reply.clone());
        let reward = reward(&server, r#","api_key_env":"SOME_KEY""#);
        let verdict = judge(verifier(&reward, &Lender::default()).as_ref(), "four");
        assert_eq!(verdict.score, None);
        assert!(verdict.reason.contains(reason) && !verdict.reason.contains(KEY), "{verdict:?}");
        assert_eq!(server.requests().len(), 1, "{reason}");
    }
}

#[test]
fn tries_and_times_are_bounded() {
    let server = Server::start(|_, _| Reply::Whole(500, "retry-after: 0\r\n", String::new()));
    let tried = verifier(&reward(&server, r#","retries_max":2"#), &Lender::default());
    assert!(judge(tried.as_ref(), "x").reason.contains("answered 500:  (3 tries)"));
    assert_eq!(server.requests().len(), 3);
    // A server that wants a longer pause than there is time for.
    let busy = Server::start(|_, _| Reply::Whole(429, "retry-after: 3600\r\n", String::new()));
    let tried = verifier(&reward(&busy, ""), &Lender::default());
    assert!(judge(tried.as_ref(), "x").reason.contains("given up, 300 s in all"));
    for fault in [|| Reply::Hang, || Reply::Garbage] {
        let silent = Server::start(move |_, _| fault());
        let keys = r#","retries_max":0,"call_seconds_max":0.05"#;
        let verdict = judge(verifier(&reward(&silent, keys), &Lender::default()).as_ref(), "x");
        let is_told =
            ["no answer within", "connection failed"].iter().any(|r| verdict.reason.contains(r));
        assert!(verdict.score.is_none() && is_told, "{verdict:?}");
    }
}

#[test]
fn a_batch_is_an_array_and_its_answer_one_of_as_many() {
    let server = Server::start(|number, request| {
        let scores = request
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|sample| json!({"score": sample["completion"].as_str().unwrap().len()}));
        let scores: Vec<_> = scores.collect();
        // The second answer is one too short.
        Reply::ok(&json!(scores[usize::from(number == 1)..]))
    });
    let keys = r#","batch_max":3,"parallel_max":1"#;
    let verifier = verifier(&reward(&server, keys), &Lender::default());
    let verdicts = verifier.score_all(&samples(&["a", "bb", "a", "ccc", "dddd", "eeeee"]));
    let scores: Vec<Option<f32>> = verdicts.iter().map(|verdict| verdict.score).collect();
    assert_eq!(scores, [Some(1.0), Some(2.0), Some(1.0), Some(3.0), None, None]);
    assert!(verdicts[4].reason.contains("answered 1 scores for 2 samples"), "{:?}", verdicts[4]);
}

#[test]
fn a_run_that_goes_on_has_the_same_verdicts_without_a_call() {
    let folder = tempfile::tempdir().unwrap();
    // Each answer is another one.
    let server = Server::start(|number, request| match request.body["completion"] == "bad" {
        true => Reply::status(400),
        false => Reply::ok(&json!({"score": number})),
    });
    let completions = ["a", "bad", "b", "a", "c"];
    let scores = || {
        let verifier = verifier(&reward(&server, ""), &Lender::keeping(folder.path()));
        verifier.score_all(&samples(&completions))
    };
    let first = scores();
    assert_eq!(first[0], first[3]);
    assert_eq!(server.requests().len(), 4);
    assert_eq!(scores(), first);
    assert_eq!(server.requests().len(), 4);
    let kept = fs_err::read_to_string(folder.path().join("answers.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 4);
}

#[test]
fn a_failure_is_kept_unless_the_reward_that_it_belongs_to_stops_the_run() {
    for (of_reward, of_stage, is_kept) in [
        (r#","on_null":"zero""#, OnNull::Stop, true),
        ("", OnNull::Drop, true),
        ("", OnNull::Stop, false),
        (r#","on_null":"stop""#, OnNull::Zero, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|number, request| match number {
            0 => Reply::status(400),
            _ => scoring(number, request),
        });
        let asks = serde_json::from_str(&reward(&server, of_reward)).unwrap();
        // Another reward, which says otherwise.
        let other = if is_kept { "stop" } else { "zero" };
        let other = format!(r#"{{"kind":"exact","on_null":"{other}"}}"#);
        let specs = [asks, serde_json::from_str(&other).unwrap()];
        let score = || {
            let lender = Lender::keeping(folder.path());
            let composite = Composite::new(&specs, of_stage, None, &lender).ok().unwrap();
            composite.score(&samples(&["four"])[0]).parts[0]
        };
        assert_eq!(score(), None);
        assert_eq!(score(), if is_kept { None } else { Some(4.0) }, "{of_reward} {of_stage:?}");
    }
}

#[test]
fn calls_are_under_way_at_once_but_no_more_than_allowed() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Four wait for each other: with fewer nobody would get an answer.
    let meeting = Barrier::new(4);
    let seen = Arc::clone(&most);
    let server = Server::start(move |number, request| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        meeting.wait();
        now.fetch_sub(1, Ordering::SeqCst);
        scoring(number, request)
    });
    let verifier: Arc<dyn Verifier> =
        Arc::from(verifier(&reward(&server, r#","parallel_max":4"#), &Lender::default()));
    let texts: Vec<String> = (0..8).map(|i| "x".repeat(i)).collect();
    let callers: Vec<_> = (0..2)
        .map(|caller| {
            let (verifier, texts) = (Arc::clone(&verifier), texts.clone());
            thread::spawn(move || {
                let own: Vec<&str> =
                    texts.iter().skip(caller).step_by(2).map(String::as_str).collect();
                verifier.score_all(&samples(&own)).iter().all(|verdict| verdict.score.is_some())
            })
        })
        .collect();
    assert!(callers.into_iter().all(|caller| caller.join().unwrap()));
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[test]
fn a_stop_ends_the_wait_for_a_server_that_hangs_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lender = Lender::keeping(folder.path());
    let cancel = lender.waiting.cancel.clone();
    let server = Server::start(move |_, _| {
        cancel.raise();
        Reply::Hang
    });
    let verifier = verifier(&reward(&server, r#","call_seconds_max":3600"#), &lender);
    let begun = Instant::now();
    assert!(judge(verifier.as_ref(), "x").reason.contains("stopped"));
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(fs_err::metadata(folder.path().join("answers.jsonl")).unwrap().len(), 0);
}
