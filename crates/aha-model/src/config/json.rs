//! `config.json` in and out, as transformers 4 (`rope_theta`, `rope_scaling`) and 5
//! (`rope_parameters`) write it.

use serde_json::{Map, Value, json};

use super::{Architecture, Config, Head, Rope, RopeScaling, SCORE_CLASS};
use crate::error::{Error, Result};

/// Keys that say how to read the weights of another checkpoint; they would be wrong in ours.
const DROPPED_KEYS: [&str; 6] = [
    "quantization_config",
    "auto_map",
    "_name_or_path",
    "rope_scaling",
    "rope_parameters",
    "pretraining_tp",
];

pub(super) fn read(value: &Value) -> Result<Config> {
    let map = value.as_object().ok_or_else(|| Error::input("expected a JSON object"))?;
    let fields = Fields { map };
    let model_type = fields.text("model_type")?.unwrap_or("(absent)");
    let architecture = Architecture::from_name(model_type)?;
    refuse_unsupported(&fields, architecture)?;

    let hidden_size = fields.required("hidden_size")?;
    let head_count = fields.required("num_attention_heads")?;
    let head_dim_default = match architecture {
        Architecture::Qwen3 => 128,
        _ => hidden_size.checked_div(head_count).unwrap_or(0),
    };
    let max_position_embeddings = fields.size("max_position_embeddings")?.unwrap_or(2048);
    let config = Config {
        architecture,
        vocab_size: fields.required("vocab_size")?,
        hidden_size,
        intermediate_size: fields.required("intermediate_size")?,
        layer_count: fields.required("num_hidden_layers")?,
        head_count,
        kv_head_count: fields.size("num_key_value_heads")?.unwrap_or(head_count),
        head_dim: fields.size("head_dim")?.unwrap_or(head_dim_default),
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope: read_rope(&fields, max_position_embeddings)?,
        head: read_head(&fields)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        attention_bias: architecture != Architecture::Qwen2 && fields.flag("attention_bias")?,
        max_position_embeddings,
        bos_id: fields.ids("bos_token_id")?.first().copied(),
        eos_ids: fields.ids("eos_token_id")?,
        pad_id: fields.ids("pad_token_id")?.first().copied(),
        initializer_range: fields.number("initializer_range")?.unwrap_or(0.02) as f32,
        extra: map
            .iter()
            .filter(|(key, _)| !DROPPED_KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    };
    config.validate()?;
    Ok(config)
}

fn refuse_unsupported(fields: &Fields, architecture: Architecture) -> Result<()> {
    let act = fields.text("hidden_act")?.unwrap_or("silu");
    if act != "silu" && act != "swish" {
        return Err(Error::input(format!("`hidden_act` is `{act}`: expected silu")));
    }
    if fields.flag("mlp_bias")? {
        return Err(Error::input("`mlp_bias` is true: only false is supported"));
    }
    if architecture != Architecture::Llama && fields.flag("use_sliding_window")? {
        return Err(Error::input(
            "`use_sliding_window` is true: sliding-window attention is not supported",
        ));
    }
    if let Some(kinds) = fields.map.get("layer_types").and_then(Value::as_array) {
        let other = kinds.iter().find(|kind| kind.as_str() != Some("full_attention"));
        if let Some(other) = other {
            return Err(Error::input(format!(
                "`layer_types` holds {other}: only full_attention is supported"
            )));
        }
    }
    if fields.map.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return Err(Error::input("`quantization_config` is set: the weights are quantized")
            .hint("use the unquantized checkpoint, or a GGUF file"));
    }
    Ok(())
}

/// What `architectures` names; transformers counts labels by `id2label`, two where there is none.
fn read_head(fields: &Fields) -> Result<Head> {
    let classes = fields.map.get("architectures").and_then(Value::as_array);
    let is_score = |class: &Value| class.as_str().is_some_and(|name| name.ends_with(SCORE_CLASS));
    if !classes.is_some_and(|classes| classes.iter().any(is_score)) {
        return Ok(Head::Language);
    }
    let labels = fields.map.get("id2label").and_then(Value::as_object).map(Map::len);
    match labels.or(fields.size("num_labels")?).unwrap_or(2) {
        1 => Ok(Head::Score),
        count => Err(Error::input(format!("the model classifies into {count} labels: expected 1"))
            .hint("a reward model has a single label, whose logit is the score")),
    }
}

