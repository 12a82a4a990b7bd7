//! Adapters as directories in the layout of peft: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What is written loads with `PeftModel.from_pretrained(base, dir)`. What is read may be of any rank, for any layers
//! and projections; what changes the model otherwise (DoRA, trained biases, other modules) is refused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use aha_compute::ops::lora;
use aha_compute::{ParamId, Params, Tensor};
use serde_json::{Value, json};

use crate::config::{Config, Head, SCORE_WEIGHT, read_json};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::lora::{Target, matrix_names, scale};
use crate::save::{self, SaveDtype};
use crate::weights::TensorFiles;

/// The file that says what an adapter is.
pub const CONFIG: &str = "adapter_config.json";
/// The file that has its matrices.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What peft puts before the names of transformers.
const PREFIX: &str = "base_model.model.";
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Keys of the config that change what an adapter does, with the only value that is known here. Absent, null, false
/// and empty ones are the same.
const PLAIN: [(&str, &str); 9] = [
    ("peft_type", "LORA"),
    ("bias", "none"),
    ("use_dora", ""),
    ("lora_bias", ""),
    ("fan_in_fan_out", ""),
    ("alpha_pattern", ""),
    ("layer_replication", ""),
    ("trainable_token_indices", ""),
    ("target_parameters", ""),
];

/// Writes what is trained of a model with adapters, replacing what was there. Readers see the old directory or the
/// whole new one. peft finds the model without adapters again where it was read from.
pub fn save(dir: &Path, model: &Model, dtype: SaveDtype) -> Result<()> {
    let config = config_of(model)?;
    let params = model.params();
    let mut tensors: Vec<save::Tensor<'_>> = params
        .trained()
        .map(|id| save::Tensor {
            name: format!("{PREFIX}{}", params.name(id)),
            shape: params.value(id).shape().to_vec(),
            values: params.value(id).host(),
        })
        .collect();
    // As `copy` has them.
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    save::save_aside(dir, |aside| {
        crate::tokenizer::write_json(&aside.join(CONFIG), &config)?;
        save::write_safetensors(&aside.join(WEIGHTS), &tensors, dtype)
    })
}

/// Whether [`save()`] gives files this name.
pub fn is_written(name: &str) -> bool {
    [CONFIG, WEIGHTS].contains(&name)
}

/// Writes the adapter of one directory to another, with numbers of that type, replacing what was there.
pub fn copy(from: &Path, to: &Path, dtype: SaveDtype) -> Result<()> {
    let config = read_json(&from.join(CONFIG), CONFIG_BYTES_MAX)?;
    let files = TensorFiles::open(&from.join(WEIGHTS))?;
    let read = |name: &str| -> Result<(String, Vec<usize>, Vec<f32>)> {
        let shape = files.shape(name).unwrap_or_default().to_vec();
        files.check_shape(name, &shape)?;
        let mut values = vec![0.0; shape.iter().product()];
        files.read(name, &mut values)?;
        Ok((name.to_owned(), shape, values))
    };
    let read = files.names().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<save::Tensor<'_>> = read
        .iter()
        .map(|(name, shape, values)| save::Tensor {
            name: name.clone(),
            shape: shape.clone(),
            values: values.into(),
        })
        .collect();
    save::save_aside(to, |aside| {
        crate::tokenizer::write_json(&aside.join(CONFIG), &config)?;
        save::write_safetensors(&aside.join(WEIGHTS), &tensors, dtype)
    })
}

fn config_of(model: &Model) -> Result<Value> {
    let no_adapter = || Error::Bug("the model has no adapters to write".to_owned());
    let lora = model.lora().ok_or_else(no_adapter)?;
    let names: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
    let (task, saved) = match model.config().head {
        Head::Language => ("CAUSAL_LM", Value::Null),
        Head::Score => ("SEQ_CLS", json!(["score"])),
    };
    let base = model.origin().map(Path::to_string_lossy);
    // peft's own type for it is a whole number.
    let alpha = match lora.alpha {
        alpha if alpha.fract() == 0.0 && alpha < 1e15 => json!(alpha as u64),
        alpha => json!(alpha),
    };
    Ok(json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": base, "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "layers_pattern": null, "layers_to_transform": null, "lora_alpha": alpha,
        "lora_dropout": 0.0, "modules_to_save": saved, "peft_type": "LORA", "r": lora.rank,
        "rank_pattern": {}, "revision": null, "target_modules": names, "task_type": task,
        "use_dora": false, "use_rslora": lora.is_rank_stabilised,
    }))
}

impl Model {
    /// Takes the values of what is trained from a directory that [`save()`] wrote.
    pub fn restore_adapter(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(WEIGHTS);
        let files = TensorFiles::open(&path)?;
        let ids: Vec<ParamId> = self.params().trained().collect();
        for id in ids {
            let name = format!("{PREFIX}{}", self.params().name(id));
            let shape = self.params().value(id).shape().to_vec();
            files.check_shape(&name, &shape).map_err(|error| error.at(&path))?;
            let value = self.params_mut().value_mut(id);
            value.write_with(|values| files.read(&name, values))?;
        }
        Ok(())
    }

    /// The model that an adapter makes of this one: each weight is `w + scale · b·a`.
    pub fn with_adapter(mut self, dir: &Path) -> Result<Model> {
        let opened = Opened::open(dir, self.config())?;
        for change in &opened.changes {
            opened.apply(change, self.params_mut())?;
        }
        self.origin = None;
        Ok(self)
    }
}

