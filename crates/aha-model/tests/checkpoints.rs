//! Hugging Face directories in and out: names, shapes, types, shards, and what is said about a
//! broken one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use aha_model::config::{Architecture, Config};
use aha_model::save::{SaveDtype, SaveOptions, is_written};
use aha_model::tokenizer::Tokenizer;
use aha_model::weights;
use common::{fixture, random_weights, read_all, save_weights, small_config, trained_tokenizer};
use half::bf16;
use serde_json::{Value, json};

const TINY: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];

fn json_at(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn open_error(dir: &Path) -> String {
    match weights::open(dir) {
        Ok(_) => panic!("the broken checkpoint opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn parameters_of_transformers_checkpoints_have_its_names_shapes_and_order() {
    for name in TINY {
        let config = Config::load(&fixture(name)).unwrap();
        let expected = json_at(&fixture(name).join("fixture.json"));
        let shapes: Vec<(String, Vec<usize>)> = config.param_shapes();
        let found: serde_json::Map<String, Value> =
            shapes.iter().map(|(name, shape)| (name.clone(), json!(shape))).collect();
        let expected = expected["param_shapes"].as_object().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(&found, expected);
        let count: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(config.param_count(), count);
    }
}

#[test]
fn weights_of_transformers_checkpoints_load() {
    for name in TINY {
        let mut source = weights::open(&fixture(name)).unwrap();
        let values = read_all(source.as_mut()).unwrap();
        let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for ((name, _), values) in source.config().param_shapes().iter().zip(values) {
            let expected = file.tensor(name).unwrap();
            let expected =
                expected.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            assert!(values.into_iter().eq(expected), "{name}");
        }
    }
}

#[test]
fn a_saved_model_loads_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        let config = small_config(architecture);
        let weights = random_weights(&config, 1);
        // One file, then many; the second replaces the first.
        for shard_bytes_max in [u64::MAX, 2000] {
            let options = SaveOptions { shard_bytes_max, ..SaveOptions::default() };
            let model_dir = dir.path().join("model");
            save_weights(&model_dir, &config, None, &weights, options);
            let is_sharded = model_dir.join("model.safetensors.index.json").exists();
            assert_eq!(is_sharded, shard_bytes_max == 2000);
            for entry in std::fs::read_dir(&model_dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(is_written(&name), "{name}");
            }
            let mut source = weights::open(&model_dir).unwrap();
            assert_eq!(source.config().to_json()["hidden_size"], config.hidden_size);
            let loaded = read_all(source.as_mut()).unwrap();
            assert!(loaded.iter().zip(&weights).all(|(found, (_, _, saved))| found == saved));
        }
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "only the model is left, nothing temporary");
}

#[test]
fn other_files_than_a_models_are_known_as_such() {
    for name in ["README.md", "vocab.json", "pytorch_model.bin", "model-1-of-2.safetensors", ""] {
        assert!(!is_written(name), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    trained_tokenizer().save(dir.path()).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(is_written(&name), "{name}");
    }
}

#[test]
fn bf16_rounds_to_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(Architecture::Llama);
    let weights = random_weights(&config, 2);
    let options = SaveOptions { dtype: SaveDtype::Bf16, ..SaveOptions::default() };
    let model_dir = dir.path().join("model");
    save_weights(&model_dir, &config, None, &weights, options);
    let loaded = read_all(weights::open(&model_dir).unwrap().as_mut()).unwrap();
    for (found, (_, _, saved)) in loaded.iter().zip(&weights) {
        assert!(found.iter().zip(saved).all(|(a, b)| *a == bf16::from_f32(*b).to_f32()));
    }
    assert_eq!(json_at(&model_dir.join("config.json"))["dtype"], "bfloat16");
}

#[test]
fn f16_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(Architecture::Llama);
    let tensors = config.param_shapes();
    let views: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product::<usize>();
            (name, shape, [0x00u8, 0xC1].repeat(len))
        })
        .collect();
    write_views(dir.path(), &config, &views, safetensors::Dtype::F16);
    let loaded = read_all(weights::open(dir.path()).unwrap().as_mut()).unwrap();
    assert!(loaded.iter().flatten().all(|x| *x == -2.5));
}

fn write_views(
    dir: &Path,
    config: &Config,
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    dtype: safetensors::Dtype,
) {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    std::fs::write(dir.join("config.json"), config.to_json().to_string()).unwrap();
}

