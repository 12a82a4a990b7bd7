//! Whether the processor's instruction for pairs of bf16 numbers does what its manual says.
//!
//! By the manual, the first product is added and the sum rounded, then the second. An implementation that rounds
//! once would still be right to the last place or two, but its sums would be others than those of the other
//! instruction sets and would depend on where their pairs begin: it isn't used.

use std::sync::OnceLock;

use half::bf16;

use super::block::{self, Left, Out, Product, Right};
use crate::random::Philox;
use crate::simd::Isa;
use crate::{Device, Dtype, Tensor};

const ROWS: usize = 12;
const COLS: usize = 64;
const DEPTH: usize = 256;

/// Tries the instruction on numbers of many sizes, once in the life of the process.
pub(super) fn round_twice(device: &Device) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    device.isa() != Isa::Avx512Bf16 || *ANSWER.get_or_init(|| try_on(device))
}

fn try_on(device: &Device) -> bool {
    let left = numbers(device, 1, &[ROWS, DEPTH]);
    let right = numbers(device, 2, &[DEPTH, COLS]);
    let product = Product {
        rows: ROWS,
        cols: COLS,
        depth: DEPTH,
        left: Left::Rows(left.values()),
        right: Right::Rows(right.values()),
        accumulate: false,
        bias: None,
    };
    let [words, floats] = [true, false].map(|in_words| {
        let mut out = Tensor::uninit(device, &[ROWS, COLS]);
        block::run_as(device, &Out::of(&mut out), &product, in_words);
        out.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    });
    words == floats
}

/// bf16 numbers of either sign and of sizes from 2^-12 to 2^12, far from what is flushed to zero.
fn numbers(device: &Device, seed: u64, shape: &[usize]) -> Tensor {
    let mut tensor = Tensor::uninit_as(device, Dtype::Bf16, shape);
    for (i, x) in tensor.as_mut_bf16().iter_mut().enumerate() {
        let bits = Philox::new(seed).bits(&[i as u64]);
        let exponent = 127 - 12 + (bits >> 8) % 24;
        *x = bf16::from_bits(((bits & 0x807f) | exponent << 7) as u16);
    }
    tensor
}
