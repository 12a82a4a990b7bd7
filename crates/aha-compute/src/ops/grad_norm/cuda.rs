//! The global norm on a device, without waiting for it.

use crate::cuda::{Arg, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{Segments, assert_aligned};

pub(crate) static SOURCE: Source =
    Source { name: "grad_norm.cu", text: include_str!("grad_norm.cu") };

/// Elements whose squares a block sums. A block is of one gradient.
const BLOCK_LEN: usize = 1 << 14;

/// Writes `sqrt(Σ g²)` over all of these f32 buffers to the one element of `norm` (f64), and the factor on gradients
/// that brings it down to `norm_max` to that of `scale` (f32). A norm that is NaN has a factor that is NaN.
pub fn global_norm(
    cx: &Context,
    norm: &mut ViewMut<'_>,
    scale: &mut ViewMut<'_>,
    grads: &[View<'_>],
    norm_max: f64,
) -> Result<(), Error> {
    norm.assert_is(Kind::F64, 1);
    scale.assert_is(Kind::F32, 1);
    let mut segments = Segments::of_blocks(BLOCK_LEN);
    for grad in grads {
        grad.assert_is(Kind::F32, grad.len());
        assert_aligned("a gradient", &Arg::from(grad));
        segments.push(grad.len(), [grad.at().0]);
    }
    let block_count = segments.block_count();
    let partial = cx.buffer(Kind::F64, block_count)?;
    let (table, count) = segments.upload(cx)?;
    let args = [Arg::from(&partial.view()), Arg::from(&table.view()), count];
    // SAFETY: `partial` has an element for each block, which stays within its gradient.
    unsafe { cx.launch(&squares_plan(block_count), &args)? };
    let args = [
        Arg::from(&*norm),
        Arg::from(&*scale),
        Arg::from(&partial.view()),
        Arg::size(block_count),
        Arg::F64(norm_max),
    ];
    // SAFETY: lengths are checked above.
    unsafe { cx.launch(&Plan::new(&SOURCE, "finish_norm", 1, 256), &args) }
}

fn squares_plan(block_count: usize) -> Plan {
    Plan::new(&SOURCE, "sum_of_squares", block_count, 256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_fits, contexts, upload_noise};
    use crate::ops::grad_norm::clip_scale;

    #[test]
    fn the_norm_is_that_of_all_elements_in_both_orders() {
        let lens = [3 * 37, 0, 40_000, 1, 16_384];
        let mut first = None;
        for cx in contexts() {
            let (buffers, values): (Vec<_>, Vec<_>) =
                (1..).zip(lens).map(|(seed, len)| upload_noise(&cx, seed, len, Kind::F32)).unzip();
            let grads: Vec<View<'_>> = buffers.iter().map(|buffer| buffer.view()).collect();
            let want = values.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
            for norm_max in [1.0, 1e6] {
                let (mut norm, mut scale) =
                    (cx.buffer(Kind::F64, 1).unwrap(), cx.buffer(Kind::F32, 1).unwrap());
                let (to_norm, to_scale) = (&mut norm.view_mut(), &mut scale.view_mut());
                global_norm(&cx, to_norm, to_scale, &grads, norm_max).unwrap();
                let got = cx.download::<f64>(norm.view()).unwrap()[0];
                assert!((got - want).abs() <= 1e-12 * want, "{got} {want}");
                let factor = cx.download::<f32>(scale.view()).unwrap()[0];
                assert_eq!(factor, clip_scale(got, norm_max));
                assert_eq!(got.to_bits(), *first.get_or_insert(got.to_bits()));
            }
        }
    }

    #[test]
    fn broken_gradients_show() {
        let cx = &contexts()[0];
        for broken in [f32::NAN, f32::INFINITY] {
            let grad = cx.upload(&[1.0, broken]).unwrap();
            let (mut norm, mut scale) =
                (cx.buffer(Kind::F64, 1).unwrap(), cx.buffer(Kind::F32, 1).unwrap());
            let (to_norm, to_scale) = (&mut norm.view_mut(), &mut scale.view_mut());
            global_norm(cx, to_norm, to_scale, &[grad.view()], 1.0).unwrap();
            assert!(!cx.download::<f64>(norm.view()).unwrap()[0].is_finite());
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for len in [1, 8_000_000_000_usize] {
            assert_fits(&squares_plan(len.div_ceil(BLOCK_LEN)));
        }
    }
}
