//! The tokenizer's files of a Hugging Face directory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Parts, Tokenizer};
use crate::config::{read_json, read_limited};
use crate::error::{Error, Result};

/// Llama 3's file has 17 MB, Qwen's 11 MB.
const TOKENIZER_BYTES_MAX: u64 = 512 << 20;
const SETTINGS_BYTES_MAX: u64 = 64 << 20;
const ROLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    if !path.exists() {
        return Err(Error::input(format!("`{}` not found", path.display())).hint(
            "save the tokenizer with transformers' `AutoTokenizer.from_pretrained(...)\
             .save_pretrained(DIR)`, which writes it",
        ));
    }
    let json = read_json(&path, TOKENIZER_BYTES_MAX)?;
    let mut settings = optional_map(&dir.join("tokenizer_config.json"))?;
    for (role, token) in optional_map(&dir.join("special_tokens_map.json"))? {
        if ROLES.contains(&role.as_str()) && settings.get(&role).is_none_or(Value::is_null) {
            settings.insert(role, token);
        }
    }
    let template_path = dir.join("chat_template.jinja");
    let chat_template = if template_path.exists() {
        let bytes = read_limited(&template_path, SETTINGS_BYTES_MAX)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::input("not UTF-8").caused_by(error).at(&template_path))?;
        Some(text)
    } else {
        None
    };
    let parts = Parts { json, settings, chat_template, eos_ids: eos_ids(dir)? };
    Tokenizer::from_parts(parts).map_err(|error| error.at(&path))
}

/// The stop tokens of `generation_config.json`; without that file, of `config.json`.
fn eos_ids(dir: &Path) -> Result<Vec<u32>> {
    let mut map = optional_map(&dir.join("generation_config.json"))?;
    if !map.contains_key("eos_token_id") {
        map = optional_map(&dir.join("config.json"))?;
    }
    let values = match map.remove("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(single) => vec![single],
    };
    let to_id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Error::input(format!("`eos_token_id` is {value}: expected token ids")).at(dir)
        })
    };
    values.iter().map(to_id).collect()
}

fn optional_map(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    match read_json(path, SETTINGS_BYTES_MAX)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::input("expected a JSON object").at(path)),
    }
}

pub(super) fn save(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let text = tokenizer
        .inner
        .to_string(false)
        .map_err(|error| Error::Bug(format!("the tokenizer could not be written: {error}")))?;
    write(&dir.join("tokenizer.json"), text.as_bytes())?;

    let mut settings = tokenizer.settings.clone();
    let mut or_insert = |key: &str, value: Value| {
        settings.entry(key.to_owned()).or_insert(value);
    };
    or_insert("tokenizer_class", json!("PreTrainedTokenizerFast"));
    or_insert("clean_up_tokenization_spaces", json!(false));
    if let Some(template) = &tokenizer.chat_template {
        // transformers before 4.52 knows only the entry, later ones prefer the file.
        or_insert("chat_template", json!(template.source()));
        write(&dir.join("chat_template.jinja"), template.source().as_bytes())?;
    }
    let roles: Map<String, Value> = ROLES
        .iter()
        .filter_map(|role| Some(((*role).to_owned(), settings.get(*role)?.clone())))
        .collect();
    write_json(&dir.join("tokenizer_config.json"), &Value::Object(settings))?;
    write_json(&dir.join("special_tokens_map.json"), &Value::Object(roles))
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, format!("{value:#}\n").as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        // A directory is renamed into place once its files are whole on the disk.
        file.sync_all()
    });
    written.map_err(|error| Error::io("write", path, error))
}
