//! A product with a weight that has a low-rank adapter (LoRA: Hu et al. 2021, arXiv:2106.09685, section 4.1):
//! `y = x·wᵀ + bias + u·bᵀ` with `u = scale · x·aᵀ`, so that `w` counts as `w + scale · b·a`.
//!
//! | buffer      | shape         | written by                                        |
//! |-------------|---------------|---------------------------------------------------|
//! | `x` `y`     | (T, K) (T, N) | caller; forward `=`, an `f32` tensor              |
//! | `w` `bias`  | (N, K) (N)    | caller; frozen                                    |
//! | `a` `b`     | (R, K) (N, R) | caller                                            |
//! | `u`         | (T, R)        | forward `=`, saved; of the kind of `x`            |
//! | `dx`        | (T, K)        | backward `=`, or `+=` where asked                 |
//! | `da` `db`   | (R, K) (N, R) | backward `+=`                                     |
//!
//! With `du = scale · dy·b`: `db = dyᵀ·u`, `da = duᵀ·x` and `dx = dy·w + du·a`.
//!
//! Each product has the sums of [`matmul`]: an output is one chain over `K`, then the bias, then one chain over `R`
//! that starts there. So a row has the same bits in any company, and micro-batches in order give the gradient of one
//! batch.
//! Where `x` is bf16, `u` and `du` are rounded to it.

use super::cuda as elements;
use super::matmul::{self, Factor, Packed};
use crate::Tensor;

/// Writes `y` and returns `u`. `a` and `b` are packed for activations of the kind of `x`.
pub fn forward(
    y: &mut Tensor,
    x: &Tensor,
    w: &Packed,
    bias: Option<&Tensor>,
    [a, b]: [&Packed; 2],
    scale: f32,
) -> Tensor {
    assert_eq!(a.out_len(), b.in_len(), "`a` and `b` must be of one rank");
    matmul::forward(y, x, w, bias);
    let mut u = Tensor::uninit(x.device(), &[x.rows(), a.out_len()]);
    matmul::forward(&mut u, x, a, None);
    multiply(&mut u, scale);
    let u = u.into_dtype(x.dtype());
    matmul::forward_add(y, &u, b);
    u
}

/// Adds the gradients of `a` and `b`, and writes that of `x`, or adds it if it accumulates. `dy` is of the kind of `x`.
pub fn backward<'a>(
    dx: &mut Tensor,
    [da, db]: [&mut Tensor; 2],
    dy: &Tensor,
    x: &Tensor,
    u: &Tensor,
    w: impl Into<Factor<'a>>,
    [a, b]: [impl Into<Factor<'a>>; 2],
    scale: f32,
    accumulate: bool,
) {
    matmul::backward_weight(db, dy, u);
    let mut du = Tensor::uninit(x.device(), u.shape());
    matmul::backward_input(&mut du, dy, b, false);
    multiply(&mut du, scale);
    let du = du.into_dtype(x.dtype());
    matmul::backward_weight(da, &du, x);
    matmul::backward_input(dx, dy, w, accumulate);
    matmul::backward_input(dx, &du, a, true);
}

/// `w += scale · b·a`, for `w` `(N, K)`: what the adapter makes of the weight.
pub fn merge(w: &mut Tensor, [a, b]: [&Tensor; 2], scale: f32) {
    let mut scaled = b.clone();
    multiply(&mut scaled, scale);
    matmul::backward_input(w, &scaled, a, true);
}

fn multiply(values: &mut Tensor, factor: f32) {
    if let Some(gpu) = values.gpu() {
        return gpu.run(|cx| elements::scale(cx, &mut values.view_mut(), factor));
    }
    values.as_mut_slice().iter_mut().for_each(|x| *x *= factor);
}

/// The definitions, in scalar loops.
pub mod reference {
    use super::super::Real;
    use super::super::matmul::reference as matmul;

