//! SmolLM2-135M out of its GGUF against numbers of transformers; needs the file:
//! `AHA_SMOLLM2="$(ops/fetch-smollm2)" cargo test --release -p aha-model -- --ignored`.
//! `AHA_SMOLLM2_OUT` keeps the directory that it is converted to, for a look from Python.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;

use aha_compute::Device;
use aha_compute::simd::Isa;
use aha_model::Model;
use aha_model::chat_template::Message;
use aha_model::config::Architecture;
use aha_model::save::{SaveOptions, save};
use aha_model::tokenizer::Tokenizer;
use aha_model::weights;
use common::{fixture, read_all};
use serde_json::Value;

fn gguf() -> PathBuf {
    std::env::var_os("AHA_SMOLLM2").expect("AHA_SMOLLM2 names the GGUF file").into()
}

fn reference() -> Value {
    let text = std::fs::read_to_string(fixture("smollm2_135m.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn texts_have_the_token_ids_of_transformers() {
    let tokenizer = Tokenizer::load(&gguf()).unwrap();
    assert_eq!(tokenizer.vocab_len(), 49152);
    assert_eq!(tokenizer.eos_ids(), [2]);
    for case in reference()["tokenizer"].as_array().unwrap() {
        let found = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{}", case["text"]);
        assert_eq!(tokenizer.decode(&found, false).unwrap(), case["decoded"].as_str().unwrap());
    }
}

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn conversations_render_as_transformers_renders_them() {
    let tokenizer = Tokenizer::load(&gguf()).unwrap();
    let template = tokenizer.chat_template().unwrap();
    for case in reference()["chat_template"].as_array().unwrap() {
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let prompts = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = template.render(&messages, prompts).unwrap();
        assert_eq!(rendered.text, case["text"].as_str().unwrap());
        assert_eq!(rendered.mask_problem, None);
        let found = tokenizer.encode(&rendered.text, rendered.add_special).unwrap();
        assert_eq!(found, ids(&case["ids"]));
    }
}

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn the_file_becomes_a_directory_with_the_same_weights_and_tokens() {
    let mut source = weights::open(&gguf()).unwrap();
    let config = source.config().clone();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(config.param_count(), 134_515_008);
    let values = read_all(source.as_mut()).unwrap();
    let shapes = config.param_shapes();
    let tensors =
        shapes.iter().zip(&values).map(|((n, shape), v)| (n.clone(), shape.clone(), v.as_slice()));
    let tokenizer = Tokenizer::load(&gguf()).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("AHA_SMOLLM2_OUT").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| temporary.path().join("smollm2"));
    let options = SaveOptions { shard_bytes_max: 200_000_000, ..SaveOptions::default() };
    save(&dir, &config, Some(&tokenizer), tensors, options).unwrap();

    let again = read_all(weights::open(&dir).unwrap().as_mut()).unwrap();
    assert!(again == values);
    let loaded = Tokenizer::load(&dir).unwrap();
    for case in reference()["tokenizer"].as_array().unwrap() {
        let found = loaded.encode(case["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(found, ids(&case["ids"]));
    }
}

/// Bound of a log-prob's distance from transformers' f32, which is up to 4e-5 from its f64.
const LOGP_ABS: f64 = 1e-4;

#[test]
#[ignore = "needs the SmolLM2 GGUF: ops/fetch-smollm2"]
fn log_probs_are_those_of_transformers() {
    let reference = reference();
    let sequences = reference["sequences"].as_object().unwrap();
    let token_ids: Vec<Vec<u32>> = sequences.values().map(|s| ids(&s["ids"])).collect();
    let views: Vec<&[u32]> = token_ids.iter().map(Vec::as_slice).collect();
    let mut first: Option<Vec<Vec<f32>>> = None;
    for isa in Isa::available() {
        let model = Model::load(&gguf(), &Device::cpu_with(2, isa)).unwrap();
        let found = model.log_probs(&views).unwrap();
        let (mut count, mut worst) = (0, 0.0f64);
        for (found, (name, sequence)) in found.iter().zip(sequences) {
            let want = sequence["next_logprobs_f32"].as_array().unwrap();
            assert_eq!(found.len(), want.len(), "{name}");
            for (at, (found, want)) in found.iter().zip(want).enumerate() {
                let want = want.as_f64().unwrap();
                let off = (f64::from(*found) - want).abs();
                assert!(off <= LOGP_ABS, "{isa} {name}[{at}]: {found} {want}");
                (count, worst) = (count + 1, worst.max(off));
            }
        }
        assert_eq!(count, 199 + 63 + 6, "log-probs of the fixture");
        println!("{isa}: {count} log-probs, at most {worst:.1e} off");
        assert!(*first.get_or_insert_with(|| found.clone()) == found, "{isa}: other bits");
    }
}
