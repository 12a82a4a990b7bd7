//! RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), alone or after the residual sum.
//!
//! | buffer              | shape     | written by                              |
//! |---------------------|-----------|-----------------------------------------|
//! | `x` `residual`      | (T, C)    | caller                                  |
//! | `w`                 | (G)       | caller; `C` is a multiple of `G`        |
//! | `y`                 | (T, C)    | forward `=`                             |
//! | `r`                 | (T·C / G) | forward `=`, saved                      |
//! | `sum`               | (T, C)    | [`forward_add`] `=`, saved              |
//! | `dx`                | (T, C)    | backward `+=`                           |
//! | `dw`                | (G)       | backward `+=`, one chain over groups    |
//!
//! Each group of `G` columns is normed for itself: the whole row, or one head of a row (Qwen3):
//! `r = 1 / sqrt(mean(x²) + eps)`, `y = x r w`. With `z = x r` and `m = mean(dy w z)`:
//! `dx = r (dy w - z m)` and `dw = Σ dy z`. `x` and `y` may be bf16: what is between is `f32`, and so are
//! gradients.

pub mod cuda;

use crate::simd::{LANES, Simd, simd_fn};
use crate::tensor::Shards;
use crate::{Device, Tensor};

/// Elements that one call of a kernel takes, at least.
const BLOCK_LEN: usize = 1 << 13;
/// Vectors of column sums that are kept in registers.
const SUM_VECTORS: usize = 4;

/// `y = x r w` and the saved `r`.
pub fn forward(y: &mut Tensor, r: &mut Tensor, x: &Tensor, w: &Tensor, eps: f32) {
    let group_len = check(w, r, &[("y", y), ("x", x)]);
    if let Some(gpu) = y.gpu() {
        return gpu.run(|cx| {
            let (y, r) = (&mut y.view_mut(), &mut r.view_mut());
            cuda::forward(cx, y, r, x.view(), w.view(), eps)
        });
    }
    let device = x.device();
    let (ys, rs) = (y.sink(), Shards::new(r.as_mut_slice()));
    groups(device, x.len() / group_len, group_len, |start, end| {
        let at = start * group_len..end * group_len;
        // SAFETY: blocks of groups are disjoint.
        x.values().with(device, at.clone(), |x| unsafe {
            let r = rs.slice(start, end);
            ys.with(at, |y| norm(device.isa(), y, r, x, w.as_slice(), eps));
        });
    });
}

/// `sum = x + residual`, and [`forward`] of it. The residual and the sum are `f32`.
pub fn forward_add(
    y: &mut Tensor,
    r: &mut Tensor,
    sum: &mut Tensor,
    x: &Tensor,
    residual: &Tensor,
    w: &Tensor,
    eps: f32,
) {
    let group_len = check(w, r, &[("y", y), ("sum", sum), ("x", x), ("residual", residual)]);
    if let Some(gpu) = y.gpu() {
        return gpu.run(|cx| {
            let (y, r, sum) = (&mut y.view_mut(), &mut r.view_mut(), &mut sum.view_mut());
            cuda::forward_add(cx, y, r, sum, x.view(), residual.view(), w.view(), eps)
        });
    }
    let device = x.device();
    let sums = Shards::new(sum.as_mut_slice());
    let (ys, rs) = (y.sink(), Shards::new(r.as_mut_slice()));
    groups(device, x.len() / group_len, group_len, |start, end| {
        let at = start * group_len..end * group_len;
        // SAFETY: blocks of groups are disjoint.
        x.values().with(device, at.clone(), |x| unsafe {
            let (r, sum) = (rs.slice(start, end), sums.slice(at.start, at.end));
            add(device.isa(), sum, x, &residual.as_slice()[at.clone()]);
            ys.with(at, |y| norm(device.isa(), y, r, sum, w.as_slice(), eps));
        });
    });
}