fn read_rope(fields: &Fields, max_positions: usize) -> Result<Rope> {
    let theta_outside = fields.number("rope_theta")?;
    let given = |key: &str| fields.map.get(key).filter(|value| !value.is_null());
    let Some(value) = given("rope_parameters").or_else(|| given("rope_scaling")) else {
        return Ok(Rope::plain(theta_outside.unwrap_or(10000.0)));
    };
    let map = value
        .as_object()
        .ok_or_else(|| Error::input(format!("the RoPE parameters are {value}: expected a map")))?;
    let rope = Fields { map };
    if map.values().any(Value::is_object) {
        return Err(Error::input("RoPE parameters per layer type are not supported"));
    }
    for fields in [fields, &rope] {
        let share = fields.number("partial_rotary_factor")?.unwrap_or(1.0);
        if share != 1.0 {
            return Err(Error::input(format!("`partial_rotary_factor` is {share}: expected 1")));
        }
    }
    let theta = rope.number("rope_theta")?.or(theta_outside).unwrap_or(10000.0);
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let original = rope.number("original_max_position_embeddings")?.unwrap_or(max_positions as f64);
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        "yarn" => RopeScaling::Yarn {
            factor: rope.number("factor")?.unwrap_or(max_positions as f64 / original),
            original_max_position_embeddings: original,
            attention_factor: rope.number("attention_factor")?,
            beta_fast: rope.number("beta_fast")?.filter(|beta| *beta != 0.0).unwrap_or(32.0),
            beta_slow: rope.number("beta_slow")?.filter(|beta| *beta != 0.0).unwrap_or(1.0),
            mscale: rope.number("mscale")?,
            mscale_all_dim: rope.number("mscale_all_dim")?,
            truncate: rope.optional_flag("truncate")?.unwrap_or(true),
        },
        other => {
            return Err(Error::input(format!(
                "RoPE scaling `{other}` is not supported: expected default, linear, llama3 or yarn"
            )));
        }
    };
    Ok(Rope { theta, scaling })
}

pub(super) fn write(config: &Config) -> Value {
    let mut map = config.extra.clone();
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    set("architectures", json!([config.architecture.transformers_class(config.head)]));
    set("model_type", json!(config.architecture.name()));
    set("vocab_size", json!(config.vocab_size));
    set("hidden_size", json!(config.hidden_size));
    set("intermediate_size", json!(config.intermediate_size));
    set("num_hidden_layers", json!(config.layer_count));
    set("num_attention_heads", json!(config.head_count));
    set("num_key_value_heads", json!(config.kv_head_count));
    set("head_dim", json!(config.head_dim));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", json!(shortest(config.rms_norm_eps)));
    set("initializer_range", json!(shortest(config.initializer_range)));
    set("max_position_embeddings", json!(config.max_position_embeddings));
    set("tie_word_embeddings", json!(config.tie_word_embeddings));
    set("attention_bias", json!(config.attention_bias));
    set("attention_dropout", json!(0.0));
    set("bos_token_id", json!(config.bos_id));
    set("eos_token_id", ids_value(&config.eos_ids));
    set("pad_token_id", json!(config.pad_id));
    set("rope_theta", json!(config.rope.theta));
    let scaling = scaling_value(&config.rope.scaling);
    let mut parameters = scaling.clone();
    parameters.insert("rope_theta".to_owned(), json!(config.rope.theta));
    // transformers 4 reads `rope_scaling`, 5 reads either. An absent scaling must be null for 4.
    let is_default = config.rope.scaling == RopeScaling::Default;
    set("rope_scaling", if is_default { Value::Null } else { Value::Object(scaling) });
    set("rope_parameters", Value::Object(parameters));
    if config.head == Head::Score {
        // A single label, as whatever was loaded already says in its own words.
        map.entry("id2label").or_insert_with(|| json!({"0": "LABEL_0"}));
        map.entry("label2id").or_insert_with(|| json!({"LABEL_0": 0}));
    }
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    if config.architecture == Architecture::Llama {
        set("mlp_bias", json!(false));
    } else {
        set("use_sliding_window", json!(false));
        set("sliding_window", Value::Null);
    }
    Value::Object(map)
}