#[test]
fn errors_name_tensor_expected_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(Architecture::Llama);
    let base: Vec<(String, Vec<usize>, Vec<u8>)> = config
        .param_shapes()
        .into_iter()
        .map(|(name, shape)| (name, shape.clone(), vec![0; shape.iter().product::<usize>() * 4]))
        .collect();
    let tensor = |name: &str, shape: &[usize]| {
        (name.to_owned(), shape.to_vec(), vec![0u8; shape.iter().product::<usize>() * 4])
    };
    let check = |tensors: &[(String, Vec<usize>, Vec<u8>)], expected: &[&str]| {
        write_views(dir.path(), &config, tensors, safetensors::Dtype::F32);
        let error = open_error(dir.path());
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    check(&base[1..], &["`model.embed_tokens.weight`", "[40, 16]", "missing"]);

    let mut tensors = base.clone();
    tensors[1] = tensor("model.layers.0.self_attn.q_proj.weight", &[8, 16]);
    check(&tensors, &["q_proj.weight`", "[8, 16]", "expected [16, 16]"]);

    let mut tensors = base.clone();
    tensors.push(tensor("model.layers.0.mlp.extra.weight", &[2]));
    check(&tensors, &["`model.layers.0.mlp.extra.weight` is not part of a llama model"]);

    // What transformers passes over: a tied head's copy and RoPE's buffers.
    let mut tensors = base.clone();
    tensors.push(tensor("lm_head.weight", &[40, 16]));
    tensors.push(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]));
    write_views(dir.path(), &config, &tensors, safetensors::Dtype::F32);
    weights::open(dir.path()).unwrap();

    let untied = Config { tie_word_embeddings: false, ..config.clone() };
    write_views(dir.path(), &untied, &base, safetensors::Dtype::F32);
    let error = open_error(dir.path());
    assert!(error.contains("hint: ") && error.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn shards_stay_in_their_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(Architecture::Llama);
    std::fs::write(dir.path().join("config.json"), config.to_json().to_string()).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": "../secret.safetensors"}});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("expected a file name"), "{error}");
}

#[test]
fn a_tokenizer_comes_back_from_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = trained_tokenizer();
    let config = Config { vocab_size: 280, eos_ids: vec![], ..small_config(Architecture::Llama) };
    let weights = random_weights(&config, 3);
    let model_dir = dir.path().join("model");
    save_weights(&model_dir, &config, Some(&tokenizer), &weights, SaveOptions::default());
    let loaded = Tokenizer::load(&model_dir).unwrap();
    assert_eq!(loaded.vocab_len(), tokenizer.vocab_len());
    assert_eq!(loaded.eos_ids(), [1]);
    assert_eq!(loaded.bos(), tokenizer.bos());
    assert_eq!(loaded.chat_template().unwrap().source(), common::CHAT_TEMPLATE);
    let text = "<|start|>the cat's hat 42 é<|end|>";
    assert_eq!(loaded.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
    assert_eq!(json_at(&model_dir.join("generation_config.json"))["eos_token_id"], 1);
}

#[test]
fn text_that_spells_special_tokens_can_be_read_as_text() {
    let tokenizer = trained_tokenizer();
    let eos = tokenizer.eos().unwrap();
    let text = format!("a{0}b{0}", eos.text);
    let has_eos = |text: &str| tokenizer.encode(text, false).unwrap().contains(&eos.id);
    assert!(has_eos(&text));
    assert!(!has_eos(&tokenizer.as_plain_text(&text)));
    assert_eq!(tokenizer.as_plain_text("2 < 3 | b"), "2 < 3 | b");
}

#[test]
fn a_model_too_small_for_its_tokenizer_is_refused_with_a_remedy() {
    let tokenizer = trained_tokenizer();
    let vocab_size = tokenizer.vocab_len();
    let config = Config { vocab_size: vocab_size - 1, ..small_config(Architecture::Llama) };
    let error = tokenizer.check_fits(&config).unwrap_err().to_string();
    let (last_id, row_count) = (vocab_size - 1, vocab_size - 1);
    assert!(error.contains(&format!("ids up to {last_id}")), "{error}");
    assert!(error.contains(&format!("{row_count} rows")), "{error}");
    assert!(error.contains("hint: "), "{error}");
    tokenizer.check_fits(&Config { vocab_size, ..config }).unwrap();
}

#[test]
fn a_sampler_sees_the_tokens_that_are_trained_on() {
    use aha_model::chat_template::{ChatTemplate, Message};
    let tokenizer = trained_tokenizer();
    for name in ["chat", "r1-zero", "plain"] {
        let template = ChatTemplate::named(name, &tokenizer).unwrap();
        let turns = [Message::new("user", "the cat"), Message::new("assistant", "the hat")];
        let rendered = template.render(&turns, false).unwrap();
        assert_eq!(rendered.mask_problem, None);
        let (ids, mask) = tokenizer.encode_rendered(&rendered).unwrap();
        let prompt = template.render_prompt("the cat").unwrap();
        let prompt_ids = tokenizer.encode(&prompt.text, prompt.add_special).unwrap();
        assert_eq!(ids[..prompt_ids.len()], prompt_ids, "{name}");
        let written: Vec<u32> =
            ids.iter().zip(&mask).filter(|(_, mask)| **mask).map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.decode(&written, false).unwrap(), "the hat<|end|>", "{name}");
        assert_eq!(ids[prompt_ids.len()..][..written.len()], written);
    }
}

/// SmolLM2's template needs no weights: expected texts are those of transformers.
#[test]
fn smollm2s_template_renders_as_transformers_renders_it() {
    use aha_model::chat_template::{ChatTemplate, Message};
    use aha_model::tokenizer::SpecialToken;
    const SOURCE: &str = "{% for message in messages %}\
        {% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
        <|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let eos = SpecialToken { id: 2, text: "<|im_end|>".into() };
    let template = ChatTemplate::new(SOURCE, None, Some(&eos), None).unwrap();
    for case in json_at(&fixture("smollm2_135m.json"))["chat_template"].as_array().unwrap() {
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
        let written: Vec<&str> =
            rendered.assistant_spans.iter().map(|span| &rendered.text[span.clone()]).collect();
        let answers = messages.iter().filter(|message| message.role == "assistant");
        let expected: Vec<String> =
            answers.map(|answer| format!("{}<|im_end|>", answer.content)).collect();
        assert_eq!(written, expected);
    }
}
