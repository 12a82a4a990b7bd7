use super::*;
use crate::ops::check::{
    F32, Tol, assert_close, assert_same_bits, devices, noise, noise_f32, noise_tensor,
};
use crate::random::Philox;
use crate::simd::{Isa, LANES};

/// `(T, V, C)`: vocabularies beside the lanes, beside a block of a lane's sum, odd ones, and one with logits
/// enough for several threads.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 3],
    [5, 15, 8],
    [9, 16, 8],
    [13, 37, 19],
    [40, 131, 21],
    [7, 511, 33],
    [3, 513, 5],
    [40, 1100, 16],
];
const INV_TEMPERATURE: f32 = 1.0 / 0.7;

struct Case {
    hidden: Tensor,
    w: Tensor,
    head: Packed,
    targets: Vec<u32>,
    dlogp: Vec<f32>,
    dentropy: Vec<f32>,
}

fn case(device: &Device, [rows, vocab_size, width]: [usize; 3]) -> Case {
    let random = Philox::new(3);
    let w = noise_tensor(device, 2, &[vocab_size, width]);
    Case {
        hidden: noise_tensor(device, 1, &[rows, width]),
        head: Packed::of_weight(&w, Dtype::F32),
        w,
        targets: (0..rows as u64)
            .map(|i| (random.uniform(&[i]) * vocab_size as f64) as u32)
            .collect(),
        dlogp: noise_f32(4, rows),
        dentropy: noise_f32(5, rows),
    }
}

impl Case {
    /// The part of the case that has the tokens `rows`.
    fn part(&self, rows: Range<usize>) -> Case {
        Case {
            hidden: self.hidden.rows_range(rows.clone()),
            w: self.w.clone(),
            head: Packed::of_weight(&self.w, Dtype::F32),
            targets: self.targets[rows.clone()].to_vec(),
            dlogp: self.dlogp[rows.clone()].to_vec(),
            dentropy: self.dentropy[rows].to_vec(),
        }
    }

    /// `logp` and `entropy`.
    fn forward(&self, chunk_rows: usize) -> [Tensor; 2] {
        let len = [self.targets.len()];
        let [mut logp, mut entropy] = [0, 1].map(|_| Tensor::uninit(self.hidden.device(), &len));
        forward_in_chunks(
            &mut logp,
            &mut entropy,
            None,
            &self.hidden,
            &self.head,
            &self.targets,
            INV_TEMPERATURE,
            chunk_rows,
        );
        [logp, entropy]
    }

