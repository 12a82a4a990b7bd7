//! `aha report`: the page, and the event files of TensorBoard.

use std::path::Path;

use aha_model::Tokenizer;
use aha_rollout::rows::{self, EvalRow, MetricRow, RolloutRow};
use aha_rollout::schema;
use aha_rollout::steps::{Scores, add_scores, add_untrained};
use aha_rollout::table::{TableWriter, part_name};
use serde_json::{Value, json};

use crate::support::{aha, write_model, write_pipeline, write_run};

/// Text that would run if it became markup, or end the data that it is part of.
const HOSTILE: &str = "</script><script>alert(1)</script><!-- \u{202e}\u{2028} wait";

/// The page's data.
fn data_of(page: &str) -> Value {
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(data).unwrap()
}

/// A completion of the page as one text.
fn text_of(data: &Value, row: &Value) -> String {
    let tokens = &row["tokens"];
    if let Some(text) = tokens["text"].as_str() {
        return text.to_owned();
    }
    let pieces = &data["browser"]["pieces"];
    let idxs = tokens["t"].as_array().unwrap().iter().map(|idx| idx.as_u64().unwrap() as usize);
    let of_text = idxs.filter(|idx| pieces["counts"][*idx] != 0);
    of_text.map(|idx| pieces["texts"][idx].as_str().unwrap()).collect()
}

/// The page is one file that names nothing outside of itself.
fn assert_self_contained(page: &str) {
    assert!(page.starts_with("<!doctype html>"), "{}", &page[..80]);
    assert_eq!(page.matches("<script").count(), 2, "the data and the script");
    assert_eq!(page.matches("</script>").count(), 2);
    assert_eq!(page.matches("default-src 'none'").count(), 1);
    for word in ["<link", "<img", "<iframe", " src=", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    // The name of a kind of markup, which nobody fetches.
    assert_eq!(page.matches("http").count(), page.matches("http-equiv").count() + 1);
}

#[test]
fn a_run_has_its_page_and_its_event_files() {
    let temp = write_pipeline(3);
    assert_eq!(aha(temp.path(), &["run", "tiny.toml"]).code, Some(0));
    let args = ["report", "--out", "page.html", "--tensorboard", "board"];
    let made = aha(temp.path(), &args);
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), "page.html\nboard\n"), "{made:?}");
    let page = fs_err::read_to_string(temp.path().join("page.html")).unwrap();
    assert_self_contained(&page);
    let data = data_of(&page);
    assert_eq!((&data["about"]["name"], &data["about"]["seed"]), (&json!("tiny"), &json!(3)));
    let states = data["stages"].as_array().unwrap().iter();
    let states: Vec<&str> = states.map(|stage| stage["status"].as_str().unwrap()).collect();
    assert_eq!(states, ["done"; 3]);
    assert_eq!(data["stages"][1]["completions_count"], 12);
    assert_eq!(data["stages"][1]["models"], json!(["cold"]));

    let zero = &data["curves"][1];
    assert_eq!(zero["stage"], "zero");
    for name in ["accuracy", "cons_at_k", "completion_len_tokens", "reward_math"] {
        let values = zero["lines"][name]["values"].as_array();
        assert!(values.is_some_and(|values| values.len() <= 3), "{name}: {zero}");
    }
    assert_eq!(zero["lines"]["reflections_mean"]["steps"], json!([1, 2, 3]));

    let source = &data["browser"]["sources"][0];
    assert_eq!((&source["table"], &source["steps_count"]), (&json!("zero"), &json!(3)));
    let sql = "SELECT prompt_id, step, sample_idx, completion FROM zero";
    let rows = aha(temp.path(), &["query", sql, "--json"]).json();
    for row in rows.as_array().unwrap() {
        let steps = source["steps"].as_array().unwrap().iter();
        let step = steps.clone().find(|step| step["step"] == row["step"]).unwrap();
        let mut groups = step["groups"].as_array().unwrap().iter();
        let group = groups.find(|group| group["id"] == row["prompt_id"]).unwrap();
        let shown = &group["rows"][row["sample_idx"].as_u64().unwrap() as usize];
        assert!(shown["tokens"]["t"].is_array(), "its tokens are known: {shown}");
        let written = row["completion"].as_str().unwrap();
        assert!(text_of(&data, shown).contains(&escaped(written.trim())), "{row} {shown}");
    }

    // By default it goes into the run directory, where it is in nobody's way.
    let by_default = aha(temp.path(), &["report", "runs/tiny"]);
    assert_eq!(by_default.stdout, "runs/tiny/report.html\n", "{by_default:?}");
    assert_eq!(aha(temp.path(), &["run", "tiny.toml"]).code, Some(0));
    let tags = ["accuracy", "reward_math", "tokens_per_second", "cons_at_k"];
    assert_events(&temp.path().join("board/zero"), &tags, 3);
    assert_events(&temp.path().join("board/cold"), &["loss", "lr"], 4);
}

