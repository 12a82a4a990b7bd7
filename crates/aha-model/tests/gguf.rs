//! GGUF: every type dequantized, names and order mapped, tokenizer rebuilt.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use aha_model::chat_template::Message;
use aha_model::config::{Architecture, RopeScaling};
use aha_model::gguf::{Gguf, GgufWeights, QuantType};
use aha_model::tokenizer::Tokenizer;
use aha_model::weights::WeightSource;
use common::{GgufWriter, Random, random_blocks, read_all, small_gguf, trained_tokenizer};
use half::{bf16, f16};

fn write(dir: &Path, writer: &GgufWriter) -> std::path::PathBuf {
    let path = dir.join("model.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    path
}

/// One block in f64, walked as the format is described: pointers that advance, masks that shift.
fn reference(quant: QuantType, b: &[u8]) -> Vec<f64> {
    let half_at = |at: usize| f64::from(f16::from_le_bytes([b[at], b[at + 1]]));
    let mut y = Vec::new();
    match quant {
        QuantType::F32 => y.push(f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        QuantType::F16 => y.push(half_at(0)),
        QuantType::BF16 => y.push(f64::from(bf16::from_le_bytes([b[0], b[1]]))),
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1 => {
            let has_min = matches!(quant, QuantType::Q4_1 | QuantType::Q5_1);
            let has_fifth = matches!(quant, QuantType::Q5_0 | QuantType::Q5_1);
            let mut at = if has_min { 4 } else { 2 };
            let mut fifth = 0u32;
            if has_fifth {
                fifth = u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
                at += 4;
            }
            for i in 0..32 {
                let byte = b[at + i % 16];
                let mut q = u32::from(if i < 16 { byte & 0x0F } else { byte >> 4 });
                q += 16 * (fifth >> i & 1);
                let middle = if has_min {
                    0.0
                } else if has_fifth {
                    16.0
                } else {
                    8.0
                };
                let min = if has_min { half_at(2) } else { 0.0 };
                y.push(half_at(0) * (f64::from(q) - middle) + min);
            }
        }
        QuantType::Q8_0 => y.extend(b[2..].iter().map(|q| half_at(0) * f64::from(*q as i8))),
        QuantType::Q4_K | QuantType::Q5_K => {
            let is_five = quant == QuantType::Q5_K;
            let (scales, high) = (&b[4..16], &b[16..48]);
            let mut ql = &b[if is_five { 48 } else { 16 }..];
            // Twelve bytes are 96 bits: 8 scales and 8 minima of 6 bits, their upper two split off.
            let six = |i: usize| -> (u8, u8) {
                if i < 4 {
                    return (scales[i] % 64, scales[i + 4] % 64);
                }
                let low = scales[i + 4];
                (low % 16 + scales[i - 4] / 64 * 16, low / 16 + scales[i] / 64 * 16)
            };
            let mut mask = 1u8;
            for pair in 0..4 {
                for nibble in 0..2 {
                    let (sc, min) = six(pair * 2 + nibble);
                    for l in 0..32 {
                        let q = if nibble == 0 { ql[l] % 16 } else { ql[l] / 16 };
                        let extra = if is_five && high[l] & mask != 0 { 16.0 } else { 0.0 };
                        y.push(
                            half_at(0) * f64::from(sc) * (f64::from(q) + extra)
                                - half_at(2) * f64::from(min),
                        );
                    }
                    mask = mask.wrapping_shl(1);
                }
                ql = &ql[32..];
            }
        }
        QuantType::Q6_K => {
            y.resize(256, 0.0);
            let d = half_at(208);
            for n in 0..2 {
                let (ql, qh, sc) = (&b[64 * n..], &b[128 + 32 * n..], &b[192 + 8 * n..]);
                for l in 0..32 {
                    let parts = [
                        (ql[l] & 0xF) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (i, q) in parts.into_iter().enumerate() {
                        let sc = f64::from(sc[l / 16 + 2 * i] as i8);
                        y[128 * n + 32 * i + l] = d * sc * (f64::from(q) - 32.0);
                    }
                }
            }
        }
    }
    y
}

#[test]
fn every_type_dequantizes_as_its_description_says() {
    let mut random = Random(7);
    for quant in QuantType::ALL {
        let len = quant.block_len() * 50;
        let bytes = random_blocks(quant, len, &mut random);
        let mut found = vec![0.0; len];
        quant.dequantize(&bytes, &mut found);
        let expected = bytes.chunks(quant.block_bytes()).flat_map(|b| reference(quant, b));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            // Two or three roundings of f32, relative to the largest term: d * 63 * 31.
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs() + 3e-4, "{quant:?} {i}: {found} {expected}");
            assert!(error <= 1e-3 * expected.abs() + 1e-4, "{quant:?} {i}: {found} {expected}");
        }
    }
}

#[test]
fn a_llama_file_gives_the_rows_in_the_order_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let mut weights =
        GgufWeights::open(&write(dir.path(), &small_gguf(Architecture::Llama, 3))).unwrap();
    let config = weights.config().clone();
    assert_eq!((config.head_dim, config.head_count, config.kv_head_count), (32, 2, 1));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.eos_ids, [1]);
    assert_eq!(config.rms_norm_eps, 1e-5);

    // A second file with Q in f32, where row r is filled with r.
    let mut writer = small_gguf(Architecture::Llama, 3);
    let rows: Vec<u8> = (0..64u32).flat_map(|row| (row as f32).to_le_bytes().repeat(256)).collect();
    replace_tensor(&mut writer, "blk.0.attn_q.weight", &[64, 256], rows.clone());
    let mut weights = {
        drop(read_all(&mut weights).unwrap());
        GgufWeights::open(&write(dir.path(), &writer)).unwrap()
    };
    let mut q = vec![0.0; 64 * 256];
    weights.tensor("model.layers.0.self_attn.q_proj.weight", &mut q).unwrap();
    let order: Vec<f32> = q.chunks(256).map(|row| row[0]).collect();
    let first_head: Vec<f32> = (0..16).map(|i| 2.0 * i as f32).collect();
    assert_eq!(order[..16], first_head);
    assert_eq!(order[16], 1.0);
    assert_eq!(order[32..48], first_head.iter().map(|x| x + 32.0).collect::<Vec<_>>());

    // Qwen's rows stay as they are.
    let mut writer = small_gguf(Architecture::Qwen3, 3);
    replace_tensor(&mut writer, "blk.0.attn_q.weight", &[64, 256], rows);
    let mut weights = GgufWeights::open(&write(dir.path(), &writer)).unwrap();
    weights.tensor("model.layers.0.self_attn.q_proj.weight", &mut q).unwrap();
    assert!(q.chunks(256).enumerate().all(|(i, row)| row[0] == i as f32));
}

