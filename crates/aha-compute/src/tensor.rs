//! Row-major arrays of `f32` or bf16 in a device's memory.
//!
//! Kernels compute in `f32`. [`Values`] and `Sink` are how an op reads and writes tensors of either kind: `f32`
//! in place, bf16 widened from and rounded to a block that stays in a core's cache.
//!
//! On a CUDA device elements are in its memory, and what lends them as slices panics: [`Tensor::host`] copies them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::str::FromStr;

use half::bf16;

use crate::cuda::{Buffer, Pinned};
use crate::simd::{LANES, simd_fn};
use crate::{Device, Error};

mod on_gpu;

pub(crate) use on_gpu::kind_of;

/// What a tensor's elements are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// The upper half of an `f32`: its exponents, and 8 bits of precision.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => size_of::<f32>(),
            Dtype::Bf16 => size_of::<bf16>(),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dtype, Error> {
        match text {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            _ => Err(Error::Environment { what: format!("unknown dtype `{text}`: f32 or bf16") }),
        }
    }
}

/// A row-major array that a device owns.
pub struct Tensor {
    device: Device,
    shape: Vec<usize>,
    dtype: Dtype,
    data: Data,
}

/// Where the elements are.
enum Data {
    /// Two bf16 numbers to a word; the last may have one only.
    Host(Vec<f32>),
    /// Of `f32`, in memory of the host that copies to and from a CUDA device don't have to wait for.
    Pinned(Pinned<f32>),
    /// None where the device failed before or while they were asked for.
    Gpu(Option<Buffer>),
}

impl Tensor {
    /// All zeros.
    pub fn zeros(device: &Device, shape: &[usize]) -> Tensor {
        let mut tensor = Tensor::uninit(device, shape);
        tensor.fill(0.0);
        tensor
    }

    /// Unspecified contents, for ops that write every element.
    pub fn uninit(device: &Device, shape: &[usize]) -> Tensor {
        Tensor::uninit_as(device, Dtype::F32, shape)
    }

    /// As [`Tensor::uninit`], with elements of this kind.
    pub fn uninit_as(device: &Device, dtype: Dtype, shape: &[usize]) -> Tensor {
        let len: usize = shape.iter().product();
        let data = match device.gpu() {
            Some(gpu) => Data::Gpu(gpu.ask(|cx| cx.buffer(kind_of(dtype), len))),
            None => Data::Host(device.take((len * dtype.bytes()).div_ceil(size_of::<f32>()))),
        };
        Tensor { device: device.clone(), shape: shape.to_vec(), dtype, data }
    }

    /// A copy of `values`, whose length must be the product of `shape`.
    pub fn from_slice(device: &Device, shape: &[usize], values: &[f32]) -> Tensor {
        let mut tensor = Tensor::uninit(device, shape);
        tensor.write(values);
        tensor
    }

    /// Sets all elements of an `f32` tensor to `values`.
    #[track_caller]
    pub fn write(&mut self, values: &[f32]) {
        assert_eq!(self.len(), values.len(), "values for shape {:?}", self.shape);
        match self.gpu() {
            Some(gpu) => self.upload(&gpu, values),
            None => self.as_mut_slice().copy_from_slice(values),
        }
    }

    /// Sets the elements of an `f32` tensor to what `f` writes into a slice of the host, which holds anything before.
    /// Nothing changes where it fails on a CUDA device.
    pub fn write_with<E>(&mut self, f: impl FnOnce(&mut [f32]) -> Result<(), E>) -> Result<(), E> {
        let Some(gpu) = self.gpu() else { return f(self.as_mut_slice()) };
        let mut values = vec![0.0; self.len()];
        f(&mut values)?;
        self.upload(&gpu, &values);
        Ok(())
    }