/// As the page shows control characters.
fn escaped(text: &str) -> String {
    let is_shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .map(|c| if is_shown(&c) { c.to_string() } else { c.escape_default().to_string() })
        .collect()
}

/// The one file of the folder has these tags, and events up to this step.
fn assert_events(folder: &Path, tags: &[&str], last_step: u8) {
    let mut files: Vec<_> = fs_err::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    let file = files.pop().unwrap();
    assert!(files.is_empty(), "{files:?}");
    assert!(file.file_name().unwrap().to_str().unwrap().contains(".tfevents."), "{file:?}");
    let bytes = fs_err::read(&file).unwrap();
    let mut rest = bytes.as_slice();
    let mut events = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<8>() {
        let len = u64::from_le_bytes(*len) as usize;
        events.push(&after[4..4 + len]);
        rest = &after[4 + len + 4..];
    }
    assert!(rest.is_empty());
    assert!(events[0].ends_with(b"brain.Event:2"));
    for tag in tags {
        let of_tag = |event: &&&[u8]| event.windows(tag.len()).any(|w| w == tag.as_bytes());
        assert!(events.iter().filter(of_tag).count() > 0, "{tag}");
    }
    // The key of `step`, after the time.
    let last = events.last().unwrap();
    assert_eq!((last[9], last[10]), (0x10, last_step));
}

/// Writes a run directory by hand: one step of a stage `zero` that goes on, whose completions are hostile, with
/// a metric that is no number, and an evaluation.
fn write_hostile_run(temp: &Path) {
    let run = temp.join("run");
    let model = write_model(temp);
    fs_err::create_dir_all(run.join("models")).unwrap();
    let tokenizer = Tokenizer::load(&model).unwrap();
    tokenizer.save(&made(&run.join("models/zero"))).unwrap();
    let ids = tokenizer.encode(HOSTILE, false).unwrap();
    let logprobs = vec![-0.5; ids.len()];
    let names = ["math".to_owned()];
    let rollouts = schema::rollouts(&names).unwrap();
    let rollouts = TableWriter::open(&run.join("tables/zero"), rollouts).unwrap();
    let row = |sample_idx| RolloutRow {
        stage: "zero",
        step: 1,
        prompt_id: HOSTILE,
        source: Some(HOSTILE),
        sample_idx,
        policy_version: 0,
        prompt: HOSTILE,
        completion: HOSTILE,
        answer: Some(HOSTILE),
        tests: None,
        prompt_token_ids: &[1, 2],
        completion_token_ids: &ids,
        completion_logprobs: &logprobs,
        completion_forced_mask: None,
        completion_policy_versions: None,
        finish_reason: "stop",
        finished_at_us: 0,
    };
    let sampled = rows::rollouts(&[row(0), row(1)]).unwrap();
    let right = Scores { parts: vec![Some(1.0)], reward: Some(1.0), error: None };
    let unscored = Scores { parts: vec![None], reward: None, error: Some(HOSTILE.to_owned()) };
    let scored = add_scores(&sampled, &names, &[right, unscored]).unwrap();
    rollouts.write(&part_name(1), &[add_untrained(&scored, "no_signal").unwrap()]).unwrap();
    let metrics = TableWriter::open(&run.join("metrics"), schema::metrics()).unwrap();
    let metric = |name, value| MetricRow { stage: "zero", step: 1, name, value, at_us: 1_000_000 };
    let measured = [metric("accuracy", 0.5), metric("kl", f64::NAN), metric(HOSTILE, 1.0)];
    metrics.write(&part_name(1), &[rows::metrics(&measured)]).unwrap();
    let evals = TableWriter::open(&run.join("tables/evals"), schema::evals()).unwrap();
    let eval = EvalRow {
        stage: "../..".to_owned(),
        model: HOSTILE.to_owned(),
        dataset: HOSTILE.to_owned(),
        problem_count: 1,
        k: 1,
        ..EvalRow::default()
    };
    evals.write(&part_name(1), &[rows::evals(&[eval])]).unwrap();
    let stage = |name: &str, kind: &str, status: &str| json!({"name": name, "kind": kind, "status": status});
    let state = json!({
        "version": "0.1.0", "seed": 1, "started_at_us": 1_000_000,
        "machine": {"platform": HOSTILE, "instruction_set": "avx2", "threads": 1},
        "identity": {"settings_sha256": "", "inputs": {}},
        "stages": [stage("zero", "rl", "running"), stage("scores", "eval", "pending")],
    });
    fs_err::write(run.join("run.json"), state.to_string()).unwrap();
}

