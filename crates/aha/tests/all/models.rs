//! `aha logprobs`, `generate` and `export`.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{aha, aha_with, fixture, write_model};

/// Beyond this, two f32 forward passes over a model of this size differ in more than rounding.
const LOGPROB_ABS: f64 = 1e-4;
/// The same for a model of 135 million weights, 30 layers deep.
const SMOLLM2_LOGPROB_ABS: f64 = 1e-4;

#[test]
fn logprobs_are_those_of_transformers() {
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let dir = fixture(name);
        assert_logprobs(&dir, &dir.join("fixture.json"), LOGPROB_ABS);
    }
}

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn logprobs_of_smollm2_are_those_of_transformers() {
    let model = std::env::var_os("AHA_SMOLLM2").expect("AHA_SMOLLM2 names the GGUF file");
    assert_logprobs(Path::new(&model), &fixture("smollm2_135m.json"), SMOLLM2_LOGPROB_ABS);
}

/// Compares `aha logprobs` on `model` with what transformers computed in f32.
#[track_caller]
fn assert_logprobs(model: &Path, reference: &Path, abs: f64) {
    let expected: Value =
        serde_json::from_str(&fs_err::read_to_string(reference).unwrap()).unwrap();
    let sequences = expected["sequences"].as_object().unwrap();
    let ids: Vec<&Value> = sequences.values().map(|sequence| &sequence["ids"]).collect();
    let args = ["logprobs", "--model", model.to_str().unwrap()];
    let found = aha_with(Path::new("."), &args, &json!(ids).to_string()).json();
    let found = found["logprobs"].as_array().unwrap();
    assert!(!found.is_empty());
    assert_eq!(found.len(), sequences.len());
    for (found, (name, sequence)) in found.iter().zip(sequences) {
        let (found, expected) =
            (found.as_array().unwrap(), sequence["next_logprobs_f32"].as_array().unwrap());
        assert_eq!(found.len(), sequence["ids"].as_array().unwrap().len() - 1, "{name}");
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            let model = model.display();
            assert!((a - b).abs() <= abs, "{model}, {name}, id {}: {a} is not {b}", at + 1);
        }
    }
}

#[test]
fn ids_that_the_model_can_not_take_are_named() {
    let dir = fixture("tiny_llama");
    let cases = [
        ("[[1, 2], []]", "sequence 1 is empty"),
        ("[[1, 256]]", "sequence 0 has 256 as id 1"),
        ("[[1], [-3]]", "sequence 1 has -3 as id 0"),
        ("[[1.5]]", "sequence 0 has 1.5 as id 0"),
        ("[1, 2]", "the sequences are not [[ids…], …]"),
        ("{", "the sequences are not [[ids…], …]"),
    ];
    for (ids, said) in cases {
        let outcome = aha_with(&dir, &["logprobs", "--model", "."], ids);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{ids}: {outcome:?}");
        assert!(outcome.stderr.contains(said), "{ids}: {outcome:?}");
    }
    let long = json!([vec![1; 100_000]]).to_string();
    let outcome = aha_with(&dir, &["logprobs", "--model", "."], &long);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("sequence 0 has 100000 ids"), "{outcome:?}");
}

#[test]
fn generate_is_a_function_of_its_seed() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let model = model.to_str().unwrap();
    let call = |more: &[&str]| {
        let args =
            ["generate", "--model", model, "--prompt", "What is", "--max-tokens", "12", "--json"];
        aha(temp.path(), &[&args, more].concat()).json()
    };
    let first = call(&["--n", "3", "--threads", "1"]);
    let completions = first["completions"].as_array().unwrap();
    assert_eq!(completions.len(), 3);
    for (idx, completion) in completions.iter().enumerate() {
        assert_eq!(completion["sample_idx"], idx);
        let (ids, logprobs) =
            (&completion["completion_token_ids"], &completion["completion_logprobs"]);
        assert_eq!(ids.as_array().unwrap().len(), logprobs.as_array().unwrap().len());
    }
    assert_eq!(call(&["--n", "3", "--threads", "2"]), first, "threads change nothing");
    assert_eq!(call(&[])["completions"][0], completions[0], "nor does what shares the batch");
    assert_ne!(call(&["--n", "3", "--seed", "1"])["completions"], first["completions"]);
    let greedy = |seed| call(&["--temperature", "0", "--seed", seed])["completions"].clone();
    assert_eq!(greedy("1"), greedy("2"));
}

