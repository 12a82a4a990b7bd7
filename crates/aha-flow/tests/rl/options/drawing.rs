//! Keys of `sample` and `eval`.

use serde_json::json;

use super::{Case, Kind, MODELS, Shows, error, problems, run, table, wide};
use crate::server::{Reply, Server};
use crate::world::{World, each_rollout};

const DRAWN: &str = r#"
[[stage]]
name = "drawn"
kind = "sample"
model = "blank"
prompts = "SELECT id, prompt, answer FROM problems WHERE id <> 'bad'"
n = 2
sampling = { max_tokens = 8 }
rewards = [{ kind = "regex", pattern = "^[0-4]" }]
"#;

const SCORES: &str = r#"
[[stage]]
name = "scores"
kind = "eval"
model = ["blank"]
data = "SELECT id, prompt, answer FROM problems WHERE id <> 'bad'"
k = 4
max_tokens = 8
reward = { kind = "regex", pattern = "^[0-4]" }
"#;

/// Thoughts end at a 1, of which the first is taken back.
const THINKING: &str =
    "thinking={ end = '1', max_tokens = 4, waits = 1, wait = '2', close = '=1' }";
const IMPATIENT: &str = "thinking={ end = '1', max_tokens = 4, wait = '2', close = '=1' }";
const OPEN_ENDED: &str = "thinking={ end = '1', max_tokens = 3, wait = '2' }";

/// Keys of `thinking`, which show in the rows of a table.
fn thinking(name: &'static str) -> Vec<Case> {
    vec![
        table(name, "thinking.end", "=", &[THINKING]),
        table(name, "thinking.min_tokens", "3", &[IMPATIENT]),
        table(name, "thinking.max_tokens", "3", &[THINKING]),
        table(name, "thinking.waits", "0", &[THINKING]),
        table(name, "thinking.wait", "'3'", &[THINKING]),
        table(name, "thinking.close", "=1", &[OPEN_ENDED]),
    ]
}

fn of_sample() -> Vec<Case> {
    let drawn = |key, value: &str, within: &[&str]| table("drawn", key, value, within);
    let cases = vec![
        drawn("model", "sage", &[]),
        drawn(
            "prompts",
            "SELECT id, prompt, answer FROM problems WHERE id NOT IN ('bad', 'p1')",
            &[],
        ),
        drawn("template", "1{prompt}", &[]),
        drawn("template", "r1-zero", &wide(&[])),
        error("chat template", "template", "chat", &[]),
        drawn("n", "3", &[]),
        drawn("sampling.temperature", "0.7", &[]),
        drawn("sampling.top_p", "0.5", &[]),
        drawn("sampling.top_k", "3", &[]),
        drawn("sampling.max_tokens", "7", &[]),
        drawn("sampling.stop", "['1']", &[]),
        drawn("sampling.stop_token_ids", "[7]", &[]),
        drawn("sampling.weights", "int8", &[]),
        drawn("reward_clip", "[0.0, 0.5]", &[]),
    ];
    [cases, thinking("drawn"), common_keys("drawn")].concat()
}

/// Keys that every reward has: the stage has a scorer of its own.
fn common_keys(name: &'static str) -> Vec<Case> {
    let base = "rewards=[{ kind = 'regex', pattern = '^[0-4]' }, { kind = 'regex', name = 'end', pattern = '[0-3]$' }]";
    let sources = "prompts=SELECT id, prompt, answer, source FROM problems WHERE id <> 'bad'";
    let nulls = "prompts=SELECT id, prompt, CASE WHEN id IN ('p0', 'p5') THEN NULL ELSE answer END AS answer \
                 FROM problems WHERE id <> 'bad'";
    let math = "rewards=[{ kind = 'math', extract = ['whole'] }]";
    let both = |first: &str, second: &str| {
        format!(
            "[{{ kind = 'regex', pattern = '^[0-4]'{first} }}, {{ kind = 'regex', name = 'end', pattern = '[0-3]$'{second} }}]"
        )
    };
    let case = |key, value: String, within: &[&str]| table(name, key, &value, within);
    vec![
        case(
            "rewards.kind",
            "[{ kind = 'math', name = 'regex', extract = ['whole'] }]".to_owned(),
            &[],
        ),
        case("rewards.name", both(", name = 'first'", ""), &[base]),
        case("rewards.weight", both(", weight = 0.5", ""), &[base]),
        case("rewards.clip", both(", clip = [0.0, 0.5]", ""), &[base]),
        case("rewards.gate", both("", ", gate = 1.0"), &[base]),
        case("rewards.sources", both("", ", sources = ['chat']"), &[base, sources]),
        case(
            "rewards.on_null",
            "[{ kind = 'math', extract = ['whole'], on_null = 'zero' }]".to_owned(),
            &[nulls, math],
        ),
    ]
}

