//! RMSNorm on a device. A team of threads has a group of columns and reads it once.

use crate::cuda::{Arg, Context, Error, Kind, Plan, Source, View, ViewMut};
use crate::ops::cuda::{EIGHT, assert_aligned, assert_float, column_sums};

pub(crate) static SOURCE: Source =
    Source { name: "rms_norm.cu", text: include_str!("rms_norm.cu") };

/// Elements of a group that a thread holds.
const THREAD_LEN: usize = 32;
/// Threads of a team, from the smallest to the largest group.
const TEAMS: [usize; 3] = [32, 256, 512];
/// Groups that a team goes through in the backward pass.
const BACKWARD_GROUPS: usize = 32;

/// Columns of a group, at most.
pub const GROUP_LEN_MAX: usize = TEAMS[2] * THREAD_LEN;

/// As the op's [`forward`](super::forward). `x` and `y` are f32 or bf16; the rest is f32.
pub fn forward(
    cx: &Context,
    y: &mut ViewMut<'_>,
    r: &mut ViewMut<'_>,
    x: View<'_>,
    w: View<'_>,
    eps: f32,
) -> Result<(), Error> {
    launch_forward(cx, y, r, None, x, None, w, eps)
}

/// As the op's [`forward_add`](super::forward_add). `sum` and `residual` are f32.
pub fn forward_add(
    cx: &Context,
    y: &mut ViewMut<'_>,
    r: &mut ViewMut<'_>,
    sum: &mut ViewMut<'_>,
    x: View<'_>,
    residual: View<'_>,
    w: View<'_>,
    eps: f32,
) -> Result<(), Error> {
    sum.assert_is(Kind::F32, x.len());
    residual.assert_is(Kind::F32, x.len());
    launch_forward(cx, y, r, Some(sum), x, Some(residual), w, eps)
}

/// As the op's [`backward`](super::backward). `x` and `dy` are f32 or bf16; `dx` and `dw` are f32.
pub fn backward(
    cx: &Context,
    dx: &mut ViewMut<'_>,
    dw: Option<&mut ViewMut<'_>>,
    dy: View<'_>,
    x: View<'_>,
    w: View<'_>,
    r: View<'_>,
) -> Result<(), Error> {
    let (len, groups) = check(w, x);
    dx.assert_is(Kind::F32, x.len());
    dy.assert_is(dy.kind(), x.len());
    r.assert_is(Kind::F32, groups);
    let partial = match &dw {
        Some(dw) => {
            dw.assert_is(Kind::F32, len);
            Some(cx.buffer(Kind::F32, groups.div_ceil(BACKWARD_GROUPS) * len)?)
        }
        None => None,
    };
    let partial_view = partial.as_ref().map(|partial| partial.view());
    let plan = backward_plan([dy.kind(), x.kind()], groups, len);
    let args = [
        Arg::from(&*dx),
        Arg::of(partial_view),
        Arg::from(&dy),
        Arg::from(&x),
        Arg::from(&w),
        Arg::from(&r),
        Arg::size(groups),
        Arg::size(len),
    ];
    check_aligned(len, &args[..5]);
    // SAFETY: kinds are those of the kernel's name, lengths are checked above.
    unsafe { cx.launch(&plan, &args)? };
    match (dw, partial_view) {
        (Some(dw), Some(partial)) if groups > 0 => column_sums(cx, dw, partial),
        _ => Ok(()),
    }
}

fn launch_forward(
    cx: &Context,
    y: &mut ViewMut<'_>,
    r: &mut ViewMut<'_>,
    sum: Option<&mut ViewMut<'_>>,
    x: View<'_>,
    residual: Option<View<'_>>,
    w: View<'_>,
    eps: f32,
) -> Result<(), Error> {
    let (len, groups) = check(w, x);
    y.assert_is(y.kind(), x.len());
    r.assert_is(Kind::F32, groups);
    let plan = forward_plan([y.kind(), x.kind()], groups, len);
    let args = [
        Arg::from(&*y),
        Arg::of(sum.as_ref().map(|sum| sum.as_view())),
        Arg::from(&x),
        Arg::of(residual),
        Arg::from(&w),
        Arg::from(&*r),
    ];
    check_aligned(len, &args[..5]);
    let [y, sum, x, residual, w, r] = args;
    let args = [y, r, sum, x, residual, w, Arg::size(groups), Arg::size(len), Arg::F32(eps)];
    // SAFETY: kinds are those of the kernel's name, lengths are checked above and by the caller.
    unsafe { cx.launch(&plan, &args) }
}

