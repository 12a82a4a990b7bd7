//! The law of bf16 products: the `f32` product of the rounded operands, bit for bit.
//!
//! The reference has no special case for it. Words in both operands are what processors with an instruction for
//! pairs run, if it does what its manual says; [`block::run_as`] runs them on every instruction set, with what
//! defines that instruction.

use super::tests::shapes;
use super::*;
use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise_tensor};

/// A tensor and the same as bf16, both holding bf16 numbers.
fn pair(device: &Device, seed: u64, shape: &[usize]) -> (Tensor, Tensor) {
    let rounded = noise_tensor(device, seed, shape).to_dtype(Dtype::Bf16);
    (rounded.to_dtype(Dtype::F32), rounded)
}

/// Same bits; or, where the processor's instruction doesn't do what its manual says, close.
#[track_caller]
fn assert_by_the_law(device: &Device, name: &str, got: &[f32], want: &[f32]) {
    if pairs::round_twice(device) {
        assert_same_bits(name, got, want);
    } else {
        let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
        assert_close(name, got, &want, F32);
    }
}

#[test]
fn forward_is_the_f32_product_of_rounded_operands() {
    for device in devices() {
        for shape @ [rows, out, inp] in shapes() {
            let (x, x_bf16) = pair(&device, 1, &[rows, inp]);
            let w = noise_tensor(&device, 2, &[out, inp]);
            let bias = noise_tensor(&device, 3, &[out]);
            let w_rounded = w.to_dtype(Dtype::Bf16).to_dtype(Dtype::F32);
            let mut want = vec![0.0; rows * out];
            let bias_slice = Some(bias.as_slice());
            reference::forward(&mut want, x.as_slice(), w_rounded.as_slice(), bias_slice, inp);
            let packed = Packed::of_weight(&w, Dtype::Bf16);
            let mut y = Tensor::uninit(&device, &[rows, out]);
            forward(&mut y, &x_bf16, &packed, Some(&bias));
            assert_same_bits(&format!("y {shape:?} on {device:?}"), y.as_slice(), &want);
            let mut rounded = Tensor::uninit_as(&device, Dtype::Bf16, &[rows, out]);
            forward(&mut rounded, &x_bf16, &packed, Some(&bias));
            assert_eq!(rounded.as_bf16(), y.to_dtype(Dtype::Bf16).as_bf16(), "{shape:?}");
        }
    }
}

#[test]
fn gradients_are_the_f32_products_of_rounded_operands() {
    for device in devices() {
        for shape @ [rows, out, inp] in shapes() {
            let name = |buffer: &str| format!("{buffer} {shape:?} on {device:?}");
            let (x, x_bf16) = pair(&device, 1, &[rows, inp]);
            let (dy, dy_bf16) = pair(&device, 2, &[rows, out]);
            let w = noise_tensor(&device, 3, &[out, inp]);
            let w_rounded = w.to_dtype(Dtype::Bf16).to_dtype(Dtype::F32);
            for accumulate in [false, true] {
                let mut dx = noise_tensor(&device, 6, &[rows, inp]);
                let mut want = dx.as_slice().to_vec();
                let (dy, w_rounded) = (dy.as_slice(), w_rounded.as_slice());
                reference::backward_input(&mut want, dy, w_rounded, inp, accumulate);
                backward_input(&mut dx, &dy_bf16, &w, accumulate);
                assert_same_bits(&name("dx"), dx.as_slice(), &want);
            }
            let mut dw = noise_tensor(&device, 7, &[out, inp]);
            let mut want = dw.as_slice().to_vec();
            reference::backward_weight(&mut want, dy.as_slice(), x.as_slice(), inp);
            backward_weight(&mut dw, &dy_bf16, &x_bf16);
            assert_same_bits(&name("dw"), dw.as_slice(), &want);
        }
    }
}

/// What only processors with the instruction choose by themselves, for all three orientations.
#[test]
fn words_in_both_operands_change_no_bit() {
    for device in devices() {
        for shape @ [rows, cols, depth] in shapes() {
            let left = pair(&device, 1, &[rows, depth]).1;
            let right = noise_tensor(&device, 2, &[depth, cols]);
            let weight = Packed::of_weight(&noise_tensor(&device, 3, &[cols, depth]), Dtype::Bf16);
            let products = [
                (Left::Rows(left.values()), weight.right()),
                (Left::Rows(left.values()), Right::Rows(right.values())),
                (Left::Columns(left.values()), Right::Rows(right.values())),
            ];
            for (left, right) in products {
                let accumulate = matches!(left, Left::Columns(_));
                let product = Product { rows, cols, depth, left, right, accumulate, bias: None };
                let [one, other] = [false, true].map(|in_words| {
                    let mut c = noise_tensor(&device, 4, &[rows, cols]);
                    block::run_as(&device, &Out::of(&mut c), &product, in_words);
                    c
                });
                let name = format!("{shape:?} on {device:?}");
                assert_by_the_law(&device, &name, other.as_slice(), one.as_slice());
            }
        }
    }
}

#[test]
fn micro_batches_in_order_give_the_bits_of_one_batch_and_rows_those_of_rows_alone() {
    for device in devices() {
        let [rows, out, inp] = [61, 23, 37];
        let x = pair(&device, 1, &[rows, inp]).1;
        let dy = pair(&device, 2, &[rows, out]).1;
        let packed = Packed::of_weight(&noise_tensor(&device, 3, &[out, inp]), Dtype::Bf16);
        let [mut whole, mut parts] = [0; 2].map(|_| Tensor::zeros(&device, &[out, inp]));
        backward_weight(&mut whole, &dy, &x);
        let mut y = Tensor::uninit(&device, &[rows, out]);
        forward(&mut y, &x, &packed, None);
        for (start, end) in [(0, 1), (1, 20), (20, 20), (20, 55), (55, 61)] {
            let (dy, x) = (dy.rows_range(start..end), x.rows_range(start..end));
            backward_weight(&mut parts, &dy, &x);
            let mut alone = Tensor::uninit(&device, &[end - start, out]);
            forward(&mut alone, &x, &packed, None);
            assert_same_bits("y", alone.as_slice(), y.rows_range(start..end).as_slice());
        }
        assert_same_bits("dw", parts.as_slice(), whole.as_slice());
    }
}

#[test]
fn a_weight_in_bf16_takes_half_the_memory() {
    let weight = noise_tensor(&Device::cpu(1), 1, &[64, 48]);
    let [wide, half] = [Dtype::F32, Dtype::Bf16].map(|dtype| Packed::of_weight(&weight, dtype));
    assert_eq!(wide.bytes(), 2 * half.bytes());
}

#[test]
#[should_panic(expected = "panels of words for an f32 product")]
fn activations_must_be_of_the_weight_s_kind() {
    let device = Device::cpu(1);
    let packed = Packed::of_weight(&noise_tensor(&device, 1, &[3, 5]), Dtype::Bf16);
    forward(
        &mut Tensor::zeros(&device, &[2, 3]),
        &noise_tensor(&device, 2, &[2, 5]),
        &packed,
        None,
    );
}
