//! Models with low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685): the weights are frozen, and each targeted
//! one counts as `w + scale · b·a`, of which `a` and `b` are trained.
//!
//! `a` is drawn as peft draws it, uniformly in `±1/sqrt(inputs)` (He et al. 2015 with a slope of `sqrt(5)`), and `b` is
//! zero: a model with new adapters computes what it did without. A reward model's head is trained beside them.
//!
//! Sampler and learner run the same op on the same adapters. A model is merged, into one without adapters, when it is
//! written for others.

use aha_compute::ops::lora;
use aha_compute::random::Philox;
use aha_compute::{Adapter, Tensor};

use super::{Model, Projection};
use crate::config::Head;
use crate::error::{Error, Result};

/// Which weights have adapters, and of which size.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rows of `a` and columns of `b`; at least 1.
    pub rank: usize,
    /// What the scale is in proportion to.
    pub alpha: f64,
    /// The targeted projections of each layer.
    pub targets: Vec<Target>,
    /// Whether the scale is `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv:2312.03732), and not `alpha / rank`.
    pub is_rank_stabilised: bool,
}

impl Lora {
    /// What the product of an adapter's matrices is multiplied by.
    pub fn scale(&self) -> f32 {
        scale(self.alpha, self.rank, self.is_rank_stabilised)
    }
}

pub(crate) fn scale(alpha: f64, rank: usize, is_rank_stabilised: bool) -> f32 {
    let rank = rank as f64;
    let divisor = if is_rank_stabilised { rank.sqrt() } else { rank };
    (alpha / divisor) as f32
}

/// A projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output.
    O,
    /// The MLP's gate.
    Gate,
    /// What is gated.
    Up,
    /// The MLP's output.
    Down,
}

impl Target {
    /// All of them, in the order of a layer.
    pub const ALL: [Target; 7] =
        [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// Its name in transformers, without the module that it is in.
    pub fn name(self) -> &'static str {
        let module = self.module();
        module.split_once('.').map_or(module, |(_, name)| name)
    }

    /// The target of that name.
    pub fn from_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|target| target.name() == name)
    }

    fn module(self) -> &'static str {
        match self {
            Target::Q => "self_attn.q_proj",
            Target::K => "self_attn.k_proj",
            Target::V => "self_attn.v_proj",
            Target::O => "self_attn.o_proj",
            Target::Gate => "mlp.gate_proj",
            Target::Up => "mlp.up_proj",
            Target::Down => "mlp.down_proj",
        }
    }

    /// The path of the projection in a model, as transformers has it.
    pub(crate) fn path(self, layer_idx: usize) -> String {
        format!("model.layers.{layer_idx}.{}", self.module())
    }
}

/// Names of an adapter's matrices beside the weight of this path.
pub(crate) fn matrix_names(path: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("{path}.{matrix}.weight"))
}

impl Model {
    /// Which adapters the model has, if it has any.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The same weights, frozen and shared, with new adapters that are drawn by the names of their weights.
    pub fn with_lora(&self, lora: &Lora, random: Philox) -> Result<Model> {
        if self.lora.is_some() {
            return Err(Error::Bug("the model has adapters already".to_owned()));
        }
        let mut params = self.params.clone();
        for id in params.ids() {
            params.set_trained(id, self.config.head == Head::Score && id == self.head);
        }
        for layer_idx in 0..self.config.layer_count {
            for target in Target::ALL.into_iter().filter(|target| lora.targets.contains(target)) {
                let weight = self.params.value(self.layers[layer_idx].projection(target).weight);
                let (out, inp) = (weight.rows(), weight.cols());
                let [a, b] = matrix_names(&target.path(layer_idx));
                let (family, bound) = (random.derive(&a), (inp as f64).sqrt().recip());
                let draw = |i: u64| ((2.0 * family.uniform(&[i]) - 1.0) * bound) as f32;
                let values: Vec<f32> = (0..(lora.rank * inp) as u64).map(draw).collect();
                params.push(a, Tensor::from_slice(&self.device, &[lora.rank, inp], &values));
                params.push(b, Tensor::zeros(&self.device, &[out, lora.rank]));
            }
        }
        let model = Model::over(self.config.clone(), &self.device, params, Some(lora.clone()))?;
        Ok(Model { origin: self.origin.clone(), ..model })
    }

    /// The model without adapters: each weight is what it counted as. Those that nobody else has are changed in
    /// place.
    pub fn merged(mut self) -> Result<Model> {
        if self.lora.is_none() {
            return Ok(self);
        }
        for (layer_idx, target) in self.projections() {
            let Projection { weight, adapter, .. } = *self.layers[layer_idx].projection(target);
            if let Some(Adapter { a, b, scale }) = adapter {
                let [a, b] = [a, b].map(|id| self.params.value(id).clone());
                lora::merge(self.params.value_mut(weight), [&a, &b], scale);
            }
        }
        let Model { config, device, mut params, .. } = self;
        params.truncate(config.param_shapes().len());
        for id in params.ids() {
            params.set_trained(id, true);
        }
        Model::over(config, &device, params, None)
    }

    fn projections(&self) -> Vec<(usize, Target)> {
        let of_layer = |layer_idx| Target::ALL.map(|target| (layer_idx, target));
        (0..self.layers.len()).flat_map(of_layer).collect()
    }
}
