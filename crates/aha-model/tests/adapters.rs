//! Low-rank adapters: what a model with them computes, what merging makes of it, and directories in peft's layout.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use aha_compute::random::Philox;
use aha_compute::{Device, Dtype, ParamId};
use aha_model::{Lora, Model, SaveDtype, Target, adapter};
use common::fixture;
use serde_json::{Value, json};

const TINY: [&str; 4] = ["tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3"];

fn model(name: &str) -> Model {
    Model::load(&fixture(name), &Device::cpu(2)).unwrap()
}

fn lora() -> Lora {
    Lora { rank: 4, alpha: 6.0, targets: Target::ALL.to_vec(), is_rank_stabilised: false }
}

/// A model whose adapters have been trained, as it were: their second matrices are noise.
fn adapted(model: &Model, lora: &Lora) -> Model {
    let mut adapted = model.with_lora(lora, Philox::new(1)).unwrap();
    let ids: Vec<ParamId> = adapted.params().trained().collect();
    for (seed, id) in ids.into_iter().enumerate().filter(|(i, _)| i % 2 == 1) {
        let random = Philox::new(seed as u64);
        let values = adapted.params_mut().value_mut(id).as_mut_slice();
        (0..).zip(values).for_each(|(i, x)| *x = (0.05 * random.normal(i)) as f32);
    }
    adapted
}

