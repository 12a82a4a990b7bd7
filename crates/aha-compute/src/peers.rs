//! Devices that learn together: each has all the weights and computes the gradients of a part of the data.
//!
//! Gradients are added in the order of ranks, `((g_0 + g_1) + g_2) + …` in `f32`, whatever carries them: so they have
//! the same bits on every rank and in every run, and [`InHost`] and [`Linked`] have the same. A device's place among
//! the others is its rank; each rank is a thread of this process.
//!
//! - [`Alone`]: one device, which has nothing to wait for.
//! - [`InHost`]: through the host's memory. Each rank shows its gradients and adds up everybody's.
//! - [`Linked`]: from device to device, by a [`Link`], which for NVIDIA's is NCCL. All gradients are one vector, cut in
//!   chunks, and each chunk in as many slices as there are ranks. A rank receives its slice of everybody's, adds them
//!   up in order, and sends the sum to all. NCCL only carries them: it adds nothing.
//!
//! A rank that can't go on says so ([`Peers::leave`]), and no other waits for it.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::meeting::{Failure, Thing};
use crate::cuda::{self, Context, Kind, Link, Meeting, Transfer, ViewMut};
use crate::ops::cuda::sum_parts;
use crate::{Device, Error, Grads};

/// Elements that are exchanged at once: 128 MiB, which a rank needs beside its gradients.
const CHUNK_LEN: usize = 32 << 20;
/// Bytes that a rank needs for that.
pub const CHUNK_BYTES: usize = CHUNK_LEN * size_of::<f32>();
/// Slices begin at multiples of as many elements.
const APART_LEN: usize = 64;

/// What a rank knows of the others.
pub trait Peers: fmt::Debug + Send + Sync {
    /// This one's place.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Waits for all ranks; what they brought, in order. See [`gather`].
    fn meet(&self, thing: Thing) -> Result<Vec<Thing>, Error>;

    /// Sets the gradients of all ranks to their sum, in the order of ranks.
    fn sum(&self, grads: &mut Grads) -> Result<(), Error>;

    /// Says that this rank can't go on, so that no other waits for it. Nothing can be done together any more.
    fn leave(&self, why: &str);

    /// Who left first.
    fn left(&self) -> Option<usize>;
}

/// What all ranks say, in order.
pub fn gather<T: Any + Clone + Send + Sync>(peers: &dyn Peers, said: T) -> Result<Vec<T>, Error> {
    let all = peers.meet(Arc::new(said))?;
    Ok(all.iter().map(|thing| said_by::<T>(thing).clone()).collect())
}

#[track_caller]
fn said_by<T: Any>(thing: &Thing) -> &T {
    thing.downcast_ref().expect("all ranks say the same kind of thing")
}

/// Connects devices, each of which is driven by a thread of its own; in their order. Devices are CUDA devices, or none
/// is.
pub fn connect(devices: &[Device]) -> Result<Vec<Arc<dyn Peers>>, Error> {
    if devices.len() <= 1 {
        return Ok(vec![Arc::new(Alone)]);
    }
    let drivers: Vec<_> = devices.iter().filter_map(Device::gpu).collect();
    match drivers.len() {
        0 => Ok(InHost::connect(devices.len())),
        count if count == devices.len() => {
            let drivers: Vec<_> = drivers.iter().map(|gpu| gpu.context().shared_driver()).collect();
            Ok(Linked::of(cuda::link::connect(&drivers)?, CHUNK_LEN))
        }
        _ => Err(Error::Environment {
            what: "CUDA devices and a processor can't learn together: name devices of one kind"
                .into(),
        }),
    }
}

/// One device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn meet(&self, thing: Thing) -> Result<Vec<Thing>, Error> {
        Ok(vec![thing])
    }

    fn sum(&self, _: &mut Grads) -> Result<(), Error> {
        Ok(())
    }

    fn leave(&self, _: &str) {}

    fn left(&self) -> Option<usize> {
        None
    }
}

/// Several devices of any kind, through the host's memory.
#[derive(Clone, Debug)]
pub struct InHost {
    rank: usize,
    meeting: Arc<Meeting>,
}

impl InHost {
    /// So many ranks.
    pub fn connect(count: usize) -> Vec<Arc<dyn Peers>> {
        let meeting = Meeting::new(count);
        let rank =
            |rank| -> Arc<dyn Peers> { Arc::new(InHost { rank, meeting: Arc::clone(&meeting) }) };
        (0..count).map(rank).collect()
    }
}