#[test]
fn generate_and_logprobs_agree() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    let model = model.to_str().unwrap();
    let args =
        ["generate", "--model", model, "--prompt", "What is 1", "--max-tokens", "12", "--json"];
    let found = aha(temp.path(), &args).json();
    let completion = &found["completions"][0];
    let ids = |value: &Value| value.as_array().unwrap().clone();
    let prompt = ids(&found["prompt_token_ids"]);
    let all = [prompt.clone(), ids(&completion["completion_token_ids"])].concat();
    let scored =
        aha_with(temp.path(), &["logprobs", "--model", model], &json!([all]).to_string()).json();
    let of_completion = &ids(&scored["logprobs"][0])[prompt.len() - 1..];
    assert_eq!(
        of_completion,
        ids(&completion["completion_logprobs"]),
        "one numeric path: the same bits"
    );
}

#[test]
fn generated_text_is_safe_to_show() {
    let temp = tempfile::tempdir().unwrap();
    let model = write_model(temp.path());
    // A model of random weights writes any byte.
    let args = ["generate", "--model", model.to_str().unwrap(), "--prompt", "1", "--n", "8"];
    let args = [&args[..], &["--max-tokens", "100"]].concat();
    for more in [&[][..], &["--json"]] {
        let outcome = aha(temp.path(), &[&args, more].concat());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let is_hostile = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        assert!(!outcome.stdout.contains(is_hostile), "{outcome:?}");
        assert!(outcome.stdout.contains(r"\u"), "something was escaped: {outcome:?}");
    }
}

#[test]
fn an_exported_model_is_the_same_model() {
    let temp = tempfile::tempdir().unwrap();
    let dir = fixture("tiny_qwen3");
    let out = temp.path().join("out");
    let (model, out) = (dir.to_str().unwrap(), out.to_str().unwrap());
    let export = ["export", "--model", model, "--out", out];
    let outcome = aha(temp.path(), &export);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let logprobs =
        |model| aha_with(temp.path(), &["logprobs", "--model", model], "[[1,2,3,4]]").json();
    assert_eq!(logprobs(out), logprobs(model));
    let again = aha(temp.path(), &export);
    assert_eq!(again.code, Some(2), "what is there is not replaced: {again:?}");
    let small = temp.path().join("small");
    let args = ["export", "--model", model, "--out", small.to_str().unwrap(), "--dtype", "bf16"];
    assert_eq!(aha(temp.path(), &args).code, Some(0));
    let size =
        |path: &str| fs_err::metadata(Path::new(path).join("model.safetensors")).unwrap().len();
    assert!(size(small.to_str().unwrap()) * 3 < size(out) * 2);
}

#[test]
fn a_model_in_many_files_is_the_same_model() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let export = |model: &Path, out: &str, more: &[&str]| {
        let out = at(out);
        let args = ["export", "--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
        aha(temp.path(), &[&args[..], more].concat())
    };
    for name in ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"] {
        let [whole, many, again] = ["whole", "many", "again"].map(|out| format!("{name}-{out}"));
        assert_eq!(export(&fixture(name), &whole, &[]).code, Some(0));
        let outcome = export(&fixture(name), &many, &["--shard-size", "100kB"]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(!at(&many).join("model.safetensors").exists());
        let index = fs_err::read(at(&many).join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let mut files: Vec<&str> =
            index["weight_map"].as_object().unwrap().values().flat_map(Value::as_str).collect();
        files.sort_unstable();
        files.dedup();
        assert!(files.len() >= 4, "{name}: {files:?}");
        for file in files {
            // A header and weights: each file keeps to the size.
            let bytes = fs_err::read(at(&many).join(file)).unwrap();
            let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes.len() as u64 - 8 - header_len <= 100_000, "{name} {file}");
        }
        // Read again and written as one file, every tensor has its bytes.
        assert_eq!(export(&at(&many), &again, &[]).code, Some(0));
        let weights = |out: &str| fs_err::read(at(out).join("model.safetensors")).unwrap();
        assert!(weights(&again) == weights(&whole), "{name}");
    }
    for size in ["0", "-1MB", "much"] {
        let outcome = export(&fixture("tiny_llama"), "none", &[&format!("--shard-size={size}")]);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains("expected a size such as `500MB`"), "{outcome:?}");
        assert!(!at("none").exists());
    }
}
