//! SwiGLU's gating: `y = silu(gate) * up`, with `silu(x) = x σ(x)` (Shazeer 2020, arXiv:2002.05202).
//!
//! | buffer            | shape  | written by    |
//! |-------------------|--------|---------------|
//! | `gate` `up`       | (T, C) | caller        |
//! | `y`               | (T, C) | forward `=`   |
//! | `dgate` `dup`     | (T, C) | backward `=`  |
//!
//! `dup = dy silu(gate)` and `dgate = dy up σ(gate) (1 + gate (1 - σ(gate)))`. `gate`, `up` and `y` may be bf16:
//! what is between is `f32`, and so are gradients.

pub mod cuda;

use crate::Tensor;
use crate::simd::{LANES, simd_fn};
use crate::tensor::Shards;

/// Elements that one call of a kernel takes.
const BLOCK_LEN: usize = 1 << 14;

/// `y = silu(gate) * up`, element by element.
pub fn forward(y: &mut Tensor, gate: &Tensor, up: &Tensor) {
    let len = gate.len();
    assert_eq!((y.len(), up.len()), (len, len), "`y` and `up` must be as long as `gate`");
    let device = gate.device();
    let out = y.sink();
    device.run_blocks(len, BLOCK_LEN, |start, end| {
        gate.values().with(device, start..end, |gate| {
            up.values().with(device, start..end, |up| {
                // SAFETY: blocks are disjoint.
                unsafe { out.with(start..end, |y| gated(device.isa(), y, gate, up)) };
            });
        });
    });
}

/// Gradients of `gate` and `up`.
pub fn backward(dgate: &mut Tensor, dup: &mut Tensor, dy: &Tensor, gate: &Tensor, up: &Tensor) {
    let len = gate.len();
    let lens = (dgate.len(), dup.len(), dy.len(), up.len());
    assert_eq!(lens, (len, len, len, len), "all buffers must be as long as `gate`");
    let device = gate.device();
    let (dgates, dups) = (Shards::new(dgate.as_mut_slice()), Shards::new(dup.as_mut_slice()));
    device.run_blocks(len, BLOCK_LEN, |start, end| {
        // SAFETY: blocks are disjoint.
        let (dgate, dup) = unsafe { (dgates.slice(start, end), dups.slice(start, end)) };
        let dy = &dy.as_slice()[start..end];
        gate.values().with(device, start..end, |gate| {
            up.values().with(device, start..end, |up| {
                gated_backward(device.isa(), dgate, dup, dy, gate, up);
            });
        });
    });
}

simd_fn! {
    fn gated<S>(y: &mut [f32], gate: &[f32], up: &[f32]) {
        assert!(y.len() == gate.len() && y.len() == up.len());
        for at in (0..y.len()).step_by(LANES) {
            let len = (y.len() - at).min(LANES);
            let (g, u) = (S::load_part(gate.as_ptr().add(at), len), S::load_part(up.as_ptr().add(at), len));
            let silu = S::mul(g, S::sigmoid(g));
            S::store_part(y.as_mut_ptr().add(at), S::mul(silu, u), len);
        }
    }
}