/// Says what it was asked: whatever changes the question changes the completion.
fn echo() -> Server {
    Server::start(|_, request| {
        let text = format!("{} {}", request.line.trim(), request.body);
        Reply::ok(&json!({
            "choices": [{
                "message": {"role": "assistant", "content": text},
                "text": text,
                "finish_reason": "stop",
                "token_ids": [1, 7],
                "prompt_token_ids": [1, 2, 3],
                "logprobs": {"content": [{"logprob": -0.25}, {"logprob": -1.5}]},
            }],
            "usage": {"completion_tokens": 5},
        }))
    })
}

/// Keys of `endpoint`, which show in the rows of a table.
fn endpoint_keys(name: &'static str, other: &Server) -> Vec<Case> {
    let url = format!("{}/v2", other.url);
    let case = |key, value: &str| Case::new(key, value, &[], Shows::Rows(name));
    vec![
        case("endpoint.url", &url),
        case("endpoint.model", "pupil"),
        case("endpoint.api", "completions"),
        case("endpoint.system", "Be brief."),
        case("endpoint.token_ids", "true"),
        case("endpoint.sends_seed", "false"),
    ]
}

/// Those keys, and what else a server is sent of a stage `sample`.
fn of_endpoint(other: &Server) -> Vec<Case> {
    let case = |key, value: &str| Case::new(key, value, &[], Shows::Rows("drawn"));
    let cases = vec![
        case("sampling.temperature", "0.5"),
        case("sampling.top_p", "0.5"),
        case("sampling.top_k", "3"),
        case("sampling.max_tokens", "5"),
        case("sampling.stop", "['1']"),
        case("sampling.stop_token_ids", "[7]"),
        case("template", "1{prompt}"),
        case("n", "3"),
    ];
    [endpoint_keys("drawn", other), cases].concat()
}