/// Fails for a directory that holds no adapter of models with this config.
pub fn check(dir: &Path, config: &Config) -> Result<()> {
    Opened::open(dir, config).map(|_| ())
}

/// An adapter that fits a model.
struct Opened {
    files: TensorFiles,
    settings: Settings,
    changes: Vec<Change>,
}

impl Opened {
    fn open(dir: &Path, config: &Config) -> Result<Opened> {
        let path = dir.join(CONFIG);
        let json = read_json(&path, CONFIG_BYTES_MAX)?;
        let settings = Settings::read(&json).map_err(|error| error.at(&path))?;
        let path = dir.join(WEIGHTS);
        let files = TensorFiles::open(&path)?;
        let changes = changes(&files, config).map_err(|error| error.at(&path))?;
        Ok(Opened { files, settings, changes })
    }

    fn apply(&self, change: &Change, params: &mut Params) -> Result<()> {
        let weight = params
            .find(&change.weight)
            .ok_or_else(|| Error::Bug(format!("the model has no `{}`", change.weight)))?;
        let weight = params.value_mut(weight);
        match &change.kind {
            Kind::Replacement(name) => weight.write_with(|values| self.files.read(name, values)),
            Kind::Product(names, rank) => {
                let [out, inp] = [weight.rows(), weight.cols()];
                let mut a = Tensor::zeros(weight.device(), &[*rank, inp]);
                let mut b = Tensor::zeros(weight.device(), &[out, *rank]);
                a.write_with(|values| self.files.read(&names[0], values))?;
                b.write_with(|values| self.files.read(&names[1], values))?;
                let scale = scale(self.settings.alpha, *rank, self.settings.is_rank_stabilised);
                lora::merge(weight, [&a, &b], scale);
                Ok(())
            }
        }
    }
}

/// What a config says of the scale.
struct Settings {
    alpha: f64,
    is_rank_stabilised: bool,
}

impl Settings {
    fn read(json: &Value) -> Result<Settings> {
        for (key, known) in PLAIN {
            let found = &json[key];
            let is_plain = match found {
                Value::Null => known != "LORA",
                Value::Bool(is_on) => !is_on,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::String(text) => text == known,
                Value::Number(_) => false,
            };
            if !is_plain {
                let known =
                    if known.is_empty() { "nothing".to_owned() } else { format!("`{known}`") };
                let message = format!("`{key}` is {found}: expected {known}");
                return Err(Error::input(message)
                    .hint("merge it into its model with peft's `merge_and_unload`"));
            }
        }
        let alpha = json["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| {
            Error::input(format!("`lora_alpha` is {}: expected a number", json["lora_alpha"]))
        })?;
        Ok(Settings { alpha, is_rank_stabilised: json["use_rslora"] == Value::Bool(true) })
    }
}

/// What an adapter does to a weight.
struct Change {
    weight: String,
    kind: Kind,
}

enum Kind {
    /// The product of these two matrices, of this rank, is added.
    Product([String; 2], usize),
    /// This tensor takes its place.
    Replacement(String),
}

/// What all tensors of an adapter do to the weights of models with this config, each of which is checked.
fn changes(files: &TensorFiles, config: &Config) -> Result<Vec<Change>> {
    let shapes: HashMap<String, Vec<usize>> = config.param_shapes().into_iter().collect();
    let targets = Target::ALL.into_iter();
    let paths: HashSet<String> = targets
        .flat_map(|target| (0..config.layer_count).map(move |layer| target.path(layer)))
        .collect();
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut changes = Vec::new();
    for name in files.names() {
        let unknown = || {
            Error::input(format!("tensor `{name}` belongs to no projection of the model")).hint(
                "is it an adapter of another model? those of other modules than the layers' \
                 projections are merged with peft's `merge_and_unload`",
            )
        };
        let inner = name.strip_prefix(PREFIX).ok_or_else(unknown)?;
        if config.head == Head::Score && inner == SCORE_WEIGHT {
            files.check_shape(name, &shapes[SCORE_WEIGHT])?;
            let kind = Kind::Replacement(name.to_owned());
            changes.push(Change { weight: SCORE_WEIGHT.to_owned(), kind });
            continue;
        }
        let path = inner
            .strip_suffix(".lora_A.weight")
            .or_else(|| inner.strip_suffix(".lora_B.weight"))
            .filter(|path| paths.contains(*path))
            .ok_or_else(unknown)?;
        let rank = match files.shape(name) {
            Some(&[rank, _]) if inner.ends_with(".lora_A.weight") => rank,
            Some(&[_, rank]) => rank,
            _ => 0,
        };
        ranks.entry(path).or_insert(rank);
    }
    if ranks.is_empty() {
        return Err(Error::input("no adapter is in it"));
    }
    for (path, rank) in ranks {
        if rank == 0 {
            return Err(Error::input(format!("the adapter of `{path}` has the rank 0")));
        }
        let (names, weight) = (matrix_names(path), format!("{path}.weight"));
        let names = names.map(|name| format!("{PREFIX}{name}"));
        let shape = &shapes[&weight];
        files.check_shape(&names[0], &[rank, shape[1]])?;
        files.check_shape(&names[1], &[shape[0], rank])?;
        changes.push(Change { weight, kind: Kind::Product(names, rank) });
    }
    Ok(changes)
}
