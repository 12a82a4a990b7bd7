//! Faults of those that a run asks: programs and judges that don't answer, or answer something else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

pub const CASES: [Case; 10] = [
    (
        "reward program hangs",
        "it is ended after `sample_seconds_max`, and the completion has a null score with the reason",
        || {
            program(
                "import sys, time\nsys.stdin.readline()\ntime.sleep(1000)\n",
                "0.5",
                "no answer within",
            )
        },
    ),
    (
        "reward program dies",
        "another one is started; the completion has a null score with the reason",
        || program("import sys\nsys.stdin.readline()\nsys.exit(3)\n", "10", "3"),
    ),
    ("reward program answers garbage", "the completion has a null score with the reason", || {
        program("import sys\nfor line in sys.stdin:\n    print('{]', flush=True)\n", "10", "")
    }),
    (
        "judge is down",
        "it is tried `retries_max` times with pauses; then a null score with the reason",
        judge_down,
    ),
    ("judge answers 500", TRIED_AGAIN, || {
        judge("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "500")
    }),
    ("judge answers 429", TRIED_AGAIN, || {
        judge("HTTP/1.1 429 Slow\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n", "429")
    }),
    ("judge answers garbage", "a null score with the reason", || {
        judge("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", "answer")
    }),
    ("judge answers no HTTP", TRIED_AGAIN, || judge("\0\0\0\0 what?\r\n\r\n", "")),
    ("judge breaks off", TRIED_AGAIN, || {
        judge("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "")
    }),
    (
        "judge never answers",
        "it is given up after `call_seconds_max`, and tried again; then a null score with the reason",
        || judge("", ""),
    ),
];

const TRIED_AGAIN: &str = "it is tried again with pauses; then a null score with the reason";

/// A run with a reward program, all of whose scores are null for this reason.
fn program(text: &str, seconds: &str, reason: &str) -> String {
    let bench = Bench::with_reward(
        "{ kind = \"command\", weight = 0.0, command = [\"python3\", \"score.py\"], workers = 4, \
         sample_seconds_max = SECONDS }",
    );
    bench.edit("SECONDS", seconds);
    fs_err::write(bench.dir().join("score.py"), text).unwrap();
    nulls(&bench, "reward_command", reason)
}

/// Runs to the end; every score of that column is null, with a reason that says so.
fn nulls(bench: &Bench, column: &str, reason: &str) -> String {
    bench.edit(&format!("steps = {STEPS}"), "steps = 2");
    let done = bench.run(&[], &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let sql = format!("SELECT {column} AS score, reward_error AS why FROM zero");
    let asked =
        crate::support::aha(bench.dir(), &["query", &sql, "--run", "run", "--format", "json"]);
    let rows = asked.json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let why = row["why"].as_str().unwrap_or_default();
        assert!(row["score"].is_null() && !why.is_empty() && why.contains(reason), "{row}");
    }
    let why = rows[0]["why"].as_str().unwrap();
    let short: String =
        why.chars().take(90).collect::<String>().replace(['|', '\n', '\r', '\0'], " ");
    format!("null scores: {short}")
}

const JUDGE: &str = "{ kind = \"judge\", weight = 0.0, url = \"http://ADDRESS/v1\", model = \"m\", \
                     call_seconds_max = 0.5, retries_max = 1, total_seconds_max = 5 }";

fn judge_down() -> String {
    // A port that was free a moment ago, and that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    nulls(&Bench::with_reward(&JUDGE.replace("ADDRESS", &address.to_string())), "reward_judge", "")
}

/// A run whose judge answers every request so; an empty answer is none.
fn judge(answer: &'static str, reason: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_so(stream, answer));
        }
    });
    nulls(
        &Bench::with_reward(&JUDGE.replace("ADDRESS", &address.to_string())),
        "reward_judge",
        reason,
    )
}

fn answer_so(mut stream: TcpStream, answer: &str) {
    let mut bytes = [0; 4096];
    if answer.is_empty() {
        // Until the other side gives up.
        while stream.read(&mut bytes).is_ok_and(|len| len > 0) {}
        return;
    }
    // What the client makes of a broken connection is what is tried.
    let _ = stream.read(&mut bytes);
    let _ = stream.write_all(answer.as_bytes());
}
