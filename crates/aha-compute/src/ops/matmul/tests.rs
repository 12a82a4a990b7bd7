use super::*;
use crate::ops::check::{
    F32, assert_close, assert_grad, assert_same_bits, devices, noise, noise_f32, noise_tensor,
};
use crate::simd::Isa;

/// `(T, N, K)`: every row tail of every tile, odd widths, one to several blocks of each dimension.
pub(super) fn shapes() -> Vec<[usize; 3]> {
    let mut shapes: Vec<[usize; 3]> = (1..=14).map(|t| [t, 33, 19]).collect();
    shapes.extend([
        [1, 131, 70],
        [2, 131, 7],
        [3, 131, 7],
        [17, 1, 1],
        [40, 15, 331],
        [40, 130, 5],
    ]);
    shapes.extend([
        [37, 67, 17],
        [29, 47, 129],
        [1, 1, 1],
        [5, 7, 700],
        [31, 400, 3],
        [410, 20, 9],
    ]);
    shapes
}

struct Case {
    dims: Dims,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    dy: Tensor,
}

fn case(device: &Device, [rows, out, inp]: [usize; 3]) -> Case {
    Case {
        dims: Dims { rows, out, inp },
        x: noise_tensor(device, 1, &[rows, inp]),
        w: noise_tensor(device, 2, &[out, inp]),
        bias: noise_tensor(device, 3, &[out]),
        dy: noise_tensor(device, 4, &[rows, out]),
    }
}

#[test]
fn forward_is_the_reference_bit_for_bit() {
    for device in devices() {
        for shape in shapes() {
            let Case { dims, x, w, bias, .. } = case(&device, shape);
            let packed = Packed::of_weight(&w, Dtype::F32);
            for bias in [None, Some(&bias)] {
                let mut want = vec![0.0; dims.rows * dims.out];
                let bias_slice = bias.map(Tensor::as_slice);
                reference::forward(&mut want, x.as_slice(), w.as_slice(), bias_slice, dims.inp);
                let mut y = noise_tensor(&device, 5, &[dims.rows, dims.out]);
                forward(&mut y, &x, &packed, bias);
                assert_same_bits(&format!("y {shape:?} on {device:?}"), y.as_slice(), &want);
            }
        }
    }
}