fn log_probs(model: &Model) -> Vec<f32> {
    let ids = |seed, len: u64| -> Vec<u32> {
        (0..len).map(|i| 3 + (Philox::new(seed).bits(&[i]) % 250) as u32).collect()
    };
    model.log_probs(&[&ids(1, 40), &ids(2, 9)]).unwrap().concat()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn bits(model: &Model) -> Vec<(String, Vec<u32>)> {
    let params = model.params();
    let bits = |id| params.value(id).as_slice().iter().map(|x| x.to_bits()).collect();
    params.ids().map(|id| (params.name(id).to_owned(), bits(id))).collect()
}

#[test]
fn new_adapters_change_no_log_prob_and_are_all_that_is_trained() {
    for name in TINY {
        let base = model(name);
        let new = base.with_lora(&lora(), Philox::new(1)).unwrap();
        assert_eq!(log_probs(&base), log_probs(&new), "{name}");
        let names: Vec<&str> = new.params().trained().map(|id| new.params().name(id)).collect();
        assert!(names.iter().all(|name| name.contains(".lora_")), "{names:?}");
        assert_eq!(names.len(), 2 * 7 * base.config().layer_count);
        let (len, params) = (bits(&base).len(), bits(&new));
        assert_eq!(bits(&base), params[..len]);
    }
}

/// Drawn by name within `±1/sqrt(inputs)`, with the spread of a uniform draw.
#[test]
fn first_matrices_are_uniform_and_second_ones_zero() {
    let base = model("tiny_llama");
    let lora = Lora { rank: 32, ..lora() };
    let new = base.with_lora(&lora, Philox::new(1)).unwrap();
    let params = new.params();
    let of = |model: &Model, name: &str| {
        let params = model.params();
        params.value(params.find(name).unwrap()).as_slice().to_vec()
    };
    for id in params.trained() {
        let values = params.value(id).as_slice();
        if params.name(id).ends_with("lora_B.weight") {
            assert!(values.iter().all(|&x| x == 0.0));
            continue;
        }
        let bound = (params.value(id).cols() as f32).sqrt().recip();
        assert!(values.iter().all(|x| x.abs() <= bound), "{}", params.name(id));
        let mean_square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!((mean_square / (bound * bound) - 1.0 / 3.0).abs() < 0.03, "{}", params.name(id));
    }
    let name = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj.lora_A.weight");
    assert_ne!(of(&new, &name(0)), of(&new, &name(1)));
    let few = Lora { targets: vec![Target::Q], ..lora.clone() };
    let few = base.with_lora(&few, Philox::new(1)).unwrap();
    assert_eq!(of(&new, &name(1)), of(&few, &name(1)), "others change no draw");
    let other = base.with_lora(&lora, Philox::new(2)).unwrap();
    assert_ne!(of(&new, &name(0)), of(&other, &name(0)));
}

#[test]
fn a_merged_model_computes_what_its_adapters_did() {
    for name in TINY {
        let base = model(name);
        for targets in [Target::ALL.to_vec(), vec![Target::Q, Target::V], vec![Target::Down]] {
            let adapted = adapted(&base, &Lora { targets, ..lora() });
            let found = log_probs(&adapted);
            assert!(distance(&found, &log_probs(&base)) > 1e-3, "{name}: nothing was added");
            let merged = adapted.merged().unwrap();
            assert!(merged.lora().is_none());
            let params = merged.params();
            assert_eq!(params.trained().count(), base.params().ids().len());
            assert!(params.ids().eq(base.params().ids()));
            let off = distance(&found, &log_probs(&merged));
            assert!(off < 1e-5, "{name}: off by {off}");
        }
    }
}

#[test]
fn rank_alpha_targets_and_kind_of_scale_all_matter() {
    let base = model("tiny_llama");
    let same = log_probs(&adapted(&base, &lora()));
    for other in [
        Lora { rank: 5, ..lora() },
        Lora { alpha: 6.5, ..lora() },
        Lora { targets: Target::ALL[1..].to_vec(), ..lora() },
        Lora { is_rank_stabilised: true, ..lora() },
    ] {
        assert_ne!(same, log_probs(&adapted(&base, &other)), "{other:?}");
    }
    assert_eq!(lora().scale(), 1.5);
    assert_eq!(Lora { is_rank_stabilised: true, ..lora() }.scale(), 3.0);
}

#[test]
fn merging_leaves_the_weights_of_others_alone() {
    let base = model("tiny_qwen2");
    let before = bits(&base);
    adapted(&base, &lora()).merged().unwrap();
    assert_eq!(before, bits(&base));
}

#[test]
fn a_saved_adapter_gives_the_merged_model_and_restores_the_bits() {
    let temp = tempfile::tempdir().unwrap();
    for name in TINY {
        let base = model(name);
        for lora in [lora(), Lora { is_rank_stabilised: true, alpha: 2.5, ..lora() }] {
            let adapted = adapted(&base, &lora);
            let dir = temp.path().join(name);
            adapter::save(&dir, &adapted, SaveDtype::F32).unwrap();
            for entry in std::fs::read_dir(&dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(adapter::is_written(&name), "{name}");
            }
            let mut restored = base.with_lora(&lora, Philox::new(7)).unwrap();
            restored.restore_adapter(&dir).unwrap();
            assert_eq!(bits(&adapted), bits(&restored));
            let read = base.clone().with_adapter(&dir).unwrap();
            let merged = adapted.merged().unwrap();
            assert_eq!(bits(&merged), bits(&read));
            // It is no longer what can be read there.
            assert!(
                base.origin().is_some() && merged.origin().is_none() && read.origin().is_none()
            );
        }
    }
}

#[test]
fn an_adapter_may_be_saved_in_half_the_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("tiny_llama");
    let adapted = adapted(&base, &lora());
    adapter::save(temp.path(), &adapted, SaveDtype::Bf16).unwrap();
    let copy = temp.path().join("copy");
    adapter::copy(temp.path(), &copy, SaveDtype::F32).unwrap();
    let read = base.clone().with_adapter(temp.path()).unwrap();
    assert_eq!(bits(&read), bits(&base.with_adapter(&copy).unwrap()));
    let merged = adapted.merged().unwrap();
    assert_ne!(bits(&merged), bits(&read));
    assert!(distance(&log_probs(&merged), &log_probs(&read)) < 1e-2);
}

#[test]
fn an_adapter_s_files_are_named_as_peft_names_them() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("tiny_llama");
    let lora = Lora { targets: vec![Target::Q, Target::Down], ..lora() };
    adapter::save(temp.path(), &adapted(&base, &lora), SaveDtype::F32).unwrap();
    let config: Value = json_at(&temp.path().join(adapter::CONFIG));
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(4)),
        ("lora_alpha", json!(6)),
        ("target_modules", json!(["q_proj", "down_proj"])),
        ("use_rslora", json!(false)),
        ("base_model_name_or_path", json!(fixture("tiny_llama"))),
        ("modules_to_save", Value::Null),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let bytes = std::fs::read(temp.path().join(adapter::WEIGHTS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (width, inner) = (base.config().hidden_size, base.config().intermediate_size);
    let prefix = "base_model.model.model.layers.0";
    for (name, shape) in [
        ("self_attn.q_proj.lora_A", [4, width]),
        ("mlp.down_proj.lora_A", [4, inner]),
        ("mlp.down_proj.lora_B", [width, 4]),
    ] {
        let found = file.tensor(&format!("{prefix}.{name}.weight")).unwrap();
        assert_eq!(found.shape(), shape);
    }
    assert_eq!(file.len(), 2 * 2 * base.config().layer_count);
}

#[test]
fn a_reward_model_s_head_is_trained_and_saved_with_its_adapters() {
    let temp = tempfile::tempdir().unwrap();
    let base = model("tiny_qwen2").to_reward(Philox::new(3)).unwrap();
    let mut adapted = adapted(&base, &lora());
    let head = adapted.params().find("score.weight").unwrap();
    assert!(adapted.params().is_trained(head));
    adapted.params_mut().value_mut(head).fill(0.25);
    adapter::save(temp.path(), &adapted, SaveDtype::F32).unwrap();
    let config = json_at(&temp.path().join(adapter::CONFIG));
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"]),
        (&json!("SEQ_CLS"), &json!(["score"]))
    );
    let read = base.with_adapter(temp.path()).unwrap();
    assert_eq!(bits(&adapted.merged().unwrap()), bits(&read));
}

