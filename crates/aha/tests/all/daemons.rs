//! `aha daemon` and the commands that ask it, over the real socket: runs from their submission to their end, through
//! kills and stops; and what is refused.

mod dashboard;
mod kills;
mod refused;
mod surviving;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Outcome, aha, command, write_pipeline};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(180);

/// A daemon in `dir/home`, which ends with the test.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    dir: PathBuf,
    pub(crate) url: String,
    token: Option<String>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Daemon {
        Daemon::start_with(dir, args, &[])
    }

    /// With these in its environment too.
    pub(crate) fn start_with(dir: &Path, args: &[&str], variables: &[(&str, String)]) -> Daemon {
        let mut all = vec!["daemon", "--home", "home"];
        if !args.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(args);
        let mut started = command(dir, &all);
        // The clock of tables stands still, so that runs can be compared byte by byte.
        started.env("SOURCE_DATE_EPOCH", "1700000000").env_remove("AHA_TOKEN");
        started.envs(variables.iter().map(|(name, value)| (name, value)));
        let log = std::fs::File::options().create(true).append(true).open(dir.join("daemon.log"));
        let child = started.stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap();
        let mut daemon = Daemon { child, dir: dir.to_owned(), url: String::new(), token: None };
        let until = Instant::now() + PATIENCE;
        while daemon.url.is_empty() {
            let said = std::fs::read_to_string(dir.join("home/daemon.json")).unwrap_or_default();
            let said: Value = serde_json::from_str(&said).unwrap_or_default();
            if said["pid"] == daemon.child.id() {
                daemon.url = said["url"].as_str().unwrap().to_owned();
            }
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// A client command.
    pub(crate) fn aha(&self, args: &[&str]) -> Outcome {
        aha(&self.dir, &[args, &["--home", "home"]].concat())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let (status, bytes) = self.ask("GET", path, None);
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, bytes) = self.ask("POST", path, Some(body));
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// A request and the whole answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Vec<u8>) {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent: ureq::Agent = config.build().into();
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let answer = match body {
            Some(body) => agent.run(request.body(body.to_string()).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut answer = answer.unwrap();
        let status = answer.status().as_u16();
        (status, answer.body_mut().read_to_vec().unwrap())
    }

    /// What comes back for these bytes; the connection is ours to spoil.
    pub(crate) fn raw(&self, request: &str) -> String {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.replace("HERE", address).as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset has said what it had to.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn run(&self, id: u64) -> Value {
        let (status, run) = self.get(&format!("/api/v1/runs/{id}"));
        assert_eq!(status, 200, "{run}");
        run
    }

    #[track_caller]
    pub(crate) fn until(&self, id: u64, is: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let run = self.run(id);
            if is(&run) {
                return run;
            }
            assert!(Instant::now() < until, "{run}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub(crate) fn until_is(&self, id: u64, status: &str) -> Value {
        self.until(id, |run| {
            assert!(status == "failed" || run["status"] != "failed", "{run}");
            run["status"] == status
        })
    }

    /// Waits until a stage has made so many steps.
    #[track_caller]
    pub(crate) fn until_step(&self, id: u64, stage: &str, step: u64) -> Value {
        self.until(id, |run| {
            assert_ne!(run["status"], "failed", "{run}");
            run["process"]["pid"].is_u64()
                && run["progress"]["stage"] == stage
                && step_of(run, stage) >= step
        })
    }

    pub(crate) fn submit(&self, args: &[&str]) -> u64 {
        let submitted = self.aha(&[&["submit", "tiny.toml", "--json"], args].concat());
        submitted.json()["id"].as_u64().unwrap()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

fn step_of(run: &Value, stage: &str) -> u64 {
    let stages = run["progress"]["stages"].as_array().into_iter().flatten();
    stages.filter(|found| found["name"] == stage).filter_map(|found| found["step"].as_u64()).sum()
}

const EVERY_STEP: &str = "stage.zero.checkpoint_every=1";

#[test]
fn a_run_is_submitted_finishes_and_can_be_asked() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &[]);
    let done = daemon.aha(&["submit", "tiny.toml", "--set", EVERY_STEP, "--wait", "--json"]).json();
    assert_eq!(
        (&done["status"], &done["id"], &done["name"]),
        (&json!("finished"), &json!(1), &json!("tiny"))
    );
    let stages = done["progress"]["stages"].as_array().unwrap();
    assert!(stages.iter().all(|stage| stage["is_done"] == true), "{done}");

    let listed = daemon.aha(&["runs"]);
    assert!(listed.stdout.contains("tiny") && listed.stdout.contains("finished"), "{listed:?}");
    assert_eq!(daemon.aha(&["runs", "--status", "queued", "--json"]).json(), json!([]));
    let shown = daemon.aha(&["show", "1"]);
    assert!(shown.stdout.contains("stage zero (rl): done"), "{shown:?}");
    let logs = daemon.aha(&["logs", "1", "-f"]);
    assert!(logs.stdout.contains("Stage done. stage=zero"), "{logs:?}");
    assert!(daemon.aha(&["top"]).stdout.starts_with("run "));
    let missing = daemon.aha(&["show", "9"]);
    assert_eq!(
        (missing.code, missing.stderr.contains("there is no run 9")),
        (Some(2), true),
        "{missing:?}"
    );

    asks_tables(&daemon);
    asks_files(&daemon);
    asks_about_the_daemon(&daemon);
    let (status, _) = daemon.ask("DELETE", "/api/v1/runs/1", None);
    assert_eq!(status, 204);
    assert_eq!(daemon.get("/api/v1/runs/1").0, 404);
    assert!(!temp.path().join("home/runs/1").exists());
}

fn asks_tables(daemon: &Daemon) {
    let sql = json!({ "sql": "SELECT step, count(*) AS n FROM zero GROUP BY step ORDER BY step" });
    let expected = json!([{ "step": 1, "n": 4 }, { "step": 2, "n": 4 }, { "step": 3, "n": 4 }]);
    assert_eq!(daemon.post("/api/v1/runs/1/query", &sql), (200, expected));
    let both = json!({ "runs": [1], "sql": "SELECT count(*) AS n FROM rollouts" });
    assert_eq!(daemon.post("/api/v1/query", &both), (200, json!([{ "n": 12 }])));
    let arrow = json!({ "sql": "SELECT step FROM zero", "format": "arrow" });
    let (status, bytes) = daemon.ask("POST", "/api/v1/runs/1/query", Some(&arrow));
    assert_eq!((status, &bytes[..4]), (200, &[0xff; 4][..]), "a stream of Arrow's begins so");
    let (_, tables) = daemon.get("/api/v1/runs/1/tables");
    let zero = tables["tables"].as_array().unwrap().iter().find(|t| t["name"] == "zero").unwrap();
    assert_eq!(zero["rows"], 12);
    let doc = zero["columns"].as_array().unwrap().iter().find(|c| c["name"] == "reward").unwrap();
    assert!(doc["doc"].is_string() && doc["type"] == "Float64", "{doc}");
    let (_, metrics) = daemon.get("/api/v1/runs/1/metrics?stage=zero&name=loss&after_step=1");
    let steps: Vec<u64> = metrics["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 3], "{metrics}");
}

fn asks_files(daemon: &Daemon) {
    let (_, checkpoints) = daemon.get("/api/v1/runs/1/checkpoints");
    let stages = checkpoints["checkpoints"].as_array().unwrap();
    assert!(
        stages.iter().any(|c| c["stage"] == "zero" && c["bytes"].as_u64().unwrap() > 1000),
        "{checkpoints}"
    );
    let (_, models) = daemon.get("/api/v1/runs/1/models");
    let names: Vec<&str> =
        models["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cold", "zero"]);
    let (status, config) = daemon.get("/api/v1/runs/1/models/zero/file?path=config.json");
    assert_eq!((status, &config["hidden_size"]), (200, &json!(32)));
    let (status, pipeline) = daemon.ask("GET", "/api/v1/runs/1/pipeline", None);
    let submitted = fs_err::read(daemon.dir.join("tiny.toml")).unwrap();
    assert_eq!((status, pipeline), (200, submitted));
}

fn asks_about_the_daemon(daemon: &Daemon) {
    let (_, document) = daemon.get("/api/v1/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(daemon.get("/healthz").0, 200);
    assert_eq!(daemon.get("/readyz").0, 200);
    let (_, metrics) = daemon.ask("GET", "/metrics", None);
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("aha_runs{status=\"finished\"} 1"), "{metrics}");
    let events = daemon.raw_until(
        "GET /api/v1/runs/1/events HTTP/1.1\r\nHost: HERE\r\nLast-Event-ID: 0\r\n\r\n",
        "\"status\":\"finished\"",
    );
    assert!(events.contains("event: step\n") && events.contains("text/event-stream"), "{events}");
    let (status, nothing) = daemon.get("/nowhere");
    assert_eq!((status, nothing["type"].as_str()), (404, Some("/problems/not-found")));
    assert_eq!(daemon.ask("DELETE", "/api/v1/runs", None).0, 405);
}

impl Daemon {
    /// As [`Daemon::raw`], of an answer that doesn't end: up to this text.
    pub(crate) fn raw_until(&self, request: &str, text: &str) -> String {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.replace("HERE", address).as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains(text) {
            let len = stream.read(&mut piece).unwrap();
            assert!(len > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend(&piece[..len]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[test]
fn models_of_runs_answer_in_openais_form() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &["--model-idle-seconds", "600"]);
    daemon.aha(&["submit", "tiny.toml", "--wait"]);
    let (_, models) = daemon.get("/v1/models");
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["1/cold", "1/zero"]);
    assert_eq!(daemon.get("/v1/models/1/zero"), (200, models["data"][1].clone()));
    assert_eq!(daemon.get("/v1/models/1%2Fzero"), (200, models["data"][1].clone()));
    assert_eq!((daemon.get("/v1/models/1/none").0, daemon.get("/v1/models/none").0), (404, 404));

    let chat = json!({
        "model": "1/zero", "messages": [{ "role": "user", "content": "1 + 1 =" }], "n": 2, "seed": 7,
        "max_tokens": 6, "logprobs": true, "top_logprobs": 2,
    });
    let (status, first) = daemon.post("/v1/chat/completions", &chat);
    assert_eq!((status, &first["object"]), (200, &json!("chat.completion")), "{first}");
    let choices = first["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for choice in choices {
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert!(tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0), "{choice}");
        assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    }
    let (_, again) = daemon.post("/v1/chat/completions", &chat);
    assert_eq!(first["choices"], again["choices"], "the same seed gives the same");
    streams(&daemon, &chat, &first);
    scores(&daemon);
    refuses(&daemon);
    forgets(&daemon);
}

/// A stream's pieces, put together, are the answer.
fn streams(daemon: &Daemon, chat: &Value, whole: &Value) {
    let mut asked = chat.clone();
    asked["stream"] = json!(true);
    asked["top_logprobs"] = json!(0);
    asked["stream_options"] = json!({ "include_usage": true });
    let (status, bytes) = daemon.ask("POST", "/v1/chat/completions", Some(&asked));
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of = |event: &&Value| event["choices"][0]["index"] == index;
        let said: String = events
            .iter()
            .filter(of)
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(choice["message"]["content"], said);
        let mut ends = events.iter().filter(of).map(|event| &event["choices"][0]["finish_reason"]);
        assert_eq!(ends.next_back(), Some(&choice["finish_reason"]));
    }
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);

    // With the likeliest other tokens each completion is one piece, and the same.
    asked["top_logprobs"] = json!(2);
    let (_, bytes) = daemon.ask("POST", "/v1/chat/completions", Some(&asked));
    let text = String::from_utf8(bytes).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    for choice in whole["choices"].as_array().unwrap() {
        let is_same = |event: &&Value| event["choices"][0]["index"] == choice["index"];
        let piece = &events.iter().find(is_same).unwrap()["choices"][0];
        assert_eq!(piece["logprobs"], choice["logprobs"]);
        assert_eq!(piece["delta"], choice["message"]);
    }
}

/// What evaluation harnesses ask: the log-probs of a text that is given.
fn scores(daemon: &Daemon) {
    let asked = json!({
        "model": "1", "prompt": ["1 + 1 = 2", "2 + 1"], "max_tokens": 0, "echo": true, "logprobs": 1,
    });
    let (status, answer) = daemon.post("/v1/completions", &asked);
    assert_eq!((status, &answer["model"]), (200, &json!("1/zero")), "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "1 + 1 = 2");
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(logprobs[0].is_null() && logprobs.len() > 1, "{choice}");
    assert!(logprobs[1..].iter().all(|logprob| logprob.as_f64().unwrap() < 0.0), "{choice}");
    assert!(choice["logprobs"]["top_logprobs"][1].is_object(), "{choice}");
    let stopped = json!({
        "model": "1/zero", "prompt": "1 + 1 =", "max_tokens": 6, "temperature": 0, "n": 2,
    });
    let (_, answer) = daemon.post("/v1/completions", &stopped);
    assert_eq!(answer["choices"][0]["text"], answer["choices"][1]["text"], "the likeliest is one");
}

fn refuses(daemon: &Daemon) {
    let asked = json!({ "model": "1/none", "prompt": "a" });
    let (status, problem) = daemon.post("/v1/completions", &asked);
    assert_eq!(
        (status, problem["error"]["type"].as_str()),
        (404, Some("invalid_request_error")),
        "{problem}"
    );
    let long = json!({ "model": "1/zero", "prompt": "a", "max_tokens": 1000 });
    let (status, problem) = daemon.post("/v1/completions", &long);
    assert_eq!(status, 400, "{problem}");
    assert!(problem["error"]["message"].as_str().unwrap().contains("positions"), "{problem}");
    let (status, problem) = daemon.post("/v1/completions", &json!({ "model": "1/zero" }));
    assert_eq!((status, &problem["error"]["code"]), (400, &json!("bad-request")), "{problem}");
    let (status, problem) = daemon.get("/v1/none");
    assert_eq!((status, &problem["error"]["code"]), (404, &json!("not-found")), "{problem}");
}

/// What a run that is removed has in memory goes with it.
fn forgets(daemon: &Daemon) {
    let loaded = || String::from_utf8(daemon.ask("GET", "/metrics", None).1).unwrap();
    assert!(loaded().contains("\naha_models_loaded 1\n"), "{}", loaded());
    assert_eq!(daemon.ask("DELETE", "/api/v1/runs/1", None).0, 204);
    let start = Instant::now();
    while !loaded().contains("\naha_models_loaded 0\n") {
        assert!(start.elapsed() < PATIENCE, "{}", loaded());
        std::thread::sleep(Duration::from_millis(20));
    }
}
