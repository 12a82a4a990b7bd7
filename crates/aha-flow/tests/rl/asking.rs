//! Stages `sample` and `eval` whose completions are an endpoint's: what is asked, what is stored, and servers with
//! faults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aha_flow::Error;
use aha_flow::rundir::RunDir;
use aha_flow::stop::Stop;
use aha_rollout::{col, time};
use arrow::array::AsArray;
use serde_json::{Value as Json, json};

use crate::server::{Reply, Request, Server};
use crate::world::{How, World, each_rollout, rows};

const PIPELINE: &str = r#"
[[stage]]
name = "drawn"
kind = "sample"
prompts = "SELECT id, prompt, answer FROM problems"
n = 2
rewards = [{ kind = "math", extract = ["whole"] }]
"#;

/// Twelve sums, and a stage that asks `server`. `keys` are more of the endpoint's.
fn world(server: &Server, keys: &str) -> World {
    World::of(&format!("{PIPELINE}{}", endpoint(server, keys)), 12)
}

fn endpoint(server: &Server, keys: &str) -> String {
    format!("endpoint = {{ url = \"{}/v1\", model = \"teacher\"{keys} }}\n", server.url)
}

/// The last message of a chat, or the text.
fn prompt(request: &Request) -> String {
    let messages = request.body.get("messages").and_then(Json::as_array);
    let text = match messages.and_then(|messages| messages.last()) {
        Some(message) => &message["content"],
        None => &request.body["prompt"],
    };
    text.as_str().unwrap().to_owned()
}

/// The number before `+1=`.
fn number(request: &Request) -> u64 {
    prompt(request).trim_start_matches("Q: ").trim_end_matches("+1=").parse().unwrap()
}

fn says(text: &str) -> Json {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 5},
    })
}

/// Right for even numbers, with a word that tells completions apart.
fn answer(number_of_call: usize, request: &Request) -> Json {
    let i = number(request);
    says(&format!("{}", i + 1 + i % 2 + (i % 2) * number_of_call as u64))
}

/// Everything that a table of completions says of a row, but when.
fn told(dir: &RunDir) -> BTreeMap<String, (String, Option<f64>, String)> {
    let mut found = BTreeMap::new();
    each_rollout(dir, "drawn", |view, row| {
        let (text, reason) = (view.completion(row).to_owned(), view.finish_reason(row).to_owned());
        found.insert(view.rollout_id(row).to_owned(), (text, view.reward(row), reason));
    });
    found
}