/// Columns of a group, and groups.
fn check(w: View<'_>, x: View<'_>) -> (usize, usize) {
    let len = w.len();
    w.assert_is(Kind::F32, len);
    assert!((1..=GROUP_LEN_MAX).contains(&len), "groups of {len}: at most {GROUP_LEN_MAX}");
    assert!(x.len().is_multiple_of(len), "{} elements are no groups of {len}", x.len());
    (len, x.len() / len)
}

fn check_aligned(len: usize, args: &[Arg]) {
    if len.is_multiple_of(EIGHT) {
        args.iter().for_each(|arg| assert_aligned("a buffer", arg));
    }
}

/// Threads that share a group. Groups of no whole eights have the largest team.
fn team(len: usize) -> usize {
    if !len.is_multiple_of(EIGHT) {
        return TEAMS[2];
    }
    let fits = |team: &usize| team * THREAD_LEN >= len;
    TEAMS.into_iter().find(fits).unwrap_or(TEAMS[2])
}

fn forward_plan(kinds: [Kind; 2], groups: usize, len: usize) -> Plan {
    plan("forward", kinds, groups, len)
}

fn backward_plan(kinds: [Kind; 2], groups: usize, len: usize) -> Plan {
    plan("backward", kinds, groups.div_ceil(BACKWARD_GROUPS), len)
}