    /// Weights of a layer: `w (N, K)`, `a (R, K)` and `b (N, R)`.
    #[derive(Clone, Copy)]
    pub struct Layer<'a, R> {
        /// The frozen weight.
        pub w: &'a [R],
        /// Added after its sums.
        pub bias: Option<&'a [R]>,
        /// The adapter's first matrix.
        pub a: &'a [R],
        /// The adapter's second matrix.
        pub b: &'a [R],
        /// What their product is multiplied by.
        pub scale: R,
        /// Inputs: `K`.
        pub in_len: usize,
    }

    impl<R: Real> Layer<'_, R> {
        fn rank(&self) -> usize {
            self.a.len() / self.in_len
        }

        /// `u (T, R)` of `x (T, K)`.
        pub fn inner(&self, x: &[R]) -> Vec<R> {
            let mut u = vec![R::of(0.0); x.len() / self.in_len * self.rank()];
            matmul::forward(&mut u, x, self.a, None, self.in_len);
            u.into_iter().map(|u| u * self.scale).collect()
        }

        /// `y (T, N)` of `x (T, K)`.
        pub fn forward(&self, x: &[R]) -> Vec<R> {
            let out_len = self.w.len() / self.in_len;
            let mut y = vec![R::of(0.0); x.len() / self.in_len * out_len];
            matmul::forward(&mut y, x, self.w, self.bias, self.in_len);
            let rows = y.chunks_exact_mut(out_len);
            let u = self.inner(x);
            for (y, u) in rows.zip(u.chunks_exact(self.rank())) {
                for (y, b) in y.iter_mut().zip(self.b.chunks_exact(self.rank())) {
                    *y = u.iter().zip(b).fold(*y, |sum, (&u, &b)| u.mul_add(b, sum));
                }
            }
            y
        }

        /// Gradients of `x`, `a` and `b`.
        pub fn backward(&self, dy: &[R], x: &[R]) -> [Vec<R>; 3] {
            let zeros = |len: usize| vec![R::of(0.0); len];
            let (rank, u) = (self.rank(), self.inner(x));
            let (mut dx, mut du) = (zeros(x.len()), zeros(u.len()));
            let (mut da, mut db) = (zeros(self.a.len()), zeros(self.b.len()));
            matmul::backward_weight(&mut db, dy, &u, rank);
            matmul::backward_input(&mut du, dy, self.b, rank, false);
            let du: Vec<R> = du.into_iter().map(|du| du * self.scale).collect();
            matmul::backward_weight(&mut da, &du, x, self.in_len);
            matmul::backward_input(&mut dx, dy, self.w, self.in_len, false);
            matmul::backward_input(&mut dx, &du, self.a, self.in_len, true);
            [dx, da, db]
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::reference::Layer;
    use super::*;
    use crate::ops::check::{
        F32, Tol, assert_close, assert_grad, assert_same_bits, devices, noise, noise_tensor,
    };
    use crate::{Device, Dtype};

    const SCALE: f32 = 0.75;

    struct Case {
        x: Tensor,
        dy: Tensor,
        w: Tensor,
        bias: Tensor,
        a: Tensor,
        b: Tensor,
    }

    /// Rows, outputs, inputs, rank: none a multiple of a tile, and ranks from one to all there are.
    const SHAPES: [[usize; 4]; 6] = [
        [1, 33, 19, 1],
        [3, 131, 70, 8],
        [17, 1, 1, 1],
        [64, 67, 37, 16],
        [37, 47, 129, 33],
        [5, 20, 20, 20],
    ];

    fn case(device: &Device, [rows, out, inp, rank]: [usize; 4]) -> Case {
        let noise = |seed, shape: &[usize]| noise_tensor(device, seed, shape);
        Case {
            x: noise(1, &[rows, inp]),
            dy: noise(2, &[rows, out]),
            w: noise(3, &[out, inp]),
            bias: noise(4, &[out]),
            a: noise(5, &[rank, inp]),
            b: noise(6, &[out, rank]),
        }
    }

    impl Case {
        fn layer(&self) -> Layer<'_, f32> {
            Layer {
                w: self.w.as_slice(),
                bias: Some(self.bias.as_slice()),
                a: self.a.as_slice(),
                b: self.b.as_slice(),
                scale: SCALE,
                in_len: self.x.cols(),
            }
        }

        /// `y` and `u`, with activations and weights of that kind.
        fn forward(&self, dtype: Dtype) -> [Tensor; 2] {
            let [w, a, b] = [&self.w, &self.a, &self.b].map(|w| Packed::of_weight(w, dtype));
            let mut y = Tensor::uninit(self.x.device(), &[self.x.rows(), self.w.rows()]);
            let x = self.x.to_dtype(dtype);
            let u = forward(&mut y, &x, &w, Some(&self.bias), [&a, &b], SCALE);
            [y, u]
        }

        /// `dx`, `da` and `db`, with activations of that kind.
        fn backward(&self, dtype: Dtype) -> [Tensor; 3] {
            let zeros = |like: &Tensor| Tensor::zeros(self.x.device(), like.shape());
            let [_, u] = self.forward(dtype);
            let [x, dy] = [&self.x, &self.dy].map(|t| t.to_dtype(dtype));
            let (mut dx, mut da, mut db) = (zeros(&self.x), zeros(&self.a), zeros(&self.b));
            let weights = [&self.a, &self.b];
            let to = [&mut da, &mut db];
            backward(&mut dx, to, &dy, &x, &u, &self.w, weights, SCALE, false);
            [dx, da, db]
        }
    }

    #[test]
    fn every_device_has_the_bits_of_the_reference() {
        for device in devices() {
            for shape in SHAPES {
                let case = case(&device, shape);
                let layer = case.layer();
                let [y, u] = case.forward(Dtype::F32);
                let name = |buffer: &str| format!("{buffer} {shape:?} on {device:?}");
                assert_same_bits(&name("u"), u.as_slice(), &layer.inner(case.x.as_slice()));
                assert_same_bits(&name("y"), y.as_slice(), &layer.forward(case.x.as_slice()));
                let want = layer.backward(case.dy.as_slice(), case.x.as_slice());
                let names = ["dx", "da", "db"];
                for ((got, want), buffer) in case.backward(Dtype::F32).iter().zip(want).zip(names) {
                    assert_same_bits(&name(buffer), got.as_slice(), &want);
                }
            }
        }
    }

    /// Goal: backward is the derivative of forward. Method: central differences of `<dy, y>` in `f64` on the
    /// reference, which the kernels equal bit for bit in `f32`.
    #[test]
    fn backward_is_the_derivative_of_forward() {
        let (rows, out, inp, rank) = (3, 5, 7, 2);
        let (x, dy, w) = (noise(1, rows * inp), noise(2, rows * out), noise(3, out * inp));
        let (a, b) = (noise(5, rank * inp), noise(6, out * rank));
        let layer = Layer { w: &w[..], bias: None, a: &a, b: &b, scale: 0.75, in_len: inp };
        let loss = |x: &[f64], a: &[f64], b: &[f64]| {
            let y = Layer { a, b, ..layer }.forward(x);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let [dx, da, db] = layer.backward(&dy, &x);
        assert_grad("dx", &dx, &x, |x| loss(x, &a, &b));
        assert_grad("da", &da, &a, |a| loss(&x, a, &b));
        assert_grad("db", &db, &b, |b| loss(&x, &a, b));
    }

    /// With `a` the identity and a scale of one, `b` is a change of the whole weight: its gradient is the weight's.
    #[test]
    fn an_adapter_of_full_rank_has_the_gradient_of_the_weight() {
        for device in devices() {
            let mut case = case(&device, [29, 23, 20, 20]);
            for (i, x) in case.a.as_mut_slice().iter_mut().enumerate() {
                *x = f32::from(i % 20 == i / 20);
            }
            let [w, a, b] = [&case.w, &case.a, &case.b].map(|w| Packed::of_weight(w, Dtype::F32));
            let mut y = Tensor::uninit(&device, &[29, 23]);
            let u = forward(&mut y, &case.x, &w, None, [&a, &b], 1.0);
            assert_same_bits("u", u.as_slice(), case.x.as_slice());
            let [mut dx, mut da] = [[29, 20], [20, 20]].map(|s| Tensor::zeros(&device, &s));
            let [mut db, mut dw] = [0; 2].map(|_| Tensor::zeros(&device, &[23, 20]));
            let (to, weights) = ([&mut da, &mut db], [&case.a, &case.b]);
            backward(&mut dx, to, &case.dy, &case.x, &u, &case.w, weights, 1.0, false);
            matmul::backward_weight(&mut dw, &case.dy, &case.x);
            assert_same_bits("db", db.as_slice(), dw.as_slice());
        }
    }

    #[test]
    fn a_second_matrix_of_zeros_leaves_the_product_as_it_is() {
        for device in devices() {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let mut case = case(&device, [37, 47, 129, 8]);
                case.b.fill(0.0);
                let [y, _] = case.forward(dtype);
                let mut want = Tensor::uninit(&device, y.shape());
                let w = Packed::of_weight(&case.w, dtype);
                matmul::forward(&mut want, &case.x.to_dtype(dtype), &w, Some(&case.bias));
                assert_same_bits("y", y.as_slice(), want.as_slice());
            }
        }
    }

    #[test]
    fn a_merged_weight_gives_the_same_product() {
        for device in devices() {
            for shape in SHAPES {
                let mut case = case(&device, shape);
                let [y, _] = case.forward(Dtype::F32);
                merge(&mut case.w, [&case.a, &case.b], SCALE);
                let mut merged = Tensor::uninit(&device, y.shape());
                let w = Packed::of_weight(&case.w, Dtype::F32);
                matmul::forward(&mut merged, &case.x, &w, Some(&case.bias));
                let want: Vec<f64> = merged.as_slice().iter().map(|&y| f64::from(y)).collect();
                assert_close(&format!("{shape:?}"), y.as_slice(), &want, F32);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_company() {
        for device in devices() {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let case = case(&device, [64, 53, 331, 16]);
                let [all, _] = case.forward(dtype);
                for (start, end) in [(0, 1), (63, 64), (3, 5), (10, 17), (1, 64), (20, 32)] {
                    let x = case.x.rows_range(start..end);
                    let dy = case.dy.rows_range(start..end);
                    let [w, bias, a, b] =
                        [&case.w, &case.bias, &case.a, &case.b].map(Tensor::clone);
                    let [part, _] = Case { x, dy, w, bias, a, b }.forward(dtype);
                    let want = all.rows_range(start..end);
                    assert_same_bits(&format!("{start}..{end}"), part.as_slice(), want.as_slice());
                }
            }
        }
    }

    #[test]
    fn micro_batches_in_order_give_the_bits_of_one_batch() {
        for device in devices() {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let case = case(&device, [61, 23, 37, 8]);
                let [_, whole_a, whole_b] = case.backward(dtype);
                let [_, u] = case.forward(dtype);
                let [mut da, mut db] =
                    [&case.a, &case.b].map(|w| Tensor::zeros(&device, w.shape()));
                for (start, end) in [(0, 1), (1, 20), (20, 20), (20, 55), (55, 61)] {
                    let [x, dy] =
                        [&case.x, &case.dy].map(|t| t.rows_range(start..end).to_dtype(dtype));
                    let mut dx = Tensor::zeros(&device, x.shape());
                    let (to, weights) = ([&mut da, &mut db], [&case.a, &case.b]);
                    let u = u.rows_range(start..end);
                    backward(&mut dx, to, &dy, &x, &u, &case.w, weights, SCALE, false);
                }
                assert_same_bits("da", da.as_slice(), whole_a.as_slice());
                assert_same_bits("db", db.as_slice(), whole_b.as_slice());
            }
        }
    }

    /// Two roundings to 8 bits of precision on the way, of terms near one.
    #[test]
    fn bf16_is_the_product_of_rounded_operands() {
        let tol = Tol { abs: 2e-2, rel: 2e-2 };
        let rounded = |t: &Tensor| -> Vec<f64> {
            t.as_slice().iter().map(|&x| f64::from(bf16::from_f32(x).to_f32())).collect()
        };
        for device in devices() {
            let case = case(&device, [9, 35, 70, 8]);
            let [x, dy, w] = [&case.x, &case.dy, &case.w].map(rounded);
            let [a, b] = [&case.a, &case.b].map(rounded);
            let bias: Vec<f64> = case.bias.as_slice().iter().map(|&x| f64::from(x)).collect();
            let layer =
                Layer { w: &w, bias: Some(&bias[..]), a: &a, b: &b, scale: 0.75, in_len: 70 };
            let [y, u] = case.forward(Dtype::Bf16);
            assert_eq!((y.dtype(), u.dtype()), (Dtype::F32, Dtype::Bf16));
            assert_close("y", y.as_slice(), &layer.forward(&x), tol);
            let want = layer.backward(&dy, &x);
            for (got, want) in case.backward(Dtype::Bf16).iter().zip(want) {
                assert_close("gradient", got.as_slice(), &want, Tol { abs: 0.1, rel: 2e-2 });
            }
        }
    }

    #[test]
    fn a_second_backward_doubles_the_gradients() {
        let device = Device::cpu(1);
        let case = case(&device, [2, 3, 4, 2]);
        let [_, once_a, once_b] = case.backward(Dtype::F32);
        let [_, u] = case.forward(Dtype::F32);
        let (mut da, mut db, mut dx) = (once_a.clone(), once_b.clone(), case.x.clone());
        let (to, weights) = ([&mut da, &mut db], [&case.a, &case.b]);
        backward(&mut dx, to, &case.dy, &case.x, &u, &case.w, weights, SCALE, true);
        for (twice, once) in [(&da, &once_a), (&db, &once_b)] {
            let want: Vec<f64> = once.as_slice().iter().map(|&x| 2.0 * f64::from(x)).collect();
            assert_close("twice", twice.as_slice(), &want, F32);
        }
    }

    #[test]
    fn an_empty_batch_is_a_no_op() {
        for device in devices() {
            let case = case(&device, [0, 9, 5, 2]);
            let [_, da, db] = case.backward(Dtype::F32);
            assert!(da.as_slice().iter().chain(db.as_slice()).all(|&x| x == 0.0));
        }
    }

    #[test]
    #[should_panic(expected = "`a` and `b` must be of one rank")]
    fn matrices_of_two_ranks_panic() {
        let device = Device::cpu(1);
        let Case { x, w, a, .. } = case(&device, [2, 3, 4, 2]);
        let [w, a, b] =
            [&w, &a, &Tensor::zeros(&device, &[3, 1])].map(|w| Packed::of_weight(w, Dtype::F32));
        forward(&mut Tensor::zeros(&device, &[2, 3]), &x, &w, None, [&a, &b], SCALE);
    }
}