    /// The elements as `f32` in the host's memory: in place, or a copy. From a CUDA device it waits for all work there.
    pub fn host(&self) -> Cow<'_, [f32]> {
        match (self.gpu(), self.dtype) {
            (Some(gpu), _) => Cow::Owned(self.download(&gpu)),
            (None, Dtype::F32) => Cow::Borrowed(self.as_slice()),
            (None, Dtype::Bf16) => Cow::Owned(self.as_bf16().iter().map(|x| x.to_f32()).collect()),
        }
    }

    /// A copy of an `f32` tensor in another device's memory. On one CUDA device it isn't waited for.
    pub fn copy_on(&self, device: &Device) -> Tensor {
        match (self.gpu(), device.gpu()) {
            (Some(from), Some(to)) if from.shares_memory(to) => {
                let mut copy = Tensor::uninit_as(device, self.dtype, &self.shape);
                // What failed on either has no elements.
                from.run(|of| {
                    to.run(|cx| {
                        cx.after(of)?;
                        cx.copy(&mut copy.view_mut(), self.view())
                    });
                    Ok(())
                });
                copy
            }
            _ => Tensor::from_slice(device, &self.shape, &self.host()),
        }
    }

    #[track_caller]
    fn words(&self) -> &[f32] {
        match &self.data {
            Data::Host(words) => words,
            Data::Pinned(words) => words,
            Data::Gpu(_) => panic!("elements in the host's memory"),
        }
    }

    #[track_caller]
    fn words_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::Host(words) => words,
            Data::Pinned(words) => words,
            Data::Gpu(_) => panic!("elements in the host's memory"),
        }
    }

    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Product of all dimensions but the last; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the elements are stored as.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements of an `f32` tensor.
    #[track_caller]
    pub fn as_slice(&self) -> &[f32] {
        assert_eq!(self.dtype, Dtype::F32, "elements as f32");
        self.words()
    }

    /// The elements of an `f32` tensor, to write.
    #[track_caller]
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, Dtype::F32, "elements as f32");
        self.words_mut()
    }

    /// The elements of a bf16 tensor.
    #[track_caller]
    pub fn as_bf16(&self) -> &[bf16] {
        assert_eq!(self.dtype, Dtype::Bf16, "elements as bf16");
        // SAFETY: a word holds two, any bits are a bf16, and the buffer has as many words as `len` needs.
        unsafe { std::slice::from_raw_parts(self.words().as_ptr().cast(), self.len()) }
    }

    /// The elements of a bf16 tensor, to write.
    #[track_caller]
    pub fn as_mut_bf16(&mut self) -> &mut [bf16] {
        assert_eq!(self.dtype, Dtype::Bf16, "elements as bf16");
        let len = self.len();
        // SAFETY: as in `as_bf16`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.words_mut().as_mut_ptr().cast(), len) }
    }

    /// The elements, whatever they are stored as.
    pub fn values(&self) -> Values<'_> {
        match self.dtype {
            Dtype::F32 => Values::F32(self.as_slice()),
            Dtype::Bf16 => Values::Bf16(self.as_bf16()),
        }
    }

    /// Where an op writes the elements, from several threads.
    pub(crate) fn sink(&mut self) -> Sink<'_> {
        let device = self.device.clone();
        let to = match self.dtype {
            Dtype::F32 => SinkOf::F32(Shards::new(self.as_mut_slice())),
            Dtype::Bf16 => SinkOf::Bf16(Shards::new(self.as_mut_bf16())),
        };
        Sink { device, to }
    }

    /// The same elements as an `f32` tensor: itself, or a copy.
    pub fn as_f32(&self) -> Cow<'_, Tensor> {
        match self.dtype {
            Dtype::F32 => Cow::Borrowed(self),
            Dtype::Bf16 => Cow::Owned(self.to_dtype(Dtype::F32)),
        }
    }

    /// The same elements as a tensor of this kind.
    pub fn into_dtype(self, dtype: Dtype) -> Tensor {
        if dtype == self.dtype { self } else { self.to_dtype(dtype) }
    }

    /// A copy with elements of this kind; bf16 numbers are rounded to nearest, ties to even.
    pub fn to_dtype(&self, dtype: Dtype) -> Tensor {
        let mut copy = Tensor::uninit_as(&self.device, dtype, &self.shape);
        if let Some(gpu) = self.gpu() {
            copy.convert_from(&gpu, self);
            return copy;
        }
        let sink = copy.sink();
        self.device.run_blocks(self.len(), ELEMENTWISE_BLOCK_LEN, |start, end| {
            self.values().with(&self.device, start..end, |from| {
                // SAFETY: blocks are disjoint.
                unsafe { sink.with(start..end, |to| to.copy_from_slice(from)) }
            });
        });
        drop(sink);
        copy
    }

    /// Row `i` of [`Tensor::rows`].
    #[track_caller]
    pub fn row(&self, i: usize) -> &[f32] {
        let cols = self.cols();
        &self.as_slice()[i * cols..(i + 1) * cols]
    }

    /// Some rows, to change.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> &mut [f32] {
        let cols = self.cols();
        &mut self.as_mut_slice()[rows.start * cols..rows.end * cols]
    }

    /// Sets some rows to those of another tensor of the same kind, which is `f32` on a processor.
    #[track_caller]
    pub fn set_rows(&mut self, rows: Range<usize>, from: &Tensor) {
        let cols = self.cols();
        assert_eq!(from.len(), rows.len() * cols, "rows {rows:?} of {:?}", self.shape);
        match self.gpu() {
            Some(gpu) => gpu.run(|cx| {
                let mut to = self.view_mut().slice(rows.start * cols..rows.end * cols);
                cx.copy(&mut to, from.view())
            }),
            None => self.rows_mut(rows).copy_from_slice(from.as_slice()),
        }
    }

    /// A copy of some rows.
    pub fn rows_range(&self, rows: Range<usize>) -> Tensor {
        let cols = self.cols();
        let mut part = Tensor::uninit_as(&self.device, self.dtype, &[rows.len(), cols]);
        let at = rows.start * cols..rows.end * cols;
        if let Some(gpu) = self.gpu() {
            part.copy_part(&gpu, self, at.start);
            return part;
        }
        match self.values() {
            Values::F32(all) => part.as_mut_slice().copy_from_slice(&all[at]),
            Values::Bf16(all) => part.as_mut_bf16().copy_from_slice(&all[at]),
        }
        part
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: &[usize]) -> Tensor {
        assert_eq!(
            self.len(),
            shape.iter().product::<usize>(),
            "reshape {:?} to {shape:?}",
            self.shape
        );
        self.shape = shape.to_vec();
        self
    }

    /// Sets every element of an `f32` tensor.
    #[track_caller]
    pub fn fill(&mut self, value: f32) {
        if let Some(gpu) = self.gpu() {
            match value.to_bits() {
                0 => gpu.run(|cx| cx.clear(&mut self.view_mut())),
                _ => self.upload(&gpu, &vec![value; self.len()]),
            }
            return;
        }
        let (device, len) = (self.device.clone(), self.len());
        let to = Shards::new(self.as_mut_slice());
        device.run_blocks(len, ELEMENTWISE_BLOCK_LEN, |start, end| {
            // SAFETY: blocks are disjoint.
            unsafe { to.slice(start, end) }.fill(value);
        });
    }

    /// `self += other`, element by element, for `f32` tensors.
    #[track_caller]
    pub fn add_assign(&mut self, other: &Tensor) {
        assert_eq!(self.len(), other.len(), "add {:?} to {:?}", other.shape, self.shape);
        if let Some(gpu) = self.gpu() {
            return self.add_on(&gpu, other);
        }
        let (device, len) = (self.device.clone(), self.len());
        let (to, from) = (Shards::new(self.as_mut_slice()), other.as_slice());
        device.run_blocks(len, ELEMENTWISE_BLOCK_LEN, |start, end| {
            // SAFETY: blocks are disjoint.
            add(device.isa(), unsafe { to.slice(start, end) }, &from[start..end]);
        });
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Tensor {
        let mut copy = Tensor::uninit_as(&self.device, self.dtype, &self.shape);
        match self.gpu() {
            Some(gpu) => copy.copy_part(&gpu, self, 0),
            None => copy.words_mut().copy_from_slice(self.words()),
        }
        copy
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Data::Host(words) = &mut self.data {
            self.device.give(std::mem::take(words));
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{:?} {} on {:?}", self.shape, self.dtype, self.device)
    }
}

/// Elements that one thread takes at a time: two blocks of them stay in a second-level cache.
const ELEMENTWISE_BLOCK_LEN: usize = 1 << 15;

/// Elements of a tensor of either kind.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half the bytes.
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    /// Elements.
    pub fn len(self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Some of the elements.
    #[track_caller]
    pub(crate) fn slice(self, range: Range<usize>) -> Values<'a> {
        match self {
            Values::F32(values) => Values::F32(&values[range]),
            Values::Bf16(values) => Values::Bf16(&values[range]),
        }
    }

    /// Calls `f` with some of the elements as `f32`: in place, or widened to a buffer of the device.
    pub(crate) fn with<R>(
        self,
        device: &Device,
        range: Range<usize>,
        f: impl FnOnce(&[f32]) -> R,
    ) -> R {
        match self {
            Values::F32(values) => f(&values[range]),
            Values::Bf16(values) => {
                let values = &values[range];
                device.with_scratch(values.len(), |wide| {
                    widen(device.isa(), wide, values);
                    f(wide)
                })
            }
        }
    }
}

