use super::reference::{Quantized as Scalar, quantum, round_e4m3, scale, wide_e4m3};
use super::*;
use crate::ops::check::{
    MODELS, ROWS, Tol, assert_close, assert_fits, assert_same_bits, contexts, download, noise,
    rounding, upload, upload_noise,
};
use crate::ops::matmul::reference as exact;

/// `(T, N, K)`: one to several tiles of each, ends of every kind, one row and none.
const SHAPES: [[usize; 3]; 6] =
    [[1, 1, 1], [0, 5, 9], [3, 130, 40], [17, 33, 129], [130, 20, 300], [70, 256, 128]];

/// Values of very different sizes from tile to tile.
fn values(seed: u64, rows: usize, cols: usize) -> Vec<f32> {
    let size = |i: usize| 2f32.powi(((i / cols / 7 + i % cols / 50) % 9) as i32 - 5);
    rounding(seed, rows * cols, Kind::Bf16).iter().enumerate().map(|(i, x)| x * size(i)).collect()
}

fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| x.iter().skip(col).step_by(cols).copied()).collect()
}

#[test]
fn every_byte_is_the_rounding_of_its_value_and_ties_go_to_even() {
    for byte in (0..=0xffu8).filter(|byte| byte & 0x7f != 0x7f) {
        assert_eq!(round_e4m3(wide_e4m3(byte)), byte, "{byte:#x}");
    }
    for (low, high) in (0..0x7eu8).map(|byte| (byte, byte + 1)) {
        let [a, b] = [low, high].map(wide_e4m3);
        let middle = (a + b) / 2.0;
        let even = if low % 2 == 0 { low } else { high };
        assert_eq!(round_e4m3(middle), even, "{middle}");
        assert_eq!(round_e4m3(-middle), even | 0x80, "{middle}");
        assert_eq!([middle.next_down(), middle.next_up()].map(round_e4m3), [low, high]);
    }
    assert_eq!([448.0, 464.0, 1e30, f32::INFINITY].map(round_e4m3), [0x7e; 4]);
    assert_eq!(round_e4m3(f32::NAN), 0x7f);
    assert_eq!([0.0, 1.0, -0.0, 448.0, 2f32.powi(-9)].map(round_e4m3), [0, 0x38, 0x80, 0x7e, 1]);
}

#[test]
fn quanta_are_within_half_a_step_of_what_they_stand_for() {
    let tile: Vec<f32> = values(1, 1, 128);
    let scale = scale(tile.iter().copied());
    for x in &tile {
        let off = (wide_e4m3(quantum(*x, scale)) * scale - x).abs();
        assert!(off <= x.abs() / 16.0 + scale / 1024.0, "{x} is off by {off}");
    }
    // The greatest is hit, and zeros and tiny numbers are numbers.
    let greatest = tile.iter().fold(0f32, |a, b| a.max(b.abs()));
    assert_eq!(wide_e4m3(quantum(greatest, scale)), 448.0);
    assert_eq!(quantum(0.0, reference::scale([0.0; 3])), 0);
    assert!(quantum(1e-45, reference::scale([1e-45])) < 0x7f);
}

/// The quanta of a factor without what fills its rows up, and the scale of each.
fn downloaded(cx: &Context, of: &Quantized) -> (Vec<u8>, Vec<f32>) {
    let quanta: Vec<u8> = cx.download(of.quanta.view()).unwrap();
    let scales: Vec<f32> = cx.download(of.scales.view()).unwrap();
    let stride = of.tiles() * TILE;
    let places = || (0..of.rows).flat_map(|row| (0..of.depth).map(move |k| (row, k)));
    for row in quanta.chunks(stride.max(1)) {
        assert!(row[of.depth..].iter().all(|byte| *byte == 0), "zeros behind the end");
    }
    let (count, per) = match of.of {
        Scales::OfRows => (of.rows, 1),
        Scales::OfBlocks => (of.rows.div_ceil(TILE), TILE),
    };
    let scale = |(row, k): (usize, usize)| scales[k / TILE * count + row / per];
    (places().map(|(row, k)| quanta[row * stride + k]).collect(), places().map(scale).collect())
}

#[track_caller]
fn assert_is(cx: &Context, name: &str, got: &Quantized, want: &Scalar) {
    let (quanta, scales) = downloaded(cx, got);
    assert_same_bits(name, &scales, &want.scales);
    assert_eq!(quanta, want.quanta, "{name}");
}

