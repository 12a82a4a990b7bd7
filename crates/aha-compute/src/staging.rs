//! Lists that a forward pass over a cache reads on a CUDA device, copied there at once.
//!
//! Each list alone would be an allocation and a copy, which take as long as a small kernel; a step of decoding has a
//! dozen. So they are put one behind the other ([`Words`]), go through pinned memory in one copy ([`Staging`]) to a
//! buffer that serves step after step, and what ops read are parts of it. Where a list begins depends on the lengths of
//! those before it alone: steps whose lists are as long find them at the same addresses.

use std::ops::Range;
use std::sync::Arc;

use crate::cuda::{Buffer, Context, Error, Kind, Pinned, View};

/// Words at a multiple of which a list begins: kernels read sixteen bytes at a time.
const UNIT: usize = 4;
/// Words of the first buffer: enough for the lists of small batches.
const FIRST_LEN: usize = 1 << 14;

/// Lists of `u32` and `u64`, one behind the other.
#[derive(Debug, Default)]
pub struct Words(Vec<u32>);

/// Where a list is among [`Words`].
pub type Place = Range<usize>;

impl Words {
    /// Forgets all lists.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends a list.
    pub fn push(&mut self, values: impl IntoIterator<Item = u32>) -> Place {
        self.0.resize(self.0.len().next_multiple_of(UNIT), 0);
        let start = self.0.len();
        self.0.extend(values);
        start..self.0.len()
    }

    /// Appends a list of `u64`.
    pub fn push_u64(&mut self, values: impl IntoIterator<Item = u64>) -> Place {
        self.push(values.into_iter().flat_map(|x| [x as u32, (x >> 32) as u32]))
    }

    /// All words.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

/// A list on a device.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    words: Arc<Buffer>,
    place: Place,
}

impl Part {
    /// The list of `u32` at a place of what was copied.
    pub(crate) fn new(words: &Arc<Buffer>, place: Place) -> Part {
        Part { words: Arc::clone(words), place }
    }

    /// The list.
    pub(crate) fn view(&self) -> View<'_> {
        self.words.view().slice(self.place.clone())
    }

    /// The list of `u64`.
    pub(crate) fn view_u64(&self) -> View<'_> {
        self.view().as_kind(Kind::U64)
    }
}

impl From<Buffer> for Part {
    fn from(words: Buffer) -> Part {
        let place = 0..words.len();
        Part { words: Arc::new(words), place }
    }
}

/// Pinned memory and a buffer that lists go through, and results come back through, step after step.
#[derive(Debug, Default)]
pub struct Staging {
    on_gpu: Option<Arc<Buffer>>,
    /// Two, so that one can be filled while the other is copied.
    pinned: [Option<Pinned<u32>>; 2],
    /// Whether a copy from it may be under way.
    is_pending: [bool; 2],
    turn: usize,
    results: Option<Pinned<u32>>,
}

impl Staging {
    /// Copies all words to the device. What is there from the step before is gone: nobody has parts of it any more.
    pub(crate) fn send(&mut self, cx: &Context, words: &Words) -> Result<Arc<Buffer>, Error> {
        let values = words.as_slice();
        self.turn = 1 - self.turn;
        if self.is_pending[self.turn] {
            cx.synchronize()?;
            self.is_pending = [false; 2];
        }
        let pinned = at_least(&mut self.pinned[self.turn], cx, values.len())?;
        pinned[..values.len()].copy_from_slice(values);
        let mut on_gpu = match self.on_gpu.take() {
            Some(buffer) if buffer.len() >= values.len() => buffer,
            _ => Arc::new(cx.buffer(Kind::U32, capacity(values.len()))?),
        };
        let to = Arc::get_mut(&mut on_gpu).expect("parts of the step before are gone");
        // SAFETY: what is pinned changes again only after a wait for the copy, above or in `fetch`, and is dropped only
        // by `at_least`, after that, or by `drop`, which waits.
        unsafe { pinned.write(&mut to.view_mut().slice(0..values.len()))? };
        self.is_pending[self.turn] = true;
        Ok(Arc::clone(self.on_gpu.insert(on_gpu)))
    }

    /// Waits for all work, and brings words of results here.
    pub(crate) fn fetch(&mut self, cx: &Context, from: View<'_>) -> Result<&[u32], Error> {
        let results = at_least(&mut self.results, cx, from.len())?;
        results.read(from)?;
        self.is_pending = [false; 2];
        Ok(&results[..from.len()])
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let (Some(buffer), true) = (&self.on_gpu, self.is_pending.contains(&true)) {
            // An error of it shows at the next call.
            let _ = buffer.context().synchronize();
        }
    }
}

fn capacity(len: usize) -> usize {
    len.next_power_of_two().max(FIRST_LEN)
}

/// Pinned memory of at least so many words.
fn at_least<'a>(
    pinned: &'a mut Option<Pinned<u32>>,
    cx: &Context,
    len: usize,
) -> Result<&'a mut Pinned<u32>, Error> {
    let kept = pinned.take().filter(|pinned| pinned.len() >= len);
    let kept = match kept {
        Some(kept) => kept,
        None => Pinned::new(cx, capacity(len))?,
    };
    Ok(pinned.insert(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Ptr;
    use crate::ops::check::contexts;

    /// Goal: lists arrive whole, step after step, also where they outgrow the buffer. Method: lists of growing lengths,
    /// some steps of which nothing is fetched.
    #[test]
    fn lists_arrive_and_begin_at_whole_units() {
        for cx in contexts() {
            let (mut staging, mut words) = (Staging::default(), Words::default());
            let mut address = Ptr(0);
            for (step, len) in [3, 1, 1000, FIRST_LEN + 1, 5].into_iter().enumerate() {
                words.clear();
                let values = |i: u32| (0..len as u32).map(move |x| x * 7 + i + step as u32);
                let places = [words.push(values(0)), words.push(values(1))];
                let wide = words.push_u64([u64::MAX - 5, 1 << 40]);
                let all = staging.send(&cx, &words).unwrap();
                for (i, place) in (0..).zip(places) {
                    assert_eq!(place.start % UNIT, 0);
                    let part = Part::new(&all, place);
                    let want: Vec<u32> = values(i).collect();
                    assert_eq!(cx.download::<u32>(part.view()).unwrap(), want);
                    if step % 2 == 0 {
                        assert_eq!(staging.fetch(&cx, part.view()).unwrap(), want);
                    }
                }
                let part = Part::new(&all, wide);
                let got: Vec<u64> = cx.download(part.view_u64()).unwrap();
                assert_eq!(got, [u64::MAX - 5, 1 << 40]);
                let at = all.view().at();
                assert_eq!(at == address, ![0, 3].contains(&step), "step {step}");
                address = at;
            }
        }
    }
}
