//! Broken and hostile files: errors, never a panic, never an allocation out of proportion.
//!
//! Thousands of mutations of each kind of file are loaded and, where they load, used: a model with a
//! forward pass, a tokenizer with texts there and back. An allocator that counts says how much memory that
//! took.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aha_compute::Device;
use aha_model::Model;
use aha_model::chat_template::Message;
use aha_model::config::{Architecture, Config};
use aha_model::save::SaveOptions;
use aha_model::tokenizer::Tokenizer;
use common::{Random, random_weights, save_weights, small_config, small_gguf};
use serde_json::{Value, json};

/// Live bytes at most, over what was there before, so that no single allocation is larger either:
/// the files have less than 1 MB.
const LIVE_BYTES_MAX: usize = 96 << 20;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes changed in one of the ways in which files break or are made to break.
fn mutate(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    // Most of the structure is near the beginning.
    let end = if random.below(3) == 0 { bytes.len() } else { bytes.len().min(6000) };
    let at = random.below(end);
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = random.next() as u8),
        3 => drop(bytes.drain(at..(at + 1 + random.below(64)).min(original.len()))),
        4 => drop(bytes.splice(at..at, original[..random.below(200).min(original.len())].to_vec())),
        5 => {
            let hostile: u64 =
                [u64::MAX, 1 << 62, 1 << 40, 1 << 32, u32::MAX.into(), 1 << 31, 0][random.below(7)];
            let len = [4, 8][random.below(2)].min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&hostile.to_le_bytes()[..len]);
        }
        _ => replace_number(&mut bytes, at, random),
    }
    bytes
}

/// Replaces the next number of a text by one that nobody expects.
fn replace_number(bytes: &mut Vec<u8>, from: usize, random: &mut Random) {
    let Some(start) = (from..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else { return };
    let len = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let hostile = ["18446744073709551615", "-1", "1e400", "4294967295", "0", "null", "[[[[]]]]"]
        [random.below(7)];
    bytes.splice(start..start + len, hostile.bytes());
}

/// Whether `open` fails. That it takes more memory than it may is not in what it can say.
fn is_refused(what: &str, open: impl Fn() -> aha_model::error::Result<()>) -> bool {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let is_refused = open().is_err();
    let grown = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(grown < LIVE_BYTES_MAX, "{what} took {grown} bytes");
    is_refused
}

/// Feeds mutations of `file`, beside the unbroken rest of its directory, to `open`. At least one in
/// eight must be refused, or the mutations test nothing.
fn feed(file: &Path, count: usize, open: impl Fn() -> aha_model::error::Result<()>) {
    open().expect("the unbroken file opens");
    let original = std::fs::read(file).unwrap();
    let mut random = Random(original.len() as u64);
    let mut refused_count = 0;
    for i in 0..count {
        std::fs::write(file, mutate(&original, &mut random)).unwrap();
        refused_count +=
            usize::from(is_refused(&format!("mutation {i} of {}", file.display()), &open));
    }
    std::fs::write(file, original).unwrap();
    assert!(refused_count * 8 > count, "only {refused_count} of {count} were refused");
}

/// Parts of a `tokenizer.json` that ask `tokenizers` for what isn't there, for too much, or for what
/// never ends. Some may be harmless; none may panic.
fn hostile_tokenizers() -> Vec<(&'static str, Value)> {
    let nested =
        (0..200).fold(json!(null), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
    let bos = json!([{"SpecialToken": {"id": "nowhere", "type_id": 0}}]);
    let huge = u32::MAX;
    vec![
        ("normalizer", nested),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""})),
        ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "aa"})),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": ""})),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": ""},
                                 "behavior": "Isolated", "invert": true}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "a{99999}{99999}"},
                                 "behavior": "Isolated", "invert": false}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(?=(a+)+)(\\2|\\9)"},
                                 "behavior": "Removed", "invert": false}),
        ),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": bos, "pair": bos,
                                  "special_tokens": {}}),
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [], "pair": [],
                                  "special_tokens": {}}),
        ),
        (
            "post_processor",
            json!({"type": "RobertaProcessing", "sep": ["x", huge],
                                  "cls": ["y", huge], "trim_offsets": true,
                                  "add_prefix_space": true}),
        ),
        ("decoder", json!({"type": "Strip", "content": "a", "start": 9, "stop": 1u64 << 60})),
        ("decoder", json!({"type": "Strip", "content": "", "start": 0, "stop": 0})),
        (
            "decoder",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "",
                           "cleanup": true}),
        ),
        (
            "truncation",
            json!({"direction": "Left", "max_length": 0, "stride": 9,
                              "strategy": "OnlySecond"}),
        ),
        (
            "padding",
            json!({"strategy": {"Fixed": 1u64 << 60}, "direction": "Left",
                           "pad_to_multiple_of": 0, "pad_id": huge, "pad_type_id": 0,
                           "pad_token": "x"}),
        ),
        (
            "added_tokens",
            json!([{"id": huge, "content": "a", "single_word": true, "lstrip": true,
                                 "rstrip": true, "normalized": true, "special": true}]),
        ),
        (
            "added_tokens",
            json!([{"id": 0, "content": "", "single_word": true, "lstrip": true,
                                 "rstrip": true, "normalized": true, "special": true}]),
        ),
        ("model", json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]})),
        ("model", json!({"type": "Unigram", "unk_id": null, "vocab": []})),
        ("model", json!({"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["", -1e308]]})),
        (
            "model",
            json!({"type": "WordPiece", "unk_token": "none", "vocab": {"a": 0},
                         "continuing_subword_prefix": "é", "max_input_chars_per_word": 0}),
        ),
        ("model", json!({"type": "WordLevel", "unk_token": "none", "vocab": {"a": huge}})),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2},
                         "merges": [["a", "é"]], "continuing_subword_prefix": "#"}),
        ),
        ("model", json!({"type": "BPE", "vocab": {}, "merges": [], "dropout": 2.0})),
        ("model", json!({"type": "BPE", "vocab": {"a": 4_000_000_000u64}, "merges": []})),
    ]
}

