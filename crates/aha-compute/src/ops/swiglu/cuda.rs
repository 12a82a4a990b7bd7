//! SwiGLU's gating on a device.

use crate::cuda::{Arg, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{assert_aligned, assert_float, flat_plan};

pub(crate) static SOURCE: Source = Source { name: "swiglu.cu", text: include_str!("swiglu.cu") };

/// As the op's [`forward`](super::forward). All buffers are of one kind, f32 or bf16.
pub fn forward(
    cx: &Context,
    y: &mut ViewMut<'_>,
    gate: View<'_>,
    up: View<'_>,
) -> Result<(), Error> {
    let (kind, len) = (gate.kind(), gate.len());
    y.assert_is(kind, len);
    up.assert_is(kind, len);
    let args = [Arg::from(&*y), Arg::from(&gate), Arg::from(&up), Arg::U64(len as u64)];
    args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&forward_plan(kind, len), &args) }
}

/// As the op's [`backward`](super::backward). Gradients are of one kind, which is that of `gate` and `up` or f32.
pub fn backward(
    cx: &Context,
    dgate: &mut ViewMut<'_>,
    dup: &mut ViewMut<'_>,
    dy: View<'_>,
    gate: View<'_>,
    up: View<'_>,
) -> Result<(), Error> {
    let (kind, len) = (gate.kind(), gate.len());
    up.assert_is(kind, len);
    dy.assert_is(dy.kind(), len);
    dgate.assert_is(dy.kind(), len);
    dup.assert_is(dy.kind(), len);
    let args = [
        Arg::from(&*dgate),
        Arg::from(&*dup),
        Arg::from(&dy),
        Arg::from(&gate),
        Arg::from(&up),
        Arg::U64(len as u64),
    ];
    args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    // SAFETY: as above.
    unsafe { cx.launch(&backward_plan([dy.kind(), kind], len), &args) }
}

fn forward_plan(kind: Kind, len: usize) -> Plan {
    assert_float("gate", kind);
    flat_plan(&SOURCE, format!("swiglu_forward_{kind}"), len)
}

fn backward_plan([d, x]: [Kind; 2], len: usize) -> Plan {
    assert!(d == x || d == Kind::F32, "gradients of {d} for values of {x}");
    flat_plan(&SOURCE, format!("swiglu_backward_{d}_{x}"), len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        MODELS, ROWS, assert_fits, assert_same_bits, contexts, download, rounding, upload_noise,
    };
    use crate::ops::swiglu;
    use crate::{Device, Dtype, Tensor};

    #[test]
    fn kernels_have_the_processors_bits() {
        let device = Device::cpu(1);
        for len in [0, 1, 7, 8, 37, 2048, 5003] {
            for (kind, dtype) in [(Kind::F32, Dtype::F32), (Kind::Bf16, Dtype::Bf16)] {
                let tensor = |seed| Tensor::from_slice(&device, &[len], &rounding(seed, len, kind));
                let [gate, up, dy] = [1, 2, 3].map(tensor);
                let mut want = Tensor::uninit_as(&device, dtype, &[len]);
                let [mut want_dgate, mut want_dup] =
                    [0; 2].map(|_| Tensor::uninit(&device, &[len]));
                swiglu::forward(&mut want, &gate, &up);
                swiglu::backward(&mut want_dgate, &mut want_dup, &dy, &gate, &up);
                let want = want.to_dtype(Dtype::F32);
                for cx in contexts() {
                    let upload = |seed, kind| upload_noise(&cx, seed, len, kind).0;
                    let (gate, up) = (upload(1, kind), upload(2, kind));
                    let mut y = cx.buffer(kind, len).unwrap();
                    forward(&cx, &mut y.view_mut(), gate.view(), up.view()).unwrap();
                    assert_same_bits("y", &download(&cx, &y), want.as_slice());
                    for d in [Kind::F32, kind] {
                        let dy = cx.upload(&rounding(3, len, kind)).unwrap();
                        let dy = if d == Kind::F32 { dy } else { upload(3, d) };
                        let [mut dgate, mut dup] = [0; 2].map(|_| cx.buffer(d, len).unwrap());
                        let (to_gate, to_up) = (&mut dgate.view_mut(), &mut dup.view_mut());
                        backward(&cx, to_gate, to_up, dy.view(), gate.view(), up.view()).unwrap();
                        for (name, got, want) in
                            [("dgate", &dgate, &want_dgate), ("dup", &dup, &want_dup)]
                        {
                            let dtype = if d == Kind::F32 { Dtype::F32 } else { dtype };
                            let want = want.clone().to_dtype(dtype).to_dtype(Dtype::F32);
                            assert_same_bits(name, &download(&cx, got), want.as_slice());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for (model, rows) in MODELS.iter().flat_map(|model| ROWS.map(|rows| (model, rows))) {
            assert_fits(&forward_plan(Kind::Bf16, rows * model.ffn));
            assert_fits(&backward_plan([Kind::F32, Kind::Bf16], rows * model.ffn));
        }
    }
}
