//! What several tests need: random numbers, small models, a GGUF writer.

#![expect(dead_code, reason = "each test binary uses a part of this")]

use std::path::Path;

use aha_model::config::{Architecture, Config, Head, Rope};
use aha_model::gguf::QuantType;
use aha_model::save::{SaveOptions, save};
use aha_model::tokenizer::Tokenizer;
use aha_model::weights::WeightSource;
use half::f16;

/// A directory of `tests/fixtures`.
pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("tests/fixtures")
        .join(name)
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// In [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A config small enough to write hundreds of times.
pub fn small_config(architecture: Architecture) -> Config {
    Config {
        architecture,
        vocab_size: 40,
        hidden_size: 16,
        intermediate_size: 24,
        layer_count: 2,
        head_count: 4,
        kv_head_count: 2,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope: Rope::plain(10000.0),
        head: Head::Language,
        tie_word_embeddings: architecture != Architecture::Qwen2,
        attention_bias: false,
        max_position_embeddings: 128,
        bos_id: None,
        eos_ids: vec![0],
        pad_id: None,
        initializer_range: 0.02,
        extra: serde_json::Map::new(),
    }
}

/// Random weights of a config, under their names.
pub fn random_weights(config: &Config, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut random = Random(seed);
    config
        .param_shapes()
        .into_iter()
        .map(|(name, shape)| {
            let values = random.floats(shape.iter().product());
            (name, shape, values)
        })
        .collect()
}

pub fn save_weights(
    dir: &Path,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    weights: &[(String, Vec<usize>, Vec<f32>)],
    options: SaveOptions,
) {
    let tensors = weights
        .iter()
        .map(|(name, shape, values)| (name.clone(), shape.clone(), values.as_slice()));
    save(dir, config, tokenizer, tensors, options).unwrap();
}

/// Every tensor of a checkpoint.
pub fn read_all(source: &mut dyn WeightSource) -> aha_model::error::Result<Vec<Vec<f32>>> {
    let shapes = source.config().param_shapes();
    shapes
        .iter()
        .map(|(name, shape)| {
            let mut out = vec![0.0; shape.iter().product()];
            source.tensor(name, &mut out).map(|()| out)
        })
        .collect()
}

/// Writes GGUF version 3.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    entry_count: u64,
    tensors: Vec<(String, Vec<usize>, QuantType, Vec<u8>)>,
}