fn made(dir: &Path) -> std::path::PathBuf {
    fs_err::create_dir_all(dir).unwrap();
    dir.to_owned()
}

/// Goal: nothing that a model or a table says becomes markup, and half a run has a page. Method: a run in its
/// first step without its pipeline's file, every text of which would end the data and start a script.
#[test]
fn hostile_text_is_text_and_half_a_run_has_a_page() {
    let temp = tempfile::tempdir().unwrap();
    write_hostile_run(temp.path());
    let args = ["report", "--run", "run", "--out", "page.html", "--tensorboard", "board"];
    let made = aha(temp.path(), &args);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.stderr.contains("warning: `run/pipeline.toml` can't be read"), "{made:?}");
    let page = fs_err::read_to_string(temp.path().join("page.html")).unwrap();
    assert_self_contained(&page);
    assert!(!page.contains("<script>alert") && !page.contains(['\u{202e}', '\u{2028}']));
    let data = data_of(&page);
    assert_eq!(data["stages"][0]["status"], "running");
    assert_eq!(data["curves"][0]["lines"]["kl"]["values"], json!(["NaN"]));
    let source = &data["browser"]["sources"][0];
    let group = &source["steps"][0]["groups"][0];
    let shown = HOSTILE.replace('\u{202e}', "\\u{202e}");
    assert_eq!(data["about"]["platform"], shown);
    assert_eq!((&group["prompt"], &group["answer"]), (&json!(shown), &json!(shown)));
    assert_eq!(group["rows"][1]["error"], shown);
    assert_eq!(group["rows"][0]["skip"], "no_signal");
    assert!(group["rows"][0]["tokens"]["t"].is_array(), "{group}");
    assert_eq!(text_of(&data, &group["rows"][0]), shown);
    assert_eq!(fs_err::read_dir(temp.path()).unwrap().count(), 4, "nothing is written elsewhere");
    assert_events(&temp.path().join("board/zero"), &["accuracy", "kl"], 1);
}

/// The pipeline of the run that [`write_hostile_run`] writes.
const HOSTILE_PIPELINE: &str = r#"
[tables]
problems = "problems.jsonl"

[models]
base = "model"

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
rewards = [{ kind = "math" }]

[[stage]]
name = "scores"
kind = "eval"
model = "zero"
data = "SELECT id, prompt, answer FROM problems"
"#;

