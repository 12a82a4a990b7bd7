//! Memory, captured work, copies and streams: what everything else stands on.

use aha_compute::cuda::Error as Cuda;
use aha_compute::cuda::{Context, Kind, Pinned, View, ViewMut, Workspace};
use aha_compute::ops::swiglu;

use crate::compare::differing;
use crate::finding::Outcome;
use crate::inputs::noise;
use crate::{Error, Findings, Part, Subject};

const LEN: usize = 10_007;

type Case = fn(&Context) -> Result<Outcome, Error>;

pub(crate) fn check(subject: &Subject, findings: &mut Findings<'_>) {
    let cases: [(&str, Case); 6] = [
        ("copies to the device and back", copies),
        ("memory that is freed is used again", reuse),
        ("out of memory is an error, and the device goes on", out_of_memory),
        ("pinned copies", pinned),
        ("captured work does what it did", captured),
        ("a stream waits for another", streams),
    ];
    for (name, case) in cases {
        findings.case(Part::Driver, name, || case(&subject.context()));
    }
}

fn copies(cx: &Context) -> Result<Outcome, Error> {
    let values = noise(1, LEN);
    let from = cx.upload(&values)?;
    let mut to = cx.zeros(Kind::F32, LEN)?;
    let zeros = cx.download::<f32>(to.view())?.iter().filter(|x| x.to_bits() != 0).count();
    cx.copy(&mut to.view_mut(), from.view())?;
    let wrong = differing(&cx.download::<f32>(to.view())?, &values);
    Ok(Outcome::none_of(zeros + wrong, "values are others"))
}

fn reuse(cx: &Context) -> Result<Outcome, Error> {
    for len in [LEN, 3 * LEN, LEN] {
        drop(cx.buffer(Kind::F32, len)?);
    }
    let before = cx.stats();
    for _ in 0..20 {
        drop((cx.buffer(Kind::F32, 3 * LEN)?, cx.buffer(Kind::F32, LEN)?));
    }
    let asked = cx.stats().alloc_count - before.alloc_count;
    cx.trim();
    let left = cx.stats();
    // One may be asked for: the two are in use at once for the first time.
    let wrong = usize::from(asked > 1) + usize::from(left.kept_bytes + left.in_use_bytes > 0);
    Ok(Outcome::none_of(wrong, format!("{asked} calls of the driver for 40 buffers")))
}

fn out_of_memory(cx: &Context) -> Result<Outcome, Error> {
    let memory = cx.driver().memory()?;
    let asked = cx.buffer(Kind::F32, memory.total_bytes / 4 + (1 << 20));
    let is_said = matches!(&asked, Err(Cuda::OutOfMemory { .. }));
    let what = match &asked {
        Ok(_) => "more memory than there is was given".to_owned(),
        Err(error) => format!("wrong; it said: {error}"),
    };
    drop(asked);
    let after = copies(cx)?;
    Ok(Outcome::none_of(usize::from(!is_said) + after.figure as usize, what))
}

fn pinned(cx: &Context) -> Result<Outcome, Error> {
    let values = noise(2, LEN);
    let mut staged = Pinned::<f32>::new(cx, LEN)?;
    staged.copy_from_slice(&values);
    let mut buffer = cx.zeros(Kind::F32, LEN)?;
    // SAFETY: it is waited for before anything is changed.
    unsafe { staged.write(&mut buffer.view_mut()) }?;
    cx.synchronize()?;
    let mut back = Pinned::<f32>::new(cx, LEN)?;
    back.read(buffer.view())?;
    Ok(Outcome::none_of(differing(&back, &values), "values are others"))
}

/// A kernel with memory of its own between its inputs and its output.
fn twice_gated(cx: &Context, y: &mut ViewMut<'_>, x: View<'_>) -> Result<(), Cuda> {
    let mut between = cx.buffer(Kind::F32, x.len())?;
    swiglu::cuda::forward(cx, &mut between.view_mut(), x, x)?;
    swiglu::cuda::forward(cx, y, between.view(), x)
}

fn captured(cx: &Context) -> Result<Outcome, Error> {
    let mut x = cx.upload(&noise(3, LEN))?;
    let mut y = cx.buffer(Kind::F32, LEN)?;
    let expected = |cx: &Context, seed: u64| -> Result<Vec<f32>, Error> {
        let x = cx.upload(&noise(seed, LEN))?;
        let mut y = cx.buffer(Kind::F32, LEN)?;
        twice_gated(cx, &mut y.view_mut(), x.view())?;
        Ok(cx.download(y.view())?)
    };
    let [first, second] = [3, 4].map(|seed| expected(cx, seed));
    let (x_at, mut y_at) = (x.view(), y.view_mut());
    let workspace = Workspace::new(cx);
    // SAFETY: both buffers outlive what is captured, which is dropped before them.
    let captured = unsafe { cx.capture(&workspace, |cx| twice_gated(cx, &mut y_at, x_at)) }?;
    let mut wrong = differing(&cx.download::<f32>(y.view())?, &first?);
    // Other inputs in the same place.
    cx.write(&mut x.view_mut(), &noise(4, LEN))?;
    // SAFETY: as above.
    unsafe { captured.replay() }?;
    wrong += differing(&cx.download::<f32>(y.view())?, &second?);
    drop(captured);
    Ok(Outcome::none_of(wrong, "values are others"))
}

fn streams(cx: &Context) -> Result<Outcome, Error> {
    let beside = cx.with_new_stream()?;
    let values = noise(5, LEN);
    let mut wrong = 0;
    for _ in 0..10 {
        let x = cx.upload(&values)?;
        let mut y = cx.zeros(Kind::F32, LEN)?;
        twice_gated(cx, &mut y.view_mut(), x.view())?;
        beside.after(cx)?;
        let mut copy = beside.buffer(Kind::F32, LEN)?;
        beside.copy(&mut copy.view_mut(), y.view())?;
        let there = beside.download::<f32>(copy.view())?;
        wrong += differing(&there, &cx.download::<f32>(y.view())?);
    }
    Ok(Outcome::none_of(wrong, "values are others"))
}
