//! Named weights, and gradients of the same shapes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use crate::cuda::{Buffer, Kind, ViewMut};
use crate::device::Gpu;
use crate::ops::grad_norm;
use crate::ops::matmul::{Factor, Packed};
use crate::{Device, Dtype, Error, Tensor};

/// The place of a weight in [`Params`], and of its gradient in [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

/// Named weights in a fixed order.
///
/// A weight that multiplies activations is packed for the matmul kernel when it is first used and again
/// after each change, so sampler and learner share one packed copy per policy version. A sampler that multiplies
/// with int8 has a second one. The weight of a layer that is multiplied in FP8 has quanta in place of the first.
///
/// A packed copy is never stale: [`Params::value_mut`] drops it before it lends the value, and no copy can be made, or
/// still be in use, while the value is lent. A step of the optimizer, the only other way to change a weight, does the
/// same on a processor; on a CUDA device it writes value and copy at once.
/// So [`Params::checksum`], which reads the values, speaks for what the kernels multiply with.
///
/// A clone shares values and packed copies; a weight that others have too is copied when it is changed.
///
/// A weight is trained or frozen. A frozen one has no gradient and no optimizer state, and no step changes it.
///
/// ```compile_fail,E0502
/// fn keeps_a_stale_copy(params: &mut aha_compute::Params, id: aha_compute::ParamId) -> usize {
///     let packed = params.packed(id);
///     params.value_mut(id).fill(0.0);
///     packed.in_len()
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Params {
    params: Vec<Entry>,
    /// The embedding table that is also the head, if there is one.
    tied: Option<ParamId>,
}

#[derive(Clone, Debug)]
struct Entry {
    param: Arc<Param>,
    is_trained: bool,
}

#[derive(Debug)]
struct Param {
    name: String,
    value: Tensor,
    packed: OnceLock<Packed>,
    int8: OnceLock<Packed>,
    fp8: OnceLock<Packed>,
}

/// What the kernels that only compute, and don't learn, multiply with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightForm {
    /// What learning multiplies with: the weights, rounded to the device's [`Dtype`].
    #[default]
    Same,
    /// int8 quanta with a scale for each output. Less to read, and other results than learning has.
    Int8,
}

impl fmt::Display for WeightForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightForm::Same => "same",
            WeightForm::Int8 => "int8",
        })
    }
}

impl FromStr for WeightForm {
    type Err = Error;

    fn from_str(text: &str) -> Result<WeightForm, Error> {
        match text {
            "same" => Ok(WeightForm::Same),
            "int8" => Ok(WeightForm::Int8),
            _ => {
                Err(Error::Environment { what: format!("unknown weights `{text}`: same or int8") })
            }
        }
    }
}

impl Params {
    /// Appends a weight, which is trained.
    pub fn push(&mut self, name: impl Into<String>, value: Tensor) -> ParamId {
        let param = Arc::new(Param::new(name.into(), value));
        self.params.push(Entry { param, is_trained: true });
        ParamId(self.params.len() - 1)
    }