#[test]
fn quanta_and_scales_have_the_bits_of_the_reference() {
    for [rows, _, cols] in SHAPES {
        let mut x = values(1, rows, cols);
        if let Some(first) = x.first_mut() {
            *first = f32::NAN;
        }
        for cx in contexts() {
            for kind in [Kind::F32, Kind::Bf16] {
                let on_device = upload(&cx, &x, kind);
                let got = Quantized::of_rows(&cx, on_device.view(), [rows, cols]).unwrap();
                assert_is(&cx, "rows", &got, &Scalar::new(&x, [rows, cols], 1));
                let got = Quantized::of_columns(&cx, on_device.view(), [rows, cols]).unwrap();
                assert_is(
                    &cx,
                    "columns",
                    &got,
                    &Scalar::new(&transposed(&x, cols), [cols, rows], 1),
                );
            }
            let weight = Weight::new(&cx, upload(&cx, &x, Kind::F32).view(), [rows, cols]).unwrap();
            let want = Scalar::new(&x, [rows, cols], TILE);
            let [of_rows, of_cols] = weight.sides();
            assert_is(&cx, "blocks", of_rows, &want);
            assert_is(&cx, "transposed blocks", of_cols, &want.transposed());
        }
    }
}

/// A product of each kind in blocks of each size.
fn products(cx: &Context, [rows, out, inp]: [usize; 3], block: Option<Block>) -> [Vec<f32>; 4] {
    let (x, dy) = (upload(cx, &values(1, rows, inp), Kind::Bf16), values(3, rows, out));
    let (w, dy) = (upload(cx, &values(2, out, inp), Kind::F32), upload(cx, &dy, Kind::F32));
    let weight = Weight::new(cx, w.view(), [out, inp]).unwrap();
    let [w, wt] = weight.sides();
    let bias = upload_noise(cx, 4, out, Kind::F32).0;
    let mut got = [(Kind::F32, out), (Kind::Bf16, out), (Kind::F32, inp)]
        .map(|(kind, cols)| upload(cx, &rounding(5, rows * cols, kind), kind));
    let mut dw = upload_noise(cx, 6, out * inp, Kind::F32).0;
    let run = |to: &mut Buffer, a: &Quantized, b: &Quantized, bias, accumulates| {
        let block = block.unwrap_or(Block::of(a.rows, b.rows));
        product_in(cx, &mut to.view_mut(), a, b, bias, accumulates, block).unwrap();
    };
    let of_rows = Quantized::of_rows(cx, x.view(), [rows, inp]).unwrap();
    run(&mut got[0], &of_rows, w, None, true);
    run(&mut got[1], &of_rows, w, Some(bias.view()), false);
    run(&mut got[2], &Quantized::of_rows(cx, dy.view(), [rows, out]).unwrap(), wt, None, false);
    let of_columns = Quantized::of_columns(cx, dy.view(), [rows, out]).unwrap();
    let x = Quantized::of_columns(cx, x.view(), [rows, inp]).unwrap();
    run(&mut dw, &of_columns, &x, None, true);
    let [y, biased, dx] = got;
    [y, biased, dx, dw].map(|buffer| download(cx, &buffer))
}

fn expected([rows, out, inp]: [usize; 3]) -> [Vec<f32>; 4] {
    let (x, w, dy) = (values(1, rows, inp), values(2, out, inp), values(3, rows, out));
    let weight = Scalar::new(&w, [out, inp], TILE);
    let of_rows = Scalar::new(&x, [rows, inp], 1);
    let mut y = rounding(5, rows * out, Kind::F32);
    reference::product(&mut y, &of_rows, &weight);
    let mut biased = vec![0.0; rows * out];
    reference::product(&mut biased, &of_rows, &weight);
    let bias = rounding(4, out, Kind::F32);
    for (i, y) in biased.iter_mut().enumerate() {
        *y = half::bf16::from_f32(*y + bias[i % out]).to_f32();
    }
    let mut dx = vec![0.0; rows * inp];
    reference::product(&mut dx, &Scalar::new(&dy, [rows, out], 1), &weight.transposed());
    let mut dw = rounding(6, out * inp, Kind::F32);
    let [dy, x] = [(&dy, out), (&x, inp)]
        .map(|(of, cols)| Scalar::new(&transposed(of, cols), [cols, rows], 1));
    reference::product(&mut dw, &dy, &x);
    [y, biased, dx, dw]
}

/// The emulated tensor cores sum in the reference's order, so bits are the same.
#[test]
fn products_have_the_bits_of_the_reference_in_blocks_of_any_size() {
    for shape in SHAPES {
        let want = expected(shape);
        for cx in contexts() {
            for block in [None, Some(LARGE), Some(MEDIUM), Some(SMALL)] {
                let got = products(&cx, shape, block);
                for (name, (got, want)) in
                    ["y", "biased y", "dx", "dw"].iter().zip(got.iter().zip(&want))
                {
                    assert_same_bits(&format!("{name} {shape:?} {block:?}"), got, want);
                }
            }
        }
    }
}

