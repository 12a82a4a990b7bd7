//! The head beside another model's on a device: divergences from what that predicts, and their gradients. Where
//! the vocabularies have other sizes, both distributions are those of the tokens that they have in common.

use std::ops::Range;

use super::{Head, SOURCE, Stats, parts_plan, statistics_of};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, View, ViewMut};
use crate::ops::lm_head::BLOCK_LEN;

/// Lanes of sums.
const LANES: usize = 16;

/// Another model's activations and head: distributions that those here are held against. Both of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Other<'a> {
    /// Activations `(T, D)`, a row for each of the tokens.
    pub hidden: View<'a>,
    /// The weight `(U, D)`.
    pub w: View<'a>,
}

impl<'a> Other<'a> {
    pub(super) fn head(self, rows: usize) -> Head<'a> {
        Head::new(self.hidden, self.w, rows)
    }
}

/// Rows of logits of both models for the same tokens.
pub(super) struct Pair {
    /// The other model's.
    other: Buffer,
    /// Those of the tokens that both have.
    stats: [Stats; 2],
    rows: usize,
    /// Tokens that both have, and those of each.
    cols: usize,
    sizes: [usize; 2],
    inv_temperature: f32,
}

impl Pair {
    /// Of the rows `chunk`, of whose logits `own` has those of `head`.
    pub(super) fn new(
        cx: &Context,
        own: View<'_>,
        head: &Head<'_>,
        other: &Head<'_>,
        chunk: &Range<usize>,
        inv_temperature: f32,
    ) -> Result<Pair, Error> {
        let (rows, sizes) = (chunk.len(), [head.vocab, other.vocab]);
        let cols = sizes[0].min(sizes[1]);
        let other = other.logits(cx, chunk)?;
        let stats =
            |of, stride| statistics_of(cx, of, [cols, stride], inv_temperature, None, false);
        let stats = [stats(own, sizes[0])?, stats(other.view(), sizes[1])?];
        Ok(Pair { other, stats, rows, cols, sizes, inv_temperature })
    }

    /// What kernels take of both, the logits first.
    fn args(&self, own: View<'_>) -> ([Arg; 4], [Arg; 4]) {
        own.assert_is(Kind::F32, self.rows * self.sizes[0]);
        let [own_stats, other_stats] = self.stats.each_ref().map(|stats| Arg::from(&stats.rows()));
        let [cols, own_size, other_size] = [self.cols, self.sizes[0], self.sizes[1]].map(Arg::size);
        let buffers = [Arg::from(&own), Arg::from(&self.other.view()), own_stats, other_stats];
        (buffers, [cols, own_size, other_size, Arg::F32(self.inv_temperature)])
    }

    /// The divergence of each row.
    pub(super) fn divergence(
        &self,
        cx: &Context,
        divergence: &mut ViewMut<'_>,
        own: View<'_>,
    ) -> Result<(), Error> {
        divergence.assert_is(Kind::F32, self.rows);
        let sums = cx.buffer(Kind::F32, self.rows * self.cols.div_ceil(BLOCK_LEN) * LANES)?;
        let sums = Arg::from(&sums.view());
        let (buffers, sizes) = self.args(own);
        let plan = parts_plan("divergence_parts", self.rows, self.cols);
        // SAFETY: lengths are checked above, and there is a sum for each lane of each block.
        unsafe {
            cx.launch(&plan, &[&[sums][..], &buffers, &sizes].concat())?;
            let join = Plan::new(&SOURCE, "join_divergence", self.rows, 32);
            cx.launch(&join, &[Arg::from(&*divergence), sums, sizes[0]])
        }
    }

    /// What the divergences, whose gradients are `ddivergence`, add to the gradients of the own logits.
    pub(super) fn gradient(
        self,
        cx: &Context,
        own: View<'_>,
        ddivergence: View<'_>,
    ) -> Result<Gradient, Error> {
        ddivergence.assert_is(Kind::F32, self.rows);
        let mut divergence = cx.buffer(Kind::F32, self.rows)?;
        self.divergence(cx, &mut divergence.view_mut(), own)?;
        let ([own, other, own_stats, other_stats], sizes) = self.args(own);
        let of_rows = [Arg::from(&divergence.view()), Arg::from(&ddivergence)];
        let plan = parts_plan("divergence_gradient", self.rows, self.cols);
        let buffers = [other, own, own_stats, other_stats];
        // SAFETY: lengths are checked above; the other model's logits, which it overwrites, are this pair's.
        unsafe { cx.launch(&plan, &[&buffers[..], &of_rows, &sizes].concat())? };
        Ok(Gradient(self))
    }
}

/// What divergences add to the gradients of logits, in the place of the other model's.
pub(super) struct Gradient(Pair);