    /// Drops all weights but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.params.truncate(count);
    }

    /// Says whether a weight is trained.
    pub fn set_trained(&mut self, id: ParamId, is_trained: bool) {
        self.params[id.0].is_trained = is_trained;
    }

    /// Whether a weight is trained, and not frozen.
    pub fn is_trained(&self, id: ParamId) -> bool {
        self.params[id.0].is_trained
    }

    /// Weights that are trained, in order.
    pub fn trained(&self) -> impl Iterator<Item = ParamId> + '_ {
        self.ids().filter(|id| self.is_trained(*id))
    }

    /// Says that `id` is both the embedding table and the head, so that its two gradients are summed
    /// apart (see [`Grads::finish`]).
    pub fn tie(&mut self, id: ParamId) {
        self.tied = Some(id);
    }

    /// What kernels multiply with and activations are stored as: the choice of the device that holds the weights.
    pub fn dtype(&self) -> Dtype {
        self.params.first().map_or(Dtype::F32, |entry| entry.param.value.device().dtype())
    }

    /// Weights in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = ParamId> + use<> {
        (0..self.params.len()).map(ParamId)
    }

    /// The weight's name.
    pub fn name(&self, id: ParamId) -> &str {
        &self.params[id.0].param.name
    }

    /// The weight called `name`.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.params.iter().position(|entry| entry.param.name == name).map(ParamId)
    }

    /// The weight's value.
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.params[id.0].param.value
    }

    /// The weight's value, to change; its packed copies are dropped. Where a clone has it too, this one gets a value
    /// of its own.
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        let param = Arc::make_mut(&mut self.params[id.0].param);
        for copy in [&mut param.packed, &mut param.int8, &mut param.fp8] {
            *copy = OnceLock::new();
        }
        &mut param.value
    }

    /// The trained weights in order, for a step of the optimizer: each with its value and, where it was multiplied with
    /// on a CUDA device, the copy that products read, which has the value's elements in its own dtype. Whoever writes
    /// the one writes the other; so a copy stays where it is from step to step, and so do quanta of FP8, which
    /// [`Params::requantize`] writes then. All other packed copies are dropped.
    pub(crate) fn stepped(
        &mut self,
    ) -> impl Iterator<Item = (ParamId, &mut Tensor, Option<&mut Tensor>)> {
        let trained = self.params.iter_mut().enumerate().filter(|(_, entry)| entry.is_trained);
        trained.map(|(i, entry)| {
            if Arc::get_mut(&mut entry.param).is_none() {
                entry.param = Arc::new(entry.param.clone_for_a_step());
            }
            let param = Arc::get_mut(&mut entry.param).expect("nobody else has it");
            param.int8 = OnceLock::new();
            if param.packed.get().is_some_and(|packed| !packed.is_on_gpu()) {
                param.packed = OnceLock::new();
            }
            (ParamId(i), &mut param.value, param.packed.get_mut().map(Packed::on_gpu_mut))
        })
    }

    /// Writes the quanta of FP8 of the trained weights anew, where they lie: to be called after a step of the
    /// optimizer.
    pub(crate) fn requantize(&mut self) {
        for entry in self.params.iter_mut().filter(|entry| entry.is_trained) {
            // A weight that others have too wasn't changed since.
            if let Some(Param { value, fp8, .. }) = Arc::get_mut(&mut entry.param)
                && let Some(fp8) = fp8.get_mut()
            {
                fp8.requantize(value);
            }
        }
    }

    /// The weight `(out, in)` packed for products with rows of activations.
    pub fn packed(&self, id: ParamId) -> &Packed {
        let param = &self.params[id.0].param;
        param.packed.get_or_init(|| Packed::of_weight(&param.value, param.value.device().dtype()))
    }

    /// The weight of a linear layer: as [`Params::packed`], or as quanta where the device multiplies layers in FP8.
    pub fn packed_for_layer(&self, id: ParamId) -> &Packed {
        let param = &self.params[id.0].param;
        match param.value.device().is_fp8() {
            true => param.fp8.get_or_init(|| Packed::as_fp8(&param.value)),
            false => self.packed(id),
        }
    }

    /// The weight `(out, in)` as gradients of activations are multiplied with it: on a processor, whose kernels round
    /// what they read, its value; on a CUDA device of the dtype that activations have there.
    pub fn factor(&self, id: ParamId) -> Factor<'_> {
        match self.value(id).device().is_cuda() {
            true => self.packed(id).factor(),
            false => Factor::Value(self.value(id)),
        }
    }

    /// As [`Params::factor`], of a linear layer: see [`Params::packed_for_layer`].
    pub fn factor_for_layer(&self, id: ParamId) -> Factor<'_> {
        match self.value(id).device().is_fp8() {
            true => self.packed_for_layer(id).factor(),
            false => self.factor(id),
        }
    }

    /// A bias as it is added to results of this dtype: on a processor, whose kernels add it to sums, its value; on a
    /// CUDA device of the result's dtype, but for products in FP8.
    pub(crate) fn bias(&self, id: ParamId, dtype: Dtype) -> &Tensor {
        match self.rounded_bias(id) {
            Some(rounded) if dtype == Dtype::Bf16 => rounded.on_gpu(),
            _ => self.value(id),
        }
    }

    /// The copy of a bias that a CUDA device adds to bf16 results, where it does.
    pub fn rounded_bias(&self, id: ParamId) -> Option<&Packed> {
        let device = self.value(id).device();
        let rounds = device.is_cuda() && !device.is_fp8() && self.dtype() == Dtype::Bf16;
        rounds.then(|| self.packed(id))
    }

    /// The embedding table to look up: its value, or a copy that is there anyway, whose rows are rounded.
    pub(crate) fn table(&self, id: ParamId) -> &Tensor {
        let is_rounded = self.tied == Some(id) && self.dtype() == Dtype::Bf16;
        match self.value(id).device().is_cuda() && is_rounded {
            true => self.packed(id).on_gpu(),
            false => self.value(id),
        }
    }

    /// Where kernels of a CUDA device read the weights: all values, and these packed copies, in order. What was
    /// captured with weights at some addresses may be replayed with weights at the same.
    pub fn addresses<'a>(
        &'a self,
        packed: impl Iterator<Item = &'a Packed> + 'a,
    ) -> impl Iterator<Item = u64> + 'a {
        let values = self.params.iter().map(|entry| entry.param.value.address());
        values.chain(packed.flat_map(Packed::addresses))
    }

    /// As [`Params::packed`], in this form. Each form that is asked for has a copy of its own, kept until the weight
    /// changes.
    pub fn packed_as(&self, id: ParamId, form: WeightForm) -> &Packed {
        match form {
            WeightForm::Same => self.packed(id),
            WeightForm::Int8 => {
                let param = &self.params[id.0].param;
                param.int8.get_or_init(|| Packed::as_int8(&param.value))
            }
        }
    }

    /// A number that changes, but for chance, when any bit of any weight does. It says the same of the packed
    /// copies, which are never stale: see [`Params`].
    /// It is another number on a CUDA device, where it is computed.
    pub fn checksum(&self) -> u64 {
        let start = 0xcbf2_9ce4_8422_2325_u64;
        let values: Vec<&Tensor> = self.params.iter().map(|entry| &entry.param.value).collect();
        if let Some(sums) = Tensor::checksums(&values) {
            return sums.into_iter().fold(start, |sum, of| {
                (sum ^ of).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
            });
        }
        // One multiplication per weight and lane: eight chains, so that they overlap.
        self.params.iter().fold(start, |sum, entry| {
            let mut lanes = [sum; 8];
            for chunk in entry.param.value.host().chunks(lanes.len()) {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = (*lane ^ u64::from(x.to_bits()))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .rotate_left(29);
                }
            }
            lanes.iter().fold(sum, |sum, lane| {
                (sum ^ lane).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
            })
        })
    }

    /// Whether no weight is infinite or NaN.
    pub fn is_finite(&self) -> bool {
        let values = || self.params.iter().map(|entry| &entry.param.value);
        if values().any(|value| value.device().is_cuda()) {
            // The squares of f32 numbers stay finite in f64.
            return grad_norm::global_norm(values()).is_finite();
        }
        values().all(|value| value.as_slice().iter().all(|x| x.is_finite()))
    }

    /// The same weights: those that are trained as copies on `device`, frozen ones shared. The copies are made when
    /// this returns.
    pub fn copy_on(&self, device: &Device) -> Params {
        let copy = |entry: &Entry| match entry.is_trained {
            false => entry.clone(),
            true => {
                let (name, value) = (entry.param.name.clone(), entry.param.value.copy_on(device));
                Entry { param: Arc::new(Param::new(name, value)), is_trained: true }
            }
        };
        let copies = Params { params: self.params.iter().map(copy).collect(), tied: self.tied };
        device.wait();
        copies
    }

    /// The same weights, all as copies on `device`.
    pub fn replica_on(&self, device: &Device) -> Params {
        let copy = |entry: &Entry| {
            let (name, value) = (entry.param.name.clone(), &entry.param.value);
            let value = Tensor::from_slice(device, value.shape(), &value.host());
            Entry { param: Arc::new(Param::new(name, value)), is_trained: entry.is_trained }
        };
        Params { params: self.params.iter().map(copy).collect(), tied: self.tied }
    }

    /// Elements of all weights.
    pub fn element_count(&self) -> usize {
        self.params.iter().map(|entry| entry.param.value.len()).sum()
    }

    /// Elements of the weights that are trained.
    pub fn trained_element_count(&self) -> usize {
        self.trained().map(|id| self.value(id).len()).sum()
    }
}