/// Adds the gradients of `x` (the sum, where there was one) and, unless it is frozen, of `w`.
pub fn backward(
    dx: &mut Tensor,
    dw: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    r: &Tensor,
) {
    let group_len = check(w, r, &[("dx", dx), ("dy", dy), ("x", x)]);
    if let Some(gpu) = dy.gpu() {
        return gpu.run(|cx| {
            let mut dw = dw.map(Tensor::view_mut);
            let (dx, r) = (&mut dx.view_mut(), r.view());
            cuda::backward(cx, dx, dw.as_mut(), dy.view(), x.view(), w.view(), r)
        });
    }
    let device = x.device();
    let (dy, r, w) = (dy.as_slice(), r.as_slice(), w.as_slice());
    let x = x.as_f32();
    let x = x.as_slice();
    let dxs = Shards::new(dx.as_mut_slice());
    groups(device, x.len() / group_len, group_len, |start, end| {
        let at = start * group_len..end * group_len;
        // SAFETY: blocks of groups are disjoint.
        let dx = unsafe { dxs.slice(at.start, at.end) };
        norm_backward(device.isa(), dx, &dy[at.clone()], &x[at], w, &r[start..end]);
    });
    let Some(dw) = dw else { return };
    assert_eq!(dw.len(), group_len, "`dw` must be as long as `w`");
    let dws = Shards::new(dw.as_mut_slice());
    let parts = if x.len() < BLOCK_LEN { 1 } else { device.threads() };
    let block = group_len.div_ceil(parts).next_multiple_of(LANES);
    device.run_blocks(group_len, block, |start, end| {
        // SAFETY: blocks of columns are disjoint.
        let dw = unsafe { dws.slice(start, end) };
        weight_backward(device.isa(), dw, dy, x, r, start, group_len);
    });
}

fn check(w: &Tensor, r: &Tensor, buffers: &[(&str, &Tensor)]) -> usize {
    let (group_len, want) = (w.len(), buffers[0].1.len());
    assert!(
        group_len > 0 && want.is_multiple_of(group_len),
        "{want} elements are no groups of {group_len}"
    );
    for (name, buffer) in buffers {
        assert_eq!(buffer.len(), want, "`{name}` must be as long as `{}`", buffers[0].0);
    }
    assert_eq!(r.len(), want / group_len, "`r` must have an element for each group");
    group_len
}

fn groups(device: &Device, count: usize, group_len: usize, f: impl Fn(usize, usize) + Sync) {
    device.run_blocks(count, (BLOCK_LEN / group_len).max(1), f);
}

#[inline(always)]
unsafe fn load<S: Simd>(from: &[f32], at: usize) -> S::V {
    // SAFETY: the slice bounds the part that is read.
    unsafe { S::load_part(from[at..].as_ptr(), (from.len() - at).min(LANES)) }
}

#[inline(always)]
unsafe fn store<S: Simd>(to: &mut [f32], at: usize, v: S::V) {
    let len = (to.len() - at).min(LANES);
    // SAFETY: the slice bounds the part that is written.
    unsafe { S::store_part(to[at..].as_mut_ptr(), v, len) }
}

simd_fn! {
    fn add<S>(sum: &mut [f32], x: &[f32], residual: &[f32]) {
        for at in (0..sum.len()).step_by(LANES) {
            store::<S>(sum, at, S::add(load::<S>(x, at), load::<S>(residual, at)));
        }
    }
}

simd_fn! {
    fn norm<S>(y: &mut [f32], r: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let group_len = w.len();
        for ((y, x), r) in y.chunks_exact_mut(group_len).zip(x.chunks_exact(group_len)).zip(r) {
            let mut squares = S::splat(0.0);
            for at in (0..group_len).step_by(LANES) {
                let x = load::<S>(x, at);
                squares = S::fma(x, x, squares);
            }
            *r = 1.0 / (S::reduce_add(squares) / group_len as f32 + eps).sqrt();
            let scale = S::splat(*r);
            for at in (0..group_len).step_by(LANES) {
                store::<S>(y, at, S::mul(S::mul(load::<S>(x, at), scale), load::<S>(w, at)));
            }
        }
    }
}