/// Puts each part into a good `tokenizer.json` and uses what opens.
fn feed_hostile_tokenizers(dir: &Path) {
    let path = dir.join("tokenizer.json");
    let original = std::fs::read_to_string(&path).unwrap();
    let mut refused_count = 0;
    for (key, part) in hostile_tokenizers() {
        let mut json: Value = serde_json::from_str(&original).unwrap();
        json[key] = part.clone();
        std::fs::write(&path, json.to_string()).unwrap();
        refused_count += usize::from(is_refused(&format!("{key} = {part}"), || use_tokenizer(dir)));
    }
    std::fs::write(&path, original).unwrap();
    assert!(refused_count >= 12, "only {refused_count} were refused");
}

/// Sets each number of a good `config.json` to each power of two. Limits are most often such numbers, so
/// that what is just within them is met as well as what is beyond.
fn feed_hostile_configs(dir: &Path) {
    let path = dir.join("config.json");
    let original = std::fs::read_to_string(&path).unwrap();
    let config: Value = serde_json::from_str(&original).unwrap();
    let numbers = config.as_object().unwrap().iter().filter(|(_, value)| value.is_number());
    let keys: Vec<&String> = numbers.map(|(key, _)| key).collect();
    assert!(keys.len() >= 9, "{keys:?}");
    let mut accepted = Vec::new();
    for key in keys {
        for exponent in 0..64 {
            let mut config = config.clone();
            config[key] = json!(1u64 << exponent);
            std::fs::write(&path, config.to_string()).unwrap();
            if !is_refused(&format!("{key} = 2^{exponent}"), || use_model(dir)) {
                accepted.push((key.as_str(), exponent));
            }
        }
    }
    std::fs::write(&path, &original).unwrap();
    // A position more or less changes no weight, so the largest count that is believed is met here.
    let positions = accepted.iter().filter(|(key, _)| *key == "max_position_embeddings");
    assert!(positions.map(|(_, exponent)| *exponent).max() >= Some(20), "{accepted:?}");
    let sizes = ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"];
    for size in sizes {
        let count = accepted.iter().filter(|(key, _)| *key == size).count();
        assert!(count <= 1, "`{size}` is not compared with the weights: {accepted:?}");
    }
}