impl Param {
    fn new(name: String, value: Tensor) -> Param {
        let [packed, int8, fp8] = [0; 3].map(|_| OnceLock::new());
        Param { name, value, packed, int8, fp8 }
    }

    /// As a clone, and with memory for a packed copy where there is one on a CUDA device.
    fn clone_for_a_step(&self) -> Param {
        let packed = self.packed.get().filter(|packed| packed.is_on_gpu()).map(Packed::uninit_like);
        Param { packed: packed.map_or_else(OnceLock::new, OnceLock::from), ..self.clone() }
    }
}

impl Clone for Param {
    /// Copies the value, which is about to change; nothing is packed yet.
    fn clone(&self) -> Param {
        Param::new(self.name.clone(), self.value.clone())
    }
}

/// One gradient per weight that is trained, in the order of [`Params`]. Backward passes add to it.
///
/// Each is one chain of sums over tokens in order, so micro-batches in order give the bits of one batch. A
/// tied embedding table would interleave two chains; the lookups therefore have a buffer of their own.
#[derive(Debug)]
pub struct Grads {
    /// None for a frozen weight.
    tensors: Vec<Option<Tensor>>,
    lookups: Option<(ParamId, Tensor)>,
    /// On a CUDA device, the memory of all of these, one after the other.
    flat: Option<Flat>,
    pub(crate) open: OpenSegment,
}

