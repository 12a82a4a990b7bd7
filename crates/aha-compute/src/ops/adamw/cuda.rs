//! AdamW on a device: all weights in one launch.
//!
//! Moments that are in the host's memory are copied there in slices, updated and copied back, all at once: while a
//! slice is updated, the next one is on its way in and the one before on its way out. A slice's moments are in one of
//! two places on the device by turns. Elements don't depend on each other, so bits don't depend on where slices end.

use std::ops::Range;

use super::{Factors, Hyper, Weight};
use crate::cuda::{Arg, Buffer, Context, Error, Kind, Plan, Ptr, Source, View};
use crate::ops::cuda::{EIGHT, Segments, assert_aligned};

pub(crate) static SOURCE: Source = Source { name: "adamw.cu", text: include_str!("adamw.cu") };

/// Elements whose moments are on the device at once, of those in the host's memory: 16 MiB of each moment.
pub(super) const SLICE_LEN: usize = 1 << 22;
/// Bytes of the device's memory that these take: means and squares of two slices.
pub const SLICES_BYTES: usize = 4 * SLICE_LEN * size_of::<f32>();
/// Threads of a block, with eight elements each.
const THREADS: usize = 256;

/// Flags of a segment, as in `adamw.cu`.
const DECAYS: u64 = 1;
const COPY_IS_F32: u64 = 2;

/// Constants of a step.
pub(super) struct Step<'a> {
    pub hyper: &'a Hyper,
    /// Factor on the gradients.
    pub scale: f32,
    /// Which step it is, counted from 1.
    pub step: u64,
}

/// Streams on which moments come from the host and go back.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    to_device: Context,
    to_host: Context,
}

impl Streams {
    /// Those of before, or new ones.
    pub fn of<'a>(known: &'a mut Option<Streams>, cx: &Context) -> Result<&'a Streams, Error> {
        if known.is_none() {
            let (to_device, to_host) = (cx.with_new_stream()?, cx.with_new_stream()?);
            *known = Some(Streams { to_device, to_host });
        }
        known.as_ref().ok_or(Error::Failed { call: "streams", code: "none".into() })
    }
}