#[test]
fn backward_is_the_reference_bit_for_bit() {
    for device in devices() {
        for shape in shapes() {
            let Case { dims, x, w, bias, dy } = case(&device, shape);
            let name = |buffer: &str| format!("{buffer} {shape:?} on {device:?}");
            for accumulate in [false, true] {
                let mut dx = noise_tensor(&device, 6, &[dims.rows, dims.inp]);
                let mut want = dx.as_slice().to_vec();
                let (dy, w) = (dy.as_slice(), &w);
                reference::backward_input(&mut want, dy, w.as_slice(), dims.inp, accumulate);
                let dy = Tensor::from_slice(&device, &[dims.rows, dims.out], dy);
                backward_input(&mut dx, &dy, w, accumulate);
                assert_same_bits(&name("dx"), dx.as_slice(), &want);
            }
            let (mut dw, mut db) = (w.clone(), bias.clone());
            let (mut dw_want, mut db_want) = (w.as_slice().to_vec(), bias.as_slice().to_vec());
            reference::backward_weight(&mut dw_want, dy.as_slice(), x.as_slice(), dims.inp);
            backward_weight(&mut dw, &dy, &x);
            assert_same_bits(&name("dw"), dw.as_slice(), &dw_want);
            reference::backward_bias(&mut db_want, dy.as_slice());
            backward_bias(&mut db, &dy);
            assert_same_bits(&name("db"), db.as_slice(), &db_want);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    for device in devices() {
        let Case { dims, x, w, bias, .. } = case(&device, [64, 53, 331]);
        let packed = Packed::of_weight(&w, Dtype::F32);
        let mut all = Tensor::uninit(&device, &[dims.rows, dims.out]);
        forward(&mut all, &x, &packed, Some(&bias));
        for (start, end) in [(0, 1), (63, 64), (3, 5), (10, 17), (1, 64), (20, 32), (7, 47)] {
            let rows = &x.as_slice()[start * dims.inp..end * dims.inp];
            let mut y = vec![f32::NAN; (end - start) * dims.out];
            let (out, rows) = (Out::F32(Shards::new(&mut y)), Values::F32(rows));
            forward_rows(&device, &out, rows, end - start, &packed, Some(bias.as_slice()));
            let want = &all.as_slice()[start * dims.out..end * dims.out];
            assert_same_bits(&format!("rows {start}..{end} on {device:?}"), &y, want);
        }
    }
}

/// Large enough that every level of blocking and both threads take part; slow in plain Rust.
#[test]
fn large_products_have_the_bits_of_the_reference() {
    let shape = [211, 1100, 347];
    for device in devices().into_iter().filter(|d| d.isa() != Isa::Portable) {
        let Case { dims, x, w, bias, dy } = case(&device, shape);
        let mut want = vec![0.0; dims.rows * dims.out];
        reference::forward(&mut want, x.as_slice(), w.as_slice(), Some(bias.as_slice()), dims.inp);
        let mut y = Tensor::uninit(&device, &[dims.rows, dims.out]);
        forward(&mut y, &x, &Packed::of_weight(&w, Dtype::F32), Some(&bias));
        assert_same_bits("y", y.as_slice(), &want);

        let mut want = vec![0.0; dims.rows * dims.inp];
        reference::backward_input(&mut want, dy.as_slice(), w.as_slice(), dims.inp, false);
        let mut dx = Tensor::uninit(&device, &[dims.rows, dims.inp]);
        backward_input(&mut dx, &dy, &w, false);
        assert_same_bits("dx", dx.as_slice(), &want);

        let mut want = w.as_slice().to_vec();
        reference::backward_weight(&mut want, dy.as_slice(), x.as_slice(), dims.inp);
        let mut dw = w.clone();
        backward_weight(&mut dw, &dy, &x);
        assert_same_bits("dw", dw.as_slice(), &want);

        let mut want = bias.as_slice().to_vec();
        reference::backward_bias(&mut want, dy.as_slice());
        let mut db = bias.clone();
        backward_bias(&mut db, &dy);
        assert_same_bits("db", db.as_slice(), &want);
    }
}

#[test]
fn micro_batches_in_order_give_the_bits_of_one_batch() {
    for device in devices() {
        let Case { dims, x, dy, .. } = case(&device, [61, 23, 37]);
        let mut whole = Tensor::zeros(&device, &[dims.out, dims.inp]);
        backward_weight(&mut whole, &dy, &x);
        let mut bias_whole = Tensor::zeros(&device, &[dims.out]);
        backward_bias(&mut bias_whole, &dy);
        let mut parts = vec![0.0; dims.out * dims.inp];
        let mut bias_parts = vec![0.0; dims.out];
        for (start, end) in [(0, 1), (1, 20), (20, 20), (20, 55), (55, 61)] {
            let dy = &dy.as_slice()[start * dims.out..end * dims.out];
            let x = &x.as_slice()[start * dims.inp..end * dims.inp];
            let dims = Dims { rows: end - start, ..dims };
            backward_weight_rows(&device, &mut parts, Values::F32(dy), Values::F32(x), dims);
            backward_bias_rows(&device, &mut bias_parts, dy, end - start);
        }
        assert_same_bits("dw", &parts, whole.as_slice());
        assert_same_bits("db", &bias_parts, bias_whole.as_slice());
    }
}

/// Goal: backward is the derivative of forward. Method: central differences of `<dy, y>` in `f64` on the
/// reference, which the kernels equal bit for bit in `f32`.
#[test]
fn backward_is_the_derivative_of_forward() {
    let (rows, out, inp) = (3, 5, 7);
    let (x, w) = (noise(1, rows * inp), noise(2, out * inp));
    let (bias, dy) = (noise(3, out), noise(4, rows * out));
    let loss = |x: &[f64], w: &[f64], bias: &[f64]| {
        let mut y = vec![0.0; rows * out];
        reference::forward(&mut y, x, w, Some(bias), inp);
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
    };
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; out]);
    reference::backward_input(&mut dx, &dy, &w, inp, false);
    reference::backward_weight(&mut dw, &dy, &x, inp);
    reference::backward_bias(&mut db, &dy);
    assert_grad("dx", &dx, &x, |x| loss(x, &w, &bias));
    assert_grad("dw", &dw, &w, |w| loss(&x, w, &bias));
    assert_grad("db", &db, &bias, |bias| loss(&x, &w, bias));
}

#[test]
fn kernels_are_close_to_the_reference_in_f64() {
    let (rows, out, inp) = (13, 35, 70);
    for device in devices() {
        let Case { x, w, dy, .. } = case(&device, [rows, out, inp]);
        let wide = |t: &Tensor| t.as_slice().iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut want = vec![0.0; rows * out];
        reference::forward(&mut want, &wide(&x), &wide(&w), None, inp);
        let mut y = Tensor::uninit(&device, &[rows, out]);
        forward(&mut y, &x, &Packed::of_weight(&w, Dtype::F32), None);
        assert_close("y", y.as_slice(), &want, F32);
        let mut want = vec![0.0; rows * inp];
        reference::backward_input(&mut want, &wide(&dy), &wide(&w), inp, false);
        let mut dx = Tensor::uninit(&device, &[rows, inp]);
        backward_input(&mut dx, &dy, &w, false);
        assert_close("dx", dx.as_slice(), &want, F32);
        let mut want = vec![0.0; out * inp];
        reference::backward_weight(&mut want, &wide(&dy), &wide(&x), inp);
        let mut dw = Tensor::zeros(&device, &[out, inp]);
        backward_weight(&mut dw, &dy, &x);
        assert_close("dw", dw.as_slice(), &want, F32);
    }
}