    /// `dhidden`, and `dw` added to.
    fn backward(&self, dw: &mut Tensor, chunk_rows: usize) -> Tensor {
        let mut dhidden = Tensor::uninit(self.hidden.device(), self.hidden.shape());
        dhidden.fill(f32::NAN);
        backward_in_chunks(
            &mut dhidden,
            Some(dw),
            Grads { dlogp: &self.dlogp, dentropy: Some(&self.dentropy), ddivergence: None },
            &self.hidden,
            &self.head,
            &self.w,
            &self.targets,
            INV_TEMPERATURE,
            chunk_rows,
        );
        dhidden
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Another model's activations and head, of `others` tokens.
struct Beside {
    hidden: Tensor,
    w: Tensor,
    head: Packed,
    ddivergence: Vec<f32>,
}

/// Width of the other model.
const OTHER_WIDTH: usize = 11;

impl Beside {
    fn new(device: &Device, rows: usize, others: usize) -> Beside {
        let w = noise_tensor(device, 12, &[others, OTHER_WIDTH]);
        Beside {
            hidden: noise_tensor(device, 11, &[rows, OTHER_WIDTH]),
            head: Packed::of_weight(&w, Dtype::F32),
            w,
            ddivergence: noise_f32(13, rows),
        }
    }

    fn part(&self, rows: Range<usize>) -> Beside {
        Beside {
            hidden: self.hidden.rows_range(rows.clone()),
            w: self.w.clone(),
            head: Packed::of_weight(&self.w, Dtype::F32),
            ddivergence: self.ddivergence[rows].to_vec(),
        }
    }

    fn other(&self) -> Other<'_> {
        Other { hidden: &self.hidden, head: &self.head }
    }

    /// `logp`, `entropy` and `divergence` of the case.
    fn forward(&self, case: &Case, chunk_rows: usize) -> [Tensor; 3] {
        let len = [case.targets.len()];
        let mut out = [0, 1, 2].map(|_| Tensor::uninit(case.hidden.device(), &len));
        let [logp, entropy, divergence] = out.each_mut();
        forward_in_chunks(
            logp,
            entropy,
            Some((divergence, self.other())),
            &case.hidden,
            &case.head,
            &case.targets,
            INV_TEMPERATURE,
            chunk_rows,
        );
        out
    }

    /// `dhidden` of the case, and `dw` added to.
    fn backward(&self, case: &Case, dw: &mut Tensor, chunk_rows: usize) -> Tensor {
        let mut dhidden = Tensor::uninit(case.hidden.device(), case.hidden.shape());
        dhidden.fill(f32::NAN);
        backward_in_chunks(
            &mut dhidden,
            Some(dw),
            Grads {
                dlogp: &case.dlogp,
                dentropy: Some(&case.dentropy),
                ddivergence: Some((&self.ddivergence, self.other())),
            },
            &case.hidden,
            &case.head,
            &case.w,
            &case.targets,
            INV_TEMPERATURE,
            chunk_rows,
        );
        dhidden
    }
}

#[test]
fn the_divergence_matches_the_reference_on_every_device() {
    let inv_temperature = f64::from(INV_TEMPERATURE);
    for (shape, others) in SHAPES.into_iter().flat_map(|shape| {
        [shape[1], shape[1] + 70, shape[1].div_ceil(2)].map(|others| (shape, others))
    }) {
        let [rows, vocab_size, width] = shape;
        let plain = case(&Device::cpu(1), shape);
        let beside = Beside::new(&Device::cpu(1), rows, others);
        let [hidden, w] = [&plain.hidden, &plain.w].map(|x| wide(x.as_slice()));
        let [their_hidden, their_w] = [&beside.hidden, &beside.w].map(|x| wide(x.as_slice()));
        let other = reference::Other { hidden: &their_hidden, w: &their_w, width: OTHER_WIDTH };
        let mut divergence = vec![0.0; rows];
        reference::divergence(&mut divergence, other, &hidden, &w, inv_temperature, width);
        let (mut dhidden, mut dw) = (vec![0.0; rows * width], wide(&noise_f32(6, w.len())));
        reference::backward(
            &mut dhidden,
            &mut dw,
            &wide(&plain.dlogp),
            &wide(&plain.dentropy),
            &hidden,
            &w,
            &plain.targets,
            inv_temperature,
            width,
        );
        reference::divergence_backward(
            &mut dhidden,
            &mut dw,
            &wide(&beside.ddivergence),
            other,
            &hidden,
            &w,
            inv_temperature,
            width,
        );
        let mut first: Option<[Tensor; 3]> = None;
        for device in devices() {
            let (case, beside) = (case(&device, shape), Beside::new(&device, rows, others));
            let [logp, entropy, got_divergence] = beside.forward(&case, chunk_rows(vocab_size));
            let [plain_logp, plain_entropy] = case.forward(chunk_rows(vocab_size));
            assert_same_bits("logp", logp.as_slice(), plain_logp.as_slice());
            assert_same_bits("entropy", entropy.as_slice(), plain_entropy.as_slice());
            let mut got_dw = noise_tensor(&device, 6, &[vocab_size, width]);
            let got_dhidden = beside.backward(&case, &mut got_dw, chunk_rows(vocab_size));
            let got = [got_divergence, got_dhidden, got_dw];
            let wanted = [&divergence, &dhidden, &dw];
            for ((name, got), want) in ["divergence", "dhidden", "dw"].iter().zip(&got).zip(wanted)
            {
                let name = format!("{name} {shape:?} beside {others} on {device:?}");
                assert_close(&name, got.as_slice(), want, F32);
            }
            let first = first.get_or_insert_with(|| got.clone());
            for (got, first) in got.iter().zip(first) {
                assert_same_bits("of devices", got.as_slice(), first.as_slice());
            }
        }
    }
}

#[test]
fn chunks_and_micro_batches_change_no_bit_of_a_divergence() {
    for device in devices() {
        for others in [100, 131, 150] {
            let case = case(&device, [61, 131, 24]);
            let beside = Beside::new(&device, 61, others);
            let begun = noise_tensor(&device, 6, &[131, 24]);
            let [_, _, whole] = beside.forward(&case, 1000);
            let mut dw = begun.clone();
            let dhidden = beside.backward(&case, &mut dw, 1000);
            for chunk_rows in [1, 7, 60] {
                let mut parts = begun.clone();
                let part_dhidden = beside.backward(&case, &mut parts, chunk_rows);
                assert_same_bits("dhidden", part_dhidden.as_slice(), dhidden.as_slice());
                assert_same_bits("dw", parts.as_slice(), dw.as_slice());
                let [_, _, part] = beside.forward(&case, chunk_rows);
                assert_same_bits("divergence", part.as_slice(), whole.as_slice());
            }
            let mut parts = begun.clone();
            for rows in [0..1, 1..20, 20..20, 20..55, 55..61] {
                let (case, beside) = (case.part(rows.clone()), beside.part(rows.clone()));
                beside.backward(&case, &mut parts, 16);
                let [_, _, part] = beside.forward(&case, 16);
                assert_same_bits("divergence", part.as_slice(), &whole.as_slice()[rows]);
            }
            assert_same_bits("dw of micro-batches", parts.as_slice(), dw.as_slice());
        }
    }
}

#[test]
fn nothing_diverges_from_itself_and_nothing_pulls_it_away() {
    let device = Device::cpu(2);
    let case = case(&device, [9, 131, 8]);
    let own = Other { hidden: &case.hidden, head: &case.head };
    let [mut logp, mut entropy, mut divergence] = [0, 1, 2].map(|_| Tensor::zeros(&device, &[9]));
    forward_beside(
        [&mut logp, &mut entropy, &mut divergence],
        own,
        &case.hidden,
        &case.head,
        &case.targets,
        INV_TEMPERATURE,
    );
    assert!(divergence.as_slice().iter().all(|&x| x == 0.0));
    let mut dw = Tensor::zeros(&device, &[131, 8]);
    let mut dhidden = Tensor::zeros(&device, &[9, 8]);
    backward(
        &mut dhidden,
        Some(&mut dw),
        Grads { dlogp: &[0.0; 9], dentropy: None, ddivergence: Some((&[1.0; 9], own)) },
        &case.hidden,
        &case.head,
        &case.w,
        &case.targets,
        INV_TEMPERATURE,
    );
    assert!(dw.as_slice().iter().chain(dhidden.as_slice()).all(|&x| x == 0.0));
}

/// A token that the other model rules out costs much; one that is ruled out here costs nothing.
#[test]
fn impossible_tokens_and_broken_models_show_in_a_divergence() {
    for isa in Isa::available() {
        let (mut own, mut other) = (noise_f32(1, 37), noise_f32(2, 37));
        let of = |own: &[f32], other: &[f32]| {
            let stats = [own, other].map(|row| row_stats(isa, row));
            let divergence = kernel::divergence(isa, own, other, &stats);
            let mut gradient = other.to_vec();
            kernel::divergence_gradient(isa, &mut gradient, own, &stats, divergence, 1.0);
            (divergence, gradient)
        };
        own[4] = f32::NEG_INFINITY;
        other[4] = f32::NEG_INFINITY;
        let (divergence, gradient) = of(&own, &other);
        assert!(divergence.is_finite() && gradient[4] == 0.0);
        other[5] = f32::NEG_INFINITY;
        assert!(of(&own, &other).0 > 1e30);
        for at in [0, 20, 36] {
            for broken in [f32::NAN, f32::INFINITY] {
                let mut row = noise_f32(1, 37);
                row[at] = broken;
                let fine = noise_f32(2, 37);
                assert!(of(&row, &fine).0.is_nan() && of(&fine, &row).0.is_nan());
                assert!(of(&row, &fine).1.iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn every_device_matches_the_reference_and_the_others() {
    for shape in SHAPES {
        let [rows, vocab_size, width] = shape;
        let Case { hidden, w, targets, dlogp, dentropy, .. } = case(&Device::cpu(1), shape);
        let [hidden, w] = [&hidden, &w].map(|x| wide(x.as_slice()));
        let (mut logp, mut entropy) = (vec![0.0; rows], vec![0.0; rows]);
        let inv_temperature = f64::from(INV_TEMPERATURE);
        reference::forward(&mut logp, &mut entropy, &hidden, &w, &targets, inv_temperature, width);
        let (mut dhidden, mut dw) = (vec![0.0; rows * width], wide(&noise_f32(6, w.len())));
        reference::backward(
            &mut dhidden,
            &mut dw,
            &wide(&dlogp),
            &wide(&dentropy),
            &hidden,
            &w,
            &targets,
            inv_temperature,
            width,
        );
        let mut first: Option<[Tensor; 4]> = None;
        for device in devices() {
            let case = case(&device, shape);
            let [got_logp, got_entropy] = case.forward(chunk_rows(vocab_size));
            let mut got_dw = noise_tensor(&device, 6, &[vocab_size, width]);
            let got_dhidden = case.backward(&mut got_dw, chunk_rows(vocab_size));
            let got = [got_logp, got_entropy, got_dhidden, got_dw];
            let names = ["logp", "entropy", "dhidden", "dw"];
            for ((name, got), want) in names.iter().zip(&got).zip([&logp, &entropy, &dhidden, &dw])
            {
                let name = format!("{name} {shape:?} on {device:?}");
                assert_close(&name, got.as_slice(), want, F32);
            }
            let first = first.get_or_insert_with(|| got.clone());
            for ((name, got), first) in names.iter().zip(&got).zip(first) {
                let name = format!("{name} {shape:?} on {device:?}");
                assert_same_bits(&name, got.as_slice(), first.as_slice());
            }
        }
    }
}

/// What makes recorded log-probs usable as they are: no second forward pass over old weights.
#[test]
fn the_log_prob_of_the_learner_is_that_of_the_sampler() {
    for device in devices() {
        for shape in SHAPES {
            let case = case(&device, shape);
            let [logp, entropy] = case.forward(7);
            for i in 0..shape[0] {
                let hidden = case.hidden.rows_range(i..i + 1);
                let mut out = Tensor::uninit(&device, &[1, shape[1]]);
                logits(&mut out, &hidden, &case.head, INV_TEMPERATURE);
                let stats = row_stats(device.isa(), out.as_slice());
                let sampled = log_prob(out.as_slice(), &stats, case.targets[i]);
                let name = format!("row {i} of {shape:?} on {device:?}");
                let (sampled, learned) = ([sampled, stats.entropy], [&logp, &entropy]);
                assert_same_bits(&name, &sampled, &learned.map(|x| x.as_slice()[i]));
            }
        }
    }
}

#[test]
fn a_token_has_the_same_bits_alone_and_in_any_company() {
    for device in devices() {
        let case = case(&device, [300, 131, 24]);
        let [logp, entropy] = case.forward(chunk_rows(131));
        let mut dw = Tensor::zeros(&device, &[131, 24]);
        let dhidden = case.backward(&mut dw, chunk_rows(131));
        for rows in [0..1, 299..300, 17..18, 3..77, 100..300] {
            let part = case.part(rows.clone());
            let [part_logp, part_entropy] = part.forward(130);
            let part_dhidden = part.backward(&mut Tensor::zeros(&device, &[131, 24]), 130);
            let of_hidden = rows.start * 24..rows.end * 24;
            assert_same_bits("logp", part_logp.as_slice(), &logp.as_slice()[rows.clone()]);
            assert_same_bits("entropy", part_entropy.as_slice(), &entropy.as_slice()[rows]);
            assert_same_bits("dhidden", part_dhidden.as_slice(), &dhidden.as_slice()[of_hidden]);
        }
    }
}

#[test]
fn chunks_and_micro_batches_change_no_bit() {
    for device in devices() {
        let case = case(&device, [61, 131, 24]);
        let begun = noise_tensor(&device, 6, &[131, 24]);
        let whole = case.forward(1000);
        let mut dw = begun.clone();
        let dhidden = case.backward(&mut dw, 1000);
        for chunk_rows in [1, 2, 7, 30, 60, 61] {
            let mut parts = begun.clone();
            let part_dhidden = case.backward(&mut parts, chunk_rows);
            assert_same_bits("dhidden", part_dhidden.as_slice(), dhidden.as_slice());
            assert_same_bits("dw", parts.as_slice(), dw.as_slice());
            for (part, whole) in case.forward(chunk_rows).iter().zip(&whole) {
                assert_same_bits("forward", part.as_slice(), whole.as_slice());
            }
        }
        let mut parts = begun.clone();
        for rows in [0..1, 1..20, 20..20, 20..55, 55..61] {
            case.part(rows).backward(&mut parts, 16);
        }
        assert_same_bits("dw of micro-batches", parts.as_slice(), dw.as_slice());
    }
}

/// The statistics of a vocabulary as large as those of our models.
#[test]
fn a_large_vocabulary_is_summed_closely() {
    let logits = noise(8, 49_157);
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    let mean: f64 = logits.iter().map(|l| l.exp() * l).sum::<f64>() / sum;
    let row: Vec<f32> = logits.iter().map(|&l| l as f32).collect();
    for isa in Isa::available() {
        let stats = row_stats(isa, &row);
        let got = [log_prob(&row, &stats, 49_156), stats.entropy];
        // Two roundings of values near ten: blocks of sums add next to nothing.
        let tol = Tol { abs: 0.0, rel: 2e-7 };
        assert_close("stats", &got, &[logits[49_156] - sum.ln(), sum.ln() - mean], tol);
    }
}

#[test]
fn weights_are_probabilities_but_for_a_factor() {
    for isa in Isa::available() {
        for len in [1, LANES - 1, LANES, LANES + 1, 131] {
            let row: Vec<f32> = noise_f32(7, len).iter().map(|x| x * 20.0).collect();
            let stats = row_stats(isa, &row);
            let mut out = vec![f32::NAN; len];
            weights(isa, &mut out, &row, &stats);
            let probability = |(i, &w): (usize, &f32)| {
                f64::from(w) - f64::from(log_prob(&row, &stats, i as u32) + stats.log_sum).exp()
            };
            assert!(out.iter().enumerate().map(probability).all(|off| off.abs() < 1e-6));
            assert!(out.contains(&1.0), "the greatest logit weighs one");
        }
    }
}

#[test]
fn an_impossible_token_weighs_nothing() {
    for isa in Isa::available() {
        let mut row = vec![f32::NEG_INFINITY; 37];
        (row[3], row[36]) = (0.5, 0.5);
        let stats = row_stats(isa, &row);
        assert_close("entropy", &[stats.entropy], &[2f64.ln()], F32);
        assert_eq!(log_prob(&row, &stats, 4), f32::NEG_INFINITY);
        let mut out = vec![f32::NAN; 37];
        weights(isa, &mut out, &row, &stats);
        assert_eq!(out.iter().sum::<f32>(), 2.0);
        kernel::gradient(isa, &mut row, &stats, 1.0, 1.0);
        assert!(row.iter().enumerate().all(|(i, &dl)| (dl == 0.0) != (i == 3 || i == 36)));
    }
}

#[test]
fn large_logits_stay_finite() {
    for device in devices() {
        let mut case = case(&device, [24, 131, 16]);
        case.hidden.as_mut_slice().iter_mut().for_each(|x| *x *= 1e4);
        let mut dw = Tensor::zeros(&device, case.w.shape());
        let dhidden = case.backward(&mut dw, 10);
        let [logp, entropy] = case.forward(10);
        assert!(logp.as_slice().iter().any(|&x| x < -5e3), "the logits are large");
        for buffer in [&logp, &entropy, &dhidden, &dw] {
            assert!(buffer.as_slice().iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn a_broken_model_shows() {
    for isa in Isa::available() {
        for broken in [f32::NAN, f32::INFINITY] {
            for at in [0, 20, 36] {
                let mut row = noise_f32(1, 37);
                row[at] = broken;
                let stats = row_stats(isa, &row);
                assert!(log_prob(&row, &stats, 5).is_nan() && stats.entropy.is_nan());
                kernel::gradient(isa, &mut row, &stats, 1.0, 0.0);
                assert!(row.iter().all(|x| x.is_nan()));
            }
        }
        assert!(row_stats(isa, &[f32::NEG_INFINITY; 3]).log_sum.is_nan());
    }
}

#[test]
fn without_a_gradient_of_the_entropy_it_counts_as_zero() {
    let device = Device::cpu(2);
    let case = Case { dentropy: vec![0.0; 9], ..case(&device, [9, 37, 8]) };
    let mut want_dw = Tensor::zeros(&device, &[37, 8]);
    let want = case.backward(&mut want_dw, 4);
    let (mut dhidden, mut dw) = (want.clone(), Tensor::zeros(&device, &[37, 8]));
    backward(
        &mut dhidden,
        Some(&mut dw),
        Grads { dlogp: &case.dlogp, dentropy: None, ddivergence: None },
        &case.hidden,
        &case.head,
        &case.w,
        &case.targets,
        INV_TEMPERATURE,
    );
    assert_same_bits("dhidden", dhidden.as_slice(), want.as_slice());
    assert_same_bits("dw", dw.as_slice(), want_dw.as_slice());
}

/// One pass gives the bits of two, in chunks of any length, with the weight frozen or not.
#[test]
fn both_passes_at_once_are_the_two() {
    for (device, shape) in
        devices().into_iter().flat_map(|d| SHAPES.map(|shape| (d.clone(), shape)))
    {
        let [rows, vocab_size, width] = shape;
        let case = case(&device, shape);
        let slopes = |token: usize, logp: f32, entropy: f32| {
            [case.dlogp[token] * logp, case.dentropy[token] - entropy]
        };
        let [logp, entropy] = case.forward(chunk_rows(vocab_size));
        let of = |token| slopes(token, logp.as_slice()[token], entropy.as_slice()[token]);
        let (dlogp, dentropy): (Vec<f32>, Vec<f32>) =
            (0..rows).map(|token| of(token).into()).unzip();
        let begun = noise_tensor(&device, 6, &[vocab_size, width]);
        let (mut dhidden, mut dw) = (Tensor::zeros(&device, &[rows, width]), begun.clone());
        backward(
            &mut dhidden,
            Some(&mut dw),
            Grads { dlogp: &dlogp, dentropy: Some(&dentropy), ddivergence: None },
            &case.hidden,
            &case.head,
            &case.w,
            &case.targets,
            INV_TEMPERATURE,
        );
        for (chunk_rows, is_frozen) in [(1, false), (7, true), (1000, false)] {
            let mut got = [&[rows][..], &[rows], &[rows, width]].map(|shape| {
                Tensor::from_slice(&device, shape, &vec![f32::NAN; shape.iter().product()])
            });
            let mut got_dw = begun.clone();
            both_in_chunks(
                got.each_mut(),
                (!is_frozen).then_some(&mut got_dw),
                &slopes,
                &case.hidden,
                &case.head,
                &case.w,
                &case.targets,
                INV_TEMPERATURE,
                chunk_rows,
            );
            for (got, want) in got.iter().zip([&logp, &entropy, &dhidden]) {
                assert_same_bits("of one pass", got.as_slice(), want.as_slice());
            }
            let want = if is_frozen { &begun } else { &dw };
            assert_same_bits("dw of one pass", got_dw.as_slice(), want.as_slice());
        }
    }
}

#[test]
fn a_frozen_head_has_the_same_gradient_of_the_rows() {
    let device = Device::cpu(2);
    let case = case(&device, [9, 37, 8]);
    let want = case.backward(&mut Tensor::zeros(&device, &[37, 8]), 4);
    let mut dhidden = want.clone();
    dhidden.fill(f32::NAN);
    let grads = Grads { dlogp: &case.dlogp, dentropy: Some(&case.dentropy), ddivergence: None };
    let (hidden, head, w) = (&case.hidden, &case.head, &case.w);
    backward_in_chunks(
        &mut dhidden,
        None,
        grads,
        hidden,
        head,
        w,
        &case.targets,
        INV_TEMPERATURE,
        4,
    );
    assert_same_bits("dhidden", dhidden.as_slice(), want.as_slice());
}

/// Up to the roundings of the second chain, which starts elsewhere.
#[test]
fn a_second_backward_doubles_the_gradient_of_the_weight_and_not_that_of_the_input() {
    let device = Device::cpu(2);
    let case = case(&device, [40, 37, 8]);
    let mut dw = Tensor::zeros(&device, &[37, 8]);
    let dhidden = case.backward(&mut dw, 16);
    let twice: Vec<f64> = wide(dw.as_slice()).iter().map(|x| 2.0 * x).collect();
    assert_same_bits("dhidden", case.backward(&mut dw, 16).as_slice(), dhidden.as_slice());
    assert_close("dw", dw.as_slice(), &twice, F32);
}

#[test]
fn an_empty_batch_is_a_no_op() {
    for device in devices() {
        let case = case(&device, [0, 37, 8]);
        assert!(case.forward(64).iter().all(Tensor::is_empty));
        let mut dw = case.w.clone();
        assert!(case.backward(&mut dw, 64).is_empty());
        assert_same_bits("dw", dw.as_slice(), case.w.as_slice());
        logits(&mut Tensor::zeros(&device, &[0, 37]), &case.hidden, &case.head, 2.0);
    }
}

#[test]
fn chunks_are_long_enough_for_the_matrix_products_and_no_longer_than_that_with_many_tokens() {
    assert_eq!([2, 512, 4096, 49_152, 151_936].map(chunk_rows), [524_160, 1920, 192, 192, 192]);
}

/// A case of shape `[3, 5, 4]` that `spoil` gets to change, forwards and backwards.
fn run_spoilt(spoil: impl FnOnce(&mut Case)) {
    let device = Device::cpu_with(1, Isa::Portable);
    let mut case = case(&device, [3, 5, 4]);
    spoil(&mut case);
    let mut dw = Tensor::zeros(&device, &[5, 4]);
    case.backward(&mut dw, 2);
}

#[test]
#[should_panic(expected = "`hidden` has 15 elements: expected 3 rows of 4")]
fn a_wrong_length_of_hidden_panics() {
    run_spoilt(|case| case.hidden = noise_tensor(case.w.device(), 1, &[3, 5]));
}

#[test]
#[should_panic(expected = "`w` has 24 elements: expected 5 rows of 4")]
fn a_wrong_length_of_the_weight_panics() {
    run_spoilt(|case| case.w = noise_tensor(case.w.device(), 1, &[6, 4]));
}

#[test]
#[should_panic(expected = "`dlogp` has 2 elements: expected 3 rows of 1")]
fn a_wrong_length_of_dlogp_panics() {
    run_spoilt(|case| case.dlogp.truncate(2));
}

#[test]
#[should_panic(expected = "`dentropy` has 4 elements: expected 3 rows of 1")]
fn a_wrong_length_of_dentropy_panics() {
    run_spoilt(|case| case.dentropy.push(0.0));
}

#[test]
#[should_panic(expected = "`targets[1]` is 5: the head has 5 tokens")]
fn a_target_outside_the_vocabulary_panics() {
    run_spoilt(|case| case.targets = vec![4, 5, 0]);
}

#[test]
#[should_panic(expected = "`logp` has 2 elements: expected 3 rows of 1")]
fn a_wrong_length_of_logp_panics() {
    let device = Device::cpu_with(1, Isa::Portable);
    let case = case(&device, [3, 5, 4]);
    let (mut logp, mut entropy) = (Tensor::zeros(&device, &[2]), Tensor::zeros(&device, &[3]));
    forward(&mut logp, &mut entropy, &case.hidden, &case.head, &case.targets, 1.0);
}

#[test]
#[should_panic(expected = "`out` has 16 elements: expected 3 rows of 5")]
fn a_wrong_length_of_the_logits_panics() {
    let device = Device::cpu_with(1, Isa::Portable);
    let case = case(&device, [3, 5, 4]);
    logits(&mut Tensor::zeros(&device, &[4, 4]), &case.hidden, &case.head, 1.0);
}

/// Rows of every kind of end: beside the lanes, and beside a block.
fn rows_of_logits() -> impl Iterator<Item = Vec<f32>> {
    [1, 15, 16, 17, 255, 257, 511, 512, 513, 1100, 5000].into_iter().map(|len| noise_f32(6, len))
}

#[test]
fn sums_of_blocks_leave_the_statistics_as_they_are_and_are_the_same_everywhere() {
    for row in rows_of_logits() {
        let mut first: Option<Vec<u64>> = None;
        for isa in Isa::available() {
            let mut sums = vec![f64::NAN; row.len().div_ceil(BLOCK_LEN)];
            let (stats, want) = (row_sums(isa, &mut sums, &row), row_stats(isa, &row));
            let bits = |s: &RowStats| [s.max, s.log_sum, s.entropy].map(f32::to_bits);
            assert_eq!(bits(&stats), bits(&want), "{isa}, {}", row.len());
            let mut terms = vec![0.0; row.len()];
            weights(isa, &mut terms, &row, &stats);
            for (i, (sum, block)) in sums.iter().zip(terms.chunks(BLOCK_LEN)).enumerate() {
                let want: f64 = block.iter().map(|&w| f64::from(w)).sum();
                assert!((sum - want).abs() <= 1e-12 * want, "{isa}: block {i} of {}", row.len());
            }
            let bits: Vec<u64> = sums.iter().map(|sum| sum.to_bits()).collect();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa}, {}", row.len());
        }
    }
}

/// Goal: at least `k` logits are no less than the `k`-th greatest maximum, and there are about as many maxima as
/// parts. Method: each is found in the row, as often as it is there.
#[test]
fn maxima_are_logits_of_disjoint_parts() {
    for row in rows_of_logits() {
        for isa in Isa::available() {
            let mut found = Vec::new();
            maxima(isa, &mut found, &row);
            assert!(found.len() >= row.len().div_ceil(MAXIMA_PART_LEN), "{isa}, {}", row.len());
            let (mut found, mut left) = (found, row.clone());
            found.sort_by(f32::total_cmp);
            left.sort_by(f32::total_cmp);
            assert_eq!(found.last(), left.last(), "{isa}, {}", row.len());
            let mut left = left.into_iter();
            assert!(found.iter().all(|max| left.any(|x| x == *max)), "{isa}");
        }
    }
}

#[test]
#[should_panic(expected = "`sums` has 1 elements: expected 2")]
fn a_wrong_number_of_sums_panics() {
    row_sums(Isa::best(), &mut [0.0], &[0.0; 513]);
}