/// Where ops write elements of either kind, in disjoint parts.
pub(crate) struct Sink<'a> {
    device: Device,
    to: SinkOf<'a>,
}

enum SinkOf<'a> {
    F32(Shards<'a, f32>),
    Bf16(Shards<'a, bf16>),
}

impl Sink<'_> {
    /// Calls `f` with `f32` elements to write, which then become the elements of `range`. What is in them before
    /// is unspecified.
    ///
    /// # Safety
    /// No two live ranges may overlap.
    pub(crate) unsafe fn with<R>(&self, range: Range<usize>, f: impl FnOnce(&mut [f32]) -> R) -> R {
        match &self.to {
            // SAFETY: the caller's promise.
            SinkOf::F32(shards) => f(unsafe { shards.slice(range.start, range.end) }),
            SinkOf::Bf16(shards) => self.device.with_scratch(range.len(), |wide| {
                let result = f(wide);
                // SAFETY: the caller's promise.
                let to = unsafe { shards.slice(range.start, range.end) };
                round(self.device.isa(), to, wide);
                result
            }),
        }
    }
}

simd_fn! {
    /// `to += from`.
    fn add<S>(to: &mut [f32], from: &[f32]) {
        assert_eq!(to.len(), from.len());
        for at in (0..to.len()).step_by(LANES) {
            let len = (to.len() - at).min(LANES);
            let (a, b) = (S::load_part(to.as_ptr().add(at), len), S::load_part(from.as_ptr().add(at), len));
            S::store_part(to.as_mut_ptr().add(at), S::add(a, b), len);
        }
    }
}