impl GgufWriter {
    fn key(&mut self, key: &str, kind: u32) {
        self.entry_count += 1;
        put_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
        self
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
        self
    }

    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key, 7);
        self.metadata.push(u8::from(value));
        self
    }

    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, 8);
        put_text(&mut self.metadata, value);
        self
    }

    pub fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        self.key(key, 9);
        self.metadata.extend(8u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_text(&mut self.metadata, value.as_ref()));
        self
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.key(key, 9);
        self.metadata.extend(5u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        self.metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.key(key, 9);
        self.metadata.extend(6u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        self.metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// `shape` as Hugging Face orders it.
    pub fn tensor(&mut self, name: &str, shape: &[usize], quant: QuantType, bytes: Vec<u8>) {
        self.tensors.push((name.to_owned(), shape.to_vec(), quant, bytes));
    }

    pub fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.0 != name);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.to_le_bytes());
        out.extend(&self.metadata);
        let mut data = Vec::new();
        for (name, shape, quant, bytes) in &self.tensors {
            put_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
            out.extend(quant.code().to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Random blocks whose scales are ordinary numbers.
pub fn random_blocks(quant: QuantType, element_count: usize, random: &mut Random) -> Vec<u8> {
    let block_count = element_count / quant.block_len();
    let scales: &[usize] = match quant {
        QuantType::F16 => &[0],
        QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 => &[0],
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4_K | QuantType::Q5_K => &[0, 2],
        QuantType::Q6_K => &[208],
        QuantType::F32 | QuantType::BF16 => &[],
    };
    let mut bytes = Vec::new();
    for _ in 0..block_count {
        if scales.is_empty() {
            // The upper half of an f32 is a bf16.
            let value = random.float().to_le_bytes();
            bytes.extend(&value[4 - quant.block_bytes()..]);
            continue;
        }
        let mut block: Vec<u8> = (0..quant.block_bytes()).map(|_| random.next() as u8).collect();
        for at in scales {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(random.float()).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// A one-layer model in GGUF whose tensors are of every type, with a byte-level tokenizer.
pub fn small_gguf(architecture: Architecture, seed: u64) -> GgufWriter {
    let name = architecture.name();
    let key = |rest: &str| format!("{name}.{rest}");
    let mut w = GgufWriter::default();
    w.text("general.architecture", name)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 512)
        .u32(&key("embedding_length"), 256)
        .u32(&key("feed_forward_length"), 256)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .u32(&key("attention.key_length"), 32)
        .u32(&key("rope.dimension_count"), 32)
        .f32(&key("rope.freq_base"), 10000.0)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    let vocab_len = put_byte_level_tokenizer(&mut w, "smollm");
    let mut random = Random(seed);
    let mut put = |w: &mut GgufWriter, name: &str, shape: &[usize], quant: QuantType| {
        let bytes = random_blocks(quant, shape.iter().product(), &mut random);
        w.tensor(name, shape, quant, bytes);
    };
    put(&mut w, "token_embd.weight", &[vocab_len, 256], QuantType::Q8_0);
    put(&mut w, "output_norm.weight", &[256], QuantType::BF16);
    put(&mut w, "blk.0.attn_norm.weight", &[256], QuantType::F32);
    put(&mut w, "blk.0.ffn_norm.weight", &[256], QuantType::F16);
    put(&mut w, "blk.0.attn_q.weight", &[64, 256], QuantType::Q4_0);
    put(&mut w, "blk.0.attn_k.weight", &[32, 256], QuantType::Q4_1);
    put(&mut w, "blk.0.attn_v.weight", &[32, 256], QuantType::Q5_0);
    put(&mut w, "blk.0.attn_output.weight", &[256, 64], QuantType::Q5_1);
    put(&mut w, "blk.0.ffn_gate.weight", &[256, 256], QuantType::Q4_K);
    put(&mut w, "blk.0.ffn_up.weight", &[256, 256], QuantType::Q5_K);
    put(&mut w, "blk.0.ffn_down.weight", &[256, 256], QuantType::Q6_K);
    if architecture == Architecture::Qwen2 {
        put(&mut w, "blk.0.attn_q.bias", &[64], QuantType::F32);
        put(&mut w, "blk.0.attn_k.bias", &[32], QuantType::F32);
        put(&mut w, "blk.0.attn_v.bias", &[32], QuantType::F32);
    }
    if architecture == Architecture::Qwen3 {
        put(&mut w, "blk.0.attn_q_norm.weight", &[32], QuantType::F32);
        put(&mut w, "blk.0.attn_k_norm.weight", &[32], QuantType::F32);
    }
    w
}

/// A trained tokenizer's vocabulary as GGUF metadata; returns its length.
pub fn put_byte_level_tokenizer(w: &mut GgufWriter, pre: &str) -> usize {
    let json = trained_tokenizer_json();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let tokens: Vec<&str> = vocab.keys().map(String::as_str).collect();
    let mut types = vec![1; tokens.len()];
    types[..2].fill(3);
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    w.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", false)
        .text("tokenizer.chat_template", CHAT_TEMPLATE);
    tokens.len()
}

pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";

pub fn trained_tokenizer() -> Tokenizer {
    use aha_model::tokenizer_train::{TrainOptions, train};
    let options = TrainOptions {
        vocab_size: 280,
        special_tokens: vec!["<|start|>".into(), "<|end|>".into()],
        bos_token: Some("<|start|>".into()),
        eos_token: Some("<|end|>".into()),
        chat_template: Some(CHAT_TEMPLATE.into()),
        ..TrainOptions::default()
    };
    train(["the cat sat on the mat and that was that", "it's the hat, then"], &options).unwrap()
}

fn trained_tokenizer_json() -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    trained_tokenizer().save(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}