/// Prompts that are set aside, with their errors.
fn set_aside(dir: &RunDir) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for batch in rows(dir, "drawn_set_aside") {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let (ids, errors) = (text(col::PROMPT_ID), text(col::ERROR));
        let row = |row| (ids.value(row).to_owned(), errors.value(row).to_owned());
        found.extend((0..batch.num_rows()).map(row));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_of_an_endpoint_are_rows_with_rewards() {
    let server = Server::start(|call, request| Reply::ok(&answer(call, request)));
    let world = world(&server, ", system = \"Be brief.\"");
    let sets = [
        "stage.drawn.sampling={ temperature = 0.5, top_p = 0.9, max_tokens = 7, stop = [\"!\"] }",
        "stage.drawn.template=\"Q: {prompt}\"",
    ];
    let outcome = world.finish("run", &sets).await;
    let mut seeds = BTreeSet::new();
    for request in server.requests() {
        assert_eq!(request.line, "POST /v1/chat/completions HTTP/1.1\r\n");
        assert!(!request.headers.contains("authorization"));
        let body = &request.body;
        assert_eq!(body["messages"][0], json!({"role": "system", "content": "Be brief."}));
        assert!(body["messages"][1]["content"].as_str().unwrap().starts_with("Q: "));
        assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.5), &json!(0.9)));
        assert_eq!((&body["max_tokens"], &body["stop"]), (&json!(7), &json!(["!"])));
        seeds.insert(body["seed"].as_u64().unwrap());
    }
    assert_eq!((server.requests().len(), seeds.len()), (24, 24), "a seed for each completion");
    let (mut right, mut count) = (0, 0);
    each_rollout(&world.dir("run"), "drawn", |view, row| {
        assert_eq!(view.rollout_id(row), format!("drawn/0/p{}/{}", count / 2, count % 2));
        assert_eq!((view.finish_reason(row), view.completion_len_tokens(row)), ("stop", 5));
        assert!(view.completion_token_ids(row).is_empty() && view.prompt_token_ids(row).is_empty());
        assert_eq!(view.skip_reason(row), Some("not_trained"));
        right += usize::from(view.reward(row) == Some(1.0));
        count += 1;
    });
    assert_eq!((count, right), (24, 12));
    assert!(set_aside(&world.dir("run")).is_empty());
    assert!(!world.dir("run").root().join("asked").exists(), "what is in the table is kept once");
    assert_eq!(outcome.steps("drawn")[0].1["completion_len_tokens"], 5.0);
    // A run that is done asks nothing.
    world.run("run", How { sets: &sets, resume: true, ..How::default() }).await.result.unwrap();
    assert_eq!(server.requests().len(), 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_ids_and_log_probs_are_stored_where_they_are_asked_for() {
    let server = Server::start(|_, request| {
        let i = number(request);
        Reply::ok(&json!({"choices": [{
            "text": (i + 1).to_string(), "finish_reason": "length",
            "token_ids": [i, 7], "prompt_token_ids": [1, 2, 3],
            "logprobs": {"token_logprobs": [-0.25, -1.5]},
        }]}))
    });
    let world = world(&server, ", api = \"completions\", token_ids = true, sends_seed = false");
    world.finish("run", &[]).await;
    each_rollout(&world.dir("run"), "drawn", |view, row| {
        let i: u32 = view.prompt_id(row)[1..].parse().unwrap();
        assert_eq!(view.prompt_token_ids(row), [1, 2, 3]);
        assert_eq!(view.completion_token_ids(row), [i, 7]);
        assert_eq!(view.completion_logprobs(row), [-0.25, -1.5]);
        assert_eq!((view.completion_len_tokens(row), view.finish_reason(row)), (2, "length"));
    });
    let requests = server.requests();
    assert_eq!(requests.len(), 24, "two alike are two completions");
    assert!(requests.iter().all(|request| request.line.starts_with("POST /v1/completions ")));
    assert!(requests.iter().all(|request| request.body.get("seed").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_tried_again_and_what_lasts_is_set_aside() {
    let calls: Mutex<BTreeMap<u64, usize>> = Mutex::default();
    let server = Server::start(move |call, request| {
        let i = number(request);
        let tries = {
            let mut calls = calls.lock().unwrap();
            let tries = calls.entry(i).or_default();
            *tries += 1;
            *tries
        };
        match (i, tries) {
            (0, 1) => Reply::Whole(429, "retry-after: 0.01\r\n", "slow down".to_owned()),
            (1, 1) => Reply::status(503),
            (2, 1) => Reply::Garbage,
            (3, 1) => Reply::Whole(200, "", "<html>busy</html>".to_owned()),
            (4, 1) => Reply::CutOff,
            (5, _) => Reply::Whole(400, "", "the prompt is too long".to_owned()),
            (6, _) => Reply::status(500),
            (7, _) => Reply::Hang,
            _ => Reply::ok(&answer(call, request)),
        }
    });
    let world = world(&server, ", retries_max = 1, call_seconds_max = 2");
    let outcome = world.finish("run", &["stage.drawn.n=1"]).await;
    let found = told(&world.dir("run"));
    let ids: Vec<u64> = (0..12).filter(|i| ![5, 6, 7].contains(i)).collect();
    for i in &ids {
        assert!(found.contains_key(&format!("drawn/0/p{i}/0")), "{i} in {found:?}");
    }
    assert_eq!(found.len(), ids.len());
    let aside = set_aside(&world.dir("run"));
    for (id, want) in [
        ("p5", "1 of 1 completions can't be had: the server answered 400: the prompt is too long"),
        ("p6", "the server answered 500: out of order (2 tries)"),
        ("p7", "no answer within 2 s (2 tries)"),
    ] {
        assert!(aside[id].contains(want), "{aside:?}");
    }
    assert_eq!(aside.len(), 3);
    // What the server refuses isn't asked again.
    let of_prompt =
        |i: u64| server.requests().iter().filter(|request| number(request) == i).count();
    assert_eq!([of_prompt(0), of_prompt(5), of_prompt(6), of_prompt(8)], [2, 1, 2, 1]);
    let (message, hint) = outcome.warnings()[0];
    assert!(message.contains("3 prompts are set aside, such as `p5`"), "{message}");
    assert!(hint.contains("`drawn_set_aside`"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_ends_the_stage_and_a_resume_asks_for_the_rest() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let server = Server::start(move |call, request| match call {
        10.. if !mended.load(Ordering::Relaxed) => Reply::status(502),
        _ => Reply::ok(&answer(call, request)),
    });
    let world = world(&server, ", retries_max = 0");
    let failed = world.run("run", How::default()).await;
    let message = failed.error().to_string();
    let want = "14 of 24 completions can't be had, as the endpoint fails: the server answered 502";
    assert!(message.contains(want), "{message}");
    assert!(failed.error().hint().unwrap().contains("--resume"));
    assert!(!world.dir("run").table("drawn").join("part-000000.parquet").exists());
    is_mended.store(true, Ordering::Relaxed);
    world.run("run", How { resume: true, ..How::default() }).await.result.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 24 + 14);
    // What came first is what counts.
    let mut answers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (call, request) in requests.iter().enumerate().filter(|(call, _)| *call < 10 || *call >= 24)
    {
        let text = answer(call, request).pointer("/choices/0/message/content").unwrap().clone();
        let texts = answers.entry(format!("p{}", number(request))).or_default();
        texts.insert(text.as_str().unwrap().to_owned());
    }
    each_rollout(&world.dir("run"), "drawn", |view, row| {
        assert!(answers[view.prompt_id(row)].contains(view.completion(row)));
    });
    assert_eq!(told(&world.dir("run")).len(), 24);
}

/// Goal: however a stage ends, one that goes on has each completion once, and asked for none that had come. Method: a
/// stop at each of some calls, of two chunks at once; the server tells calls apart, and hangs when it is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_was_stopped_asks_nothing_twice() {
    for stopped_at in [0, 1, 63, 70, 139] {
        let (stop, answered) = (Stop::default(), Arc::new(Mutex::new(Vec::new())));
        let (request, sink) = (stop.clone(), Arc::clone(&answered));
        let server = Server::start(move |call, asked| {
            if call == stopped_at {
                request.request();
                return Reply::Hang;
            }
            sink.lock().unwrap().push(asked.body.to_string());
            Reply::ok(&answer(call, asked))
        });
        let text = format!("{PIPELINE}{}", endpoint(&server, ", parallel_max = 4"));
        let world = World::of(&text, 70);
        let stopped = world.run("run", How { stop, ..How::default() }).await;
        assert!(matches!(stopped.error(), Error::Interrupted), "{stopped_at}");
        let kept = kept_lines(world.dir("run").root());
        let before = answered.lock().unwrap().len();
        let outcome = world.run("run", How { resume: true, ..How::default() }).await;
        outcome.result.unwrap();
        let rows = told(&world.dir("run"));
        assert_eq!(rows.len(), 140, "{stopped_at}");
        // Those under way at the stop are asked again: at most as many as there can be at once.
        let asked = server.requests().len();
        assert!(asked <= 140 + 4, "{asked} for a stop at {stopped_at}");
        assert!(before - kept.min(before) <= 128 + 4, "{kept} of {before} were kept");
        let whole = World::of(&text, 70);
        whole.run("run", How::default()).await.result.unwrap();
        assert_eq!(
            told(&whole.dir("run")).keys().collect::<Vec<_>>(),
            rows.keys().collect::<Vec<_>>()
        );
    }
}

/// Completions that are kept in a run directory and not yet in its table.
fn kept_lines(root: &Path) -> usize {
    let Ok(files) = fs_err::read_dir(root.join("asked").join("drawn")) else { return 0 };
    let text = |file: std::io::Result<fs_err::DirEntry>| {
        fs_err::read_to_string(file.unwrap().path()).unwrap()
    };
    files.map(text).map(|text| text.lines().count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_made_again_has_the_same_rows() {
    let server = Server::start(|call, request| Reply::ok(&answer(call, request)));
    let world = World::of(&format!("{PIPELINE}{}", endpoint(&server, "")), 70);
    let stop = Stop::default();
    let request = stop.clone();
    // Both chunks are under way; the stop comes when the first of them is written.
    let watcher = Arc::new(move |event| {
        if matches!(event, aha_flow::progress::Event::Step { .. }) {
            request.request();
        }
    });
    let how = How { stop, watcher: Some(watcher), ..How::default() };
    let _ = world.run("run", how).await.result; // It may be through.
    let dir = world.dir("run");
    let first = aha_rollout::read::read_part(&dir.table("drawn").join("part-000000.parquet"));
    world.run("run", How { resume: true, ..How::default() }).await.result.unwrap();
    let again = aha_rollout::read::read_part(&dir.table("drawn").join("part-000000.parquet"));
    if let Ok(first) = first {
        time::equal_but_for_time(&first, &again.unwrap()).unwrap();
    }
    assert_eq!((told(&dir).len(), server.requests().len()), (140, 140));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reward_that_counts_tokens_needs_their_number() {
    let server = Server::start(|_, request| {
        let mut reply = says("4");
        if number(request) != 3 {
            reply.as_object_mut().unwrap().remove("usage");
        }
        Reply::ok(&reply)
    });
    let length = "stage.drawn.rewards=[{ kind = \"length\", max_tokens = 9 }]";
    let world = world(&server, "");
    let failed = world.run("run", How { sets: &[length], ..How::default() }).await;
    let message = failed.error().to_string();
    assert!(message.contains("22 of 24") && message.contains("counts tokens"), "{message}");
    // Without such a reward it isn't needed.
    world.finish("plain", &[]).await;
    each_rollout(&world.dir("plain"), "drawn", |view, row| {
        let known = if view.prompt_id(row) == "p3" { 5 } else { 0 };
        assert_eq!(view.completion_len_tokens(row), known);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_sent_and_is_in_no_file() {
    // A variable that every test has, with a value that is nowhere else in the run.
    let key = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let told_key = key.clone();
    let server = Server::start(move |call, request| match number(request) {
        0 => Reply::Whole(400, "", format!("bad key {told_key}")),
        1 => Reply::ok(&says(&format!("your key is {told_key}"))),
        _ => Reply::ok(&answer(call, request)),
    });
    let world = world(&server, ", api_key_env = \"CARGO_MANIFEST_DIR\"");
    world.finish("run", &[]).await;
    let bearer = format!("authorization: bearer {}\r\n", key.to_lowercase());
    assert!(server.requests().iter().all(|request| request.headers.contains(&bearer)));
    assert!(set_aside(&world.dir("run"))["p0"].contains("bad key …"));
    assert_eq!(told(&world.dir("run"))["drawn/0/p1/0"].0, "your key is …");
    let mut open = vec![world.dir("run").root().to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = fs_err::read(&path).unwrap();
            let holds = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!holds, "{} holds the key", path.display());
        }
    }
    let unset = self::world(&server, ", api_key_env = \"AHA_TEST_NOT_SET\"");
    let outcome = unset.run("run", How::default()).await;
    let message = outcome.error().to_string();
    assert!(
        message.contains("the endpoint needs the environment variable `AHA_TEST_NOT_SET`"),
        "{message}"
    );
    assert!(!unset.dir("run").root().exists());
}

/// An evaluation of `blank` and of the endpoint beside it.
const EVALUATION: &str = r#"
[run]
seed = 5
threads = 2

[models]
blank = { init = "random", hidden_size = 32, intermediate_size = 48, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, max_position_embeddings = 64, init_std = 0.3, tokenizer = { train = "SELECT prompt || answer AS text FROM problems", vocab_size = 24, alphabet = "seen" } }

[[stage]]
name = "scores"
kind = "eval"
data = "SELECT id, prompt, answer FROM problems"
k = 2
max_tokens = 6
resamples = 20
reward = { kind = "math", extract = ["whole"] }
"#;

/// What an evaluation says of each model, but how fast it was.
fn evals(dir: &RunDir) -> BTreeMap<String, Json> {
    let mut writer = arrow::json::writer::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    for batch in rows(dir, "evals") {
        writer.write(&batch).unwrap();
    }
    writer.finish().unwrap();
    let found: Vec<Json> = serde_json::from_slice(&writer.into_inner()).unwrap();
    let named = found.into_iter().map(|mut row| {
        row.as_object_mut().unwrap().remove("tokens_per_second");
        (row["model"].as_str().unwrap().to_owned(), row)
    });
    named.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_evaluated_beside_models() {
    // Half of all sums are answered right; of the last no second completion can be had.
    let last: Mutex<usize> = Mutex::default();
    let server = Server::start(move |_, request| {
        let i = number(request);
        if i == 11 {
            let mut last = last.lock().unwrap();
            *last += 1;
            if *last == 2 {
                return Reply::Whole(400, "", "no".to_owned());
            }
        }
        Reply::ok(&says(&format!("{}", i + 1 + i % 2)))
    });
    let text = format!("{EVALUATION}model = \"blank\"\n");
    let text = format!(
        "{text}{}",
        endpoint(&server, ", token_ids = false").replace("teacher", "Org/Teacher-7B")
    );
    let world = World::of(&text, 12);
    let sets =
        ["stage.scores.temperature=0.5", "stage.scores.top_p=0.9", "stage.scores.stop=['!']"];
    let outcome = world.finish("run", &sets).await;
    let dir = world.dir("run");
    for request in server.requests() {
        let body = &request.body;
        assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.5), &json!(0.9)));
        assert_eq!((&body["max_tokens"], &body["stop"]), (&json!(6), &json!(["!"])));
        assert_eq!(body["model"], "Org/Teacher-7B");
    }
    assert_eq!(server.requests().len(), 24);
    let found = evals(&dir);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["blank", "org_teacher_7b"]);
    let of_server = &found["org_teacher_7b"];
    // Six of eleven: the twelfth is left out.
    assert_eq!((&of_server["problem_count"], &of_server["k"]), (&json!(11), &json!(2)));
    assert!((of_server["pass_at_1"].as_f64().unwrap() - 6.0 / 11.0).abs() < 1e-12, "{of_server}");
    assert_eq!(of_server["cons_at_k"], of_server["pass_at_1"]);
    assert_eq!(of_server["completion_len_tokens_mean"], json!(5.0));
    assert_eq!((&of_server["dtype"], &of_server["weights"]), (&Json::Null, &Json::Null));
    assert_eq!(found["blank"]["dtype"], "f32");
    assert_eq!(
        (&found["blank"]["problem_count"], &of_server["dataset"]),
        (&json!(12), &json!("problems"))
    );
    let mut count = 0;
    each_rollout(&dir, "scores_org_teacher_7b", |view, row| {
        assert_eq!(
            view.reward(row) == Some(1.0),
            view.prompt_id(row)[1..].parse::<u32>().unwrap() % 2 == 0
        );
        count += 1;
    });
    assert_eq!(count, 23);
    let warnings = outcome.warnings();
    let says = |text: &str| warnings.iter().any(|(message, _)| message.contains(text));
    assert!(
        says("1 of 12 problems are left out of the figures of `org_teacher_7b`"),
        "{warnings:?}"
    );
    assert!(says("1 prompts are set aside, such as `p11`"), "{warnings:?}");
    // The model's figures are those that it has without the endpoint, and a run that is done asks nothing.
    world.run("run", How { sets: &sets, resume: true, ..How::default() }).await.result.unwrap();
    assert_eq!(server.requests().len(), 24);
    let alone = World::of(&format!("{EVALUATION}model = \"blank\"\n"), 12);
    alone.finish("run", &sets).await;
    assert_eq!(evals(&alone.dir("run"))["blank"], found["blank"]);
}

/// The benchmark's question is around each problem, inside the template, as models are asked.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_asked_what_a_benchmark_asks() {
    let server = Server::start(|_, request| {
        let mut reply = json!({"choices": [{"message": {"content": "\\boxed{4}"}}]});
        if prompt(request).starts_with("Q: 0") {
            reply["usage"] = json!({"completion_tokens": 5});
        }
        Reply::ok(&reply)
    });
    let text = EVALUATION
        .replace("reward = { kind = \"math\", extract = [\"whole\"] }", "benchmark = \"gsm8k\"");
    let world = World::of(&format!("{text}{}", endpoint(&server, "")), 4);
    let outcome =
        world.finish("run", &["stage.scores.template=\"Q: {prompt}\"", "stage.scores.k=1"]).await;
    let mut asked: Vec<String> = server.requests().iter().map(prompt).collect();
    asked.sort();
    let want = |i: usize| {
        format!(
            "Q: {i}+1=\nPlease reason step by step, and put your final answer within \\boxed{{}}."
        )
    };
    assert_eq!(asked, (0..4).map(want).collect::<Vec<_>>());
    let found = &evals(&world.dir("run"))["teacher"];
    assert_eq!((&found["pass_at_1"], &found["benchmark"]), (&json!(0.25), &json!("gsm8k")));
    // Rows hold the problem itself, and lengths that the server didn't give are told of.
    each_rollout(&world.dir("run"), "scores_teacher", |view, row| {
        assert_eq!(view.prompt(row), format!("{}+1=", &view.prompt_id(row)[1..]));
    });
    let warnings = outcome.warnings();
    assert!(
        warnings
            .iter()
            .any(|(message, _)| message.contains("`teacher` gives 3 completions no length")),
        "{warnings:?}"
    );
}

/// Goal: an evaluation that goes on asks for none that had come. Method: a stop at each of some calls, of a server that
/// tells calls apart; then the figures are those of what it said first.
#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_that_was_stopped_asks_nothing_twice() {
    for stopped_at in [0, 5, 23] {
        let stop = Stop::default();
        let request = stop.clone();
        let server = Server::start(move |call, asked| {
            if call == stopped_at {
                request.request();
                return Reply::Hang;
            }
            Reply::ok(&answer(call, asked))
        });
        let text =
            format!("{EVALUATION}model = \"blank\"\n{}", endpoint(&server, ", parallel_max = 4"));
        let world = World::of(&text, 12);
        let stopped = world.run("run", How { stop, ..How::default() }).await;
        assert!(matches!(stopped.error(), Error::Interrupted), "{stopped_at}");
        assert!(evals(&world.dir("run")).contains_key("blank"), "models come first");
        let before = rows(&world.dir("run"), "scores_blank");
        world.run("run", How { resume: true, ..How::default() }).await.result.unwrap();
        let asked = server.requests().len();
        assert!(asked <= 24 + 4, "{asked} for a stop at {stopped_at}");
        let found = evals(&world.dir("run"));
        assert_eq!(found["teacher"]["pass_at_1"], json!(0.5));
        assert_eq!(found["teacher"]["problem_count"], json!(12));
        assert_eq!(rows(&world.dir("run"), "scores_blank"), before);
        assert!(!world.dir("run").root().join("asked").exists());
    }
}