/// Small integers, so that every sum is exact.
#[test]
fn a_second_backward_doubles_the_gradients() {
    let device = Device::cpu(2);
    let whole = |seed, shape: &[usize]| {
        let values: Vec<f32> = noise_f32(seed, shape.iter().product());
        let rounded: Vec<f32> = values.iter().map(|x| (x * 8.0).round()).collect();
        Tensor::from_slice(&device, shape, &rounded)
    };
    let (x, w, dy) = (whole(1, &[40, 37]), whole(2, &[51, 37]), whole(3, &[40, 51]));
    let mut dx = Tensor::zeros(&device, &[40, 37]);
    let mut dw = Tensor::zeros(&device, &[51, 37]);
    let mut db = Tensor::zeros(&device, &[51]);
    let mut once: Vec<Vec<f32>> = Vec::new();
    for _ in 0..2 {
        backward_input(&mut dx, &dy, &w, true);
        backward_weight(&mut dw, &dy, &x);
        backward_bias(&mut db, &dy);
        once.extend([&dx, &dw, &db].map(|t| t.as_slice().to_vec()));
    }
    for (once, twice) in once[..3].iter().zip(&once[3..]) {
        assert!(once.iter().any(|&x| x != 0.0));
        assert_eq!(&once.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), twice);
    }
}

#[test]
fn an_empty_batch_is_a_no_op() {
    for device in devices() {
        let Case { x, w, bias, dy, .. } = case(&device, [0, 9, 5]);
        let mut y = Tensor::zeros(&device, &[0, 9]);
        forward(&mut y, &x, &Packed::of_weight(&w, Dtype::F32), Some(&bias));
        let mut dx = Tensor::zeros(&device, &[0, 5]);
        backward_input(&mut dx, &dy, &w, true);
        let (mut dw, mut db) = (w.clone(), bias.clone());
        backward_weight(&mut dw, &dy, &x);
        backward_bias(&mut db, &dy);
        assert_same_bits("dw", dw.as_slice(), w.as_slice());
        assert_same_bits("db", db.as_slice(), bias.as_slice());
    }
}

#[test]
fn a_packed_weight_knows_its_sizes() {
    let device = Device::cpu_with(1, Isa::Portable);
    let packed = Packed::of_weight(&noise_tensor(&device, 1, &[17, 5]), Dtype::F32);
    assert_eq!((packed.out_len(), packed.in_len(), packed.bytes()), (17, 5, 2 * 16 * 5 * 4));
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(&Device::cpu_with(1, Isa::Portable), shape)
}

#[test]
#[should_panic(expected = "length of y")]
fn a_wrong_length_of_y_panics() {
    forward(
        &mut zeros(&[2, 4]),
        &zeros(&[2, 5]),
        &Packed::of_weight(&zeros(&[3, 5]), Dtype::F32),
        None,
    );
}

#[test]
#[should_panic(expected = "x [2, 4] needs rows of 5")]
fn a_wrong_length_of_x_panics() {
    forward(
        &mut zeros(&[2, 3]),
        &zeros(&[2, 4]),
        &Packed::of_weight(&zeros(&[3, 5]), Dtype::F32),
        None,
    );
}

#[test]
#[should_panic(expected = "length of bias")]
fn a_wrong_length_of_the_bias_panics() {
    let packed = Packed::of_weight(&zeros(&[3, 5]), Dtype::F32);
    forward(&mut zeros(&[2, 3]), &zeros(&[2, 5]), &packed, Some(&zeros(&[4])));
}

#[test]
#[should_panic(expected = "length of dx")]
fn a_wrong_length_of_dx_panics() {
    backward_input(&mut zeros(&[2, 4]), &zeros(&[2, 3]), &zeros(&[3, 5]), false);
}

#[test]
#[should_panic(expected = "length of x")]
fn a_wrong_length_of_x_for_the_weight_panics() {
    backward_weight(&mut zeros(&[3, 5]), &zeros(&[2, 3]), &zeros(&[2, 4]));
}

#[test]
#[should_panic(expected = "dy [2, 4] needs rows of 3")]
fn a_wrong_length_of_dy_panics() {
    backward_bias(&mut zeros(&[3]), &zeros(&[2, 4]));
}