simd_fn! {
    fn norm_backward<S>(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], r: &[f32]) {
        let group_len = w.len();
        let inputs = dy.chunks_exact(group_len).zip(x.chunks_exact(group_len)).zip(r);
        for (dx, ((dy, x), &r)) in dx.chunks_exact_mut(group_len).zip(inputs) {
            let scale = S::splat(r);
            let mut dot = S::splat(0.0);
            for at in (0..group_len).step_by(LANES) {
                let z = S::mul(load::<S>(x, at), scale);
                dot = S::fma(S::mul(load::<S>(dy, at), load::<S>(w, at)), z, dot);
            }
            let mean = S::splat(S::reduce_add(dot) / group_len as f32);
            for at in (0..group_len).step_by(LANES) {
                let z = S::mul(load::<S>(x, at), scale);
                let inner = S::sub(S::mul(load::<S>(dy, at), load::<S>(w, at)), S::mul(z, mean));
                let sum = S::fma(scale, inner, load::<S>(dx, at));
                store::<S>(dx, at, sum);
            }
        }
    }
}

simd_fn! {
    /// `dw` of the columns from `start` on, over all groups in order.
    fn weight_backward<S>(dw: &mut [f32], dy: &[f32], x: &[f32], r: &[f32], start: usize, group_len: usize) {
        let whole = dw.len() - dw.len() % (SUM_VECTORS * LANES);
        for at in (0..whole).step_by(SUM_VECTORS * LANES) {
            let mut sums = [S::splat(0.0); SUM_VECTORS];
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = load::<S>(dw, at + v * LANES);
            }
            for (group, &r) in r.iter().enumerate() {
                let (from, r) = (group * group_len + start + at, S::splat(r));
                let part = from..from + SUM_VECTORS * LANES;
                let (x, dy) = (x[part.clone()].as_ptr(), dy[part].as_ptr());
                for (v, sum) in sums.iter_mut().enumerate() {
                    let z = S::mul(S::load(x.add(v * LANES)), r);
                    *sum = S::fma(S::load(dy.add(v * LANES)), z, *sum);
                }
            }
            for (v, &sum) in sums.iter().enumerate() {
                store::<S>(dw, at + v * LANES, sum);
            }
        }
        for at in (whole..dw.len()).step_by(LANES) {
            let len = (dw.len() - at).min(LANES);
            let mut sum = load::<S>(dw, at);
            for (group, &r) in r.iter().enumerate() {
                let from = group * group_len + start + at;
                let z = S::mul(load::<S>(&x[..from + len], from), S::splat(r));
                sum = S::fma(load::<S>(&dy[..from + len], from), z, sum);
            }
            store::<S>(dw, at, sum);
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

    const EPS: f32 = 1e-5;

    fn reference<R: Real>(x: &[R], w: &[R]) -> (Vec<R>, Vec<R>) {
        let (mut y, mut r) = (Vec::new(), Vec::new());
        for x in x.chunks(w.len()) {
            let mut squares = R::of(0.0);
            x.iter().for_each(|&x| squares += x * x);
            let scale =
                R::of(1.0) / (squares / R::of(w.len() as f64) + R::of(f64::from(EPS))).sqrt();
            r.push(scale);
            y.extend(x.iter().zip(w).map(|(&x, &w)| x * scale * w));
        }
        (y, r)
    }

    fn reference_backward<R: Real>(dy: &[R], x: &[R], w: &[R], r: &[R]) -> (Vec<R>, Vec<R>) {
        let (mut dx, mut dw) = (Vec::new(), vec![R::of(0.0); w.len()]);
        for ((dy, x), &r) in dy.chunks(w.len()).zip(x.chunks(w.len())).zip(r) {
            let mut dot = R::of(0.0);
            (0..w.len()).for_each(|i| dot += dy[i] * w[i] * x[i] * r);
            let mean = dot / R::of(w.len() as f64);
            for i in 0..w.len() {
                dx.push(r * (dy[i] * w[i] - x[i] * r * mean));
                dw[i] += dy[i] * x[i] * r;
            }
        }
        (dx, dw)
    }

    #[test]
    fn the_reference_is_the_slope() {
        let (x, w, dy) = (noise(1, 21), noise(2, 7), noise(3, 21));
        let r = reference(&x, &w).1;
        let (dx, dw) = reference_backward(&dy, &x, &w, &r);
        let loss =
            |x: &[f64], w: &[f64]| reference(x, w).0.iter().zip(&dy).map(|(y, d)| y * d).sum();
        assert_grad("dx", &dx, &x, |x| loss(x, &w));
        assert_grad("dw", &dw, &w, |w| loss(&x, w));
    }

    #[test]
    fn every_device_matches_the_reference_and_the_others() {
        for (rows, cols, group_len) in
            [(1, 1, 1), (5, 37, 37), (120, 96, 96), (70, 128, 32), (3, 600, 600)]
        {
            let shape = [rows, cols];
            let [x, residual, w, dy] =
                [(1, rows * cols), (2, rows * cols), (3, group_len), (4, rows * cols)]
                    .map(|(s, len)| noise(s, len));
            let sum: Vec<f64> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
            let (want, want_r) = reference(&sum, &w);
            let (mut want_dx, mut want_dw) = reference_backward(&dy, &sum, &w, &want_r);
            want_dx.iter_mut().zip(noise(5, rows * cols)).for_each(|(a, b)| *a += b);
            want_dw.iter_mut().zip(noise(6, group_len)).for_each(|(a, b)| *a += b);
            let mut first: Option<Vec<Tensor>> = None;
            for device in devices() {
                let [x, residual, dy] = [1, 2, 4].map(|seed| noise_tensor(&device, seed, &shape));
                let w = noise_tensor(&device, 3, &[group_len]);
                let [mut y, mut sum] = [0; 2].map(|_| Tensor::uninit(&device, &shape));
                let mut r = Tensor::uninit(&device, &[rows * cols / group_len]);
                forward_add(&mut y, &mut r, &mut sum, &x, &residual, &w, EPS);
                let (mut dx, mut dw) =
                    (noise_tensor(&device, 5, &shape), noise_tensor(&device, 6, &[group_len]));
                backward(&mut dx, Some(&mut dw), &dy, &sum, &w, &r);
                let (mut plain, mut plain_r) = (y.clone(), r.clone());
                forward(&mut plain, &mut plain_r, &sum, &w, EPS);
                assert_same_bits("sum first", plain.as_slice(), y.as_slice());
                assert_close("y", y.as_slice(), &want, F32);
                assert_close("dx", dx.as_slice(), &want_dx, F32);
                assert_close("dw", dw.as_slice(), &want_dw, F32);
                let got = vec![y, sum, r, dx, dw];
                for (got, first) in got.iter().zip(first.get_or_insert_with(|| got.clone())) {
                    assert_same_bits("devices", got.as_slice(), first.as_slice());
                }
            }
        }
    }

    #[test]
    fn rows_and_micro_batches_change_no_bit() {
        let device = Device::cpu(2);
        let (x, dy) = (noise_tensor(&device, 1, &[200, 48]), noise_tensor(&device, 2, &[200, 48]));
        let w = noise_tensor(&device, 3, &[48]);
        let run = |cuts: &[usize]| {
            let (mut out, mut dw) = (Vec::new(), Tensor::zeros(&device, &[48]));
            for cut in cuts.windows(2) {
                let (x, dy) = (x.rows_range(cut[0]..cut[1]), dy.rows_range(cut[0]..cut[1]));
                let (mut y, mut r) = (x.clone(), Tensor::uninit(&device, &[x.rows()]));
                forward(&mut y, &mut r, &x, &w, EPS);
                let mut dx = Tensor::zeros(&device, x.shape());
                backward(&mut dx, Some(&mut dw), &dy, &x, &w, &r);
                out.extend([y, dx].map(|t| t.as_slice().to_vec()));
            }
            let (y, dx): (Vec<_>, Vec<_>) =
                out.chunks(2).map(|c| (c[0].clone(), c[1].clone())).unzip();
            (y.concat(), dx.concat(), dw.as_slice().to_vec())
        };
        let (whole, parts) = (run(&[0, 200]), run(&[0, 1, 7, 150, 200]));
        assert_same_bits("y", &whole.0, &parts.0);
        assert_same_bits("dx", &whole.1, &parts.1);
        assert_same_bits("dw", &whole.2, &parts.2);
    }

    /// With rows as small as `sqrt(eps)` a misplaced `eps` shows.
    #[test]
    fn eps_is_added_to_the_mean_square_under_the_root() {
        let small = |x: f64| (x * 4e-3) as f32;
        let x: Vec<f32> = noise(1, 3 * 37).into_iter().map(small).collect();
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let (want, want_r) = reference(&wide, &noise(2, 37));
        for device in devices() {
            let x = Tensor::from_slice(&device, &[3, 37], &x);
            let (mut y, mut r) = (x.clone(), Tensor::uninit(&device, &[3]));
            forward(&mut y, &mut r, &x, &noise_tensor(&device, 2, &[37]), EPS);
            assert_close("y", y.as_slice(), &want, F32);
            assert_close("r", r.as_slice(), &want_r, F32);
        }
    }

    #[test]
    fn a_second_backward_doubles_the_gradients() {
        let device = Device::cpu(2);
        let [x, dy] = [1, 2].map(|seed| noise_tensor(&device, seed, &[5, 37]));
        let (w, mut y) = (noise_tensor(&device, 3, &[37]), Tensor::uninit(&device, &[5, 37]));
        let mut r = Tensor::uninit(&device, &[5]);
        forward(&mut y, &mut r, &x, &w, EPS);
        let (mut dx, mut dw) = (Tensor::zeros(&device, &[5, 37]), Tensor::zeros(&device, &[37]));
        backward(&mut dx, Some(&mut dw), &dy, &x, &w, &r);
        let twice =
            |t: &Tensor| t.as_slice().iter().map(|&x| 2.0 * f64::from(x)).collect::<Vec<_>>();
        let (want_dx, want_dw) = (twice(&dx), twice(&dw));
        backward(&mut dx, Some(&mut dw), &dy, &x, &w, &r);
        assert_close("dx", dx.as_slice(), &want_dx, F32);
        assert_close("dw", dw.as_slice(), &want_dw, F32);
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let [x, mut y, mut sum, mut dx] = [0; 4].map(|_| Tensor::zeros(&device, &[0, 37]));
            let (w, mut r) = (noise_tensor(&device, 1, &[37]), Tensor::zeros(&device, &[0]));
            forward_add(&mut y, &mut r, &mut sum, &x, &x, &w, EPS);
            let mut dw = w.clone();
            backward(&mut dx, Some(&mut dw), &y, &sum, &w, &r);
            assert_same_bits("dw", dw.as_slice(), w.as_slice());
        }
    }

    fn run_with_lens(y_len: usize, r_len: usize) {
        let device = Device::cpu(1);
        let [x, w, mut y, mut r] = [12, 4, y_len, r_len].map(|len| Tensor::zeros(&device, &[len]));
        forward(&mut y, &mut r, &x, &w, EPS);
    }

    #[test]
    #[should_panic(expected = "`x` must be as long as `y`")]
    fn a_wrong_length_of_y_panics() {
        run_with_lens(8, 2);
    }

    #[test]
    #[should_panic(expected = "`r` must have an element for each group")]
    fn a_wrong_length_of_r_panics() {
        run_with_lens(12, 4);
    }
}