simd_fn! {
    fn gated_backward<S>(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        let total = dy.len();
        assert!([dgate.len(), dup.len(), gate.len(), up.len()] == [total; 4]);
        let one = S::splat(1.0);
        for at in (0..total).step_by(LANES) {
            let len = (total - at).min(LANES);
            let [d, g, u] = [dy, gate, up].map(|x| S::load_part(x.as_ptr().add(at), len));
            let s = S::sigmoid(g);
            S::store_part(dup.as_mut_ptr().add(at), S::mul(d, S::mul(g, s)), len);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            S::store_part(dgate.as_mut_ptr().add(at), S::mul(S::mul(d, u), slope), len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Real;
    use crate::ops::check::{
        F32, assert_close, assert_grad, assert_same_bits, devices, noise, noise_tensor,
    };

    fn sigmoid<R: Real>(x: R) -> R {
        R::of(1.0) / (R::of(1.0) + (-x).exp())
    }

    fn reference<R: Real>(gate: &[R], up: &[R]) -> Vec<R> {
        gate.iter().zip(up).map(|(&g, &u)| g * sigmoid(g) * u).collect()
    }

    fn reference_backward<R: Real>(dy: &[R], gate: &[R], up: &[R]) -> (Vec<R>, Vec<R>) {
        let of = |i: usize| {
            let (d, g, u, s) = (dy[i], gate[i], up[i], sigmoid(gate[i]));
            (d * u * s * (R::of(1.0) + g * (R::of(1.0) - s)), d * g * s)
        };
        (0..dy.len()).map(of).unzip()
    }

    #[test]
    fn the_reference_is_the_slope() {
        let (gate, up, dy) = (noise(1, 9), noise(2, 9), noise(3, 9));
        let gate: Vec<f64> = gate.iter().map(|x| 4.0 * x).collect();
        let (dgate, dup) = reference_backward(&dy, &gate, &up);
        let loss = |gate: &[f64], up: &[f64]| {
            reference(gate, up).iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        assert_grad("dgate", &dgate, &gate, |gate| loss(gate, &up));
        assert_grad("dup", &dup, &up, |up| loss(&gate, up));
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for shape in [[1, 1], [3, 37], [700, 48]] {
            let len = shape[0] * shape[1];
            let (gate, up, dy) = (noise(1, len), noise(2, len), noise(3, len));
            let want = reference(&gate, &up);
            let (want_dgate, want_dup) = reference_backward(&dy, &gate, &up);
            let mut first: Option<[Tensor; 3]> = None;
            for device in devices() {
                let [gate, up, dy] = [1, 2, 3].map(|seed| noise_tensor(&device, seed, &shape));
                let [mut y, mut dgate, mut dup] = [0; 3].map(|_| Tensor::uninit(&device, &shape));
                forward(&mut y, &gate, &up);
                backward(&mut dgate, &mut dup, &dy, &gate, &up);
                assert_close("y", y.as_slice(), &want, F32);
                assert_close("dgate", dgate.as_slice(), &want_dgate, F32);
                assert_close("dup", dup.as_slice(), &want_dup, F32);
                let got = [y, dgate, dup];
                for (got, first) in got.iter().zip(first.get_or_insert_with(|| got.clone())) {
                    assert_same_bits("devices", got.as_slice(), first.as_slice());
                }
            }
        }
    }

    #[test]
    fn large_gates_stay_finite() {
        let device = crate::Device::cpu(1);
        let gate = Tensor::from_slice(&device, &[1, 4], &[-1e4, -100.0, 100.0, 1e4]);
        let mut y = Tensor::uninit(&device, &[1, 4]);
        forward(&mut y, &gate, &gate);
        assert!(y.as_slice()[..2].iter().all(|y| y.abs() < 1e-30));
        assert_eq!(y.as_slice()[2..], [1e4, 1e8]);
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_company() {
        for device in devices() {
            let [gate, up, dy] = [1, 2, 3].map(|seed| noise_tensor(&device, seed, &[700, 37]));
            let run = |gate: &Tensor, up: &Tensor, dy: &Tensor| {
                let [mut y, mut dgate, mut dup] =
                    [0; 3].map(|_| Tensor::uninit(&device, gate.shape()));
                forward(&mut y, gate, up);
                backward(&mut dgate, &mut dup, dy, gate, up);
                [y, dgate, dup]
            };
            let all = run(&gate, &up, &dy);
            for i in [0, 1, 443, 699] {
                let [gate, up, dy] = [&gate, &up, &dy].map(|t| t.rows_range(i..i + 1));
                for (one, all) in run(&gate, &up, &dy).iter().zip(&all) {
                    assert_same_bits("row", one.as_slice(), all.row(i));
                }
            }
        }
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let [x, mut y, mut dgate, mut dup] = [0; 4].map(|_| Tensor::zeros(&device, &[0, 37]));
            forward(&mut y, &x, &x);
            backward(&mut dgate, &mut dup, &y, &x, &x);
        }
    }

    #[test]
    #[should_panic(expected = "`y` and `up` must be as long as `gate`")]
    fn a_wrong_length_of_up_panics() {
        let device = crate::Device::cpu(1);
        let [mut y, gate, up] = [5, 5, 4].map(|len| Tensor::zeros(&device, &[len]));
        forward(&mut y, &gate, &up);
    }
}