#[test]
fn the_first_right_answer_that_looks_back_is_on_the_page() {
    let temp = tempfile::tempdir().unwrap();
    write_hostile_run(temp.path());
    fs_err::write(temp.path().join("run/pipeline.toml"), HOSTILE_PIPELINE).unwrap();
    let made = aha(temp.path(), &["report", "run", "--out", "page.html"]);
    assert_eq!((made.code, made.stderr.contains("warning")), (Some(0), false), "{made:?}");
    let page = fs_err::read_to_string(temp.path().join("page.html")).unwrap();
    assert_self_contained(&page);
    let data = data_of(&page);
    let stage = &data["moments"][0];
    assert_eq!((&stage["rewards"], &stage["looked_steps"]), (&json!(["math"]), &json!([1, 1])));
    let found = &stage["moments"][0];
    assert_eq!((&found["step"], &found["count"]), (&json!(1), &json!(1)), "{found}");
    assert_eq!((&found["sample_idx"], &found["pieces"][1]), (&json!(0), &json!("wait")));
    let shown = HOSTILE.replace('\u{202e}', "\\u{202e}");
    assert_eq!((&found["prompt"], &found["answer"]), (&json!(shown), &json!(shown)));
    // The other completion of the group could not be scored, so the group has no vote.
    let lines = &data["curves"][0]["lines"];
    assert_eq!(lines["reflections_mean"]["values"], json!([1.0]));
    assert!(lines["cons_at_k"].is_null(), "{lines}");
}

/// Preferences, a critic, two sources with rewards of their own and a curriculum, and evaluations with a scorer
/// and with a bound on thinking: the stages of `write_pipeline` and these.
const SCENARIOS: &str = r#"
[[stage]]
name = "prefers"
kind = "dpo"
model = "cold"
data = "SELECT prompt, answer AS chosen, answer || '0' AS rejected FROM problems"
held_out_share = 0.25
batch_size = 4
max_tokens = 32

[[stage]]
name = "critical"
kind = "rl"
model = "cold"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 2
prompts_per_step = 4
group_size = 1
sampling = { max_tokens = 6 }
objective = { preset = "ppo" }
rewards = [{ kind = "length", max_tokens = 3, ramp_tokens = 6 }]
watchdogs = { truncated = "off", no_signal = "off", unparsed = "warn", trains_on_nothing = "off" }

[[stage]]
name = "mixed"
kind = "rl"
model = "cold"
prompts = "SELECT id, prompt, answer, CASE WHEN id < '4' THEN 'few' ELSE 'many' END AS source FROM problems"
source_weights = { few = 1, many = 1 }
curriculum = { band = [0.0, 1.0] }
steps = 2
prompts_per_step = 2
group_size = 2
sampling = { max_tokens = 6 }
rewards = [{ kind = "math", sources = ["few"] }, { kind = "exact", sources = ["many"] }]
watchdogs = { truncated = "off", no_signal = "off", unparsed = "warn", trains_on_nothing = "off" }

[[stage]]
name = "ranked"
kind = "eval"
model = "cold"
data = "SELECT id, prompt, answer FROM problems"
k = 4
max_tokens = 6
rank_by = { kind = "length", max_tokens = 3, ramp_tokens = 6 }
thinking = { max_tokens = 2, close = "=" }
"#;

