//! Quantized blocks to f32, as `ggml-quants.c` defines them.
//!
//! A block holds `block_len` consecutive elements of a row. `d` and `m` are f16 scales and minima,
//! `q` the small integers: `x = d * q` or `x = d * q + m`, for the K types with a second level of
//! integer scales `sc` and minima: `x = d * sc * q - dmin * min`.

use half::f16;

use crate::error::{Error, Result};
use crate::weights::{read_bf16, read_f16, read_f32};

/// The element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "ggml's names")]
#[expect(non_camel_case_types, reason = "ggml's names")]
pub enum QuantType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl QuantType {
    /// Every type.
    pub const ALL: [QuantType; 11] = [
        QuantType::F32,
        QuantType::F16,
        QuantType::BF16,
        QuantType::Q4_0,
        QuantType::Q4_1,
        QuantType::Q5_0,
        QuantType::Q5_1,
        QuantType::Q8_0,
        QuantType::Q4_K,
        QuantType::Q5_K,
        QuantType::Q6_K,
    ];

    /// The number that stands for it in a file.
    pub fn code(self) -> u32 {
        match self {
            QuantType::F32 => 0,
            QuantType::F16 => 1,
            QuantType::Q4_0 => 2,
            QuantType::Q4_1 => 3,
            QuantType::Q5_0 => 6,
            QuantType::Q5_1 => 7,
            QuantType::Q8_0 => 8,
            QuantType::Q4_K => 12,
            QuantType::Q5_K => 13,
            QuantType::Q6_K => 14,
            QuantType::BF16 => 30,
        }
    }

    /// The type of that number.
    pub fn from_code(code: u32) -> Result<Self> {
        QuantType::ALL.into_iter().find(|quant| quant.code() == code).ok_or_else(|| {
            Error::input(format!("tensor type {code} is not supported"))
                .hint("supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K")
        })
    }

    /// Elements in a block.
    pub fn block_len(self) -> usize {
        match self {
            QuantType::F32 | QuantType::F16 | QuantType::BF16 => 1,
            QuantType::Q4_K | QuantType::Q5_K | QuantType::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            QuantType::F32 => 4,
            QuantType::F16 | QuantType::BF16 => 2,
            QuantType::Q4_0 => 18,
            QuantType::Q4_1 => 20,
            QuantType::Q5_0 => 22,
            QuantType::Q5_1 => 24,
            QuantType::Q8_0 => 34,
            QuantType::Q4_K => 144,
            QuantType::Q5_K => 176,
            QuantType::Q6_K => 210,
        }
    }

    /// Dequantizes whole blocks; `out` has `block_len` elements for every `block_bytes` bytes.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            bytes.len() / self.block_bytes() * self.block_len(),
            out.len(),
            "bytes and elements are of the same blocks"
        );
        match self {
            QuantType::F32 => read_f32(bytes, out),
            QuantType::F16 => read_f16(bytes, out),
            QuantType::BF16 => read_bf16(bytes, out),
            QuantType::Q4_0 => blocks::<18, 32>(bytes, out, q4_0),
            QuantType::Q4_1 => blocks::<20, 32>(bytes, out, q4_1),
            QuantType::Q5_0 => blocks::<22, 32>(bytes, out, q5_0),
            QuantType::Q5_1 => blocks::<24, 32>(bytes, out, q5_1),
            QuantType::Q8_0 => blocks::<34, 32>(bytes, out, q8_0),
            QuantType::Q4_K => blocks::<144, 256>(bytes, out, q4_k),
            QuantType::Q5_K => blocks::<176, 256>(bytes, out, q5_k),
            QuantType::Q6_K => blocks::<210, 256>(bytes, out, q6_k),
        }
    }
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<LEN>();
    for (block, out) in blocks.iter().zip(outs) {
        one(block, out);
    }
}

fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = d * (i32::from(q & 15) - 8) as f32;
        out[i + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of element `i` and of element `i + 16`, in place.
fn fifth_bits(high: &[u8], i: usize) -> (u8, u8) {
    let bits = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    ((bits >> i & 1) as u8 * 16, (bits >> (i + 16) & 1) as u8 * 16)
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (i, q) in block[6..].iter().enumerate() {
        let (low, high) = fifth_bits(&block[2..6], i);
        out[i] = d * (i32::from(q & 15 | low) - 16) as f32;
        out[i + 16] = d * (i32::from(q >> 4 | high) - 16) as f32;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, q) in block[8..].iter().enumerate() {
        let (low, high) = fifth_bits(&block[4..8], i);
        out[i] = d * f32::from(q & 15 | low) + m;
        out[i + 16] = d * f32::from(q >> 4 | high) + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (out, q) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(*q as i8);
    }
}

/// Six-bit scale and minimum of sub-block `i` out of the twelve packed bytes.
fn scale_and_min(packed: &[u8], i: usize) -> (f32, f32) {
    let (sc, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(sc), f32::from(min))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (packed, q) = (&block[4..16], &block[16..144]);
    // Sub-block `i` of 32: low or high nibbles of 32 bytes.
    for i in 0..8 {
        let (sc, min) = scale_and_min(packed, i);
        let (d, m) = (d * sc, dmin * min);
        for l in 0..32 {
            let q = q[i / 2 * 32 + l] >> (i % 2 * 4) & 15;
            out[i * 32 + l] = d * f32::from(q) - m;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (packed, high, q) = (&block[4..16], &block[16..48], &block[48..176]);
    for i in 0..8 {
        let (sc, min) = scale_and_min(packed, i);
        let (d, m) = (d * sc, dmin * min);
        for l in 0..32 {
            let low = q[i / 2 * 32 + l] >> (i % 2 * 4) & 15;
            let q = low | (high[l] >> i & 1) << 4;
            out[i * 32 + l] = d * f32::from(q) - m;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[0..128], &block[128..192], &block[192..208]);
    let d = scale(block, 208);
    // Two halves of 128, each of four strips of 32; strips share their bytes.
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        for strip in 0..4 {
            for l in 0..32 {
                let byte = low[half * 64 + strip % 2 * 32 + l];
                let q =
                    byte >> (strip / 2 * 4) & 15 | (high[half * 32 + l] >> (strip * 2) & 3) << 4;
                let sc = scales[half * 8 + strip * 2 + l / 16] as i8;
                out[strip * 32 + l] = d * f32::from(sc) * f32::from(q as i8 - 32);
            }
        }
    }
}
