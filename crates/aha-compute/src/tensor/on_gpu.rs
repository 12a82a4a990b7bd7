//! Tensors in the memory of a CUDA device.

use half::bf16;

use super::{Data, Tensor};
use crate::cuda::{Buffer, Kind, Pinned, View, ViewMut};
use crate::device::Gpu;
use crate::ops::cuda as elements;
use crate::{Device, Dtype};

/// What a dtype is called there.
pub(crate) fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::F32,
        Dtype::Bf16 => Kind::Bf16,
    }
}

impl Tensor {
    /// The CUDA device that the elements are on.
    pub(crate) fn gpu(&self) -> Option<Gpu> {
        self.device.gpu().cloned()
    }

    /// Where the elements are on a CUDA device; 0 where it failed before they were there, and on a processor.
    pub fn address(&self) -> u64 {
        match &self.data {
            Data::Gpu(Some(buffer)) => buffer.view().at().0,
            _ => 0,
        }
    }

    /// The elements on the device, for what is asked of it by [`Gpu::run`]: nothing failed there, so they are there.
    #[track_caller]
    pub(crate) fn view(&self) -> View<'_> {
        self.buffer().view()
    }

    /// As [`Tensor::view`], to write.
    #[track_caller]
    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        match &mut self.data {
            Data::Gpu(Some(buffer)) => buffer.view_mut(),
            _ => panic!("elements on a CUDA device"),
        }
    }

    #[track_caller]
    fn buffer(&self) -> &Buffer {
        match &self.data {
            Data::Gpu(Some(buffer)) => buffer,
            _ => panic!("elements on a CUDA device"),
        }
    }

    /// Zeros in the host's memory, where a CUDA device copies from and to without waiting.
    pub(crate) fn pinned_zeros(device: &Device, shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        let pinned = device.gpu().and_then(|gpu| gpu.ask(|cx| Pinned::new(cx, len)));
        let Some(pinned) = pinned else { return Tensor::zeros(&device.host(), shape) };
        let (device, shape) = (device.host(), shape.to_vec());
        Tensor { device, shape, dtype: Dtype::F32, data: Data::Pinned(pinned) }
    }

    /// Whether it is of [`Tensor::pinned_zeros`].
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self.data, Data::Pinned(_))
    }

    /// A buffer of `f32` as a tensor.
    pub(crate) fn of_buffer(device: &Device, shape: &[usize], buffer: Buffer) -> Tensor {
        assert_eq!((buffer.kind(), buffer.len()), (Kind::F32, shape.iter().product()), "a buffer");
        let (device, shape) = (device.clone(), shape.to_vec());
        Tensor { device, shape, dtype: Dtype::F32, data: Data::Gpu(Some(buffer)) }
    }

    /// The elements, for what is asked of the device.
    #[track_caller]
    pub(crate) fn into_buffer(mut self) -> Buffer {
        match std::mem::replace(&mut self.data, Data::Gpu(None)) {
            Data::Gpu(Some(buffer)) => buffer,
            _ => panic!("elements on a CUDA device"),
        }
    }

    /// A number for each of these tensors, all of which are on one CUDA device; none where they aren't. Unspecified
    /// after a failure of the device.
    pub(crate) fn checksums(tensors: &[&Tensor]) -> Option<Vec<u64>> {
        let gpu = tensors.first()?.gpu()?;
        let is_here = |tensor: &&Tensor| tensor.gpu().is_some_and(|own| own.shares_memory(&gpu));
        if !tensors.iter().all(is_here) {
            return None;
        }
        let sums = gpu.ask(|cx| {
            let views: Vec<View<'_>> = tensors.iter().map(|tensor| tensor.view()).collect();
            elements::checksums(cx, &views)
        });
        Some(sums.unwrap_or_default())
    }

    /// A copy of the elements in the host's memory, as `f32`. Unspecified after a failure of the device.
    pub(super) fn download(&self, gpu: &Gpu) -> Vec<f32> {
        let values = gpu.ask(|cx| match self.dtype {
            Dtype::F32 => cx.download::<f32>(self.view()),
            Dtype::Bf16 => {
                let values = cx.download::<bf16>(self.view())?;
                Ok(values.into_iter().map(bf16::to_f32).collect())
            }
        });
        values.unwrap_or_else(|| vec![0.0; self.len()])
    }

    /// Copies `values` to an `f32` tensor.
    pub(super) fn upload(&mut self, gpu: &Gpu, values: &[f32]) {
        gpu.run(|cx| cx.write(&mut self.view_mut(), values));
    }

    /// A copy of some elements, from one of them on.
    pub(super) fn copy_part(&mut self, gpu: &Gpu, from: &Tensor, start: usize) {
        let len = self.len();
        gpu.run(|cx| cx.copy(&mut self.view_mut(), from.view().slice(start..start + len)));
    }

    pub(super) fn convert_from(&mut self, gpu: &Gpu, from: &Tensor) {
        gpu.run(|cx| elements::convert(cx, &mut self.view_mut(), from.view()));
    }

    pub(super) fn add_on(&mut self, gpu: &Gpu, other: &Tensor) {
        gpu.run(|cx| elements::add(cx, &mut self.view_mut(), other.view()));
    }
}
