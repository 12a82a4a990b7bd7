//! Products of few rows in emulation: their bits, and when the library has to multiply.

use aha_emulate::{Emulated, ORDERS, Sums};

use super::*;
use crate::cuda::Workspace;
use crate::ops::check::{
    MODELS, Tol, assert_close, assert_fits, assert_same_bits, contexts, download, upload_noise,
};
use crate::ops::matmul::{self, Packed};
use crate::{Device, Dtype, Tensor};

/// Outputs and inputs: less than a warp has, some that end inside of a warp, of a stage and of sixteen terms; more
/// stages than the ring has; blocks of two and of four warps.
const SHAPES: [[usize; 2]; 6] = [[1, 8], [13, 40], [70, 136], [8, 1304], [2059, 24], [4101, 16]];
const ROWS: [usize; 8] = [1, 5, 8, 9, 16, 17, 33, 64];

fn dtype_of(kind: Kind) -> Dtype {
    if kind == Kind::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
}

/// The processor's product of the same operands.
fn expected(cx: &Context, [m, n, k]: [usize; 3], buffers: [&Buffer; 3], kind: Kind) -> Vec<f32> {
    let device = Device::cpu(1).with_dtype(Dtype::Bf16);
    let tensor = |buffer: &Buffer, shape: &[usize]| {
        Tensor::from_slice(&device, shape, &download(cx, buffer))
    };
    let [x, w, bias] = buffers;
    let x = tensor(x, &[m, k]).into_dtype(Dtype::Bf16);
    let w = Packed::of_weight(&tensor(w, &[n, k]), Dtype::Bf16);
    let mut y = Tensor::uninit_as(&device, dtype_of(kind), &[m, n]);
    matmul::forward(&mut y, &x, &w, Some(&tensor(bias, &[n])));
    y.into_dtype(Dtype::F32).as_slice().to_vec()
}

/// Goal: every kernel has the processor's product and, in emulation, the library's bits, in both orders of threads; and
/// a row's bits don't depend on how many rows there are. Method: odd shapes; noise; kinds of results.
#[test]
fn few_rows_have_the_bits_of_many_whoever_is_beside_them() {
    for cx in contexts() {
        for [n, k] in SHAPES {
            for kind in [Kind::F32, Kind::Bf16] {
                let (x, _) = upload_noise(&cx, 1, ROWS_MAX * k, Kind::Bf16);
                let (w, _) = upload_noise(&cx, 2, n * k, Kind::Bf16);
                let (bias, _) = upload_noise(&cx, 3, n, kind);
                let mut all = cx.buffer(kind, ROWS_MAX * n).unwrap();
                let factors = ((x.view(), false), (w.view(), true));
                let (dims, bias_view) = ([ROWS_MAX, n, k], Some(bias.view()));
                cx.product(&mut all.view_mut(), dims, factors.0, factors.1, bias_view, (1.0, 0.0))
                    .unwrap();
                let all = download(&cx, &all);
                let want = expected(&cx, dims, [&x, &w, &bias], kind);
                let tol = if kind == Kind::Bf16 { Tol::BF16 } else { Tol { abs: 1e-4, rel: 1e-4 } };
                assert_close("library", &all, &crate::ops::check::wide(&want), tol);
                for rows in ROWS {
                    // The last rows, so that they are others for each count.
                    let first = ROWS_MAX - rows;
                    let mut y = cx.buffer(kind, rows * n).unwrap();
                    let x = x.view().slice(first * k..ROWS_MAX * k);
                    let part = Part { c: y.view_mut(), n, w: w.view(), bias: bias_view };
                    launch(&cx, Rows { x, m: rows, k }, &[part]).unwrap();
                    let name = format!("{rows} rows, {n} × {k}, {kind}");
                    assert_same_bits(&name, &download(&cx, &y), &all[first * n..]);
                }
            }
        }
    }
}

fn context(sums: Sums) -> Context {
    Context::new(Emulated::with_sums(ORDERS[0], 1 << 30, sums))
}