/// The memory of all gradients on a CUDA device.
#[derive(Debug)]
struct Flat {
    all: Buffer,
    /// Elements before the lookups.
    len: usize,
}

/// At a multiple of how many elements a gradient begins in memory that many share: as far apart as allocations.
const APART_LEN: usize = 64;

/// Sums for the rows of a segment of which later micro-batches have other sequences: see [`Split`].
///
/// [`Split`]: crate::ops::attention::Split
#[derive(Debug, Default)]
pub(crate) struct OpenSegment {
    /// For its keys and values, by layer.
    pub kv: BTreeMap<usize, [Tensor; 2]>,
    /// For its rows of the last layer, that log-probs are computed from.
    pub hidden: Option<Tensor>,
}

impl OpenSegment {
    fn is_empty(&self) -> bool {
        self.kv.is_empty() && self.hidden.is_none()
    }
}

impl Grads {
    /// Zero gradients for the weights of `params` that are trained.
    pub fn zeros(device: &Device, params: &Params) -> Grads {
        let trained = |id: &ParamId| params.is_trained(*id);
        let tied = params.tied.filter(trained);
        if let Some(gpu) = device.gpu() {
            return Grads::flat_on(device, gpu, params, tied);
        }
        let zeros = |id: ParamId| Tensor::zeros(device, params.value(id).shape());
        Grads {
            tensors: params.ids().map(|id| trained(&id).then(|| zeros(id))).collect(),
            lookups: tied.map(|id| (id, zeros(id))),
            flat: None,
            open: OpenSegment::default(),
        }
    }

    /// On a CUDA device, in one piece of memory, so that one call clears or sends all of them.
    fn flat_on(device: &Device, gpu: &Gpu, params: &Params, tied: Option<ParamId>) -> Grads {
        let mut end = 0;
        let mut place = |id: ParamId| {
            let range = end..end + params.value(id).len();
            end = range.end.next_multiple_of(APART_LEN);
            (id, range)
        };
        let places: Vec<_> = params.trained().map(&mut place).collect();
        let lookups_place = tied.map(&mut place);
        let len = lookups_place.as_ref().map_or(end, |(_, range)| range.start);
        let whole = gpu.ask(|cx| cx.zeros(Kind::F32, end).map(Arc::new));
        let tensor = |(id, range): (ParamId, Range<usize>)| {
            let shape = params.value(id).shape();
            let Some(whole) = &whole else { return Tensor::uninit(device, shape) };
            // SAFETY: the tensors have no elements in common, and `all` is only used while these are borrowed alone.
            Tensor::of_buffer(device, shape, unsafe { Buffer::part(whole, range) })
        };
        let mut tensors: Vec<Option<Tensor>> = params.ids().map(|_| None).collect();
        for (id, range) in places {
            tensors[id.0] = Some(tensor((id, range)));
        }
        Grads {
            tensors,
            lookups: lookups_place.map(|(id, range)| (id, tensor((id, range)))),
            // SAFETY: as above.
            flat: whole
                .as_ref()
                .map(|whole| Flat { all: unsafe { Buffer::part(whole, 0..end) }, len }),
            open: OpenSegment::default(),
        }
    }

    /// The gradient of a trained weight; complete after [`Grads::finish`].
    #[track_caller]
    pub fn get(&self, id: ParamId) -> &Tensor {
        self.tensors[id.0].as_ref().expect(FROZEN)
    }

    /// The gradient of a trained weight, to add to.
    #[track_caller]
    pub fn get_mut(&mut self, id: ParamId) -> &mut Tensor {
        self.tensors[id.0].as_mut().expect(FROZEN)
    }