fn replace_tensor(writer: &mut GgufWriter, name: &str, shape: &[usize], bytes: Vec<u8>) {
    writer.remove_tensor(name);
    writer.tensor(name, shape, QuantType::F32, bytes);
}

#[test]
fn all_architectures_open_and_miss_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        let mut writer = small_gguf(architecture, 5);
        let mut weights = GgufWeights::open(&write(dir.path(), &writer)).unwrap();
        assert_eq!(weights.config().architecture, architecture);
        assert!(read_all(&mut weights).unwrap().iter().flatten().all(|x| x.is_finite()));
        writer.remove_tensor("blk.0.ffn_up.weight");
        let error = GgufWeights::open(&write(dir.path(), &writer)).unwrap_err().to_string();
        assert!(error.contains("`model.layers.0.mlp.up_proj.weight`"), "{error}");
    }
}

/// Otherwise a small file could hold a thousand layers that all lie on the same bytes.
#[test]
fn tensors_that_share_bytes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &small_gguf(Architecture::Llama, 3));
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"blk.0.ffn_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    // Name, number of dimensions, one dimension, type, offset.
    let at = at + name.len() + 4 + 8 + 4;
    let offset = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at..at + 8].copy_from_slice(&(offset - 32).to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Gguf::open(&path).unwrap_err().to_string();
    let said = "tensors `blk.0.attn_norm.weight` and `blk.0.ffn_norm.weight` share bytes";
    assert!(error.contains(said), "{error}");
}

#[test]
fn rope_scaling_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut linear = small_gguf(Architecture::Llama, 3);
    linear.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    let config = Gguf::open(&write(dir.path(), &linear)).unwrap().config().unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });

    let mut yarn = small_gguf(Architecture::Qwen2, 3);
    yarn.text("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .u32("qwen2.rope.scaling.original_context_length", 128);
    let config = Gguf::open(&write(dir.path(), &yarn)).unwrap().config().unwrap();
    assert!(matches!(
        config.rope.scaling,
        RopeScaling::Yarn { factor: 4.0, original_max_position_embeddings: 128.0, .. }
    ));
}

#[test]
fn the_byte_level_tokenizer_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &small_gguf(Architecture::Llama, 3));
    let (found, expected) = (Tokenizer::load(&path).unwrap(), trained_tokenizer());
    for text in ["the cat's hat, 1234", "<|start|>that<|end|>", "naïve 你好\n\t", ""] {
        let ids = found.encode(text, true).unwrap();
        assert_eq!(ids, expected.encode(text, true).unwrap(), "{text}");
        assert_eq!(found.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(found.eos_ids(), [1]);
    assert!(found.is_special(1) && !found.is_special(2));
    let turns = [Message::new("user", "hi")];
    let template = found.chat_template().unwrap();
    let text = template.render(&turns, true).unwrap().text;
    assert_eq!(text, "<|start|>user\nhi<|end|>\n<|start|>assistant\n");
}

#[test]
fn a_text_that_the_vocabulary_cannot_spell_is_an_error() {
    // Only ASCII: an accent has no tokens. The beginning-of-text token has as many bytes as the
    // character that would be lost.
    let mut tokens = vec!["<s>".to_owned()];
    tokens.extend(byte_tokens().into_iter().filter(|token| token.is_ascii()));
    let mut writer = GgufWriter::default();
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 0);
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::load(&write(dir.path(), &writer)).unwrap();
    assert_eq!(tokenizer.encode("a<s>", true).unwrap().len(), 3);
    let error = tokenizer.encode("a你", true).unwrap_err().to_string();
    assert!(error.contains("'你'"), "{error}");
}