/// The same of a stage `eval`.
fn of_evaluated_endpoint(other: &Server) -> Vec<Case> {
    let case = |key, value: &str| Case::new(key, value, &[], Shows::Rows("scores_teacher"));
    let cases = vec![
        case("temperature", "1.0"),
        case("top_p", "0.5"),
        case("top_k", "3"),
        case("max_tokens", "5"),
        case("stop", "['1']"),
        case("template", "1{prompt}"),
        case("k", "3"),
        case("limit", "3"),
    ];
    [endpoint_keys("scores_teacher", other), cases].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_sample_does_something() {
    let kind =
        |text: String| Kind { name: "drawn", heading: "kind = \"sample\"", text, left_out: &[] };
    let server = echo();
    let endpoint = format!("endpoint = {{ url = \"{}/v1\", model = \"teacher\" }}", server.url);
    let asked = kind(DRAWN.replace("model = \"blank\"", &endpoint));
    let drawn = kind(DRAWN.to_owned());
    drawn.check_cases(&[of_sample(), of_endpoint(&server)].concat());
    drawn.run(of_sample()).await;
    asked.run(of_endpoint(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_eval_does_something() {
    let drawn = |key, value: &str, within: &[&str]| table("scores_blank", key, value, within);
    let figures = |key, value: &str, within: &[&str]| table("scores", key, value, within);
    let gsm8k =
        "data=SELECT id, prompt, prompt AS question, '#### ' || answer AS answer FROM problems";
    let by_end = "rank_by={ kind = 'regex', name = 'end', pattern = '[0-3]$' }";
    let cases = vec![
        figures("model", "['sage']", &[]),
        drawn("data", "SELECT id, prompt, answer FROM problems WHERE id NOT IN ('bad', 'p1')", &[]),
        drawn("benchmark", "gsm8k", &wide(&[gsm8k])),
        drawn("limit", "3", &[]),
        drawn("template", "1{prompt}", &[]),
        drawn("template", "r1-zero", &wide(&[])),
        error("chat template", "template", "chat", &[]),
        drawn("k", "3", &[]),
        drawn("temperature", "1.0", &[]),
        drawn("top_p", "0.5", &[]),
        drawn("top_k", "3", &[]),
        drawn("max_tokens", "7", &[]),
        drawn("stop", "['1']", &[]),
        drawn("weights", "int8", &[]),
        figures("reward", "{ kind = 'regex', pattern = '[0-3]$' }", &[]),
        figures("rank_by", "{ kind = 'regex', name = 'start', pattern = '^[0-2]' }", &[]),
        figures(
            "rank_by",
            "{ kind = 'regex', name = 'end', pattern = '[0-3]$', weight = -1.0 }",
            &[by_end],
        ),
        figures("ks", "[3]", &[]),
        figures("resamples", "10", &[]),
    ];
    let kind = |text: String| Kind {
        name: "scores",
        heading: "kind = \"eval\"",
        text,
        left_out: &[
            ("benchmark=math500", "the tests of benchmarks have each"),
            ("benchmark=aime", "the tests of benchmarks have each"),
            ("benchmark=humaneval", "the tests of benchmarks have each"),
            ("benchmark=mbpp", "the tests of benchmarks have each"),
            ("benchmark=gpqa", "the tests of benchmarks have each"),
            ("benchmark=codeforces", "the tests of benchmarks have each"),
        ],
    };
    let server = echo();
    let endpoint = format!("endpoint = {{ url = \"{}/v1\", model = \"teacher\" }}", server.url);
    let asked = kind(SCORES.replace("model = [\"blank\"]", &endpoint));
    let (drawn, cases) = (kind(SCORES.to_owned()), [cases, thinking("scores_blank")].concat());
    drawn.check_cases(&[&cases[..], &of_evaluated_endpoint(&server)].concat());
    drawn.run(cases).await;
    asked.run(of_evaluated_endpoint(&server)).await;
}

/// Goal: the keys that narrow what is drawn mean what they say. Method: there are four ways to take the likeliest
/// token, and they give the same rows; lengths and ends are those that are set.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_drawn_is_what_the_keys_say() {
    let world = World::with(&problems());
    world.write_pipeline(&format!("{MODELS}{DRAWN}"));
    let drawn = async |name: &str, sampling: &str| {
        let sets = [format!("stage.drawn.sampling={{ {sampling} }}")];
        run(&world, name, &sets).await.unwrap();
        let mut found = Vec::new();
        each_rollout(&world.dir(name), "drawn", |view, row| {
            found.push((view.completion(row).to_owned(), view.finish_reason(row).to_owned()));
        });
        found
    };
    let likeliest = drawn("likeliest", "temperature = 0.0").await;
    assert!(likeliest.chunks(2).all(|two| two[0] == two[1]), "{likeliest:?}");
    assert_eq!(drawn("cold", "temperature = 1e-4").await, likeliest);
    assert_eq!(drawn("one", "top_k = 1").await, likeliest);
    assert_eq!(drawn("least", "top_p = 1e-6").await, likeliest);
    assert_ne!(drawn("all", "top_k = 2").await, likeliest);
    let stopped = drawn("stopped", "stop = ['1']").await;
    let ends = stopped.iter().filter(|(_, reason)| reason == "stop_string");
    assert!(ends.clone().all(|(text, _)| text.contains('1')) && ends.count() > 3, "{stopped:?}");
    assert!(stopped.iter().all(|(text, reason)| !text.contains('1') || reason == "stop_string"));
}
