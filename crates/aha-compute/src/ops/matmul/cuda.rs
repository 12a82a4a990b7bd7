//! Products on a device, by its own library; few rows by a kernel of ours where that has the same bits.
//!
//! Factors are both f32 or both bf16. A row of the result has the same bits in any company: see
//! [`Product`](crate::cuda::Product).

use super::few_rows::{self, Part, Rows};
use super::{Packed, Place, fp8};
use crate::Tensor;
use crate::cuda::{Context, Error, Kind};
use crate::ops::cuda::{column_sums, convert};

/// As the op's [`forward_all`](super::forward_all).
pub(super) fn forward_all(
    cx: &Context,
    ys: &mut [Tensor],
    x: &Tensor,
    weights: &[(&Packed, Option<&Tensor>)],
) -> Result<(), Error> {
    let Some((first, _)) = weights.first() else { return Ok(()) };
    if weights.iter().any(|(w, _)| matches!(w.place, Place::Fp8(_))) {
        for (y, (w, bias)) in ys.iter_mut().zip(weights) {
            match w.place {
                Place::Fp8(_) => fp8::forward(cx, y, x, w.quanta(), *bias, false)?,
                _ => forward_all(cx, std::slice::from_mut(y), x, &[(*w, *bias)])?,
            }
        }
        return Ok(());
    }
    let rows = Rows { x: x.view(), m: x.len() / first.in_len.max(1), k: first.in_len };
    // A bias is added in the result's kind.
    let mut converted = Vec::new();
    for (y, (_, bias)) in ys.iter().zip(weights) {
        converted.push(match bias {
            Some(bias) if bias.view().kind() != y.view().kind() => {
                let mut converted = cx.buffer(y.view().kind(), bias.len())?;
                convert(cx, &mut converted.view_mut(), bias.view())?;
                Some(converted)
            }
            _ => None,
        });
    }
    let mut parts = Vec::new();
    for ((y, (w, bias)), converted) in ys.iter_mut().zip(weights).zip(&converted) {
        let bias = converted.as_ref().map(|bias| bias.view()).or(bias.map(Tensor::view));
        parts.push(Part { c: y.view_mut(), n: w.out_len, w: w.on_gpu().view(), bias });
    }
    if few_rows::multiply(cx, rows, &parts)? {
        return Ok(());
    }
    for mut part in parts {
        if weights.len() == 1 || !few_rows::multiply(cx, rows, std::slice::from_ref(&part))? {
            let (x, w, dims) = ((rows.x, false), (part.w, true), [rows.m, part.n, rows.k]);
            cx.product(&mut part.c, dims, x, w, part.bias, (1.0, 0.0))?;
        }
    }
    Ok(())
}

/// As the op's [`forward_add`](super::forward_add).
pub(super) fn forward_add(
    cx: &Context,
    y: &mut Tensor,
    x: &Tensor,
    w: &Packed,
) -> Result<(), Error> {
    if let Place::Fp8(_) = w.place {
        return fp8::forward(cx, y, x, w.quanta(), None, true);
    }
    let dims = [x.len() / w.in_len.max(1), w.out_len, w.in_len];
    let (x, w) = ((x.view(), false), (w.on_gpu().view(), true));
    cx.product(&mut y.view_mut(), dims, x, w, None, (1.0, 1.0))
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