    /// The gradients of two trained weights, to add to.
    #[track_caller]
    pub(crate) fn two_mut(&mut self, ids: [ParamId; 2]) -> [&mut Tensor; 2] {
        let two = self.tensors.get_disjoint_mut(ids.map(|id| id.0)).expect("two of the weights");
        two.map(|tensor| tensor.as_mut().expect(FROZEN))
    }

    /// As [`Grads::get_mut`]; none for a frozen weight.
    pub(crate) fn find_mut(&mut self, id: ParamId) -> Option<&mut Tensor> {
        self.tensors[id.0].as_mut()
    }

    /// The gradient of an embedding table's lookups, to add to; none for a frozen one.
    pub(crate) fn lookups_mut(&mut self, id: ParamId) -> Option<&mut Tensor> {
        match &mut self.lookups {
            Some((tied, lookups)) if *tied == id => Some(lookups),
            _ => self.tensors[id.0].as_mut(),
        }
    }

    /// Adds what was summed apart; to be called once, after the last micro-batch, which leaves nothing open.
    pub fn finish(&mut self) {
        assert!(self.open.is_empty(), "a segment was left open, and no batch went on with it");
        if let Some((id, lookups)) = &mut self.lookups {
            self.tensors[id.0].as_mut().expect(FROZEN).add_assign(lookups);
            lookups.fill(0.0);
        }
    }

    /// Gradients in the order of the weights that are trained.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().flatten()
    }

    /// As [`Grads::iter`], to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.tensors.iter_mut().flatten()
    }

    /// All gradients of trained weights as one vector on a CUDA device, with zeros between them.
    pub(crate) fn flat_mut(&mut self) -> Option<(Gpu, ViewMut<'_>)> {
        let gpu = self.tensors.iter().flatten().find_map(|tensor| tensor.gpu())?;
        let Flat { all, len } = self.flat.as_mut()?;
        Some((gpu, all.view_mut().slice(0..*len)))
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        self.open = OpenSegment::default();
        if let Some(flat) = &mut self.flat {
            let (context, mut all) = (flat.all.context().clone(), flat.all.view_mut());
            if let Some(gpu) = self.tensors.iter().flatten().find_map(|tensor| tensor.gpu()) {
                gpu.run(|_| context.clear(&mut all));
            }
            return;
        }
        self.tensors.iter_mut().flatten().for_each(|t| t.fill(0.0));
        if let Some((_, lookups)) = &mut self.lookups {
            lookups.fill(0.0);
        }
    }
}

