//! Row-major `f32` arrays in a device's memory.

use std::fmt;

use crate::Device;

/// A row-major array of `f32` that a device owns.
pub struct Tensor {
    device: Device,
    shape: Vec<usize>,
    data: Vec<f32>,
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
        let data = device.take(shape.iter().product());
        Tensor { device: device.clone(), shape: shape.to_vec(), data }
    }

    /// A copy of `values`, whose length must be the product of `shape`.
    pub fn from_slice(device: &Device, shape: &[usize], values: &[f32]) -> Tensor {
        let mut tensor = Tensor::uninit(device, shape);
        assert_eq!(tensor.data.len(), values.len(), "values for shape {shape:?}");
        tensor.data.copy_from_slice(values);
        tensor
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
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Row `i` of [`Tensor::rows`].
    pub fn row(&self, i: usize) -> &[f32] {
        let cols = self.cols();
        &self.data[i * cols..(i + 1) * cols]
    }

    /// A copy of some rows.
    pub fn rows_range(&self, rows: std::ops::Range<usize>) -> Tensor {
        let cols = self.cols();
        Tensor::from_slice(
            &self.device,
            &[rows.len(), cols],
            &self.data[rows.start * cols..rows.end * cols],
        )
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: &[usize]) -> Tensor {
        assert_eq!(
            self.data.len(),
            shape.iter().product::<usize>(),
            "reshape {:?} to {shape:?}",
            self.shape
        );
        self.shape = shape.to_vec();
        self
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        self.data.fill(value);
    }

    /// `self += other`, element by element.
    pub fn add_assign(&mut self, other: &Tensor) {
        assert_eq!(self.data.len(), other.data.len(), "add {:?} to {:?}", other.shape, self.shape);
        for (a, b) in self.data.iter_mut().zip(&other.data) {
            *a += b;
        }
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Tensor {
        Tensor::from_slice(&self.device, &self.shape, &self.data)
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.device.give(std::mem::take(&mut self.data));
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{:?} on {:?}", self.shape, self.device)
    }
}

/// Writes to disjoint parts of one buffer from several threads.
///
/// The borrow checker cannot see that blocks of rows are disjoint; this says so in one place.
pub(crate) struct Shards<'a> {
    at: *mut f32,
    len: usize,
    _buffer: std::marker::PhantomData<&'a mut [f32]>,
}
// SAFETY: `slice` demands disjointness of its callers.
unsafe impl Send for Shards<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shards<'_> {}

impl<'a> Shards<'a> {
    pub(crate) fn new(buffer: &'a mut [f32]) -> Shards<'a> {
        Shards { at: buffer.as_mut_ptr(), len: buffer.len(), _buffer: std::marker::PhantomData }
    }

    /// The elements `start..end`.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, end: usize) -> &mut [f32] {
        assert!(start <= end && end <= self.len, "shard {start}..{end} of {}", self.len);
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), end - start) }
    }

    /// The start of the buffer, for kernels that write columns.
    pub(crate) fn as_mut_ptr(&self) -> *mut f32 {
        self.at
    }
}