impl Peers for InHost {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.meeting.count()
    }

    fn meet(&self, thing: Thing) -> Result<Vec<Thing>, Error> {
        self.meeting.meet(self.rank, thing).map_err(failed)
    }

    fn sum(&self, grads: &mut Grads) -> Result<(), Error> {
        for grad in grads.iter_mut() {
            let all = self.meet(Arc::new(grad.host().into_owned()))?;
            let Some((first, others)) = all.split_first() else { continue };
            let mut sum = said_by::<Vec<f32>>(first).clone();
            for other in others {
                let other = said_by::<Vec<f32>>(other);
                assert_eq!(other.len(), sum.len(), "all ranks have the same weights");
                sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
            }
            grad.write(&sum);
        }
        Ok(())
    }

    fn leave(&self, why: &str) {
        self.meeting.fail(self.rank, why);
    }

    fn left(&self) -> Option<usize> {
        self.meeting.failure().map(|failure| failure.rank)
    }
}

/// Several CUDA devices, from one's memory to the other's.
#[derive(Clone, Debug)]
pub struct Linked {
    /// For all but gradients.
    host: InHost,
    link: Arc<dyn Link>,
    chunk_len: usize,
}

impl Linked {
    fn of(links: Vec<Arc<dyn Link>>, chunk_len: usize) -> Vec<Arc<dyn Peers>> {
        let meeting = Meeting::new(links.len());
        let rank = |(rank, link)| -> Arc<dyn Peers> {
            let host = InHost { rank, meeting: Arc::clone(&meeting) };
            Arc::new(Linked { host, link, chunk_len })
        };
        links.into_iter().enumerate().map(rank).collect()
    }

    /// Adds up a chunk, which is on `cx`.
    fn sum_chunk(&self, cx: &Context, chunk: &mut ViewMut<'_>) -> Result<(), cuda::Error> {
        let (rank, count) = (self.rank(), self.count());
        let slices = slices(chunk.len(), count);
        let own = slices[rank].clone();
        let stride = own.len().next_multiple_of(APART_LEN);
        let mut parts = cx.buffer(Kind::F32, count * stride)?;
        let mut parts = parts.view_mut();
        let part = |of: usize| of * stride..of * stride + own.len();
        cx.copy(&mut parts.reborrow().slice(part(rank)), chunk.as_view().slice(own.clone()))?;
        let others = || (0..count).filter(|other| *other != rank);
        let address = |view: cuda::View<'_>, range: &Range<usize>| {
            (view.slice(range.clone()).at(), range.len() * Kind::F32.bytes())
        };
        let send = |range: &Range<usize>, to_rank| {
            let (from, bytes) = address(chunk.as_view(), range);
            Transfer::Send { from, bytes, to_rank }
        };
        let receive = |view, range: &Range<usize>, from_rank| {
            let (to, bytes) = address(view, range);
            Transfer::Receive { to, bytes, from_rank }
        };
        let scatter = others().flat_map(|other| {
            [send(&slices[other], other), receive(parts.as_view(), &part(other), other)]
        });
        let scatter: Vec<Transfer> = scatter.collect();
        let spread = others()
            .flat_map(|other| [send(&own, other), receive(chunk.as_view(), &slices[other], other)]);
        let spread: Vec<Transfer> = spread.collect();
        // SAFETY: addresses are of slices, which don't overlap, and have as many bytes.
        unsafe { self.link.exchange(&scatter, cx.stream())? };
        sum_parts(cx, &mut chunk.reborrow().slice(own), parts.as_view(), count)?;
        // SAFETY: as above.
        unsafe { self.link.exchange(&spread, cx.stream()) }
    }
}

/// As many slices as there are ranks, the last ones shorter or empty.
fn slices(len: usize, count: usize) -> Vec<Range<usize>> {
    let slice_len = len.div_ceil(count).next_multiple_of(APART_LEN);
    let at = |rank: usize| (rank * slice_len).min(len);
    (0..count).map(|rank| at(rank)..at(rank + 1)).collect()
}

impl Peers for Linked {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn count(&self) -> usize {
        self.host.count()
    }

    fn meet(&self, thing: Thing) -> Result<Vec<Thing>, Error> {
        self.host.meet(thing)
    }

    fn sum(&self, grads: &mut Grads) -> Result<(), Error> {
        let Some((gpu, mut all)) = grads.flat_mut() else {
            return Err(failed(Failure { rank: self.rank(), what: "it has no gradients".into() }));
        };
        // Nobody sends to a rank that has failed before, which would be waited for without an end.
        let len = all.len();
        for same in gather(self, len)? {
            assert_eq!(same, len, "all ranks have the same weights");
        }
        gpu.run(|cx| {
            (0..len).step_by(self.chunk_len).try_for_each(|start| {
                let end = len.min(start + self.chunk_len);
                self.sum_chunk(cx, &mut all.reborrow().slice(start..end))
            })
        });
        gpu.check()
    }

    fn leave(&self, why: &str) {
        self.host.leave(why);
        self.link.abort();
    }

    fn left(&self) -> Option<usize> {
        self.host.left()
    }
}

