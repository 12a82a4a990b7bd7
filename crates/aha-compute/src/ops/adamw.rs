//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), in
//! the order of operations of torch's `AdamW`.
//!
//! ```text
//! g = scale · gradient
//! m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
//! w = w (1 - lr decay) - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! Weights with one dimension, which are norms and biases, are not decayed.

use crate::simd::{LANES, Simd, simd_fn};
use crate::tensor::Shards;
use crate::{Grads, ParamId, Params, Tensor};

/// Elements that one call of the kernel takes.
const BLOCK_LEN: usize = 1 << 14;

/// Constants of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta2: f64,
    /// What is added to the root of the mean square.
    pub eps: f64,
    /// Decay of the weights per unit of learning rate.
    pub weight_decay: f64,
}

/// The optimizer's state: two moments per weight, and the number of steps.
#[derive(Clone, Debug)]
pub struct AdamW {
    moments: Vec<(Tensor, Tensor)>,
    step_count: u64,
}

impl AdamW {
    /// No steps yet, all moments zero.
    pub fn new(params: &Params) -> AdamW {
        let zeros = |id: ParamId| {
            let value = params.value(id);
            Tensor::zeros(value.device(), value.shape())
        };
        AdamW { moments: params.ids().map(|id| (zeros(id), zeros(id))).collect(), step_count: 0 }
    }

    /// Changes the weights by one step along gradients times `scale`.
    pub fn step(&mut self, params: &mut Params, grads: &Grads, hyper: &Hyper, scale: f32) {
        self.step_count += 1;
        let t = self.step_count as f64;
        let corrections = (1.0 - hyper.beta1.powf(t), 1.0 - hyper.beta2.powf(t));
        for id in params.ids() {
            let value = params.value_mut(id);
            let decay = if value.shape().len() > 1 { hyper.lr * hyper.weight_decay } else { 0.0 };
            let factors = Factors {
                scale,
                keep: (1.0 - decay) as f32,
                beta1: hyper.beta1 as f32,
                rest1: (1.0 - hyper.beta1) as f32,
                beta2: hyper.beta2 as f32,
                rest2: (1.0 - hyper.beta2) as f32,
                root_factor: (1.0 / corrections.1.sqrt()) as f32,
                eps: hyper.eps as f32,
                size: (hyper.lr / corrections.0) as f32,
            };
            let (m, v) = &mut self.moments[id.0];
            update(value, m, v, grads.get(id), factors);
        }
    }

    /// The means of gradients and of squared gradients of a weight.
    pub fn moments(&self, id: ParamId) -> (&Tensor, &Tensor) {
        let (m, v) = &self.moments[id.0];
        (m, v)
    }

    /// Sets the moments of a weight, as long as it.
    pub fn set_moments(&mut self, id: ParamId, m: &[f32], v: &[f32]) {
        self.moments[id.0].0.as_mut_slice().copy_from_slice(m);
        self.moments[id.0].1.as_mut_slice().copy_from_slice(v);
    }

    /// Steps made.
    pub fn step_count(&self) -> u64 {
        self.step_count
    }

    /// Sets the number of steps made.
    pub fn set_step_count(&mut self, step_count: u64) {
        self.step_count = step_count;
    }
}

#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    root_factor: f32,
    eps: f32,
    size: f32,
}

fn update(value: &mut Tensor, m: &mut Tensor, v: &mut Tensor, gradient: &Tensor, factors: Factors) {
    let device = value.device().clone();
    let len = gradient.len();
    let [value, m, v] = [value, m, v].map(|t| Shards::new(t.as_mut_slice()));
    device.run_blocks(len, BLOCK_LEN, |start, end| {
        // SAFETY: blocks are disjoint.
        let [value, m, v] = [&value, &m, &v].map(|shards| unsafe { shards.slice(start, end) });
        update_block(device.isa(), value, m, v, &gradient.as_slice()[start..end], factors);
    });
}