impl Gradient {
    /// Adds it, over the tokens that both models have.
    pub(super) fn add_to(&self, cx: &Context, dlogits: &mut ViewMut<'_>) -> Result<(), Error> {
        let Gradient(pair) = self;
        let ([own, other, ..], [cols, own_size, other_size, _]) = pair.args(dlogits.as_view());
        let plan = parts_plan("add_rows", pair.rows, pair.cols);
        // SAFETY: lengths are checked above.
        unsafe { cx.launch(&plan, &[own, other, cols, own_size, other_size]) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, Grads, backward, forward};
    use super::*;
    use crate::ops::check::{
        F32, Tol, assert_close, assert_same_bits, contexts, download, rounding, upload_noise, wide,
    };
    use crate::ops::lm_head;
    use crate::ops::matmul::Packed;
    use crate::{Device, Dtype, Tensor};

    const INV_TEMPERATURE: f32 = 1.25;

    /// Rows, both widths, both vocabularies.
    type Shape = [usize; 5];
    type Got = [Vec<f32>; 5];

    fn run(cx: &Context, kind: Kind, shape: Shape, ids: &[u32]) -> Got {
        let [rows, width, other_width, vocab, other_vocab] = shape;
        let upload = |seed, len, kind| upload_noise(cx, seed, len, kind).0;
        let (hidden, w) = (upload(1, rows * width, kind), upload(2, vocab * width, kind));
        let other_hidden = upload(6, rows * other_width, kind);
        let other_w = upload(7, other_vocab * other_width, kind);
        let other = Other { hidden: other_hidden.view(), w: other_w.view() };
        let targets = cx.upload(ids).unwrap();
        let [hidden, w, targets] = [&hidden, &w, &targets].map(Buffer::view);
        let asked = Asked { hidden, w, targets, inv_temperature: INV_TEMPERATURE };
        let mut results = [0; 3].map(|_| cx.buffer(Kind::F32, rows).unwrap());
        let [a, b, c] = &mut results.each_mut().map(Buffer::view_mut);
        forward(cx, [a, b], Some((c, other)), asked).unwrap();
        let [dlogp, dentropy, dd] = [3, 4, 8].map(|seed| upload(seed, rows, Kind::F32));
        let mut dhidden = cx.buffer(Kind::F32, rows * width).unwrap();
        let mut dw = upload(5, vocab * width, Kind::F32);
        let (dlogp, dentropy) = (dlogp.view(), Some(dentropy.view()));
        let grads = Grads { dlogp, dentropy, ddivergence: Some((dd.view(), other)) };
        let (to, dw_to) = (&mut dhidden.view_mut(), &mut dw.view_mut());
        backward(cx, to, Some(dw_to), grads, asked).unwrap();
        let [a, b, c] = results;
        [a, b, c, dhidden, dw].map(|buffer| download(cx, &buffer))
    }

    fn expected(kind: Kind, shape: Shape, ids: &[u32]) -> Got {
        let [rows, width, other_width, vocab, other_vocab] = shape;
        let device = Device::cpu(1);
        let dtype = if kind == Kind::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let tensor = |seed, shape: &[usize], kind| {
            Tensor::from_slice(&device, shape, &rounding(seed, shape.iter().product(), kind))
        };
        let (hidden, w) = (tensor(1, &[rows, width], kind), tensor(2, &[vocab, width], kind));
        let other_hidden = tensor(6, &[rows, other_width], kind).to_dtype(dtype);
        let other_w = tensor(7, &[other_vocab, other_width], kind);
        let (head, other_head) = (Packed::of_weight(&w, dtype), Packed::of_weight(&other_w, dtype));
        let other = lm_head::Other { hidden: &other_hidden, head: &other_head };
        let hidden = hidden.to_dtype(dtype);
        let mut results = [0; 3].map(|_| Tensor::uninit(&device, &[rows]));
        let to = results.each_mut();
        lm_head::forward_beside(to, other, &hidden, &head, ids, INV_TEMPERATURE);
        let [dlogp, dentropy, dd] = [3, 4, 8].map(|seed| rounding(seed, rows, Kind::F32));
        let mut dhidden = Tensor::uninit(&device, &[rows, width]);
        let mut dw = tensor(5, &[vocab, width], Kind::F32);
        let grads = lm_head::Grads {
            dlogp: &dlogp,
            dentropy: Some(&dentropy),
            ddivergence: Some((&dd, other)),
        };
        let to = &mut dhidden;
        lm_head::backward(to, Some(&mut dw), grads, &hidden, &head, &w, ids, INV_TEMPERATURE);
        let [a, b, c] = results;
        [a, b, c, dhidden, dw].map(|tensor| tensor.as_slice().to_vec())
    }

    #[test]
    fn divergences_and_their_gradients_match_the_processors() {
        for shape in
            [[1, 3, 2, 1, 1], [9, 37, 20, 101, 101], [5, 40, 8, 1032, 1040], [4, 8, 16, 9000, 600]]
        {
            let ids: Vec<u32> = (0..shape[0]).map(|row| (row * 31 % shape[3]) as u32).collect();
            // A gradient of a logit may round to the other neighbour in bf16.
            let bf16 = Tol { abs: 2e-2, rel: 2e-2 };
            for (kind, tol) in [(Kind::F32, F32), (Kind::Bf16, bf16)] {
                let want = expected(kind, shape, &ids);
                let mut first: Option<Got> = None;
                for cx in contexts() {
                    let got = run(&cx, kind, shape, &ids);
                    let names = ["logp", "entropy", "divergence", "dhidden", "dw"];
                    for (name, (got, want)) in names.iter().zip(got.iter().zip(&want)) {
                        assert_close(name, got, &wide(want), tol);
                    }
                    let first = first.get_or_insert_with(|| got.clone());
                    got.iter().zip(first).for_each(|(a, b)| assert_same_bits("orders", a, b));
                }
            }
        }
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let cx = &contexts()[0];
        let (hidden, w) =
            (upload_noise(cx, 1, 30, Kind::Bf16).0, upload_noise(cx, 2, 600 * 10, Kind::Bf16).0);
        let targets = cx.upload(&[0u32, 1, 2]).unwrap();
        let mut results = [0; 3].map(|_| cx.buffer(Kind::F32, 3).unwrap());
        let other = Other { hidden: hidden.view(), w: w.view() };
        let [a, b, c] = &mut results.each_mut().map(Buffer::view_mut);
        let (hidden, w, targets) = (hidden.view(), w.view(), targets.view());
        let asked = Asked { hidden, w, targets, inv_temperature: 1.0 };
        forward(cx, [a, b], Some((c, other)), asked).unwrap();
        assert_eq!(download(cx, &results[2]), [0.0; 3]);
    }
}
