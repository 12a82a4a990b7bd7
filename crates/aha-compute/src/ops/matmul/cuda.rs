//! Products on a device, by its own library; few rows by a kernel of ours where that has the same bits.
//!
//! Factors are both f32 or both bf16. A row of the result has the same bits in any company: see
//! [`Product`](crate::cuda::Product).

use super::few_rows::{self, Operands};
use super::{Packed, Place, fp8};
use crate::Tensor;
use crate::cuda::{Context, Error, Kind};
use crate::ops::cuda::{column_sums, convert};

/// As the op's [`forward`](super::forward), or added to what `y` holds.
pub(super) fn forward(
    cx: &Context,
    y: &mut Tensor,
    x: &Tensor,
    w: &Packed,
    bias: Option<&Tensor>,
    accumulate: bool,
) -> Result<(), Error> {
    if let Place::Fp8(_) = w.place {
        return fp8::forward(cx, y, x, w.quanta(), bias, accumulate);
    }
    let dims = [x.len() / w.in_len.max(1), w.out_len, w.in_len];
    let mut y = y.view_mut();
    // The library adds a bias of the result's kind.
    let converted = match bias.map(Tensor::view).filter(|bias| bias.kind() != y.kind()) {
        Some(bias) => {
            let mut converted = cx.buffer(y.kind(), bias.len())?;
            convert(cx, &mut converted.view_mut(), bias)?;
            Some(converted)
        }
        _ => None,
    };
    let bias = converted.as_ref().map(|bias| bias.view()).or(bias.map(Tensor::view));
    let (x, w) = (x.view(), w.on_gpu().view());
    if !accumulate && few_rows::multiply(cx, &mut y, &Operands { dims, x, w, bias })? {
        return Ok(());
    }
    let factors = (1.0, if accumulate { 1.0 } else { 0.0 });
    cx.product(&mut y, dims, (x, false), (w, true), bias, factors)
}

/// As the op's [`backward_input`](super::backward_input); `w` is of the kind of `dy`.
pub(super) fn backward_input(
    cx: &Context,
    dx: &mut Tensor,
    dy: &Tensor,
    w: &Tensor,
    accumulate: bool,
) -> Result<(), Error> {
    let dims = [dy.len() / w.rows().max(1), w.cols(), w.rows()];
    let factors = (1.0, if accumulate { 1.0 } else { 0.0 });
    cx.product(&mut dx.view_mut(), dims, (dy.view(), false), (w.view(), false), None, factors)
}

/// As the op's [`backward_weight`](super::backward_weight).
pub(super) fn backward_weight(
    cx: &Context,
    dw: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
) -> Result<(), Error> {
    let dims = [dw.rows(), dw.cols(), dy.len() / dw.rows().max(1)];
    cx.product(&mut dw.view_mut(), dims, (dy.view(), true), (x.view(), false), None, (1.0, 1.0))
}

/// As the op's [`backward_bias`](super::backward_bias).
pub(super) fn backward_bias(cx: &Context, db: &mut Tensor, dy: &Tensor) -> Result<(), Error> {
    db.view().assert_is(Kind::F32, db.len());
    column_sums(cx, &mut db.view_mut(), dy.view())
}
