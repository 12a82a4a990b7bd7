//! Every key of `judge`, `http` and `command` does something.

use std::net::TcpListener;
use std::process::Command;

use aha_reward::{Kind, Sample};
use serde_json::{Value, json};

use crate::key_cases::{Case, Outcome, check_cases, check_keys};
use crate::server::{Reply, Request, Server};
use crate::{Lender, judge, samples, verifier};

const fn score(score: f32) -> Outcome {
    Ok(Some(score))
}

fn case(
    kind: Kind,
    within: &Value,
    key: &'static str,
    value: Value,
    with: Outcome,
) -> Case<'static> {
    let sample = Sample { prompt: "p", completion: "five", ..Sample::default() };
    let without = score(if kind == Kind::Judge { 0.3 } else { 3.0 });
    Case { kind, key, value, within: within.clone(), sample, without, with }
}

/// What a server says: 3, or another number for each part of a request that isn't the usual one.
fn number(request: &Request) -> u32 {
    let body = &request.body;
    let asks = |word: &str| body.to_string().contains(word);
    match () {
        () if request.headers.contains("authorization: bearer ") => 1,
        () if request.line.contains("/other") => 2,
        () if asks("\"Is this good? ") => 4,
        () if body["temperature"] == 1.5 => 5,
        () if body["max_tokens"] == 99 => 6,
        () if body["model"] == "other" => 7,
        () => 3,
    }
}

fn of_judge(server: &Server) -> Vec<Case<'static>> {
    let within = json!({"url": server.url, "model": "m"});
    let case = |key, value, with| case(Kind::Judge, &within, key, value, score(with));
    vec![
        case("url", json!(format!("{}/other", server.url)), 0.2),
        case("api_key_env", json!("SOME_KEY"), 0.1),
        case("model", json!("other"), 0.7),
        case("template", json!("Is this good? {completion}"), 0.4),
        case("temperature", json!(1.5), 0.5),
        case("max_tokens", json!(99), 0.6),
        case("score_pattern", json!("Mark: ([0-9])"), 0.8),
        case("score_key", json!("grade"), 0.9),
        case("score_min", json!(2.0), 0.125),
        case("score_max", json!(5.0), 0.6),
    ]
}

/// A model of the pipeline's that is lent says how long a completion is.
fn of_lent_judge() -> Vec<Case<'static>> {
    let within = json!({"model": "critic", "template": "{completion}"});
    let case = |key, value, with| {
        let case = case(Kind::Judge, &within, key, value, score(with));
        Case { without: score(0.4), ..case }
    };
    vec![case("max_tokens", json!(3), 0.3), case("temperature", json!(0.5), 0.45)]
}

fn of_http(server: &Server) -> Vec<Case<'static>> {
    let within = json!({"url": server.url});
    let case = |key, value, with| case(Kind::Http, &within, key, value, score(with));
    vec![
        case("url", json!(format!("{}/other", server.url)), 2.0),
        case("api_key_env", json!("SOME_KEY"), 1.0),
    ]
}

fn of_command() -> Vec<Case<'static>> {
    let says = |score: f32| {
        json!(["sed", "-u", format!("s/.*\"id\":\\([0-9]*\\).*/{{\"id\":\\1,\"score\":{score}}}/")])
    };
    let within = json!({"command": says(3.0)});
    vec![case(Kind::Command, &within, "command", says(2.0), score(2.0))]
}

/// How long and how often is waited, and how many at once, is in the tests of what `http` has in common with the
/// others and in those of `command`; `sandbox` is in the tests of code, which can start one.
const ELSEWHERE: [&str; 5] =
    ["parallel_max", "call_seconds_max", "retries_max", "total_seconds_max", "use_proxy"];