simd_fn! {
    /// `to = from`, exactly.
    pub(crate) fn widen<S>(to: &mut [f32], from: &[bf16]) {
        assert_eq!(to.len(), from.len());
        for at in (0..to.len()).step_by(LANES) {
            let len = (to.len() - at).min(LANES);
            S::store_part(to.as_mut_ptr().add(at), S::load_bf16_part(from.as_ptr().add(at), len), len);
        }
    }
}

simd_fn! {
    /// `to = from`, rounded to nearest, ties to even.
    pub(crate) fn round<S>(to: &mut [bf16], from: &[f32]) {
        assert_eq!(to.len(), from.len());
        for at in (0..to.len()).step_by(LANES) {
            let len = (to.len() - at).min(LANES);
            S::store_bf16_part(to.as_mut_ptr().add(at), S::load_part(from.as_ptr().add(at), len), len);
        }
    }
}

/// Writes to disjoint parts of one buffer from several threads.
///
/// The borrow checker cannot see that blocks of rows are disjoint; this says so in one place.
pub(crate) struct Shards<'a, T = f32> {
    at: *mut T,
    len: usize,
    _buffer: PhantomData<&'a mut [T]>,
}
// SAFETY: `slice` demands disjointness of its callers.
unsafe impl<T: Send> Send for Shards<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Shards<'a, T> {
        Shards { at: buffer.as_mut_ptr(), len: buffer.len(), _buffer: PhantomData }
    }

    /// Elements of the buffer.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements `start..end`.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, end: usize) -> &mut [T] {
        assert!(start <= end && end <= self.len, "shard {start}..{end} of {}", self.len);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), end - start) }
    }

    /// The start of the buffer, for kernels that write columns.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_same_bits, devices, noise_f32};

    #[test]
    fn a_bf16_tensor_holds_rounded_values_of_any_length() {
        for device in devices() {
            for len in [0, 1, 15, 37, 70_001] {
                let values = noise_f32(1, len);
                let tensor = Tensor::from_slice(&device, &[len], &values).to_dtype(Dtype::Bf16);
                let want: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                assert_eq!((tensor.len(), tensor.dtype()), (len, Dtype::Bf16));
                assert_same_bits("wide", tensor.to_dtype(Dtype::F32).as_slice(), &want);
            }
        }
    }

    #[test]
    fn rows_and_copies_keep_their_kind() {
        let device = Device::cpu(1);
        let tensor = Tensor::from_slice(&device, &[3, 5], &noise_f32(1, 15)).to_dtype(Dtype::Bf16);
        let part = tensor.clone().rows_range(1..3);
        assert_eq!(part.as_bf16(), &tensor.as_bf16()[5..15]);
        assert_eq!(part.shape(), [2, 5]);
    }

    #[test]
    #[should_panic(expected = "elements as f32")]
    fn bf16_elements_are_not_taken_for_f32() {
        Tensor::uninit_as(&Device::cpu(1), Dtype::Bf16, &[2]).as_slice();
    }
}