#[test]
fn pre_tokenizers_split_as_their_models_expect() {
    let dir = tempfile::tempdir().unwrap();
    let split = |pre: &str, text: &str| -> Vec<String> {
        let mut writer = GgufWriter::default();
        // Single bytes and every pair of digits: what stays apart shows where it was split.
        let mut tokens: Vec<String> = byte_tokens();
        let mut merges = Vec::new();
        for a in 0..10 {
            for b in 0..10 {
                tokens.push(format!("{a}{b}"));
                merges.push(format!("{a} {b}"));
            }
        }
        tokens.push("ĠĠ".into());
        merges.push("Ġ Ġ".into());
        writer
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &tokens)
            .texts("tokenizer.ggml.merges", &merges)
            .bool("tokenizer.ggml.add_bos_token", false);
        let gguf = Gguf::open(&write(dir.path(), &writer)).unwrap();
        let tokenizer = gguf.tokenizer().unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        ids.iter().map(|id| tokenizer.decode(&[*id], false).unwrap()).collect()
    };
    assert_eq!(split("gpt-2", "12345"), ["12", "34", "5"]);
    assert_eq!(split("smollm", "12345"), ["1", "2", "3", "4", "5"]);
    assert_eq!(split("qwen2", "12345"), ["1", "2", "3", "4", "5"]);
    assert_eq!(split("llama-bpe", "12345"), ["12", "3", "45"]);
    assert_eq!(split("gpt-2", "a   b"), ["a", "  ", " ", "b"]);

    let mut writer = GgufWriter::default();
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "tekken")
        .texts("tokenizer.ggml.tokens", &byte_tokens())
        .texts::<&str>("tokenizer.ggml.merges", &[]);
    let error = Gguf::open(&write(dir.path(), &writer)).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().contains("`tekken`"), "{error}");
}

fn byte_tokens() -> Vec<String> {
    let tokenizer = trained_tokenizer();
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    vocab.keys().skip(2).take(256).cloned().collect()
}

/// SentencePiece's rule: merge the adjacent pair whose concatenation scores best, leftmost first.
fn sentencepiece(text: &str, scores: &[(&str, f32)]) -> Vec<String> {
    let mut parts: Vec<String> =
        format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 0..parts.len().saturating_sub(1) {
            let joined = format!("{}{}", parts[i], parts[i + 1]);
            if let Some((_, score)) = scores.iter().find(|(piece, _)| *piece == joined)
                && best.is_none_or(|(best, _)| *score > best)
            {
                best = Some((*score, i));
            }
        }
        let Some((_, i)) = best else { return parts };
        let right = parts.remove(i + 1);
        parts[i].push_str(&right);
    }
}

#[test]
fn sentencepiece_merges_by_score() {
    let pieces = [
        ("▁", -9.0),
        ("a", -10.0),
        ("b", -11.0),
        ("c", -12.0),
        ("ab", -2.0),
        ("bc", -1.0),
        ("abc", -5.0),
        ("▁a", -3.0),
        ("▁ab", -4.0),
        ("▁abc", -6.0),
        ("ca", -2.5),
    ];
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let mut scores = vec![0.0, 0.0, 0.0];
    let mut types = vec![2, 3, 3];
    for byte in 0..=255u32 {
        tokens.push(format!("<0x{byte:02X}>"));
        scores.push(0.0);
        types.push(6);
    }
    for (piece, score) in pieces {
        tokens.push(piece.into());
        scores.push(score);
        types.push(1);
    }
    let mut writer = GgufWriter::default();
    writer
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &types)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::load(&write(dir.path(), &writer)).unwrap();
    let mut random = Random(11);
    for _ in 0..200 {
        let len = random.below(9);
        let text: String = (0..len).map(|_| ["a", "b", "c", " "][random.below(4)]).collect();
        if text.is_empty() {
            continue;
        }
        let ids = tokenizer.encode(&text, false).unwrap();
        let found: Vec<&str> = ids.iter().map(|id| tokens[*id as usize].as_str()).collect();
        assert_eq!(found, sentencepiece(&text, &pieces), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    let ids = tokenizer.encode("aé", true).unwrap();
    assert_eq!(ids[0], 1, "the beginning-of-text token comes first");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "aé");
    assert_eq!(tokenizer.token_bytes(3 + 0xC3), [0xC3]);
}