fn failed(failure: Failure) -> Error {
    Error::Environment { what: failure.to_string() }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::cuda::Driver;
    use crate::ops::check::{assert_same_bits, noise_f32};
    use crate::{Params, Tensor};
    use aha_emulate::{Emulated, ORDERS};

    const SHAPES: [&[usize]; 3] = [&[31, 7], &[5], &[40, 16]];

    /// Gradients of a rank; those of one differ from the others' in size, so that the order of a sum shows.
    fn grads(device: &Device, rank: usize) -> Grads {
        let mut params = Params::default();
        for (i, shape) in SHAPES.iter().enumerate() {
            params.push(format!("{i}"), Tensor::zeros(device, shape));
        }
        let mut grads = Grads::zeros(device, &params);
        for (i, id) in params.ids().enumerate() {
            let mut values = noise_f32((10 * rank + i) as u64, params.value(id).len());
            values.iter_mut().for_each(|x| *x *= 1e4f32.powi(rank as i32 % 2));
            grads.get_mut(id).write(&values);
        }
        grads
    }

    fn values(grads: &Grads) -> Vec<f32> {
        grads.iter().flat_map(|grad| grad.host().into_owned()).collect()
    }

    /// The sum on every rank.
    fn sums(devices: &[Device], peers: &[Arc<dyn Peers>]) -> Vec<Vec<f32>> {
        thread::scope(|scope| {
            let ranks: Vec<_> = peers
                .iter()
                .zip(devices)
                .map(|(peers, device)| {
                    scope.spawn(move || {
                        let mut grads = grads(device, peers.rank());
                        peers.sum(&mut grads).unwrap();
                        values(&grads)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn emulated(count: usize) -> (Vec<Device>, Vec<Arc<dyn Driver>>) {
        let order = |i: usize| ORDERS[i % 2];
        let drivers: Vec<Arc<dyn Driver>> =
            (0..count).map(|i| Emulated::new(order(i), 64 << 20) as Arc<dyn Driver>).collect();
        let context = |driver: &Arc<dyn Driver>| Context::new(Arc::clone(driver));
        let devices = drivers.iter().map(|driver| Device::cpu(1).with_context(context(driver)));
        (devices.collect(), drivers)
    }

    /// Goal: the order of a sum is that of ranks, whatever carries the gradients. Method: sums in plain loops; chunks
    /// of less than a gradient, of several, and of all.
    #[test]
    fn sums_are_in_the_order_of_ranks_on_every_rank_and_in_every_way() {
        for count in [2, 3, 5] {
            let all: Vec<Vec<f32>> =
                (0..count).map(|rank| values(&grads(&Device::cpu(1), rank))).collect();
            let mut want = all[0].clone();
            for other in &all[1..] {
                want.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
            }
            let mut turned = all[count - 1].clone();
            for other in &all[..count - 1] {
                turned.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
            }
            assert!(count == 2 || turned != want, "another order has other bits");
            let processors: Vec<Device> = (0..count).map(|_| Device::cpu(1)).collect();
            let (devices, drivers) = emulated(count);
            let linked = |chunk_len| Linked::of(cuda::link::connect(&drivers).unwrap(), chunk_len);
            for (devices, peers) in [
                (&processors, connect(&processors).unwrap()),
                (&devices, InHost::connect(count)),
                (&devices, connect(&devices).unwrap()),
                (&devices, linked(64)),
                (&devices, linked(320)),
            ] {
                for got in sums(devices, &peers) {
                    assert_same_bits("the sum", &got, &want);
                }
            }
        }
    }

    #[test]
    fn slices_are_all_of_a_chunk() {
        for (len, count) in [(1, 3), (64, 2), (1000, 3), (4096, 8), (0, 2)] {
            let slices = slices(len, count);
            assert_eq!((slices.len(), slices[0].start, slices[count - 1].end), (count, 0, len));
            for two in slices.windows(2) {
                assert_eq!(two[0].end, two[1].start);
                assert!(two[1].is_empty() || two[1].start.is_multiple_of(APART_LEN));
            }
        }
    }

    #[test]
    fn whoever_waits_for_a_rank_that_leaves_gets_its_reason() {
        let (devices, _) = emulated(3);
        for peers in [InHost::connect(3), connect(&devices).unwrap()] {
            thread::scope(|scope| {
                let waiting: Vec<_> = [0, 2]
                    .into_iter()
                    .map(|rank| {
                        let (device, peers) = (&devices[rank], &peers[rank]);
                        scope.spawn(move || peers.sum(&mut grads(device, rank)))
                    })
                    .collect();
                peers[1].leave("no memory");
                for thread in waiting {
                    let error = thread.join().unwrap().unwrap_err().to_string();
                    assert!(error.contains("device 1") && error.contains("no memory"), "{error}");
                }
            });
            assert!(peers.iter().all(|peers| peers.left() == Some(1)));
        }
    }

    #[test]
    fn devices_of_two_kinds_are_refused() {
        let (devices, _) = emulated(1);
        let error = connect(&[devices[0].clone(), Device::cpu(1)]).unwrap_err();
        assert!(error.to_string().contains("one kind"), "{error}");
        assert_eq!(connect(&devices).unwrap()[0].count(), 1);
    }
}