/// Changes all weights by one step, whose moments are on the device.
pub(super) fn step_all(
    cx: &Context,
    weights: &mut [Weight<'_>],
    step: &Step<'_>,
) -> Result<(), Error> {
    let mut segments = Segments::of_blocks(THREADS * EIGHT);
    for weight in weights {
        let [m, v] = [&mut weight.m, &mut weight.v].map(|moment| moment.view_mut().at());
        push(&mut segments, weight, 0..weight.gradient.len(), [m, v]);
    }
    let scale = cx.upload(&[step.scale])?;
    launch(cx, &segments, scale.view(), step)
}

/// As [`step_all`], of moments that are in the host's memory, so many at once.
pub(super) fn step_from_host(
    cx: &Context,
    streams: &Streams,
    weights: &mut [Weight<'_>],
    step: &Step<'_>,
    slice_len: usize,
) -> Result<(), Error> {
    let slices = slices(weights.iter().map(|weight| weight.gradient.len()), slice_len);
    let room = slices.iter().flatten().map(|piece| piece.at + piece.range.len()).max();
    let place = || cx.buffer(Kind::F32, room.unwrap_or(0));
    // Means and squares, of slices with even and odd numbers. Nobody else has them before the wait below.
    let mut places: [[Buffer; 2]; 2] = [[place()?, place()?], [place()?, place()?]];
    let done = stream_through(cx, streams, weights, step, (&slices, &mut places));
    // Also after an error: nothing may be copied from or to the moments any more.
    let waited = streams.to_device.synchronize().and(streams.to_host.synchronize());
    done.and(waited)
}

fn stream_through(
    cx: &Context,
    Streams { to_device, to_host }: &Streams,
    weights: &mut [Weight<'_>],
    step: &Step<'_>,
    (slices, places): (&[Vec<Piece>], &mut [[Buffer; 2]; 2]),
) -> Result<(), Error> {
    let scale = cx.upload(&[step.scale])?;
    to_device.after(cx)?;
    if let Some(first) = slices.first() {
        copy_in(to_device, &mut places[0], weights, first)?;
    }
    for (number, slice) in slices.iter().enumerate() {
        cx.after(to_device)?;
        if let Some(next) = slices.get(number + 1) {
            // Where the slice before this one was.
            to_device.after(to_host)?;
            copy_in(to_device, &mut places[(number + 1) % 2], weights, next)?;
        }
        let place = &mut places[number % 2];
        let mut segments = Segments::of_blocks(THREADS * EIGHT);
        for piece in slice {
            let [m, v] = place.each_mut().map(|buffer| buffer.view_mut().slice(piece.on_device()));
            push(&mut segments, &mut weights[piece.weight], piece.range.clone(), [m.at(), v.at()]);
        }
        launch(cx, &segments, scale.view(), step)?;
        to_host.after(cx)?;
        copy_out(to_host, place, weights, slice)?;
    }
    // What comes now may use the places for something else.
    cx.after(to_host)
}

/// Elements of a weight, and where their moments are in a place on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    weight: usize,
    range: Range<usize>,
    at: usize,
}

impl Piece {
    fn on_device(&self) -> Range<usize> {
        self.at..self.at + self.range.len()
    }
}

/// Cuts weights of these lengths in slices, each piece of which begins at a multiple of eight elements.
fn slices(lens: impl Iterator<Item = usize>, slice_len: usize) -> Vec<Vec<Piece>> {
    assert!(slice_len > 0 && slice_len.is_multiple_of(EIGHT), "a slice of {slice_len} elements");
    let (mut slices, mut used) = (Vec::<Vec<Piece>>::new(), slice_len);
    for (weight, len) in lens.enumerate() {
        let mut start = 0;
        while start < len {
            if used >= slice_len {
                slices.push(Vec::new());
                used = 0;
            }
            let end = len.min(start + slice_len - used);
            if let Some(slice) = slices.last_mut() {
                slice.push(Piece { weight, range: start..end, at: used });
            }
            used += (end - start).next_multiple_of(EIGHT);
            start = end;
        }
    }
    slices
}

/// Copies a slice's moments to a place on the device.
fn copy_in(
    cx: &Context,
    [to_m, to_v]: &mut [Buffer; 2],
    weights: &[Weight<'_>],
    slice: &[Piece],
) -> Result<(), Error> {
    for piece in slice {
        let Weight { m, v, .. } = &weights[piece.weight];
        for (to, from) in [(&mut *to_m, m), (&mut *to_v, v)] {
            let from = &from.as_slice()[piece.range.clone()];
            cx.write(&mut to.view_mut().slice(piece.on_device()), from)?;
        }
    }
    Ok(())
}

/// Copies a slice's moments back.
fn copy_out(
    cx: &Context,
    [from_m, from_v]: &[Buffer; 2],
    weights: &mut [Weight<'_>],
    slice: &[Piece],
) -> Result<(), Error> {
    for piece in slice {
        let Weight { m, v, .. } = &mut weights[piece.weight];
        for (to, from) in [(m, from_m), (v, from_v)] {
            let to = &mut to.as_mut_slice()[piece.range.clone()];
            // SAFETY: the moments are borrowed until `step_from_host` has waited, and copied in only before this.
            unsafe { cx.copy_out(to, from.view().slice(piece.on_device()))? };
        }
    }
    Ok(())
}

/// Adds elements of a weight to those that a launch changes.
fn push(segments: &mut Segments, weight: &mut Weight<'_>, range: Range<usize>, moments: [Ptr; 2]) {
    let decays = weight.decays();
    let len = range.len();
    let gradient = weight.gradient.view().slice(range.clone());
    gradient.assert_is(Kind::F32, len);
    let value = weight.value.view_mut().slice(range.clone());
    value.assert_is(Kind::F32, len);
    let copy = weight.copy.as_deref_mut().map(|copy| copy.view_mut().slice(range));
    let copy_is_f32 = copy.as_ref().is_some_and(|copy| copy.kind() == Kind::F32);
    let copy = copy.map_or(Ptr(0), |copy| copy.at());
    let pointers = [value.at(), moments[0], moments[1], gradient.at(), copy];
    pointers.iter().for_each(|at| assert_aligned("a buffer", &Arg::Ptr(*at)));
    let flags = DECAYS * u64::from(decays) + COPY_IS_F32 * u64::from(copy_is_f32);
    let [value, m, v, gradient, copy] = pointers.map(|at| at.0);
    segments.push(len, [value, m, v, gradient, copy, flags]);
}

fn launch(
    cx: &Context,
    segments: &Segments,
    scale: View<'_>,
    step: &Step<'_>,
) -> Result<(), Error> {
    scale.assert_is(Kind::F32, 1);
    // The kernel reads the scale from the device, and asks the segment whether it decays.
    let factors = Factors::new(step.hyper, step.step, true, 1.0);
    let Factors { scale: _, keep, beta1, rest1, beta2, rest2, root_factor, eps, size } = factors;
    let (table, count) = segments.upload(cx)?;
    let numbers = [keep, beta1, rest1, beta2, rest2, root_factor, eps, size].map(Arg::F32);
    let args = [&[Arg::from(&table.view()), count, Arg::from(&scale)][..], &numbers].concat();
    // SAFETY: the table has a row for each segment, whose kinds and lengths are checked above.
    unsafe { cx.launch(&plan(segments.block_count()), &args) }
}

fn plan(block_count: usize) -> Plan {
    Plan::new(&SOURCE, "adamw", block_count, THREADS as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::{AdamW, StatePlace};
    use crate::ops::check::{assert_fits, assert_same_bits, contexts, noise_f32};
    use crate::{Device, Dtype, Grads, Params, Tensor};

    const HYPER: Hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    /// One of them shorter than a block, one of several blocks, one that ends within eight elements.
    const SHAPES: [&[usize]; 4] = [&[31, 67], &[37], &[3, 1], &[80, 64]];

    struct Run {
        params: Params,
        grads: Grads,
        adamw: AdamW,
    }

    impl Run {
        fn new(device: &Device, place: StatePlace) -> Run {
            let mut params = Params::default();
            for (seed, shape) in (1..).zip(SHAPES) {
                let values = noise_f32(seed, shape.iter().product());
                params.push(format!("{seed}"), Tensor::from_slice(device, shape, &values));
            }
            let grads = Grads::zeros(device, &params);
            Run { adamw: AdamW::placed(&params, place), params, grads }
        }

        /// All matrices are multiplied with before a step.
        fn step(&mut self, t: u64, scale: f32) {
            for (seed, id) in (10 * t..).zip(self.params.ids()) {
                self.params.packed(id);
                let len = self.params.value(id).len();
                self.grads.get_mut(id).write(&noise_f32(seed, len));
            }
            self.adamw.step(&mut self.params, &self.grads, &HYPER, scale);
        }

        /// Weights and moments.
        fn state(&self) -> Vec<Vec<f32>> {
            let of = |id| {
                let (m, v) = self.adamw.moments(id);
                [self.params.value(id), m, v].map(|tensor| tensor.host().into_owned())
            };
            self.params.ids().flat_map(of).collect()
        }
    }

    #[track_caller]
    fn assert_same_state(got: &Run, want: &Run) {
        for (got, want) in got.state().iter().zip(&want.state()) {
            assert_same_bits("weights and moments", got, want);
        }
    }

    #[test]
    fn steps_have_the_processors_bits_wherever_the_moments_are() {
        for place in [StatePlace::Device, StatePlace::Host] {
            let mut want = Run::new(&Device::cpu(1), place);
            let mut runs = contexts().map(|cx| Run::new(&Device::cpu(1).with_context(cx), place));
            for (t, scale) in (1..).zip([0.5f32, 1.0, 0.03125, 2.0]) {
                want.step(t, scale);
                for run in &mut runs {
                    run.step(t, scale);
                    assert_same_state(run, &want);
                }
            }
            assert_eq!(runs.map(|run| run.adamw.place()), [place; 2]);
            assert_eq!(want.adamw.place(), StatePlace::Device, "a processor has one place");
        }
    }

    /// Goal: where slices end shows nowhere. Method: slices of eight elements, of some, of all but a few, and of more
    /// than there are; the launcher itself is called, as the step does.
    #[test]
    fn slices_of_any_length_have_the_same_bits() {
        let mut want = Run::new(&Device::cpu(1), StatePlace::Device);
        want.step(1, 0.7);
        for slice_len in [8, 1000, 7000, 100_000] {
            for cx in contexts() {
                let device = Device::cpu(1).with_context(cx.clone());
                let mut run = Run::new(&device, StatePlace::Host);
                for (seed, id) in (10..).zip(run.params.ids()) {
                    let len = run.params.value(id).len();
                    run.grads.get_mut(id).write(&noise_f32(seed, len));
                }
                let Run { params, grads, adamw } = &mut run;
                let streams = Streams::of(&mut adamw.streams, &cx).unwrap();
                let moments = adamw.moments.iter_mut().flatten();
                let weights = params.stepped().zip(moments).map(|((id, value, copy), (m, v))| {
                    Weight { value, copy, m, v, gradient: grads.get(id) }
                });
                let mut weights: Vec<Weight<'_>> = weights.collect();
                let step = Step { hyper: &HYPER, scale: 0.7, step: 1 };
                step_from_host(&cx, streams, &mut weights, &step, slice_len).unwrap();
                assert_same_state(&run, &want);
            }
        }
    }

    #[test]
    fn slices_have_all_elements_once_and_no_more_than_fit() {
        for slice_len in [8, 16, 104] {
            let lens = [3, 0, 100, 8, 41];
            let slices = slices(lens.into_iter(), slice_len);
            let mut next = [0; 5];
            for piece in slices.iter().flatten() {
                assert_eq!(piece.range.start, next[piece.weight], "in order, without gaps");
                next[piece.weight] = piece.range.end;
                assert!(piece.at.is_multiple_of(8) && piece.range.start.is_multiple_of(8));
                assert!(piece.on_device().end <= slice_len && !piece.range.is_empty());
            }
            assert_eq!(next, lens);
            for slice in &slices {
                assert!(slice.is_sorted_by(|a, b| a.on_device().end <= b.at), "{slice:?}");
            }
        }
    }

    /// Goal: moments in the host's memory take none of the device's, but for two slices while a step is made.
    #[test]
    fn moments_in_the_hosts_memory_take_none_of_the_devices() {
        let [cx, _] = contexts();
        let device = Device::cpu(1).with_context(cx.clone());
        let in_use = |place| {
            let mut run = Run::new(&device, place);
            run.step(1, 1.0);
            let in_use_bytes = cx.stats().in_use_bytes;
            drop(run);
            in_use_bytes
        };
        let bytes: usize = SHAPES.iter().map(|shape| shape.iter().product::<usize>() * 4).sum();
        assert!(in_use(StatePlace::Host) + 2 * bytes <= in_use(StatePlace::Device));
        assert_eq!(cx.stats().in_use_bytes, 0);
    }

    /// Goal: what products read follows a step where it lies. Method: addresses and elements of the packed copies, in
    /// both dtypes, alone and beside a clone that keeps its own.
    #[test]
    fn a_step_writes_the_packed_copies_where_they_are() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for place in [StatePlace::Device, StatePlace::Host] {
                let device = Device::cpu(1).with_context(contexts()[0].clone()).with_dtype(dtype);
                let mut run = Run::new(&device, place);
                run.step(1, 1.0);
                let at = |params: &Params| -> Vec<Ptr> {
                    params.ids().map(|id| params.packed(id).on_gpu().view().at()).collect()
                };
                let copies = |params: &Params| -> Vec<f32> {
                    let of = |id| params.packed(id).on_gpu().host().into_owned();
                    params.ids().flat_map(of).collect()
                };
                let fresh = |params: &Params| -> Vec<f32> {
                    let of = |id| params.value(id).to_dtype(dtype).host().into_owned();
                    params.ids().flat_map(of).collect()
                };
                let before = at(&run.params);
                run.step(2, 1.0);
                assert_eq!(at(&run.params), before, "alone they stay where they are");
                assert_same_bits("copies", &copies(&run.params), &fresh(&run.params));
                let clone = run.params.clone();
                let kept = copies(&clone);
                run.step(3, 1.0);
                assert_eq!(at(&clone), before, "a clone keeps them");
                assert_same_bits("the clone's", &copies(&clone), &kept);
                assert_same_bits("the clone's values", &fresh(&clone), &kept);
                assert!(at(&run.params).iter().all(|at| !before.contains(at)));
                assert_same_bits("copies", &copies(&run.params), &fresh(&run.params));
                assert_ne!(copies(&run.params), kept);
                device.check().unwrap();
            }
        }
    }

    #[test]
    fn gradients_on_a_device_are_cleared_at_once_and_none_lies_in_another() {
        for cx in contexts() {
            let device = Device::cpu(1).with_context(cx);
            let mut run = Run::new(&device, StatePlace::Device);
            let table = run.params.find("4").unwrap();
            run.params.tie(table);
            let mut grads = Grads::zeros(&device, &run.params);
            for (seed, id) in (1..).zip(run.params.ids()) {
                grads.get_mut(id).write(&noise_f32(seed, run.params.value(id).len()));
            }
            grads.lookups_mut(table).unwrap().write(&noise_f32(9, 80 * 64));
            for (seed, id) in (1..).zip(run.params.ids()) {
                let want = noise_f32(seed, run.params.value(id).len());
                assert_same_bits("a gradient", &grads.get(id).host(), &want);
            }
            grads.clear();
            grads.finish();
            assert!(grads.iter().all(|grad| grad.host().iter().all(|x| *x == 0.0)));
        }
    }

    #[test]
    fn launches_fit_every_device() {
        for len in [1, 8_000_000_000_usize] {
            assert_fits(&plan(len.div_ceil(THREADS * EIGHT)));
        }
    }
}
