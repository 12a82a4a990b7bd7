//! A CUDA device as tensors and ops see it.
//!
//! An op returns no error: on a processor it can't fail. What fails on a device is kept here, the first time for good;
//! from then on nothing is done there, and what tensors hold is unspecified. Whoever reads results asks
//! [`Device::check`](crate::Device::check) before they are used.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::cuda::{Context, Error, Kind};
use crate::ops::attention::cuda::Packed;
use crate::ops::attention::{Dims, Layout};

/// A device's context, and the first failure on it. Cloning it clones the handle.
#[derive(Clone, Debug)]
pub(crate) struct Gpu(Arc<State>);

#[derive(Debug)]
struct State {
    context: Context,
    failure: OnceLock<Error>,
    /// The layout that attention was last asked about: all layers of a batch have one.
    layout: Mutex<Option<Arc<Packed>>>,
}

impl Gpu {
    pub(super) fn new(context: Context) -> Gpu {
        let (failure, layout) = (OnceLock::new(), Mutex::default());
        Gpu(Arc::new(State { context, failure, layout }))
    }

    /// The context.
    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Whether the other is the same device, with its own stream.
    pub(crate) fn shares_memory(&self, other: &Gpu) -> bool {
        self.context().shares_memory(other.context())
    }

    /// The failure after which nothing is done any more.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.0.failure.get()
    }

    /// Fails if anything failed here before.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        self.failure().map_or(Ok(()), |failure| Err(failure.clone().into()))
    }

    /// Asks the device for something. None if that or anything before it failed.
    pub(crate) fn ask<T>(&self, f: impl FnOnce(&Context) -> Result<T, Error>) -> Option<T> {
        if self.failure().is_some() {
            return None;
        }
        match f(self.context()) {
            Ok(value) => Some(value),
            Err(error) => {
                // Another thread may have met one before.
                let _ = self.0.failure.set(error);
                None
            }
        }
    }

    /// As [`Gpu::ask`], for what has no answer.
    pub(crate) fn run(&self, f: impl FnOnce(&Context) -> Result<(), Error>) {
        self.ask(f).unwrap_or_default();
    }

    /// A layout on the device, for heads of these dimensions and activations of this kind.
    pub(crate) fn layout(
        &self,
        cx: &Context,
        layout: &Layout,
        dims: Dims,
        kind: Kind,
    ) -> Result<Arc<Packed>, Error> {
        let mut known = self.0.layout.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(packed) if packed.is_of(layout, dims, kind) => Ok(Arc::clone(packed)),
            _ => {
                let packed = Arc::new(Packed::upload(cx, layout, dims, kind)?);
                *known = Some(Arc::clone(&packed));
                Ok(packed)
            }
        }
    }
}