simd_fn! {
    fn update_block<S>(value: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], factors: Factors) {
        let total = value.len();
        assert!([m.len(), v.len(), gradient.len()] == [total; 3]);
        let [scale, keep, beta1, rest1, beta2, rest2] =
            [factors.scale, factors.keep, factors.beta1, factors.rest1, factors.beta2, factors.rest2]
                .map(|x| splat::<S>(x));
        let [root_factor, eps, size] = [factors.root_factor, factors.eps, -factors.size].map(|x| splat::<S>(x));
        for at in (0..total).step_by(LANES) {
            let len = (total - at).min(LANES);
            let g = S::mul(S::load_part(gradient.as_ptr().add(at), len), scale);
            let mean = S::load_part(m.as_ptr().add(at), len);
            let mean = S::fma(mean, beta1, S::mul(g, rest1));
            let square = S::load_part(v.as_ptr().add(at), len);
            let square = S::fma(square, beta2, S::mul(S::mul(g, g), rest2));
            let denominator = S::fma(S::sqrt(square), root_factor, eps);
            let kept = S::mul(S::load_part(value.as_ptr().add(at), len), keep);
            let next = S::fma(S::div(mean, denominator), size, kept);
            S::store_part(m.as_mut_ptr().add(at), mean, len);
            S::store_part(v.as_mut_ptr().add(at), square, len);
            S::store_part(value.as_mut_ptr().add(at), next, len);
        }
    }
}

#[inline(always)]
unsafe fn splat<S: Simd>(x: f32) -> S::V {
    // SAFETY: the caller runs where the instruction set is.
    unsafe { S::splat(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::ops::check::{F32, assert_close, assert_same_bits, devices, noise, noise_tensor};

    const HYPER: Hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    /// The formulas of the module's docs in `f64`, over `steps` steps with the same gradient.
    fn reference(w: &[f64], gradient: &[f64], scale: f64, decays: bool, steps: i32) -> Vec<f64> {
        let Hyper { lr, beta1, beta2, eps, weight_decay } = HYPER;
        let decay = if decays { lr * weight_decay } else { 0.0 };
        let of = |(&w, &g): (&f64, &f64)| {
            let (mut w, mut m, mut v, g) = (w, 0.0, 0.0, g * scale);
            for t in 1..=steps {
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                let root = (v / (1.0 - beta2.powi(t))).sqrt();
                w = w * (1.0 - decay) - lr * m / (1.0 - beta1.powi(t)) / (root + eps);
            }
            w
        };
        w.iter().zip(gradient).map(of).collect()
    }

    fn run(device: &Device, steps: i32) -> (Params, AdamW) {
        let mut params = Params::default();
        let matrix = params.push("matrix", noise_tensor(device, 1, &[300, 67]));
        let vector = params.push("vector", noise_tensor(device, 2, &[37]));
        let mut grads = Grads::zeros(device, &params);
        *grads.get_mut(matrix) = noise_tensor(device, 3, &[300, 67]);
        *grads.get_mut(vector) = noise_tensor(device, 4, &[37]);
        let mut adamw = AdamW::new(&params);
        (0..steps).for_each(|_| adamw.step(&mut params, &grads, &HYPER, 0.5));
        (params, adamw)
    }

    #[test]
    fn every_device_follows_the_reference_and_the_others() {
        let want = reference(&noise(1, 300 * 67), &noise(3, 300 * 67), 0.5, true, 4);
        let want_vector = reference(&noise(2, 37), &noise(4, 37), 0.5, false, 4);
        let mut first: Option<Params> = None;
        for device in devices() {
            let (params, adamw) = run(&device, 4);
            let values: Vec<&Tensor> = params.ids().map(|id| params.value(id)).collect();
            assert_close("matrix", values[0].as_slice(), &want, F32);
            assert_close("vector", values[1].as_slice(), &want_vector, F32);
            assert_eq!(adamw.step_count(), 4);
            let first = first.get_or_insert_with(|| params.clone());
            for id in params.ids() {
                assert_same_bits(
                    "devices",
                    params.value(id).as_slice(),
                    first.value(id).as_slice(),
                );
            }
        }
    }

    #[test]
    fn saved_state_goes_on_as_if_never_saved() {
        let device = Device::cpu(1);
        let (mut params, mut adamw) = run(&device, 3);
        let mut restored = AdamW::new(&params);
        for id in params.ids() {
            let (m, v) = adamw.moments(id);
            restored.set_moments(id, m.as_slice(), v.as_slice());
        }
        restored.set_step_count(adamw.step_count());
        let mut copy = params.clone();
        let mut grads = Grads::zeros(&device, &params);
        params.ids().for_each(|id| grads.get_mut(id).fill(0.3));
        adamw.step(&mut params, &grads, &HYPER, 1.0);
        restored.step(&mut copy, &grads, &HYPER, 1.0);
        for id in params.ids() {
            assert_same_bits("weights", params.value(id).as_slice(), copy.value(id).as_slice());
        }
    }
}
