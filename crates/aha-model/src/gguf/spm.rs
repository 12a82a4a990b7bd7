//! SentencePiece BPE ("llama" tokenizers) out of a GGUF, which has scores instead of merges.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::error::{Error, Result};

/// Longest piece whose splits are looked at, in bytes; SentencePiece allows 16 characters.
const PIECE_BYTES_MAX: usize = 256;

/// SentencePiece merges the adjacent pair whose concatenation has the highest score. That order
/// as a list of merges is every split of every piece into two pieces, best score first.
pub(super) fn tokenizer_json(gguf: &Gguf, tokens: &[&str]) -> Result<Value> {
    let scores = gguf
        .floats("tokenizer.ggml.scores")?
        .ok_or_else(|| Error::input("`tokenizer.ggml.scores` is missing"))?;
    if scores.len() != tokens.len() {
        return Err(Error::input(format!(
            "`tokenizer.ggml.scores` has {} entries: expected {}",
            scores.len(),
            tokens.len()
        )));
    }
    let has_byte = |byte: u32| tokens.contains(&format!("<0x{byte:02X}>").as_str());
    if !(0..=255).all(has_byte) {
        return Err(Error::input("the vocabulary has no token for every byte")
            .hint("use the model's Hugging Face directory, which has a tokenizer.json"));
    }
    let unk = gguf.size("tokenizer.ggml.unknown_token_id")?.and_then(|id| tokens.get(id));
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders =
        vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges(tokens, &scores),
        },
    }))
}

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn merges<'a>(tokens: &[&'a str], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut merges = Vec::new();
    let short = |piece: &&str| piece.len() <= PIECE_BYTES_MAX;
    for (piece, score) in tokens.iter().zip(scores).filter(|(piece, _)| short(piece)) {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((*score, (left, right)));
            }
        }
    }
    // Among equals the longer left piece first, as transformers' converter has it (stable sort).
    merges.sort_by(|(a_score, (a, _)), (b_score, (b, _))| {
        b_score.total_cmp(a_score).then_with(|| b.chars().count().cmp(&a.chars().count()))
    });
    merges.into_iter().map(|(_, pair)| pair).collect()
}