/// Whether few rows were multiplied, the answers, and the result of the op.
fn forward(cx: &Context, [m, n, k]: [usize; 3], kind: Kind, has_bias: bool) -> Vec<f32> {
    let device = Device::cpu(1).with_context(cx.clone()).with_dtype(Dtype::Bf16);
    let noise = |seed, shape: &[usize]| crate::ops::check::noise_tensor(&device, seed, shape);
    let x = noise(1, &[m, k]).into_dtype(Dtype::Bf16);
    let w = Packed::of_weight(&noise(2, &[n, k]), Dtype::Bf16);
    let mut y = Tensor::uninit_as(&device, dtype_of(kind), &[m, n]);
    let bias = has_bias.then(|| noise(3, &[n]));
    matmul::forward(&mut y, &x, &w, bias.as_ref());
    device.check().unwrap();
    y.into_dtype(Dtype::F32).host().to_vec()
}

/// Goal: a shape is tried once, and few rows then have the bits of many, whether the two kernels agree or not.
#[test]
fn a_shape_is_tried_once_and_few_rows_have_the_bits_of_many_in_any_case() {
    for sums in [Sums::InOrder, Sums::TwoChains, Sums::TwoHalves] {
        let cx = context(sums);
        for (count, (kind, has_bias)) in
            [(Kind::F32, false), (Kind::F32, true), (Kind::Bf16, false), (Kind::Bf16, true)]
                .into_iter()
                .enumerate()
        {
            let [n, k] = [45, 72];
            let many = forward(&cx, [100, n, k], kind, has_bias);
            assert_eq!(cx.probes().all().len(), count, "many rows ask for no answer");
            for rows in [1, 3, 64] {
                let few = forward(&cx, [rows, n, k], kind, has_bias);
                // Noise is by place, so rows are the same.
                assert_same_bits("few", &few, &many[..rows * n]);
            }
            let shape = FewRows { n, k, c_kind: kind, has_bias };
            let answer = cx.probes().get(shape).unwrap();
            match sums {
                Sums::InOrder => assert_eq!(answer, Agreement::Equal),
                // Also where results are rounded to bf16, many show it: half of the rows are made for that.
                _ => match answer {
                    Agreement::Differs { differing, compared } => {
                        assert!(8 * differing > compared, "{answer}");
                    }
                    other => panic!("{other}"),
                },
            }
            assert_eq!(cx.probes().all().len(), count + 1);
        }
    }
}

/// Goal: one element whose last bit differs is found, wherever it is. Method: a library that flips that bit; the four
/// kernels compare the first 8, 16, 32 and 64 rows.
#[test]
fn a_difference_in_the_last_bit_of_one_element_is_found() {
    let [n, k] = [45, 72];
    for kind in [Kind::F32, Kind::Bf16] {
        for (place, differing) in [(0, 4), (8 * n - 1, 4), (8 * n, 3), (40 * n + 17, 1)] {
            let cx = context(Sums::Flipped(place));
            forward(&cx, [2, n, k], kind, false);
            let shape = FewRows { n, k, c_kind: kind, has_bias: false };
            let compared = 120 * n;
            let want = Agreement::Differs { differing, compared };
            assert_eq!(cx.probes().get(shape), Some(want), "{kind}, {place}");
        }
        let cx = context(Sums::Flipped(64 * n));
        forward(&cx, [2, n, k], kind, false);
        assert_eq!(cx.probes().all()[0].1, Agreement::Equal, "a row that isn't compared");
    }
}

