//! The tokenizer that a GGUF carries, rebuilt as a `tokenizer.json`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{Gguf, config, spm};
use crate::config::VOCAB_SIZE_MAX;
use crate::error::{Error, Result};
use crate::tokenizer::{Parts, Tokenizer};

/// The splitting of Qwen2 and of models made from it.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The splitting of Llama 3: as Qwen2's, with digits in groups of up to three.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

pub(super) fn read(gguf: &Gguf) -> Result<Tokenizer> {
    let vocab = Vocab::read(gguf)?;
    let kind = gguf
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| Error::input("`tokenizer.ggml.model` is missing: no tokenizer inside"))?;
    let mut json = match kind {
        "gpt2" => byte_level(gguf, &vocab)?,
        "llama" => spm::tokenizer_json(gguf, &vocab.tokens)?,
        other => {
            return Err(Error::input(format!(
                "tokenizer model `{other}` is not supported: expected gpt2 or llama"
            ))
            .hint("use the model's Hugging Face directory, which has a tokenizer.json"));
        }
    };
    let bos = vocab.token(gguf, "tokenizer.ggml.bos_token_id")?;
    let default_adds_bos =
        kind == "llama" || matches!(pre_tokenizer_kind(gguf)?, "llama-bpe" | "llama3" | "llama-v3");
    let adds_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(default_adds_bos);
    if let Some((id, token)) = bos.filter(|_| adds_bos) {
        json["post_processor"] = bos_first(id, token);
    }
    json["added_tokens"] = vocab.added_tokens();

    let mut settings = Map::new();
    let specials = [
        ("bos_token", bos),
        ("eos_token", vocab.token(gguf, "tokenizer.ggml.eos_token_id")?),
        ("unk_token", vocab.token(gguf, "tokenizer.ggml.unknown_token_id")?),
        ("pad_token", vocab.token(gguf, "tokenizer.ggml.padding_token_id")?),
    ];
    for (key, token) in specials {
        if let Some((_, token)) = token {
            settings.insert(key.to_owned(), json!(token));
        }
    }
    Tokenizer::from_parts(Parts {
        json,
        settings,
        chat_template: gguf.text("tokenizer.chat_template")?.map(str::to_owned),
        eos_ids: config::eos_ids(gguf)?,
    })
}

/// The tokens by id, with their types.
struct Vocab<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocab<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let tokens = gguf
            .texts("tokenizer.ggml.tokens")?
            .ok_or_else(|| Error::input("`tokenizer.ggml.tokens` is missing"))?;
        if tokens.len() > VOCAB_SIZE_MAX {
            return Err(Error::input(format!(
                "`tokenizer.ggml.tokens` has {} tokens: expected at most {VOCAB_SIZE_MAX}",
                tokens.len()
            )));
        }
        let mut seen = HashSet::new();
        if let Some(token) = tokens.iter().find(|token| !seen.insert(**token)) {
            return Err(Error::input(format!("token {token:?} occurs twice in the vocabulary")));
        }
        let types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(Error::input(format!(
                "`tokenizer.ggml.token_type` has {} entries: expected {}",
                types.len(),
                tokens.len()
            )));
        }
        Ok(Vocab { tokens, types })
    }

    /// The token that the id under `key` stands for.
    fn token(&self, gguf: &Gguf, key: &str) -> Result<Option<(u64, &'a str)>> {
        let Some(id) = gguf.integer(key)?.filter(|id| *id != u64::from(u32::MAX)) else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        token.map(|token| Some((id, *token))).ok_or_else(|| {
            Error::input(format!("`{key}` is {id}: expected below {}", self.tokens.len()))
        })
    }

    fn added_tokens(&self) -> Value {
        let added = self.types.iter().enumerate().filter_map(|(id, kind)| {
            let special = match *kind {
                TYPE_CONTROL | TYPE_UNKNOWN => true,
                TYPE_USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            }))
        });
        Value::Array(added.filter(|token| token["content"] != "").collect())
    }
}

fn byte_level(gguf: &Gguf, vocab: &Vocab) -> Result<Value> {
    let kind = pre_tokenizer_kind(gguf)?;
    let byte_level = |use_regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
               "use_regex": use_regex})
    };
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern},
                           "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let pre_tokenizer = match kind {
        "gpt-2" => byte_level(true),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => split(LLAMA3_PATTERN),
        "qwen2" | "deepseek-r1-qwen" => split(QWEN2_PATTERN),
        other => {
            return Err(Error::input(format!(
                "pre-tokenizer `{other}` is not supported: expected gpt-2, smollm, llama-bpe, \
                 qwen2 or deepseek-r1-qwen"
            ))
            .hint("use the model's Hugging Face directory, which has a tokenizer.json"));
        }
    };
    let merges = gguf
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| Error::input("`tokenizer.ggml.merges` is missing"))?;
    let vocab: Map<String, Value> =
        vocab.tokens.iter().enumerate().map(|(id, t)| ((*t).to_owned(), json!(id))).collect();
    let is_llama3 = kind.starts_with("llama");
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": if kind == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(false),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": is_llama3,
            "vocab": vocab, "merges": merges,
        },
    }))
}

fn pre_tokenizer_kind(gguf: &Gguf) -> Result<&str> {
    Ok(gguf.text("tokenizer.ggml.pre")?.unwrap_or("gpt-2"))
}

/// A post-processor that puts the beginning-of-text token before every text.
fn bos_first(id: u64, token: &str) -> Value {
    let bos = |type_id: u64| json!({"SpecialToken": {"id": token, "type_id": type_id}});
    let text = |name: &str, type_id: u64| json!({"Sequence": {"id": name, "type_id": type_id}});
    json!({
        "type": "TemplateProcessing",
        "single": [bos(0), text("A", 0)],
        "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}