/// Goal: what the stages of the whole recipe measure is on the page. Method: each of them, in miniature.
#[test]
fn preferences_critics_mixtures_and_scorers_are_on_the_page() {
    let temp = write_pipeline(1);
    let path = temp.path().join("tiny.toml");
    let pipeline = fs_err::read_to_string(&path).unwrap() + SCENARIOS;
    fs_err::write(&path, pipeline).unwrap();
    let run = aha(temp.path(), &["run", "tiny.toml"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let made = aha(temp.path(), &["report", "--out", "page.html", "--tensorboard", "board"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let page = fs_err::read_to_string(temp.path().join("page.html")).unwrap();
    assert_self_contained(&page);
    let data = data_of(&page);
    let docs = data["docs"].as_object().unwrap();
    for curves in data["curves"].as_array().unwrap() {
        for name in curves["lines"].as_object().unwrap().keys() {
            let prefix = ["source_share_", "source_reward_", "reward_"]
                .into_iter()
                .find(|prefix| name.starts_with(prefix))
                .map(|prefix| format!("{prefix}NAME"));
            let is_said = docs.contains_key(name) || prefix.is_some_and(|p| docs.contains_key(&p));
            assert!(is_said, "`{name}` of {curves}");
        }
    }
    let wanted: [(&str, &[&str]); 3] = [
        ("prefers", &["loss", "margin", "accuracy", "held_out_loss", "nll"]),
        ("critical", &["value_loss", "explained_variance", "value_clip_share"]),
        (
            "mixed",
            &["source_share_few", "source_reward_many", "in_band_share", "pass_rate", "cons_at_k"],
        ),
    ];
    for (stage, names) in wanted {
        let curves = data["curves"].as_array().unwrap().iter();
        let of = curves.clone().find(|curves| curves["stage"] == stage).unwrap();
        for name in names {
            assert!(of["lines"][name]["values"].is_array(), "`{name}` of {of}");
        }
        assert_events(&temp.path().join("board").join(stage), &names[..1], 2);
    }

    let sources = data["browser"]["sources"].as_array().unwrap();
    let source = |table: &str| sources.iter().find(|source| source["table"] == table).unwrap();
    let tokens = |table: &str| &source(table)["steps"][0]["groups"][0]["rows"][0]["tokens"];
    let critical = tokens("critical");
    let len = critical["t"].as_array().unwrap().len();
    assert_eq!(critical["a"].as_array().map(Vec::len), Some(len), "{critical}");
    assert_eq!(critical["v"].as_array().map(Vec::len), Some(len), "{critical}");
    assert!(tokens("mixed")["a"].is_null(), "all tokens have the advantage of the completion");
    let ranked = tokens("ranked_cold");
    assert!(!ranked["forced"].as_array().unwrap().is_empty(), "the bound on thinking: {ranked}");
    let eval = &data["evals"][0];
    assert_eq!(eval["thinking"], "thinking at most 2 tokens");
    assert_eq!(eval["ks"], json!([1, 2, 4]));
    for figure in ["bon_at_ks", "weighted_cons_at_ks", "cons_at_ks", "pass_at_ks_se"] {
        assert_eq!(eval[figure].as_array().map(Vec::len), Some(3), "{figure}: {eval}");
    }
}

#[test]
fn a_run_that_has_written_nothing_yet_has_a_page() {
    let temp = write_pipeline(2);
    assert_eq!(aha(temp.path(), &["run", "tiny.toml"]).code, Some(0));
    let run = temp.path().join("runs/tiny");
    for dir in ["tables", "metrics", "models", "checkpoints"] {
        fs_err::remove_dir_all(run.join(dir)).unwrap();
    }
    let made = aha(temp.path(), &["report"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let data = data_of(&fs_err::read_to_string(run.join("report.html")).unwrap());
    assert_eq!((&data["curves"], &data["evals"]), (&json!([]), &json!([])));
    assert_eq!((&data["moments"], &data["browser"]["sources"]), (&json!([]), &json!([])));
}

#[test]
fn a_report_that_can_not_be_made_says_why() {
    let temp = tempfile::tempdir().unwrap();
    write_run(&temp.path().join("runs/odd"));
    fs_err::write(temp.path().join("file"), "").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["nowhere"], "no run directory at `nowhere`"),
        (&["runs/odd"], "is not the state of a run"),
        (&["runs/odd", "--run", "runs/odd"], "cannot be used with"),
        (&["runs/odd", "--out", "runs"], "`runs` is a directory"),
        (&["runs/odd", "--tensorboard", "file"], "`file` is a file"),
    ];
    for (args, said) in cases {
        let outcome = aha(temp.path(), &[&["report"], args].concat());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(said), "{args:?}: {outcome:?}");
    }
    fs_err::remove_file(temp.path().join("runs/odd/run.json")).unwrap();
    let stateless = aha(temp.path(), &["report", "runs/odd"]);
    assert_eq!(stateless.code, Some(2), "{stateless:?}");
    assert!(stateless.stderr.contains("there is no `runs/odd/run.json`"), "{stateless:?}");
}