#[test]
fn what_the_kernel_can_not_multiply_is_left_to_the_library() {
    let cx = context(Sums::InOrder);
    for dims in [[0, 9, 8], [1, 9, 7], [1, 9, 20], [65, 9, 8], [1, OUTPUTS_MAX + 1, 8]] {
        assert_eq!(forward(&cx, dims, Kind::F32, true).len(), dims[0] * dims[1]);
    }
    assert_eq!(cx.probes().all(), []);
    let buffer = cx.zeros(Kind::Bf16, 64).unwrap();
    let mut c = cx.buffer(Kind::F32, 64).unwrap();
    let at = |x: usize, w: usize, c_at: usize, c: &mut Buffer| {
        let view = |at| buffer.view().slice(at..at + 8);
        let c = c.view_mut().slice(c_at..c_at + 1);
        let part = Part { c, n: 1, w: view(w), bias: None };
        shape_of(Rows { x: view(x), m: 1, k: 8 }, &part).is_some()
    };
    assert!(at(0, 8, 4, &mut c));
    assert!(!at(1, 8, 4, &mut c) && !at(0, 4, 4, &mut c) && !at(0, 8, 1, &mut c));
}

/// Goal: several weights have the bits that each has alone, in one launch or, where one of them can't be in it, in
/// several. Method: odd sizes that begin inside of a block; a weight that is too wide and a kind that differs.
#[test]
fn weights_of_one_launch_have_the_bits_of_each_alone() {
    for cx in contexts() {
        let (m, k) = (11, 72);
        let device = Device::cpu(1).with_context(cx.clone()).with_dtype(Dtype::Bf16);
        let noise = |seed, shape: &[usize]| crate::ops::check::noise_tensor(&device, seed, shape);
        let x = noise(1, &[m, k]).into_dtype(Dtype::Bf16);
        for (outputs, kinds) in [
            (&[45, 3, 130][..], &[Dtype::Bf16; 3][..]),
            (&[2000, 2100], &[Dtype::F32; 2]),
            (&[45, 3], &[Dtype::F32, Dtype::Bf16]),
            (&[9, OUTPUTS_MAX + 8], &[Dtype::Bf16; 2]),
            (&[9, 10, 11, 12], &[Dtype::Bf16; 4]),
        ] {
            let packed: Vec<Packed> = (2..)
                .zip(outputs)
                .map(|(seed, n)| Packed::of_weight(&noise(seed, &[*n, k]), Dtype::Bf16))
                .collect();
            let bias = noise(9, &[outputs[0]]);
            let weights: Vec<_> =
                packed.iter().enumerate().map(|(i, w)| (w, (i == 0).then_some(&bias))).collect();
            let results = || -> Vec<Tensor> {
                let result =
                    |(n, dtype): (&usize, &Dtype)| Tensor::uninit_as(&device, *dtype, &[m, *n]);
                outputs.iter().zip(kinds).map(result).collect()
            };
            let (mut all, mut alone) = (results(), results());
            matmul::forward_all(&mut all, &x, &weights);
            for (y, (w, bias)) in alone.iter_mut().zip(&weights) {
                matmul::forward(y, &x, w, *bias);
            }
            device.check().unwrap();
            for (all, alone) in all.into_iter().zip(alone) {
                let [all, alone] = [all, alone].map(|y| y.into_dtype(Dtype::F32).host().to_vec());
                assert_same_bits(&format!("{outputs:?}"), &all, &alone);
            }
        }
    }
}

/// Goal: work that is captured asks for its answer once, before, and its replays have the same bits; what was taken for
/// the answer isn't kept with the capture.
#[test]
fn captured_work_has_its_answer_before() {
    let cx = context(Sums::InOrder);
    let (n, k) = (1000, 512);
    let (x, _) = upload_noise(&cx, 1, 3 * k, Kind::Bf16);
    let (w, _) = upload_noise(&cx, 2, n * k, Kind::Bf16);
    let mut y = cx.zeros(Kind::F32, 3 * n).unwrap();
    let rows = Rows { x: x.view(), m: 3, k };
    let before = cx.stats().in_use_bytes;
    let workspace = Workspace::new(&cx);
    // SAFETY: the buffers live on.
    let captured = unsafe {
        cx.capture(&workspace, |cx| {
            let part = Part { c: y.view_mut(), n, w: w.view(), bias: None };
            assert!(multiply(cx, rows, &[part])?);
            Ok(())
        })
    };
    let captured = captured.unwrap();
    assert_eq!(cx.stats().in_use_bytes, before);
    let first = download(&cx, &y);
    cx.clear(&mut y.view_mut()).unwrap();
    // SAFETY: as above.
    unsafe { captured.replay() }.unwrap();
    assert_same_bits("replay", &download(&cx, &y), &first);
}