/// Goal: what FP8 stands for is the product. Method: against the product of the unrounded factors in f64. A quantum is
/// off by at most 1/16 of its value, or 2^-10 of a scale; both factors are, independently, so the error of a sum of K
/// terms near one is near sqrt(K) times the mean of that, 2 % of each factor.
#[test]
fn products_are_near_those_of_the_unrounded_factors() {
    let (rows, out, inp) = (33, 65, 300);
    let (x, w) = (noise(1, rows * inp), noise(2, out * inp));
    let narrow = |of: &[f64]| -> Vec<f32> { of.iter().map(|x| *x as f32).collect() };
    let mut want = vec![0.0; rows * out];
    exact::forward(&mut want, &x, &w, None, inp);
    let mut got = vec![0f32; rows * out];
    let (x, w) =
        (Scalar::new(&narrow(&x), [rows, inp], 1), Scalar::new(&narrow(&w), [out, inp], TILE));
    reference::product(&mut got, &x, &w);
    assert_close("y", &got, &want, Tol { abs: 1.2, rel: 0.0 });
    let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(&want).map(|(a, b)| f64::from(*a) - b));
    let share = off / norm(&mut want.iter().copied());
    assert!((0.01..0.05).contains(&share), "{share} of the product's norm");
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    let cx = &contexts()[0];
    let (rows, out, inp) = (150, 40, 200);
    let x = values(1, rows, inp);
    let w = upload(cx, &values(2, out, inp), Kind::F32);
    let weight = Weight::new(cx, w.view(), [out, inp]).unwrap();
    let run = |of: std::ops::Range<usize>, block| {
        let part = upload(cx, &x[of.start * inp..of.end * inp], Kind::Bf16);
        let part = Quantized::of_rows(cx, part.view(), [of.len(), inp]).unwrap();
        let mut y = cx.buffer(Kind::F32, of.len() * out).unwrap();
        product_in(cx, &mut y.view_mut(), &part, weight.sides()[0], None, false, block).unwrap();
        download(cx, &y)
    };
    let all = run(0..rows, LARGE);
    for of in [0..1, 149..150, 3..20, 60..149] {
        let want = &all[of.start * out..of.end * out];
        assert_same_bits("rows", &run(of.clone(), Block::of(of.len(), out)), want);
    }
}

#[test]
fn a_number_that_is_not_finite_shows() {
    let cx = &contexts()[0];
    let w = upload(cx, &[1.0; 6], Kind::F32);
    let weight = Weight::new(cx, w.view(), [2, 3]).unwrap();
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = upload(cx, &[1.0, broken, 0.0, 1.0, 1.0, 0.0], Kind::F32);
        let x = Quantized::of_rows(cx, x.view(), [2, 3]).unwrap();
        let mut y = cx.buffer(Kind::F32, 4).unwrap();
        product(cx, &mut y.view_mut(), &x, weight.sides()[0], None, false).unwrap();
        let y = download(cx, &y);
        assert!(!y[0].is_finite() && !y[1].is_finite(), "{broken}: {y:?}");
        assert!(y[2..].iter().all(|y| (y - 2.0).abs() < 1e-6), "{broken}: {y:?}");
    }
}

#[test]
fn launches_fit_every_device() {
    for model in MODELS {
        let [q, kv] = [model.heads, model.kv_heads].map(|heads| heads * model.head_dim);
        let hidden = model.hidden;
        for (out, inp) in
            [(q, hidden), (kv, hidden), (hidden, q), (model.ffn, hidden), (hidden, model.ffn)]
        {
            assert_fits(&blocks_plan(out, inp));
            for rows in ROWS {
                assert_fits(&rows_plan(Kind::Bf16, rows, inp));
                assert_fits(&rows_plan(Kind::F32, rows, out));
                assert_fits(&columns_plan(Kind::Bf16, rows, inp));
                assert_fits(&columns_plan(Kind::F32, rows, out));
                let of_blocks =
                    |kind, m, n| product_plan(Block::of(m, n), kind, Scales::OfBlocks, m, n);
                assert_fits(&of_blocks(Kind::Bf16, rows, out));
                assert_fits(&of_blocks(Kind::F32, rows, inp));
                let block = Block::of(out, inp);
                assert_fits(&product_plan(block, Kind::F32, Scales::OfRows, out, inp));
            }
        }
    }
    assert_eq!([Block::of(1, 896), Block::of(64, 4864)], [SMALL; 2]);
    assert_eq!([Block::of(256, 4864), Block::of(4096, 896)], [MEDIUM, LARGE]);
}