#[test]
fn every_key_of_rewards_that_wait_for_others_does_something() {
    let critic = Server::start(|_, request| {
        let text = format!("Score: {}\nMark: 8\n{{\"grade\": 9}}", number(request));
        Reply::ok(&json!({"choices": [{"message": {"role": "assistant", "content": text}}]}))
    });
    let service = Server::start(|_, request| Reply::ok(&json!({"score": number(request)})));
    let cases = [of_judge(&critic), of_lent_judge(), of_http(&service), of_command()].concat();
    let shared = [Kind::Judge, Kind::Http].map(|kind| ELSEWHERE.map(|key| (kind, key)));
    let of_each = [
        (Kind::Http, "batch_max"),
        (Kind::Command, "workers"),
        (Kind::Command, "sample_seconds_max"),
        (Kind::Command, "sandbox"),
    ];
    let elsewhere = [shared.concat(), of_each.to_vec()].concat();
    check_keys(&[Kind::Judge, Kind::Http, Kind::Command], &cases, &elsewhere);
    check_cases(&cases, &Lender::default());
}

/// Set where this program runs itself, with what the environment says of a proxy.
const CHILD: &str = "AHA_TEST_ASKS";

/// Goal: a proxy of the environment is asked on request only. Method: this test again in a process with such an
/// environment. Nobody answers; who was asked has a caller waiting.
#[test]
fn a_proxy_of_the_environment_counts_on_request_only() {
    if let Ok(reward) = std::env::var(CHILD) {
        judge(verifier(&reward, &Lender::default()).as_ref(), "five");
        return;
    }
    for use_proxy in [false, true] {
        let [service, proxy] = [listener(), listener()];
        let [service_at, proxy_at] =
            [&service, &proxy].map(|of| format!("http://{}", of.local_addr().unwrap()));
        let reward = json!({
            "kind": "http", "url": service_at, "use_proxy": use_proxy, "retries_max": 0,
            "call_seconds_max": 1,
        });
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "keys::a_proxy_of_the_environment_counts_on_request_only";
        child.args([name, "--exact"]).env(CHILD, reward.to_string());
        child.env_remove("NO_PROXY").env_remove("no_proxy");
        for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            child.env(variable, &proxy_at);
        }
        assert!(child.output().unwrap().status.success());
        let were_asked = [service, proxy].map(|listener| {
            listener.set_nonblocking(true).unwrap();
            listener.accept().is_ok()
        });
        assert_eq!(were_asked, [!use_proxy, use_proxy]);
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Waits until as many have come as there are samples, each on a worker of its own.
const MEETING: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    sample = json.loads(line)
    open(os.path.join(sample["prompt"], sample["completion"]), "w").close()
    while len(os.listdir(sample["prompt"])) < 2: time.sleep(0.01)
    print(json.dumps({"id": sample["id"], "score": 1}), flush=True)
"#;

#[test]
fn as_many_workers_are_kept_as_are_set() {
    for (workers, want) in [(2, Some(1.0)), (1, None)] {
        let folder = tempfile::tempdir().unwrap();
        let seconds = if workers == 1 { 0.5 } else { 60.0 };
        let reward = json!({
            "kind": "command", "command": ["python3", "-c", MEETING], "workers": workers,
            "sample_seconds_max": seconds,
        });
        let verifier = verifier(&reward.to_string(), &Lender::default());
        let mut both = samples(&["a", "b"]);
        both.iter_mut().for_each(|sample| sample.prompt = folder.path().to_str().unwrap());
        assert_eq!(verifier.score_all(&both)[0].score, want, "{workers}");
    }
}

#[test]
fn tries_end_when_the_time_for_all_of_them_is_over() {
    let busy = Server::start(|_, _| Reply::Whole(429, "retry-after: 100\r\n", String::new()));
    for (seconds, want) in [(7, "given up, 7 s in all"), (90, "given up, 90 s in all")] {
        let reward = json!({"kind": "http", "url": busy.url, "total_seconds_max": seconds});
        let verdict = judge(verifier(&reward.to_string(), &Lender::default()).as_ref(), "five");
        assert!(verdict.reason.contains(want), "{verdict:?}");
    }
}
