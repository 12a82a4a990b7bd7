//! AdamW on a device, over flat buffers: all weights that are decayed in one, the others in another.

use super::{Factors, Hyper};
use crate::cuda::{Arg, Context, Error, Kind, Source, View, ViewMut};
use crate::ops::cuda::{assert_aligned, flat_plan};

pub(crate) static SOURCE: Source = Source { name: "adamw.cu", text: include_str!("adamw.cu") };

/// Changes `value` by one step, the `step`-th counted from 1, along `gradient` times the one element of `scale`. Keeps
/// the moments `m` and `v`. All are f32; `copy` gets the new weights in bf16.
pub fn step(
    cx: &Context,
    [value, m, v]: [&mut ViewMut<'_>; 3],
    copy: Option<&mut ViewMut<'_>>,
    gradient: View<'_>,
    scale: View<'_>,
    hyper: &Hyper,
    step: u64,
    decays: bool,
) -> Result<(), Error> {
    let len = gradient.len();
    gradient.assert_is(Kind::F32, len);
    scale.assert_is(Kind::F32, 1);
    for view in [&*value, &*m, &*v] {
        view.assert_is(Kind::F32, len);
    }
    if let Some(copy) = &copy {
        copy.assert_is(Kind::Bf16, len);
    }
    // The kernel reads the scale from the device.
    let factors = Factors::new(hyper, step, decays, 1.0);
    let pointers = [
        Arg::from(&*value),
        Arg::from(&*m),
        Arg::from(&*v),
        Arg::of(copy.as_ref().map(|copy| copy.as_view())),
        Arg::from(&gradient),
        Arg::from(&scale),
    ];
    pointers[..5].iter().for_each(|arg| assert_aligned("a buffer", arg));
    let Factors { scale: _, keep, beta1, rest1, beta2, rest2, root_factor, eps, size } = factors;
    let numbers = [keep, beta1, rest1, beta2, rest2, root_factor, eps, size].map(Arg::F32);
    let args = [&pointers[..], &[Arg::U64(len as u64)], &numbers].concat();
    // SAFETY: kinds and lengths are checked above.
    unsafe { cx.launch(&flat_plan(&SOURCE, "adamw", len), &args) }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::adamw::AdamW;
    use crate::ops::check::{
        assert_fits, assert_same_bits, contexts, download, noise_tensor, upload_noise,
    };
    use crate::{Device, Grads, Params};

    const HYPER: Hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    #[test]
    fn steps_have_the_processors_bits() {
        let device = Device::cpu(1);
        for (shape, decays) in [(&[31, 67][..], true), (&[37], false)] {
            let len: usize = shape.iter().product();
            let mut params = Params::default();
            let id = params.push("weight", noise_tensor(&device, 1, shape));
            let mut grads = Grads::zeros(&device, &params);
            let mut adamw = AdamW::new(&params);
            let cxs = contexts();
            let mut states = cxs.each_ref().map(|cx| {
                let moments = [0; 2].map(|_| cx.zeros(Kind::F32, len).unwrap());
                (upload_noise(cx, 1, len, Kind::F32).0, moments, cx.zeros(Kind::Bf16, len).unwrap())
            });
            for (t, factor) in (1..).zip([0.5f32, 1.0, 0.03125, 2.0]) {
                *grads.get_mut(id) = noise_tensor(&device, 10 + t, shape);
                adamw.step(&mut params, &grads, &HYPER, factor);
                let want = params.value(id).as_slice();
                for (cx, (value, [m, v], copy)) in cxs.iter().zip(&mut states) {
                    let gradient = upload_noise(cx, 10 + t, len, Kind::F32).0;
                    let scale = cx.upload(&[factor]).unwrap();
                    let state = [&mut value.view_mut(), &mut m.view_mut(), &mut v.view_mut()];
                    let to = &mut copy.view_mut();
                    step(cx, state, Some(to), gradient.view(), scale.view(), &HYPER, t, decays)
                        .unwrap();
                    assert_same_bits("w", &download(cx, value), want);
                    assert_same_bits("m", &download(cx, m), adamw.moments(id).0.as_slice());
                    assert_same_bits("v", &download(cx, v), adamw.moments(id).1.as_slice());
                    let rounded: Vec<f32> =
                        want.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
                    assert_same_bits("copy", &download(cx, copy), &rounded);
                }
            }
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for len in [1, 8_000_000_000] {
            assert_fits(&flat_plan(&SOURCE, "adamw", len));
        }
    }
}