fn plan(pass: &str, [a, b]: [Kind; 2], team_count: usize, len: usize) -> Plan {
    assert_float("x", a);
    assert_float("y", b);
    let (team, is_whole) = (team(len), len.is_multiple_of(EIGHT));
    let threads = team.max(256);
    let name = format!("rms_norm_{pass}_{a}_{b}_{team}_{is_whole}");
    Plan::new(&SOURCE, name, team_count.div_ceil(threads / team), threads as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{
        F32, MODELS, ROWS, Tol, assert_close, assert_fits, assert_same_bits, contexts, download,
        rounding, upload_noise, wide,
    };
    use crate::ops::rms_norm;
    use crate::{Device, Tensor};

    const EPS: f32 = 1e-5;

    struct Got {
        y: Vec<f32>,
        sum: Vec<f32>,
        dx: Vec<f32>,
        dw: Vec<f32>,
    }

    /// On the device, with activations of this kind.
    fn run(cx: &Context, kind: Kind, groups: usize, len: usize) -> Got {
        let total = groups * len;
        let upload = |seed, len, kind| upload_noise(cx, seed, len, kind).0;
        let (x, residual) = (upload(1, total, kind), upload(2, total, Kind::F32));
        let (w, dy) = (upload(3, len, Kind::F32), upload(4, total, kind));
        let mut y = cx.buffer(kind, total).unwrap();
        let [mut sum, mut r] = [total, groups].map(|len| cx.buffer(Kind::F32, len).unwrap());
        forward_add(
            cx,
            &mut y.view_mut(),
            &mut r.view_mut(),
            &mut sum.view_mut(),
            x.view(),
            residual.view(),
            w.view(),
            EPS,
        )
        .unwrap();
        let mut again = cx.buffer(kind, total).unwrap();
        forward(cx, &mut again.view_mut(), &mut r.view_mut(), sum.view(), w.view(), EPS).unwrap();
        assert_same_bits("sum first", &download(cx, &again), &download(cx, &y));
        let (mut dx, mut dw) = (upload(5, total, Kind::F32), upload(6, len, Kind::F32));
        let dw_view = &mut dw.view_mut();
        let (dy, sum_view) = (dy.view(), sum.view());
        backward(cx, &mut dx.view_mut(), Some(dw_view), dy, sum_view, w.view(), r.view()).unwrap();
        let [y, sum, dx, dw] = [&y, &sum, &dx, &dw].map(|buffer| download(cx, buffer));
        Got { y, sum, dx, dw }
    }

    /// On the processor, of the same values in f32.
    fn expected(kind: Kind, groups: usize, len: usize) -> Got {
        let device = Device::cpu(1);
        let tensor = |seed, shape: &[usize], kind| {
            Tensor::from_slice(&device, shape, &rounding(seed, shape.iter().product(), kind))
        };
        let shape = [groups, len];
        let (x, dy) = (tensor(1, &shape, kind), tensor(4, &shape, kind));
        let [residual, mut dx] = [2, 5].map(|seed| tensor(seed, &shape, Kind::F32));
        let [w, mut dw] = [3, 6].map(|seed| tensor(seed, &[len], Kind::F32));
        let [mut y, mut sum] = [0; 2].map(|_| Tensor::uninit(&device, &shape));
        let mut r = Tensor::uninit(&device, &[groups]);
        rms_norm::forward_add(&mut y, &mut r, &mut sum, &x, &residual, &w, EPS);
        rms_norm::backward(&mut dx, Some(&mut dw), &dy, &sum, &w, &r);
        let [y, sum, dx, dw] = [y, sum, dx, dw].map(|tensor| tensor.as_slice().to_vec());
        Got { y, sum, dx, dw }
    }

    /// Shapes with every size of a team, of whole eights and not, with several blocks and partial sums of `dw`.
    const SHAPES: [(usize, usize); 7] =
        [(1, 1), (5, 37), (70, 64), (40, 1024), (3, 1032), (35, 1111), (2, 8200)];

    #[test]
    fn kernels_match_the_processor_in_both_kinds_and_orders() {
        for (groups, len) in SHAPES {
            for (kind, tol) in [(Kind::F32, F32), (Kind::Bf16, Tol::BF16)] {
                let want = expected(kind, groups, len);
                let mut first: Option<Got> = None;
                for cx in contexts() {
                    let got = run(&cx, kind, groups, len);
                    assert_close("y", &got.y, &wide(&want.y), tol);
                    assert_close("sum", &got.sum, &wide(&want.sum), F32);
                    assert_close("dx", &got.dx, &wide(&want.dx), F32);
                    assert_close("dw", &got.dw, &wide(&want.dw), F32);
                    let first = first.get_or_insert_with(|| run(&cx, kind, groups, len));
                    assert_same_bits("y", &got.y, &first.y);
                    assert_same_bits("dx", &got.dx, &first.dx);
                    assert_same_bits("dw", &got.dw, &first.dw);
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_company() {
        let cx = &contexts()[0];
        let (x, w) =
            (upload_noise(cx, 1, 70 * 896, Kind::Bf16).0, upload_noise(cx, 2, 896, Kind::F32).0);
        let run = |rows: std::ops::Range<usize>| {
            let mut y = cx.buffer(Kind::Bf16, rows.len() * 896).unwrap();
            let mut r = cx.buffer(Kind::F32, rows.len()).unwrap();
            let part = x.view().slice(rows.start * 896..rows.end * 896);
            forward(cx, &mut y.view_mut(), &mut r.view_mut(), part, w.view(), EPS).unwrap();
            download(cx, &y)
        };
        let all = run(0..70);
        for row in [0, 1, 33, 69] {
            assert_same_bits("row", &run(row..row + 1), &all[row * 896..(row + 1) * 896]);
        }
    }

    #[test]
    fn an_empty_batch_is_a_no_op_and_a_frozen_weight_has_no_gradient() {
        for cx in contexts() {
            let (w, mut dw) =
                (upload_noise(&cx, 1, 40, Kind::F32).0, upload_noise(&cx, 2, 40, Kind::F32).0);
            let before = download(&cx, &dw);
            let mut none = cx.buffer(Kind::F32, 0).unwrap();
            let mut dx = cx.buffer(Kind::F32, 0).unwrap();
            let view = || cx.buffer(Kind::F32, 0).unwrap();
            let (x, r) = (view(), view());
            forward(&cx, &mut none.view_mut(), &mut view().view_mut(), x.view(), w.view(), EPS)
                .unwrap();
            let dw_view = &mut dw.view_mut();
            let dx = &mut dx.view_mut();
            backward(&cx, dx, Some(dw_view), x.view(), x.view(), w.view(), r.view()).unwrap();
            backward(&cx, dx, None, x.view(), x.view(), w.view(), r.view()).unwrap();
            assert_same_bits("dw", &download(&cx, &dw), &before);
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for model in MODELS {
            for rows in ROWS {
                for (groups, len) in [(rows, model.hidden), (rows * model.heads, model.head_dim)] {
                    assert_fits(&forward_plan([Kind::Bf16, Kind::F32], groups, len));
                    assert_fits(&backward_plan([Kind::Bf16, Kind::F32], groups, len));
                }
            }
        }
        let plan = forward_plan([Kind::Bf16; 2], 1000, 896);
        assert_eq!((plan.grid, plan.block), ([125, 1, 1], [256, 1, 1]));
        assert_eq!(plan.kernel, "rms_norm_forward_bf16_bf16_32_true");
        let plan = backward_plan([Kind::F32, Kind::Bf16], 1000, 3584);
        assert_eq!((plan.grid, plan.block), ([32, 1, 1], [256, 1, 1]));
    }
}