/// The same for the numbers of a GGUF's metadata, which lie behind their keys.
fn feed_hostile_metadata(path: &Path) {
    let original = std::fs::read(path).unwrap();
    let keys = [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.rope.dimension_count",
        "tokenizer.ggml.eos_token_id",
    ];
    let mut accepted = Vec::new();
    for key in keys {
        // A key is a length and a text; head_count is the beginning of head_count_kv.
        let entry = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
        let at = original.windows(entry.len()).position(|window| window == entry).unwrap();
        let at = at + entry.len() + 4;
        for exponent in 0..32 {
            let mut bytes = original.clone();
            bytes[at..at + 4].copy_from_slice(&(1u32 << exponent).to_le_bytes());
            std::fs::write(path, bytes).unwrap();
            if !is_refused(&format!("{key} = 2^{exponent}"), || use_model(path)) {
                accepted.push((key, exponent));
            }
        }
    }
    std::fs::write(path, original).unwrap();
    let positions = accepted.iter().filter(|(key, _)| *key == "llama.context_length");
    assert!(positions.map(|(_, exponent)| *exponent).max() >= Some(20), "{accepted:?}");
}

/// Loads a model and its tokenizer, and runs a text through both.
fn use_model(path: &Path) -> aha_model::error::Result<()> {
    let model = Model::load(path, &Device::cpu(1))?;
    let tokenizer = Tokenizer::load(path)?;
    tokenizer.check_fits(model.config())?;
    let ids = tokenizer.encode("the cat's <|end|> 12 é", true)?;
    model.log_probs(&[&ids]).map(drop)
}

fn use_tokenizer(path: &Path) -> aha_model::error::Result<()> {
    let tokenizer = Tokenizer::load(path)?;
    let ids = tokenizer.encode("the cat's <|end|> 12 é", true)?;
    tokenizer.decode(&ids, true)?;
    if let Some(template) = tokenizer.chat_template() {
        let turns = [Message::new("user", "a"), Message::new("assistant", "b")];
        let rendered = template.render(&turns, false)?;
        tokenizer.encode_rendered(&rendered)?;
    }
    Ok(())
}

// One test, because the allocator counts for the whole process.
#[test]
fn broken_files_are_errors() {
    // `tokenizers` panics on some files; the panics are caught and need not be printed.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| at.file().to_owned()).unwrap_or_default();
        if !place.contains("tokenizers-") {
            eprintln!("{info}");
        }
    }));
    let temporary = tempfile::tempdir().unwrap();
    let config = Config { vocab_size: 280, head_dim: 16, ..small_config(Architecture::Qwen2) };
    let weights = random_weights(&config, 1);
    let tokenizer = common::trained_tokenizer();

    let dir = temporary.path().join("single");
    save_weights(&dir, &config, Some(&tokenizer), &weights, SaveOptions::default());
    let use_both = |path: &Path| use_tokenizer(path).and(use_model(path));
    feed(&dir.join("model.safetensors"), 600, || use_model(&dir));
    feed(&dir.join("config.json"), 600, || use_model(&dir));
    feed_hostile_configs(&dir);
    feed(&dir.join("tokenizer.json"), 600, || use_both(&dir));
    feed_hostile_tokenizers(&dir);
    feed(&dir.join("tokenizer_config.json"), 200, || use_both(&dir));
    feed(&dir.join("generation_config.json"), 100, || use_both(&dir));

    let dir = temporary.path().join("sharded");
    let options = SaveOptions { shard_bytes_max: 4000, ..SaveOptions::default() };
    save_weights(&dir, &config, Some(&tokenizer), &weights, options);
    feed(&dir.join("model.safetensors.index.json"), 600, || use_model(&dir));

    let path = temporary.path().join("model.gguf");
    std::fs::write(&path, small_gguf(Architecture::Llama, 1).bytes()).unwrap();
    feed(&path, 700, || use_both(&path));
    feed_hostile_metadata(&path);
}
