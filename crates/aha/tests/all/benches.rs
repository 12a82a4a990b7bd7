//! `aha bench` on a tiny model: every kind gives figures, and the profile has every op.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::support::{aha, write_model};

/// Whatever the kinds, each configuration once on a model that takes no time.
const BRIEF: [&str; 13] = [
    "--json",
    "--shape-of",
    "tiny",
    "--runs",
    "1",
    "--shape",
    "2x24",
    "--prompts",
    "2",
    "--samples",
    "2",
    "--prompt-tokens",
    "9",
];

#[track_caller]
fn bench(kinds: &[&str], more: &[&str]) -> Value {
    let args = [&["bench"], kinds, &BRIEF, &["--new-tokens", "5"], more].concat();
    aha(Path::new("."), &args).json()
}

/// The rows by name, each of which has the figures, all finite and positive.
#[track_caller]
fn rows(found: &Value, kind: &str, figures: &[&str]) -> Vec<String> {
    let rows = found["results"].as_array().unwrap();
    let rows: Vec<&Value> = rows.iter().filter(|row| row["kind"] == kind).collect();
    for row in &rows {
        assert!(row["threads"].as_u64().unwrap() >= 1 && row["problem"].is_null(), "{row}");
        let found = row["figures"].as_object().unwrap();
        for (name, value) in found {
            let value = value.as_f64().unwrap();
            assert!(value.is_finite() && value > 0.0, "{name} of {row}");
        }
        for name in figures {
            assert!(found.contains_key(*name), "`{name}` is missing: {row}");
        }
    }
    rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_kind_gives_its_figures() {
    let found = bench(&["peak", "train", "logprob", "decode", "grpo", "start"], &[]);
    let speed = ["tokens_per_second", "runs", "seconds_median", "peak_rss_bytes"];
    let with = |more: &[&'static str]| [&speed[..], more].concat();
    let peak = ["f32_gflop_per_second", "read_gb_per_second", "copy_gb_per_second"];
    assert!(!rows(&found, "peak", &peak).is_empty());
    let arithmetic = with(&["gflop_per_second", "peak_share"]);
    assert_eq!(rows(&found, "train", &arithmetic), ["2x24"]);
    assert_eq!(rows(&found, "logprob", &arithmetic), ["2x24"]);
    let decode = with(&["decode_tokens_per_second", "first_token_seconds", "read_share"]);
    assert_eq!(rows(&found, "decode", &decode), ["2x2, 9+5", "1x1, 9+5"]);
    let grpo = with(&["generate_seconds", "train_seconds"]);
    assert_eq!(rows(&found, "grpo", &grpo), ["2x2, 9+5, no KL", "2x2, 9+5, KL"]);
    let score = |idx: usize| &found["results"].as_array().unwrap().iter().rev().nth(idx).unwrap()["figures"];
    assert!(score(1)["score_seconds"].is_number(), "the reference is asked where there is KL");
    assert!(score(2)["score_seconds"].is_null(), "and only there");
    assert_eq!(rows(&found, "start", &["seconds_median"]), ["tiny"]);
    let machine = &found["machine"];
    assert!(machine["instruction_set"].is_string() && machine["threads"].is_u64(), "{machine}");
    assert_eq!(found["model"]["name"], "tiny");
}

#[test]
fn attention_is_measured_forward_and_backward() {
    let found = bench(&["attention"], &["--filter", "8x256"]);
    let names = rows(&found, "attention", &["seconds_min", "gflop_per_second", "peak_share"]);
    assert_eq!(names, ["forward", "backward"].map(|way| format!("{way}/8x256, 9/3 heads of 64")));
}

/// How much is gained is for people to look at; that the actors go through with it isn't.
#[test]
fn a_sampler_ahead_of_its_learner_is_simulated() {
    let found = bench(&["overlap"], &["--unit-ms", "8", "--steps", "4"]);
    let names = rows(&found, "overlap", &["steps_per_second", "step_units", "speedup"]);
    assert_eq!(names, [0, 1, 2, 4].map(|k| format!("max_staleness = {k}")));
    let first = &found["results"][0]["figures"];
    assert_eq!(first["speedup"], 1.0);
    assert!(
        first["step_units"].as_f64().unwrap() >= 1.99,
        "in turns, two waits follow each other: {first}"
    );
}

#[test]
fn products_are_chosen_by_name() {
    let found = bench(&["matmul"], &["--filter", "quick_out"]);
    let figures = ["gflop_per_second", "peak_share", "weights_gb_per_second"];
    let passes = ["forward", "backward_input", "backward_weight"];
    let expected = passes.map(|pass| format!("{pass}/quick_out 512x96x96"));
    assert_eq!(rows(&found, "matmul", &figures), expected);
}

#[test]
fn growth_leaves_out_what_the_model_has_no_room_for() {
    let found = bench(&["growth"], &["--filter", "context 128"]);
    let figures = ["decode_tokens_per_second", "logprob_peak_share", "train_tokens_per_second"];
    assert_eq!(rows(&found, "growth", &figures), ["context 128"]);
    let found = bench(&["growth"], &["--filter", "context 2048"]);
    let row = &found["results"][0];
    let problem = row["problem"].as_str().unwrap();
    assert_eq!(problem.matches("left out: the model has 1024 positions").count(), 3, "{problem}");
}

#[test]
fn what_makes_no_sense_is_refused_before_it_takes_long() {
    let refused = |args: &[&str], message: &str| {
        let outcome = aha(Path::new("."), &[&["bench"], args].concat());
        assert_eq!(outcome.code, Some(2), "{args:?}");
        assert!(outcome.stderr.contains(message), "{args:?}: {}", outcome.stderr);
    };
    refused(&["train", "--weights", "int8"], "nothing that is measured draws any");
    refused(
        &[
            "grpo",
            "--shape-of",
            "llama-1b",
            "--micro-batch-tokens",
            "4000000",
            "--samples",
            "100000",
        ],
        "iB, there are",
    );
}

/// Calls by op of the only row's profile.
fn calls(found: &Value) -> BTreeMap<String, u64> {
    let profile = &found["results"][0]["profile"];
    let ops = profile["ops"].as_array().unwrap();
    let total: f64 = ops.iter().map(|op| op["seconds"].as_f64().unwrap()).sum();
    let (seconds, rest) = (&profile["seconds"], &profile["rest_seconds"]);
    let [seconds, rest] = [seconds, rest].map(|value| value.as_f64().unwrap());
    assert!(
        rest >= 0.0 && (total + rest - seconds).abs() < 1e-6,
        "the parts are the whole: {profile}"
    );
    let call = |op: &Value| (op["op"].as_str().unwrap().to_owned(), op["count"].as_u64().unwrap());
    ops.iter().map(call).collect()
}

/// Goal: no op of a training step is missing from the profile. Method: a model of two layers and both
/// sequences in a micro-batch of its own, so that each count is known.
#[test]
fn a_profile_counts_every_op_of_a_step() {
    let found = bench(&["train"], &["--profile", "--micro-batch-tokens", "24"]);
    let (layers, batches) = (2, 2);
    let products = 7 * layers * batches;
    let norms = (2 * layers + 1) * batches;
    let expected = [
        ("embedding.forward", batches),
        ("embedding.backward", batches),
        // Query, key and value are one call, and so are gate and up.
        ("matmul.forward", 4 * layers * batches),
        ("matmul.backward_input", products),
        ("matmul.backward_weight", products),
        ("matmul.pack", products + batches),
        ("rms_norm.forward", norms),
        ("rms_norm.backward", norms),
        ("rope.forward", 2 * layers * batches),
        ("rope.backward", 2 * layers * batches),
        ("attention.forward", layers * batches),
        ("attention.backward", layers * batches),
        ("swiglu.forward", layers * batches),
        ("swiglu.backward", layers * batches),
        ("select_rows.forward", batches),
        ("select_rows.backward", batches),
        ("lm_head.forward_backward", batches),
        ("adamw", 1),
    ];
    let mut calls = calls(&found);
    for (op, count) in expected {
        assert_eq!(calls.remove(op), Some(count), "{op}");
    }
    // One per weight: nine in each layer, the embedding, the last norm; sums of gradients where paths meet.
    assert_eq!(calls.remove("grad_norm"), Some(9 * layers + 2));
    assert!(calls.keys().all(|op| op == "grads.add"), "{calls:?}");
}

#[test]
fn checkpointing_runs_layers_again() {
    let flags = ["--profile", "--activation-checkpointing"];
    let calls = calls(&bench(&["train"], &flags));
    assert_eq!((calls["matmul.forward"], calls["matmul.backward_input"]), (16, 14));
}

#[test]
fn a_profile_counts_every_op_of_sampling() {
    let found = bench(&["decode"], &["--profile"]);
    let calls = calls(&found);
    // One pass over the prompts, one for each further token; two prompts are drawn from by themselves.
    let passes = 5;
    let expected = [
        // Four calls in each layer: those of one input are one.
        ("matmul.forward", 8 * passes),
        ("attention.paged", 2 * passes),
        ("cache.append", 2 * passes),
        ("lm_head.logits", 2 + passes - 1),
        ("draw", 2 + passes - 1),
    ];
    for (op, count) in expected {
        assert_eq!(calls.get(op), Some(&count), "{op}: {calls:?}");
    }
    assert!(calls.keys().all(|op| !op.contains("backward")), "{calls:?}");
}

#[test]
fn a_model_of_the_users_is_measured_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_model(dir.path());
    let model = model.to_str().unwrap();
    let args = ["bench", "train", "start", "--model", model, "--runs", "1", "--shape", "1x20"];
    let text = aha(dir.path(), &args);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(
        text.stdout.contains("| 1x20 ") && text.stdout.contains("tokens per second"),
        "{text:?}"
    );
    let long = [&args[..], &["--shape", "1x129"]].concat();
    let outcome = aha(dir.path(), &long);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("sequences of 129 tokens: the model has 128 positions"));
}