#[test]
fn without_memory_to_try_it_the_library_multiplies() {
    let cx = Context::new(Emulated::new(ORDERS[0], 300 << 10));
    let [n, k] = [64, 1024];
    let many = forward(&context(Sums::InOrder), [1, n, k], Kind::F32, false);
    let (x, w) = (upload_noise(&cx, 1, k, Kind::Bf16).0, upload_noise(&cx, 2, n * k, Kind::Bf16).0);
    let mut y = cx.buffer(Kind::F32, n).unwrap();
    let part = Part { c: y.view_mut(), n, w: w.view(), bias: None };
    assert!(!multiply(&cx, Rows { x: x.view(), m: 1, k }, &[part]).unwrap());
    assert_eq!(cx.probes().all()[0].1, Agreement::NoRoom);
    let factors = ((x.view(), false), (w.view(), true));
    cx.product(&mut y.view_mut(), [1, n, k], factors.0, factors.1, None, (1.0, 0.0)).unwrap();
    assert_same_bits("library", &download(&cx, &y), &many);
}

/// Goal: sums of made-up operands show their order, also rounded to bf16. Method: what the in-order sums of mirrored
/// rows leave is not zero, and small; magnitudes are of all sizes.
#[test]
fn values_that_products_are_tried_with_leave_what_rounding_made() {
    let cx = context(Sums::InOrder);
    let (rows, k) = (10, 500);
    let x = download(&cx, &made_up(&cx, MadeUp::Activations, [rows, k]).unwrap());
    let w = download(&cx, &made_up(&cx, MadeUp::Weight, [rows, k]).unwrap());
    for values in [&x, &w] {
        assert!(values.iter().all(|x| x.abs() <= 1.0 && *x != 0.0));
        assert!(values.iter().any(|x| *x > 0.5) && values.iter().any(|x| *x < -0.5));
        let small = values.iter().filter(|x| x.abs() < 1.0 / 256.0).count();
        assert!((500..3000).contains(&small), "{small} of 5000");
    }
    let (mut zeros, mut left) = (0, 0);
    for (i, x) in x.chunks(k).enumerate() {
        for w in w.chunks(k) {
            let sum = x.iter().zip(w).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            if i % 2 == 1 {
                assert!(exact.abs() < 1e-12 && sum.abs() < 1e-4, "{exact}, {sum}");
                zeros += usize::from(sum == 0.0);
                left += 1;
            }
        }
    }
    assert!(4 * zeros < left, "{zeros} of {left} sums leave nothing");
}

#[test]
fn launches_fit_every_device_and_small_weights_are_spread() {
    for model in MODELS {
        let [q, kv] = [model.heads, model.kv_heads].map(|heads| heads * model.head_dim);
        for n in [q, kv, model.hidden, model.ffn] {
            for m in 1..=ROWS_MAX {
                for kind in [Kind::F32, Kind::Bf16] {
                    for parts in [&[n][..], &[n, n], &[q, kv, kv]] {
                        let plan = plan(m, parts, kind);
                        assert_fits(&plan);
                        let outputs = plan.grid[0] * plan.block[0] / 32 * WARP_OUTPUTS as u32;
                        assert!(outputs as usize >= parts.iter().sum(), "{parts:?} outputs");
                    }
                }
            }
            let plan = plan(1, &[n], Kind::Bf16);
            assert!(plan.grid[0] as usize >= 112.min(n / WARP_OUTPUTS), "{n}: {:?}", plan.grid);
        }
    }
}
