//! int8 weights: the quanta and the products are those of the reference, bit for bit, on every instruction set.

use super::tests::shapes;
use super::*;
use crate::ops::check::{assert_same_bits, devices, noise_f32, noise_tensor};
use crate::simd::Isa;

/// The product by the reference, with what `x` is rounded to.
fn wanted(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Vec<f32> {
    let (quanta, scales) = reference::quantize(w.as_slice(), w.cols());
    let mut want = vec![0.0; x.rows() * w.rows()];
    let (x, bias) = (x.to_dtype(Dtype::F32), bias.map(Tensor::as_slice));
    reference::forward_int8(&mut want, x.as_slice(), (&quanta, &scales), bias, w.cols());
    want
}

#[test]
fn forward_is_the_reference_bit_for_bit_for_either_kind_of_activations() {
    let deep = [[1, 70, 1300], [7, 40, 700], [13, 33, 643], [50, 65, 645], [97, 35, 322]];
    for device in devices() {
        for shape @ [rows, out, inp] in shapes().into_iter().chain(deep) {
            let w = noise_tensor(&device, 2, &[out, inp]);
            let bias = noise_tensor(&device, 3, &[out]);
            let packed = Packed::as_int8(&w);
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let x = noise_tensor(&device, 1, &[rows, inp]).to_dtype(dtype);
                for bias in [None, Some(&bias)] {
                    let name = format!("{dtype} {shape:?} on {device:?}");
                    let mut y = noise_tensor(&device, 4, &[rows, out]);
                    forward(&mut y, &x, &packed, bias);
                    assert_same_bits(&name, y.as_slice(), &wanted(&x, &w, bias));
                    let mut rounded = Tensor::uninit_as(&device, Dtype::Bf16, &[rows, out]);
                    forward(&mut rounded, &x, &packed, bias);
                    assert_eq!(rounded.as_bf16(), y.to_dtype(Dtype::Bf16).as_bf16(), "{name}");
                }
            }
        }
    }
}

/// Large enough that every level of blocking and both threads take part; slow in plain Rust.
#[test]
fn large_products_have_the_bits_of_the_reference_with_any_threads() {
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable) {
        for threads in [1, 2] {
            let device = Device::cpu_with(threads, isa);
            let (x, w) =
                (noise_tensor(&device, 1, &[211, 347]), noise_tensor(&device, 2, &[1100, 347]));
            let packed = Packed::as_int8(&w);
            let mut y = Tensor::uninit(&device, &[211, 1100]);
            forward(&mut y, &x, &packed, None);
            assert_same_bits("y", y.as_slice(), &wanted(&x, &w, None));
            let row = x.rows_range(17..18);
            let mut alone = Tensor::uninit(&device, &[1, 1100]);
            forward(&mut alone, &row, &packed, None);
            assert_same_bits("row", alone.as_slice(), y.rows_range(17..18).as_slice());
        }
    }
}

/// Rows of zeros, of one number, of ties and of numbers that hardly are any.
#[test]
fn quanta_are_at_most_half_a_scale_off_and_odd_rows_are_kept() {
    let ties: Vec<f32> = (0..32).map(|i| if i == 0 { 127.0 } else { i as f32 - 15.5 }).collect();
    let rows: [Vec<f32>; 6] = [
        vec![0.0; 32],
        vec![-3.5; 32],
        ties,
        noise_f32(1, 32),
        noise_f32(2, 32).iter().map(|x| x * 1e-38).collect(),
        noise_f32(3, 32).iter().map(|x| x * 1e-44).collect(),
    ];
    // The product with a row of the unit matrix is a column of the weight.
    let unit: Vec<f32> = (0..32 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
    for device in devices() {
        let w = Tensor::from_slice(&device, &[rows.len(), 32], &rows.concat());
        let x = Tensor::from_slice(&device, &[32, 32], &unit);
        let mut columns = Tensor::uninit(&device, &[32, rows.len()]);
        forward(&mut columns, &x, &Packed::as_int8(&w), None);
        assert_same_bits("columns", columns.as_slice(), &wanted(&x, &w, None));
        for (n, row) in rows.iter().take(5).enumerate() {
            let scale = row.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / 127.0;
            for (k, &w) in row.iter().enumerate() {
                let got = columns.as_slice()[k * rows.len() + n];
                assert!((got - w).abs() <= 0.501 * scale, "row {n}: {got} for {w}, scale {scale}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_shows() {
    for device in devices() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = noise_tensor(&device, 1, &[40, 33]);
            w.as_mut_slice()[7 * 33 + 32] = broken;
            let mut y = Tensor::uninit(&device, &[2, 40]);
            forward(&mut y, &noise_tensor(&device, 2, &[2, 33]), &Packed::as_int8(&w), None);
            let is_seen = |(i, y): (usize, &f32)| y.is_nan() == (i % 40 == 7);
            assert!(y.as_slice().iter().enumerate().all(is_seen), "{broken} on {device:?}");
        }
    }
}

#[test]
fn an_int8_weight_takes_a_byte_an_element_and_a_float_a_row() {
    let weight = noise_tensor(&Device::cpu(1), 1, &[64, 48]);
    assert_eq!(Packed::as_int8(&weight).bytes(), 64 * 48 + 64 * 4);
}

#[test]
fn an_empty_batch_and_no_contraction_are_allowed() {
    let device = Device::cpu(1);
    let packed = Packed::as_int8(&noise_tensor(&device, 1, &[9, 5]));
    forward(&mut Tensor::zeros(&device, &[0, 9]), &Tensor::zeros(&device, &[0, 5]), &packed, None);
}