#[test]
fn bf16_models_have_adapters_in_bf16() {
    let device = Device::cpu(2).with_dtype(Dtype::Bf16);
    let base = Model::load(&fixture("tiny_qwen3"), &device).unwrap();
    let new = base.with_lora(&lora(), Philox::new(1)).unwrap();
    assert_eq!(log_probs(&base), log_probs(&new));
    let wide = adapted(&model("tiny_qwen3"), &lora());
    let off = distance(&log_probs(&adapted(&base, &lora())), &log_probs(&wide));
    assert!(0.0 < off && off < 0.1, "{off}");
}

fn json_at(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What reading an adapter whose config is changed like this says.
fn error_with(key: &str, value: Value) -> String {
    let temp = tempfile::tempdir().unwrap();
    let base = model("tiny_llama");
    adapter::save(temp.path(), &adapted(&base, &lora()), SaveDtype::F32).unwrap();
    let path = temp.path().join(adapter::CONFIG);
    let mut config = json_at(&path);
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    base.with_adapter(temp.path()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn adapters_that_do_something_else_are_refused() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("alpha_pattern", json!({"q_proj": 3})),
        ("trainable_token_indices", json!([1, 2])),
        ("lora_alpha", json!("many")),
    ] {
        let error = error_with(key, value);
        assert!(error.contains(&format!("`{key}`")) && error.contains("expected"), "{error}");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (small, base) = (model("tiny_llama"), model("tiny_qwen3"));
    adapter::save(temp.path(), &adapted(&small, &lora()), SaveDtype::F32).unwrap();
    let config = base.config();
    let is_same = config.hidden_size == small.config().hidden_size
        && config.intermediate_size == small.config().intermediate_size
        && config.head_dim == small.config().head_dim
        && config.layer_count == small.config().layer_count;
    assert!(!is_same, "the fixtures have other shapes");
    let error = base.with_adapter(temp.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected") || error.contains("no projection"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = small.with_adapter(empty.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(adapter::CONFIG), "{error}");
}

/// A file whose tensors are named otherwise, or are in no pair.
#[test]
fn tensors_that_are_no_adapters_are_refused() {
    let base = model("tiny_llama");
    let prefix = "base_model.model.model.layers.0";
    let width = base.config().hidden_size;
    for (names, expected) in [
        (vec![format!("{prefix}.mlp.down_proj.lora_magnitude_vector.weight")], "no projection"),
        (vec!["model.layers.0.mlp.down_proj.lora_A.weight".to_owned()], "no projection"),
        (vec![format!("{prefix}.self_attn.q_proj.lora_A.weight")], "is missing"),
        (
            vec!["base_model.model.model.layers.99.mlp.up_proj.lora_A.weight".to_owned()],
            "no projection",
        ),
        (vec![], "no adapter"),
    ] {
        let temp = tempfile::tempdir().unwrap();
        adapter::save(temp.path(), &adapted(&base, &lora()), SaveDtype::F32).unwrap();
        let data = vec![0; 4 * 2 * width];
        let view = || {
            let dtype = safetensors::Dtype::F32;
            safetensors::tensor::TensorView::new(dtype, vec![2, width], &data).unwrap()
        };
        let tensors: Vec<_> = names.into_iter().map(|name| (name, view())).collect();
        let bytes = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(temp.path().join(adapter::WEIGHTS), bytes).unwrap();
        let error = base.clone().with_adapter(temp.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