/// The value of `eos_token_id`: null, a number, or a list.
pub(crate) fn ids_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn scaling_value(scaling: &RopeScaling) -> Map<String, Value> {
    let value = match scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_max_position_embeddings as u64,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": *original_max_position_embeddings as u64,
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "mscale": mscale,
            "mscale_all_dim": mscale_all_dim,
            "truncate": truncate,
        }),
    };
    let Value::Object(map) = value else { unreachable!("every arm makes a map") };
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// The decimal number that a person would have written for this f32.
pub(crate) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Typed look at a JSON object; null is as good as absent.
struct Fields<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, value: &Value, expected: &str) -> Error {
        let mut found = value.to_string();
        if found.len() > 80 {
            found = format!("{}…", found.chars().take(80).collect::<String>());
        }
        Error::input(format!("`{key}` is {found}: expected {expected}"))
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|size| usize::try_from(size).ok())
                    .ok_or_else(|| Self::wrong(key, value, "a whole number"))
            })
            .transpose()
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| Error::input(format!("`{key}` is missing")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| Self::wrong(key, value, "a number")))
            .transpose()
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?
            .ok_or_else(|| Error::input(format!("the RoPE parameter `{key}` is missing")))
    }

    fn optional_flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| Self::wrong(key, value, "true or false")))
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| Self::wrong(key, value, "a string")))
            .transpose()
    }

    /// A token id or a list of them. A negative id (old Llama configs pad with -1) is none.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |id: &Value| match id.as_i64() {
            Some(id) if id < 0 => Ok(None),
            Some(id) => {
                u32::try_from(id).map(Some).map_err(|_| Self::wrong(key, value, "token ids"))
            }
            None => Err(Self::wrong(key, value, "token ids")),
        };
        let ids: Result<Vec<Option<u32>>> = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|id| vec![id]),
        };
        Ok(ids?.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "eos_token_id": [2, 3], "pad_token_id": -1, "some_future_key": {"a": [1]}
        })
    }

    fn with(key: &str, value: Value) -> Result<Config> {
        let mut json = base();
        json[key] = value;
        Config::from_json(&json)
    }

    #[test]
    fn both_styles_of_rope_say_the_same() {
        let scaling = json!({"type": "linear", "factor": 4.0});
        let old = with("rope_scaling", scaling).unwrap();
        let parameters = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
        let new = with("rope_parameters", parameters).unwrap();
        assert_eq!(old.rope, new.rope);
        assert_eq!(old.rope.theta, 5e5);
        assert_eq!(old.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    }

    #[test]
    fn a_written_config_reads_as_the_same_config() {
        let scalings = [
            json!(null),
            json!({"rope_type": "linear", "factor": 2.0}),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
            json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}),
        ];
        for scaling in scalings {
            let config = with("rope_scaling", scaling).unwrap();
            let again = Config::from_json(&config.to_json()).unwrap();
            assert_eq!(again.extra["some_future_key"], json!({"a": [1]}));
            assert_eq!(
                Config { extra: Map::new(), ..again },
                Config { extra: Map::new(), ..config }
            );
        }
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = Config::from_json(&base()).unwrap();
        assert_eq!(config.head_dim, 16);
        assert_eq!(config.eos_ids, [2, 3]);
        assert_eq!(config.pad_id, None);
        assert!(!config.qkv_bias());
        let qwen3 = with("model_type", json!("qwen3")).unwrap();
        assert_eq!(qwen3.head_dim, 128);
        let qwen2 = with("model_type", json!("qwen2")).unwrap();
        assert!(qwen2.qkv_bias() && !qwen2.o_bias());
    }

    #[test]
    fn a_reward_model_is_known_by_its_class_and_its_single_label() {
        let class = json!(["LlamaForSequenceClassification"]);
        let labelled = |labels: Value| {
            let mut json = base();
            json["architectures"] = class.clone();
            json["id2label"] = labels;
            Config::from_json(&json)
        };
        let config = labelled(json!({"0": "REWARD"})).unwrap();
        assert_eq!(config.head, Head::Score);
        assert!(config.param_shapes().contains(&("score.weight".to_owned(), vec![1, 64])));
        let written = config.to_json();
        assert_eq!(
            (&written["architectures"], &written["id2label"]["0"]),
            (&class, &json!("REWARD"))
        );
        assert_eq!(Config::from_json(&written).unwrap().head, Head::Score);
        for labels in [json!({"0": "A", "1": "B"}), json!(null)] {
            let message = labelled(labels).unwrap_err().to_string();
            assert!(message.contains("2 labels: expected 1"), "{message}");
        }
        assert_eq!(
            with("architectures", json!(["LlamaForCausalLM"])).unwrap().head,
            Head::Language
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            ("model_type", json!("mamba"), "architecture `mamba`"),
            ("hidden_act", json!("gelu"), "`hidden_act` is `gelu`"),
            ("mlp_bias", json!(true), "`mlp_bias`"),
            ("layer_types", json!(["sliding_attention"]), "sliding_attention"),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "`dynamic`"),
            ("rope_scaling", json!({"type": "longrope"}), "`longrope`"),
            ("quantization_config", json!({"bits": 4}), "quantized"),
            ("hidden_size", json!(-1), "`hidden_size` is -1"),
            ("hidden_size", json!(1u64 << 60), "`hidden_size`"),
            ("vocab_size", json!(u64::MAX), "`vocab_size`"),
            ("num_key_value_heads", json!(3), "multiple of `num_key_value_heads`"),
            ("num_attention_heads", json!(0), "`num_attention_heads` is 0"),
            ("head_dim", json!(7), "`head_dim` is 7"),
            ("rms_norm_eps", json!(0.0), "`rms_norm_eps`"),
            ("rope_theta", json!(-1), "`rope_theta`"),
            ("eos_token_id", json!(256), "`eos_token_id` is 256"),
        ];
        for (key, value, expected) in cases {
            let message = with(key, value.clone()).unwrap_err().to_string();
            assert!(message.contains(expected), "{key} = {value}: {message}");
        }
    }
}