const FROZEN: &str = "a frozen weight has no gradient";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::{AdamW, Hyper};
    use crate::ops::check::{assert_same_bits, contexts, noise_tensor};
    use crate::ops::matmul;

    fn params(device: &Device) -> Params {
        let mut params = Params::default();
        params.push("a", noise_tensor(device, 1, &[5, 7]));
        params.push("b", noise_tensor(device, 2, &[3]));
        params
    }

    #[test]
    fn a_checksum_sees_every_bit_of_every_weight() {
        let on_cuda = contexts().map(|cx| Device::cpu(1).with_context(cx));
        let mut of_cuda = None;
        for device in [vec![Device::cpu(1)], on_cuda.to_vec()].concat() {
            let mut params = params(&device);
            let before = params.checksum();
            for id in params.ids() {
                let values = params.value(id).host().into_owned();
                for i in 0..values.len() {
                    for bit in [0, 13, 31] {
                        let mut flipped = values.clone();
                        flipped[i] = f32::from_bits(values[i].to_bits() ^ (1 << bit));
                        params.value_mut(id).write(&flipped);
                        assert_ne!(params.checksum(), before, "{device:?}: {i}, bit {bit}");
                    }
                }
                let mut rotated = values.clone();
                rotated.rotate_left(1);
                params.value_mut(id).write(&rotated);
                assert_ne!(params.checksum(), before, "{device:?}: places count");
                params.value_mut(id).write(&values);
            }
            assert_eq!(params.checksum(), before);
            if device.is_cuda() {
                assert_eq!(*of_cuda.get_or_insert(before), before, "in any order");
            }
        }
    }

    #[test]
    fn one_weight_that_is_not_finite_shows() {
        let mut params = params(&Device::cpu(1));
        assert!(params.is_finite());
        let last = params.find("b").expect("it was pushed");
        params.value_mut(last).as_mut_slice()[2] = f32::NEG_INFINITY;
        assert!(!params.is_finite());
    }

    /// The products of a row with the packed copies of the weight `a`, which must be those with fresh packings of
    /// its value.
    #[track_caller]
    fn product(params: &Params) -> Vec<f32> {
        let id = params.find("a").expect("it was pushed");
        let (device, value) = (params.value(id).device(), params.value(id));
        let x = noise_tensor(device, 3, &[1, 7]);
        let with = |packed: &Packed| {
            let mut y = Tensor::uninit(device, &[1, 5]);
            matmul::forward(&mut y, &x, packed, None);
            y.as_slice().to_vec()
        };
        let kept = with(params.packed(id));
        assert_same_bits("product", &kept, &with(&Packed::of_weight(value, Dtype::F32)));
        let kept_int8 = with(params.packed_as(id, WeightForm::Int8));
        assert_same_bits("product of int8", &kept_int8, &with(&Packed::as_int8(value)));
        [kept, kept_int8].concat()
    }

    #[test]
    fn a_changed_weight_is_packed_again_and_a_copy_is_independent() {
        let device = Device::cpu(1);
        let mut params = params(&device);
        let id = params.find("a").expect("it was pushed");
        let copy = params.clone();
        let before = product(&params);
        params.value_mut(id).fill(0.0);
        assert_eq!(product(&params), [0.0; 10]);
        assert_eq!(product(&copy), before);
    }

    #[test]
    fn a_clone_shares_what_nobody_changes() {
        let device = Device::cpu(1);
        let mut params = params(&device);
        let copy = params.clone();
        let at = |params: &Params, i: usize| params.value(ParamId(i)).as_slice().as_ptr();
        let packed = |params: &Params| std::ptr::from_ref(params.packed(ParamId(0)));
        assert_eq!((at(&params, 0), packed(&params)), (at(&copy, 0), packed(&copy)));
        params.value_mut(ParamId(0)).fill(1.0);
        assert_ne!(at(&params, 0), at(&copy, 0));
        assert_eq!(at(&params, 1), at(&copy, 1));
        let alone = at(&params, 0);
        params.value_mut(ParamId(0)).fill(2.0);
        assert_eq!(at(&params, 0), alone, "nobody else has it any more");
    }

    /// Goal: a frozen weight costs nothing and stays. Method: one of two weights is frozen; gradients, moments and
    /// steps are those of the other alone.
    #[test]
    fn a_frozen_weight_has_no_gradient_and_no_step_changes_it() {
        let device = Device::cpu(1);
        let mut params = params(&device);
        let [frozen, trained] = [ParamId(0), ParamId(1)];
        params.set_trained(frozen, false);
        assert_eq!(params.trained().collect::<Vec<_>>(), [trained]);
        assert_eq!((params.trained_element_count(), params.element_count()), (3, 38));
        let before = params.clone();
        let mut grads = Grads::zeros(&device, &params);
        assert_eq!(grads.iter().count(), 1);
        assert!(grads.find_mut(frozen).is_none());
        grads.get_mut(trained).fill(1.0);
        let hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        AdamW::new(&params).step(&mut params, &grads, &hyper, 1.0);
        assert_eq!(params.value(frozen).as_slice(), before.value(frozen).as_slice());
        assert_ne!(params.value(trained).as_slice(), before.value(trained).as_slice());
    }

    /// Goal: what the kernels multiply with is what the checksum reads. Method: each way in which this crate
    /// changes weights, after the old values were packed; the product must follow, as the checksum does.
    #[test]
    fn a_checksum_speaks_for_the_packed_copies() {
        let device = Device::cpu(1);
        let mut params = params(&device);
        let mut grads = Grads::zeros(&device, &params);
        for id in params.ids() {
            grads.get_mut(id).fill(1.0);
        }
        let mut optimizer = AdamW::new(&params);
        let hyper = Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let changes: [&mut dyn FnMut(&mut Params); 4] = [
            &mut |params| optimizer.step(params, &grads, &hyper, 1.0),
            &mut |params| params.value_mut(ParamId(0)).as_mut_slice()[34] += 1.0,
            &mut |params| *params = params.clone(),
            &mut |params| params.value_mut(ParamId(0)).fill(2.0),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let before = (params.checksum(), product(&params));
            change(&mut params);
            let after = (params.checksum(), product(&params));
            let is_copied = i == 2;
            assert_eq!((after.0 == before.0, after.1 == before.1), (is_copied, is_copied), "{i}");
        }
    }
}
