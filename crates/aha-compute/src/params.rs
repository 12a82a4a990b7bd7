//! Named weights, and gradients of the same shapes.

use std::sync::OnceLock;

use crate::ops::matmul::Packed;
use crate::{Device, Tensor};

/// The place of a weight in [`Params`], and of its gradient in [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

/// Named weights in a fixed order.
///
/// A weight that multiplies activations is packed for the matmul kernel when it is first used and again
/// after each change, so sampler and learner share one packed copy per policy version.
#[derive(Debug, Default)]
pub struct Params {
    params: Vec<Param>,
    /// The embedding table that is also the head, if there is one.
    tied: Option<ParamId>,
}

#[derive(Debug)]
struct Param {
    name: String,
    value: Tensor,
    packed: OnceLock<Packed>,
}

impl Params {
    /// Appends a weight.
    pub fn push(&mut self, name: impl Into<String>, value: Tensor) -> ParamId {
        self.params.push(Param { name: name.into(), value, packed: OnceLock::new() });
        ParamId(self.params.len() - 1)
    }

    /// Says that `id` is both the embedding table and the head, so that its two gradients are summed
    /// apart (see [`Grads::finish`]).
    pub fn tie(&mut self, id: ParamId) {
        self.tied = Some(id);
    }

    /// Weights in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = ParamId> + use<> {
        (0..self.params.len()).map(ParamId)
    }

    /// The weight's name.
    pub fn name(&self, id: ParamId) -> &str {
        &self.params[id.0].name
    }

    /// The weight called `name`.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.params.iter().position(|p| p.name == name).map(ParamId)
    }

    /// The weight's value.
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.params[id.0].value
    }

    /// The weight's value, to change; its packed copy is dropped.
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        let param = &mut self.params[id.0];
        param.packed = OnceLock::new();
        &mut param.value
    }

    /// The weight `(out, in)` packed for products with rows of activations.
    pub fn packed(&self, id: ParamId) -> &Packed {
        let param = &self.params[id.0];
        param.packed.get_or_init(|| Packed::of_weight(&param.value))
    }

    /// Elements of all weights.
    pub fn element_count(&self) -> usize {
        self.params.iter().map(|p| p.value.len()).sum()
    }
}

impl Clone for Params {
    /// Copies the values; the copy packs its weights anew.
    fn clone(&self) -> Params {
        let copy = |p: &Param| Param { name: p.name.clone(), value: p.value.clone(), packed: OnceLock::new() };
        Params { params: self.params.iter().map(copy).collect(), tied: self.tied }
    }
}

/// One gradient per weight, in the order of [`Params`]. Backward passes add to it.
///
/// Each is one chain of sums over tokens in order, so micro-batches in order give the bits of one batch. A
/// tied embedding table would interleave two chains; the lookups therefore have a buffer of their own.
#[derive(Debug)]
pub struct Grads {
    tensors: Vec<Tensor>,
    lookups: Option<(ParamId, Tensor)>,
}

impl Grads {
    /// Zero gradients for `params`.
    pub fn zeros(device: &Device, params: &Params) -> Grads {
        let zeros = |p: &Param| Tensor::zeros(device, p.value.shape());
        Grads {
            tensors: params.params.iter().map(zeros).collect(),
            lookups: params.tied.map(|id| (id, zeros(&params.params[id.0]))),
        }
    }

    /// The gradient of a weight; complete after [`Grads::finish`].
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// The gradient of a weight, to add to.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.tensors[id.0]
    }

    /// The gradient of an embedding table's lookups, to add to.
    pub(crate) fn lookups_mut(&mut self, id: ParamId) -> &mut Tensor {
        match &mut self.lookups {
            Some((tied, lookups)) if *tied == id => lookups,
            _ => &mut self.tensors[id.0],
        }
    }

    /// Adds what was summed apart; to be called once, after the last micro-batch.
    pub fn finish(&mut self) {
        if let Some((id, lookups)) = &mut self.lookups {
            self.tensors[id.0].add_assign(lookups);
            lookups.fill(0.0);
        }
    }

    /// Gradients in the order of the weights.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        self.tensors.iter_mut().for_each(|t| t.fill(0.0));
        if let Some((_, lookups)) = &mut self.lookups {
            lookups.fill(0.0);
        }
    }
}
